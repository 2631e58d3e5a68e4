//! A snapshot that takes the place of a replica's log: what a crash leaves is the old replica or the new one.

use std::{path::Path, sync::Arc};

use openraft::storage::RaftStateMachine;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use trunkline_proto::{EntryBuilder, LogIndex, PartitionId, Timestamp};

use crate::{
    core::Partition,
    raft::{
        Floor, SnapshotData, SnapshotEvery, Transfers,
        log_store::LogStore,
        snapshotter::{self, Pace},
        state_machine::{self, Initial, Parts, StateMachine, Unwritten},
        tests::suite::Nobody,
        transfer::Receiver,
        types::Members,
    },
    store::{
        self, Db, Health, Payload, Reader, StoredEntry, StoredLogId, Write, Writer, marks, snapshot,
        verify::{check_covered, check_mark},
    },
    testing,
};

const P: PartitionId = PartitionId(0);

struct Store {
    writer: Writer,
    reader: Reader,
}

fn open(dir: &Path, fresh: bool) -> Store {
    std::fs::create_dir_all(dir).unwrap();
    let mark = if fresh { marks::Mark::default() } else { marks::read(dir, testing::count(1)).unwrap()[0] };
    let reader = Reader::new(Arc::new(Db::open(dir, testing::count(1), fresh).unwrap()), P);
    check_mark(&reader, mark).unwrap();
    check_covered(&reader).unwrap();
    let writer = Writer::start(Arc::clone(reader.db()), dir.to_owned(), vec![mark], Health::new()).unwrap();
    Store { writer, reader }
}

impl Store {
    fn append(&self, indexes: std::ops::Range<u64>) {
        let entries = indexes.map(|index| {
            let mut builder = EntryBuilder::new(Timestamp(index), 0);
            builder.push(&testing::edge(index, &[testing::message(testing::connection(0, 1), b"hi")]));
            let id = StoredLogId { term: 1, index: LogIndex(index) };
            StoredEntry { id, payload: Payload::Entry(builder.finish()) }
        });
        self.writer.handle().write_blocking(P, Write::Entries(entries.collect())).unwrap();
    }

    fn machine(&self, floor: &Floor) -> StateMachine {
        let log = LogStore::open(self.reader.clone(), self.writer.handle()).unwrap();
        let initial =
            Initial { state: Partition::new(P, testing::count(1)), applied: None, members: Members::default() };
        let parts = Parts {
            log: log.log().clone(),
            reader: self.reader.clone(),
            writer: self.writer.handle(),
            unwritten: Unwritten::default(),
            sink: Arc::new(Nobody),
            term: watch::channel(0).0,
            pace: Pace::new(P, SnapshotEvery::default(), mpsc::channel(1).0),
            floor: floor.clone(),
            transfers: Transfers::default(),
        };
        StateMachine::new(initial, parts)
    }

    fn is_old(&self) -> bool {
        self.reader.first().unwrap().map(|first| first.index) == Some(LogIndex(0))
            && self.reader.end().unwrap() == 11
            && snapshot::list(&self.reader).unwrap().is_empty()
    }

    fn is_new(&self) -> bool {
        let newest = snapshot::newest(&self.reader, LogIndex(u64::MAX)).unwrap();
        newest.is_some_and(|manifest| manifest.last.index == LogIndex(30))
            && self.reader.first().unwrap().is_none()
            && self.reader.entry(LogIndex(0)).unwrap().is_none()
            && self.reader.refused(LogIndex(0), LogIndex(30)).unwrap().is_empty()
            && self.reader.end().unwrap() == 31
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_while_a_snapshot_is_installed_leaves_the_old_replica_or_the_new_one() {
    let dirs = tempfile::tempdir().unwrap();
    let path = |name: &str| dirs.path().join(name);
    let (leader, mut follower) = (open(&path("leader"), true), open(&path("follower"), true));
    leader.append(0..50);
    let writer = leader.writer.handle();
    let never = CancellationToken::new();
    snapshotter::make(&leader.reader, testing::count(1), &writer, LogIndex(30), &never).unwrap();
    follower.append(0..11);
    let refused = Arc::new([(0, crate::core::Refusal::Fenced)]);
    follower.writer.handle().write_blocking(P, Write::Refused { index: LogIndex(5), refused }).unwrap();

    let manifest = snapshot::oldest(&leader.reader, LogIndex(0)).unwrap().unwrap();
    let transfers = Transfers::default();
    let sent = SnapshotData::stored(leader.reader.clone(), manifest.clone(), &transfers);
    assert!(transfers.is_running());
    let mut incoming = Receiver::new(follower.reader.clone(), follower.writer.handle()).begin(manifest.clone());
    assert!(incoming.push(b"too short").await.is_err());
    for n in 0..sent.chunks() {
        assert!(!incoming.is_whole());
        incoming.push(&sent.chunk(n).await.unwrap()).await.unwrap();
    }
    drop(sent);
    assert!(!transfers.is_running());
    let received = incoming.finish().await.unwrap();

    // the power goes when all chunks are there
    drop(follower.writer);
    store::copy_folder(&path("follower"), &path("before"));
    assert!(open(&path("before"), false).is_old());
    follower.writer = Writer::start(
        Arc::clone(follower.reader.db()),
        path("follower"),
        marks::read(&path("follower"), testing::count(1)).unwrap(),
        Health::new(),
    )
    .unwrap();

    let floor = Floor::new(LogIndex(0));
    let mut machine = follower.machine(&floor);
    let meta = state_machine::meta(&manifest).unwrap();
    machine.install_snapshot(&meta, received).await.unwrap();
    assert_eq!(floor.first(), LogIndex(31), "readers are told");
    assert_eq!(machine.state().read().digest(), manifest.digest);
    assert!(follower.is_new());
    store::copy_folder(&path("follower"), &path("after"));
    assert!(open(&path("after"), false).is_new());
    // what comes next follows it, and marks know how far the log goes
    follower.append(31..40);
    drop(follower.writer);
    store::copy_folder(&path("follower"), &path("later"));
    let later = open(&path("later"), false);
    assert_eq!(later.reader.first().unwrap().map(|first| first.index), Some(LogIndex(31)));
    assert_eq!(marks::read(&path("later"), testing::count(1)).unwrap()[0].end, 40);
}
