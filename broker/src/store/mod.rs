//! The only RocksDB: one database per broker, one column family per partition, one thread that writes and syncs.
//!
//! ```text
//! DIR/identity   which cluster, broker and format this folder belongs to (identity.rs)
//! DIR/lock       held by the process that has it open
//! DIR/marks      how far each partition has been synced, to notice a log that lost its end (marks.rs)
//! DIR/retired    disks that the cluster was recovered without (retired.rs)
//! DIR/db/        RocksDB (db.rs, keys.rs, record.rs)
//! ```

pub mod db;
pub mod error;
pub mod files;
pub mod health;
pub mod identity;
pub mod keys;
pub mod marks;
pub mod reader;
pub mod record;
pub mod retention;
pub mod retired;
pub mod snapshot;
pub mod space;
#[cfg(test)]
mod tests;
pub mod verify;
pub mod wal;
pub mod write;
pub mod writer;

pub use db::Db;
pub use error::{OpenError, StoreError};
pub use health::Health;
pub use identity::{DiskId, Identity};
pub use reader::Reader;
pub use record::{Payload, StoredEntry, StoredLogId, StoredVote};
pub use snapshot::Manifest;
pub use space::{NoSpace, Space};
pub use verify::{Report, verify};
pub use write::Write;
pub use writer::{Handle as WriterHandle, Writer};

/// Copies a folder while it is open: what a kill would leave.
#[cfg(test)]
pub(crate) fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        match file.file_type().unwrap().is_dir() {
            true => copy_folder(&file.path(), &to.join(file.file_name())),
            false => drop(std::fs::copy(file.path(), to.join(file.file_name())).unwrap()),
        }
    }
}

/// Damages the stored value of an entry below RocksDB's own checksums.
#[cfg(test)]
pub(crate) fn spoil_entry(db: &Db, partition: trunkline_proto::PartitionId, index: trunkline_proto::LogIndex) {
    let (log, key) = (db.log(partition).unwrap(), keys::log_key(index));
    let mut value = db.rocks().get_cf(log, key).unwrap().unwrap();
    *value.last_mut().unwrap() ^= 1;
    db.rocks().put_cf(log, key, value).unwrap();
}
