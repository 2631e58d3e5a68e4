//! `/{stage}/@connections/{id}`: the management API of AWS API Gateway's WebSockets, for its SDKs with only the endpoint set. Errors go by
//! the names the SDKs make their exceptions of.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::{
    Json,
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use serde_json::json;
use trunkline_proto::{
    CloseCode, ConnectionId, LogIndex, Offset, RecordKind,
    v1::{self, MessageKind, command::Command as Body},
};

use super::{
    App, guard,
    messages::to_connection,
    problem::Problem,
    query, request,
    sigv4::{self, Signed, Unsigned},
};

const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");
/// Bytes of log read to find one record: it begins its entry's range.
const READ_BYTES: usize = 1 << 20;

/// An error by its wire name.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Fault {
    status: StatusCode,
    name: &'static str,
    message: String,
}

impl From<Problem> for Fault {
    fn from(problem: Problem) -> Self {
        let name = match problem.status {
            StatusCode::GONE => "GoneException",
            StatusCode::PAYLOAD_TOO_LARGE => "PayloadTooLargeException",
            StatusCode::TOO_MANY_REQUESTS => "LimitExceededException",
            StatusCode::FORBIDDEN => "ForbiddenException",
            StatusCode::BAD_REQUEST | StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY => "BadRequestException",
            StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailableException",
            _ => "InternalServerErrorException",
        };
        Self { status: problem.status, name, message: problem.detail }
    }
}

impl Fault {
    /// 403: nobody proved anything, or it is good for other things.
    pub(super) fn forbidden(message: String) -> Self {
        Self { status: StatusCode::FORBIDDEN, name: "ForbiddenException", message }
    }

    /// 429: more requests under way than there may be.
    pub(super) fn limit_exceeded() -> Self {
        Self {
            status: StatusCode::TOO_MANY_REQUESTS,
            name: "LimitExceededException",
            message: "Too Many Requests".to_owned(),
        }
    }
}

impl From<Unsigned> for Fault {
    fn from(unsigned: Unsigned) -> Self {
        Self::forbidden(unsigned.to_string())
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(json!({ "message": self.message }))).into_response();
        response.headers_mut().insert(ERROR_TYPE, HeaderValue::from_static(self.name));
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// `POST`, `GET` and `DELETE /{stage}/@connections/{id}`; the stage may be left out.
pub(super) async fn connections(
    State(app): State<App>,
    Path(path): Path<Vec<(String, String)>>,
    request: Request,
) -> Result<Response, Fault> {
    let method = request.method().clone();
    let limit = app.0.settings.compat.aws_payload;
    let claim = match &app.0.settings.compat.keys().aws {
        Some(keys) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            Some(sigv4::Claim::of(keys, request.headers(), now)?)
        }
        None => None,
    };
    let (parts, body) = request::whole(request, limit, &app.0.bodies).await?;
    if let Some(claim) = claim {
        claim.verify(&Signed { method: &method, uri: &parts.uri, headers: &parts.headers, body: &body })?;
    }
    let named = path.iter().find(|(name, _)| name == "id").map_or("", |(_, id)| id);
    let id = request::liberal_connection_id(named).ok_or_else(Problem::gone)?;
    match method {
        Method::POST => {
            app.submit_once(&request::idempotency_key(&parts.headers)?, to_connection(id, message(body))).await?;
            Ok(StatusCode::OK.into_response())
        }
        Method::DELETE => {
            let close = v1::CloseRequested { code: u32::from(CloseCode::NORMAL.0), reason: String::new() };
            app.submit_once("", to_connection(id, Body::Close(close))).await?;
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        _ => get(&app, id).await,
    }
}

/// What the SDKs send says nothing of its kind: what is text is sent as text.
fn message(payload: Bytes) -> Body {
    let kind = if std::str::from_utf8(&payload).is_ok() { MessageKind::Text } else { MessageKind::Binary };
    Body::Push(v1::Pushed { kind: kind.into(), payload })
}

/// When it connected and who it is. When it was last active is not kept, and not told.
async fn get(app: &App, id: ConnectionId) -> Result<Response, Fault> {
    let partition = id.partition(app.0.node.partition_count());
    let (opened_at, opened, peer) = {
        let state = query::current(&app.0.node, partition).await?.state.read();
        let found = state.connection(&id).filter(|connection| guard::caller().sees(connection.api));
        let connection = found.ok_or_else(Problem::gone)?;
        (connection.opened_at, connection.opened, connection.peer.to_owned())
    };
    let address = peer.rsplit_once(':').map_or(peer.as_str(), |(address, _)| address);
    let answer = json!({
        "connectedAt": trunkline_proto::json::time(opened_at.0),
        "identity": {
            "sourceIp": address.trim_start_matches('[').trim_end_matches(']'),
            "userAgent": user_agent(app, id, opened).await,
        },
    });
    Ok(Json(answer).into_response())
}

/// The header as it stands in the log; empty where retention has taken it.
async fn user_agent(app: &App, id: ConnectionId, opened: Offset) -> String {
    let (partition, before) =
        (id.partition(app.0.node.partition_count()), LogIndex(opened.index().0.saturating_sub(1)));
    let Ok(read) = app.0.node.read_log(partition, before, READ_BYTES).await else { return String::new() };
    let mut records = read.entries.iter().filter(|entry| entry.index == opened.index()).flat_map(|entry| {
        entry
            .raw_records()
            .filter(|(offset, record, _)| *offset == opened && record.kind == RecordKind::ConnectionOpened)
    });
    let body = records.next().and_then(|(_, record, _)| record.decode::<v1::ConnectionOpened>().ok());
    let headers = body.map(|body| body.headers).unwrap_or_default();
    headers.into_iter().find(|header| header.name == "user-agent").map(|header| header.value).unwrap_or_default()
}
