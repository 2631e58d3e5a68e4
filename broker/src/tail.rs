//! Step 12 of the walk. The applied tail of a partition in memory: wakes live readers and serves them; who has fallen behind
//! it reads the log.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::RwLock;
use tokio::sync::watch;
use trunkline_proto::LogIndex;

use crate::{core::AppliedEntry, raft::AppliedSink};

/// Bytes an entry counts for besides its records.
const ENTRY_OVERHEAD: usize = 512;
/// Bytes a record counts for besides its bytes: its outcome and deliveries.
const RECORD_OVERHEAD: usize = 128;

/// What a reader of the tail gets.
#[derive(Debug)]
pub enum TailRead {
    /// The entries after the one asked for, oldest first.
    Entries(Vec<Arc<AppliedEntry>>),
    /// The tail begins later: read the log ([`crate::node::Node::read_log`]).
    Behind,
    /// Nothing yet.
    End,
}

#[derive(Debug, Default)]
struct Ring {
    entries: VecDeque<Arc<AppliedEntry>>,
    bytes: usize,
    /// Every entry with records after this one is in the ring.
    since: LogIndex,
    /// The last entry applied, with records or without.
    applied: LogIndex,
}

#[derive(Debug)]
struct Shared {
    ring: RwLock<Ring>,
    bytes_max: usize,
    /// End (exclusive) of what RocksDB holds: what is after it stays here, whatever the bound.
    written: Arc<AtomicU64>,
    /// The last entry with records.
    last: watch::Sender<LogIndex>,
}

/// Reads one partition's tail. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    /// A tail that begins after `since` and keeps at most `bytes_max` bytes of what `written` (an exclusive end) says is on disk.
    pub fn new(since: LogIndex, applied: LogIndex, bytes_max: usize, written: Arc<AtomicU64>) -> Self {
        let ring = Ring { since, applied, ..Ring::default() };
        let (last, _) = watch::channel(since);
        Self { shared: Arc::new(Shared { ring: RwLock::new(ring), bytes_max, written, last }) }
    }

    /// Entries after `after`, about `bytes_max` bytes of them and at least one.
    pub fn read(&self, after: LogIndex, bytes_max: usize) -> TailRead {
        let ring = self.shared.ring.read();
        if after < ring.since {
            return TailRead::Behind;
        }
        let from = ring.entries.partition_point(|entry| entry.logged.index <= after);
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for entry in ring.entries.range(from..) {
            bytes += weight(entry);
            if !entries.is_empty() && bytes > bytes_max {
                break;
            }
            entries.push(Arc::clone(entry));
        }
        match entries.is_empty() {
            true => TailRead::End,
            false => TailRead::Entries(entries),
        }
    }

    /// What is after this entry is here; up to it, read the log.
    pub fn since(&self) -> LogIndex {
        self.shared.ring.read().since
    }

    /// The last applied entry.
    pub fn applied(&self) -> LogIndex {
        self.shared.ring.read().applied
    }

    /// Waits until an entry with records after `after` is applied. Cancel safe.
    pub async fn wait_past(&self, after: LogIndex) {
        let mut last = self.shared.last.subscribe();
        // the sender lives as long as this handle
        let _ = last.wait_for(|last| *last > after).await;
    }
}

impl AppliedSink for Handle {
    fn entry_applied(&self, entry: Arc<AppliedEntry>) {
        let index = entry.logged.index;
        let mut ring = self.shared.ring.write();
        ring.applied = index;
        ring.bytes += weight(&entry);
        ring.entries.push_back(entry);
        let written = self.shared.written.load(Ordering::Acquire);
        // the newest always stays: its readers are about to be woken
        while ring.bytes > self.shared.bytes_max
            && ring.entries.len() > 1
            && ring.entries.front().is_some_and(|front| front.logged.index.0 < written)
            && let Some(front) = ring.entries.pop_front()
        {
            ring.bytes -= weight(&front);
            ring.since = front.logged.index;
        }
        drop(ring);
        self.shared.last.send_replace(index);
    }

    fn passed(&self, index: LogIndex) {
        self.shared.ring.write().applied = index;
    }

    fn installed(&self, index: LogIndex) {
        *self.shared.ring.write() = Ring { since: index, applied: index, ..Ring::default() };
        self.shared.last.send_replace(index);
    }
}

fn weight(entry: &AppliedEntry) -> usize {
    let batches = entry.logged.entry.batches.iter();
    ENTRY_OVERHEAD + batches.map(|batch| batch.weight() + usize::from(batch.count) * RECORD_OVERHEAD).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use trunkline_proto::{Batch, Entry, Source, Timestamp};

    use super::*;
    use crate::core::{Applied, LoggedEntry};

    fn entry(index: u64) -> Arc<AppliedEntry> {
        let batch = Batch { source: Source::Leader, count: 0, records: vec![0; 100].into() };
        let entry = Entry { time: Timestamp(index), batches: vec![batch] };
        let applied = Applied {
            time: Timestamp(index),
            outcomes: Vec::new(),
            refused: Vec::new(),
            forwarded: Vec::new(),
            deliveries: Vec::new(),
            closed: Vec::new(),
        };
        Arc::new(AppliedEntry { logged: LoggedEntry { index: LogIndex(index), entry, refused: Vec::new() }, applied })
    }

    fn indexes(read: TailRead) -> Vec<u64> {
        match read {
            TailRead::Entries(entries) => entries.iter().map(|entry| entry.logged.index.0).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn old_entries_go_but_not_before_they_are_on_disk() {
        let written = Arc::new(AtomicU64::new(3));
        let tail = Handle::new(LogIndex(0), LogIndex(0), 2 * weight(&entry(1)), Arc::clone(&written));
        (1..=6).for_each(|index| tail.entry_applied(entry(index)));
        assert!(matches!(tail.read(LogIndex(1), 1 << 20), TailRead::Behind));
        assert_eq!(indexes(tail.read(LogIndex(2), 1 << 20)), [3, 4, 5, 6]);
        written.store(7, Ordering::Release);
        tail.entry_applied(entry(7));
        assert_eq!(indexes(tail.read(LogIndex(5), 1 << 20)), [6, 7]);
        assert!(matches!(tail.read(LogIndex(4), 1 << 20), TailRead::Behind));
        assert!(matches!(tail.read(LogIndex(7), 1 << 20), TailRead::End));
    }

    #[test]
    fn a_read_is_bounded_but_gives_at_least_one() {
        let tail = Handle::new(LogIndex(0), LogIndex(0), 1 << 20, Arc::default());
        (1..=5).for_each(|index| tail.entry_applied(entry(index)));
        assert_eq!(indexes(tail.read(LogIndex(0), 1)), [1]);
        assert_eq!(indexes(tail.read(LogIndex(2), 2 * weight(&entry(1)))), [3, 4]);
    }

    #[tokio::test]
    async fn waiting_is_for_entries_with_records_and_cancel_safe() {
        let tail = Handle::new(LogIndex(0), LogIndex(0), 1 << 20, Arc::default());
        tail.passed(LogIndex(1));
        assert_eq!(tail.applied(), LogIndex(1));
        let waited = tokio::time::timeout(std::time::Duration::from_millis(20), tail.wait_past(LogIndex(0))).await;
        assert!(waited.is_err(), "a blank entry woke a reader that finds nothing");
        let waiting = tokio::spawn({
            let tail = tail.clone();
            async move { tail.wait_past(LogIndex(1)).await }
        });
        tail.entry_applied(entry(2));
        waiting.await.unwrap();
        tail.wait_past(LogIndex(1)).await;
    }
}
