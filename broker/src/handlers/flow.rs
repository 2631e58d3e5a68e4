//! Between steps 12 and 15 of the walk: what one member may be given of one partition, and what a commit of it comes to. Pure.
//!
//! One [`Flow`] lives from an assignment to the next (group, partition, epoch). It knows every event that is open: given to
//! the member, waiting for another try, held back behind an earlier event of the same connection (`flow/lanes.rs`), or part of a
//! commit that is on its way through the log. It holds offsets, never records, and at most [`Settings::holes_max`] of them: when that many
//! are open no new event is taken, and only waiting ones are delivered. How connections share the member's credit: `flow/share.rs`.
//!
//! Commits are pipelined: each is computed on what the ones before it will leave ([`Flow::projected`]). The state machine
//! checks that base, so a commit refused along the way makes the later ones that built on it fail as a whole, and nothing else.
//!
//! Time is of a clock that nobody sets: a wall clock that is set back delays no redelivery and no deadline.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod lanes;
mod proposal;
mod share;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use lanes::Lanes;
pub use proposal::{Hole, Leftover, NotOpen, Outcome, Proposal};
use share::Rank;
pub use share::{CONNECTION_BYTES_MAX, CONNECTION_EVENTS_MAX, Free, Wanted};
use trunkline_proto::{ConnectionId, Offset, limits};

/// What bounds a flow.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a member may work on an event before it is given again, attempt + 1. [`Flow::extend`] starts it anew.
    pub deadline: Duration,
    /// Deliveries after which an event is parked by itself; 0: never.
    pub max_attempts: u32,
    /// Most open events.
    pub holes_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(60), max_attempts: 0, holes_max: limits::HOLES_MAX }
    }
}

/// An event of the group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arrival {
    /// Which.
    pub offset: Offset,
    /// Whose; keeps the connection's later events behind it.
    pub connection: ConnectionId,
    /// Of its record.
    pub bytes: usize,
    /// The connection begins with it, and its client waits for an answer.
    pub opens: bool,
}

/// An event that was open when the flow began.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StartHole {
    /// Which.
    pub event: Arrival,
    /// Of its next delivery, from 1.
    pub attempt: u32,
    /// What is left of the delay before it.
    pub delay: Duration,
}

/// What is to be done with an event that the reader has come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// Give it to the member ([`Flow::give`]) for a credit.
    Now,
    /// It waits for earlier events of its connection ([`Flow::hold`]) and needs no credit until [`Flow::next_due`] names it.
    Behind,
    /// It could be given if such a credit were free. The reader waits for that, or holds it to see what comes after it.
    Credit(Wanted),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// To be delivered; the lanes know when.
    Waiting,
    /// The member works on it until the deadline. (Not given and in flight: out of attempts, parked at the deadline.)
    InFlight { deadline: Instant },
    /// In a commit under way.
    Committing,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    connection: ConnectionId,
    bytes: usize,
    opens: bool,
    /// Of the delivery under way, or of the next one.
    attempt: u32,
    state: State,
    /// Holds one of the member's credits.
    given: bool,
}

impl Open {
    /// Not given yet.
    fn new(event: &Arrival) -> Self {
        let Arrival { connection, bytes, opens, .. } = *event;
        Self { connection, bytes, opens, attempt: 1, state: State::Waiting, given: false }
    }
}

#[derive(Debug)]
struct Pending {
    base: Offset,
    through: Offset,
    outcomes: Vec<(Offset, Outcome)>,
    doomed: bool,
}

/// See the module's head.
#[derive(Debug)]
pub struct Flow {
    settings: Settings,
    /// Settled prefix, as applied.
    through: Offset,
    /// Settled prefix once every commit under way is applied.
    projected: Offset,
    /// Everything up to here has been offered.
    scanned: Offset,
    open: BTreeMap<Offset, Open>,
    lanes: Lanes,
    deadlines: BTreeSet<(Instant, Offset)>,
    pending: VecDeque<Pending>,
}

impl Flow {
    /// A flow over a group whose settled prefix is `through`, except `holes`.
    pub fn new(settings: Settings, now: Instant, through: Offset, holes: Vec<StartHole>) -> Self {
        let mut flow = Self {
            settings,
            through,
            projected: through,
            scanned: through,
            open: BTreeMap::new(),
            lanes: Lanes::default(),
            deadlines: BTreeSet::new(),
            pending: VecDeque::new(),
        };
        for hole in holes {
            // had all its attempts before this flow began: overdue from the start, so that `expire` parks it
            let exhausted = flow.settings.max_attempts > 0 && hole.attempt > flow.settings.max_attempts;
            let state = if exhausted { State::InFlight { deadline: now } } else { State::Waiting };
            let open = Open { attempt: hole.attempt, state, ..Open::new(&hole.event) };
            flow.open.insert(hole.event.offset, open);
            if exhausted {
                flow.deadlines.insert((now, hole.event.offset));
            } else {
                flow.lanes.wait(hole.event.offset, &open, now + hole.delay);
            }
        }
        flow
    }

    /// The settled prefix as applied.
    pub fn through(&self) -> Offset {
        self.through
    }

    /// The settled prefix once every commit under way is applied.
    pub fn projected(&self) -> Offset {
        self.projected
    }

    /// Everything up to here has been offered; the reader goes on after it.
    pub fn scanned(&self) -> Offset {
        self.scanned
    }

    /// Whether a new event may be offered.
    pub fn has_room(&self) -> bool {
        self.open.len() < self.settings.holes_max
    }

    /// How many events are open.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// How many credits of the member this flow holds.
    pub fn given(&self) -> usize {
        self.open.values().filter(|open| open.given).count()
    }

    /// How many commits are under way.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// What to do with an event that matches the group's filter, once the reader has come to it. Nothing changes.
    pub fn turn(&self, event: &Arrival, free: Free) -> Turn {
        match self.lanes.rank(event) {
            Some(rank) if free.allows(rank) => Turn::Now,
            Some(rank) if rank.is_first() || free.is_short() => Turn::Credit(rank.wanted()),
            _ => Turn::Behind,
        }
    }

    /// The reader passes the event on to the member: it is in flight from here on, for the first time. Call with room, a credit, and
    /// when it is its turn.
    pub fn give(&mut self, now: Instant, event: &Arrival) {
        self.take(event);
        self.set_given(now, event.offset);
    }

    /// The reader passes it over: [`Flow::next_due`] will name it. Call with room.
    pub fn hold(&mut self, now: Instant, event: &Arrival) {
        let open = self.take(event);
        self.lanes.wait(event.offset, &open, now);
    }

    fn take(&mut self, event: &Arrival) -> Open {
        debug_assert!(event.offset > self.scanned && self.has_room());
        self.scanned = event.offset;
        let open = Open::new(event);
        self.open.insert(event.offset, open);
        open
    }

    /// The reader has come to `offset`, and nothing since the last offered event matches the filter.
    pub fn progress(&mut self, offset: Offset) {
        self.scanned = self.scanned.max(offset);
    }

    /// Whether [`Flow::next_due`] has something.
    pub fn has_due(&mut self, now: Instant, free: Free) -> bool {
        self.lanes.due(now).is_some_and(|(rank, _)| free.allows(rank))
    }

    /// With such a free credit it had something.
    pub fn wanted(&mut self, now: Instant) -> Option<Wanted> {
        let (rank, _) = self.lanes.due(now)?;
        // others may go on when an earlier event of their connection is settled, and this flow sees that
        rank.is_first().then(|| rank.wanted())
    }

    /// The event whose wait is over and whose turn it is, with its attempt. It is in flight from here on: call only with a credit, which
    /// is among the `free` ones.
    pub fn next_due(&mut self, now: Instant, free: Free) -> Option<(Offset, u32)> {
        let (_, offset) = self.lanes.due(now).filter(|(rank, _)| free.allows(*rank))?;
        self.set_given(now, offset);
        Some((offset, self.open.get(&offset)?.attempt))
    }

    /// When to call again although nothing else happens.
    pub fn next_wake(&self) -> Option<Instant> {
        let deadline = self.deadlines.first().map(|(at, _)| *at);
        [deadline, self.lanes.next_due()].into_iter().flatten().min()
    }

    /// The member is still at work on these: their deadlines start anew. Others are passed over, and so are those behind an
    /// event that waits for them to be given again: how long it waits must have a bound.
    pub fn extend(&mut self, now: Instant, offsets: impl IntoIterator<Item = Offset>) {
        for offset in offsets {
            let Some(open) = self.open.get(&offset) else { continue };
            if matches!(open.state, State::InFlight { .. }) && !self.lanes.is_behind(open.connection, offset) {
                self.set_in_flight(now + self.settings.deadline, offset);
            }
        }
    }

    /// The member commits. Refused outcomes that have had all their attempts become parked ones.
    pub fn commit(&mut self, mut outcomes: Vec<(Offset, Outcome)>) -> Result<Proposal, NotOpen> {
        outcomes.sort_by_key(|(offset, _)| *offset);
        for pair in outcomes.windows(2) {
            if pair[0].0 == pair[1].0 {
                return Err(NotOpen::Twice(pair[0].0));
            }
        }
        for (offset, _) in &outcomes {
            if !self.open.get(offset).is_some_and(|open| open.given && matches!(open.state, State::InFlight { .. })) {
                return Err(NotOpen::NotInFlight(*offset));
            }
        }
        Ok(self.propose(outcomes))
    }

    /// What must be committed without the member: events past their deadline (again, attempt + 1) and events out of
    /// attempts (parked), `most` at once. Call until it gives `None`.
    ///
    /// Of a connection's events only the first counts as tried: its later ones have had to wait for it.
    pub fn expire(&mut self, now: Instant, most: usize) -> Option<Proposal> {
        let overdue = self.deadlines.range(..=(now, Offset::MAX)).take(most.min(limits::OUTCOMES_MAX));
        let mut overdue: Vec<_> = overdue.map(|(_, offset)| *offset).collect();
        if overdue.is_empty() {
            return None;
        }
        overdue.sort_unstable();
        let (mut outcomes, mut tried) = (Vec::with_capacity(overdue.len()), BTreeSet::new());
        for offset in overdue {
            let given = self.open.get(&offset).filter(|open| open.given).map(|open| open.connection);
            let released =
                given.is_some_and(|connection| self.lanes.is_behind(connection, offset) || !tried.insert(connection));
            outcomes.push((offset, Outcome::Refused { delay: Duration::ZERO, released }));
        }
        Some(self.propose(outcomes))
    }

    /// A commit without outcomes that moves the settled prefix over records that are no events of this group: retention may not
    /// pass the prefix. Due once they span `entries` log entries; or any, while retention would take everything up to `wanted`.
    pub fn advance(&mut self, entries: u64, wanted: Offset) -> Option<Proposal> {
        let through = self.extended(self.projected);
        let span = through.index().0.saturating_sub(self.projected.index().0);
        let is_wanted = span > 0 && self.projected < wanted;
        ((span >= entries || is_wanted) && self.pending.is_empty()).then(|| self.propose(Vec::new()))
    }

    /// The oldest commit under way was applied. Gives the credits that are free again.
    pub fn applied(&mut self, now: Instant) -> usize {
        let Some(pending) = self.pending.pop_front() else { return 0 };
        self.through = pending.through;
        let mut credits = 0;
        for (offset, outcome) in pending.outcomes {
            let Some(open) = self.open.get_mut(&offset) else { continue };
            credits += usize::from(open.given);
            let connection = open.connection;
            match outcome {
                Outcome::Acknowledged | Outcome::Parked { .. } => {
                    self.open.remove(&offset);
                    self.lanes.settle(connection, offset);
                }
                Outcome::Refused { delay, released } => {
                    open.given = false;
                    open.attempt = open.attempt.saturating_add(u32::from(!released));
                    open.state = State::Waiting;
                    self.lanes.wait(offset, open, now + delay);
                }
            }
        }
        credits
    }

    /// The oldest commit under way was refused: its events are in flight as before it, their deadlines start anew. Says
    /// whether that was bound to happen because a commit before it was refused.
    pub fn refused(&mut self, now: Instant) -> bool {
        let Some(refused) = self.pending.pop_front() else { return false };
        self.restore(now + self.settings.deadline, &refused);
        refused.doomed
    }

    /// The newest commit did not get as far as the log: as if it had never been made. Deadlines start anew.
    pub fn withdrawn(&mut self, now: Instant) {
        if let Some(withdrawn) = self.pending.pop_back() {
            self.restore(now + self.settings.deadline, &withdrawn);
        }
    }

    /// The newest commit, one that [`Flow::expire`] made, was too large for the log: its events are as overdue as before.
    pub fn expired_too_many(&mut self, now: Instant) {
        if let Some(withdrawn) = self.pending.pop_back() {
            self.restore(now, &withdrawn);
        }
    }

    fn restore(&mut self, deadline: Instant, commit: &Pending) {
        for (offset, _) in &commit.outcomes {
            if let Some(open) = self.open.get(offset) {
                self.lanes.restore(open.connection, *offset);
                self.set_in_flight(deadline, *offset);
            }
        }
        // what remains applies as far as it does not build on what is gone
        self.projected = self.through;
        for pending in &mut self.pending {
            pending.doomed = pending.base != self.projected;
            if !pending.doomed {
                self.projected = pending.through;
            }
        }
    }

    /// The member is gone: what the next assignment must say. Call with no commit under way.
    pub fn leftover(&self) -> Leftover {
        debug_assert!(self.pending.is_empty());
        let last_given = self.open.iter().rev().find(|(_, open)| open.given).map(|(offset, _)| *offset);
        let through = self.extended(self.through.max(last_given.unwrap_or(Offset::ZERO)));
        let holes = self.open.range(..=through).filter(|(offset, open)| open.given || **offset > self.through);
        let holes = holes.map(|(offset, open)| Hole {
            offset: *offset,
            attempt: open.attempt.saturating_add(u32::from(open.given)),
        });
        Leftover { base: self.through, through, holes: holes.collect() }
    }

    fn propose(&mut self, mut outcomes: Vec<(Offset, Outcome)>) -> Proposal {
        for (offset, outcome) in &mut outcomes {
            self.park_when_out_of_attempts(*offset, outcome);
        }
        let base = self.projected;
        let last = outcomes.last().map_or(base, |(offset, _)| base.max(*offset));
        let through = self.extended(last);
        for (offset, outcome) in &outcomes {
            self.set_committing(*offset, matches!(outcome, Outcome::Refused { .. }));
        }
        let settling = |offset: &Offset| outcomes.binary_search_by_key(offset, |(offset, _)| *offset).is_ok();
        let holes = if through > base {
            let passed = self.open.range(Offset(base.0 + 1)..=through).filter(|(offset, _)| !settling(offset));
            passed.map(|(offset, open)| Hole { offset: *offset, attempt: open.attempt }).collect()
        } else {
            Vec::new()
        };
        self.projected = through;
        self.pending.push_back(Pending { base, through, outcomes: outcomes.clone(), doomed: false });
        Proposal { base, through, outcomes, holes }
    }

    fn park_when_out_of_attempts(&self, offset: Offset, outcome: &mut Outcome) {
        let Some(open) = self.open.get(&offset) else { return };
        let delivered = if open.given { open.attempt } else { open.attempt.saturating_sub(1) };
        match outcome {
            Outcome::Refused { released: false, .. }
                if self.settings.max_attempts > 0 && open.attempt >= self.settings.max_attempts =>
            {
                *outcome = Outcome::Parked { reason: "out of attempts".to_owned(), attempt: delivered };
            }
            Outcome::Parked { attempt, .. } if *attempt == 0 => *attempt = delivered,
            _ => {}
        }
    }

    /// As far as the prefix can reach from `from` without passing another open event or what has been scanned.
    fn extended(&self, from: Offset) -> Offset {
        let Some(next) = from.0.checked_add(1) else { return from };
        let reach = self.open.range(Offset(next)..).next().map_or(self.scanned, |(open, _)| Offset(open.0 - 1));
        reach.min(self.scanned).max(from)
    }

    fn set_given(&mut self, now: Instant, offset: Offset) {
        let Some(open) = self.open.get_mut(&offset) else { return };
        open.given = true;
        self.lanes.give(offset, open);
        self.set_in_flight(now + self.settings.deadline, offset);
    }

    fn set_in_flight(&mut self, deadline: Instant, offset: Offset) {
        self.leave_deadline(offset);
        if let Some(open) = self.open.get_mut(&offset) {
            open.state = State::InFlight { deadline };
            self.deadlines.insert((deadline, offset));
        }
    }

    fn set_committing(&mut self, offset: Offset, refused: bool) {
        self.leave_deadline(offset);
        let Some(open) = self.open.get_mut(&offset) else { return };
        open.state = State::Committing;
        if refused {
            self.lanes.refuse(offset, open);
        }
    }

    fn leave_deadline(&mut self, offset: Offset) {
        if let Some(Open { state: State::InFlight { deadline }, .. }) = self.open.get(&offset) {
            self.deadlines.remove(&(*deadline, offset));
        }
    }
}
