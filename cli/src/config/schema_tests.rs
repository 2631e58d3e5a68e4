//! The schema against the roles' own types, and the guide against the schema.

use std::{collections::BTreeMap, fs};

use serde::de::DeserializeOwned;

use super::*;

/// What serde says is known beside an unknown key: the fields of the type itself.
fn accepted<T: DeserializeOwned>(document: &str) -> Vec<String> {
    let error = toml::from_str::<T>(document).err().unwrap().message().to_owned();
    let names = error.split('`').skip(1).step_by(2).filter(|name| *name != "bogus");
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort();
    names
}

fn keys(schema: &Schema, path: &[&str]) -> Vec<String> {
    let mut value = &schema.root[path[0]];
    for part in &path[1..] {
        value = &value[*part];
    }
    let table = value.as_array().map_or(value, |items| &items[0]).as_table().unwrap();
    let mut keys: Vec<String> = table.keys().cloned().collect();
    keys.sort();
    keys
}

#[test]
fn the_samples_have_every_key_that_the_types_accept() {
    let schema = Schema::new().unwrap();
    assert_eq!(keys(&schema, &["broker"]), accepted::<BrokerConfig>("bogus = 1"));
    assert_eq!(keys(&schema, &["broker", "snapshots"]), accepted::<BrokerConfig>("[snapshots]\nbogus = 1"));
    assert_eq!(keys(&schema, &["broker", "limits"]), accepted::<BrokerConfig>("[limits]\nbogus = 1"));
    assert_eq!(keys(&schema, &["broker", "replication"]), accepted::<BrokerConfig>("[replication]\nbogus = 1"));
    assert_eq!(keys(&schema, &["broker", "retention"]), accepted::<BrokerConfig>("[retention]\nbogus = 1"));
    assert_eq!(keys(&schema, &["broker", "push"]), accepted::<BrokerConfig>("[push]\nbogus = 1"));
    assert_eq!(keys(&schema, &["broker", "aws"]), accepted::<BrokerConfig>("[aws]\nbogus = 1"));
    assert_eq!(keys(&schema, &["broker", "aws", "keys"]), accepted::<BrokerConfig>("[[aws.keys]]\nbogus = 1"));
    assert_eq!(keys(&schema, &["functions"]), accepted::<BridgeConfig>("bogus = 1"));
    assert_eq!(keys(&schema, &["broker", "members"]), accepted::<BrokerConfig>("[[members]]\nbogus = 1"));
    assert_eq!(keys(&schema, &["edge"]), accepted::<EdgeConfig>("bogus = 1"));
    assert_eq!(keys(&schema, &["api"]), accepted::<ApiConfig>("bogus = 1"));
    let functions = schema.root["api"].as_array().unwrap()[0]["functions"].as_table().unwrap();
    let mut functions: Vec<String> = functions.keys().cloned().collect();
    functions.sort();
    assert_eq!(functions, accepted::<ApiConfig>("[functions]\nbogus = 1"));
}

#[test]
fn tables_within_tables_are_all_compared_above() {
    let schema = Schema::new().unwrap();
    let mut tables = Vec::new();
    for (name, value) in &schema.root {
        let table = value.as_array().map_or(value, |items| &items[0]).as_table().unwrap();
        let inner = table.iter().filter(|(_, value)| value.is_table()).map(|(key, _)| format!("{name}.{key}"));
        tables.extend(inner);
    }
    tables.sort();
    let compared = [
        "api.auth",
        "api.functions",
        "broker.aws",
        "broker.limits",
        "broker.push",
        "broker.replication",
        "broker.retention",
        "broker.snapshots",
        "broker.tls",
        "edge.tls",
        "functions.tls",
    ];
    assert_eq!(tables, compared, "a new one: compare it too");
}

#[test]
fn distances() {
    for (one, other, expected) in [("", "", 0), ("a", "", 1), ("kitten", "sitting", 3), ("edge_grase", "edge_grace", 1)]
    {
        assert_eq!((distance(one, other), distance(other, one)), (expected, expected), "{one} {other}");
    }
}

#[test]
fn a_value_is_what_its_key_wants() {
    let schema = Schema::new().unwrap();
    for name in ["1", "true", "2026-11-22", "[x", "", "a b"] {
        assert_eq!(schema.value("broker.cluster", name), Ok(Value::String(name.to_owned())));
    }
    assert_eq!(schema.value("broker.cluster", "\"quoted\""), Ok("quoted".into()));
    assert_eq!(schema.value("broker.edge_grace", "5s"), Ok("5s".into()));
    assert_eq!(schema.value("broker.partitions", "5"), Ok(Value::Integer(5)));
    assert_eq!(schema.value("broker.limits.edges", "1_000"), Ok(Value::Integer(1000)));
    assert_eq!(schema.value("broker.insecure", "true"), Ok(Value::Boolean(true)));
    for list in ["[\"a\", \"b\"]", "a,b", "a, b"] {
        assert_eq!(schema.value("edge.headers", list), Ok(Value::Array(vec!["a".into(), "b".into()])));
    }
    for (key, text, problem) in [
        ("broker.partitions", "many", "a whole number is expected, not \"many\""),
        ("broker.partitions", "5\nother = 2", "a whole number is expected"),
        ("broker.insecure", "yes", "true or false is expected"),
        ("edge.headers", "[a", "a list such as"),
        ("broker.limits", "5", "a table"),
        ("broker.cluster.name", "5", "`broker.cluster` is no table"),
        ("broker.clustr", "5", "did you mean `cluster`?"),
        ("broker.zzzzzzzz", "5", "known here: "),
    ] {
        let error = schema.value(key, text).unwrap_err();
        assert!(error.contains(problem) && error.contains(key), "{key} = {text} gives {error}");
    }
}

#[test]
fn every_unknown_key_of_a_file_is_named_with_its_line() {
    let text = "[broker]\nparttions = 1\nlimits = { edgs = 1 }\n[[api]]\nname = \"a\"\n[[api]]\npth = \"/a\"\n\
                [api.auth]\nsecret = 1\n[edg]\n";
    let found: Vec<_> = Schema::new().unwrap().unknown_in(text);
    let found: Vec<_> = found.iter().map(|(line, unknown)| format!("{line} {unknown}")).collect();
    assert_eq!(
        found,
        [
            "2 unknown key `broker.parttions`; did you mean `partitions`?",
            "3 unknown key `broker.limits.edgs`; did you mean `edges`?",
            "7 unknown key `api.pth`; did you mean `path`?",
            "10 unknown key `edg`; did you mean `edge`?",
        ]
    );
}

/// The rows of the guide's table under this heading: key → default as written.
fn documented(heading: &str) -> BTreeMap<String, String> {
    let guide = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/guide.md")).unwrap();
    let at = guide.find(&format!("\n### {heading}\n")).unwrap_or_else(|| panic!("the guide has no {heading}"));
    let section = guide[at + 1..].split("\n#").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let row = |line: &str| {
        let cells: Vec<&str> = line.split(" | ").collect();
        assert_eq!(cells.len(), 4, "{line}");
        (cells[0].trim_end_matches('`').to_owned(), cells[2].trim_matches('`').to_owned())
    };
    rows.map(row).collect()
}

/// Keys with their defaults as TOML writes them, tables within flattened.
fn defaults(prefix: &str, table: &Table, found: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        let key = joined(prefix, key);
        match value {
            Value::Table(inner) => defaults(&key, inner, found),
            Value::String(text) => drop(found.insert(key, text.clone())),
            other => drop(found.insert(key, other.to_string())),
        }
    }
}

#[test]
fn the_guide_documents_every_key_with_its_default() {
    let schema = Schema::new().unwrap();
    // those whose default is no value, or not the sample's
    let special: BTreeMap<&str, &str> = [
        ("`[broker]` link_advertised", "the bound address"),
        ("`[broker]` grpc_advertised", "the bound address"),
        ("`[broker]` http_advertised", "the bound address"),
        ("`[broker]` members", "none"),
        ("`[broker]` tokens", "none"),
        ("`[broker]` tls.cert", "none"),
        ("`[broker]` tls.key", "none"),
        ("`[edge]` name", "required"),
        ("`[edge]` tls.cert", "none"),
        ("`[edge]` tls.key", "none"),
        ("`[edge]` brokers", "required"),
        ("`[edge]` pki", "required"),
        ("`[edge]` shards", "half the cores"),
        ("`[[api]]` name", "required"),
        ("`[[api]]` path", "required"),
        ("`[[api]]` handler_group", "the API's name"),
        ("`[[api]]` preset", "none"),
        ("`[[api]]` max_frame", "none"),
        ("`[broker]` aws.keys", "none"),
        ("`[broker]` aws.keys_file", "none"),
        ("`[broker]` push.secrets_file", "none"),
        ("`[broker]` tokens_file", "none"),
        ("`[functions]` http", "none"),
        ("`[functions]` token", "none"),
        ("`[functions]` ca", "none"),
        ("`[functions]` tls.cert", "none"),
        ("`[functions]` tls.key", "none"),
        ("`[api.functions]` dialect", "required"),
        ("`[api.functions]` registration", "none"),
        ("`[api.functions]` transmission", "none"),
        ("`[api.functions]` cleanup", "none"),
        ("`[api.functions]` connected", "none"),
        ("`[api.functions]` consent", "with cloudevents"),
        ("`[api.functions]` integration_response", "with cloudevents"),
        ("`[api.functions]` route_selection", "none"),
        ("`[api.functions]` domain", "what the client asked for"),
    ]
    .into();
    let api = schema.root["api"].as_array().unwrap()[0].as_table().unwrap();
    for (heading, sample) in [
        ("`[broker]`", schema.root["broker"].as_table().unwrap()),
        ("`[edge]`", schema.root["edge"].as_table().unwrap()),
        ("`[[api]]`", api),
        ("`[api.functions]`", api["functions"].as_table().unwrap()),
        ("`[functions]`", schema.root["functions"].as_table().unwrap()),
    ] {
        let mut expected = BTreeMap::new();
        defaults("", sample, &mut expected);
        // tables of their own
        expected.retain(|key, _| !key.starts_with("functions."));
        // whose keys are anybody's
        for open in ["routes", "headers", "stage_variables"] {
            if expected.remove(&format!("{open}.")).is_some() {
                expected.insert(open.to_owned(), "{}".to_owned());
            }
        }
        for (key, default) in &mut expected {
            if let Some(words) = special.get(format!("{heading} {key}").as_str()) {
                *default = (*words).to_owned();
            }
        }
        assert_eq!(documented(heading), expected, "{heading}");
    }
}
