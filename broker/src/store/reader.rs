//! Reads one partition from disk. Every call blocks: never from an async thread.

use std::sync::Arc;

use bytes::Bytes;
use rocksdb::DBRawIterator;
use trunkline_proto::{ConnectionId, Entry, LogIndex, PartitionId, Timestamp, v1};

use super::{
    db::{Db, reading},
    error::StoreError,
    keys::{self, MetaTag},
    record::{self, Payload, RefusedRecords, StoredEntry, StoredLogId, StoredVote},
};
use crate::core::LoggedEntry;

/// Bytes read ahead of a scan.
const READAHEAD_BYTES: usize = 1 << 20;

/// Reads one partition. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reader {
    db: Arc<Db>,
    partition: PartitionId,
}

impl Reader {
    /// A reader of `partition`.
    pub fn new(db: Arc<Db>, partition: PartitionId) -> Self {
        Self { db, partition }
    }

    /// Which partition.
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// The database.
    pub fn db(&self) -> &Arc<Db> {
        &self.db
    }

    /// The last entry's place.
    pub fn last(&self) -> Result<Option<StoredLogId>, StoreError> {
        let mut iterator = self.db.rocks().raw_iterator_cf_opt(self.db.log(self.partition)?, reading());
        iterator.seek_to_last();
        let entry = self.current(&iterator);
        let entry =
            entry.map_err(|error| error.within(|| format!("partition {} at the end of its log", self.partition)))?;
        Ok(entry.map(|entry| entry.id))
    }

    /// The first entry's place. What is purged is not there, whether or not it is deleted yet.
    pub fn first(&self) -> Result<Option<StoredLogId>, StoreError> {
        let from = self.purged()?.map_or(LogIndex(0), |purged| LogIndex(purged.index.0 + 1));
        let mut options = reading();
        // what is deleted below is not even looked at
        options.set_iterate_lower_bound(keys::log_key(from));
        let mut iterator = self.db.rocks().raw_iterator_cf_opt(self.db.log(self.partition)?, options);
        iterator.seek(keys::log_key(from));
        let entry = self.current(&iterator).map_err(|error| error.near(self.partition, from))?;
        Ok(entry.map(|entry| entry.id))
    }

    /// The first entry that is on disk, purged or not.
    pub(crate) fn first_on_disk(&self) -> Result<Option<LogIndex>, StoreError> {
        let mut iterator = self.db.rocks().raw_iterator_cf_opt(self.db.log(self.partition)?, reading());
        iterator.seek_to_first();
        let first = iterator.key().and_then(keys::parse_log_key);
        iterator.status().map_err(|error| StoreError::from(error).near(self.partition, LogIndex(0)))?;
        Ok(first)
    }

    /// One more than the last entry there is or was, before a snapshot took its place; 0 for an empty log.
    pub fn end(&self) -> Result<u64, StoreError> {
        Ok(self.last()?.max(self.purged()?).map_or(0, |last| last.index.0 + 1))
    }

    /// The entry at `index`.
    pub fn entry(&self, index: LogIndex) -> Result<Option<StoredEntry>, StoreError> {
        let value = self.db.rocks().get_pinned_cf_opt(self.db.log(self.partition)?, keys::log_key(index), &reading());
        let value = value.map_err(|error| {
            StoreError::from(error).within(|| format!("partition {} at index {index}", self.partition))
        })?;
        value.map(|value| self.decode(index, &value)).transpose()
    }

    /// Entries from `first` up to and without `end`, until `bytes_max` bytes are read; at least one if there is any. A gap is
    /// damage; fewer entries than asked for otherwise mean the bytes or the end of the log.
    pub fn entries(&self, first: LogIndex, end: LogIndex, bytes_max: usize) -> Result<Vec<StoredEntry>, StoreError> {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        let mut scan = self.scan(first, end)?;
        while let Some(entry) = scan.next_entry()? {
            bytes += entry.payload.len() + record::ENTRY_OVERHEAD_BYTES;
            entries.push(entry);
            if bytes >= bytes_max {
                break;
            }
        }
        Ok(entries)
    }

    /// Walks the entries from `first` up to and without `end`.
    pub fn scan(&self, first: LogIndex, end: LogIndex) -> Result<Scan<'_>, StoreError> {
        let mut options = reading();
        // bounded below too: a scan must not cross the tombstones of what retention deleted
        options.set_iterate_lower_bound(keys::log_key(first));
        options.set_iterate_upper_bound(keys::log_key(end));
        options.set_readahead_size(READAHEAD_BYTES);
        options.fill_cache(false);
        let mut iterator = self.db.rocks().raw_iterator_cf_opt(self.db.log(self.partition)?, options);
        iterator.seek(keys::log_key(first));
        Ok(Scan { reader: self, iterator, expected: first })
    }

    /// Refused records of the entries from `first` up to and with `last`.
    pub fn refused(&self, first: LogIndex, last: LogIndex) -> Result<Vec<(LogIndex, RefusedRecords)>, StoreError> {
        let mut options = reading();
        options.set_iterate_lower_bound(keys::refused_key(self.partition, first));
        let mut iterator = self.db.rocks().raw_iterator_cf_opt(self.db.refused()?, options);
        iterator.seek(keys::refused_key(self.partition, first));
        let mut refused = Vec::new();
        while let Some((key, value)) = iterator.item() {
            let Some((partition, index)) = keys::parse_refused_key(key) else {
                return Err(StoreError::at(self.partition, first, "a key of refused records does not parse"));
            };
            if partition != self.partition || index > last {
                break;
            }
            let decoded = record::decode_refused(partition, index, value);
            let decoded = decoded.map_err(|error| StoreError::at(partition, index, format!("refused: {error}")))?;
            refused.push((index, decoded));
            iterator.next();
        }
        iterator.status().map_err(|error| {
            StoreError::from(error)
                .within(|| format!("partition {} refused records of index {first} to {last}", self.partition))
        })?;
        Ok(refused)
    }

    /// How a connection came to be that an entry from `first` up to and with `last` closed.
    pub fn closed(
        &self,
        connection: ConnectionId,
        first: LogIndex,
        last: LogIndex,
    ) -> Result<Option<v1::Opening>, StoreError> {
        let family = self.db.closed()?;
        for block in keys::block(first)..=keys::block(last) {
            let key = keys::closed_key(self.partition, block, connection);
            if let Some(value) = self.db.rocks().get_pinned_cf_opt(family, key, &reading())? {
                let decoded = record::decode_closed(self.partition, block, &value);
                return decoded.map(Some).map_err(|error| {
                    let place = format!("partition {} closed connection {connection}", self.partition);
                    StoreError::Damaged { place, reason: error.to_string() }
                });
            }
        }
        Ok(None)
    }

    /// Applied entries as readers of history see them: those after `after` up to and with `through`, about `bytes_max` bytes of
    /// them. Blank and membership entries are left out, but count as read: the second value is the last index looked at.
    pub fn logged(
        &self,
        after: LogIndex,
        through: LogIndex,
        bytes_max: usize,
    ) -> Result<(Vec<LoggedEntry>, LogIndex), StoreError> {
        let (mut logged, mut bytes, mut looked_at) = (Vec::new(), 0, after);
        let mut scan = self.scan(LogIndex(after.0 + 1), LogIndex(through.0 + 1))?;
        while bytes < bytes_max
            && let Some(stored) = scan.next_entry()?
        {
            looked_at = stored.id.index;
            let Payload::Entry(payload) = stored.payload else { continue };
            bytes += payload.len();
            let entry = parse(self.partition, looked_at, &payload)?;
            logged.push(LoggedEntry { index: looked_at, entry, refused: Vec::new() });
        }
        if let (Some(first), Some(last)) = (logged.first().map(|e| e.index), logged.last().map(|e| e.index)) {
            for (index, refused) in self.refused(first, last)? {
                if let Ok(at) = logged.binary_search_by_key(&index, |entry| entry.index)
                    && let Some(entry) = logged.get_mut(at)
                {
                    entry.refused = refused;
                }
            }
        }
        Ok((logged, looked_at))
    }

    /// The last entry of `first..=last` stamped at or before `time`, by binary search: stamps never go back within a log.
    pub fn index_at(&self, first: LogIndex, last: LogIndex, time: Timestamp) -> Result<Option<LogIndex>, StoreError> {
        // invariant: every stamped entry before `low` is at or before `time`, every one from `high` on is after it
        let (mut low, mut high, mut found) = (first.0, last.0 + 1, None);
        while low < high {
            let middle = low + (high - low) / 2;
            // blank and membership entries have no stamp: the next one that has decides
            match self.stamped_from(LogIndex(middle), LogIndex(high))? {
                Some((index, stamp)) if stamp <= time => {
                    found = Some(index);
                    low = index.0 + 1;
                }
                _ => high = middle,
            }
        }
        Ok(found)
    }

    fn stamped_from(&self, first: LogIndex, end: LogIndex) -> Result<Option<(LogIndex, Timestamp)>, StoreError> {
        let mut scan = self.scan(first, end)?;
        while let Some(stored) = scan.next_entry()? {
            if let Payload::Entry(payload) = stored.payload {
                let entry = parse(self.partition, stored.id.index, &payload)?;
                return Ok(Some((stored.id.index, entry.time)));
            }
        }
        Ok(None)
    }

    /// The last entry with records from `first` on, at or before `through`.
    pub fn last_with_records(&self, first: LogIndex, through: LogIndex) -> Result<Option<LogIndex>, StoreError> {
        let mut options = reading();
        options.set_iterate_lower_bound(keys::log_key(first));
        let mut iterator = self.db.rocks().raw_iterator_cf_opt(self.db.log(self.partition)?, options);
        iterator.seek_for_prev(keys::log_key(through));
        let near =
            |error: StoreError| error.within(|| format!("partition {} at or before index {through}", self.partition));
        while let Some(entry) = self.current(&iterator).map_err(near)? {
            if matches!(entry.payload, Payload::Entry(_)) {
                return Ok(Some(entry.id.index));
            }
            iterator.prev();
        }
        Ok(None)
    }

    /// Raft's vote.
    pub fn vote(&self) -> Result<Option<StoredVote>, StoreError> {
        let vote =
            self.meta(MetaTag::Vote, "vote")?.map(|value| record::decode_vote(self.partition, &value)).transpose();
        vote.map_err(|error| self.meta_damage("vote", &error))
    }

    /// The committed position last written.
    pub fn committed(&self) -> Result<Option<StoredLogId>, StoreError> {
        let id = self
            .meta(MetaTag::Committed, "committed")?
            .map(|value| record::decode_log_id(self.partition, &value))
            .transpose();
        id.map_err(|error| self.meta_damage("committed", &error))
    }

    /// Raft's logical purge.
    pub fn purged(&self) -> Result<Option<StoredLogId>, StoreError> {
        let id = self
            .meta(MetaTag::Purged, "purged")?
            .map(|value| record::decode_log_id(self.partition, &value))
            .transpose();
        id.map_err(|error| self.meta_damage("purged", &error))
    }

    fn meta(&self, tag: MetaTag, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let value = self.db.rocks().get_cf_opt(self.db.meta()?, keys::meta_key(tag, self.partition), &reading());
        value.map_err(|error| StoreError::from(error).within(|| format!("partition {} {name}", self.partition)))
    }

    fn meta_damage(&self, name: &str, error: &record::ValueError) -> StoreError {
        StoreError::Damaged { place: format!("partition {} {name}", self.partition), reason: error.to_string() }
    }

    fn current(&self, iterator: &DBRawIterator<'_>) -> Result<Option<StoredEntry>, StoreError> {
        let Some((key, value)) = iterator.item() else {
            iterator.status()?;
            return Ok(None);
        };
        let index = keys::parse_log_key(key).ok_or_else(|| StoreError::Damaged {
            place: format!("partition {}", self.partition),
            reason: "a key of the log does not parse".into(),
        })?;
        self.decode(index, value).map(Some)
    }

    fn decode(&self, index: LogIndex, value: &[u8]) -> Result<StoredEntry, StoreError> {
        record::decode_entry(self.partition, index, &Bytes::copy_from_slice(value))
            .map_err(|error| StoreError::at(self.partition, index, error.to_string()))
    }
}

/// Parses an entry's payload; an entry that does not parse is damage, for leaders append only what does.
pub fn parse(partition: PartitionId, index: LogIndex, payload: &Bytes) -> Result<Entry, StoreError> {
    Entry::parse(payload).map_err(|error| StoreError::at(partition, index, format!("entry: {error}")))
}

/// A walk over consecutive entries.
pub struct Scan<'a> {
    reader: &'a Reader,
    iterator: DBRawIterator<'a>,
    expected: LogIndex,
}

impl Scan<'_> {
    /// The next entry, `None` at the end. A gap is damage.
    pub fn next_entry(&mut self) -> Result<Option<StoredEntry>, StoreError> {
        let entry = self.reader.current(&self.iterator);
        let Some(entry) = entry.map_err(|error| error.near(self.reader.partition, self.expected))? else {
            return Ok(None);
        };
        if entry.id.index != self.expected {
            let reason = format!("it is missing: the next entry there is has index {}", entry.id.index);
            return Err(StoreError::at(self.reader.partition, self.expected, reason));
        }
        self.expected = LogIndex(self.expected.0 + 1);
        self.iterator.next();
        Ok(Some(entry))
    }
}
