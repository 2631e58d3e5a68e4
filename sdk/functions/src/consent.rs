//! The consent handshake of CloudEvents' webhooks (section 4 of its HTTP webhook specification): before a server gets its first call it is
//! asked by OPTIONS whether it wants calls from here. Nobody can make a gateway fire at a server that never asked for it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    call::Reply,
    failure::{Failure, backoff},
    settings::{ApiSettings, FunctionUrl},
};

/// Names who wants to call.
pub(crate) const REQUEST_ORIGIN: &str = "webhook-request-origin";
/// Names who may: an origin, or `*`.
const ALLOWED_ORIGIN: &str = "webhook-allowed-origin";
/// A consent holds this long.
const HOLDS: Duration = Duration::from_secs(24 * 3600);
/// Who said no is asked again after this; it doubles up to [`crate::BACKOFF_MAX`].
const ASKED_AGAIN: Duration = Duration::from_secs(1);

/// What is known of one URL and one origin.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
enum Consent {
    #[default]
    Unknown,
    Given {
        until: Instant,
    },
    Refused {
        until: Instant,
        /// In a row.
        times: u32,
        why: String,
    },
}

impl Consent {
    /// Whether a call may be made; `None`: ask.
    fn at(&self, now: Instant) -> Option<Result<(), Failure>> {
        match self {
            Self::Given { until } if now < *until => Some(Ok(())),
            Self::Refused { until, why, .. } if now < *until => Some(Err(Failure::NoConsent(why.clone()))),
            _ => None,
        }
    }

    /// After an answer at `now`.
    fn after(&self, answer: Result<(), String>, now: Instant) -> Self {
        match answer {
            Ok(()) => Self::Given { until: now + HOLDS },
            Err(why) => {
                let before = if let Self::Refused { times, .. } = self { *times } else { 0 };
                let times = before.saturating_add(1);
                Self::Refused { until: now + backoff(ASKED_AGAIN, times, 0.5), times, why }
            }
        }
    }
}

/// What an answer to OPTIONS says: yes, or why not. An error: nothing, ask again like any call that failed.
fn judge(status: StatusCode, headers: &HeaderMap, origin: &str) -> Result<Result<(), String>, Failure> {
    let reply = || Reply { status, headers: headers.clone(), body: None };
    // who does not implement OPTIONS never heard of consent
    if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED || matches!(status.as_u16(), 408 | 425 | 429) {
        return Err(Failure::of(&reply()));
    }
    if !status.is_success() {
        return Ok(Err(format!("it answered OPTIONS with {status}")));
    }
    // servers write several as one header or as many
    let values = headers.get_all(ALLOWED_ORIGIN).into_iter().filter_map(|value| value.to_str().ok());
    let allowed: Vec<&str> = values.flat_map(|value| value.split(',')).map(str::trim).collect();
    if allowed.iter().any(|allowed| *allowed == "*" || allowed.eq_ignore_ascii_case(origin)) {
        return Ok(Ok(()));
    }
    Ok(Err(match allowed.is_empty() {
        true => "its answer to OPTIONS has no WebHook-Allowed-Origin".to_owned(),
        false => format!("its WebHook-Allowed-Origin is not {origin}"),
    }))
}

/// The question. The operator's headers are in it, as servers may want their key before they answer anything.
fn question<B: Default>(settings: &ApiSettings, url: &FunctionUrl) -> Request<B> {
    let mut request = Request::new(B::default());
    *request.method_mut() = Method::OPTIONS;
    *request.uri_mut() = url.uri().clone();
    let headers = request.headers_mut();
    headers.insert(header::USER_AGENT, trunkline_https::Client::USER_AGENT);
    settings.headers.iter().for_each(|(name, value)| drop(headers.insert(name, value.clone())));
    // checked with the settings
    if let Ok(origin) = settings.origin().parse() {
        headers.insert(REQUEST_ORIGIN, origin);
    }
    headers.insert("ce-awpsversion", http::HeaderValue::from_static("1.0"));
    request
}

type Slot = Arc<tokio::sync::Mutex<Consent>>;

/// What is known of every URL that was called. As many as the configuration has.
#[derive(Debug, Default)]
pub(crate) struct Consents(Mutex<HashMap<(Uri, String), Slot>>);

impl Consents {
    fn slot(&self, settings: &ApiSettings, url: &FunctionUrl) -> Slot {
        self.0.lock().entry((url.uri().clone(), settings.origin().to_owned())).or_default().clone()
    }

    /// Whether `url` may be called, by what is known or else by asking. Calls that come meanwhile wait for the one answer.
    pub(crate) async fn given<B: Default, F>(
        &self,
        settings: &ApiSettings,
        url: &FunctionUrl,
        ask: impl FnOnce(Request<B>) -> F,
    ) -> Result<(), Failure>
    where
        F: Future<Output = Result<Reply, Failure>>,
    {
        let slot = self.slot(settings, url);
        let mut consent = slot.lock().await;
        if let Some(known) = consent.at(Instant::now()) {
            return known;
        }
        let reply = ask(question(settings, url)).await?;
        let answer = judge(reply.status, &reply.headers, settings.origin())?;
        let (api, place, origin) = (&settings.api, url.place(), settings.origin());
        match &answer {
            Ok(()) => tracing::info!(api, url = place, origin, "the function's server consents to calls"),
            Err(why) => {
                tracing::warn!(api, url = place, origin, why, "the function's server is not called: no consent");
            }
        }
        *consent = consent.after(answer, Instant::now());
        consent.at(Instant::now()).unwrap_or(Ok(()))
    }

    /// Somebody else may be there when it is reached again: ask anew.
    pub(crate) async fn forget(&self, settings: &ApiSettings, url: &FunctionUrl) {
        let slot = self.slot(settings, url);
        let mut consent = slot.lock().await;
        if matches!(*consent, Consent::Given { .. }) {
            *consent = Consent::Unknown;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(status: u16, allowed: &[&str]) -> Result<Result<(), String>, Failure> {
        let mut headers = HeaderMap::new();
        for value in allowed {
            headers.append(ALLOWED_ORIGIN, value.parse().unwrap());
        }
        judge(StatusCode::from_u16(status).unwrap(), &headers, "gw.example.com")
    }

    #[test]
    fn only_a_clear_yes_is_one() {
        for yes in [
            judged(200, &["*"]),
            judged(204, &["gw.example.com"]),
            judged(200, &["GW.example.com"]),
            judged(200, &["other.example.com", "gw.example.com"]),
            judged(200, &["other.example.com, gw.example.com"]),
        ] {
            assert_eq!(yes, Ok(Ok(())));
        }
        for no in [
            judged(200, &[]),
            judged(200, &["example.com"]),
            judged(200, &["evil-gw.example.com"]),
            judged(200, &["https://gw.example.com"]),
            judged(301, &["*"]),
            judged(401, &["*"]),
            judged(404, &["*"]),
            judged(405, &["*"]),
            judged(501, &["*"]),
        ] {
            assert!(matches!(no, Ok(Err(_))), "{no:?}");
        }
        for unknown in [judged(503, &["*"]), judged(429, &[]), judged(500, &["*"])] {
            assert!(matches!(unknown, Err(Failure::Status { .. })), "{unknown:?}");
        }
    }

    #[test]
    fn a_yes_holds_a_day_and_a_no_is_asked_again_later_and_later() {
        let now = Instant::now();
        let given = Consent::Unknown.after(Ok(()), now);
        assert_eq!(given.at(now + HOLDS - Duration::from_secs(1)), Some(Ok(())));
        assert_eq!(given.at(now + HOLDS), None);
        let mut refused = given;
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            refused = refused.after(Err("no".to_owned()), now);
            let last = now + Duration::from_millis(seconds * 1000 - 1);
            assert_eq!(refused.at(last), Some(Err(Failure::NoConsent("no".to_owned()))));
            assert_eq!(refused.at(now + Duration::from_secs(seconds)), None);
        }
        assert_eq!(refused.after(Ok(()), now).at(now), Some(Ok(())));
    }

    #[test]
    fn the_question_names_who_asks_and_carries_the_operator_s_headers() {
        let settings = ApiSettings {
            domain: Some("gw.example.com".into()),
            headers: vec![("authorization".parse().unwrap(), "Bearer x".parse().unwrap())],
            ..ApiSettings::new("chat", crate::Dialect::CloudEvents)
        };
        let request: Request<()> = question(&settings, &"http://h/x?code=y".parse().unwrap());
        assert_eq!((request.method(), request.uri().to_string().as_str()), (&Method::OPTIONS, "http://h/x?code=y"));
        assert_eq!(request.headers()[REQUEST_ORIGIN], "gw.example.com");
        assert_eq!(request.headers()["authorization"], "Bearer x");
    }
}
