//! How far a replica must have applied before it may answer about the present (Raft's read index).

use std::time::Duration;

use openraft::{
    ReadPolicy,
    errors::{LinearizableReadError, RaftError},
};
use trunkline_proto::LogIndex;

use super::Group;

/// Why nobody knows how far the log goes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadIndexError {
    /// Nobody leads, as far as this broker knows.
    #[error("it has no leader")]
    NoLeader,
    /// Another broker may know.
    #[error("not the leader of this partition, try broker {leader:?}")]
    NotLeader {
        /// Who, if known.
        leader: Option<u64>,
    },
    /// A majority did not say in time that it still follows this leader.
    #[error("no majority of its members answers its leader")]
    NoMajority,
    /// The group has stopped.
    #[error("its group has stopped: {0}")]
    Stopped(String),
}

impl Group {
    /// The leader's answer: everything acknowledged before this call is at or before this entry. Asks a majority whether it still
    /// follows, each time: a leader that was paused or cut off does not know that it has been replaced.
    ///
    /// # Errors
    /// This broker does not lead, or no majority answers within `patience`.
    pub async fn read_index(&self, patience: Duration) -> Result<LogIndex, ReadIndexError> {
        let asked = tokio::time::timeout(patience, self.raft().get_read_linearizer(ReadPolicy::ReadIndex)).await;
        match asked {
            Ok(Ok(linearizer)) => Ok(LogIndex(linearizer.read_log_id().index())),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)))) => {
                Err(ReadIndexError::NotLeader { leader: forward.leader_id })
            }
            Ok(Err(RaftError::APIError(_))) | Err(_) => Err(ReadIndexError::NoMajority),
            Ok(Err(RaftError::Fatal(error))) => Err(ReadIndexError::Stopped(error.to_string())),
        }
    }

    /// Waits until this replica has applied that entry; whether it did within `patience`.
    pub async fn wait_applied(&self, index: LogIndex, patience: Duration) -> bool {
        let wait = self.raft().wait(Some(patience));
        wait.applied_index_at_least(Some(index.0), "a read").await.is_ok()
    }
}
