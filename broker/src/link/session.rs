//! One edge's QUIC connection: who it is, its control stream (Hello, Welcome, pings), and its partition streams.

use std::{sync::Arc, time::Duration};

use ::metrics::counter;
use quinn::VarInt;
use tokio::{sync::OwnedSemaphorePermit, time::timeout};
use tokio_util::task::TaskTracker;
use trunkline_proto::{
    Batch, ConnectionId, PartitionId, Record, RecordKind, Source, limits,
    link::{Frame, LINK_VERSION},
    v1::{self, link as pb},
};

use super::{
    Link,
    frames::{FrameReader, FrameWriter},
    sessions::{ControlGuard, Kick, ticker},
    stream,
};
use crate::{
    append::AppendError,
    core::Reply,
    metrics::link as names,
    node::Role,
    quic::{Accepted, Identity, Role as PeerRole},
};

/// Hello must come within this.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a Hello waits for partition 0 to have a leader, and then for its log to answer.
const LEADER_TIMEOUT: Duration = Duration::from_secs(5);
const GRANT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest control frame.
const CONTROL_BYTES_MAX: usize = 64 << 10;
/// What a session that ends may still take to say so.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Nonces of edge processes.
const NONCE_BYTES: usize = 16;

/// The edge at the other end, after its Hello.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Peer {
    /// By its certificate.
    pub edge: String,
    /// Of its process.
    pub nonce: bytes::Bytes,
    /// Granted, or brought.
    pub incarnation: u64,
}

/// Why a session never began.
#[derive(Debug, thiserror::Error)]
enum RefusedError {
    #[error("handshake: {0}")]
    Handshake(#[from] quinn::ConnectionError),
    #[error("handshake took too long")]
    Slow,
    #[error("only edges use this link, this is {0}")]
    Role(Identity),
    #[error("hello: {message}")]
    Hello { reason: pb::Reason, message: String, leader: u64 },
    #[error("the edge is gone")]
    Gone,
}

impl RefusedError {
    /// Of a closed set, for metrics.
    fn label(&self) -> &'static str {
        match self {
            Self::Handshake(_) | Self::Slow => "handshake",
            Self::Role(_) => "identity",
            Self::Hello { .. } => "hello",
            Self::Gone => "gone",
        }
    }
}

fn invalid(message: impl Into<String>) -> RefusedError {
    RefusedError::Hello { reason: pb::Reason::Invalid, message: message.into(), leader: 0 }
}

/// The edge tries again later.
fn unhealthy(message: impl Into<String>) -> RefusedError {
    RefusedError::Hello { reason: pb::Reason::Unhealthy, message: message.into(), leader: 0 }
}

/// The edge looks elsewhere; 0: nobody knows where.
fn not_leader(leader: Option<u64>) -> RefusedError {
    let message = "another broker leads partition 0, or none".to_owned();
    RefusedError::Hello { reason: pb::Reason::NotLeader, message, leader: leader.unwrap_or_default() }
}

fn shutting_down() -> RefusedError {
    let message = "the broker shuts down".to_owned();
    RefusedError::Hello { reason: pb::Reason::Shutdown, message, leader: 0 }
}

/// Why no incarnation could be granted. Asking again with the same nonce is granted the same one, so unknown is no harm.
impl From<AppendError> for RefusedError {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::NotLeader { leader } => not_leader(leader),
            error => unhealthy(error.to_string()),
        }
    }
}

/// The control stream.
struct ControlStream {
    reader: FrameReader,
    writer: FrameWriter,
}

/// Serves one edge's connection to its end.
pub(super) async fn serve(link: Arc<Link>, accepted: Accepted) {
    let Accepted { connection, identity, permit } = accepted;
    if let Err(refused) = greet_and_run(&link, &connection, identity, permit).await {
        refuse(&refused, connection.remote_address());
        connection.close(VarInt::from_u32(1), refused.to_string().as_bytes());
    }
}

fn refuse(refused: &RefusedError, address: std::net::SocketAddr) {
    counter!(names::LINK_REFUSED_TOTAL, "reason" => refused.label()).increment(1);
    tracing::warn!(%address, %refused, "edge refused");
}

async fn greet_and_run(
    link: &Arc<Link>,
    connection: &quinn::Connection,
    identity: Identity,
    permit: OwnedSemaphorePermit,
) -> Result<(), RefusedError> {
    if identity.role != PeerRole::Edge {
        return Err(RefusedError::Role(identity));
    }
    let stream = timeout(HELLO_TIMEOUT, connection.accept_bi()).await.map_err(|_| RefusedError::Slow)??;
    let mut control =
        ControlStream { reader: FrameReader::new(stream.1, CONTROL_BYTES_MAX), writer: FrameWriter::new(stream.0) };
    // an edge that is gone waits for nothing more: those that come again and again must not pile up on a log that stands still
    let greeted = tokio::select! {
        greeted = greet(link, &identity.name, &mut control) => greeted,
        _ = connection.closed() => Err(RefusedError::Gone),
        () = link.shutdown.cancelled() => Err(shutting_down()),
    };
    let (peer, guard) = match greeted {
        Ok(greeted) => greeted,
        Err(refused) => {
            if let RefusedError::Hello { reason, message, leader } = &refused {
                let goodbye = pb::Goodbye {
                    reason: (*reason).into(),
                    message: message.clone(),
                    leader: *leader,
                    address: link.address_of(*leader),
                };
                leave(&mut control, goodbye).await;
            }
            return Err(refused);
        }
    };
    drop(permit);
    run(link, connection, peer, guard, control).await;
    Ok(())
}

/// Hello to Welcome.
async fn greet(
    link: &Arc<Link>,
    name: &str,
    control: &mut ControlStream,
) -> Result<(Peer, ControlGuard), RefusedError> {
    let hello = match timeout(HELLO_TIMEOUT, control.reader.next()).await {
        Ok(Ok(Some(Frame::Hello(hello)))) => hello,
        Ok(Ok(Some(_))) => return Err(invalid("the first frame is not Hello")),
        Ok(Err(error)) if error.is_invalid() => return Err(invalid(error.to_string())),
        Ok(Ok(None) | Err(_)) => return Err(RefusedError::Gone),
        Err(_) => return Err(RefusedError::Slow),
    };
    if hello.version != LINK_VERSION {
        return Err(invalid(format!("link version {}, this broker speaks {LINK_VERSION}", hello.version)));
    }
    if hello.edge != name {
        return Err(invalid(format!("the certificate is that of edge {name}")));
    }
    if hello.nonce.len() != NONCE_BYTES {
        return Err(invalid(format!("a nonce has {NONCE_BYTES} bytes")));
    }
    let incarnation = match hello.incarnation {
        0 => grant(link, name, &hello.nonce).await?,
        brought => brought,
    };
    let peer = Peer { edge: name.to_owned(), nonce: hello.nonce, incarnation };
    let Some(guard) = link.sessions.enter(name, incarnation) else {
        let message = "a newer process runs under this edge's name".to_owned();
        return Err(RefusedError::Hello { reason: pb::Reason::Replaced, message, leader: 0 });
    };
    control.writer.send(&Frame::Welcome(welcome(link, incarnation))).await.map_err(|_| RefusedError::Gone)?;
    Ok((peer, guard))
}

/// Asks partition 0 for an incarnation; 0 where another broker leads it: the edge is to ask there.
async fn grant(link: &Link, edge: &str, nonce: &bytes::Bytes) -> Result<u64, RefusedError> {
    let Some(partition) = link.node.partition(PartitionId(0)) else { return Ok(0) };
    let mut role = partition.role.clone();
    let known = role.wait_for(|role| !matches!(role, Role::Follower { leader: None }));
    match timeout(LEADER_TIMEOUT, known).await {
        Ok(Ok(role)) if matches!(*role, Role::Leader { .. }) => {}
        // not a session without an incarnation: it would look older than what a dead process of this name has left here
        Ok(Ok(role)) => match *role {
            Role::Follower { leader } => return Err(not_leader(leader)),
            _ => return Err(unhealthy("partition 0 is closed")),
        },
        Ok(Err(_)) => return Err(unhealthy("partition 0 is closed")),
        Err(_) => return Err(not_leader(None)),
    }
    let body = v1::EdgeAttached { edge: edge.to_owned(), incarnation: 0, nonce: nonce.clone() };
    let record = Record::new(RecordKind::EdgeAttached, ConnectionId::NONE, "", &body);
    let granted = timeout(GRANT_TIMEOUT, partition.append.append(Batch::new(Source::Leader, &[record]))).await;
    let granted = granted.map_err(|_| unhealthy(format!("the log has not answered for {GRANT_TIMEOUT:?}")))??;
    match granted.outcome().reply {
        Reply::Attached { incarnation, .. } => Ok(incarnation),
        ref other => Err(unhealthy(format!("no incarnation granted: {other:?}"))),
    }
}

fn welcome(link: &Link, incarnation: u64) -> pb::Welcome {
    pb::Welcome {
        cluster: link.settings.cluster.clone(),
        partition_count: u32::from(link.node.partition_count().get()),
        incarnation,
        broker: link.settings.broker,
        leaders: link.leaders(),
        brokers: link.brokers(),
        grace_ms: u32::try_from(link.settings.grace.as_millis()).unwrap_or(u32::MAX),
    }
}

/// Runs until the connection ends, either side takes leave, or the session is ended from outside.
async fn run(
    link: &Arc<Link>,
    connection: &quinn::Connection,
    peer: Peer,
    mut guard: ControlGuard,
    mut control: ControlStream,
) {
    tracing::info!(edge = %peer.edge, incarnation = peer.incarnation, address = %connection.remote_address(), "edge linked");
    let peer = Arc::new(peer);
    let streams = TaskTracker::new();
    let heard = guard.heard.clone();
    let mut pings = ticker(link.settings.grace / 4);
    let reason = loop {
        tokio::select! {
            // beside the rest: an edge that does not read is still kicked, and told to go
            flushed = control.writer.flush(), if control.writer.is_pending() => if flushed.is_err() {
                break None;
            },
            frame = control.reader.next() => match frame {
                Ok(Some(Frame::Ping)) => heard.now(),
                Ok(Some(_)) => break Some((pb::Reason::Invalid, "only pings follow Hello".to_owned())),
                Err(error) if error.is_invalid() => break Some((pb::Reason::Invalid, error.to_string())),
                Ok(None) | Err(_) => break None,
            },
            // one at a time, whether it is read or not
            _ = pings.tick() => if !control.writer.is_pending() {
                control.writer.queue(&Frame::Ping);
            },
            stream = connection.accept_bi() => match stream {
                Ok(stream) => {
                    streams.spawn(stream::serve(link.clone(), peer.clone(), connection.clone(), stream));
                }
                Err(_) => break None,
            },
            kick = guard.kick.wait_for(Option::is_some) => break kick.ok().and_then(|kick| *kick).map(|kick| match kick {
                Kick::Lost => (pb::Reason::Lost, "this incarnation is lost".to_owned()),
                Kick::Replaced => (pb::Reason::Replaced, "a newer process runs under this edge's name".to_owned()),
                Kick::Superseded => (pb::Reason::Unspecified, "a newer connection has taken over".to_owned()),
            }),
            () = link.shutdown.cancelled() => break Some((pb::Reason::Shutdown, "the broker shuts down".to_owned())),
        }
    };
    drop(guard);
    if let Some((reason, message)) = reason {
        let goodbye = pb::Goodbye { reason: reason.into(), message, ..Default::default() };
        leave(&mut control, goodbye).await;
    }
    streams.close();
    // each stream ends by itself within its own time; a connection that broke ends them at once
    if link.shutdown.is_cancelled() {
        let _ = timeout(2 * LEAVE_TIMEOUT, streams.wait()).await;
    }
    connection.close(VarInt::from_u32(0), b"bye");
    // bounded: none waits for the log once its connection is closed
    streams.wait().await;
    tracing::info!(edge = %peer.edge, incarnation = peer.incarnation, "edge unlinked");
}

async fn leave(control: &mut ControlStream, goodbye: pb::Goodbye) {
    control.reader.stop();
    control.writer.queue(&Frame::Goodbye(goodbye));
    // an edge that does not read is not waited for
    let _ = timeout(LEAVE_TIMEOUT, control.writer.finish()).await;
}

const _: () = assert!(CONTROL_BYTES_MAX < limits::FRAME_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_hears_the_truth_of_why_nothing_was_granted() {
        let told = |error: AppendError| match RefusedError::from(error) {
            RefusedError::Hello { reason, leader, .. } => (reason, leader),
            other => panic!("{other}"),
        };
        assert_eq!(told(AppendError::NotLeader { leader: Some(3) }), (pb::Reason::NotLeader, 3));
        assert_eq!(told(AppendError::NotLeader { leader: None }), (pb::Reason::NotLeader, 0));
        assert_eq!(told(AppendError::Closed { reason: "disk".to_owned() }), (pb::Reason::Unhealthy, 0));
        assert_eq!(told(AppendError::Unknown { waited: Duration::ZERO }), (pb::Reason::Unhealthy, 0));
    }
}
