//! The state machine of a partition: pure. No clock, no randomness, no IO, no hash-ordered iteration, so that every replica
//! computes the same state from the same entries.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod apis;
mod channels;
mod commands;
mod connections;
mod dedup;
mod edges;
pub mod effects;
mod events;
pub mod expand;
mod filter;
mod group;
mod groups;
mod invariants;
mod names;
mod outbox;
pub mod partition;
mod records;
mod retained;
mod snapshot;
#[cfg(test)]
mod tests;
mod views;

pub use connections::{Attribute, Phase};
pub use dedup::{DEDUP_MAX, DEDUP_WINDOW};
pub use effects::{
    Applied, AppliedEntry, BatchOutcome, EdgeDelivery, EdgeIndex, LoggedEntry, Refusal, Reply, Targets, Verdict,
};
pub use group::{Hole, PARKED_BYTES_MAX, PARKED_MAX, ParkedEvent, Skipped};
pub use outbox::{OUTBOX_MAX, OutboxEntry, OutboxItem};
pub use partition::{APPLY_VERSION, Partition};
pub use retained::Milestone;
pub use snapshot::{SNAPSHOT_VERSION, SnapshotError, is_of_earlier_version};
pub use views::{ConnectionView, EdgeView, GroupView};
