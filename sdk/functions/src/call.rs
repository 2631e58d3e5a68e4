//! A call and its answer, as the pure parts see them.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use xxhash_rust::xxh3::xxh3_128;

use crate::settings::FunctionUrl;

/// One request to a function.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Call {
    pub(crate) url: FunctionUrl,
    /// Which function this is, for people and metrics.
    pub(crate) function: &'static str,
    pub(crate) content_type: &'static str,
    /// Of the dialect; names in lower case. A value that no header can hold is left out when sent.
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Bytes,
}

impl Call {
    pub(crate) fn json(url: &FunctionUrl, function: &'static str, body: Vec<u8>) -> Self {
        let content_type = "application/json";
        Self { url: url.clone(), function, content_type, headers: Vec::new(), body: body.into() }
    }
}

/// What a function answered.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// `None`: larger than allowed, and not read to its end.
    pub(crate) body: Option<Bytes>,
}

impl Reply {
    /// How long to wait before the next attempt, if it says so in seconds.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let value = self.headers.get(http::header::RETRY_AFTER)?.to_str().ok()?;
        value.trim().parse().ok().map(Duration::from_secs)
    }
}

/// Where an event stands: the names a call carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    /// 22 characters.
    pub(crate) connection: String,
    /// `group/partition/index.position`: the same on every attempt.
    pub(crate) key: String,
    /// From 1.
    pub(crate) attempt: u32,
    /// When the event came into the log, microseconds since the epoch.
    pub(crate) time: u64,
}

impl Place {
    fn hash(&self) -> [u8; 16] {
        xxh3_128(self.key.as_bytes()).to_be_bytes()
    }

    /// The event's name in the form of a UUID (version 8, RFC 9562): the same on every attempt.
    pub(crate) fn uuid(&self) -> String {
        let mut bytes = self.hash();
        bytes[6] = bytes[6] & 0x0f | 0x80;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
    }

    /// The event's name as AWS writes ids: base64 with its `=`.
    pub(crate) fn short(&self) -> String {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        STANDARD.encode(&self.hash()[..11])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_one_name_on_every_attempt() {
        let place = Place { connection: String::new(), key: "chat/3/5.2".into(), attempt: 1, time: 0 };
        let again = Place { attempt: 2, ..place.clone() };
        let other = Place { key: "chat/3/5.3".into(), ..place.clone() };
        assert_eq!(place.uuid(), again.uuid());
        assert_ne!(place.uuid(), other.uuid());
        assert_eq!((place.uuid().len(), &place.uuid()[14..15]), (36, "8"));
        assert_eq!((place.short().len(), place.short().ends_with('=')), (16, true));
    }
}
