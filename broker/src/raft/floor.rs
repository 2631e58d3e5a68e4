//! Where a partition's readable log begins. Raised as soon as a trim is applied or a snapshot takes the log's place, before anything
//! is deleted: readers that look here first never meet a hole. What is trimmed is still sent to followers that need it, for a while.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::watch;
use trunkline_proto::LogIndex;

/// The first readable entry of one partition; only rises. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Floor {
    first: Arc<watch::Sender<LogIndex>>,
    sent_from: Arc<AtomicU64>,
}

impl Default for Floor {
    /// Nothing is trimmed.
    fn default() -> Self {
        Self::new(LogIndex(0))
    }
}

impl Floor {
    /// Begins at `first`.
    pub fn new(first: LogIndex) -> Self {
        Self { first: Arc::new(watch::Sender::new(first)), sent_from: Arc::default() }
    }

    /// The first readable entry.
    pub fn first(&self) -> LogIndex {
        *self.first.borrow()
    }

    /// The last entry that is trimmed, if any is.
    pub fn trimmed(&self) -> Option<LogIndex> {
        self.first().0.checked_sub(1).map(LogIndex)
    }

    /// Raises it, unless it is as high already.
    pub fn raise(&self, first: LogIndex) {
        self.first.send_if_modified(|current| {
            let rises = first > *current;
            if rises {
                *current = first;
            }
            rises
        });
    }

    /// Tells when it rises.
    pub fn subscribe(&self) -> watch::Receiver<LogIndex> {
        self.first.subscribe()
    }

    /// What is before `first` was kept for slow followers long enough: those that need it get a snapshot.
    pub(super) fn send_from(&self, first: LogIndex) {
        self.sent_from.fetch_max(first.0, Ordering::Relaxed);
    }

    /// Whether entries from `next` on are still sent.
    pub(super) fn is_sent(&self, next: u64) -> bool {
        next >= self.sent_from.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_only_rises() {
        let floor = Floor::new(LogIndex(0));
        assert_eq!(floor.trimmed(), None);
        let mut told = floor.subscribe();
        floor.raise(LogIndex(7));
        assert!(told.has_changed().unwrap());
        told.mark_unchanged();
        floor.raise(LogIndex(3));
        assert!(!told.has_changed().unwrap());
        assert_eq!((floor.first(), floor.trimmed()), (LogIndex(7), Some(LogIndex(6))));
        floor.send_from(LogIndex(5));
        floor.send_from(LogIndex(2));
        assert_eq!([4, 5].map(|next| floor.is_sent(next)), [false, true]);
    }
}
