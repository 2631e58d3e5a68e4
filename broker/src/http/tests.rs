//! Every route and every error, over a real node; commands go to the log, or to a stand-in that fails as told.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use parking_lot::Mutex;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use trunkline_proto::{ConnectionId, token::TokenDigest, v1};

use super::{App, Commands, Compat, Page, Pages, Problem, Settings, Submitted, guard, operator, routes};
use crate::{
    access::{Access, Role, TokenConfig},
    grpc::About,
    handlers::Registry,
    link::tests::support::{Broker, Edge, Options, Stream, batch, connection, message},
    submit::Submitter,
};

/// Answers every command with one code.
pub(super) struct Always(pub(super) v1::Code);

impl Commands for Always {
    fn submit<'a>(&'a self, _: &'a str, _: v1::Command) -> Submitted<'a> {
        let status = v1::Status { code: self.0.into(), message: "as told".to_owned() };
        Box::pin(async { Ok(v1::CommandResult { status: Some(status), partition: 0, offset: 0 }) })
    }
}

/// Never answers.
struct Never;

impl Commands for Never {
    fn submit<'a>(&'a self, _: &'a str, _: v1::Command) -> Submitted<'a> {
        Box::pin(std::future::pending())
    }
}

/// Keeps what it is given.
#[derive(Default)]
struct Keeps(Mutex<Vec<(String, v1::Command)>>);

impl Commands for Arc<Keeps> {
    fn submit<'a>(&'a self, key: &'a str, command: v1::Command) -> Submitted<'a> {
        self.0.lock().push((key.to_owned(), command));
        Always(v1::Code::Applied).submit(key, v1::Command::default())
    }
}

pub(super) fn app(broker: &Broker, commands: Arc<dyn Commands>, concurrency: usize) -> Router {
    app_with(broker, commands, concurrency, Compat::new(&crate::config::BrokerConfig::default()))
}

pub(super) fn app_with(broker: &Broker, commands: Arc<dyn Commands>, concurrency: usize, compat: Compat) -> Router {
    app_of(broker, commands, concurrency, compat, Access::default())
}

fn app_for(broker: &Broker, commands: Arc<dyn Commands>, concurrency: usize, access: Access) -> Router {
    app_of(broker, commands, concurrency, Compat::new(&crate::config::BrokerConfig::default()), access)
}

pub(super) fn app_of(
    broker: &Broker,
    commands: Arc<dyn Commands>,
    concurrency: usize,
    compat: Compat,
    access: Access,
) -> Router {
    let settings = Settings {
        submit_timeout: Duration::from_millis(200),
        body_limit: 1024,
        bodies: 1 << 20,
        concurrency,
        access,
        compat,
    };
    let registry = Registry::new(broker.node.clone(), Duration::from_secs(60), CancellationToken::new());
    let page = Page { content_type: "text/html; charset=utf-8".into(), body: Bytes::from_static(b"<p>chat") };
    let pages = Pages([("/demo/chat".to_owned(), page)].into());
    let link = broker.link.clone();
    let about = About {
        broker: 1,
        cluster: "test".to_owned(),
        grpc: "127.0.0.1:7070".to_owned(),
        link: "127.0.0.1:7443".to_owned(),
        edge_lag: Arc::new(move |edge| link.lags().get(edge).copied().unwrap_or_default()),
    };
    App::new(broker.node.clone(), about, registry, commands, crate::metrics::install().unwrap(), pages, settings)
        .router()
}

pub(super) fn real(broker: &Broker) -> Router {
    app(broker, Arc::new(Submitter::new(broker.node.clone(), broker.link.clone())), 16)
}

pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: http::HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn code(&self) -> String {
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/problem+json", "{:?}", self.body);
        let problem = self.json();
        assert_eq!(problem["status"], self.status);
        problem["code"].as_str().unwrap().to_owned()
    }
}

pub(super) async fn send(router: &Router, request: Request<Body>) -> Answer {
    let response = router.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = axum::body::to_bytes(body, 1 << 24).await.unwrap();
    Answer { status: parts.status.as_u16(), headers: parts.headers, body }
}

pub(super) async fn call(router: &Router, method: &str, path: &str, body: &'static str) -> Answer {
    let request = Request::builder().method(method).uri(path).header("content-type", "text/plain");
    send(router, request.body(Body::from(body)).unwrap()).await
}

/// A broker with an edge that holds connection 1 in channel `room`.
pub(super) async fn with_a_connection() -> (Broker, Edge, Stream) {
    let broker = Broker::start(Options::default()).await;
    let edge = Edge::connect(&broker, "a", 1, 0).await;
    let (mut stream, _) = edge.attach(0, 0).await;
    stream.send(batch(1, &[edge.opened(connection(1), &["room"]), message(connection(1), "hello")])).await;
    stream.applied(1).await;
    (broker, edge, stream)
}

#[test]
fn the_document_lists_every_route_and_nothing_else() {
    let document: Value = serde_json::from_str(operator::OPENAPI).unwrap();
    let listed: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| methods.as_object().unwrap().keys().map(|method| (path.clone(), method.clone())))
        .collect();
    let routed: BTreeSet<(String, String)> = routes()
        .iter()
        .flat_map(|route| route.methods.iter().map(|method| (route.path.to_owned(), (*method).to_owned())))
        .collect();
    assert_eq!(listed, routed);
}

/// Holds a value against a schema of objects with all their keys, lists and plain types.
fn described(document: &Value, schema: &Value, value: &Value, place: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        let schema = document.pointer(name.trim_start_matches('#')).unwrap_or_else(|| panic!("{name}"));
        return described(document, schema, value, place);
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let kinds = &schema["type"];
    let is_listed = kinds.as_array().is_some_and(|kinds| kinds.contains(&kind.into()));
    assert!(is_listed || kinds == kind, "{place}: {value} is no {kinds}");
    for (n, item) in value.as_array().into_iter().flatten().enumerate() {
        described(document, &schema["items"], item, &format!("{place}/{n}"));
    }
    if let (Some(object), Some(properties)) = (value.as_object(), schema["properties"].as_object()) {
        let (found, listed): (BTreeSet<_>, BTreeSet<_>) = (object.keys().collect(), properties.keys().collect());
        assert_eq!(found, listed, "{place}");
        for (key, value) in object {
            described(document, &properties[key], value, &format!("{place}/{key}"));
        }
    }
}

#[tokio::test]
async fn the_cluster_is_described_as_the_document_says() {
    let (broker, _edge, _stream) = with_a_connection().await;
    let router = real(&broker);
    let document: Value = serde_json::from_str(operator::OPENAPI).unwrap();
    let schema = document.pointer("/paths/~1v1~1cluster/get/responses/200/content/application~1json/schema").unwrap();
    for path in ["/v1/cluster", "/v1/cluster?local=true"] {
        let cluster = call(&router, "GET", path, "").await.json();
        described(&document, schema, &cluster, path);
        for list in ["brokers", "partitions", "edges"] {
            assert_eq!(cluster[list].as_array().unwrap().len(), 1, "{path} {list}");
        }
        let broker = &cluster["brokers"][0];
        assert_eq!(
            (&broker["standing"], &broker["answered"], &broker["problem"]),
            (&"voter".into(), &true.into(), &"".into())
        );
        assert_eq!(cluster["partitions"][0]["replicas"][0]["lag"], 0);
    }
    broker.stop().await;
}

#[tokio::test]
async fn every_listed_method_is_routed_and_others_are_not() {
    let broker = Broker::start(Options::default()).await;
    let router = app(&broker, Arc::new(Always(v1::Code::Applied)), 16);
    for route in routes() {
        let path = route
            .path
            .replace("{id}", &connection(1).to_string())
            .replace("{channel}", "c")
            .replace("{api}", "a")
            .replace("{stage}", "s");
        for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
            let answer = call(&router, method.as_str(), &path, "").await;
            let listed = route.methods.contains(&method.as_str().to_ascii_lowercase().as_str());
            assert_eq!(answer.status != 405, listed, "{method} {path}");
            if !listed {
                assert_eq!(answer.code(), "method_not_allowed");
                assert!(answer.headers.contains_key(header::ALLOW), "{method} {path}");
            }
        }
    }
    let unknown = call(&router, "GET", "/v2/nothing", "").await;
    assert_eq!((unknown.status, unknown.code().as_str()), (404, "not_found"));
    broker.stop().await;
}

#[tokio::test]
async fn commands_take_effect_and_say_where() {
    let (broker, _edge, mut stream) = with_a_connection().await;
    let router = real(&broker);
    let id = connection(1);
    let pushed = call(&router, "POST", &format!("/v1/connections/{id}/messages"), "hi").await;
    assert_eq!(pushed.status, 200);
    let place = pushed.json();
    assert_eq!(place["partition"], 0);
    assert!(place["offset"].as_str().unwrap().parse::<trunkline_proto::Offset>().is_ok());
    assert_eq!(call(&router, "POST", "/v1/channels/room/messages", "to the room").await.status, 200);
    assert_eq!(call(&router, "POST", "/v1/apis/chat/messages", "to all").await.status, 200);
    let unlogged = call(&router, "POST", "/v1/channels/room/messages?unlogged=true", "typing").await;
    assert_eq!((unlogged.status, unlogged.body.len()), (202, 0));
    let joined = call(&router, "PUT", &format!("/v1/channels/other/connections/{id}"), "").await;
    assert_eq!(joined.status, 204);
    let channel = call(&router, "GET", "/v1/channels/other", "").await.json();
    assert_eq!((&channel["count"], &channel["connections"][0]), (&1.into(), &id.to_string().into()));
    let left = call(&router, "DELETE", &format!("/v1/channels/other/connections/{id}"), "").await;
    assert_eq!(left.status, 204);
    assert_eq!(call(&router, "GET", "/v1/channels/other", "").await.json()["count"], 0);
    let closed = call(&router, "DELETE", &format!("/v1/connections/{id}?code=3001&reason=enough"), "").await;
    assert_eq!(closed.status, 204);
    let gone = call(&router, "POST", &format!("/v1/connections/{id}/messages"), "late").await;
    assert_eq!((gone.status, gone.code().as_str()), (410, "gone"));
    // and the edge hears of it all
    let mut kinds = Vec::new();
    while !kinds.contains(&trunkline_proto::RecordKind::CloseRequested) {
        if let Some(trunkline_proto::link::Frame::Deliveries(frame)) = stream.next().await {
            kinds.extend(frame.deliveries.iter().map(|delivery| delivery.record.kind));
        }
    }
    broker.stop().await;
}

#[tokio::test]
async fn an_idempotency_key_repeats_the_answer_and_not_the_effect() {
    let (broker, _edge, _stream) = with_a_connection().await;
    let router = real(&broker);
    let post = |body: &'static str| {
        let uri = format!("/v1/connections/{}/messages", connection(1));
        let request = Request::post(uri).header("content-type", "text/plain").header("idempotency-key", "k-1");
        send(&router, request.body(Body::from(body)).unwrap())
    };
    let (first, again, other) = (post("once").await, post("once").await, post("another").await);
    assert_eq!((first.status, again.status), (200, 200));
    assert_eq!(first.json(), again.json());
    assert_eq!((other.status, other.code().as_str()), (422, "key_reused"));
    broker.stop().await;
}

#[tokio::test]
async fn what_is_sent_becomes_the_command() {
    let broker = Broker::start(Options::default()).await;
    let keeps = Arc::new(Keeps::default());
    let router = app(&broker, Arc::new(keeps.clone()), 16);
    let (id, other) = (connection(1), connection(2));
    let request = Request::post(format!("/v1/channels/a%2Fb%20%C3%A9/messages?except={id},{other}"))
        .header("content-type", "application/json")
        .header("idempotency-key", "k")
        .body(Body::from("{}"))
        .unwrap();
    assert_eq!(send(&router, request).await.status, 200);
    let (key, command) = keeps.0.lock().pop().unwrap();
    assert_eq!(key, "k");
    let Some(v1::command::Command::Publish(publish)) = command.command else { panic!("{command:?}") };
    assert_eq!((publish.channel.as_str(), publish.kind()), ("a/b é", v1::MessageKind::Text));
    let except: Vec<_> = publish.except.iter().map(|id| ConnectionId::from_slice(id).unwrap()).collect();
    assert_eq!(except, [id, other]);
    let request = Request::post(format!("/v1/connections/{id}/messages")).body(Body::from(&b"\xff\x00"[..])).unwrap();
    assert_eq!(send(&router, request).await.status, 200);
    let Some(v1::command::Command::Push(push)) = keeps.0.lock().pop().unwrap().1.command else { panic!("no push") };
    assert_eq!((push.kind(), &push.payload[..]), (v1::MessageKind::Binary, &b"\xff\x00"[..]));
    broker.stop().await;
}

#[tokio::test]
async fn every_failure_has_its_status() {
    let broker = Broker::start(Options::default()).await;
    let id = connection(1);
    let push = format!("/v1/connections/{id}/messages");
    for (code, status, retry_after) in [
        (v1::Code::Gone, 410, false),
        (v1::Code::TooLarge, 413, false),
        (v1::Code::Throttled, 429, true),
        (v1::Code::NotAuthorized, 403, false),
        (v1::Code::Unknown, 504, false),
        (v1::Code::Invalid, 400, false),
        (v1::Code::KeyReused, 422, false),
        (v1::Code::NoLeader, 503, true),
        (v1::Code::Refused, 409, false),
    ] {
        let router = app(&broker, Arc::new(Always(code)), 16);
        let answer = call(&router, "POST", &push, "x").await;
        assert_eq!(answer.status, status, "{code:?}");
        assert_eq!(answer.headers.contains_key(header::RETRY_AFTER), retry_after, "{code:?}");
        answer.code();
    }
    let never = call(&app(&broker, Arc::new(Never), 16), "POST", &push, "x").await;
    assert_eq!((never.status, never.code().as_str()), (504, "unknown"));
    assert_eq!(never.json()["retry"], "same-key");
    broker.stop().await;
}

#[tokio::test]
async fn what_is_malformed_is_refused_before_the_log() {
    let broker = Broker::start(Options::default()).await;
    let router = real(&broker);
    let id = connection(1);
    let before = broker.node.partition(trunkline_proto::PartitionId(0)).unwrap().tail.applied();
    for (method, path) in [
        ("POST", "/v1/connections/short/messages".to_owned()),
        ("GET", "/v1/connections/!!!".to_owned()),
        ("DELETE", format!("/v1/connections/{id}?code=1005")),
        ("DELETE", format!("/v1/connections/{id}?code=99999")),
        ("DELETE", format!("/v1/connections/{id}?color=red")),
        ("GET", "/v1/connections?limit=0".to_owned()),
        ("GET", "/v1/connections?limit=1001".to_owned()),
        ("GET", "/v1/connections?after=x".to_owned()),
        ("GET", "/v1/connections?unknown=1".to_owned()),
        ("POST", "/v1/channels/a%0Ab/messages".to_owned()),
        ("POST", "/v1/channels/%FF/messages".to_owned()),
        ("POST", "/v1/channels/room/messages?except=x".to_owned()),
        ("POST", "/v1/channels/room/messages?unlogged=maybe".to_owned()),
        ("POST", "/v1/apis/a%20b/messages".to_owned()),
        ("GET", "/v1/log?from=yesterday".to_owned()),
        ("GET", "/v1/log?partition=5".to_owned()),
        ("GET", "/v1/log?partition=99999".to_owned()),
        ("GET", "/v1/log?limit=5000".to_owned()),
        ("GET", "/v1/cluster?local=maybe".to_owned()),
    ] {
        let answer = call(&router, method, &path, "x").await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "invalid"), "{method} {path}");
    }
    let large = Request::post(format!("/v1/connections/{id}/messages")).body(Body::from(vec![b'x'; 1025])).unwrap();
    let large = send(&router, large).await;
    assert_eq!((large.status, large.code().as_str()), (413, "too_large"));
    let reason = "r".repeat(124);
    let long = call(&router, "DELETE", &format!("/v1/connections/{id}?reason={reason}"), "").await;
    assert_eq!(long.status, 413);
    assert_eq!(broker.node.partition(trunkline_proto::PartitionId(0)).unwrap().tail.applied(), before);
    broker.stop().await;
}

#[tokio::test]
async fn pages_of_other_sites_act_on_nothing() {
    let (broker, _edge, _stream) = with_a_connection().await;
    let router = real(&broker);
    let uri = format!("/v1/connections/{}/messages", connection(1));
    let from = |origin: &'static str| {
        let request = Request::post(&uri).header("host", "127.0.0.1:7080").header("origin", origin);
        send(&router, request.body(Body::from("x")).unwrap())
    };
    assert_eq!(from("https://evil.example").await.code(), "cross_site");
    assert_eq!(from("http://127.0.0.1:7080").await.status, 200);
    broker.stop().await;
}

#[tokio::test]
async fn too_much_at_once_is_refused_but_health_is_seen() {
    let broker = Broker::start(Options::default()).await;
    let router = app(&broker, Arc::new(Never), 1);
    let stuck = router.clone();
    let stuck = tokio::spawn(async move {
        call(&stuck, "POST", &format!("/v1/connections/{}/messages", connection(1)), "x").await.status
    });
    tokio::task::yield_now().await;
    let refused = call(&router, "GET", "/v1/cluster", "").await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "overloaded"));
    assert!(refused.headers.contains_key(header::RETRY_AFTER));
    let pushed = call(&router, "POST", "/push/chat", "{}").await;
    assert_eq!((pushed.status, pushed.json()["errNo"].as_u64()), (503, Some(503)));
    let posted = call(&router, "POST", "/prod/@connections/x", "x").await;
    assert_eq!((posted.status, &posted.headers["x-amzn-errortype"]), (429, &"LimitExceededException".parse().unwrap()));
    assert_eq!(call(&router, "GET", "/healthz", "").await.status, 200);
    assert_eq!(call(&router, "GET", "/readyz", "").await.status, 200);
    assert_eq!(call(&router, "GET", "/metrics", "").await.status, 200);
    assert_eq!(stuck.await.unwrap(), 504);
    assert_eq!(call(&router, "GET", "/v1/cluster", "").await.status, 200);
    broker.stop().await;
}

#[tokio::test]
async fn connections_are_listed_in_pages() {
    let broker = Broker::start(Options { partitions: 3, ..Options::default() }).await;
    let edge = Edge::connect(&broker, "a", 1, 0).await;
    let router = real(&broker);
    let mut expected = BTreeSet::new();
    for partition in 0..3u8 {
        let (mut stream, _) = edge.attach(u32::from(partition), 0).await;
        let records: Vec<_> = (1..=7u8)
            .map(|n| {
                let mut id = [n; 16];
                id[..2].copy_from_slice(&[0, partition]);
                expected.insert(ConnectionId(id).to_string());
                edge.opened(ConnectionId(id), &[])
            })
            .collect();
        stream.send(batch(1, &records)).await;
        stream.applied(1).await;
    }
    for limit in [1, 4, 7, 20, 21, 100] {
        let (mut seen, mut after) = (Vec::new(), String::new());
        loop {
            let page =
                call(&router, "GET", &format!("/v1/connections?api=chat&limit={limit}&after={after}"), "").await.json();
            seen.extend(
                page["connections"].as_array().unwrap().iter().map(|c| c["connection"].as_str().unwrap().to_owned()),
            );
            match page["next"].as_str() {
                Some(next) => after = next.to_owned(),
                None => break,
            }
        }
        assert_eq!(seen.len(), 21, "limit {limit}");
        assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), expected, "limit {limit}");
    }
    let none = call(&router, "GET", "/v1/connections?api=other", "").await.json();
    assert_eq!(none["connections"].as_array().unwrap().len(), 0);
    broker.stop().await;
}

#[tokio::test]
async fn the_operator_sees_connections_log_cluster_and_metrics() {
    // before the store opens: what is counted without a recorder is lost
    crate::metrics::install().unwrap();
    let (broker, _edge, _stream) = with_a_connection().await;
    let router = real(&broker);
    let id = connection(1).to_string();
    let one = call(&router, "GET", &format!("/v1/connections/{id}"), "").await.json();
    assert_eq!((&one["connection"], &one["api"], &one["edge"]), (&id.clone().into(), &"chat".into(), &"a".into()));
    assert_eq!(one["channels"][0], "room");
    let of_channel = call(&router, "GET", "/v1/connections?channel=room", "").await.json();
    assert_eq!(of_channel["connections"][0]["connection"], id);
    assert_eq!(call(&router, "GET", &format!("/v1/connections/{}", connection(9)), "").await.status, 410);
    let log = call(&router, "GET", "/v1/log", "").await.json();
    let kinds: Vec<_> =
        log["records"].as_array().unwrap().iter().map(|record| record["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["edge_attached", "connection_opened", "message_received"]);
    assert_eq!(log["records"][2]["text"], "hello");
    // page by page it is the same log
    let (mut paged, mut from) = (Vec::new(), "earliest".to_owned());
    loop {
        let page = call(&router, "GET", &format!("/v1/log?limit=1&from={from}"), "").await.json();
        let records = page["records"].as_array().unwrap().clone();
        if records.is_empty() {
            break;
        }
        paged.extend(records);
        from = page["next"].as_str().unwrap().to_owned();
    }
    assert_eq!(&paged, log["records"].as_array().unwrap());
    let time = log["records"][1]["time"].as_str().unwrap();
    let since = call(&router, "GET", &format!("/v1/log?from={time}"), "").await.json();
    assert!(since["records"].as_array().unwrap().contains(&log["records"][2]));
    let latest = call(&router, "GET", "/v1/log?from=latest", "").await.json();
    assert_eq!(latest["records"].as_array().unwrap().len(), 0);
    let cluster = call(&router, "GET", "/v1/cluster", "").await.json();
    assert_eq!((&cluster["cluster"], &cluster["partitions"][0]["leader"]), (&"test".into(), &1.into()));
    assert_eq!((&cluster["edges"][0]["edge"], &cluster["edges"][0]["attached"]), (&"a".into(), &true.into()));
    assert_eq!(cluster["edges"][0]["connections"], 1);
    assert!(call(&router, "GET", "/v1/groups", "").await.json()["groups"].as_array().unwrap().is_empty());
    let metrics = call(&router, "GET", "/metrics", "").await;
    assert!(std::str::from_utf8(&metrics.body).unwrap().contains("trunkline_storage_healthy"));
    let document = call(&router, "GET", "/v1/openapi.json", "").await;
    assert_eq!(document.json()["openapi"], "3.1.0");
    let page = call(&router, "GET", "/demo/chat", "").await;
    assert_eq!((page.status, &page.body[..]), (200, &b"<p>chat"[..]));
    assert_eq!(page.headers[header::CONTENT_TYPE], "text/html; charset=utf-8");
    assert_eq!(page.headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
    broker.stop().await;
}

#[tokio::test]
async fn a_broker_that_cannot_commit_is_not_ready() {
    let broker = Broker::start(Options::default()).await;
    let router = real(&broker);
    assert_eq!(call(&router, "GET", "/readyz", "").await.status, 200);
    broker.node.shutdown().await;
    let answer = call(&router, "GET", "/readyz", "").await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "unavailable"));
    let push = call(&router, "POST", &format!("/v1/connections/{}/messages", connection(1)), "x").await;
    assert_eq!(push.status, 503, "{:?}", push.body);
    assert_eq!(call(&router, "GET", "/healthz", "").await.status, 200, "the process is well");
    assert_eq!(Problem::unavailable("").status, StatusCode::SERVICE_UNAVAILABLE);
}

/// Answers with the name of who asks.
struct Names(Mutex<Vec<String>>);

impl Commands for Arc<Names> {
    fn submit<'a>(&'a self, key: &'a str, _: v1::Command) -> Submitted<'a> {
        self.0.lock().push(guard::caller().name().to_owned());
        Always(v1::Code::Applied).submit(key, v1::Command::default())
    }
}

/// A token that is its owner's name.
pub(super) fn token(name: &str, role: Role) -> TokenConfig {
    TokenConfig {
        name: name.to_owned(),
        sha256: TokenDigest::of(name),
        role,
        groups: Vec::new(),
        apis: Vec::new(),
        channels: Vec::new(),
    }
}

#[tokio::test]
async fn every_route_but_health_asks_who_comes() {
    let (broker, _edge, _stream) = with_a_connection().await;
    let tokens = vec![token("reader", Role::ReadOnly), token("publisher", Role::Publisher)];
    let names = Arc::new(Names(Mutex::default()));
    let router = app_for(&broker, Arc::new(names.clone()), 16, Access::new(tokens));
    let ask = async |method: &str, path: &str, token: Option<&str>| {
        let request = Request::builder().method(method).uri(path).header("content-type", "text/plain");
        let request = match token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        };
        send(&router, request.body(Body::from("x")).unwrap()).await
    };
    // the surfaces of other gateways say so in their own words (compat_tests.rs)
    let is_open = |path: &str| {
        matches!(path, "/healthz" | "/readyz") || path.starts_with("/push/") || path.contains("@connections")
    };
    for route in routes() {
        let path =
            route.path.replace("{id}", &connection(1).to_string()).replace("{channel}", "c").replace("{api}", "a");
        for method in route.methods.iter().map(|method| method.to_uppercase()).filter(|_| !is_open(&path)) {
            for token in [None, Some("guess"), Some("")] {
                let answer = ask(&method, &path, token).await;
                assert_eq!((answer.status, answer.code().as_str()), (401, "unauthenticated"), "{method} {path}");
                assert_eq!(answer.headers[header::WWW_AUTHENTICATE], "Bearer");
            }
            let reads = method == "GET";
            assert_eq!(ask(&method, &path, Some("reader")).await.status == 403, !reads, "{method} {path}");
        }
    }
    assert!(names.0.lock().is_empty());
    assert_eq!(ask("POST", "/v1/channels/c/messages", Some("publisher")).await.status, 200);
    assert_eq!(*names.0.lock(), ["publisher"]);
    assert_eq!(ask("GET", "/metrics", Some("publisher")).await.code(), "not_authorized");
    assert_eq!(ask("GET", "/nowhere", None).await.status, 401, "nobody learns which paths there are");
    assert_eq!(ask("GET", "/demo/chat", None).await.status, 200);
}
