//! Certificate and key of a TCP listener, for clients that show none.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use rustls::{
    ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject as _};

use crate::pki::{TlsError, certificates, provider};

/// TLS 1.2 and 1.3 with the certificates of one PEM file, the server's own first, and the key of another, over which these protocols are
/// spoken.
pub fn server_config(cert: &Path, key: &Path, alpn: &[&[u8]]) -> Result<ServerConfig, TlsError> {
    Arc::new(Certificate::load(cert, key)?).server_config(alpn)
}

/// Certificate and key of a listener, read again while it serves.
#[derive(Debug)]
pub struct Certificate {
    cert: PathBuf,
    key: PathBuf,
    current: RwLock<Arc<CertifiedKey>>,
}

impl Certificate {
    /// Of these PEM files: the chain, the server's own certificate first, and its key.
    pub fn load(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let current = RwLock::new(read(cert, key)?);
        Ok(Self { cert: cert.to_owned(), key: key.to_owned(), current })
    }

    /// Reads the files again. If they do not fit together, everything stays as it was; if they do, handshakes from now on show the new
    /// certificate, and connections that stand go on.
    pub fn reload(&self) -> Result<(), TlsError> {
        let read = read(&self.cert, &self.key)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = read;
        Ok(())
    }

    /// TLS 1.2 and 1.3 with it as it is at each handshake, over which these protocols are spoken.
    pub fn server_config(self: &Arc<Self>, alpn: &[&[u8]]) -> Result<ServerConfig, TlsError> {
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let mut config =
            builder.with_no_client_auth().with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = alpn.iter().map(|alpn| alpn.to_vec()).collect();
        Ok(config)
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn read(cert: &Path, key: &Path) -> Result<Arc<CertifiedKey>, TlsError> {
    let wrong =
        |error: rustls_pki_types::pem::Error| TlsError::File { path: key.to_owned(), reason: error.to_string() };
    let private = PrivateKeyDer::from_pem_file(key).map_err(wrong)?;
    Ok(Arc::new(CertifiedKey::from_der(certificates(cert)?, private, &provider())?))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_certificate_is_replaced_as_a_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
        let make = || rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (old, new) = (make(), make());
        fs::write(&cert, old.cert.pem()).unwrap();
        fs::write(&key, old.signing_key.serialize_pem()).unwrap();
        let certificate = Certificate::load(&cert, &key).unwrap();
        let shown = || certificate.current.read().unwrap().cert[0].to_vec();
        fs::write(&cert, new.cert.pem()).unwrap();
        assert!(matches!(certificate.reload(), Err(TlsError::Certificate(_))), "the key of another");
        assert_eq!(shown(), old.cert.der().to_vec());
        fs::write(&key, new.signing_key.serialize_pem()).unwrap();
        certificate.reload().unwrap();
        assert_eq!(shown(), new.cert.der().to_vec());
        fs::remove_file(&key).unwrap();
        assert!(matches!(certificate.reload(), Err(TlsError::File { .. })));
        assert_eq!(shown(), new.cert.der().to_vec());
    }
}
