//! Step 5 of the walk. Admit, coalesce, stamp time, propose: one task per partition builds entries out of whatever batches
//! wait, pipelines them into Raft, and answers each batch when it has been applied.

pub mod assembler;

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use assembler::{Assembled, Assembler, Offered};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use trunkline_proto::{Batch, Offset, PartitionId, limits};

use crate::{
    clock,
    core::{AppliedEntry, BatchOutcome, Verdict},
    metrics::store::{LOG_APPEND_SECONDS, LOG_BATCH_RECORDS},
    raft::{
        Group, Role,
        group::{Outcome, Proposed},
    },
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
    let role = group.role();
    let handle = Handle { queue, shared: Arc::clone(&shared), role: role.clone() };
    let appender = Appender {
        group,
        shared,
        role,
        batches,
        held: None,
        in_flight: VecDeque::new(),
        assembler: Assembler::default(),
        bounds,
    };
    (handle, tokio::spawn(appender.run()))
}

/// An entry proposed and not applied yet.
struct InFlight {
    outcome: Proposed,
    answers: Vec<(oneshot::Sender<Result<Appended, AppendError>>, Instant)>,
}

struct Appender {
    group: Group,
    shared: Arc<Shared>,
    role: watch::Receiver<Role>,
    batches: mpsc::Receiver<Waiting>,
    /// Taken from the queue, but too large for the entry before.
    held: Option<Waiting>,
    /// In the order of the log.
    in_flight: VecDeque<InFlight>,
    assembler: Assembler,
    bounds: Bounds,
}

enum Event {
    Batch(Option<Waiting>),
    Outcome(Outcome),
    Closed,
}

impl Appender {
    async fn run(mut self) {
        loop {
            match self.next().await {
                Event::Batch(Some(waiting)) => self.propose(waiting).await,
                Event::Outcome(outcome) => self.answer_first(outcome),
                Event::Batch(None) | Event::Closed => break,
            }
        }
        self.close();
    }

    async fn next(&mut self) -> Event {
        let room = self.assembler.has_room();
        if room && let Some(held) = self.held.take() {
            return Event::Batch(Some(held));
        }
        let (in_flight, batches, role) = (&mut self.in_flight, &mut self.batches, &mut self.role);
        // outcomes first: they make room, and whoever is answered sends the next batch
        let outcome = poll_fn(|context| match in_flight.front_mut() {
            Some(first) => Pin::new(&mut first.outcome).poll(context),
            None => Poll::Pending,
        });
        tokio::select! {
            biased;
            outcome = outcome => Event::Outcome(outcome),
            _ = role.wait_for(|role| *role == Role::Closed) => Event::Closed,
            batch = batches.recv(), if room => Event::Batch(batch),
        }
    }

    /// Makes one entry of `first` and what else waits, and proposes it.
    async fn propose(&mut self, first: Waiting) {
        let role = *self.role.borrow();
        let term = match role {
            Role::Leader { term } => term,
            Role::Follower { leader } => return self.refuse(first, &AppendError::NotLeader { leader }),
            Role::Closed => return self.refuse(first, &self.shared.closed()),
        };
        let (time, retained) = {
            let state = self.group.state();
            let state = state.read();
            (state.time(), state.retained_bytes() + self.assembler.bytes_in_flight() as u64)
        };
        let full = self.bounds.check(retained).err();
        let times = (time, clock::now());
        let mut assembly = self.assembler.begin(term, times, full.is_some(), first.batch.weight());
        let mut answers = Vec::new();
        let mut next = Some(first);
        while let Some(waiting) = next.take() {
            match (assembly.offer(&waiting.batch, waiting.term), full) {
                (Offered::Taken, _) => answers.push((waiting.answer, waiting.since)),
                (Offered::Held, _) => {
                    self.held = Some(waiting);
                    break;
                }
                (Offered::Full, Some(full)) => self.refuse(waiting, &AppendError::Full(full)),
                (Offered::OtherTerm | Offered::Full, _) => {
                    self.refuse(waiting, &AppendError::NotLeader { leader: None });
                }
            }
            next = self.batches.try_recv().ok();
        }
        let Some(Assembled { entry, records, bytes }) = assembly.finish() else { return };
        self.shared.queued.fetch_sub(bytes, Ordering::Relaxed);
        metrics::histogram!(LOG_BATCH_RECORDS).record(f64::from(records));
        match self.group.propose(term, entry).await {
            Ok(outcome) => {
                self.assembler.proposed(bytes);
                self.in_flight.push_back(InFlight { outcome, answers });
            }
            // the group did not take the message: nothing happened
            Err(_) => {
                for (answer, _) in answers {
                    let _ = answer.send(Err(self.shared.closed()));
                }
            }
        }
    }

    fn refuse(&self, waiting: Waiting, error: &AppendError) {
        self.shared.queued.fetch_sub(waiting.batch.weight(), Ordering::Relaxed);
        let _ = waiting.answer.send(Err(error.clone()));
    }

    fn answer_first(&mut self, outcome: Outcome) {
        let Some(first) = self.in_flight.pop_front() else { return };
        self.assembler.answered();
        let latency = metrics::histogram!(LOG_APPEND_SECONDS);
        for (batch, (answer, since)) in first.answers.into_iter().enumerate() {
            let waited = since.elapsed();
            latency.record(waited.as_secs_f64());
            // whoever stopped waiting needs no answer
            let _ = answer.send(match &outcome {
                Outcome::Applied(entry) => Ok(Appended { entry: Arc::clone(entry), batch }),
                Outcome::NotLeader { leader } => Err(AppendError::NotLeader { leader: *leader }),
                Outcome::Unknown => Err(AppendError::Unknown { waited }),
            });
        }
    }

    /// The group has stopped: what was proposed is unknown unless it is answered already, what waits never happened.
    fn close(mut self) {
        self.batches.close();
        while let Some(first) = self.in_flight.front_mut() {
            let outcome = first.outcome.try_outcome().unwrap_or(Outcome::Unknown);
            self.answer_first(outcome);
        }
        let error = self.shared.closed();
        if let Some(held) = self.held.take() {
            self.refuse(held, &error);
        }
        while let Ok(waiting) = self.batches.try_recv() {
            self.refuse(waiting, &error);
        }
    }
}
