//! What the config says to each layer, in the layer's own words.

use std::net::SocketAddr;

use super::Addresses;
use crate::{
    access::Access,
    config::{BrokerConfig, ConfigError, RetentionConfig, WhenFull},
    http, link,
    node::{Advertised, Dialer, Founder, NodeConfig, TRIM_PATIENCE_DEFAULT},
    raft::SnapshotEvery,
    retention,
    tcp::{Doors, Limits},
};

/// Where others are told that this broker is.
pub(super) fn advertised(config: &BrokerConfig, addresses: Addresses) -> Advertised {
    let told = |configured: &Option<String>, bound: SocketAddr| configured.clone().unwrap_or_else(|| bound.to_string());
    // what the other brokers' configs say of this one
    let member = config.members.iter().find(|member| member.id == config.node_id).map(|member| member.link.clone());
    Advertised {
        link: config.link_advertised.clone().or(member).unwrap_or_else(|| addresses.link.to_string()),
        grpc: told(&config.grpc_advertised, addresses.grpc),
        http: told(&config.http_advertised, addresses.http),
    }
}

pub(super) fn node(config: &BrokerConfig, addresses: Addresses, dialer: Dialer) -> Result<NodeConfig, ConfigError> {
    let founders = config.members.iter().map(|member| Founder { id: member.id, link: member.link.clone() });
    Ok(NodeConfig {
        founders: founders.collect(),
        advertised: advertised(config, addresses),
        dialer: Some(dialer),
        catchup_rate: config.replication.catchup_rate.get(),
        trim_patience: TRIM_PATIENCE_DEFAULT,
        dir: config.data.clone(),
        node_id: config.node_id,
        cluster: config.cluster.clone(),
        partitions: config.partition_count()?,
        tail_bytes: config.tail_bytes.as_usize(),
        snapshot_every: SnapshotEvery {
            entries: config.snapshots.log_entries,
            bytes: config.snapshots.log_bytes.get(),
        },
        retained_max: config.retention.bytes_max.get(),
        disk_reserve: config.disk_reserve.get(),
    })
}

pub(super) fn retention(config: &RetentionConfig) -> retention::Settings {
    let limits = retention::Limits {
        time: config.time.get(),
        bytes: config.bytes.get(),
        bytes_max: config.bytes_max.get(),
        drop_unsettled: config.when_full == WhenFull::DropOldest,
        group_expiry: config.group_expiry.get(),
    };
    retention::Settings { limits, check_every: config.check_every.get() }
}

pub(super) fn link(config: &BrokerConfig) -> link::Settings {
    link::Settings {
        broker: config.node_id,
        cluster: config.cluster.clone(),
        grace: config.edge_grace.get(),
        edges_max: config.limits.edges,
        in_flight_bytes: u32::try_from(config.limits.edge_inflight.get()).unwrap_or(u32::MAX),
    }
}

/// How much strangers may take of gRPC, and of HTTP.
pub(super) fn doors(config: &BrokerConfig, listener: &'static str) -> Doors {
    let limits = Limits {
        connections: config.limits.connections,
        per_address: config.limits.connections_per_address,
        ..Limits::default()
    };
    Doors::new(listener, limits)
}

pub(super) fn http(config: &BrokerConfig, access: Access, compat: http::Compat) -> http::Settings {
    http::Settings {
        access,
        submit_timeout: config.limits.submit_timeout.get(),
        body_limit: config.limits.http_body.get(),
        bodies: config.limits.http_bodies.as_usize(),
        concurrency: config.limits.http_concurrency,
        compat,
    }
}
