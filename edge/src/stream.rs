//! A client's bytes, plain or by TLS. As with a bare TCP socket nothing here waits by itself: what cannot be done now says so.

use std::{
    io::{self, IoSlice, Read, Write},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, ServerConnection},
};

/// Bytes that TLS may hold back for a socket that takes none.
const TLS_BUFFER_BYTES: usize = 64 << 10;

/// One client's socket.
pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream>),
}

/// TLS over a socket: tokio-rustls has done the handshake, the rest is driven by hand, for frames are written where they are queued.
pub(crate) struct TlsStream {
    tcp: TcpStream,
    tls: ServerConnection,
}

impl Stream {
    /// Takes in a socket; with `tls`, after the handshake.
    pub(crate) async fn accept(tcp: TcpStream, tls: Option<&Arc<ServerConfig>>) -> io::Result<Self> {
        let Some(config) = tls else { return Ok(Self::Plain(tcp)) };
        // boxed: a handshake's state must not be part of every connection's task
        let accepted = Box::pin(TlsAcceptor::from(Arc::clone(config)).accept(tcp)).await?;
        let (tcp, mut tls) = accepted.into_inner();
        tls.set_buffer_limit(Some(TLS_BUFFER_BYTES));
        Ok(Self::Tls(Box::new(TlsStream { tcp, tls })))
    }

    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buffer),
            Self::Tls(stream) => stream.poll_read(cx, buffer),
        }
    }

    pub(crate) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(tcp) => tcp.poll_write_ready(cx),
            Self::Tls(stream) => stream.tcp.poll_write_ready(cx),
        }
    }

    /// Takes as much as there is room for; `WouldBlock`: nothing.
    pub(crate) fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.try_write(bytes),
            Self::Tls(stream) => stream.try_write(|writer| writer.write(bytes)),
        }
    }

    pub(crate) fn try_write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.try_write_vectored(slices),
            Self::Tls(stream) => stream.try_write(|writer| writer.write_vectored(slices)),
        }
    }

    /// Whether bytes that were taken wait for the socket.
    pub(crate) fn holds_bytes(&self) -> bool {
        matches!(self, Self::Tls(stream) if stream.tls.wants_write())
    }

    /// Sends those; `WouldBlock`: some are left.
    pub(crate) fn try_flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(stream) => stream.send(),
        }
    }

    /// Nothing more will be written. Does not wait.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(stream) => {
                stream.tls.send_close_notify();
                // a few bytes; where the socket has no room for them the end of TCP must do
                let _ = stream.send();
                Pin::new(&mut stream.tcp).poll_shutdown(cx)
            }
        }
    }
}

impl TlsStream {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.tls.reader().read(buffer.initialize_unfilled()) {
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
            ready!(self.tcp.poll_read_ready(cx))?;
            match self.tls.read_tls(&mut Raw(&self.tcp)) {
                Ok(0) => return Poll::Ready(Ok(())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Poll::Ready(Err(error)),
            }
            let processed = self.tls.process_new_packets().map_err(io::Error::other);
            // what TLS has to say to that: an alert, or a key update
            match self.send() {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Poll::Ready(Err(error)),
                _ => {}
            }
            processed?;
        }
    }

    fn try_write(
        &mut self,
        write: impl FnOnce(&mut tokio_rustls::rustls::Writer<'_>) -> io::Result<usize>,
    ) -> io::Result<usize> {
        self.send()?;
        let taken = write(&mut self.tls.writer())?;
        match self.send() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(taken),
        }
    }

    fn send(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut Raw(&self.tcp))?;
        }
        Ok(())
    }
}

/// A socket as rustls wants it.
struct Raw<'a>(&'a TcpStream);

impl Read for Raw<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
