//! QUIC with mutual TLS, as edges and brokers both use it: who a node is by its certificate, the PKI folder, and endpoints with
//! every limit set; certificates of TCP listeners, and files that are read again when they change. What is said on a connection stands in `trunkline-proto`; which protocols a node speaks is its own affair.

pub mod endpoint;
pub mod files;
mod identity;
pub mod listener;
mod pki;

pub use identity::{Identity, IdentityError, Role};
pub use pki::{AUTHORITY_FILE, Pki, TlsError};
