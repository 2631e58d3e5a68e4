//! A broker's partitions put together: store, Raft group, state, appender and tail of each.

mod balance;
#[cfg(test)]
pub(crate) mod cluster_tests;
mod current;
#[cfg(test)]
mod damage_tests;
mod elsewhere;
mod formation;
mod guard;
mod history;
mod members;
mod open;
mod opening;
#[cfg(test)]
mod opening_tests;
#[cfg(test)]
mod probe;
#[cfg(test)]
mod rebuild_tests;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use trunkline_proto::{PartitionCount, PartitionId};

use crate::{
    append, core,
    quic::Accepted,
    raft::{Floor, Group, PeerServer, Snapshotter, Transfers, retention::Trimmers, state_machine::Unwritten},
    store::{Db, Health, NoSpace, Reader, Space, Writer, identity::Folder},
    tail,
};
pub use crate::{
    raft::{
        Advertised, CallError, CallKind, Calls, ChangeError, Member, MemberView, Membership, Peers, Role,
        SnapshotEvery, peers::Dialer,
    },
    store::{DiskId, OpenError},
};
pub use current::NotCurrent;
pub use history::{LogRead, Moment, ReadError};
pub use members::AdminError;

/// Bytes of applied entries kept in memory by default, over all partitions.
pub const TAIL_BYTES_DEFAULT: usize = 64 << 20;
/// How long what is trimmed is kept by default for followers that are there and still need it.
pub const TRIM_PATIENCE_DEFAULT: Duration = Duration::from_secs(180);
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
    /// How long what is trimmed is kept for a follower that is there and still needs it ([`TRIM_PATIENCE_DEFAULT`]). Then it gets a
    /// snapshot.
    pub trim_patience: Duration,
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
            trim_patience: TRIM_PATIENCE_DEFAULT,
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

/// What reads the disk; gone after a shutdown.
#[derive(Debug)]
struct Open {
    db: Arc<Db>,
    readers: Vec<(Reader, Unwritten)>,
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
    /// Partitions that were found damaged when the folder was opened, and why: there is no state of them.
    damaged: BTreeMap<PartitionId, String>,
    health: Health,
    space: Space,
    peers: Peers,
    /// Why a group is not formed; empty: there is nothing to say.
    forming: Arc<Mutex<String>>,
    /// Who leads what is closed here.
    elsewhere: watch::Sender<elsewhere::Leaders>,
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

    /// Waits until this broker knows the leader of every partition that is not closed.
    ///
    /// # Errors
    /// Some are: which one first, and why.
    pub async fn wait_ready(&self) -> Result<(), String> {
        let mut closed = None;
        for partition in &self.inner.partitions {
            let mut role = partition.role.clone();
            let known = |role: &Role| !matches!(role, Role::Follower { leader: None });
            let role = role.wait_for(known).await.map(|role| *role);
            if matches!(role, Ok(Role::Closed) | Err(_)) {
                closed.get_or_insert_with(|| self.closed(partition.id));
            }
        }
        closed.map_or(Ok(()), Err)
    }

    /// Whether there is a partition that is not closed: the broker is of some use.
    pub fn serves_any(&self) -> bool {
        self.inner.partitions.iter().any(|partition| *partition.role.borrow() != Role::Closed)
    }

    /// Whether every partition has a leader that this broker knows; otherwise why not.
    pub fn readiness(&self) -> Result<(), String> {
        if let Some(partition) = self.inner.partitions.iter().find(|partition| *partition.role.borrow() == Role::Closed)
        {
            return Err(self.closed(partition.id));
        }
        self.health()?;
        self.space().map_err(|error| error.to_string())?;
        let forming = self.inner.forming.lock().clone();
        for partition in &self.inner.partitions {
            match *partition.role.borrow() {
                Role::Leader { .. } | Role::Follower { leader: Some(_) } => {}
                Role::Follower { leader: None } if forming.is_empty() => {
                    return Err(format!("partition {} has no leader{}", partition.id, self.maybe_removed()));
                }
                Role::Follower { leader: None } => return Err(forming),
                Role::Closed => return Err(self.closed(partition.id)),
            }
        }
        Ok(())
    }

    /// A member that was removed while it was away may never hear of it: nobody speaks to it any more.
    fn maybe_removed(&self) -> &'static str {
        match self.inner.peers.members().len() {
            1 => "",
            _ => {
                " that this broker hears: one is being elected, no majority is up, or this broker was removed (`trunkline cluster status` \
                  of another one tells)"
            }
        }
    }

    /// Why a partition is closed.
    pub fn why_closed(&self, partition: PartitionId) -> String {
        self.inner.health.why(partition).unwrap_or_else(|| "its group has stopped".into())
    }

    /// As [`Node::why_closed`], and what to do about it.
    fn closed(&self, partition: PartitionId) -> String {
        let (reason, own) = (self.why_closed(partition), self.inner.peers.own().node);
        let is_damaged = self.inner.health.subscribe().borrow().damaged.contains_key(&partition);
        let remedy = match is_damaged {
            false => String::new(),
            true if self.inner.peers.members().len() > 1 => format!(
                ". The other brokers serve it. To rebuild this one: `trunkline cluster remove {own}`, stop it, delete its data folder, \
                 start it, `trunkline cluster add {own} --link ADDRESS`"
            ),
            true => ". No other broker holds a copy: restore the data folder from a backup".to_owned(),
        };
        format!("partition {partition}: {reason}{remedy}")
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
        self.inner.running.lock().as_ref()?.groups.iter().find(|group| group.partition() == id).cloned()
    }

    /// Whether the disk has room for more.
    pub fn space(&self) -> Result<(), NoSpace> {
        self.inner.space.check()
    }

    /// Bytes left where the data folder is, once that was measured.
    pub fn disk_free(&self) -> Option<u64> {
        self.inner.space.free()
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
