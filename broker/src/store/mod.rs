//! The only RocksDB: one database per broker, one column family per partition, one thread that writes and syncs.
//!
//! ```text
//! DIR/identity   which cluster, broker and format this folder belongs to (identity.rs)
//! DIR/lock       held by the process that has it open
//! DIR/marks      how far each partition has been synced, to notice a log that lost its end (marks.rs)
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
pub mod snapshot;
#[cfg(test)]
mod tests;
pub mod verify;
pub mod writer;

pub use db::Db;
pub use error::{OpenError, StoreError};
pub use health::Health;
pub use identity::Identity;
pub use reader::Reader;
pub use record::{Payload, StoredEntry, StoredLogId, StoredVote};
pub use snapshot::Manifest;
pub use verify::{Report, verify};
pub use writer::{Handle as WriterHandle, Writer};
