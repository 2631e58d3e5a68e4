//! Step 9 of the walk, towards `raft/peer_server.rs` of another broker: openraft's network over QUIC. Appends are pipelined over one
//! stream for each group and peer; votes and heartbeats have streams of their own and go first, snapshots go last. A peer that cannot
//! be reached, or whose disk is another one than the group knows, is unreachable: it neither votes nor acknowledges.

mod appends;
mod snapshots;

use std::{
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use openraft::{
    RaftNetworkFactory, RaftNetworkV2,
    base::{BoxFuture, BoxStream},
    entry::RaftEntry,
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::{Backoff, RPCOption, RPCTypes},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
        TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
    },
    type_config::alias::SnapshotOf,
};
use tokio_stream::{Stream, StreamExt};
use trunkline_proto::{PartitionId, peer::Stream as Kind};

use self::{appends::AppendStream, snapshots::INSTALL_TIMEOUT};
use super::{
    Floor,
    frames::{self, WireError},
    log_store::Log,
    peers::{self, Connected, PRIORITY_APPEND, Peers},
    transfer::SnapshotData,
    types::{Member, Types, Vote},
    wire,
};

/// Between attempts at a peer that is not there.
const BACKOFF: Duration = Duration::from_millis(200);

/// Makes the connections of one partition's group to its peers.
#[derive(Clone, Debug)]
pub struct Network {
    /// The other brokers.
    pub peers: Peers,
    /// The group's.
    pub partition: PartitionId,
    /// Says how far behind a peer is.
    pub log: Log,
    /// Says what is sent.
    pub floor: Floor,
}

/// One group's way to one peer.
#[derive(Debug)]
pub struct PeerClient {
    network: Network,
    target: u64,
    member: Member,
    /// Sends one append on a stream of its own, ahead of what is pipelined.
    is_heartbeat: bool,
    /// End of what the peer has acknowledged to this client.
    acknowledged: AtomicU64,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = PeerClient;

    async fn new_client(&mut self, target: u64, node: &Member) -> PeerClient {
        self.peers.ensure(target, &node.link);
        let acknowledged = AtomicU64::new(0);
        PeerClient { network: self.clone(), target, member: node.clone(), is_heartbeat: false, acknowledged }
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Member) -> PeerClient {
        PeerClient { is_heartbeat: true, ..self.new_client(target, node).await }
    }
}

fn unreachable(reason: String) -> Unreachable<Types> {
    Unreachable::new(&io::Error::new(io::ErrorKind::NotConnected, reason))
}

fn network_error(error: &WireError) -> NetworkError<Types> {
    NetworkError::new(error)
}

impl PeerClient {
    fn connected(&self) -> Result<(Connected, Arc<peers::Peer>), Unreachable<Types>> {
        if let Some(reason) = self.network.peers.own().witness.closed() {
            return Err(unreachable(format!("this broker takes no part any more: {reason}")));
        }
        self.network.peers.connected(self.target, &self.member).map_err(unreachable)
    }

    fn failed(&self, action: RPCTypes, error: &WireError, patience: Duration) -> RPCError<Types> {
        match error {
            WireError::Slow => {
                let id = self.network.peers.own().node;
                Timeout { action, id, target: self.target, timeout: patience }.into()
            }
            // its connection is gone, or it will not have us: waiting is in order
            WireError::Stream(_) | WireError::Refused(_) | WireError::Trimmed => unreachable(error.to_string()).into(),
            error => network_error(error).into(),
        }
    }

    /// Takes note of an answer: nobody conflicts with what it has acknowledged, unless it has lost it.
    fn note(&self, answer: &StreamAppendResult<Types>) {
        match answer {
            Ok(Some(last)) => {
                self.acknowledged.fetch_max(last.index + 1, Ordering::Relaxed);
                let witness = &self.network.peers.own().witness;
                witness.acknowledged(self.target, self.member.disk, self.network.partition, *last);
            }
            Err(StreamAppendError::Conflict(at)) if at.index < self.acknowledged.load(Ordering::Relaxed) => {
                self.acknowledged.store(at.index, Ordering::Relaxed);
                let (partition, peer) = (self.network.partition, self.target);
                tracing::error!(
                    %partition, peer, index = at.index,
                    "a broker has lost what it acknowledged: its disk does not keep what it says it keeps, or its data is an older \
                     copy. What it lacks is sent to it again"
                );
            }
            _ => {}
        }
    }

    async fn unary(
        &self,
        kind: Kind,
        action: RPCTypes,
        request: &impl prost::Message,
        option: &RPCOption,
    ) -> Result<Bytes, RPCError<Types>> {
        let (connected, _) = self.connected()?;
        let request = frames::encode(&frames::opening(kind, self.network.partition), request);
        let answer = peers::unary(&connected.connection, request, option.soft_ttl()).await;
        answer.map_err(|error| self.failed(action, &error, option.soft_ttl()))
    }

    async fn single_append(
        &self,
        request: &AppendEntriesRequest<Types>,
        option: &RPCOption,
    ) -> Result<StreamAppendResult<Types>, RPCError<Types>> {
        let message = wire::append(self.network.partition, request);
        let answer = self.unary(Kind::Heartbeat, RPCTypes::AppendEntries, &message, option).await?;
        let last = request.entries.last().map(RaftEntry::log_id).or(request.prev_log_id);
        let answer = frames::decode(answer).and_then(|answer| wire::from_appended(answer, request.prev_log_id, last));
        let answer = answer.map_err(|error| network_error(&error))?;
        self.note(&answer);
        Ok(answer)
    }

    async fn vote_round(
        &self,
        kind: Kind,
        rpc: &VoteRequest<Types>,
        option: &RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let answer = self.unary(kind, RPCTypes::Vote, &wire::vote_request(rpc), option).await?;
        let answer = frames::decode(answer).and_then(wire::from_vote_response);
        answer.map_err(|error| network_error(&error).into())
    }
}

impl RaftNetworkV2<Types> for PeerClient {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let last = rpc.entries.last().map(RaftEntry::log_id).or(rpc.prev_log_id);
        Ok(match self.single_append(&rpc, &option).await? {
            Ok(matched) if matched == last => AppendEntriesResponse::Success,
            Ok(matched) => AppendEntriesResponse::PartialSuccess(matched),
            Err(StreamAppendError::Conflict(_)) => AppendEntriesResponse::Conflict,
            Err(StreamAppendError::HigherVote(vote)) => AppendEntriesResponse::HigherVote(vote),
        })
    }

    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>, RPCError<Types>>>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static,
    {
        Box::pin(async move {
            if self.is_heartbeat {
                let Some(request) = input.next().await else { return Ok(boxed(tokio_stream::empty())) };
                let answer = self.single_append(&request, &option).await?;
                return Ok(boxed(tokio_stream::once(Ok(answer))));
            }
            let (connected, peer) = match self.connected() {
                Ok(connected) => connected,
                Err(error) => {
                    // openraft's own backoff begins only once its requests are read: it would ask again at once
                    tokio::time::sleep(BACKOFF).await;
                    return Err(error.into());
                }
            };
            let opened = peers::open(&connected.connection, PRIORITY_APPEND, option.soft_ttl()).await;
            let opened = opened.map_err(|error| self.failed(RPCTypes::AppendEntries, &error, option.soft_ttl()))?;
            Ok(boxed(AppendStream::new(self, peer, input, opened)))
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.vote_round(Kind::Vote, &rpc, &option).await
    }

    // the default grants: a peer that cannot be reached must not
    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.vote_round(Kind::PreVote, &rpc, &option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<Types, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let (connected, _) = self.connected()?;
        let data = snapshot.snapshot;
        let (head, bytes) = (wire::snapshot_head(&vote, data.manifest()), data.manifest().bytes);
        tokio::select! {
            closed = cancel => Err(closed.into()),
            sent = self.send_snapshot(&connected.connection, head, &data) => match sent {
                Ok(vote) => {
                    let (partition, peer) = (self.network.partition, self.target);
                    tracing::info!(%partition, peer, bytes, "snapshot sent");
                    Ok(SnapshotResponse::new(vote))
                }
                Err(error) => Err(self.failed(RPCTypes::InstallSnapshot, &error, INSTALL_TIMEOUT).into()),
            },
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let message = wire::transfer(&req);
        let answer = self.unary(Kind::TransferLeader, RPCTypes::TransferLeader, &message, &option).await?;
        let answer = frames::decode(answer).and_then(|answer| wire::from_transferred(answer, *req.from_leader()));
        answer.map_err(|error| network_error(&error).into())
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(BACKOFF)))
    }
}

fn boxed<'s, T>(stream: impl Stream<Item = T> + Send + 's) -> BoxStream<'s, T> {
    Box::pin(stream)
}
