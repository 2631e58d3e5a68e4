//! One thread, one sync for whoever waits, and the end after a failure.

use std::sync::mpsc;

use super::*;
use crate::store::writer::Closed;

#[tokio::test]
async fn what_waits_from_many_partitions_is_one_write() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 8).unwrap();
    let before = store.db.rocks().latest_sequence_number();
    let writer = store.writer.handle();
    let (sender, done) = mpsc::channel();
    let paused = writer.pause();
    for partition in 0..8 {
        let sender = sender.clone();
        let told = Box::new(move |outcome: Result<(), Closed>| sender.send((partition, outcome)).unwrap());
        writer.submit(PartitionId(partition), Write::Entries(vec![entry(0)]), Some(told)).await;
    }
    drop(paused);
    let told: Vec<_> = (0..8).map(|_| done.recv().unwrap()).collect();
    assert_eq!(told, (0..8).map(|partition| (partition, Ok(()))).collect::<Vec<_>>(), "in the order of their queueing");
    assert_eq!(writer.syncs(), 1);
    assert_eq!(store.db.rocks().latest_sequence_number() - before, 8);
}

#[tokio::test]
async fn a_failed_write_closes_the_store_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 1).unwrap();
    store.append(0, 0..2);
    let writer = store.writer.handle();
    writer.fail_next();
    let entries = |index| Write::Entries(vec![entry(index)]);
    assert!(writer.write(PartitionId(0), entries(2)).await.is_err());
    assert!(writer.write(PartitionId(0), entries(2)).await.is_err(), "a failed sync is never retried into success");
    assert!(store.health.check().unwrap_err().contains("injected"));
    assert_eq!(store.reader(0).last().unwrap().unwrap().index, LogIndex(1), "reads go on");
}

#[tokio::test]
async fn a_stopped_writer_refuses_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), 1).unwrap();
    let writer = store.writer.handle();
    // lazy, without anything after it: the stop carries it out
    let committed = StoredLogId { term: 1, index: LogIndex(7) };
    writer.submit(PartitionId(0), Write::Committed(committed), None).await;
    store.writer.stop();
    assert!(writer.write(PartitionId(0), Write::Entries(vec![entry(0)])).await.is_err());
    assert_eq!(store.reader(0).committed().unwrap(), Some(committed));
    assert_eq!(store.health.check(), Ok(()), "a shutdown is no failure");
}

#[tokio::test]
async fn lazy_writes_ride_with_the_next_sync_and_otherwise_wait_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 1).unwrap();
    let writer = store.writer.handle();
    let (sender, done) = mpsc::channel();
    let told = Box::new(move |outcome: Result<(), Closed>| sender.send(outcome).unwrap());
    let refused = Write::Refused { index: LogIndex(0), refused: [].into() };
    writer.submit(PartitionId(0), refused, Some(told)).await;
    assert_eq!(done.try_recv().ok(), None);
    store.append(0, 0..1);
    assert_eq!(done.recv().unwrap(), Ok(()));
    assert_eq!(writer.syncs(), 1);
}

#[tokio::test]
async fn what_is_known_to_lack_something_stays_so_whatever_was_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), 2).unwrap();
    store.append(0, 0..3);
    let writer = store.writer.handle();
    let (sender, done) = mpsc::channel();
    let paused = writer.pause();
    let doubted = Write::Doubted("broker 2 knows better".into());
    writer.submit(PartitionId(0), doubted, None).await;
    for index in 3..9 {
        let sender = sender.clone();
        let told = Box::new(move |outcome: Result<(), Closed>| sender.send(outcome.is_ok()).unwrap());
        writer.submit(PartitionId(0), Write::Entries(vec![entry(index)]), Some(told)).await;
    }
    writer.submit(PartitionId(1), Write::Entries(vec![entry(0)]), None).await;
    drop(paused);
    let told: Vec<_> = (0..6).map(|_| done.recv().unwrap()).collect();
    assert_eq!(told, [false; 6], "nothing of it is acknowledged any more");
    store.append(1, 1..2);
    assert_eq!(store.health.check(), Ok(()), "the store goes on");
    store.writer.stop();
    assert_eq!(store.reader(0).last().unwrap().unwrap().index, LogIndex(2));
    drop(store);
    let refused = open(dir.path(), 2).err().expect("it lacks something").to_string();
    assert!(refused.contains("partition 0") && refused.contains("broker 2 knows better"), "{refused}");
}
