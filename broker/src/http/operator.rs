//! The operator's view: the cluster, handler groups, health, metrics and the OpenAPI document.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use trunkline_proto::{Offset, json::Object};

use super::{App, extract::InQuery, problem::Problem};
use crate::grpc::{self, describe};

/// The document; a test holds it against the routes.
pub(super) const OPENAPI: &str = include_str!("openapi.json");

/// Query of the cluster.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ClusterQuery {
    /// As this broker alone knows it: nobody is asked.
    local: bool,
}

/// `GET /v1/cluster`: the same as `cluster status --json`.
pub(super) async fn cluster(State(app): State<App>, InQuery(query): InQuery<ClusterQuery>) -> Json<Object> {
    let (node, about) = (&app.0.node, &app.0.about);
    let description = match query.local {
        true => describe::local(node, about).await,
        false => describe::cluster(node, about).await,
    };
    Json(trunkline_proto::json::cluster(&description))
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
