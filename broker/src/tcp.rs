//! TCP listeners of gRPC and HTTP: how many connections there may be at once, in all and from one address, and who has so long to
//! say something. The HTTP/2 of strangers: a connection is handed on once it has begun to speak it.

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    net::{IpAddr, Ipv6Addr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Sleep, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::metrics::tcp::REFUSED_TOTAL;

/// What every HTTP/2 connection begins with (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Pause after a failed accept: out of file descriptors, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that have begun to speak and wait for the server. It takes them at once.
const READY_MAX: usize = 16;

/// How much strangers may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// And from one address; of IPv6 from one /64, which one subscriber has.
    pub per_address: usize,
    /// The TLS handshake must be complete, then the first bytes must have come, and later some of what waits to be sent must go out, each
    /// within this.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 4096, per_address: 1024, patience: Duration::from_secs(10) }
    }
}

/// Counts the connections of one listener. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Doors {
    listener: &'static str,
    limits: Limits,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    by_address: BTreeMap<IpAddr, usize>,
}

/// A connection's place; free again when dropped.
#[derive(Debug)]
pub struct Admitted {
    open: Arc<Mutex<Open>>,
    address: IpAddr,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut open = self.open.lock();
        open.all -= 1;
        if let Some(count) = open.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.by_address.remove(&self.address);
            }
        }
    }
}

impl Doors {
    /// Of the listener that metrics call so.
    pub fn new(listener: &'static str, limits: Limits) -> Self {
        Self { listener, limits, open: Arc::default() }
    }

    /// See [`Limits::patience`].
    pub fn patience(&self) -> Duration {
        self.limits.patience
    }

    /// A place for a connection from there, if there is one left.
    pub fn admit(&self, address: IpAddr) -> Option<Admitted> {
        let address = whole(address);
        let mut open = self.open.lock();
        let of_address = open.by_address.get(&address).copied().unwrap_or_default();
        let reason = if of_address >= self.limits.per_address {
            "address"
        } else if open.all >= self.limits.connections {
            "all"
        } else {
            open.all += 1;
            open.by_address.insert(address, of_address + 1);
            return Some(Admitted { open: Arc::clone(&self.open), address });
        };
        self.refused(reason);
        None
    }

    /// Counts a connection that came to nothing.
    pub fn refused(&self, reason: &'static str) {
        ::metrics::counter!(REFUSED_TOTAL, "listener" => self.listener, "reason" => reason).increment(1);
    }

    /// The next connection that there is a place for; others are closed at once. Cancel safe.
    pub async fn accept(&self, listener: &TcpListener) -> (TcpStream, Admitted) {
        loop {
            match listener.accept().await {
                Ok((stream, address)) => {
                    if let Some(admitted) = self.admit(address.ip()) {
                        // answers are small and whole
                        let _ = stream.set_nodelay(true);
                        return (stream, admitted);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, listener = self.listener, "accept failed");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Whom an address stands for.
fn whole(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

/// Accepts connections until `shutdown` and hands them to `ready` once they have sent HTTP/2's preface.
pub async fn accept_http2(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    doors: Doors,
    ready: mpsc::Sender<io::Result<Http2>>,
    shutdown: CancellationToken,
) {
    let strangers = TaskTracker::new();
    while let Some((stream, admitted)) = shutdown.run_until_cancelled(doors.accept(&listener)).await {
        let (tls, doors, ready) = (tls.clone(), doors.clone(), ready.clone());
        let greeted = shutdown.clone().run_until_cancelled_owned(async move {
            match greet(stream, tls, doors.patience(), admitted).await {
                Ok(stream) => {
                    let _ = ready.send(Ok(stream)).await;
                }
                Err(reason) => doors.refused(reason),
            }
        });
        strangers.spawn(greeted);
    }
    drop(listener);
    strangers.close();
    strangers.wait().await;
}

/// Where [`accept_http2`] puts connections, and where a server takes them.
pub fn ready() -> (mpsc::Sender<io::Result<Http2>>, mpsc::Receiver<io::Result<Http2>>) {
    mpsc::channel(READY_MAX)
}

async fn greet(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    patience: Duration,
    admitted: Admitted,
) -> Result<Http2, &'static str> {
    let mut io = match tls {
        None => Io::Plain(stream),
        Some(tls) => match timeout(patience, tls.accept(stream)).await {
            Ok(Ok(stream)) => Io::Tls(Box::new(stream)),
            Ok(Err(_)) => return Err("handshake"),
            Err(_) => return Err("silent"),
        },
    };
    let mut first = [0; PREFACE.len()];
    match timeout(patience, read_preface(&mut io, &mut first)).await {
        Ok(Ok(())) => {
            Ok(Http2 { io, unread: PREFACE, stalled: Stalled { patience, until: None }, _admitted: admitted })
        }
        Ok(Err(_)) => Err("preface"),
        Err(_) => Err("silent"),
    }
}

/// Ends with the first byte that differs: who speaks something else is not waited for.
async fn read_preface(io: &mut Io, first: &mut [u8; PREFACE.len()]) -> io::Result<()> {
    let mut read = 0;
    while read < first.len() {
        let count = io.read(&mut first[read..]).await?;
        read += count;
        if count == 0 || !PREFACE.starts_with(&first[..read]) {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(())
}

#[derive(Debug)]
enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection that has sent HTTP/2's preface, and gives it to its reader as if it had not been read.
#[derive(Debug)]
pub struct Http2 {
    io: Io,
    unread: &'static [u8],
    stalled: Stalled,
    _admitted: Admitted,
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_read(context, buffer),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_read(context, buffer),
        }
    }
}

impl AsyncRead for Http2 {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.unread.is_empty() {
            return Pin::new(&mut this.io).poll_read(context, buffer);
        }
        let (now, later) = this.unread.split_at(this.unread.len().min(buffer.remaining()));
        buffer.put_slice(now);
        this.unread = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write(context, bytes),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_flush(context),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_shutdown(context),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_shutdown(context),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write_vectored(context, slices),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
        }
    }
}

/// Who takes nothing of what is sent would hold its place for ever: HTTP/2's own keepalive ends nothing that it cannot write to.
#[derive(Debug)]
struct Stalled {
    patience: Duration,
    /// Since something could not be written.
    until: Option<Pin<Box<Sleep>>>,
}

impl Stalled {
    fn bound<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.until = None;
            return written;
        }
        let until = self.until.get_or_insert_with(|| Box::pin(sleep(self.patience)));
        until.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Http2 {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write(context, bytes);
        this.stalled.bound(context, written)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.io).poll_flush(context);
        this.stalled.bound(context, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let shut = Pin::new(&mut this.io).poll_shutdown(context);
        this.stalled.bound(context, shut)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write_vectored(context, slices);
        this.stalled.bound(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doors(connections: usize, per_address: usize) -> Doors {
        Doors::new("test", Limits { connections, per_address, patience: Duration::from_secs(1) })
    }

    #[test]
    fn places_are_counted_for_all_and_for_each_address_and_come_back() {
        let doors = doors(3, 2);
        let at = |text: &str| doors.admit(text.parse().unwrap());
        let (one, two) = (at("10.0.0.1").unwrap(), at("::ffff:10.0.0.1").unwrap());
        assert!(at("10.0.0.1").is_none(), "the same address, however it is written");
        let other = at("10.0.0.2").unwrap();
        assert!(at("10.0.0.3").is_none(), "as many as there may be");
        drop(one);
        let again = at("10.0.0.1").unwrap();
        drop((two, other, again));
        let six = [at("2001:db8::1").unwrap(), at("2001:db8::ffff:2").unwrap()];
        assert!(at("2001:db8:0:0:1::").is_none(), "of one /64");
        assert!(at("2001:db8:0:1::").is_some());
        drop(six);
        let open = doors.open.lock();
        assert!(open.all == 0 && open.by_address.is_empty(), "nothing is kept of who has gone");
    }
}
