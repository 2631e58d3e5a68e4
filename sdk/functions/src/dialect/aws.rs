//! The dialect of AWS API Gateway WebSocket APIs: functions get the JSON that Lambda functions get, and answer as they do.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use trunkline_proto::v1::{self, CloseCause};
use trunkline_sdk::{CloseCode, Closed, Message};

use super::{Decision, Transmission, chosen, query};
use crate::{
    call::{Call, Place, Reply},
    failure::Failure,
    known::Identity,
    settings::{ApiSettings, FunctionUrl},
};

const CONNECT: &str = "$connect";
const DISCONNECT: &str = "$disconnect";
const DEFAULT: &str = "$default";
const GOING_AWAY: &str = "Going away";
const FORWARDED_FOR: &str = "X-Forwarded-For";

pub(super) fn registration(settings: &ApiSettings, place: &Place, opened: &v1::ConnectionOpened) -> Option<Call> {
    let url = settings.routes.get(CONNECT)?;
    let who = Identity::new(opened, place.time);
    let mut headers = headers(opened, place, &who);
    let mut event = json!({
        "headers": single(&headers),
        "multiValueHeaders": multiple(&mut headers),
        "stageVariables": settings.stage_variables,
        "requestContext": context(settings, place, &who, CONNECT, "CONNECT"),
        "isBase64Encoded": false,
    });
    let mut parameters = query(&opened.query);
    if !parameters.is_empty() {
        event["queryStringParameters"] = single(&parameters);
        event["multiValueQueryStringParameters"] = multiple(&mut parameters);
    }
    Some(call(url, "$connect", &event))
}

pub(super) fn transmission(settings: &ApiSettings, place: &Place, who: &Identity, message: &Message) -> Transmission {
    let Some((route, url)) = route(settings, message) else {
        let answer = json!({ "message": "Forbidden", "connectionId": place.connection, "requestId": place.short() });
        return Transmission::Answer(answer.to_string());
    };
    let mut context = context(settings, place, who, route, "MESSAGE");
    context["messageId"] = place.short().into();
    let (body, is_base64) = match message.text() {
        Some(text) => (text.to_owned(), false),
        None => (STANDARD.encode(message.payload()), true),
    };
    let mut event = json!({ "requestContext": context, "body": body, "isBase64Encoded": is_base64 });
    add_stage_variables(settings, &mut event);
    Transmission::Call(call(url, "route", &event))
}

/// A message's own route, else `$default`.
fn route<'a>(settings: &'a ApiSettings, message: &Message) -> Option<(&'a str, &'a FunctionUrl)> {
    let selected = settings.route_selection.as_ref().zip(message.text()).and_then(|(by, text)| by.select(text));
    let own = selected.filter(|key| !key.starts_with('$'));
    let found = own.and_then(|key| settings.routes.get_key_value(&key));
    found.or_else(|| settings.routes.get_key_value(DEFAULT)).map(|(key, url)| (key.as_str(), url))
}

pub(super) fn cleanup(settings: &ApiSettings, place: &Place, who: &Identity, closed: &Closed) -> Option<Call> {
    let url = settings.routes.get(DISCONNECT)?;
    let mut context = context(settings, place, who, DISCONNECT, "DISCONNECT");
    context["disconnectStatusCode"] = closed.code.0.into();
    context["disconnectReason"] = reason(closed).into();
    let mut headers: Vec<(String, String)> =
        [("Host", domain(settings, who)), ("x-api-key", ""), ("X-Forwarded-For", &who.address), ("x-restapi", "")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
    let mut event = json!({
        "headers": single(&headers),
        "multiValueHeaders": multiple(&mut headers),
        "requestContext": context,
        "isBase64Encoded": false,
    });
    add_stage_variables(settings, &mut event);
    Some(call(url, "$disconnect", &event))
}

/// As given; where none is, and where the gateway itself has closed for time, in the cloud's words.
fn reason(closed: &Closed) -> &str {
    match (closed.code, closed.cause) {
        (_, CloseCause::Idle | CloseCause::MaxLifetime) => GOING_AWAY,
        _ if !closed.reason.is_empty() => &closed.reason,
        (CloseCode::NORMAL, _) => "Connection Closed Normally",
        (CloseCode::AWAY, _) => GOING_AWAY,
        (CloseCode::NO_STATUS, _) => "Client-side close frame status not set",
        _ => "",
    }
}

/// The events of `$connect` have them always, others if there are any.
fn add_stage_variables(settings: &ApiSettings, event: &mut Value) {
    if !settings.stage_variables.is_empty() {
        event["stageVariables"] = json!(settings.stage_variables);
    }
}

fn call(url: &FunctionUrl, function: &'static str, event: &Value) -> Call {
    Call::json(url, function, event.to_string().into_bytes())
}

fn context(settings: &ApiSettings, place: &Place, who: &Identity, route: &str, kind: &str) -> Value {
    let id = place.short();
    let mut context = json!({
        "routeKey": route,
        "eventType": kind,
        "extendedRequestId": id,
        "requestTime": request_time(place.time),
        "messageDirection": "IN",
        "stage": settings.stage,
        "connectedAt": who.opened_at / 1000,
        "requestTimeEpoch": place.time / 1000,
        "identity": { "sourceIp": who.address },
        "requestId": id,
        "domainName": domain(settings, who),
        "connectionId": place.connection,
        "apiId": settings.api,
    });
    if !who.user_agent.is_empty() {
        context["identity"]["userAgent"] = who.user_agent.as_str().into();
    }
    if !(who.principal.is_empty() && who.claims.is_empty()) {
        let mut authorizer = json!(who.claims);
        authorizer["principalId"] = who.principal.as_str().into();
        context["authorizer"] = authorizer;
    }
    context
}

/// `19/Jan/2023:21:13:26 +0000`
fn request_time(microseconds: u64) -> String {
    let time = i64::try_from(microseconds).ok().and_then(|time| Timestamp::from_microsecond(time).ok());
    time.unwrap_or_default().strftime("%d/%b/%Y:%H:%M:%S +0000").to_string()
}

/// As configured: functions make the address of the management API of it, so it may have a port. What a client has asked for loses
/// its own.
fn domain<'a>(settings: &'a ApiSettings, who: &'a Identity) -> &'a str {
    if let Some(domain) = &settings.domain {
        return domain;
    }
    split_port(&who.host).0
}

fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (name, Some(port)),
        _ => (host, None),
    }
}

/// Those that edges keep, and those that the cloud's gateway adds. Behind a proxy its own word of port and protocol counts, where it is
/// kept; without, both are what they always are in the cloud.
fn headers(opened: &v1::ConnectionOpened, place: &Place, who: &Identity) -> Vec<(String, String)> {
    let mut headers: Vec<(String, String)> =
        opened.headers.iter().map(|header| (title(&header.name), header.value.clone())).collect();
    // nobody but the edge knows who the client is
    headers.retain(|(name, _)| name != FORWARDED_FOR);
    headers.push((FORWARDED_FOR.to_owned(), who.address.clone()));
    let mut add = |name: &str, value: &str| {
        if !headers.iter().any(|(known, _)| known == name) {
            headers.push((name.to_owned(), value.to_owned()));
        }
    };
    if !opened.subprotocols.is_empty() {
        add("Sec-WebSocket-Protocol", &opened.subprotocols.join(", "));
    }
    // edges speak no other
    add("Sec-WebSocket-Version", "13");
    add("X-Amzn-Trace-Id", &trace(place));
    add("X-Forwarded-Port", split_port(&who.host).1.unwrap_or("443"));
    add("X-Forwarded-Proto", "https");
    headers
}

/// `Root=1-` seconds in hexadecimal `-` 24 digits, as the cloud's traces are named; the same on every attempt.
fn trace(place: &Place) -> String {
    let name: String = place.uuid().chars().filter(|c| *c != '-').skip(8).collect();
    format!("Root=1-{:08x}-{name}", place.time / 1_000_000)
}

/// `sec-websocket-version` as `Sec-WebSocket-Version`, as clients write it and the cloud passes it on.
fn title(name: &str) -> String {
    let word = |word: &str| {
        if word == "websocket" {
            return "WebSocket".to_owned();
        }
        let mut letters = word.chars();
        letters.next().map(|first| first.to_ascii_uppercase().to_string() + letters.as_str()).unwrap_or_default()
    };
    name.split('-').map(word).collect::<Vec<_>>().join("-")
}

/// The last value of each name, as Lambda gets it.
fn single(pairs: &[(String, String)]) -> Value {
    pairs.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect::<Map<_, _>>().into()
}

/// All values of each name.
fn multiple(pairs: &mut [(String, String)]) -> Value {
    let mut values: Map<String, Value> = Map::new();
    for (name, value) in pairs {
        let entry = values.entry(std::mem::take(name)).or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(list) = entry {
            list.push(std::mem::take(value).into());
        }
    }
    values.into()
}

/// What a Lambda function answers.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Answer {
    status_code: Option<Value>,
    headers: Option<Map<String, Value>>,
    multi_value_headers: Option<Map<String, Value>>,
    body: Option<Value>,
    is_base64_encoded: Option<bool>,
}

fn named<'a>(headers: Option<&'a Map<String, Value>>, name: &str) -> Option<&'a Value> {
    headers.into_iter().flatten().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let one = named(self.headers.as_ref(), name).and_then(Value::as_str);
        one.or_else(|| named(self.multi_value_headers.as_ref(), name)?.get(0)?.as_str())
    }

    /// A number, or its text.
    fn status(&self) -> Option<u16> {
        match self.status_code.as_ref()? {
            Value::Number(number) => number.as_u64().and_then(|number| u16::try_from(number).ok()),
            Value::String(text) => text.parse().ok(),
            _ => None,
        }
    }

    fn bytes(&self) -> Result<Vec<u8>, Failure> {
        match &self.body {
            Some(Value::String(text)) if self.is_base64_encoded == Some(true) => {
                STANDARD.decode(text).map_err(|error| Failure::Nonsense(format!("body: {error}")))
            }
            Some(Value::String(text)) => Ok(text.clone().into_bytes()),
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(other) => Ok(other.to_string().into_bytes()),
        }
    }
}

/// Whether a function whose answer nobody uses ran to its end: nothing else that it says makes it a failure.
pub(super) fn done(reply: &Reply) -> Result<(), Failure> {
    super::succeeded(reply)?;
    let raised = |reason: &str| Err(Failure::Raised(reason.chars().take(200).collect()));
    if let Some(kind) = reply.headers.get("x-amz-function-error") {
        return raised(kind.to_str().unwrap_or_default());
    }
    let said = reply.body.as_ref().and_then(|body| serde_json::from_slice::<Value>(body).ok()).unwrap_or_default();
    // where Lambda's own interface says so in the body
    match (&said["errorMessage"], &said["errorType"], &said["statusCode"]) {
        (Value::String(message), Value::String(_), Value::Null) => raised(message),
        _ => Ok(()),
    }
}

/// The answer of a function that ran to its end. An empty one, or one that is no object, says nothing more; any `statusCode` is one: only
/// of `$connect` it decides something.
fn result(settings: &ApiSettings, reply: &Reply) -> Result<Answer, Failure> {
    done(reply)?;
    match super::body(settings, reply)?.trim_ascii_start().starts_with(b"{") {
        true => super::json(settings, reply),
        false => Ok(Answer::default()),
    }
}

pub(super) fn decide(
    settings: &ApiSettings,
    reply: &Reply,
    opened: &v1::ConnectionOpened,
) -> Result<Decision, Failure> {
    let answer = result(settings, reply)?;
    let Some(status) = answer.status() else {
        return Err(Failure::Nonsense("the answer to $connect has no statusCode that is a number".to_owned()));
    };
    if let 200..300 = status {
        let subprotocol =
            answer.header("sec-websocket-protocol").and_then(|listed| chosen(listed, &opened.subprotocols));
        return Ok(Decision::Accept { subprotocol });
    }
    // a status that no handshake may be answered with is a plain no
    let status = if (400..600).contains(&status) { status } else { 403 };
    Ok(Decision::Reject { status, body: answer.bytes()?.into() })
}

pub(super) fn response(settings: &ApiSettings, reply: &Reply) -> Result<Option<Message>, Failure> {
    if !settings.integration_response {
        return done(reply).map(|()| None);
    }
    let answer = result(settings, reply)?;
    let bytes = answer.bytes()?;
    match answer.is_base64_encoded {
        _ if bytes.is_empty() => Ok(None),
        Some(true) => Ok(Some(Message::binary(bytes))),
        _ => Ok(super::message(&bytes.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_look_as_clients_write_them() {
        assert_eq!(title("sec-websocket-extensions"), "Sec-WebSocket-Extensions");
        assert_eq!(title("user-agent"), "User-Agent");
        assert_eq!(title(""), "");
    }

    #[test]
    fn times_are_as_in_access_logs() {
        assert_eq!(request_time(1_674_162_806_345_000), "19/Jan/2023:21:13:26 +0000");
        assert_eq!(request_time(u64::MAX), "01/Jan/1970:00:00:00 +0000");
    }
}
