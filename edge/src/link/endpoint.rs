//! The edge's QUIC endpoint and its limits.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use quinn::crypto::rustls::QuicClientConfig;
use trunkline_quic::endpoint::{self, Limits, bind};

/// A packet is sent at least so often, and its acknowledgement shows that the broker is there (`session.rs` watches).
pub(crate) const KEEP_ALIVE: Duration = Duration::from_millis(500);
const LIMITS: Limits = Limits {
    // what is beyond waits in the uplink, where batches still grow
    send_window: 16 << 20,
    // brokers open no streams
    streams: 0,
    idle_ms: 15_000,
    keep_alive: KEEP_ALIVE,
};

/// A client endpoint on a port of the system's choice. Must be made inside the runtime that will drive it.
pub(crate) fn client(tls: QuicClientConfig) -> io::Result<quinn::Endpoint> {
    let mut endpoint = endpoint::open(socket()?, None)?;
    endpoint.set_default_client_config(endpoint::client_config(tls, LIMITS));
    Ok(endpoint)
}

/// One socket for brokers of either family, or IPv4 alone where the host has no IPv6.
fn socket() -> io::Result<UdpSocket> {
    bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))).or_else(|_| bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))))
}
