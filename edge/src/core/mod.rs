//! What decides at the edge: pure. No clock, no randomness, no IO; frames in, outputs out.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod limits;
pub mod resend;
mod time;

pub use limits::{ASSEMBLY_TIMEOUT, CLOSE_TIMEOUT, CONTROL_RATE, FRAGMENTS_MAX, Limits, Rate};
pub use time::Millis;
