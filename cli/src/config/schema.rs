//! Which keys there are and of what type, read off sample configurations: every optional key is set in them. A test holds the
//! samples to what the roles' own types accept.

use std::fmt;

use anyhow::Context as _;
use toml::{
    Table, Value,
    de::{DeTable, DeValue},
};
use trunkline_broker::config::{
    AwsConfig, AwsKeyConfig, BrokerConfig, MemberConfig, PushConfig, Role, TlsConfig as BrokerTls, TokenConfig,
};
use trunkline_edge::config::{ApiConfig, Dialect, EdgeConfig, FunctionsConfig, Preset, TlsConfig};
use trunkline_proto::{secret::SecretText, token::TokenDigest};

use super::BridgeConfig;
use crate::exit::Failure;

/// Tables whose keys are anybody's.
const OPEN: &[&str] = &["api.auth", "api.functions.routes", "api.functions.headers", "api.functions.stage_variables"];

/// The keys, as a document that has them all.
#[derive(Debug)]
pub(crate) struct Schema {
    root: Table,
}

/// A key that there is not.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unknown {
    /// With its tables.
    key: String,
    /// What may have been meant.
    hint: String,
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown key `{}`; {}", self.key, self.hint)
    }
}

impl Schema {
    pub(crate) fn new() -> Result<Self, Failure> {
        let mut root = Table::new();
        let value = "configuration as TOML";
        root.insert("broker".to_owned(), Value::try_from(sample_broker()).context(value)?);
        root.insert("edge".to_owned(), Value::try_from(whole_edge()?).context(value)?);
        root.insert("functions".to_owned(), Value::try_from(sample_bridge()).context(value)?);
        root.insert("api".to_owned(), Value::Array(vec![Value::try_from(sample_api()?).context(value)?]));
        Ok(Self { root })
    }

    /// Every unknown key of a file, with its line.
    pub(crate) fn unknown_in(&self, text: &str) -> Vec<(usize, Unknown)> {
        let mut found = Vec::new();
        // what is no TOML at all has been said before
        if let Ok(document) = DeTable::parse(text) {
            walk("", document.get_ref(), &self.root, &mut |at, unknown| {
                let line = text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1;
                found.push((line, unknown));
            });
        }
        found.sort_by_key(|(line, _)| *line);
        found
    }

    /// What a text means as the value of a key: that goes by the key's type, not by what the text looks like. A cluster may be
    /// called `1` or `true`.
    pub(crate) fn value(&self, key: &str, text: &str) -> Result<Value, String> {
        let expected = |what: &str| Err(format!("{key}: {what} is expected, not {text:?}"));
        match (self.sample(key).map_err(|unknown| unknown.to_string())?, parsed(text)) {
            (Value::String(_), Some(value @ Value::String(_))) => Ok(value),
            (Value::String(_), _) => Ok(Value::String(text.to_owned())),
            (Value::Array(_), Some(value @ Value::Array(_))) => Ok(value),
            (Value::Array(_), _) if text.starts_with('[') => expected("a list such as [\"a\", \"b\"]"),
            (Value::Array(_), _) => {
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                Ok(Value::Array(parts.map(|part| Value::String(part.to_owned())).collect()))
            }
            (sample, Some(value)) if sample.same_type(&value) => Ok(value),
            (Value::Integer(_), _) => expected("a whole number"),
            (Value::Boolean(_), _) => expected("true or false"),
            (Value::Table(_), _) => expected("a table such as { key = \"value\" }"),
            (sample, _) => expected(sample.type_str()),
        }
    }

    fn sample(&self, key: &str) -> Result<&Value, Unknown> {
        let (mut table, mut path) = (&self.root, String::new());
        let mut parts = key.split('.').peekable();
        while let Some(part) = parts.next() {
            let value = table.get(part).ok_or_else(|| unknown(&path, part, table))?;
            path = joined(&path, part);
            match (value, parts.peek()) {
                (value, None) => return Ok(value),
                (Value::Table(inner), Some(_)) => table = inner,
                (_, Some(_)) => break,
            }
        }
        Err(Unknown { key: key.to_owned(), hint: format!("`{path}` is no table") })
    }
}

/// The TOML value that a text is, if it is one.
fn parsed(text: &str) -> Option<Value> {
    let mut table: Table = toml::from_str(&format!("value = {text}")).ok()?;
    // more lines could be more keys
    if table.len() == 1 { table.remove("value") } else { None }
}

fn joined(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn walk(path: &str, table: &DeTable<'_>, known: &Table, found: &mut impl FnMut(usize, Unknown)) {
    for (key, value) in table {
        let at = joined(path, key.get_ref());
        match (known.get(key.get_ref().as_ref()), value.get_ref()) {
            (None, _) => found(key.span().start, unknown(path, key.get_ref(), known)),
            (Some(Value::Table(known)), DeValue::Table(table)) if !OPEN.contains(&at.as_str()) => {
                walk(&at, table, known, found);
            }
            (Some(Value::Array(known)), DeValue::Array(items)) => {
                let Some(Value::Table(known)) = known.first() else { continue };
                for item in items {
                    if let DeValue::Table(table) = item.get_ref() {
                        walk(&at, table, known, found);
                    }
                }
            }
            // a wrong type is for the roles' own types to say
            _ => {}
        }
    }
}

fn unknown(path: &str, key: &str, known: &Table) -> Unknown {
    let near = known.keys().map(|name| (distance(key, name), name)).min();
    let hint = match near {
        Some((distance, name)) if distance * 2 <= key.len() => format!("did you mean `{name}`?"),
        _ => format!("known here: {}", known.keys().map(String::as_str).collect::<Vec<_>>().join(", ")),
    };
    Unknown { key: joined(path, key), hint }
}

/// Letters to insert, delete or replace (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (above, b) in row.iter_mut().skip(1).zip(other.bytes()) {
            left = (*above + 1).min(left + 1).min(diagonal + usize::from(a != b));
            diagonal = std::mem::replace(above, left);
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

fn sample_broker() -> BrokerConfig {
    let address = || Some("broker.example:7443".to_owned());
    BrokerConfig {
        link_advertised: address(),
        grpc_advertised: address(),
        http_advertised: address(),
        tls: Some(BrokerTls { cert: "cert.pem".into(), key: "key.pem".into() }),
        tokens_file: Some("tokens.toml".into()),
        push: PushConfig { secrets_file: Some("secrets.toml".into()), ..PushConfig::default() },
        aws: AwsConfig {
            keys_file: Some("keys.toml".into()),
            keys: vec![AwsKeyConfig { id: "id".to_owned(), secret: SecretText::default() }],
            ..AwsConfig::default()
        },
        tokens: vec![TokenConfig {
            name: "name".to_owned(),
            sha256: TokenDigest::of(""),
            role: Role::Handler,
            groups: vec!["group".to_owned()],
            apis: vec!["api".to_owned()],
            channels: vec!["channel".to_owned()],
        }],
        members: vec![MemberConfig { id: 1, link: "broker.example:7443".to_owned() }],
        ..BrokerConfig::default()
    }
}

fn sample_bridge() -> BridgeConfig {
    BridgeConfig {
        http: Some(([127, 0, 0, 1], 0).into()),
        token: Some(SecretText::default()),
        ca: Some("ca.pem".into()),
        tls: Some(BrokerTls { cert: "cert.pem".into(), key: "key.pem".into() }),
        ..BridgeConfig::default()
    }
}

/// Valid, so that a table `[edge]` that leaves out what flags will say can be checked on top of it.
pub(crate) fn sample_edge() -> Result<EdgeConfig, Failure> {
    Ok(EdgeConfig::new("edge", vec!["1@127.0.0.1:7443".parse().map_err(Failure::usage)?], "pki".into()))
}

/// With what is optional.
fn whole_edge() -> Result<EdgeConfig, Failure> {
    let tls = TlsConfig { cert: "cert.pem".into(), key: "key.pem".into() };
    Ok(EdgeConfig { tls: Some(tls), ..sample_edge()? })
}

fn sample_api() -> Result<ApiConfig, Failure> {
    let mut api = ApiConfig::new("api", "/api".parse().map_err(Failure::usage)?);
    api.handler_group = Some("api".to_owned());
    let text = || Some(String::new());
    api.functions = Some(FunctionsConfig {
        registration: text(),
        transmission: text(),
        cleanup: text(),
        connected: text(),
        routes: [(String::new(), String::new())].into(),
        route_selection: text(),
        domain: text(),
        stage_variables: [(String::new(), String::new())].into(),
        integration_response: Some(false),
        consent: Some(false),
        headers: [(String::new(), SecretText::default())].into(),
        ..FunctionsConfig::new(Dialect::Scf)
    });
    api.preset = Some(Preset::Aws);
    api.max_frame = Some(api.max_message);
    Ok(api)
}

#[cfg(test)]
#[path = "schema_tests.rs"]
mod tests;
