use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::json;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use trunkline_functions::{ApiSettings, BridgeError, Brokers, Dialect, OnFailure, Secret, run_until};
use trunkline_proto::secret::SecretText;
use trunkline_sdk::proto::v1::{self, command::Command as C, outcome::Verdict};

use crate::{
    broker::Broker,
    server::{Functions, Reaction, answer},
};

const OK: &str = r#"{"errNo":0,"errMsg":"ok"}"#;

pub struct Running {
    pub broker: Broker,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), BridgeError>>,
    offset: u64,
}

/// Settings of the API that the broker's events belong to; every function at `functions`.
pub fn settings(functions: &Functions) -> ApiSettings {
    let url = |path: &str| Some(functions.url(path).parse().unwrap());
    ApiSettings {
        registration: url("registration"),
        transmission: url("transmission"),
        cleanup: url("cleanup"),
        backoff: Duration::from_millis(10),
        timeout: Duration::from_secs(10),
        ..ApiSettings::new("test", Dialect::Scf)
    }
}

impl Running {
    pub async fn start(settings: ApiSettings) -> Self {
        let broker = Broker::start().await;
        let (stop, stopped) = oneshot::channel();
        let address = broker.address.to_string();
        let stopped = async move { drop(stopped.await) };
        let task = tokio::spawn(async move {
            run_until(&Brokers { addresses: vec![address], ..Brokers::default() }, "one", vec![settings], stopped).await
        });
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        // the broker stamps events with their offsets
        Self { broker, stop: Some(stop), task, offset: now.as_micros() as u64 }
    }

    pub fn event(&mut self, connection: u8, event: v1::event::Event) -> u64 {
        self.offset += 1;
        self.broker.event(self.offset, connection, event);
        self.offset
    }

    pub fn message(&mut self, connection: u8, text: &str) -> u64 {
        let message = v1::MessageReceived { kind: 1, payload: text.to_owned().into() };
        self.event(connection, v1::event::Event::Message(message))
    }

    pub fn opened(&mut self, connection: u8) -> u64 {
        let opened = v1::ConnectionOpened {
            handler_group: "test".into(),
            subprotocols: vec!["v1".into(), "v2".into()],
            ..Default::default()
        };
        self.event(connection, v1::event::Event::Opened(opened))
    }

    pub fn closed(&mut self, connection: u8, cause: v1::CloseCause) -> u64 {
        let closed = v1::ConnectionClosed { code: 1000, reason: String::new(), cause: cause as i32 };
        self.event(connection, v1::event::Event::Closed(closed))
    }

    pub async fn settled(&self) {
        self.broker.until_all_settled().await;
    }

    pub fn commands(&self) -> Vec<C> {
        let commits = self.broker.with(|state| state.commits.clone());
        commits.into_iter().flat_map(|commit| commit.commands).filter_map(|command| command.command).collect()
    }

    fn verdicts(&self) -> Vec<Verdict> {
        let commits = self.broker.with(|state| state.commits.clone());
        commits.into_iter().flat_map(|commit| commit.outcomes).filter_map(|outcome| outcome.verdict).collect()
    }

    /// Reasons of what was parked.
    pub fn parked(&self) -> Vec<String> {
        let reason = |verdict| if let Verdict::Parked(parked) = verdict { Some(parked.reason) } else { None };
        self.verdicts().into_iter().filter_map(reason).collect()
    }

    pub async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        tokio::time::timeout(Duration::from_secs(20), self.task).await.unwrap().unwrap().unwrap();
    }
}

/// What a registration that is answered so comes to.
async fn registered(change: impl FnOnce(&mut ApiSettings), react: fn(usize) -> Reaction) -> (C, usize) {
    let functions = Functions::start(move |_, n| react(n)).await;
    let mut settings = settings(&functions);
    settings.timeout = Duration::from_millis(300);
    change(&mut settings);
    let mut running = Running::start(settings).await;
    running.opened(1);
    running.settled().await;
    let decision = running.commands().remove(0);
    running.stop().await;
    (decision, functions.seen().len())
}

pub fn rejected(command: &C) -> (u32, String) {
    match command {
        C::Reject(reject) => (reject.status, String::from_utf8_lossy(&reject.body).into_owned()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_answer_decides_a_registration() {
    let yes = |_| answer(200, r#"{"errNo":0,"errMsg":"","websocket":{"secWebSocketProtocol":"v2"}}"#);
    match registered(|_| {}, yes).await.0 {
        C::Accept(accept) => assert_eq!(accept.subprotocol, "v2"),
        other => panic!("{other:?}"),
    }
    let no = registered(|_| {}, |_| answer(200, r#"{"errNo":7,"errMsg":"no"}"#)).await;
    assert_eq!((rejected(&no.0), no.1), ((403, r#"{"errNo":7,"errMsg":"no"}"#.into()), 1));
    // the table of failures: what is tried again, and what the client gets
    let failed = |status: u32, calls: usize| {
        move |(command, seen): (C, usize)| assert_eq!((rejected(&command).0, seen), (status, calls))
    };
    failed(502, 1)(registered(|_| {}, |_| answer(404, OK)).await);
    failed(502, 1)(registered(|_| {}, |_| answer(201, OK)).await);
    failed(502, 1)(registered(|_| {}, |_| answer(200, "nonsense")).await);
    failed(502, 3)(registered(|_| {}, |_| answer(500, OK)).await);
    failed(502, 1)(registered(|settings| settings.retries = 0, |_| answer(500, OK)).await);
    failed(502, 3)(registered(|_| {}, |_| Reaction::Cut).await);
    failed(504, 3)(registered(|_| {}, |_| Reaction::Silence).await);
    failed(504, 1)(
        registered(|settings| settings.registration_timeout = Duration::from_millis(200), |_| Reaction::Silence).await,
    );
    failed(502, 1)(registered(|settings| settings.max_response = 1000, |_| answer(200, "x".repeat(1001))).await);
    failed(502, 1)(registered(|_| {}, |_| Reaction::Endless).await);
}

#[tokio::test]
async fn a_registration_that_is_late_is_asked_of_nobody() {
    let functions = Functions::start(|_, _| answer(200, OK)).await;
    let mut running = Running::start(settings(&functions)).await;
    running.offset -= 60_000_000;
    running.opened(1);
    running.settled().await;
    assert_eq!((rejected(&running.commands()[0]).0, functions.seen().len()), (504, 0));
    running.stop().await;
}

#[tokio::test]
async fn without_a_registration_function_everybody_is_let_in() {
    let functions = Functions::start(|_, _| answer(200, "")).await;
    let mut running = Running::start(ApiSettings { registration: None, ..settings(&functions) }).await;
    running.opened(1);
    running.settled().await;
    assert!(matches!(running.commands()[0], C::Accept(_)));
    assert_eq!(functions.seen().len(), 0);
    running.stop().await;
}

#[tokio::test]
async fn what_may_pass_is_tried_again_at_once_with_the_same_key() {
    let functions = Functions::start(|_, n| answer(if n < 2 { 503 } else { 200 }, "")).await;
    let mut running = Running::start(settings(&functions)).await;
    let offset = running.message(1, "hello");
    running.settled().await;
    let seen = functions.seen();
    assert_eq!(seen.len(), 3);
    assert_eq!(running.verdicts().len(), 1, "the log never heard of it");
    let place = format!("test/0/{}.{}", offset >> 16, offset & 0xffff);
    for request in seen {
        let sent = ["idempotency-key", "x-trunkline-api", "x-trunkline-attempt", "content-type"]
            .map(|name| request.header(name).to_owned());
        assert_eq!(sent, [place.as_str(), "test", "1", "application/json"]);
        let id = request.header("x-trunkline-connection");
        let expected = json!({ "websocket": { "action": "data send", "secConnectionID": id, "dataType": "text", "data": "hello" } });
        assert_eq!((id.len(), request.json()), (22, expected));
    }
    running.stop().await;
}

#[tokio::test]
async fn a_function_that_is_away_is_called_again_later_and_the_others_go_on() {
    let place = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = place.local_addr().unwrap();
    drop(place);
    let present = Functions::start(|_, _| answer(200, "")).await;
    let mut api = settings(&present);
    api.cleanup = Some(format!("http://{address}/cleanup").parse().unwrap());
    api.retries = 0;
    let mut running = Running::start(api).await;
    running.closed(1, v1::CloseCause::Client);
    running.message(2, "hello");
    let refused = |state: &crate::broker::State| {
        let outcomes = state.commits.iter().flat_map(|commit| &commit.outcomes);
        outcomes.filter(|outcome| matches!(outcome.verdict, Some(Verdict::Refused(_)))).count() > 2
    };
    running.broker.until("given back to the log, several times", refused).await;
    assert_eq!(present.seen().len(), 1);
    let back = Functions::on(TcpListener::bind(address).await.unwrap(), |_, _| answer(200, ""));
    running.settled().await;
    let attempt: u32 = back.seen()[0].header("x-trunkline-attempt").parse().unwrap();
    assert!(attempt > 3, "{attempt}");
    running.stop().await;
}

#[tokio::test]
async fn a_connection_s_calls_never_overlap_and_all_together_are_bounded() {
    const AT_ONCE: usize = 4;
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let count = (now.clone(), most.clone());
    let functions = Functions::start(move |_, _| {
        let at_once = count.0.fetch_add(1, Ordering::SeqCst) + 1;
        count.1.fetch_max(at_once, Ordering::SeqCst);
        let now = count.0.clone();
        // counted down as the answer leaves
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(4)).await;
            now.fetch_sub(1, Ordering::SeqCst);
        });
        Reaction::After(Duration::from_millis(5), 200, String::new())
    })
    .await;
    let mut running = Running::start(ApiSettings { concurrency: AT_ONCE, ..settings(&functions) }).await;
    for n in 0..10 {
        for connection in 1..=10 {
            running.message(connection, &n.to_string());
        }
    }
    running.settled().await;
    let mut order: HashMap<String, Vec<String>> = HashMap::new();
    for request in functions.seen() {
        let websocket = request.json()["websocket"].clone();
        let data = websocket["data"].as_str().unwrap().to_owned();
        order.entry(websocket["secConnectionID"].to_string()).or_default().push(data);
    }
    let expected: Vec<String> = (0..10).map(|n| n.to_string()).collect();
    assert_eq!((order.len(), order.values().all(|seen| *seen == expected)), (10, true), "{order:?}");
    let most = most.load(Ordering::SeqCst);
    assert!((2..=AT_ONCE).contains(&most), "{most} at once");
    running.stop().await;
}

#[tokio::test]
async fn a_function_that_hangs_keeps_nobody_out() {
    let hanging = Functions::start(|_, _| Reaction::Silence).await;
    let functions = Functions::start(|_, _| answer(200, OK)).await;
    let transmission = Some(hanging.url("transmission").parse().unwrap());
    let mut running = Running::start(ApiSettings { transmission, concurrency: 1, ..settings(&functions) }).await;
    for connection in 1..=20 {
        running.message(connection, "hello");
    }
    running.opened(30);
    let accepted = |state: &crate::broker::State| {
        let mut commands = state.commits.iter().flat_map(|commit| &commit.commands);
        commands.any(|command| matches!(command.command, Some(C::Accept(_))))
    };
    running.broker.until("the new connection is let in", accepted).await;
    assert_eq!((hanging.seen().len(), functions.seen().len()), (1, 1), "one call hangs, the others wait for its place");
    running.task.abort();
}

#[tokio::test]
async fn the_wait_before_another_attempt_takes_no_place() {
    let functions = Functions::start(|request, _| {
        let is_first = request.json()["websocket"]["data"] == "away";
        answer(if is_first { 503 } else { 200 }, "")
    })
    .await;
    let patient = ApiSettings { concurrency: 1, retries: 10, backoff: Duration::from_secs(20), ..settings(&functions) };
    let mut running = Running::start(patient).await;
    running.message(1, "away");
    running.message(2, "here");
    let settled = |state: &crate::broker::State| !state.commits.is_empty();
    running.broker.until("the other connection's event is done", settled).await;
    assert_eq!(functions.seen().len(), 2);
    running.task.abort();
}

#[tokio::test]
async fn connections_are_kept_and_one_that_was_closed_loses_no_event() {
    let functions = Functions::start(|_, n| if n == 5 { Reaction::AnswerAndCut } else { answer(200, "") }).await;
    let mut running = Running::start(settings(&functions)).await;
    for _ in 0..10 {
        running.message(1, "hello");
        running.settled().await;
    }
    assert_eq!(functions.connections.load(Ordering::SeqCst), 2);
    assert_eq!(running.verdicts().len(), 10);
    running.stop().await;
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let elsewhere = Functions::start(|_, _| answer(200, "")).await;
    let location: &'static str = Box::leak(format!("location: {}\r\n", elsewhere.url("x")).into_boxed_str());
    let functions = Functions::start(move |_, _| Reaction::Answer(307, location, String::new())).await;
    let mut running = Running::start(ApiSettings { on_failure: OnFailure::DeadLetter, ..settings(&functions) }).await;
    running.message(1, "hello");
    running.settled().await;
    assert_eq!(running.parked(), ["the function answered 307 Temporary Redirect"]);
    assert_eq!((functions.seen().len(), elsewhere.seen().len()), (1, 0));
    running.stop().await;
}

#[tokio::test]
async fn an_endless_answer_is_cut_and_ignored_where_it_does_not_matter() {
    let functions = Functions::start(|_, _| Reaction::Endless).await;
    let mut running = Running::start(settings(&functions)).await;
    running.message(1, "hello");
    running.settled().await;
    assert_eq!((running.parked().len(), functions.seen().len()), (0, 1), "200 was its status");
    running.stop().await;
}

#[tokio::test]
async fn on_failure_close_ends_the_connection_and_keeps_what_has_none() {
    let functions = Functions::start(|_, _| answer(400, "")).await;
    let mut running = Running::start(ApiSettings { on_failure: OnFailure::Close, ..settings(&functions) }).await;
    running.message(1, "hello");
    running.settled().await;
    match &running.commands()[..] {
        [C::Close(close)] => assert_eq!((close.code, close.reason.as_str()), (1011, "the function failed")),
        other => panic!("{other:?}"),
    }
    running.closed(1, v1::CloseCause::Handler);
    running.settled().await;
    assert_eq!(running.parked(), ["the function answered 400 Bad Request"]);
    running.stop().await;
}

#[tokio::test]
async fn who_was_turned_away_is_not_cleaned_up_and_everybody_else_is() {
    let functions = Functions::start(|_, _| answer(200, "")).await;
    let mut running = Running::start(settings(&functions)).await;
    let causes =
        [v1::CloseCause::Rejected, v1::CloseCause::EdgeLost, v1::CloseCause::RegistrationTimeout, v1::CloseCause::Idle];
    for (connection, cause) in (1..).zip(causes) {
        running.closed(connection, cause);
    }
    running.settled().await;
    let seen: Mutex<Vec<String>> = Mutex::default();
    functions.seen().iter().for_each(|request| {
        seen.lock().unwrap().push(request.json()["websocket"]["closeCause"].as_str().unwrap().to_owned());
    });
    let mut seen = seen.into_inner().unwrap();
    seen.sort();
    assert_eq!(seen, ["edge_lost", "idle", "registration_timeout"]);
    running.stop().await;
}

/// What a function thinks that was called and not heard: that the connection is there.
#[tokio::test]
async fn who_was_turned_away_without_an_answer_is_cleaned_up() {
    let functions = Functions::start(|request, n| match &*request.json()["websocket"]["action"].to_string() {
        "\"closing\"" if n == 7 => answer(500, ""), // comes again
        "\"closing\"" => answer(200, ""),
        _ => match n {
            0 => Reaction::Silence,
            1 => Reaction::Cut,
            2 => answer(504, ""),
            3 => answer(200, "what"),
            4 => answer(500, ""),
            5 => answer(403, ""),
            _ => answer(200, r#"{"errNo":1,"errMsg":"no"}"#),
        },
    })
    .await;
    let brief = ApiSettings { timeout: Duration::from_millis(300), retries: 0, ..settings(&functions) };
    let mut running = Running::start(brief).await;
    for connection in 1..=7 {
        running.opened(connection);
        running.settled().await;
    }
    for connection in 1..=7 {
        running.closed(connection, v1::CloseCause::Rejected);
        running.settled().await;
    }
    let statuses: Vec<_> = running.commands().iter().map(|command| rejected(command).0).collect();
    assert_eq!(statuses, [504, 502, 502, 502, 502, 502, 403]);
    let seen = functions.seen();
    let ids: Vec<_> = seen.iter().map(|request| request.json()["websocket"]["secConnectionID"].clone()).collect();
    assert_eq!(ids[7..], [&ids[0], &ids[0], &ids[1], &ids[2], &ids[3]].map(Clone::clone), "the first one twice");
    running.stop().await;
}

/// It was asked and took too long, and was asked again and said no: it is not there.
#[tokio::test]
async fn a_refusal_after_an_attempt_without_an_answer_counts() {
    let functions = Functions::start(|_, n| match n {
        0 => Reaction::Silence,
        _ => answer(200, r#"{"errNo":1,"errMsg":"no"}"#),
    })
    .await;
    let brief = ApiSettings { timeout: Duration::from_millis(300), ..settings(&functions) };
    let mut running = Running::start(brief).await;
    running.opened(1);
    running.closed(1, v1::CloseCause::Rejected);
    running.settled().await;
    assert_eq!((rejected(&running.commands()[0]).0, functions.seen().len()), (403, 2));
    running.stop().await;
}

#[tokio::test]
async fn an_answer_is_pushed_with_the_acknowledgement_where_the_api_says_so() {
    let functions = Functions::start(|_, _| answer(200, "you said something")).await;
    let mut running = Running::start(ApiSettings { integration_response: true, ..settings(&functions) }).await;
    running.message(1, "hello");
    running.settled().await;
    let commits = running.broker.with(|state| state.commits.clone());
    assert_eq!((commits.len(), commits[0].outcomes.len(), commits[0].commands.len()), (1, 1, 1));
    assert_eq!(running.broker.with(|state| state.pushed()), ["you said something"]);
    running.stop().await;
}

#[tokio::test]
async fn an_answer_that_cannot_be_pushed_is_a_failure_and_not_tried_for_ever() {
    let functions = Functions::start(|_, _| answer(200, "x".repeat((16 << 20) + 1))).await;
    let most = ApiSettings {
        integration_response: true,
        max_response: 24 << 20,
        on_failure: OnFailure::DeadLetter,
        ..settings(&functions)
    };
    let mut running = Running::start(most).await;
    running.message(1, "hello");
    running.settled().await;
    assert_eq!((running.parked().len(), functions.seen().len()), (1, 1));
    running.stop().await;
}

#[tokio::test]
async fn who_is_in_already_may_be_shown_the_door_and_a_failure_is_like_any_other() {
    let functions = Functions::start(|_, n| match n {
        0 => answer(200, r#"{"errNo":7,"errMsg":"no"}"#),
        1 => answer(404, ""),
        _ => answer(200, OK),
    })
    .await;
    let accepting = ApiSettings { decides: false, on_failure: OnFailure::DeadLetter, ..settings(&functions) };
    let mut running = Running::start(accepting).await;
    let opened = || v1::event::Event::Opened(v1::ConnectionOpened::default());
    running.event(1, opened());
    running.settled().await;
    match &running.commands()[..] {
        [C::Close(close)] => assert_eq!(close.code, 1008),
        other => panic!("{other:?}"),
    }
    running.event(2, opened());
    running.settled().await;
    assert_eq!(running.parked(), ["the function answered 404 Not Found"]);
    running.event(3, opened());
    running.settled().await;
    assert_eq!((running.commands().len(), running.parked().len()), (1, 1), "the third is welcome");
    running.stop().await;
}

/// A connection from its first event to its last, of somebody called Ada.
async fn life(settings: ApiSettings) -> Running {
    let mut running = Running::start(settings).await;
    let opened = v1::ConnectionOpened {
        handler_group: "test".into(),
        peer: "10.0.2.14:5000".into(),
        principal: "ada".into(),
        headers: vec![v1::Header { name: "host".into(), value: "example.com:8080".into() }],
        subprotocols: vec!["v1".into()],
        ..Default::default()
    };
    running.event(1, v1::event::Event::Opened(opened));
    running.message(1, r#"{"action":"send"}"#);
    running.closed(1, v1::CloseCause::Client);
    running.settled().await;
    running
}

#[tokio::test]
async fn cloud_events_reach_their_upstream() {
    let functions =
        Functions::start(|_, n| answer(if n == 0 { 204 } else { 200 }, if n == 1 { "welcome" } else { "" })).await;
    let dialect = ApiSettings { dialect: Dialect::CloudEvents, integration_response: true, ..settings(&functions) };
    let running = life(dialect).await;
    assert!(matches!(running.commands()[0], C::Accept(_)));
    assert_eq!(running.broker.with(|state| state.pushed()), ["welcome"]);
    let seen = functions.seen();
    let types: Vec<&str> = seen.iter().map(|request| request.header("ce-type")).collect();
    assert_eq!(
        types,
        ["azure.webpubsub.sys.connect", "azure.webpubsub.user.message", "azure.webpubsub.sys.disconnected"]
    );
    assert!(seen.iter().all(|request| request.header("ce-userid") == "ada" && request.header("ce-hub") == "test"));
    assert_eq!(seen[1].body, br#"{"action":"send"}"#);
    running.stop().await;
}

#[tokio::test]
async fn lambda_events_reach_their_routes() {
    let functions = Functions::start(|_, _| {
        answer(200, r#"{"statusCode":200,"headers":{"Sec-WebSocket-Protocol":"v1"},"body":"thanks"}"#)
    })
    .await;
    let route = |path: &str| (path.to_owned(), functions.url("x").parse().unwrap());
    let dialect = ApiSettings {
        routes: ["$connect", "$disconnect", "send"].map(route).into(),
        route_selection: Some("$request.body.action".parse().unwrap()),
        integration_response: true,
        ..ApiSettings::new("test", Dialect::Aws)
    };
    let running = life(dialect).await;
    match &running.commands()[0] {
        C::Accept(accept) => assert_eq!(accept.subprotocol, "v1"),
        other => panic!("{other:?}"),
    }
    assert_eq!(running.broker.with(|state| state.pushed()), ["thanks"]);
    let contexts: Vec<_> = functions.seen().iter().map(|request| request.json()["requestContext"].clone()).collect();
    let routes: Vec<_> = contexts.iter().map(|context| context["routeKey"].as_str().unwrap()).collect();
    assert_eq!(routes, ["$connect", "send", "$disconnect"]);
    for context in &contexts {
        assert_eq!(
            (&context["identity"]["sourceIp"], &context["domainName"]),
            (&json!("10.0.2.14"), &json!("example.com"))
        );
        assert_eq!(
            (&context["authorizer"]["principalId"], &context["connectedAt"]),
            (&json!("ada"), &contexts[0]["connectedAt"])
        );
    }
    running.stop().await;
}

#[tokio::test]
async fn calls_are_signed_and_carry_the_operator_s_headers() {
    let functions = Functions::start(|_, _| answer(200, "")).await;
    let secret = "0123456789abcdef";
    let running = ApiSettings {
        secrets: [secret, "another secret, the next"].map(|text| Secret::new(&SecretText::new(text)).unwrap()).into(),
        headers: vec![
            ("authorization".parse().unwrap(), "Bearer x".parse().unwrap()),
            ("idempotency-key".parse().unwrap(), "mine".parse().unwrap()),
        ],
        ..settings(&functions)
    };
    let mut running = Running::start(running).await;
    running.message(1, "hello");
    running.settled().await;
    let request = functions.seen().remove(0);
    assert_eq!(request.header("authorization"), "Bearer x");
    assert_ne!(request.header("idempotency-key"), "mine", "ours cannot be replaced");
    let (id, time) = (request.header("webhook-id"), request.header("webhook-timestamp"));
    assert_eq!(id, request.header("idempotency-key"));
    let signed = [id.as_bytes(), b".", time.as_bytes(), b".", &request.body].concat();
    let tag = ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes()), &signed);
    let expected = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, tag);
    let signatures: Vec<&str> = request.header("webhook-signature").split(' ').collect();
    assert_eq!((signatures.len(), signatures[0]), (2, format!("v1,{expected}").as_str()));
    let age = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() - time.parse::<u64>().unwrap();
    assert!(age < 60);
    running.stop().await;
}

#[tokio::test]
async fn wrong_settings_are_refused_at_once() {
    let nothing = ApiSettings::new("test", Dialect::Scf);
    let error = run_until(
        &Brokers { addresses: vec!["127.0.0.1:1".to_owned()], ..Brokers::default() },
        "one",
        vec![nothing],
        std::future::pending(),
    )
    .await
    .unwrap_err();
    assert!(matches!(error, BridgeError::Settings { .. }), "{error}");
}
