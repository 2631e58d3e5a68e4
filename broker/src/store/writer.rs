//! Step 8 of the walk, between `raft/log_store.rs` and the disk. The only thread that writes and syncs: it takes what is queued
//! from all partitions, writes one batch with one sync, and calls back. A failed write or sync closes it for good.

use std::{
    collections::{BTreeSet, VecDeque},
    fmt, io,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use rocksdb::{WriteBatch, WriteOptions};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use trunkline_proto::PartitionId;

use super::{
    db::Db,
    health::Health,
    marks::{self, Mark},
    write::{self, Write},
};
use crate::{
    controls,
    metrics::store::{LOG_BYTES_TOTAL, LOG_SYNC_SECONDS},
};

/// Bytes gathered into one sync, if a single write is not larger (a sync costs 0.2 ms + 2.2 ms per MB, costs A2).
const SYNC_BYTES_MAX: usize = 1 << 20;
/// Bytes that may wait for the writer; whoever adds more waits.
const QUEUE_BYTES_MAX: usize = 256 << 20;
/// Unit of the queue's budget.
const PERMIT_BYTES: usize = 1 << 10;
/// How often marks are rewritten at most, and how long writes that need no sync may wait for one that does.
const LAZY: Duration = Duration::from_secs(1);

/// The store took no write: it is closed for good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the store is closed for writing: {0}")]
pub struct Closed(pub String);

impl From<Closed> for io::Error {
    fn from(closed: Closed) -> Self {
        io::Error::other(closed)
    }
}

/// Called from the writer's thread when a write is on disk (or written, where it needs no sync), or never will be.
pub type Done = Box<dyn FnOnce(Result<(), Closed>) + Send>;

struct Job {
    partition: PartitionId,
    write: Write,
    done: Option<Done>,
    bytes: usize,
    /// Held while the job waits: the queue's bound.
    _permit: Option<OwnedSemaphorePermit>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Whether something waits that is not lazy.
    urgent: bool,
    stopping: bool,
    /// The writer waits without a deadline: a lazy write must tell it to begin one.
    asleep: bool,
    /// In tests of what gathers meanwhile.
    paused: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    budget: Arc<Semaphore>,
    health: Health,
    #[cfg(test)]
    hooks: Hooks,
}

/// What tests look at and break.
#[cfg(test)]
#[derive(Default)]
struct Hooks {
    fail_next: std::sync::atomic::AtomicBool,
    syncs: std::sync::atomic::AtomicU64,
}

/// Queues writes. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("writer::Handle")
    }
}

impl Handle {
    /// Queues a write; waits while `QUEUE_BYTES_MAX` wait already. Writes of one caller are carried out in its order.
    /// `done` is always called, from the writer's thread, unless the process ends first.
    pub async fn submit(&self, partition: PartitionId, write: Write, done: Option<Done>) {
        let lazy = write.is_lazy();
        self.queue(partition, write, done, lazy).await;
    }

    async fn queue(&self, partition: PartitionId, write: Write, done: Option<Done>, lazy: bool) {
        let bytes = write.bytes();
        let permits = (bytes / PERMIT_BYTES + 1).min(QUEUE_BYTES_MAX / PERMIT_BYTES);
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        // the semaphore is never closed
        let permit = Arc::clone(&self.shared.budget).acquire_many_owned(permits).await.ok();
        self.push(Job { partition, write, done, bytes, _permit: permit }, lazy);
    }

    /// Queues a write and waits until it is carried out.
    pub async fn write(&self, partition: PartitionId, write: Write) -> Result<(), Closed> {
        let (done, result) = oneshot::channel();
        // whoever stopped waiting needs no answer
        self.queue(partition, write, Some(Box::new(move |outcome| drop(done.send(outcome)))), false).await;
        result.await.unwrap_or_else(|_| Err(Closed("the writer has stopped".into())))
    }

    /// As [`Handle::write`] for threads that may block.
    pub fn write_blocking(&self, partition: PartitionId, write: Write) -> Result<(), Closed> {
        let (done, result) = std::sync::mpsc::channel();
        let done: Done = Box::new(move |outcome| drop(done.send(outcome)));
        let bytes = write.bytes();
        // a blocking caller has one write in the queue at a time: it needs no budget
        self.push(Job { partition, write, done: Some(done), bytes, _permit: None }, false);
        result.recv().unwrap_or_else(|_| Err(Closed("the writer has stopped".into())))
    }

    fn push(&self, job: Job, lazy: bool) {
        let mut queue = self.shared.queue.lock();
        if queue.stopping {
            drop(queue);
            if let Some(done) = job.done {
                done(Err(Closed("the broker is shutting down".into())));
            }
            return;
        }
        queue.jobs.push_back(job);
        let wake = (!lazy && !queue.urgent) || queue.asleep;
        queue.urgent |= !lazy;
        drop(queue);
        if wake {
            self.shared.wake.notify_one();
        }
    }

    /// Keeps the writer from taking what is queued while the guard lives.
    #[cfg(test)]
    pub(crate) fn pause(&self) -> Paused<'_> {
        self.shared.queue.lock().paused = true;
        Paused(self)
    }

    /// Synced writes so far.
    #[cfg(test)]
    pub(crate) fn syncs(&self) -> u64 {
        self.shared.hooks.syncs.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// Makes the next write fail as a full disk would.
    #[cfg(test)]
    pub(crate) fn fail_next(&self) {
        self.shared.hooks.fail_next.store(true, std::sync::atomic::Ordering::SeqCst);
    }
}

/// See [`Handle::pause`].
#[cfg(test)]
pub(crate) struct Paused<'a>(&'a Handle);

#[cfg(test)]
impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.0.shared.queue.lock().paused = false;
        self.0.shared.wake.notify_one();
    }
}

/// The writer's thread. Stop it before the database is dropped.
pub struct Writer {
    handle: Handle,
    thread: Option<thread::JoinHandle<()>>,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Writer")
    }
}

impl Writer {
    /// Starts the thread. `marks` is what the folder says, one per partition.
    pub fn start(db: Arc<Db>, dir: PathBuf, marks: Vec<Mark>, health: Health) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            wake: Condvar::new(),
            budget: Arc::new(Semaphore::new(QUEUE_BYTES_MAX / PERMIT_BYTES)),
            health,
            #[cfg(test)]
            hooks: Hooks::default(),
        });
        let state = Thread {
            shared: Arc::clone(&shared),
            db,
            dir,
            sync: !controls::NO_SYNC.is_on(),
            written: marks.clone(),
            marks,
            marked_at: Instant::now(),
            doubted: BTreeSet::new(),
            closed: None,
        };
        let thread = thread::Builder::new().name("log-writer".into()).spawn(move || state.run())?;
        Ok(Self { handle: Handle { shared }, thread: Some(thread) })
    }

    /// Queues writes.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Carries out what is queued, writes the marks and ends the thread. Later writes are refused. Blocks.
    pub fn stop(&mut self) {
        self.handle.shared.queue.lock().stopping = true;
        self.handle.shared.wake.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            self.handle.shared.health.fail("the writer panicked");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Thread {
    shared: Arc<Shared>,
    db: Arc<Db>,
    dir: PathBuf,
    sync: bool,
    /// As in the file.
    written: Vec<Mark>,
    /// As synced.
    marks: Vec<Mark>,
    marked_at: Instant,
    /// Partitions that take no write any more.
    doubted: BTreeSet<PartitionId>,
    /// What failed first: nothing is written after it.
    closed: Option<String>,
}

impl Thread {
    fn run(mut self) {
        loop {
            let (jobs, stopping) = self.take();
            if !jobs.is_empty() {
                self.carry_out(jobs);
            } else if stopping {
                break;
            }
            if self.marked_at.elapsed() >= LAZY {
                self.save_marks();
            }
        }
        self.save_marks();
    }

    /// Waits for work, at most [`LAZY`], and takes about [`SYNC_BYTES_MAX`] of it.
    fn take(&self) -> (Vec<Job>, bool) {
        let mut queue = self.shared.queue.lock();
        let mut deadline = None;
        while queue.paused || !(queue.urgent || queue.stopping) {
            if queue.paused || (queue.jobs.is_empty() && self.written == self.marks) {
                queue.asleep = true;
                self.shared.wake.wait(&mut queue);
                queue.asleep = false;
                continue;
            }
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + LAZY);
            if self.shared.wake.wait_until(&mut queue, deadline).timed_out() {
                break;
            }
        }
        let (mut jobs, mut bytes) = (Vec::new(), 0);
        while let Some(job) = queue.jobs.front() {
            if !jobs.is_empty() && bytes + job.bytes > SYNC_BYTES_MAX {
                break;
            }
            bytes += job.bytes;
            jobs.extend(queue.jobs.pop_front());
        }
        queue.urgent = !queue.jobs.is_empty();
        (jobs, queue.stopping)
    }

    fn carry_out(&mut self, mut jobs: Vec<Job>) {
        self.refuse_doubted(&mut jobs);
        if jobs.is_empty() {
            return;
        }
        let outcome = match self.closed.clone() {
            None => self.write(&jobs),
            Some(reason) => Err(reason),
        };
        let outcome = outcome.map_err(|reason| {
            self.close(&reason);
            Closed(reason)
        });
        for job in jobs {
            if let Some(done) = job.done {
                done(outcome.clone());
            }
        }
    }

    /// What a replica that lacks something is still to write would be acknowledged, and it has nothing to say any more.
    fn refuse_doubted(&mut self, jobs: &mut Vec<Job>) {
        let doubted = &mut self.doubted;
        let is_refused = |job: &mut Job| match job.write {
            // once is enough
            Write::Doubted(_) => !doubted.insert(job.partition),
            _ => doubted.contains(&job.partition),
        };
        for job in jobs.extract_if(.., is_refused) {
            if let Some(done) = job.done {
                done(Err(Closed(format!("partition {} lacks what it acknowledged", job.partition))));
            }
        }
    }

    fn write(&mut self, jobs: &[Job]) -> Result<(), String> {
        let bytes = jobs.iter().map(|job| job.bytes).sum();
        let mut batch = WriteBatch::with_capacity_bytes(bytes);
        let mut marks = self.marks.clone();
        for job in jobs {
            write::add(&self.db, &mut batch, job.partition, &job.write).map_err(|error| error.to_string())?;
            if let Some(mark) = marks.get_mut(usize::from(job.partition.0)) {
                write::advance(mark, &job.write);
            }
        }
        self.lower_marks(jobs)?;
        let mut options = WriteOptions::default();
        let sync = self.sync && jobs.iter().any(|job| job.write.needs_sync());
        options.set_sync(sync);
        let begun = Instant::now();
        #[cfg(test)]
        if self.shared.hooks.fail_next.swap(false, std::sync::atomic::Ordering::SeqCst) {
            return Err("injected failure".into());
        }
        self.db.rocks().write_opt(batch, &options).map_err(rocksdb::Error::into_string)?;
        if sync {
            #[cfg(test)]
            self.shared.hooks.syncs.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            metrics::histogram!(LOG_SYNC_SECONDS).record(begun.elapsed().as_secs_f64());
        }
        metrics::counter!(LOG_BYTES_TOTAL).increment(entry_bytes(jobs));
        self.marks = marks;
        Ok(())
    }

    /// A truncation must not leave a mark behind it: the file is lowered before the log is cut.
    fn lower_marks(&mut self, jobs: &[Job]) -> Result<(), String> {
        if !jobs.iter().any(|job| matches!(job.write, Write::Truncate { .. })) {
            return Ok(());
        }
        let lowered = jobs.iter().filter_map(|job| match &job.write {
            Write::Truncate { keep, .. } => Some((job.partition, keep.map_or(0, |keep| keep.0 + 1))),
            _ => None,
        });
        let mut marks = self.written.clone();
        for (partition, end) in lowered {
            if let Some(mark) = marks.get_mut(usize::from(partition.0)) {
                mark.end = mark.end.min(end);
            }
        }
        if marks != self.written {
            marks::write(&self.dir, &marks, self.sync).map_err(|error| format!("writing marks: {error}"))?;
            self.written = marks;
        }
        Ok(())
    }

    fn save_marks(&mut self) {
        self.marked_at = Instant::now();
        if self.written == self.marks || self.closed.is_some() {
            return;
        }
        match marks::write(&self.dir, &self.marks, self.sync) {
            Ok(()) => self.written.clone_from(&self.marks),
            Err(error) => self.close(&format!("writing marks: {error}")),
        }
    }

    fn close(&mut self, reason: &str) {
        self.shared.health.fail(reason);
        self.closed.get_or_insert_with(|| reason.to_owned());
    }
}

fn entry_bytes(jobs: &[Job]) -> u64 {
    let bytes = jobs.iter().map(|job| match &job.write {
        Write::Entries(entries) => entries.iter().map(|entry| entry.payload.len() as u64).sum(),
        _ => 0,
    });
    bytes.sum()
}
