//! Keys that tokens are signed with. Each is good for one algorithm only, so that no public key is ever taken for a secret.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    hmac::{self, HMAC_SHA256},
    signature::{
        ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
    },
};
use rustls_pki_types::{SubjectPublicKeyInfoDer, pem::PemObject as _};
use serde::Deserialize;

use super::Proof;
use crate::config::Algorithm;

/// Shortest secret (RFC 7518 §3.2).
pub(super) const SECRET_BYTES_MIN: usize = 32;
/// Shortest RSA modulus that is verified with, 2048 bits.
const RSA_BYTES_MIN: usize = 256;
/// What precedes the point of a P-256 key and the bytes of an Ed25519 key in a SubjectPublicKeyInfo (RFC 5480, RFC 8410): of fixed length.
const P256_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
const ED25519_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// The AlgorithmIdentifier of an RSA key (RFC 8017 §A.1).
const RSA_ALGORITHM: [u8; 15] =
    [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];

/// Why something is no key.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyError {
    /// It could be guessed.
    #[error("the secret has fewer than {SECRET_BYTES_MIN} bytes")]
    ShortSecret,
    /// Somebody took one for the other.
    #[error("this is a key in PEM, not a secret")]
    NoSecret,
    /// Not PEM, or not a public key.
    #[error("no PEM block BEGIN PUBLIC KEY is there")]
    NoPem,
    /// A key of another kind.
    #[error("the public key is none for {0}")]
    Unfit(Algorithm),
    /// Not a JWKS.
    #[error("no JSON Web Key Set (RFC 7517): {0}")]
    NoSet(String),
    /// Nothing to verify with.
    #[error("no key of the set fits the configured algorithms")]
    Empty,
    /// More than are looked through for one token.
    #[error("the set has more than {KEYS_MAX} keys")]
    TooMany,
}

impl KeyError {
    /// Where it is wrong, and no word of what stands there: it may be a key.
    fn no_set(error: serde_json::Error) -> Self {
        Self::NoSet(format!("{:?} error at line {}, column {}", error.classify(), error.line(), error.column()))
    }
}

/// Most keys of a set.
const KEYS_MAX: usize = 100;

/// What a key is made of.
#[derive(Clone)]
enum Material {
    /// HS256.
    Secret(hmac::Key),
    /// RS256: modulus and exponent, big-endian.
    Rsa {
        /// n
        n: Vec<u8>,
        /// e
        e: Vec<u8>,
    },
    /// ES256: an uncompressed point.
    P256(Vec<u8>),
    /// EdDSA.
    Ed25519(Vec<u8>),
}

impl Material {
    fn of_secret(secret: &[u8]) -> Self {
        Self::Secret(hmac::Key::new(HMAC_SHA256, secret))
    }

    fn algorithm(&self) -> Algorithm {
        match self {
            Self::Secret(_) => Algorithm::Hs256,
            Self::Rsa { .. } => Algorithm::Rs256,
            Self::P256(_) => Algorithm::Es256,
            Self::Ed25519(_) => Algorithm::EdDsa,
        }
    }
}

/// A key for one algorithm.
#[derive(Clone)]
pub struct Key {
    kid: Option<String>,
    material: Material,
    proof: Proof,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("kid", &self.kid).field("algorithm", &self.algorithm()).finish_non_exhaustive()
    }
}

impl Key {
    /// Of a shared secret.
    pub fn secret(kid: Option<String>, secret: &[u8]) -> Result<Self, KeyError> {
        check_secret(secret)?;
        Ok(Self::new(kid, Material::of_secret(secret), secret))
    }

    /// Of a public key in PEM.
    pub fn public(kid: Option<String>, algorithm: Algorithm, pem: &[u8]) -> Result<Self, KeyError> {
        let info = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| KeyError::NoPem)?;
        let material = of_info(algorithm, &info).ok_or(KeyError::Unfit(algorithm))?;
        Ok(Self::new(kid, material, &[]))
    }

    /// The keys of a JWKS that fit one of these algorithms. Providers publish others beside them.
    pub fn set(algorithms: &[Algorithm], json: &[u8]) -> Result<Vec<Self>, KeyError> {
        let set: JwkSet = serde_json::from_slice(json).map_err(KeyError::no_set)?;
        if set.keys.len() > KEYS_MAX {
            return Err(KeyError::TooMany);
        }
        let mut keys: Vec<Self> = set.keys.into_iter().filter_map(Jwk::key).collect();
        keys.retain(|key| algorithms.contains(&key.algorithm()));
        if keys.is_empty() { Err(KeyError::Empty) } else { Ok(keys) }
    }

    /// `secret` where the material does not tell it.
    fn new(kid: Option<String>, material: Material, secret: &[u8]) -> Self {
        let (has_kid, id) = (kid.is_some(), kid.as_deref().unwrap_or_default().as_bytes());
        let (one, other): (&[u8], &[u8]) = match &material {
            Material::Secret(_) => (secret, &[]),
            Material::Rsa { n, e } => (n, e),
            Material::P256(bytes) | Material::Ed25519(bytes) => (bytes, &[]),
        };
        let proof = Proof::of([&[u8::from(has_kid)], id, material.algorithm().name().as_bytes(), one, other]);
        Self { kid, material, proof }
    }

    fn algorithm(&self) -> Algorithm {
        self.material.algorithm()
    }

    pub(super) fn proof(&self) -> Proof {
        self.proof
    }

    /// Whether a token of this algorithm and `kid` may be signed with it.
    pub(super) fn is_for(&self, algorithm: Algorithm, kid: Option<&str>) -> bool {
        let named = self.kid.as_deref().zip(kid);
        self.algorithm() == algorithm && named.is_none_or(|(own, asked)| own == asked)
    }

    /// Whether it was published under this `kid`.
    pub(super) fn has_id(&self, kid: &str) -> bool {
        self.kid.as_deref() == Some(kid)
    }

    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            Material::Secret(key) => hmac::verify(key, message, signature).is_ok(),
            Material::Rsa { n, e } => {
                RsaPublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature).is_ok()
            }
            Material::P256(point) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature).is_ok()
            }
            Material::Ed25519(key) => UnparsedPublicKey::new(&ED25519, key).verify(message, signature).is_ok(),
        }
    }
}

/// Whether it can be a shared secret.
pub(crate) fn check_secret(secret: &[u8]) -> Result<(), KeyError> {
    if secret.starts_with(b"-----BEGIN") {
        return Err(KeyError::NoSecret);
    }
    if secret.len() < SECRET_BYTES_MIN { Err(KeyError::ShortSecret) } else { Ok(()) }
}

fn of_info(algorithm: Algorithm, info: &[u8]) -> Option<Material> {
    match algorithm {
        Algorithm::Hs256 => None,
        Algorithm::Es256 => p256(info.strip_prefix(&P256_PREFIX)?.to_vec()),
        Algorithm::EdDsa => ed25519(info.strip_prefix(&ED25519_PREFIX)?.to_vec()),
        Algorithm::Rs256 => {
            let (inside, []) = element(0x30, info)? else { return None };
            let (bits, []) = element(0x03, inside.strip_prefix(&RSA_ALGORITHM)?)? else { return None };
            let (numbers, []) = element(0x30, bits.strip_prefix(&[0])?)? else { return None };
            let (n, rest) = element(0x02, numbers)?;
            let (e, []) = element(0x02, rest)? else { return None };
            rsa(n, e)
        }
    }
}

/// The content of a DER element with this tag, and what follows it.
fn element(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = bytes.strip_prefix(&[tag])?.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => (usize::from(*rest.first()?), rest.get(1..)?),
        0x82 => (usize::from(*rest.first()?) << 8 | usize::from(*rest.get(1)?), rest.get(2..)?),
        _ => return None,
    };
    rest.split_at_checked(length)
}

fn rsa(n: &[u8], e: &[u8]) -> Option<Material> {
    let trimmed = |number: &[u8]| number.iter().copied().skip_while(|byte| *byte == 0).collect::<Vec<u8>>();
    let (n, e) = (trimmed(n), trimmed(e));
    (n.len() >= RSA_BYTES_MIN && !e.is_empty()).then_some(Material::Rsa { n, e })
}

fn p256(point: Vec<u8>) -> Option<Material> {
    (point.len() == 65 && point.first() == Some(&4)).then_some(Material::P256(point))
}

fn ed25519(key: Vec<u8>) -> Option<Material> {
    (key.len() == 32).then_some(Material::Ed25519(key))
}

#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<Jwk>,
}

/// What of a JSON Web Key counts (RFC 7517, RFC 7518 §6, RFC 8037).
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default, rename = "use")]
    purpose: Option<String>,
    #[serde(default)]
    alg: Option<String>,
    #[serde(default)]
    crv: Option<String>,
    #[serde(default)]
    n: Option<String>,
    #[serde(default)]
    e: Option<String>,
    #[serde(default)]
    x: Option<String>,
    #[serde(default)]
    y: Option<String>,
    #[serde(default)]
    k: Option<String>,
}

impl Jwk {
    /// The key, if it is one that signatures of ours are verified with.
    fn key(self) -> Option<Key> {
        let bytes = |text: &Option<String>| URL_SAFE_NO_PAD.decode(text.as_ref()?).ok();
        if self.purpose.as_ref().is_some_and(|purpose| purpose != "sig") {
            return None;
        }
        let secret = bytes(&self.k).unwrap_or_default();
        let material = match (self.kty.as_str(), self.crv.as_deref()) {
            ("oct", _) => {
                check_secret(&secret).ok()?;
                Material::of_secret(&secret)
            }
            ("RSA", _) => rsa(&bytes(&self.n)?, &bytes(&self.e)?)?,
            ("EC", Some("P-256")) => p256([vec![4], bytes(&self.x)?, bytes(&self.y)?].concat())?,
            ("OKP", Some("Ed25519")) => ed25519(bytes(&self.x)?)?,
            _ => return None,
        };
        let key = Key::new(self.kid, material, &secret);
        self.alg.as_deref().is_none_or(|name| name == key.algorithm().name()).then_some(key)
    }
}
