//! Commands: push, publish, join, leave. Each becomes a record of the log, or an honest refusal.

use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::json;
use trunkline_proto::{
    ConnectionId, Offset, limits,
    v1::{self, command::Command as Body},
};

use super::{
    App,
    extract::{InPath, InQuery},
    problem::Problem,
    request::{self, Payload},
};

/// Query of a publish.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PublishQuery {
    /// Connection ids, separated by commas, that do not get it.
    except: String,
    /// Skip the log: at most once.
    unlogged: bool,
}

impl App {
    /// Applies a command; what it came to, or a problem.
    pub(super) async fn submit(&self, headers: &HeaderMap, command: v1::Command) -> Result<v1::CommandResult, Problem> {
        self.submit_once(&request::idempotency_key(headers)?, command).await
    }

    /// Applies a command, at most once under a key that is not empty.
    pub(super) async fn submit_once(&self, key: &str, command: v1::Command) -> Result<v1::CommandResult, Problem> {
        let submitted = tokio::time::timeout(self.0.settings.submit_timeout, self.0.commands.submit(key, command));
        let result = submitted.await.map_err(|_| Problem::unknown())??;
        match result.status.as_ref().and_then(Problem::of_status) {
            Some(problem) => Err(problem),
            None => Ok(result),
        }
    }
}

/// Where a command stands in the log.
fn place(result: &v1::CommandResult) -> Json<serde_json::Value> {
    Json(json!({ "partition": result.partition, "offset": Offset(result.offset).to_string() }))
}

pub(super) fn to_connection(id: ConnectionId, body: Body) -> v1::Command {
    v1::Command { connection: Bytes::copy_from_slice(&id.0), command: Some(body), unlogged: false }
}

/// `POST /v1/connections/{id}/messages`
pub(super) async fn push(
    State(app): State<App>,
    InPath(id): InPath<String>,
    request: Request,
) -> Result<Response, Problem> {
    let id = request::connection_id(&id)?;
    let headers = request.headers().clone();
    let Payload { kind, bytes } = request::payload(request, app.0.settings.body_limit, &app.0.bodies).await?;
    let push = v1::Pushed { kind: kind.into(), payload: bytes };
    let result = app.submit(&headers, to_connection(id, Body::Push(push))).await?;
    Ok(place(&result).into_response())
}

/// `POST /v1/channels/{channel}/messages`
pub(super) async fn publish_channel(
    State(app): State<App>,
    InPath(channel): InPath<String>,
    InQuery(query): InQuery<PublishQuery>,
    request: Request,
) -> Result<Response, Problem> {
    check_channel(&channel)?;
    publish(&app, v1::Published { channel, ..Default::default() }, query, request).await
}

/// `POST /v1/apis/{api}/messages`
pub(super) async fn publish_api(
    State(app): State<App>,
    InPath(api): InPath<String>,
    InQuery(query): InQuery<PublishQuery>,
    request: Request,
) -> Result<Response, Problem> {
    if !limits::is_name(&api) {
        return Err(Problem::invalid("an API's name is 1 to 64 of A-Z a-z 0-9 . _ -"));
    }
    publish(&app, v1::Published { api, ..Default::default() }, query, request).await
}

async fn publish(app: &App, target: v1::Published, query: PublishQuery, request: Request) -> Result<Response, Problem> {
    let mut except = Vec::new();
    for id in query.except.split(',').filter(|id| !id.is_empty()) {
        except.push(Bytes::copy_from_slice(&request::connection_id(id)?.0));
    }
    let headers = request.headers().clone();
    let Payload { kind, bytes } = request::payload(request, app.0.settings.body_limit, &app.0.bodies).await?;
    let publish = v1::Published { kind: kind.into(), payload: bytes, except, ..target };
    let command =
        v1::Command { connection: Bytes::new(), command: Some(Body::Publish(publish)), unlogged: query.unlogged };
    let result = app.submit(&headers, command).await?;
    if query.unlogged {
        return Ok(StatusCode::ACCEPTED.into_response());
    }
    Ok(place(&result).into_response())
}

/// `PUT /v1/channels/{channel}/connections/{id}`
pub(super) async fn join(
    State(app): State<App>,
    InPath((channel, id)): InPath<(String, String)>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    check_channel(&channel)?;
    let join = v1::ChannelJoined { channel, edge: String::new() };
    app.submit(&headers, to_connection(request::connection_id(&id)?, Body::Join(join))).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `DELETE /v1/channels/{channel}/connections/{id}`
pub(super) async fn leave(
    State(app): State<App>,
    InPath((channel, id)): InPath<(String, String)>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    check_channel(&channel)?;
    let leave = v1::ChannelLeft { channel };
    app.submit(&headers, to_connection(request::connection_id(&id)?, Body::Leave(leave))).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) fn check_channel(channel: &str) -> Result<(), Problem> {
    if limits::is_channel(channel) {
        return Ok(());
    }
    let limit = limits::CHANNEL_BYTES_MAX;
    Err(Problem::invalid(format!("a channel's name is 1 to {limit} bytes without control characters")))
}
