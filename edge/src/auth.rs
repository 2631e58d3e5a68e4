//! Makes an API's [`Auth`] of its configuration and of the files that it names: whole and checked, or not at all.

mod source;

use std::path::Path;

use trunkline_quic::files;

pub use self::source::Source;

use crate::{
    config::{
        ApiConfig, AuthConfig, ConfigProblem, HmacConfig, JwtConfig, Secret, TokenConfig, TokenEntry, TokensFile,
        check_tokens,
    },
    core::auth::{Auth, Fetched, Hmac, HmacKey, Jwt, JwtRules, Key, KeyError, Places, Token, Tokens, check_secret},
};

/// What went wrong, for people.
type Problem = String;

/// Reads what the API's `auth` names.
pub fn load(api: &ApiConfig) -> Result<Auth, ConfigProblem> {
    let auth = match &api.auth {
        AuthConfig::None {} => Ok(Auth::None),
        AuthConfig::Jwt(config) => jwt(config).map(|jwt| Auth::Jwt(Box::new(jwt))),
        AuthConfig::Hmac(config) => hmac(config).map(|hmac| Auth::Hmac(Box::new(hmac))),
        AuthConfig::Token(config) => tokens(config).map(|tokens| Auth::Token(Box::new(tokens))),
    };
    auth.map_err(|problem| ConfigProblem { key: format!("api {:?}: auth", api.name), problem })
}

fn jwt(config: &JwtConfig) -> Result<Jwt, Problem> {
    let mut keys = Vec::new();
    for (position, key) in config.keys.iter().enumerate() {
        let wrong = |error: KeyError| format!("keys[{position}]: {error}");
        let made = match &key.public_key_file {
            Some(path) => Key::public(key.kid.clone(), key.algorithm, &read(path)?),
            None => Key::secret(key.kid.clone(), &secret(key.secret.as_ref(), key.secret_file.as_deref())?),
        };
        keys.push(made.map_err(wrong)?);
    }
    if let Some(path) = &config.jwks_file {
        let set = Key::set(&config.algorithms, &read(path)?);
        keys.extend(set.map_err(|error| format!("{}: {error}", path.display()))?);
    }
    let rules = JwtRules {
        algorithms: config.algorithms.clone(),
        issuer: config.issuer.clone(),
        audience: config.audience.clone(),
        required: config.required.clone(),
        leeway: config.leeway.get().as_secs(),
        principal: config.principal.clone(),
        attributes: config.attributes.clone(),
    };
    let places = Places { query: config.query.clone(), subprotocol: config.subprotocol.clone() };
    let jwt = Jwt::new(places, rules, keys);
    if let Some(path) = &config.jwks_ca_file {
        let checked = trunkline_https::roots_of_pem(&read(path)?);
        checked.map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(if config.jwks_url.is_some() { jwt.with_fetched(Fetched::default()) } else { jwt })
}

fn hmac(config: &HmacConfig) -> Result<Hmac, Problem> {
    let mut keys = Vec::new();
    for (position, key) in config.keys.iter().enumerate() {
        let secret = secret(key.secret.as_ref(), key.secret_file.as_deref())?;
        check_secret(&secret).map_err(|error| format!("keys[{position}]: {error}"))?;
        keys.push(HmacKey::new(key.id.clone(), &secret));
    }
    let max_age = config.max_age.get().as_secs();
    Ok(Hmac { keys, max_age, principal: config.principal.clone(), attributes: config.attributes.clone() })
}

fn tokens(config: &TokenConfig) -> Result<Tokens, Problem> {
    let places = Places { query: config.query.clone(), subprotocol: config.subprotocol.clone() };
    let token = |entry: &TokenEntry| Token {
        digest: entry.sha256,
        principal: entry.principal.clone(),
        attributes: entry.attributes.clone(),
    };
    Ok(Tokens::new(places, entries(config)?.iter().map(token).collect()))
}

/// The entries of the configuration, then those of its file.
///
/// # Errors
/// What is wrong with the file, for people.
pub fn entries(config: &TokenConfig) -> Result<Vec<TokenEntry>, String> {
    let mut entries = config.tokens.clone();
    if let Some(path) = &config.tokens_file {
        entries.extend(listed(path).map_err(|problem| format!("{}: {problem}", path.display()))?);
    }
    Ok(entries)
}

/// The entries of a list. What is wrong with one is told without a word of what stands there: it may be the token itself.
fn listed(path: &Path) -> Result<Vec<TokenEntry>, Problem> {
    let bytes = files::read(path).map_err(|error| error.to_string())?;
    let text = std::str::from_utf8(&bytes).map_err(|_| "is no UTF-8".to_owned())?;
    let file: TokensFile = toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        format!("line {line} is wrong in a list of [[tokens]], each with sha256, principal and perhaps attributes")
    })?;
    let mut problems = Vec::new();
    check_tokens(&file.tokens, &mut |problem| problems.push(problem));
    if problems.is_empty() { Ok(file.tokens) } else { Err(problems.join("; ")) }
}

fn secret(inline: Option<&Secret>, file: Option<&Path>) -> Result<Vec<u8>, Problem> {
    let Some(path) = file else {
        return Ok(inline.map(|Secret(text)| text.clone().into_bytes()).unwrap_or_default());
    };
    let mut bytes = read(path)?;
    while bytes.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
        bytes.pop();
    }
    Ok(bytes)
}

fn read(path: &Path) -> Result<Vec<u8>, Problem> {
    files::read(path).map_err(|error| format!("{}: {error}", path.display()))
}
