//! openraft's own tests of log storage and state machine, over a real store.

use std::sync::Arc;

use openraft::{
    StorageError,
    testing::log::{StoreBuilder, Suite},
};
use tokio::sync::{mpsc, watch};
use trunkline_proto::{LogIndex, PartitionId};

use crate::{
    core::{AppliedEntry, Partition},
    raft::{
        AppliedSink, Floor, SnapshotEvery, Transfers,
        log_store::LogStore,
        snapshotter::Pace,
        state_machine::{Initial, Parts, StateMachine, Unwritten},
        types::{Members, Types},
    },
    store::{Db, Health, Reader, Writer, marks},
    testing,
};

#[derive(Debug)]
pub(super) struct Nobody;

impl AppliedSink for Nobody {
    fn entry_applied(&self, _: Arc<AppliedEntry>) {}
    fn passed(&self, _: LogIndex) {}
    fn installed(&self, _: LogIndex) {}
}

struct Builder;

type Guard = (Writer, tempfile::TempDir);

impl StoreBuilder<Types, LogStore, StateMachine, Guard> for Builder {
    async fn build(&self) -> Result<(Guard, LogStore, StateMachine), StorageError<Types>> {
        let dir = tempfile::tempdir().unwrap();
        let (count, id) = (testing::count(1), PartitionId(0));
        let db = Arc::new(Db::open(dir.path(), count, true).unwrap());
        let marks = vec![marks::Mark::default()];
        let writer = Writer::start(Arc::clone(&db), dir.path().to_owned(), marks, Health::new()).unwrap();
        let reader = Reader::new(db, id);
        let log = LogStore::open(reader.clone(), writer.handle()).unwrap();
        let initial = Initial { state: Partition::new(id, count), applied: None, members: Members::default() };
        let parts = Parts {
            log: log.log().clone(),
            reader,
            writer: writer.handle(),
            unwritten: Unwritten::default(),
            sink: Arc::new(Nobody),
            term: watch::channel(0).0,
            pace: Pace::new(id, SnapshotEvery::default(), mpsc::channel(1).0),
            floor: Floor::new(LogIndex(0)),
            transfers: Transfers::default(),
        };
        Ok(((writer, dir), log, StateMachine::new(initial, parts)))
    }
}

#[tokio::test]
async fn the_storage_suite_of_openraft_passes() {
    Suite::test_all(Builder).await.unwrap();
}
