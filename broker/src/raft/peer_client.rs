//! Step 9 of the walk, towards `raft/peer_server.rs` of another broker: openraft's network over QUIC. Appends are pipelined over one
//! stream for each group and peer; votes and heartbeats have streams of their own and go first, snapshots go last. A peer that cannot
//! be reached, or whose disk is another one than the group knows, is unreachable: it neither votes nor acknowledges.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
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
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::{Stream, StreamExt};
use trunkline_proto::{PartitionId, peer::Stream as Kind, v1::peer as pb};

use super::{
    Floor,
    frames::{self, Receiver, Sender, WireError},
    log_store::Log,
    pace,
    peers::{self, Connected, PRIORITY_APPEND, PRIORITY_LOW, Peers},
    transfer::SnapshotData,
    types::{LogId, Member, Types, Vote},
    wire,
};
use crate::controls;

/// Appends sent and not answered yet. More wait in the log.
const PIPELINE_MAX: usize = 64;
/// How long the answer to an append may take: a sync on a slow disk, behind what was sent before. Then the stream begins anew.
const APPEND_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a piece of a snapshot may take to be taken.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a peer may take to install a snapshot that it has.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(600);
/// How often it is looked whether a peer still needs what is sent no more.
const TRIMMED_CHECK: Duration = Duration::from_secs(1);
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

    /// Sends a snapshot's state and waits until it is installed.
    async fn send_snapshot(
        &self,
        connection: &quinn::Connection,
        head: pb::SnapshotHead,
        snapshot: &SnapshotData,
    ) -> Result<Vote, WireError> {
        let within = |patience| move |_| if patience { WireError::Slow } else { WireError::Cut };
        let (mut sender, mut receiver) = peers::open(connection, PRIORITY_LOW, CHUNK_TIMEOUT).await?;
        let opening = frames::opening(Kind::Snapshot, self.network.partition);
        let send = async {
            timeout(CHUNK_TIMEOUT, sender.send(frames::encode(&opening, &head))).await.map_err(within(true))??;
            for n in 0..snapshot.chunks() {
                let chunk = snapshot.chunk(n).await.map_err(|error| WireError::Refused(error.to_string()))?;
                let frame = frames::encode_raw(&[], &[&chunk]);
                timeout(CHUNK_TIMEOUT, sender.send(frame)).await.map_err(within(true))??;
            }
            sender.finish();
            Ok::<_, WireError>(())
        };
        // a peer that does not want it says so without reading it
        let mut answer = std::pin::pin!(receiver.answer());
        let early = tokio::select! {
            sent = send => sent.map(|()| None)?,
            answer = &mut answer => Some(answer),
        };
        let answer = match early {
            Some(answer) => answer,
            None => timeout(INSTALL_TIMEOUT, answer).await.map_err(within(true))?,
        };
        let installed: pb::SnapshotInstalled = frames::decode(answer?.ok_or(WireError::Cut)?)?;
        wire::from_vote(installed.vote)
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

/// An append that was sent: what it followed, and its last entry.
type Sent = (Option<LogId>, Option<LogId>);
type Answer = Result<StreamAppendResult<Types>, RPCError<Types>>;
/// What writes the appends, or reads the answers.
type Half<'s> = Pin<Box<dyn Future<Output = Result<(), WireError>> + Send + 's>>;

/// Appends and their answers, in order. Both halves run inside the stream's own polls: once it is dropped nothing reads the input any
/// more, which belongs to the group's replication and is read by its next stream.
struct AppendStream<'s> {
    writer: Option<Half<'s>>,
    reader: Option<Half<'s>>,
    answers: mpsc::Receiver<StreamAppendResult<Types>>,
    client: &'s PeerClient,
}

impl<'s> AppendStream<'s> {
    fn new<S>(client: &'s PeerClient, peer: Arc<peers::Peer>, input: S, (sender, receiver): (Sender, Receiver)) -> Self
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static,
    {
        let (sent, in_flight) = mpsc::channel(PIPELINE_MAX);
        let (answered, answers) = mpsc::channel(1);
        let next = Arc::new(AtomicU64::new(NOTHING_SENT));
        let trimmed = trimmed(client, Arc::clone(&next));
        let reading = read(client, receiver, in_flight, answered, Arc::clone(&next));
        let reader = async move {
            tokio::select! {
                done = reading => done,
                () = trimmed => Err(WireError::Trimmed),
            }
        };
        Self {
            writer: Some(Box::pin(write(&client.network, peer, input, sender, sent, next))),
            reader: Some(Box::pin(reader)),
            answers,
            client,
        }
    }
}

impl Stream for AppendStream<'_> {
    type Item = Answer;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut std::task::Context<'_>) -> Poll<Option<Answer>> {
        let this = &mut *self;
        let mut failure = None;
        if let Some(writer) = &mut this.writer
            && let Poll::Ready(done) = writer.as_mut().poll(context)
        {
            this.writer = None;
            failure = done.err();
        }
        if let Some(reader) = &mut this.reader
            && let Poll::Ready(done) = reader.as_mut().poll(context)
        {
            (this.reader, this.writer) = (None, None);
            // what the peer said tells more than that it stopped reading
            failure = done.err().or(failure);
        }
        if let Poll::Ready(Some(answer)) = this.answers.poll_recv(context) {
            return Poll::Ready(Some(Ok(answer)));
        }
        if let Some(error) = failure {
            (this.writer, this.reader) = (None, None);
            return Poll::Ready(Some(Err(this.client.failed(RPCTypes::AppendEntries, &error, APPEND_TIMEOUT))));
        }
        match this.reader {
            Some(_) => Poll::Pending,
            None => Poll::Ready(None),
        }
    }
}

/// In place of the first entry that a peer has not acknowledged on a stream: none was sent to it yet.
const NOTHING_SENT: u64 = u64::MAX;

/// Until a peer needs what is sent no more: as long as a stream may still need it, openraft does not purge.
async fn trimmed(client: &PeerClient, next: Arc<AtomicU64>) {
    loop {
        tokio::time::sleep(TRIMMED_CHECK).await;
        let next = next.load(Ordering::Relaxed);
        if !client.network.floor.is_sent(next) {
            let (partition, peer) = (client.network.partition, client.target);
            tracing::warn!(
                %partition, peer, next,
                "a broker has been too slow for long: what it needs next is trimmed, and it gets a snapshot"
            );
            return;
        }
    }
}

/// Sends appends until there are no more.
async fn write<S>(
    network: &Network,
    peer: Arc<peers::Peer>,
    mut input: S,
    mut sender: Sender,
    sent: mpsc::Sender<Sent>,
    next: Arc<AtomicU64>,
) -> Result<(), WireError>
where
    S: Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static,
{
    let (mut opening, mut is_far) = (Some(frames::opening(Kind::Append, network.partition)), false);
    while let Ok(place) = sent.reserve().await {
        let Some(request) = input.next().await else { break };
        // later ones follow those before
        if let Some(first) = request.entries.first() {
            let _ = next.compare_exchange(NOTHING_SENT, first.index(), Ordering::Relaxed, Ordering::Relaxed);
        }
        let last = request.entries.last().map(RaftEntry::log_id).or(request.prev_log_id);
        let before: &[u8] = opening.as_ref().map_or(&[], |opening| opening.as_slice());
        let bytes = frames::encode(before, &wire::append(network.partition, &request));
        opening = None;
        is_far = pace::is_far(is_far, network.log.bytes_after(last.map_or(0, |last| last.index)));
        // what is not committed yet may be waiting for this very peer
        if is_far && last <= request.leader_commit {
            network.peers.pace().take(&peer.paid, bytes.len()).await;
        }
        // before it goes, so that its answer finds it
        place.send((request.prev_log_id, last));
        sender.send(bytes).await?;
    }
    sender.finish();
    Ok(())
}

/// Reads the answers to what was sent, each within its time.
async fn read(
    client: &PeerClient,
    mut receiver: Receiver,
    mut in_flight: mpsc::Receiver<Sent>,
    answered: mpsc::Sender<StreamAppendResult<Types>>,
    next: Arc<AtomicU64>,
) -> Result<(), WireError> {
    while let Some((followed, sent)) = in_flight.recv().await {
        if controls::EARLY_ACK.is_on() {
            if answered.send(Ok(sent)).await.is_err() {
                break;
            }
            continue;
        }
        let answer = timeout(APPEND_TIMEOUT, receiver.answer()).await.map_err(|_| WireError::Slow)??;
        let answer = wire::from_appended(frames::decode(answer.ok_or(WireError::Cut)?)?, followed, sent)?;
        client.note(&answer);
        if let Ok(Some(last)) = &answer {
            next.store(last.index + 1, Ordering::Relaxed);
        }
        // whatever is not a match ends the stream
        let is_last = answer.is_err();
        if answered.send(answer).await.is_err() || is_last {
            break;
        }
    }
    Ok(())
}
