//! What a token of some APIs does and sees over HTTP.

use std::sync::Arc;

use axum::{Router, body::Body};
use http::Request;
use serde_json::{Value, json};
use tokio_stream::StreamExt as _;
use trunkline_proto::{ConnectionId, secret::SecretText};

use super::{
    Compat, operator,
    tests::{Answer, app_of, send, token, with_a_connection},
};
use crate::{
    access::{Access, Role, TokenConfig},
    config::{AwsKeyConfig, BrokerConfig},
    link::tests::support::{Broker, connection},
    submit::Submitter,
};

fn router(broker: &Broker) -> Router {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let of =
        |name: &str, api| TokenConfig { apis: names(&[api]), channels: names(&[name]), ..token(name, Role::Publisher) };
    let access = Access::new(vec![of("chat", "chat"), of("bank", "bank"), token("all", Role::Publisher)]);
    let submitter = Submitter::new(broker.node.clone(), broker.link.clone());
    app_of(broker, Arc::new(submitter), 16, Compat::new(&BrokerConfig::default()), access)
}

async fn ask(router: &Router, token: &str, method: &str, path: &str, body: String) -> Answer {
    let request = Request::builder().method(method).uri(path).header("content-type", "text/plain");
    send(router, request.header("authorization", format!("Bearer {token}")).body(Body::from(body)).unwrap()).await
}

#[tokio::test]
async fn connections_of_other_apis_are_not_there() {
    let (broker, _edge, _stream) = with_a_connection().await;
    let router = router(&broker);
    let (own, nobody) = (connection(1), ConnectionId([9; 16]));
    let asks = |id: ConnectionId| {
        let document = json!({ "websocket": { "action": "data send", "secConnectionID": id.to_string(), "dataType": "text", "data": "x" } });
        [
            ("GET", format!("/v1/connections/{id}"), String::new()),
            ("POST", format!("/v1/connections/{id}/messages"), "x".to_owned()),
            ("PUT", format!("/v1/channels/bank/connections/{id}"), String::new()),
            ("DELETE", format!("/v1/channels/bank/connections/{id}"), String::new()),
            ("POST", format!("/prod/@connections/{id}"), "x".to_owned()),
            ("GET", format!("/prod/@connections/{id}"), String::new()),
            ("POST", "/push/bank".to_owned(), document.to_string()),
            ("DELETE", format!("/prod/@connections/{id}"), String::new()),
            ("DELETE", format!("/v1/connections/{id}"), String::new()),
        ]
    };
    for ((method, path, body), (_, same, other)) in asks(own).into_iter().zip(asks(nobody)) {
        let foreign = ask(&router, "bank", method, &path, body).await;
        let unknown = ask(&router, "bank", method, &same, other).await;
        assert_eq!((foreign.status, &foreign.body), (410, &unknown.body), "{method} {path}");
        assert_eq!(unknown.status, 410);
    }
    for (method, path) in [
        ("POST", "/v1/apis/chat/messages"),
        ("POST", "/v1/channels/room/messages"),
        ("POST", "/v1/channels/room/messages?unlogged=true"),
        ("PUT", &format!("/v1/channels/room/connections/{own}")),
        ("GET", "/v1/channels/room"),
        ("GET", "/v1/connections?api=chat"),
        ("GET", "/v1/connections?channel=room"),
        ("POST", "/push/chat"),
    ] {
        let document = json!({ "websocket": { "action": "closing", "secConnectionID": own.to_string() } });
        assert_eq!(ask(&router, "bank", method, path, document.to_string()).await.status, 403, "{method} {path}");
    }
    let listed = async |token: &str| {
        let listed = ask(&router, token, "GET", "/v1/connections", String::new()).await.json();
        listed["connections"].as_array().unwrap().len()
    };
    assert_eq!((listed("bank").await, listed("chat").await, listed("all").await), (0, 1, 1));
    for (method, path, body) in asks(own) {
        let (path, body) = (path.replace("bank", "chat"), body);
        let answer = ask(&router, "chat", method, &path, body).await;
        // the first close is the last thing it takes
        let expected = if path.starts_with("/v1/connections") && method == "DELETE" { 410..411 } else { 200..205 };
        assert!(expected.contains(&answer.status), "{method} {path}: {}", answer.status);
    }
    broker.stop().await;
}

#[tokio::test]
async fn a_path_names_one_api() {
    let (broker, _edge, _stream) = with_a_connection().await;
    let document = json!({ "websocket": { "action": "closing", "secConnectionID": connection(1).to_string() } });
    for path in ["/push/chat,bank", "/push/bank,chat", "/push/%2A", "/push/%2C"] {
        assert_eq!(ask(&router(&broker), "all", "POST", path, document.to_string()).await.status, 410, "{path}");
    }
    assert_eq!(ask(&router(&broker), "all", "POST", "/push/chat", document.to_string()).await.status, 200);
    broker.stop().await;
}

#[tokio::test]
async fn the_document_says_of_every_operation_who_may() {
    let (broker, _edge, _stream) = with_a_connection().await;
    let roles = [
        ("handler", Role::Handler),
        ("operator", Role::Operator),
        ("publisher", Role::Publisher),
        ("read_only", Role::ReadOnly),
    ];
    let access = Access::new(roles.map(|(name, role)| token(name, role)).to_vec());
    let submitter = Submitter::new(broker.node.clone(), broker.link.clone());
    let router = app_of(&broker, Arc::new(submitter), 16, Compat::new(&BrokerConfig::default()), access);
    let document: Value = serde_json::from_str(operator::OPENAPI).unwrap();
    let schemes = &document["components"]["securitySchemes"];
    for (path, methods) in document["paths"].as_object().unwrap() {
        let id = ConnectionId([9; 16]).to_string();
        let asked = path.replace("{id}", &id).replace("{channel}", "c").replace("{api}", "a").replace("{stage}", "s");
        for (method, operation) in methods.as_object().unwrap() {
            let place = format!("{method} {path}");
            let security = operation["security"].as_array().unwrap_or_else(|| panic!("{place} says nothing"));
            let named = security.iter().flat_map(|one| one.as_object().unwrap().keys());
            assert!(named.into_iter().all(|name| schemes[name].is_object()), "{place}");
            let refusals = if path.contains('@') { &["403"][..] } else { &["401", "403"] };
            for status in refusals {
                let is_listed = operation["responses"][status].is_object();
                assert_eq!(is_listed, !security.is_empty(), "{place} {status}");
            }
            let may = |name: &str| operation["x-roles"].as_array().is_none_or(|roles| roles.contains(&name.into()));
            for (name, _) in roles {
                let answer = ask(&router, name, &method.to_uppercase(), &asked, String::new()).await;
                assert_eq!(answer.status != 403, may(name), "{place} {name}: {}", answer.status);
            }
            let stranger = ask(&router, "guess", &method.to_uppercase(), &asked, String::new()).await;
            assert_eq!(matches!(stranger.status, 401 | 403), !security.is_empty(), "{place}");
        }
    }
    broker.stop().await;
}

#[tokio::test]
async fn an_encoded_at_is_the_same_path() {
    let (broker, _edge, _stream) = with_a_connection().await;
    let router = router(&broker);
    let id = connection(1);
    for path in [
        format!("/prod/%40connections/{id}"),
        format!("/%40connections/{id}"),
        format!("/prod/%40connections/{id}%3D%3D"),
    ] {
        assert_eq!(ask(&router, "chat", "POST", &path, "x".to_owned()).await.status, 200, "{path}");
        let refused = ask(&router, "guess", "POST", &path, "x".to_owned()).await;
        assert_eq!(
            (refused.status, &refused.headers["x-amzn-errortype"]),
            (403, &"ForbiddenException".parse().unwrap())
        );
    }
    broker.stop().await;
}

#[tokio::test]
async fn a_body_is_not_read_before_its_headers_are_judged() {
    let (broker, _edge, _stream) = with_a_connection().await;
    let mut config = BrokerConfig::default();
    config.push.secrets = vec![SecretText::new("0123456789abcdef")];
    config.aws.keys = vec![AwsKeyConfig { id: "AKID".into(), secret: SecretText::new("0123456789abcdef") }];
    let submitter = Submitter::new(broker.node.clone(), broker.link.clone());
    let router = app_of(&broker, Arc::new(submitter), 16, Compat::new(&config), Access::default());
    let never = || Body::from_stream(tokio_stream::pending::<Result<bytes::Bytes, std::io::Error>>());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let managed = format!("/prod/@connections/{}", connection(1));
    let tag = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    let early = [
        ("/push/chat", 401, vec![]),
        ("/push/chat", 401, vec![("webhook-id", "a".to_owned()), ("webhook-timestamp", now.to_string())]),
        (
            "/push/chat",
            401,
            vec![
                ("webhook-id", "a".to_owned()),
                ("webhook-timestamp", (now - 400).to_string()),
                ("webhook-signature", tag.to_owned()),
            ],
        ),
        (
            "/push/chat",
            401,
            vec![
                ("webhook-id", "a".to_owned()),
                ("webhook-timestamp", now.to_string()),
                ("webhook-signature", "v1,AAAA".to_owned()),
            ],
        ),
        (managed.as_str(), 403, vec![]),
        (
            managed.as_str(),
            403,
            vec![
                (
                    "authorization",
                    "AWS4-HMAC-SHA256 Credential=OTHER/a/b/c/aws4_request, SignedHeaders=host, Signature=00".to_owned(),
                ),
                ("x-amz-date", "20150830T123600Z".to_owned()),
            ],
        ),
    ];
    for (path, status, headers) in early {
        let request =
            headers.into_iter().fold(Request::post(path), |request, (name, value)| request.header(name, value));
        let answer = send(&router, request.body(never()).unwrap());
        let answer = tokio::time::timeout(std::time::Duration::from_secs(10), answer).await.expect("answered at once");
        assert_eq!(answer.status, status, "{path}");
    }
    broker.stop().await;
}

#[tokio::test]
async fn who_has_signed_nothing_yet_takes_nobody_s_place() {
    let (broker, _edge, _stream) = with_a_connection().await;
    let mut config = BrokerConfig::default();
    config.push.secrets = vec![SecretText::new("0123456789abcdef")];
    let router = |concurrency| {
        let submitter = Submitter::new(broker.node.clone(), broker.link.clone());
        app_of(&broker, Arc::new(submitter), concurrency, Compat::new(&config), Access::default())
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let push = |tag: String, body: Body| {
        let request = Request::post("/push/chat").header("webhook-id", "a").header("webhook-timestamp", now);
        request.header("webhook-signature", tag).body(body).unwrap()
    };
    let tag = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=".to_owned();
    let never = Body::from_stream(tokio_stream::pending::<Result<bytes::Bytes, std::io::Error>>());
    let one = router(1);
    let slow = send(&one, push(tag.clone(), never));
    tokio::pin!(slow);
    assert!(tokio::time::timeout(std::time::Duration::ZERO, &mut slow).await.is_err(), "it waits for the body");
    assert_eq!(ask(&one, "", "GET", "/v1/cluster", String::new()).await.status, 200);
    // nor all the room for bodies: as much comes as is let in, and no more
    let full = router(16);
    let mut held = Vec::new();
    for size in [7 << 10, 1 << 10] {
        let some = || Ok::<_, std::io::Error>(bytes::Bytes::from(vec![b'x'; size]));
        loop {
            let body = Body::from_stream(tokio_stream::once(some()).chain(tokio_stream::pending()));
            let mut slow = Box::pin(send(&full, push(tag.clone(), body)));
            match tokio::time::timeout(std::time::Duration::ZERO, &mut slow).await {
                Ok(refused) => break assert_eq!(refused.status, 503),
                Err(_) => held.push(slow),
            }
        }
    }
    let message = format!("/v1/connections/{}/messages", connection(1));
    assert_eq!(ask(&full, "", "POST", &message, "x".to_owned()).await.status, 200);
    drop(held);
    // who has takes one like everybody
    let keys = super::Keys::signing(&config.push.secrets);
    let body =
        json!({ "websocket": { "action": "closing", "secConnectionID": connection(1).to_string() } }).to_string();
    let tag = ring::hmac::sign(&keys[0], format!("a.{now}.{body}").as_bytes());
    let tag = format!("v1,{}", base64::Engine::encode(&base64::engine::general_purpose::STANDARD, tag));
    for (concurrency, status) in [(0, 503), (1, 200)] {
        let answer = send(&router(concurrency), push(tag.clone(), Body::from(body.clone()))).await;
        assert_eq!(answer.status, status, "{concurrency}");
    }
    broker.stop().await;
}
