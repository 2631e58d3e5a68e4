//! What a crash or a bad disk leaves behind.

use std::{fs, path::PathBuf};

use super::*;
use crate::store::{OpenError, StoredVote, keys};

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

/// The largest file of this kind in a folder's database.
fn largest(dir: &Path, extension: &str) -> PathBuf {
    let files = fs::read_dir(dir.join("db")).unwrap().map(|file| file.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|found| found == extension));
    files.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

fn spoil(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

/// What verify says is wrong, and what opening says.
fn said(dir: &Path) -> (String, Option<String>) {
    let verified = match super::super::verify(dir, |_| {}) {
        Ok(report) => {
            let partitions = report.partitions.iter().filter_map(|partition| partition.damage.clone());
            partitions.chain(report.damage.clone()).collect::<Vec<_>>().join("\n")
        }
        Err(error) => error.to_string(),
    };
    (verified, open(dir, 1).err().map(|error| error.to_string()))
}

#[test]
fn damage_of_a_write_ahead_log_names_its_file_and_byte() {
    let image = killed(20);
    let path = wal(image.path());
    let middle = fs::metadata(&path).unwrap().len() as usize / 2;
    spoil(&path, middle);
    let (verified, opened) = said(image.path());
    assert!(verified.contains(&name(&path)) && verified.contains("at byte"), "{verified}");
    assert_eq!(opened, Some(verified));
}

#[test]
fn damaged_or_missing_files_of_the_database_are_named_by_verify_and_by_opening() {
    let made = killed(20);
    drop(open(made.path(), 1).unwrap());
    let current = fs::read_to_string(made.path().join("db/CURRENT")).unwrap();
    let manifest = PathBuf::from("db").join(current.trim());
    let table = PathBuf::from("db").join(name(&largest(made.path(), "sst")));
    let victims = [PathBuf::from("db/CURRENT"), manifest, table, "marks".into(), "identity".into()];
    for (victim, mark) in victims.iter().flat_map(|victim| [(victim, 0), (victim, 20)]) {
        for how in ["flip", "cut", "remove"] {
            let image = tempfile::tempdir().unwrap();
            super::super::copy_folder(made.path(), image.path());
            with_mark(image.path(), mark);
            let path = image.path().join(victim);
            let length = fs::metadata(&path).unwrap().len() as usize;
            match how {
                // of a table the footer: its blocks are another test's
                "flip" => spoil(&path, if victim.extension().is_some() { length - 20 } else { length / 2 }),
                "cut" => fs::write(&path, &fs::read(&path).unwrap()[..length / 2]).unwrap(),
                _ => fs::remove_file(&path).unwrap(),
            }
            let (verified, opened) = said(image.path());
            assert!(verified.contains(&name(&path)), "{victim:?} {how}: {verified}");
            let opened = opened.unwrap_or_else(|| panic!("{victim:?} {how}: it opens"));
            assert!(opened.contains(&name(&path)) && opened.contains("is damaged"), "{victim:?} {how}: {opened}");
        }
    }
}

#[test]
fn damage_of_what_is_overwritten_since_is_found_too() {
    let dir = tempfile::tempdir().unwrap();
    let table = {
        let store = open(dir.path(), 1).unwrap();
        let committed = |index| Write::Committed(StoredLogId { term: 1, index: LogIndex(index) });
        store.append(0, 0..3);
        store.writer.handle().write_blocking(PartitionId(0), committed(0)).unwrap();
        store.db.rocks().flush_cf(store.db.meta().unwrap()).unwrap();
        let table = largest(dir.path(), "sst");
        store.writer.handle().write_blocking(PartitionId(0), committed(1)).unwrap();
        table
    };
    spoil(&table, 10);
    let (verified, opened) = said(dir.path());
    assert!(verified.contains("column family meta") && verified.contains(&name(&table)), "{verified}");
    let opened = opened.unwrap();
    assert!(verified.contains(&opened), "verify: {verified}\nopening: {opened}");
}

#[test]
fn a_block_in_the_middle_of_the_log_is_placed_between_its_entries() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open(dir.path(), 1).unwrap();
        store.append(0, 0..5000);
        store.db.rocks().flush_cf(store.db.log(PartitionId(0)).unwrap()).unwrap();
    }
    let table = largest(dir.path(), "sst");
    spoil(&table, fs::metadata(&table).unwrap().len() as usize / 2);
    let (verified, _) = said(dir.path());
    let index = verified.split_once("at or after index ").map(|(_, rest)| rest.split(' ').next().unwrap());
    let index: u64 = index.unwrap_or_else(|| panic!("{verified}")).parse().unwrap();
    assert!((1..4999).contains(&index) && verified.contains(&name(&table)), "{verified}");
}

#[test]
fn a_damaged_value_is_named_by_what_it_is_of() {
    type Spoil = fn(&Store);
    fn flip(store: &Store, family: &rocksdb::ColumnFamily, key: &[u8]) {
        let mut value = store.db.rocks().get_cf(family, key).unwrap().unwrap();
        *value.last_mut().unwrap() ^= 1;
        store.db.rocks().put_cf(family, key, value).unwrap();
    }
    let cases: [(&str, Spoil); 4] = [
        ("partition 0 index 4 ", |store| {
            flip(store, store.db.log(PartitionId(0)).unwrap(), &keys::log_key(LogIndex(4)));
        }),
        ("partition 0 snapshot 6 ", |store| {
            let key = keys::snapshot_key(PartitionId(0), LogIndex(6), 0);
            flip(store, store.db.snapshots().unwrap(), &key);
        }),
        ("partition 0 snapshot 6 ", |store| {
            let key = keys::snapshot_key(PartitionId(0), LogIndex(6), keys::MANIFEST_CHUNK);
            flip(store, store.db.snapshots().unwrap(), &key);
        }),
        ("partition 0 vote ", |store| {
            flip(store, store.db.meta().unwrap(), &keys::meta_key(keys::MetaTag::Vote, PartitionId(0)));
        }),
    ];
    for (place, spoil) in cases {
        let dir = tempfile::tempdir().unwrap();
        {
            let store = open(dir.path(), 1).unwrap();
            let handle = store.writer.handle();
            store.append(0, 0..10);
            handle
                .write_blocking(PartitionId(0), Write::Vote(StoredVote { term: 1, node: 1, committed: true }))
                .unwrap();
            crate::raft::snapshotter::make(
                &store.reader(0),
                testing::count(1),
                &handle,
                LogIndex(6),
                &tokio_util::sync::CancellationToken::new(),
            )
            .unwrap();
            spoil(&store);
        }
        let (verified, _) = said(dir.path());
        assert!(verified.starts_with(place), "{place}: {verified}");
    }
}
