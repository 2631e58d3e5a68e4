//! Requests signed with a shared secret: HMAC-SHA256, in lower-case hexadecimal digits, over four lines without a line end after the last:
//!
//! ```text
//! trunkline-hmac-sha256
//! /the/path as requested
//! the query as requested, without `&hmac_signature=…`
//! the timestamp, in seconds since 1970
//! ```
//!
//! Key, timestamp and signature stand in the query, `hmac_key=K&hmac_timestamp=T&hmac_signature=S`, the signature last; or in the header
//! `Authorization: TRUNKLINE-HMAC-SHA256 key=K, timestamp=T, signature=S`.

use std::{collections::BTreeMap, fmt};

use ring::hmac::{self, HMAC_SHA256};
use trunkline_proto::text;

use super::{Denied, Hidden, Identity, Proof, attributes_fit, credentials::redact, is_principal};
use crate::core::handshake::Upgrade;

/// The scheme in the Authorization header.
pub(super) const SCHEME: &str = "TRUNKLINE-HMAC-SHA256";
/// The query parameter with the signature.
pub(super) const SIGNATURE: &str = "hmac_signature";
const KEY: &str = "hmac_key";
const TIMESTAMP: &str = "hmac_timestamp";
/// The first line of what is signed.
const DOMAIN: &str = "trunkline-hmac-sha256";

/// Who may sign.
pub struct HmacKey {
    id: String,
    key: hmac::Key,
    proof: Proof,
}

impl HmacKey {
    /// A key pair: id and secret.
    pub fn new(id: String, secret: &[u8]) -> Self {
        let proof = Proof::of([id.as_bytes(), secret]);
        Self { id, key: hmac::Key::new(HMAC_SHA256, secret), proof }
    }
}

impl fmt::Debug for HmacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HmacKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// How requests are signed.
#[derive(Debug)]
pub struct Hmac {
    /// By whom.
    pub keys: Vec<HmacKey>,
    /// How far the timestamp may be from now, in seconds.
    pub max_age: u64,
    /// The query parameter that names the principal; none: the key's id is it.
    pub principal: Option<String>,
    /// Query parameters that become attributes.
    pub attributes: Vec<String>,
}

/// What a request claims.
struct Claim {
    key: String,
    timestamp: String,
    signature: String,
}

impl Hmac {
    pub(super) fn proofs(&self) -> impl Iterator<Item = Proof> {
        self.keys.iter().map(|key| key.proof)
    }

    pub(super) fn verify(&self, request: &mut Upgrade, now: u64) -> Result<Identity, Denied> {
        let judged = self.judge(request, now);
        redact(request, "");
        judged
    }

    fn judge(&self, request: &Upgrade, now: u64) -> Result<Identity, Denied> {
        let (signed_query, in_query) = match request.query.rsplit_once(&format!("{SIGNATURE}=")) {
            Some((before, signature)) if before.is_empty() || before.ends_with('&') => {
                (before.strip_suffix('&').unwrap_or(before), Some(signature))
            }
            _ => (request.query.as_str(), None),
        };
        let claim = match (&request.authorization, in_query) {
            (None, None) => return Err(Denied::Missing),
            (Some(_), Some(_)) => return Err(Denied::Twice),
            (Some(Hidden(header)), None) => of_header(header)?,
            (None, Some(signature)) => of_query(signed_query, signature)?,
        };
        let signature = text::unhex(&claim.signature).ok_or(Denied::Malformed)?;
        // one spelling only: what is compared must be what was signed
        let timestamp: u64 = claim.timestamp.parse().map_err(|_| Denied::Malformed)?;
        if timestamp.to_string() != claim.timestamp {
            return Err(Denied::Malformed);
        }
        let key = self.keys.iter().find(|key| key.id == claim.key).ok_or(Denied::Signature)?;
        let text = format!("{DOMAIN}\n{}\n{signed_query}\n{timestamp}", request.path);
        hmac::verify(&key.key, text.as_bytes(), &signature).map_err(|_| Denied::Signature)?;
        if timestamp.saturating_add(self.max_age) < now {
            return Err(Denied::Expired);
        }
        if timestamp > now.saturating_add(self.max_age) {
            return Err(Denied::NotYet);
        }
        self.identity(key, signed_query)
    }

    fn identity(&self, key: &HmacKey, query: &str) -> Result<Identity, Denied> {
        let principal = match &self.principal {
            None => key.id.clone(),
            Some(name) => one(query, name)?.ok_or(Denied::Claim)?,
        };
        let mut attributes = BTreeMap::new();
        for name in &self.attributes {
            if let Some(value) = one(query, name)? {
                attributes.insert(name.clone(), value);
            }
        }
        if !is_principal(&principal) || !attributes_fit(&attributes) {
            return Err(Denied::Malformed);
        }
        Ok(Identity { principal, attributes, expires: None, proof: Some(key.proof) })
    }
}

/// The value of a parameter that may stand there once.
fn one(query: &str, name: &str) -> Result<Option<String>, Denied> {
    let mut values = text::query_pairs(query).filter(|(found, _)| found == name).map(|(_, value)| value);
    let value = values.next();
    if values.next().is_some() { Err(Denied::Twice) } else { Ok(value) }
}

fn of_query(query: &str, signature: &str) -> Result<Claim, Denied> {
    if text::query_pairs(query).any(|(name, _)| name == SIGNATURE) {
        return Err(Denied::Twice);
    }
    let key = one(query, KEY)?.ok_or(Denied::Malformed)?;
    let timestamp = one(query, TIMESTAMP)?.ok_or(Denied::Malformed)?;
    Ok(Claim { key, timestamp, signature: signature.to_owned() })
}

fn of_header(header: &str) -> Result<Claim, Denied> {
    let (scheme, list) = header.split_once(' ').ok_or(Denied::Malformed)?;
    if !scheme.eq_ignore_ascii_case(SCHEME) {
        return Err(Denied::Malformed);
    }
    let pairs: Vec<_> = list.split(',').filter_map(|pair| pair.trim().split_once('=')).collect();
    let value = |name: &str| {
        let mut values = pairs.iter().filter(|(found, _)| *found == name).map(|(_, value)| (*value).to_owned());
        values.next().filter(|_| values.next().is_none()).ok_or(Denied::Malformed)
    };
    Ok(Claim { key: value("key")?, timestamp: value("timestamp")?, signature: value("signature")? })
}
