//! RFC 6455 frames of clients; ours are in `server_frame.rs`. The reader works on whatever bytes have come, in the shard's buffer, and keeps only what is
//! unfinished: a message that lies whole in the buffer is handed on from there, without a copy.

use trunkline_proto::{
    CloseCode,
    v1::{CloseCause, MessageKind},
};

use super::{
    limits::MessageBounds,
    utf8::{InvalidUtf8, Utf8Checker},
};

/// Longest payload of a control frame (RFC 6455 §5.5).
pub const CONTROL_BYTES_MAX: usize = 125;
/// Longest header of a frame from a client: two bytes, a 64-bit length, the mask.
const HEADER_BYTES_MAX: usize = 14;

const CONTINUATION: u8 = 0x0;
pub(super) const TEXT: u8 = 0x1;
pub(super) const BINARY: u8 = 0x2;
pub(super) const CLOSE: u8 = 0x8;
pub(super) const PING: u8 = 0x9;
pub(super) const PONG: u8 = 0xa;

/// What a client has sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Received<'a> {
    /// A whole message; text is UTF-8.
    Message(MessageKind, &'a [u8]),
    /// At most [`CONTROL_BYTES_MAX`] bytes.
    Ping(&'a [u8]),
    /// At most [`CONTROL_BYTES_MAX`] bytes.
    Pong(&'a [u8]),
    /// The code ([`CloseCode::NO_STATUS`] where none was sent) and the reason.
    Close(CloseCode, &'a str),
}

/// How a client has broken the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum Violation {
    #[error("frame is not masked")]
    Unmasked,
    #[error("reserved bits are set")]
    ReservedBits,
    #[error("unknown opcode")]
    Opcode,
    #[error("length is not in its shortest form")]
    LengthForm,
    #[error("length is out of range")]
    LengthRange,
    #[error("control frame is fragmented")]
    FragmentedControl,
    #[error("control frame is too long")]
    LongControl,
    #[error("continuation of nothing")]
    Continuation,
    #[error("message inside a message")]
    Interleaved,
    #[error("close frame is malformed")]
    CloseFrame,
    #[error("text is not UTF-8")]
    Utf8,
    #[error("message is too large")]
    TooLarge,
    #[error("frame is too large")]
    LargeFrame,
    #[error("message has too many fragments")]
    Fragments,
    #[error("binary messages are not accepted")]
    Binary,
}

impl Violation {
    /// The close code that answers it.
    pub fn code(self) -> CloseCode {
        match self {
            Self::Utf8 => CloseCode::INVALID_DATA,
            Self::TooLarge | Self::LargeFrame => CloseCode::TOO_LARGE,
            Self::Binary => CloseCode::UNSUPPORTED,
            Self::Fragments => CloseCode::POLICY,
            _ => CloseCode::PROTOCOL,
        }
    }

    /// The cause that is recorded.
    pub fn cause(self) -> CloseCause {
        match self {
            Self::TooLarge | Self::LargeFrame => CloseCause::TooLarge,
            Self::Fragments => CloseCause::RateLimited,
            _ => CloseCause::ProtocolError,
        }
    }

    /// A few words for the close frame.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Unmasked => "frame is not masked",
            Self::ReservedBits => "reserved bits are set",
            Self::Opcode => "unknown opcode",
            Self::LengthForm => "length is not in its shortest form",
            Self::LengthRange => "length is out of range",
            Self::FragmentedControl => "control frame is fragmented",
            Self::LongControl => "control frame is too long",
            Self::Continuation => "continuation of nothing",
            Self::Interleaved => "message inside a message",
            Self::CloseFrame => "close frame is malformed",
            Self::Utf8 => "text is not UTF-8",
            Self::TooLarge => "message is too large",
            Self::LargeFrame => "frame is too large",
            Self::Fragments => "message has too many fragments",
            Self::Binary => "binary messages are not accepted",
        }
    }
}

impl From<InvalidUtf8> for Violation {
    fn from(_: InvalidUtf8) -> Self {
        Self::Utf8
    }
}

/// A frame's header, checked.
#[derive(Clone, Copy, Debug)]
struct Header {
    fin: bool,
    opcode: u8,
    mask: [u8; 4],
    length: usize,
}

impl Header {
    fn is_control(self) -> bool {
        self.opcode & 0x8 != 0
    }
}

/// A frame whose payload is not complete: `remaining` bytes are to come, and `mask` is turned to fit the next one.
#[derive(Clone, Copy, Debug)]
struct Partial {
    header: Header,
    remaining: usize,
}

/// Which buffer the last call handed out.
#[derive(Clone, Copy, Debug, Default)]
enum Spent {
    #[default]
    Nothing,
    Message,
    Control,
}

/// Reads the frames of one client.
#[derive(Debug, Default)]
pub struct FrameReader {
    /// The first bytes of a header that is not complete.
    head: [u8; HEADER_BYTES_MAX],
    head_length: u8,
    spent: Spent,
    /// Frames of the message that is under way.
    fragments: u32,
    /// Its kind.
    kind: Option<MessageKind>,
    utf8: Utf8Checker,
    frame: Option<Partial>,
    message: Vec<u8>,
    control: Vec<u8>,
}

impl FrameReader {
    /// Whether a frame or a message has begun and not ended.
    pub fn is_mid_message(&self) -> bool {
        self.head_length > 0 || self.frame.is_some() || self.kind.is_some()
    }

    /// Bytes of unfinished messages kept here.
    pub fn kept_bytes(&self) -> usize {
        self.message.capacity()
    }

    /// Forgets whatever is unfinished; nothing more will be read.
    pub fn discard(&mut self) {
        *self = Self::default();
    }

    /// The next thing in `input` from `at` on, unmasked in place; `None` when the rest is unfinished, and kept. Nothing may be
    /// read after a violation or a close. A message or frame larger than its bound is refused by its declared length.
    pub fn next<'a>(
        &'a mut self,
        input: &'a mut [u8],
        at: &mut usize,
        bounds: MessageBounds,
    ) -> Result<Option<Received<'a>>, Violation> {
        match std::mem::take(&mut self.spent) {
            Spent::Nothing => {}
            Spent::Message => self.message = Vec::new(),
            Spent::Control => self.control = Vec::new(),
        }
        loop {
            let mut partial = match self.frame.take() {
                Some(partial) => partial,
                None => match self.header(input, at, bounds)? {
                    Some(header) => Partial { header, remaining: header.length },
                    None => return Ok(None),
                },
            };
            let header = partial.header;
            let (start, take) = (*at, partial.remaining.min(input.len() - *at));
            *at += take;
            unmask(&mut input[start..*at], header.mask);
            if take < partial.remaining {
                self.keep(header, &input[start..*at])?;
                partial.remaining -= take;
                partial.header.mask.rotate_left(take % 4);
                self.frame = Some(partial);
                return Ok(None);
            }
            let whole = take == header.length;
            if header.is_control() {
                if whole {
                    return control(header.opcode, &input[start..*at]).map(Some);
                }
                self.keep(header, &input[start..*at])?;
                self.spent = Spent::Control;
                return control(header.opcode, &self.control).map(Some);
            }
            match self.kind {
                Some(kind) if header.fin && whole && self.fragments == 1 => {
                    self.end_message();
                    let payload = &input[start..*at];
                    if kind == MessageKind::Text && std::str::from_utf8(payload).is_err() {
                        return Err(Violation::Utf8);
                    }
                    return Ok(Some(Received::Message(kind, payload)));
                }
                Some(kind) if header.fin => {
                    self.keep(header, &input[start..*at])?;
                    self.utf8.finish()?;
                    self.end_message();
                    self.spent = Spent::Message;
                    return Ok(Some(Received::Message(kind, &self.message)));
                }
                _ => self.keep(header, &input[start..*at])?,
            }
        }
    }

    fn end_message(&mut self) {
        self.kind = None;
        self.fragments = 0;
        self.utf8 = Utf8Checker::default();
    }

    /// Keeps a piece of a frame.
    fn keep(&mut self, header: Header, piece: &[u8]) -> Result<(), Violation> {
        if header.is_control() {
            self.control.extend_from_slice(piece);
            return Ok(());
        }
        if self.kind == Some(MessageKind::Text) {
            self.utf8.feed(piece)?;
        }
        self.message.extend_from_slice(piece);
        Ok(())
    }

    /// The next frame's header, taken off the input; `None` if it is unfinished, and kept.
    fn header(&mut self, input: &[u8], at: &mut usize, bounds: MessageBounds) -> Result<Option<Header>, Violation> {
        if self.head_length == 0 {
            let rest = &input[*at..];
            if let Some((header, length)) = parse_header(rest)? {
                *at += length;
                return self.admit(header, bounds).map(Some);
            }
            // unfinished, so shorter than any header
            self.head[..rest.len()].copy_from_slice(rest);
            self.head_length = rest.len() as u8;
            *at = input.len();
            return Ok(None);
        }
        while let Some(byte) = input.get(*at) {
            let length = usize::from(self.head_length);
            self.head[length] = *byte;
            self.head_length += 1;
            *at += 1;
            if let Some((header, _)) = parse_header(&self.head[..=length])? {
                self.head_length = 0;
                return self.admit(header, bounds).map(Some);
            }
        }
        Ok(None)
    }

    /// Checks a header against what is under way.
    fn admit(&mut self, header: Header, bounds: MessageBounds) -> Result<Header, Violation> {
        if header.is_control() {
            return Ok(header);
        }
        match (header.opcode, self.kind) {
            (CONTINUATION, None) => return Err(Violation::Continuation),
            (CONTINUATION, Some(_)) if self.fragments >= bounds.fragments => return Err(Violation::Fragments),
            (CONTINUATION, Some(_)) => self.fragments += 1,
            (_, Some(_)) => return Err(Violation::Interleaved),
            (BINARY, None) if bounds.text_only => return Err(Violation::Binary),
            (opcode, None) => {
                self.kind = Some(if opcode == TEXT { MessageKind::Text } else { MessageKind::Binary });
                self.fragments = 1;
            }
        }
        if header.length > bounds.bytes.saturating_sub(self.message.len()) {
            return Err(Violation::TooLarge);
        }
        if header.length > bounds.frame {
            return Err(Violation::LargeFrame);
        }
        Ok(header)
    }
}

/// Parses the header at the start of `bytes`, and says how long it is; `None` if it is unfinished. What is wrong is said as
/// soon as it can be seen.
fn parse_header(bytes: &[u8]) -> Result<Option<(Header, usize)>, Violation> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    let (fin, opcode) = (first & 0x80 != 0, first & 0x0f);
    if first & 0x70 != 0 {
        return Err(Violation::ReservedBits);
    }
    if !matches!(opcode, CONTINUATION | TEXT | BINARY | CLOSE | PING | PONG) {
        return Err(Violation::Opcode);
    }
    let is_control = opcode & 0x8 != 0;
    if is_control && !fin {
        return Err(Violation::FragmentedControl);
    }
    let Some(&second) = bytes.get(1) else { return Ok(None) };
    if second & 0x80 == 0 {
        return Err(Violation::Unmasked);
    }
    let short = usize::from(second & 0x7f);
    if is_control && short > CONTROL_BYTES_MAX {
        return Err(Violation::LongControl);
    }
    let rest = &bytes[2..];
    let (length, rest) = match short {
        126 => match rest.split_first_chunk::<2>() {
            Some((length, rest)) => (u64::from(u16::from_be_bytes(*length)), rest),
            None => return Ok(None),
        },
        127 => match rest.split_first_chunk::<8>() {
            Some((length, rest)) => (u64::from_be_bytes(*length), rest),
            // its most significant bit must be 0 (RFC 6455 §5.2)
            None if rest.first().is_some_and(|byte| byte & 0x80 != 0) => return Err(Violation::LengthRange),
            None => return Ok(None),
        },
        _ => (short as u64, rest),
    };
    if length >> 63 != 0 {
        return Err(Violation::LengthRange);
    }
    if (short == 126 && length < 126) || (short == 127 && length <= u64::from(u16::MAX)) {
        return Err(Violation::LengthForm);
    }
    let Some(mask) = rest.first_chunk::<4>() else { return Ok(None) };
    let length = usize::try_from(length).map_err(|_| Violation::LengthRange)?;
    Ok(Some((Header { fin, opcode, mask: *mask, length }, bytes.len() - rest.len() + 4)))
}

fn control(opcode: u8, payload: &[u8]) -> Result<Received<'_>, Violation> {
    match opcode {
        PING => Ok(Received::Ping(payload)),
        PONG => Ok(Received::Pong(payload)),
        _ => close(payload),
    }
}

/// RFC 6455 §5.5.1 and §7.4.
fn close(payload: &[u8]) -> Result<Received<'_>, Violation> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return if payload.is_empty() {
            Ok(Received::Close(CloseCode::NO_STATUS, ""))
        } else {
            Err(Violation::CloseFrame)
        };
    };
    let code = CloseCode(u16::from_be_bytes(*code));
    if !code.may_be_received() {
        return Err(Violation::CloseFrame);
    }
    let reason = std::str::from_utf8(reason).map_err(|_| Violation::Utf8)?;
    Ok(Received::Close(code, reason))
}

/// Applies a mask whose first byte fits the first byte of `bytes`. Eight bytes at a time: LLVM makes vectors of it.
fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (chunks, rest) = bytes.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
