//! Step 5 of the walk, after `link/inbound.rs` and before `raft/group.rs`. Admit, coalesce, stamp time, propose: batches wait here
//! in a bounded queue, and one task per partition (`append/appender.rs`) builds entries out of whatever waits, pipelines them into Raft,
//! and answers each batch when it has been applied.

mod appender;
pub mod assembler;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use trunkline_proto::{Batch, Offset, PartitionId, limits};

use self::appender::Appender;
use crate::{
    core::{AppliedEntry, BatchOutcome, Verdict},
    raft::{Group, Role},
    store::{Health, NoSpace, Space},
};

/// Bytes that may wait in one partition's queue.
pub const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Batches that may wait in one partition's queue.
pub const QUEUE_BATCHES_MAX: usize = 16 << 10;
/// Unit of the queue's budget.
const PERMIT_BYTES: usize = 1 << 10;

/// Why a batch is not in the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// This broker does not lead the partition. Nothing happened; retry at the leader.
    #[error("not the leader of this partition, try broker {leader:?}")]
    NotLeader {
        /// Who leads, if known.
        leader: Option<u64>,
    },
    /// Caller error.
    #[error("batch or record of {bytes} bytes exceeds the limit of {limit} bytes")]
    TooLarge {
        /// The batch, or its largest record where only that is too large.
        bytes: usize,
        /// The bound.
        limit: usize,
    },
    /// The queue is full. Nothing happened; retry later.
    #[error("{queued} bytes wait to be appended already")]
    Busy {
        /// In the queue.
        queued: usize,
    },
    /// The log or the disk is full. Nothing happened; retry later, or make room.
    #[error("{0}")]
    Full(Full),
    /// The store is closed for writing (failed write or sync). Nothing more is acknowledged here.
    #[error("the broker's store is closed for writing: {reason}")]
    Closed {
        /// What the disk said.
        reason: String,
    },
    /// It may still commit: retry with the same sequence, epoch or key.
    #[error("outcome unknown after {waited:?}")]
    Unknown {
        /// How long it has been.
        waited: Duration,
    },
}

/// Why nothing but what makes room is appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// Handlers, or other partitions, are too far behind for the log to be trimmed.
    #[error(
        "the partition's log is full: {retained} bytes are retained, {limit} are allowed (broker.retention.bytes_max). Handler \
         groups that are behind hold it: let them catch up, or move them on with a reset"
    )]
    Log {
        /// Bytes of entries that are not trimmed.
        retained: u64,
        /// As configured.
        limit: u64,
    },
    /// The disk is.
    #[error(transparent)]
    Disk(NoSpace),
}

/// How much may be appended.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Bytes of entries that are not trimmed; 0: any.
    pub retained_max: u64,
    /// Room on the disk.
    pub space: Space,
}

impl Bounds {
    fn check(&self, retained: u64) -> Result<(), Full> {
        if self.retained_max != 0 && retained >= self.retained_max {
            return Err(Full::Log { retained, limit: self.retained_max });
        }
        self.space.check().map_err(Full::Disk)
    }
}

/// A batch that has been applied.
#[derive(Clone, Debug)]
pub struct Appended {
    /// The entry it went into.
    pub entry: Arc<AppliedEntry>,
    /// Its number among the entry's batches.
    pub batch: usize,
}

impl Appended {
    /// What became of the batch.
    pub fn outcome(&self) -> &BatchOutcome {
        &self.entry.applied.outcomes[self.batch]
    }

    /// Offset of its n-th record.
    pub fn offset(&self, n: u16) -> Offset {
        Offset::new(self.entry.logged.index, self.outcome().first + n)
    }

    /// Verdict on its n-th record.
    pub fn verdict(&self, n: u16) -> Verdict {
        self.entry.applied.verdict(self.outcome().first + n)
    }
}

/// A batch on its way; resolves when it is applied or cannot be any more. A sender dropped without an answer means unknown.
pub type Pending = oneshot::Receiver<Result<Appended, AppendError>>;

struct Waiting {
    batch: Batch,
    /// To be proposed in this term only.
    term: Option<u64>,
    answer: oneshot::Sender<Result<Appended, AppendError>>,
    since: Instant,
    /// Held while it waits to be proposed: the queue's bound in bytes.
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Shared {
    budget: Arc<Semaphore>,
    queued: AtomicUsize,
    partition: PartitionId,
    health: Health,
}

/// Appends to one partition. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    queue: mpsc::Sender<Waiting>,
    shared: Arc<Shared>,
    role: watch::Receiver<Role>,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting").field("records", &self.batch.count).finish_non_exhaustive()
    }
}

impl Handle {
    /// Queues a batch; waits while the queue is full. The order of completed calls is the order in the log.
    pub async fn enqueue(&self, batch: Batch) -> Result<Pending, AppendError> {
        let permits = self.admit(&batch)?;
        let slot = self.queue.reserve().await.map_err(|_| self.closed())?;
        // the semaphore is never closed
        let permit = Arc::clone(&self.shared.budget).acquire_many_owned(permits).await.map_err(|_| self.closed())?;
        let (waiting, pending) = self.waiting(batch, None, permit);
        slot.send(waiting);
        Ok(pending)
    }

    /// As [`Handle::enqueue`], but a full queue refuses with [`AppendError::Busy`].
    pub fn try_enqueue(&self, batch: Batch) -> Result<Pending, AppendError> {
        self.try_enqueue_in(None, batch)
    }

    /// As [`Handle::try_enqueue`], but the batch is appended in that term or not at all. Batches bound to one term keep their order
    /// through a change of leaders: a log that holds a later one holds the earlier ones before it.
    pub fn try_enqueue_in(&self, term: Option<u64>, batch: Batch) -> Result<Pending, AppendError> {
        let permits = self.admit(&batch)?;
        let slot = self.queue.try_reserve().map_err(|error| match error {
            mpsc::error::TrySendError::Full(()) => self.busy(),
            mpsc::error::TrySendError::Closed(()) => self.closed(),
        })?;
        let permit = Arc::clone(&self.shared.budget).try_acquire_many_owned(permits).map_err(|_| self.busy())?;
        let (waiting, pending) = self.waiting(batch, term, permit);
        slot.send(waiting);
        Ok(pending)
    }

    /// Queues a batch and waits until it is applied.
    pub async fn append(&self, batch: Batch) -> Result<Appended, AppendError> {
        let begun = Instant::now();
        let pending = self.enqueue(batch).await?;
        pending.await.unwrap_or_else(|_| Err(AppendError::Unknown { waited: begun.elapsed() }))
    }

    /// Refuses at once what cannot be appended now or ever; otherwise its share of the queue's budget.
    fn admit(&self, batch: &Batch) -> Result<u32, AppendError> {
        let bytes = batch.records.len();
        if bytes > limits::FRAME_BYTES_MAX {
            return Err(AppendError::TooLarge { bytes, limit: limits::FRAME_BYTES_MAX });
        }
        // it would reach the log, and the entry would not parse when it is read
        if let Some(bytes) = oversized_record(&batch.records) {
            return Err(AppendError::TooLarge { bytes, limit: limits::RECORD_BYTES_MAX });
        }
        // in records; no sender that keeps to its limits comes here
        if usize::from(batch.count) > limits::ENTRY_RECORDS_MAX {
            return Err(AppendError::TooLarge { bytes: usize::from(batch.count), limit: limits::ENTRY_RECORDS_MAX });
        }
        match *self.role.borrow() {
            Role::Leader { .. } => {}
            Role::Follower { leader } => return Err(AppendError::NotLeader { leader }),
            Role::Closed => return Err(self.closed()),
        }
        Ok(u32::try_from(batch.weight() / PERMIT_BYTES + 1).unwrap_or(u32::MAX))
    }

    fn waiting(&self, batch: Batch, term: Option<u64>, permit: OwnedSemaphorePermit) -> (Waiting, Pending) {
        let (answer, pending) = oneshot::channel();
        self.shared.queued.fetch_add(batch.weight(), Ordering::Relaxed);
        (Waiting { batch, term, answer, since: Instant::now(), _permit: permit }, pending)
    }

    /// Fills the queue for as long as it is held.
    #[cfg(test)]
    pub(crate) fn fill(&self) -> OwnedSemaphorePermit {
        let all = u32::try_from(self.shared.budget.available_permits()).expect("fewer");
        Arc::clone(&self.shared.budget).try_acquire_many_owned(all).expect("nobody else takes any")
    }

    fn busy(&self) -> AppendError {
        AppendError::Busy { queued: self.shared.queued.load(Ordering::Relaxed) }
    }

    fn closed(&self) -> AppendError {
        self.shared.closed()
    }
}

impl Shared {
    fn new(partition: PartitionId, health: Health) -> Self {
        let budget = Arc::new(Semaphore::new(QUEUE_BYTES_MAX / PERMIT_BYTES));
        Self { budget, queued: AtomicUsize::new(0), partition, health }
    }

    fn closed(&self) -> AppendError {
        let reason = self.health.why(self.partition);
        AppendError::Closed { reason: reason.unwrap_or_else(|| "the partition's group has stopped".into()) }
    }
}

/// The declared length of the first record that no reader of the log would take.
fn oversized_record(records: &[u8]) -> Option<usize> {
    // what is smaller as a whole holds none: few batches are walked
    let mut rest = Some(records).filter(|records| records.len() > limits::RECORD_BYTES_MAX)?;
    while let Some((declared, after)) = rest.split_first_chunk::<4>() {
        let declared = u32::from_le_bytes(*declared) as usize;
        if declared > limits::RECORD_BYTES_MAX {
            return Some(declared);
        }
        rest = after.get(declared..)?;
    }
    None
}

/// Appends to a partition that is not served: everything is refused.
pub fn closed(partition: PartitionId, role: watch::Receiver<Role>, health: Health) -> Handle {
    let (queue, _) = mpsc::channel(1);
    Handle { queue, shared: Arc::new(Shared::new(partition, health)), role }
}

/// Starts a partition's appender. It ends when the group has stopped or every handle is gone.
pub fn start(group: Group, bounds: Bounds, health: Health) -> (Handle, tokio::task::JoinHandle<()>) {
    let (queue, batches) = mpsc::channel(QUEUE_BATCHES_MAX);
    let shared = Arc::new(Shared::new(group.partition(), health));
    let handle = Handle { queue, shared: Arc::clone(&shared), role: group.role() };
    (handle, tokio::spawn(Appender::new(group, shared, batches, bounds).run()))
}
