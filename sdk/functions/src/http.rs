//! The only file that knows sockets: one request to a function, and its answer within bounds. Redirects are not followed, and
//! nothing is connected to that may not be called, whatever a name resolves to. HTTP/1.1 alone: calls need order, not streams.

use std::{
    error::Error,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Method, Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use tokio::time::Instant;

use crate::{
    call::{Call, Place, Reply},
    consent::Consents,
    failure::Failure,
    resolver::{Lookup, Resolver},
    settings::{ApiSettings, FunctionUrl},
    signature,
};

/// Connecting takes at most this of a call's timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle connections are kept for less than the 5 s that common servers keep them: a request on one that is being closed is lost.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// Idle connections kept to each function's host.
const IDLE_MAX: usize = 256;
/// Most bytes of an answer's head, and most headers in it.
const HEAD_BYTES_MAX: usize = 64 << 10;
const HEADERS_MAX: usize = 100;
pub(crate) const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("trunkline/", env!("CARGO_PKG_VERSION")));

/// Why calls cannot be made at all.
#[derive(Debug, thiserror::Error)]
pub enum CallerError {
    /// A function is called over TLS, and the system trusts nobody.
    #[error("functions are called over https, and the system has no root certificates: {0}")]
    NoRoots(String),
    /// TLS cannot be set up.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

type Http = Client<HttpsConnector<HttpConnector<Resolver>>, Full<Bytes>>;

/// Calls functions, all APIs' over one pool of connections for those that may be in private networks, and one for those that may
/// not: an address that the one may dial is not there for the other. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Caller {
    anywhere: Http,
    in_public: Http,
    consents: Arc<Consents>,
}

impl Caller {
    /// Call it within a tokio runtime. The system's root certificates are read if an API has a function behind https.
    pub fn new(apis: &[ApiSettings]) -> Result<Self, CallerError> {
        Self::with_lookup(apis, &Lookup::system())
    }

    fn with_lookup(apis: &[ApiSettings], lookup: &Lookup) -> Result<Self, CallerError> {
        let needs_tls = apis.iter().flat_map(ApiSettings::urls).any(FunctionUrl::is_https);
        let roots = if needs_tls { system_roots()? } else { RootCertStore::empty() };
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let http = |private_too| client(tls.clone(), Resolver { lookup: lookup.clone(), private_too });
        Ok(Self { anywhere: http(true), in_public: http(false), consents: Arc::default() })
    }

    /// One attempt, which ends by `deadline`.
    pub(crate) async fn call(
        &self,
        settings: &ApiSettings,
        place: &Place,
        call: &Call,
        deadline: Instant,
    ) -> Result<Reply, Failure> {
        let since = Instant::now();
        let answered = tokio::time::timeout_at(deadline, async {
            if settings.consent {
                let ask = |question| async {
                    // broken or not: the function itself was not asked
                    self.exchange(settings, &call.url, question).await.map_err(|failure| match failure {
                        Failure::Broken(why) => Failure::Unreached(why),
                        other => other,
                    })
                };
                self.consents.given(settings, &call.url, ask).await?;
            }
            let answered = self.exchange(settings, &call.url, request(settings, place, call)).await;
            if settings.consent && matches!(answered, Err(Failure::Unreached(_) | Failure::Broken(_))) {
                self.consents.forget(settings, &call.url).await;
            }
            answered
        });
        answered.await.unwrap_or_else(|_| Err(Failure::Timeout(since.elapsed())))
    }

    /// A request and its answer.
    async fn exchange(
        &self,
        settings: &ApiSettings,
        url: &FunctionUrl,
        request: Request<Full<Bytes>>,
    ) -> Result<Reply, Failure> {
        // no resolver sees what is written as an address
        if !settings.may_call(url) {
            return Err(Failure::Unreached("no function may be at a private address".to_owned()));
        }
        let http = if settings.private_addresses { &self.anywhere } else { &self.in_public };
        let response = http.request(request).await.map_err(|error| match error.is_connect() {
            true => Failure::Unreached(root_cause(&error)),
            false => Failure::Broken(root_cause(&error)),
        })?;
        let (parts, body) = response.into_parts();
        let body = read(body, settings.max_response).await?;
        Ok(Reply { status: parts.status, headers: parts.headers, body })
    }
}

/// A request that went over a connection which the other side was just closing is sent again only if none of it was: hyper's rule.
fn client(tls: ClientConfig, resolver: Resolver) -> Http {
    let mut connector = HttpConnector::new_with_resolver(resolver);
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(connector);
    Client::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_MAX)
        .pool_timer(TokioTimer::new())
        .http1_max_buf_size(HEAD_BYTES_MAX)
        .http1_max_headers(HEADERS_MAX)
        .build(connector)
}

fn system_roots() -> Result<RootCertStore, CallerError> {
    let loaded = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(loaded.certs);
    if added == 0 {
        let reasons: Vec<String> = loaded.errors.iter().map(ToString::to_string).collect();
        return Err(CallerError::NoRoots(reasons.join("; ")));
    }
    Ok(roots)
}

/// The request: the operator's headers first, ours last, so that none of ours is replaced.
fn request(settings: &ApiSettings, place: &Place, call: &Call) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(call.body.clone()));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = call.url.uri().clone();
    let headers = request.headers_mut();
    headers.insert(header::USER_AGENT, USER_AGENT);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(call.content_type));
    settings.headers.iter().for_each(|(name, value)| drop(headers.insert(name, value.clone())));
    let mut set = |name: &'static str, value: &str| {
        // a principal or a host of a client may be what no header can hold: it is in the body, or left out
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    set("idempotency-key", &place.key);
    set("x-trunkline-api", &settings.api);
    set("x-trunkline-connection", &place.connection);
    set("x-trunkline-attempt", &place.attempt.to_string());
    call.headers.iter().for_each(|(name, value)| set(name, value));
    if !settings.secrets.is_empty() {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        set("webhook-id", &place.key);
        set("webhook-timestamp", &seconds.to_string());
        set("webhook-signature", &signature::signatures(&settings.secrets, &place.key, seconds, &call.body));
    }
    request
}

/// The body; `None` if there is more of it than `most`, then the rest is left unread and its connection closed.
async fn read(mut body: Incoming, most: usize) -> Result<Option<Bytes>, Failure> {
    if body.size_hint().lower() > most as u64 {
        return Ok(None);
    }
    let mut read = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::Broken(root_cause(&error)))?;
        let Ok(data) = frame.into_data() else { continue };
        if read.len() + data.len() > most {
            return Ok(None);
        }
        read.extend_from_slice(&data);
    }
    Ok(Some(read.freeze()))
}

/// "Connection refused" rather than "client error (Connect)".
fn root_cause(error: &dyn Error) -> String {
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    causes.last().map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
