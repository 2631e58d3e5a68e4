//! Who a client is: a request and the time go in, an identity or a refusal comes out. Nothing a token says leads anywhere but to the keys that
//! the configuration holds.

mod credentials;
mod hmac;
mod jwks;
mod jwt;
mod keys;
mod proof;
#[cfg(test)]
mod tests;
mod token;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

pub(crate) use self::keys::check_secret;
pub use self::{
    credentials::Places,
    hmac::{Hmac, HmacKey},
    jwks::{EARLY_PERIOD, Fetched, Refresh},
    jwt::{Jwt, JwtRules},
    keys::{Key, KeyError},
    proof::Proof,
    token::{Token, Tokens},
};
use super::{Answer, handshake::Upgrade};
use crate::config::PRINCIPAL_BYTES_MAX;

/// Longest token. The head it comes in has at most 16 KiB.
const TOKEN_BYTES_MAX: usize = 8 << 10;

/// How an API's clients prove who they are.
#[derive(Debug)]
pub enum Auth {
    /// They need not.
    None,
    /// By a signed token.
    Jwt(Box<Jwt>),
    /// By a signature over the request.
    Hmac(Box<Hmac>),
    /// By a token of a list.
    Token(Box<Tokens>),
}

/// Who a client has proved to be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Identity {
    /// Empty: nobody asked.
    pub principal: String,
    /// What else is known of it.
    pub attributes: BTreeMap<String, String>,
    /// It is nobody any more from then on, in seconds since 1970.
    pub expires: Option<u64>,
    /// What it has proved that with; none: nothing was asked for.
    pub proof: Option<Proof>,
}

/// Why a client is refused. What it says is for strangers: it names no key and repeats nothing of the token.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Denied {
    /// Nothing was proved.
    #[error("no token")]
    Missing,
    /// Which of them counts?
    #[error("more than one token")]
    Twice,
    /// Not what it should be.
    #[error("the token is malformed")]
    Malformed,
    /// Not one of the configured.
    #[error("the token's algorithm is not accepted")]
    Algorithm,
    /// By none of our keys.
    #[error("the signature does not verify")]
    Signature,
    /// The same, and it names a key that a set which is fetched does not hold: it may hold it by now.
    #[error("the signature does not verify")]
    UnknownKey,
    /// Nobody can tell: the keys have not been fetched, or too long ago.
    #[error("the keys that tokens are signed with are out of reach; try again later")]
    NoKeys,
    /// Not one of the configured.
    #[error("the token is not known")]
    Unknown,
    /// A required claim.
    #[error("a required claim is missing")]
    Claim,
    /// `exp`, or a timestamp too old.
    #[error("the token has expired")]
    Expired,
    /// `nbf`, or a timestamp too new.
    #[error("the token is not valid yet")]
    NotYet,
    /// `iss`.
    #[error("the token's issuer is not accepted")]
    Issuer,
    /// `aud`.
    #[error("the token is for another audience")]
    Audience,
}

impl Auth {
    /// Judges a request. Whatever becomes of it, secrets are gone from the request afterwards: what is left may be kept and shown. `now` in
    /// seconds since 1970.
    pub fn authenticate(&self, request: &mut Upgrade, now: u64) -> Result<Identity, Denied> {
        match self {
            Self::None => Ok(Identity::default()),
            Self::Jwt(jwt) => jwt.places().take(request).and_then(|token| jwt.verify(&token.0, now)),
            Self::Token(tokens) => tokens.places().take(request).and_then(|token| tokens.verify(&token.0)),
            Self::Hmac(hmac) => hmac.verify(request, now),
        }
    }

    /// With these keys beside its own, if it has any that are fetched.
    pub fn with_fetched(&self, fetched: Fetched) -> Option<Self> {
        match self {
            Self::Jwt(jwt) => Some(Self::Jwt(Box::new(jwt.with_fetched(fetched)))),
            Self::None | Self::Hmac(_) | Self::Token(_) => None,
        }
    }

    /// The keys it has that were fetched.
    pub fn fetched(&self) -> Option<&Fetched> {
        match self {
            Self::Jwt(jwt) => jwt.fetched(),
            Self::None | Self::Hmac(_) | Self::Token(_) => None,
        }
    }

    /// All that clients may prove who they are with.
    pub fn proofs(&self) -> BTreeSet<Proof> {
        match self {
            Self::None => BTreeSet::new(),
            Self::Jwt(jwt) => jwt.proofs().collect(),
            Self::Hmac(hmac) => hmac.proofs().collect(),
            Self::Token(tokens) => tokens.proofs().collect(),
        }
    }

    /// The subprotocol that says that a token follows, if the client offered it: a browser must be answered with one of those it offered.
    pub fn marker<'a>(&self, offered: &'a [String]) -> Option<&'a String> {
        let places = match self {
            Self::Jwt(jwt) => jwt.places(),
            Self::Token(tokens) => tokens.places(),
            Self::None | Self::Hmac(_) => return None,
        };
        offered.iter().find(|name| places.is_marker(name))
    }

    /// What a client is told: 401 (RFC 6750 §3); where it is not its fault 503, to come again after so many seconds.
    pub fn answer(&self, denied: Denied, retry_after: u32) -> Answer {
        if denied == Denied::NoKeys {
            return Answer::unavailable(&denied.to_string(), retry_after);
        }
        let scheme = if matches!(self, Self::Hmac(_)) { hmac::SCHEME } else { "Bearer" };
        let challenge = match denied {
            Denied::Missing => scheme.to_owned(),
            _ => format!("{scheme} error=\"invalid_token\", error_description=\"{denied}\""),
        };
        Answer::new(401, &denied.to_string()).header("WWW-Authenticate", &challenge)
    }
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Hidden(pub String);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// Whether a text may be a principal.
fn is_principal(text: &str) -> bool {
    (1..=PRINCIPAL_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
}

fn attributes_fit(attributes: &BTreeMap<String, String>) -> bool {
    let bytes: usize = attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
    bytes <= trunkline_proto::limits::ATTRIBUTES_BYTES_MAX && !attributes.contains_key("")
}
