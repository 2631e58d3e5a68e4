//! Step 19 of the walk. A shard owns its sockets and its part of the channel index on one thread: a publish is encoded once and
//! written to each member.

use std::{sync::Arc, time::Duration};

use trunkline_proto::{ConnectionId, PartitionId, Record, link::Deliveries, v1::CloseCause};

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
    },
    /// Take no new sockets.
    StopAccepting,
}

/// Which shard owns a connection: its third byte modulo the number of shards (the accepting shard draws ids until it fits).
pub fn shard_of(connection: ConnectionId, shards: usize) -> usize {
    usize::from(connection.0[2]) % shards
}
