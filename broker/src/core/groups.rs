//! Handler groups: who has the partition (epoch), what is settled (a prefix and the holes in it), what is parked. The leader's
//! flow decides what to deliver; this decides what of its commits holds.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use trunkline_proto::{LogIndex, Offset, RecordKind, Timestamp, limits, v1};

use super::{
    apis::Apis,
    effects::{Refusal, Reply},
    snapshot::{Reader, SnapshotError, Writer},
};

/// Most handler groups of a partition.
pub(super) const GROUPS_MAX: usize = 1024;
/// Most APIs in a group's filter.
pub(super) const FILTER_APIS_MAX: usize = 256;
/// Most parked events of a group.
pub const PARKED_MAX: usize = 10_000;
/// Most bytes of parked events of a group.
pub const PARKED_BYTES_MAX: usize = 64 << 20;

/// Which events a group consumes.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Filter {
    /// Ascending; empty: all.
    pub apis: Vec<Box<str>>,
    /// Ascending; empty: all events.
    pub kinds: Vec<RecordKind>,
}

impl Filter {
    fn new(apis: &[String], kinds: &[u32]) -> Result<Self, Refusal> {
        if apis.len() > FILTER_APIS_MAX || !apis.iter().all(|api| limits::is_name(api)) {
            return Err(Refusal::Malformed);
        }
        let apis: BTreeSet<Box<str>> = apis.iter().map(|api| api.as_str().into()).collect();
        let kind =
            |number: &u32| u8::try_from(*number).ok().and_then(RecordKind::from_u8).filter(|kind| kind.is_event());
        let kinds = kinds.iter().map(kind).collect::<Option<BTreeSet<_>>>().ok_or(Refusal::Malformed)?;
        Ok(Self { apis: apis.into_iter().collect(), kinds: kinds.into_iter().collect() })
    }

    pub(super) fn takes_api(&self, api: &str) -> bool {
        self.apis.is_empty() || self.apis.binary_search_by(|name| (**name).cmp(api)).is_ok()
    }

    /// `place`: 0 opened, 1 message, 2 closed.
    pub(super) fn takes_place(&self, place: usize) -> bool {
        self.kinds.is_empty() || self.kinds.iter().any(|kind| *kind as usize == place + 1)
    }
}
const _: () = assert!(RecordKind::ConnectionOpened as u8 == 1 && RecordKind::ConnectionClosed as u8 == 3);

/// An event at or below a group's settled prefix that is still open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hole {
    /// Of the next delivery, from 1.
    pub attempt: u32,
    /// Not to be delivered earlier; 0: at once.
    pub not_before: Timestamp,
}

/// A dead letter: kept with its bytes, as retention may take the original.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParkedEvent {
    /// The record as it stood in the log.
    pub record: Bytes,
    /// How often it was delivered.
    pub attempt: u32,
    /// What the handler said.
    pub reason: Box<str>,
    /// When it was parked.
    pub at: Timestamp,
}

impl ParkedEvent {
    fn weight(&self) -> usize {
        self.record.len() + self.reason.len()
    }
}

/// One handler group.
#[derive(Clone, Default, Debug)]
pub(super) struct Group {
    pub epoch: u64,
    pub member: Box<str>,
    pub filter: Filter,
    /// Every event up to here is settled, except the holes.
    pub through: Offset,
    pub holes: BTreeMap<Offset, Hole>,
    pub parked: BTreeMap<Offset, ParkedEvent>,
    parked_bytes: usize,
    /// Events of its filter up to `through`, settled or holes; exact once the group has been at the end of the log.
    passed: u64,
    /// Events acknowledged or parked, ever.
    pub settled: u64,
}

/// What a commit or an assignment brings, checked against the group and not yet put in force.
struct Change {
    through: Offset,
    listed: Vec<(Offset, Hole)>,
    /// Events in (base, through] that are named, as outcomes or as holes.
    named: u64,
    outcomes: Vec<(Offset, Outcome)>,
}

enum Outcome {
    Acknowledged,
    Refused { delay_ms: u32, released: bool },
    Parked(ParkedEvent),
}

impl Group {
    /// Events of its filter that are not settled.
    pub(super) fn lag(&self, apis: &Apis) -> u64 {
        apis.total(&self.filter).saturating_sub(self.passed) + self.holes.len() as u64
    }

    /// Everything up to here may be trimmed without the group missing it.
    pub(super) fn retention_limit(&self) -> Offset {
        let before_hole = self.holes.first_key_value().map(|(hole, _)| Offset(hole.0.saturating_sub(1)));
        before_hole.unwrap_or(self.through).min(self.through)
    }

    fn reply(&self) -> Reply {
        Reply::Group { epoch: self.epoch, through: self.through }
    }

    /// Puts a commit in force, or refuses all of it. `end`: the last offset a handler can have seen.
    fn commit(&mut self, body: v1::HandlerCommitted, end: Offset, now: Timestamp, apis: &Apis) -> Result<(), Refusal> {
        if body.epoch != self.epoch {
            return Err(Refusal::StaleEpoch);
        }
        let (base, through) = (Offset(body.base), Offset(body.through));
        if base != self.through || through < base || through > end {
            return Err(Refusal::NotOpen);
        }
        let listed = listed_holes(&body.holes)?;
        if listed.iter().any(|(offset, _)| *offset <= base || *offset > through) {
            return Err(Refusal::NotOpen);
        }
        let outcomes = outcomes(body.outcomes, now)?;
        let fresh = self.check_open(&outcomes, &listed, through)?;
        let change = Change { through, named: fresh + listed.len() as u64, listed, outcomes };
        self.check_room(&change)?;
        self.make(change, now, apis);
        Ok(())
    }

    /// How many of the outcomes are of events after the base; refuses if one is not open.
    fn check_open(
        &self,
        outcomes: &[(Offset, Outcome)],
        listed: &[(Offset, Hole)],
        through: Offset,
    ) -> Result<u64, Refusal> {
        let is_open = |offset: &Offset| {
            if *offset <= self.through {
                return self.holes.contains_key(offset);
            }
            *offset <= through && listed.binary_search_by_key(offset, |(hole, _)| *hole).is_err()
        };
        if !outcomes.iter().all(|(offset, _)| is_open(offset)) {
            return Err(Refusal::NotOpen);
        }
        Ok(outcomes.iter().filter(|(offset, _)| *offset > self.through).count() as u64)
    }

    fn check_room(&self, change: &Change) -> Result<(), Refusal> {
        let mut holes: BTreeMap<Offset, ()> = self.holes.keys().map(|offset| (*offset, ())).collect();
        let mut parked = (self.parked.len(), self.parked_bytes);
        holes.extend(change.listed.iter().map(|(offset, _)| (*offset, ())));
        for (offset, outcome) in &change.outcomes {
            match outcome {
                Outcome::Refused { .. } => {
                    holes.insert(*offset, ());
                }
                Outcome::Acknowledged => {
                    holes.remove(offset);
                }
                Outcome::Parked(event) => {
                    holes.remove(offset);
                    parked = (parked.0 + 1, parked.1 + event.weight());
                }
            }
        }
        let fits = holes.len() <= limits::HOLES_MAX && parked.0 <= PARKED_MAX && parked.1 <= PARKED_BYTES_MAX;
        if fits { Ok(()) } else { Err(Refusal::Limit) }
    }

    fn make(&mut self, change: Change, now: Timestamp, apis: &Apis) {
        self.through = change.through;
        self.passed += change.named;
        self.holes.extend(change.listed);
        for (offset, outcome) in change.outcomes {
            let attempt = self.holes.remove(&offset).map_or(1, |hole| hole.attempt);
            match outcome {
                Outcome::Acknowledged => self.settled += 1,
                Outcome::Refused { delay_ms, released } => {
                    let attempt = if released { attempt } else { attempt.saturating_add(1) };
                    let delay = std::time::Duration::from_millis(u64::from(delay_ms));
                    let not_before = if delay_ms == 0 { Timestamp(0) } else { now.after(delay) };
                    self.holes.insert(offset, Hole { attempt, not_before });
                }
                Outcome::Parked(event) => {
                    self.settled += 1;
                    self.park(offset, event);
                }
            }
        }
        self.recount(apis);
    }

    fn park(&mut self, offset: Offset, event: ParkedEvent) {
        self.parked_bytes += event.weight();
        if let Some(earlier) = self.parked.insert(offset, event) {
            self.parked_bytes -= earlier.weight();
        }
    }

    /// At the end of the log the count is known exactly, whatever it was estimated from.
    fn recount(&mut self, apis: &Apis) {
        let total = apis.total(&self.filter);
        if self.through >= apis.last(&self.filter) || self.passed > total {
            self.passed = total;
        }
    }

    /// Gives the partition to another member.
    fn assign(&mut self, body: &v1::HandlerAssigned, filter: Filter, end: Offset, apis: &Apis) -> Result<(), Refusal> {
        if self.epoch.checked_add(1) != Some(body.epoch) {
            return Err(Refusal::StaleEpoch);
        }
        let (base, through) = (Offset(body.base), Offset(body.through));
        if base != self.through || through < base || through > end {
            return Err(Refusal::NotOpen);
        }
        let listed = listed_holes(&body.holes)?;
        let may_be = |offset: &Offset| *offset <= through && (*offset > base || self.holes.contains_key(offset));
        if !listed.iter().all(|(offset, _)| may_be(offset)) {
            return Err(Refusal::NotOpen);
        }
        let named = listed.iter().filter(|(offset, _)| *offset > base).count();
        if self.holes.len() + named > limits::HOLES_MAX {
            return Err(Refusal::Limit);
        }
        self.epoch = body.epoch;
        self.member = body.member.as_str().into();
        self.make(Change { through, listed, named: named as u64, outcomes: Vec::new() }, Timestamp(0), apis);
        // nobody consumes nothing: what the group consumes is still what its last member asked for
        if !body.member.is_empty() && self.filter != filter {
            self.filter = filter;
            self.passed = apis.total_at(&self.filter, self.through);
            self.recount(apis);
        }
        Ok(())
    }

    fn encode(&self, out: &mut Writer) {
        out.u64(self.epoch);
        out.text(&self.member);
        out.u32(self.filter.apis.len() as u32);
        self.filter.apis.iter().for_each(|api| out.text(api));
        out.u32(self.filter.kinds.len() as u32);
        self.filter.kinds.iter().for_each(|kind| out.u8(*kind as u8));
        out.u64(self.through.0);
        out.u64(self.passed);
        out.u64(self.settled);
        out.length(self.holes.len());
        for (offset, hole) in &self.holes {
            out.u64(offset.0);
            out.u32(hole.attempt);
            out.u64(hole.not_before.0);
        }
        out.length(self.parked.len());
        for (offset, event) in &self.parked {
            out.u64(offset.0);
            out.u32(event.attempt);
            out.u64(event.at.0);
            out.text(&event.reason);
            out.bytes(&event.record);
        }
    }

    fn decode(input: &mut Reader<'_>) -> Result<Self, SnapshotError> {
        let mut group = Self { epoch: input.u64()?, member: input.text()?.into(), ..Self::default() };
        for _ in 0..input.u32()? {
            group.filter.apis.push(input.text()?.into());
        }
        for _ in 0..input.u32()? {
            let kind = RecordKind::from_u8(input.u8()?).filter(|kind| kind.is_event());
            group.filter.kinds.push(kind.ok_or(SnapshotError::Invalid("filter"))?);
        }
        group.through = input.offset()?;
        group.passed = input.u64()?;
        group.settled = input.u64()?;
        for _ in 0..input.length()? {
            let offset = input.offset()?;
            group.holes.insert(offset, Hole { attempt: input.u32()?, not_before: Timestamp(input.u64()?) });
        }
        for _ in 0..input.length()? {
            let (offset, attempt, at) = (input.offset()?, input.u32()?, Timestamp(input.u64()?));
            let (reason, record) = (input.text()?.into(), Bytes::copy_from_slice(input.bytes()?));
            group.park(offset, ParkedEvent { record, attempt, reason, at });
        }
        Ok(group)
    }

    pub(super) fn check(&self, end: Offset) -> Result<(), &'static str> {
        if self.epoch == 0 {
            return Err("has no epoch");
        }
        if self.through > end {
            return Err("is settled beyond the end of the log");
        }
        if self.holes.len() > limits::HOLES_MAX
            || self.holes.last_key_value().is_some_and(|(last, _)| *last > self.through)
        {
            return Err("has too many holes, or one beyond its prefix");
        }
        if self.parked_bytes != self.parked.values().map(ParkedEvent::weight).sum::<usize>() {
            return Err("miscounts its parked bytes");
        }
        if self.parked.len() > PARKED_MAX || self.parked_bytes > PARKED_BYTES_MAX {
            return Err("has parked too much");
        }
        Ok(())
    }
}

/// Holes as a commit lists them: ascending, attempts from 1.
fn listed_holes(holes: &[v1::Hole]) -> Result<Vec<(Offset, Hole)>, Refusal> {
    let in_order = holes.is_sorted_by(|one, next| one.offset < next.offset);
    if !in_order || holes.iter().any(|hole| hole.attempt == 0) {
        return Err(Refusal::Malformed);
    }
    let hole =
        |hole: &v1::Hole| (Offset(hole.offset), Hole { attempt: hole.attempt, not_before: Timestamp(hole.not_before) });
    Ok(holes.iter().map(hole).collect())
}

/// Outcomes ascending by offset, one an offset.
fn outcomes(outcomes: Vec<v1::Outcome>, now: Timestamp) -> Result<Vec<(Offset, Outcome)>, Refusal> {
    if outcomes.len() > limits::OUTCOMES_MAX {
        return Err(Refusal::Malformed);
    }
    let outcome = |outcome: v1::Outcome| {
        let verdict = match outcome.verdict? {
            v1::outcome::Verdict::Acknowledged(_) => Outcome::Acknowledged,
            v1::outcome::Verdict::Refused(v1::Refused { delay_ms, released }) => {
                Outcome::Refused { delay_ms, released }
            }
            v1::outcome::Verdict::Parked(v1::Parked { reason, record, attempt }) => Outcome::Parked(ParkedEvent {
                // a copy: sharing would keep the whole entry's buffer in memory
                record: Bytes::copy_from_slice(&record),
                attempt,
                reason: reason.into(),
                at: now,
            }),
        };
        Some((Offset(outcome.offset), verdict))
    };
    let mut outcomes = outcomes.into_iter().map(outcome).collect::<Option<Vec<_>>>().ok_or(Refusal::Malformed)?;
    outcomes.sort_by_key(|(offset, _)| *offset);
    let distinct = outcomes.is_sorted_by(|(one, _), (next, _)| one < next);
    if distinct { Ok(outcomes) } else { Err(Refusal::NotOpen) }
}

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
        apis: &Apis,
    ) -> (Reply, Result<(), Refusal>) {
        match self.try_assign(body, index, trimmed, apis) {
            Ok(reply) => (reply, Ok(())),
            Err(refusal) => (self.get(&body.group).map_or(Reply::None, |(_, group)| group.reply()), Err(refusal)),
        }
    }

    fn try_assign(
        &mut self,
        body: &v1::HandlerAssigned,
        index: LogIndex,
        trimmed: Offset,
        apis: &Apis,
    ) -> Result<Reply, Refusal> {
        if !limits::is_name(&body.group) || !(body.member.is_empty() || limits::is_name(&body.member)) {
            return Err(Refusal::Malformed);
        }
        let filter = Filter::new(&body.apis, &body.kinds)?;
        if let Some(group) = self.groups.get_mut(body.group.as_str()) {
            group.assign(body, filter, before(index), apis)?;
            return Ok(group.reply());
        }
        if body.epoch != 1 {
            return Err(Refusal::StaleEpoch);
        }
        if self.groups.len() >= GROUPS_MAX {
            return Err(Refusal::Limit);
        }
        let through = start(body.start.as_ref(), index)?.max(trimmed);
        let mut group = Group { epoch: 1, member: body.member.as_str().into(), filter, through, ..Group::default() };
        group.passed = apis.total_at(&group.filter, through);
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
        group.through = Offset(body.through).max(trimmed);
        group.holes.clear();
        group.passed = apis.total_at(&group.filter, group.through);
        (group.reply(), Ok(()))
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
