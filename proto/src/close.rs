//! Close codes (RFC 6455 §7.4) and which of them an edge sends when.

use crate::v1::CloseCause;

/// A WebSocket close code.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct CloseCode(pub u16);

impl CloseCode {
    /// Closed by a handler without a code.
    pub const NORMAL: Self = Self(1000);
    /// Idle, no pong, or at the end of its lifetime.
    pub const AWAY: Self = Self(1001);
    /// The client broke the protocol.
    pub const PROTOCOL: Self = Self(1002);
    /// This kind of message is not accepted.
    pub const UNSUPPORTED: Self = Self(1003);
    /// No close code was in the close frame; never on the wire.
    pub const NO_STATUS: Self = Self(1005);
    /// No close frame was seen; never on the wire.
    pub const ABNORMAL: Self = Self(1006);
    /// Text that is not UTF-8.
    pub const INVALID_DATA: Self = Self(1007);
    /// Policy: rate, fragments, token expired.
    pub const POLICY: Self = Self(1008);
    /// The message is too large.
    pub const TOO_LARGE: Self = Self(1009);
    /// Internal error.
    pub const INTERNAL: Self = Self(1011);
    /// The edge drains or was replaced: reconnect with jitter.
    pub const RESTART: Self = Self(1012);
    /// Too slow or overloaded: try later.
    pub const TRY_LATER: Self = Self(1013);

    /// Whether a peer may put the code into a close frame (RFC 6455 §7.4.1, §7.4.2 and the IANA registry).
    pub fn may_be_received(self) -> bool {
        matches!(self.0, 1000..=1003 | 1007..=1014 | 3000..=4999)
    }

    /// Whether a handler or an operator may ask for it.
    pub fn may_be_requested(self) -> bool {
        matches!(self.0, 1000 | 1001 | 1008 | 1011 | 1012 | 1013 | 3000..=4999)
    }
}

/// The code an edge sends, and records, when it closes a connection by itself for `cause`.
pub fn code_of(cause: CloseCause) -> CloseCode {
    match cause {
        CloseCause::Handler | CloseCause::Client | CloseCause::Unspecified => CloseCode::NORMAL,
        CloseCause::Idle | CloseCause::PingTimeout | CloseCause::MaxLifetime => CloseCode::AWAY,
        CloseCause::ClientVanished | CloseCause::EdgeLost => CloseCode::ABNORMAL,
        CloseCause::SlowConsumer => CloseCode::TRY_LATER,
        CloseCause::ProtocolError => CloseCode::PROTOCOL,
        CloseCause::TooLarge => CloseCode::TOO_LARGE,
        CloseCause::RateLimited | CloseCause::TokenExpired => CloseCode::POLICY,
        CloseCause::EdgeDrained => CloseCode::RESTART,
        // never upgraded: no frame was sent
        CloseCause::Rejected | CloseCause::RegistrationTimeout => CloseCode::ABNORMAL,
    }
}

/// The name of a cause as tools show it, `edge_lost` for [`CloseCause::EdgeLost`].
pub fn cause_name(cause: CloseCause) -> String {
    cause.as_str_name().trim_start_matches("CLOSE_CAUSE_").to_ascii_lowercase()
}
