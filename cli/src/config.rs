//! One TOML file per process with the tables `[broker]`, `[edge]` and `[[api]]`. Flag > environment > file > default; unknown
//! keys are refused. The types and their rules are the roles' own (`trunkline_broker::config`, `trunkline_edge::config`).

use std::{collections::BTreeSet, fs, path::Path};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use toml::{Table, Value};
use trunkline_broker::config::BrokerConfig;
use trunkline_edge::config::{ApiConfig, EdgeConfig, Registration};
use trunkline_proto::units::HumanSize;

use crate::{
    args::{BrokerArgs, BrokerListen, DevArgs, EdgeArgs, EdgeListen, FileArgs},
    exit::Failure,
};

/// Environment variables that set any key: TRUNKLINE_BROKER__EDGE_GRACE is broker.edge_grace.
const PREFIXES: [&str; 2] = ["TRUNKLINE_BROKER__", "TRUNKLINE_EDGE__"];

/// What a broker runs with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct BrokerRole {
    pub(crate) broker: BrokerConfig,
}

/// What an edge runs with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct EdgeRole {
    pub(crate) edge: EdgeConfig,
    #[serde(rename = "api")]
    pub(crate) apis: Vec<ApiConfig>,
}

/// What `dev` runs with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct DevRole {
    pub(crate) broker: BrokerConfig,
    pub(crate) edge: EdgeConfig,
    #[serde(rename = "api")]
    pub(crate) apis: Vec<ApiConfig>,
}

/// The environment, as far as it sets keys.
pub(crate) fn environment() -> Vec<(String, String)> {
    let own = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
        PREFIXES.iter().any(|prefix| name.starts_with(prefix)).then_some((name, value))
    };
    std::env::vars_os().filter_map(own).collect()
}

/// Everything that was said, put together; not yet understood.
#[derive(Debug, Default)]
struct Document {
    table: Table,
    /// The file's name and text, for messages that show the line.
    file: Option<(String, String)>,
}

impl Document {
    fn load(args: &FileArgs, environment: &[(String, String)]) -> Result<Self, Failure> {
        let mut document = Self::default();
        if let Some(path) = &args.config {
            document.read(path)?;
        }
        for (name, value) in environment {
            let key = name.trim_start_matches("TRUNKLINE_").to_ascii_lowercase().replace("__", ".");
            document.set(&key, parse_value(value), name)?;
        }
        Ok(document)
    }

    fn read(&mut self, path: &Path) -> Result<(), Failure> {
        let name = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|error| Failure::usage(format!("{name}: {error}")))?;
        self.table = toml::from_str(&text).map_err(|error| Failure::usage(format!("{name}: {error}")))?;
        self.file = Some((name, text));
        self.check_tables()
    }

    fn check_tables(&self) -> Result<(), Failure> {
        let known = BTreeSet::from(["broker", "edge", "api"]);
        match self.table.keys().find(|key| !known.contains(key.as_str())) {
            Some(unknown) => {
                let file = self.file.as_ref().map_or("", |(name, _)| name.as_str());
                Err(Failure::usage(format!("{file}: unknown key `{unknown}`, expected [broker], [edge] or [[api]]")))
            }
            None => Ok(()),
        }
    }

    fn set(&mut self, key: &str, value: Value, source: &str) -> Result<(), Failure> {
        let (path, last) = key.rsplit_once('.').ok_or_else(|| {
            Failure::usage(format!(
                "{source}: {key:?} names no key, write it with its table, such as broker.edge_grace"
            ))
        })?;
        let mut table = &mut self.table;
        for part in path.split('.') {
            let entry = table.entry(part).or_insert_with(|| Value::Table(Table::new()));
            table =
                entry.as_table_mut().ok_or_else(|| Failure::usage(format!("{source}: {part} of {key} is no table")))?;
        }
        table.insert(last.to_owned(), value);
        Ok(())
    }

    /// A flag of its own, if it was given.
    fn flag(&mut self, key: &str, value: Option<impl Into<Value>>) -> Result<(), Failure> {
        value.map_or(Ok(()), |value| self.set(key, value.into(), "flag"))
    }

    /// `--set KEY=VALUE`, stronger than everything.
    fn apply_set(&mut self, set: &[String]) -> Result<(), Failure> {
        for pair in set {
            let wrong = || Failure::usage(format!("--set {pair}: KEY=VALUE is expected"));
            let (key, value) = pair.split_once('=').ok_or_else(wrong)?;
            self.set(key.trim(), parse_value(value), "--set")?;
        }
        self.check_tables()
    }

    fn broker_flags(&mut self, listen: &BrokerListen) -> Result<(), Failure> {
        self.flag("broker.data", listen.data.as_ref().map(|path| path.display().to_string()))?;
        self.flag("broker.grpc", listen.grpc.map(|address| address.to_string()))?;
        self.flag("broker.http", listen.http.map(|address| address.to_string()))?;
        self.flag("broker.link", listen.link.map(|address| address.to_string()))?;
        self.flag("broker.partitions", listen.partitions.map(i64::from))
    }

    fn edge_flags(&mut self, listen: &EdgeListen) -> Result<(), Failure> {
        self.flag("edge.ws", listen.ws.map(|address| address.to_string()))?;
        self.flag("edge.http", listen.edge_http.map(|address| address.to_string()))
    }

    /// Sets what nobody has set.
    fn set_default(&mut self, table: &str, key: &str, value: impl Into<Value>) -> Result<(), Failure> {
        let set = self.table.get(table).and_then(|table| table.get(key)).is_some();
        if set { Ok(()) } else { self.set(&format!("{table}.{key}"), value.into(), "default") }
    }

    fn part<T: DeserializeOwned>(&self, name: &'static str, empty: Value) -> Result<T, Failure> {
        let value = self.table.get(name).cloned().unwrap_or(empty);
        value.try_into().map_err(|error: toml::de::Error| self.explain(name, &error))
    }

    /// The error with the file's line if the file alone has it, else with the table's name.
    fn explain(&self, part: &'static str, error: &toml::de::Error) -> Failure {
        if let Some((name, text)) = &self.file
            && let Err(in_file) = toml::from_str::<File>(text)
            && in_file.message() == error.message()
        {
            return Failure::usage(format!("{name}: {in_file}"));
        }
        Failure::usage(format!("{part}: {}", error.message()))
    }

    fn broker(&self) -> Result<BrokerConfig, Failure> {
        let broker: BrokerConfig = self.part("broker", Value::Table(Table::new()))?;
        broker.validate().map_err(Failure::usage)?;
        Ok(broker)
    }

    fn edge(&self, mut first: Vec<ApiConfig>) -> Result<(EdgeConfig, Vec<ApiConfig>), Failure> {
        let edge: EdgeConfig = self.part("edge", Value::Table(Table::new()))?;
        let apis: Vec<ApiConfig> = self.part("api", Value::Array(Vec::new()))?;
        first.extend(apis);
        edge.validate(&first).map_err(Failure::usage)?;
        Ok((edge, first))
    }
}

/// Only for error messages with lines.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "broker")]
    _broker: Option<BrokerConfig>,
    #[serde(rename = "edge")]
    _edge: Option<EdgeConfig>,
    #[serde(default, rename = "api")]
    _apis: Vec<ApiConfig>,
}

/// A TOML value if it is one, else a text: `5`, `true`, `["a"]`, `10s`.
fn parse_value(text: &str) -> Value {
    let wrapped = format!("value = {text}");
    let parsed = toml::from_str::<Table>(&wrapped).ok().and_then(|mut table| match table.len() {
        1 => table.remove("value"),
        _ => None,
    });
    parsed.unwrap_or_else(|| Value::String(text.to_owned()))
}

impl BrokerRole {
    /// Puts the configuration together.
    pub(crate) fn load(args: &BrokerArgs, environment: &[(String, String)]) -> Result<Self, Failure> {
        let mut document = Document::load(&args.file, environment)?;
        document.broker_flags(&args.broker)?;
        document.flag("broker.pki", args.pki.as_ref().map(|path| path.display().to_string()))?;
        document.apply_set(&args.file.set)?;
        Ok(Self { broker: document.broker()? })
    }
}

impl EdgeRole {
    /// Puts the configuration together.
    pub(crate) fn load(args: &EdgeArgs, environment: &[(String, String)]) -> Result<Self, Failure> {
        let mut document = Document::load(&args.file, environment)?;
        document.edge_flags(&args.edge)?;
        document.flag("edge.name", args.name.clone())?;
        document.flag("edge.brokers", (!args.brokers.is_empty()).then(|| args.brokers.clone()))?;
        document.flag("edge.pki", args.pki.as_ref().map(|path| path.display().to_string()))?;
        document.apply_set(&args.file.set)?;
        let (edge, apis) = document.edge(Vec::new())?;
        if apis.is_empty() {
            return Err(Failure::usage("no [[api]]: an edge without one lets nobody in"));
        }
        Ok(Self { edge, apis })
    }
}

impl DevRole {
    /// Puts the configuration together: the demo's APIs, and the file's beside them.
    pub(crate) fn load(args: &DevArgs, environment: &[(String, String)]) -> Result<Self, Failure> {
        let mut document = Document::load(&args.file, environment)?;
        document.broker_flags(&args.broker)?;
        document.edge_flags(&args.edge)?;
        document.apply_set(&args.file.set)?;
        document.set_default("broker", "partitions", 1)?;
        document.set_default("broker", "cluster", "dev")?;
        let data: BrokerConfig = document.part("broker", Value::Table(Table::new()))?;
        let pki = data.data.join("pki").display().to_string();
        document.set_default("broker", "pki", pki)?;
        let broker = document.broker()?;
        document.set_default("edge", "name", "dev")?;
        document.set_default("edge", "pki", broker.pki.display().to_string())?;
        // replaced by the bound address
        let link = format!("{}@127.0.0.1:{}", broker.node_id, broker.link.port().max(1));
        document.set("edge.brokers", vec![link].into(), "default")?;
        let (edge, apis) = document.edge(demo_apis()?)?;
        Ok(Self { broker, edge, apis })
    }
}

/// SURFACE section 3.
fn demo_apis() -> Result<Vec<ApiConfig>, Failure> {
    let api = |name: &str, path: &str| -> Result<ApiConfig, Failure> {
        Ok(ApiConfig::new(name, path.parse().map_err(Failure::usage)?))
    };
    let mut echo = api("echo", "/echo")?;
    (echo.max_message, echo.max_queue) = (HumanSize::mib(16), HumanSize::mib(64));
    let chat = api("chat", "/chat")?;
    let mut news = api("news", "/news")?;
    (news.registration, news.channels) = (Registration::Accept, vec!["news".to_owned()]);
    Ok(vec![echo, chat, news])
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn dev(line: &str, environment: &[(&str, &str)]) -> Result<DevRole, String> {
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        let environment: Vec<_> =
            environment.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        match cli.command {
            Command::Dev(args) => DevRole::load(&args, &environment).map_err(|error| error.to_string()),
            Command::Broker(args) => BrokerRole::load(&args, &environment)
                .map(|role| DevRole { broker: role.broker, edge: EdgeConfig::new("", vec![], "".into()), apis: vec![] })
                .map_err(|error| error.to_string()),
            Command::Edge(args) => EdgeRole::load(&args, &environment)
                .map(|role| DevRole { broker: BrokerConfig::default(), edge: role.edge, apis: role.apis })
                .map_err(|error| error.to_string()),
            _ => panic!("{line}"),
        }
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn dev_has_its_apis_and_one_partition() {
        let role = dev("trunkline dev", &[]).unwrap();
        let names: Vec<&str> = role.apis.iter().map(|api| api.name.as_str()).collect();
        assert_eq!(names, ["echo", "chat", "news"]);
        assert_eq!((role.broker.partitions, role.apis[0].max_message), (1, HumanSize::mib(16)));
        assert_eq!(role.broker.pki, Path::new("./trunkline-data/pki"));
        assert_eq!(
            (role.apis[2].registration, &role.apis[2].channels[..]),
            (Registration::Accept, &["news".to_owned()][..])
        );
    }

    #[test]
    fn flags_beat_the_environment_which_beats_the_file() {
        let file = file("[broker]\nedge_grace = \"3s\"\npartitions = 4\ntail_bytes = \"2MiB\"\n");
        let line =
            format!("trunkline dev --config {} --partitions 16 --set broker.tail_bytes=4MiB", file.path().display());
        let environment = [("TRUNKLINE_BROKER__EDGE_GRACE", "5s"), ("TRUNKLINE_BROKER__TAIL_BYTES", "3MiB")];
        let role = dev(&line, &environment).unwrap();
        assert_eq!(role.broker.edge_grace.get().as_secs(), 5);
        assert_eq!((role.broker.partitions, role.broker.tail_bytes), (16, HumanSize::mib(4)));
    }

    #[test]
    fn dev_serves_the_file_s_apis_beside_its_own() {
        let file = file("[[api]]\nname = \"mine\"\npath = \"/mine/{id}\"\n");
        let role = dev(&format!("trunkline dev --config {}", file.path().display()), &[]).unwrap();
        assert_eq!(role.apis.last().unwrap().name, "mine");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (text, parts) in [
            ("[broker]\nbogus = 1\n", vec!["line 2", "unknown field `bogus`"]),
            ("[brokr]\n", vec!["unknown key `brokr`"]),
            ("[broker]\nedge_grace = 3\n", vec!["line 2", "no known unit"]),
            ("[broker]\nedge_grace = \"1ms\"\n", vec!["edge_grace"]),
            ("[[api]]\nname = \"echo\"\npath = \"/e\"\n", vec!["another API has it too"]),
            ("[[api]]\nname = \"x\"\npath = \"/x\"\nping = 1\n", vec!["line 4", "unknown field `ping`"]),
            ("not toml", vec!["line 1"]),
        ] {
            let file = file(text);
            let error = dev(&format!("trunkline dev --config {}", file.path().display()), &[]).unwrap_err();
            for part in parts {
                assert!(error.contains(part), "{text:?} gives {error}");
            }
        }
        for (line, environment, part) in [
            ("trunkline dev --config /nonexistent.toml", vec![], "/nonexistent.toml"),
            ("trunkline dev --set broker.bogus=1", vec![], "unknown field `bogus`"),
            ("trunkline dev --set bogus=1", vec![], "names no key"),
            ("trunkline dev --set other.bogus=1", vec![], "unknown key `other`"),
            ("trunkline dev --set nothing", vec![], "KEY=VALUE"),
            ("trunkline dev", vec![("TRUNKLINE_BROKER__BOGUS", "1")], "unknown field `bogus`"),
            ("trunkline dev --grpc 0.0.0.0:7070", vec![], "not loopback"),
            ("trunkline edge", vec![], "missing field"),
            ("trunkline edge --name e --brokers 1@a:1 --pki p", vec![], "no [[api]]"),
        ] {
            let error = dev(line, &environment).unwrap_err();
            assert!(error.contains(part), "{line} gives {error}");
        }
    }

    #[test]
    fn what_is_dumped_loads_again() {
        let role = dev("trunkline dev", &[]).unwrap();
        let text = toml::to_string(&role).unwrap();
        let again: File = toml::from_str(&text).unwrap();
        assert_eq!((again._broker, again._edge, again._apis), (Some(role.broker), Some(role.edge), role.apis));
    }

    #[test]
    fn values_are_toml_or_text() {
        assert_eq!(parse_value("5"), Value::Integer(5));
        assert_eq!(parse_value("[\"a\"]"), Value::Array(vec!["a".into()]));
        assert_eq!(parse_value("10s"), Value::String("10s".into()));
        assert_eq!(parse_value("1\nother = 2"), Value::String("1\nother = 2".into()));
        assert_eq!(parse_value(""), Value::String(String::new()));
    }
}
