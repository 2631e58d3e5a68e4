//! What other threads tell a shard, and the bounded queue they tell it through.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::sync::mpsc;
use trunkline_proto::{ConnectionId, PartitionId, Record, link::Deliveries, v1::CloseCause};

use crate::api::Api;

/// Most inputs that wait for one shard. When full, [`ShardHandle::send`] waits: the downlink then leaves frames on the link.
pub const SHARD_INBOX_MAX: usize = 64;

/// What a shard is told from other threads. Bounded by the downlink, which takes a frame off the link only once every shard
/// has taken the one before it but `SHARD_INBOX_MAX`.
#[derive(Clone, Debug)]
pub enum ShardInput {
    /// Deliveries of one partition, already free of duplicates, in order.
    Deliveries(PartitionId, Arc<Deliveries>),
    /// A publish that skipped the log.
    Unlogged(Record),
    /// Close every socket with this cause (1012 for a drain or a lost incarnation), spread over the time. Connections of a lost
    /// incarnation write no close record: the brokers do.
    CloseAll {
        /// Why.
        cause: CloseCause,
        /// Over how long.
        spread: Duration,
        /// Whether to append ConnectionClosed records.
        record: bool,
        /// Dropped by the shard once that is decided for every socket it has: without `record`, none of them appends anything from
        /// then on, even if it lives on for its close handshake.
        decided: Option<mpsc::Sender<Infallible>>,
    },
    /// An API's keys or tokens are others now: close what came in by one that is no more.
    AuthChanged(Arc<Api>),
    /// Take no new sockets.
    StopAccepting,
}

/// The shard has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the shard has ended")]
pub struct ShardGone;

/// Tells one shard. Cheap to clone, usable from every thread. A shard ends when its last handle is dropped and its last
/// connection is over.
#[derive(Clone, Debug)]
pub struct ShardHandle {
    inputs: mpsc::Sender<ShardInput>,
}

impl ShardHandle {
    /// Puts an input into the shard's inbox; waits while [`SHARD_INBOX_MAX`] wait. Cancel safe: then nothing was sent.
    pub async fn send(&self, input: ShardInput) -> Result<(), ShardGone> {
        self.inputs.send(input).await.map_err(|_| ShardGone)
    }
}

/// The shard's end of the queue.
#[derive(Debug)]
pub struct ShardInbox {
    pub(crate) inputs: mpsc::Receiver<ShardInput>,
}

/// A shard's queue: the handle for who tells, the inbox for [`crate::worker::run`].
pub fn inbox() -> (ShardHandle, ShardInbox) {
    let (sender, receiver) = mpsc::channel(SHARD_INBOX_MAX);
    (ShardHandle { inputs: sender }, ShardInbox { inputs: receiver })
}

/// Which shard owns a connection: its third byte modulo the number of shards (the accepting shard draws ids until it fits).
pub fn shard_of(connection: ConnectionId, shards: usize) -> usize {
    usize::from(connection.0[2]) % shards.max(1)
}
