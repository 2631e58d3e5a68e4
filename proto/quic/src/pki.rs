//! The PKI folder, and mutual TLS 1.3 with ring made of it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    server::{VerifierBuilderError, WebPkiClientVerifier},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::Identity;

/// Why there can be no TLS with this PKI folder.
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
    /// `ca.pem` is not usable for checking peers.
    #[error("certificate authority: {0}")]
    Verifier(#[from] VerifierBuilderError),
    /// Certificate and key do not fit together, or the like.
    #[error("certificate: {0}")]
    Certificate(#[from] rustls::Error),
    /// ring without a QUIC cipher suite: a build without TLS 1.3.
    #[error("no cipher suite for QUIC: {0}")]
    Suite(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

/// The authority's certificate in the PKI folder.
pub const AUTHORITY_FILE: &str = "ca.pem";

/// A node's certificate, its key and the authority that signed it and its peers.
#[derive(Debug)]
pub struct Pki {
    /// Who may sign peers.
    pub authorities: Vec<CertificateDer<'static>>,
    /// This node's certificate and what leads to the authority.
    pub chain: Vec<CertificateDer<'static>>,
    /// This node's key.
    pub key: PrivateKeyDer<'static>,
}

impl Pki {
    /// Reads `ca.pem`, `<role>-<name>.pem` and `<role>-<name>.key` of a folder.
    pub fn load(folder: &Path, identity: &Identity) -> Result<Self, TlsError> {
        let key = folder.join(identity.key_file());
        Ok(Self {
            authorities: certificates(&folder.join(AUTHORITY_FILE))?,
            chain: certificates(&folder.join(identity.certificate_file()))?,
            key: PrivateKeyDer::from_pem_file(&key)
                .map_err(|error| TlsError::File { path: key, reason: error.to_string() })?,
        })
    }

    /// The dialing end: TLS 1.3, this node's certificate shown, one protocol offered.
    pub fn client_config(&self, alpn: &[u8]) -> Result<QuicClientConfig, TlsError> {
        let mut config = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![alpn.to_vec()];
        Ok(QuicClientConfig::try_from(config)?)
    }

    /// The accepting end: TLS 1.3, a certificate of the same authority demanded, no 0-RTT.
    pub fn server_config(&self, alpns: &[&[u8]]) -> Result<QuicServerConfig, TlsError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), provider()).build()?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = alpns.iter().map(|alpn| alpn.to_vec()).collect();
        // a replayed append is harmless, a replayed Hello is not: never 0-RTT
        config.max_early_data_size = 0;
        Ok(QuicServerConfig::try_from(config)?)
    }

    fn roots(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        for authority in &self.authorities {
            roots.add(authority.clone())?;
        }
        Ok(roots)
    }
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |reason: String| TlsError::File { path: path.to_owned(), reason };
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?;
    let certificates: Vec<_> = certificates.collect::<Result<_, _>>().map_err(|error| wrong(error.to_string()))?;
    if certificates.is_empty() {
        return Err(wrong("holds no certificate".to_owned()));
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity::broker(1);
        let error = Pki::load(folder.path(), &identity).unwrap_err().to_string();
        assert!(error.contains("ca.pem"), "{error}");
        std::fs::write(folder.path().join("ca.pem"), "no pem").unwrap();
        let error = Pki::load(folder.path(), &identity).unwrap_err().to_string();
        assert!(error.contains("holds no certificate"), "{error}");
    }
}
