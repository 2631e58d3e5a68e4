//! What is read off a request before anything is done: the payload within its limit, the idempotency key, ids, and whether a
//! browser's page of another site sent it.

use std::{fmt::Display, str::FromStr, sync::Arc, time::Duration};

use axum::{body::Body, extract::Request};
use bytes::Bytes;
use http::{HeaderMap, Uri, header, request::Parts};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::StreamExt as _;
use trunkline_proto::{ConnectionId, limits, v1::MessageKind};

use super::problem::Problem;

/// A body must have arrived within this.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Header of a request that may be sent twice.
pub(super) const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// A message to send.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Payload {
    /// By the content type: `text/*` and JSON are text.
    pub kind: MessageKind,
    /// The body.
    pub bytes: Bytes,
}

/// Room for the bodies of all requests under way together. A body takes as much of it as has come, until its bytes are let go.
#[derive(Clone, Debug)]
pub(super) struct Bodies {
    all: Arc<Semaphore>,
    /// Of it, what those may take of whom nobody knows who they are before their bodies have come: the rest is kept from strangers.
    unproved: Arc<Semaphore>,
}

/// What a body takes, of each bound that it is under.
type Room = Vec<OwnedSemaphorePermit>;

impl Bodies {
    /// For so many bytes, an eighth of them for those alone who have proved who they are.
    pub(super) fn new(bytes: usize) -> Self {
        let bytes = bytes.min(Semaphore::MAX_PERMITS);
        let room = |bytes| Arc::new(Semaphore::new(bytes));
        Self { all: room(bytes), unproved: room(bytes - bytes / 8) }
    }

    fn take(&self, bytes: usize, is_proved: bool) -> Result<Room, Problem> {
        let bounds = [Some(&self.all), (!is_proved).then_some(&self.unproved)];
        let bytes = u32::try_from(bytes).map_err(|_| Problem::overloaded())?;
        let take = |bound: &Arc<Semaphore>| Arc::clone(bound).try_acquire_many_owned(bytes);
        let taken: Result<Room, _> = bounds.into_iter().flatten().map(take).collect();
        taken.map_err(|_| Problem::overloaded())
    }
}

/// A body in one buffer, and the room it takes: chunks kept apart, of a byte each, would cost forty times what they hold.
struct Held {
    bytes: Vec<u8>,
    room: Room,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads a payload of at most `limit` bytes; refuses a declared length before reading anything.
pub(super) async fn payload(request: Request, limit: u64, bodies: &Bodies) -> Result<Payload, Problem> {
    let (parts, bytes) = whole(request, limit, bodies, true).await?;
    let kind = kind(&parts.headers);
    if kind == MessageKind::Text && std::str::from_utf8(&bytes).is_err() {
        return Err(Problem::invalid("a text payload must be UTF-8; send application/octet-stream for binary"));
    }
    Ok(Payload { kind, bytes })
}

/// Reads a request with a body of at most `limit` bytes; refuses a declared length before reading anything. `is_proved`: it is known
/// already who sends it.
pub(super) async fn whole(
    request: Request,
    limit: u64,
    bodies: &Bodies,
    is_proved: bool,
) -> Result<(Parts, Bytes), Problem> {
    let (parts, body) = request.into_parts();
    // taken as it is it would be something else than was meant, and nothing is inflated here
    if parts.headers.get_all(header::CONTENT_ENCODING).iter().any(|coding| coding != "identity") {
        return Err(Problem::encoded());
    }
    let declared = parts.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    if declared.and_then(|length| length.parse::<u64>().ok()).is_some_and(|length| length > limit) {
        return Err(Problem::too_large(limit));
    }
    let read = tokio::time::timeout(BODY_TIMEOUT, read(body, limit, bodies, is_proved)).await;
    let bytes = read.map_err(|_| Problem::timeout())??;
    Ok((parts, bytes))
}

async fn read(body: Body, limit: u64, bodies: &Bodies, is_proved: bool) -> Result<Bytes, Problem> {
    let mut held = Held { bytes: Vec::new(), room: bodies.take(0, is_proved)? };
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        // malformed, or the client has gone away and reads no answer
        let chunk = chunk.map_err(|_| Problem::invalid("the body breaks off"))?;
        if (held.bytes.len() + chunk.len()) as u64 > limit {
            return Err(Problem::too_large(limit));
        }
        let more = bodies.take(chunk.len(), is_proved)?;
        held.room.iter_mut().zip(more).for_each(|(room, more)| room.merge(more));
        held.bytes.extend_from_slice(&chunk);
    }
    Ok(Bytes::from_owner(held))
}

fn kind(headers: &HeaderMap) -> MessageKind {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if media_type.starts_with("text/") || media_type == "application/json" {
        MessageKind::Text
    } else {
        MessageKind::Binary
    }
}

/// The idempotency key; empty if there is none.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<String, Problem> {
    let Some(key) = headers.get(IDEMPOTENCY_KEY) else { return Ok(String::new()) };
    match key.to_str() {
        Ok(key) if (1..=limits::KEY_BYTES_MAX).contains(&key.len()) => Ok(key.to_owned()),
        _ => {
            Err(Problem::invalid(format!("Idempotency-Key must be 1 to {} visible characters", limits::KEY_BYTES_MAX)))
        }
    }
}

/// A connection id in a path or a query.
pub(super) fn connection_id(text: &str) -> Result<ConnectionId, Problem> {
    parse::<ConnectionId>("connection", text)
}

/// A connection id as functions of other gateways may write it: padded, or in the other base64 alphabet.
pub(super) fn liberal_connection_id(text: &str) -> Option<ConnectionId> {
    let id: ConnectionId = text.trim_end_matches('=').replace('+', "-").replace('/', "_").parse().ok()?;
    (!id.is_none()).then_some(id)
}

/// Parses one value of a path or a query.
pub(super) fn parse<T: FromStr<Err: Display>>(what: &str, text: &str) -> Result<T, Problem> {
    text.parse().map_err(|error| Problem::invalid(format!("{what}: {error}")))
}

/// Whether a page of another origin made a browser send this (reliability A36): no such page may push or close.
pub(super) fn is_cross_site(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return false };
    let origin = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    match (origin.as_ref().and_then(Uri::authority), host) {
        (Some(origin), Some(host)) => !origin.as_str().eq_ignore_ascii_case(host),
        // `null`, or nothing to compare with
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn text_and_json_are_text_frames() {
        for (content_type, expected) in [
            ("text/plain", MessageKind::Text),
            ("TEXT/html; charset=utf-8", MessageKind::Text),
            ("application/json", MessageKind::Text),
            ("application/json ; charset=utf-8", MessageKind::Text),
            ("application/octet-stream", MessageKind::Binary),
            ("application/jsonp", MessageKind::Binary),
        ] {
            assert_eq!(kind(&headers(&[("content-type", content_type)])), expected, "{content_type}");
        }
        assert_eq!(kind(&HeaderMap::new()), MessageKind::Binary);
    }

    #[test]
    fn pages_of_other_origins_are_told_apart() {
        let with_origin = |origin| is_cross_site(&headers(&[("host", "127.0.0.1:7080"), ("origin", origin)]));
        assert!(!is_cross_site(&headers(&[("host", "127.0.0.1:7080")])), "no browser");
        assert!(!with_origin("http://127.0.0.1:7080"));
        assert!(with_origin("https://example.com"));
        assert!(with_origin("http://127.0.0.1:8080"));
        assert!(with_origin("null"));
        assert!(is_cross_site(&headers(&[("origin", "http://127.0.0.1:7080")])));
    }

    #[tokio::test]
    async fn a_declared_length_is_refused_before_reading() {
        let bodies = Bodies::new(1000);
        let never = Body::from_stream(tokio_stream::pending::<Result<Bytes, std::io::Error>>());
        let request = Request::builder().header("content-length", "11").body(never).unwrap();
        assert_eq!(payload(request, 10, &bodies).await, Err(Problem::too_large(10)));
        let request = Request::builder().body(Body::from("12345678901")).unwrap();
        assert_eq!(payload(request, 10, &bodies).await, Err(Problem::too_large(10)));
        let request = Request::builder().body(Body::from("1234567890")).unwrap();
        assert_eq!(payload(request, 10, &bodies).await.unwrap().bytes, "1234567890");
        let request = Request::builder().header("content-type", "text/plain").body(Body::from(&b"\xff"[..])).unwrap();
        assert_eq!(payload(request, 10, &bodies).await.unwrap_err().code, "invalid");
    }

    #[tokio::test]
    async fn bodies_take_room_as_they_come_and_give_it_back() {
        let bodies = Bodies::new(15);
        let request = |body: Body| Request::builder().body(body).unwrap();
        // one that has declared much and sends nothing takes none
        let declared = Request::builder().header("content-length", "10");
        let silent =
            declared.body(Body::from_stream(tokio_stream::pending::<Result<Bytes, std::io::Error>>())).unwrap();
        let slow = payload(silent, 10, &bodies);
        tokio::pin!(slow);
        assert!(tokio::time::timeout(Duration::ZERO, &mut slow).await.is_err());
        let first = payload(request(Body::from("0123456789")), 10, &bodies).await.unwrap();
        let refused = payload(request(Body::from("012345")), 10, &bodies).await.unwrap_err();
        assert_eq!((refused.status.as_u16(), refused.code), (503, "overloaded"));
        assert!(payload(request(Body::from("01234")), 10, &bodies).await.is_ok());
        let kept = first.bytes.slice(..1);
        drop(first);
        assert!(payload(request(Body::from("012345")), 10, &bodies).await.is_err(), "a part of it is still held");
        drop(kept);
        assert!(payload(request(Body::from("012345")), 10, &bodies).await.is_ok());
    }

    #[tokio::test]
    async fn a_body_that_is_encoded_or_breaks_off_is_refused() {
        let bodies = Bodies::new(1000);
        let encoded = |coding| Request::builder().header("content-encoding", coding).body(Body::from("x")).unwrap();
        for coding in ["gzip", "br", "gzip, identity", ""] {
            assert_eq!(payload(encoded(coding), 10, &bodies).await, Err(Problem::encoded()), "{coding}");
        }
        assert_eq!(payload(encoded("identity"), 10, &bodies).await.unwrap().bytes, "x");
        let pieces = |last: Result<Bytes, std::io::Error>| {
            let pieces = ["a", "b", ""].map(|piece| Ok(Bytes::from(piece))).into_iter().chain([last]);
            Request::builder().body(Body::from_stream(tokio_stream::iter(pieces))).unwrap()
        };
        assert_eq!(payload(pieces(Ok(Bytes::from("c"))), 3, &bodies).await.unwrap().bytes, "abc");
        assert_eq!(payload(pieces(Ok(Bytes::from("cd"))), 3, &bodies).await, Err(Problem::too_large(3)));
        let broken = Err(std::io::ErrorKind::ConnectionReset.into());
        assert_eq!(payload(pieces(broken), 3, &bodies).await.unwrap_err().status, 400);
    }

    #[test]
    fn keys_are_bounded() {
        assert_eq!(idempotency_key(&HeaderMap::new()).unwrap(), "");
        assert_eq!(idempotency_key(&headers(&[("idempotency-key", "a-1")])).unwrap(), "a-1");
        assert!(idempotency_key(&headers(&[("idempotency-key", "")])).is_err());
        let mut long = HeaderMap::new();
        long.insert("idempotency-key", HeaderValue::from_str(&"k".repeat(256)).unwrap());
        assert!(idempotency_key(&long).is_err());
    }
}
