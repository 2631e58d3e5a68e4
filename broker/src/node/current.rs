//! Reading the present. Any broker answers from its own replica, once that holds everything acknowledged before the question; so no
//! answer is older than its question, whichever broker is asked. Without a majority nobody answers.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};
use trunkline_proto::{LogIndex, PartitionId, v1::peer as pb};

use super::Node;
use crate::raft::{CallKind, ReadIndexError, Role};

/// How long a question waits for a leader, its majority, and this replica: an election and some.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a leader may take to hear its majority.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// Between attempts.
const RETRY: Duration = Duration::from_millis(50);

/// What this broker knows of a partition may be old. Nothing happened: ask again, or elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("partition {partition} cannot be read as it is now: {reason}")]
pub struct NotCurrent {
    /// Which.
    pub partition: PartitionId,
    /// Why.
    pub reason: String,
}

impl Node {
    /// Waits until this broker's replicas of these partitions hold everything acknowledged before the call.
    ///
    /// # Errors
    /// One of them has no leader, the leader no majority, or this broker cannot catch up in time.
    pub async fn current(&self, partitions: impl IntoIterator<Item = PartitionId>) -> Result<(), NotCurrent> {
        let deadline = Instant::now() + PATIENCE;
        let mut waiting = JoinSet::new();
        for partition in partitions {
            let node = self.clone();
            waiting.spawn(async move {
                let current = node.make_current(partition, deadline).await;
                current.map_err(|reason| NotCurrent { partition, reason })
            });
        }
        while let Some(done) = waiting.join_next().await {
            // none of them is aborted, and a panic is reported where it happens
            if let Ok(current) = done {
                current?;
            }
        }
        Ok(())
    }

    /// All partitions; see [`Node::current`].
    pub async fn all_current(&self) -> Result<(), NotCurrent> {
        self.current(self.partition_count().iter()).await
    }

    async fn make_current(&self, partition: PartitionId, deadline: Instant) -> Result<(), String> {
        let mut reason = "this broker holds no replica of it".to_owned();
        let Some(group) = self.group_of(partition) else { return Err(reason) };
        while Instant::now() < deadline {
            match timeout_at(deadline, self.ask_read_index(partition)).await {
                Ok(Ok(index)) => {
                    let patience = deadline.saturating_duration_since(Instant::now());
                    if group.wait_applied(index, patience).await {
                        return Ok(());
                    }
                    reason = "this broker has not caught up with its leader".to_owned();
                }
                Ok(Err(failed)) => reason = failed,
                Err(_) => break,
            }
            if matches!(*group.role().borrow(), Role::Closed) {
                return Err(self.closed(partition));
            }
            sleep(RETRY).await;
        }
        Err(reason)
    }

    /// How far the log goes, as its leader says.
    async fn ask_read_index(&self, partition: PartitionId) -> Result<LogIndex, String> {
        let role = self.partition(partition).map(|handle| *handle.role.borrow());
        let Some(Role::Follower { leader: Some(leader) }) = role else {
            return self.read_index(partition).await.map_err(|error| error.to_string());
        };
        let request = pb::ReadIndexRequest { partition: u32::from(partition.0) };
        let patience = ASK_TIMEOUT + RETRY;
        let answer = self.peers().call(leader, CallKind::ReadIndex, request.encode_to_vec().into(), patience).await;
        let answer = answer.map_err(|error| format!("its leader, broker {leader}: {error}"))?;
        let answer = pb::ReadIndexResponse::decode(answer).map_err(|error| error.to_string())?;
        match answer.error.is_empty() {
            true => Ok(LogIndex(answer.index)),
            false => Err(answer.error),
        }
    }

    async fn read_index(&self, partition: PartitionId) -> Result<LogIndex, ReadIndexError> {
        match self.group_of(partition) {
            Some(group) => match group.read_index(ASK_TIMEOUT).await {
                Err(ReadIndexError::NotLeader { leader: None }) => Err(ReadIndexError::NoLeader),
                read => read,
            },
            None => Err(ReadIndexError::Stopped("this broker is shutting down".to_owned())),
        }
    }

    /// Answers the call of another broker, which takes this one for a partition's leader.
    pub async fn answer_read_index(&self, body: Bytes) -> Bytes {
        let failed = |error: String| pb::ReadIndexResponse { index: 0, error };
        let request = pb::ReadIndexRequest::decode(body).map_err(|error| error.to_string());
        let partition = request
            .and_then(|request| u16::try_from(request.partition).map(PartitionId).map_err(|error| error.to_string()));
        let answer = match partition {
            Ok(partition) => match self.read_index(partition).await {
                Ok(index) => pb::ReadIndexResponse { index: index.0, error: String::new() },
                Err(error) => failed(error.to_string()),
            },
            Err(error) => failed(error),
        };
        answer.encode_to_vec().into()
    }
}
