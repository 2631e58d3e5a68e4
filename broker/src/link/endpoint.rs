//! The QUIC endpoint of the link with every limit set (quinn's own are no bounds: reference measurements), and its accept loop.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use ::metrics::counter;
use quinn::{EndpointConfig, IdleTimeout, TransportConfig, VarInt, crypto::rustls::QuicServerConfig};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use trunkline_proto::PartitionCount;

use super::{Link, session};
use crate::metrics::link as names;

/// Socket buffers; the kernel caps them at `net.core.{r,w}mem_max`. Too small ones drop bursts.
const SOCKET_BYTES: usize = 4 << 20;
/// Bytes one stream may have unread here: a large frame and the rest of a burst.
const STREAM_WINDOW: u32 = 8 << 20;
/// Bytes one connection may have unread here, over all its streams.
const CONNECTION_WINDOW: u32 = 32 << 20;
/// Bytes one connection may have unacknowledged by its edge.
const SEND_WINDOW: u64 = 32 << 20;
/// Handshakes under way above which an address must prove that it is the sender's.
const HANDSHAKES_UNPROVEN: usize = 64;
/// Handshakes under way above which new ones are refused.
const HANDSHAKES_MAX: usize = 256;
/// Bytes kept for handshakes that nobody has looked at yet, one and all of them.
const INCOMING_BYTES: u64 = 64 << 10;
const INCOMING_BYTES_TOTAL: u64 = 4 << 20;
/// Without a packet for so long a connection is gone.
const IDLE: VarInt = VarInt::from_u32(15_000);
/// A packet is sent at least so often.
const KEEP_ALIVE: Duration = Duration::from_secs(4);
/// Links are within a site or between neighbouring ones; quinn supposes 333 ms.
const INITIAL_RTT: Duration = Duration::from_millis(10);
/// Beside one stream a partition: the control stream, and streams that are being replaced.
const SPARE_STREAMS: u32 = 4;
/// What sessions may take to end once told to.
const DRAIN: Duration = Duration::from_secs(6);

/// Binds the link's UDP socket with buffers that hold a burst.
pub fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    // the kernel takes what it allows
    socket.set_recv_buffer_size(SOCKET_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BYTES)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// The endpoint on a bound socket.
pub fn endpoint(socket: UdpSocket, tls: QuicServerConfig, count: PartitionCount) -> io::Result<quinn::Endpoint> {
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    config
        .transport_config(Arc::new(transport(count)))
        .migration(false)
        .max_incoming(HANDSHAKES_MAX)
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(INCOMING_BYTES_TOTAL);
    quinn::Endpoint::new(EndpointConfig::default(), Some(config), socket, Arc::new(quinn::TokioRuntime))
}

fn transport(count: PartitionCount) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(SEND_WINDOW)
        .max_concurrent_bidi_streams(VarInt::from_u32(u32::from(count.get()) + SPARE_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IdleTimeout::from(IDLE)))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(INITIAL_RTT);
    transport
}

/// Accepts edges until shutdown, then waits a little for their sessions to end.
pub async fn serve(link: Arc<Link>, endpoint: quinn::Endpoint) {
    let sessions = TaskTracker::new();
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = link.shutdown.cancelled() => break,
        };
        let Some(incoming) = incoming else { break };
        accept(&link, incoming, &handshakes, &sessions);
    }
    // no new edges; those that are here are being told
    endpoint.set_server_config(None);
    sessions.close();
    let _ = tokio::time::timeout(DRAIN, sessions.wait()).await;
    endpoint.close(VarInt::from_u32(0), b"shutdown");
    let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
}

fn accept(link: &Arc<Link>, incoming: quinn::Incoming, handshakes: &Arc<Semaphore>, sessions: &TaskTracker) {
    let busy = || counter!(names::LINK_REFUSED_TOTAL, "reason" => "busy").increment(1);
    if sessions.len() >= link.settings.edges_max + HANDSHAKES_MAX {
        busy();
        return incoming.refuse();
    }
    let under_way = HANDSHAKES_MAX - handshakes.available_permits();
    if under_way >= HANDSHAKES_UNPROVEN && !incoming.remote_address_validated() && incoming.may_retry() {
        // cannot fail: it may be retried
        let _ = incoming.retry();
        return;
    }
    let Ok(permit) = handshakes.clone().try_acquire_owned() else {
        busy();
        return incoming.refuse();
    };
    // its certificate or transport parameters are broken: nothing was promised yet
    let Ok(connecting) = incoming.accept() else {
        counter!(names::LINK_REFUSED_TOTAL, "reason" => "handshake").increment(1);
        return;
    };
    let link = link.clone();
    sessions.spawn(async move { session::serve(link, connecting, permit).await });
}
