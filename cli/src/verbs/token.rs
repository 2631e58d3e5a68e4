//! `token`: makes tokens, and lists those of a configuration. Only digests are ever written down.

use std::fs;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use trunkline_broker::config::{BrokerConfig, files};
use trunkline_edge::{
    auth,
    config::{ApiConfig, AuthConfig},
};
use trunkline_proto::{limits, token::TokenDigest};

use crate::{
    args::{TokenArgs, TokenVerb},
    exit::Failure,
    render::out::Out,
};

/// Tells a token from other texts, for people and for scanners of leaked secrets.
const PREFIX: &str = "tl_";

/// A token that nobody can guess: 32 bytes of the system's randomness.
pub(crate) fn mint() -> String {
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>()))
}

pub(crate) fn run(args: TokenArgs) -> Result<(), Failure> {
    match args.verb {
        TokenVerb::New { name, role, group, api, channel, json } => new(&name, &role, [&group, &api, &channel], json),
        TokenVerb::List { config, json } => {
            let text = fs::read_to_string(&config);
            list(&text.map_err(|error| Failure::usage(format!("{}: {error}", config.display())))?, json)
        }
    }
}

fn new(name: &str, role: &str, [groups, apis, channels]: [&[String]; 3], json: bool) -> Result<(), Failure> {
    if let Some(wrong) =
        [name].into_iter().chain(groups.iter().chain(apis).map(String::as_str)).find(|name| !limits::is_name(name))
    {
        return Err(Failure::usage(format!("{wrong:?} is not 1 to {} of [A-Za-z0-9._-]", limits::NAME_BYTES_MAX)));
    }
    if role != "handler" && !groups.is_empty() {
        return Err(Failure::usage("--group bounds a handler's token only"));
    }
    let is_bound = !apis.is_empty() || !channels.is_empty();
    if is_bound && !matches!(role, "handler" | "publisher") {
        return Err(Failure::usage("--api and --channel bound tokens of handlers and publishers only"));
    }
    if let Some(wrong) = channels.iter().find(|channel| !limits::is_channel(channel)) {
        return Err(Failure::usage(format!("{wrong:?} is no channel's name")));
    }
    let token = mint();
    let digest = TokenDigest::of(&token);
    let mut out = Out::new();
    if json {
        out.json(&json!({
            "token": token, "name": name, "role": role, "sha256": digest, "groups": groups, "apis": apis, "channels": channels,
        }))?;
        return out.flush();
    }
    out.line(format_args!("{token}\n"))?;
    if role == "client" {
        out.line("# shown this once. Into the configuration of the edges, to [api.auth] with kind = \"token\"")?;
        out.line("# (in its tokens_file: a table [[tokens]] with the same keys):")?;
        out.line(format_args!("tokens = [{{ sha256 = \"{digest}\", principal = \"{name}\" }}]"))?;
        return out.flush();
    }
    out.line("# shown this once. Into the configuration of every broker (in broker.tokens_file: [[tokens]]):")?;
    out.line(format_args!("[[broker.tokens]]\nname = \"{name}\"\nsha256 = \"{digest}\"\nrole = \"{role}\""))?;
    for (key, names) in [("groups", groups), ("apis", apis), ("channels", channels)] {
        if !names.is_empty() {
            out.line(format_args!("{key} = {names:?}"))?;
        }
    }
    out.flush()
}

/// The tokens of a configuration and of the files that it names: those of the broker, then those of each API.
fn list(text: &str, json: bool) -> Result<(), Failure> {
    let mut out = Out::new();
    let found = tokens(text)?;
    if found.is_empty() && !json {
        out.line("no tokens: neither [[broker.tokens]] nor an [[api]] with auth of kind \"token\", nor a tokens_file of either")?;
    }
    for token in found {
        if json {
            out.json(&token)?;
        } else {
            let field = |key: &str| token.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            out.line(format_args!("{}  {:10} {}", field("sha256"), field("role"), field("name")))?;
        }
    }
    out.flush()
}

fn tokens(text: &str) -> Result<Vec<Value>, Failure> {
    let mut document: toml::Table = toml::from_str(text).map_err(Failure::usage)?;
    let broker = match document.remove("broker") {
        None => BrokerConfig::default(),
        Some(table) => table.try_into::<BrokerConfig>().map_err(Failure::usage)?,
    };
    let apis = match document.remove("api") {
        None => Vec::new(),
        Some(list) => list.try_into::<Vec<ApiConfig>>().map_err(Failure::usage)?,
    };
    let mut found = Vec::new();
    let listed = match &broker.tokens_file {
        Some(path) => files::tokens(&broker.tokens, path).map_err(Failure::usage)?,
        None => broker.tokens,
    };
    for token in listed {
        let role = serde_json::to_value(token.role).map_err(anyhow::Error::new)?;
        found.push(json!({
            "sha256": token.sha256, "role": role, "name": token.name, "groups": token.groups, "apis": token.apis,
            "channels": token.channels,
        }));
    }
    for api in apis {
        let AuthConfig::Token(config) = api.auth else { continue };
        let clients = auth::entries(&config).map_err(Failure::usage)?.into_iter();
        found.extend(clients.map(|token| {
            json!({
                "sha256": token.sha256, "role": "client", "name": token.principal, "apis": [&api.name],
            })
        }));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_long_and_never_the_same() {
        let (one, other) = (mint(), mint());
        assert_ne!(one, other);
        assert_eq!(one.len(), PREFIX.len() + 43);
    }

    #[test]
    fn a_configuration_lists_its_tokens() {
        let digest = TokenDigest::of("t");
        let text = format!(
            "[[broker.tokens]]\nname = \"a\"\nsha256 = \"{digest}\"\nrole = \"handler\"\ngroups = [\"g\"]\n\
             [[api]]\nname = \"chat\"\npath = \"/chat\"\n\
             auth = {{ kind = \"token\", tokens = [{{ sha256 = \"{digest}\", principal = \"ada\" }}] }}"
        );
        let found = tokens(&text).unwrap();
        assert_eq!(
            found.iter().map(|token| token["role"].as_str().unwrap()).collect::<Vec<_>>(),
            ["handler", "client"]
        );
        assert!(found.iter().all(|token| token["sha256"] == digest.to_string()));
        assert!(tokens("[[broker.tokens]]\nname = \"a\"\nsha256 = \"the token\"\nrole = \"handler\"").is_err());
    }

    #[test]
    fn tokens_of_the_files_that_it_names_are_listed_too() {
        let digest = TokenDigest::of("t");
        let file = |text: String| {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), text).unwrap();
            file
        };
        let brokers = file(format!("[[tokens]]\nname = \"b\"\nsha256 = \"{digest}\"\nrole = \"operator\""));
        let clients = file(format!("[[tokens]]\nsha256 = \"{digest}\"\nprincipal = \"ada\""));
        let text = format!(
            "[broker]\ntokens_file = {:?}\n[[api]]\nname = \"chat\"\npath = \"/chat\"\n\
             auth = {{ kind = \"token\", tokens_file = {:?} }}",
            brokers.path(),
            clients.path()
        );
        let names = |found: Vec<Value>| found.iter().map(|token| token["name"].to_string()).collect::<Vec<_>>();
        assert_eq!(names(tokens(&text).unwrap()), ["\"b\"", "\"ada\""]);
        assert!(tokens("[broker]\ntokens_file = \"/nonexistent\"").is_err());
    }
}
