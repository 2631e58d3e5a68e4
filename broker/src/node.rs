//! A broker's partitions put together: store, Raft group, state, appender and tail of each.

use std::{path::PathBuf, sync::Arc, time::Duration};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use trunkline_proto::{LogIndex, Offset, PartitionCount, PartitionId, Timestamp};

use crate::{
    append, core,
    raft::{
        Group, GroupConfig, Snapshotter,
        log_store::LogStore,
        snapshotter::{Pace, Replay},
        state_machine::{Initial, Parts, PendingRefused},
        types,
    },
    store::{
        Db, Health, Identity, Reader, StoreError, Writer, WriterHandle,
        identity::{self, Folder},
        marks::{self, Mark},
        snapshot,
        verify::{check_mark, decode_state},
    },
    tail,
};
pub use crate::{
    raft::{Role, SnapshotEvery},
    store::OpenError,
};

/// Bytes of applied entries kept in memory by default, over all partitions.
pub const TAIL_BYTES_DEFAULT: usize = 64 << 20;
/// How long a shutdown waits for readers that still hold the database.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// How to open a broker's partitions.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Data folder; made if there is none.
    pub dir: PathBuf,
    /// Raft id of this broker; never reused for another folder.
    pub node_id: u64,
    /// Name of the cluster.
    pub cluster: String,
    /// How many partitions the cluster has, fixed when it is made.
    pub partitions: PartitionCount,
    /// Bytes of applied entries kept in memory, over all partitions ([`TAIL_BYTES_DEFAULT`]).
    pub tail_bytes: usize,
    /// How often a partition's state is snapshotted.
    pub snapshot_every: SnapshotEvery,
}

impl NodeConfig {
    /// A cluster of this broker alone, with defaults.
    pub fn new(dir: impl Into<PathBuf>, cluster: impl Into<String>, partitions: PartitionCount) -> Self {
        Self {
            dir: dir.into(),
            node_id: 1,
            cluster: cluster.into(),
            partitions,
            tail_bytes: TAIL_BYTES_DEFAULT,
            snapshot_every: SnapshotEvery::default(),
        }
    }
}

/// Everything about one partition that the layers above use. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PartitionHandle {
    /// Which.
    pub id: PartitionId,
    /// Puts batches into its log.
    pub append: append::Handle,
    /// Its applied tail.
    pub tail: tail::Handle,
    /// Its state. Hold the lock for microseconds: apply needs it.
    pub state: Arc<RwLock<core::Partition>>,
    /// Who leads it.
    pub role: watch::Receiver<Role>,
}

/// Why history cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Retention has taken it.
    #[error("offset is trimmed; the earliest readable one is {earliest}")]
    Trimmed {
        /// Where the log begins.
        earliest: Offset,
    },
    /// Not written yet.
    #[error("offset is after the end of the log, {end}")]
    Future {
        /// The last applied offset.
        end: Offset,
    },
    /// Bytes on disk are not what was written.
    #[error("log is damaged at {place}: {reason}")]
    Damaged {
        /// Where.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// RocksDB says no.
    #[error("reading the log failed: {0}")]
    Store(String),
}

impl From<StoreError> for ReadError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Damaged { place, reason } => Self::Damaged { place, reason },
            StoreError::Rocks(reason) | StoreError::Task(reason) => Self::Store(reason),
        }
    }
}

/// Where in the past.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// After the record at this offset (and the rest of its entry before it).
    Offset(Offset),
    /// After the last entry stamped at or before this time.
    Time(Timestamp),
}

/// What reads the disk; gone after a shutdown.
#[derive(Debug)]
struct Open {
    db: Arc<Db>,
    readers: Vec<(Reader, PendingRefused)>,
}

/// What a shutdown ends, in this order.
#[derive(Debug)]
struct Running {
    appenders: Vec<tokio::task::JoinHandle<()>>,
    groups: Vec<Group>,
    snapshotter: Snapshotter,
    writer: Writer,
    folder: Folder,
}

#[derive(Debug)]
struct Inner {
    count: PartitionCount,
    partitions: Vec<PartitionHandle>,
    /// First index of each log on disk when it was opened. Nothing deletes entries yet.
    first: Vec<LogIndex>,
    health: Health,
    open: RwLock<Option<Arc<Open>>>,
    running: Mutex<Option<Running>>,
}

/// A broker's partitions. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Node {
    inner: Arc<Inner>,
}

/// One partition as found on disk.
struct Found {
    log: LogStore,
    reader: Reader,
    initial: Initial,
    /// The last entry with records in the initial state.
    last_entry: LogIndex,
    first: LogIndex,
}

/// What opening the folder gives.
struct Opened {
    folder: Folder,
    db: Arc<Db>,
    writer: Writer,
    found: Vec<Found>,
}

impl Node {
    /// Opens a broker's folder and starts its partitions. Refuses what is locked, foreign, of another format, or damaged: a
    /// log that ends before what was acknowledged from it must be rebuilt, not served.
    pub async fn open(config: NodeConfig) -> Result<Self, OpenError> {
        let health = Health::new();
        let (blocking, watched) = (config.clone(), health.clone());
        let opened = tokio::task::spawn_blocking(move || open_folder(&blocking, &watched)).await;
        let opened = opened.map_err(|error| OpenError::Io {
            path: config.dir.display().to_string(),
            reason: format!("opening it ended: {error}"),
        })??;
        let readers: Vec<_> = opened.found.iter().map(|found| found.reader.clone()).collect();
        let writer = opened.writer.handle();
        let snapshotter = Snapshotter::start(readers, config.partitions, writer.clone(), health.clone());
        let mut started = Started::default();
        for found in opened.found {
            let step = start_partition(&config, found, &writer, &snapshotter, &health).await;
            match step {
                Ok(partition) => started.push(partition),
                Err(error) => {
                    stop_groups(&started.groups).await;
                    snapshotter.stop().await;
                    return Err(error);
                }
            }
        }
        let running = Running {
            appenders: started.appenders,
            groups: started.groups,
            snapshotter,
            writer: opened.writer,
            folder: opened.folder,
        };
        let inner = Inner {
            count: config.partitions,
            partitions: started.partitions,
            first: started.first,
            health,
            open: RwLock::new(Some(Arc::new(Open { db: opened.db, readers: started.readers }))),
            running: Mutex::new(Some(running)),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Stops everything, writes what is queued and closes the database. Call it before the process ends: a thread that still
    /// holds the database then makes the exit fail. Later calls do nothing.
    pub async fn shutdown(&self) {
        let Some(running) = self.inner.running.lock().take() else { return };
        stop_groups(&running.groups).await;
        for appender in running.appenders {
            // a panic was reported when it happened
            let _ = appender.await;
        }
        drop(running.groups);
        running.snapshotter.stop().await;
        let mut writer = running.writer;
        // the writer's last sync may take its time
        let _ = tokio::task::spawn_blocking(move || writer.stop()).await;
        let open = self.inner.open.write().take();
        if let Some(open) = open {
            release(open).await;
        }
        drop(running.folder);
    }

    /// How many partitions the cluster has.
    pub fn partition_count(&self) -> PartitionCount {
        self.inner.count
    }

    /// The partition, if this broker holds a replica of it.
    pub fn partition(&self, id: PartitionId) -> Option<&PartitionHandle> {
        self.inner.partitions.get(usize::from(id.0))
    }

    /// Waits until this broker leads every partition (a broker alone does within moments), or one of them is closed.
    pub async fn wait_ready(&self) -> Result<(), String> {
        for partition in &self.inner.partitions {
            let mut role = partition.role.clone();
            let role = role.wait_for(|role| !matches!(role, Role::Follower { .. })).await.map(|role| *role);
            if !matches!(role, Ok(Role::Leader { .. })) {
                let reason = self.health().err().unwrap_or_else(|| "its group has stopped".into());
                return Err(format!("partition {}: {reason}", partition.id));
            }
        }
        Ok(())
    }

    /// Reads applied entries from disk: those after `after`, about `bytes_max` bytes of them, at least one unless at the end.
    /// Blocking work happens on the blocking pool.
    pub async fn read_log(
        &self,
        partition: PartitionId,
        after: LogIndex,
        bytes_max: usize,
    ) -> Result<Vec<core::LoggedEntry>, ReadError> {
        let applied = self.applied(partition)?;
        let first = self.first(partition);
        if after.0 + 1 < first.0 {
            return Err(ReadError::Trimmed { earliest: self.earliest(partition) });
        }
        self.blocking(partition, move |reader, pending| {
            // before the disk: a set leaves this list only once it is there
            let refused = pending.between(after, applied);
            // a leader may have applied what its own disk does not hold yet; the tail does
            let through = applied.min(reader.last()?.map_or(LogIndex(0), |last| last.index));
            let (mut entries, _) = reader.logged(after, through, bytes_max.max(1))?;
            for (index, refused) in refused {
                if let Ok(at) = entries.binary_search_by_key(&index, |entry| entry.index)
                    && let Some(entry) = entries.get_mut(at)
                {
                    entry.refused = refused.to_vec();
                }
            }
            Ok(entries)
        })
        .await
    }

    /// The last entry stamped at or before `time` ([`LogIndex`] 0: none), by binary search.
    pub async fn index_at(&self, partition: PartitionId, time: Timestamp) -> Result<LogIndex, ReadError> {
        let (first, applied) = (self.first(partition), self.applied(partition)?);
        self.blocking(partition, move |reader, _| Ok(reader.index_at(first, applied, time)?.unwrap_or_default())).await
    }

    /// The state at a moment of the past: newest snapshot before it, and replay. Gives the offset folded in last.
    pub async fn state_at(
        &self,
        partition: PartitionId,
        moment: Moment,
    ) -> Result<(core::Partition, Offset), ReadError> {
        let applied = self.applied(partition)?;
        let index = match moment {
            Moment::Offset(offset) => offset.index(),
            Moment::Time(time) => self.index_at(partition, time).await?,
        };
        if index > applied {
            return Err(ReadError::Future { end: Offset::end_of(applied) });
        }
        let count = self.inner.count;
        self.blocking(partition, move |reader, _| {
            let mut replay = Replay::from_newest(reader, count, index)?;
            replay.run(index, &CancellationToken::new())?;
            Ok((replay.state, Offset::end_of(index)))
        })
        .await
    }

    /// First offset that can still be read.
    pub fn earliest(&self, partition: PartitionId) -> Offset {
        Offset::new(self.first(partition), 0)
    }

    /// Whether the store takes writes; otherwise why not.
    pub fn health(&self) -> Result<(), String> {
        self.inner.health.check()
    }

    fn first(&self, partition: PartitionId) -> LogIndex {
        self.inner.first.get(usize::from(partition.0)).copied().unwrap_or_default()
    }

    fn applied(&self, partition: PartitionId) -> Result<LogIndex, ReadError> {
        let handle = self.partition(partition).ok_or_else(|| no_replica(partition))?;
        Ok(handle.tail.applied())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        partition: PartitionId,
        work: impl FnOnce(&Reader, &PendingRefused) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let open = self.inner.open.read().clone();
        let open = open.ok_or_else(|| ReadError::Store("the broker is shutting down".into()))?;
        let work = tokio::task::spawn_blocking(move || match open.readers.get(usize::from(partition.0)) {
            Some((reader, pending)) => work(reader, pending).map_err(ReadError::from),
            None => Err(no_replica(partition)),
        });
        work.await.unwrap_or_else(|error| Err(ReadError::Store(error.to_string())))
    }
}

fn no_replica(partition: PartitionId) -> ReadError {
    ReadError::Store(format!("this broker holds no replica of partition {partition}"))
}

#[derive(Default)]
struct Started {
    partitions: Vec<PartitionHandle>,
    readers: Vec<(Reader, PendingRefused)>,
    first: Vec<LogIndex>,
    groups: Vec<Group>,
    appenders: Vec<tokio::task::JoinHandle<()>>,
}

impl Started {
    fn push(&mut self, partition: StartedPartition) {
        self.partitions.push(partition.handle);
        self.readers.push(partition.reader);
        self.first.push(partition.first);
        self.groups.push(partition.group);
        self.appenders.push(partition.appender);
    }
}

struct StartedPartition {
    handle: PartitionHandle,
    reader: (Reader, PendingRefused),
    first: LogIndex,
    group: Group,
    appender: tokio::task::JoinHandle<()>,
}

/// Opens the folder: identity, database, marks, and the newest snapshot of each partition. Blocks.
fn open_folder(config: &NodeConfig, health: &Health) -> Result<Opened, OpenError> {
    let expected = Identity { cluster: config.cluster.clone(), node: config.node_id, partitions: config.partitions };
    let folder = identity::open(&config.dir, &expected)?;
    let on_disk = marks::read(&config.dir, config.partitions)?;
    let db = Arc::new(Db::open(&config.dir, config.partitions, folder.fresh)?);
    let mut marks = Vec::new();
    for (partition, mark) in config.partitions.iter().zip(on_disk) {
        let reader = Reader::new(Arc::clone(&db), partition);
        check_mark(&reader, mark)?;
        // opening has flushed what it recovered: it is on disk, and what openraft finds there counts as synced
        let end = reader.last()?.map_or(0, |last| last.index.0 + 1);
        marks.push(Mark { end, term: reader.vote()?.map_or(mark.term, |vote| vote.term) });
    }
    let writer = Writer::start(Arc::clone(&db), config.dir.clone(), marks, health.clone())
        .map_err(|error| OpenError::Io { path: config.dir.display().to_string(), reason: error.to_string() })?;
    let found = config.partitions.iter().map(|id| find(&db, id, config.partitions, &writer.handle()));
    let found = found.collect::<Result<Vec<_>, StoreError>>()?;
    Ok(Opened { folder, db, writer, found })
}

fn find(db: &Arc<Db>, id: PartitionId, count: PartitionCount, writer: &WriterHandle) -> Result<Found, StoreError> {
    let reader = Reader::new(Arc::clone(db), id);
    let log = LogStore::open(reader.clone(), writer.clone())?;
    let first = reader.first()?.map_or(LogIndex(0), |first| first.index);
    let (initial, last_entry) = match snapshot::newest(&reader, LogIndex(u64::MAX))? {
        Some(manifest) => {
            let members = types::from_stored_members(&manifest.membership)
                .map_err(|error| StoreError::at(id, manifest.last.index, error.to_string()))?;
            let applied = Some(types::from_stored(&manifest.last));
            let last_entry = reader.last_with_records(manifest.last.index)?;
            (Initial { state: decode_state(&reader, &manifest)?, applied, members }, last_entry)
        }
        None => {
            let state = core::Partition::new(id, count);
            (Initial { state, applied: None, members: types::Members::default() }, LogIndex(0))
        }
    };
    Ok(Found { log, reader, initial, last_entry, first })
}

async fn start_partition(
    config: &NodeConfig,
    found: Found,
    writer: &WriterHandle,
    snapshotter: &Snapshotter,
    health: &Health,
) -> Result<StartedPartition, OpenError> {
    let id = found.reader.partition();
    let share = config.tail_bytes / usize::from(config.partitions.get());
    let applied = found.initial.applied.map_or(LogIndex(0), |applied| LogIndex(applied.index));
    let tail = tail::Handle::new(found.last_entry, applied, share, found.log.log().written());
    let refused = PendingRefused::default();
    let (term, _) = watch::channel(0);
    let parts = Parts {
        log: found.log.log().clone(),
        reader: found.reader.clone(),
        writer: writer.clone(),
        refused: refused.clone(),
        sink: Arc::new(tail.clone()),
        term,
        pace: Pace::new(id, config.snapshot_every, snapshotter.requests()),
    };
    let group = Group::start(GroupConfig {
        node_id: config.node_id,
        cluster: config.cluster.clone(),
        log: found.log,
        initial: found.initial,
        parts,
        health: health.clone(),
    })
    .await?;
    let (append, appender) = append::start(group.clone(), health.clone());
    let handle = PartitionHandle { id, append, tail, state: group.state(), role: group.role() };
    Ok(StartedPartition { handle, reader: (found.reader, refused), first: found.first, group, appender })
}

async fn stop_groups(groups: &[Group]) {
    for group in groups {
        group.shutdown().await;
    }
}

/// Waits for the last reader to let go of the database and closes it.
async fn release(open: Arc<Open>) {
    let db = Arc::clone(&open.db);
    drop(open);
    let closed = tokio::task::spawn_blocking(move || {
        let begun = std::time::Instant::now();
        let mut db = db;
        loop {
            match Arc::try_unwrap(db) {
                Ok(last) => {
                    drop(last);
                    return true;
                }
                Err(shared) if begun.elapsed() >= RELEASE_TIMEOUT => {
                    drop(shared);
                    return false;
                }
                Err(shared) => db = shared,
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    if !closed.await.unwrap_or(false) {
        tracing::error!("the database is still being read after {RELEASE_TIMEOUT:?}");
    }
}

#[cfg(test)]
mod tests;
