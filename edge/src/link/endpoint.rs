//! The edge's QUIC endpoint, with every limit set: quinn's own are no bounds (reference/dependencies.md 4).

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use quinn::{EndpointConfig, IdleTimeout, TransportConfig, VarInt, crypto::rustls::QuicClientConfig};
use socket2::{Domain, Protocol, Socket, Type};

/// Socket buffers; the kernel caps them at `net.core.{r,w}mem_max`. Too small ones drop bursts.
const SOCKET_BYTES: usize = 4 << 20;
/// Bytes one partition's stream may have unread here: what a slow shard holds back, and one largest frame on its way.
const STREAM_WINDOW: u32 = 8 << 20;
/// Bytes one broker may have unread here over all streams.
const CONNECTION_WINDOW: u32 = 32 << 20;
/// Bytes one broker may leave unacknowledged. What is beyond waits in the uplink, where batches still grow.
const SEND_WINDOW: u64 = 16 << 20;
/// Without a packet for so long a connection is gone, whoever notices.
const IDLE: VarInt = VarInt::from_u32(15_000);
/// A packet is sent at least so often, and its acknowledgement shows that the broker is there (`session.rs` watches).
pub(crate) const KEEP_ALIVE: Duration = Duration::from_millis(500);
/// Links are within a site or between neighbouring ones; quinn supposes 333 ms.
const INITIAL_RTT: Duration = Duration::from_millis(10);

/// A client endpoint on a port of the system's choice. Must be made inside the runtime that will drive it.
pub(crate) fn client(tls: QuicClientConfig) -> io::Result<quinn::Endpoint> {
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport()));
    let mut endpoint = quinn::Endpoint::new(EndpointConfig::default(), None, socket()?, Arc::new(quinn::TokioRuntime))?;
    endpoint.set_default_client_config(config);
    Ok(endpoint)
}

/// One socket for brokers of either family, or IPv4 alone where the host has no IPv6.
fn socket() -> io::Result<UdpSocket> {
    bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))).or_else(|_| bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))))
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
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

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(SEND_WINDOW)
        // brokers open no streams
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IdleTimeout::from(IDLE)))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(INITIAL_RTT);
    transport
}
