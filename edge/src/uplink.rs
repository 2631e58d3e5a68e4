//! Step 3 of the walk. One queue per partition: shards append encoded records, the link's task takes what waits as one batch,
//! keeps it until applied and resends it after a reconnect. The bytes in flight are bounded; when full, shards stop reading.

use bytes::BytesMut;
use tokio::sync::oneshot;
use trunkline_proto::{ConnectionId, PartitionId};

/// Why a tracked record will never be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UplinkError {
    /// This incarnation is lost or replaced: every socket is being closed.
    #[error("the edge lost its incarnation")]
    Fenced,
    /// The edge is shutting down.
    #[error("the edge is shutting down")]
    Closed,
}

/// Puts records of any shard on their way. Cheap to clone, usable from every thread.
#[derive(Clone, Debug)]
pub struct Handle {}

impl Handle {
    /// The incarnation this edge runs under: new connections name it.
    pub fn incarnation(&self) -> u64 {
        unimplemented!()
    }

    /// The partition that owns a connection. Fixed once the first broker has answered, which is before sockets are accepted.
    pub fn partition_of(&self, connection: ConnectionId) -> PartitionId {
        unimplemented!()
    }

    /// Appends one record: `encode` writes it to the partition's queue. Never waits: who reads sockets asks
    /// [`Handle::has_room`] first; close records must always get through.
    pub fn append(&self, connection: ConnectionId, encode: impl FnOnce(&mut BytesMut)) {
        unimplemented!()
    }

    /// As [`Handle::append`]; the receiver resolves when the record's batch is applied.
    pub fn append_tracked(
        &self,
        connection: ConnectionId,
        encode: impl FnOnce(&mut BytesMut),
    ) -> oneshot::Receiver<Result<(), UplinkError>> {
        unimplemented!()
    }

    /// Whether sockets may be read: the bytes in flight are under the bound.
    pub fn has_room(&self) -> bool {
        unimplemented!()
    }

    /// Waits until [`Handle::has_room`]. Cancel safe.
    pub async fn wait_for_room(&self) {
        unimplemented!()
    }

    /// Whether a broker has asked to stop reading this API's sockets (its handler group is too far behind) for the
    /// connection's partition.
    pub fn is_paused(&self, connection: ConnectionId, api: &str) -> bool {
        unimplemented!()
    }

    /// Waits until something about pauses changes. Cancel safe.
    pub async fn pause_changed(&self) {
        unimplemented!()
    }

    /// Waits until everything appended so far is applied.
    pub async fn flushed(&self) {
        unimplemented!()
    }
}
