//! CloudEvents in binary mode over HTTP, with the types and headers that Azure Web PubSub sends its upstreams.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;
use trunkline_proto::{limits, v1};
use trunkline_sdk::{Closed, Message};

use super::{Decision, Transmission, chosen, query};
use crate::{
    call::{Call, Place, Reply},
    consent::REQUEST_ORIGIN,
    failure::Failure,
    kept::Said,
    known::Identity,
    settings::{ApiSettings, FunctionUrl},
};

/// Where a function keeps what it wants to know of a connection: told with every event, set by answers.
const STATE: &str = "ce-connectionstate";
const JSON: &str = "application/json; charset=utf-8";

pub(super) fn registration(settings: &ApiSettings, place: &Place, opened: &v1::ConnectionOpened) -> Option<Call> {
    let url = settings.registration.as_ref()?;
    let mut parameters: BTreeMap<String, Vec<String>> = BTreeMap::new();
    query(&opened.query).into_iter().for_each(|(key, value)| parameters.entry(key).or_default().push(value));
    let mut headers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    opened.headers.iter().for_each(|header| headers.entry(&header.name).or_default().push(&header.value));
    let claims: BTreeMap<&str, [&str; 1]> =
        opened.attributes.iter().map(|(name, value)| (name.as_str(), [value.as_str()])).collect();
    let body = json!({
        "claims": claims,
        "query": parameters,
        "headers": headers,
        "subprotocols": opened.subprotocols,
        "clientCertificates": [],
    });
    // none is negotiated yet
    let who = Identity { subprotocol: String::new(), ..Identity::new(opened, place.time) };
    let event = Event { kind: "azure.webpubsub.sys.connect", name: "connect", content_type: JSON };
    Some(call(settings, place, &who, url, "registration", &event, body.to_string().into_bytes()))
}

pub(super) fn connected(settings: &ApiSettings, place: &Place, who: &Identity) -> Option<Call> {
    let url = settings.connected.as_ref()?;
    let event = Event { kind: "azure.webpubsub.sys.connected", name: "connected", content_type: JSON };
    // another event than the registration that it follows
    let place = Place { key: format!("{}/connected", place.key), ..place.clone() };
    Some(call(settings, &place, who, url, "connected", &event, b"{}".to_vec()))
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
    let cause;
    let reason = match closed.reason.as_str() {
        "" => {
            cause = super::cause(closed);
            &cause
        }
        reason => reason,
    };
    let body = json!({ "reason": reason }).to_string().into_bytes();
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
        // libraries pass by what has not these two
        (REQUEST_ORIGIN, settings.origin().to_owned()),
        ("ce-awpsversion", "1.0".to_owned()),
    ];
    let user = if who.kept.user.is_empty() { &who.principal } else { &who.kept.user };
    for (name, value) in [("ce-userid", user), ("ce-subprotocol", &who.subprotocol), (STATE, &who.kept.state)] {
        if !value.is_empty() {
            headers.push((name, value.clone()));
        }
    }
    if !settings.secrets.is_empty() {
        let signed: Vec<String> = settings.secrets.iter().map(|secret| format!("sha256={}", secret.hex(id))).collect();
        headers.push(("ce-signature", signed.join(",")));
    }
    Call { url: url.clone(), function, content_type: event.content_type, headers, body: body.into() }
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Answer {
    subprotocol: Option<String>,
    user_id: Option<String>,
    groups: Option<Vec<String>>,
}

impl Answer {
    /// Nothing at all says nothing.
    fn of(settings: &ApiSettings, reply: &Reply) -> Result<Self, Failure> {
        if super::body(settings, reply)?.is_empty() { Ok(Self::default()) } else { super::json(settings, reply) }
    }
}

/// Groups are channels here.
pub(super) fn welcome(settings: &ApiSettings, reply: &Reply) -> Result<Said, Failure> {
    let answer = Answer::of(settings, reply)?;
    let channels = answer.groups.unwrap_or_default();
    if let Some(group) = channels.iter().find(|group| !limits::is_channel(group)) {
        return Err(Failure::Nonsense(format!("{group:?} can be no channel's name")));
    }
    if channels.len() > limits::CHANNELS_PER_CONNECTION_MAX {
        return Err(Failure::Nonsense(format!("{} groups", channels.len())));
    }
    let user = answer.user_id.filter(|user| !user.is_empty());
    Ok(Said { channels, user, ..said(reply)? })
}

/// The state that the answer sets.
pub(super) fn said(reply: &Reply) -> Result<Said, Failure> {
    let mut states = reply.headers.get_all(STATE).into_iter();
    let Some(state) = states.next() else { return Ok(Said::default()) };
    match state.to_str() {
        Ok(state) if states.next().is_none() => Ok(Said { state: Some(state.to_owned()), ..Said::default() }),
        Ok(_) => Err(Failure::Nonsense("several ce-connectionState".to_owned())),
        Err(_) => Err(Failure::Nonsense("a ce-connectionState that is not ASCII".to_owned())),
    }
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
    let subprotocol = Answer::of(settings, reply)?.subprotocol.and_then(|name| chosen(&name, &opened.subprotocols));
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
