//! The only file that knows sockets.

use std::{error::Error, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

use crate::resolver::Resolver;

/// Connecting takes at most this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of an answer's head, and most headers in it.
const HEAD_BYTES_MAX: usize = 64 << 10;
const HEADERS_MAX: usize = 100;

/// Why requests cannot be made at all.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The system trusts nobody.
    #[error("the system has no root certificates: {0}")]
    NoRoots(String),
    /// A file of authorities holds none.
    #[error("no certificate of an authority is there")]
    NoAuthority,
    /// TLS cannot be set up.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// The first cause, "Connection refused" rather than "client error (Connect)".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Nobody was reached: nothing was asked.
    #[error("{0}")]
    Unreached(String),
    /// The connection broke.
    #[error("{0}")]
    Broken(String),
}

fn first_cause(error: &dyn Error) -> String {
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    causes.last().map(ToString::to_string).unwrap_or_default()
}

/// Connections that are kept while nothing is asked.
#[derive(Debug, Clone, Copy)]
pub struct Pool {
    /// For how long.
    pub idle_timeout: Duration,
    /// To each host.
    pub idle_max: usize,
}

/// Makes requests, over HTTP/1.1. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client(legacy::Client<HttpsConnector<HttpConnector<Resolver>>, Full<Bytes>>);

impl Client {
    /// Call it within a tokio runtime. By https it talks to whom these authorities have signed; private addresses are called too.
    pub fn new(roots: RootCertStore, pool: Pool) -> Result<Self, ClientError> {
        Self::with_resolver(roots, pool, Resolver::default())
    }

    /// A request that went over a connection which the other side was just closing is sent again only if none of it was: hyper's rule.
    pub fn with_resolver(roots: RootCertStore, pool: Pool, resolver: Resolver) -> Result<Self, ClientError> {
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut connector = HttpConnector::new_with_resolver(resolver);
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_idle_timeout(pool.idle_timeout)
            .pool_max_idle_per_host(pool.idle_max)
            .pool_timer(TokioTimer::new())
            .http1_max_buf_size(HEAD_BYTES_MAX)
            .http1_max_headers(HEADERS_MAX)
            .build(connector);
        Ok(Self(client))
    }

    /// What requests say they come from.
    pub const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("trunkline/", env!("CARGO_PKG_VERSION")));

    /// Sends a request whose URL [`crate::parse`] has let pass, and waits for the head of its answer.
    pub async fn request(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, RequestError> {
        self.0.request(request).await.map_err(|error| match error.is_connect() {
            true => RequestError::Unreached(first_cause(&error)),
            false => RequestError::Broken(first_cause(&error)),
        })
    }
}

/// The body of an answer; `None` if there is more of it than `most`, then the rest is left unread and its connection closed.
pub async fn read(mut body: Incoming, most: usize) -> Result<Option<Bytes>, RequestError> {
    if body.size_hint().lower() > most as u64 {
        return Ok(None);
    }
    let mut read = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| RequestError::Broken(first_cause(&error)))?;
        let Ok(data) = frame.into_data() else { continue };
        if read.len() + data.len() > most {
            return Ok(None);
        }
        read.extend_from_slice(&data);
    }
    Ok(Some(read.freeze()))
}

/// Nobody: for requests without TLS.
pub fn no_roots() -> RootCertStore {
    RootCertStore::empty()
}

/// Whom the system trusts.
pub fn system_roots() -> Result<RootCertStore, ClientError> {
    let loaded = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(loaded.certs);
    if added == 0 {
        let reasons: Vec<String> = loaded.errors.iter().map(ToString::to_string).collect();
        return Err(ClientError::NoRoots(reasons.join("; ")));
    }
    Ok(roots)
}

/// The authorities of a PEM file, and nobody else.
pub fn roots_of_pem(pem: &[u8]) -> Result<RootCertStore, ClientError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.map_err(|_| ClientError::NoAuthority)?)?;
    }
    if roots.is_empty() { Err(ClientError::NoAuthority) } else { Ok(roots) }
}
