//! What a seed makes of the world, and the rules that a negative control turns off.

use crate::{Random, Time, millis};

/// The shape and the trouble of one run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Partitions, each with a replica on every broker.
    pub partitions: u16,
    /// How long there is trouble.
    pub trouble: Time,
    /// Messages lost, of a thousand.
    pub drop: u64,
    /// Messages that come twice, of a thousand.
    pub duplicate: u64,
    /// Messages that take long, and so are overtaken, of a thousand.
    pub late: u64,
    /// Longest ordinary sync.
    pub sync: Time,
    /// From one fault to the next, on average.
    pub fault_every: Time,
    /// Times a handler is given an event before it is parked; 0: for ever.
    pub max_attempts: u32,
    /// Bytes an edge may have on their way.
    pub budget: usize,
    /// Unsent bytes of a slow consumer.
    pub max_queue: usize,
    /// Most open connections of an edge.
    pub connections: usize,
    /// How fast wall clocks run: no faster than that a run ends within the time for which keys of submits are known.
    pub haste: u64,
    /// Bytes of a partition's log above which it is trimmed; 0: without a bound.
    pub retained: u64,
    /// Seconds of log time after which it is trimmed; 0: for ever.
    pub retained_for: u64,
}

impl Options {
    /// As the seed has it.
    pub fn new(random: &mut Random) -> Self {
        let (calm, trims) = (random.chance(150), random.chance(600));
        Self {
            partitions: random.range(2, 5) as u16,
            trouble: millis(random.range(4000, 12_000)),
            drop: if calm { 0 } else { random.below(40) },
            duplicate: random.below(60),
            late: random.below(60),
            sync: millis(random.range(2, 30)),
            fault_every: millis(if calm { 4000 } else { random.range(250, 1500) }),
            max_attempts: if random.chance(200) { 3 } else { 0 },
            budget: random.range(256, 4096) as usize,
            max_queue: if random.chance(300) { 96 } else { 1 << 20 },
            connections: random.range(2, 8) as usize,
            haste: if random.chance(300) { 1 } else { random.range(15, 35) },
            retained: if trims { random.range(1 << 10, 16 << 10) } else { 0 },
            retained_for: if trims && random.chance(300) { random.range(20, 200) } else { 0 },
        }
    }
}

/// Which rules hold. All of them do, but in a negative control.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// A disk says "done" only after its sync.
    pub sync_before_ack: bool,
    /// A lost incarnation stays fenced when its connections are closed.
    pub fencing: bool,
    /// An edge's batch applies only in sequence.
    pub dedup: bool,
    /// A handler's commit applies only in its epoch and on its base.
    pub epochs: bool,
    /// A forward applies only after its predecessor.
    pub watermark: bool,
    /// An edge drops deliveries that it has seen.
    pub seen: bool,
    /// Whoever stands before what is trimmed is told.
    pub told: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            sync_before_ack: true,
            fencing: true,
            dedup: true,
            epochs: true,
            watermark: true,
            seen: true,
            told: true,
        }
    }
}
