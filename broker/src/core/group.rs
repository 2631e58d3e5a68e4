//! One handler group: who has the partition (epoch), what is settled (a prefix and the holes in it), what is parked. The
//! leader's flow decides what to deliver; this decides what of its commits holds.

use std::collections::BTreeMap;

use bytes::Bytes;
use trunkline_proto::{Offset, RecordKind, Timestamp, limits, v1};

use super::{
    apis::Apis,
    effects::{Refusal, Reply},
    filter::Filter,
    snapshot::{Reader, SnapshotError, Writer},
};

/// Most parked events of a group.
pub const PARKED_MAX: usize = 10_000;
/// Most bytes of parked events of a group.
pub const PARKED_BYTES_MAX: usize = 64 << 20;

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
    /// Of its last commit or assignment, in log time.
    pub active: Timestamp,
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
    /// A new group that has settled everything up to `through`.
    pub(super) fn new(member: &str, filter: Filter, through: Offset, now: Timestamp, apis: &Apis) -> Self {
        let passed = apis.total_at(&filter, through);
        Self { epoch: 1, member: member.into(), filter, through, passed, active: now, ..Self::default() }
    }

    /// Everything up to `through` counts as settled, everything after it as open.
    pub(super) fn reset(&mut self, through: Offset, apis: &Apis) {
        self.through = through;
        self.holes.clear();
        self.passed = apis.total_at(&self.filter, through);
    }

    /// Takes dead letters out, all or none: open again, or with `discard` forgotten. What is at or below `trimmed` is in no log any more.
    pub(super) fn release(&mut self, offsets: &[u64], discard: bool, trimmed: Offset) -> Result<(), Refusal> {
        let ascends = offsets.is_sorted_by(|one, next| one < next);
        if offsets.is_empty() || offsets.len() > limits::OUTCOMES_MAX || !ascends {
            return Err(Refusal::Malformed);
        }
        if !offsets.iter().all(|offset| self.parked.contains_key(&Offset(*offset))) {
            return Err(Refusal::Gone);
        }
        if !discard && offsets.first().is_some_and(|first| Offset(*first) <= trimmed) {
            return Err(Refusal::NotOpen);
        }
        if !discard && self.holes.len() + offsets.len() > limits::HOLES_MAX {
            return Err(Refusal::Limit);
        }
        for offset in offsets.iter().map(|offset| Offset(*offset)) {
            let event = self.parked.remove(&offset);
            self.parked_bytes -= event.map_or(0, |event| event.weight());
            // beyond the prefix it is open already: a reset has moved the group back over it
            if !discard && offset <= self.through {
                self.holes.entry(offset).or_insert(Hole { attempt: 1, not_before: Timestamp(0) });
            }
        }
        Ok(())
    }

    /// Events of its filter that are not settled.
    pub(super) fn lag(&self, apis: &Apis) -> u64 {
        apis.total(&self.filter).saturating_sub(self.passed) + self.holes.len() as u64
    }

    /// Everything up to here may be trimmed without the group missing it.
    pub(super) fn retention_limit(&self) -> Offset {
        let before_hole = self.holes.first_key_value().map(|(hole, _)| Offset(hole.0.saturating_sub(1)));
        before_hole.unwrap_or(self.through).min(self.through)
    }

    pub(super) fn reply(&self) -> Reply {
        Reply::Group { epoch: self.epoch, through: self.through }
    }

    /// Puts a commit in force, or refuses all of it. `end`: the last offset a handler can have seen.
    pub(super) fn commit(
        &mut self,
        body: v1::HandlerCommitted,
        end: Offset,
        now: Timestamp,
        apis: &Apis,
    ) -> Result<(), Refusal> {
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
        self.active = now;
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

    /// Outcomes and listed holes share no offset, so counting is enough.
    fn check_room(&self, change: &Change) -> Result<(), Refusal> {
        let (mut added, mut filled) = (change.listed.len(), 0);
        let mut parked = (self.parked.len(), self.parked_bytes);
        for (offset, outcome) in &change.outcomes {
            let is_hole = *offset <= self.through;
            match outcome {
                Outcome::Refused { .. } => added += usize::from(!is_hole),
                Outcome::Acknowledged => filled += usize::from(is_hole),
                Outcome::Parked(event) => {
                    filled += usize::from(is_hole);
                    parked = (parked.0 + 1, parked.1 + event.weight());
                }
            }
        }
        let holes = self.holes.len() + added - filled;
        let fits = holes <= limits::HOLES_MAX && parked.0 <= PARKED_MAX && parked.1 <= PARKED_BYTES_MAX;
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
    pub(super) fn assign(
        &mut self,
        body: &v1::HandlerAssigned,
        filter: Filter,
        end: Offset,
        now: Timestamp,
        apis: &Apis,
    ) -> Result<(), Refusal> {
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
        self.active = now;
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

    pub(super) fn encode(&self, out: &mut Writer) {
        out.u64(self.epoch);
        out.text(&self.member);
        out.u32(self.filter.apis.len() as u32);
        self.filter.apis.iter().for_each(|api| out.text(api));
        out.u32(self.filter.kinds.len() as u32);
        self.filter.kinds.iter().for_each(|kind| out.u8(*kind as u8));
        out.u64(self.through.0);
        out.u64(self.passed);
        out.u64(self.settled);
        out.u64(self.active.0);
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

    pub(super) fn decode(input: &mut Reader<'_>) -> Result<Self, SnapshotError> {
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
        group.active = Timestamp(input.u64()?);
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
