//! CloudEvents in binary mode over HTTP, with the types and headers that Azure Web PubSub sends its upstreams.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;
use trunkline_proto::v1;
use trunkline_sdk::{Closed, Message};

use super::{Decision, Transmission, chosen, query};
use crate::{
    call::{Call, Place, Reply},
    failure::Failure,
    known::Identity,
    settings::{ApiSettings, FunctionUrl},
};

const JSON: &str = "application/json; charset=utf-8";

pub(super) fn registration(settings: &ApiSettings, place: &Place, opened: &v1::ConnectionOpened) -> Option<Call> {
    let url = settings.registration.as_ref()?;
    let mut parameters: BTreeMap<String, Vec<String>> = BTreeMap::new();
    query(&opened.query).into_iter().for_each(|(key, value)| parameters.entry(key).or_default().push(value));
    let mut headers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    opened.headers.iter().for_each(|header| headers.entry(&header.name).or_default().push(&header.value));
    let body = json!({
        "claims": {},
        "query": parameters,
        "headers": headers,
        "subprotocols": opened.subprotocols,
        "clientCertificates": [],
    });
    let event = Event { kind: "azure.webpubsub.sys.connect", name: "connect", content_type: JSON };
    let who = Identity::new(opened, place.time);
    Some(call(settings, place, &who, url, "registration", &event, body.to_string().into_bytes()))
}

pub(super) fn transmission(settings: &ApiSettings, place: &Place, who: &Identity, message: &Message) -> Transmission {
    let Some(url) = &settings.transmission else { return Transmission::Nothing };
    let content_type = if message.is_text() { "text/plain; charset=utf-8" } else { "application/octet-stream" };
    let event = Event { kind: "azure.webpubsub.user.message", name: "message", content_type };
    let mut call = call(settings, place, who, url, "transmission", &event, Vec::new());
    call.body = message.payload().clone();
    Transmission::Call(call)
}

pub(super) fn cleanup(settings: &ApiSettings, place: &Place, who: &Identity, closed: &Closed) -> Option<Call> {
    let url = settings.cleanup.as_ref()?;
    let event = Event { kind: "azure.webpubsub.sys.disconnected", name: "disconnected", content_type: JSON };
    let body = json!({ "reason": closed.reason }).to_string().into_bytes();
    Some(call(settings, place, who, url, "cleanup", &event, body))
}

struct Event {
    kind: &'static str,
    name: &'static str,
    content_type: &'static str,
}

fn call(
    settings: &ApiSettings,
    place: &Place,
    who: &Identity,
    url: &FunctionUrl,
    function: &'static str,
    event: &Event,
    body: Vec<u8>,
) -> Call {
    let id = &place.connection;
    let time = i64::try_from(place.time).ok().and_then(|time| jiff::Timestamp::from_microsecond(time).ok());
    let mut headers = vec![
        ("ce-specversion", "1.0".to_owned()),
        ("ce-type", event.kind.to_owned()),
        ("ce-source", format!("/hubs/{}/client/{id}", settings.api)),
        ("ce-id", place.uuid()),
        ("ce-time", time.unwrap_or_default().to_string()),
        ("ce-hub", settings.api.clone()),
        ("ce-connectionid", id.clone()),
        ("ce-eventname", event.name.to_owned()),
    ];
    if !who.principal.is_empty() {
        headers.push(("ce-userid", who.principal.clone()));
    }
    if !settings.secrets.is_empty() {
        let signed: Vec<String> = settings.secrets.iter().map(|secret| format!("sha256={}", secret.hex(id))).collect();
        headers.push(("ce-signature", signed.join(",")));
    }
    Call { url: url.clone(), function, content_type: event.content_type, headers, body: body.into() }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Answer {
    subprotocol: Option<String>,
}

/// Any 2xx accepts; a 4xx reaches the client as it is.
pub(super) fn decide(
    settings: &ApiSettings,
    reply: &Reply,
    opened: &v1::ConnectionOpened,
) -> Result<Decision, Failure> {
    if reply.status.is_client_error() && !matches!(reply.status.as_u16(), 408 | 425 | 429) {
        let body = super::body(settings, reply)?.clone();
        return Ok(Decision::Reject { status: reply.status.as_u16(), body });
    }
    super::succeeded(reply)?;
    if super::body(settings, reply)?.is_empty() {
        return Ok(Decision::accept());
    }
    let answer: Answer = super::json(settings, reply)?;
    let subprotocol = answer.subprotocol.and_then(|name| chosen(&name, &opened.subprotocols));
    Ok(Decision::Accept { subprotocol })
}

/// What is answered goes to the client, as text unless it is declared to be bytes.
pub(super) fn response(settings: &ApiSettings, reply: &Reply) -> Result<Option<Message>, Failure> {
    super::succeeded(reply)?;
    if !settings.integration_response {
        return Ok(None);
    }
    let body = super::body(settings, reply)?;
    let content_type = reply.headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if content_type.is_some_and(|value| value.starts_with("application/octet-stream")) {
        return Ok((!body.is_empty()).then(|| Message::binary(body.clone())));
    }
    Ok(super::message(body))
}
