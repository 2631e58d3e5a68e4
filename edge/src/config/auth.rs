//! `auth` of an API: how clients prove who they are.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use serde::{Deserialize, Serialize, Serializer};
use trunkline_proto::{limits, token::TokenDigest, units::HumanDuration};

/// Longest principal, in bytes.
pub(crate) const PRINCIPAL_BYTES_MAX: usize = 1024;
/// Most keys, tokens, or names in a list.
const ENTRIES_MAX: usize = 1000;
/// Longest `leeway`: a connection whose token has expired is closed within a minute.
const LEEWAY_MAX: HumanDuration = HumanDuration::from_secs(50);
/// Shortest `jwks_refresh`.
const JWKS_REFRESH_MIN: HumanDuration = HumanDuration::from_secs(1);
/// Longest `jwks_max_age`.
const JWKS_MAX_AGE_MAX: HumanDuration = HumanDuration::from_secs(7 * 86_400);
/// Longest `max_age` of a signed request, which can be repeated for so long.
const MAX_AGE_MAX: HumanDuration = HumanDuration::from_secs(3600);

/// How clients prove who they are.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum AuthConfig {
    /// Anybody may connect; the handler may still refuse. What a request holds is kept as it came.
    None {},
    /// A signed token of an identity provider (RFC 7519).
    Jwt(Box<JwtConfig>),
    /// A signature over the request, with a shared secret.
    Hmac(HmacConfig),
    /// One of these tokens.
    Token(TokenConfig),
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self::None {}
    }
}

/// `auth = { kind = "jwt", … }`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtConfig {
    /// Which may have signed: any of HS256, RS256, ES256, EdDSA. What a token says counts only if it stands here.
    pub algorithms: Vec<Algorithm>,
    /// Keys that tokens may be signed with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<KeyConfig>,
    /// A JSON Web Key Set (RFC 7517) with more of them. Read again when it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks_file: Option<PathBuf>,
    /// An https URL (or http to an address of this machine's own) of such a set, which the edge fetches. Keys for HS256 in it are left out:
    /// everybody could know them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks_url: Option<String>,
    /// So often it is fetched again, give or take a tenth. 1 s to `jwks_max_age`. Default 10 m.
    #[serde(default = "defaults::jwks_refresh")]
    pub jwks_refresh: HumanDuration,
    /// For so long the keys that were fetched last count while it cannot be; then tokens are answered with 503. At most 7 d. Default 24 h.
    #[serde(default = "defaults::jwks_max_age")]
    pub jwks_max_age: HumanDuration,
    /// PEM file of the authority of the URL's certificate. Default: those that the system trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks_ca_file: Option<PathBuf>,
    /// `iss` must be this. Default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// `aud` must name one of these. Empty: a token that names any is refused. Default empty.
    #[serde(default)]
    pub audience: Vec<String>,
    /// Claims that must be there. Default exp: a token without it would be good for ever.
    #[serde(default = "defaults::required")]
    pub required: Vec<String>,
    /// How far the clocks may differ. Default 10 s, at most 50 s.
    #[serde(default = "defaults::leeway")]
    pub leeway: HumanDuration,
    /// The claim that becomes the connection's principal. Default sub.
    #[serde(default = "defaults::principal")]
    pub principal: String,
    /// Claims that become attributes of the connection. Default none.
    #[serde(default)]
    pub attributes: Vec<String>,
    /// The query parameter that may hold the token; empty: none may. Default access_token.
    #[serde(default = "defaults::query")]
    pub query: String,
    /// The offered subprotocol that the token follows as the next one; empty: none. Default bearer.
    #[serde(default = "defaults::subprotocol")]
    pub subprotocol: String,
}

/// One of `keys`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyConfig {
    /// Tokens that name another `kid` are not checked with it. Default: it is tried with any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    /// The only one it is good for.
    pub algorithm: Algorithm,
    /// HS256: the secret, at least 32 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
    /// HS256: a file with the secret; line ends at its end do not count. Read again when it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
    /// RS256, ES256, EdDSA: a file with the public key, PEM (`BEGIN PUBLIC KEY`). Read again when it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key_file: Option<PathBuf>,
}

/// How a token may be signed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Algorithm {
    /// HMAC with SHA-256.
    #[serde(rename = "HS256")]
    Hs256,
    /// RSA PKCS#1 v1.5 with SHA-256, 2048 to 8192 bits.
    #[serde(rename = "RS256")]
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    #[serde(rename = "ES256")]
    Es256,
    /// Ed25519.
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl Algorithm {
    /// By its name, exactly.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        [Self::Hs256, Self::Rs256, Self::Es256, Self::EdDsa].into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// As tokens and configurations spell it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `auth = { kind = "hmac", … }`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HmacConfig {
    /// Who may sign. The key's id is the principal, unless `principal` says otherwise.
    pub keys: Vec<HmacKeyConfig>,
    /// How far a request's timestamp may be from now; for so long it can be repeated. Default 60 s, at most 1 h.
    #[serde(default = "defaults::max_age")]
    pub max_age: HumanDuration,
    /// The (signed) query parameter that names the principal. Default: the key's id is it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// (Signed) query parameters that become attributes of the connection. Default none.
    #[serde(default)]
    pub attributes: Vec<String>,
}

/// One of an HMAC API's `keys`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HmacKeyConfig {
    /// 1 to 64 of `[A-Za-z0-9._-]`.
    pub id: String,
    /// The secret, at least 32 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
    /// A file with the secret; line ends at its end do not count. Read again when it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
}

/// `auth = { kind = "token", … }`: `tokens`, `tokens_file` or both.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenConfig {
    /// Those that are good.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<TokenEntry>,
    /// A file with more of them, a TOML list `[[tokens]]` of the same entries. Read again when it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_file: Option<PathBuf>,
    /// The query parameter that may hold the token; empty: none may. Default access_token.
    #[serde(default = "defaults::query")]
    pub query: String,
    /// The offered subprotocol that the token follows as the next one; empty: none. Default bearer.
    #[serde(default = "defaults::subprotocol")]
    pub subprotocol: String,
}

/// What a `tokens_file` holds. An empty file is not one: half of a file that is being written might be.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokensFile {
    /// Those that are good; `tokens = []`: none.
    pub(crate) tokens: Vec<TokenEntry>,
}

/// One of `tokens`: `trunkline token new` prints it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenEntry {
    /// The token's digest, 64 hexadecimal digits.
    pub sha256: TokenDigest,
    /// Becomes the connection's principal.
    pub principal: String,
    /// Become attributes of the connection. Default none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}

/// A secret that is never printed.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("(hidden)")
    }
}

mod defaults {
    use trunkline_proto::units::HumanDuration;

    pub(super) fn required() -> Vec<String> {
        vec!["exp".to_owned()]
    }
    pub(super) fn leeway() -> HumanDuration {
        HumanDuration::from_secs(10)
    }
    pub(super) fn jwks_refresh() -> HumanDuration {
        HumanDuration::from_secs(600)
    }
    pub(super) fn jwks_max_age() -> HumanDuration {
        HumanDuration::from_secs(86_400)
    }
    pub(super) fn max_age() -> HumanDuration {
        HumanDuration::from_secs(60)
    }
    pub(super) fn principal() -> String {
        "sub".to_owned()
    }
    pub(super) fn query() -> String {
        "access_token".to_owned()
    }
    pub(super) fn subprotocol() -> String {
        "bearer".to_owned()
    }
}

impl AuthConfig {
    /// The files that it names.
    pub fn files(&self) -> Vec<PathBuf> {
        let named: Vec<&Option<PathBuf>> = match self {
            Self::None {} => Vec::new(),
            Self::Jwt(jwt) => {
                let keys = jwt.keys.iter().flat_map(|key| [&key.secret_file, &key.public_key_file]);
                keys.chain([&jwt.jwks_file]).collect()
            }
            Self::Hmac(hmac) => hmac.keys.iter().map(|key| &key.secret_file).collect(),
            Self::Token(token) => vec![&token.tokens_file],
        };
        named.into_iter().flatten().cloned().collect()
    }

    /// Says what is wrong with it. Files are read later.
    pub(super) fn check(&self, problem: &mut impl FnMut(String)) {
        match self {
            Self::None {} => {}
            Self::Jwt(jwt) => jwt.check(problem),
            Self::Hmac(hmac) => hmac.check(problem),
            Self::Token(token) => token.check(problem),
        }
    }
}

impl JwtConfig {
    fn check(&self, problem: &mut impl FnMut(String)) {
        if self.algorithms.is_empty() {
            problem("algorithms is empty: no token would be good".to_owned());
        }
        if self.keys.is_empty() && self.jwks_file.is_none() && self.jwks_url.is_none() {
            problem("neither keys nor jwks_file nor jwks_url: no token would be good".to_owned());
        }
        self.check_url(problem);
        if self.keys.len() > ENTRIES_MAX {
            problem(format!("more than {ENTRIES_MAX} keys"));
        }
        for (position, key) in self.keys.iter().enumerate() {
            let at = format!("keys[{position}]");
            if !self.algorithms.contains(&key.algorithm) {
                problem(format!("{at}: {} is not among algorithms", key.algorithm));
            }
            let wanted = if key.algorithm == Algorithm::Hs256 { "secret or secret_file" } else { "public_key_file" };
            let given = [key.secret.is_some(), key.secret_file.is_some(), key.public_key_file.is_some()];
            let fits = if key.algorithm == Algorithm::Hs256 {
                given[0] ^ given[1] && !given[2]
            } else {
                given == [false, false, true]
            };
            if !fits {
                problem(format!("{at}: {} needs {wanted}, and nothing else", key.algorithm));
            }
        }
        if self.leeway > LEEWAY_MAX {
            problem(format!("leeway {} is more than {LEEWAY_MAX}", self.leeway));
        }
        if self.principal.is_empty() {
            problem("principal names no claim".to_owned());
        }
        check_places(&self.query, &self.subprotocol, problem);
    }
}

impl JwtConfig {
    fn check_url(&self, problem: &mut impl FnMut(String)) {
        let Some(url) = &self.jwks_url else {
            if self.jwks_ca_file.is_some() {
                problem("jwks_ca_file is for jwks_url".to_owned());
            }
            return;
        };
        match trunkline_https::parse(url) {
            Err(error) => problem(format!("jwks_url: {error}")),
            Ok(url) if url.scheme_str() != Some("https") && !trunkline_https::is_loopback(&url) => {
                problem(
                    "jwks_url: https is expected: whoever can change what comes over http makes the keys".to_owned(),
                );
            }
            Ok(_) => {}
        }
        if self.algorithms.iter().all(|algorithm| *algorithm == Algorithm::Hs256) {
            problem("jwks_url: HS256 alone: what everybody can fetch is no secret".to_owned());
        }
        let (refresh, age) = (self.jwks_refresh, self.jwks_max_age);
        if refresh < JWKS_REFRESH_MIN || refresh > age {
            problem(format!("jwks_refresh {refresh} is not from {JWKS_REFRESH_MIN} to jwks_max_age, {age}"));
        }
        if age > JWKS_MAX_AGE_MAX {
            problem(format!("jwks_max_age {age} is more than {JWKS_MAX_AGE_MAX}"));
        }
    }
}

impl HmacConfig {
    fn check(&self, problem: &mut impl FnMut(String)) {
        if self.keys.is_empty() || self.keys.len() > ENTRIES_MAX {
            problem(format!("keys: 1 to {ENTRIES_MAX} are expected"));
        }
        for (position, key) in self.keys.iter().enumerate() {
            if !limits::is_name(&key.id) {
                problem(format!("keys[{position}]: id {}", super::api::name_rule(&key.id)));
            }
            if self.keys.iter().take(position).any(|other| other.id == key.id) {
                problem(format!("keys[{position}]: id {:?} stands there twice", key.id));
            }
            if key.secret.is_some() == key.secret_file.is_some() {
                problem(format!("keys[{position}]: secret or secret_file, one of them"));
            }
        }
        if self.max_age.is_zero() || self.max_age > MAX_AGE_MAX {
            problem(format!("max_age {} is not above 0 and at most {MAX_AGE_MAX}", self.max_age));
        }
    }
}

impl TokenConfig {
    fn check(&self, problem: &mut impl FnMut(String)) {
        if self.tokens.is_empty() && self.tokens_file.is_none() {
            problem("neither tokens nor tokens_file: no token would be good".to_owned());
        }
        if self.tokens.len() > ENTRIES_MAX {
            problem(format!("more than {ENTRIES_MAX} tokens"));
        }
        check_tokens(&self.tokens, problem);
        check_places(&self.query, &self.subprotocol, problem);
    }
}

/// Says what is wrong with these.
pub(crate) fn check_tokens(tokens: &[TokenEntry], problem: &mut impl FnMut(String)) {
    for (position, token) in tokens.iter().enumerate() {
        let bytes: usize = token.attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
        if token.principal.is_empty() || token.principal.len() > PRINCIPAL_BYTES_MAX {
            problem(format!("tokens[{position}]: principal is not 1 to {PRINCIPAL_BYTES_MAX} bytes"));
        }
        if bytes > limits::ATTRIBUTES_BYTES_MAX || token.attributes.contains_key("") {
            let most = limits::ATTRIBUTES_BYTES_MAX;
            problem(format!("tokens[{position}]: attributes exceed {most} bytes, or one has no name"));
        }
    }
}

fn check_places(query: &str, subprotocol: &str, problem: &mut impl FnMut(String)) {
    for (key, name) in [("query", query), ("subprotocol", subprotocol)] {
        if !name.is_empty() && !super::api::is_token(name) {
            problem(format!("{key} {name:?} is no token (RFC 9110 §5.6.2)"));
        }
    }
}
