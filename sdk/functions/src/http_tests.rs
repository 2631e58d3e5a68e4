//! Calls over real sockets, to servers that mean no good.

#![allow(unreachable_code, unused_mut)] // what a server does may end it, or be nothing

use std::{
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::Dialect;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Does as told with each connection: the stream, and how many came before it.
struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
}

/// What becomes of a connection after a request was read from it; the number counts requests of all connections, from 0.
type Act = fn(TcpStream, usize) -> std::pin::Pin<Box<dyn Future<Output = Option<TcpStream>> + Send>>;

macro_rules! act {
    (|$stream:ident, $n:ident| $body:expr) => {
        |mut $stream: TcpStream, $n: usize| {
            Box::pin(async move {
                let _ = $n;
                $body;
                Some($stream)
            })
        }
    };
}

async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut seen = Vec::with_capacity(1 << 20);
    loop {
        let text = String::from_utf8_lossy(&seen);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return Some(text.into_owned());
            }
        }
        let read = stream.read_buf(&mut seen).await.ok()?;
        if read == 0 {
            return None;
        }
    }
}

impl Server {
    async fn start(act: Act) -> Self {
        Self::on("127.0.0.1:0", act).await
    }

    async fn on(address: &str, act: Act) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let server =
            Self { address: listener.local_addr().unwrap(), requests: Arc::default(), connections: Arc::default() };
        let (requests, connections) = (server.requests.clone(), server.connections.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                let requests = requests.clone();
                tokio::spawn(async move {
                    while let Some(request) = read_request(&mut stream).await {
                        let before = {
                            let mut requests = requests.lock().unwrap();
                            requests.push(request);
                            requests.len() - 1
                        };
                        let Some(back) = act(stream, before).await else { return };
                        stream = back;
                    }
                });
            }
        });
        server
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    fn methods(&self) -> Vec<String> {
        self.requests().iter().map(|request| request.split(' ').next().unwrap_or_default().to_owned()).collect()
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn settings(&self) -> ApiSettings {
        settings(&format!("http://{}/f", self.address))
    }
}

fn settings(url: &str) -> ApiSettings {
    ApiSettings { transmission: Some(url.parse().unwrap()), ..ApiSettings::new("chat", Dialect::Scf) }
}

fn place() -> Place {
    Place { connection: "c".into(), key: "chat/0/1.0".into(), attempt: 1, time: 0 }
}

/// One call that may take so long.
async fn call_within(caller: &Caller, settings: &ApiSettings, most: Duration) -> Result<Reply, Failure> {
    let call = Call::json(settings.transmission.as_ref().unwrap(), "transmission", b"{}".to_vec());
    caller.call(settings, &place(), &call, Instant::now() + most).await
}

async fn call(caller: &Caller, settings: &ApiSettings) -> Result<Reply, Failure> {
    call_within(caller, settings, Duration::from_secs(20)).await
}

/// What a server that acts so comes to, within a short time.
async fn met(act: Act) -> Result<Reply, Failure> {
    let server = Server::start(act).await;
    let settings = ApiSettings { max_response: 1000, ..server.settings() };
    let since = Instant::now();
    let met = call_within(&caller(&settings), &settings, Duration::from_millis(700)).await;
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    met
}

fn caller(settings: &ApiSettings) -> Caller {
    Caller::new(std::slice::from_ref(settings)).unwrap()
}

fn unreached(met: Result<Reply, Failure>) {
    assert!(matches!(met, Err(Failure::Unreached(_))), "{met:?}");
}

fn broken(met: Result<Reply, Failure>) {
    assert!(matches!(met, Err(Failure::Broken(_))), "{met:?}");
}

fn timed_out(met: Result<Reply, Failure>) {
    assert!(matches!(met, Err(Failure::Timeout(_))), "{met:?}");
}

#[tokio::test]
async fn one_time_bounds_the_whole_answer_however_slowly_it_comes() {
    // nothing; a head that trickles; a body that trickles; a head without an end
    timed_out(met(act!(|stream, n| std::future::pending::<()>().await)).await);
    timed_out(
        met(act!(|stream, n| {
            for byte in OK {
                let _ = stream.write_all(&[*byte]).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }))
        .await,
    );
    timed_out(
        met(act!(|stream, n| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n").await;
            while stream.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }))
        .await,
    );
    timed_out(
        met(act!(|stream, n| {
            while stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }))
        .await,
    );
}

#[tokio::test]
async fn answers_have_bounds() {
    // a body without an end, one that promises too much, one that promises more than there is memory
    for act in [
        act!(|stream, n| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
            while stream.write_all(b"10\r\nxxxxxxxxxxxxxxxx\r\n").await.is_ok() {}
        }) as Act,
        act!(|stream, n| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n").await;
        }),
        act!(|stream, n| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
            while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
        }),
    ] {
        let reply = met(act).await.unwrap();
        assert_eq!((reply.status.as_u16(), reply.body), (200, None));
    }
    // lengths that are none, and heads without an end: many headers, one long header, a long reason
    for act in [
        act!(|stream, n| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551614\r\n\r\n").await;
        }) as Act,
        act!(|stream, n| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
            while stream.write_all(b"a: b\r\n").await.is_ok() {}
        }) as Act,
        act!(|stream, n| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\na: ").await;
            while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
        }),
        act!(|stream, n| {
            let _ = stream.write_all(b"HTTP/1.1 200 ").await;
            while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
        }),
        act!(|stream, n| {
            let many: String = (0..101).map(|n| format!("h{n}: v\r\n")).collect();
            let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\n{many}content-length: 0\r\n\r\n").as_bytes()).await;
        }),
    ] {
        broken(met(act).await);
    }
}

#[tokio::test]
async fn answers_that_are_no_http_are_failures() {
    for act in [
        act!(|stream, n| drop(stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await)) as Act,
        act!(|stream, n| drop(
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc").await
        )),
        act!(|stream, n| drop(stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n").await)),
        act!(|stream, n| drop(stream.write_all(b"HTTP/1.1 200 OK\r\na\nb: c\r\n\r\n").await)),
        act!(|stream, n| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await;
            return None;
        }),
    ] {
        broken(met(act).await);
    }
}

#[tokio::test]
async fn every_way_to_end_a_body_is_understood() {
    for act in [
        act!(|stream, n| drop(stream.write_all(OK).await)) as Act,
        act!(|stream, n| drop(
            stream
                .write_all(
                    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;x=y\r\no\r\n1\r\nk\r\n0\r\nt: v\r\n\r\n"
                )
                .await
        )),
        act!(|stream, n| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nok").await;
            return None;
        }),
        act!(|stream, n| {
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nok").await;
            return None;
        }),
        act!(|stream, n| {
            let _ = stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n").await;
            let _ = stream.write_all(OK).await;
        }),
    ] {
        assert_eq!(met(act).await.unwrap().body.as_deref(), Some(&b"ok"[..]));
    }
}

#[tokio::test]
async fn nothing_is_asked_for_that_is_not_understood() {
    let server = Server::start(act!(|stream, n| drop(stream.write_all(OK).await))).await;
    let settings = server.settings();
    call(&caller(&settings), &settings).await.unwrap();
    let request = server.requests().remove(0).to_ascii_lowercase();
    assert!(request.starts_with("post /f http/1.1\r\n"), "{request}");
    for absent in ["accept-encoding", "expect", "upgrade", "http2-settings", "transfer-encoding"] {
        assert!(!request.contains(absent), "{request}");
    }
}

#[tokio::test]
async fn the_bound_of_an_answer_s_head_is_none_of_a_request_or_a_body() {
    let server = Server::start(act!(|stream, n| {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 5 << 20);
        let _ = stream.write_all(head.as_bytes()).await;
        let _ = stream.write_all(&vec![b'y'; 5 << 20]).await;
    }))
    .await;
    let settings = ApiSettings { max_response: 5 << 20, ..server.settings() };
    let large = Call::json(settings.transmission.as_ref().unwrap(), "transmission", vec![b'x'; 5 << 20]);
    let deadline = Instant::now() + Duration::from_secs(20);
    let reply = caller(&settings).call(&settings, &place(), &large, deadline).await.unwrap();
    assert_eq!(reply.body.map(|body| body.len()), Some(5 << 20));
    assert!(server.requests()[0].ends_with(&"x".repeat(5 << 20)));
}

#[tokio::test]
async fn connections_are_kept_unless_the_function_closes_them() {
    let kept = Server::start(act!(|stream, n| drop(stream.write_all(OK).await))).await;
    let closed = Server::start(act!(|stream, n| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok").await;
    }))
    .await;
    for (server, connections) in [(&kept, 1), (&closed, 3)] {
        let settings = server.settings();
        let caller = caller(&settings);
        for _ in 0..3 {
            call(&caller, &settings).await.unwrap();
        }
        assert_eq!((server.connections(), server.requests().len()), (connections, 3));
    }
}

#[tokio::test]
async fn a_kept_connection_that_breaks_once_a_request_was_read_is_an_attempt_that_failed() {
    let server = Server::start(act!(|stream, n| {
        if n == 1 {
            return None;
        }
        let _ = stream.write_all(OK).await;
    }))
    .await;
    let settings = server.settings();
    let caller = caller(&settings);
    call(&caller, &settings).await.unwrap();
    broken(call(&caller, &settings).await);
    assert_eq!(server.requests().len(), 2, "it was not sent again behind our back");
    call(&caller, &settings).await.unwrap();
}

/// Leads every name to what `answers` says next, and counts how often it was asked.
fn leading(answers: &'static [&'static str]) -> (Lookup, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let lookup = Lookup::new(move |_| {
        let answer = answers[count.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1)];
        async move { Ok(vec![SocketAddr::new(answer.parse().unwrap(), 0)]) }
    });
    (lookup, asked)
}

#[tokio::test]
async fn a_name_that_leads_to_this_machine_after_it_was_looked_at_is_not_followed() {
    let server = Server::start(act!(|stream, n| drop(stream.write_all(OK).await))).await;
    let url = format!("http://rebound.example.com:{}/f", server.address.port());
    let guarded = ApiSettings { private_addresses: false, ..settings(&url) };
    assert_eq!(guarded.check(), Ok(()));
    // TEST-NET, a public address that nobody answers at, would need the network: private ones come first here, then the metadata service
    let (lookup, asked) = leading(&["127.0.0.1", "::ffff:127.0.0.1", "10.0.0.1", "169.254.169.254", "fe80::1"]);
    let caller = Caller::with_lookup(std::slice::from_ref(&guarded), &lookup).unwrap();
    for address in ["127.0.0.1", "::ffff:127.0.0.1", "10.0.0.1", "169.254.169.254", "fe80::1"] {
        match call(&caller, &guarded).await {
            Err(Failure::Unreached(why)) => {
                assert_eq!(why, format!("rebound.example.com leads to {address}, which may not be called"));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((asked.load(Ordering::SeqCst), server.connections()), (5, 0));
}

#[tokio::test]
async fn what_was_looked_at_is_what_is_dialled() {
    let server = Server::start(act!(|stream, n| drop(stream.write_all(OK).await))).await;
    let settings = settings(&format!("http://h.example.com:{}/f", server.address.port()));
    let (lookup, asked) = leading(&["127.0.0.1", "169.254.169.254"]);
    let caller = Caller::with_lookup(std::slice::from_ref(&settings), &lookup).unwrap();
    call(&caller, &settings).await.unwrap();
    assert_eq!((asked.load(Ordering::SeqCst), server.connections()), (1, 1), "asked once, and that was dialled");
    // the connection is kept: nobody is asked
    call(&caller, &settings).await.unwrap();
    assert_eq!((asked.load(Ordering::SeqCst), server.connections()), (1, 1));
}

#[tokio::test]
async fn a_connection_that_one_api_may_have_is_not_there_for_another() {
    let server = Server::start(act!(|stream, n| drop(stream.write_all(OK).await))).await;
    let open = settings(&format!("http://h.example.com:{}/f", server.address.port()));
    let guarded = ApiSettings { private_addresses: false, ..open.clone() };
    let (lookup, _) = leading(&["127.0.0.1"]);
    let caller = Caller::with_lookup(&[open.clone(), guarded.clone()], &lookup).unwrap();
    call(&caller, &open).await.unwrap();
    unreached(call(&caller, &guarded).await);
    assert_eq!(server.requests().len(), 1);
    // and one that is written as an address needs no resolver to be refused
    unreached(call(&caller, &ApiSettings { private_addresses: false, ..server.settings() }).await);
    assert_eq!(server.requests().len(), 1);
}

const CONSENT: &[u8] = b"HTTP/1.1 200 OK\r\nwebhook-allowed-origin: *\r\ncontent-length: 0\r\n\r\n";

#[tokio::test]
async fn a_server_is_asked_once_before_its_first_call() {
    let server = Server::start(act!(|stream, n| drop(stream.write_all(if n == 0 { CONSENT } else { OK }).await))).await;
    let settings =
        ApiSettings { consent: true, domain: Some("gw.example.com".into()), secrets: Vec::new(), ..server.settings() };
    let caller = caller(&settings);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let (caller, settings) = (caller.clone(), settings.clone());
        calls.spawn(async move { call(&caller, &settings).await });
    }
    for answer in calls.join_all().await {
        assert_eq!(answer.unwrap().body.as_deref(), Some(&b"ok"[..]));
    }
    assert_eq!(server.methods(), ["OPTIONS", "POST", "POST", "POST", "POST", "POST"]);
    let question = server.requests().remove(0).to_ascii_lowercase();
    assert!(
        question.starts_with("options /f http/1.1\r\n")
            && question.contains("webhook-request-origin: gw.example.com\r\n")
    );
    // another origin is another question
    let other = ApiSettings { domain: None, ..settings.clone() };
    let _ = call(&caller, &other).await;
    assert_eq!(server.methods().iter().filter(|method| *method == "OPTIONS").count(), 2);
}

#[tokio::test]
async fn a_server_that_does_not_consent_gets_no_call() {
    let server = Server::start(act!(|stream, n| {
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\nwebhook-allowed-origin: elsewhere\r\ncontent-length: 0\r\n\r\n")
            .await;
    }))
    .await;
    let settings = ApiSettings { consent: true, ..server.settings() };
    let caller = caller(&settings);
    for _ in 0..3 {
        assert_eq!(
            call(&caller, &settings).await.unwrap_err(),
            Failure::NoConsent("its WebHook-Allowed-Origin is not localhost".into())
        );
    }
    assert_eq!(server.methods(), ["OPTIONS"], "not asked again at once, and never called");
}

#[tokio::test]
async fn who_comes_to_an_address_after_another_went_is_asked_anew() {
    let first = Server::start(act!(|stream, n| {
        match n {
            0 => drop(stream.write_all(CONSENT).await),
            1 => drop(stream.write_all(OK).await),
            _ => return None,
        }
    }))
    .await;
    let settings = ApiSettings { consent: true, ..first.settings() };
    let caller = caller(&settings);
    call(&caller, &settings).await.unwrap();
    broken(call(&caller, &settings).await);
    unreached(call(&caller, &settings).await);
    assert_eq!(first.methods(), ["OPTIONS", "POST", "POST", "OPTIONS"]);
}

#[tokio::test]
async fn a_question_without_an_answer_ends_with_the_call_s_time() {
    timed_out({
        let server = Server::start(act!(|stream, n| std::future::pending::<()>().await)).await;
        let settings = ApiSettings { consent: true, ..server.settings() };
        let caller = caller(&settings);
        timed_out(call_within(&caller, &settings, Duration::from_millis(200)).await);
        assert_eq!(server.methods(), ["OPTIONS"]);
        // nor does the next one wait for it
        call_within(&caller, &settings, Duration::from_millis(200)).await
    });
}
