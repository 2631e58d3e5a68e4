//! Typed configuration of an edge: `[edge]` and `[[api]]`. Parsing only validates; building happens later.

mod api;
mod auth;
mod functions;
mod path;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    path::PathBuf,
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use trunkline_proto::{
    limits,
    units::{HumanDuration, HumanSize},
};

pub use self::{
    api::{ApiConfig, Preset, Registration},
    auth::{Algorithm, AuthConfig, HmacConfig, HmacKeyConfig, JwtConfig, KeyConfig, Secret, TokenConfig, TokenEntry},
    functions::{Dialect, FunctionsConfig, OnFailure},
    path::{PathError, PathPattern, SEGMENTS_MAX},
};

pub(crate) use self::auth::{PRINCIPAL_BYTES_MAX, TokensFile, check_tokens};

/// Longest time a drain may take, the closing of sockets and the flush of their records together.
pub const DRAIN_SECONDS_MAX: u64 = 30;

/// `[edge]`: one edge process.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EdgeConfig {
    /// 1 to 64 of `[A-Za-z0-9._-]`, unique in the cluster: a second process under the same name replaces the first. Must be
    /// the name in the edge's certificate.
    pub name: String,
    /// Brokers to ask first, each `"ID@HOST:PORT"` of its link. The others are learnt from them. At least one.
    pub brokers: Vec<BrokerAddress>,
    /// Directory with `ca.pem`, `edge-NAME.pem` and `edge-NAME.key`.
    pub pki: PathBuf,
    /// Where WebSockets are accepted. Default 127.0.0.1:8080.
    #[serde(default = "defaults::ws")]
    pub ws: SocketAddr,
    /// Health and metrics. Default 127.0.0.1:8081.
    #[serde(default = "defaults::http")]
    pub http: SocketAddr,
    /// Threads that own sockets, 1 to 256. Default: half the cores, at least 1.
    #[serde(default = "defaults::shards")]
    pub shards: NonZeroUsize,
    /// Bytes of records that are on their way to brokers; when reached, sockets are not read until some are applied. What the
    /// edge holds in memory while brokers are away. At least 1 MiB and twice the largest `max_message`. Default 64 MiB.
    #[serde(default = "defaults::uplink_bytes")]
    pub uplink_bytes: HumanSize,
    /// Over how long a drain spreads the closing of sockets, so that clients do not come back all at once. At most 25 s of the
    /// 30 s a drain may take. Default 5 s.
    #[serde(default = "defaults::drain_window")]
    pub drain_window: HumanDuration,
    /// Allows listening beyond loopback without TLS. Default false.
    #[serde(default)]
    pub insecure: bool,
    /// Certificate and key of both listeners. Default none: they speak plain text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
    /// Proxies whose `X-Forwarded-For` says who the client is, each an address or a network such as `10.0.0.0/8`. Of all others the header is
    /// ignored. At most 100. Default none.
    #[serde(default)]
    pub trusted_proxies: Vec<String>,
    /// Connections of one client address at once, unfinished handshakes included; more get 429. An IPv6 network of 64 bits is one address. 0: no
    /// bound. Default 0.
    #[serde(default)]
    pub max_connections_per_address: u32,
    /// Handshakes of one client address per second, twice as many at once; more get 429. 0: no bound. Default 0.
    #[serde(default)]
    pub max_handshakes_per_address: u32,
    /// Request headers that are kept in ConnectionOpened, lower case; all others are dropped. Default host, origin, user-agent.
    #[serde(default = "defaults::headers")]
    pub headers: Vec<String>,
}

mod defaults {
    use super::{HumanDuration, HumanSize, NonZeroUsize, SocketAddr};

    pub(super) fn ws() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 8080))
    }
    pub(super) fn http() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 8081))
    }
    pub(super) fn shards() -> NonZeroUsize {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        NonZeroUsize::new(cores / 2).unwrap_or(NonZeroUsize::MIN)
    }
    pub(super) fn uplink_bytes() -> HumanSize {
        HumanSize::mib(64)
    }
    pub(super) fn drain_window() -> HumanDuration {
        HumanDuration::from_secs(5)
    }
    pub(super) fn headers() -> Vec<String> {
        ["host", "origin", "user-agent"].map(str::to_owned).to_vec()
    }
}

/// Table `[edge.tls]`. Read again when the files change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM file of the certificate chain, the edge's own first.
    pub cert: PathBuf,
    /// PEM file of its key.
    pub key: PathBuf,
}

/// Most shards: each is a thread, and each publish goes to every one.
const SHARDS_MAX: usize = 256;
/// Smallest `uplink_bytes`.
const UPLINK_BYTES_MIN: HumanSize = HumanSize::mib(1);
/// Longest `drain_window`: what is left of the drain is for the last records.
const DRAIN_WINDOW_MAX: HumanDuration = HumanDuration::from_secs(DRAIN_SECONDS_MAX - 5);
/// Most `trusted_proxies`: each is compared with the peer of every handshake.
const PROXIES_MAX: usize = 100;
/// Most headers kept of a request.
const HEADERS_MAX: usize = 64;

impl EdgeConfig {
    /// An edge with every default.
    pub fn new(name: impl Into<String>, brokers: Vec<BrokerAddress>, pki: PathBuf) -> Self {
        Self {
            name: name.into(),
            brokers,
            pki,
            ws: defaults::ws(),
            http: defaults::http(),
            shards: defaults::shards(),
            uplink_bytes: defaults::uplink_bytes(),
            drain_window: defaults::drain_window(),
            insecure: false,
            tls: None,
            trusted_proxies: Vec::new(),
            max_connections_per_address: 0,
            max_handshakes_per_address: 0,
            headers: defaults::headers(),
        }
    }

    /// Everything that is wrong with the edge and its APIs, all at once.
    pub fn validate(&self, apis: &[ApiConfig]) -> Result<(), ConfigError> {
        let mut problems = Problems::new();
        self.check(&mut problems);
        apis.iter().for_each(|api| api.check(&mut problems));
        check_apis(apis, &mut problems);
        self.check_budget(apis, &mut problems);
        if problems.is_empty() { Ok(()) } else { Err(ConfigError { problems }) }
    }

    fn check(&self, problems: &mut Problems) {
        let mut require = |holds: bool, key: &str, problem: &dyn Fn() -> String| {
            if !holds {
                problems.push(ConfigProblem { key: format!("edge.{key}"), problem: problem() });
            }
        };
        require(limits::is_name(&self.name), "name", &|| api::name_rule(&self.name));
        require(!self.brokers.is_empty(), "brokers", &|| "names no broker; write \"ID@HOST:PORT\"".to_owned());
        for (position, broker) in self.brokers.iter().enumerate() {
            require(self.brokers[..position].iter().all(|other| other.id != broker.id), "brokers", &|| {
                format!("names broker {} twice", broker.id)
            });
        }
        require(!self.pki.as_os_str().is_empty(), "pki", &|| "names no directory".to_owned());
        for (key, address) in [("ws", self.ws), ("http", self.http)] {
            require(self.insecure || self.tls.is_some() || address.ip().is_loopback(), key, &|| {
                format!(
                    "{address} is not on loopback and there is no TLS; set edge.tls.cert and edge.tls.key; insecure = true allows it"
                )
            });
        }
        require(self.ws.port() == 0 || self.ws != self.http, "http", &|| format!("{} is edge.ws already", self.http));
        require(self.shards.get() <= SHARDS_MAX, "shards", &|| format!("{} is more than {SHARDS_MAX}", self.shards));
        require(self.drain_window <= DRAIN_WINDOW_MAX, "drain_window", &|| {
            format!("{} is more than {DRAIN_WINDOW_MAX}", self.drain_window)
        });
        require(self.trusted_proxies.len() <= PROXIES_MAX, "trusted_proxies", &|| format!("more than {PROXIES_MAX}"));
        for network in &self.trusted_proxies {
            require(is_network(network), "trusted_proxies", &|| {
                format!("{network:?} is no address and no network such as \"10.0.0.0/8\"")
            });
        }
        require(self.headers.len() <= HEADERS_MAX, "headers", &|| format!("more than {HEADERS_MAX}"));
        for header in &self.headers {
            let fits = api::is_token(header) && !header.bytes().any(|byte| byte.is_ascii_uppercase());
            require(fits, "headers", &|| format!("{header:?} is no header name in lower case"));
        }
    }

    fn check_budget(&self, apis: &[ApiConfig], problems: &mut Problems) {
        let largest = apis.iter().map(|api| api.max_message.get()).max().unwrap_or(0);
        let least = HumanSize(largest.saturating_mul(2)).max(UPLINK_BYTES_MIN);
        if self.uplink_bytes < least {
            problems.push(ConfigProblem {
                key: "edge.uplink_bytes".to_owned(),
                problem: format!(
                    "{} is less than {least}: it must be at least {UPLINK_BYTES_MIN} and twice the largest max_message",
                    self.uplink_bytes
                ),
            });
        }
    }
}

fn is_network(text: &str) -> bool {
    let (address, bits) = text.split_once('/').map_or((text, "0"), |(address, bits)| (address, bits));
    let most = address.parse::<IpAddr>().map(|address| if address.is_ipv4() { 32 } else { 128 });
    most.is_ok_and(|most| bits.parse::<u32>().is_ok_and(|bits| bits <= most))
}

fn check_apis(apis: &[ApiConfig], problems: &mut Problems) {
    for (position, api) in apis.iter().enumerate() {
        for other in &apis[..position] {
            let key = |key: &str| format!("api {:?}: {key}", api.name);
            if api.name == other.name {
                problems.push(ConfigProblem { key: key("name"), problem: "another API has it too".to_owned() });
            }
            if api.path.clashes_with(&other.path) {
                let problem =
                    format!("{} answers the same requests as {} of api {:?}", api.path, other.path, other.name);
                problems.push(ConfigProblem { key: key("path"), problem });
            }
        }
    }
}

/// A broker's link address, written `ID@HOST:PORT`. The id is checked against the broker's certificate.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BrokerAddress {
    /// The broker's id, from 1.
    pub id: u64,
    /// Host name or IP address, and port, of its link.
    pub link: String,
}

/// Why a text is no [`BrokerAddress`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no broker; write \"ID@HOST:PORT\" such as \"1@127.0.0.1:7443\", ids from 1")]
pub struct BrokerAddressError {
    /// As written.
    pub text: String,
}

impl FromStr for BrokerAddress {
    type Err = BrokerAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || BrokerAddressError { text: text.to_owned() };
        let (id, link) = text.split_once('@').ok_or_else(wrong)?;
        let id: u64 = id.parse().map_err(|_| wrong())?;
        let (host, port) = link.rsplit_once(':').ok_or_else(wrong)?;
        let port: u16 = port.parse().map_err(|_| wrong())?;
        // an IPv6 address must stand in brackets, or its last group would be the port
        let host_fits = !host.is_empty() && (!host.contains(':') || (host.starts_with('[') && host.ends_with(']')));
        if id == 0 || port == 0 || !host_fits {
            return Err(wrong());
        }
        Ok(Self { id, link: link.to_owned() })
    }
}

impl fmt::Display for BrokerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.id, self.link)
    }
}

impl fmt::Debug for BrokerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for BrokerAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BrokerAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct ConfigProblem {
    /// Which key, as people find it in the file.
    pub key: String,
    /// What is wrong with it, and what would be right.
    pub problem: String,
}

type Problems = Vec<ConfigProblem>;

/// Everything that is wrong, one problem a line.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct ConfigError {
    /// At least one.
    pub problems: Vec<ConfigProblem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, problem) in self.problems.iter().enumerate() {
            let line = if position == 0 { "" } else { "\n" };
            write!(f, "{line}{problem}")?;
        }
        Ok(())
    }
}
