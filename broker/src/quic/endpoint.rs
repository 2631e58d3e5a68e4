//! The QUIC endpoint with every limit set (quinn's own are no bounds: reference measurements), and how this broker dials others.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use quinn::{
    EndpointConfig, IdleTimeout, TransportConfig, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use socket2::{Domain, Protocol, Socket, Type};
use trunkline_proto::PartitionCount;

use super::accept::HANDSHAKES_MAX;

/// Socket buffers; the kernel caps them at `net.core.{r,w}mem_max`. Too small ones drop bursts.
const SOCKET_BYTES: usize = 4 << 20;
/// Bytes one stream may have unread here: a large frame and the rest of a burst.
const STREAM_WINDOW: u32 = 8 << 20;
/// Bytes one connection may have unread here, over all its streams.
const CONNECTION_WINDOW: u32 = 32 << 20;
/// Bytes one connection may have unacknowledged by its other end.
const SEND_WINDOW: u64 = 32 << 20;
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
/// The same among brokers, which must know soon that one is gone: the shorter one of both ends counts.
const PEER_IDLE: VarInt = VarInt::from_u32(5_000);
const PEER_KEEP_ALIVE: Duration = Duration::from_secs(1);
/// What closing the endpoint may take: its last packets.
const CLOSE: Duration = Duration::from_secs(1);

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
    let config = server_config(tls, count);
    quinn::Endpoint::new(EndpointConfig::default(), Some(config), socket, Arc::new(quinn::TokioRuntime))
}

/// How others are served.
pub(crate) fn server_config(tls: QuicServerConfig, count: PartitionCount) -> quinn::ServerConfig {
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    config
        .transport_config(Arc::new(transport(count)))
        .migration(false)
        .max_incoming(HANDSHAKES_MAX)
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(INCOMING_BYTES_TOTAL);
    config
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

/// How this broker dials others. They open no streams towards the dialer: each direction has a connection of its own.
pub fn client_config(tls: QuicClientConfig) -> quinn::ClientConfig {
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(SEND_WINDOW)
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IdleTimeout::from(PEER_IDLE)))
        .keep_alive_interval(Some(PEER_KEEP_ALIVE))
        .initial_rtt(INITIAL_RTT);
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport));
    config
}

/// Closes every connection and waits a moment for the packets that say so.
pub async fn close(endpoint: &quinn::Endpoint) {
    endpoint.close(VarInt::from_u32(0), b"shutdown");
    let _ = tokio::time::timeout(CLOSE, endpoint.wait_idle()).await;
}
