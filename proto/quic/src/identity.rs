//! Who a node is, by the DNS name in its certificate.

use std::fmt;

use rustls_pki_types::CertificateDer;
use trunkline_proto::limits;

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
    /// The edge of that name.
    pub fn edge(name: &str) -> Self {
        Self { role: Role::Edge, name: name.to_owned() }
    }

    /// The broker of that number.
    pub fn broker(id: u64) -> Self {
        Self { role: Role::Broker, name: id.to_string() }
    }

    /// The DNS name in its certificate.
    pub fn dns_name(&self) -> String {
        format!("{}.{}{DOMAIN}", self.role.name(), self.name)
    }

    /// The file of its certificate in the PKI folder.
    pub fn certificate_file(&self) -> String {
        format!("{}-{}.pem", self.role.name(), self.name)
    }

    /// The file of its key in the PKI folder.
    pub fn key_file(&self) -> String {
        format!("{}-{}.key", self.role.name(), self.name)
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

    /// Who is at the other end of a connection, by its (verified) certificate.
    pub fn of_peer(connection: &quinn::Connection) -> Result<Self, IdentityError> {
        let chain = connection.peer_identity().ok_or(IdentityError::Missing)?;
        let chain = chain.downcast::<Vec<CertificateDer<'static>>>().map_err(|_| IdentityError::Missing)?;
        Self::of_certificate(chain.first().ok_or(IdentityError::Missing)?)
    }

    fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let certificate = webpki::EndEntityCert::try_from(certificate).map_err(|_| IdentityError::Parse)?;
        let mut identities = certificate.valid_dns_names().filter_map(Self::from_dns_name);
        match (identities.next(), identities.next()) {
            (Some(identity), None) => Ok(identity),
            _ => Err(IdentityError::Name),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role.name(), self.name)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(names: &[&str]) -> CertificateDer<'static> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        rcgen::generate_simple_self_signed(names).unwrap().cert.der().clone()
    }

    #[test]
    fn a_certificate_names_one_node() {
        let identity = |names: &[&str]| Identity::of_certificate(&certificate(names));
        assert_eq!(identity(&["edge.fra-1.trunkline.internal"]), Ok(Identity::edge("fra-1")));
        assert_eq!(identity(&["example.com", "broker.3.trunkline.internal"]), Ok(Identity::broker(3)));
        assert_eq!(identity(&["example.com"]), Err(IdentityError::Name));
        assert_eq!(identity(&["edge.a.trunkline.internal", "edge.b.trunkline.internal"]), Err(IdentityError::Name));
        assert_eq!(identity(&["edge.trunkline.internal"]), Err(IdentityError::Name));
        assert_eq!(Identity::of_certificate(&CertificateDer::from(vec![1, 2, 3])), Err(IdentityError::Parse));
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
}
