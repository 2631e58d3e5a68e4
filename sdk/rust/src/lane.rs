//! A lane of the schedule: one connection's events in order, and what the handler made of them.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use prost::Message as _;
use trunkline_proto::v1;

/// Names one run of a handler.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct WorkId(pub(crate) u64);

/// One connection of one partition.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    pub(crate) queue: VecDeque<(v1::Event, Instant)>,
    pub(crate) running: Option<WorkId>,
    /// Outcomes that wait to be sent, in order.
    pub(crate) settled: VecDeque<Settled>,
    /// Outcomes in a commit without an answer.
    pub(crate) committing: usize,
    /// In `sendable`.
    pub(crate) listed: bool,
    /// In `ready`.
    pub(crate) ready: bool,
    /// Highest offset seen: what comes above it cannot be held already.
    pub(crate) newest: u64,
    /// This event was refused, and the broker may not know yet: later ones that still come are given back.
    pub(crate) refused: Option<u64>,
    /// Send outcomes one by one: a commit with several was refused for one of them.
    pub(crate) alone: bool,
}

impl Lane {
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty()
            && self.running.is_none()
            && self.settled.is_empty()
            && self.committing == 0
            && !self.ready
    }

    /// Gives back what the lane has not begun.
    pub(crate) fn release(&mut self) {
        for (event, since) in self.queue.drain(..) {
            self.settled.push_back(Settled::released(event.offset, event.attempt, since));
        }
    }
}

/// What the handler made of an event.
#[derive(Clone, Debug)]
pub(crate) struct Settled {
    pub(crate) offset: u64,
    pub(crate) attempt: u32,
    pub(crate) since: Instant,
    pub(crate) verdict: v1::outcome::Verdict,
    pub(crate) commands: Vec<v1::Command>,
    pub(crate) bytes: usize,
}

impl Settled {
    pub(crate) fn new(
        offset: u64,
        attempt: u32,
        since: Instant,
        verdict: v1::outcome::Verdict,
        commands: Vec<v1::Command>,
    ) -> Self {
        let bytes = 32 + commands.iter().map(|command| command.encoded_len() + 32).sum::<usize>();
        Self { offset, attempt, since, verdict, commands, bytes }
    }

    pub(crate) fn refused(offset: u64, attempt: u32, since: Instant, delay: Duration) -> Self {
        let delay_ms = u32::try_from(delay.as_millis()).unwrap_or(u32::MAX);
        let refused = v1::Refused { delay_ms, released: false };
        Self::new(offset, attempt, since, v1::outcome::Verdict::Refused(refused), Vec::new())
    }

    pub(crate) fn released(offset: u64, attempt: u32, since: Instant) -> Self {
        let released = v1::Refused { delay_ms: 0, released: true };
        Self::new(offset, attempt, since, v1::outcome::Verdict::Refused(released), Vec::new())
    }
}
