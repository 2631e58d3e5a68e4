//! The one table of what a failed call means:
//!
//! | what happened | at once again | a registration gets in the end |
//! |---|---|---|
//! | an answer that is no success: 3xx (never followed), 4xx but 408, 425 and 429 | no | 502 |
//! | 408, 425, 429, 5xx; a Lambda function that raised | yes, after `retry-after` if that is at most 30 s | 502 |
//! | refused, reset, no such host, TLS | yes | 502 |
//! | no whole answer in time | yes | 504 |
//! | an answer that is too large, or nonsense, where it matters | no | 502 |
//!
//! In the end of other calls `on_failure` decides.
//!
//! A function that was called and gave no answer of its own may have done its work all the same ([`Failure::may_have_run`]).

use std::{
    fmt::{self, Write as _},
    time::Duration,
};

use http::StatusCode;

use crate::{call::Reply, settings::BACKOFF_MAX};

/// Most bytes of what a function said that are repeated in logs, dead letters and reasons.
const REPEATED_BYTES_MAX: usize = 512;

/// Why a call did not do. What the function said may be large, and anything: as text it is short and has no control characters.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The function answered that it failed.
    #[error("the function answered {status}")]
    Status { status: StatusCode, retry_after: Option<Duration> },
    /// It was not reached: nothing was asked of it.
    #[error("the function was not reached: {}", Repeated(.0))]
    Unreached(String),
    /// The connection broke before the whole answer was there.
    #[error("the connection to the function broke: {}", Repeated(.0))]
    Broken(String),
    /// Not answered in time.
    #[error("the function did not answer within {0:?}")]
    Timeout(Duration),
    /// Answered more than is read.
    #[error("the function's answer is larger than {0} bytes")]
    TooLarge(usize),
    /// It raised, as Lambda's interface says it: an error of the function's own, by its message.
    #[error("the function raised: {}", Repeated(.0))]
    Raised(String),
    /// It does not want our calls, by the handshake of CloudEvents' webhooks.
    #[error("the function's server does not consent to calls: {}", Repeated(.0))]
    NoConsent(String),
    /// Answered what makes no sense.
    #[error("the function's answer makes no sense: {}", Repeated(.0))]
    Nonsense(String),
}

impl Failure {
    /// Of an answer with this status, which is no success.
    pub(crate) fn of(reply: &Reply) -> Self {
        Self::Status { status: reply.status, retry_after: reply.retry_after() }
    }

    /// Whether another attempt at once may help.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Status { status, .. } => status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429),
            Self::Unreached(_) | Self::Broken(_) | Self::Timeout(_) | Self::Raised(_) => true,
            Self::TooLarge(_) | Self::NoConsent(_) | Self::Nonsense(_) => false,
        }
    }

    /// Whether the function may have done what it was asked to, and not have said that it did not: it was called, and its answer did
    /// not come, makes no sense, or is that of a proxy before it.
    pub(crate) fn may_have_run(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status.as_u16(), 408 | 502 | 504),
            Self::Broken(_) | Self::Timeout(_) | Self::TooLarge(_) | Self::Nonsense(_) => true,
            Self::Unreached(_) | Self::NoConsent(_) | Self::Raised(_) => false,
        }
    }

    /// How long the function asks to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => retry_after.map(|asked| asked.min(BACKOFF_MAX)),
            _ => None,
        }
    }

    /// What a client gets whose registration failed so.
    pub(crate) fn status(&self) -> u16 {
        if matches!(self, Self::Timeout(_)) { 504 } else { 502 }
    }

    /// For metrics.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Status { .. } => "status",
            Self::Unreached(_) => "unreached",
            Self::Broken(_) => "broken",
            Self::Timeout(_) => "timeout",
            Self::Raised(_) => "raised",
            Self::TooLarge(_) => "too_large",
            Self::NoConsent(_) => "no_consent",
            Self::Nonsense(_) => "nonsense",
        }
    }
}

/// The beginning of a text that came from outside.
struct Repeated<'a>(&'a str);

impl fmt::Display for Repeated<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(text) = *self;
        let shown = &text[..text.floor_char_boundary(REPEATED_BYTES_MAX)];
        for letter in shown.chars() {
            if letter.is_control() { write!(f, "{}", letter.escape_default())? } else { f.write_char(letter)? }
        }
        if shown.len() < text.len() { write!(f, "… ({} bytes)", text.len()) } else { Ok(()) }
    }
}

/// The wait before attempt `attempt` + 1, from 1: doubles, half to one and a half of it by `random` in [0, 1).
pub(crate) fn backoff(first: Duration, attempt: u32, random: f64) -> Duration {
    let doubled = first.saturating_mul(1 << attempt.saturating_sub(1).min(20)).min(BACKOFF_MAX);
    doubled.mul_f64(0.5 + random).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        let status = |code: u16| Failure::Status { status: StatusCode::from_u16(code).unwrap(), retry_after: None };
        for (failure, may_pass, client) in [
            (status(204), false, 502),
            (status(301), false, 502),
            (status(400), false, 502),
            (status(404), false, 502),
            (status(408), true, 502),
            (status(425), true, 502),
            (status(429), true, 502),
            (status(500), true, 502),
            (status(503), true, 502),
            (Failure::Unreached("refused".into()), true, 502),
            (Failure::Broken("reset".into()), true, 502),
            (Failure::Timeout(Duration::from_secs(1)), true, 504),
            (Failure::Raised("KeyError".into()), true, 502),
            (Failure::TooLarge(1), false, 502),
            (Failure::NoConsent("x".into()), false, 502),
            (Failure::Nonsense("x".into()), false, 502),
        ] {
            assert_eq!((failure.may_pass(), failure.status()), (may_pass, client), "{failure}");
        }
    }

    #[test]
    fn what_a_function_says_is_repeated_in_part_and_without_control_characters() {
        let text = Failure::Nonsense("a\u{1b}[2J\n\u{85}ü".into()).to_string();
        assert_eq!(text, r"the function's answer makes no sense: a\u{1b}[2J\n\u{85}ü");
        let repeated = |letter: &str| Failure::Nonsense(letter.repeat(1 << 20)).to_string();
        for text in [repeated("x"), repeated("ü"), repeated("\u{7}")] {
            assert!(text.len() < 60 + 6 * REPEATED_BYTES_MAX && text.ends_with(" bytes)"), "{}", text.len());
        }
        assert!(Failure::Raised("y".repeat(512)).to_string().ends_with("yyy"), "all of it");
    }

    #[test]
    fn waits_double_and_have_a_bound_and_differ() {
        let first = Duration::from_millis(200);
        for (attempt, middle) in [(1, 200), (2, 400), (3, 800), (8, 25_600)] {
            assert_eq!(backoff(first, attempt, 0.5), Duration::from_millis(middle));
        }
        assert_eq!(backoff(first, 1, 0.0), Duration::from_millis(100));
        assert_eq!(backoff(first, 9, 0.0), BACKOFF_MAX / 2);
        for attempt in [0, 9, 1000, u32::MAX] {
            assert!(backoff(first, attempt, 0.999) <= BACKOFF_MAX);
        }
        let asked = |seconds| Failure::Status {
            status: StatusCode::SERVICE_UNAVAILABLE,
            retry_after: Some(Duration::from_secs(seconds)),
        };
        assert_eq!(asked(2).retry_after(), Some(Duration::from_secs(2)));
        assert_eq!(asked(86_400).retry_after(), Some(BACKOFF_MAX));
    }
}
