//! The pipelined appends of one group to one peer, and their answers.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use openraft::{
    entry::RaftEntry,
    errors::RPCError,
    network::RPCTypes,
    raft::{AppendEntriesRequest, StreamAppendResult},
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::{Stream, StreamExt};
use trunkline_proto::peer::Stream as Kind;

use super::{Network, PeerClient};
use crate::{
    controls,
    raft::{
        frames::{self, Receiver, Sender, WireError},
        pace, peers,
        types::{LogId, Types},
        wire,
    },
};

/// Appends sent and not answered yet. More wait in the log.
const PIPELINE_MAX: usize = 64;
/// How long the answer to an append may take: a sync on a slow disk, behind what was sent before. Then the stream begins anew.
const APPEND_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is looked whether a peer still needs what is sent no more.
const TRIMMED_CHECK: Duration = Duration::from_secs(1);

/// An append that was sent: what it followed, and its last entry.
type Sent = (Option<LogId>, Option<LogId>);
type Answer = Result<StreamAppendResult<Types>, RPCError<Types>>;
/// What writes the appends, or reads the answers.
type Half<'s> = Pin<Box<dyn Future<Output = Result<(), WireError>> + Send + 's>>;

/// Appends and their answers, in order. Both halves run inside the stream's own polls: once it is dropped nothing reads the input any
/// more, which belongs to the group's replication and is read by its next stream.
pub(super) struct AppendStream<'s> {
    writer: Option<Half<'s>>,
    reader: Option<Half<'s>>,
    answers: mpsc::Receiver<StreamAppendResult<Types>>,
    client: &'s PeerClient,
}

impl<'s> AppendStream<'s> {
    pub(super) fn new<S>(
        client: &'s PeerClient,
        peer: Arc<peers::Peer>,
        input: S,
        (sender, receiver): (Sender, Receiver),
    ) -> Self
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
