//! Certificate and key of gRPC and HTTP, read once at start.

use std::{fs, path::Path, sync::Arc, time::Duration};

use tokio_rustls::TlsAcceptor;
use tonic::transport::{Identity, ServerTlsConfig};

use super::ServeError;
use crate::{
    config::TlsConfig,
    quic::{TlsError, listener},
};

/// How long a stranger may take for the handshake of gRPC; HTTP's is bounded where it is served.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What the listeners prove.
pub(super) struct Tls {
    pub(super) grpc: ServerTlsConfig,
    pub(super) http: TlsAcceptor,
}

/// Reads both files.
pub(super) fn load(config: &TlsConfig) -> Result<Tls, ServeError> {
    let server = listener::server_config(&config.cert, &config.key, &[b"http/1.1"]).map_err(ServeError::Certificate)?;
    let grpc = Identity::from_pem(read(&config.cert)?, read(&config.key)?);
    let grpc = ServerTlsConfig::new().identity(grpc).timeout(HANDSHAKE);
    Ok(Tls { grpc, http: TlsAcceptor::from(Arc::new(server)) })
}

fn read(path: &Path) -> Result<Vec<u8>, ServeError> {
    let wrong = |error: std::io::Error| TlsError::File { path: path.to_owned(), reason: error.to_string() };
    fs::read(path).map_err(|error| ServeError::Certificate(wrong(error)))
}
