//! What the function bridge needs of a file: its own table `[functions]`, and of each API the functions.

use std::{net::SocketAddr, path::PathBuf};

use http::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};
use trunkline_broker::config::TlsConfig;
use trunkline_edge::config::{self as edge, ApiConfig, EdgeConfig, FunctionsConfig, Registration};
use trunkline_functions::{ApiSettings, Dialect, OnFailure, Secret, SettingsError};
use trunkline_proto::{limits, secret::SecretText};

use crate::exit::Failure;

/// Table `[functions]`: one bridge process.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct BridgeConfig {
    /// gRPC addresses of brokers to ask first. `host:port` speaks TLS where `ca` is given. Default `127.0.0.1:7070`.
    pub(crate) brokers: Vec<String>,
    /// Unique among the bridges of the same APIs: a second one of the same name replaces the first. Empty: random. Default empty.
    pub(crate) member: String,
    /// Health and metrics. Default none.
    pub(crate) http: Option<SocketAddr>,
    /// Shown to brokers that ask for one, of role handler: `trunkline token new`. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<SecretText>,
    /// PEM file of the authority of the brokers' certificates, where gRPC speaks TLS. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<PathBuf>,
    /// Certificate and key of the listener, read again when they change. Default none: it speaks plain text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls: Option<TlsConfig>,
    /// Lets it listen beyond loopback without TLS. Default false.
    pub(crate) insecure: bool,
}

impl Default for BridgeConfig {
    fn default() -> Self {
        Self {
            brokers: vec!["127.0.0.1:7070".to_owned()],
            member: String::new(),
            http: None,
            token: None,
            ca: None,
            tls: None,
            insecure: false,
        }
    }
}

impl BridgeConfig {
    pub(super) fn validate(&self) -> Result<(), Failure> {
        if self.brokers.is_empty() {
            return Err(Failure::usage("functions.brokers names no broker"));
        }
        if !self.member.is_empty() && !limits::is_name(&self.member) {
            let member = &self.member;
            return Err(Failure::usage(format!("functions.member: {member:?} is not 1 to 64 of [A-Za-z0-9._-]")));
        }
        match self.http {
            Some(address) if !self.insecure && self.tls.is_none() && !address.ip().is_loopback() => {
                Err(Failure::usage(format!(
                    "functions.http: {address} is not on loopback and there is no TLS; set functions.tls.cert and functions.tls.key; functions.insecure = true allows it"
                )))
            }
            _ => Ok(()),
        }
    }
}

/// What `preset = "aws"` says where the API's table says nothing: the limits of AWS API Gateway's WebSockets.
const AWS: [(&str, &str); 5] = [
    ("max_message", "128KiB"),
    ("max_frame", "32KiB"),
    ("idle_timeout", "10m"),
    ("max_lifetime", "2h"),
    ("registration_timeout", "29s"),
];

/// Fills in the limits of presets.
pub(super) fn apply_presets(document: &mut Table) {
    let apis = document.get_mut("api").and_then(Value::as_array_mut);
    for api in apis.into_iter().flatten().filter_map(Value::as_table_mut) {
        // any other one is for the API's own type to refuse
        if api.get("preset").and_then(Value::as_str) == Some("aws") {
            for (key, value) in AWS {
                api.entry(key).or_insert_with(|| value.into());
            }
            api.entry("text_only").or_insert_with(|| true.into());
        }
    }
}

/// Functions are told which extensions a client offers, and those of the aws dialect its key: what their events always have, and no secret.
pub(super) fn keep_headers(edge: &mut EdgeConfig, apis: &[ApiConfig]) {
    let functions = || apis.iter().filter_map(|api| api.functions.as_ref());
    let kept = [
        ("sec-websocket-extensions", functions().next().is_some()),
        ("sec-websocket-key", functions().any(|functions| functions.dialect == edge::Dialect::Aws)),
    ];
    for (name, is_wanted) in kept {
        if is_wanted && !edge.headers.iter().any(|header| header == name) {
            edge.headers.push(name.to_owned());
        }
    }
}

/// The functions of every API that has some.
pub(crate) fn settings(apis: &[ApiConfig]) -> Result<Vec<ApiSettings>, Failure> {
    let own = |api: &ApiConfig| {
        let functions = api.functions.as_ref()?;
        let named = |error: SettingsError| Failure::usage(format!("api {:?}: functions.{error}", api.name));
        Some(api_settings(api, functions).map_err(named))
    };
    apis.iter().filter_map(own).collect()
}

fn api_settings(api: &ApiConfig, functions: &FunctionsConfig) -> Result<ApiSettings, SettingsError> {
    let dialect = match functions.dialect {
        edge::Dialect::Scf => Dialect::Scf,
        edge::Dialect::Aws => Dialect::Aws,
        edge::Dialect::CloudEvents => Dialect::CloudEvents,
    };
    let defaults = ApiSettings::new(&api.name, dialect);
    let settings = ApiSettings {
        path: api.path.to_string(),
        group: api.handler_group().to_owned(),
        decides: api.registration == Registration::Handler,
        registration_timeout: api.registration_timeout.get(),
        registration: parsed("registration", functions.registration.as_deref())?,
        transmission: parsed("transmission", functions.transmission.as_deref())?,
        cleanup: parsed("cleanup", functions.cleanup.as_deref())?,
        connected: parsed("connected", functions.connected.as_deref())?,
        routes: functions
            .routes
            .iter()
            .map(|(key, url)| Ok((key.clone(), value("routes", url)?)))
            .collect::<Result<_, SettingsError>>()?,
        route_selection: parsed("route_selection", functions.route_selection.as_deref())?,
        stage_variables: functions.stage_variables.clone(),
        domain: functions.domain.clone(),
        timeout: functions.timeout.get(),
        retries: functions.retries,
        backoff: functions.backoff.get(),
        on_failure: match functions.on_failure {
            edge::OnFailure::Retry => OnFailure::Retry,
            edge::OnFailure::Close => OnFailure::Close,
            edge::OnFailure::DeadLetter => OnFailure::DeadLetter,
        },
        concurrency: functions.concurrency,
        integration_response: functions.integration_response.unwrap_or(defaults.integration_response),
        headers: functions
            .headers
            .iter()
            .map(|(name, text)| header(name, text.reveal()))
            .collect::<Result<_, SettingsError>>()?,
        secrets: functions
            .secrets
            .iter()
            .map(|secret| Secret::new(secret).map_err(|problem| SettingsError::new("secrets", problem)))
            .collect::<Result<_, SettingsError>>()?,
        max_response: functions.max_response.as_usize(),
        stage: functions.stage.clone(),
        forward_request: functions.forward_request,
        consent: functions.consent.unwrap_or(defaults.consent),
        private_addresses: functions.private_addresses,
        ..defaults
    };
    settings.check()?;
    Ok(settings)
}

fn header(name: &str, text: &str) -> Result<(HeaderName, HeaderValue), SettingsError> {
    let wrong = || SettingsError::new("headers", format!("{name:?} is no header, or its value is none"));
    let parsed = (name.parse().map_err(|_| wrong())?, HeaderValue::from_str(text).map_err(|_| wrong())?);
    Ok(parsed)
}

fn parsed<T: std::str::FromStr<Err = String>>(key: &str, text: Option<&str>) -> Result<Option<T>, SettingsError> {
    text.map(|text| value(key, text)).transpose()
}

fn value<T: std::str::FromStr<Err = String>>(key: &str, text: &str) -> Result<T, SettingsError> {
    text.parse().map_err(|problem| SettingsError::new(key, problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(text: &str) -> Result<Vec<ApiSettings>, String> {
        let text = format!("[[api]]\nname = \"chat\"\npath = \"/release/{{room}}\"\n{text}");
        let mut document: Table = toml::from_str(&text).unwrap();
        apply_presets(&mut document);
        let apis: Vec<ApiConfig> =
            document["api"].clone().try_into().map_err(|error: toml::de::Error| error.to_string())?;
        settings(&apis).map_err(|error| error.to_string())
    }

    #[test]
    fn an_api_s_functions_become_the_bridge_s_settings() {
        let made = api("registration_timeout = \"3s\"\nhandler_group = \"g\"\n[api.functions]\ndialect = \"scf\"\n\
             transmission = \"http://127.0.0.1:9000/t\"\nheaders = { authorization = \"Bearer x\" }\nsecrets = [\"0123456789abcdef\"]\n\
             retries = 5\nmax_response = \"64KiB\"\nstage = \"test\"\n");
        let made = made.unwrap().remove(0);
        assert_eq!((made.api.as_str(), made.path.as_str(), made.group.as_str()), ("chat", "/release/{room}", "g"));
        assert_eq!((made.decides, made.registration_timeout.as_secs(), made.retries), (true, 3, 5));
        assert_eq!((made.max_response, made.stage.as_str(), made.secrets.len()), (64 << 10, "test", 1));
        assert_eq!(made.headers[0].1, "Bearer x");
        assert_eq!((made.consent, made.integration_response, made.private_addresses), (false, false, true));
        let azure = |more| {
            let text = format!("[api.functions]\ndialect = \"cloudevents\"\ntransmission = \"http://h/\"\n{more}");
            let made = api(&text).unwrap().remove(0);
            (made.consent, made.integration_response)
        };
        assert_eq!((azure(""), azure("consent = false\nintegration_response = false")), ((true, true), (false, false)));
        assert_eq!(api("").unwrap().len(), 0);
    }

    #[test]
    fn what_is_wrong_with_functions_is_said_with_the_api() {
        for (text, problem) in [
            ("dialect = \"scf\"", "api \"chat\": functions.transmission: is missing"),
            ("dialect = \"scf\"\ntransmission = \"ftp://h/x\"", "must begin with http"),
            ("dialect = \"scf\"\ntransmission = \"http://169.254.169.254/\"", "link-local"),
            (
                "dialect = \"aws\"\nroutes = { a = \"http://h/\" }\nroute_selection = \"action\"",
                "functions.route_selection",
            ),
            ("dialect = \"scf\"\ntransmission = \"http://h/\"\nsecrets = [\"short\"]", "guessed too easily"),
            ("dialect = \"scf\"\ntransmission = \"http://h/\"\nheaders = { \"a b\" = \"x\" }", "functions.headers"),
            ("dialect = \"scf\"\ntransmission = \"http://h/\"\ntimeout = \"0s\"", "functions.timeout"),
            (
                "dialect = \"scf\"\ntransmission = \"http://127.1/\"\nprivate_addresses = false",
                "functions.transmission: http://127.1/ is a private address",
            ),
            ("dialect = \"smoke\"", "unknown variant"),
        ] {
            let error = api(&format!("[api.functions]\n{text}\n")).unwrap_err();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }

    #[test]
    fn beyond_loopback_the_listener_needs_tls() {
        let validate = |http: &str, tls: bool, insecure: bool| {
            let tls = tls.then(|| TlsConfig { cert: "c".into(), key: "k".into() });
            BridgeConfig { http: Some(http.parse().unwrap()), tls, insecure, ..BridgeConfig::default() }.validate()
        };
        assert!(validate("127.0.0.1:1", false, false).is_ok());
        assert!(validate("0.0.0.0:1", false, false).unwrap_err().to_string().contains("functions.tls.cert"));
        assert!(validate("0.0.0.0:1", true, false).is_ok() && validate("0.0.0.0:1", false, true).is_ok());
    }

    #[test]
    fn edges_keep_what_functions_are_told_of_a_handshake() {
        let kept = |dialects: &[edge::Dialect]| {
            let mut edge = EdgeConfig::new("e", Vec::new(), PathBuf::new());
            edge.headers = vec!["host".to_owned()];
            let api = |dialect: &edge::Dialect| {
                let mut api = ApiConfig::new("a", "/a".parse().unwrap());
                api.functions = Some(FunctionsConfig::new(*dialect));
                api
            };
            let apis: Vec<ApiConfig> = dialects.iter().map(api).collect();
            keep_headers(&mut edge, &apis);
            keep_headers(&mut edge, &apis);
            edge.headers
        };
        assert_eq!(kept(&[]), ["host"]);
        assert_eq!(kept(&[edge::Dialect::Scf]), ["host", "sec-websocket-extensions"]);
        let both = ["host", "sec-websocket-extensions", "sec-websocket-key"];
        assert_eq!(kept(&[edge::Dialect::Scf, edge::Dialect::Aws]), both);
    }

    #[test]
    fn a_preset_fills_in_what_the_table_leaves_out() {
        let mut document: Table =
            toml::from_str("[[api]]\npreset = \"aws\"\nidle_timeout = \"1m\"\n[[api]]\n[[api]]\npreset = \"x\"\n")
                .unwrap();
        apply_presets(&mut document);
        let apis = document["api"].as_array().unwrap();
        assert_eq!((apis[0]["max_message"].as_str(), apis[0]["idle_timeout"].as_str()), (Some("128KiB"), Some("1m")));
        assert_eq!((apis[0]["max_lifetime"].as_str(), apis[0]["text_only"].as_bool()), (Some("2h"), Some(true)));
        assert!(apis[1].as_table().unwrap().is_empty());
        assert_eq!(apis[2].as_table().unwrap().len(), 1);
    }
}
