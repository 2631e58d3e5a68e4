//! Step 5 of the walk. Admit, coalesce, stamp time, propose: one task per partition builds entries out of whatever batches
//! wait, pipelines them into Raft, and answers each batch when it has been applied.

use std::{sync::Arc, time::Duration};

use trunkline_proto::{Batch, Offset};

use crate::core::{AppliedEntry, BatchOutcome, Verdict};

/// Why a batch is not in the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// This broker does not lead the partition. Nothing happened; retry at the leader.
    #[error("not the leader of this partition, try broker {leader:?}")]
    NotLeader {
        /// Who leads, if known.
        leader: Option<u64>,
    },
    /// Caller error.
    #[error("batch of {bytes} bytes exceeds the limit of {limit} bytes")]
    TooLarge {
        /// The batch.
        bytes: usize,
        /// The bound.
        limit: usize,
    },
    /// The queue is full. Nothing happened; retry later.
    #[error("{queued} bytes wait to be appended already")]
    Busy {
        /// In the queue.
        queued: usize,
    },
    /// The store is closed for writing (failed write or sync). Nothing more is acknowledged here.
    #[error("the broker's store is closed for writing: {reason}")]
    Closed {
        /// What the disk said.
        reason: String,
    },
    /// It may still commit: retry with the same sequence, epoch or key.
    #[error("outcome unknown after {waited:?}")]
    Unknown {
        /// How long it has been.
        waited: Duration,
    },
}

/// A batch that has been applied.
#[derive(Clone, Debug)]
pub struct Appended {
    /// The entry it went into.
    pub entry: Arc<AppliedEntry>,
    /// Its number among the entry's batches.
    pub batch: usize,
}

impl Appended {
    /// What became of the batch.
    pub fn outcome(&self) -> &BatchOutcome {
        &self.entry.applied.outcomes[self.batch]
    }

    /// Offset of its n-th record.
    pub fn offset(&self, n: u16) -> Offset {
        Offset::new(self.entry.logged.index, self.outcome().first + n)
    }

    /// Verdict on its n-th record.
    pub fn verdict(&self, n: u16) -> Verdict {
        self.entry.applied.verdict(self.outcome().first + n)
    }
}

/// Appends to one partition. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {}

/// A batch on its way; resolves when it is applied or cannot be any more.
pub type Pending = tokio::sync::oneshot::Receiver<Result<Appended, AppendError>>;

impl Handle {
    /// Queues a batch; waits while the queue is full. The order of completed calls is the order in the log.
    pub async fn enqueue(&self, batch: Batch) -> Result<Pending, AppendError> {
        unimplemented!()
    }

    /// As [`Handle::enqueue`], but a full queue refuses with [`AppendError::Busy`].
    pub fn try_enqueue(&self, batch: Batch) -> Result<Pending, AppendError> {
        unimplemented!()
    }

    /// Queues a batch and waits until it is applied.
    pub async fn append(&self, batch: Batch) -> Result<Appended, AppendError> {
        unimplemented!()
    }
}
