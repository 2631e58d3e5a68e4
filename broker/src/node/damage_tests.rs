//! A broker alone, one of whose partitions is damaged on disk.

use std::path::Path;

use trunkline_proto::LogIndex;

use super::{tests::talk, *};
use crate::{
    append::AppendError,
    store::{self, marks, marks::Mark},
    testing::{connection, count, edge, message},
};

const PATIENCE: Duration = Duration::from_secs(10);

fn config(dir: &Path) -> NodeConfig {
    NodeConfig::new(dir, "test", count(2))
}

fn partition(node: &Node, id: u16) -> &PartitionHandle {
    node.partition(PartitionId(id)).unwrap()
}

/// Two partitions with a few entries each, the second one's after the first one's.
async fn made() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path()).await;
    assert_eq!(ready(&node).await, Ok(()));
    talk(&node, 0, 10).await;
    talk(&node, 1, 10).await;
    node.shutdown().await;
    dir
}

async fn open(dir: &Path) -> Node {
    Node::open(config(dir)).await.unwrap()
}

async fn ready(node: &Node) -> Result<(), String> {
    tokio::time::timeout(PATIENCE, node.wait_ready()).await.unwrap()
}

/// The broker serves one partition and not the other, for this reason.
async fn serves_only(node: &Node, sound: u16, damaged: u16, sequence: u64, reason: &str) {
    let place = format!("partition {damaged}");
    let refused = ready(node).await.unwrap_err();
    assert!(refused.contains(&place) && refused.contains(reason), "{refused}");
    assert_eq!(node.readiness(), Err(refused.clone()));
    assert!(refused.contains("backup"), "{refused}");
    let handle = partition(node, damaged);
    assert_eq!(*handle.role.borrow(), Role::Closed);
    let closed = handle.append.append(crate::testing::attach(damaged)).await.unwrap_err();
    assert!(matches!(&closed, AppendError::Closed { reason: said } if said.contains(reason)), "{closed}");
    let on = message(connection(sound, 1), b"on");
    let appended = partition(node, sound).append.append(edge(sequence, &[on])).await.unwrap();
    assert_eq!(appended.verdict(0), core::Verdict::Applied);
    assert!(!node.read_log(PartitionId(sound), LogIndex(0), 1 << 20).await.unwrap().entries.is_empty());
}

#[tokio::test]
async fn a_log_that_has_lost_what_it_acknowledged_closes_its_partition_only_and_for_good() {
    let dir = made().await;
    let before = marks::read(dir.path(), count(2)).unwrap();
    let beyond = Mark { end: before[0].end + 1, ..before[0] };
    marks::write(dir.path(), &[beyond, before[1]], true).unwrap();
    for sequence in [12, 13] {
        let node = open(dir.path()).await;
        serves_only(&node, 1, 0, sequence, "was synced: acknowledged data is lost").await;
        let read = node.read_log(PartitionId(0), LogIndex(0), 1).await.unwrap_err();
        assert!(matches!(read, ReadError::Damaged { .. }), "{read}");
        node.shutdown().await;
        assert_eq!(marks::read(dir.path(), count(2)).unwrap()[0], beyond, "its mark is what tells");
    }
}

#[tokio::test]
async fn a_vote_that_is_forgotten_closes_its_partition_only() {
    let dir = made().await;
    let before = marks::read(dir.path(), count(2)).unwrap();
    let later = Mark { term: before[1].term + 1, ..before[1] };
    marks::write(dir.path(), &[before[0], later], true).unwrap();
    let node = open(dir.path()).await;
    serves_only(&node, 0, 1, 12, "its vote is of term").await;
    node.shutdown().await;
}

#[tokio::test]
async fn a_flipped_bit_closes_its_partition_only() {
    let dir = made().await;
    {
        let db = store::Db::open(dir.path(), count(2), false).unwrap();
        store::spoil_entry(&db, PartitionId(0), LogIndex(4));
    }
    let node = open(dir.path()).await;
    serves_only(&node, 1, 0, 12, "partition 0 index 4").await;
    node.shutdown().await;
}

#[tokio::test]
async fn damage_everywhere_refuses_the_folder() {
    let dir = made().await;
    let before = marks::read(dir.path(), count(2)).unwrap();
    let beyond: Vec<Mark> = before.iter().map(|mark| Mark { end: mark.end + 1, ..*mark }).collect();
    marks::write(dir.path(), &beyond, true).unwrap();
    let refused = Node::open(config(dir.path())).await.unwrap_err();
    assert!(matches!(refused, OpenError::Damaged { .. }), "{refused}");
}

#[tokio::test]
async fn a_cut_off_wal_closes_the_partition_whose_end_it_held() {
    let (dir, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let node = open(dir.path()).await;
    assert_eq!(ready(&node).await, Ok(()));
    talk(&node, 0, 10).await;
    talk(&node, 1, 10).await;
    store::copy_folder(dir.path(), killed.path());
    node.shutdown().await;
    // as marked at the latest a second later
    let ends = marks::read(dir.path(), count(2)).unwrap();
    marks::write(killed.path(), &ends, true).unwrap();
    let files = std::fs::read_dir(killed.path().join("db")).unwrap().map(|file| file.unwrap().path());
    let wal = files.filter(|path| path.extension().is_some_and(|found| found == "log")).max().unwrap();
    let damaged = |partition: usize| {
        let report = store::verify(killed.path(), |_| {}).unwrap();
        report.partitions[partition].damage.is_some()
    };
    while !damaged(1) {
        let length = std::fs::metadata(&wal).unwrap().len();
        std::fs::OpenOptions::new().write(true).open(&wal).unwrap().set_len(length - 20).unwrap();
    }
    assert!(!damaged(0));
    let node = open(killed.path()).await;
    serves_only(&node, 0, 1, 12, "acknowledged data is lost").await;
    node.shutdown().await;
}

#[tokio::test]
async fn damage_met_by_a_reader_closes_the_partition() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path()).await;
    assert_eq!(ready(&node).await, Ok(()));
    talk(&node, 0, 10).await;
    talk(&node, 1, 10).await;
    node.spoil(PartitionId(0), LogIndex(4));
    let read = node.read_log(PartitionId(0), LogIndex(0), 1 << 20).await.unwrap_err();
    assert!(matches!(&read, ReadError::Damaged { place, .. } if place.contains("partition 0 index 4")), "{read}");
    let mut role = partition(&node, 0).role.clone();
    tokio::time::timeout(PATIENCE, role.wait_for(|role| *role == Role::Closed)).await.unwrap().unwrap();
    serves_only(&node, 1, 0, 12, "partition 0 index 4").await;
    node.shutdown().await;
}
