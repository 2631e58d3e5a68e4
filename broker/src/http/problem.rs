//! Errors as RFC 9457 `application/problem+json`: one table from the log's codes to HTTP.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use trunkline_proto::v1;

use crate::{access::Denied, node::NotCurrent};

/// Clients that hit a bound or an election come back after so many seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// An error as callers see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// HTTP status.
    pub status: StatusCode,
    /// Stable, lower case; the tail of `type`.
    pub code: &'static str,
    /// For people.
    pub detail: String,
    /// `safe`: nothing happened, retry as it is · `same-key`: it may have happened, retry with the same Idempotency-Key · `no`.
    pub retry: &'static str,
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'a str,
    retry: &'a str,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, retry: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), retry }
    }

    /// 400: the request is malformed.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", "no", detail)
    }

    /// 401, or 403.
    pub fn denied(denied: &Denied) -> Self {
        let (status, code) = match denied {
            Denied::Unauthenticated => (StatusCode::UNAUTHORIZED, "unauthenticated"),
            Denied::Forbidden(_) => (StatusCode::FORBIDDEN, "not_authorized"),
        };
        Self::new(status, code, "no", denied.to_string())
    }

    /// 403: a browser's page of another site asks.
    pub fn cross_site() -> Self {
        Self::new(StatusCode::FORBIDDEN, "cross_site", "no", "requests from pages of other origins are refused")
    }

    /// 404: no such thing here.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "no", detail)
    }

    /// 405: the path exists, the method does not. axum adds `Allow`.
    pub fn method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "no", "this path does not take this method")
    }

    /// 408: the body did not come in time.
    pub fn timeout() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "timeout", "safe", "the request body did not arrive in time")
    }

    /// 410: no such connection, or it is closed.
    pub fn gone() -> Self {
        Self::new(StatusCode::GONE, "gone", "no", "no such connection, or it is closed")
    }

    /// 410: retention has taken the beginning.
    pub fn trimmed(earliest: impl std::fmt::Display) -> Self {
        let detail = format!("the log begins at {earliest}");
        Self::new(StatusCode::GONE, "offset_trimmed", "no", detail)
    }

    /// 413.
    pub fn too_large(limit: u64) -> Self {
        let detail = format!("the payload is larger than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "no", detail)
    }

    /// 415: a body is taken as it is, or not at all.
    pub fn encoded() -> Self {
        let detail = "a body with a Content-Encoding is not taken; send it as it is";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "encoded", "no", detail)
    }

    /// 504: it may have happened.
    pub fn unknown() -> Self {
        let detail = "the command was not applied in time; it may still be: retry with the same Idempotency-Key";
        Self::new(StatusCode::GATEWAY_TIMEOUT, "unknown", "same-key", detail)
    }

    /// 503: too much at once.
    pub fn overloaded() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "safe", "too many requests are under way")
    }

    /// 503: nobody can answer now.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "safe", detail)
    }

    /// 503: a partition has no leader, or its leader no majority.
    pub fn no_leader(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "no_leader", "safe", detail)
    }

    /// 500: damage or a bug.
    pub fn internal(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "no", detail)
    }

    /// What a command came to, unless it took effect.
    pub fn of_status(status: &v1::Status) -> Option<Self> {
        use v1::Code;
        let code = Code::try_from(status.code).unwrap_or(Code::Unspecified);
        let (status_code, name, retry) = match code {
            Code::Applied | Code::Forwarded => return None,
            Code::Gone => return Some(Self::gone()),
            Code::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too_large", "no"),
            Code::Throttled => (StatusCode::TOO_MANY_REQUESTS, "throttled", "safe"),
            Code::NotAuthorized => (StatusCode::FORBIDDEN, "not_authorized", "no"),
            Code::Unknown => (StatusCode::GATEWAY_TIMEOUT, "unknown", "same-key"),
            Code::Invalid => (StatusCode::BAD_REQUEST, "invalid", "no"),
            Code::KeyReused => (StatusCode::UNPROCESSABLE_ENTITY, "key_reused", "no"),
            Code::NoLeader => (StatusCode::SERVICE_UNAVAILABLE, "no_leader", "safe"),
            Code::Refused | Code::StaleEpoch | Code::NotOpen => (StatusCode::CONFLICT, "refused", "no"),
            Code::Unspecified => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "same-key"),
        };
        Some(Self::new(status_code, name, retry, status.message.clone()))
    }
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        Self::denied(&denied)
    }
}

impl From<NotCurrent> for Problem {
    fn from(error: NotCurrent) -> Self {
        Self::no_leader(error.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = Body {
            r#type: format!("urn:trunkline:problem:{}", self.code),
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: &self.detail,
            code: self.code,
            retry: self.retry,
        };
        // a struct of strings and numbers: cannot fail
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_status() {
        let status = |code: v1::Code| {
            Problem::of_status(&v1::Status { code: code.into(), message: String::new() })
                .map(|problem| problem.status.as_u16())
        };
        for (code, expected) in [
            (v1::Code::Applied, None),
            (v1::Code::Forwarded, None),
            (v1::Code::Gone, Some(410)),
            (v1::Code::TooLarge, Some(413)),
            (v1::Code::Throttled, Some(429)),
            (v1::Code::NotAuthorized, Some(403)),
            (v1::Code::Unknown, Some(504)),
            (v1::Code::Invalid, Some(400)),
            (v1::Code::KeyReused, Some(422)),
            (v1::Code::NoLeader, Some(503)),
            (v1::Code::Refused, Some(409)),
            (v1::Code::Unspecified, Some(500)),
        ] {
            assert_eq!(status(code), expected, "{code:?}");
        }
        assert!(Problem::of_status(&v1::Status { code: 999, message: String::new() }).is_some(), "of a newer version");
    }

    #[test]
    fn problems_are_problem_json_and_say_when_to_come_back() {
        let response = Problem::overloaded().into_response();
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        assert!(!Problem::gone().into_response().headers().contains_key(header::RETRY_AFTER));
    }
}
