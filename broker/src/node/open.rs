//! Opening a data folder and starting its partitions.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use trunkline_proto::{LogIndex, PartitionCount, PartitionId, v1::peer as pb};

use super::{
    Inner, NodeConfig, Open, OpenError, PartitionHandle, Running, balance, elsewhere, formation, guard, stop_groups,
};
use crate::{
    append, core,
    raft::{
        Floor, Group, GroupConfig, Member, PeerServer, Peers, Role, Snapshotter, Transfers,
        log_store::LogStore,
        peers::Own,
        retention::{Trimmer, Trimmers},
        snapshotter::Pace,
        state_machine::{Initial, Parts, Unwritten},
        types,
        witness::{self, Witness},
    },
    store::{
        Db, DiskId, Health, Identity, Reader, Space, StoreError, Writer, WriterHandle,
        identity::{self, Folder},
        marks::{self, Mark},
        snapshot,
        verify::{check_covered, check_mark, decode_state},
    },
    tail,
};

/// One partition as found on disk.
struct Found {
    log: LogStore,
    reader: Reader,
    initial: Initial,
    /// The last entry with records in the initial state, or the last one before the readable log.
    last_entry: LogIndex,
    floor: Floor,
}

/// What opening the folder gives.
struct Opened {
    folder: Folder,
    db: Arc<Db>,
    writer: Writer,
    witness: Arc<Witness>,
    found: Vec<(Reader, Result<Found, StoreError>)>,
}

/// Whether this broker is a cluster of one as long as nobody is added.
fn is_alone(config: &NodeConfig) -> bool {
    config.founders.iter().all(|founder| founder.id == config.node_id)
}

fn own(config: &NodeConfig, disk: DiskId, witness: Arc<Witness>) -> Own {
    let mut advertised = config.advertised.clone();
    // what the others' configs say of it
    if let Some(founder) = config.founders.iter().find(|founder| founder.id == config.node_id) {
        advertised.link.clone_from(&founder.link);
    }
    let (cluster, node, partitions) = (config.cluster.clone(), config.node_id, config.partitions);
    Own { cluster, node, disk, partitions, advertised, process: rand::random(), witness }
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
    let opened = opened.map_err(|error| io_error(&config, format!("opening it ended: {error}")))??;
    let floor = |found: &Result<Found, StoreError>| found.as_ref().map(|found| found.floor.clone()).unwrap_or_default();
    let readers: Vec<_> = opened.found.iter().map(|(reader, found)| (reader.clone(), floor(found))).collect();
    let writer = opened.writer.handle();
    let snapshotter = Snapshotter::start(readers, config.partitions, writer.clone(), health.clone());
    let space = Space::new(config.dir.clone(), config.disk_reserve);
    let measuring = CancellationToken::new();
    tokio::spawn(space.clone().watch(measuring.clone()));
    let bounds = append::Bounds { retained_max: config.retained_max, space: space.clone() };
    let measuring = measuring.drop_guard();
    let own = own(&config, opened.folder.disk, opened.witness);
    let peers = Peers::new(own, config.dialer.clone(), config.catchup_rate);
    for founder in &config.founders {
        peers.ensure(founder.id, &founder.link);
    }
    let mut started = Started::default();
    for (reader, found) in opened.found {
        let step = match found {
            Ok(found) => start_partition(&config, found, &writer, &snapshotter, (&peers, &bounds), &health).await,
            Err(error) => Err(error.into()),
        };
        match step {
            Ok(partition) => started.push(&config, partition),
            // the others are sound: this one is closed, and neither votes nor acknowledges
            Err(error @ (OpenError::Damaged { .. } | OpenError::Raft { .. })) if config.partitions.get() > 1 => {
                started.push_damaged(&config, reader, &error.to_string(), &health);
            }
            Err(error) => {
                stop_groups(&started.groups).await;
                peers.shutdown().await;
                snapshotter.stop().await;
                return Err(error);
            }
        }
    }
    let trimmers = Trimmers::start(started.trimmers, config.partitions, &writer, &snapshotter);
    let founders = config.founders.iter().map(|founder| pb::Founder { id: founder.id, link: founder.link.clone() });
    let server = Arc::new(PeerServer::new(
        peers.clone(),
        started.groups.clone(),
        started.damaged.keys().copied().collect(),
        founders.collect(),
        space.clone(),
    ));
    let (stop, tasks, forming) = (CancellationToken::new(), TaskTracker::new(), Arc::default());
    if !is_alone(&config) {
        let forming = formation::run(config.clone(), peers.clone(), started.groups.clone(), Arc::clone(&forming));
        let stop = stop.clone();
        tasks.spawn(async move { stop.run_until_cancelled(forming).await });
    }
    if config.dialer.is_some() {
        let (telling, stop_telling) = (witness::run(peers.clone()), stop.clone());
        tasks.spawn(async move { stop_telling.run_until_cancelled(telling).await });
        let count = usize::from(config.partitions.get());
        let founders = config.founders.clone();
        let balancing = balance::run(peers.clone(), started.groups.clone(), founders, count, space.clone());
        let stop = stop.clone();
        tasks.spawn(async move { stop.run_until_cancelled(balancing).await });
    }
    let (guarding, stopped) = (guard::run(health.clone(), peers.clone(), started.groups.clone()), stop.clone());
    tasks.spawn(async move { stopped.run_until_cancelled(guarding).await });
    let found = watch::Sender::default();
    if config.dialer.is_some() {
        let asking = elsewhere::run(peers.clone(), started.partitions.clone(), found.clone());
        let stopped = stop.clone();
        tasks.spawn(async move { stopped.run_until_cancelled(asking).await });
    }
    let running = Running {
        stop,
        tasks,
        server,
        appenders: started.appenders,
        groups: started.groups,
        trimmers,
        measuring,
        snapshotter,
        writer: opened.writer,
        folder: opened.folder,
    };
    Ok(Inner {
        count: config.partitions,
        partitions: started.partitions,
        floors: started.floors,
        damaged: started.damaged,
        health,
        space,
        peers,
        forming,
        elsewhere: found,
        open: RwLock::new(Some(Arc::new(Open { db: opened.db, readers: started.readers }))),
        running: Mutex::new(Some(running)),
    })
}

#[derive(Default)]
struct Started {
    partitions: Vec<PartitionHandle>,
    readers: Vec<(Reader, Unwritten)>,
    floors: Vec<Floor>,
    trimmers: Vec<Trimmer>,
    groups: Vec<Group>,
    appenders: Vec<tokio::task::JoinHandle<()>>,
    damaged: BTreeMap<PartitionId, String>,
}

impl Started {
    /// A partition that is not served: there is nothing to start.
    fn push_damaged(&mut self, config: &NodeConfig, reader: Reader, reason: &str, health: &Health) {
        let id = reader.partition();
        health.damage(id, reason);
        let (_, role) = watch::channel(Role::Closed);
        self.partitions.push(PartitionHandle {
            id,
            append: append::closed(id, role.clone(), health.clone()),
            tail: tail::Handle::new(LogIndex(0), LogIndex(0), 0, Arc::default()),
            state: Arc::new(RwLock::new(core::Partition::new(id, config.partitions))),
            role,
            transfers: Transfers::default(),
        });
        self.readers.push((reader, Unwritten::default()));
        self.floors.push(Floor::default());
        self.damaged.insert(id, reason.to_owned());
    }

    fn push(&mut self, config: &NodeConfig, partition: StartedPartition) {
        self.partitions.push(partition.handle);
        self.trimmers.push(Trimmer {
            group: partition.group.clone(),
            reader: partition.reader.0.clone(),
            floor: partition.floor.clone(),
            patience: config.trim_patience,
        });
        self.readers.push(partition.reader);
        self.floors.push(partition.floor);
        self.groups.push(partition.group);
        self.appenders.push(partition.appender);
    }
}

struct StartedPartition {
    handle: PartitionHandle,
    reader: (Reader, Unwritten),
    floor: Floor,
    group: Group,
    appender: tokio::task::JoinHandle<()>,
}

/// Opens the folder: identity, database, marks, and the newest snapshot of each partition. Blocks.
fn open_folder(config: &NodeConfig, health: &Health) -> Result<Opened, OpenError> {
    let expected = Identity { cluster: config.cluster.clone(), node: config.node_id, partitions: config.partitions };
    let folder = identity::open(&config.dir, &expected)?;
    let on_disk = marks::read(&config.dir, config.partitions)?;
    let db = Arc::new(Db::open(&config.dir, config.partitions, folder.fresh)?);
    let mut checked = Vec::new();
    for (partition, mark) in config.partitions.iter().zip(on_disk) {
        let reader = Reader::new(Arc::clone(&db), partition);
        let found = check(&reader, mark);
        checked.push((reader, mark, found));
    }
    // the mark of what is damaged stays: it is what tells
    let marks = checked.iter().map(|(_, mark, found)| *found.as_ref().unwrap_or(mark)).collect();
    let writer = Writer::start(Arc::clone(&db), config.dir.clone(), marks, health.clone())
        .map_err(|error| io_error(config, error.to_string()))?;
    let mut found = Vec::new();
    for (reader, _, checked) in checked {
        let partition = checked.and_then(|_| find(reader.clone(), config.partitions, &writer.handle()));
        found.push((reader, partition));
    }
    // one sound partition is worth opening the folder for
    if found.iter().all(|(_, partition)| partition.is_err()) {
        let first = found.into_iter().find_map(|(_, partition)| partition.err());
        return Err(first.map_or_else(|| io_error(config, "it has no partitions".to_owned()), OpenError::from));
    }
    let logs =
        found.iter().filter_map(|(reader, found)| Some((reader.partition(), found.as_ref().ok()?.log.log().clone())));
    let witness = Arc::new(Witness::open(&config.dir, config.partitions, logs, writer.handle(), health.clone()));
    Ok(Opened { folder, db, writer, witness, found })
}

fn io_error(config: &NodeConfig, reason: String) -> OpenError {
    OpenError::Io { path: config.dir.display().to_string(), reason }
}

/// What is on disk of a partition, if it is all that was acknowledged.
fn check(reader: &Reader, mark: Mark) -> Result<Mark, StoreError> {
    check_mark(reader, mark)?;
    check_covered(reader)?;
    // opening has flushed what it recovered: it is on disk, and what openraft finds there counts as synced
    let end = reader.end()?;
    Ok(Mark { end, term: reader.vote()?.map_or(mark.term, |vote| vote.term) })
}

fn find(reader: Reader, count: PartitionCount, writer: &WriterHandle) -> Result<Found, StoreError> {
    let id = reader.partition();
    let log = LogStore::open(reader.clone(), writer.clone())?;
    let purged = reader.purged()?.map_or(LogIndex(0), |purged| LogIndex(purged.index.0 + 1));
    let (initial, last_entry) = match snapshot::newest(&reader, LogIndex(u64::MAX))? {
        Some(manifest) => {
            let members = types::from_stored_members(&manifest.membership)
                .map_err(|error| StoreError::at(id, manifest.last.index, error.to_string()))?;
            let applied = Some(types::from_stored(&manifest.last));
            let state = decode_state(&reader, &manifest)?;
            let first = purged.max(state.first_retained());
            let before = LogIndex(first.0.saturating_sub(1));
            let last_entry = reader.last_with_records(first, manifest.last.index)?.unwrap_or(before);
            (Initial { state, applied, members }, last_entry)
        }
        None => {
            let state = core::Partition::new(id, count);
            (Initial { state, applied: None, members: types::Members::default() }, LogIndex(0))
        }
    };
    let floor = Floor::new(purged.max(initial.state.first_retained()));
    Ok(Found { log, reader, initial, last_entry, floor })
}

async fn start_partition(
    config: &NodeConfig,
    found: Found,
    writer: &WriterHandle,
    snapshotter: &Snapshotter,
    (peers, bounds): (&Peers, &append::Bounds),
    health: &Health,
) -> Result<StartedPartition, OpenError> {
    let id = found.reader.partition();
    let share = config.tail_bytes / usize::from(config.partitions.get());
    let applied = found.initial.applied.map_or(LogIndex(0), |applied| LogIndex(applied.index));
    let tail = tail::Handle::new(found.last_entry, applied, share, found.log.log().written());
    let unwritten = Unwritten::default();
    let ((term, _), transfers) = (watch::channel(0), Transfers::default());
    let parts = Parts {
        log: found.log.log().clone(),
        reader: found.reader.clone(),
        writer: writer.clone(),
        unwritten: unwritten.clone(),
        sink: Arc::new(tail.clone()),
        term,
        pace: Pace::new(id, config.snapshot_every, snapshotter.requests()),
        floor: found.floor.clone(),
        transfers: transfers.clone(),
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
    let (append, appender) = append::start(group.clone(), bounds.clone(), health.clone());
    let handle = PartitionHandle { id, append, tail, state: group.state(), role: group.role(), transfers };
    Ok(StartedPartition { handle, reader: (found.reader, unwritten), floor: found.floor, group, appender })
}
