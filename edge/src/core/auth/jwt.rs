//! JSON Web Tokens (RFC 7519, RFC 7515), by the rules of RFC 8725: the configuration alone says which algorithms and keys there are. What else a
//! token's header names (`jwk`, `jku`, `x5u`, `x5c`) is never looked at.

use std::{collections::BTreeMap, fmt};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeOwned, IgnoredAny, MapAccess, Visitor},
};
use serde_json::Value;

use super::{Denied, Fetched, Identity, Key, Places, Proof, attributes_fit, is_principal};
use crate::config::Algorithm;

/// The end of the year 9999: a later time is no time.
const SECONDS_MAX: u64 = 253_402_300_799;

/// What a token must be.
#[derive(Clone, Debug)]
pub struct JwtRules {
    /// Which may have signed it.
    pub algorithms: Vec<Algorithm>,
    /// `iss`; none: any.
    pub issuer: Option<String>,
    /// One of these must be in `aud`; empty: there must be no `aud`.
    pub audience: Vec<String>,
    /// Claims that must be there.
    pub required: Vec<String>,
    /// How far the clocks may differ, in seconds.
    pub leeway: u64,
    /// The claim that is the principal.
    pub principal: String,
    /// Claims that become attributes.
    pub attributes: Vec<String>,
}

/// Verifies tokens.
#[derive(Clone, Debug)]
pub struct Jwt {
    places: Places,
    rules: JwtRules,
    keys: Vec<Key>,
    /// None: all keys there are stand in `keys`.
    fetched: Option<Fetched>,
}

/// What of the header counts. The same name twice is refused.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<IgnoredAny>,
}

impl Jwt {
    /// By these rules and keys.
    pub fn new(places: Places, rules: JwtRules, keys: Vec<Key>) -> Self {
        Self { places, rules, keys, fetched: None }
    }

    /// The same, with keys that are fetched beside its own.
    pub fn with_fetched(&self, fetched: Fetched) -> Self {
        Self { fetched: Some(fetched), ..self.clone() }
    }

    pub(super) fn fetched(&self) -> Option<&Fetched> {
        self.fetched.as_ref()
    }

    pub(super) fn places(&self) -> &Places {
        &self.places
    }

    pub(super) fn proofs(&self) -> impl Iterator<Item = Proof> {
        let fetched = self.fetched.iter().flat_map(Fetched::all);
        self.keys.iter().chain(fetched).map(Key::proof)
    }

    pub(super) fn verify(&self, token: &str, now: u64) -> Result<Identity, Denied> {
        if token.len() > super::TOKEN_BYTES_MAX {
            return Err(Denied::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(Denied::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(Denied::Malformed)?;
        let header: Header = json(header)?;
        // extensions that must be understood (RFC 7515 §4.1.11), of which there are none here
        if header.crit.is_some() {
            return Err(Denied::Malformed);
        }
        let algorithm = Algorithm::of_name(&header.alg).filter(|algorithm| self.rules.algorithms.contains(algorithm));
        let algorithm = algorithm.ok_or(Denied::Algorithm)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| Denied::Malformed)?;
        let fetched = self.fetched.as_ref().map(|fetched| fetched.at(now));
        let keys = || self.keys.iter().chain(fetched.flatten().unwrap_or_default());
        let kid = header.kid.as_deref();
        let is_signer = |key: &&Key| key.is_for(algorithm, kid) && key.verifies(signed.as_bytes(), &signature);
        let key = keys().find(is_signer).ok_or_else(|| match (fetched, kid) {
            (Some(None), _) => Denied::NoKeys,
            (Some(Some(_)), Some(kid)) if !keys().any(|key| key.has_id(kid)) => Denied::UnknownKey,
            _ => Denied::Signature,
        })?;
        let identity = self.judge(&json::<Claims>(claims)?.0, now)?;
        Ok(Identity { proof: Some(key.proof()), ..identity })
    }

    /// The signature holds: what the claims say is what the issuer said.
    fn judge(&self, claims: &BTreeMap<String, Value>, now: u64) -> Result<Identity, Denied> {
        let rules = &self.rules;
        if rules.required.iter().any(|name| claims.get(name).is_none_or(Value::is_null)) {
            return Err(Denied::Claim);
        }
        let expires = time(claims, "exp")?.map(|time| time.saturating_add(rules.leeway));
        if expires.is_some_and(|expires| expires <= now) {
            return Err(Denied::Expired);
        }
        if time(claims, "nbf")?.is_some_and(|time| time > now.saturating_add(rules.leeway)) {
            return Err(Denied::NotYet);
        }
        time(claims, "iat")?;
        let issuer = text(claims, "iss")?;
        if rules.issuer.is_some() && rules.issuer.as_deref() != issuer {
            return Err(Denied::Issuer);
        }
        self.check_audience(claims.get("aud"))?;
        let principal = text(claims, &rules.principal)?.ok_or(Denied::Claim)?.to_owned();
        let attributes = rules.attributes.iter().filter_map(|name| Some((name.clone(), shown(claims.get(name)?)?)));
        let attributes: BTreeMap<String, String> = attributes.collect();
        if !is_principal(&principal) || !attributes_fit(&attributes) {
            return Err(Denied::Malformed);
        }
        Ok(Identity { principal, attributes, expires, proof: None })
    }

    /// RFC 7519 §4.1.3: a token for somebody else is refused, also where nobody was configured.
    fn check_audience(&self, claim: Option<&Value>) -> Result<(), Denied> {
        let is_ours = |name: &String| self.rules.audience.contains(name);
        let fits = match claim {
            None => self.rules.audience.is_empty(),
            Some(Value::String(name)) => is_ours(name),
            Some(Value::Array(names)) => {
                let names: Option<Vec<&String>> =
                    names.iter().map(|name| if let Value::String(name) = name { Some(name) } else { None }).collect();
                names.ok_or(Denied::Malformed)?.into_iter().any(is_ours)
            }
            Some(_) => return Err(Denied::Malformed),
        };
        if fits { Ok(()) } else { Err(Denied::Audience) }
    }
}

fn json<T: DeserializeOwned>(part: &str) -> Result<T, Denied> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| Denied::Malformed)?;
    // refuses what is nested deeper than 128
    serde_json::from_slice(&bytes).map_err(|_| Denied::Malformed)
}

/// Whole seconds since 1970. RFC 7519 allows fractions; nobody writes them, and what is no whole number has been a way in.
fn time(claims: &BTreeMap<String, Value>, name: &str) -> Result<Option<u64>, Denied> {
    let Some(claim) = claims.get(name) else { return Ok(None) };
    claim.as_u64().filter(|time| *time <= SECONDS_MAX).map(Some).ok_or(Denied::Malformed)
}

fn text<'a>(claims: &'a BTreeMap<String, Value>, name: &str) -> Result<Option<&'a str>, Denied> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Denied::Malformed),
    }
}

/// A claim as an attribute.
fn shown(claim: &Value) -> Option<String> {
    match claim {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// The claims; the same one twice is refused, for who reads the first and who reads the last must not differ.
struct Claims(BTreeMap<String, Value>);

impl<'de> Deserialize<'de> for Claims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ClaimsVisitor)
    }
}

struct ClaimsVisitor;

impl<'de> Visitor<'de> for ClaimsVisitor {
    type Value = Claims;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object without repeated names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Claims, A::Error> {
        let mut claims = BTreeMap::new();
        while let Some((name, value)) = map.next_entry::<String, Value>()? {
            if claims.insert(name, value).is_some() {
                return Err(de::Error::custom("a name stands there twice"));
            }
        }
        Ok(Claims(claims))
    }
}
