//! What decides at the edge: pure. No clock, no randomness, no IO; frames in, outputs out.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod resend;
