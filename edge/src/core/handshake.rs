//! The upgrade request, strictly by RFC 6455 §4.2.1, and every HTTP answer an edge gives. tungstenite's own server answers
//! nothing to a bad request and lets a missing Host or a second key pass, hence this.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use trunkline_proto::v1;

use super::{answer::Answer, auth::Hidden};

/// Longest request head (431).
pub const HEAD_BYTES_MAX: usize = 16 << 10;
/// Most header fields (431).
pub const FIELDS_MAX: usize = 64;
/// Longest request target (414): what the largest cloud gateway takes, room for a signed token in the query.
pub const TARGET_BYTES_MAX: usize = 4 << 10;
/// Most subprotocols a client may offer (400).
pub const SUBPROTOCOLS_MAX: usize = 32;
/// Longest of them (400): one may be a signed token.
const SUBPROTOCOL_BYTES_MAX: usize = 8 << 10;

/// A correct upgrade request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade {
    /// As requested, without the query.
    pub path: String,
    /// Without the question mark.
    pub query: String,
    /// Who a browser says it speaks for.
    pub origin: Option<String>,
    /// What `Sec-WebSocket-Accept` must say.
    pub accept: String,
    /// Offered subprotocols, in the client's order.
    pub subprotocols: Vec<String>,
    /// Those that are kept, names in lower case.
    pub headers: Vec<v1::Header>,
    /// `X-Forwarded-For`, as it came: anybody may have written it.
    pub forwarded: Vec<String>,
    /// The Authorization header.
    pub authorization: Option<Hidden>,
}

impl Upgrade {
    /// Refuses what is left of the offered subprotocols when a token has been taken out of them, if one is too long for a record.
    pub fn check_subprotocols(&self) -> Result<(), Answer> {
        if self.subprotocols.iter().all(|name| is_token(name)) { Ok(()) } else { Err(no_list()) }
    }
}

fn no_list() -> Answer {
    Answer::bad_request("Sec-WebSocket-Protocol is no short list of tokens")
}

/// What has become of a request so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Head {
    /// It is not complete.
    More,
    /// It may be upgraded.
    Upgrade(Box<Upgrade>),
    /// It may not: send this and close.
    Answer(Answer),
}

/// Collects a request head and judges it when it is complete, or sooner if it is hopeless. Holds at most
/// [`HEAD_BYTES_MAX`] bytes.
#[derive(Debug, Default)]
pub struct HeadReader {
    bytes: Vec<u8>,
    scanned: usize,
    kept: Arc<[String]>,
}

impl HeadReader {
    /// Keeps headers of these names, given in lower case; all others are dropped.
    pub fn keeping(headers: Arc<[String]>) -> Self {
        Self { kept: headers, ..Self::default() }
    }

    /// Takes the bytes that have come.
    pub fn feed(&mut self, bytes: &[u8]) -> Head {
        let room = HEAD_BYTES_MAX - self.bytes.len();
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        let (judged, length) = match self.scan() {
            Err(answer) => return Head::Answer(answer),
            Ok(None) if bytes.len() > room => return Head::Answer(too_large()),
            Ok(None) => return Head::More,
            Ok(Some(length)) => (parse(&self.bytes[..length], &self.kept), length),
        };
        let has_more = self.bytes.len() > length || bytes.len() > room;
        // a client may send nothing before it has seen 101; a body or a pipelined request is an attempt at smuggling, also behind an
        // upgrade that fails for its version: a proxy may take it for a tunnel
        let is_upgrade = judged.as_ref().map_or_else(|answer| answer.status == 426, |_| true);
        match judged {
            _ if has_more && is_upgrade => Head::Answer(Answer::bad_request("bytes follow the request head")),
            Ok(upgrade) => Head::Upgrade(Box::new(upgrade)),
            Err(answer) => Head::Answer(answer),
        }
    }

    /// Looks for the end of the head in what is new: where it is, or why there is no hope.
    fn scan(&mut self) -> Result<Option<usize>, Answer> {
        while let Some(byte) = self.bytes.get(self.scanned) {
            let (at, before) = (self.scanned, self.scanned.checked_sub(1).and_then(|at| self.bytes.get(at)));
            match byte {
                b'\n' if before != Some(&b'\r') => {
                    return Err(Answer::bad_request("a line ends without carriage return"));
                }
                b'\n' if self.bytes[..at].ends_with(b"\r\n\r") => return Ok(Some(at + 1)),
                b'\n' if at == 1 => return Err(Answer::bad_request("the request line is missing")),
                b'\n' => {}
                _ if before == Some(&b'\r') => return Err(Answer::bad_request("a carriage return stands alone")),
                _ => {}
            }
            self.scanned += 1;
        }
        let line = self.bytes.iter().take(TARGET_BYTES_MAX + 64).position(|byte| *byte == b'\n');
        if line.is_none() && self.bytes.len() >= TARGET_BYTES_MAX + 64 {
            return Err(Answer::new(414, "the request target is longer than 4 KiB"));
        }
        Ok(None)
    }
}

fn too_large() -> Answer {
    Answer::new(431, "the request head is larger than 16 KiB or has more than 64 fields")
}

/// Judges a complete head.
fn parse(head: &[u8], kept: &[String]) -> Result<Upgrade, Answer> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(Answer::bad_request("the request head is malformed")),
        Err(httparse::Error::TooManyHeaders) => return Err(too_large()),
        Err(httparse::Error::Version) => return Err(Answer::new(505, "only HTTP/1.1 is spoken here")),
        Err(error) => return Err(Answer::bad_request(&format!("the request head is malformed: {error}"))),
    }
    let target = request.path.unwrap_or_default();
    if target.len() > TARGET_BYTES_MAX {
        return Err(Answer::new(414, "the request target is longer than 4 KiB"));
    }
    if request.method != Some("GET") {
        return Err(Answer::new(405, "a WebSocket is opened with GET").header("Allow", "GET"));
    }
    if request.version != Some(1) {
        return Err(Answer::bad_request("a WebSocket needs HTTP/1.1"));
    }
    if !target.starts_with('/') || !target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        return Err(Answer::bad_request("the request target is no absolute path"));
    }
    upgrade(target, &Fields(request.headers), kept)
}

fn upgrade(target: &str, fields: &Fields<'_>, kept: &[String]) -> Result<Upgrade, Answer> {
    fields
        .one("host")?
        .filter(|host| !host.is_empty())
        .ok_or_else(|| Answer::bad_request("the Host header is missing"))?;
    if fields.all("content-length").next().is_some() || fields.all("transfer-encoding").next().is_some() {
        return Err(Answer::bad_request("an upgrade request has no body"));
    }
    if !fields.lists("upgrade", "websocket")? || !fields.lists("connection", "upgrade")? {
        return Err(Answer::new(426, "this is a WebSocket endpoint: send Upgrade: websocket and Connection: Upgrade")
            .header("Upgrade", "websocket"));
    }
    if fields.all("sec-websocket-version").map(<[u8]>::trim_ascii).collect::<Vec<_>>() != [b"13"] {
        return Err(Answer::new(426, "the WebSocket version spoken here is 13")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13"));
    }
    let key = fields.one("sec-websocket-key")?.ok_or_else(|| Answer::bad_request("Sec-WebSocket-Key is missing"))?;
    if STANDARD.decode(key).map(|nonce| nonce.len()) != Ok(16) {
        return Err(Answer::bad_request("Sec-WebSocket-Key is not 16 bytes of base64"));
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Ok(Upgrade {
        path: path.to_owned(),
        query: query.to_owned(),
        origin: fields.origin()?.map(str::to_owned),
        accept: derive_accept_key(key.as_bytes()),
        subprotocols: fields.subprotocols()?,
        headers: fields.kept(kept),
        forwarded: fields.all("x-forwarded-for").map(|value| String::from_utf8_lossy(value).into_owned()).collect(),
        authorization: fields.one("authorization")?.map(|value| Hidden(value.to_owned())),
    })
}

struct Fields<'a>(&'a [httparse::Header<'a>]);

impl<'a> Fields<'a> {
    fn all(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }

    /// The value of a header that may stand there once.
    fn one(&self, name: &str) -> Result<Option<&'a str>, Answer> {
        let mut values = self.all(name);
        let value = values.next().map(|value| visible(name, value)).transpose()?;
        if values.next().is_some() {
            return Err(Answer::bad_request(&format!("the header {name} stands there twice")));
        }
        Ok(value)
    }

    /// Whether a list header has this token, whatever its case.
    fn lists(&self, name: &str, token: &str) -> Result<bool, Answer> {
        for value in self.all(name) {
            if visible(name, value)?.split(',').any(|item| item.trim().eq_ignore_ascii_case(token)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Two origins are none that could be trusted.
    fn origin(&self) -> Result<Option<&'a str>, Answer> {
        self.one("origin")
    }

    fn subprotocols(&self) -> Result<Vec<String>, Answer> {
        let mut offered = Vec::new();
        for value in self.all("sec-websocket-protocol") {
            for item in visible("sec-websocket-protocol", value)?.split(',') {
                let item = item.trim();
                if !are_token_bytes(item) || item.len() > SUBPROTOCOL_BYTES_MAX || offered.len() == SUBPROTOCOLS_MAX {
                    return Err(no_list());
                }
                offered.push(item.to_owned());
            }
        }
        Ok(offered)
    }

    /// Values that are no UTF-8 are left out.
    fn kept(&self, names: &[String]) -> Vec<v1::Header> {
        let kept = |field: &httparse::Header<'_>| {
            let name = names.iter().find(|name| field.name.eq_ignore_ascii_case(name))?;
            let value = std::str::from_utf8(field.value).ok()?;
            Some(v1::Header { name: name.clone(), value: value.to_owned() })
        };
        self.0.iter().filter_map(kept).collect()
    }
}

fn visible<'a>(name: &str, value: &'a [u8]) -> Result<&'a str, Answer> {
    match std::str::from_utf8(value) {
        Ok(text) if value.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ' || *byte == b'\t') => {
            Ok(text.trim())
        }
        _ => Err(Answer::bad_request(&format!("the header {name} is not ASCII"))),
    }
}

/// RFC 9110 §5.6.2.
pub(crate) fn is_token(text: &str) -> bool {
    text.len() <= 256 && are_token_bytes(text)
}

fn are_token_bytes(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// Whether a request with this origin may be upgraded. Clients that send none are no browsers, and may be refused as such. Compared byte by byte: a prefix
/// or a suffix of a listed origin belongs to somebody else.
pub fn is_origin_allowed(origin: Option<&str>, listed: &[String], is_required: bool, on_loopback: bool) -> bool {
    match origin {
        None => !is_required,
        Some(_) if listed.is_empty() => on_loopback,
        Some(origin) => listed.iter().any(|listed| listed == origin),
    }
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
