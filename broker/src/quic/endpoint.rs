//! The limits of this broker's one endpoint: towards edges, and towards the brokers it dials.

use std::{io, net::UdpSocket, sync::Arc, time::Duration};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use trunkline_proto::PartitionCount;
use trunkline_quic::endpoint::{self, Limits};

use super::accept::HANDSHAKES_MAX;

/// Bytes one connection may have unacknowledged by its other end.
const SEND_WINDOW: u64 = 32 << 20;
/// Bytes kept for handshakes that nobody has looked at yet, one and all of them.
const INCOMING_BYTES: u64 = 64 << 10;
const INCOMING_BYTES_TOTAL: u64 = 4 << 20;
/// Beside one stream a partition: the control stream, and streams that are being replaced.
const SPARE_STREAMS: u32 = 4;
/// Brokers open no streams towards the one that dials: each direction has a connection of its own. They must know soon that one
/// of them is gone.
const PEER: Limits =
    Limits { send_window: SEND_WINDOW, streams: 0, idle_ms: 5_000, keep_alive: Duration::from_secs(1) };

/// The endpoint on a bound socket.
pub fn endpoint(socket: UdpSocket, tls: QuicServerConfig, count: PartitionCount) -> io::Result<quinn::Endpoint> {
    endpoint::open(socket, Some(server_config(tls, count)))
}

/// How others are served.
pub(crate) fn server_config(tls: QuicServerConfig, count: PartitionCount) -> quinn::ServerConfig {
    let limits = Limits {
        send_window: SEND_WINDOW,
        streams: u32::from(count.get()) + SPARE_STREAMS,
        idle_ms: 15_000,
        keep_alive: Duration::from_secs(4),
    };
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    config
        .transport_config(Arc::new(endpoint::transport(limits)))
        .migration(false)
        .max_incoming(HANDSHAKES_MAX)
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(INCOMING_BYTES_TOTAL);
    config
}

/// How this broker dials others.
pub fn client_config(tls: QuicClientConfig) -> quinn::ClientConfig {
    endpoint::client_config(tls, PEER)
}
