//! Deterministic simulation: a cluster's pure cores in one thread and virtual time, over a network, disks and processes that
//! fail by seed. The same seed gives the same run, to the byte.
//!
//! Real here: `broker::core::Partition`, the link's `Sequencer` and `Grace`, the handlers' `Flow` and commits, the decision of
//! `Retention`; the edge's `Connection`, `Outgoing`, `Position` and `ChannelIndex`. Modelled: Raft (openraft in the product),
//! disks, the network, and the thin drivers around the cores, each after the file it stands for.
//!
//! `oracle.rs` holds the promises, `sabotage.rs` the negative controls: a simulation that cannot fail is worthless.

mod backend;
mod broker;
mod client;
mod context;
mod delivery;
mod edge;
mod forward;
mod leader;
mod log;
mod member;
mod net;
mod options;
mod oracle;
mod raft;
mod random;
mod sabotage;
mod sockets;
mod stored;
mod worker;
mod world;

pub use options::{Options, Rules};
pub use oracle::{Invariant, Violation};
pub use random::Random;
pub use world::{Failure, Report, run};

/// Microseconds of virtual time.
pub type Time = u64;

/// So many milliseconds.
pub(crate) const fn millis(milliseconds: u64) -> Time {
    milliseconds * 1000
}

/// The handler group.
pub(crate) const GROUP: &str = "g";
/// The API of every connection.
pub(crate) const API: &str = "chat";
/// Channels; they belong to partitions by their names.
pub(crate) const CHANNELS: [&str; 4] = ["red", "green", "blue", "grey"];
