//! Moments as people write them: earliest, latest, an offset, a time, or so long ago.

use std::{str::FromStr, time::Duration};

use trunkline_proto::{Offset, Timestamp, json};
use trunkline_sdk::StartAt;

/// A moment in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum From {
    Earliest,
    Latest,
    Offset(Offset),
    Time(Timestamp),
    Ago(Duration),
}

/// Why a text is no moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a moment is earliest, latest, an offset (1042.0), a time (2026-11-22T10:00:00Z) or so long ago (10m)")]
pub(crate) struct MomentError;

impl FromStr for From {
    type Err = MomentError;

    fn from_str(text: &str) -> Result<Self, MomentError> {
        match text {
            "earliest" => return Ok(Self::Earliest),
            "latest" => return Ok(Self::Latest),
            _ => {}
        }
        if let Ok(offset) = text.parse() {
            return Ok(Self::Offset(offset));
        }
        if let Some(time) = json::parse_time(text) {
            return Ok(Self::Time(time));
        }
        let ago: trunkline_proto::units::HumanDuration = text.parse().map_err(|_| MomentError)?;
        Ok(Self::Ago(ago.0))
    }
}

impl From {
    /// As the wire says it.
    pub(crate) fn start(self) -> StartAt {
        match self {
            Self::Earliest => StartAt::Earliest,
            Self::Latest => StartAt::Latest,
            Self::Offset(offset) => StartAt::Offset(offset),
            Self::Time(time) => StartAt::Time(time),
            Self::Ago(ago) => StartAt::Time(now().before(ago)),
        }
    }
}

trait Before {
    fn before(self, ago: Duration) -> Self;
}

impl Before for Timestamp {
    fn before(self, ago: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(ago.as_micros()).unwrap_or(u64::MAX)))
    }
}

/// The time by this machine's clock.
pub(crate) fn now() -> Timestamp {
    Timestamp(u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read() {
        assert_eq!("earliest".parse(), Ok(From::Earliest));
        assert_eq!("12.3".parse(), Ok(From::Offset(Offset(12 << 16 | 3))));
        assert_eq!("1970-01-01T00:00:01.5Z".parse(), Ok(From::Time(Timestamp(1_500_000))));
        assert_eq!("1970-01-01T02:00:01+02:00".parse(), Ok(From::Time(Timestamp(1_000_000))));
        assert_eq!("10m".parse(), Ok(From::Ago(Duration::from_secs(600))));
        for wrong in ["", "yesterday", "12", "1969-01-01T00:00:00Z", "12.70000"] {
            assert_eq!(wrong.parse::<From>(), Err(MomentError), "{wrong}");
        }
    }
}
