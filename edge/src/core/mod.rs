//! What decides at the edge: pure. No clock, no randomness, no IO; frames in, outputs out.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod addresses;
mod answer;
pub mod auth;
pub mod connection;
pub mod frame;
pub mod handshake;
mod limits;
pub mod outbound;
mod pending;
mod rate;
pub mod resend;
pub mod senders;
pub mod server_frame;
mod time;
pub mod timers;
mod utf8;

pub use answer::{Answer, switching_protocols};
pub use limits::{ASSEMBLY_TIMEOUT, CLOSE_TIMEOUT, CONTROL_RATE, Limits, MessageBounds, Rate};
pub use pending::Registration;
pub(crate) use rate::Bucket;
pub use time::Millis;
