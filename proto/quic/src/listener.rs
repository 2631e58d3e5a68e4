//! Certificate and key of a TCP listener, for clients that show none.

use std::path::Path;

use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, pem::PemObject as _};

use crate::pki::{TlsError, certificates, provider};

/// TLS 1.2 and 1.3 with the certificates of one PEM file, the server's own first, and the key of another, over which these protocols are
/// spoken.
pub fn server_config(cert: &Path, key: &Path, alpn: &[&[u8]]) -> Result<ServerConfig, TlsError> {
    let wrong =
        |error: rustls_pki_types::pem::Error| TlsError::File { path: key.to_owned(), reason: error.to_string() };
    let private = PrivateKeyDer::from_pem_file(key).map_err(wrong)?;
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let mut config = builder.with_no_client_auth().with_single_cert(certificates(cert)?, private)?;
    config.alpn_protocols = alpn.iter().map(|alpn| alpn.to_vec()).collect();
    Ok(config)
}
