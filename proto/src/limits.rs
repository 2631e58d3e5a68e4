//! Limits that both ends of a wire rely on. What an operator may set lives in the configs; these bound it.

/// Most records in one log entry.
pub const ENTRY_RECORDS_MAX: usize = 4096;
/// Most bytes of records in one log entry, unless a single record alone is larger (a sync was measured to cost 0.2 ms + 2.2 ms
/// per MB).
pub const ENTRY_BYTES_MAX: usize = 1 << 20;
/// Largest WebSocket message an API may allow, and so the largest payload of a record.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Largest record: a payload and what describes it (attributes, headers, channels, reasons are bounded below).
pub const RECORD_BYTES_MAX: usize = MESSAGE_BYTES_MAX + (128 << 10);
/// Largest frame on the edge link and largest gRPC message: one largest record and its envelope.
pub const FRAME_BYTES_MAX: usize = RECORD_BYTES_MAX + (64 << 10);
/// Longest name of an API, a handler group, a member or an edge, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Longest list of APIs that a command is bound to, commas included, in bytes: its length is one byte of the record.
pub const BOUND_BYTES_MAX: usize = u8::MAX as usize;
const _: () = assert!(NAME_BYTES_MAX <= BOUND_BYTES_MAX);
/// Longest channel name, in bytes.
pub const CHANNEL_BYTES_MAX: usize = 255;
/// Most channels one connection may be in.
pub const CHANNELS_PER_CONNECTION_MAX: usize = 128;
/// Most bytes of attributes (keys and values) of one connection.
pub const ATTRIBUTES_BYTES_MAX: usize = 4096;
/// Longest close reason, in bytes. A control frame carries at most 125 bytes (RFC 6455 §5.5), two of them the code.
pub const CLOSE_REASON_BYTES_MAX: usize = 123;
const _: () = assert!(CLOSE_REASON_BYTES_MAX + 2 <= 125);
/// Most commands in one `Submit` or one `Commit`. With its HandlerCommitted record a commit must fit one entry.
pub const COMMANDS_MAX: usize = 1024;
const _: () = assert!(COMMANDS_MAX < ENTRY_RECORDS_MAX);
/// Most outcomes in one `Commit`.
pub const OUTCOMES_MAX: usize = 4096;
/// Longest idempotency key, in bytes.
pub const KEY_BYTES_MAX: usize = 255;
/// Most `except` ids of one publish.
pub const EXCEPT_MAX: usize = 256;
/// Most events beyond a group's settled prefix that are still open.
pub const HOLES_MAX: usize = 10_000;
/// Most events in flight to one member from one broker.
pub const CREDIT_MAX: u32 = 10_000;

/// Whether `name` may name an API, a handler group, a member or an edge: 1 to 64 of `[A-Za-z0-9._-]`.
pub fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Whether `channel` may name a channel: 1 to 255 bytes of UTF-8 without control characters.
pub fn is_channel(channel: &str) -> bool {
    (1..=CHANNEL_BYTES_MAX).contains(&channel.len()) && !channel.chars().any(char::is_control)
}
