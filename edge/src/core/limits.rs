//! What bounds one connection: the settings of its API, and what is fixed.

use super::Millis;

/// Longest time from a message's first byte to its last (1008 beyond), so that nobody keeps half a message here for ever.
pub const ASSEMBLY_TIMEOUT: Millis = Millis::from_secs(30);
/// How long a client may take to answer a close frame, and then to close TCP.
pub const CLOSE_TIMEOUT: Millis = Millis::from_secs(5);
/// Control frames (ping, pong) a client may send per second, and at once (1008 beyond).
pub const CONTROL_RATE: Rate = Rate { per_second: 10, burst: 30 };

/// A token bucket's setting: on average and at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// How many per second in the long run; 0: unbounded.
    pub per_second: u32,
    /// How many at once.
    pub burst: u32,
}

impl Rate {
    /// No bound.
    pub const UNBOUNDED: Self = Self { per_second: 0, burst: 0 };

    /// So many per second, and twice as many at once; 0: unbounded.
    pub fn of(per_second: u32) -> Self {
        Self { per_second, burst: per_second.saturating_mul(2) }
    }
}

/// What bounds a message while it is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MessageBounds {
    /// [`Limits::max_message`].
    pub bytes: usize,
    /// [`Limits::max_frame`].
    pub frame: usize,
    /// [`Limits::max_fragments`].
    pub fragments: u32,
    /// [`Limits::text_only`].
    pub text_only: bool,
}

impl Limits {
    /// What bounds a message while it is read.
    pub fn message_bounds(&self) -> MessageBounds {
        MessageBounds {
            bytes: self.max_message,
            frame: self.max_frame,
            fragments: self.max_fragments,
            text_only: self.text_only,
        }
    }
}

/// What bounds every connection of an API. Times of 0 mean never.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Largest message from the client, in bytes (1009).
    pub max_message: usize,
    /// Largest payload of one frame of it (1009).
    pub max_frame: usize,
    /// Most frames one message may consist of (1008).
    pub max_fragments: u32,
    /// Whether binary messages are refused (1003).
    pub text_only: bool,
    /// Most unsent bytes before the connection is a slow consumer (1013). One frame is taken whatever its size when nothing is unsent.
    pub max_queue: usize,
    /// From the complete request to 101 (504).
    pub registration_timeout: Millis,
    /// Without a message from the client (1001).
    pub idle_timeout: Millis,
    /// Silence of the client after which it is pinged.
    pub ping_interval: Millis,
    /// From a ping to any sign of life (1001).
    pub ping_timeout: Millis,
    /// From 101 to the end (1001).
    pub max_lifetime: Millis,
    /// Messages a client may send (1008).
    pub messages: Rate,
}
