//! What the documents leave to the reader.

use http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};

use super::*;
use crate::Dialect;

fn settings() -> ApiSettings {
    let url = Some("http://127.0.0.1:9000/".parse().unwrap());
    ApiSettings { registration: url, ..ApiSettings::new("testsvc", Dialect::Scf) }
}

fn place() -> Place {
    Place { connection: "c".into(), key: "k".into(), attempt: 1, time: 0 }
}

fn offered(headers: &[(&str, &str)]) -> Value {
    let header = |(name, value): &(&str, &str)| v1::Header { name: (*name).into(), value: (*value).into() };
    let opened = v1::ConnectionOpened { headers: headers.iter().map(header).collect(), ..Default::default() };
    let event: Value = serde_json::from_slice(&registration(&settings(), &place(), &opened).unwrap().body).unwrap();
    event["websocket"]["secWebSocketExtensions"].clone()
}

#[test]
fn extensions_offered_by_several_headers_are_all_told() {
    let name = "sec-websocket-extensions";
    assert_eq!(offered(&[("host", "h"), (name, "a; x=1"), (name, "b")]), json!("a; x=1,b"));
    assert_eq!(offered(&[("host", "h")]), Value::Null);
}

#[test]
fn a_packed_answer_is_read_by_nobody() {
    let body = br#"{"errNo":0,"errMsg":"ok"}"#;
    let mut reply = Reply { status: StatusCode::OK, headers: HeaderMap::new(), body: Some(body.to_vec().into()) };
    let decided = |reply: &Reply| decide(&settings(), reply, &v1::ConnectionOpened::default());
    assert_eq!(decided(&reply), Ok(Decision::accept()));
    reply.headers.insert("content-encoding", HeaderValue::from_static("identity"));
    assert_eq!(decided(&reply), Ok(Decision::accept()));
    reply.headers.insert("content-encoding", HeaderValue::from_static("gzip"));
    assert!(matches!(decided(&reply), Err(Failure::Nonsense(_))));
}
