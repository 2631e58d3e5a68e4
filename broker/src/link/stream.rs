//! One edge's stream of one partition: attaching it, running its two halves, and taking leave.

use std::{sync::Arc, time::Duration};

use ::metrics::counter;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, Semaphore, mpsc},
    time::{Instant, timeout},
};
use trunkline_proto::{
    Batch, ConnectionId, LogIndex, Offset, PartitionId, Record, RecordKind, Source, limits,
    link::Frame,
    v1::{self, link as pb},
};

use super::{
    Link,
    frames::{FrameReader, FrameWriter},
    inbound::{BATCHES_MAX, Inbound, Owner},
    outbound::Outbound,
    pause::{APIS_MAX, Pauses},
    sequencer::Sequencer,
    session::Peer,
    sessions::{Kick, StreamGuard, StreamInputs},
    view::{self, EdgeView},
};
use crate::{
    append::AppendError,
    core::Reply,
    delivery::Cursor,
    metrics::link as names,
    node::{PartitionHandle, ReadError, Role},
};

/// The first frame of a stream must come within this.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the log may take to let an incarnation into a partition.
const ADMIT_TIMEOUT: Duration = Duration::from_secs(5);
/// What a stream that ends may still take to say so.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a stream has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// The edge finished it.
    Finished,
    /// The stream or the connection broke, or a newer stream has taken its place: nobody listens.
    Gone,
    /// A batch's outcome is unknown: without an answer the edge resends it.
    Unknown,
    /// Another broker leads.
    NotLeader {
        /// Which, if known.
        leader: Option<u64>,
    },
    /// The incarnation is lost.
    Lost,
    /// A higher incarnation has come.
    Replaced,
    /// The edge broke the protocol.
    Invalid(String),
    /// The store takes no writes.
    Unhealthy(String),
    /// This broker shuts down.
    Shutdown,
}

impl End {
    /// What the edge is told, if anything.
    fn goodbye(&self) -> Option<pb::Goodbye> {
        let (reason, message) = match self {
            Self::Finished | Self::Gone | Self::Unknown => return None,
            Self::NotLeader { leader } => {
                let leader = leader.unwrap_or_default();
                return Some(pb::Goodbye { reason: pb::Reason::NotLeader.into(), leader, ..Default::default() });
            }
            Self::Lost => (pb::Reason::Lost, "this incarnation is lost"),
            Self::Replaced => (pb::Reason::Replaced, "a newer process runs under this edge's name"),
            Self::Invalid(message) => (pb::Reason::Invalid, message.as_str()),
            Self::Unhealthy(message) => (pb::Reason::Unhealthy, message.as_str()),
            Self::Shutdown => (pb::Reason::Shutdown, "the broker shuts down"),
        };
        Some(pb::Goodbye { reason: reason.into(), message: message.to_owned(), ..Default::default() })
    }

    /// A batch was fenced: by whom?
    pub(super) fn fenced(current: u64, incarnation: u64) -> Self {
        if current > incarnation { Self::Replaced } else { Self::Lost }
    }
}

impl From<AppendError> for End {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::NotLeader { leader } => Self::NotLeader { leader },
            AppendError::TooLarge { .. } => Self::Invalid(error.to_string()),
            AppendError::Closed { reason } => Self::Unhealthy(reason),
            // the edge keeps its batches and pauses; it comes again until there is room
            AppendError::Full(_) => Self::Unhealthy(error.to_string()),
            AppendError::Busy { .. } | AppendError::Unknown { .. } => Self::Unknown,
        }
    }
}

impl From<ReadError> for End {
    fn from(error: ReadError) -> Self {
        match error {
            // retention has passed the cursor, or the edge has seen what this log does not hold: either way
            // only a new incarnation knows where it stands
            ReadError::Trimmed { .. } | ReadError::Future { .. } => Self::Lost,
            ReadError::Damaged { .. } | ReadError::Store(_) => Self::Unhealthy(error.to_string()),
        }
    }
}

impl From<Kick> for End {
    fn from(kick: Kick) -> Self {
        match kick {
            Kick::Lost => Self::Lost,
            Kick::Replaced => Self::Replaced,
            Kick::Superseded => Self::Gone,
        }
    }
}

/// Serves one stream from its first frame to its end.
pub(super) async fn serve(
    link: Arc<Link>,
    peer: Arc<Peer>,
    connection: quinn::Connection,
    (send, receive): (quinn::SendStream, quinn::RecvStream),
) {
    let mut reader = FrameReader::new(receive, limits::FRAME_BYTES_MAX);
    let mut writer = FrameWriter::new(send);
    let served = async {
        match attach(&link, &peer, &mut reader).await {
            Ok(attached) => run(&link, &peer, attached, &mut reader, &mut writer).await,
            Err(end) => end,
        }
    };
    let end = tokio::select! {
        end = served => end,
        _ = connection.closed() => End::Gone,
    };
    if let End::Invalid(message) = &end {
        counter!(names::LINK_INVALID_TOTAL).increment(1);
        tracing::warn!(edge = %peer.edge, %message, "edge broke the link protocol");
    }
    leave(&link, &mut reader, &mut writer, &end).await;
}

/// Tells the edge why, if it can still hear it.
async fn leave(link: &Link, reader: &mut FrameReader, writer: &mut FrameWriter, end: &End) {
    reader.stop();
    if matches!(end, End::Gone | End::Unknown) {
        writer.reset();
        return;
    }
    if let Some(mut goodbye) = end.goodbye() {
        goodbye.address = link.address_of(goodbye.leader);
        writer.queue(&Frame::Goodbye(goodbye));
    }
    // an edge that does not read is not waited for
    let _ = timeout(LEAVE_TIMEOUT, writer.finish()).await;
}

/// An attached stream.
struct Attached {
    partition: PartitionHandle,
    edge: EdgeView,
    start: Offset,
    apis: Vec<pb::Api>,
    /// Its place among the sessions, given up when the stream ends.
    guard: StreamGuard,
    inputs: StreamInputs,
}

/// Waits for the edge and for the log, each for its time.
async fn attach(link: &Arc<Link>, peer: &Peer, reader: &mut FrameReader) -> Result<Attached, End> {
    let attach = match timeout(ATTACH_TIMEOUT, reader.next()).await {
        Ok(Ok(Some(Frame::Attach(attach)))) => attach,
        Ok(Ok(Some(_))) => return Err(End::Invalid("a stream begins with Attach".to_owned())),
        Ok(Err(error)) if error.is_invalid() => return Err(End::Invalid(error.to_string())),
        Ok(Ok(None) | Err(_)) => return Err(End::Gone),
        Err(_) => return Err(End::Invalid("no Attach in time".to_owned())),
    };
    let partition = check(link, peer, &attach)?;
    let (guard, mut inputs) = link
        .sessions
        .attach(partition.id, &peer.edge, attach.incarnation, Offset(attach.after))
        .ok_or(End::Replaced)?;
    let edge = tokio::select! {
        admitted = timeout(ADMIT_TIMEOUT, admit(&partition, peer, attach.incarnation)) => {
            admitted.map_err(|_| End::Unhealthy(format!("the log has not answered for {ADMIT_TIMEOUT:?}")))??
        }
        kicked = inputs.kick.wait_for(Option::is_some) => return Err(kicked.ok().and_then(|kick| *kick).map_or(End::Gone, End::from)),
        () = link.shutdown.cancelled() => return Err(End::Shutdown),
    };
    let start = if attach.after == 0 { edge.attached } else { Offset(attach.after) };
    if start.index() > partition.tail.applied() {
        return Err(End::Lost);
    }
    Ok(Attached { partition, edge, start, apis: attach.apis, guard, inputs })
}

fn check(link: &Link, peer: &Peer, attach: &pb::Attach) -> Result<PartitionHandle, End> {
    let invalid = |message: &str| Err(End::Invalid(message.to_owned()));
    if attach.edge != peer.edge {
        return invalid("attached under another edge's name");
    }
    if attach.incarnation == 0 || attach.incarnation != peer.incarnation {
        return invalid("attached under another incarnation than the session's");
    }
    if attach.apis.len() > APIS_MAX
        || attach.apis.iter().any(|api| !limits::is_name(&api.name) || api.handler_group.len() > limits::NAME_BYTES_MAX)
    {
        return invalid("too many APIs, or one without a name");
    }
    let id = u16::try_from(attach.partition).ok().filter(|id| *id < link.node.partition_count().get());
    let Some(id) = id.map(PartitionId) else {
        return invalid("no such partition");
    };
    let Some(partition) = link.node.partition(id) else {
        return Err(End::NotLeader { leader: None });
    };
    match *partition.role.borrow() {
        Role::Leader { .. } => Ok(partition.clone()),
        Role::Follower { leader } => Err(End::NotLeader { leader }),
        Role::Closed => Err(End::Unhealthy("the partition is closed".to_owned())),
    }
}

/// Lets an incarnation into a partition: at once if it is the one the partition knows, else by an EdgeAttached record.
async fn admit(partition: &PartitionHandle, peer: &Peer, incarnation: u64) -> Result<EdgeView, End> {
    let known = || view::edge(&partition.state.read(), &peer.edge);
    match known() {
        Some(edge) if edge.incarnation > incarnation => return Err(End::Replaced),
        Some(edge) if edge.incarnation == incarnation && edge.lost => return Err(End::Lost),
        Some(edge) if edge.incarnation == incarnation => return Ok(edge),
        _ => {}
    }
    let body = v1::EdgeAttached { edge: peer.edge.clone(), incarnation, nonce: peer.nonce.clone() };
    let record = Record::new(RecordKind::EdgeAttached, ConnectionId::NONE, "", &body);
    let appended = partition.append.append(Batch::new(Source::Leader, &[record])).await?;
    match appended.outcome().reply {
        Reply::Attached { incarnation: granted, .. } if granted == incarnation => {}
        Reply::Fenced { current } => return Err(End::fenced(current, incarnation)),
        ref other => return Err(End::Invalid(format!("attaching was answered with {other:?}"))),
    }
    match known() {
        Some(edge) if edge.incarnation == incarnation && !edge.lost => Ok(edge),
        Some(edge) => Err(End::fenced(edge.incarnation, incarnation)),
        None => Err(End::Lost),
    }
}

async fn run(link: &Link, peer: &Peer, attached: Attached, reader: &mut FrameReader, writer: &mut FrameWriter) -> End {
    let welcome = pb::Attached { last_sequence: attached.edge.last_sequence, start: attached.start.0 };
    writer.queue(&Frame::Attached(welcome));
    let mut kick = attached.inputs.kick.clone();
    let _guard = attached.guard;
    let sequencer = Arc::new(Mutex::new(Sequencer::new(attached.edge.last_sequence)));
    let say = Arc::new(Notify::new());
    let (sender, in_flight) = mpsc::channel(BATCHES_MAX);
    let mut inbound = Inbound {
        reader,
        owner: Owner {
            edge: peer.edge.clone(),
            incarnation: peer.incarnation,
            partition: attached.partition.id,
            count: link.node.partition_count(),
        },
        append: attached.partition.append.clone(),
        sequencer: sequencer.clone(),
        say: say.clone(),
        in_flight: sender,
        room: Arc::new(Semaphore::new(link.settings.in_flight_bytes as usize)),
        room_bytes: link.settings.in_flight_bytes,
        heard: attached.inputs.heard,
    };
    let cursor =
        Cursor::new(link.node.clone(), attached.partition.clone(), attached.edge.index, &peer.edge, attached.start);
    let mut outbound = Outbound {
        writer,
        cursor,
        incarnation: peer.incarnation,
        role: attached.partition.role.clone(),
        partition: attached.partition,
        sequencer,
        say,
        in_flight,
        front: None,
        unlogged: attached.inputs.unlogged,
        pauses: Pauses::new(&attached.apis),
        looked: LogIndex(0),
        look_from: Instant::now(),
        given: attached.inputs.given,
    };
    let end = tokio::select! {
        end = inbound.run() => end,
        end = outbound.run() => end,
        kicked = kick.wait_for(Option::is_some) => kicked.ok().and_then(|kick| *kick).map_or(End::Gone, End::from),
        () = link.shutdown.cancelled() => End::Shutdown,
    };
    if matches!(end, End::Finished | End::Shutdown | End::NotLeader { .. }) {
        // what is on its way through the log is answered, so that the edge need not send it again
        let _ = timeout(LEAVE_TIMEOUT, outbound.drain()).await;
    }
    end
}
