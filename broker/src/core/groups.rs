//! The handler groups of a partition by name: made by their first assignment, moved by resets.

use std::collections::BTreeMap;

use trunkline_proto::{LogIndex, Offset, Timestamp, limits, v1};

use super::{
    apis::Apis,
    effects::{Refusal, Reply},
    filter::Filter,
    group::{Group, Skipped},
    snapshot::{Reader, SnapshotError, Writer},
};

/// Most handler groups of a partition.
pub(super) const GROUPS_MAX: usize = 1024;

/// The handler groups by name.
#[derive(Clone, Default, Debug)]
pub(super) struct Groups {
    groups: BTreeMap<Box<str>, Group>,
}

impl Groups {
    pub(super) fn get(&self, name: &str) -> Option<(&str, &Group)> {
        self.groups.get_key_value(name).map(|(name, group)| (&**name, group))
    }

    /// By name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Group)> {
        self.groups.iter().map(|(name, group)| (&**name, group))
    }

    /// Settles what a handler's commit says, all of it or nothing.
    pub(super) fn commit(
        &mut self,
        body: v1::HandlerCommitted,
        index: LogIndex,
        now: Timestamp,
        apis: &Apis,
    ) -> Result<(), Refusal> {
        let group = self.groups.get_mut(body.group.as_str()).ok_or(Refusal::StaleEpoch)?;
        group.commit(body, before(index), now, apis)
    }

    /// Gives the partition to a member of a group; the first assignment makes the group.
    pub(super) fn assign(
        &mut self,
        body: &v1::HandlerAssigned,
        index: LogIndex,
        trimmed: Offset,
        now: Timestamp,
        apis: &Apis,
    ) -> (Reply, Result<(), Refusal>) {
        match self.try_assign(body, index, trimmed, now, apis) {
            Ok(reply) => (reply, Ok(())),
            Err(refusal) => (self.get(&body.group).map_or(Reply::None, |(_, group)| group.reply()), Err(refusal)),
        }
    }

    fn try_assign(
        &mut self,
        body: &v1::HandlerAssigned,
        index: LogIndex,
        trimmed: Offset,
        now: Timestamp,
        apis: &Apis,
    ) -> Result<Reply, Refusal> {
        if !limits::is_name(&body.group) || !(body.member.is_empty() || limits::is_name(&body.member)) {
            return Err(Refusal::Malformed);
        }
        let filter = Filter::new(&body.apis, &body.kinds)?;
        if let Some(group) = self.groups.get_mut(body.group.as_str()) {
            group.assign(body, filter, before(index), now, apis)?;
            return Ok(group.reply());
        }
        if body.epoch != 1 {
            return Err(Refusal::StaleEpoch);
        }
        if self.groups.len() >= GROUPS_MAX {
            return Err(Refusal::Limit);
        }
        let start = start(body.start.as_ref(), index)?;
        let mut group = Group::new(&body.member, filter, start.max(trimmed), now, apis);
        // whoever asks for the earliest gets what there is
        let is_earliest = matches!(body.start.and_then(|start| start.at), Some(v1::start::At::Earliest(_)));
        if start < trimmed && !is_earliest {
            group.note_skipped(start, trimmed, 0);
        }
        let reply = group.reply();
        self.groups.insert(body.group.as_str().into(), group);
        Ok(reply)
    }

    /// Moves a group: everything up to `through` counts as settled, everything after it as open.
    pub(super) fn reset(
        &mut self,
        body: &v1::GroupReset,
        index: LogIndex,
        trimmed: Offset,
        apis: &Apis,
    ) -> (Reply, Result<(), Refusal>) {
        let Some(group) = self.groups.get_mut(body.group.as_str()) else { return (Reply::None, Err(Refusal::Gone)) };
        if Offset(body.through) > before(index) {
            return (group.reply(), Err(Refusal::Malformed));
        }
        group.reset(Offset(body.through).max(trimmed), apis);
        (group.reply(), Ok(()))
    }

    /// Retention takes everything up to `through`, which these groups have not settled.
    pub(super) fn skip(&mut self, through: Offset, names: &[String], apis: &Apis) {
        for name in names {
            // one that is forgotten meanwhile has nothing to lose
            if let Some(group) = self.groups.get_mut(name.as_str()) {
                group.skip(through, apis);
            }
        }
    }

    /// Takes dead letters out of a group.
    pub(super) fn release(&mut self, body: &v1::ParkedReleased, trimmed: Offset) -> (Reply, Result<(), Refusal>) {
        let Some(group) = self.groups.get_mut(body.group.as_str()) else { return (Reply::None, Err(Refusal::Gone)) };
        let released = group.release(&body.offsets, body.discard, trimmed);
        (group.reply(), released)
    }

    /// Forgets a group that nobody is a member of.
    pub(super) fn forget(&mut self, body: &v1::GroupDropped) -> Result<(), Refusal> {
        let group = self.groups.get(body.group.as_str()).ok_or(Refusal::Gone)?;
        if group.epoch != body.epoch {
            return Err(Refusal::StaleEpoch);
        }
        if !group.member.is_empty() {
            return Err(Refusal::NotOpen);
        }
        self.groups.remove(body.group.as_str());
        Ok(())
    }

    pub(super) fn encode(&self, out: &mut Writer) {
        out.length(self.groups.len());
        for (name, group) in &self.groups {
            out.text(name);
            group.encode(out);
        }
    }

    pub(super) fn decode(input: &mut Reader<'_>) -> Result<Self, SnapshotError> {
        let mut groups = Self::default();
        for _ in 0..input.length()? {
            groups.groups.insert(input.text()?.into(), Group::decode(input)?);
        }
        Ok(groups)
    }

    /// What was skipped, if anything was: at the end of the state, where older versions have nothing.
    pub(super) fn encode_skipped(&self, out: &mut Writer) {
        let skipped = || self.groups.iter().filter_map(|(name, group)| Some((name, group.skipped?)));
        if skipped().next().is_none() {
            return;
        }
        out.length(skipped().count());
        for (name, skipped) in skipped() {
            out.text(name);
            out.u64(skipped.after.0);
            out.u64(skipped.through.0);
            out.u64(skipped.epoch);
        }
    }

    pub(super) fn decode_skipped(&mut self, input: &mut Reader<'_>) -> Result<(), SnapshotError> {
        let count = input.length()?;
        if count == 0 {
            return Err(SnapshotError::Invalid("skipped"));
        }
        for _ in 0..count {
            let group = self.groups.get_mut(input.text()?).ok_or(SnapshotError::Invalid("group"))?;
            let (after, through) = (input.offset()?, input.offset()?);
            group.skipped = Some(Skipped { after, through, epoch: input.u64()? });
        }
        Ok(())
    }
}

/// The last offset before entry `index`: nobody has seen a later one when the entry was made.
fn before(index: LogIndex) -> Offset {
    Offset::end_of(LogIndex(index.0.saturating_sub(1)))
}

/// Where a new group begins: everything up to the result counts as settled.
fn start(start: Option<&v1::Start>, index: LogIndex) -> Result<Offset, Refusal> {
    use v1::start::At;
    Ok(match start.and_then(|start| start.at.as_ref()) {
        None | Some(At::Latest(_)) => before(index),
        Some(At::Earliest(_)) => Offset::ZERO,
        Some(At::Offset(offset)) => Offset(offset.saturating_sub(1)).min(before(index)),
        // the leader knows which offset that is and says so instead
        Some(At::Time(_)) => return Err(Refusal::Malformed),
    })
}
