//! Table `[broker.retention]`: how far back each partition's log goes.

use serde::{Deserialize, Serialize};
use trunkline_proto::units::{HumanDuration, HumanSize};

/// Table `[broker.retention]`. Whatever it says, nothing goes that is still to be forwarded to another partition.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionConfig {
    /// Entries older than this go, in steps of a sixteenth. Default 168h; 0: no entry is too old.
    pub time: HumanDuration,
    /// The oldest entries go while a partition's log has more bytes (uncompressed), in steps of a sixteenth. Default 16GiB, at
    /// least 16MiB; 0: no log is too large.
    pub bytes: HumanSize,
    /// Hard cap of a partition's log, for what `time` and `bytes` would take but a handler group has not settled. At it appends
    /// are refused as `when_full` says. Default 32GiB, at least `bytes`; 0: none, the disk is the cap.
    pub bytes_max: HumanSize,
    /// At the hard cap. Default `refuse`: edges pause and commands are throttled until handlers have caught up. `drop_oldest`: handler
    /// groups skip what they have not settled.
    pub when_full: WhenFull,
    /// A handler group without members for so long is forgotten, with what it has settled and parked. Default 168h, at least 1m; 0:
    /// never, and it holds the log for ever.
    pub group_expiry: HumanDuration,
    /// How often all this is looked at. Default 1m, 100ms to 1h.
    pub check_every: HumanDuration,
}

/// What gives way at the hard cap.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// Those who append.
    Refuse,
    /// Those who have not consumed yet.
    DropOldest,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        Self {
            time: HumanDuration::from_secs(7 * 24 * 3600),
            bytes: HumanSize::mib(16 << 10),
            bytes_max: HumanSize::mib(32 << 10),
            when_full: WhenFull::Refuse,
            group_expiry: HumanDuration::from_secs(7 * 24 * 3600),
            check_every: HumanDuration::from_secs(60),
        }
    }
}

impl RetentionConfig {
    pub(super) fn check(&self, check: &mut impl FnMut(bool, String)) {
        let (bytes, most) = (self.bytes.get(), self.bytes_max.get());
        check(
            bytes == 0 || self.bytes >= HumanSize::mib(16),
            format!("broker.retention.bytes {} must be at least 16MiB, or 0", self.bytes),
        );
        check(
            most == 0 || self.bytes_max >= HumanSize::mib(16).max(self.bytes),
            format!(
                "broker.retention.bytes_max {} must be at least 16MiB and broker.retention.bytes {}, or 0",
                self.bytes_max, self.bytes
            ),
        );
        check(
            self.group_expiry.is_zero() || self.group_expiry >= HumanDuration::from_secs(60),
            format!("broker.retention.group_expiry {} must be at least 1m, or 0", self.group_expiry),
        );
        check(
            (HumanDuration::from_millis(100)..=HumanDuration::from_secs(3600)).contains(&self.check_every),
            format!("broker.retention.check_every {} must be 100ms to 1h", self.check_every),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(config: &RetentionConfig) -> Vec<String> {
        let mut problems = Vec::new();
        config.check(&mut |good, problem| {
            if !good {
                problems.push(problem);
            }
        });
        problems
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        assert_eq!(problems(&RetentionConfig::default()), [""; 0]);
        let unbounded = RetentionConfig {
            time: HumanDuration::default(),
            bytes: HumanSize::default(),
            bytes_max: HumanSize::default(),
            group_expiry: HumanDuration::default(),
            ..RetentionConfig::default()
        };
        assert_eq!(problems(&unbounded), [""; 0]);
        let wrong = RetentionConfig {
            bytes: HumanSize::mib(15),
            bytes_max: HumanSize::mib(14),
            group_expiry: HumanDuration::from_secs(59),
            check_every: HumanDuration::from_millis(99),
            ..RetentionConfig::default()
        };
        let keys: Vec<_> = problems(&wrong).iter().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
        let expected =
            ["bytes", "bytes_max", "group_expiry", "check_every"].map(|key| format!("broker.retention.{key}"));
        assert_eq!(keys, expected);
        let below = RetentionConfig { bytes_max: HumanSize::mib(15 << 10), ..RetentionConfig::default() };
        assert_eq!(problems(&below).len(), 1);
    }
}
