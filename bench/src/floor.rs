//! The floor: a WebSocket server that keeps nothing, as the child process `trunkline-bench --child floor`, so that its processor
//! time is read as the real server's is. One thread, tokio's current-thread runtime (epoll), one task per socket, one buffer for
//! all of them.
//!
//! - `/echo`: one read, one write of everything that was read.
//! - `/news`: a publish (`POST`, as the gateway's) is encoded once; what was published in one turn of the runtime goes to each
//!   subscriber in one write. With one publish in flight that is one write per delivery.
//! - any other path: messages are counted and dropped.
//!
//! Its answer to the upgrade leaves out the SHA-1 of the key, its only shortcut beside keeping nothing.

use std::{
    cell::{Cell, RefCell},
    io,
    rc::Rc,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::{LocalSet, spawn_local},
};

/// Bytes of the buffer that all sockets read into.
const READ_BUFFER_BYTES: usize = 256 << 10;
/// Longest request head, in bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;
const UPGRADED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n";

thread_local! {
    static READ_BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BUFFER_BYTES]);
}

#[derive(Default)]
struct Shared {
    members: RefCell<Vec<Rc<Member>>>,
    /// Frames published in this turn.
    published: RefCell<Vec<u8>>,
    has_published: Notify,
    received: Cell<u64>,
}

struct Member {
    stream: TcpStream,
    /// What its socket did not take; bounded by the publishes that the load generator keeps in flight.
    pending: RefCell<Vec<u8>>,
}

/// Serves until it is killed.
pub(crate) async fn serve() -> anyhow::Result<()> {
    let (ws, http) = (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
    for (name, listener) in [("ws", &ws), ("http", &http), ("edge-http", &http)] {
        println!("listening {name} {}", listener.local_addr()?);
    }
    println!("ready");
    let shared = Rc::new(Shared::default());
    let tasks = LocalSet::new();
    tasks.spawn_local(fan_out(shared.clone()));
    let publishing = shared.clone();
    tasks.spawn_local(async move {
        while let Ok((stream, _)) = http.accept().await {
            spawn_local(requests(stream, publishing.clone()));
        }
    });
    tasks
        .run_until(async move {
            loop {
                let (stream, _) = ws.accept().await?;
                let shared = shared.clone();
                spawn_local(async move {
                    // the load generator closes sockets as it likes
                    let _ = websocket(stream, &shared).await;
                });
            }
        })
        .await
}

async fn websocket(mut stream: TcpStream, shared: &Rc<Shared>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let head = head(&mut stream, &mut Vec::with_capacity(256)).await?;
    stream.write_all(UPGRADED).await?;
    match head.split(' ').nth(1).unwrap_or_default() {
        "/echo" => echo(&stream).await,
        "/news" => subscribe(stream, shared).await,
        _ => frames(&stream, |_, _| shared.received.set(shared.received.get() + 1), async |_| Ok(())).await,
    }
}

async fn echo(stream: &TcpStream) -> io::Result<()> {
    let put = |out: &mut Vec<u8>, payload: &[u8]| {
        header(out, payload.len());
        out.extend_from_slice(payload);
    };
    frames(stream, put, async |out| write_all(stream, out).await).await
}

/// Stays among the members until the socket ends.
async fn subscribe(stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let member = Rc::new(Member { stream, pending: RefCell::default() });
    shared.members.borrow_mut().push(member.clone());
    let ended = frames(&member.stream, |_, _| {}, async |_| Ok(())).await;
    shared.members.borrow_mut().retain(|other| !Rc::ptr_eq(other, &member));
    ended
}

/// Gives each message to `on_message` and, after each read, what that has put out to `write`.
async fn frames(
    stream: &TcpStream,
    mut on_message: impl FnMut(&mut Vec<u8>, &[u8]),
    write: impl AsyncFn(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    // empty but while a frame has come in part
    let mut rest = Vec::new();
    loop {
        stream.readable().await?;
        let mut out = Vec::new();
        let read = READ_BUFFER.with_borrow_mut(|buffer| {
            let read = stream.try_read(buffer);
            if let Ok(bytes @ 1..) = read {
                if rest.is_empty() {
                    let used = messages(&mut buffer[..bytes], |payload| on_message(&mut out, payload));
                    rest.extend_from_slice(&buffer[used..bytes]);
                } else {
                    rest.extend_from_slice(&buffer[..bytes]);
                    let used = messages(&mut rest, |payload| on_message(&mut out, payload));
                    rest.drain(..used);
                }
                if rest.is_empty() {
                    rest = Vec::new();
                }
            }
            read
        });
        match read {
            Ok(0) => return Ok(()),
            Ok(_) if !out.is_empty() => write(&out).await?,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Unmasks the whole frames in `bytes`; gives how many bytes they take.
fn messages(bytes: &mut [u8], mut on_message: impl FnMut(&[u8])) -> usize {
    let mut at = 0;
    while let Some((start, length)) = payload(&bytes[at..]) {
        let frame = &mut bytes[at..at + start + length];
        let (head, payload) = frame.split_at_mut(start);
        if let Some(mask) = head.last_chunk::<4>() {
            payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        }
        if matches!(head[0] & 0x0f, 1 | 2) {
            on_message(payload);
        }
        at += start + length;
    }
    at
}

/// Where a masked frame's payload starts and its length, if the frame is whole.
fn payload(bytes: &[u8]) -> Option<(usize, usize)> {
    let (start, length): (usize, usize) = match bytes.get(1)? & 0x7f {
        126 => (8, usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]))),
        127 => (14, usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?),
        length => (6, usize::from(length)),
    };
    (bytes.len() >= start.checked_add(length)?).then_some((start, length))
}

/// The header of a server's binary frame.
fn header(out: &mut Vec<u8>, length: usize) {
    out.push(0x82);
    match length {
        0..126 => out.push(length as u8),
        126..65_536 => {
            out.push(126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

/// Writes what was published in a turn to every member.
async fn fan_out(shared: Rc<Shared>) {
    loop {
        shared.has_published.notified().await;
        // whoever else has something to publish in this turn comes first
        tokio::task::yield_now().await;
        let frames = shared.published.take();
        for member in shared.members.borrow().iter() {
            let mut pending = member.pending.borrow_mut();
            if !pending.is_empty() {
                pending.extend_from_slice(&frames);
                continue;
            }
            let taken = member.stream.try_write(&frames).unwrap_or(0);
            if taken < frames.len() {
                pending.extend_from_slice(&frames[taken..]);
                spawn_local(drain(member.clone()));
            }
        }
    }
}

async fn drain(member: Rc<Member>) {
    while member.stream.writable().await.is_ok() {
        let mut pending = member.pending.borrow_mut();
        match member.stream.try_write(&pending) {
            Ok(taken) => drop(pending.drain(..taken)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
        if pending.is_empty() {
            return;
        }
    }
}

async fn write_all(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.try_write(bytes) {
            Ok(taken) => bytes = &bytes[taken..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// `POST` publishes; everything else is answered with the count of received messages, as the gateway's metrics name it.
async fn requests(mut stream: TcpStream, shared: Rc<Shared>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(1024);
    loop {
        let head = head(&mut stream, &mut buffer).await?;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = length.and_then(|length| length.trim().parse().ok()).unwrap_or(0);
        while buffer.len() < length {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
        let mut answer = String::new();
        if head.starts_with("post") {
            let mut published = shared.published.borrow_mut();
            header(&mut published, length);
            published.extend_from_slice(&buffer[..length]);
            shared.has_published.notify_one();
        } else {
            answer = format!("trunkline_edge_messages_received_total {}\n", shared.received.get());
        }
        buffer.drain(..length);
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
        stream.write_all(answer.as_bytes()).await?;
    }
}

/// A request's head in lower case; what follows it stays in `buffer`.
async fn head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<String> {
    loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
            buffer.drain(..end + 4);
            return Ok(head);
        }
        if buffer.len() > HEAD_BYTES_MAX || stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_a_client_are_unmasked_and_a_part_of_one_waits() {
        for length in [0, 5, 125, 126, 65_535, 65_536] {
            let mut bytes = Vec::new();
            crate::client::frame(&mut bytes, 7, length.max(8));
            let whole = bytes.len();
            let mask_at = whole - length.max(8) - 4;
            bytes[mask_at..mask_at + 4].copy_from_slice(&[1, 2, 3, 4]);
            bytes.extend_from_slice(&[0x82, 0xfe]);
            let mut payloads = Vec::new();
            let used = messages(&mut bytes, |payload| payloads.push(payload.to_vec()));
            assert_eq!(used, whole);
            assert_eq!(payloads.len(), 1);
            assert_eq!(payloads[0].len(), length.max(8));
            assert_eq!(payloads[0][..8], [1, 2, 3, 4, 1, 2, 3, 7 ^ 4]);
        }
    }
}
