//! One broker end to end: batches in, entries out, restarts, history.

use std::{path::Path, time::Duration};

use trunkline_proto::{Batch, LogIndex, Offset, Record, Timestamp, limits};

use super::*;
use crate::{
    append::AppendError,
    core::{LoggedEntry, Refusal, Reply, Verdict},
    raft::group::Outcome,
    store,
    tail::TailRead,
    testing::{attach, connection, count, edge, message, opened},
};

fn config(dir: &Path, partitions: u16) -> NodeConfig {
    NodeConfig::new(dir, "test", count(partitions))
}

async fn open(config: NodeConfig) -> Node {
    let node = Node::open(config).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), node.wait_ready()).await.unwrap().unwrap();
    node
}

fn partition(node: &Node, id: u16) -> &PartitionHandle {
    node.partition(PartitionId(id)).unwrap()
}

/// A conversation of edge `e1` in a partition: attached, opened, then messages, each a batch.
pub(super) async fn talk(node: &Node, id: u16, messages: u64) {
    let append = &partition(node, id).append;
    append.append(attach(id)).await.unwrap();
    let connection = connection(id, 1);
    append.append(edge(1, &[opened(connection)])).await.unwrap();
    let mut pending = Vec::new();
    for n in 0..messages {
        let text = format!("message {n}");
        pending.push(append.enqueue(edge(n + 2, &[message(connection, text.as_bytes())])).await.unwrap());
    }
    for (n, pending) in pending.into_iter().enumerate() {
        let appended = pending.await.unwrap().unwrap();
        assert_eq!(appended.outcome().reply, Reply::Edge { last_sequence: n as u64 + 2 });
        assert_eq!(appended.verdict(0), Verdict::Applied);
    }
}

fn digests(node: &Node) -> Vec<(LogIndex, u64, u64)> {
    node.partition_count()
        .iter()
        .map(|id| {
            let state = node.partition(id).unwrap().state.read();
            (state.applied(), state.digest(), state.state_digest())
        })
        .collect()
}

/// Digests without positions: a restart appends a blank entry.
fn contents(node: &Node) -> Vec<u64> {
    digests(node).into_iter().map(|(_, digest, _)| digest).collect()
}

/// Until every partition has as many as are kept.
async fn wait_for_snapshots(node: &Node) {
    let open = node.inner.open.read().clone().unwrap();
    let waiting = async {
        for (reader, _) in &open.readers {
            while store::snapshot::list(reader).unwrap().len() < crate::raft::snapshotter::SNAPSHOTS_KEPT {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap();
}

async fn whole_log(node: &Node, id: u16, bytes: usize) -> Vec<LoggedEntry> {
    let (mut log, mut after) = (Vec::new(), LogIndex(0));
    loop {
        let read = node.read_log(PartitionId(id), after, bytes).await.unwrap().entries;
        let Some(last) = read.last() else { return log };
        after = last.index;
        log.extend(read);
    }
}

#[tokio::test]
async fn a_restart_computes_the_same_state() {
    for partitions in [1, 8] {
        let dir = tempfile::tempdir().unwrap();
        let node = open(config(dir.path(), partitions)).await;
        for id in 0..partitions {
            talk(&node, id, 50).await;
        }
        let before = contents(&node);
        node.shutdown().await;
        let node = open(config(dir.path(), partitions)).await;
        assert_eq!(contents(&node), before);
        for id in 0..partitions {
            // the edge goes on where it stopped, and a repeat is refused
            let append = &partition(&node, id).append;
            let repeat = append.append(edge(51, &[message(connection(id, 1), b"again")])).await.unwrap();
            assert_eq!(repeat.verdict(0), Verdict::Refused(Refusal::OutOfSequence));
            let next = append.append(edge(52, &[message(connection(id, 1), b"next")])).await.unwrap();
            assert_eq!(next.verdict(0), Verdict::Applied);
        }
        node.shutdown().await;
        let report = store::verify(dir.path(), |_| {}).unwrap();
        assert!(report.is_sound(), "{report:?}");
        assert_eq!(report.partitions.len(), usize::from(partitions));
        assert_eq!(report.partitions[0].records, 54);
        assert_eq!(report.partitions[0].refused, 1);
    }
}

#[tokio::test]
async fn batches_keep_their_order_and_share_entries() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(config(dir.path(), 1)).await;
    talk(&node, 0, 2000).await;
    let log = whole_log(&node, 0, 10_000).await;
    let messages: Vec<_> = log
        .iter()
        .flat_map(|entry| entry.records().collect::<Vec<_>>())
        .filter(|(_, record)| record.kind == trunkline_proto::RecordKind::MessageReceived)
        .map(|(offset, record)| (offset, record.decode::<trunkline_proto::v1::MessageReceived>().unwrap().payload))
        .collect();
    assert_eq!(messages.len(), 2000);
    for (n, (_, payload)) in messages.iter().enumerate() {
        assert_eq!(*payload, format!("message {n}").as_bytes());
    }
    assert!(messages.is_sorted_by_key(|(offset, _)| *offset));
    assert!(log.len() < 1500, "{} entries: what waits shares one", log.len());
    assert!(log.is_sorted_by_key(|entry| entry.entry.time));
    node.shutdown().await;
}

#[tokio::test]
async fn the_log_on_disk_and_the_tail_say_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(NodeConfig { tail_bytes: 64 << 10, ..config(dir.path(), 1) }).await;
    talk(&node, 0, 300).await;
    let append = &partition(&node, 0).append;
    let refused = append.append(edge(9, &[message(connection(0, 1), b"old")])).await.unwrap();
    assert_eq!(refused.entry.logged.refused, [(0, Refusal::OutOfSequence)]);
    let log = whole_log(&node, 0, 1).await;
    let last = log.last().unwrap();
    assert_eq!(*last, refused.entry.logged, "its refusal is seen whether it is on disk yet or not");
    let tail = &partition(&node, 0).tail;
    let mut after = LogIndex(0);
    while matches!(tail.read(after, 1), TailRead::Behind) {
        after = LogIndex(after.0 + 1);
    }
    let TailRead::Entries(entries) = tail.read(after, usize::MAX) else { panic!("an empty tail") };
    let entries: Vec<_> = entries.iter().map(|entry| entry.logged.clone()).collect();
    assert_eq!(entries, log[log.len() - entries.len()..]);
    node.shutdown().await;
}

#[tokio::test]
async fn a_state_inside_an_entry_ends_with_its_record() {
    let dir = tempfile::tempdir().unwrap();
    // a snapshot of each entry: one that covers the rest of the entry must not be taken
    let every = SnapshotEvery { entries: 1, bytes: u64::MAX };
    let node = open(NodeConfig { snapshot_every: every, ..config(dir.path(), 1) }).await;
    let append = &partition(&node, 0).append;
    append.append(attach(0)).await.unwrap();
    let records: Vec<Record> = (0..4).map(|n| opened(connection(0, n))).collect();
    let index = append.append(edge(1, &records)).await.unwrap().entry.logged.index;
    append.append(edge(2, &[opened(connection(0, 4))])).await.unwrap();
    wait_for_snapshots(&node).await;
    let open_at = async |position| {
        let end = Offset::new(index, position);
        let (state, through) = node.state_at(PartitionId(0), Moment::Offset(end)).await.unwrap();
        assert_eq!((through, state.applied()), (end, index));
        (state.connections_after(None).count(), state.state_digest())
    };
    for position in 0..4 {
        assert_eq!(open_at(position).await.0, usize::from(position) + 1);
    }
    assert_eq!(open_at(3).await, open_at(u16::MAX).await, "behind the last record it is the whole entry");
    node.shutdown().await;
}

#[tokio::test]
async fn snapshots_and_a_full_replay_agree() {
    let dir = tempfile::tempdir().unwrap();
    let every = SnapshotEvery { entries: 20, bytes: u64::MAX };
    let node = open(NodeConfig { snapshot_every: every, ..config(dir.path(), 2) }).await;
    for id in 0..2 {
        partition(&node, id).append.append(attach(id)).await.unwrap();
        for n in 0..120 {
            let id = (id, connection(id, n as u32));
            partition(&node, id.0).append.append(edge(n + 1, &[opened(id.1), message(id.1, b"x")])).await.unwrap();
        }
    }
    wait_for_snapshots(&node).await;
    let before = contents(&node);
    // history at each entry is what applying the log up to it gives
    let mut model = core::Partition::new(PartitionId(1), count(2));
    for entry in whole_log(&node, 1, 1 << 20).await {
        let applied = model.apply(entry.index, &entry.entry);
        assert_eq!(applied.refused, entry.refused);
        if entry.index.0 % 13 == 0 {
            let (state, offset) =
                node.state_at(PartitionId(1), Moment::Offset(Offset::end_of(entry.index))).await.unwrap();
            assert_eq!(offset, Offset::end_of(entry.index));
            assert_eq!(state, model);
            let (state, _) = node.state_at(PartitionId(1), Moment::Time(entry.entry.time)).await.unwrap();
            assert!(state.applied() >= entry.index);
        }
    }
    let future = node.state_at(PartitionId(1), Moment::Offset(Offset::new(LogIndex(100_000), 0))).await;
    assert!(matches!(future, Err(ReadError::Future { .. })));
    let (empty, _) = node.state_at(PartitionId(1), Moment::Time(Timestamp(5))).await.unwrap();
    assert_eq!(empty.digest(), core::Partition::new(PartitionId(1), count(2)).digest());
    node.shutdown().await;
    let mut told = Vec::new();
    let report = store::verify(dir.path(), |progress| told.push((progress.partition.0, progress.index))).unwrap();
    assert_eq!(told.last().unwrap().0, 1, "progress is told");
    assert!(report.is_sound(), "{report:?}");
    assert!(report.partitions.iter().all(|partition| partition.snapshots >= 2), "{report:?}");
    let digests: Vec<_> = report.partitions.iter().map(|partition| partition.digest).collect();
    assert_eq!(digests, before, "a replay of everything");
    let node = open(config(dir.path(), 2)).await;
    assert_eq!(contents(&node), before, "a restart from the snapshot");
    assert!(matches!(partition(&node, 0).tail.read(LogIndex(1), 1), TailRead::Behind));
    node.shutdown().await;
}

#[tokio::test]
async fn a_killed_broker_loses_nothing_it_acknowledged() {
    let (dir, image) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let node = open(config(dir.path(), 2)).await;
    talk(&node, 0, 30).await;
    talk(&node, 1, 30).await;
    // as a kill leaves it: no shutdown, marks and committed positions behind
    crate::store::copy_folder(dir.path(), image.path());
    let before = contents(&node);
    let killed = open(config(image.path(), 2)).await;
    assert_eq!(contents(&killed), before);
    killed.shutdown().await;
    node.shutdown().await;
}

#[tokio::test]
async fn a_failed_write_closes_every_partition_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(config(dir.path(), 3)).await;
    talk(&node, 0, 3).await;
    let writer = node.inner.running.lock().as_ref().unwrap().writer.handle();
    writer.fail_next();
    let failed = partition(&node, 0).append.append(edge(5, &[message(connection(0, 1), b"lost")])).await;
    assert!(matches!(failed, Err(AppendError::Unknown { .. } | AppendError::Closed { .. })), "{failed:?}");
    let mut role = partition(&node, 0).role.clone();
    tokio::time::timeout(Duration::from_secs(5), role.wait_for(|role| *role == Role::Closed)).await.unwrap().unwrap();
    assert!(node.health().unwrap_err().contains("injected"));
    let after = partition(&node, 0).append.append(edge(5, &[message(connection(0, 1), b"lost")])).await;
    assert!(matches!(after, Err(AppendError::Closed { .. })), "{after:?}");
    let other = partition(&node, 1).append.append(attach(1)).await;
    assert!(matches!(other, Err(AppendError::Unknown { .. } | AppendError::Closed { .. })), "{other:?}");
    let records: usize = whole_log(&node, 0, 1 << 20).await.iter().map(|entry| entry.records().count()).sum();
    assert_eq!(records, 5, "reads go on");
    node.shutdown().await;
    let node = open(config(dir.path(), 3)).await;
    talk_on(&node).await;
    node.shutdown().await;
}

async fn talk_on(node: &Node) {
    let appended = partition(node, 0).append.append(edge(5, &[message(connection(0, 1), b"again")])).await.unwrap();
    assert_eq!(appended.verdict(0), Verdict::Applied, "what failed was never in the log");
}

#[tokio::test]
async fn what_is_too_large_is_refused_and_what_is_large_stands_alone() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(config(dir.path(), 1)).await;
    let append = &partition(&node, 0).append;
    append.append(attach(0)).await.unwrap();
    append.append(edge(1, &[opened(connection(0, 1))])).await.unwrap();
    let large = message(connection(0, 1), &vec![b'x'; limits::MESSAGE_BYTES_MAX]);
    let appended = append.append(edge(2, std::slice::from_ref(&large))).await.unwrap();
    assert_eq!((appended.verdict(0), appended.entry.logged.entry.batches.len()), (Verdict::Applied, 1));
    let two = [large.clone(), large];
    assert!(matches!(append.append(edge(3, &two)).await, Err(AppendError::TooLarge { .. })));
    // fits the frame, but no reader of the log would take the record
    let oversized = message(connection(0, 1), &vec![b'x'; limits::RECORD_BYTES_MAX]);
    assert!(oversized.bytes().len() < limits::FRAME_BYTES_MAX);
    let small = message(connection(0, 1), b"small");
    let refused = append.append(edge(3, &[small, oversized])).await;
    assert!(matches!(refused, Err(AppendError::TooLarge { limit: limits::RECORD_BYTES_MAX, .. })), "{refused:?}");
    let many: Vec<Record> = (0..=4096).map(|_| message(connection(0, 1), b"")).collect();
    let many = Batch { source: edge(3, &[]).source, count: 4097, records: many[0].bytes().clone() };
    assert!(matches!(append.append(many).await, Err(AppendError::TooLarge { .. })));
    node.shutdown().await;
}

#[tokio::test]
async fn after_a_shutdown_everything_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(config(dir.path(), 1)).await;
    talk(&node, 0, 3).await;
    node.shutdown().await;
    node.shutdown().await;
    assert!(matches!(partition(&node, 0).append.append(attach(0)).await, Err(AppendError::Closed { .. })));
    assert!(matches!(node.read_log(PartitionId(0), LogIndex(0), 1).await, Err(ReadError::Store(_))));
    assert_eq!(*partition(&node, 0).role.borrow(), Role::Closed);
    assert_eq!(node.health(), Ok(()), "a shutdown is no failure");
    // the folder is free at once, with the old handles still around
    let again = open(config(dir.path(), 1)).await;
    assert!(matches!(Node::open(config(dir.path(), 1)).await, Err(OpenError::Locked { .. })));
    again.shutdown().await;
}

#[tokio::test]
async fn a_broker_alone_leads_on_after_a_pause() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(config(dir.path(), 1)).await;
    talk(&node, 0, 3).await;
    let role = *partition(&node, 0).role.borrow();
    // longer than any election timeout and lease: there is no other condition to wait for than that nothing happens
    tokio::time::sleep(Duration::from_millis(3500)).await;
    assert_eq!(*partition(&node, 0).role.borrow(), role);
    let appended = partition(&node, 0).append.append(edge(5, &[message(connection(0, 1), b"awake")])).await.unwrap();
    assert_eq!(appended.verdict(0), Verdict::Applied);
    node.shutdown().await;
}

#[tokio::test]
async fn an_entry_proposed_in_another_term_never_happened() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(config(dir.path(), 1)).await;
    let group = node.inner.running.lock().as_ref().unwrap().groups[0].clone();
    let Role::Leader { term } = *group.role().borrow() else { panic!("no leader") };
    let mut builder = trunkline_proto::EntryBuilder::new(Timestamp(1), 64);
    builder.push(&attach(0));
    let entry = builder.finish();
    let outcome = group.propose(term + 1, entry.clone()).await.unwrap().await;
    assert!(matches!(outcome, Outcome::NotLeader { .. }), "{outcome:?}");
    assert!(whole_log(&node, 0, 1).await.is_empty());
    let outcome = group.propose(term, entry).await.unwrap().await;
    assert!(matches!(outcome, Outcome::Applied(_)), "{outcome:?}");
    drop(group);
    node.shutdown().await;
}

#[tokio::test]
async fn an_entry_that_does_not_parse_stops_its_partition_only() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(config(dir.path(), 2)).await;
    talk(&node, 1, 1).await;
    let group = node.inner.running.lock().as_ref().unwrap().groups[0].clone();
    let Role::Leader { term } = *group.role().borrow() else { panic!("no leader") };
    let outcome = group.propose(term, bytes::Bytes::from_static(b"no entry")).await.unwrap().await;
    assert!(matches!(outcome, Outcome::Unknown), "{outcome:?}");
    let mut role = partition(&node, 0).role.clone();
    tokio::time::timeout(Duration::from_secs(5), role.wait_for(|role| *role == Role::Closed)).await.unwrap().unwrap();
    let reason = node.health().unwrap_err();
    assert!(reason.contains("partition 0 index"), "{reason}");
    let appended = partition(&node, 1).append.append(edge(3, &[message(connection(1, 1), b"on")])).await.unwrap();
    assert_eq!(appended.verdict(0), Verdict::Applied);
    drop(group);
    node.shutdown().await;
    let damage = store::verify(dir.path(), |_| {}).unwrap().partitions[0].damage.clone().unwrap();
    assert!(damage.contains("partition 0 index"), "{damage}");
}

/// Opens a folder whose log is damaged at `index`, and says why it does not become ready, and what verify finds.
async fn refused_with_damage_at(dir: &Path, index: u64) -> (String, String) {
    {
        let db = store::Db::open(dir, count(1), false).unwrap();
        store::spoil_entry(&db, PartitionId(0), LogIndex(index));
    }
    let damage = store::verify(dir, |_| {}).unwrap().partitions[0].damage.clone().unwrap();
    // a replay while opening meets it, or one after it, by how far the log was known to be committed
    let node = match Node::open(config(dir, 1)).await {
        Ok(node) => node,
        Err(error) => return (error.to_string(), damage),
    };
    let ready = tokio::time::timeout(Duration::from_secs(10), node.wait_ready()).await.unwrap();
    node.shutdown().await;
    (ready.unwrap_err(), damage)
}

#[tokio::test]
async fn a_broker_does_not_become_ready_on_a_damaged_entry_and_names_it_as_verify_does() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(config(dir.path(), 1)).await;
    talk(&node, 0, 20).await;
    node.shutdown().await;
    let (refused, damage) = refused_with_damage_at(dir.path(), 3).await;
    assert!(damage.starts_with("partition 0 index 3 is damaged: checksum"), "{damage}");
    assert!(refused.contains(&damage), "verify: {damage}\nbroker: {refused}");
}

#[tokio::test]
async fn a_disk_that_hangs_is_asked_by_one_however_many_want_to_know() {
    const SHORT: Duration = Duration::from_millis(20);
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), 1);
    config.snapshot_every.bytes = 1;
    let node = open(config).await;
    talk(&node, 0, 3).await;
    let patient = || node.newest_snapshots(Duration::from_secs(10));
    while patient().await.snapshots.is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(patient().await.unanswered, None);
    let disk = Arc::clone(&node.inner.newest.disk);
    let (asked, hanging) = (|| disk.0.load(std::sync::atomic::Ordering::SeqCst), disk.1.lock().await);
    let before = asked();
    for _ in 0..10 {
        let mut waiting = tokio::task::JoinSet::new();
        for node in [&node; 10].map(Node::clone) {
            waiting.spawn(async move { node.newest_snapshots(SHORT).await });
        }
        for newest in waiting.join_all().await {
            assert!(newest.snapshots.len() == 1 && newest.unanswered.is_some_and(|since| since >= SHORT), "{newest:?}");
        }
    }
    assert!(asked() <= before + 1, "one thread hangs with the disk");
    drop(hanging);
    assert_eq!(patient().await.unanswered, None);
    node.shutdown().await;
}
