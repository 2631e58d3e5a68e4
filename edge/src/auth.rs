//! Makes an API's [`Auth`] of its configuration: reads the files that it names, once, at start.

use std::{fs, io, path::Path};

use crate::{
    config::{ApiConfig, AuthConfig, ConfigProblem, HmacConfig, JwtConfig, Secret, TokenConfig},
    core::auth::{Auth, Hmac, HmacKey, Jwt, JwtRules, Key, KeyError, Places, Token, Tokens, check_secret},
};

/// Largest file of keys.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What went wrong, for people.
type Problem = String;

/// Reads what the API's `auth` names.
pub fn load(api: &ApiConfig) -> Result<Auth, ConfigProblem> {
    let auth = match &api.auth {
        AuthConfig::None {} => Ok(Auth::None),
        AuthConfig::Jwt(config) => jwt(config).map(|jwt| Auth::Jwt(Box::new(jwt))),
        AuthConfig::Hmac(config) => hmac(config).map(|hmac| Auth::Hmac(Box::new(hmac))),
        AuthConfig::Token(config) => Ok(Auth::Token(Box::new(tokens(config)))),
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
    Ok(Jwt::new(places, rules, keys))
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

fn tokens(config: &TokenConfig) -> Tokens {
    let places = Places { query: config.query.clone(), subprotocol: config.subprotocol.clone() };
    let token = |entry: &crate::config::TokenEntry| Token {
        digest: entry.sha256,
        principal: entry.principal.clone(),
        attributes: entry.attributes.clone(),
    };
    Tokens::new(places, config.tokens.iter().map(token).collect())
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
    let bytes = || -> io::Result<Vec<u8>> {
        if fs::metadata(path)?.len() > FILE_BYTES_MAX {
            return Err(io::Error::other("larger than 1 MiB"));
        }
        fs::read(path)
    };
    bytes().map_err(|error| format!("{}: {error}", path.display()))
}
