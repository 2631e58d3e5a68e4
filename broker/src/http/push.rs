//! `POST /push/{api}`: the reverse push address of a cloud gateway that was shut down in 2026. Its functions push and close with one JSON
//! document each, and look at `errNo`.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::json;
use trunkline_proto::{
    CloseCode, ConnectionId, limits,
    v1::{self, MessageKind, command::Command as Body},
};

use super::{App, extract::InPath, guard, messages::to_connection, problem::Problem, request, webhook};

/// What the JSON around a payload may add: an escape of six bytes for each character is twice to three times the text.
const ENVELOPE_FACTOR: u64 = 3;
const ENVELOPE_BYTES: u64 = 4096;

/// The answer of this address: `errNo` is 0, or the HTTP status.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Answer {
    status: StatusCode,
    message: String,
}

impl Answer {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    fn wrong(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }
}

impl From<Problem> for Answer {
    fn from(problem: Problem) -> Self {
        Self { status: problem.status, message: problem.detail }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let number = if self.status == StatusCode::OK { 0 } else { self.status.as_u16() };
        let mut response = (self.status, Json(json!({ "errNo": number, "errMsg": self.message }))).into_response();
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

#[derive(Deserialize)]
struct Document {
    websocket: Websocket,
}

/// Fields that are not known are passed over: functions echo what they were given.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Websocket {
    action: String,
    #[serde(rename = "secConnectionID")]
    connection: String,
    #[serde(default)]
    data_type: Option<String>,
    #[serde(default)]
    data: Option<String>,
}

/// `POST /push/{api}`
pub(super) async fn push(
    State(app): State<App>,
    api: Result<InPath<String>, Problem>,
    request: Request,
) -> Result<Answer, Answer> {
    let InPath(api) = api?;
    let limit = app.0.settings.body_limit.saturating_mul(ENVELOPE_FACTOR).saturating_add(ENVELOPE_BYTES);
    let proof = Proof::of(&app, request.headers())?;
    let is_signed = matches!(proof, Proof::Signed(_));
    let (_, body) = request::whole(request, limit, &app.0.bodies, !is_signed).await?;
    let key = proof.key(&app, &body)?;
    let _place = if is_signed { Some(guard::place(&app)?) } else { None };
    let document: Document = serde_json::from_slice(&body)
        .map_err(|error| Answer::wrong(format!("the body is not as it must be: {error}")))?;
    let id = request::liberal_connection_id(&document.websocket.connection).ok_or_else(Problem::gone)?;
    if !limits::is_name(&api) {
        return Err(Problem::gone().into());
    }
    // an id alone is no authority: who may push to an API may not to another one's connections, nor learn that they exist
    let caller = guard::caller().within(&api).map_err(Problem::from)?;
    guard::asked_by(caller, pushed(&app, &key, id, document.websocket)).await
}

async fn pushed(app: &App, key: &str, id: ConnectionId, websocket: Websocket) -> Result<Answer, Answer> {
    let done = match command(websocket, app.0.settings.body_limit) {
        Ok(command) => app.submit_once(key, to_connection(id, command)).await.map_err(Answer::from),
        Err(answer) => Err(answer),
    };
    match done {
        Ok(_) => Ok(Answer::new(StatusCode::OK, "ok")),
        Err(answer) => {
            if app.0.settings.compat.close_on_failure {
                close(app, id).await;
            }
            Err(answer)
        }
    }
}

/// What the headers prove, or claim until the body has come.
enum Proof {
    /// A token, or nothing is asked for: the idempotency key.
    Enough(String),
    Signed(webhook::Claim),
}

fn unsigned() -> Answer {
    Answer::new(StatusCode::UNAUTHORIZED, "not signed, or not by a secret that is known here")
}

impl Proof {
    fn of(app: &App, headers: &http::HeaderMap) -> Result<Self, Answer> {
        if app.0.settings.compat.keys().push.is_none() {
            return Ok(Self::Enough(request::idempotency_key(headers)?));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        webhook::Claim::of(headers, now).map(Self::Signed).ok_or_else(unsigned)
    }

    /// Under which the push happens once. A signed one has an id: sent again by whoever listened, it does nothing. Not
    /// `Idempotency-Key`: that is not signed.
    fn key(self, app: &App, body: &[u8]) -> Result<String, Answer> {
        match self {
            Self::Enough(key) => Ok(key),
            Self::Signed(claim) => {
                let keys = app.0.settings.compat.keys();
                claim.verify(keys.push.as_deref().unwrap_or_default(), body).ok_or_else(unsigned)
            }
        }
    }
}

fn command(websocket: Websocket, limit: u64) -> Result<Body, Answer> {
    match websocket.action.as_str() {
        "closing" => Ok(close_command(CloseCode::NORMAL, "")),
        "data send" => {
            let data = websocket.data.ok_or_else(|| Answer::wrong("data is missing"))?;
            let (kind, payload) = match websocket.data_type.as_deref() {
                Some("text") => (MessageKind::Text, data.into_bytes()),
                Some("binary") => {
                    let decoded = STANDARD.decode(&data);
                    (
                        MessageKind::Binary,
                        decoded.map_err(|error| Answer::wrong(format!("data is no base64: {error}")))?,
                    )
                }
                Some(other) => return Err(Answer::wrong(format!("dataType {other:?} is neither text nor binary"))),
                None => return Err(Answer::wrong("dataType is missing")),
            };
            if payload.len() as u64 > limit {
                return Err(Problem::too_large(limit).into());
            }
            Ok(Body::Push(v1::Pushed { kind: kind.into(), payload: Bytes::from(payload) }))
        }
        other => Err(Answer::wrong(format!("action {other:?} is neither \"data send\" nor \"closing\""))),
    }
}

fn close_command(code: CloseCode, reason: &str) -> Body {
    Body::Close(v1::CloseRequested { code: u32::from(code.0), reason: reason.to_owned() })
}

/// As the original did with a connection whose push failed.
async fn close(app: &App, id: ConnectionId) {
    let close = to_connection(id, close_command(CloseCode::INTERNAL, "push failed"));
    if let Err(problem) = app.submit_once("", close).await {
        tracing::warn!(connection = %id, code = problem.code, "a connection whose push failed is not closed");
    }
}
