//! The changes the writer carries out, and what each puts into a batch.

use std::sync::Arc;

use prost::Message as _;
use rocksdb::WriteBatch;
use trunkline_proto::{ConnectionId, LogIndex, PartitionId, v1};

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
    Purged {
        /// The last entry that is purged.
        id: StoredLogId,
        /// It is beyond the end of the log, which goes as a whole.
        beyond: bool,
    },
    /// Refused records of an applied entry. Not synced, but before whatever is queued later.
    Refused {
        /// The entry.
        index: LogIndex,
        /// Positions and reasons.
        refused: Arc<[(u16, Refusal)]>,
    },
    /// Connections that an applied entry closed. Not synced, but before whatever is queued later.
    Closed {
        /// The entry.
        index: LogIndex,
        /// Which, and how they came to be.
        closed: Arc<[(ConnectionId, v1::Opening)]>,
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
    /// Deletes the snapshots between two indexes, those at them excluded, and what is left of unfinished ones there. Not synced.
    SnapshotsBetween {
        /// Stays, as does what is before it; none: nothing is before.
        after: Option<LogIndex>,
        /// Stays, as does what is after it.
        before: LogIndex,
    },
    /// A snapshot whose chunks are written takes the place of everything up to it: log, refused records and older snapshots.
    /// Synced, all of it or nothing.
    Install {
        /// The last entry it covers.
        last: StoredLogId,
        /// Its manifest, as stored.
        manifest: Vec<u8>,
    },
    /// The folder is known to lack what it acknowledged: raises the partition's mark, so that the next start finds that too. Not
    /// synced.
    Doubted {
        /// Where its log ought to end at least.
        end: u64,
    },
    /// Deletes what retention has taken: entries and refused records up to this index, and the snapshots before it. Synced: what
    /// frees the disk afterwards may uncover some of it again, but not if this is certain.
    Trim(LogIndex),
}

impl Write {
    /// Whether it counts only once it is synced.
    pub(super) fn needs_sync(&self) -> bool {
        match self {
            Self::Entries(_)
            | Self::Truncate { .. }
            | Self::Vote(_)
            | Self::Purged { .. }
            | Self::Install { .. }
            | Self::Trim(_) => true,
            Self::Snapshot { chunk, .. } => *chunk == keys::MANIFEST_CHUNK,
            Self::Committed(_)
            | Self::Refused { .. }
            | Self::Closed { .. }
            | Self::SnapshotsBetween { .. }
            | Self::Doubted { .. } => false,
        }
    }

    /// Whether it may wait for a later write rather than wake the writer (a wake costs 27 µs of CPU, costs E).
    pub(super) fn is_lazy(&self) -> bool {
        matches!(self, Self::Committed(_) | Self::Refused { .. } | Self::Closed { .. } | Self::SnapshotsBetween { .. })
    }

    /// Bytes it adds to a batch, about.
    pub(super) fn bytes(&self) -> usize {
        let payload = match self {
            Self::Entries(entries) => {
                entries.iter().map(|entry| entry.payload.len() + record::ENTRY_OVERHEAD_BYTES + 16).sum()
            }
            Self::Refused { refused, .. } => refused.len() * 3,
            Self::Closed { closed, .. } => closed.iter().map(|(_, opening)| opening.encoded_len() + 32).sum(),
            Self::Snapshot { value, .. } => value.len(),
            Self::Install { manifest, .. } => manifest.len(),
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
        Write::Doubted { end } => mark.end = mark.end.max(*end),
        Write::Vote(vote) => mark.term = vote.term,
        // the log begins after it: nothing before is missing, everything up to it is acknowledged
        Write::Purged { id: last, .. } | Write::Install { last, .. } => mark.end = mark.end.max(last.index.0 + 1),
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
        Write::Purged { id, beyond } => {
            if *beyond {
                delete_log(db, batch, partition, id.index)?;
            }
            purge(db, batch, partition, id)?;
        }
        Write::Refused { index, refused } => {
            let value = record::encode_refused(partition, *index, refused);
            batch.put_cf(db.refused()?, keys::refused_key(partition, *index), value);
        }
        Write::Closed { index, closed } => {
            let (family, block) = (db.closed()?, keys::block(*index));
            for (id, opening) in closed.iter() {
                let value = record::encode_closed(partition, block, opening);
                batch.put_cf(family, keys::closed_key(partition, block, *id), value);
            }
        }
        Write::Snapshot { index, chunk, value } => {
            batch.put_cf(db.snapshots()?, keys::snapshot_key(partition, *index, *chunk), value);
        }
        Write::SnapshotsBetween { after, before } => {
            delete_snapshots(db, batch, partition, after.map_or(0, |after| after.0 + 1), *before)?;
        }
        Write::Install { last, manifest } => {
            batch.put_cf(db.snapshots()?, keys::snapshot_key(partition, last.index, keys::MANIFEST_CHUNK), manifest);
            trim(db, batch, partition, last.index)?;
            purge(db, batch, partition, last)?;
        }
        Write::Trim(through) => trim(db, batch, partition, *through)?,
        Write::Doubted { .. } => {}
    }
    Ok(())
}

fn purge(db: &Db, batch: &mut WriteBatch, partition: PartitionId, id: &StoredLogId) -> Result<(), StoreError> {
    let value = record::encode_log_id(partition, id);
    batch.put_cf(db.meta()?, keys::meta_key(MetaTag::Purged, partition), value);
    Ok(())
}

/// From the very beginning, whatever was deleted before: files that went with their tombstones may have uncovered some of it.
fn trim(db: &Db, batch: &mut WriteBatch, partition: PartitionId, through: LogIndex) -> Result<(), StoreError> {
    delete_log(db, batch, partition, through)?;
    let first = keys::refused_key(partition, LogIndex(0));
    batch.delete_range_cf(db.refused()?, first, keys::refused_key(partition, LogIndex(through.0 + 1)));
    // blocks of which nothing is left
    let key = |block| keys::closed_key(partition, block, ConnectionId::NONE);
    batch.delete_range_cf(db.closed()?, key(0), key(keys::block(LogIndex(through.0 + 1))));
    delete_snapshots(db, batch, partition, 0, through)
}

fn delete_log(db: &Db, batch: &mut WriteBatch, partition: PartitionId, through: LogIndex) -> Result<(), StoreError> {
    batch.delete_range_cf(db.log(partition)?, keys::log_key(LogIndex(0)), keys::log_key(LogIndex(through.0 + 1)));
    Ok(())
}

fn delete_snapshots(
    db: &Db,
    batch: &mut WriteBatch,
    partition: PartitionId,
    first: u64,
    end: LogIndex,
) -> Result<(), StoreError> {
    let (from, to) = (keys::snapshot_key(partition, LogIndex(first), 0), keys::snapshot_key(partition, end, 0));
    if from < to {
        batch.delete_range_cf(db.snapshots()?, from, to);
    }
    Ok(())
}
