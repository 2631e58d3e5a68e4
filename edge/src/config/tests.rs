//! Every message a wrong configuration can get, and the defaults of docs/guide.md.

use super::{ApiConfig, BrokerAddress, EdgeConfig, Registration};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    edge: EdgeConfig,
    #[serde(default)]
    api: Vec<ApiConfig>,
}

const EDGE: &str = "[edge]\nname = \"e1\"\nbrokers = [\"1@127.0.0.1:7443\"]\npki = \"pki\"\n";

/// What parsing or validation says about the edge's and one API's keys; empty if nothing.
fn problems(edge: &str, api: &str) -> String {
    let text = format!("{EDGE}{edge}\n[[api]]\nname = \"chat\"\npath = \"/chat\"\n{api}");
    match toml::from_str::<File>(&text) {
        Err(error) => error.to_string(),
        Ok(file) => file.edge.validate(&file.api).err().map(|error| error.to_string()).unwrap_or_default(),
    }
}

#[test]
fn defaults_are_those_of_the_reference() {
    let written = r#"
[[api]]
name = "chat"
path = "/chat"
registration = "handler"
registration_timeout = "15s"
channels = []
idle_timeout = "600s"
ping_interval = "25s"
ping_timeout = "10s"
max_lifetime = "0s"
max_queue = "1MiB"
handler_group = "chat"
max_message = "1MiB"
max_connections = 100000
subprotocols = []
max_handler_lag = 0
origins = []
auth = { kind = "none" }
"#;
    let file: File = toml::from_str(&format!("{EDGE}{written}")).unwrap();
    let mut api = ApiConfig::new("chat", "/chat".parse().unwrap());
    assert_eq!(api.handler_group(), "chat");
    api.handler_group = Some("chat".to_owned());
    assert_eq!(file.api[0], api);
    assert_eq!(file.edge, EdgeConfig::new("e1", vec!["1@127.0.0.1:7443".parse().unwrap()], "pki".into()));
    file.edge.validate(&file.api).unwrap();
    assert_eq!(api.deciding_group(), "chat");
    api.registration = Registration::Accept;
    assert_eq!(api.deciding_group(), "");
}

#[test]
fn what_is_printed_reads_back() {
    let edge = EdgeConfig::new("e1", vec!["1@[::1]:7443".parse().unwrap()], "pki".into());
    assert_eq!(toml::from_str::<EdgeConfig>(&toml::to_string(&edge).unwrap()).unwrap(), edge);
    let api = ApiConfig::new("chat", "/rooms/{room}".parse().unwrap());
    assert_eq!(toml::from_str::<ApiConfig>(&toml::to_string(&api).unwrap()).unwrap(), api);
}

#[test]
fn wrong_edges_are_refused_with_the_reason() {
    for (edge, expected) in [
        ("", ""),
        ("bogus = 1", "unknown field `bogus`"),
        (
            "ws = \"0.0.0.0:8080\"",
            "edge.ws: 0.0.0.0:8080 is not on loopback and there is no TLS; set edge.tls.cert and edge.tls.key; insecure = true allows it",
        ),
        ("ws = \"0.0.0.0:8080\"\ninsecure = true", ""),
        ("ws = \"0.0.0.0:8080\"\ntls = { cert = \"c.pem\", key = \"k.pem\" }", ""),
        ("http = \"[::]:8081\"", "edge.http: [::]:8081 is not on loopback"),
        ("http = \"127.0.0.1:8080\"", "edge.http: 127.0.0.1:8080 is edge.ws already"),
        ("ws = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"", ""),
        ("ws = \"localhost\"", "invalid socket address"),
        ("shards = 0", "nonzero"),
        ("shards = 257", "edge.shards: 257 is more than 256"),
        ("uplink_bytes = \"1KiB\"", "edge.uplink_bytes: 1KiB is less than 2MiB"),
        ("uplink_bytes = 64", "no known unit"),
        ("drain_window = \"26s\"", "edge.drain_window: 26s is more than 25s"),
        ("trusted_proxies = [\"10.0.0.0/8\", \"::1\"]", ""),
        ("trusted_proxies = [\"10.0.0.0/33\"]", "edge.trusted_proxies: \"10.0.0.0/33\" is no address and no network"),
        ("trusted_proxies = [\"proxy.example\"]", "is no address"),
        ("headers = [\"Cookie\"]", "edge.headers: \"Cookie\" is no header name in lower case"),
    ] {
        let found = problems(edge, "");
        assert!(if expected.is_empty() { found.is_empty() } else { found.contains(expected) }, "{edge}: {found}");
    }
    for (brokers, expected) in [
        ("[]", "edge.brokers: names no broker"),
        ("[\"127.0.0.1:7443\"]", "write \"ID@HOST:PORT\""),
        ("[\"0@h:1\"]", "ids from 1"),
        ("[\"1@h:1\", \"1@i:1\"]", "edge.brokers: names broker 1 twice"),
    ] {
        let text = format!("name = \"e 1\"\nbrokers = {brokers}\npki = \"\"\n");
        let found = match toml::from_str::<EdgeConfig>(&text) {
            Err(error) => error.to_string(),
            Ok(edge) => {
                let found = edge.validate(&[]).unwrap_err().to_string();
                assert!(found.contains("edge.name: \"e 1\" is not 1 to 64 of"), "{found}");
                assert!(found.contains("edge.pki: names no directory"), "{found}");
                found
            }
        };
        assert!(found.contains(expected), "{brokers}: {found}");
    }
}

#[test]
fn wrong_apis_are_refused_with_the_reason() {
    for (api, expected) in [
        ("bogus = 1", "unknown field `bogus`"),
        ("registration = \"maybe\"", "unknown variant `maybe`"),
        ("registration_timeout = \"0s\"", "api \"chat\": registration_timeout: 0s is not above 0 and at most 10m"),
        ("registration_timeout = \"11m\"", "registration_timeout: 11m is not above 0"),
        ("channels = [\"\"]", "channels: \"\" is not 1 to 255 bytes"),
        ("channels = [\"a\", \"a\"]", "channels: \"a\" stands there twice"),
        ("ping_timeout = \"0s\"", "ping_timeout: 0 would close every connection"),
        ("ping_timeout = \"30s\"", "ping_timeout: 30s is longer than ping_interval, 25s"),
        ("ping_interval = \"0s\"", ""),
        ("idle_timeout = \"0s\"", ""),
        ("max_lifetime = \"1000d\"", "max_lifetime: 1000d is more than 366d"),
        ("max_queue = \"1KiB\"", "max_queue: 1KiB is less than max_message, 1MiB"),
        ("max_message = \"17MiB\"\nmax_queue = \"17MiB\"", "max_message: 17MiB is not from 1B to 16MiB"),
        ("max_message = 0", "max_message: 0B is not from 1B"),
        ("max_connections = 0", "max_connections: 0 would let nobody in"),
        ("handler_group = \"a b\"", "handler_group: \"a b\" is not 1 to 64 of"),
        ("subprotocols = [\"v1\"]", "subprotocols: only registration = \"accept\""),
        ("registration = \"accept\"\nsubprotocols = [\"v1\"]", ""),
        ("registration = \"accept\"\nsubprotocols = [\"v 1\"]", "subprotocols: \"v 1\" is no token"),
        ("origins = [\"https://example.com\", \"http://localhost:3000\"]", ""),
        ("origins = [\"https://example.com/\"]", "origins: \"https://example.com/\" is no origin"),
        ("origins = [\"https://Example.com\"]", "is no origin"),
        ("origins = [\"*\"]", "is no origin"),
        ("auth = { kind = \"none\", secret = \"x\" }", "unknown field `secret`"),
        ("auth = { kind = \"jwt\" }", "missing field `algorithms`"),
        ("auth = { kind = \"jwt\", algorithms = [\"none\"] }", "unknown variant `none`"),
        ("auth = { kind = \"jwt\", algorithms = [], bogus = 1 }", "unknown field `bogus`"),
        ("auth = { kind = \"jwt\", algorithms = [] }", "api \"chat\": auth: algorithms is empty"),
        ("auth = { kind = \"jwt\", algorithms = [\"RS256\"] }", "auth: neither keys nor jwks_file nor jwks_url"),
        ("auth = { kind = \"jwt\", algorithms = [\"RS256\"], jwks_file = \"a\" }", ""),
        (
            "auth = { kind = \"jwt\", algorithms = [\"RS256\"], jwks_file = \"a\", leeway = \"51s\" }",
            "leeway 51s is more than 50s",
        ),
        (
            "auth = { kind = \"jwt\", algorithms = [\"RS256\"], keys = [{ algorithm = \"RS256\", secret = \"hush\" }] }",
            "keys[0]: RS256 needs public_key_file, and nothing else",
        ),
        (
            "auth = { kind = \"jwt\", algorithms = [\"RS256\"], keys = [{ algorithm = \"HS256\", secret = \"hush\" }] }",
            "keys[0]: HS256 is not among algorithms",
        ),
        (
            "auth = { kind = \"jwt\", algorithms = [\"RS256\"], jwks_url = \"https://id.example/keys?v=1\", jwks_ca_file = \"a\" }",
            "",
        ),
        ("auth = { kind = \"jwt\", algorithms = [\"ES256\"], jwks_url = \"http://127.0.0.1:9/keys\" }", ""),
        ("auth = { kind = \"jwt\", algorithms = [\"ES256\"], jwks_url = \"http://[::1]/keys\" }", ""),
        ("auth = { kind = \"jwt\", algorithms = [\"ES256\"], jwks_url = \"http://id.example/\" }", "https is expected"),
        ("auth = { kind = \"jwt\", algorithms = [\"ES256\"], jwks_url = \"http://localhost/\" }", "https is expected"),
        ("auth = { kind = \"jwt\", algorithms = [\"ES256\"], jwks_url = \"http://10.0.0.1/\" }", "https is expected"),
        ("auth = { kind = \"jwt\", algorithms = [\"ES256\"], jwks_url = \"ftp://h/a\" }", "it must begin with"),
        ("auth = { kind = \"jwt\", algorithms = [\"ES256\"], jwks_url = \"https://169.254.169.254/\" }", "link-local"),
        ("auth = { kind = \"jwt\", algorithms = [\"ES256\"], jwks_url = \"https://u:HUSH@h/\" }", "password"),
        ("auth = { kind = \"jwt\", algorithms = [\"HS256\"], jwks_url = \"https://h/\" }", "HS256 alone"),
        (
            "auth = { kind = \"jwt\", algorithms = [\"ES256\"], jwks_url = \"https://h/\", jwks_refresh = \"0s\" }",
            "jwks_refresh 0s is not from 1s",
        ),
        (
            "auth = { kind = \"jwt\", algorithms = [\"ES256\"], jwks_url = \"https://h/\", jwks_max_age = \"1m\" }",
            "jwks_refresh 10m is not from 1s to jwks_max_age, 1m",
        ),
        (
            "auth = { kind = \"jwt\", algorithms = [\"ES256\"], jwks_file = \"a\", jwks_ca_file = \"b\" }",
            "jwks_ca_file is for jwks_url",
        ),
        ("auth = { kind = \"hmac\", keys = [] }", "auth: keys: 1 to 1000 are expected"),
        ("auth = { kind = \"hmac\", keys = [{ id = \"a\" }] }", "keys[0]: secret or secret_file, one of them"),
        (
            "auth = { kind = \"hmac\", keys = [{ id = \"a\", secret = \"x\" }], max_age = \"0s\" }",
            "max_age 0s is not above 0",
        ),
        (
            "auth = { kind = \"token\", tokens = [{ sha256 = \"the-token\", principal = \"a\" }] }",
            "is no SHA-256 digest",
        ),
        ("auth = { kind = \"token\", tokens = [] }", "neither tokens nor tokens_file"),
        ("auth = { kind = \"token\", tokens_file = \"a\" }", ""),
        ("auth = { kind = \"token\", tokens = [], tokens_file = \"a\", query = \"a b\" }", "query \"a b\" is no token"),
        ("auth = { kind = \"magic\" }", "unknown variant `magic`"),
        ("[api.functions]\ndialect = \"scf\"\nbogus = 1", "unknown field `bogus`"),
        ("[[api]]\nname = \"chat\"\npath = \"/c\"", "name: another API has it too"),
        (
            "[[api]]\nname = \"b\"\npath = \"/chat\"",
            "api \"b\": path: /chat answers the same requests as /chat of api \"chat\"",
        ),
        ("[[api]]\nname = \"b\"\npath = \"chat\"", "path \"chat\" does not start with a slash"),
    ] {
        let found = problems("", api);
        assert!(if expected.is_empty() { found.is_empty() } else { found.contains(expected) }, "{api}: {found}");
    }
    let found = problems("uplink_bytes = \"20MiB\"", "max_message = \"16MiB\"\nmax_queue = \"16MiB\"");
    assert!(found.contains("20MiB is less than 32MiB"), "{found}");
}

#[test]
fn secrets_are_never_printed() {
    let auth = "auth = { kind = \"hmac\", keys = [{ id = \"a\", secret = \"HUSH\" }] }";
    let text = format!("{EDGE}\n[[api]]\nname = \"chat\"\npath = \"/chat\"\n{auth}");
    let file: File = toml::from_str(&text).unwrap();
    let shown = format!("{:?} {}", file.api, toml::to_string(&file.api[0]).unwrap());
    assert!(shown.contains("(hidden)") && !shown.contains("HUSH"), "{shown}");
}

#[test]
fn every_problem_is_named_at_once() {
    let found = problems("shards = 300", "max_connections = 0\nping_timeout = \"30s\"");
    assert_eq!(found.lines().count(), 3, "{found}");
}

#[test]
fn broker_addresses_read_and_print() {
    for text in ["1@127.0.0.1:7443", "12@broker-a.example:7443", "3@[::1]:7443"] {
        assert_eq!(text.parse::<BrokerAddress>().unwrap().to_string(), text);
    }
    for text in ["", "1@", "1@h", "1@:7443", "x@h:1", "1@::1:7443", "1@h:0", "1@h:70000", "-1@h:1"] {
        assert!(text.parse::<BrokerAddress>().is_err(), "{text}");
    }
}
