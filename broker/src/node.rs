//! A broker's partitions put together: store, Raft group, state, appender and tail of each.

mod balance;
#[cfg(test)]
pub(crate) mod cluster_tests;
mod formation;
mod members;
mod open;
#[cfg(test)]
mod probe;
#[cfg(test)]
mod rebuild_tests;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc, time::Duration};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use trunkline_proto::{LogIndex, Offset, PartitionCount, PartitionId, Timestamp};

use crate::{
    append, core,
    quic::Accepted,
    raft::{
        Floor, Group, PeerServer, Snapshotter, Transfers, retention::Trimmers, snapshotter::Replay,
        state_machine::PendingRefused,
    },
    store::{Db, Health, NoSpace, Reader, Space, StoreError, Writer, identity::Folder},
    tail,
};
pub use crate::{
    raft::{
        Advertised, CallError, CallKind, Calls, ChangeError, Member, MemberView, Membership, Peers, Role,
        SnapshotEvery, peers::Dialer,
    },
    store::{DiskId, OpenError},
};
pub use members::AdminError;

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
    /// Bytes of a partition's log at which nothing but what makes room is appended; 0: none.
    pub retained_max: u64,
    /// Bytes of disk to keep free, as above; 0: none.
    pub disk_reserve: u64,
    /// The brokers that form the cluster, the same everywhere. Nobody, or this broker alone: a cluster of one. Without this broker: it
    /// waits to be added.
    pub founders: Vec<Founder>,
    /// Addresses that other brokers, edges and clients are told.
    pub advertised: Advertised,
    /// What other brokers are dialed with; without it none is reached.
    pub dialer: Option<Dialer>,
    /// Bytes per second to a follower far behind; 0: no bound.
    pub catchup_rate: u64,
}

/// A broker that the config names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Founder {
    /// Its number.
    pub id: u64,
    /// Where its link listens: `host:port`.
    pub link: String,
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
            retained_max: 0,
            disk_reserve: 0,
            founders: Vec::new(),
            advertised: Advertised::default(),
            dialer: None,
            catchup_rate: 0,
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
    /// Snapshots of it that are being sent to peers.
    pub transfers: Transfers,
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

/// What a read of the log on disk came to.
#[derive(Debug)]
pub struct LogRead {
    /// Entries with records, in order.
    pub entries: Vec<core::LoggedEntry>,
    /// The last entry looked at, with records or without; the one read on from if there was none.
    pub through: LogIndex,
}

/// Where in the past.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// After the record at this offset, and before those behind it in its entry (where there is none at it: after the last
    /// one before it).
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
    /// Forming the cluster, and keeping leaders spread.
    stop: CancellationToken,
    tasks: TaskTracker,
    server: Arc<PeerServer>,
    appenders: Vec<tokio::task::JoinHandle<()>>,
    groups: Vec<Group>,
    trimmers: Trimmers,
    /// Ends what measures the disk.
    measuring: DropGuard,
    snapshotter: Snapshotter,
    writer: Writer,
    folder: Folder,
}

#[derive(Debug)]
struct Inner {
    count: PartitionCount,
    partitions: Vec<PartitionHandle>,
    /// Where each readable log begins.
    floors: Vec<Floor>,
    health: Health,
    space: Space,
    peers: Peers,
    /// Why a group is not formed; empty: there is nothing to say.
    forming: Arc<Mutex<String>>,
    open: RwLock<Option<Arc<Open>>>,
    running: Mutex<Option<Running>>,
}

/// A broker's partitions. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Node {
    inner: Arc<Inner>,
}

impl Node {
    /// Opens a broker's folder and starts its partitions. Refuses what is locked, foreign, of another format, or damaged: a
    /// log that ends before what was acknowledged from it must be rebuilt, not served.
    pub async fn open(config: NodeConfig) -> Result<Self, OpenError> {
        Ok(Self { inner: Arc::new(open::open(config).await?) })
    }

    /// Stops everything, writes what is queued and closes the database. Call it before the process ends: a thread that still
    /// holds the database then makes the exit fail. Later calls do nothing.
    pub async fn shutdown(&self) {
        let Some(running) = self.inner.running.lock().take() else { return };
        running.stop.cancel();
        running.tasks.close();
        running.tasks.wait().await;
        stop_groups(&running.groups).await;
        for appender in running.appenders {
            // a panic was reported when it happened
            let _ = appender.await;
        }
        drop((running.groups, running.measuring));
        running.trimmers.stop().await;
        self.inner.peers.shutdown().await;
        running.server.stopped().await;
        drop(running.server);
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

    /// Waits until this broker knows the leader of every partition, or one of them is closed.
    pub async fn wait_ready(&self) -> Result<(), String> {
        for partition in &self.inner.partitions {
            let mut role = partition.role.clone();
            let known = |role: &Role| !matches!(role, Role::Follower { leader: None });
            let role = role.wait_for(known).await.map(|role| *role);
            if matches!(role, Ok(Role::Closed) | Err(_)) {
                return Err(self.closed(partition.id));
            }
        }
        Ok(())
    }

    /// Whether every partition has a leader that this broker knows; otherwise why not.
    pub fn readiness(&self) -> Result<(), String> {
        self.health()?;
        self.space().map_err(|error| error.to_string())?;
        let forming = self.inner.forming.lock().clone();
        for partition in &self.inner.partitions {
            match *partition.role.borrow() {
                Role::Leader { .. } | Role::Follower { leader: Some(_) } => {}
                Role::Follower { leader: None } if forming.is_empty() => {
                    return Err(format!("partition {} has no leader", partition.id));
                }
                Role::Follower { leader: None } => return Err(forming),
                Role::Closed => return Err(self.closed(partition.id)),
            }
        }
        Ok(())
    }

    fn closed(&self, partition: PartitionId) -> String {
        let reason = self.health().err().unwrap_or_else(|| "its group has stopped".into());
        format!("partition {partition}: {reason}")
    }

    /// The other brokers.
    pub fn peers(&self) -> &Peers {
        &self.inner.peers
    }

    /// Who leads each partition and where its link listens, as far as this broker knows. Without an address: this broker.
    pub fn leaders(&self) -> Vec<(PartitionId, u64, Option<String>)> {
        let members = self.inner.peers.members();
        let leader = |partition: &PartitionHandle| match *partition.role.borrow() {
            Role::Leader { .. } => Some((partition.id, self.inner.peers.own().node, None)),
            Role::Follower { leader: Some(id) } => {
                let member = members.iter().find(|member| member.id == id)?;
                Some((partition.id, id, Some(member.link.clone())))
            }
            Role::Follower { leader: None } | Role::Closed => None,
        };
        self.inner.partitions.iter().filter_map(leader).collect()
    }

    /// Who is in a partition's group, as far as this broker's log goes; nobody once it has stopped.
    pub fn membership(&self, id: PartitionId) -> Membership {
        self.group_of(id).map(|group| group.membership()).unwrap_or_default()
    }

    /// Where the newest snapshot of a partition stands; 0: there is none.
    pub async fn newest_snapshot(&self, partition: PartitionId) -> Result<LogIndex, ReadError> {
        let newest = |reader: &Reader, _: &PendingRefused| crate::store::snapshot::newest(reader, LogIndex(u64::MAX));
        let newest = self.blocking(partition, newest).await?;
        Ok(newest.map(|manifest| manifest.last.index).unwrap_or_default())
    }

    /// Who answers what other brokers' upper layers ask. Before it is set, they are told that this one is starting.
    pub fn set_calls(&self, calls: Arc<dyn Calls>) {
        if let Some(running) = self.inner.running.lock().as_ref() {
            running.server.set_calls(calls);
        }
    }

    /// Serves another broker's connection to its end.
    pub async fn serve_peer(&self, accepted: Accepted) {
        let server = self.inner.running.lock().as_ref().map(|running| Arc::clone(&running.server));
        if let Some(server) = server {
            server.serve(accepted).await;
        }
    }

    /// A partition's group, while the node runs.
    fn group_of(&self, id: PartitionId) -> Option<Group> {
        self.inner.running.lock().as_ref()?.groups.get(usize::from(id.0)).cloned()
    }

    /// Reads applied entries from disk: those after `after`, about `bytes_max` bytes of them, at least one unless at the end.
    /// Says how far it has looked, which may be beyond the last of them: a reader goes on from there. Blocking work happens on
    /// the blocking pool.
    pub async fn read_log(
        &self,
        partition: PartitionId,
        after: LogIndex,
        bytes_max: usize,
    ) -> Result<LogRead, ReadError> {
        // before the disk: what the tail has let go of is there by then
        let (applied, since) = (self.applied(partition)?, self.since(partition)?);
        self.check_retained(partition, after)?;
        let read = self.blocking(partition, move |reader, pending| {
            // before the disk: a set leaves this list only once it is there
            let refused = pending.between(after, applied);
            // a leader may have applied what its own disk does not hold yet; the tail does
            let through = applied.min(reader.last()?.map_or(LogIndex(0), |last| last.index));
            let (mut entries, through) = reader.logged(after, through, bytes_max.max(1))?;
            for (index, refused) in refused {
                if let Ok(at) = entries.binary_search_by_key(&index, |entry| entry.index)
                    && let Some(entry) = entries.get_mut(at)
                {
                    entry.refused = refused.to_vec();
                }
            }
            Ok(LogRead { entries, through })
        });
        let read = read.await;
        // what was deleted while it was read
        self.check_retained(partition, after)?;
        let read = read?;
        // a snapshot has replaced what neither the disk nor the tail holds: no reader ever comes to it
        if read.entries.is_empty() && read.through < since {
            return Err(ReadError::Trimmed { earliest: Offset::new(LogIndex(since.0 + 1), 0) });
        }
        Ok(read)
    }

    /// The last entry stamped at or before `time` ([`LogIndex`] 0: none), by binary search.
    pub async fn index_at(&self, partition: PartitionId, time: Timestamp) -> Result<LogIndex, ReadError> {
        let (first, applied) = (self.first(partition), self.applied(partition)?);
        self.blocking(partition, move |reader, _| Ok(reader.index_at(first, applied, time)?.unwrap_or_default())).await
    }

    /// The state at a moment of the past: newest snapshot before it, and replay. Gives the offset up to which records are folded
    /// in. Inside a commit its outcomes, which are its first record, and the commands up to that offset are.
    pub async fn state_at(
        &self,
        partition: PartitionId,
        moment: Moment,
    ) -> Result<(core::Partition, Offset), ReadError> {
        let applied = self.applied(partition)?;
        let end = match moment {
            Moment::Offset(offset) => offset,
            Moment::Time(time) => Offset::end_of(self.index_at(partition, time).await?),
        };
        if end.index() > applied {
            return Err(ReadError::Future { end: Offset::end_of(applied) });
        }
        // a snapshot holds whole entries: one of the moment's own entry is of use only at its end
        let is_end = end == Offset::end_of(end.index());
        let covered = LogIndex(if is_end { end.index().0 } else { end.index().0.saturating_sub(1) });
        // the snapshot at the trim point holds all of the last entry that is trimmed
        let trimmed = || ReadError::Trimmed { earliest: self.earliest(partition) };
        let before =
            |first: LogIndex| first.0.checked_sub(1).map_or(Offset::ZERO, |last| Offset::end_of(LogIndex(last)));
        if end < before(self.first(partition)) {
            return Err(trimmed());
        }
        let count = self.inner.count;
        let replayed = self.blocking(partition, move |reader, _| {
            let mut replay = Replay::from_newest(reader, count, covered)?;
            replay.run_until(end, &CancellationToken::new())?;
            Ok((replay.state, end))
        });
        let replayed = replayed.await;
        if end < before(self.first(partition)) { Err(trimmed()) } else { replayed }
    }

    /// First offset that can still be read.
    pub fn earliest(&self, partition: PartitionId) -> Offset {
        Offset::new(self.first(partition), 0)
    }

    /// Whether the disk has room for more.
    pub fn space(&self) -> Result<(), NoSpace> {
        self.inner.space.check()
    }

    /// Whether the store takes writes; otherwise why not.
    pub fn health(&self) -> Result<(), String> {
        self.inner.health.check()
    }

    #[cfg(test)]
    pub(crate) fn reader(&self, partition: PartitionId) -> Option<Reader> {
        let open = self.inner.open.read();
        open.as_ref()?.readers.get(usize::from(partition.0)).map(|(reader, _)| reader.clone())
    }

    #[cfg(test)]
    pub(crate) fn pretend_free(&self, bytes: u64) {
        self.inner.space.pretend(bytes);
    }

    fn first(&self, partition: PartitionId) -> LogIndex {
        self.inner.floors.get(usize::from(partition.0)).map(Floor::first).unwrap_or_default()
    }

    fn check_retained(&self, partition: PartitionId, after: LogIndex) -> Result<(), ReadError> {
        match after.0 + 1 < self.first(partition).0 {
            true => Err(ReadError::Trimmed { earliest: self.earliest(partition) }),
            false => Ok(()),
        }
    }

    fn applied(&self, partition: PartitionId) -> Result<LogIndex, ReadError> {
        let handle = self.partition(partition).ok_or_else(|| no_replica(partition))?;
        Ok(handle.tail.applied())
    }

    fn since(&self, partition: PartitionId) -> Result<LogIndex, ReadError> {
        let handle = self.partition(partition).ok_or_else(|| no_replica(partition))?;
        Ok(handle.tail.since())
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
