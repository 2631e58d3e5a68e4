//! Step 18 of the walk, after the broker's `link/outbound.rs` and before `shard.rs`. Drops what has been seen, whole offsets at a
//! time, and hands the rest to the shards in the partition's order. The next frame is taken off the link only when every shard has
//! taken the one before it: a shard that does not keep up holds back the link, not memory.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::RwLock;
use smallvec::SmallVec;
use tokio::sync::mpsc;
use trunkline_proto::{
    Offset, PartitionId, Record, RecordKind,
    link::{Deliveries, Delivery},
    v1::CloseCause,
};

use crate::{
    api::Api,
    inbox::{ShardHandle, ShardInput, shard_of},
};

/// The way to every shard. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Downlink {
    shards: Arc<RwLock<Arc<[ShardHandle]>>>,
}

impl Downlink {
    /// To these shards, in their order.
    pub fn new(shards: Vec<ShardHandle>) -> Self {
        Self { shards: Arc::new(RwLock::new(shards.into())) }
    }

    /// Tells every shard to take no new sockets.
    pub async fn stop_accepting(&self) {
        self.tell_all(ShardInput::StopAccepting).await;
    }

    /// Tells every shard to close all its sockets, and waits until each has decided that for every socket it has: without
    /// `record` nothing is appended for any of them from then on. Close handshakes go on after it.
    pub async fn close_all(&self, cause: CloseCause, spread: Duration, record: bool) {
        let (decided, mut undecided) = mpsc::channel(1);
        self.tell_all(ShardInput::CloseAll { cause, spread, record, decided: Some(decided) }).await;
        // nothing is ever sent: this ends with the last shard's sender
        let _ = undecided.recv().await;
    }

    /// Tells every shard that the API's keys or tokens are others now.
    pub async fn auth_changed(&self, api: &Arc<Api>) {
        self.tell_all(ShardInput::AuthChanged(Arc::clone(api))).await;
    }

    /// Lets go of the shards: each ends with its last connection. What is delivered later goes nowhere.
    pub fn release(&self) {
        *self.shards.write() = Arc::new([]);
    }

    fn shards(&self) -> Arc<[ShardHandle]> {
        Arc::clone(&self.shards.read())
    }

    async fn tell_all(&self, input: ShardInput) {
        for shard in self.shards().iter() {
            // a shard that has ended has nothing to close
            let _ = shard.send(input.clone()).await;
        }
    }
}

/// Deliveries that contradict the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FeedError {
    /// They go back, or pass the offset they claim to end at.
    #[error("deliveries are out of order at offset {at}")]
    Order {
        /// Where.
        at: Offset,
    },
    /// The broker begins after where this edge stands: something was never delivered.
    #[error("deliveries begin after {start}, but only those up to {seen} have been seen")]
    Gap {
        /// Where the broker begins.
        start: Offset,
        /// Where this edge stands.
        seen: Offset,
    },
}

/// How far one partition's deliveries have come, over all its streams of one incarnation. Pure: what is given twice is dropped
/// here.
#[derive(Clone, Copy, Default, Debug)]
pub struct Position {
    /// Everything up to here has been taken; zero: nothing yet.
    seen: Offset,
}

impl Position {
    /// Everything up to here has been taken.
    pub fn seen(self) -> Offset {
        self.seen
    }

    /// A new stream begins after `start`.
    pub fn attached(&mut self, start: Offset) -> Result<(), FeedError> {
        if self.seen != Offset::ZERO && start > self.seen {
            return Err(FeedError::Gap { start, seen: self.seen });
        }
        self.seen = self.seen.max(start);
        Ok(())
    }

    /// Nothing for this edge up to `offset`.
    pub fn progress(&mut self, offset: Offset) {
        self.seen = self.seen.max(offset);
    }

    /// What is new of a frame.
    pub fn take(&mut self, deliveries: Deliveries) -> Result<Deliveries, FeedError> {
        check_order(&deliveries)?;
        let fresh = drop_seen(deliveries, self.seen);
        self.seen = self.seen.max(fresh.through);
        Ok(fresh)
    }
}

/// One partition's deliveries on their way to the shards.
#[derive(Debug)]
pub(crate) struct Feed {
    partition: PartitionId,
    downlink: Downlink,
    position: Position,
    /// Taken and not yet in the shards' inboxes: what one frame, cut short by the end of its stream, has left.
    pending: VecDeque<(usize, ShardInput)>,
}

impl Feed {
    pub(crate) fn new(partition: PartitionId, downlink: Downlink) -> Self {
        Self { partition, downlink, position: Position::default(), pending: VecDeque::new() }
    }

    /// Everything up to here has been taken.
    pub(crate) fn seen(&self) -> Offset {
        self.position.seen()
    }

    /// A new stream begins after `start`.
    pub(crate) fn attached(&mut self, start: Offset) -> Result<(), FeedError> {
        self.position.attached(start)
    }

    /// Nothing for this edge up to `offset`.
    pub(crate) fn progress(&mut self, offset: Offset) {
        self.position.progress(offset);
    }

    /// Takes what is new of a frame; [`Feed::hand_over`] brings it to the shards.
    pub(crate) fn take(&mut self, deliveries: Deliveries) -> Result<(), FeedError> {
        let fresh = self.position.take(deliveries)?;
        let shards = self.downlink.shards().len();
        for (shard, deliveries) in split(fresh, shards) {
            self.pending.push_back((shard, ShardInput::Deliveries(self.partition, deliveries)));
        }
        Ok(())
    }

    /// Takes a publish that skipped the log.
    pub(crate) fn take_unlogged(&mut self, record: &Record) {
        for shard in 0..self.downlink.shards().len() {
            self.pending.push_back((shard, ShardInput::Unlogged(record.clone())));
        }
    }

    /// Waits until every shard has room for what was taken. Cancel safe: what is left waits for the next call.
    pub(crate) async fn hand_over(&mut self) {
        while let Some((shard, input)) = self.pending.front() {
            if let Some(handle) = self.downlink.shards().get(*shard) {
                // a shard that has ended has no members
                let _ = handle.send(input.clone()).await;
            }
            self.pending.pop_front();
        }
    }
}

fn check_order(deliveries: &Deliveries) -> Result<(), FeedError> {
    let offsets = deliveries.deliveries.iter().map(|delivery| delivery.offset).chain([deliveries.through]);
    let mut last = Offset::ZERO;
    for at in offsets {
        if at < last {
            return Err(FeedError::Order { at });
        }
        last = at;
    }
    Ok(())
}

/// Whole offsets: all deliveries of one are in one frame.
fn drop_seen(mut deliveries: Deliveries, seen: Offset) -> Deliveries {
    let old = deliveries.deliveries.partition_point(|delivery| delivery.offset <= seen);
    deliveries.deliveries.drain(..old);
    deliveries
}

/// Publishes go to every shard, the rest to the owner of the connection. A shard that gets nothing is not woken, and what all
/// shards get alike is shared.
fn split(deliveries: Deliveries, shards: usize) -> SmallVec<[(usize, Arc<Deliveries>); 8]> {
    let is_for_all = |delivery: &Delivery| delivery.record.kind == RecordKind::Published;
    if shards == 0 || deliveries.deliveries.is_empty() {
        return SmallVec::new();
    }
    if shards == 1 || deliveries.deliveries.iter().all(is_for_all) {
        let all = Arc::new(deliveries);
        return (0..shards).map(|shard| (shard, Arc::clone(&all))).collect();
    }
    let part = |shard: usize| {
        let own = deliveries
            .deliveries
            .iter()
            .filter(|delivery| is_for_all(delivery) || shard_of(delivery.record.connection, shards) == shard);
        let (applied_at, through) = (deliveries.applied_at, deliveries.through);
        Deliveries { applied_at, through, deliveries: own.cloned().collect() }
    };
    let parts = (0..shards).map(|shard| (shard, part(shard)));
    parts.filter(|(_, part)| !part.deliveries.is_empty()).map(|(shard, part)| (shard, Arc::new(part))).collect()
}

#[cfg(test)]
mod tests;
