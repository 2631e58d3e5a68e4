//! The only openraft: one group per partition. The Raft log is the event log.

pub mod floor;
mod frames;
mod give_up;
pub mod group;
pub mod log_cache;
pub mod log_store;
pub mod membership;
mod pace;
pub mod peer_client;
pub mod peer_server;
pub mod peers;
pub mod read_index;
pub mod retention;
pub mod snapshotter;
pub mod state_machine;
#[cfg(test)]
mod tests;
pub mod transfer;
pub mod types;
mod wire;
pub mod witness;

pub use floor::Floor;
pub use group::{Group, GroupConfig, Role};
pub use membership::{ChangeError, Membership};
pub use peer_server::{Calls, PeerServer};
pub use peers::{Advertised, CallError, CallKind, MemberView, Peers};
pub use read_index::ReadIndexError;
pub use snapshotter::{SnapshotEvery, Snapshotter};
pub use state_machine::AppliedSink;
pub use transfer::{SnapshotData, Transfers};
pub use types::Member;
