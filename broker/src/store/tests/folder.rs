//! Whose folder it is, and whether all of it is there.

use std::fs;

use super::*;
use crate::{
    core::Partition,
    store::{OpenError, StoredVote, snapshot},
};

#[test]
fn a_log_survives_being_reopened() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open(dir.path(), 2).unwrap();
        store.append(0, 0..5);
        store.append(1, 0..3);
        let vote = StoredVote { term: 4, node: 1, committed: true };
        store.writer.handle().write_blocking(PartitionId(1), Write::Vote(vote)).unwrap();
        let committed = StoredLogId { term: 1, index: LogIndex(2) };
        store.writer.handle().write_blocking(PartitionId(1), Write::Committed(committed)).unwrap();
    }
    let store = open(dir.path(), 2).unwrap();
    assert_eq!(store.reader(0).last().unwrap().unwrap().index, LogIndex(4));
    assert_eq!(store.reader(0).entries(LogIndex(1), LogIndex(4), 1 << 20).unwrap(), [entry(1), entry(2), entry(3)]);
    assert_eq!(store.reader(0).vote().unwrap(), None);
    assert_eq!(store.reader(1).vote().unwrap(), Some(StoredVote { term: 4, node: 1, committed: true }));
    assert_eq!(store.reader(1).committed().unwrap(), Some(StoredLogId { term: 1, index: LogIndex(2) }));
    assert_eq!(
        store.reader(1).entries(LogIndex(0), LogIndex(9), 1).unwrap().len(),
        1,
        "at least one, whatever the bound"
    );
}

#[test]
fn a_truncated_log_ends_where_it_was_cut_and_reopens() {
    let dir = tempfile::tempdir().unwrap();
    for (length, keep) in [(10, 4), (400, 6)] {
        {
            let store = open(dir.path(), 1).unwrap();
            let begin = store.reader(0).last().unwrap().map_or(0, |last| last.index.0 + 1);
            store.append(0, begin..length);
            let last = LogIndex(length - 1);
            let cut = Write::Truncate { keep: Some(LogIndex(keep)), last };
            store.writer.handle().write_blocking(PartitionId(0), cut).unwrap();
        }
        // its mark was lowered with it, or this would be refused
        let store = open(dir.path(), 1).unwrap();
        assert_eq!(store.reader(0).last().unwrap().unwrap().index, LogIndex(keep));
    }
}

#[test]
fn only_one_process_has_a_folder_open() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 1).unwrap();
    assert!(matches!(open(dir.path(), 1), Err(OpenError::Locked { .. })));
    assert!(matches!(super::super::verify(dir.path(), |_| {}), Err(OpenError::Locked { .. })));
    drop(store);
    open(dir.path(), 1).unwrap();
}

#[test]
fn a_foreign_folder_is_refused_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), 2).unwrap());
    let others = [
        Identity { cluster: "other".into(), ..identity(2) },
        Identity { node: 2, ..identity(2) },
        Identity { partitions: testing::count(3), ..identity(2) },
    ];
    for other in others {
        assert!(matches!(identity::open(dir.path(), &other), Err(OpenError::Identity { .. })), "{other:?}");
    }
    let path = dir.path().join("identity");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("format 1", "format 9")).unwrap();
    assert!(matches!(open(dir.path(), 2), Err(OpenError::Format { found: 9, .. })));
    fs::write(&path, text.replace("node 1", "node 7")).unwrap();
    assert!(matches!(open(dir.path(), 2), Err(OpenError::Damaged { .. })), "edited by hand");
    fs::remove_file(&path).unwrap();
    assert!(matches!(open(dir.path(), 2), Err(OpenError::Damaged { .. })), "a log without identity");
}

#[test]
fn a_log_that_is_gone_is_not_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open(dir.path(), 1).unwrap();
        store.append(0, 0..3);
    }
    fs::remove_dir_all(dir.path().join("db")).unwrap();
    assert!(matches!(open(dir.path(), 1), Err(OpenError::Damaged { .. })));
}

#[test]
fn missing_or_damaged_marks_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open(dir.path(), 1).unwrap();
        store.append(0, 0..3);
    }
    let path = dir.path().join("marks");
    let bytes = fs::read(&path).unwrap();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        fs::write(&path, damaged).unwrap();
        assert!(matches!(open(dir.path(), 1), Err(OpenError::Damaged { .. })), "byte {at}");
    }
    fs::remove_file(&path).unwrap();
    assert!(matches!(open(dir.path(), 1), Err(OpenError::Damaged { .. })));
}

#[test]
fn a_vote_that_is_forgotten_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), 1).unwrap());
    marks::write(dir.path(), &[Mark { end: 0, term: 3 }], true).unwrap();
    let refused = open(dir.path(), 1).err().unwrap();
    assert!(matches!(&refused, OpenError::Damaged { reason, .. } if reason.contains("term 3")), "{refused}");
}

#[test]
fn the_newest_whole_snapshot_is_found_and_older_ones_go() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 2).unwrap();
    let (writer, reader) = (store.writer.handle(), store.reader(0));
    let state: Vec<u8> = (0..1_000_000_u32).map(|n| n as u8).collect();
    let manifest = |index| snapshot::Manifest {
        last: StoredLogId { term: 1, index: LogIndex(index) },
        membership: (None, vec![1, 2, 3]),
        digest: index,
        state_digest: 2,
        bytes: state.len() as u64,
        crc: crc32fast::hash(&state),
    };
    assert_eq!(snapshot::newest(&reader, LogIndex(u64::MAX)).unwrap(), None);
    for index in [10, 20, 30] {
        snapshot::write(&writer, PartitionId(0), &manifest(index), &state).unwrap();
        snapshot::retain(&writer, &reader, 2, None).unwrap();
    }
    // one that was not finished
    let value = crate::store::record::encode_chunk(PartitionId(0), LogIndex(40), 0, b"half");
    let half = Write::Snapshot { index: LogIndex(40), chunk: 0, value };
    writer.write_blocking(PartitionId(0), half).unwrap();
    assert_eq!(snapshot::newest(&reader, LogIndex(u64::MAX)).unwrap(), Some(manifest(30)));
    assert_eq!(snapshot::newest(&reader, LogIndex(29)).unwrap(), Some(manifest(20)));
    assert_eq!(snapshot::newest(&reader, LogIndex(19)).unwrap(), None, "the third but newest is gone");
    assert_eq!(snapshot::load(&reader, &manifest(30)).unwrap(), state);
    assert_eq!(snapshot::newest(&store.reader(1), LogIndex(u64::MAX)).unwrap(), None, "another partition's");
    let wrong = snapshot::Manifest { crc: 1, ..manifest(30) };
    assert!(snapshot::load(&reader, &wrong).is_err());
}

#[test]
fn an_entry_is_found_by_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 1).unwrap();
    let blank = |index| StoredEntry { id: StoredLogId { term: 1, index: LogIndex(index) }, payload: Payload::Blank };
    // 0 and 1, 5 to 8 and the last carry no stamp
    let entries = (0..20)
        .map(|index| if index < 2 || (5..9).contains(&index) || index == 19 { blank(index) } else { entry(index) });
    let entries: Vec<_> = entries.collect();
    store.writer.handle().write_blocking(PartitionId(0), Write::Entries(entries.clone())).unwrap();
    for time in 990..1030 {
        let stamped = entries.iter().filter(|entry| matches!(entry.payload, Payload::Entry(_)));
        let expected = stamped.filter(|entry| parse(entry).time <= Timestamp(time)).map(|entry| entry.id.index).max();
        let found = store.reader(0).index_at(LogIndex(0), LogIndex(19), Timestamp(time)).unwrap();
        assert_eq!(found, expected, "at {time}");
    }
}

#[test]
fn closed_connections_are_found_until_their_block_of_the_log_is_trimmed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 2).unwrap();
    let (early, late) = (LogIndex(5), LogIndex((1 << 16) + 5));
    let (one, other) = (testing::connection(0, 1), testing::connection(0, 2));
    let opening = |time| trunkline_proto::v1::Opening { time, ..Default::default() };
    let write = |write| store.writer.handle().write_blocking(PartitionId(0), write).unwrap();
    write(Write::Closed { index: early, closed: [(one, opening(1))].into() });
    write(Write::Closed { index: late, closed: [(other, opening(2))].into() });
    let found = |id, first| store.reader(0).closed(id, first, late).unwrap().map(|opening| opening.time);
    assert_eq!((found(one, LogIndex(0)), found(other, LogIndex(0)), found(other, late)), (Some(1), Some(2), Some(2)));
    assert_eq!(found(one, late), None, "looked for in later blocks only");
    assert_eq!(store.reader(1).closed(one, LogIndex(0), late).unwrap(), None, "another partition's");
    write(Write::Trim(LogIndex((1 << 16) - 2)));
    assert_eq!(found(one, LogIndex(0)), Some(1), "something of the block is left");
    write(Write::Trim(LogIndex((1 << 16) - 1)));
    assert_eq!((found(one, LogIndex(0)), found(other, LogIndex(0))), (None, Some(2)));
}

#[test]
fn a_folder_of_before_closed_connections_were_kept_opens_and_verifies() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), 1).unwrap().append(0, 0..5);
    let path = dir.path().join(identity::DB);
    let names = rocksdb::DB::list_cf(&rocksdb::Options::default(), &path).unwrap();
    let mut db = rocksdb::DB::open_cf(&rocksdb::Options::default(), &path, &names).unwrap();
    db.drop_cf(crate::store::keys::CF_CLOSED).unwrap();
    drop(db);
    assert!(crate::store::verify(dir.path(), |_| {}).unwrap().is_sound());
    let store = open(dir.path(), 1).unwrap();
    assert_eq!(store.reader(0).last().unwrap().unwrap().index, LogIndex(4));
    assert_eq!(store.reader(0).closed(testing::connection(0, 1), LogIndex(0), LogIndex(4)).unwrap(), None);
}

#[test]
fn a_folder_with_a_snapshot_of_version_1_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 1).unwrap();
    let writer = store.writer.handle();
    let (one, other) = (testing::connection(0, 1), testing::connection(0, 2));
    let batches = [
        testing::attach(0),
        testing::edge(1, &[testing::opened(one)]),
        testing::edge(2, &[testing::message(one, b"hi")]),
        testing::edge(3, &[testing::opened(other)]),
    ];
    let mut state = Partition::new(PartitionId(0), testing::count(1));
    for (index, batch) in (0_u64..).zip(batches) {
        let mut builder = EntryBuilder::new(Timestamp(10_000_000 * (1 + index)), 256);
        builder.push(&batch);
        let id = StoredLogId { term: 1, index: LogIndex(index) };
        let entry = StoredEntry { id, payload: Payload::Entry(builder.finish()) };
        assert!(state.apply(id.index, &parse(&entry)).refused.is_empty());
        writer.write_blocking(PartitionId(0), Write::Entries(vec![entry])).unwrap();
        let bytes = match index {
            2 => testing::as_version_1(&state, &[one]),
            3 => state.encode(),
            _ => continue,
        };
        let state_digest = xxhash_rust::xxh3::xxh3_64(&bytes);
        let (size, crc) = (bytes.len() as u64, crc32fast::hash(&bytes));
        let (membership, digest) = ((None, vec![1]), state.digest());
        let manifest = snapshot::Manifest { last: id, membership, digest, state_digest, bytes: size, crc };
        snapshot::write(&writer, PartitionId(0), &manifest, &bytes).unwrap();
        // it goes on from there
        state = Partition::decode(&bytes).unwrap();
    }
    drop(store);
    let report = crate::store::verify(dir.path(), |_| {}).unwrap();
    assert_eq!((report.is_sound(), report.partitions[0].snapshots), (true, 2), "{report:?}");
}
