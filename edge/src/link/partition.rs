//! One partition: finds its leader, attaches, and runs both directions of the stream, again and again, for one incarnation.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};
use trunkline_proto::{Offset, PartitionId, link::Frame, v1::link as pb};

use super::{
    Fate, Status,
    backoff::Backoff,
    directory::Directory,
    frames::{FrameReader, FrameWriter, ReadFrameError},
};
use crate::{
    core::resend::SequenceError,
    downlink::{Feed, FeedError},
    uplink,
};

/// How long to wait for the connection to a broker before asking the next one.
const CONNECTION_PATIENCE: Duration = Duration::from_secs(2);
/// A broker may have to append and commit a record before it answers Attach.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait for the reason after a broker has stopped reading.
const REASON_TIMEOUT: Duration = Duration::from_secs(3);
/// The broker is told so often at most how far deliveries have come.
const SEEN_PERIOD: Duration = Duration::from_millis(100);

/// What the tasks of one incarnation share.
pub(crate) struct Context {
    pub(crate) edge: String,
    pub(crate) incarnation: u64,
    pub(crate) apis: Vec<pb::Api>,
    pub(crate) uplink: uplink::Handle,
    pub(crate) directory: Arc<Directory>,
    pub(crate) status: Arc<Status>,
    /// Partitions that have not been attached in this incarnation.
    pub(crate) unattached: Mutex<BTreeSet<PartitionId>>,
}

impl Context {
    /// The partition's stream is attached; with the last first one the incarnation is open.
    fn note_attached(&self, partition: PartitionId) {
        let mut unattached = self.unattached.lock();
        if unattached.remove(&partition) && unattached.is_empty() {
            tracing::info!(incarnation = self.incarnation, "every partition attached");
            self.uplink.resume();
            self.status.opened.send_replace(true);
        }
    }
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("{0}")]
    Gone(String),
    #[error("broker does not lead it; leader: {leader}")]
    NotLeader { leader: u64, address: String },
    #[error("{0}")]
    Fate(Fate),
}

impl From<ReadFrameError> for End {
    fn from(error: ReadFrameError) -> Self {
        Self::Gone(error.to_string())
    }
}

impl From<SequenceError> for End {
    fn from(error: SequenceError) -> Self {
        match error {
            // an old leader: the next one knows better
            SequenceError::Behind { .. } => Self::Gone(error.to_string()),
            SequenceError::Ahead { .. } => Self::Fate(Fate::Lost(error.to_string())),
        }
    }
}

impl From<FeedError> for End {
    fn from(error: FeedError) -> Self {
        match error {
            FeedError::Order { .. } => Self::Gone(error.to_string()),
            // what was missed cannot be had any more
            FeedError::Gap { .. } => Self::Fate(Fate::Lost(error.to_string())),
        }
    }
}

impl From<pb::Goodbye> for End {
    fn from(goodbye: pb::Goodbye) -> Self {
        let message = format!("broker says {:?}: {}", goodbye.reason(), goodbye.message);
        match goodbye.reason() {
            pb::Reason::NotLeader => Self::NotLeader { leader: goodbye.leader, address: goodbye.address },
            pb::Reason::Lost => Self::Fate(Fate::Lost(message)),
            pb::Reason::Replaced => Self::Fate(Fate::Replaced),
            // the same bytes would be sent again and refused again: only a new incarnation gets out of this
            pb::Reason::Invalid => Self::Fate(Fate::Lost(message)),
            pb::Reason::Unhealthy | pb::Reason::Shutdown | pb::Reason::Unspecified => Self::Gone(message),
        }
    }
}

/// Serves the partition until the incarnation meets its fate.
pub(crate) async fn run(context: Arc<Context>, mut feed: Feed, partition: PartitionId) -> Fate {
    let mut backoff = Backoff::new();
    let mut last = 0;
    loop {
        let Some(broker) = context.directory.pick(partition, last) else {
            backoff.wait().await;
            continue;
        };
        last = broker;
        let Some(connection) = context.directory.connection(broker, CONNECTION_PATIENCE).await else {
            context.directory.forget_leader(partition, broker);
            continue;
        };
        let mut began = None;
        let end = stream(&context, &connection, &mut feed, partition, &mut began).await;
        backoff.lasted(began.map_or(Duration::ZERO, |began| began.elapsed()));
        context.uplink.set_paused(partition, Vec::new());
        tracing::debug!(%partition, broker, %end, "partition's stream ended");
        match end {
            End::Fate(fate) => return fate,
            End::NotLeader { leader, address } => context.directory.note_leader(partition, leader, &address),
            End::Gone(_) => context.directory.forget_leader(partition, broker),
        }
        backoff.wait().await;
    }
}

/// One stream, from Attach to its end; `began` says when it was attached.
async fn stream(
    context: &Context,
    connection: &quinn::Connection,
    feed: &mut Feed,
    partition: PartitionId,
    began: &mut Option<Instant>,
) -> End {
    // what the last stream's end cut short comes before anything of this one
    feed.hand_over().await;
    let (mut reader, mut writer) = match timeout(ATTACH_TIMEOUT, connection.open_bi()).await {
        Ok(Ok((send, receive))) => (FrameReader::new(receive), FrameWriter::new(send)),
        Ok(Err(error)) => return End::Gone(error.to_string()),
        Err(_) => return End::Gone("the broker takes no more streams".to_owned()),
    };
    match timeout(ATTACH_TIMEOUT, attach(context, feed, partition, &mut reader, &mut writer)).await {
        Ok(Ok(())) => {}
        Ok(Err(end)) => return end,
        Err(_) => return End::Gone(format!("no answer to Attach within {ATTACH_TIMEOUT:?}")),
    }
    *began = Some(Instant::now());
    let _attached = context.status.attached();
    context.note_attached(partition);
    tracing::info!(%partition, seen = %feed.seen(), "partition attached");
    let seen = Seen::default();
    tokio::select! {
        biased;
        end = read(context, feed, partition, &mut reader, &seen) => end,
        end = write(context, partition, &mut writer, &seen) => end,
    }
}

async fn attach(
    context: &Context,
    feed: &mut Feed,
    partition: PartitionId,
    reader: &mut FrameReader,
    writer: &mut FrameWriter,
) -> Result<(), End> {
    let attach = pb::Attach {
        partition: u32::from(partition.0),
        edge: context.edge.clone(),
        incarnation: context.incarnation,
        after: feed.seen().0,
        apis: context.apis.clone(),
    };
    // if this fails the broker has said why, or the connection is gone and reading fails too
    let _ = writer.send(&Frame::Attach(attach)).await;
    match reader.next().await? {
        Frame::Attached(attached) => {
            feed.attached(Offset(attached.start))?;
            context.uplink.attached(partition, attached.last_sequence)?;
            Ok(())
        }
        Frame::Goodbye(goodbye) => Err(goodbye.into()),
        _ => Err(End::Gone("neither Attached nor Goodbye answers Attach".to_owned())),
    }
}

/// Downwards. Answers, deliveries and pauses come in one order.
async fn read(
    context: &Context,
    feed: &mut Feed,
    partition: PartitionId,
    reader: &mut FrameReader,
    seen: &Seen,
) -> End {
    loop {
        let frame = match reader.next().await {
            Ok(frame) => frame,
            Err(error) => return error.into(),
        };
        let taken = match frame {
            Frame::Applied { sequence } => context.uplink.applied(partition, sequence).map_err(End::from),
            Frame::Resend { last } => context.uplink.attached(partition, last).map_err(End::from),
            Frame::Deliveries(deliveries) => feed.take(deliveries).map_err(End::from),
            Frame::Progress { offset } => {
                feed.progress(offset);
                Ok(())
            }
            Frame::Unlogged(record) => {
                feed.take_unlogged(&record);
                Ok(())
            }
            Frame::Pause(pause) => {
                context.uplink.set_paused(partition, pause.apis);
                Ok(())
            }
            Frame::Goodbye(goodbye) => Err(goodbye.into()),
            Frame::Ping => Ok(()),
            _ => Err(End::Gone("this frame is not a broker's to send here".to_owned())),
        };
        if let Err(end) = taken {
            return end;
        }
        feed.hand_over().await;
        seen.advance(feed.seen());
    }
}

/// Upwards: what waits becomes a batch as soon as the one before it is handed over. No timer: a lone message must not wait.
async fn write(context: &Context, partition: PartitionId, writer: &mut FrameWriter, seen: &Seen) -> End {
    let Err(error) = write_all(&context.uplink, partition, writer, seen).await;
    // a broker that says goodbye stops reading first: its reason is on its way to `read`
    tokio::time::sleep(REASON_TIMEOUT).await;
    End::Gone(error.to_string())
}

async fn write_all(
    uplink: &uplink::Handle,
    partition: PartitionId,
    writer: &mut FrameWriter,
    seen: &Seen,
) -> Result<Infallible, quinn::WriteError> {
    let (mut told, mut tell_from) = (Offset::ZERO, Instant::now());
    loop {
        while let Some(batch) = uplink.take(partition) {
            writer.send_batch(batch).await?;
        }
        let offset = seen.offset();
        if offset > told && Instant::now() >= tell_from {
            writer.send(&Frame::Seen { offset }).await?;
            (told, tell_from) = (offset, Instant::now() + SEEN_PERIOD);
        }
        tokio::select! {
            () = uplink.ready(partition) => {}
            () = seen.advanced.notified(), if offset <= told => {}
            () = tokio::time::sleep_until(tell_from), if offset > told => {}
        }
    }
}

/// How far deliveries have been handed over: from the reading half to the writing one.
#[derive(Default)]
struct Seen {
    offset: AtomicU64,
    advanced: Notify,
}

impl Seen {
    fn offset(&self) -> Offset {
        Offset(self.offset.load(Ordering::Relaxed))
    }

    fn advance(&self, to: Offset) {
        if to > self.offset() {
            self.offset.store(to.0, Ordering::Relaxed);
            self.advanced.notify_one();
        }
    }
}
