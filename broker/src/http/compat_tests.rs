//! The reverse push address and `@connections`, over a real node: what functions and SDKs of other gateways are answered.

use std::sync::Arc;

use axum::{Router, body::Body};
use http::{Request, header};
use serde_json::{Value, json};
use trunkline_proto::{ConnectionId, RecordKind, link::Frame, secret::SecretText, v1};

use super::{
    Compat,
    tests::{Always, Answer, app, app_of, app_with, call, real, send, token, with_a_connection},
};
use crate::{
    access::{Access, Role},
    config::{AwsKeyConfig, BrokerConfig},
    link::tests::support::{Broker, Stream, connection},
    submit::Submitter,
};

async fn push(router: &Router, api: &str, body: impl ToString, key: &str) -> (u16, Value) {
    let mut request = Request::post(format!("/push/{api}"));
    if !key.is_empty() {
        request = request.header("idempotency-key", key);
    }
    let answer = send(router, request.body(Body::from(body.to_string())).unwrap()).await;
    let json = answer.json();
    let number = json["errNo"].as_u64().unwrap();
    assert!(json["errMsg"].is_string() && json.as_object().unwrap().len() == 2, "{json}");
    assert_eq!(number, if answer.status == 200 { 0 } else { u64::from(answer.status) }, "{json}");
    assert_eq!(answer.headers.contains_key(header::RETRY_AFTER), matches!(answer.status, 429 | 503));
    (answer.status, json)
}

fn data(id: &str, kind: &str, data: &str) -> Value {
    json!({ "websocket": { "action": "data send", "secConnectionID": id, "dataType": kind, "data": data } })
}

fn with_config(broker: &Broker, config: &BrokerConfig) -> Router {
    assert_eq!(config.validate(), Ok(()));
    let submitter = Submitter::new(broker.node.clone(), broker.link.clone());
    app_with(broker, Arc::new(submitter), 16, Compat::new(config))
}

/// Deliveries to the edge up to and with the first of `last`.
async fn delivered(stream: &mut Stream, last: RecordKind) -> Vec<(RecordKind, Value)> {
    let mut found = Vec::new();
    loop {
        let Some(Frame::Deliveries(frame)) = stream.next().await else { continue };
        for delivery in frame.deliveries {
            let record = delivery.record;
            let shown = match record.kind {
                RecordKind::Pushed => {
                    let push: v1::Pushed = record.decode().unwrap();
                    json!([push.kind, push.payload.to_vec()])
                }
                RecordKind::CloseRequested => json!(record.decode::<v1::CloseRequested>().unwrap().code),
                _ => continue,
            };
            found.push((record.kind, shown));
            if record.kind == last {
                return found;
            }
        }
    }
}

#[tokio::test]
async fn functions_push_text_and_binary_and_close() {
    let (broker, _edge, mut stream) = with_a_connection().await;
    let router = real(&broker);
    let id = connection(1).to_string();
    assert_eq!(push(&router, "chat", data(&id, "text", "höi"), "").await, (200, json!({ "errNo": 0, "errMsg": "ok" })));
    assert_eq!(push(&router, "chat", data(&id, "binary", "AP8B"), "").await.0, 200);
    assert_eq!(push(&router, "chat", data(&id, "text", ""), "").await.0, 200);
    // as a function may write it that echoes what it was given, and adds padding
    let mut echo = data(&format!("{id}=="), "text", "echo");
    echo["websocket"]["secWebSocketProtocol"] = "x".into();
    assert_eq!(push(&router, "chat", echo, "").await.0, 200);
    let closing = json!({ "websocket": { "action": "closing", "secConnectionID": id } });
    assert_eq!(push(&router, "chat", &closing, "").await.0, 200);
    assert_eq!(push(&router, "chat", closing, "").await.0, 410, "it is closing already");
    let told = delivered(&mut stream, RecordKind::CloseRequested).await;
    let payloads: Vec<Value> = told.into_iter().map(|(_, value)| value).collect();
    let bytes = |text: &str| text.as_bytes().to_vec();
    let expected = json!([[1, bytes("höi")], [2, [0, 255, 1]], [1, []], [1, bytes("echo")], 1000]);
    assert_eq!(Value::from(payloads), expected);
    broker.stop().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_push_is_said_and_the_connection_stays() {
    let (broker, _edge, _stream) = with_a_connection().await;
    let router = real(&broker);
    let id = connection(1).to_string();
    let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
    for (body, status) in [
        (String::new(), 400),
        ("hello".to_owned(), 400),
        ("[]".to_owned(), 400),
        ("{\"websocket\":{}}".to_owned(), 400),
        (deep[..3000].to_owned(), 400),
        (json!({ "websocket": { "action": "data recv", "secConnectionID": id } }).to_string(), 400),
        (json!({ "websocket": { "action": "data send", "secConnectionID": id } }).to_string(), 400),
        (json!({ "websocket": { "action": "data send", "secConnectionID": id, "data": "x" } }).to_string(), 400),
        (
            json!({ "websocket": { "action": "data send", "secConnectionID": id, "dataType": "text", "data": {} } })
                .to_string(),
            400,
        ),
        (data(&id, "json", "x").to_string(), 400),
        (data(&id, "binary", "not base64!").to_string(), 400),
        (data(&connection(7).to_string(), "text", "x").to_string(), 410),
        (data("", "text", "x").to_string(), 410),
        (data("../../etc/passwd", "text", "x").to_string(), 410),
        (data("AAAAAAAAAAAAAAAAAAAAAA", "text", "x").to_string(), 410),
        (data(&id, "text", &"x".repeat(1025)).to_string(), 413),
        (data(&id, "text", &"x".repeat(100_000)).to_string(), 413),
    ] {
        let shown: String = body.chars().take(80).collect();
        assert_eq!(push(&router, "chat", body, "").await.0, status, "{shown}");
    }
    // another API's connection looks like none at all
    let (other, none) = (
        push(&router, "other", data(&id, "text", "x"), "").await,
        push(&router, "other", data(&connection(7).to_string(), "text", "x"), "").await,
    );
    assert_eq!((other.0, &other), (410, &none));
    assert_eq!(push(&router, "chat", data(&id, "text", "still here"), "").await.0, 200);
    broker.stop().await;
}

#[tokio::test]
async fn a_push_with_a_key_happens_once() {
    let (broker, _edge, mut stream) = with_a_connection().await;
    let router = real(&broker);
    let id = connection(1).to_string();
    let all = (0..20).map(|_| push(&router, "chat", data(&id, "text", "once"), "k-1"));
    for answer in all {
        assert_eq!(answer.await.0, 200);
    }
    assert_eq!(push(&router, "chat", data(&id, "text", "other"), "k-1").await.0, 422);
    let closing = json!({ "websocket": { "action": "closing", "secConnectionID": id } });
    push(&router, "chat", closing, "").await;
    assert_eq!(delivered(&mut stream, RecordKind::CloseRequested).await.len(), 2, "one push and the close");
    broker.stop().await;
}

#[tokio::test]
async fn failures_of_the_log_keep_their_status() {
    let (broker, _edge, _stream) = with_a_connection().await;
    let id = connection(1).to_string();
    for (code, status, name) in [
        (v1::Code::Throttled, 429, "LimitExceededException"),
        (v1::Code::NoLeader, 503, "ServiceUnavailableException"),
        (v1::Code::TooLarge, 413, "PayloadTooLargeException"),
        (v1::Code::Gone, 410, "GoneException"),
        (v1::Code::NotAuthorized, 403, "ForbiddenException"),
        (v1::Code::Invalid, 400, "BadRequestException"),
    ] {
        let router = app(&broker, Arc::new(Always(code)), 16);
        assert_eq!(push(&router, "chat", data(&id, "text", "x"), "").await.0, status, "{code:?}");
        let posted = call(&router, "POST", &format!("/prod/@connections/{id}"), "x").await;
        assert_eq!((posted.status, fault(&posted)), (status, name), "{code:?}");
    }
    broker.stop().await;
}

#[tokio::test]
async fn the_original_s_close_on_failure_can_be_had() {
    let (broker, _edge, mut stream) = with_a_connection().await;
    let mut config = BrokerConfig::default();
    config.push.close_on_failure = true;
    let router = with_config(&broker, &config);
    let id = connection(1).to_string();
    assert_eq!(push(&router, "other", data(&id, "binary", "!"), "").await.0, 410, "another API's is left alone");
    assert_eq!(push(&router, "chat", data(&id, "binary", "!"), "").await.0, 400);
    assert_eq!(delivered(&mut stream, RecordKind::CloseRequested).await, [(RecordKind::CloseRequested, json!(1011))]);
    broker.stop().await;
}

#[tokio::test]
async fn an_unsigned_push_is_refused_where_signatures_are_asked_for() {
    let (broker, _edge, _stream) = with_a_connection().await;
    let mut config = BrokerConfig::default();
    config.push.secrets = vec![SecretText::new("0123456789abcdef"), SecretText::new("fedcba9876543210")];
    let router = with_config(&broker, &config);
    let body = data(&connection(1).to_string(), "text", "x").to_string();
    assert_eq!(push(&router, "chat", &body, "").await.0, 401);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let signed = |secret: &str, signed_body: &str| {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
        let tag = ring::hmac::sign(&key, format!("msg-1.{now}.{signed_body}").as_bytes());
        let signature = format!("v1,{}", base64::Engine::encode(&base64::engine::general_purpose::STANDARD, tag));
        let request = Request::post("/push/chat").header("webhook-id", "msg-1").header("webhook-timestamp", now);
        let request = request.header("webhook-signature", signature).body(Body::from(body.clone())).unwrap();
        send(&router, request)
    };
    for secret in ["0123456789abcdef", "fedcba9876543210"] {
        assert_eq!(signed(secret, &body).await.status, 200);
    }
    assert_eq!(signed("another secret of ours", &body).await.status, 401);
    assert_eq!(signed("0123456789abcdef", &format!("{body} ")).await.status, 401);
    broker.stop().await;
}

fn fault(answer: &Answer) -> &str {
    assert!(answer.json()["message"].is_string());
    answer.headers["x-amzn-errortype"].to_str().unwrap()
}

#[tokio::test]
async fn connections_are_managed_as_the_sdks_ask_for_it() {
    let (broker, _edge, mut stream) = with_a_connection().await;
    let router = real(&broker);
    let id = connection(1);
    for path in
        [format!("/prod/@connections/{id}"), format!("/@connections/{id}"), format!("/a/@connections/{id}%3D%3D")]
    {
        let posted = call(&router, "POST", &path, "hello").await;
        assert_eq!((posted.status, posted.body.len()), (200, 0), "{path}");
    }
    let bytes = Request::post(format!("/prod/@connections/{id}")).body(Body::from(&b"\xff\x00"[..])).unwrap();
    assert_eq!(send(&router, bytes).await.status, 200);
    let got = call(&router, "GET", &format!("/prod/@connections/{id}"), "").await;
    let shown = got.json();
    assert_eq!(got.status, 200);
    assert!(shown["connectedAt"].as_str().unwrap().ends_with('Z'), "{shown}");
    assert_eq!(shown["lastActiveAt"], shown["connectedAt"], "it has said nothing yet");
    assert!(shown["identity"]["sourceIp"].is_string() && shown["identity"]["userAgent"].is_string(), "{shown}");
    let deleted = call(&router, "DELETE", &format!("/prod/@connections/{id}"), "").await;
    assert_eq!((deleted.status, deleted.body.len()), (204, 0));
    let told = delivered(&mut stream, RecordKind::CloseRequested).await;
    let kinds: Vec<&Value> = told.iter().map(|(_, value)| value.get(0).unwrap_or(value)).collect();
    assert_eq!(kinds, [&json!(1), &json!(1), &json!(1), &json!(2), &json!(1000)], "what is text is sent as text");
    for (method, id) in [("POST", id), ("DELETE", id), ("GET", ConnectionId([9; 16])), ("POST", ConnectionId([9; 16]))]
    {
        let gone = call(&router, method, &format!("/prod/@connections/{id}"), "x").await;
        assert_eq!((gone.status, fault(&gone)), (410, "GoneException"), "{method}");
    }
    let strange = call(&router, "POST", "/prod/@connections/L0SM9cOFvHcCIhw=", "x").await;
    assert_eq!((strange.status, fault(&strange)), (410, "GoneException"), "another gateway's id");
    let large = Request::post("/prod/@connections/x").body(Body::from(vec![b'x'; (128 << 10) + 1])).unwrap();
    let large = send(&router, large).await;
    assert_eq!((large.status, fault(&large)), (413, "PayloadTooLargeException"));
    broker.stop().await;
}

#[tokio::test]
async fn an_unsigned_request_is_forbidden_where_there_are_keys() {
    let (broker, _edge, _stream) = with_a_connection().await;
    let mut config = BrokerConfig::default();
    config.aws.keys = vec![AwsKeyConfig { id: "AKID".into(), secret: SecretText::new("0123456789abcdef") }];
    let router = with_config(&broker, &config);
    for method in ["POST", "GET", "DELETE"] {
        let refused = call(&router, method, &format!("/prod/@connections/{}", connection(1)), "").await;
        assert_eq!((refused.status, fault(&refused)), (403, "ForbiddenException"), "{method}");
    }
    broker.stop().await;
}

#[tokio::test]
async fn where_tokens_are_asked_for_a_push_is_signed_or_brings_one() {
    let (broker, _edge, _stream) = with_a_connection().await;
    let access = Access::new(vec![token("publisher", Role::Publisher), token("reader", Role::ReadOnly)]);
    let router = |config: &BrokerConfig| {
        let submitter = Submitter::new(broker.node.clone(), broker.link.clone());
        app_of(&broker, Arc::new(submitter), 16, Compat::new(config), access.clone())
    };
    let (id, plain) = (connection(1).to_string(), router(&BrokerConfig::default()));
    let ask = async |router: &Router, path: &str, token: &str| {
        let request = Request::post(path).header("authorization", format!("Bearer {token}"));
        send(router, request.body(Body::from(data(&id, "text", "x").to_string())).unwrap()).await
    };
    let managed = format!("/prod/@connections/{id}");
    for (wrong, status) in [("guess", 401), ("reader", 403)] {
        let answer = ask(&plain, "/push/chat", wrong).await;
        assert_eq!((answer.status, answer.json()["errNo"].as_u64()), (status, Some(u64::from(status))));
        let answer = ask(&plain, &managed, wrong).await;
        assert_eq!(answer.status, 403, "as AWS has it");
        assert_eq!(answer.headers["x-amzn-errortype"], "ForbiddenException");
    }
    assert_eq!(ask(&plain, "/push/chat", "publisher").await.status, 200);
    assert_eq!(ask(&plain, &managed, "publisher").await.status, 200);

    // the signature is what counts where one is asked for: whose token it is makes no difference
    let mut config = BrokerConfig::default();
    config.push.secrets = vec![SecretText::new("whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")];
    config.aws.keys = vec![AwsKeyConfig { id: "key".to_owned(), secret: SecretText::new("secret") }];
    let signed = router(&config);
    assert_eq!(ask(&signed, "/push/chat", "publisher").await.status, 401);
    // paths that only look like theirs ask for a token as everything does
    for path in [
        format!("/push/@connections/{id}"),
        "/v1/channels/@connections/messages".to_owned(),
        "/push/chat/more".to_owned(),
    ] {
        let mut config = BrokerConfig::default();
        config.push.secrets = vec![SecretText::new("whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")];
        assert!(matches!(ask(&router(&config), &path, "guess").await.status, 401 | 403), "{path}");
        let mut config = BrokerConfig::default();
        config.aws.keys = vec![AwsKeyConfig { id: "key".to_owned(), secret: SecretText::new("secret") }];
        assert!(matches!(ask(&router(&config), &path, "guess").await.status, 401 | 403), "{path}");
    }
    assert_eq!(ask(&signed, &managed, "publisher").await.status, 403);
}
