//! The HTTP/2 of strangers: a connection is handed on once it has begun to speak it, and given up when it takes nothing of what is sent.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Sleep, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Admitted, Doors};

/// What every HTTP/2 connection begins with (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Connections that have begun to speak and wait for the server. It takes them at once.
const READY_MAX: usize = 16;

/// Accepts connections until `shutdown` and hands them to `ready` once they have sent HTTP/2's preface.
pub async fn accept(
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

/// Where [`accept`] puts connections, and where a server takes them.
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
