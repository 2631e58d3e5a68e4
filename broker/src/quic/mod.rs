//! QUIC with mutual TLS, as edges and brokers both use it: who a node is by its certificate, the one UDP endpoint with every limit
//! set, and the accept loop that hands connections on by their ALPN.

pub mod accept;
pub mod endpoint;
pub mod tls;

pub use accept::{Accepted, Handler, Handlers, serve};
pub use tls::{Identity, Pki, Role};
