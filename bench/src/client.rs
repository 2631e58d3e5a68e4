//! A WebSocket client that costs as little as possible: it shares the machine with what it measures.

use std::{
    cell::RefCell,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Bytes of the buffer that all sockets of a thread read into.
const READ_BUFFER_BYTES: usize = 256 << 10;

thread_local! {
    static READ_BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BUFFER_BYTES]);
}

/// One open WebSocket.
pub(crate) struct Socket {
    stream: TcpStream,
    frames: FrameReader,
}

impl Socket {
    /// Connects and upgrades.
    pub(crate) async fn connect(address: SocketAddr, path: &str) -> anyhow::Result<Self> {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        // byte by byte, so that no frame is swallowed with the head: once per connection
        let mut head = Vec::with_capacity(256);
        while !head.ends_with(b"\r\n\r\n") {
            ensure!(head.len() < 16 << 10, "endless answer to the upgrade");
            head.push(stream.read_u8().await.context("connection closed during the upgrade")?);
        }
        if !head.starts_with(b"HTTP/1.1 101") {
            bail!("upgrade refused: {}", String::from_utf8_lossy(&head).lines().next().unwrap_or_default());
        }
        Ok(Self { stream, frames: FrameReader::default() })
    }

    /// Writes bytes made by [`frame`].
    pub(crate) async fn write(&mut self, frames: &[u8]) -> anyhow::Result<()> {
        Ok(self.stream.write_all(frames).await?)
    }

    /// Waits for bytes and gives each whole data frame's first eight payload bytes to `on_frame`.
    pub(crate) async fn read(&mut self, mut on_frame: impl FnMut([u8; 8])) -> anyhow::Result<()> {
        loop {
            self.stream.readable().await?;
            let read = READ_BUFFER.with_borrow_mut(|buffer| {
                let read = self.stream.try_read(buffer);
                if let Ok(bytes) = read {
                    self.frames.feed(&buffer[..bytes], &mut on_frame);
                }
                read
            });
            match read {
                Ok(0) => bail!("the server closed the connection, with code {:?}", self.frames.close_code),
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A masked text frame (mask of zeros: legal, and free) whose payload starts with `stamp`, padded to `bytes`.
pub(crate) fn frame(out: &mut Vec<u8>, stamp: u64, bytes: usize) {
    out.push(0x82);
    match bytes {
        0..126 => out.push(0x80 | bytes as u8),
        126..65_536 => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(bytes as u16).to_be_bytes());
        }
        _ => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(bytes as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&[0; 4]);
    let start = out.len();
    out.extend_from_slice(&stamp.to_be_bytes());
    out.resize(start + bytes, b'x');
}

/// Nanoseconds since the first call: what [`frame`] stamps.
pub(crate) fn now() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// Follows server frames through a byte stream.
#[derive(Default)]
struct FrameReader {
    header: [u8; 10],
    have: usize,
    in_payload: bool,
    left: u64,
    stamp: [u8; 8],
    stamped: usize,
    close_code: Option<u16>,
}

impl FrameReader {
    fn feed(&mut self, mut bytes: &[u8], on_frame: &mut impl FnMut([u8; 8])) {
        while !bytes.is_empty() {
            if !self.in_payload {
                self.header[self.have] = bytes[0];
                self.have += 1;
                bytes = &bytes[1..];
                let Some(length) = self.payload_length() else { continue };
                (self.left, self.in_payload, self.stamped) = (length, true, 0);
            }
            let take = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            let stamp = take.min(8 - self.stamped);
            self.stamp[self.stamped..self.stamped + stamp].copy_from_slice(&bytes[..stamp]);
            self.stamped += stamp;
            self.left -= take as u64;
            bytes = &bytes[take..];
            if self.left == 0 {
                match self.header[0] & 0x0f {
                    1 | 2 => on_frame(self.stamp),
                    8 => self.close_code = Some(u16::from_be_bytes([self.stamp[0], self.stamp[1]])),
                    _ => {}
                }
                (self.in_payload, self.have) = (false, 0);
            }
        }
    }

    /// Known once the header is whole.
    fn payload_length(&self) -> Option<u64> {
        match (self.have, self.header[1] & 0x7f) {
            (2, length @ 0..=125) => Some(u64::from(length)),
            (4, 126) => Some(u64::from(u16::from_be_bytes([self.header[2], self.header[3]]))),
            (10, 127) => self.header[2..10].try_into().ok().map(u64::from_be_bytes),
            _ => None,
        }
    }
}

/// One keep-alive HTTP connection, for publishing.
pub(crate) struct Http {
    stream: TcpStream,
    address: SocketAddr,
}

impl Http {
    pub(crate) async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, address })
    }

    /// Sends a request and gives the answer's status and body.
    pub(crate) async fn request(&mut self, method: &str, path: &str, body: &[u8]) -> anyhow::Result<(u16, Vec<u8>)> {
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
            self.address,
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        self.stream.write_all(&request).await?;
        let mut answer = Vec::with_capacity(512);
        let head = loop {
            if let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            ensure!(self.stream.read_buf(&mut answer).await? > 0, "the server closed the connection");
        };
        let text = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status line")?;
        let length: usize = text
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"))
            .map_or(Ok(0), |value| value.trim().parse())?;
        while answer.len() < head + length {
            ensure!(self.stream.read_buf(&mut answer).await? > 0, "the server closed the connection");
        }
        Ok((status, answer.split_off(head)))
    }
}

/// Opens `count` sockets, a few at a time.
pub(crate) async fn connect_many(address: SocketAddr, path: &str, count: usize) -> anyhow::Result<Vec<Socket>> {
    let mut sockets = Vec::with_capacity(count);
    let mut opening = tokio::task::JoinSet::new();
    let mut left = count;
    while sockets.len() < count {
        while left > 0 && opening.len() < 100 {
            let path = path.to_owned();
            opening.spawn_local(async move { Socket::connect(address, &path).await });
            left -= 1;
        }
        let opened = tokio::time::timeout(Duration::from_secs(30), opening.join_next()).await?;
        sockets.push(opened.context("nothing is being opened")???);
    }
    Ok(sockets)
}
