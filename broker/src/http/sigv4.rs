//! Signature Version 4 of requests, as far as the SDKs of `@connections` use it: the signature in the `Authorization` header. Pure.

use std::time::Duration;

use http::{HeaderMap, Method, Uri, header::AUTHORIZATION};
use ring::{digest, hmac};
use trunkline_proto::text;

/// A signature is good for so long, before and after: clocks differ.
const TOLERANCE: Duration = Duration::from_secs(300);
const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// Most headers that are signed.
const SIGNED_MAX: usize = 64;

/// A pair of keys of a caller.
#[derive(Clone)]
pub struct KeyPair {
    /// Access key id.
    pub id: String,
    /// Secret access key.
    pub secret: String,
}

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyPair").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Why a request is not one of a known caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum Unsigned {
    #[error("Missing Authentication Token")]
    Missing,
    #[error("The security token included in the request is invalid.")]
    UnknownKey,
    #[error("Signature expired or not yet current.")]
    Expired,
    #[error("The request signature we calculated does not match the signature you provided.")]
    Mismatch,
}

/// What is signed.
pub(super) struct Signed<'a> {
    pub(super) method: &'a Method,
    /// As it came over the wire.
    pub(super) uri: &'a Uri,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a [u8],
}

/// What the headers say: all that can be judged before the body is read.
pub(super) struct Claim {
    key: KeyPair,
    time: String,
    scope: String,
    names: Vec<String>,
    signature: Vec<u8>,
}

impl Claim {
    /// A claim that one of `keys` signed not long before or after `now` (since the epoch).
    pub(super) fn of(keys: &[KeyPair], headers: &HeaderMap, now: Duration) -> Result<Self, Unsigned> {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let authorization = header(AUTHORIZATION.as_str()).ok_or(Unsigned::Missing)?;
        let fields = authorization.strip_prefix(ALGORITHM).ok_or(Unsigned::Missing)?;
        let field = |name: &str| {
            let field = |field: &'_ str| field.trim().strip_prefix(name)?.strip_prefix('=').map(str::to_owned);
            fields.split(',').find_map(field).ok_or(Unsigned::Missing)
        };
        let (credential, names, signature) = (field("Credential")?, field("SignedHeaders")?, field("Signature")?);
        let (id, scope) = credential.split_once('/').ok_or(Unsigned::Missing)?;
        let time = header("x-amz-date").ok_or(Unsigned::Missing)?;
        let key = keys.iter().find(|key| key.id == id).ok_or(Unsigned::UnknownKey)?;
        let signed_at = seconds(time).ok_or(Unsigned::Expired)?;
        if now.abs_diff(Duration::from_secs(signed_at)) > TOLERANCE {
            return Err(Unsigned::Expired);
        }
        let names: Vec<String> = names.split(';').take(SIGNED_MAX + 1).map(str::to_owned).collect();
        if names.len() > SIGNED_MAX || !names.iter().any(|name| name == "host") {
            return Err(Unsigned::Mismatch);
        }
        let signature = text::unhex(&signature).ok_or(Unsigned::Mismatch)?;
        Ok(Self { key: key.clone(), time: time.to_owned(), scope: scope.to_owned(), names, signature })
    }

    /// Whether it is true of the whole request.
    pub(super) fn verify(&self, request: &Signed<'_>) -> Result<(), Unsigned> {
        let signing = signing_key(&self.key.secret, &self.scope, &self.time).ok_or(Unsigned::Mismatch)?;
        let is_signed = |path: &str| {
            let canonical = canonical(request, path, &self.names)?;
            let digest = hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
            let to_sign = format!("{ALGORITHM}\n{}\n{}\n{digest}", self.time, self.scope);
            // compared in constant time
            hmac::verify(&signing, to_sign.as_bytes(), &self.signature).ok()
        };
        let path = request.uri.path();
        // boto3 and the JavaScript SDK send the @ as it is; others encode it after they have signed it, or before
        let plain = path.replacen("/%40connections/", "/@connections/", 1);
        is_signed(path).or_else(|| is_signed(&plain)).ok_or(Unsigned::Mismatch)
    }
}

/// The request in the one form that both sides can make.
fn canonical(request: &Signed<'_>, path: &str, names: &[String]) -> Option<String> {
    let mut query: Vec<String> = request.uri.query().unwrap_or_default().split('&').map(str::to_owned).collect();
    query.retain(|pair| !pair.is_empty());
    query.iter_mut().filter(|pair| !pair.contains('=')).for_each(|pair| pair.push('='));
    query.sort_unstable();
    let mut lines = vec![request.method.to_string(), encoded(path), query.join("&")];
    for name in names {
        let mut values = request.headers.get_all(name).iter().peekable();
        values.peek()?;
        let values: Option<Vec<String>> = values.map(|value| value.to_str().ok().map(collapsed)).collect();
        lines.push(format!("{name}:{}", values?.join(",")));
    }
    lines.push(String::new());
    lines.push(names.join(";"));
    lines.push(hex(digest::digest(&digest::SHA256, request.body).as_ref()));
    Some(lines.join("\n"))
}

/// Spaces within a value count as one.
fn collapsed(value: &str) -> String {
    value.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

/// The path, each byte that is not unreserved encoded: once more, where it was already.
fn encoded(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => out.push(char::from(byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

/// The key of a scope `20150830/us-east-1/execute-api/aws4_request`, whose date must be that of the request.
fn signing_key(secret: &str, scope: &str, time: &str) -> Option<hmac::Key> {
    let parts: Vec<&str> = scope.split('/').collect();
    let [date, region, service, "aws4_request"] = parts.as_slice() else { return None };
    if !time.starts_with(date) || date.len() != 8 {
        return None;
    }
    let first = hmac::Key::new(hmac::HMAC_SHA256, format!("AWS4{secret}").as_bytes());
    let derived = [*date, region, service, "aws4_request"]
        .iter()
        .fold(first, |key, part| hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, part.as_bytes()).as_ref()));
    Some(derived)
}

/// `20150830T123600Z` in seconds since the epoch.
fn seconds(time: &str) -> Option<u64> {
    let parsed = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", time).ok()?;
    let zoned = jiff::tz::TimeZone::UTC.to_timestamp(parsed).ok()?;
    u64::try_from(zoned.as_second()).ok()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &str = "20150830T123600Z";

    fn keys() -> Vec<KeyPair> {
        let pair = |id: &str, secret: &str| KeyPair { id: id.into(), secret: secret.into() };
        vec![pair("OTHER", "x"), pair("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")]
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn check(uri: &str, headers: &HeaderMap, body: &[u8], now: u64) -> Result<(), Unsigned> {
        let uri: Uri = uri.parse().unwrap();
        let signed = Signed { method: &Method::GET, uri: &uri, headers, body };
        Claim::of(&keys(), headers, Duration::from_secs(now))?.verify(&signed)
    }

    /// `get-vanilla` and `get-vanilla-query-order-key-case` of the published test suite.
    #[test]
    fn the_published_signatures_are_good() {
        let now = seconds(TIME).unwrap();
        assert_eq!(now, 1_440_938_160);
        for (uri, signature) in [
            ("/", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
            ("/?Param2=value2&Param1=value1", "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"),
        ] {
            let authorization = format!(
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, Signature={signature}"
            );
            let good =
                headers(&[("host", "example.amazonaws.com"), ("x-amz-date", TIME), ("authorization", &authorization)]);
            assert_eq!(check(uri, &good, b"", now), Ok(()), "{uri}");
            assert_eq!(check(uri, &good, b"", now + 301), Err(Unsigned::Expired));
            assert_eq!(check(uri, &good, b"", now - 301), Err(Unsigned::Expired));
            assert_eq!(check(uri, &good, b"x", now), Err(Unsigned::Mismatch), "another body");
            assert_eq!(check("/other", &good, b"", now), Err(Unsigned::Mismatch));
            let mut other = good.clone();
            other.insert("host", "other".parse().unwrap());
            assert_eq!(check(uri, &other, b"", now), Err(Unsigned::Mismatch));
        }
    }

    #[test]
    fn what_is_not_signed_is_refused_whatever_it_says() {
        let now = seconds(TIME).unwrap();
        let scope = "AKIDEXAMPLE/20150830/us-east-1/service/aws4_request";
        for (authorization, expected) in [
            (String::new(), Unsigned::Missing),
            ("Bearer x".to_owned(), Unsigned::Missing),
            (format!("AWS4-HMAC-SHA256 Credential={scope}"), Unsigned::Missing),
            (
                "AWS4-HMAC-SHA256 Credential=X/a/b/c/d, SignedHeaders=host, Signature=00".to_owned(),
                Unsigned::UnknownKey,
            ),
            (
                format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=x-amz-date, Signature=00"),
                Unsigned::Mismatch,
            ),
            (format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=zz"), Unsigned::Mismatch),
            (format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0"), Unsigned::Mismatch),
            (format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host;none, Signature=00"), Unsigned::Mismatch),
            (
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150831/r/s/aws4_request, SignedHeaders=host, Signature=00"
                    .to_owned(),
                Unsigned::Mismatch,
            ),
        ] {
            let given = headers(&[("host", "h"), ("x-amz-date", TIME), ("authorization", &authorization)]);
            assert_eq!(check("/", &given, b"", now), Err(expected), "{authorization}");
        }
        assert_eq!(check("/", &HeaderMap::new(), b"", now), Err(Unsigned::Missing));
    }

    proptest::proptest! {
        #[test]
        fn nothing_a_caller_writes_passes(credential in ".*", names in ".*", signature in "[0-9a-f]{0,64}", time in ".*", uri in "/[a-z%0-9/?=&]*") {
            let authorization = format!("{ALGORITHM} Credential={credential}, SignedHeaders={names}, Signature={signature}");
            let mut given = HeaderMap::new();
            for (name, value) in [("host", "h"), ("authorization", &authorization), ("x-amz-date", &time)] {
                if let Ok(value) = http::HeaderValue::from_str(value) {
                    given.insert(name, value);
                }
            }
            proptest::prop_assert!(uri.parse::<Uri>().is_err() || check(&uri, &given, b"", 1_440_938_160).is_err());
        }
    }

    /// A signature as clients make it that sign one path and send another.
    fn signed(path: &str) -> HeaderMap {
        let mut headers = headers(&[("host", "h"), ("x-amz-date", TIME)]);
        let scope = "20150830/us-east-1/execute-api/aws4_request";
        let uri = Uri::from_static("/");
        let request = Signed { method: &Method::GET, uri: &uri, headers: &headers, body: b"" };
        let names = ["host".to_owned(), "x-amz-date".to_owned()];
        let canonical = canonical(&request, path, &names).unwrap();
        let digest = hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
        let key = signing_key(&keys()[1].secret, scope, TIME).unwrap();
        let tag = hmac::sign(&key, format!("{ALGORITHM}\n{TIME}\n{scope}\n{digest}").as_bytes());
        let value = format!(
            "{ALGORITHM} Credential=AKIDEXAMPLE/{scope}, SignedHeaders=host;x-amz-date, Signature={}",
            hex(tag.as_ref())
        );
        headers.insert("authorization", value.parse().unwrap());
        headers
    }

    #[test]
    fn an_encoded_at_is_the_same_path_whichever_was_signed() {
        let now = seconds(TIME).unwrap();
        for (sent, of, good) in [
            ("/prod/@connections/a%3D", "/prod/@connections/a%3D", true),
            ("/prod/%40connections/a%3D", "/prod/@connections/a%3D", true),
            ("/prod/%40connections/a%3D", "/prod/%40connections/a%3D", true),
            ("/%40connections/a", "/@connections/a", true),
            ("/prod/@connections/a%3D", "/prod/@connections/b%3D", false),
            ("/prod/%40connections/a%3D", "/prod/@connections/b%3D", false),
            ("/prod/@connections/a", "/other/@connections/a", false),
        ] {
            assert_eq!(check(sent, &signed(of), b"", now).is_ok(), good, "{sent} {of}");
        }
    }

    #[test]
    fn paths_are_encoded_once_more() {
        assert_eq!(encoded("/prod/@connections/a%3D"), "/prod/%40connections/a%253D");
    }
}
