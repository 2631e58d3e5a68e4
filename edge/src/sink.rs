//! Where a shard's records go: the uplink, or in tests whatever stands in for it.

use std::future::Future;

use bytes::BytesMut;
use tokio::sync::oneshot;
use trunkline_proto::ConnectionId;

use crate::uplink::{self, UplinkError};

/// What a shard needs of the uplink (step 3 of the walk). The semantics are those of [`uplink::Handle`].
pub trait RecordSink: Clone + 'static {
    /// The incarnation new connections belong to.
    fn incarnation(&self) -> u64;
    /// Appends one record. Never waits and never refuses: who reads sockets asks [`RecordSink::has_room`] first.
    fn append(&self, connection: ConnectionId, encode: impl FnOnce(&mut BytesMut));
    /// As [`RecordSink::append`]; the receiver resolves when the record is applied.
    fn append_tracked(
        &self,
        connection: ConnectionId,
        encode: impl FnOnce(&mut BytesMut),
    ) -> oneshot::Receiver<Result<(), UplinkError>>;
    /// Whether sockets may be read.
    fn has_room(&self) -> bool;
    /// Waits until there is room. Cancel safe.
    fn wait_for_room(&self) -> impl Future<Output = ()>;
    /// Whether this API's sockets may not be read for now.
    fn is_paused(&self, connection: ConnectionId, api: &str) -> bool;
    /// Waits until something about pauses changes. Cancel safe.
    fn pause_changed(&self) -> impl Future<Output = ()>;
}

impl RecordSink for uplink::Handle {
    fn incarnation(&self) -> u64 {
        Self::incarnation(self)
    }

    fn append(&self, connection: ConnectionId, encode: impl FnOnce(&mut BytesMut)) {
        Self::append(self, connection, encode);
    }

    fn append_tracked(
        &self,
        connection: ConnectionId,
        encode: impl FnOnce(&mut BytesMut),
    ) -> oneshot::Receiver<Result<(), UplinkError>> {
        Self::append_tracked(self, connection, encode)
    }

    fn has_room(&self) -> bool {
        Self::has_room(self)
    }

    fn wait_for_room(&self) -> impl Future<Output = ()> {
        Self::wait_for_room(self)
    }

    fn is_paused(&self, connection: ConnectionId, api: &str) -> bool {
        Self::is_paused(self, connection, api)
    }

    fn pause_changed(&self) -> impl Future<Output = ()> {
        Self::pause_changed(self)
    }
}
