//! A broker's settings: the table `[broker]` of a config file. Parsing checks each value, [`BrokerConfig::validate`] their relations;
//! nothing is adjusted silently.

mod compat;
pub mod files;
mod retention;

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};
pub use trunkline_proto::units::{HumanDuration, HumanSize};
use trunkline_proto::{PartitionCount, limits, peer::MEMBERS_MAX};

use crate::access;
pub use crate::access::{Role, TokenConfig};

pub use self::{
    compat::{AwsConfig, AwsKeyConfig, PushConfig},
    retention::{RetentionConfig, WhenFull},
};

/// Table `[broker]`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BrokerConfig {
    /// Folder of the log and the snapshots; made if missing. Default `./trunkline-data`.
    pub data: PathBuf,
    /// This broker's number in the cluster, from 1. Default 1. Fixed with the data folder.
    pub node_id: u64,
    /// Name of the cluster, 1 to 64 of `[A-Za-z0-9._-]`. Default `trunkline`. Fixed with the data folder.
    pub cluster: String,
    /// Partitions of the cluster, 1 to 1024. Default 8. Fixed with the data folder: each is a log and a Raft group of its own.
    pub partitions: u16,
    /// gRPC for handlers and tools. Default `127.0.0.1:7070`. Port 0 takes a free one.
    pub grpc: SocketAddr,
    /// HTTP: API, health, metrics. Default `127.0.0.1:7080`.
    pub http: SocketAddr,
    /// QUIC for edges (UDP). Default `127.0.0.1:7443`. Always mutual TLS.
    pub link: SocketAddr,
    /// Address of the link that edges are told, if it is not the bound one (behind NAT, or bound to 0.0.0.0).
    pub link_advertised: Option<String>,
    /// Address of gRPC that clients and other brokers are told, if it is not the bound one.
    pub grpc_advertised: Option<String>,
    /// Address of HTTP that others are told, if it is not the bound one.
    pub http_advertised: Option<String>,
    /// The brokers that form the cluster, the same on each: 1, 3 or 5, at most 5. Default none: a cluster of this broker alone. A broker
    /// that is not among them waits to be added (`trunkline cluster add`). Once the cluster is formed its membership is in the log, and
    /// this only says where to look first.
    pub members: Vec<MemberConfig>,
    /// Replication to other brokers.
    pub replication: ReplicationConfig,
    /// Folder with `ca.pem`, `broker-<node_id>.pem` and `broker-<node_id>.key` (`trunkline certs` makes it). Default `./trunkline-pki`.
    pub pki: PathBuf,
    /// Lets gRPC and HTTP listen beyond loopback without TLS or without tokens. Default false.
    pub insecure: bool,
    /// Certificate and key of gRPC and HTTP. Default none: they speak plain text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
    /// Who may call gRPC and HTTP. Default none: everybody who reaches them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<TokenConfig>,
    /// TOML file with more of them, `[[tokens]]`, read again when it changes. Default none. Where it is set somebody is always asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_file: Option<PathBuf>,
    /// Silence after which an edge is lost and its connections are closed. Default 10s, at least 1s. Shorter finds dead edges sooner and
    /// loses live ones in a hiccup of the network.
    pub edge_grace: HumanDuration,
    /// Silence after which a member of a handler group is lost and its partitions go to others. Default 10s, at least 1s.
    pub handler_lease: HumanDuration,
    /// Applied entries kept in memory for live readers, over all partitions. Default 64MiB, at least 1MiB. Readers behind it read the
    /// disk.
    pub tail_bytes: HumanSize,
    /// Bytes of disk kept free where the data is; with less nothing but what makes room is appended. Default 256MiB; 0: none.
    pub disk_reserve: HumanSize,
    /// Snapshots.
    pub snapshots: SnapshotConfig,
    /// How far back the logs go.
    pub retention: RetentionConfig,
    /// Bounds on what callers may hold or ask for.
    pub limits: LimitsConfig,
    /// The reverse push address, `POST /push/{api}`.
    pub push: PushConfig,
    /// The management of connections as AWS has it, `/{stage}/@connections/{id}`.
    pub aws: AwsConfig,
}

/// Table `[broker.tls]`. Both are read again when they change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM file of the certificate chain, the server's own first.
    pub cert: PathBuf,
    /// PEM file of its key.
    pub key: PathBuf,
}

/// One of `[[broker.members]]`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberConfig {
    /// Its `broker.node_id`.
    pub id: u64,
    /// Where others reach its link: `host:port` (UDP).
    pub link: String,
}

/// Table `[broker.replication]`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReplicationConfig {
    /// The most bytes per second that a leader sends to a follower far behind. Default 64MiB, 0B is no bound. Less is sent while commits
    /// are slower than usual, but never less than 1.25 times what is written meanwhile.
    pub catchup_rate: HumanSize,
}

/// Table `[broker.snapshots]`: how much log a restart replays.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotConfig {
    /// A partition makes a snapshot after so many bytes of log. Default 256MiB (about a second of replay), at least 1MiB.
    pub log_bytes: HumanSize,
    /// And after so many entries. Default 100000, at least 100.
    pub log_entries: u64,
}

/// Table `[broker.limits]`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Largest HTTP payload. Default 1MiB, at most 16MiB.
    pub http_body: HumanSize,
    /// Bytes of the bodies of all HTTP requests under way; beyond it 503. Default 64MiB, at least four times `http_body`.
    pub http_bodies: HumanSize,
    /// HTTP requests under way at once; beyond it 503. Default 1024.
    pub http_concurrency: usize,
    /// Edges linked at once; beyond it connections are refused. Default 1024.
    pub edges: usize,
    /// Bytes of one edge's batches for one partition on their way through the log; beyond it its stream is not read. Default 8MiB.
    pub edge_inflight: HumanSize,
    /// Longest wait of an HTTP call for its command to be applied before the outcome is reported as unknown. Default 10s.
    pub submit_timeout: HumanDuration,
    /// How long a handler may work on an event, unless it extends, before the event goes to another member. Default 60s.
    pub handler_deadline: HumanDuration,
    /// Handlers' `Subscribe` streams at once, each with up to 32 messages that wait for its network; beyond it `RESOURCE_EXHAUSTED`.
    /// Default 1024.
    pub handler_streams: usize,
    /// Connections of gRPC at once, and as many of HTTP; more are closed at once. Default 4096.
    pub connections: usize,
    /// And from one address (of IPv6 from one /64), of each. Default 1024.
    pub connections_per_address: usize,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self {
            data: PathBuf::from("./trunkline-data"),
            node_id: 1,
            cluster: "trunkline".to_owned(),
            partitions: 8,
            grpc: SocketAddr::from(([127, 0, 0, 1], 7070)),
            http: SocketAddr::from(([127, 0, 0, 1], 7080)),
            link: SocketAddr::from(([127, 0, 0, 1], 7443)),
            link_advertised: None,
            grpc_advertised: None,
            http_advertised: None,
            members: Vec::new(),
            replication: ReplicationConfig::default(),
            pki: PathBuf::from("./trunkline-pki"),
            insecure: false,
            tls: None,
            tokens: Vec::new(),
            tokens_file: None,
            edge_grace: HumanDuration::from_secs(10),
            handler_lease: HumanDuration::from_secs(10),
            tail_bytes: HumanSize::mib(64),
            disk_reserve: HumanSize::mib(256),
            snapshots: SnapshotConfig::default(),
            retention: RetentionConfig::default(),
            limits: LimitsConfig::default(),
            push: PushConfig::default(),
            aws: AwsConfig::default(),
        }
    }
}

impl Default for ReplicationConfig {
    fn default() -> Self {
        Self { catchup_rate: HumanSize::mib(64) }
    }
}

impl Default for SnapshotConfig {
    fn default() -> Self {
        Self { log_bytes: HumanSize::mib(256), log_entries: 100_000 }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            http_body: HumanSize::mib(1),
            http_bodies: HumanSize::mib(64),
            http_concurrency: 1024,
            edges: 1024,
            edge_inflight: HumanSize::mib(8),
            submit_timeout: HumanDuration::from_secs(10),
            handler_deadline: HumanDuration::from_secs(60),
            handler_streams: 1024,
            connections: 4096,
            connections_per_address: 1024,
        }
    }
}

/// Everything that is wrong with a config, one line each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", problems.join("\n"))]
pub struct ConfigError {
    /// One a line, each names its key.
    pub problems: Vec<String>,
}

impl BrokerConfig {
    /// Checks every value and relation; says all that is wrong, not only the first.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        let mut check = |good: bool, problem: String| {
            if !good {
                problems.push(problem);
            }
        };
        check(self.node_id >= 1, "broker.node_id must be at least 1".to_owned());
        check(
            limits::is_name(&self.cluster),
            format!("broker.cluster {:?} must be 1 to 64 of A-Z a-z 0-9 . _ -", self.cluster),
        );
        check(
            PartitionCount::new(self.partitions).is_some(),
            format!("broker.partitions {} must be 1 to {}", self.partitions, PartitionCount::MAX),
        );
        for (key, address) in [("grpc", self.grpc), ("http", self.http)] {
            let lacks = match (&self.tls, self.tokens.is_empty() && self.tokens_file.is_none()) {
                (None, true) => "has neither TLS nor tokens",
                (None, false) => "has no TLS",
                (Some(_), true) => "asks nobody for a token",
                (Some(_), false) => "",
            };
            check(
                self.insecure || address.ip().is_loopback() || lacks.is_empty(),
                format!(
                    "broker.{key} {address} is not loopback and {lacks}: set broker.tls.cert and broker.tls.key, and broker.tokens (`trunkline token new`), or broker.insecure = true where the network itself keeps others out"
                ),
            );
        }
        check(
            self.grpc.port() == 0 || self.grpc != self.http,
            format!("broker.grpc and broker.http are both {}", self.grpc),
        );
        let seconds = self.edge_grace.get().as_secs();
        check((1..=3600).contains(&seconds), format!("broker.edge_grace {} must be 1s to 1h", self.edge_grace));
        let seconds = self.handler_lease.get().as_secs();
        check((1..=3600).contains(&seconds), format!("broker.handler_lease {} must be 1s to 1h", self.handler_lease));
        check(
            self.tail_bytes >= HumanSize::mib(1),
            format!("broker.tail_bytes {} must be at least 1MiB", self.tail_bytes),
        );
        check_members(&self.members, &mut check);
        access::check(&self.tokens, &mut check);
        self.snapshots.check(&mut check);
        self.retention.check(&mut check);
        self.limits.check(&mut check);
        self.push.check(&mut check);
        self.aws.check(&mut check);
        if problems.is_empty() { Ok(()) } else { Err(ConfigError { problems }) }
    }

    /// The partitions; call after [`BrokerConfig::validate`].
    pub fn partition_count(&self) -> Result<PartitionCount, ConfigError> {
        PartitionCount::new(self.partitions).ok_or_else(|| ConfigError {
            problems: vec![format!("broker.partitions {} must be 1 to {}", self.partitions, PartitionCount::MAX)],
        })
    }
}

fn check_members(members: &[MemberConfig], check: &mut impl FnMut(bool, String)) {
    check(
        members.len() <= MEMBERS_MAX,
        format!(
            "broker.members names {} brokers; a cluster has at most {MEMBERS_MAX}: each holds everything",
            members.len()
        ),
    );
    for (n, member) in members.iter().enumerate() {
        check(member.id >= 1, format!("broker.members: id {} must be at least 1", member.id));
        let before = members.iter().take(n);
        check(
            before.clone().all(|other| other.id != member.id),
            format!("broker.members: id {} is there twice", member.id),
        );
        check(
            before.clone().all(|other| other.link != member.link),
            format!("broker.members: link {:?} is there twice", member.link),
        );
        check(
            is_host_and_port(&member.link),
            format!("broker.members: link {:?} of broker {} must be host:port", member.link, member.id),
        );
    }
}

fn is_host_and_port(address: &str) -> bool {
    let parts = address.rsplit_once(':');
    parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
}

impl SnapshotConfig {
    fn check(&self, check: &mut impl FnMut(bool, String)) {
        check(
            self.log_bytes >= HumanSize::mib(1),
            format!("broker.snapshots.log_bytes {} must be at least 1MiB", self.log_bytes),
        );
        check(
            self.log_entries >= 100,
            format!("broker.snapshots.log_entries {} must be at least 100", self.log_entries),
        );
    }
}

impl LimitsConfig {
    fn check(&self, check: &mut impl FnMut(bool, String)) {
        check(
            self.http_body.as_usize() <= limits::MESSAGE_BYTES_MAX && self.http_body.get() > 0,
            format!(
                "broker.limits.http_body {} must be 1B to {}",
                self.http_body,
                HumanSize(limits::MESSAGE_BYTES_MAX as u64)
            ),
        );
        check(
            self.http_bodies.get() / 4 >= self.http_body.get(),
            format!(
                "broker.limits.http_bodies {} must be at least four times broker.limits.http_body, {}",
                self.http_bodies, self.http_body
            ),
        );
        check(
            (1..=65_536).contains(&self.http_concurrency),
            format!("broker.limits.http_concurrency {} must be 1 to 65536", self.http_concurrency),
        );
        check((1..=65_536).contains(&self.edges), format!("broker.limits.edges {} must be 1 to 65536", self.edges));
        check(
            (HumanSize::mib(1)..=HumanSize::mib(1024)).contains(&self.edge_inflight),
            format!("broker.limits.edge_inflight {} must be 1MiB to 1GiB", self.edge_inflight),
        );
        check(
            (1..=600).contains(&self.submit_timeout.get().as_secs()),
            format!("broker.limits.submit_timeout {} must be 1s to 10m", self.submit_timeout),
        );
        check(
            (1..=3600).contains(&self.handler_deadline.get().as_secs()),
            format!("broker.limits.handler_deadline {} must be 1s to 1h", self.handler_deadline),
        );
        check(
            (1..=65_536).contains(&self.handler_streams),
            format!("broker.limits.handler_streams {} must be 1 to 65536", self.handler_streams),
        );
        check(
            (1..=1_000_000).contains(&self.connections),
            format!("broker.limits.connections {} must be 1 to 1000000", self.connections),
        );
        check(
            (1..=self.connections).contains(&self.connections_per_address),
            format!(
                "broker.limits.connections_per_address {} must be 1 to broker.limits.connections, {}",
                self.connections_per_address, self.connections
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<BrokerConfig, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_valid_and_round_trip() {
        let config = BrokerConfig::default();
        assert_eq!(config.validate(), Ok(()));
        assert_eq!(parse("{}").unwrap(), config);
        assert_eq!(parse(&serde_json::to_string(&config).unwrap()).unwrap(), config);
    }

    #[test]
    fn durations_and_sizes_need_units_and_unknown_keys_are_refused() {
        assert_eq!(parse(r#"{"edge_grace":"3s"}"#).unwrap().edge_grace, HumanDuration::from_secs(3));
        assert!(parse(r#"{"edge_grace":3}"#).unwrap_err().contains("no known unit"));
        assert!(parse(r#"{"edge_grase":"3s"}"#).unwrap_err().contains("unknown field"));
        assert!(parse(r#"{"limits":{"bodies":1}}"#).unwrap_err().contains("unknown field"));
        assert!(parse(r#"{"tail_bytes":"1 parsec"}"#).unwrap_err().contains("MiB"));
    }

    #[test]
    fn every_problem_is_reported() {
        let config = BrokerConfig {
            node_id: 0,
            cluster: "a b".to_owned(),
            partitions: 0,
            grpc: SocketAddr::from(([0, 0, 0, 0], 7070)),
            edge_grace: HumanDuration::from_millis(20),
            handler_lease: HumanDuration::from_millis(20),
            tail_bytes: HumanSize(1),
            ..BrokerConfig::default()
        };
        let problems = config.validate().unwrap_err().problems;
        for key in ["node_id", "cluster", "partitions", "grpc", "edge_grace", "handler_lease", "tail_bytes"] {
            assert!(problems.iter().any(|problem| problem.contains(key)), "{key}: {problems:?}");
        }
        assert_eq!(problems.len(), 7, "{problems:?}");
    }

    #[test]
    fn members_are_checked() {
        let members = |json: &str| parse(json).unwrap().validate().map_err(|error| error.problems);
        let three = r#"{"members":[{"id":1,"link":"a:1"},{"id":2,"link":"b:1"},{"id":3,"link":"[::1]:1"}]}"#;
        assert_eq!(members(three), Ok(()));
        let problems =
            members(r#"{"members":[{"id":1,"link":"a:1"},{"id":1,"link":"a:1"},{"id":0,"link":"a"}]}"#).unwrap_err();
        for wrong in ["id 1 is there twice", "link \"a:1\" is there twice", "id 0 must", "link \"a\" of broker 0"] {
            assert!(problems.iter().any(|problem| problem.contains(wrong)), "{wrong}: {problems:?}");
        }
        assert_eq!(problems.len(), 4, "{problems:?}");
        let six: Vec<_> = (1..=6).map(|id| MemberConfig { id, link: format!("b{id}:1") }).collect();
        let config = BrokerConfig { members: six, ..BrokerConfig::default() };
        assert!(config.validate().unwrap_err().to_string().contains("at most 5"));
        assert!(parse(r#"{"members":[{"id":1}]}"#).unwrap_err().contains("link"));
    }

    #[test]
    fn beyond_loopback_only_when_insecure_is_said() {
        let mut config = BrokerConfig { http: SocketAddr::from(([10, 0, 0, 1], 80)), ..BrokerConfig::default() };
        assert!(config.validate().unwrap_err().to_string().contains("broker.insecure = true"));
        config.insecure = true;
        assert_eq!(config.validate(), Ok(()));
        config.link = SocketAddr::from(([0, 0, 0, 0], 7443));
        config.insecure = false;
        config.http = BrokerConfig::default().http;
        assert_eq!(config.validate(), Ok(()), "the link is always mutual TLS");
    }
}
