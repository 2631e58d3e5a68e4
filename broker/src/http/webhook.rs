//! Signatures of pushes by Standard Webhooks, over the raw bytes: `webhook-id`, `webhook-timestamp`, `webhook-signature`.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::HeaderMap;
use ring::hmac;
use trunkline_proto::limits;

/// A signature is good for so long, before and after: clocks differ.
const TOLERANCE: Duration = Duration::from_secs(300);
/// Most signatures of one request: one for each secret of a caller that replaces them.
const SIGNATURES_MAX: usize = 16;

/// What the headers say: all that can be judged before the body is read.
pub(super) struct Claim {
    id: String,
    timestamp: String,
    tags: Vec<Vec<u8>>,
}

impl Claim {
    /// A claim to have signed not long before or after `now` (since the epoch), with a tag that could be good. `None`: not authorized; why
    /// is told to nobody.
    pub(super) fn of(headers: &HeaderMap, now: Duration) -> Option<Self> {
        let header = |name: &str| headers.get(name)?.to_str().ok();
        let (id, timestamp) = (header("webhook-id")?, header("webhook-timestamp")?);
        let seconds: u64 = timestamp.parse().ok()?;
        if now.abs_diff(Duration::from_secs(seconds)) > TOLERANCE || !(1..=limits::KEY_BYTES_MAX).contains(&id.len()) {
            return None;
        }
        let given = header("webhook-signature")?.split(' ').take(SIGNATURES_MAX);
        let tags = given.filter_map(|one| STANDARD.decode(one.strip_prefix("v1,")?).ok());
        let tags: Vec<_> = tags.filter(|tag| tag.len() == ring::digest::SHA256_OUTPUT_LEN).collect();
        (!tags.is_empty()).then(|| Self { id: id.to_owned(), timestamp: timestamp.to_owned(), tags })
    }

    /// The id of the message, if one of `keys` signed it.
    pub(super) fn verify(self, keys: &[hmac::Key], body: &[u8]) -> Option<String> {
        let signed = [self.id.as_bytes(), b".", self.timestamp.as_bytes(), b".", body].concat();
        // compared in constant time
        let is_good = self.tags.iter().any(|tag| keys.iter().any(|key| hmac::verify(key, &signed, tag).is_ok()));
        is_good.then_some(self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_614_265_330);
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const GOOD: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    fn key(encoded: &str) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(encoded).unwrap())
    }

    fn headers(timestamp: &str, signature: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek".parse().unwrap());
        headers.insert("webhook-timestamp", timestamp.parse().unwrap());
        headers.insert("webhook-signature", signature.parse().unwrap());
        headers
    }

    fn verify(keys: &[hmac::Key], headers: &HeaderMap, body: &[u8], now: Duration) -> Option<String> {
        Claim::of(headers, now)?.verify(keys, body)
    }

    #[test]
    fn only_whole_recent_signatures_of_a_key_pass() {
        let keys = [key("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"), key("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")];
        let good = headers("1614265330", GOOD);
        assert_eq!(verify(&keys, &good, BODY, NOW), Some("msg_p5jXN8AQM9LWM0D4loKWxJek".to_owned()));
        let second = headers("1614265330", &format!("v1,AAAA v2,x {GOOD}"));
        assert!(verify(&keys, &second, BODY, NOW).is_some(), "while secrets are replaced there are several");
        assert!(verify(&keys, &good, BODY, NOW + TOLERANCE).is_some());
        assert_eq!(verify(&keys, &good, BODY, NOW + TOLERANCE + Duration::from_secs(1)), None, "too old");
        assert_eq!(verify(&keys, &good, BODY, NOW - TOLERANCE - Duration::from_secs(1)), None, "of the future");
        assert_eq!(verify(&keys[..1], &good, BODY, NOW), None, "another's");
        assert_eq!(verify(&keys, &good, br#"{"test":2432232314}"#, NOW), None, "the same JSON, other bytes");
        for (timestamp, signature) in [
            ("1614265331", GOOD),
            ("x", GOOD),
            ("", GOOD),
            ("1614265330", &GOOD[..30]),
            ("1614265330", &GOOD[3..]),
            ("1614265330", ""),
        ] {
            assert_eq!(verify(&keys, &headers(timestamp, signature), BODY, NOW), None, "{timestamp} {signature}");
        }
        assert_eq!(verify(&keys, &HeaderMap::new(), BODY, NOW), None);
    }
}
