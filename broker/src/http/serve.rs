//! The HTTP listener: HTTP/1.1, a bound on connections, a deadline for headers, and a drain.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::Router;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use crate::tcp::Doors;

/// A request's headers must have come within this; a connection that is idle for so long is closed.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a request's line and headers.
const HEADER_BYTES: usize = 32 << 10;
/// What requests under way may still take once told to end.
const DRAIN: Duration = Duration::from_secs(5);
/// What an answer that is being written may still take.
const FLUSH: Duration = Duration::from_millis(500);

/// Serves until shutdown, then lets requests under way finish.
pub async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    doors: Doors,
    router: Router,
    shutdown: CancellationToken,
) {
    let connections = TaskTracker::new();
    while let Some((stream, admitted)) = shutdown.run_until_cancelled(doors.accept(&listener)).await {
        let (tls, doors, router, shutdown) = (tls.clone(), doors.clone(), router.clone(), shutdown.clone());
        connections.spawn(async move {
            accepted(stream, tls, &doors, router, shutdown).await;
            drop(admitted);
        });
    }
    drop(listener);
    connections.close();
    let _ = tokio::time::timeout(DRAIN, connections.wait()).await;
}

async fn accepted(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    doors: &Doors,
    router: Router,
    shutdown: CancellationToken,
) {
    let Some(tls) = tls else { return connection(stream, router, shutdown).await };
    let handshake = tokio::time::timeout(doors.patience(), tls.accept(stream));
    // who cannot finish it is not answered: there is no way to
    match shutdown.clone().run_until_cancelled_owned(handshake).await {
        Some(Ok(Ok(stream))) => connection(stream, router, shutdown).await,
        Some(Ok(Err(_))) => doors.refused("handshake"),
        Some(Err(_)) => doors.refused("silent"),
        None => {}
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send, router: Router, shutdown: CancellationToken) {
    let busy = Arc::new(AtomicBool::new(false));
    let in_request = busy.clone();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (router, busy) = (router.clone(), in_request.clone());
        async move {
            busy.store(true, Ordering::Relaxed);
            // a router cannot fail
            let answer: Result<_, Infallible> = router.oneshot(request.map(axum::body::Body::new)).await;
            busy.store(false, Ordering::Relaxed);
            answer
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => {
            // what a client breaks is the client's, and counted
            if ended.is_err_and(|error| error.is_parse() || error.is_timeout()) {
                crate::metrics::http::count_malformed();
            }
            return;
        }
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    // a request under way is answered; half a request, or an answer that nobody reads, holds nothing up
    let left = if busy.load(Ordering::Relaxed) { DRAIN } else { FLUSH };
    let _ = tokio::time::timeout(left, connection).await;
}
