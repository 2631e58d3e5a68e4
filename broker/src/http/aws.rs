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
    CloseCode, ConnectionId, Offset,
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
            StatusCode::BAD_REQUEST
            | StatusCode::CONFLICT
            | StatusCode::UNSUPPORTED_MEDIA_TYPE
            | StatusCode::UNPROCESSABLE_ENTITY => "BadRequestException",
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
    let (parts, body) = request::whole(request, limit, &app.0.bodies, claim.is_none()).await?;
    let _place = match claim {
        Some(claim) => {
            claim.verify(&Signed { method: &method, uri: &parts.uri, headers: &parts.headers, body: &body })?;
            Some(guard::place(&app).map_err(|_| Fault::limit_exceeded())?)
        }
        None => None,
    };
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

/// When it connected, when its last message came, and who it is.
async fn get(app: &App, id: ConnectionId) -> Result<Response, Fault> {
    let node = &app.0.node;
    let (last_active, known) = {
        let state = query::current(node, id.partition(node.partition_count())).await?.state.read();
        let found = state.connection(&id).filter(|connection| guard::caller().sees(connection.api));
        let last_active = found.ok_or_else(Problem::gone)?.last_active;
        (last_active, state.opening(&id).ok_or_else(Problem::gone)?)
    };
    // a log that cannot be read hides the user agent, not the connection
    let opening = node.opening(id, Offset::ZERO).await.ok().flatten().unwrap_or(known);
    let opened = opening.opened.unwrap_or_default();
    let address = opened.peer.rsplit_once(':').map_or(opened.peer.as_str(), |(address, _)| address);
    let user_agent = opened.headers.iter().find(|header| header.name == "user-agent").map(|header| &*header.value);
    let answer = json!({
        "connectedAt": trunkline_proto::json::time(opening.time),
        "identity": {
            "sourceIp": address.trim_start_matches('[').trim_end_matches(']'),
            "userAgent": user_agent.unwrap_or_default(),
        },
        "lastActiveAt": trunkline_proto::json::time(last_active.0),
    });
    Ok(Json(answer).into_response())
}
