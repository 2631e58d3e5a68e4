//! TLS of edge link and peers: the PKI folder, mutual TLS with ring, and who a peer is by its certificate.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use rustls::{
    RootCertStore,
    server::{VerifierBuilderError, WebPkiClientVerifier},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use trunkline_proto::{limits, link::ALPN, peer::PEER_ALPN};

/// Every name in a node's certificate ends so.
const DOMAIN: &str = ".trunkline.internal";

/// What a node is, by its certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Terminates WebSockets.
    Edge,
    /// Holds replicas.
    Broker,
}

impl Role {
    /// As it stands in file names and certificates.
    pub fn name(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Broker => "broker",
        }
    }
}

/// A node, by the DNS name in its certificate: `edge.<name>.trunkline.internal`, `broker.<id>.trunkline.internal`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// What it is.
    pub role: Role,
    /// Its name, or its number in decimal.
    pub name: String,
}

impl Identity {
    /// The DNS name in its certificate.
    pub fn dns_name(&self) -> String {
        format!("{}.{}{DOMAIN}", self.role.name(), self.name)
    }

    /// The identity a DNS name stands for.
    pub fn from_dns_name(dns_name: &str) -> Option<Self> {
        let (role, name) = dns_name.strip_suffix(DOMAIN)?.split_once('.')?;
        let role = match role {
            "edge" => Role::Edge,
            "broker" => Role::Broker,
            _ => return None,
        };
        limits::is_name(name).then(|| Self { role, name: name.to_owned() })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role.name(), self.name)
    }
}

/// Why the link cannot be served with this PKI folder.
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
    /// `ca.pem` is not usable for checking edges.
    #[error("certificate authority: {0}")]
    Verifier(#[from] VerifierBuilderError),
    /// Certificate and key do not fit together, or the like.
    #[error("certificate: {0}")]
    Certificate(#[from] rustls::Error),
    /// ring without a QUIC cipher suite: a build without TLS 1.3.
    #[error("no cipher suite for QUIC: {0}")]
    Suite(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

/// Why a peer is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// No certificate: cannot happen behind the verifier.
    #[error("peer shows no certificate")]
    Missing,
    /// Not X.509.
    #[error("peer's certificate does not parse")]
    Parse,
    /// No, or more than one, name of a node.
    #[error("peer's certificate names no node, or several")]
    Name,
}

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
        let stem = format!("{}-{}", identity.role.name(), identity.name);
        let key = folder.join(format!("{stem}.key"));
        Ok(Self {
            authorities: certificates(&folder.join("ca.pem"))?,
            chain: certificates(&folder.join(format!("{stem}.pem")))?,
            key: PrivateKeyDer::from_pem_file(&key)
                .map_err(|error| TlsError::File { path: key, reason: error.to_string() })?,
        })
    }
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

fn roots(pki: &Pki) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in &pki.authorities {
        roots.add(authority.clone())?;
    }
    Ok(roots)
}

/// What an accepted connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// An edge's link.
    Link,
    /// Another broker.
    Peer,
}

/// By the ALPN both ends agreed on.
pub fn purpose(connection: &quinn::Connection) -> Option<Purpose> {
    let data = connection.handshake_data()?.downcast::<HandshakeData>().ok()?;
    match data.protocol.as_deref()? {
        ALPN => Some(Purpose::Link),
        PEER_ALPN => Some(Purpose::Peer),
        _ => None,
    }
}

/// A broker that dials another: TLS 1.3, its own certificate shown, ALPN `trunkline-peer/1`.
pub fn peer_client_config(pki: &Pki) -> Result<QuicClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(pki)?)
        .with_client_auth_cert(pki.chain.clone(), pki.key.clone_key())?;
    config.alpn_protocols = vec![PEER_ALPN.to_vec()];
    Ok(QuicClientConfig::try_from(config)?)
}

/// The server's side of link and peers: TLS 1.3, a certificate of the same authority demanded, no 0-RTT.
pub fn server_config(pki: &Pki) -> Result<QuicServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(pki)?), provider.clone()).build()?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(pki.chain.clone(), pki.key.clone_key())?;
    config.alpn_protocols = vec![ALPN.to_vec(), PEER_ALPN.to_vec()];
    // a replayed append is harmless, a replayed Hello is not: never 0-RTT
    config.max_early_data_size = 0;
    Ok(QuicServerConfig::try_from(config)?)
}

/// Who is at the other end, by its (verified) certificate.
pub fn peer_identity(connection: &quinn::Connection) -> Result<Identity, IdentityError> {
    let chain = connection.peer_identity().ok_or(IdentityError::Missing)?;
    let chain = chain.downcast::<Vec<CertificateDer<'static>>>().map_err(|_| IdentityError::Missing)?;
    certificate_identity(chain.first().ok_or(IdentityError::Missing)?)
}

fn certificate_identity(certificate: &CertificateDer<'_>) -> Result<Identity, IdentityError> {
    let certificate = webpki::EndEntityCert::try_from(certificate).map_err(|_| IdentityError::Parse)?;
    let mut identities = certificate.valid_dns_names().filter_map(Identity::from_dns_name);
    match (identities.next(), identities.next()) {
        (Some(identity), None) => Ok(identity),
        _ => Err(IdentityError::Name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(names: &[&str]) -> CertificateDer<'static> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        rcgen::generate_simple_self_signed(names).unwrap().cert.der().clone()
    }

    #[test]
    fn a_certificate_names_one_node() {
        let identity = |names: &[&str]| certificate_identity(&certificate(names));
        assert_eq!(
            identity(&["edge.fra-1.trunkline.internal"]),
            Ok(Identity { role: Role::Edge, name: "fra-1".to_owned() })
        );
        assert_eq!(
            identity(&["example.com", "broker.3.trunkline.internal"]),
            Ok(Identity { role: Role::Broker, name: "3".to_owned() })
        );
        assert_eq!(identity(&["example.com"]), Err(IdentityError::Name));
        assert_eq!(identity(&["edge.a.trunkline.internal", "edge.b.trunkline.internal"]), Err(IdentityError::Name));
        assert_eq!(identity(&["edge.trunkline.internal"]), Err(IdentityError::Name));
        assert_eq!(certificate_identity(&CertificateDer::from(vec![1, 2, 3])), Err(IdentityError::Parse));
    }

    #[test]
    fn dns_names_and_identities_correspond() {
        for (role, name) in [(Role::Edge, "a.b"), (Role::Broker, "12")] {
            let identity = Identity { role, name: name.to_owned() };
            assert_eq!(Identity::from_dns_name(&identity.dns_name()), Some(identity));
        }
        for wrong in ["", "edge", "edge.a.example.com", "client.a.trunkline.internal", "edge..trunkline.internal"] {
            assert_eq!(Identity::from_dns_name(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn missing_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity { role: Role::Broker, name: "1".to_owned() };
        let error = Pki::load(folder.path(), &identity).unwrap_err().to_string();
        assert!(error.contains("ca.pem"), "{error}");
        std::fs::write(folder.path().join("ca.pem"), "no pem").unwrap();
        let error = Pki::load(folder.path(), &identity).unwrap_err().to_string();
        assert!(error.contains("holds no certificate"), "{error}");
    }
}
