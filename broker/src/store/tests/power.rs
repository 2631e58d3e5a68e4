//! What a crash or a bad disk leaves behind.

use std::{fs, path::PathBuf};

use super::*;
use crate::store::OpenError;

/// The newest write-ahead log of a folder.
fn wal(dir: &Path) -> PathBuf {
    let files = fs::read_dir(dir.join("db")).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "log")).max().unwrap()
}

/// A folder as a kill leaves it: copied while it is open. Its marks are as old as a kill makes them.
fn killed(entries: u64) -> tempfile::TempDir {
    let (dir, image) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(dir.path(), 1).unwrap();
    (0..entries).for_each(|index| store.append(0, index..index + 1));
    super::super::copy_folder(dir.path(), image.path());
    image
}

fn with_mark(image: &Path, end: u64) {
    marks::write(image, &[Mark { end, term: 0 }], true).unwrap();
}

#[test]
fn a_killed_broker_has_everything_it_synced() {
    let image = killed(20);
    with_mark(image.path(), 20);
    let store = open(image.path(), 1).unwrap();
    assert_eq!(store.reader(0).last().unwrap().unwrap().index, LogIndex(19));
    // what a kill left in the page cache only counts as acknowledged from now on: opening must have written it down
    assert_eq!(
        store
            .db
            .rocks()
            .property_int_value_cf(store.db.log(PartitionId(0)).unwrap(), "rocksdb.num-entries-active-mem-table")
            .unwrap(),
        Some(0)
    );
    let files = fs::read_dir(image.path().join("db")).unwrap().map(|file| file.unwrap().path());
    assert!(files.filter(|path| path.extension().is_some_and(|extension| extension == "sst")).count() > 0);
}

#[test]
fn a_torn_tail_is_forgiven_where_nothing_of_it_was_acknowledged() {
    let image = killed(20);
    let path = wal(image.path());
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
    with_mark(image.path(), 19);
    let store = open(image.path(), 1).unwrap();
    assert_eq!(store.reader(0).last().unwrap().unwrap().index, LogIndex(18));
    store.append(0, 19..25);
    assert_eq!(store.reader(0).entries(LogIndex(0), LogIndex(25), 1 << 20).unwrap().len(), 25);
}

#[test]
fn a_log_that_ends_before_its_mark_is_refused() {
    let image = killed(20);
    let path = wal(image.path());
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
    with_mark(image.path(), 20);
    let refused = open(image.path(), 1).err().unwrap();
    let OpenError::Damaged { place, reason } = &refused else { panic!("{refused}") };
    assert!(place.contains("partition 0") && reason.contains("index 19 was synced"), "{refused}");
    let report = super::super::verify(image.path(), |_| {}).unwrap();
    assert!(report.partitions[0].damage.as_ref().unwrap().contains("index 19 was synced"));
}

#[test]
fn a_flipped_bit_in_the_middle_of_the_log_refuses_to_open() {
    let image = killed(20);
    with_mark(image.path(), 0);
    let path = wal(image.path());
    let bytes = fs::read(&path).unwrap();
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 0x10;
    fs::write(&path, flipped).unwrap();
    let refused = open(image.path(), 1).err().unwrap();
    assert!(matches!(refused, OpenError::Damaged { .. }), "{refused}");
}

#[test]
fn a_flipped_bit_in_a_flushed_file_is_found_by_readers_and_verify() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open(dir.path(), 1).unwrap();
        store.append(0, 0..200);
        store.db.rocks().flush_cf(store.db.log(PartitionId(0)).unwrap()).unwrap();
    }
    let files = fs::read_dir(dir.path().join("db")).unwrap().map(|file| file.unwrap().path());
    let table = files.filter(|path| path.extension().is_some_and(|extension| extension == "sst"));
    let table = table.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = fs::read(&table).unwrap();
    bytes[100] ^= 1;
    fs::write(&table, bytes).unwrap();
    let report = super::super::verify(dir.path(), |_| {}).unwrap();
    assert!(!report.is_sound());
    let damage = report.partitions[0].damage.clone().unwrap();
    assert!(damage.contains("partition 0") && damage.contains("index 0"), "{damage}");
    assert!(damage.to_lowercase().contains("checksum") || damage.contains("Corruption"), "{damage}");
}

#[test]
fn a_missing_entry_is_found() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open(dir.path(), 1).unwrap();
        store.append(0, 0..10);
        store.db.rocks().delete_cf(store.db.log(PartitionId(0)).unwrap(), 4_u64.to_be_bytes()).unwrap();
        let damage = store.reader(0).entries(LogIndex(0), LogIndex(10), 1 << 20).unwrap_err();
        assert!(damage.to_string().contains("partition 0 index 4"), "{damage}");
    }
    let report = super::super::verify(dir.path(), |_| {}).unwrap();
    assert!(report.partitions[0].damage.as_ref().unwrap().contains("partition 0 index 4"));
}
