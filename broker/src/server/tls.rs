//! Certificate and key of gRPC and HTTP, read once at start.

use std::{fs, io, path::Path, sync::Arc};

use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{self, crypto::ring},
};
use tonic::transport::{Identity, ServerTlsConfig};

use super::ServeError;
use crate::config::TlsConfig;

/// What the listeners prove.
pub(super) struct Tls {
    pub(super) grpc: ServerTlsConfig,
    pub(super) http: TlsAcceptor,
}

/// Reads both files.
pub(super) fn load(config: &TlsConfig) -> Result<Tls, ServeError> {
    let (cert, key) = (read(&config.cert)?, read(&config.key)?);
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&cert).collect::<Result<_, _>>().map_err(wrong(&config.cert))?;
    if chain.is_empty() {
        return Err(wrong(&config.cert)("there is no certificate in it"));
    }
    let private = PrivateKeyDer::from_pem_slice(&key).map_err(wrong(&config.key))?;
    let builder = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(wrong(&config.cert))?;
    let mut server = builder.with_no_client_auth().with_single_cert(chain, private).map_err(wrong(&config.cert))?;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    let grpc = ServerTlsConfig::new().identity(Identity::from_pem(&cert, &key));
    Ok(Tls { grpc, http: TlsAcceptor::from(Arc::new(server)) })
}

fn read(path: &Path) -> Result<Vec<u8>, ServeError> {
    fs::read(path).map_err(wrong(path))
}

fn wrong<E: Into<Box<dyn std::error::Error + Send + Sync>>>(path: &Path) -> impl FnOnce(E) -> ServeError {
    let path = path.to_owned();
    move |error| ServeError::Certificate { path, error: io::Error::other(error) }
}
