//! Certificate and key of gRPC and HTTP.

use std::sync::Arc;

use tokio_rustls::TlsAcceptor;

use super::ServeError;
use crate::{config::TlsConfig, quic::listener::Certificate};

/// What the listeners prove.
pub(super) struct Tls {
    pub(super) certificate: Arc<Certificate>,
    pub(super) grpc: TlsAcceptor,
    pub(super) http: TlsAcceptor,
}

/// Reads both files.
pub(super) fn load(config: &TlsConfig) -> Result<Tls, ServeError> {
    let certificate = Arc::new(Certificate::load(&config.cert, &config.key).map_err(ServeError::Certificate)?);
    let acceptor = |protocol: &[u8]| {
        let server = certificate.server_config(&[protocol]).map_err(ServeError::Certificate)?;
        Ok::<_, ServeError>(TlsAcceptor::from(Arc::new(server)))
    };
    let (grpc, http) = (acceptor(b"h2")?, acceptor(b"http/1.1")?);
    Ok(Tls { certificate, grpc, http })
}
