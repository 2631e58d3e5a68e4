//! What a token of some APIs does and sees over HTTP.

use std::sync::Arc;

use axum::{Router, body::Body};
use http::Request;
use serde_json::json;
use trunkline_proto::ConnectionId;

use super::{
    Compat,
    tests::{Answer, app_of, send, token, with_a_connection},
};
use crate::{
    access::{Access, Role, TokenConfig},
    config::BrokerConfig,
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
