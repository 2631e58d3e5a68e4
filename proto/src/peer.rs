//! The wire between brokers: QUIC with mutual TLS, ALPN [`PEER_ALPN`], one connection for each direction, a bidirectional stream for
//! each exchange. Its dialer opens with [`Stream`] and the partition, `u8 kind, u16 LE partition`; then frames follow, each
//! `u32 LE length, body`, a message of `peer.proto` unless said otherwise. Whatever is answered begins with a `u8`
//! ([`ANSWER_OK`]: the message; [`ANSWER_ERROR`]: text, and the stream ends).

/// ALPN between brokers.
pub const PEER_ALPN: &[u8] = b"trunkline-peer/1";
/// Version in `Hello`.
pub const PEER_VERSION: u32 = 1;
/// An answer's message follows.
pub const ANSWER_OK: u8 = 0;
/// An error's text follows.
pub const ANSWER_ERROR: u8 = 1;
/// Bytes of entries in one append, unless a single entry alone is larger.
pub const APPEND_BYTES_MAX: usize = 1 << 20;
/// Longest frame: one largest entry and its envelope.
pub const PEER_FRAME_BYTES_MAX: usize = crate::limits::FRAME_BYTES_MAX + (2 << 20);
/// Bytes of a snapshot's state in one frame.
pub const SNAPSHOT_CHUNK_BYTES: usize = 256 << 10;
/// Most brokers of a cluster: each holds a replica of each partition.
pub const MEMBERS_MAX: usize = 5;

/// What a stream is for. The numbers are on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Stream {
    /// `Hello`, answered with `Hello`: the first stream of a connection.
    Hello = 1,
    /// `Append` after `Append`, each answered with `Appended`, in order.
    Append = 2,
    /// One `Append`, answered with `Appended`.
    Heartbeat = 3,
    /// `VoteRequest`, answered with `VoteResponse`.
    Vote = 4,
    /// The same, without a vote being given.
    PreVote = 5,
    /// `TransferLeader`, answered with `TransferLeaderResponse`.
    TransferLeader = 6,
    /// `SnapshotHead`, then frames of raw bytes; answered with `SnapshotInstalled`.
    Snapshot = 7,
    /// A frame of `u8 kind, body`, answered with a frame of raw bytes. The partition means nothing.
    Call = 8,
    /// `StatusRequest`, answered with `Status`. The partition means nothing.
    Status = 9,
}

impl Stream {
    /// The kind of that number.
    pub fn from_u8(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Hello,
            2 => Self::Append,
            3 => Self::Heartbeat,
            4 => Self::Vote,
            5 => Self::PreVote,
            6 => Self::TransferLeader,
            7 => Self::Snapshot,
            8 => Self::Call,
            9 => Self::Status,
            _ => return None,
        })
    }
}
