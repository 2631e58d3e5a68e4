//! In which order a connection's events are given again. Pure.
//!
//! A connection's events may be with the member together, given in order. Once one of them must be given again it waits until
//! the member has answered every later one it holds; no newer event of the connection is given meanwhile. Then everything of
//! the connection that is still open follows in order (docs/adr/0004-order-within-a-connection.md).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use trunkline_proto::{ConnectionId, Offset};

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
    waiting: BTreeMap<Offset, Wait>,
    /// Given to the member and not settled; one that is being refused is here and waits.
    given: BTreeSet<Offset>,
}

impl Lane {
    /// The event to give next, and from when on.
    fn next(&self) -> Option<(Instant, Offset)> {
        let (&first, wait) = self.waiting.first_key_value()?;
        match wait {
            Wait::Until(from) if self.given.last().is_none_or(|last| *last < first) => Some((*from, first)),
            Wait::Until(_) | Wait::Refusing => None,
        }
    }
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: BTreeMap<ConnectionId, Lane>,
    /// Next event of each connection, where its time has come.
    ripe: BTreeSet<Offset>,
    /// The same, where it has not come.
    ripening: BTreeSet<(Instant, Offset)>,
}

impl Lanes {
    /// Whether an event of the connection waits: a later one waits behind it.
    pub(super) fn blocks(&self, connection: ConnectionId) -> bool {
        self.lanes.get(&connection).is_some_and(|lane| !lane.waiting.is_empty())
    }

    /// Whether an event before `offset` waits.
    pub(super) fn is_behind(&self, connection: ConnectionId, offset: Offset) -> bool {
        let first = self.lanes.get(&connection).and_then(|lane| lane.waiting.first_key_value());
        first.is_some_and(|(first, _)| *first < offset)
    }

    /// The member does not have it, and is to have it from this moment on.
    pub(super) fn wait(&mut self, connection: ConnectionId, offset: Offset, from: Instant) {
        self.change(connection, |lane| {
            lane.given.remove(&offset);
            lane.waiting.insert(offset, Wait::Until(from));
        });
    }

    /// The member has it.
    pub(super) fn give(&mut self, connection: ConnectionId, offset: Offset) {
        self.change(connection, |lane| {
            lane.waiting.remove(&offset);
            lane.given.insert(offset);
        });
    }

    /// A commit that refuses it is under way.
    pub(super) fn refuse(&mut self, connection: ConnectionId, offset: Offset) {
        self.change(connection, |lane| {
            lane.waiting.insert(offset, Wait::Refusing);
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
            lane.given.remove(&offset);
        });
    }

    /// The earliest event that may be given now.
    pub(super) fn due(&mut self, now: Instant) -> Option<Offset> {
        while let Some((from, offset)) = self.ripening.first().copied().filter(|(from, _)| *from <= now) {
            self.ripening.remove(&(from, offset));
            self.ripe.insert(offset);
        }
        self.ripe.first().copied()
    }

    /// When the next one may be given that may not be given yet.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.ripening.first().map(|(from, _)| *from)
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
        if let Some((from, offset)) = before {
            self.ripening.remove(&(from, offset));
            self.ripe.remove(&offset);
        }
        self.ripening.extend(after);
    }
}
