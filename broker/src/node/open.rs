//! Opening a data folder and starting its partitions.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use trunkline_proto::{LogIndex, PartitionCount, PartitionId, v1::peer as pb};

use super::{Inner, NodeConfig, Open, OpenError, PartitionHandle, Running, balance, formation, stop_groups};
use crate::{
    append, core,
    raft::{
        Group, GroupConfig, Member, PeerServer, Peers, Snapshotter,
        log_store::LogStore,
        peers::Own,
        snapshotter::Pace,
        state_machine::{Initial, Parts, PendingRefused},
        types,
    },
    store::{
        Db, DiskId, Health, Identity, Reader, StoreError, Writer, WriterHandle,
        identity::{self, Folder},
        marks::{self, Mark},
        snapshot,
        verify::{check_mark, decode_state},
    },
    tail,
};

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

/// Whether this broker is a cluster of one as long as nobody is added.
fn is_alone(config: &NodeConfig) -> bool {
    config.founders.iter().all(|founder| founder.id == config.node_id)
}

fn own(config: &NodeConfig, disk: DiskId) -> Own {
    let mut advertised = config.advertised.clone();
    // what the others' configs say of it
    if let Some(founder) = config.founders.iter().find(|founder| founder.id == config.node_id) {
        advertised.link.clone_from(&founder.link);
    }
    let (cluster, node, partitions) = (config.cluster.clone(), config.node_id, config.partitions);
    Own { cluster, node, disk, partitions, advertised }
}

/// This broker as a member.
pub(super) fn own_member(peers: &Peers) -> Member {
    let own = peers.own();
    Member { link: own.advertised.link.clone(), disk: own.disk }
}

/// See [`super::Node::open`].
pub(super) async fn open(config: NodeConfig) -> Result<Inner, OpenError> {
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
    let peers = Peers::new(own(&config, opened.folder.disk), config.dialer.clone(), Some(config.catchup_rate));
    for founder in &config.founders {
        peers.ensure(founder.id, &founder.link);
    }
    let mut started = Started::default();
    for found in opened.found {
        let step = start_partition(&config, found, &writer, &snapshotter, &peers, &health).await;
        match step {
            Ok(partition) => started.push(partition),
            Err(error) => {
                stop_groups(&started.groups).await;
                peers.shutdown().await;
                snapshotter.stop().await;
                return Err(error);
            }
        }
    }
    let founders = config.founders.iter().map(|founder| pb::Founder { id: founder.id, link: founder.link.clone() });
    let server = Arc::new(PeerServer::new(peers.clone(), started.groups.clone(), founders.collect()));
    let (stop, tasks, forming) = (CancellationToken::new(), TaskTracker::new(), Arc::default());
    if !is_alone(&config) {
        let forming = formation::run(config.clone(), peers.clone(), started.groups.clone(), Arc::clone(&forming));
        let stop = stop.clone();
        tasks.spawn(async move { stop.run_until_cancelled(forming).await });
    }
    if config.dialer.is_some() {
        let (balancing, stop) = (balance::run(peers.clone(), started.groups.clone()), stop.clone());
        tasks.spawn(async move { stop.run_until_cancelled(balancing).await });
    }
    let running = Running {
        stop,
        tasks,
        server,
        appenders: started.appenders,
        groups: started.groups,
        snapshotter,
        writer: opened.writer,
        folder: opened.folder,
    };
    Ok(Inner {
        count: config.partitions,
        partitions: started.partitions,
        first: started.first,
        health,
        peers,
        forming,
        open: RwLock::new(Some(Arc::new(Open { db: opened.db, readers: started.readers }))),
        running: Mutex::new(Some(running)),
    })
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
    peers: &Peers,
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
        founders: match is_alone(config) {
            true => [(config.node_id, own_member(peers))].into(),
            false => BTreeMap::new(),
        },
        peers: peers.clone(),
        health: health.clone(),
    })
    .await?;
    let (append, appender) = append::start(group.clone(), health.clone());
    let handle = PartitionHandle { id, append, tail, state: group.state(), role: group.role() };
    Ok(StartedPartition { handle, reader: (found.reader, refused), first: found.first, group, appender })
}
