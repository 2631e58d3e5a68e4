//! The handler groups of a partition by name: made by their first assignment, moved by resets.

use std::collections::BTreeMap;

use trunkline_proto::{LogIndex, Offset, Timestamp, limits, v1};

use super::{
    apis::Apis,
    effects::{Refusal, Reply},
    filter::Filter,
    group::Group,
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
        let through = start(body.start.as_ref(), index)?.max(trimmed);
        let group = Group::new(&body.member, filter, through, now, apis);
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
