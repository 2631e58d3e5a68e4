//! The dialects: an event becomes a call, an answer becomes a decision. Pure: no clock, no sockets.

mod aws;
mod cloudevents;
mod scf;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use trunkline_proto::{text, v1};
use trunkline_sdk::{Closed, Message};

use crate::{
    call::{Call, Place, Reply},
    failure::Failure,
    kept::Said,
    known::Identity,
    settings::{ApiSettings, Dialect},
};

/// What becomes of a new connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Decision {
    Accept {
        /// One of those the client offered.
        subprotocol: Option<String>,
    },
    /// With an HTTP status of 400 to 599.
    Reject { status: u16, body: Bytes },
}

impl Decision {
    pub(crate) fn accept() -> Self {
        Self::Accept { subprotocol: None }
    }
}

/// What becomes of a message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Transmission {
    Call(Call),
    /// No function is for it: the client is told.
    Answer(String),
    /// Nobody wants it.
    Nothing,
}

/// Whether messages and closes of this dialect tell who the connection is.
pub(crate) fn tells_identity(dialect: Dialect) -> bool {
    match dialect {
        Dialect::Scf => false,
        Dialect::Aws | Dialect::CloudEvents => true,
    }
}

/// Whether answers of this dialect leave something with the connection.
pub(crate) fn keeps(dialect: Dialect) -> bool {
    dialect == Dialect::CloudEvents
}

/// The call for a new connection, if there is a function for it.
pub(crate) fn registration(settings: &ApiSettings, place: &Place, opened: &v1::ConnectionOpened) -> Option<Call> {
    match settings.dialect {
        Dialect::Scf => scf::registration(settings, place, opened),
        Dialect::Aws => aws::registration(settings, place, opened),
        Dialect::CloudEvents => cloudevents::registration(settings, place, opened),
    }
}

/// What the answer to [`registration`] decides.
pub(crate) fn decide(
    settings: &ApiSettings,
    reply: &Reply,
    opened: &v1::ConnectionOpened,
) -> Result<Decision, Failure> {
    match settings.dialect {
        Dialect::Scf => scf::decide(settings, reply, opened),
        Dialect::Aws => aws::decide(settings, reply, opened),
        Dialect::CloudEvents => cloudevents::decide(settings, reply, opened),
    }
}

/// What else the answer to [`registration`] says of a connection that is let in.
pub(crate) fn welcome(settings: &ApiSettings, reply: &Reply) -> Result<Said, Failure> {
    if keeps(settings.dialect) { cloudevents::welcome(settings, reply) } else { Ok(Said::default()) }
}

/// The call for a connection that is open now, if there is a function for it.
pub(crate) fn connected(settings: &ApiSettings, place: &Place, who: &Identity) -> Option<Call> {
    if keeps(settings.dialect) { cloudevents::connected(settings, place, who) } else { None }
}

/// What to do with a message.
pub(crate) fn transmission(settings: &ApiSettings, place: &Place, who: &Identity, message: &Message) -> Transmission {
    match settings.dialect {
        Dialect::Scf => scf::transmission(settings, place, message),
        Dialect::Aws => aws::transmission(settings, place, who, message),
        Dialect::CloudEvents => cloudevents::transmission(settings, place, who, message),
    }
}

/// What to send to the client after [`transmission`]: the answer, where the API asks for it.
pub(crate) fn response(settings: &ApiSettings, reply: &Reply) -> Result<Option<Message>, Failure> {
    match settings.dialect {
        Dialect::Scf => scf::response(settings, reply),
        Dialect::Aws => aws::response(settings, reply),
        Dialect::CloudEvents => cloudevents::response(settings, reply),
    }
}

/// What else the answer to [`transmission`] says of the connection.
pub(crate) fn said(settings: &ApiSettings, reply: &Reply) -> Result<Said, Failure> {
    if keeps(settings.dialect) { cloudevents::said(reply) } else { Ok(Said::default()) }
}

/// The call for a closed connection, if there is a function for it.
pub(crate) fn cleanup(settings: &ApiSettings, place: &Place, who: &Identity, closed: &Closed) -> Option<Call> {
    match settings.dialect {
        Dialect::Scf => scf::cleanup(settings, place, closed),
        Dialect::Aws => aws::cleanup(settings, place, who, closed),
        Dialect::CloudEvents => cloudevents::cleanup(settings, place, who, closed),
    }
}

/// Whether the answer to [`cleanup`] is one that it was done.
pub(crate) fn done(settings: &ApiSettings, reply: &Reply) -> Result<(), Failure> {
    match settings.dialect {
        Dialect::Scf => scf::succeeded(reply),
        Dialect::Aws => aws::done(reply),
        Dialect::CloudEvents => succeeded(reply),
    }
}

/// Any 2xx is a success.
fn succeeded(reply: &Reply) -> Result<(), Failure> {
    if reply.status.is_success() { Ok(()) } else { Err(Failure::of(reply)) }
}

/// The body, which matters. Nothing but the body itself was asked for: a packed one is not what it seems to be.
fn body<'a>(settings: &ApiSettings, reply: &'a Reply) -> Result<&'a Bytes, Failure> {
    if let Some(encoding) = reply.headers.get(http::header::CONTENT_ENCODING).filter(|encoding| *encoding != "identity")
    {
        return Err(Failure::Nonsense(format!("content-encoding {encoding:?}, which was not asked for")));
    }
    reply.body.as_ref().ok_or(Failure::TooLarge(settings.max_response))
}

/// The body as JSON, which matters.
fn json<T: serde::de::DeserializeOwned>(settings: &ApiSettings, reply: &Reply) -> Result<T, Failure> {
    serde_json::from_slice(body(settings, reply)?).map_err(|error| Failure::Nonsense(error.to_string()))
}

/// Why a connection was closed, in a word.
fn cause(closed: &Closed) -> String {
    closed.cause.as_str_name().trim_start_matches("CLOSE_CAUSE_").to_ascii_lowercase()
}

/// A body that must be sent as it stands, and is sent as text where it is text.
fn message(body: &Bytes) -> Option<Message> {
    (!body.is_empty()).then(|| Message::text_from_bytes(body.clone()).unwrap_or_else(|_| Message::binary(body.clone())))
}

/// The first of a comma-separated list that the client offered. Functions echo the client's whole header, and browsers close
/// a connection whose answer names something else.
fn chosen(listed: &str, offered: &[String]) -> Option<String> {
    listed.split(',').map(str::trim).find(|name| offered.iter().any(|offer| offer == name)).map(str::to_owned)
}

/// Query parameters in order, decoded; `+` is a space.
fn query(query: &str) -> Vec<(String, String)> {
    text::query_pairs(query).collect()
}
