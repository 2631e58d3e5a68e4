use proptest::prelude::*;

use super::*;

const GOOD: &str = "GET /chat?x=1 HTTP/1.1\r\nHost: example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

fn reader() -> HeadReader {
    HeadReader::keeping(["user-agent", "origin", "host"].map(str::to_owned).into())
}

fn judge(bytes: impl AsRef<[u8]>) -> Head {
    let whole = reader().feed(bytes.as_ref());
    let mut reader = reader();
    let bytewise = bytes.as_ref().iter().map(|byte| reader.feed(&[*byte])).find(|head| *head != Head::More);
    // what follows a head can only be seen with it
    if let (Head::Answer(whole), Some(Head::Answer(bytewise))) = (&whole, &bytewise) {
        assert_eq!(whole.status, bytewise.status);
    }
    whole
}

fn status(bytes: impl AsRef<[u8]>) -> u16 {
    match judge(bytes) {
        Head::More => 0,
        Head::Upgrade(_) => 101,
        Head::Answer(answer) => answer.status,
    }
}

/// The good request with one thing replaced.
fn with(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    GOOD.replacen(from, to, 1)
}

#[test]
fn good_request_is_understood() {
    let request = with(
        "Host: example.com\r\n",
        "hOsT: example.com\r\nUser-Agent: test\r\nAuthorization: secret\r\nCookie: secret\r\nOrigin: https://a.b\r\nSec-WebSocket-Protocol: chat.v2, chat.v1\r\nsec-websocket-protocol: x\r\nSec-WebSocket-Extensions: permessage-deflate\r\nX-Forwarded-For: 1.2.3.4\r\n",
    );
    let Head::Upgrade(upgrade) = judge(&request) else { panic!("{:?}", judge(&request)) };
    assert_eq!((upgrade.path.as_str(), upgrade.query.as_str()), ("/chat", "x=1"));
    assert_eq!(upgrade.accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert_eq!(upgrade.origin.as_deref(), Some("https://a.b"));
    assert_eq!(upgrade.subprotocols, ["chat.v2", "chat.v1", "x"]);
    let kept: Vec<&str> = upgrade.headers.iter().map(|header| header.name.as_str()).collect();
    assert_eq!(kept, ["host", "user-agent", "origin"]);
}

#[test]
fn tokens_are_compared_as_the_rfc_says() {
    assert_eq!(status(GOOD), 101);
    assert_eq!(status(with("Connection: Upgrade", "Connection: keep-alive, Upgrade")), 101);
    assert_eq!(status(with("Connection: Upgrade", "connection: keep-alive\r\nConnection: upgrade")), 101);
    assert_eq!(status(with("Upgrade: websocket", "UPGRADE: WebSocket")), 101);
    assert_eq!(status(with("Upgrade: websocket", "Upgrade: h2c, websocket")), 101);
}

#[test]
fn every_bad_request_gets_its_answer() {
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let version = "Sec-WebSocket-Version: 13\r\n";
    let cases = [
        (with("GET", "POST"), 405),
        (with("HTTP/1.1", "HTTP/1.0"), 400),
        (with("HTTP/1.1", "HTTP/2.0"), 505),
        (with("Upgrade: websocket\r\n", ""), 426),
        (with("Connection: Upgrade\r\n", ""), 426),
        (with("Connection: Upgrade", "Connection: close"), 426),
        (with(version, ""), 426),
        (with("Version: 13", "Version: 8"), 426),
        (with(version, "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 13\r\n"), 426),
        (with("Version: 13", "Version: 13, 8"), 426),
        (with(key, ""), 400),
        (with(key, &key.repeat(2)), 400),
        (with("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j"), 400),
        (with("dGhlIHNhbXBsZSBub25jZQ==", "not base64 at all!!!!!!!"), 400),
        (with("Host: example.com\r\n", ""), 400),
        (with("Host: example.com\r\n", "Host:\r\n"), 400),
        (with("Host: example.com\r\n", "Host: a\r\nHost: a\r\n"), 400),
        (with("Host:", "Content-Length: 0\r\nHost:"), 400),
        (with("Host:", "Content-Length: +5\r\nHost:"), 400),
        (with("Host:", "Transfer-Encoding: chunked\r\nHost:"), 400),
        (with("Host:", "Origin: a\r\nOrigin: b\r\nHost:"), 400),
        (with("Host:", "X: a\r\n folded\r\nHost:"), 400),
        (with("Host: ", "Host : "), 400),
        (with("\r\nHost", "\nHost"), 400),
        (with("\r\nHost", "\rX\r\nHost"), 400),
        (format!("\r\n{GOOD}"), 400),
        (with("/chat", "http://169.254.169.254/chat"), 400),
        (with("/chat", "*"), 400),
        (with("/chat", "/ch#at"), 400),
        (with("Host:", "Sec-WebSocket-Protocol: a b\r\nHost:"), 400),
        (with("Host:", "Sec-WebSocket-Protocol: ü\r\nHost:"), 400),
        (with("Host:", "Sec-WebSocket-Protocol: a,,b\r\nHost:"), 400),
        (with("Host:", &format!("Sec-WebSocket-Protocol: {}\r\nHost:", ["a"; 1000].join(","))), 400),
        (with("/chat", &format!("/{}", "a".repeat(4097))), 414),
        (with("/chat", &format!("/{}", "a".repeat(65_536))), 414),
        (with("Host:", &format!("{}Host:", "X: y\r\n".repeat(200))), 431),
        (with("Host:", &format!("X: {}\r\nHost:", "y".repeat(70_000))), 431),
        (with("Host:", &format!("Sec-WebSocket-Protocol: b{}x\r\nHost:", " ".repeat(60_000))), 431),
        (format!("{GOOD}GET /admin HTTP/1.1\r\n\r\n"), 400),
        (format!("{GOOD}\x01"), 400),
    ];
    for (request, expected) in cases {
        assert_eq!(status(&request), expected, "{}", &request[..request.len().min(400)]);
    }
}

/// Attack row A7. Bytes that come later than the head are not seen with it: they are never read.
#[test]
fn bytes_behind_an_upgrade_that_fails_for_its_version_are_400() {
    for behind in ["GET /admin HTTP/1.1\r\n\r\n", "x"] {
        let request = format!("{}{behind}", with("Version: 13", "Version: 8"));
        assert!(matches!(reader().feed(request.as_bytes()), Head::Answer(answer) if answer.status == 400), "{behind}");
    }
    assert_eq!(status(with("Version: 13", "Version: 8")), 426);
}

#[test]
fn answers_say_what_to_do() {
    let text = |request: String| match judge(request) {
        Head::Answer(answer) => String::from_utf8(answer.to_bytes().to_vec()).unwrap(),
        other => panic!("{other:?}"),
    };
    assert!(text(with("Version: 13", "Version: 8")).contains("\r\nSec-WebSocket-Version: 13\r\n"));
    assert!(text(with("GET", "PUT")).contains("\r\nAllow: GET\r\n"));
    assert!(text(with("Upgrade: websocket\r\n", "")).contains("\r\nUpgrade: websocket\r\n"));
}

#[test]
fn origins_match_exactly() {
    let listed = ["https://good.com".to_owned()];
    for (origin, allowed) in [
        (None, true),
        (Some("https://good.com"), true),
        (Some("null"), false),
        (Some("https://evil.com"), false),
        (Some("https://good.com.evil.com"), false),
        (Some("https://evilgood.com"), false),
        (Some("http://good.com"), false),
        (Some("https://good.com:8443"), false),
        (Some("https://GOOD.com"), false),
    ] {
        assert_eq!(is_origin_allowed(origin, &listed, false, true), allowed, "{origin:?}");
    }
    assert!(is_origin_allowed(Some("https://any"), &[], false, true));
    assert!(!is_origin_allowed(Some("https://any"), &[], false, false));
    assert!(!is_origin_allowed(None, &listed, true, true));
}

proptest! {
    #[test]
    fn no_bytes_end_the_process(mut bytes in any::<Vec<u8>>(), at in 0..GOOD.len(), cut in 1..50usize) {
        let mut request = GOOD.as_bytes().to_vec();
        bytes.truncate(20);
        request.splice(at..at, bytes);
        let mut reader = reader();
        for piece in request.chunks(cut) {
            if reader.feed(piece) != Head::More {
                break;
            }
        }
    }
}
