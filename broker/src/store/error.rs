//! What can be wrong with a data folder, and with reading or writing it.

use trunkline_proto::{LogIndex, PartitionId};

/// Why a data folder cannot be opened. Each asks something else of the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("{path} is in use by another process")]
    Locked {
        /// The folder.
        path: String,
    },
    /// Written by another version.
    #[error("{path} has format {found}; this version reads format {supported}")]
    Format {
        /// The folder.
        path: String,
        /// As written.
        found: u32,
        /// As supported.
        supported: u32,
    },
    /// It belongs to another cluster, or to another broker of this one, or to one with another partition count.
    #[error("{path} belongs to {found}, this broker is {expected}")]
    Identity {
        /// The folder.
        path: String,
        /// As written.
        found: String,
        /// As configured.
        expected: String,
    },
    /// What is on disk is not what was written, or less. The replica must not vote or acknowledge until it is rebuilt.
    #[error("{place} is damaged: {reason}")]
    Damaged {
        /// File, partition and index, as far as known.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// The operating system says no.
    #[error("{path}: {reason}")]
    Io {
        /// The file or folder.
        path: String,
        /// What it said.
        reason: String,
    },
    /// Raft did not start.
    #[error("partition {partition} did not start: {reason}")]
    Raft {
        /// Which.
        partition: PartitionId,
        /// Why.
        reason: String,
    },
}

const ROCKSDB: &str = "RocksDB";

/// Why reading the store failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Bytes on disk are not what was written.
    #[error("{place} is damaged: {reason}")]
    Damaged {
        /// Partition and index.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// RocksDB failed.
    #[error("RocksDB: {0}")]
    Rocks(String),
    /// The blocking task was cancelled or panicked.
    #[error("a background task ended: {0}")]
    Task(String),
}

impl StoreError {
    /// Damage of one log entry.
    pub fn at(partition: PartitionId, index: LogIndex, reason: impl Into<String>) -> Self {
        Self::Damaged { place: format!("partition {partition} index {index}"), reason: reason.into() }
    }

    /// Says where RocksDB found damage, which it tells by file only.
    pub(super) fn near(self, partition: PartitionId, index: LogIndex) -> Self {
        match self {
            Self::Damaged { place, reason } if place == ROCKSDB => {
                Self::Damaged { place: format!("partition {partition} at or after index {index}"), reason }
            }
            other => other,
        }
    }
}

impl From<rocksdb::Error> for StoreError {
    fn from(error: rocksdb::Error) -> Self {
        match error.kind() {
            rocksdb::ErrorKind::Corruption => Self::Damaged { place: ROCKSDB.into(), reason: error.into_string() },
            _ => Self::Rocks(error.into_string()),
        }
    }
}

impl From<StoreError> for OpenError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Damaged { place, reason } => Self::Damaged { place, reason },
            StoreError::Rocks(reason) | StoreError::Task(reason) => Self::Io { path: "db".into(), reason },
        }
    }
}

impl From<StoreError> for std::io::Error {
    fn from(error: StoreError) -> Self {
        let kind = match error {
            StoreError::Damaged { .. } => std::io::ErrorKind::InvalidData,
            StoreError::Rocks(_) | StoreError::Task(_) => std::io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
