//! HTTP answers of the WebSocket port: 101, a handler's refusal, or an RFC 9457 problem.

use std::fmt::Write as _;

use bytes::Bytes;
use trunkline_proto::v1;

use super::handshake::is_token;

/// Most bytes of headers a handler may add to 101.
const ADDED_HEADERS_BYTES_MAX: usize = 8 << 10;

/// An answer after which the connection ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    headers: Vec<(&'static str, String)>,
    content_type: &'static str,
    body: Bytes,
}

impl Answer {
    /// A problem document (RFC 9457). `detail` is for people, and shown to strangers.
    pub fn new(status: u16, detail: &str) -> Self {
        let body = format!(
            "{{\"type\":\"about:blank\",\"title\":\"{}\",\"status\":{status},\"detail\":\"{}\"}}\n",
            reason(status),
            json_escaped(detail)
        );
        Self { status, headers: Vec::new(), content_type: "application/problem+json", body: body.into() }
    }

    /// 400.
    pub fn bad_request(detail: &str) -> Self {
        Self::new(400, detail)
    }

    /// 503, to be tried again.
    pub fn unavailable(detail: &str, retry_after_seconds: u32) -> Self {
        Self::new(503, detail).header("Retry-After", &retry_after_seconds.to_string())
    }

    /// A handler's refusal; a status that is no refusal becomes 403.
    pub fn rejected(status: u32, body: Bytes) -> Self {
        let status = u16::try_from(status).ok().filter(|status| (400..=599).contains(status)).unwrap_or(403);
        if body.is_empty() {
            return Self::new(status, "the connection was rejected");
        }
        let is_json = matches!(body.trim_ascii_start().first(), Some(b'{' | b'['));
        let content_type = if is_json { "application/json" } else { "text/plain; charset=utf-8" };
        Self { status, headers: Vec::new(), content_type, body }
    }

    /// Adds a header of ours.
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    /// The bytes to send.
    pub fn to_bytes(&self) -> Bytes {
        let mut head = format!(
            "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n",
            self.status,
            reason(self.status),
            self.content_type,
            self.body.len()
        );
        for (name, value) in &self.headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes.into()
    }
}

/// The 101 that ends a handshake. Headers of a handler that could change what the answer means are left out.
pub fn switching_protocols(accept: &str, subprotocol: &str, added: &[v1::Header]) -> Bytes {
    let mut head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n"
    );
    if !subprotocol.is_empty() {
        let _ = write!(head, "Sec-WebSocket-Protocol: {subprotocol}\r\n");
    }
    let mut room = ADDED_HEADERS_BYTES_MAX;
    for header in added {
        let bytes = header.name.len() + header.value.len() + 4;
        if may_be_added(header) && bytes <= room {
            room -= bytes;
            let _ = write!(head, "{}: {}\r\n", header.name, header.value);
        }
    }
    head.push_str("\r\n");
    head.into()
}

fn may_be_added(header: &v1::Header) -> bool {
    let name = header.name.to_ascii_lowercase();
    let is_ours = matches!(
        name.as_str(),
        "upgrade" | "connection" | "content-length" | "transfer-encoding" | "content-encoding" | "trailer" | "te"
    ) || name.starts_with("sec-websocket-");
    is_token(&name) && !is_ours && header.value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
}

fn reason(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        414 => "URI Too Long",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ if status < 500 => "Refused",
        _ => "Error",
    }
}

fn json_escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '"' | '\\' => escaped.extend(['\\', character]),
            control if control.is_control() => escaped.push(' '),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, value: &str) -> v1::Header {
        v1::Header { name: name.to_owned(), value: value.to_owned() }
    }

    #[test]
    fn handlers_cannot_split_or_change_the_answer() {
        let added = [
            header("X-Session", "42"),
            header("Set-Cookie", "a=b; Path=/"),
            header("x", "y\r\nEvil: 1"),
            header("x y", "1"),
            header("Sec-WebSocket-Accept", "no"),
            header("sec-websocket-extensions", "permessage-deflate"),
            header("Connection", "close"),
            header("big", &"x".repeat(9000)),
        ];
        let bytes = switching_protocols("key=", "chat.v1", &added);
        assert_eq!(
            std::str::from_utf8(&bytes).unwrap(),
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: key=\r\n\
             Sec-WebSocket-Protocol: chat.v1\r\nX-Session: 42\r\nSet-Cookie: a=b; Path=/\r\n\r\n"
        );
    }

    #[test]
    fn rejection_is_always_a_refusal() {
        for (asked, given) in [(403, 403), (200, 403), (101, 403), (0, 403), (599, 599), (70_000, 403)] {
            assert_eq!(Answer::rejected(asked, Bytes::new()).status, given);
        }
        let answer = Answer::rejected(401, Bytes::from_static(b"{\"why\":1}")).to_bytes();
        let text = std::str::from_utf8(&answer).unwrap();
        assert!(
            text.starts_with("HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\nContent-Length: 9\r\n")
        );
        assert!(text.ends_with("\r\n\r\n{\"why\":1}"));
    }

    #[test]
    fn problem_is_json() {
        let text = Answer::bad_request("a \"quoted\"\nthing \\").to_bytes();
        let text = std::str::from_utf8(&text).unwrap();
        assert!(text.contains(r#""status":400,"detail":"a \"quoted\" thing \\"}"#), "{text}");
    }
}
