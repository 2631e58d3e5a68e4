//! This broker's QUIC: its one UDP endpoint, the protocols it speaks there, and the accept loop that hands connections on by them.
//! What edges share with it is `trunkline-quic`.

pub mod accept;
pub mod endpoint;
pub mod tls;

pub use accept::{Accepted, Handler, Handlers, serve};
pub use trunkline_quic::{
    Identity, Pki, Role, TlsError,
    endpoint::{bind, close},
    files, listener,
};
