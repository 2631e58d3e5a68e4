//! Negative controls: switches that break one promise each, for tests that must then find it broken. A test that was never
//! seen failing proves nothing. Set by the environment of a test's brokers, never by a config file or a flag, and loud in the log.

use std::{env, sync::OnceLock};

/// One switch.
#[derive(Debug)]
pub struct Control {
    /// Environment variable that turns it on, by the value 1. Every broker of a cluster must have the same.
    pub variable: &'static str,
    breaks: &'static str,
    on: OnceLock<bool>,
}

impl Control {
    const fn new(variable: &'static str, breaks: &'static str) -> Self {
        Self { variable, breaks, on: OnceLock::new() }
    }

    /// Whether it is on. Does not change while the process lives.
    pub fn is_on(&self) -> bool {
        *self.on.get_or_init(|| env::var_os(self.variable).is_some_and(|value| value == "1"))
    }
}

/// Leaves out every sync: the power takes what was acknowledged.
pub static NO_SYNC: Control = Control::new("TRUNKLINE_TEST_NO_SYNC", "NOTHING IS SYNCED");
/// A peer's answer to an append is taken for granted as soon as it is sent.
pub static EARLY_ACK: Control =
    Control::new("TRUNKLINE_TEST_EARLY_ACK", "ENTRIES ARE ACKNOWLEDGED BEFORE A MAJORITY HAS THEM");
/// Stored values are taken as they are, whatever their checksums say.
pub static NO_CHECKSUM: Control = Control::new("TRUNKLINE_TEST_NO_CHECKSUM", "DAMAGE ON DISK IS NOT NOTICED");
/// What a lost edge still says counts.
pub static NO_FENCING: Control = Control::new("TRUNKLINE_TEST_NO_FENCING", "LOST EDGES ARE NOT FENCED");
/// An idempotency key is forgotten at once.
pub static NO_DEDUP: Control = Control::new("TRUNKLINE_TEST_NO_DEDUP", "REPEATED COMMANDS TAKE EFFECT AGAIN");

/// Says which are on.
pub fn announce() {
    for control in [&NO_SYNC, &EARLY_ACK, &NO_CHECKSUM, &NO_FENCING, &NO_DEDUP] {
        if control.is_on() {
            tracing::error!("{} is set: {}. THIS BROKER BREAKS ITS PROMISES", control.variable, control.breaks);
        }
    }
}
