//! The only file that makes requests: one to a function, and its answer within bounds. Where it may go, and where not: `trunkline_https`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, header};
use http_body_util::Full;
use tokio::time::Instant;
use trunkline_https::{Client, ClientError, Pool, RequestError, no_roots, read, system_roots};

use crate::{
    call::{Call, Place, Reply},
    failure::Failure,
    settings::ApiSettings,
    signature,
};

/// Idle connections are kept for less than the 5 s that common servers keep them: a request on one that is being closed is lost.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// Idle connections kept to each function's host.
const IDLE_MAX: usize = 256;

/// Why calls cannot be made at all: a function is called over TLS, and the system trusts nobody, or TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("functions are called over https: {0}")]
pub struct CallerError(#[from] ClientError);

/// Calls functions, all APIs' over one pool of connections. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Caller(Client);

impl Caller {
    /// Call it within a tokio runtime. The system's root certificates are read if an API has a function behind https.
    pub fn new(apis: &[ApiSettings]) -> Result<Self, CallerError> {
        let needs_tls = apis.iter().flat_map(ApiSettings::urls).any(crate::FunctionUrl::is_https);
        let roots = if needs_tls { system_roots()? } else { no_roots() };
        Ok(Self(Client::new(roots, Pool { idle_timeout: IDLE_TIMEOUT, idle_max: IDLE_MAX })?))
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
        let request = request(settings, place, call);
        let answered = tokio::time::timeout_at(deadline, async {
            let unreached = |error: RequestError| Failure::Unreached(error.0);
            let (parts, body) = self.0.request(request).await.map_err(unreached)?.into_parts();
            let body = read(body, settings.max_response).await.map_err(unreached)?;
            Ok(Reply { status: parts.status, headers: parts.headers, body })
        });
        answered.await.unwrap_or_else(|_| Err(Failure::Timeout(since.elapsed())))
    }
}

/// The request: the operator's headers first, ours last, so that none of ours is replaced.
fn request(settings: &ApiSettings, place: &Place, call: &Call) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(call.body.clone()));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = call.url.uri().clone();
    let headers = request.headers_mut();
    headers.insert(header::USER_AGENT, Client::USER_AGENT);
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
