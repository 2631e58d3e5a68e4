//! One TOML file per process, or one for all of them, with the tables `[broker]`, `[edge]`, `[functions]` and `[[api]]`. Flag > environment >
//! file > default; unknown keys are refused, all at once, and tables of another role are checked too. The types and their rules
//! are the roles' own (`trunkline_broker::config`, `trunkline_edge::config`).

mod functions;
mod schema;

use std::{fs, path::Path};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use toml::{Table, Value};
use trunkline_broker::config::{BrokerConfig, files};
use trunkline_edge::config::{ApiConfig, EdgeConfig, Registration};
use trunkline_proto::units::HumanSize;

pub(crate) use self::functions::{BridgeConfig, settings as function_settings};
use self::schema::Schema;
use crate::{
    args::{BrokerArgs, BrokerListen, DevArgs, EdgeArgs, EdgeListen, FileArgs, FunctionsArgs},
    exit::Failure,
};

/// Environment variables that set any key: TRUNKLINE_BROKER__EDGE_GRACE is broker.edge_grace.
const PREFIXES: [&str; 3] = ["TRUNKLINE_BROKER__", "TRUNKLINE_EDGE__", "TRUNKLINE_FUNCTIONS__"];

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

/// What the function bridge runs with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct FunctionsRole {
    pub(crate) functions: BridgeConfig,
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

/// Whose tables there are.
#[derive(Debug, Clone, Copy)]
enum Role {
    Broker,
    Edge,
    Functions,
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
#[derive(Debug)]
struct Document {
    schema: Schema,
    table: Table,
    /// The file's name and text, for messages that show the line.
    file: Option<(String, String)>,
    /// Unknown keys, and values that are not of their key's type.
    problems: Vec<String>,
}

impl Document {
    fn empty() -> Result<Self, Failure> {
        Ok(Self { schema: Schema::new()?, table: Table::new(), file: None, problems: Vec::new() })
    }

    fn load(args: &FileArgs, environment: &[(String, String)]) -> Result<Self, Failure> {
        let mut document = Self::empty()?;
        if let Some(path) = &args.config {
            document.read(path)?;
        }
        for (name, value) in environment {
            let key = name.trim_start_matches("TRUNKLINE_").to_ascii_lowercase().replace("__", ".");
            document.set_text(&key, value, name)?;
        }
        Ok(document)
    }

    fn read(&mut self, path: &Path) -> Result<(), Failure> {
        let name = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|error| Failure::usage(format!("{name}: {error}")))?;
        self.table = toml::from_str(&text)
            .map_err(|error| Failure::usage(format!("{name}: {}", files::toml_problem(&text, &error))))?;
        functions::apply_presets(&mut self.table);
        let unknown = self.schema.unknown_in(&text).into_iter();
        self.problems.extend(unknown.map(|(line, unknown)| format!("{name}: line {line}: {unknown}")));
        self.file = Some((name, text));
        Ok(())
    }

    /// A value as people type it.
    fn set_text(&mut self, key: &str, text: &str, source: &str) -> Result<(), Failure> {
        match self.schema.value(key, text) {
            Ok(value) => self.set(key, value, source)?,
            Err(problem) => self.problems.push(format!("{source}: {problem}")),
        }
        Ok(())
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
            self.set_text(key.trim(), value, "--set")?;
        }
        Ok(())
    }

    /// Says all that has been found wrong so far; then whether the tables of other roles would do there. They may leave out
    /// what is said by flags there.
    fn check(&self, other_roles: &[Role]) -> Result<(), Failure> {
        if !self.problems.is_empty() {
            return Err(Failure::usage(self.problems.join("\n")));
        }
        other_roles.iter().try_for_each(|role| match role {
            Role::Broker => self.broker().map(drop),
            Role::Functions => self.functions().map(drop),
            Role::Edge => self.check_edge(),
        })
    }

    fn check_edge(&self) -> Result<(), Failure> {
        let mut document = Self { table: self.table.clone(), file: self.file.clone(), ..Self::empty()? };
        let sample = schema::sample_edge()?;
        document.set_default("edge", "name", sample.name)?;
        document.set_default("edge", "pki", sample.pki.display().to_string())?;
        let brokers: Vec<_> = sample.brokers.iter().map(ToString::to_string).collect();
        document.set_default("edge", "brokers", brokers)?;
        document.edge(Vec::new()).map(drop)
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
            && let Some(in_file) = part_error(part, text)
            && in_file.message() == error.message()
        {
            return Failure::usage(format!("{name}: {}", files::toml_problem(text, &in_file)));
        }
        Failure::usage(format!("{part}: {}", files::without_value(error.message())))
    }

    fn broker(&self) -> Result<BrokerConfig, Failure> {
        let broker: BrokerConfig = self.part("broker", Value::Table(Table::new()))?;
        broker.validate().map_err(Failure::usage)?;
        Ok(broker)
    }

    fn functions(&self) -> Result<BridgeConfig, Failure> {
        let bridge: BridgeConfig = self.part("functions", Value::Table(Table::new()))?;
        bridge.validate()?;
        Ok(bridge)
    }

    fn edge(&self, mut first: Vec<ApiConfig>) -> Result<(EdgeConfig, Vec<ApiConfig>), Failure> {
        let mut edge: EdgeConfig = self.part("edge", Value::Table(Table::new()))?;
        let apis: Vec<ApiConfig> = self.part("api", Value::Array(Vec::new()))?;
        first.extend(apis);
        functions::keep_headers(&mut edge, &first);
        edge.validate(&first).map_err(Failure::usage)?;
        functions::settings(&first)?;
        Ok((edge, first))
    }
}

/// Whether a broker would start with this text as its file.
pub(crate) fn check_broker(text: &str) -> Result<(), Failure> {
    let mut document = Document::empty()?;
    document.table = toml::from_str(text).map_err(|error| Failure::usage(files::toml_problem(text, &error)))?;
    document.broker().map(drop)
}

/// What is wrong with one part of a file, with its place. The other parts may be wrong too: they are told in their turn.
fn part_error(part: &str, text: &str) -> Option<toml::de::Error> {
    match part {
        "broker" => toml::from_str::<BrokerPart>(text).err(),
        "edge" => toml::from_str::<EdgePart>(text).err(),
        "functions" => toml::from_str::<FunctionsPart>(text).err(),
        _ => toml::from_str::<ApiPart>(text).err(),
    }
}

#[derive(Deserialize)]
struct BrokerPart {
    #[serde(rename = "broker")]
    _broker: Option<BrokerConfig>,
}

#[derive(Deserialize)]
struct EdgePart {
    #[serde(rename = "edge")]
    _edge: Option<EdgeConfig>,
}

#[derive(Deserialize)]
struct FunctionsPart {
    #[serde(rename = "functions")]
    _functions: Option<BridgeConfig>,
}

#[derive(Deserialize)]
struct ApiPart {
    #[serde(default, rename = "api")]
    _apis: Vec<ApiConfig>,
}

impl BrokerRole {
    /// Puts the configuration together.
    pub(crate) fn load(args: &BrokerArgs, environment: &[(String, String)]) -> Result<Self, Failure> {
        let mut document = Document::load(&args.file, environment)?;
        document.broker_flags(&args.broker)?;
        document.flag("broker.pki", args.pki.as_ref().map(|path| path.display().to_string()))?;
        document.apply_set(&args.file.set)?;
        document.check(&[Role::Edge, Role::Functions])?;
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
        document.check(&[Role::Broker, Role::Functions])?;
        let (edge, apis) = document.edge(Vec::new())?;
        if apis.is_empty() {
            return Err(Failure::usage("no [[api]]: an edge without one lets nobody in"));
        }
        Ok(Self { edge, apis })
    }
}

impl FunctionsRole {
    /// Puts the configuration together.
    pub(crate) fn load(args: &FunctionsArgs, environment: &[(String, String)]) -> Result<Self, Failure> {
        let mut document = Document::load(&args.file, environment)?;
        document.flag("functions.brokers", (!args.brokers.is_empty()).then(|| args.brokers.clone()))?;
        document.flag("functions.member", args.member.clone())?;
        document.flag("functions.http", args.http.map(|address| address.to_string()))?;
        document.apply_set(&args.file.set)?;
        document.check(&[Role::Broker, Role::Edge])?;
        let apis: Vec<ApiConfig> = document.part("api", Value::Array(Vec::new()))?;
        if apis.iter().all(|api| api.functions.is_none()) {
            return Err(Failure::usage("no [[api]] has functions: a bridge without one calls nothing"));
        }
        Ok(Self { functions: document.functions()?, apis })
    }
}

impl DevRole {
    /// Puts the configuration together: the demo's APIs, and the file's beside them.
    pub(crate) fn load(args: &DevArgs, environment: &[(String, String)]) -> Result<Self, Failure> {
        let mut document = Document::load(&args.file, environment)?;
        document.broker_flags(&args.broker)?;
        document.edge_flags(&args.edge)?;
        document.apply_set(&args.file.set)?;
        document.check(&[Role::Functions])?;
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

/// What the demo page and the first steps of README.md use.
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
            ("[broker]\nbogus = 1\n", vec!["line 2", "unknown key `broker.bogus`"]),
            ("[brokr]\n", vec!["line 1", "unknown key `brokr`; did you mean `broker`?"]),
            ("[broker]\nedge_grace = 3\n", vec!["line 2", "no known unit"]),
            // each part is told with its line, whatever is wrong before it
            ("[edge]\nws = 1\n[[api]]\nname = \"x\"\npath = \"x\"\n", vec!["line 2", "ws: "]),
            ("[broker]\nedge_grace = 3\n[functions]\nmember = 1\n", vec!["line 4", "member: "]),
            ("[broker]\nedge_grace = \"1ms\"\n", vec!["edge_grace"]),
            ("[[api]]\nname = \"echo\"\npath = \"/e\"\n", vec!["another API has it too"]),
            ("[[api]]\nname = \"x\"\npath = \"/x\"\nping = 1\n", vec!["line 4", "unknown key `api.ping`"]),
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
            ("trunkline dev --set broker.bogus=1", vec![], "--set: unknown key `broker.bogus`"),
            ("trunkline dev --set bogus=1", vec![], "unknown key `bogus`; known here: api, broker, edge"),
            ("trunkline dev --set broker=1", vec![], "a table such as"),
            ("trunkline dev --set other.bogus=1", vec![], "unknown key `other`"),
            ("trunkline dev --set nothing", vec![], "KEY=VALUE"),
            (
                "trunkline dev",
                vec![("TRUNKLINE_BROKER__BOGUS", "1")],
                "TRUNKLINE_BROKER__BOGUS: unknown key `broker.bogus`",
            ),
            ("trunkline dev --grpc 0.0.0.0:7070", vec![], "not loopback"),
            ("trunkline edge", vec![], "missing field"),
            ("trunkline edge --name e --brokers 1@a:1 --pki p", vec![], "no [[api]]"),
        ] {
            let error = dev(line, &environment).unwrap_err();
            assert!(error.contains(part), "{line} gives {error}");
        }
    }

    #[test]
    fn every_unknown_key_is_named_at_once() {
        let file = file("[broker]\nparttions = 1\n[edge]\nhedders = []\n[[api]]\nname = \"a\"\npth = \"/a\"\n");
        let line = format!("trunkline broker --config {} --set broker.htp=1", file.path().display());
        let error =
            dev(&line, &[("TRUNKLINE_BROKER__TAIL_BITES", "1"), ("TRUNKLINE_BROKER__PARTITIONS", "x")]).unwrap_err();
        let lines: Vec<&str> = error.lines().collect();
        let expected = [
            "line 2: unknown key `broker.parttions`; did you mean `partitions`?",
            "line 4: unknown key `edge.hedders`; did you mean `headers`?",
            "line 7: unknown key `api.pth`; did you mean `path`?",
            "TRUNKLINE_BROKER__TAIL_BITES: unknown key `broker.tail_bites`; did you mean `tail_bytes`?",
            "TRUNKLINE_BROKER__PARTITIONS: broker.partitions: a whole number is expected, not \"x\"",
            "--set: unknown key `broker.htp`; did you mean `http`?",
        ];
        assert_eq!(lines.len(), expected.len(), "{error}");
        for (line, expected) in lines.iter().zip(expected) {
            assert!(line.ends_with(expected), "{line}");
        }
    }

    #[test]
    fn tables_of_another_role_are_checked_too() {
        let with = |role: &str, text: &str| {
            let file = file(text);
            let edge = "--name e --brokers 1@127.0.0.1:1 --pki p";
            let flags = if role == "edge" { edge } else { "" };
            dev(&format!("trunkline {role} --config {} {flags}", file.path().display()), &[])
        };
        let api = "[[api]]\nname = \"a\"\npath = \"/a\"\n";
        for (role, text, part) in [
            ("broker", "[edge]\nshards = 0\n", "line 2"),
            ("broker", "[edge]\ndrain_window = \"1h\"\n", "edge.drain_window"),
            ("broker", "[[api]]\nname = \"a\"\n", "missing field `path`"),
            ("edge", &format!("{api}[broker]\npartitions = \"x\"\n"), "line 5"),
            ("edge", &format!("{api}[broker]\npartitions = 0\n"), "broker.partitions"),
        ] {
            let error = with(role, text).unwrap_err();
            assert!(error.contains(part), "{role} with {text:?} gives {error}");
        }
        // one file for both: what flags say elsewhere need not be there
        let both = format!("[broker]\npartitions = 2\n[edge]\nshards = 2\n{api}");
        assert_eq!(with("broker", &both).unwrap().broker.partitions, 2);
        assert_eq!(with("edge", &both).unwrap().edge.shards.get(), 2);
    }

    #[test]
    fn names_that_look_like_numbers_are_names() {
        let environment = [("TRUNKLINE_BROKER__CLUSTER", "1"), ("TRUNKLINE_EDGE__HEADERS", "host,x-id")];
        let role = dev("trunkline dev --set edge.name=true", &environment).unwrap();
        assert_eq!((role.broker.cluster.as_str(), role.edge.name.as_str()), ("1", "true"));
        assert_eq!(role.edge.headers, ["host", "x-id"]);
    }

    #[test]
    fn an_error_names_line_and_key_and_shows_no_value() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.toml");
        for (text, said) in [
            (
                "[broker.push]\nsecrets = \"whsec_hidden\"\n",
                "line 2: secrets: invalid type: string, expected a sequence",
            ),
            ("[broker.push]\nsecrets = [\"hidden]\n", "line 2"),
            ("[broker]\n[[broker.aws.keys]]\nid = \"a\"\nsecret = 12345678\n", "line 4: secret: invalid type: integer"),
            ("[broker.push]\nsecrets = [\"hidden\"]\n", "guessed too easily"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = dev(&format!("trunkline broker --config {}", path.display()), &[]).unwrap_err();
            assert!(error.contains(said), "{error}");
            assert!(!error.contains("hidden") && !error.contains("12345678"), "{error}");
        }
    }

    #[test]
    fn what_is_dumped_loads_again() {
        let role = dev("trunkline dev", &[]).unwrap();
        let text = toml::to_string(&role).unwrap();
        let (broker, edge): (BrokerPart, EdgePart) = (toml::from_str(&text).unwrap(), toml::from_str(&text).unwrap());
        let apis: ApiPart = toml::from_str(&text).unwrap();
        assert_eq!((broker._broker, edge._edge, apis._apis), (Some(role.broker), Some(role.edge), role.apis));
    }
}
