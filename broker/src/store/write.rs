//! The changes the writer carries out, and what each puts into a batch.

use std::sync::Arc;

use rocksdb::WriteBatch;
use trunkline_proto::{LogIndex, PartitionId};

use super::{
    db::Db,
    error::StoreError,
    keys::{self, MetaTag},
    marks::Mark,
    record::{self, StoredEntry, StoredLogId, StoredVote},
};
use crate::core::Refusal;

/// Truncations of more entries than this use one range tombstone in place of point deletes.
const POINT_DELETES_MAX: u64 = 100;

/// One change of the store.
#[derive(Debug)]
pub enum Write {
    /// Appends log entries. Synced.
    Entries(Vec<StoredEntry>),
    /// Deletes the log after `keep` (`None`: all of it) up to `last`. Synced.
    Truncate {
        /// Last entry that stays.
        keep: Option<LogIndex>,
        /// Last entry there is.
        last: LogIndex,
    },
    /// Raft's vote. Synced.
    Vote(StoredVote),
    /// The committed position. Not synced.
    Committed(StoredLogId),
    /// Raft's logical purge. Synced.
    Purged(StoredLogId),
    /// Refused records of an applied entry. Not synced, but before whatever is queued later.
    Refused {
        /// The entry.
        index: LogIndex,
        /// Positions and reasons.
        refused: Arc<[(u16, Refusal)]>,
    },
    /// A sealed value of a snapshot. Synced where it is the manifest.
    Snapshot {
        /// Last index the snapshot covers.
        index: LogIndex,
        /// Chunk number, [`keys::MANIFEST_CHUNK`] for the manifest.
        chunk: u32,
        /// As stored.
        value: Vec<u8>,
    },
    /// Deletes every snapshot value before this index. Not synced.
    SnapshotsBefore(LogIndex),
}

impl Write {
    /// Whether it counts only once it is synced.
    pub(super) fn needs_sync(&self) -> bool {
        match self {
            Self::Entries(_) | Self::Truncate { .. } | Self::Vote(_) | Self::Purged(_) => true,
            Self::Snapshot { chunk, .. } => *chunk == keys::MANIFEST_CHUNK,
            Self::Committed(_) | Self::Refused { .. } | Self::SnapshotsBefore(_) => false,
        }
    }

    /// Whether it may wait for a later write rather than wake the writer (a wake costs 27 µs of CPU, costs E).
    pub(super) fn is_lazy(&self) -> bool {
        matches!(self, Self::Committed(_) | Self::Refused { .. } | Self::SnapshotsBefore(_))
    }

    /// Bytes it adds to a batch, about.
    pub(super) fn bytes(&self) -> usize {
        let payload = match self {
            Self::Entries(entries) => {
                entries.iter().map(|entry| entry.payload.len() + record::ENTRY_OVERHEAD_BYTES + 16).sum()
            }
            Self::Refused { refused, .. } => refused.len() * 3,
            Self::Snapshot { value, .. } => value.len(),
            _ => 0,
        };
        payload + 64
    }
}

/// What a write makes of its partition's mark once it is synced.
pub(super) fn advance(mark: &mut Mark, write: &Write) {
    match write {
        Write::Entries(entries) => {
            if let Some(last) = entries.last() {
                mark.end = last.id.index.0 + 1;
            }
        }
        Write::Truncate { keep, .. } => mark.end = mark.end.min(keep.map_or(0, |keep| keep.0 + 1)),
        Write::Vote(vote) => mark.term = vote.term,
        _ => {}
    }
}

/// Puts a write into a batch.
pub(super) fn add(db: &Db, batch: &mut WriteBatch, partition: PartitionId, write: &Write) -> Result<(), StoreError> {
    match write {
        Write::Entries(entries) => {
            let log = db.log(partition)?;
            for entry in entries {
                batch.put_cf(log, keys::log_key(entry.id.index), record::encode_entry(partition, entry));
            }
        }
        Write::Truncate { keep, last } => {
            let (log, first) = (db.log(partition)?, keep.map_or(0, |keep| keep.0 + 1));
            if last.0.saturating_sub(first) < POINT_DELETES_MAX {
                (first..=last.0).for_each(|index| batch.delete_cf(log, keys::log_key(LogIndex(index))));
            } else {
                batch.delete_range_cf(log, keys::log_key(LogIndex(first)), keys::log_key(LogIndex(last.0 + 1)));
            }
        }
        Write::Vote(vote) => {
            batch.put_cf(db.meta()?, keys::meta_key(MetaTag::Vote, partition), record::encode_vote(partition, vote));
        }
        Write::Committed(id) => {
            let value = record::encode_log_id(partition, id);
            batch.put_cf(db.meta()?, keys::meta_key(MetaTag::Committed, partition), value);
        }
        Write::Purged(id) => {
            let value = record::encode_log_id(partition, id);
            batch.put_cf(db.meta()?, keys::meta_key(MetaTag::Purged, partition), value);
        }
        Write::Refused { index, refused } => {
            let value = record::encode_refused(partition, *index, refused);
            batch.put_cf(db.refused()?, keys::refused_key(partition, *index), value);
        }
        Write::Snapshot { index, chunk, value } => {
            batch.put_cf(db.snapshots()?, keys::snapshot_key(partition, *index, *chunk), value);
        }
        Write::SnapshotsBefore(index) => {
            let first = keys::snapshot_key(partition, LogIndex(0), 0);
            batch.delete_range_cf(db.snapshots()?, first, keys::snapshot_key(partition, *index, 0));
        }
    }
    Ok(())
}
