//! What can be wrong with a data folder, and with reading or writing it.

use trunkline_proto::{LogIndex, PartitionId};

use super::identity::DB;

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

/// Why reading the store failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Bytes on disk are not what was written.
    #[error("{place} is damaged: {reason}")]
    Damaged {
        /// Partition and index; the file in the data folder as well where RocksDB found it.
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

    /// Says what was read where RocksDB found damage, which it tells by file only.
    pub(super) fn within(self, what: impl FnOnce() -> String) -> Self {
        match self {
            Self::Damaged { place, reason } if place.starts_with(DB) => {
                Self::Damaged { place: format!("{} ({place})", what()), reason }
            }
            other => other,
        }
    }

    /// As [`StoreError::within`], of a partition's log read forwards from `index`.
    pub(super) fn near(self, partition: PartitionId, index: LogIndex) -> Self {
        self.within(|| format!("partition {partition} at or after index {index}"))
    }
}

/// The file that a message of RocksDB blames, and the message without what leads astray: every error while opening ends in a
/// guess that the manifest may be damaged.
pub(super) fn blamed(message: &str) -> (Option<String>, &str) {
    let file = |text: &str| {
        let (_, after) = text.split_once(&format!("/{DB}/"))?;
        let end = after.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '-')).unwrap_or(after.len());
        after.get(..end).filter(|name| !name.is_empty()).map(|name| name.trim_end_matches('.').to_owned())
    };
    let (cause, guess) = message.split_once("  The file ").unwrap_or((message, ""));
    (file(cause).or_else(|| file(guess)), cause)
}

impl From<rocksdb::Error> for StoreError {
    fn from(error: rocksdb::Error) -> Self {
        match error.kind() {
            rocksdb::ErrorKind::Corruption => {
                let message = error.into_string();
                let (file, reason) = blamed(&message);
                let place = file.map_or_else(|| DB.to_owned(), |file| format!("{DB}/{file}"));
                Self::Damaged { place, reason: reason.to_owned() }
            }
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

#[cfg(test)]
mod tests {
    use super::blamed;

    #[test]
    fn the_file_is_taken_from_what_rocksdb_says() {
        let cases = [
            (
                "Corruption: block checksum mismatch: stored = 1, computed = 2, type = 4  in /a b/db/000008.sst offset 136 size 9  The file /a b/db/MANIFEST-000013 may be corrupted.",
                Some("000008.sst"),
            ),
            ("Corruption: Footer at 1263 checksum mismatch in /d/db/000010.sst", Some("000010.sst")),
            (
                "Corruption: IO error: No such file or directory: While open: /d/db/000008.sst: No such file or directory",
                Some("000008.sst"),
            ),
            (
                "Corruption: checksum mismatch  The file /d/db/MANIFEST-000013 may be corrupted.",
                Some("MANIFEST-000013"),
            ),
            ("Corruption: checksum mismatch", None),
        ];
        for (message, file) in cases {
            assert_eq!(blamed(message).0.as_deref(), file, "{message}");
            assert!(!blamed(message).1.contains("may be corrupted"));
        }
    }
}
