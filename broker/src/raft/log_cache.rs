//! What of a partition's log is in memory: everything that is not both written and applied yet, and a little more for peers that
//! lag. openraft reads every entry back to apply and to replicate it; what is here is never read from disk.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use openraft::{EntryPayload, entry::RaftEntry};
use parking_lot::Mutex;

use super::{
    pace::Recent,
    types::{Entry, LogId, Vote},
};

/// Written and applied entries kept for peers, in bytes of each partition.
const KEPT_BYTES: usize = 512 << 10;
/// Bytes an entry counts for besides its payload.
pub(super) const ENTRY_OVERHEAD: usize = 96;

/// The in-memory part of a log. Ends are exclusive: one more than the last index.
#[derive(Debug)]
pub(super) struct LogCache {
    log: Mutex<Log>,
    /// End of what RocksDB holds.
    written: Arc<AtomicU64>,
    applied: AtomicU64,
}

#[derive(Debug, Default)]
struct Log {
    entries: VecDeque<Entry>,
    bytes: usize,
    recent: Recent,
    /// First index openraft may read.
    first: u64,
    last: Option<LogId>,
    purged: Option<LogId>,
    vote: Option<Vote>,
    committed: Option<LogId>,
}

/// What memory can say about a range.
pub(super) enum Lookup {
    /// These entries, from the first one asked for.
    Cached(Vec<Entry>),
    /// On disk, up to this end.
    OnDisk(u64),
    /// There is nothing at the first index.
    Nothing,
}

/// What the disk said when the log was opened.
#[derive(Debug, Default)]
pub(super) struct Opened {
    pub(super) first: Option<LogId>,
    pub(super) last: Option<LogId>,
    pub(super) purged: Option<LogId>,
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
}

impl LogCache {
    pub(super) fn new(opened: Opened) -> Self {
        let written = opened.last.map_or(0, |last| last.index + 1);
        let first =
            opened.purged.map(|purged| purged.index + 1).max(opened.first.map(|first| first.index)).unwrap_or(0);
        let log = Log {
            first,
            last: opened.last.max(opened.purged),
            purged: opened.purged,
            vote: opened.vote,
            committed: opened.committed,
            ..Log::default()
        };
        Self { log: Mutex::new(log), written: Arc::new(AtomicU64::new(written)), applied: AtomicU64::new(0) }
    }

    /// End of what RocksDB holds, for readers that fall back to it.
    pub(super) fn written(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.written)
    }

    pub(super) fn last(&self) -> Option<LogId> {
        self.log.lock().last
    }

    /// Bytes of the entries after `index`; see [`Recent`].
    pub(super) fn bytes_after(&self, index: u64) -> Option<usize> {
        let log = self.log.lock();
        match log.last.is_some_and(|last| last.index > index) {
            true => log.recent.after(index + 1),
            false => Some(0),
        }
    }

    pub(super) fn purged(&self) -> Option<LogId> {
        self.log.lock().purged
    }

    pub(super) fn vote(&self) -> Option<Vote> {
        self.log.lock().vote
    }

    pub(super) fn set_vote(&self, vote: Vote) {
        self.log.lock().vote = Some(vote);
    }

    pub(super) fn committed(&self) -> Option<LogId> {
        self.log.lock().committed
    }

    pub(super) fn set_committed(&self, committed: Option<LogId>) {
        self.log.lock().committed = committed;
    }

    /// Adds entries; refuses those that would leave a hole or overwrite.
    pub(super) fn append(&self, entries: &[Entry]) -> Result<(), String> {
        let mut log = self.log.lock();
        for entry in entries {
            let (index, id) = (entry.index(), entry.log_id());
            if log.last.is_some_and(|last| last.index + 1 != index) {
                return Err(format!("entry {index} does not follow the last one, {:?}", log.last));
            }
            if log.last.is_none() {
                log.first = index;
            }
            log.last = Some(id);
            log.bytes += weight(entry);
            log.recent.push(index, weight(entry));
            log.entries.push_back(entry.clone());
        }
        Ok(())
    }

    /// Entries up to `end` are in RocksDB.
    pub(super) fn mark_written(&self, end: u64) {
        self.written.fetch_max(end, Ordering::AcqRel);
    }

    /// Entries up to `end` are applied: drops what nobody needs.
    pub(super) fn mark_applied(&self, end: u64) {
        self.applied.fetch_max(end, Ordering::AcqRel);
        let done = self.written.load(Ordering::Acquire).min(self.applied.load(Ordering::Acquire));
        let mut log = self.log.lock();
        while log.bytes > KEPT_BYTES
            && let Some(front) = log.entries.front()
            && front.index() < done
        {
            log.bytes -= weight(front);
            log.entries.pop_front();
        }
    }

    /// Drops everything after `keep`; gives the last index there was.
    pub(super) fn truncate(&self, keep: Option<LogId>) -> Option<u64> {
        let mut log = self.log.lock();
        let last = log.last?.index;
        let end = keep.map_or(0, |keep| keep.index + 1);
        while let Some(back) = log.entries.back()
            && back.index() >= end
        {
            log.bytes -= weight(back);
            log.entries.pop_back();
        }
        log.recent.truncate(end);
        log.last = keep.min(log.last).max(log.purged);
        Some(last)
    }

    /// After a truncation is on disk.
    pub(super) fn lower_written(&self, end: u64) {
        self.written.fetch_min(end, Ordering::AcqRel);
    }

    /// Moves the logical beginning. Whether it is beyond the end there was.
    pub(super) fn purge(&self, upto: LogId) -> bool {
        let mut log = self.log.lock();
        let last = log.last.map(|last| last.index);
        log.purged = log.purged.max(Some(upto));
        log.first = log.first.max(upto.index + 1);
        while let Some(front) = log.entries.front()
            && front.index() <= upto.index
        {
            log.bytes -= weight(front);
            log.entries.pop_front();
        }
        let beyond = last.is_none_or(|last| last < upto.index);
        if beyond {
            log.recent = Recent::default();
        }
        log.last = log.last.max(Some(upto));
        beyond
    }

    /// The range `start..end` cut to what there is.
    pub(super) fn clamp(&self, start: u64, end: u64) -> (u64, u64) {
        let log = self.log.lock();
        (start.max(log.first), end.min(log.last.map_or(0, |last| last.index + 1)))
    }

    /// Looks up `start..end`, at most about `bytes_max` bytes of it.
    pub(super) fn lookup(&self, start: u64, end: u64, bytes_max: usize) -> Lookup {
        let log = self.log.lock();
        let end = end.min(log.last.map_or(0, |last| last.index + 1));
        if start >= end {
            return Lookup::Nothing;
        }
        let cached = log.entries.front().map_or(u64::MAX, |front| front.index());
        if start < cached {
            return Lookup::OnDisk(end.min(cached));
        }
        let from = usize::try_from(start - cached).unwrap_or(usize::MAX);
        let (mut found, mut bytes) = (Vec::new(), 0);
        for entry in log.entries.iter().skip(from).take_while(|entry| entry.index() < end) {
            if bytes >= bytes_max {
                break;
            }
            bytes += weight(entry);
            found.push(entry.clone());
        }
        Lookup::Cached(found)
    }
}

fn weight(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(bytes) => bytes.0.len() + ENTRY_OVERHEAD,
        EntryPayload::Blank | EntryPayload::Membership(_) => ENTRY_OVERHEAD,
    }
}
