//! QUIC endpoints with every limit set: quinn's own are no bounds.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use quinn::{EndpointConfig, IdleTimeout, TransportConfig, VarInt, crypto::rustls::QuicClientConfig};
use socket2::{Domain, Protocol, Socket, Type};

/// Socket buffers; the kernel caps them at `net.core.{r,w}mem_max`. Too small ones drop bursts.
const SOCKET_BYTES: usize = 4 << 20;
/// Bytes one stream may have unread here: what a slow reader holds back, and one largest frame on its way.
const STREAM_WINDOW: u32 = 8 << 20;
/// Bytes one connection may have unread here, over all its streams.
const CONNECTION_WINDOW: u32 = 32 << 20;
/// Links are within a site or between neighbouring ones; quinn supposes 333 ms.
const INITIAL_RTT: Duration = Duration::from_millis(10);
/// What closing the endpoint may take: its last packets.
const CLOSE: Duration = Duration::from_secs(1);

/// What differs from one kind of connection to another.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes that may be unacknowledged by the other end.
    pub send_window: u64,
    /// Streams that the other end may have open. All go both ways.
    pub streams: u32,
    /// Without a packet for so long, in milliseconds, a connection is gone; the shorter one of both ends counts.
    pub idle_ms: u32,
    /// A packet is sent at least so often.
    pub keep_alive: Duration,
}

/// A UDP socket with buffers that hold a burst. One of IPv6 takes IPv4 too.
pub fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // the kernel takes what it allows
    socket.set_recv_buffer_size(SOCKET_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BYTES)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// An endpoint on a bound socket; it accepts if it has a `server`. Must be made inside the runtime that will drive it.
pub fn open(socket: UdpSocket, server: Option<quinn::ServerConfig>) -> io::Result<quinn::Endpoint> {
    quinn::Endpoint::new(EndpointConfig::default(), server, socket, Arc::new(quinn::TokioRuntime))
}

/// How a node dials.
pub fn client_config(tls: QuicClientConfig, limits: Limits) -> quinn::ClientConfig {
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport(limits)));
    config
}

/// The limits of a connection.
pub fn transport(limits: Limits) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(limits.send_window)
        .max_concurrent_bidi_streams(VarInt::from_u32(limits.streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(limits.idle_ms))))
        .keep_alive_interval(Some(limits.keep_alive))
        .initial_rtt(INITIAL_RTT);
    transport
}

/// Closes every connection and waits a moment for the packets that say so.
pub async fn close(endpoint: &quinn::Endpoint, reason: &str) {
    endpoint.close(VarInt::from_u32(0), reason.as_bytes());
    let _ = tokio::time::timeout(CLOSE, endpoint.wait_idle()).await;
}
