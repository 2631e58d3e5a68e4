//! A broker's partitions put together: store, Raft group, state, appender and tail of each.

use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::watch;
use trunkline_proto::{LogIndex, Offset, PartitionCount, PartitionId, Timestamp};

use crate::{append, core, tail};

/// Who leads a partition, as this broker sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// This broker, and everything committed before its term is applied: effects are this broker's to carry out.
    Leader {
        /// Raft term.
        term: u64,
    },
    /// Another broker, or nobody.
    Follower {
        /// Who.
        leader: Option<u64>,
    },
    /// The group has stopped: the store failed or is damaged.
    Closed,
}

/// Everything about one partition that the layers above use. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PartitionHandle {
    /// Which.
    pub id: PartitionId,
    /// Puts batches into its log.
    pub append: append::Handle,
    /// Its applied tail.
    pub tail: tail::Handle,
    /// Its state. Hold the lock for microseconds: apply needs it.
    pub state: Arc<RwLock<core::Partition>>,
    /// Who leads it.
    pub role: watch::Receiver<Role>,
}

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

/// Where in the past.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// After the record at this offset (and the rest of its entry before it).
    Offset(Offset),
    /// After the last entry stamped at or before this time.
    Time(Timestamp),
}

/// A broker's partitions.
#[derive(Clone, Debug)]
pub struct Node {}

impl Node {
    /// How many partitions the cluster has.
    pub fn partition_count(&self) -> PartitionCount {
        unimplemented!()
    }

    /// The partition, if this broker holds a replica of it.
    pub fn partition(&self, id: PartitionId) -> Option<&PartitionHandle> {
        unimplemented!()
    }

    /// Reads applied entries from disk: those after `after`, about `bytes_max` bytes of them, at least one unless at the end.
    /// Blocking work happens on the blocking pool.
    pub async fn read_log(
        &self,
        partition: PartitionId,
        after: LogIndex,
        bytes_max: usize,
    ) -> Result<Vec<core::LoggedEntry>, ReadError> {
        unimplemented!()
    }

    /// The last entry stamped at or before `time` ([`LogIndex`] 0: none), by binary search.
    pub async fn index_at(&self, partition: PartitionId, time: Timestamp) -> Result<LogIndex, ReadError> {
        unimplemented!()
    }

    /// The state at a moment of the past: newest snapshot before it, and replay. Gives the offset folded in last.
    pub async fn state_at(
        &self,
        partition: PartitionId,
        moment: Moment,
    ) -> Result<(core::Partition, Offset), ReadError> {
        unimplemented!()
    }

    /// First offset that can still be read.
    pub fn earliest(&self, partition: PartitionId) -> Offset {
        unimplemented!()
    }

    /// Whether the store takes writes; otherwise why not.
    pub fn health(&self) -> Result<(), String> {
        unimplemented!()
    }
}
