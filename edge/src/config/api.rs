//! `[[api]]`: a named front door of the edge.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use trunkline_proto::{
    limits,
    units::{HumanDuration, HumanSize},
};

use super::{AuthConfig, ConfigProblem, FunctionsConfig, PathPattern, Problems};

/// One API. Every key but `name` and `path` has a default.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiConfig {
    /// 1 to 64 of `[A-Za-z0-9._-]`, unique on the edge. In every record of its connections.
    pub name: String,
    /// Exact or with `{parameter}` segments, unique on the edge; where several answer, the one that is literal first wins.
    pub path: PathPattern,
    /// Another gateway's limits, where this table says nothing else: `aws` is `max_message` 128 KiB, `max_frame` 32 KiB,
    /// `text_only`, `idle_timeout` 10 m, `max_lifetime` 2 h and `registration_timeout` 29 s. Whoever reads the file fills them
    /// in. Default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
    /// Who lets connections in. Default `handler`.
    #[serde(default)]
    pub registration: Registration,
    /// How long a handler may think about a registration: then 504. Above 0, at most 10 m. Default 15 s.
    #[serde(default = "defaults::registration_timeout")]
    pub registration_timeout: HumanDuration,
    /// Channels joined at once. Default none.
    #[serde(default)]
    pub channels: Vec<String>,
    /// Without a message from the client for so long the connection is closed (1001). 0: never. Default 600 s.
    #[serde(default = "defaults::idle_timeout")]
    pub idle_timeout: HumanDuration,
    /// A ping is sent every so often. 0: none, and then a vanished client is noticed by `idle_timeout` only. Default 25 s.
    #[serde(default = "defaults::ping_interval")]
    pub ping_interval: HumanDuration,
    /// Without a pong for so long after a ping the connection is closed (1001). At most `ping_interval`. Default 10 s.
    #[serde(default = "defaults::ping_timeout")]
    pub ping_timeout: HumanDuration,
    /// No connection lives longer (1001). 0: no bound. Default 0.
    #[serde(default)]
    pub max_lifetime: HumanDuration,
    /// Unsent bytes of one connection before it is a slow consumer (1013). At least `max_message`. Memory one such client may
    /// cost. Default 1 MiB.
    #[serde(default = "defaults::max_queue")]
    pub max_queue: HumanSize,
    /// The group that decides registrations and whose lag counts. Default: the API's name.
    #[serde(default)]
    pub handler_group: Option<String>,
    /// Largest message from a client (1009). 1 B to 16 MiB. Default 1 MiB.
    #[serde(default = "defaults::max_message")]
    pub max_message: HumanSize,
    /// Largest payload of one frame of a message (1009). At least 1 B. Default none: `max_message` bounds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_frame: Option<HumanSize>,
    /// Whether binary messages are refused (1003). Default false.
    #[serde(default)]
    pub text_only: bool,
    /// Frames one message may consist of (1008). At least 1. Each costs little, but a message of empty ones never ends.
    /// Default 256.
    #[serde(default = "defaults::max_fragments")]
    pub max_fragments: u32,
    /// Connections of this API on this edge; more get 503. At least 1. Default 100,000.
    #[serde(default = "defaults::max_connections")]
    pub max_connections: u64,
    /// Handshakes of this API on this edge per second, twice as many at once; more get 503. 0: no bound. Default 0.
    #[serde(default)]
    pub max_handshakes: u32,
    /// Messages of one connection per second, twice as many at once; more close it (1008). 0: no bound. Default 0.
    #[serde(default)]
    pub max_messages: u32,
    /// Messages of one client address to this API on this edge per second, over all its connections, twice as many at once; who sends more
    /// is closed (1008). An IPv6 network of 64 bits is one address. 0: no bound. Default 0.
    #[serde(default)]
    pub max_messages_per_address: u32,
    /// Messages of all connections to this API on this edge per second, twice as many at once. What is more waits in its clients: their
    /// sockets are not read until it is its turn, and nobody is closed for what others send. 0: no bound. Default 0.
    #[serde(default)]
    pub max_messages_per_api: u32,
    /// With registration `accept`: the first the client offered that is listed is chosen. Default none.
    #[serde(default)]
    pub subprotocols: Vec<String>,
    /// Events the handler group may be behind before this API's sockets are paused. 0: no bound. Default 0.
    #[serde(default)]
    pub max_handler_lag: u64,
    /// Origins browsers may come from, such as `https://example.com`. Empty: any where the edge listens on loopback, none
    /// elsewhere. Clients that send no Origin are not browsers. Default empty.
    #[serde(default)]
    pub origins: Vec<String>,
    /// Refuses clients that send no Origin: for an API that only web pages are to use. Default false.
    #[serde(default)]
    pub origin_required: bool,
    /// How clients prove who they are. Default none.
    #[serde(default)]
    pub auth: AuthConfig,
    /// This API's events go to HTTP functions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub functions: Option<FunctionsConfig>,
}

/// Whose limits an API takes over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// AWS API Gateway's WebSocket APIs.
    Aws,
}

/// Who lets connections in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Registration {
    /// The API's handler group decides about each.
    #[default]
    Handler,
    /// Nobody is asked.
    Accept,
}

mod defaults {
    use trunkline_proto::units::{HumanDuration, HumanSize};

    pub(super) fn registration_timeout() -> HumanDuration {
        HumanDuration::from_secs(15)
    }
    pub(super) fn idle_timeout() -> HumanDuration {
        HumanDuration::from_secs(600)
    }
    pub(super) fn ping_interval() -> HumanDuration {
        HumanDuration::from_secs(25)
    }
    pub(super) fn ping_timeout() -> HumanDuration {
        HumanDuration::from_secs(10)
    }
    pub(super) fn max_queue() -> HumanSize {
        HumanSize::mib(1)
    }
    pub(super) fn max_message() -> HumanSize {
        HumanSize::mib(1)
    }
    pub(super) fn max_fragments() -> u32 {
        256
    }
    pub(super) fn max_connections() -> u64 {
        100_000
    }
}

/// Longest time a registration may wait.
const REGISTRATION_TIMEOUT_MAX: HumanDuration = HumanDuration::from_secs(600);
/// Longest of the other times: a timer beyond it is a mistake.
const TIMEOUT_MAX: HumanDuration = HumanDuration::from_secs(366 * 86_400);

impl ApiConfig {
    /// An API with every default.
    pub fn new(name: impl Into<String>, path: PathPattern) -> Self {
        Self {
            name: name.into(),
            path,
            preset: None,
            registration: Registration::default(),
            registration_timeout: defaults::registration_timeout(),
            channels: Vec::new(),
            idle_timeout: defaults::idle_timeout(),
            ping_interval: defaults::ping_interval(),
            ping_timeout: defaults::ping_timeout(),
            max_lifetime: HumanDuration::default(),
            max_queue: defaults::max_queue(),
            handler_group: None,
            max_message: defaults::max_message(),
            max_frame: None,
            text_only: false,
            max_fragments: defaults::max_fragments(),
            max_connections: defaults::max_connections(),
            max_handshakes: 0,
            max_messages: 0,
            max_messages_per_address: 0,
            max_messages_per_api: 0,
            subprotocols: Vec::new(),
            max_handler_lag: 0,
            origins: Vec::new(),
            origin_required: false,
            auth: AuthConfig::default(),
            functions: None,
        }
    }

    /// The group that decides registrations and whose lag counts.
    pub fn handler_group(&self) -> &str {
        self.handler_group.as_deref().unwrap_or(&self.name)
    }

    /// The group that decides about a new connection; empty where nobody is asked.
    pub fn deciding_group(&self) -> &str {
        match self.registration {
            Registration::Handler => self.handler_group(),
            Registration::Accept => "",
        }
    }

    /// Adds what is wrong with it to `problems`.
    pub(super) fn check(&self, problems: &mut Problems) {
        let mut check = Check { api: &self.name, problems };
        check.names(self);
        check.times(self);
        check.sizes(self);
        check.lists(self);
        self.auth.check(&mut |problem| check.require(false, "auth", || problem));
    }
}

struct Check<'a> {
    api: &'a str,
    problems: &'a mut Problems,
}

impl Check<'_> {
    fn require(&mut self, holds: bool, key: &str, problem: impl FnOnce() -> String) {
        if !holds {
            self.problems.push(ConfigProblem { key: format!("api {:?}: {key}", self.api), problem: problem() });
        }
    }

    fn names(&mut self, api: &ApiConfig) {
        self.require(limits::is_name(&api.name), "name", || name_rule(&api.name));
        let group = api.handler_group();
        self.require(api.handler_group.is_none() || limits::is_name(group), "handler_group", || name_rule(group));
    }

    fn times(&mut self, api: &ApiConfig) {
        let timeout = api.registration_timeout;
        self.require(!timeout.is_zero() && timeout <= REGISTRATION_TIMEOUT_MAX, "registration_timeout", || {
            format!("{timeout} is not above 0 and at most {REGISTRATION_TIMEOUT_MAX}")
        });
        let (interval, timeout) = (api.ping_interval, api.ping_timeout);
        self.require(interval.is_zero() || !timeout.is_zero(), "ping_timeout", || {
            "0 would close every connection at its first ping; ping_interval = \"0s\" turns pings off".to_owned()
        });
        self.require(interval.is_zero() || timeout <= interval, "ping_timeout", || {
            format!("{timeout} is longer than ping_interval, {interval}: a pong must be due before the next ping")
        });
        for (key, time) in
            [("idle_timeout", api.idle_timeout), ("ping_interval", interval), ("max_lifetime", api.max_lifetime)]
        {
            self.require(time <= TIMEOUT_MAX, key, || format!("{time} is more than {TIMEOUT_MAX}"));
        }
    }

    fn sizes(&mut self, api: &ApiConfig) {
        let (message, queue, most) = (api.max_message, api.max_queue, HumanSize(limits::MESSAGE_BYTES_MAX as u64));
        self.require(message.get() > 0 && message <= most, "max_message", || {
            format!("{message} is not from 1B to {most}")
        });
        self.require(queue >= message, "max_queue", || {
            format!(
                "{queue} is less than max_message, {message}: sending one such message back would close the connection"
            )
        });
        self.require(api.max_frame.is_none_or(|frame| frame.get() > 0), "max_frame", || {
            "0B would let no message in".to_owned()
        });
        self.require(api.max_fragments > 0, "max_fragments", || "0 would let no message in".to_owned());
        self.require(api.max_connections > 0, "max_connections", || "0 would let nobody in".to_owned());
    }

    fn lists(&mut self, api: &ApiConfig) {
        let most = limits::CHANNELS_PER_CONNECTION_MAX;
        self.require(api.channels.len() <= most, "channels", || format!("more than {most}"));
        for channel in &api.channels {
            self.require(limits::is_channel(channel), "channels", || {
                format!("{channel:?} is not 1 to {} bytes without control characters", limits::CHANNEL_BYTES_MAX)
            });
        }
        self.distinct("channels", &api.channels);
        self.distinct("subprotocols", &api.subprotocols);
        for subprotocol in &api.subprotocols {
            self.require(is_token(subprotocol), "subprotocols", || {
                format!("{subprotocol:?} is no token (RFC 9110 §5.6.2)")
            });
        }
        self.require(api.subprotocols.is_empty() || api.registration == Registration::Accept, "subprotocols", || {
            "only registration = \"accept\" chooses from a list; with \"handler\" the handler chooses".to_owned()
        });
        for origin in &api.origins {
            self.require(is_origin(origin), "origins", || {
                format!("{origin:?} is no origin such as \"https://example.com\": scheme, host and port in lower case, no path")
            });
        }
    }

    fn distinct(&mut self, key: &str, values: &[String]) {
        let mut seen = BTreeSet::new();
        for value in values {
            self.require(seen.insert(value), key, || format!("{value:?} stands there twice"));
        }
    }
}

pub(super) fn name_rule(name: &str) -> String {
    format!("{name:?} is not 1 to {} of [A-Za-z0-9._-]", limits::NAME_BYTES_MAX)
}

/// RFC 9110 §5.6.2.
pub(super) fn is_token(text: &str) -> bool {
    (1..=256).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// An origin as browsers serialize it (RFC 6454 §6.2): compared byte by byte with what they send.
fn is_origin(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else { return false };
    let scheme_fits = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    let authority_fits =
        !authority.is_empty() && authority.bytes().all(|b| b.is_ascii_graphic() && !b"/?#@\\".contains(&b));
    scheme_fits && authority_fits && !text.bytes().any(|byte| byte.is_ascii_uppercase())
}
