//! TLS of the link: mutual, TLS 1.3 with ring, from the PKI folder.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use quinn::crypto::rustls::QuicClientConfig;
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use trunkline_proto::link::ALPN;

/// Why the PKI folder is of no use.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing or is no PEM.
    #[error("{path}: {reason}")]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Certificate and key do not fit together, or the authority is unusable.
    #[error("certificate: {0}")]
    Certificate(#[from] rustls::Error),
    /// A build without TLS 1.3.
    #[error("no cipher suite for QUIC: {0}")]
    Suite(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

/// The DNS name in a broker's certificate.
pub(crate) fn broker_name(id: u64) -> String {
    format!("broker.{id}.trunkline.internal")
}

/// Reads `ca.pem`, `edge-NAME.pem` and `edge-NAME.key`.
pub(crate) fn client_config(folder: &Path, edge: &str) -> Result<QuicClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(&folder.join("ca.pem"))? {
        roots.add(authority)?;
    }
    let chain = certificates(&folder.join(format!("edge-{edge}.pem")))?;
    let path = folder.join(format!("edge-{edge}.key"));
    let key =
        PrivateKeyDer::from_pem_file(&path).map_err(|error| TlsError::File { path, reason: error.to_string() })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(QuicClientConfig::try_from(config)?)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |reason: String| TlsError::File { path: path.to_owned(), reason };
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?;
    let certificates: Vec<_> = certificates.collect::<Result<_, _>>().map_err(|error| wrong(error.to_string()))?;
    if certificates.is_empty() {
        return Err(wrong("holds no certificate".to_owned()));
    }
    Ok(certificates)
}
