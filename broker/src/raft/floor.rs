//! Where a partition's readable log begins. Raised as soon as a trim is applied or a snapshot takes the log's place, before anything
//! is deleted: readers that look here first never meet a hole.

use std::sync::Arc;

use tokio::sync::watch;
use trunkline_proto::LogIndex;

/// The first readable entry of one partition; only rises. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Floor(Arc<watch::Sender<LogIndex>>);

impl Floor {
    /// Begins at `first`.
    pub fn new(first: LogIndex) -> Self {
        Self(Arc::new(watch::Sender::new(first)))
    }

    /// The first readable entry.
    pub fn first(&self) -> LogIndex {
        *self.0.borrow()
    }

    /// The last entry that is trimmed, if any is.
    pub fn trimmed(&self) -> Option<LogIndex> {
        self.first().0.checked_sub(1).map(LogIndex)
    }

    /// Raises it, unless it is as high already.
    pub fn raise(&self, first: LogIndex) {
        self.0.send_if_modified(|current| {
            let rises = first > *current;
            if rises {
                *current = first;
            }
            rises
        });
    }

    /// Tells when it rises.
    pub fn subscribe(&self) -> watch::Receiver<LogIndex> {
        self.0.subscribe()
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
    }
}
