//! How far may a partition's log be trimmed? And which handler groups are forgotten? Pure: from what its state says and the limits.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)] // no clock, no hash order

use std::{collections::BTreeSet, time::Duration};

use trunkline_proto::{LogIndex, Offset, Timestamp};

use crate::core::{Milestone, Partition};

/// A trim is due when a limit is passed by one part in so many, and goes as far below it: each makes a snapshot of the state.
const STEPS: u64 = 16;

/// What an operator allows a partition to keep. 0 and zero mean "without a bound".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Entries older than this go.
    pub time: Duration,
    /// The oldest entries go while there are more bytes.
    pub bytes: u64,
    /// The hard cap. At it only what makes room is appended.
    pub bytes_max: u64,
    /// At the hard cap the oldest entries go although handler groups have not settled them, which skip them.
    pub drop_unsettled: bool,
    /// A handler group without members for so long is forgotten.
    pub group_expiry: Duration,
}

/// What holds the log of a partition back, and what there is of it.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The first entry that is not trimmed.
    pub first: LogIndex,
    /// Bytes of the entries that are not trimmed.
    pub retained: u64,
    /// Where the log may be trimmed, ascending; the last one is its end.
    pub milestones: Vec<Milestone>,
    /// What comes after is still to be forwarded to other partitions.
    pub forwarded: Offset,
    /// Each handler group, and what comes after is still open for it.
    pub groups: Vec<(String, Offset)>,
    /// A snapshot is being sent to a peer, which needs the log behind it.
    pub is_sending: bool,
}

impl Facts {
    /// Of a partition as it stands. Copies: the state is not to be held locked.
    pub fn of(state: &Partition, is_sending: bool) -> Self {
        Self {
            first: state.first_retained(),
            retained: state.retained_bytes(),
            milestones: state.milestones().collect(),
            forwarded: state.forwarding_limit(),
            groups: state.groups().map(|group| (group.name.to_owned(), group.retention_limit())).collect(),
            is_sending,
        }
    }
}

/// What the leader is to append.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trim {
    /// The last entry that goes.
    pub through: LogIndex,
    /// Groups that skip what they have not settled of it. None but at the hard cap.
    pub skipping: Vec<String>,
}

/// Decides by an operator's limits.
#[derive(Clone, Copy, Debug)]
pub struct Retention(pub Limits);

impl Retention {
    /// How far to trim, if nothing were in the way.
    pub fn wanted(&self, now: Timestamp, facts: &Facts) -> Option<LogIndex> {
        self.too_old(now, facts).max(self.too_much(facts))
    }

    /// How far to trim, if at all.
    pub fn decide(&self, now: Timestamp, facts: &Facts) -> Option<Trim> {
        let wanted = self.wanted(now, facts)?;
        let is_full = self.0.bytes_max != 0 && facts.retained >= self.0.bytes_max;
        // a receiver that is so slow that the disk fills up begins anew
        if facts.is_sending && !is_full {
            return None;
        }
        let skips = is_full && self.0.drop_unsettled;
        let unsettled = facts.groups.iter().map(|(_, limit)| *limit).min().filter(|_| !skips);
        let limit = unsettled.unwrap_or(Offset::MAX).min(facts.forwarded);
        let may_go = |milestone: &&Milestone| Offset::end_of(milestone.index) <= limit && milestone.index <= wanted;
        let through = facts.milestones.iter().rev().find(may_go)?.index;
        if through < facts.first {
            return None;
        }
        let end = Offset::end_of(through);
        let skipping = facts.groups.iter().filter(|(_, limit)| *limit < end).map(|(name, _)| name.clone()).collect();
        Some(Trim { through, skipping })
    }

    /// The last entry that is older than allowed, if the first is older by a step.
    fn too_old(&self, now: Timestamp, facts: &Facts) -> Option<LogIndex> {
        let limit = u64::try_from(self.0.time.as_micros()).unwrap_or(u64::MAX);
        let age = |milestone: &Milestone| now.0.saturating_sub(milestone.time.0);
        let first = facts.milestones.first()?;
        if limit == 0 || age(first) < limit.saturating_add(limit / STEPS) {
            return None;
        }
        Some(facts.milestones.iter().rev().find(|milestone| age(milestone) >= limit)?.index)
    }

    /// The last entry that must go for the rest to be a step below what is allowed.
    fn too_much(&self, facts: &Facts) -> Option<LogIndex> {
        // what is full is too much, whatever else is allowed
        let limit = [self.0.bytes, self.0.bytes_max].into_iter().filter(|limit| *limit != 0).min()?;
        if facts.retained <= limit && (self.0.bytes_max == 0 || facts.retained < self.0.bytes_max) {
            return None;
        }
        let written = facts.milestones.last()?.bytes;
        let target = limit - limit / STEPS;
        Some(facts.milestones.iter().find(|milestone| written - milestone.bytes <= target)?.index)
    }

    /// Whether a group that was last active at `active`, in log time, and has no members is forgotten.
    pub fn is_expired(&self, now: Timestamp, active: Timestamp) -> bool {
        let expiry = u64::try_from(self.0.group_expiry.as_micros()).unwrap_or(u64::MAX);
        expiry != 0 && now.0.saturating_sub(active.0) >= expiry
    }
}

/// What a partition's groups say of their members, and who is really there.
#[derive(Clone, Debug, Default)]
pub struct Attendance {
    /// Groups whose member, as the log has it, was not seen at this broker since then. This broker leads: they would be here.
    absent: Vec<(String, u64, Timestamp)>,
}

/// What the leader notes of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Note {
    /// Its member has not come back: it has none.
    Unattended(String),
    /// It is forgotten: the group and its epoch.
    Forgotten(String, u64),
}

/// A group as the state has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupFact {
    /// Its name.
    pub name: String,
    /// Of its last assignment.
    pub epoch: u64,
    /// The log says that it has a member.
    pub has_member: bool,
    /// Of its last commit or assignment.
    pub active: Timestamp,
}

impl Attendance {
    /// How long a member that the log knows may be away: a broker that has begun to lead does not know who is on the way.
    pub const PATIENCE: Duration = Duration::from_secs(600);

    /// What to note, given who has a stream to this broker now.
    pub fn notes(
        &mut self,
        retention: &Retention,
        now: Timestamp,
        groups: Vec<GroupFact>,
        present: &BTreeSet<String>,
    ) -> Vec<Note> {
        let patience = Self::PATIENCE.as_micros() as u64;
        let (mut absent, mut notes) = (Vec::new(), Vec::new());
        for group in groups.into_iter().filter(|group| !present.contains(&group.name)) {
            if !group.has_member {
                if retention.is_expired(now, group.active) {
                    notes.push(Note::Forgotten(group.name, group.epoch));
                }
                continue;
            }
            let known = self.absent.iter().find(|(name, epoch, _)| *name == group.name && *epoch == group.epoch);
            let since = known.map_or(now, |(_, _, since)| *since);
            if now.0.saturating_sub(since.0) >= patience {
                notes.push(Note::Unattended(group.name.clone()));
            }
            absent.push((group.name, group.epoch, since));
        }
        self.absent = absent;
        notes
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
