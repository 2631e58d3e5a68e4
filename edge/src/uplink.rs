//! Step 3 of the walk, after `core/connection.rs` and before the broker's `link/inbound.rs`. One queue per partition: shards append
//! encoded records, the link takes what waits as one batch, keeps it until applied and resends it after a reconnect. The bytes
//! in flight are bounded; when full, shards stop reading.

use std::{
    collections::BTreeSet,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use trunkline_proto::{ConnectionId, PartitionCount, PartitionId, link::UplinkBatch};

use crate::{
    core::resend::{Outgoing, Released, SequenceError},
    metrics::{self, PauseClock, PauseReason},
};

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

type Waiter = oneshot::Sender<Result<(), UplinkError>>;

/// Puts records of any shard on their way. Cheap to clone, usable from every thread. Each clone notices every change of the
/// pauses for itself.
#[derive(Debug)]
pub struct Handle {
    shared: Arc<Shared>,
    pauses_seen: AtomicU64,
}

#[derive(Debug)]
struct Shared {
    count: PartitionCount,
    queues: Box<[Queue]>,
    incarnation: AtomicU64,
    budget: Budget,
    /// Somebody's records were applied or dropped.
    settled: Notify,
    pauses: Pauses,
}

/// Records on their way to one partition.
#[derive(Debug, Default)]
struct Queue {
    state: Mutex<QueueState>,
    /// Something waits to be sent. One permit, one waiter: the partition's stream.
    ready: Notify,
}

#[derive(Debug, Default)]
struct QueueState {
    outgoing: Outgoing<Waiter>,
    /// Why nothing is taken, if so.
    refusing: Option<UplinkError>,
}

impl Clone for Handle {
    fn clone(&self) -> Self {
        let pauses_seen = AtomicU64::new(self.pauses_seen.load(Ordering::Relaxed));
        Self { shared: Arc::clone(&self.shared), pauses_seen }
    }
}

impl Handle {
    /// An uplink to this many partitions under `incarnation`, with at most about `budget` bytes in flight (one read of each
    /// socket more).
    pub fn new(count: PartitionCount, incarnation: u64, budget: usize) -> Self {
        let shared = Shared {
            count,
            queues: count.iter().map(|_| Queue::default()).collect(),
            incarnation: AtomicU64::new(incarnation),
            budget: Budget::new(budget),
            settled: Notify::new(),
            pauses: Pauses::new(count),
        };
        Self { shared: Arc::new(shared), pauses_seen: AtomicU64::new(0) }
    }

    /// How many partitions the cluster has.
    pub fn partition_count(&self) -> PartitionCount {
        self.shared.count
    }

    /// The incarnation new connections name.
    pub fn incarnation(&self) -> u64 {
        self.shared.incarnation.load(Ordering::Acquire)
    }

    /// The partition that owns a connection.
    pub fn partition_of(&self, connection: ConnectionId) -> PartitionId {
        connection.partition(self.shared.count)
    }

    /// Appends one record: `encode` writes it to the partition's queue. Never waits: who reads sockets asks
    /// [`Handle::has_room`] first; close records must always get through. After a loss of the incarnation, and until the next
    /// one is granted, records are dropped.
    pub fn append(&self, connection: ConnectionId, encode: impl FnOnce(&mut BytesMut)) {
        self.put(connection, None, encode);
    }

    /// As [`Handle::append`]; the receiver resolves when the record's batch is applied.
    pub fn append_tracked(
        &self,
        connection: ConnectionId,
        encode: impl FnOnce(&mut BytesMut),
    ) -> oneshot::Receiver<Result<(), UplinkError>> {
        let (waiter, receiver) = oneshot::channel();
        self.put(connection, Some(waiter), encode);
        receiver
    }

    fn put(&self, connection: ConnectionId, waiter: Option<Waiter>, encode: impl FnOnce(&mut BytesMut)) {
        let queue = self.shared.queue(self.partition_of(connection));
        let mut state = queue.state.lock();
        if let Some(reason) = state.refusing {
            drop(state);
            if let Some(waiter) = waiter {
                // whoever waited may have given up
                let _ = waiter.send(Err(reason));
            }
            return;
        }
        let appended = state.outgoing.append(waiter, encode);
        // under the lock, so that no release of these bytes can come first
        self.shared.budget.take(appended.bytes);
        drop(state);
        if appended.wakes {
            queue.ready.notify_one();
        }
    }

    /// Whether sockets may be read: the bytes in flight are under the bound.
    pub fn has_room(&self) -> bool {
        self.shared.budget.has_room()
    }

    /// Waits until [`Handle::has_room`]. Cancel safe.
    pub async fn wait_for_room(&self) {
        self.shared.budget.wait_for_room().await;
    }

    /// Whether a broker has asked to stop reading this API's sockets (its handler group is too far behind) for the
    /// connection's partition.
    pub fn is_paused(&self, connection: ConnectionId, api: &str) -> bool {
        self.shared.pauses.contains(self.partition_of(connection), api)
    }

    /// Waits until something about pauses changes that this clone of the handle has not been told yet. Cancel safe.
    pub async fn pause_changed(&self) {
        let version = self.shared.pauses.changed_since(self.pauses_seen.load(Ordering::Relaxed)).await;
        self.pauses_seen.store(version, Ordering::Relaxed);
    }

    /// Waits until everything appended so far is applied, or dropped because the incarnation ended. Cancel safe.
    pub async fn flushed(&self) {
        let incarnation = self.incarnation();
        let targets: Vec<u64> =
            self.shared.queues.iter().map(|queue| queue.state.lock().outgoing.last_appended()).collect();
        loop {
            let mut settled = pin!(self.shared.settled.notified());
            settled.as_mut().enable();
            let reached = |(queue, target): (&Queue, &u64)| {
                let state = queue.state.lock();
                state.refusing.is_some() || state.outgoing.last_applied() >= *target
            };
            if self.incarnation() != incarnation || self.shared.queues.iter().zip(&targets).all(reached) {
                return;
            }
            settled.await;
        }
    }

    /// Bytes of records that are not applied yet.
    pub fn inflight_bytes(&self) -> usize {
        self.shared.budget.inflight.load(Ordering::Relaxed)
    }

    /// Shows in the metrics how long the pauses that last have lasted so far.
    pub(crate) fn count_pauses(&self, now: Instant) {
        self.shared.budget.full.count(now);
        self.shared.pauses.lag.count(now);
    }

    // ---- the link's side ----

    /// Waits until something may wait to be sent to the partition. One waiter per partition. Cancel safe.
    pub(crate) async fn ready(&self, partition: PartitionId) {
        self.shared.queue(partition).ready.notified().await;
    }

    /// The next batch for the partition's current stream.
    pub(crate) fn take(&self, partition: PartitionId) -> Option<UplinkBatch> {
        self.shared.queue(partition).state.lock().outgoing.take()
    }

    /// The partition has everything up to `last`; what is after it is to be sent (again): on a new stream, or after a gap.
    pub(crate) fn attached(&self, partition: PartitionId, last: u64) -> Result<(), SequenceError> {
        self.settle(partition, |outgoing| outgoing.attached(last))
    }

    /// The partition has applied everything up to `last`.
    pub(crate) fn applied(&self, partition: PartitionId, last: u64) -> Result<(), SequenceError> {
        self.settle(partition, |outgoing| outgoing.applied(last))
    }

    fn settle(
        &self,
        partition: PartitionId,
        settle: impl FnOnce(&mut Outgoing<Waiter>) -> Result<Released<Waiter>, SequenceError>,
    ) -> Result<(), SequenceError> {
        let queue = self.shared.queue(partition);
        let (released, waits) = {
            let mut state = queue.state.lock();
            (settle(&mut state.outgoing)?, !state.outgoing.is_sent())
        };
        if waits {
            queue.ready.notify_one();
        }
        self.shared.release(released, Ok(()));
        Ok(())
    }

    /// The whole set of APIs that are paused for the partition.
    pub(crate) fn set_paused(&self, partition: PartitionId, apis: Vec<String>) {
        self.shared.pauses.set(partition, apis);
    }

    /// The incarnation is over: drops every record and takes none until [`Handle::resume`].
    pub(crate) fn fence(&self) {
        self.refuse(UplinkError::Fenced);
    }

    /// The edge ends: drops every record and takes no more.
    pub(crate) fn close(&self) {
        self.refuse(UplinkError::Closed);
    }

    fn refuse(&self, reason: UplinkError) {
        for (partition, queue) in self.shared.count.iter().zip(&self.shared.queues) {
            let released = {
                let mut state = queue.state.lock();
                state.refusing = Some(reason);
                state.outgoing.reset()
            };
            self.shared.release(released, Err(reason));
            self.set_paused(partition, Vec::new());
        }
    }

    /// A new incarnation: sequences start anew. Records are taken from [`Handle::resume`] on.
    pub(crate) fn restart(&self, incarnation: u64) {
        self.shared.incarnation.store(incarnation, Ordering::Release);
        self.shared.settled.notify_waiters();
    }

    /// Takes records, again or still; not after [`Handle::close`].
    pub(crate) fn resume(&self) {
        for queue in &self.shared.queues {
            queue.state.lock().refusing.take_if(|reason| *reason == UplinkError::Fenced);
        }
    }
}

impl Shared {
    fn queue(&self, partition: PartitionId) -> &Queue {
        // partitions come from `count`, which made the queues
        &self.queues[usize::from(partition.0)]
    }

    fn release(&self, released: Released<Waiter>, result: Result<(), UplinkError>) {
        self.budget.release(released.bytes);
        for waiter in released.waiters {
            // whoever waited may have given up
            let _ = waiter.send(result);
        }
        self.settled.notify_waiters();
    }
}

/// The bound on bytes in flight over all partitions.
#[derive(Debug)]
struct Budget {
    bytes: usize,
    inflight: AtomicUsize,
    /// There is room again.
    room: Notify,
    /// There is none.
    full: PauseClock,
    inflight_bytes: metrics::InflightBytes,
}

impl Budget {
    fn new(bytes: usize) -> Self {
        Self {
            bytes,
            inflight: AtomicUsize::new(0),
            room: Notify::new(),
            full: PauseClock::new(PauseReason::UplinkFull),
            inflight_bytes: metrics::InflightBytes::new(),
        }
    }

    fn has_room(&self) -> bool {
        self.inflight.load(Ordering::Acquire) < self.bytes
    }

    fn take(&self, bytes: usize) {
        let before = self.inflight.fetch_add(bytes, Ordering::AcqRel);
        if before < self.bytes && before + bytes >= self.bytes {
            self.full.begin(Instant::now());
        }
    }

    /// Wakes who waits once a quarter is free, so that a full edge does not stop and go with every batch.
    fn release(&self, bytes: usize) {
        let before = self.inflight.fetch_sub(bytes, Ordering::AcqRel);
        self.inflight_bytes.set(before - bytes);
        let low = self.bytes / 4 * 3;
        if before >= low && before - bytes < low {
            self.full.end(Instant::now());
            self.room.notify_waiters();
        }
    }

    async fn wait_for_room(&self) {
        loop {
            let mut room = pin!(self.room.notified());
            room.as_mut().enable();
            if self.has_room() {
                return;
            }
            room.await;
        }
    }
}

/// Which APIs are paused for which partition.
#[derive(Debug)]
struct Pauses {
    /// Fast answer for the usual case.
    any: AtomicBool,
    sets: Box<[Mutex<BTreeSet<String>>]>,
    version: AtomicU64,
    changed: Notify,
    /// Some set is not empty.
    lag: PauseClock,
}

impl Pauses {
    fn new(count: PartitionCount) -> Self {
        let sets = count.iter().map(|_| Mutex::default()).collect();
        Self {
            any: AtomicBool::new(false),
            sets,
            version: AtomicU64::new(0),
            changed: Notify::new(),
            lag: PauseClock::new(PauseReason::HandlerLag),
        }
    }

    fn contains(&self, partition: PartitionId, api: &str) -> bool {
        self.any.load(Ordering::Acquire) && self.sets[usize::from(partition.0)].lock().contains(api)
    }

    fn set(&self, partition: PartitionId, apis: Vec<String>) {
        let apis: BTreeSet<String> = apis.into_iter().collect();
        let mut set = self.sets[usize::from(partition.0)].lock();
        if *set == apis {
            return;
        }
        *set = apis;
        drop(set);
        // the link alone calls this, from one thread
        let any = self.sets.iter().any(|set| !set.lock().is_empty());
        self.any.store(any, Ordering::Release);
        match any {
            true => self.lag.begin(Instant::now()),
            false => self.lag.end(Instant::now()),
        }
        self.version.fetch_add(1, Ordering::AcqRel);
        self.changed.notify_waiters();
    }

    async fn changed_since(&self, seen: u64) -> u64 {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            let version = self.version.load(Ordering::Acquire);
            if version != seen {
                return version;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests;
