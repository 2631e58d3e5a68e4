//! Durations and sizes as configs write them: `"15s"`, `"250ms"`, `"1MiB"`, `"512B"`. A bare number is refused, except 0, which
//! needs no unit. What is printed reads back as the same value.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a text is no duration or size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// No digits where a whole number must stand.
    #[error("{text:?} does not start with a whole number")]
    Number {
        /// As written.
        text: String,
    },
    /// A number without a unit, or with another one.
    #[error("{text:?} has no known unit; write one of {units}")]
    Unit {
        /// As written.
        text: String,
        /// Those that are known.
        units: &'static str,
    },
    /// More than a u64 of the smallest unit holds.
    #[error("{text:?} is too large")]
    TooLarge {
        /// As written.
        text: String,
    },
}

/// A duration with its unit: `us`, `ms`, `s`, `m`, `h` or `d`. Whole numbers, resolution 1 µs; at most 2^64 µs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HumanDuration(pub Duration);

/// A size with its unit: `B`, `KiB`, `MiB`, `GiB` or `TiB` (powers of 1024), or `KB`, `MB`, `GB`, `TB` (powers of 1000).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HumanSize(pub u64);

/// Microseconds of each unit, the largest first: printing takes the first that divides.
const DURATIONS: [(&str, u64); 6] =
    [("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000), ("us", 1)];
const DURATION_UNITS: &str = "us, ms, s, m, h, d";

/// Bytes of each unit, those that are printed first.
const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
];
const SIZE_UNITS: &str = "B, KiB, MiB, GiB, TiB, KB, MB, GB, TB";

impl HumanDuration {
    /// So many seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// So many milliseconds.
    pub const fn from_millis(milliseconds: u64) -> Self {
        Self(Duration::from_millis(milliseconds))
    }

    /// As the standard type.
    pub const fn get(self) -> Duration {
        self.0
    }

    /// Whether it is 0, which many settings read as "none".
    pub const fn is_zero(self) -> bool {
        self.0.is_zero()
    }
}

impl HumanSize {
    /// So many KiB.
    pub const fn kib(kib: u64) -> Self {
        Self(kib << 10)
    }

    /// So many MiB.
    pub const fn mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    /// In bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// In bytes, as an index; at most what the platform addresses.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

fn parse(text: &str, table: &[(&str, u64)], units: &'static str) -> Result<u64, UnitError> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(UnitError::Number { text: text.to_owned() });
    }
    let number: u64 = number.parse().map_err(|_| UnitError::TooLarge { text: text.to_owned() })?;
    let unit = unit.trim_start();
    if unit.is_empty() && number == 0 {
        return Ok(0);
    }
    let (_, factor) =
        table.iter().find(|(name, _)| *name == unit).ok_or_else(|| UnitError::Unit { text: text.to_owned(), units })?;
    number.checked_mul(*factor).ok_or_else(|| UnitError::TooLarge { text: text.to_owned() })
}

fn print(value: u64, table: &[(&str, u64)], zero: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match table.iter().find(|(_, factor)| value != 0 && value.is_multiple_of(*factor)) {
        Some((unit, factor)) => write!(f, "{}{unit}", value / factor),
        None => f.write_str(zero),
    }
}

impl FromStr for HumanDuration {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text, &DURATIONS, DURATION_UNITS).map(|us| Self(Duration::from_micros(us)))
    }
}

impl FromStr for HumanSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text, &SIZES, SIZE_UNITS).map(Self)
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(u64::try_from(self.0.as_micros()).unwrap_or(u64::MAX), &DURATIONS, "0s", f)
    }
}

impl fmt::Display for HumanSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(self.0, &SIZES, "0B", f)
    }
}

impl fmt::Debug for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for HumanSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<HumanDuration> for Duration {
    fn from(duration: HumanDuration) -> Self {
        duration.0
    }
}

impl From<Duration> for HumanDuration {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for HumanSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Takes a text with a unit; an integer is named with what is missing.
struct TextVisitor<T> {
    expecting: &'static str,
    parse: fn(&str) -> Result<T, UnitError>,
}

impl<T> de::Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        (self.parse)(&number.to_string()).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        (self.parse)(&number.to_string()).map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor { expecting: "a duration such as \"15s\"", parse: Self::from_str })
    }
}

impl<'de> Deserialize<'de> for HumanSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor { expecting: "a size such as \"1MiB\"", parse: Self::from_str })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_print() {
        for (text, microseconds, printed) in [
            ("15s", 15_000_000, "15s"),
            ("250ms", 250_000, "250ms"),
            ("90s", 90_000_000, "90s"),
            ("120s", 120_000_000, "2m"),
            ("24h", 86_400_000_000, "1d"),
            ("7 us", 7, "7us"),
            ("0", 0, "0s"),
            ("0s", 0, "0s"),
        ] {
            let duration: HumanDuration = text.parse().unwrap();
            assert_eq!(duration.0.as_micros(), microseconds, "{text}");
            assert_eq!(duration.to_string(), printed, "{text}");
            assert_eq!(printed.parse(), Ok(duration));
        }
    }

    #[test]
    fn sizes_read_and_print() {
        for (text, bytes, printed) in [
            ("1MiB", 1 << 20, "1MiB"),
            ("64KiB", 64 << 10, "64KiB"),
            ("512B", 512, "512B"),
            ("2 MB", 2_000_000, "2000000B"),
            ("0", 0, "0B"),
            ("1024GiB", 1 << 40, "1TiB"),
        ] {
            let size: HumanSize = text.parse().unwrap();
            assert_eq!(size.0, bytes, "{text}");
            assert_eq!(size.to_string(), printed, "{text}");
            assert_eq!(printed.parse(), Ok(size));
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let wrong = |text: &str| text.parse::<HumanDuration>().unwrap_err().to_string();
        assert!(wrong("15").contains("no known unit"), "{}", wrong("15"));
        assert!(wrong("15 parsecs").contains("us, ms, s, m, h, d"));
        assert!(wrong("").contains("whole number"));
        assert!(wrong("-1s").contains("whole number"));
        assert!(wrong("1.5s").contains("no known unit"));
        assert!(wrong("99999999999999999999s").contains("too large"));
        assert!(wrong("18446744073709551615d").contains("too large"));
        assert!("1mib".parse::<HumanSize>().is_err(), "units are case sensitive: MB and mb are not guessed at");
    }

    proptest::proptest! {
        #[test]
        fn round_trips(value: u64) {
            let size = HumanSize(value);
            proptest::prop_assert_eq!(size.to_string().parse(), Ok(size));
            let duration = HumanDuration(Duration::from_micros(value));
            proptest::prop_assert_eq!(duration.to_string().parse(), Ok(duration));
        }
    }
}
