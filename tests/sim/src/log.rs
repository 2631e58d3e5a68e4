//! A log whose beginning may be gone: of that it knows only where it ends.

use std::sync::Arc;

use bytes::Bytes;

/// One entry of the log; without bytes: what a leader begins its term with.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct LogEntry {
    pub(crate) term: u64,
    pub(crate) bytes: Option<Bytes>,
}

/// Entries in a row.
pub(crate) type Entries = Vec<Arc<LogEntry>>;

/// See the module's head. Entries count from 1.
#[derive(Clone, Default, Debug)]
pub(crate) struct Log {
    /// Term and index of the last entry that is purged.
    purged: (u64, u64),
    entries: Entries,
}

impl Log {
    /// The last entry that is purged.
    pub(crate) fn purged(&self) -> u64 {
        self.purged.1
    }

    pub(crate) fn last(&self) -> u64 {
        self.purged.1 + self.entries.len() as u64
    }

    fn at(&self, index: u64) -> Option<usize> {
        index.checked_sub(self.purged.1 + 1).map(|at| at as usize)
    }

    pub(crate) fn get(&self, index: u64) -> Option<&Arc<LogEntry>> {
        self.entries.get(self.at(index)?)
    }

    /// 0 before the first entry and where nothing is known.
    pub(crate) fn term_at(&self, index: u64) -> u64 {
        if index == self.purged.1 { self.purged.0 } else { self.get(index).map_or(0, |entry| entry.term) }
    }

    pub(crate) fn has(&self, index: u64, term: u64) -> bool {
        self.term_at(index) == term && index <= self.last() && index >= self.purged.1
    }

    pub(crate) fn after(&self, index: u64) -> impl Iterator<Item = &Arc<LogEntry>> {
        self.entries.iter().skip(index.saturating_sub(self.purged.1) as usize)
    }

    pub(crate) fn push(&mut self, entry: Arc<LogEntry>) {
        self.entries.push(entry);
    }

    /// These follow `keep`; what stood there goes.
    pub(crate) fn replace(&mut self, keep: u64, entries: &[Arc<LogEntry>]) {
        self.entries.truncate(keep.saturating_sub(self.purged.1) as usize);
        self.entries.extend(entries.iter().cloned());
    }

    /// Lets go of what is up to this entry, and of what follows, too, if it does not follow this one.
    pub(crate) fn purge(&mut self, term: u64, through: u64) {
        match self.at(through) {
            Some(at) if self.has(through, term) => drop(self.entries.drain(..=at)),
            Some(_) => self.entries.clear(),
            None => return,
        }
        self.purged = (term, through);
    }
}
