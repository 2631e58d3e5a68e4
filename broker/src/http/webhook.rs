//! Signatures of pushes by Standard Webhooks, over the raw bytes: `webhook-id`, `webhook-timestamp`, `webhook-signature`.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::HeaderMap;
use ring::hmac;

/// A signature is good for so long, before and after: clocks differ.
const TOLERANCE: Duration = Duration::from_secs(300);
/// Most signatures of one request: one for each secret of a caller that replaces them.
const SIGNATURES_MAX: usize = 16;

/// The id of the message, if one of `keys` signed it not long before or after `now` (since the epoch). `None`: not authorized; why is
/// told to nobody.
pub(super) fn verify<'a>(keys: &[hmac::Key], headers: &'a HeaderMap, body: &[u8], now: Duration) -> Option<&'a str> {
    let header = |name: &str| headers.get(name)?.to_str().ok();
    let (id, timestamp) = (header("webhook-id")?, header("webhook-timestamp")?);
    let seconds: u64 = timestamp.parse().ok()?;
    if now.abs_diff(Duration::from_secs(seconds)) > TOLERANCE {
        return None;
    }
    let signed = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body].concat();
    let given = header("webhook-signature")?.split(' ').take(SIGNATURES_MAX);
    let mut tags = given.filter_map(|one| STANDARD.decode(one.strip_prefix("v1,")?).ok());
    // compared in constant time
    let is_good = tags.any(|tag| keys.iter().any(|key| hmac::verify(key, &signed, &tag).is_ok()));
    (is_good && !id.is_empty()).then_some(id)
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

    #[test]
    fn only_whole_recent_signatures_of_a_key_pass() {
        let keys = [key("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"), key("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")];
        let good = headers("1614265330", GOOD);
        assert_eq!(verify(&keys, &good, BODY, NOW), Some("msg_p5jXN8AQM9LWM0D4loKWxJek"));
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
