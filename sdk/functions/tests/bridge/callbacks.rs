//! Upstreams that are asked for their consent, and what they leave with a connection.

use trunkline_functions::{ApiSettings, Dialect, OnFailure};
use trunkline_sdk::proto::v1::{self, command::Command as C};

use crate::{
    cases::{Running, rejected, settings},
    server::{Functions, Reaction, Request},
};

/// Of the dialect, with its defaults.
fn upstream(functions: &Functions) -> ApiSettings {
    let paths = settings(functions);
    ApiSettings {
        registration: paths.registration,
        transmission: paths.transmission,
        cleanup: paths.cleanup,
        backoff: paths.backoff,
        timeout: paths.timeout,
        ..ApiSettings::new("test", Dialect::CloudEvents)
    }
}

const CONSENT: Reaction = Reaction::Answer(200, "WebHook-Allowed-Origin: *\r\n", String::new());

/// Consents to everything, and counts in the state how often it was asked about a connection.
fn counting(request: &Request) -> Reaction {
    if request.method == "OPTIONS" {
        return CONSENT;
    }
    let header = match request.header("ce-connectionstate") {
        "" => "ce-connectionState: 1\r\n",
        "1" => "ce-connectionState: 2\r\n",
        _ => "",
    };
    let body = match request.header("ce-eventname") {
        "connect" => r#"{"userId":"ada","groups":["a","b"],"subprotocol":"v2"}"#,
        _ => "",
    };
    Reaction::Answer(200, header, body.to_owned())
}

#[tokio::test]
async fn a_connection_keeps_its_user_its_state_and_its_subprotocol() {
    let functions = Functions::start(|request, _| counting(request)).await;
    let mut running = Running::start(upstream(&functions)).await;
    running.opened(1);
    for _ in 0..3 {
        running.message(1, "hello");
    }
    running.closed(1, v1::CloseCause::Client);
    running.settled().await;
    let mut commands = running.commands();
    match commands.remove(0) {
        C::Accept(accept) => {
            assert_eq!((accept.subprotocol.as_str(), accept.channels), ("v2", vec!["a".to_owned(), "b".to_owned()]));
            let kept =
                [("connectionState", "1"), ("userId", "ada")].map(|(key, value)| (key.to_owned(), value.to_owned()));
            assert_eq!(accept.attributes, kept.into());
        }
        other => panic!("{other:?}"),
    }
    // with the acknowledgement of the first message, and not again where nothing changes
    match &commands[..] {
        [C::Attributes(attributes)] => {
            assert_eq!(attributes.set, [("connectionState".to_owned(), "2".to_owned())].into());
        }
        other => panic!("{other:?}"),
    }
    let told: Vec<[String; 4]> = functions
        .seen()
        .iter()
        .filter(|request| request.method == "POST")
        .map(|request| {
            ["ce-eventname", "ce-userid", "ce-subprotocol", "ce-connectionstate"]
                .map(|name| request.header(name).to_owned())
        })
        .collect();
    let expected = [
        ["connect", "", "", ""],
        ["message", "ada", "v2", "1"],
        ["message", "ada", "v2", "2"],
        ["message", "ada", "v2", "2"],
        ["disconnected", "ada", "v2", "2"],
    ];
    assert_eq!(told, expected.map(|row| row.map(str::to_owned)));
    running.stop().await;
}

#[tokio::test]
async fn what_cannot_be_kept_turns_a_connection_away_rather_than_leave_it_undecided() {
    let functions = Functions::start(|request, _| match request.method.as_str() {
        "OPTIONS" => CONSENT,
        _ => Reaction::Answer(200, "", format!(r#"{{"userId":"{}"}}"#, "x".repeat(4096))),
    })
    .await;
    let mut running = Running::start(upstream(&functions)).await;
    running.opened(1);
    running.settled().await;
    assert_eq!(rejected(&running.commands()[0]).0, 502);
    running.stop().await;
}

#[tokio::test]
async fn without_consent_nobody_is_let_in_and_no_message_is_sent() {
    let functions = Functions::start(|request, _| match request.method.as_str() {
        "OPTIONS" => Reaction::Answer(200, "WebHook-Allowed-Origin: other.example.com\r\n", String::new()),
        _ => Reaction::Answer(200, "", String::new()),
    })
    .await;
    let mut running = Running::start(upstream(&functions)).await;
    running.opened(1);
    running.settled().await;
    assert_eq!(rejected(&running.commands()[0]).0, 502);
    running.stop().await;
    let strict = ApiSettings { on_failure: OnFailure::DeadLetter, registration: None, ..upstream(&functions) };
    let mut running = Running::start(strict).await;
    running.opened(1);
    running.message(1, "hello");
    running.message(1, "hello again");
    running.settled().await;
    let why = "the function's server does not consent to calls: its WebHook-Allowed-Origin is not localhost";
    assert_eq!(running.parked(), [why, why]);
    let methods: Vec<String> = functions.seen().into_iter().map(|request| request.method).collect();
    assert_eq!(methods, ["OPTIONS", "OPTIONS"], "once by each, and no call");
    running.stop().await;
}

#[tokio::test]
async fn a_server_that_consents_in_the_end_gets_what_waited() {
    let functions = Functions::start(|request, n| match request.method.as_str() {
        "OPTIONS" if n == 0 => Reaction::Answer(405, "", String::new()),
        "OPTIONS" => CONSENT,
        _ => Reaction::Answer(204, "", String::new()),
    })
    .await;
    let mut running = Running::start(ApiSettings { registration: None, ..upstream(&functions) }).await;
    running.opened(1);
    running.message(1, "one");
    running.message(1, "two");
    running.settled().await;
    let seen = functions.seen();
    let methods: Vec<&str> = seen.iter().map(|request| request.method.as_str()).collect();
    assert_eq!(methods, ["OPTIONS", "OPTIONS", "POST", "POST"]);
    assert_eq!((&seen[2].body[..], &seen[3].body[..]), (&b"one"[..], &b"two"[..]));
    running.stop().await;
}
