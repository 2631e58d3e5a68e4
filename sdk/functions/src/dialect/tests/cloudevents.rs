//! Against the reference of the service whose upstreams these are, and what its libraries read.

use std::collections::BTreeMap;

use trunkline_proto::secret::SecretText;

use super::*;
use crate::{
    Secret,
    kept::{Kept, Said},
};

fn settings() -> ApiSettings {
    let secret = |text: &str| Secret::new(&SecretText::new(text)).unwrap();
    ApiSettings {
        registration: Some(url("connect")),
        transmission: Some(url("message")),
        cleanup: Some(url("disconnected")),
        connected: Some(url("connected")),
        domain: Some("chat.example.com".into()),
        secrets: vec![secret("a primary access key"), secret("the secondary access key")],
        ..ApiSettings::new("chat", Dialect::CloudEvents)
    }
}

fn who() -> Identity {
    let kept = [("userId", "ada"), ("connectionState", "eyJrZXkiOiJhIn0="), ("role", "admin")];
    Identity {
        principal: "token-subject".into(),
        subprotocol: "v1".into(),
        kept: Kept::of(&kept.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
        ..Identity::default()
    }
}

fn answer(status: u16, body: &'static str, headers: &[(&'static str, &'static str)]) -> Reply {
    let mut reply = reply(status, body);
    for (name, value) in headers {
        reply.headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    reply
}

fn headers(call: &Call) -> BTreeMap<&str, &str> {
    call.headers.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

fn closed(reason: &str) -> Closed {
    super::closed(1001, reason, CloseCause::PingTimeout)
}

/// Every event there is, of a connection that something is known of.
fn events() -> Vec<(&'static str, Call)> {
    let settings = settings();
    vec![
        ("user.message", sent(transmission(&settings, &place(), &who(), &"hi".into()))),
        ("sys.connected", connected(&settings, &place(), &who()).unwrap()),
        ("sys.disconnected", cleanup(&settings, &place(), &who(), &closed("bye")).unwrap()),
    ]
}

#[test]
fn every_event_after_the_first_has_every_header_of_the_reference() {
    for (name, call) in events() {
        let headers = headers(&call);
        for (header, value) in [
            ("webhook-request-origin", "chat.example.com"),
            ("ce-awpsversion", "1.0"),
            ("ce-specversion", "1.0"),
            ("ce-type", &format!("azure.webpubsub.{name}")),
            ("ce-source", "/hubs/chat/client/xawexasdfewezdfsdfeasd"),
            ("ce-time", "2023-01-19T21:13:26.345Z"),
            ("ce-hub", "chat"),
            ("ce-connectionid", ID),
            ("ce-eventname", name.split_once('.').unwrap().1),
            ("ce-userid", "ada"),
            ("ce-subprotocol", "v1"),
            ("ce-connectionstate", "eyJrZXkiOiJhIn0="),
        ] {
            assert_eq!(headers.get(header), Some(&value), "{name}: {header}");
        }
        assert_eq!(headers["ce-id"].len(), 36);
    }
    let ids: std::collections::BTreeSet<String> =
        [events().remove(0).1, events().remove(1).1].iter().map(|call| headers(call)["ce-id"].to_owned()).collect();
    assert_eq!(ids.len(), 2, "connected is another event than the registration");
}

/// Computed by openssl: `printf %s ID | openssl dgst -sha256 -hmac KEY`.
const SIGNATURES: &str = concat!(
    "sha256=4f33b32b2facb13327d7dbd4b8f46bb1680a75c094b353c2f9bcc3f661b5c5b3,",
    "sha256=fffefe9ecea69c4936b457cbd599b3876235308877b8d441965b73cceaf134f8"
);

#[test]
fn both_keys_sign_the_connection() {
    for (name, call) in events() {
        assert_eq!(headers(&call)["ce-signature"], SIGNATURES, "{name}");
    }
}

#[test]
fn what_is_not_known_is_left_out() {
    let bare = Identity::default();
    let unsigned = ApiSettings { secrets: Vec::new(), ..settings() };
    let call = sent(transmission(&unsigned, &place(), &bare, &"hi".into()));
    let headers = headers(&call);
    for absent in ["ce-userid", "ce-subprotocol", "ce-connectionstate", "ce-signature"] {
        assert!(!headers.contains_key(absent), "{absent}");
    }
    let who = Identity { principal: "ada".into(), ..Identity::default() };
    let call = sent(transmission(&settings(), &place(), &who, &"hi".into()));
    assert_eq!(self::headers(&call)["ce-userid"], "ada", "who the token named, unless the function says otherwise");
}

#[test]
fn connect_tells_claims_query_headers_and_what_was_offered() {
    let opened = v1::ConnectionOpened {
        query: "a=1&a=2&b=x%20y".into(),
        headers: vec![header("host", "h"), header("cookie", "one"), header("cookie", "two")],
        subprotocols: vec!["v1".into(), "v2".into()],
        subprotocol: "v1".into(),
        principal: "ada".into(),
        attributes: [("role".to_owned(), "admin".to_owned())].into(),
        ..Default::default()
    };
    let call = registration(&settings(), &place(), &opened).unwrap();
    let expected = json!({
        "claims": { "role": ["admin"] },
        "query": { "a": ["1", "2"], "b": ["x y"] },
        "headers": { "host": ["h"], "cookie": ["one", "two"] },
        "subprotocols": ["v1", "v2"],
        "clientCertificates": [],
    });
    assert_eq!((parsed(&call), call.content_type), (expected, "application/json; charset=utf-8"));
    let headers = headers(&call);
    for (name, value) in [
        ("ce-specversion", "1.0"),
        ("ce-type", "azure.webpubsub.sys.connect"),
        ("ce-source", "/hubs/chat/client/xawexasdfewezdfsdfeasd"),
        ("ce-time", "2023-01-19T21:13:26.345Z"),
        ("ce-hub", "chat"),
        ("ce-connectionid", ID),
        ("ce-eventname", "connect"),
        ("ce-userid", "ada"),
        ("ce-signature", SIGNATURES),
    ] {
        assert_eq!(headers[name], value, "{name}");
    }
    assert!(!headers.contains_key("ce-subprotocol"), "none is negotiated yet");
}

#[test]
fn the_answer_to_connect_gives_groups_a_user_and_a_state() {
    let welcome = |body, headers: &[_]| welcome(&settings(), &answer(200, body, headers));
    let body = r#"{"groups":["a","b"],"userId":"ada","roles":["webpubsub.sendToGroup"],"subprotocol":"v1"}"#;
    let said = welcome(body, &[("ce-connectionState", "eyJrZXkiOiJhIn0=")]);
    let expected = Said {
        channels: vec!["a".into(), "b".into()],
        user: Some("ada".into()),
        state: Some("eyJrZXkiOiJhIn0=".into()),
    };
    assert_eq!(said, Ok(expected));
    for nothing in
        ["", "{}", r#"{"groups":[],"userId":"","roles":[],"subprotocol":""}"#, r#"{"groups":null,"userId":null}"#]
    {
        assert_eq!(welcome(nothing, &[]), Ok(Said::default()), "{nothing}");
    }
    for nonsense in [r#"{"groups":["a\u0007"]}"#, r#"{"groups":[""]}"#, r#"{"groups":"a"}"#, "no json", "7"] {
        assert!(matches!(welcome(nonsense, &[]), Err(Failure::Nonsense(_))), "{nonsense}");
    }
}

#[test]
fn any_event_s_answer_sets_the_state_once() {
    let state = |headers: &[_]| said(&settings(), &answer(204, "", headers)).map(|said| said.state);
    assert_eq!(state(&[]), Ok(None));
    assert_eq!(state(&[("ce-connectionState", "x")]), Ok(Some("x".into())));
    assert_eq!(state(&[("CE-ConnectionState", "")]), Ok(Some(String::new())), "set to nothing");
    let twice = [("ce-connectionState", "x"), ("ce-connectionState", "y")];
    assert!(matches!(state(&twice), Err(Failure::Nonsense(_))));
    assert!(matches!(state(&[("ce-connectionState", "\u{e9}")]), Err(Failure::Nonsense(_))));
}

#[test]
fn an_answer_goes_to_the_client_unless_that_is_switched_off() {
    assert!(settings().integration_response, "as its users expect it");
    let sent_on = |body, kind| response(&settings(), &answer(200, body, &[("content-type", kind)]));
    assert_eq!(sent_on("hi", "text/plain; charset=utf-8"), Ok(Some("hi".into())));
    assert_eq!(sent_on("{}", "application/json"), Ok(Some("{}".into())));
    assert_eq!(sent_on("hi", "application/octet-stream"), Ok(Some(Message::binary("hi"))));
    // what the service's libraries answer without data
    assert_eq!(sent_on("", "application/octet-stream"), Ok(None));
    assert_eq!(response(&settings(), &reply(204, "")), Ok(None));
    let packed = answer(200, "\u{1f}", &[("content-encoding", "gzip")]);
    assert!(matches!(response(&settings(), &packed), Err(Failure::Nonsense(_))));
    let off = ApiSettings { integration_response: false, ..settings() };
    assert_eq!(response(&off, &reply(200, "hi")), Ok(None));
    assert!(matches!(response(&settings(), &reply(401, "")), Err(Failure::Status { .. })));
}

#[test]
fn bodies_of_the_events_that_ask_for_nothing() {
    assert_eq!(parsed(&connected(&settings(), &place(), &who()).unwrap()), json!({}));
    let gone = |reason| parsed(&cleanup(&settings(), &place(), &who(), &closed(reason)).unwrap());
    assert_eq!(gone("bye"), json!({ "reason": "bye" }));
    assert_eq!(gone(""), json!({ "reason": "ping_timeout" }), "why, where nobody said it");
}

#[test]
fn messages_are_their_own_bodies() {
    let send = |message: Message| sent(transmission(&settings(), &place(), &Identity::default(), &message));
    let text = send("hi".into());
    assert_eq!((&text.body[..], text.content_type), (&b"hi"[..], "text/plain; charset=utf-8"));
    assert_eq!(headers(&text)["ce-type"], "azure.webpubsub.user.message");
    let binary = send(Message::binary(vec![0, 255]));
    assert_eq!((&binary.body[..], binary.content_type), (&[0, 255][..], "application/octet-stream"));
}

#[test]
fn the_answer_to_connect_decides() {
    let opened = v1::ConnectionOpened { subprotocols: vec!["v1".into()], ..Default::default() };
    let decide = |status: u16, body: &'static str| decide(&settings(), &reply(status, body), &opened);
    assert_eq!(decide(204, ""), Ok(Decision::accept()));
    let chosen = Decision::Accept { subprotocol: Some("v1".into()) };
    assert_eq!(decide(200, r#"{"groups":[],"userId":"","subprotocol":"v1"}"#), Ok(chosen));
    assert_eq!(decide(401, "no"), Ok(Decision::Reject { status: 401, body: "no".into() }));
    assert!(matches!(decide(503, ""), Err(Failure::Status { .. })));
    assert!(matches!(decide(429, ""), Err(Failure::Status { .. })));
}
