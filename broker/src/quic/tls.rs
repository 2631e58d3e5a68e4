//! Which protocols this broker speaks, and by them what a connection is for.

use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use trunkline_proto::{link::ALPN, peer::PEER_ALPN};
use trunkline_quic::{Pki, TlsError};

/// What an accepted connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// An edge's link.
    Link,
    /// Another broker.
    Peer,
}

/// By the ALPN both ends agreed on.
pub fn purpose(connection: &quinn::Connection) -> Option<Purpose> {
    let data = connection.handshake_data()?.downcast::<HandshakeData>().ok()?;
    match data.protocol.as_deref()? {
        ALPN => Some(Purpose::Link),
        PEER_ALPN => Some(Purpose::Peer),
        _ => None,
    }
}

/// A broker that dials another.
pub fn peer_client_config(pki: &Pki) -> Result<QuicClientConfig, TlsError> {
    pki.client_config(PEER_ALPN)
}

/// The server's side of link and peers.
pub fn server_config(pki: &Pki) -> Result<QuicServerConfig, TlsError> {
    pki.server_config(&[ALPN, PEER_ALPN])
}
