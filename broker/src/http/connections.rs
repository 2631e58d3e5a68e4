//! Asking about connections and channels, and closing a connection.

use std::collections::BTreeSet;

use axum::{Json, extract::State};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use trunkline_proto::{
    CloseCode, ConnectionId, json,
    v1::{self, command::Command as Body},
};

use super::{
    App,
    extract::{InPath, InQuery},
    guard,
    messages::{check_channel, to_connection},
    problem::Problem,
    query, request,
};
use crate::grpc::connections;

/// Most connections of one page.
const LIMIT_MAX: usize = 1000;
const LIMIT_DEFAULT: usize = 100;

/// Query of a page of connections.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PageQuery {
    api: String,
    channel: String,
    limit: Option<usize>,
    after: String,
}

impl PageQuery {
    fn limit(&self) -> Result<usize, Problem> {
        match self.limit.unwrap_or(LIMIT_DEFAULT) {
            limit @ 1..=LIMIT_MAX => Ok(limit),
            limit => Err(Problem::invalid(format!("limit {limit} must be 1 to {LIMIT_MAX}"))),
        }
    }

    fn after(&self) -> Result<Option<ConnectionId>, Problem> {
        if self.after.is_empty() { Ok(None) } else { request::connection_id(&self.after).map(Some) }
    }
}

/// The connection if it is open, as this broker's replica has it, and there for who asks.
fn find(app: &App, id: ConnectionId) -> Option<v1::Connection> {
    connections::get(&app.0.node, &id).filter(|found| guard::caller().sees(&found.api))
}

/// `GET /v1/connections/{id}`
pub(super) async fn get(State(app): State<App>, InPath(id): InPath<String>) -> Result<Json<json::Object>, Problem> {
    let id = request::connection_id(&id)?;
    query::current(&app.0.node, id.partition(app.0.node.partition_count())).await?;
    find(&app, id).map(|found| Json(json::connection(&found))).ok_or_else(Problem::gone)
}

/// `GET /v1/connections`
pub(super) async fn list(State(app): State<App>, InQuery(page): InQuery<PageQuery>) -> Result<Json<Value>, Problem> {
    let (limit, after) = (page.limit()?, page.after()?);
    let caller = guard::caller();
    let is_wanted = |api: &str| (page.api.is_empty() || page.api == api) && caller.sees(api);
    if !page.api.is_empty() {
        caller.may_use_api(&page.api)?;
    }
    let ids = if page.channel.is_empty() {
        query::connections(&app.0.node, is_wanted, after, limit).await?
    } else {
        check_channel(&page.channel)?;
        caller.may_use_channel(&page.channel)?;
        let ids = query::members(&app.0.node, &page.channel, after, limit).await?.1;
        let partitions: BTreeSet<_> = ids.iter().map(|id| id.partition(app.0.node.partition_count())).collect();
        app.0.node.current(partitions).await?;
        ids
    };
    let mut connections = Vec::with_capacity(ids.len());
    for id in &ids {
        // closed since, or of another API than asked for
        connections.extend(find(&app, *id).filter(|found| is_wanted(&found.api)).map(|found| json::connection(&found)));
    }
    Ok(Json(json!({ "connections": connections, "next": next(&ids, limit) })))
}

/// `GET /v1/channels/{channel}`
pub(super) async fn channel(
    State(app): State<App>,
    InPath(channel): InPath<String>,
    InQuery(page): InQuery<PageQuery>,
) -> Result<Json<Value>, Problem> {
    check_channel(&channel)?;
    guard::caller().may_use_channel(&channel)?;
    let limit = page.limit()?;
    let (count, ids) = query::members(&app.0.node, &channel, page.after()?, limit).await?;
    let members: Vec<String> = ids.iter().map(ConnectionId::to_string).collect();
    Ok(Json(json!({
        "channel": channel,
        "partition": app.0.node.partition_count().of_name(&channel).0,
        "count": count,
        "connections": members,
        "next": next(&ids, limit),
    })))
}

/// What to ask for `after` to go on; null at the end.
fn next(ids: &[ConnectionId], limit: usize) -> Option<String> {
    ids.last().filter(|_| ids.len() == limit).map(ConnectionId::to_string)
}

/// Query of a close.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CloseQuery {
    code: Option<u16>,
    reason: String,
}

/// `DELETE /v1/connections/{id}`
pub(super) async fn close(
    State(app): State<App>,
    InPath(id): InPath<String>,
    InQuery(query): InQuery<CloseQuery>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    let id = request::connection_id(&id)?;
    let code = query.code.unwrap_or(CloseCode::NORMAL.0);
    let close = v1::CloseRequested { code: u32::from(code), reason: query.reason };
    app.submit(&headers, to_connection(id, Body::Close(close))).await?;
    Ok(StatusCode::NO_CONTENT)
}
