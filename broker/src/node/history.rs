//! Reading a partition's past: entries, and the state as it was.

use tokio_util::sync::CancellationToken;
use trunkline_proto::{LogIndex, Offset, PartitionId, Timestamp, v1};

use super::Node;
use crate::{
    core,
    raft::{Floor, snapshotter::Replay, state_machine::Unwritten},
    store::{Reader, StoreError},
};

/// Why history cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Retention has taken it.
    #[error("offset is trimmed; the earliest readable one is {earliest}")]
    Trimmed {
        /// Where the log begins.
        earliest: Offset,
    },
    /// Not written yet.
    #[error("offset is after the end of the log, {end}")]
    Future {
        /// The last applied offset.
        end: Offset,
    },
    /// Bytes on disk are not what was written.
    #[error("log is damaged at {place}: {reason}")]
    Damaged {
        /// Where.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// RocksDB says no.
    #[error("reading the log failed: {0}")]
    Store(String),
}

impl From<StoreError> for ReadError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Damaged { place, reason } => Self::Damaged { place, reason },
            StoreError::Rocks(reason) | StoreError::Task(reason) => Self::Store(reason),
        }
    }
}

/// What a read of the log on disk came to.
#[derive(Debug)]
pub struct LogRead {
    /// Entries with records, in order.
    pub entries: Vec<core::LoggedEntry>,
    /// The last entry looked at, with records or without; the one read on from if there was none.
    pub through: LogIndex,
}

/// Where in the past.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// After the record at this offset, and before those behind it in its entry (where there is none at it: after the last
    /// one before it).
    Offset(Offset),
    /// After the last entry stamped at or before this time.
    Time(Timestamp),
}

impl Node {
    /// Reads applied entries from disk: those after `after`, about `bytes_max` bytes of them, at least one unless at the end.
    /// Says how far it has looked, which may be beyond the last of them: a reader goes on from there. Blocking work happens on
    /// the blocking pool.
    pub async fn read_log(
        &self,
        partition: PartitionId,
        after: LogIndex,
        bytes_max: usize,
    ) -> Result<LogRead, ReadError> {
        // before the disk: what the tail has let go of is there by then
        let (applied, since) = (self.applied(partition)?, self.since(partition)?);
        self.check_retained(partition, after)?;
        let read = self.blocking(partition, move |reader, pending| {
            // before the disk: a set leaves this list only once it is there
            let refused = pending.between(after, applied);
            // a leader may have applied what its own disk does not hold yet; the tail does
            let through = applied.min(reader.last()?.map_or(LogIndex(0), |last| last.index));
            let (mut entries, through) = reader.logged(after, through, bytes_max.max(1))?;
            for (index, refused) in refused {
                if let Ok(at) = entries.binary_search_by_key(&index, |entry| entry.index)
                    && let Some(entry) = entries.get_mut(at)
                {
                    entry.refused = refused.to_vec();
                }
            }
            Ok(LogRead { entries, through })
        });
        let read = read.await;
        // what was deleted while it was read
        self.check_retained(partition, after)?;
        if let Err(error @ ReadError::Damaged { .. }) = &read {
            // a replica that cannot read what it holds must not lead, nor be counted among those that hold it
            self.inner.health.damage(partition, &error.to_string());
        }
        let read = read?;
        // a snapshot has replaced what neither the disk nor the tail holds: no reader ever comes to it
        if read.entries.is_empty() && read.through < since {
            return Err(ReadError::Trimmed { earliest: Offset::new(LogIndex(since.0 + 1), 0) });
        }
        Ok(read)
    }

    /// The last entry stamped at or before `time` ([`LogIndex`] 0: none), by binary search.
    pub async fn index_at(&self, partition: PartitionId, time: Timestamp) -> Result<LogIndex, ReadError> {
        let (first, applied) = (self.first(partition), self.applied(partition)?);
        self.blocking(partition, move |reader, _| Ok(reader.index_at(first, applied, time)?.unwrap_or_default())).await
    }

    /// A start by time as one by offset; others as they are.
    pub async fn resolve_start(&self, partition: PartitionId, start: &v1::Start) -> Result<v1::Start, ReadError> {
        let Some(v1::start::At::Time(time)) = start.at else { return Ok(*start) };
        // first record stamped at or after `time`: the one after the last entry stamped before it
        let before = Timestamp(time.saturating_sub(1));
        let index = self.index_at(partition, before).await?;
        let first = Offset::new(LogIndex(index.0 + 1), 0);
        Ok(v1::Start { at: Some(v1::start::At::Offset(first.0)) })
    }

    /// The state at a moment of the past: newest snapshot before it, and replay. Gives the offset up to which records are folded
    /// in. Inside a commit its outcomes, which are its first record, and the commands up to that offset are.
    pub async fn state_at(
        &self,
        partition: PartitionId,
        moment: Moment,
    ) -> Result<(core::Partition, Offset), ReadError> {
        let applied = self.applied(partition)?;
        let end = match moment {
            Moment::Offset(offset) => offset,
            Moment::Time(time) => Offset::end_of(self.index_at(partition, time).await?),
        };
        if end.index() > applied {
            return Err(ReadError::Future { end: Offset::end_of(applied) });
        }
        // a snapshot holds whole entries: one of the moment's own entry is of use only at its end
        let is_end = end == Offset::end_of(end.index());
        let covered = LogIndex(if is_end { end.index().0 } else { end.index().0.saturating_sub(1) });
        // the snapshot at the trim point holds all of the last entry that is trimmed
        let trimmed = || ReadError::Trimmed { earliest: self.earliest(partition) };
        let before =
            |first: LogIndex| first.0.checked_sub(1).map_or(Offset::ZERO, |last| Offset::end_of(LogIndex(last)));
        if end < before(self.first(partition)) {
            return Err(trimmed());
        }
        let count = self.inner.count;
        let replayed = self.blocking(partition, move |reader, _| {
            let mut replay = Replay::from_newest(reader, count, covered)?;
            replay.run_until(end, &CancellationToken::new())?;
            Ok((replay.state, end))
        });
        let replayed = replayed.await;
        if end < before(self.first(partition)) { Err(trimmed()) } else { replayed }
    }

    /// First offset that can still be read.
    pub fn earliest(&self, partition: PartitionId) -> Offset {
        Offset::new(self.first(partition), 0)
    }

    fn first(&self, partition: PartitionId) -> LogIndex {
        self.inner.floors.get(usize::from(partition.0)).map(Floor::first).unwrap_or_default()
    }

    fn check_retained(&self, partition: PartitionId, after: LogIndex) -> Result<(), ReadError> {
        match after.0 + 1 < self.first(partition).0 {
            true => Err(ReadError::Trimmed { earliest: self.earliest(partition) }),
            false => Ok(()),
        }
    }

    pub(super) fn applied(&self, partition: PartitionId) -> Result<LogIndex, ReadError> {
        let handle = self.partition(partition).ok_or_else(|| no_replica(partition))?;
        Ok(handle.tail.applied())
    }

    fn since(&self, partition: PartitionId) -> Result<LogIndex, ReadError> {
        let handle = self.partition(partition).ok_or_else(|| no_replica(partition))?;
        Ok(handle.tail.since())
    }

    /// Where the newest snapshot of a partition stands; 0: there is none.
    pub async fn newest_snapshot(&self, partition: PartitionId) -> Result<LogIndex, ReadError> {
        let newest = |reader: &Reader, _: &Unwritten| crate::store::snapshot::newest(reader, LogIndex(u64::MAX));
        let newest = self.blocking(partition, newest).await?;
        Ok(newest.map(|manifest| manifest.last.index).unwrap_or_default())
    }

    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        partition: PartitionId,
        work: impl FnOnce(&Reader, &Unwritten) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let open = self.inner.open.read().clone();
        let open = open.ok_or_else(|| ReadError::Store("the broker is shutting down".into()))?;
        if let Some(reason) = self.inner.damaged.get(&partition) {
            return Err(ReadError::Damaged { place: format!("partition {partition}"), reason: reason.clone() });
        }
        let work = tokio::task::spawn_blocking(move || match open.readers.get(usize::from(partition.0)) {
            Some((reader, pending)) => work(reader, pending).map_err(ReadError::from),
            None => Err(no_replica(partition)),
        });
        work.await.unwrap_or_else(|error| Err(ReadError::Store(error.to_string())))
    }
}

pub(super) fn no_replica(partition: PartitionId) -> ReadError {
    ReadError::Store(format!("this broker holds no replica of partition {partition}"))
}
