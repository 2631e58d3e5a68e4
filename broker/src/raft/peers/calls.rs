//! What is asked of another broker and answered once: calls of the upper layers, and what it knows of the cluster.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;
use trunkline_proto::{PartitionId, peer::Stream, v1::peer as pb};

use super::{PRIORITY_HIGH, Peers};
use crate::raft::frames::{self, Receiver, Sender, WireError};

/// What a call is about: which of the upper layers answers it. The numbers are on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum CallKind {
    /// Commands for a partition that the other broker leads.
    Submit = 1,
    /// A forward for a partition that the other broker leads.
    Forward = 2,
    /// Membership, leadership, and what a broker says of itself.
    Admin = 3,
    /// How far the log of a partition goes that the other broker leads.
    ReadIndex = 4,
    /// Moves a handler group in a partition that the other broker leads.
    Reset = 5,
    /// Takes dead letters out of a handler group in a partition that the other broker leads.
    Release = 6,
}

impl CallKind {
    pub(in crate::raft) fn from_u8(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Submit,
            2 => Self::Forward,
            3 => Self::Admin,
            4 => Self::ReadIndex,
            5 => Self::Reset,
            6 => Self::Release,
            _ => return None,
        })
    }
}

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It never left this broker: nothing happened.
    #[error("broker not reached: {0}")]
    NotSent(String),
    /// It may have happened.
    #[error("no answer from the broker: {0}")]
    Unknown(String),
}

impl Peers {
    /// Asks another broker's upper layers.
    pub async fn call(&self, node: u64, kind: CallKind, body: Bytes, patience: Duration) -> Result<Bytes, CallError> {
        let connection = self.connection(node).map_err(CallError::NotSent)?;
        let (mut sender, mut receiver) =
            open(&connection, PRIORITY_HIGH, patience).await.map_err(|error| CallError::NotSent(error.to_string()))?;
        let request = frames::encode_raw(&frames::opening(Stream::Call, PartitionId(0)), &[&[kind as u8], &body]);
        let exchange = async {
            sender.send(request).await?;
            sender.finish();
            receiver.answer().await?.ok_or(WireError::Cut)
        };
        match timeout(patience, exchange).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(CallError::Unknown(error.to_string())),
            Err(_) => Err(CallError::Unknown(format!("within {patience:?}"))),
        }
    }

    /// What another broker knows of the cluster.
    pub async fn status(&self, node: u64, patience: Duration) -> Result<pb::Status, String> {
        self.tell(node, Vec::new(), patience).await
    }

    /// As [`Peers::status`]; tells it how far this broker is.
    pub(in crate::raft) async fn tell(
        &self,
        node: u64,
        progress: Vec<pb::Progress>,
        patience: Duration,
    ) -> Result<pb::Status, String> {
        let connection = self.connection(node)?;
        let request = pb::StatusRequest { progress };
        let request = frames::encode(&frames::opening(Stream::Status, PartitionId(0)), &request);
        let answer = unary(&connection, request, patience).await.map_err(|error| error.to_string())?;
        frames::decode(answer).map_err(|error| error.to_string())
    }
}

/// Opens a stream.
pub(in crate::raft) async fn open(
    connection: &quinn::Connection,
    priority: i32,
    patience: Duration,
) -> Result<(Sender, Receiver), WireError> {
    let (send, receive) = timeout(patience, connection.open_bi()).await.map_err(|_| WireError::Slow)??;
    Ok((Sender::new(send, priority), Receiver::new(receive)))
}

/// One request and its answer on a stream of their own.
pub(in crate::raft) async fn unary(
    connection: &quinn::Connection,
    request: Bytes,
    patience: Duration,
) -> Result<Bytes, WireError> {
    let exchange = async {
        let (mut sender, mut receiver) = open(connection, PRIORITY_HIGH, patience).await?;
        sender.send(request).await?;
        sender.finish();
        receiver.answer().await?.ok_or(WireError::Cut)
    };
    timeout(patience, exchange).await.map_err(|_| WireError::Slow)?
}
