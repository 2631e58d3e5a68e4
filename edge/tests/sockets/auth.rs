//! Who may come in, over real sockets: tokens in every place, none of them in a record, and their end.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::hmac::{HMAC_SHA256, Key, sign};
use trunkline_edge::config::{AuthConfig, Registration};
use trunkline_proto::v1::CloseCause;

use crate::support::{Edge, RawClient, api, request};

const SECRET: &str = "a secret of at least thirty-two bytes";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn token(expires: u64) -> String {
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let claims = format!(r#"{{"sub":"ada","role":"admin","exp":{expires}}}"#);
    let text = format!("{}.{}", encode(r#"{"alg":"HS256"}"#), encode(&claims));
    let tag = sign(&Key::new(HMAC_SHA256, SECRET.as_bytes()), text.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref()))
}

fn auth(text: &str) -> AuthConfig {
    toml::from_str(text).unwrap()
}

fn start() -> Edge {
    let jwt = format!(
        "kind = \"jwt\"\nalgorithms = [\"HS256\"]\nattributes = [\"role\"]\nleeway = \"0s\"\n\
         keys = [{{ algorithm = \"HS256\", secret = \"{SECRET}\" }}]"
    );
    Edge::start(vec![
        api("echo", |api| api.auth = auth(&jwt)),
        api("asked", |api| {
            api.auth = auth(&jwt);
            api.registration = Registration::Handler;
        }),
    ])
}

/// The first line of the answer and what follows it, of a request with these headers.
async fn answer(edge: &Edge, path: &str, headers: &str) -> String {
    let mut client = RawClient::dial(edge.address).await;
    client.send(request(path).replace("Host:", &format!("{headers}Host:")).as_bytes()).await;
    client.head().await
}

#[tokio::test]
async fn a_token_is_taken_from_each_place_and_kept_in_none() {
    let edge = start();
    let token = token(now() + 600);
    let header = format!("Authorization: Bearer {token}\r\n");
    let offer = format!("Sec-WebSocket-Protocol: bearer, {token}\r\n");
    for (path, headers) in [
        ("/echo?a=1", header.as_str()),
        (&format!("/echo?a=1&access_token={token}"), ""),
        (&format!("/echo?access_token={token}&a=1"), ""),
        ("/echo?a=1", &offer),
    ] {
        let head = answer(&edge, path, headers).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(!head.contains(&token), "{head}");
        assert_eq!(head.contains("Sec-WebSocket-Protocol: bearer\r\n"), headers == offer, "{head}");
        let (_, opened) = edge.log.opened().await;
        assert_eq!((opened.principal.as_str(), opened.query.as_str()), ("ada", "a=1"));
        assert_eq!(opened.attributes, [("role".to_owned(), "admin".to_owned())].into());
        assert!(!format!("{opened:?}").contains(&token), "{opened:?}");
        assert_eq!(edge.log.closed().await.2, CloseCause::ClientVanished);
    }
    for (path, headers) in [
        ("/echo", String::new()),
        ("/echo", format!("Authorization: Bearer {token}x\r\n")),
        ("/echo", format!("Authorization: Basic {token}\r\n")),
        (&format!("/echo?access_token={token}"), header.clone()),
        (&format!("/echo?access_token={}", self::token(now() - 60)), String::new()),
        ("/asked", String::new()),
    ] {
        let head = answer(&edge, path, &headers).await;
        assert!(head.starts_with("HTTP/1.1 401 ") && head.contains("WWW-Authenticate: Bearer"), "{head}");
        assert!(!head.contains(&token), "{head}");
    }
    // only a token may be long: it is not kept
    let long = format!("Sec-WebSocket-Protocol: bearer, {token}, {}\r\n", "a".repeat(257));
    assert!(answer(&edge, "/echo", &long).await.starts_with("HTTP/1.1 400 "));
    let head = answer(&edge, "/echo", &format!("{header}{header}")).await;
    assert!(head.starts_with("HTTP/1.1 400 "), "which of the two? {head}");
    // the same edge still serves
    assert!(answer(&edge, "/echo", &header).await.starts_with("HTTP/1.1 101 "));
    edge.stop().await;
}

#[tokio::test]
async fn a_connection_ends_with_its_token() {
    let edge = start();
    let mut client = RawClient::dial(edge.address).await;
    client.send(request(&format!("/echo?access_token={}", token(now() + 2))).as_bytes()).await;
    assert!(client.head().await.starts_with("HTTP/1.1 101 "));
    edge.log.opened().await;
    let (opcode, payload) = client.frame().await.unwrap();
    assert_eq!((opcode, &payload[..2], &payload[2..]), (0x88, &1008u16.to_be_bytes()[..], &b"token expired"[..]));
    assert_eq!(edge.log.closed().await, (1008, "token expired".to_owned(), CloseCause::TokenExpired));
    drop(client);
    edge.stop().await;
}
