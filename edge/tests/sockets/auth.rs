//! Who may come in, over real sockets: tokens in every place, none of them in a record, and their end.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::hmac::{HMAC_SHA256, Key, sign};
use trunkline_edge::{
    config::{AuthConfig, Registration},
    inbox::ShardInput,
};
use trunkline_proto::{token::TokenDigest, v1::CloseCause};

use crate::support::{Edge, RawClient, api, frame, request};

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

/// A list of tokens and what each is good for.
fn list(entries: &[(&str, &str)]) -> String {
    let entry = |(token, principal): &(&str, &str)| {
        format!("[[tokens]]\nsha256 = \"{}\"\nprincipal = \"{principal}\"\n", TokenDigest::of(token))
    };
    entries.iter().map(entry).collect()
}

/// As the edge does when it finds files changed.
async fn reload(edge: &Edge) -> Result<bool, String> {
    let reloaded = edge.apis[0].reload_auth().map_err(|problem| problem.to_string());
    edge.send(ShardInput::AuthChanged(Arc::clone(&edge.apis[0]))).await;
    reloaded
}

async fn come(edge: &Edge, token: &str) -> RawClient {
    let mut client = RawClient::dial(edge.address).await;
    client.send(request(&format!("/echo?access_token={token}")).as_bytes()).await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    edge.log.opened().await;
    client
}

const REVOKED: &str = "token revoked";

async fn expect_revoked(edge: &Edge, client: &mut RawClient) {
    let (opcode, payload) = client.frame().await.unwrap();
    assert_eq!((opcode, &payload[..2], &payload[2..]), (0x88, &1008u16.to_be_bytes()[..], REVOKED.as_bytes()));
    assert_eq!(edge.log.closed().await, (1008, REVOKED.to_owned(), CloseCause::TokenExpired));
}

/// That the client is served: its text becomes a record.
async fn expect_served(edge: &Edge, client: &mut RawClient) {
    client.send(&frame(0x81, b"still here")).await;
    assert_eq!(edge.log.message().await, "still here");
}

#[tokio::test]
async fn a30_a_token_that_is_taken_off_the_list_ends_its_connections_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.toml");
    std::fs::write(&path, list(&[("one", "ada"), ("two", "bob"), ("three", "eve")])).unwrap();
    let config = format!("kind = \"token\"\ntokens_file = {path:?}");
    let edge = Edge::start(vec![api("echo", |api| api.auth = auth(&config))]);
    let (mut one, mut two, mut three) =
        (come(&edge, "one").await, come(&edge, "two").await, come(&edge, "three").await);

    // what is no list changes nothing, and nothing of it is repeated
    for broken in ["", "tokens", "[[tokens]]\nsha256 = \"tl_HUSH\"\nprincipal = \"ada\"", "HUSH = 1\ntokens = []"] {
        std::fs::write(&path, broken).unwrap();
        let problem = reload(&edge).await.unwrap_err();
        assert!(problem.contains("tokens.toml: line ") && !problem.contains("HUSH"), "{problem}");
    }
    let long = format!("[[tokens]]\nsha256 = \"{}\"\nprincipal = \"\"", TokenDigest::of("one"));
    std::fs::write(&path, long).unwrap();
    assert!(reload(&edge).await.unwrap_err().contains("tokens[0]: principal is not 1 to"));
    std::fs::remove_file(&path).unwrap();
    assert!(reload(&edge).await.is_err());
    for client in [&mut one, &mut two, &mut three] {
        expect_served(&edge, client).await;
    }

    // one is gone, the third means somebody else
    std::fs::write(&path, list(&[("two", "bob"), ("three", "mallory"), ("four", "eve")])).unwrap();
    assert_eq!(reload(&edge).await, Ok(true), "some are no more");
    expect_revoked(&edge, &mut one).await;
    expect_revoked(&edge, &mut three).await;
    expect_served(&edge, &mut two).await;
    assert!(answer(&edge, "/echo?access_token=one", "").await.starts_with("HTTP/1.1 401 "));
    std::fs::write(&path, list(&[("two", "bob"), ("three", "mallory"), ("four", "eve"), ("five", "joe")])).unwrap();
    assert_eq!(reload(&edge).await, Ok(false), "nobody need be looked at");
    drop((come(&edge, "four").await, come(&edge, "five").await, two));
    edge.stop().await;
}

#[tokio::test]
async fn a30_a_key_that_is_no_more_ends_the_connections_of_its_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = (folder.path().join("secret"), folder.path().join("other"));
    std::fs::write(&path, format!("{SECRET}\n")).unwrap();
    std::fs::write(&other, "another secret of at least thirty-two bytes").unwrap();
    let config = format!(
        "kind = \"jwt\"\nalgorithms = [\"HS256\"]\nkeys = [\n\
         {{ algorithm = \"HS256\", secret_file = {path:?} }}, {{ algorithm = \"HS256\", secret_file = {other:?} }}]"
    );
    let edge = Edge::start(vec![api("echo", |api| api.auth = auth(&config))]);
    let token = token(now() + 600);
    let mut client = come(&edge, &token).await;
    // the other key is replaced: nobody came by it
    std::fs::write(&other, "a third secret, of at least thirty-two bytes").unwrap();
    reload(&edge).await.unwrap();
    expect_served(&edge, &mut client).await;
    std::fs::write(&path, "short").unwrap();
    assert!(reload(&edge).await.unwrap_err().contains("fewer than 32 bytes"));
    expect_served(&edge, &mut client).await;
    std::fs::write(&path, "one more secret of at least thirty-two bytes").unwrap();
    reload(&edge).await.unwrap();
    expect_revoked(&edge, &mut client).await;
    assert!(answer(&edge, &format!("/echo?access_token={token}"), "").await.starts_with("HTTP/1.1 401 "));
    drop(client);
    edge.stop().await;
}
