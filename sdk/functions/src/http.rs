//! The only file that makes requests: one to a function, and its answer within bounds. Where it may go, and where not: `trunkline_https`.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, header};
use http_body_util::Full;
use tokio::time::Instant;
use trunkline_https::{Client, ClientError, Lookup, Pool, RequestError, Resolver, no_roots, read, system_roots};

use crate::{
    call::{Call, Place, Reply},
    consent::Consents,
    failure::Failure,
    settings::{ApiSettings, FunctionUrl},
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

/// Calls functions, all APIs' over one pool of connections for those that may be in private networks, and one for those that may
/// not: an address that the one may dial is not there for the other. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Caller {
    anywhere: Client,
    in_public: Client,
    consents: Arc<Consents>,
}

impl Caller {
    /// Call it within a tokio runtime. The system's root certificates are read if an API has a function behind https.
    pub fn new(apis: &[ApiSettings]) -> Result<Self, CallerError> {
        Self::with_lookup(apis, &Lookup::system())
    }

    fn with_lookup(apis: &[ApiSettings], lookup: &Lookup) -> Result<Self, CallerError> {
        let needs_tls = apis.iter().flat_map(ApiSettings::urls).any(FunctionUrl::is_https);
        let roots = if needs_tls { system_roots()? } else { no_roots() };
        let pool = Pool { idle_timeout: IDLE_TIMEOUT, idle_max: IDLE_MAX };
        let client =
            |private_too| Client::with_resolver(roots.clone(), pool, Resolver { lookup: lookup.clone(), private_too });
        Ok(Self { anywhere: client(true)?, in_public: client(false)?, consents: Arc::default() })
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
        let (parts, body) = http.request(request).await?.into_parts();
        let body = read(body, settings.max_response).await?;
        Ok(Reply { status: parts.status, headers: parts.headers, body })
    }
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Unreached(why) => Self::Unreached(why),
            RequestError::Broken(why) => Self::Broken(why),
        }
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

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
