//! Opens RocksDB for an append-only log that is synced at every write (reference: dependencies 2, costs A5).

use std::{fmt, fs, path::Path};

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode, Options,
    ReadOptions,
};
use trunkline_proto::{PartitionCount, PartitionId};

use super::{
    error::{OpenError, StoreError, blamed},
    files::{self, damaged},
    identity, keys, wal,
};
use crate::controls;

/// All memtables together: with eight partitions files become 16 to 32 MB (costs A5).
const MEMTABLE_BYTES: usize = 192 << 20;
/// Largest memtable of one column family.
const MEMTABLE_BYTES_MAX: usize = 64 << 20;
/// WALs are kept for the column family that flushes last; beyond this it is flushed, so that a quiet partition does not pin them.
const WAL_BYTES_MAX: u64 = 512 << 20;
/// Blocks of history that readers share.
const BLOCK_CACHE_BYTES: usize = 64 << 20;
/// "Never": a log that stalls is worse than one whose level 0 is deep.
const NEVER: i32 = 1 << 30;
/// Names the manifest RocksDB begins with.
const CURRENT: &str = "CURRENT";

/// An open database. Reads may come from any thread that may block; writes go through the writer only.
pub struct Db {
    rocks: DB,
    logs: Vec<String>,
}

impl fmt::Debug for Db {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Db").field("path", &self.rocks.path()).field("partitions", &self.logs.len()).finish()
    }
}

impl Db {
    /// Opens the database in `dir`. With `fresh` it is made, otherwise it and all its column families must exist.
    pub fn open(dir: &Path, partitions: PartitionCount, fresh: bool) -> Result<Self, OpenError> {
        let path = dir.join(identity::DB);
        if !fresh || path.join(CURRENT).exists() || holds_data(&path) {
            check_current(&path)?;
        }
        let mut options = database_options();
        options.create_if_missing(fresh);
        // a crash while it was made leaves some out; they hold nothing then, and the marks know
        options.create_missing_column_families(true);
        let logs: Vec<String> = partitions.iter().map(keys::log_cf).collect();
        let mut rocks = DB::open_cf_descriptors(&options, &path, descriptors(&logs));
        // what RocksDB answers where the file system has no direct IO, among other things
        if rocks.as_ref().is_err_and(|error| error.kind() == rocksdb::ErrorKind::InvalidArgument) {
            options.set_use_direct_io_for_flush_and_compaction(false);
            if let Ok(buffered) = DB::open_cf_descriptors(&options, &path, descriptors(&logs)) {
                tracing::warn!(path = %path.display(), "no direct IO on this file system: expect longer stalls");
                rocks = Ok(buffered);
            }
        }
        let rocks = rocks.map_err(|error| failed(&path, &error))?;
        let db = Self { rocks, logs };
        // what is overwritten since is never looked up, but damage there is damage of the disk; and there is little of it
        db.scrub(keys::CF_META)?;
        Ok(db)
    }

    /// Opens the database of a stopped broker without changing it.
    pub fn open_read_only(dir: &Path, partitions: PartitionCount) -> Result<Self, OpenError> {
        let path = dir.join(identity::DB);
        check_current(&path)?;
        let logs: Vec<String> = partitions.iter().map(keys::log_cf).collect();
        let mut options = database_options();
        options.set_use_direct_io_for_flush_and_compaction(false);
        // a folder of an earlier version has none, and nobody looks for connections in it
        let present = descriptors(&logs).into_iter().filter(|family| family.name() != keys::CF_CLOSED);
        let rocks = DB::open_cf_descriptors_read_only(&options, &path, present, false)
            .map_err(|error| failed(&path, &error))?;
        Ok(Self { rocks, logs })
    }

    /// Reads every block of a column family, those too whose values are overwritten since.
    pub(super) fn scrub(&self, name: &str) -> Result<(), StoreError> {
        let mut options = reading();
        options.fill_cache(false);
        let family = self.rocks.cf_handle(name).ok_or_else(|| missing(name))?;
        let mut iterator = self.rocks.raw_iterator_cf_opt(family, options);
        iterator.seek_to_first();
        while iterator.valid() {
            iterator.next();
        }
        iterator.status().map_err(|error| StoreError::from(error).within(|| format!("column family {name}")))
    }

    pub(super) fn rocks(&self) -> &DB {
        &self.rocks
    }

    /// Column family of a partition's log.
    pub(super) fn log(&self, partition: PartitionId) -> Result<&ColumnFamily, StoreError> {
        let name = self.logs.get(usize::from(partition.0));
        name.and_then(|name| self.rocks.cf_handle(name)).ok_or_else(|| missing(&keys::log_cf(partition)))
    }

    pub(super) fn meta(&self) -> Result<&ColumnFamily, StoreError> {
        self.rocks.cf_handle(keys::CF_META).ok_or_else(|| missing(keys::CF_META))
    }

    pub(super) fn refused(&self) -> Result<&ColumnFamily, StoreError> {
        self.rocks.cf_handle(keys::CF_REFUSED).ok_or_else(|| missing(keys::CF_REFUSED))
    }

    pub(super) fn closed(&self) -> Result<&ColumnFamily, StoreError> {
        self.rocks.cf_handle(keys::CF_CLOSED).ok_or_else(|| missing(keys::CF_CLOSED))
    }

    pub(super) fn snapshots(&self) -> Result<&ColumnFamily, StoreError> {
        self.rocks.cf_handle(keys::CF_SNAPSHOTS).ok_or_else(|| missing(keys::CF_SNAPSHOTS))
    }
}

/// How everything is read: with the checksums of its blocks.
pub(super) fn reading() -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_verify_checksums(!controls::NO_CHECKSUM.is_on());
    options
}

fn missing(name: &str) -> StoreError {
    StoreError::Damaged { place: format!("column family {name}"), reason: "it does not exist".into() }
}

fn failed(path: &Path, error: &rocksdb::Error) -> OpenError {
    let message = error.to_string();
    if error.kind() != rocksdb::ErrorKind::Corruption {
        return OpenError::Io { path: path.display().to_string(), reason: message };
    }
    match blamed(&message) {
        (Some(file), reason) => damaged(&path.join(file), reason),
        (None, reason) => match wal::first_damage(path) {
            Some((file, at)) => damaged(&file, format!("{reason} at byte {at}")),
            None => damaged(path, reason),
        },
    }
}

/// Whether there is more than a crash leaves while a database is made, which writes CURRENT before any of these.
fn holds_data(path: &Path) -> bool {
    let mut files = fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    files.any(|file| Path::new(&file.file_name()).extension().is_some_and(|found| found == "log" || found == "sst"))
}

/// Looks at the two files RocksDB begins with: it takes a missing one for a folder that holds no database, or for one to make.
fn check_current(path: &Path) -> Result<(), OpenError> {
    let current = path.join(CURRENT);
    let bytes = files::read(&current)?.ok_or_else(|| damaged(&current, "it is missing"))?;
    let name = std::str::from_utf8(&bytes).ok().and_then(|text| text.strip_suffix('\n'));
    let number = name.and_then(|name| name.strip_prefix("MANIFEST-"));
    let named = number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()));
    let Some(name) = name.filter(|_| named) else {
        return Err(damaged(&current, "it does not name a manifest"));
    };
    let manifest = path.join(name);
    match manifest.exists() {
        true => Ok(()),
        false => Err(damaged(&manifest, "it is missing, but CURRENT names it")),
    }
}

fn descriptors(logs: &[String]) -> Vec<ColumnFamilyDescriptor> {
    // opened by name alone a column family gets default options (costs, "Traps met"), hence descriptors for each
    let cache = Cache::new_lru_cache(BLOCK_CACHE_BYTES);
    let small = ["default", keys::CF_META, keys::CF_REFUSED, keys::CF_CLOSED, keys::CF_SNAPSHOTS];
    let small = small.into_iter().map(|name| ColumnFamilyDescriptor::new(name, family_options(&cache)));
    small.chain(logs.iter().map(|name| ColumnFamilyDescriptor::new(name, family_options(&cache)))).collect()
}

fn database_options() -> Options {
    let mut options = Options::default();
    options.set_paranoid_checks(true);
    // a torn tail is forgiven; damage before it refuses to open, where the default would silently drop what follows
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_track_and_verify_wals_in_manifest(true);
    options.set_use_direct_io_for_flush_and_compaction(true);
    options.set_db_write_buffer_size(MEMTABLE_BYTES);
    options.set_max_total_wal_size(WAL_BYTES_MAX);
    options.set_max_background_jobs(2);
    options.set_max_open_files(-1);
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(4 << 20);
    options.set_stats_dump_period_sec(0);
    options
}

fn family_options(cache: &Cache) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_block_size(32 << 10);
    blocks.set_format_version(6);
    let mut options = Options::default();
    options.set_block_based_table_factory(&blocks);
    options.set_write_buffer_size(MEMTABLE_BYTES_MAX);
    options.set_max_write_buffer_number(4);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_level_compaction_dynamic_level_bytes(true);
    // never stall the log
    options.set_level_zero_slowdown_writes_trigger(NEVER);
    options.set_level_zero_stop_writes_trigger(NEVER);
    options.set_soft_pending_compaction_bytes_limit(0);
    options.set_hard_pending_compaction_bytes_limit(0);
    options
}
