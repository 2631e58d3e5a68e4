//! Functions over HTTP/1.1 that answer as a test tells them, and keep what they were asked.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(String::as_str).unwrap_or_default()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// What a function does with a request.
pub enum Reaction {
    Answer(u16, &'static str, String),
    After(Duration, u16, String),
    /// Nothing, and the connection stays open.
    Silence,
    /// Closes the connection instead of answering.
    Cut,
    /// 200, and then bytes for ever.
    Endless,
    /// Answers 200, then closes a connection it promised to keep.
    AnswerAndCut,
}

/// Answers with a status and a body.
pub fn answer(status: u16, body: impl Into<String>) -> Reaction {
    Reaction::Answer(status, "", body.into())
}

type React = Arc<dyn Fn(&Request, usize) -> Reaction + Send + Sync>;

#[derive(Clone)]
pub struct Functions {
    pub address: SocketAddr,
    pub seen: Arc<Mutex<Vec<Request>>>,
    pub connections: Arc<AtomicUsize>,
}

impl Functions {
    /// `react` is given each request and how many there were before it.
    pub async fn start(react: impl Fn(&Request, usize) -> Reaction + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, react)
    }

    pub fn on(listener: TcpListener, react: impl Fn(&Request, usize) -> Reaction + Send + Sync + 'static) -> Self {
        let address = listener.local_addr().unwrap();
        let functions = Self { address, seen: Arc::default(), connections: Arc::default() };
        let (own, react): (_, React) = (functions.clone(), Arc::new(react));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                own.connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(own.clone(), stream, react.clone()));
            }
        });
        functions
    }

    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }
}

async fn serve(functions: Functions, stream: TcpStream, react: React) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read(&mut stream).await {
        let before = {
            let mut seen = functions.seen.lock().unwrap();
            seen.push(request.clone());
            seen.len() - 1
        };
        let (status, headers, body, cut) = match react(&request, before) {
            Reaction::Answer(status, headers, body) => (status, headers, body, false),
            Reaction::After(delay, status, body) => {
                tokio::time::sleep(delay).await;
                (status, "", body, false)
            }
            Reaction::AnswerAndCut => (200, "", String::new(), true),
            Reaction::Silence => return std::future::pending().await,
            Reaction::Cut => return,
            Reaction::Endless => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
                let chunk = [b"10000\r\n".as_slice(), &[b'x'; 65_536], b"\r\n"].concat();
                while stream.write_all(&chunk).await.is_ok() {}
                return;
            }
        };
        let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len());
        if stream.write_all(head.as_bytes()).await.is_err() || cut {
            return;
        }
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok().filter(|bytes| *bytes > 0)?;
    let method = line.split(' ').next().unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok().filter(|bytes| *bytes > 0)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Request { method, headers, body })
}
