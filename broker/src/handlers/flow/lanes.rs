//! In which order a connection's events are given again. Pure.
//!
//! A connection's events may be with the member together, given in order. Once one of them must be given again it waits until
//! the member has answered every later one it holds; no newer event of the connection is given meanwhile. Then everything of
//! the connection that is still open follows in order (docs/adr/0004-order-within-a-connection.md). A connection that has its share
//! of the credit waits in the same way, and so does what comes after it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use trunkline_proto::{ConnectionId, Offset};

use super::{Arrival, CONNECTION_BYTES_MAX, CONNECTION_EVENTS_MAX, Open, Rank};

/// Why an event is not given now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wait {
    /// Not before this moment.
    Until(Instant),
    /// Its refusal is on its way through the log.
    Refusing,
}

/// One connection's open events.
#[derive(Debug, Default)]
struct Lane {
    waiting: BTreeMap<Offset, Waiting>,
    /// Given to the member and not settled, with its bytes; one that is being refused is here and waits.
    given: BTreeMap<Offset, usize>,
    /// Of those together.
    given_bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    wait: Wait,
    bytes: usize,
    opens: bool,
}

/// The event of a connection that is to be given next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Next {
    from: Instant,
    rank: Rank,
    offset: Offset,
}

impl Lane {
    fn next(&self) -> Option<Next> {
        let (&offset, first) = self.waiting.first_key_value()?;
        let from = match first.wait {
            Wait::Until(from) if self.given.last_key_value().is_none_or(|(last, _)| *last < offset) => from,
            Wait::Until(_) | Wait::Refusing => return None,
        };
        Some(Next { from, rank: self.rank(first.bytes, first.opens)?, offset })
    }

    /// With which rank an event may be given after those that are; none while they are as many as may be.
    fn rank(&self, bytes: usize, opens: bool) -> Option<Rank> {
        let held = self.given.len();
        let fits = held < CONNECTION_EVENTS_MAX && self.given_bytes.saturating_add(bytes) <= CONNECTION_BYTES_MAX;
        match held {
            0 if opens => Some(Rank::Opens),
            0 => Some(Rank::Holds(0)),
            _ => fits.then_some(Rank::Holds(held)),
        }
    }

    fn give(&mut self, offset: Offset, bytes: usize) {
        if self.given.insert(offset, bytes).is_none() {
            self.given_bytes += bytes;
        }
    }

    fn take_back(&mut self, offset: Offset) {
        self.given_bytes -= self.given.remove(&offset).unwrap_or_default();
    }
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: BTreeMap<ConnectionId, Lane>,
    /// Next event of each connection, where its time has come.
    ripe: BTreeSet<(Rank, Offset)>,
    /// The same, where it has not come.
    ripening: BTreeSet<(Instant, Rank, Offset)>,
    /// The latest moment that was told.
    now: Option<Instant>,
}

impl Lanes {
    /// With which rank a new event may be given; none while it must wait behind others of its connection.
    pub(super) fn rank(&self, event: &Arrival) -> Option<Rank> {
        match self.lanes.get(&event.connection) {
            Some(lane) if lane.waiting.is_empty() => lane.rank(event.bytes, event.opens),
            Some(_) => None,
            None => Lane::default().rank(event.bytes, event.opens),
        }
    }

    /// Whether an event before `offset` waits.
    pub(super) fn is_behind(&self, connection: ConnectionId, offset: Offset) -> bool {
        let first = self.lanes.get(&connection).and_then(|lane| lane.waiting.first_key_value());
        first.is_some_and(|(first, _)| *first < offset)
    }

    /// The member does not have it, and is to have it from this moment on.
    pub(super) fn wait(&mut self, offset: Offset, open: &Open, from: Instant) {
        self.change(open.connection, |lane| {
            lane.take_back(offset);
            lane.waiting.insert(offset, Waiting { wait: Wait::Until(from), bytes: open.bytes, opens: open.opens });
        });
    }

    /// The member has it.
    pub(super) fn give(&mut self, offset: Offset, open: &Open) {
        self.change(open.connection, |lane| {
            lane.waiting.remove(&offset);
            lane.give(offset, open.bytes);
        });
    }

    /// A commit that refuses it is under way.
    pub(super) fn refuse(&mut self, offset: Offset, open: &Open) {
        self.change(open.connection, |lane| {
            lane.waiting.insert(offset, Waiting { wait: Wait::Refusing, bytes: open.bytes, opens: open.opens });
        });
    }

    /// That commit came to nothing.
    pub(super) fn restore(&mut self, connection: ConnectionId, offset: Offset) {
        self.change(connection, |lane| {
            lane.waiting.remove(&offset);
        });
    }

    /// It is open no longer.
    pub(super) fn settle(&mut self, connection: ConnectionId, offset: Offset) {
        self.change(connection, |lane| {
            lane.waiting.remove(&offset);
            lane.take_back(offset);
        });
    }

    /// Of the events that may be given now, by their time, the one that comes first.
    pub(super) fn due(&mut self, now: Instant) -> Option<(Rank, Offset)> {
        self.now = Some(now);
        while let Some((from, rank, offset)) = self.ripening.first().copied().filter(|(from, ..)| *from <= now) {
            self.ripening.remove(&(from, rank, offset));
            self.ripe.insert((rank, offset));
        }
        self.ripe.first().copied()
    }

    /// When the next one may be given that may not be given yet.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.ripening.first().map(|(from, ..)| *from)
    }

    fn change(&mut self, connection: ConnectionId, change: impl FnOnce(&mut Lane)) {
        let lane = self.lanes.entry(connection).or_default();
        let before = lane.next();
        change(lane);
        let after = lane.next();
        if lane.waiting.is_empty() && lane.given.is_empty() {
            self.lanes.remove(&connection);
        }
        if before == after {
            return;
        }
        if let Some(Next { from, rank, offset }) = before
            && !self.ripe.remove(&(rank, offset))
        {
            self.ripening.remove(&(from, rank, offset));
        }
        match after {
            // most wait for nothing but their turn
            Some(Next { from, rank, offset }) if self.now.is_some_and(|now| from <= now) => {
                self.ripe.insert((rank, offset));
            }
            Some(Next { from, rank, offset }) => {
                self.ripening.insert((from, rank, offset));
            }
            None => {}
        }
    }
}
