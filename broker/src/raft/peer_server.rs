//! Step 9 of the walk, from `raft/peer_client.rs` of another broker: serves its streams. What a peer sends is checked before openraft
//! sees it; a peer that breaks the protocol loses that stream, with a word why.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use openraft::{raft::AppendEntriesRequest, storage::Snapshot};
use parking_lot::RwLock;
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tokio_util::task::TaskTracker;
use trunkline_proto::{
    PartitionId,
    peer::{ANSWER_OK, PEER_FRAME_BYTES_MAX, SNAPSHOT_CHUNK_BYTES, Stream as Kind},
    v1::peer as pb,
};

use super::{
    Group, Role as GroupRole,
    frames::{self, Receiver, Sender, WireError},
    peers::{self, CallKind, HELLO_BYTES_MAX, PRIORITY_HIGH, Peers},
    state_machine,
    types::Types,
    wire,
};
use crate::{
    quic::{Accepted, Role},
    store::{DiskId, Space},
};

/// Hello, and the request of any stream that has one, must come within this.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a piece of a snapshot may take to come.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);
/// Appends read off a stream and not taken by the group yet.
const APPENDS_AHEAD: usize = 4;
/// Streams beside those of groups: calls, mostly.
const CALLS_MAX: u32 = 256;
/// Snapshots received at once, by the whole broker: each is held in memory while it is installed.
const SNAPSHOTS_MAX: usize = 1;

/// Answers calls of other brokers. Must answer in bounded time: a caller waits only so long.
pub trait Calls: Send + Sync + 'static {
    /// One call of broker `from`.
    fn call(&self, from: u64, kind: CallKind, body: Bytes) -> Pin<Box<dyn Future<Output = Bytes> + Send + '_>>;
}

/// Serves the connections of other brokers.
pub struct PeerServer {
    peers: Peers,
    groups: Vec<Group>,
    damaged: Vec<PartitionId>,
    founders: Vec<pb::Founder>,
    space: Space,
    calls: RwLock<Option<Arc<dyn Calls>>>,
    snapshots: Semaphore,
    connections: TaskTracker,
    /// Milliseconds that each append of a test takes.
    #[cfg(test)]
    pub(crate) drag: std::sync::atomic::AtomicU64,
}

impl std::fmt::Debug for PeerServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerServer").field("groups", &self.groups.len()).finish_non_exhaustive()
    }
}

/// Who is at the other end.
#[derive(Clone, Copy)]
struct Caller {
    id: u64,
    disk: DiskId,
}

impl PeerServer {
    /// Serves these groups, one for each partition that is not damaged here; `founders` as configured.
    pub fn new(
        peers: Peers,
        groups: Vec<Group>,
        damaged: Vec<PartitionId>,
        founders: Vec<pb::Founder>,
        space: Space,
    ) -> Self {
        Self {
            peers,
            groups,
            damaged,
            founders,
            space,
            calls: RwLock::default(),
            snapshots: Semaphore::new(SNAPSHOTS_MAX),
            connections: TaskTracker::new(),
            #[cfg(test)]
            drag: Default::default(),
        }
    }

    /// Who answers calls from now on.
    pub fn set_calls(&self, calls: Arc<dyn Calls>) {
        *self.calls.write() = Some(calls);
    }

    /// Serves one connection until it ends or the peers do.
    pub async fn serve(self: Arc<Self>, accepted: Accepted) {
        let Accepted { connection, identity, permit } = accepted;
        let address = connection.remote_address();
        let id = match (identity.role, identity.name.parse::<u64>()) {
            (Role::Broker, Ok(id)) => id,
            _ => {
                tracing::warn!(%address, %identity, "only brokers speak this protocol: refused");
                return connection.close(1u32.into(), b"only brokers speak this protocol");
            }
        };
        let stop = self.peers.stop().clone();
        let served = self.connections.track_future(async {
            let caller = match timeout(REQUEST_TIMEOUT, self.greet(&connection, id)).await {
                Ok(Ok(caller)) => caller,
                Ok(Err(error)) => {
                    tracing::warn!(peer = id, %address, %error, "broker refused");
                    return;
                }
                Err(_) => return,
            };
            drop(permit);
            // a stream for each group and what is being replaced, votes and heartbeats, snapshots, and calls
            let groups = u32::try_from(self.groups.len()).unwrap_or(u32::MAX);
            connection.set_max_concurrent_bi_streams(groups.saturating_mul(6).saturating_add(CALLS_MAX).into());
            self.accept(&connection, caller).await;
        });
        stop.run_until_cancelled(served).await;
        connection.close(0u32.into(), b"bye");
    }

    /// Waits until no connection is served any more.
    pub async fn stopped(&self) {
        self.connections.close();
        self.connections.wait().await;
    }

    async fn greet(&self, connection: &quinn::Connection, id: u64) -> Result<Caller, WireError> {
        let (send, receive) = connection.accept_bi().await?;
        let (sender, mut receiver) = (Sender::new(send, PRIORITY_HIGH), Receiver::new(receive));
        let greeted = async {
            match receiver.opening().await? {
                (Kind::Hello, _) => {}
                (other, _) => return Err(WireError::Invalid(format!("{other:?} before hello"))),
            }
            let hello: pb::Hello = frames::decode(receiver.expect(HELLO_BYTES_MAX).await?)?;
            let disk = peers::check_hello(self.peers.own(), &hello, id).await?;
            if id == self.peers.own().node {
                return Err(WireError::Refused("it has the number of this broker".to_owned()));
            }
            if !self.peers.own().witness.is_retired(disk) {
                self.peers.greeted(id, hello.process);
            }
            Ok(Caller { id, disk })
        };
        let greeted = greeted.await;
        let answer = match &greeted {
            Ok(_) => Ok(frames::ok_answer(&peers::hello(self.peers.own(), id))),
            Err(error) => Err(error.clone()),
        };
        sender.answer(answer).await;
        // it has been told, and learns from that what it is
        let greeted = greeted.and_then(|caller| match self.peers.own().witness.is_retired(caller.disk) {
            true => Err(peers::retired(caller.id, caller.disk)),
            false => Ok(caller),
        });
        if greeted.is_err() {
            // its reason is on the way
            let _ = timeout(Duration::from_secs(1), connection.closed()).await;
        }
        greeted
    }

    async fn accept(self: &Arc<Self>, connection: &quinn::Connection, caller: Caller) {
        let streams = TaskTracker::new();
        while let Ok((send, receive)) = connection.accept_bi().await {
            let (server, stop) = (Arc::clone(self), self.peers.stop().clone());
            streams.spawn(async move {
                let stream = server.stream(caller, Sender::new(send, PRIORITY_HIGH), Receiver::new(receive));
                stop.run_until_cancelled(stream).await;
            });
        }
        streams.close();
        streams.wait().await;
    }

    async fn stream(&self, caller: Caller, mut sender: Sender, mut receiver: Receiver) {
        let opened = timeout(REQUEST_TIMEOUT, receiver.opening()).await.map_err(|_| WireError::Slow).flatten();
        let done = match opened {
            Ok((Kind::Append, partition)) => self.append(caller, partition, &mut sender, receiver).await.map(|()| None),
            Ok((kind, partition)) => self.single(caller, kind, partition, receiver).await.map(Some),
            Err(error) => Err(error),
        };
        match done {
            Ok(Some(answer)) => sender.answer(Ok(answer)).await,
            Ok(None) => sender.finish(),
            Err(error) => {
                match error {
                    WireError::Invalid(_) | WireError::Limit { .. } => {
                        tracing::warn!(peer = caller.id, %error, "a peer's stream ends");
                    }
                    // it has gone away, or this broker stops
                    _ => tracing::debug!(peer = caller.id, %error, "a peer's stream ends"),
                }
                sender.answer(Err(error)).await;
            }
        }
    }

    /// The group, for what only its leader says. Whatever disk that one has: its group elected it, and a follower that is behind may
    /// know it from before it was removed and added with another.
    fn group(&self, partition: PartitionId) -> Result<&Group, WireError> {
        if let Some(reason) = self.peers.own().witness.closed() {
            return Err(WireError::Refused(reason.to_owned()));
        }
        if self.damaged.contains(&partition) {
            return Err(WireError::Refused(format!("partition {partition} is damaged here")));
        }
        let group = self.groups.iter().find(|group| group.partition() == partition);
        group.ok_or_else(|| WireError::Refused(format!("there is no partition {partition}")))
    }

    /// The group, for a caller that asks for votes: one whose disk is not the member's may not.
    fn electing(&self, caller: Caller, partition: PartitionId) -> Result<&Group, WireError> {
        let group = self.group(partition)?;
        match group.member(caller.id) {
            Some(member) if member.disk != DiskId::UNKNOWN && member.disk != caller.disk => {
                Err(WireError::Refused(format!(
                    "partition {partition} knows broker {} with disk {}, not {}",
                    caller.id, member.disk, caller.disk
                )))
            }
            _ => Ok(group),
        }
    }

    /// Everything that is one request and one answer.
    async fn single(
        &self,
        caller: Caller,
        kind: Kind,
        partition: PartitionId,
        mut receiver: Receiver,
    ) -> Result<Bytes, WireError> {
        if kind == Kind::Snapshot {
            return self.snapshot(caller, partition, receiver).await;
        }
        let limit = if matches!(kind, Kind::Heartbeat | Kind::Call) { PEER_FRAME_BYTES_MAX } else { HELLO_BYTES_MAX };
        let frame = timeout(REQUEST_TIMEOUT, receiver.expect(limit)).await.map_err(|_| WireError::Slow)??;
        let stopped = |error: String| WireError::Refused(format!("partition {partition}: {error}"));
        match kind {
            Kind::Heartbeat => {
                let group = self.group(partition)?;
                let request = wire::from_append(partition, caller.id, frames::decode(frame)?)?;
                group.hear(caller.id);
                let mut answers = std::pin::pin!(group.raft().stream_append(tokio_stream::once(request)));
                let answer = answers.next().await.ok_or(WireError::Cut)?.map_err(|error| stopped(error.to_string()))?;
                Ok(frames::ok_answer(&wire::appended(&answer)))
            }
            Kind::Vote | Kind::PreVote => {
                let group = self.electing(caller, partition)?;
                let request = wire::from_vote_request(frames::decode(frame)?, caller.id)?;
                let answer = match kind {
                    Kind::Vote => group.raft().vote(request).await,
                    _ => group.raft().pre_vote(request).await,
                };
                Ok(frames::ok_answer(&wire::vote_response(&answer.map_err(|error| stopped(error.to_string()))?)))
            }
            Kind::TransferLeader => {
                let group = self.group(partition)?;
                let request = wire::from_transfer(frames::decode(frame)?, caller.id)?;
                let answer = group.raft().handle_transfer_leader(request).await;
                Ok(frames::ok_answer(&wire::transferred(&answer.map_err(|error| stopped(error.to_string()))?)))
            }
            Kind::Call => {
                let number = frame.first().copied().unwrap_or_default();
                let kind = CallKind::from_u8(number);
                let kind = kind.ok_or_else(|| WireError::Invalid(format!("call of unknown kind {number}")))?;
                let calls = self.calls.read().clone();
                let calls = calls.ok_or_else(|| WireError::Refused("this broker is starting".to_owned()))?;
                let answer = calls.call(caller.id, kind, frame.slice(1..)).await;
                Ok(frames::encode_raw(&[ANSWER_OK], &[&answer]))
            }
            Kind::Status => {
                let request: pb::StatusRequest = frames::decode(frame)?;
                self.peers.own().witness.told(caller.id, caller.disk, &request.progress);
                Ok(frames::ok_answer(&self.status(caller)))
            }
            Kind::Hello | Kind::Append | Kind::Snapshot => {
                Err(WireError::Invalid(format!("{kind:?} has no place here")))
            }
        }
    }

    fn status(&self, caller: Caller) -> pb::Status {
        // what is damaged here was formed once: nobody may form it anew
        let damaged: Vec<u32> = self.damaged.iter().map(|partition| u32::from(partition.0)).collect();
        let (founders, no_space) = (self.founders.clone(), self.space.check().is_err());
        let mut status =
            pb::Status { founders, formed: damaged.clone(), closed: damaged, no_space, ..Default::default() };
        for group in self.groups.iter().filter(|group| *group.role().borrow() == GroupRole::Closed) {
            status.closed.push(u32::from(group.partition().0));
        }
        for group in self.groups.iter().filter(|group| group.is_formed()) {
            let partition = u32::from(group.partition().0);
            status.formed.push(partition);
            match group.member(caller.id) {
                Some(member) if member.disk != caller.disk => status.other_disk.push(partition),
                Some(_) => {}
                None => status.absent.push(partition),
            }
        }
        status
    }

    /// One group's appends, for as long as the stream lasts.
    async fn append(
        &self,
        caller: Caller,
        partition: PartitionId,
        sender: &mut Sender,
        mut receiver: Receiver,
    ) -> Result<(), WireError> {
        let group = self.group(partition)?;
        let (requests, input) = mpsc::channel::<AppendEntriesRequest<Types>>(APPENDS_AHEAD);
        let mut answers = std::pin::pin!(group.raft().stream_append(ReceiverStream::new(input)));
        // reads on while earlier ones are being synced; its end drops `requests`, and with it the group's input
        let reading = async move {
            while let Some(frame) = receiver.frame(PEER_FRAME_BYTES_MAX).await? {
                let request = wire::from_append(partition, caller.id, frames::decode(frame)?)?;
                group.hear(caller.id);
                #[cfg(test)]
                tokio::time::sleep(Duration::from_millis(self.drag.load(std::sync::atomic::Ordering::Relaxed))).await;
                if requests.send(request).await.is_err() {
                    break;
                }
            }
            Ok::<_, WireError>(())
        };
        let answering = async {
            while let Some(answer) = answers.next().await {
                let answer = answer.map_err(|error| WireError::Refused(format!("partition {partition}: {error}")))?;
                sender.send(frames::ok_answer(&wire::appended(&answer))).await?;
            }
            Ok::<_, WireError>(())
        };
        let (mut reading, mut answering) = (std::pin::pin!(reading), std::pin::pin!(answering));
        tokio::select! {
            // what came before its end is answered still
            read = &mut reading => read.and(answering.await),
            // a conflict or a higher vote is the last answer: whatever else was sent is for nothing
            answered = &mut answering => answered,
        }
    }

    /// Receives a snapshot and installs it. One that is cut short is dropped: the leader sends it anew.
    async fn snapshot(
        &self,
        caller: Caller,
        partition: PartitionId,
        mut receiver: Receiver,
    ) -> Result<Bytes, WireError> {
        let group = self.group(partition)?;
        let slow = |_| WireError::Slow;
        let head = timeout(REQUEST_TIMEOUT, receiver.expect(PEER_FRAME_BYTES_MAX)).await.map_err(slow)??;
        let head: pb::SnapshotHead = frames::decode(head)?;
        let (vote, manifest) = wire::from_snapshot_head(&head, caller.id)?;
        let bytes = manifest.bytes;
        let invalid = |error: std::io::Error| WireError::Invalid(error.to_string());
        let meta = state_machine::meta(&manifest).map_err(invalid)?;
        // others wait unread: flow control holds them back
        let waiting = timeout(CHUNK_TIMEOUT, self.snapshots.acquire()).await.map_err(slow)?;
        let _permit = waiting.map_err(|_| WireError::Cut)?;
        let mut incoming = group.receiver().begin(manifest);
        while !incoming.is_whole() {
            let chunk = timeout(CHUNK_TIMEOUT, receiver.expect(SNAPSHOT_CHUNK_BYTES)).await.map_err(slow)??;
            incoming.push(&chunk).await.map_err(invalid)?;
        }
        let data = incoming.finish().await.map_err(invalid)?;
        tracing::info!(%partition, peer = caller.id, bytes, "snapshot received");
        let installed = group.raft().install_full_snapshot(vote, Snapshot { meta, snapshot: data }).await;
        let installed = installed.map_err(|error| WireError::Refused(format!("partition {partition}: {error}")))?;
        Ok(frames::ok_answer(&pb::SnapshotInstalled { vote: Some(wire::vote(&installed.vote)) }))
    }
}
