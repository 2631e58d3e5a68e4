//! What every process of the world shares: time, chance, the way out, and the oracle.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;
use trunkline_edge::core::Millis;
use trunkline_proto::{PartitionCount, PartitionId, Timestamp};

use crate::{
    Options, Random, Rules, Time,
    net::{Body, Node},
    oracle::Oracle,
    raft::BROKERS,
};

/// Events kept to be shown with a failure.
const TRACE: usize = 60;
/// Log time at the beginning.
const EPOCH: u64 = 1_000_000_000_000;

#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) now: Time,
    pub(crate) random: Random,
    pub(crate) options: Options,
    pub(crate) rules: Rules,
    pub(crate) count: PartitionCount,
    pub(crate) oracle: Oracle,
    /// Said in this step.
    pub(crate) out: Vec<(Node, Node, Body)>,
    /// Syncs begun in this step: when they are done, whose, and which.
    pub(crate) syncs: Vec<(Time, u8, u64)>,
    pub(crate) trace: VecDeque<String>,
    /// Nothing fails any more.
    pub(crate) healed: bool,
    /// Clients say no more, and then leave.
    pub(crate) hushed: bool,
    pub(crate) leaving: bool,
    /// How far brokers' wall clocks are ahead.
    pub(crate) skews: [Time; BROKERS as usize],
    serial: u64,
    base: Instant,
}

impl Context {
    pub(crate) fn new(options: Options, rules: Rules, random: Random, count: PartitionCount) -> Self {
        Self {
            now: 0,
            random,
            options,
            rules,
            count,
            oracle: Oracle::new(count, rules),
            out: Vec::new(),
            syncs: Vec::new(),
            trace: VecDeque::new(),
            healed: false,
            hushed: false,
            leaving: false,
            skews: [0; BROKERS as usize],
            serial: 0,
            // only differences count
            base: Instant::now(),
        }
    }

    pub(crate) fn send(&mut self, from: Node, to: Node, body: Body) {
        self.out.push((from, to, body));
    }

    /// A number never used before.
    pub(crate) fn serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    pub(crate) fn instant(&self, at: Time) -> Instant {
        self.base + Duration::from_micros(at)
    }

    /// The clock that nobody sets.
    pub(crate) fn steady(&self) -> std::time::Instant {
        self.instant(self.now).into_std()
    }

    pub(crate) fn millis(&self) -> Millis {
        Millis(self.now / 1000)
    }

    /// A broker's wall clock: they differ, are set now and then, and in some worlds run fast, for a log may be trimmed where a minute of it ends.
    pub(crate) fn clock(&self, broker: u8) -> Timestamp {
        Timestamp(EPOCH + self.now * self.options.haste + self.skews[usize::from(broker)])
    }

    pub(crate) fn partitions(&self) -> impl Iterator<Item = PartitionId> + use<> {
        self.count.iter()
    }

    pub(crate) fn note(&mut self, what: impl FnOnce() -> String) {
        if self.trace.len() == TRACE {
            self.trace.pop_front();
        }
        let at = self.now;
        self.trace.push_back(format!("{:>6}.{:03} ms  {}", at / 1000, at % 1000, what()));
    }
}
