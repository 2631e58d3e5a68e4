//! The dialect of the cloud gateway that was shut down in 2026, as its documents describe it (docs/functions.md). Users' functions
//! concatenate what stands in `websocket`: every value there is a string.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use trunkline_proto::v1;
use trunkline_sdk::{Closed, Message};

use super::{Decision, Transmission, chosen, json, query};
use crate::{
    call::{Call, Place, Reply},
    failure::Failure,
    known::address,
    settings::ApiSettings,
};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Registration<'a> {
    request_context: RequestContext<'a>,
    websocket: Connecting<'a>,
}

/// May grow, and never lose a field: so it was promised.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RequestContext<'a> {
    service_name: &'a str,
    path: &'a str,
    http_method: &'static str,
    request_id: String,
    identity: Identity<'a>,
    source_ip: &'a str,
    stage: &'a str,
    websocket_enable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    query_string: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_parameters: Option<BTreeMap<&'a str, &'a str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    headers: Option<BTreeMap<&'a str, &'a str>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Identity<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    secret_id: &'a str,
}

#[derive(Serialize)]
struct Connecting<'a> {
    action: &'static str,
    #[serde(rename = "secConnectionID")]
    connection: &'a str,
    #[serde(rename = "secWebSocketProtocol", skip_serializing_if = "String::is_empty")]
    protocol: String,
    #[serde(rename = "secWebSocketExtensions", skip_serializing_if = "String::is_empty")]
    extensions: String,
}

pub(super) fn registration(settings: &ApiSettings, place: &Place, opened: &v1::ConnectionOpened) -> Option<Call> {
    let url = settings.registration.as_ref()?;
    let headers = || opened.headers.iter().map(|header| (header.name.as_str(), header.value.as_str()));
    // a client may send its offer as several headers, which mean the same as one
    let offered = headers().filter(|(name, _)| *name == "sec-websocket-extensions").map(|(_, value)| value);
    let extensions = offered.collect::<Vec<_>>().join(",");
    let forwarded = settings.forward_request;
    let body = Registration {
        request_context: RequestContext {
            service_name: &settings.api,
            path: &settings.path,
            http_method: "GET",
            request_id: place.uuid(),
            identity: Identity { secret_id: &opened.principal },
            source_ip: address(&opened.peer),
            stage: &settings.stage,
            websocket_enable: true,
            query_string: forwarded.then(|| query(&opened.query).into_iter().rev().collect()),
            path_parameters: forwarded
                .then(|| opened.parameters.iter().map(|one| (one.name.as_str(), one.value.as_str())).collect()),
            headers: forwarded.then(|| headers().collect()),
        },
        websocket: Connecting {
            action: "connecting",
            connection: &place.connection,
            protocol: opened.subprotocols.join(","),
            extensions,
        },
    };
    Some(call(url, "registration", &body))
}

#[derive(Serialize)]
struct Envelope<T> {
    websocket: T,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Data<'a> {
    action: &'static str,
    #[serde(rename = "secConnectionID")]
    connection: &'a str,
    data_type: &'static str,
    data: &'a str,
}

pub(super) fn transmission(settings: &ApiSettings, place: &Place, message: &Message) -> Transmission {
    let Some(url) = &settings.transmission else { return Transmission::Nothing };
    let encoded;
    let (data_type, data) = match message.text() {
        Some(text) => ("text", text),
        None => {
            encoded = STANDARD.encode(message.payload());
            ("binary", encoded.as_str())
        }
    };
    let data = Data { action: "data send", connection: &place.connection, data_type, data };
    Transmission::Call(call(url, "transmission", &Envelope { websocket: data }))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Closing<'a> {
    action: &'static str,
    #[serde(rename = "secConnectionID")]
    connection: &'a str,
    // the documents have no more than the above; a string each, like everything here
    close_code: String,
    close_reason: &'a str,
    close_cause: String,
}

pub(super) fn cleanup(settings: &ApiSettings, place: &Place, closed: &Closed) -> Option<Call> {
    let url = settings.cleanup.as_ref()?;
    let closing = Closing {
        action: "closing",
        connection: &place.connection,
        close_code: closed.code.0.to_string(),
        close_reason: &closed.reason,
        close_cause: super::cause(closed),
    };
    Some(call(url, "cleanup", &Envelope { websocket: closing }))
}

fn call(url: &crate::FunctionUrl, function: &'static str, body: &impl Serialize) -> Call {
    // strings and booleans: cannot fail
    Call::json(url, function, serde_json::to_vec(body).unwrap_or_default())
}

/// The status comes first, and only 200 is a success.
pub(super) fn succeeded(reply: &Reply) -> Result<(), Failure> {
    if reply.status == StatusCode::OK { Ok(()) } else { Err(Failure::of(reply)) }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    err_no: i64,
    #[serde(default)]
    err_msg: String,
    #[serde(default)]
    websocket: Option<Chosen>,
}

#[derive(Deserialize)]
struct Chosen {
    #[serde(default, rename = "secWebSocketProtocol")]
    protocol: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Refusal<'a> {
    err_no: i64,
    err_msg: &'a str,
}

/// The status, then `errNo`. Of the protocol it is liberal, as functions echo what the client offered; extensions are passed
/// over, as the edge negotiates none.
pub(super) fn decide(
    settings: &ApiSettings,
    reply: &Reply,
    opened: &v1::ConnectionOpened,
) -> Result<Decision, Failure> {
    succeeded(reply)?;
    let answer: Answer = json(settings, reply)?;
    if answer.err_no != 0 {
        let refusal = Refusal { err_no: answer.err_no, err_msg: &answer.err_msg };
        let body = serde_json::to_vec(&refusal).unwrap_or_default().into();
        return Ok(Decision::Reject { status: 403, body });
    }
    let protocol = answer.websocket.and_then(|websocket| websocket.protocol);
    let subprotocol = protocol.and_then(|listed| chosen(&listed, &opened.subprotocols));
    Ok(Decision::Accept { subprotocol })
}

#[derive(Deserialize)]
struct Response {
    websocket: Pushed,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pushed {
    data_type: String,
    data: String,
}

/// The answer's body is ignored, unless the API sends it on: as the same JSON as a push, or as it stands.
pub(super) fn response(settings: &ApiSettings, reply: &Reply) -> Result<Option<Message>, Failure> {
    succeeded(reply)?;
    if !settings.integration_response {
        return Ok(None);
    }
    let body = super::body(settings, reply)?;
    let Ok(Response { websocket }) = serde_json::from_slice(body) else { return Ok(super::message(body)) };
    match websocket.data_type.as_str() {
        "text" => Ok(Some(Message::new_text(websocket.data))),
        "binary" => match STANDARD.decode(&websocket.data) {
            Ok(bytes) => Ok(Some(Message::binary(bytes))),
            Err(error) => Err(Failure::Nonsense(format!("data: {error}"))),
        },
        other => Err(Failure::Nonsense(format!("dataType {other:?} is neither text nor binary"))),
    }
}
