//! What a handler is given: the three kinds of events, and messages.

use std::ops::Deref;

use bytes::Bytes;
use trunkline_proto::{
    CloseCode, RecordKind, text,
    v1::{self, CloseCause, MessageKind},
};

/// The kinds of events a handler may subscribe to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// A connection was opened.
    Opened,
    /// A message was received.
    Message,
    /// A connection was closed.
    Closed,
}

impl EventKind {
    pub(crate) fn number(self) -> u32 {
        let kind = match self {
            Self::Opened => RecordKind::ConnectionOpened,
            Self::Message => RecordKind::MessageReceived,
            Self::Closed => RecordKind::ConnectionClosed,
        };
        u32::from(kind as u8)
    }
}

/// A WebSocket message, text or binary. Cloning copies no payload.
///
/// ```
/// use trunkline_sdk::Message;
/// assert_eq!(Message::from("hello").text(), Some("hello"));
/// assert_eq!(Message::binary(vec![1, 2]).text(), None);
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    text: bool,
    payload: Bytes,
}

impl Message {
    /// A text message.
    pub fn new_text(text: impl Into<String>) -> Self {
        Self { text: true, payload: Bytes::from(text.into()) }
    }

    /// A binary message.
    pub fn binary(payload: impl Into<Bytes>) -> Self {
        Self { text: false, payload: payload.into() }
    }

    /// A text message of bytes that must be UTF-8.
    pub fn text_from_bytes(payload: Bytes) -> Result<Self, std::str::Utf8Error> {
        std::str::from_utf8(&payload)?;
        Ok(Self { text: true, payload })
    }

    /// The text; `None` for a binary message.
    pub fn text(&self) -> Option<&str> {
        // checked by every constructor, and by the edge for what comes from a client
        self.text.then(|| std::str::from_utf8(&self.payload).unwrap_or_default())
    }

    /// Whether it is a text message.
    pub fn is_text(&self) -> bool {
        self.text
    }

    /// The bytes, of either kind.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The bytes, of either kind.
    pub fn into_payload(self) -> Bytes {
        self.payload
    }

    pub(crate) fn kind(&self) -> MessageKind {
        if self.text { MessageKind::Text } else { MessageKind::Binary }
    }

    /// Text that is not UTF-8 cannot come from an edge; from elsewhere it is handed over as binary.
    pub(crate) fn received(message: v1::MessageReceived) -> Self {
        let text = message.kind() == MessageKind::Text && std::str::from_utf8(&message.payload).is_ok();
        Self { text, payload: message.payload }
    }
}

impl From<&str> for Message {
    fn from(text: &str) -> Self {
        Self::new_text(text)
    }
}

impl From<String> for Message {
    fn from(text: String) -> Self {
        Self::new_text(text)
    }
}

impl From<Bytes> for Message {
    fn from(payload: Bytes) -> Self {
        Self::binary(payload)
    }
}

impl From<Vec<u8>> for Message {
    fn from(payload: Vec<u8>) -> Self {
        Self::binary(payload)
    }
}

/// A connection as it was opened. Its fields are those of [`v1::ConnectionOpened`].
#[derive(Clone, PartialEq, Debug)]
pub struct Opened(pub(crate) v1::ConnectionOpened);

impl Opened {
    /// The value of a header (of the API's allow-list); names in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.0.headers, |candidate| candidate.eq_ignore_ascii_case(name))
    }

    /// The value of a path parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        find(&self.0.parameters, |candidate| candidate == name)
    }

    /// The first value of a query parameter, percent-decoded; `+` is a space.
    pub fn query_parameter(&self, name: &str) -> Option<String> {
        text::query_pairs(&self.0.query).find_map(|(key, value)| (key == name).then_some(value))
    }
}

impl Deref for Opened {
    type Target = v1::ConnectionOpened;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

fn find(headers: &[v1::Header], matches: impl Fn(&str) -> bool) -> Option<&str> {
    headers.iter().find(|header| matches(&header.name)).map(|header| header.value.as_str())
}

/// Why and how a connection ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Closed {
    /// The close code; 1006 where no close frame was seen.
    pub code: CloseCode,
    /// The close frame's reason.
    pub reason: String,
    /// Who or what closed it.
    pub cause: CloseCause,
}

impl Closed {
    pub(crate) fn new(closed: v1::ConnectionClosed) -> Self {
        let cause = closed.cause();
        let code = CloseCode(u16::try_from(closed.code).unwrap_or(CloseCode::ABNORMAL.0));
        Self { code, reason: closed.reason, cause }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_parameters_are_decoded() {
        let opened =
            Opened(v1::ConnectionOpened { query: "a=1&name=J%C3%B6rg+B&bad=%zz&flag".into(), ..Default::default() });
        assert_eq!(opened.query_parameter("name").as_deref(), Some("Jörg B"));
        assert_eq!(opened.query_parameter("bad").as_deref(), Some("%zz"));
        assert_eq!(opened.query_parameter("flag").as_deref(), Some(""));
        assert_eq!(opened.query_parameter("none"), None);
    }

    #[test]
    fn headers_are_found_in_any_case() {
        let header = v1::Header { name: "user-agent".into(), value: "x".into() };
        let opened = Opened(v1::ConnectionOpened { headers: vec![header], ..Default::default() });
        assert_eq!(opened.header("User-Agent"), Some("x"));
    }

    #[test]
    fn text_that_is_not_utf8_is_handed_over_as_binary() {
        let message = v1::MessageReceived { kind: MessageKind::Text as i32, payload: Bytes::from_static(&[0xff]) };
        assert!(!Message::received(message).is_text());
    }
}
