//! The only openraft: one group per partition. The Raft log is the event log (DESIGN.md 5).

pub mod floor;
pub mod group;
pub mod log_cache;
pub mod log_store;
pub mod network;
pub mod retention;
pub mod snapshotter;
pub mod state_machine;
#[cfg(test)]
mod tests;
pub mod transfer;
pub mod types;

pub use floor::Floor;
pub use group::{Group, GroupConfig, Role};
pub use snapshotter::{SnapshotEvery, Snapshotter};
pub use state_machine::AppliedSink;
pub use transfer::{SnapshotData, Transfers};
