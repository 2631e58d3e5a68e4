//! The operator's view: the cluster, handler groups, health, metrics and the OpenAPI document.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use trunkline_proto::{Offset, PartitionId};

use super::{App, problem::Problem};
use crate::{grpc, node::Role};

/// The document; a test holds it against the routes.
pub(super) const OPENAPI: &str = include_str!("openapi.json");

/// What is known of an edge, over all partitions.
#[derive(Default)]
struct Edge {
    incarnation: u64,
    connections: usize,
}

/// `GET /v1/cluster`
pub(super) async fn cluster(State(app): State<App>) -> Json<Value> {
    let (node, settings) = (&app.0.node, &app.0.settings);
    let mut edges: BTreeMap<String, Edge> = BTreeMap::new();
    let mut partitions = Vec::new();
    for id in node.partition_count().iter() {
        partitions.push(partition(&app, id, &mut edges));
    }
    let linked: BTreeMap<String, u64> = app.0.link.sessions.edges().into_iter().collect();
    let lags = app.0.link.lags();
    let edges = edges.into_iter().map(|(name, edge)| {
        json!({
            "edge": name,
            "incarnation": edge.incarnation,
            "attached": linked.get(&name) == Some(&edge.incarnation),
            "connections": edge.connections,
            "lag": lags.get(&name).copied().unwrap_or_default(),
        })
    });
    let brokers = node.peers().members().into_iter().map(|member| {
        let is_own = member.id == settings.broker;
        json!({
            "id": member.id,
            "grpc": if is_own { settings.grpc.clone() } else { member.grpc },
            "link": if is_own { settings.link.clone() } else { member.link },
            "reachable": member.reachable,
            // of others only they themselves know
            "healthy": is_own.then(|| node.health().is_ok()),
        })
    });
    Json(json!({
        "cluster": settings.cluster,
        "version": env!("CARGO_PKG_VERSION"),
        "partition_count": node.partition_count().get(),
        "brokers": brokers.collect::<Vec<_>>(),
        "partitions": partitions,
        "edges": edges.collect::<Vec<_>>(),
    }))
}

fn partition(app: &App, id: PartitionId, edges: &mut BTreeMap<String, Edge>) -> Value {
    let Some(handle) = app.0.node.partition(id) else {
        return json!({ "partition": id.0, "leader": null });
    };
    let (leader, term) = match *handle.role.borrow() {
        Role::Leader { term } => (Some(app.0.settings.broker), Some(term)),
        Role::Follower { leader } => (leader, None),
        Role::Closed => (None, None),
    };
    let members = app.0.node.membership(id);
    let state = handle.state.read();
    for (_, edge) in state.edges().filter(|(_, edge)| edge.incarnation > 0) {
        let known = edges.entry(edge.name.to_owned()).or_default();
        known.incarnation = known.incarnation.max(edge.incarnation);
        known.connections += edge.connections;
    }
    json!({
        "partition": id.0,
        "leader": leader,
        "term": term,
        "voters": members.voters,
        "learners": members.learners().collect::<Vec<_>>(),
        "applied": Offset::end_of(state.applied()).to_string(),
        "earliest": app.0.node.earliest(id).to_string(),
        "connections": state.connection_count(),
        "channels": state.channel_count(),
        // a number of 64 bits is not safe in JSON
        "digest": format!("{:016x}", state.digest()),
    })
}

/// `GET /v1/groups`
pub(super) async fn groups(State(app): State<App>) -> Result<Json<Value>, Problem> {
    app.0.node.all_current().await?;
    let groups = grpc::cluster::groups(&app.0.node, &app.0.registry, "").into_iter().map(|group| {
        json!({
            "group": group.group,
            "partition": group.partition,
            "member": Some(group.member).filter(|member| !member.is_empty()),
            "members": group.members,
            "epoch": group.epoch,
            "through": Offset(group.through).to_string(),
            "holes": group.holes,
            "lag": group.lag,
            "parked": group.parked,
        })
    });
    Ok(Json(json!({ "groups": groups.collect::<Vec<_>>() })))
}

/// `GET /healthz`: the process answers.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: records can be committed.
pub(super) async fn readyz(State(app): State<App>) -> Result<&'static str, Problem> {
    app.0.node.readiness().map(|()| "ready\n").map_err(Problem::unavailable)
}

/// `GET /metrics`
pub(super) async fn metrics(State(app): State<App>) -> Response {
    let text = app.0.metrics.render();
    ([(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4"))], text).into_response()
}

/// `GET /v1/openapi.json`
pub(super) async fn openapi() -> Response {
    (StatusCode::OK, [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], OPENAPI).into_response()
}
