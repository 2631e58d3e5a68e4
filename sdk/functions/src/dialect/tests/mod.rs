//! The documented JSON of each dialect, both ways. What stands here in full was read off the clouds' documents: users' functions
//! were written against it.

mod anything;
mod aws;
mod cloudevents;
mod scf;

use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::{Value, json};
use trunkline_proto::v1::CloseCause;
use trunkline_sdk::CloseCode;

use super::*;
use crate::FunctionUrl;

const ID: &str = "xawexasdfewezdfsdfeasd";

fn url(path: &str) -> FunctionUrl {
    format!("http://127.0.0.1:9000/{path}").parse().unwrap()
}

fn place() -> Place {
    Place { connection: ID.into(), key: "chat/0/5.0".into(), attempt: 1, time: 1_674_162_806_345_000 }
}

fn header(name: &str, value: &str) -> v1::Header {
    v1::Header { name: name.into(), value: value.into() }
}

fn reply(status: u16, body: impl Into<Bytes>) -> Reply {
    Reply { status: StatusCode::from_u16(status).unwrap(), headers: HeaderMap::new(), body: Some(body.into()) }
}

fn text(call: &Call) -> &str {
    std::str::from_utf8(&call.body).unwrap()
}

fn parsed(call: &Call) -> Value {
    serde_json::from_slice(&call.body).unwrap()
}

fn sent(transmission: Transmission) -> Call {
    match transmission {
        Transmission::Call(call) => call,
        other => panic!("{other:?}"),
    }
}

fn closed(code: u16, reason: &str, cause: CloseCause) -> Closed {
    Closed { code: CloseCode(code), reason: reason.into(), cause }
}
