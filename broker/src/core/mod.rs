//! The state machine of a partition: pure. No clock, no randomness, no IO, no hash-ordered iteration, so that every replica
//! computes the same state from the same entries (DESIGN.md 4).
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod effects;
pub mod partition;

pub use effects::{Applied, AppliedEntry, BatchOutcome, EdgeDelivery, EdgeIndex, LoggedEntry, Refusal, Reply, Targets, Verdict};
pub use partition::Partition;
