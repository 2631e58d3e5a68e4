//! RFC 6455 frames to clients; theirs are in `frame.rs`.

use bytes::{BufMut, Bytes, BytesMut};
use trunkline_proto::{CloseCode, v1::MessageKind};

use super::frame::{BINARY, CLOSE, PING, PONG, TEXT};

/// Payloads up to here are copied behind their header: one slice to write, and a small one does not keep the large buffer it
/// came in alive.
const JOINED_BYTES_MAX: usize = 16 << 10;

/// A frame to clients, encoded once for all who get it: server frames are not masked, so the bytes are the same. Cloning
/// shares them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The header, and the payload too if it is small.
    pub(crate) head: Bytes,
    /// The payload if it is large.
    pub(crate) tail: Bytes,
}

impl Frame {
    /// A whole message.
    pub fn message(kind: MessageKind, payload: &Bytes) -> Self {
        let opcode = if kind == MessageKind::Text { TEXT } else { BINARY };
        Self::encode(opcode, payload)
    }

    /// A ping without payload.
    pub fn ping() -> Self {
        Self { head: Bytes::from_static(&[0x80 | PING, 0]), tail: Bytes::new() }
    }

    /// The answer to a ping.
    pub fn pong(payload: &[u8]) -> Self {
        Self::joined(PONG, payload)
    }

    /// A close frame. A code that may not be on the wire leaves it empty; a reason is cut to fit.
    pub fn close(code: CloseCode, reason: &str) -> Self {
        if !code.may_be_received() {
            return Self { head: Bytes::from_static(&[0x80 | CLOSE, 0]), tail: Bytes::new() };
        }
        let reason = cut_reason(reason);
        let mut payload = Vec::with_capacity(2 + reason.len());
        payload.put_u16(code.0);
        payload.put_slice(reason.as_bytes());
        Self::joined(CLOSE, &payload)
    }

    /// Bytes on the wire.
    pub fn len(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    /// Never: a frame has a header.
    pub fn is_empty(&self) -> bool {
        false
    }

    fn encode(opcode: u8, payload: &Bytes) -> Self {
        if payload.len() <= JOINED_BYTES_MAX {
            return Self::joined(opcode, payload);
        }
        Self { head: header(opcode, payload.len(), 0).freeze(), tail: payload.clone() }
    }

    fn joined(opcode: u8, payload: &[u8]) -> Self {
        let mut bytes = header(opcode, payload.len(), payload.len());
        bytes.put_slice(payload);
        Self { head: bytes.freeze(), tail: Bytes::new() }
    }
}

pub(super) fn header(opcode: u8, length: usize, room: usize) -> BytesMut {
    let mut bytes = BytesMut::with_capacity(10 + room);
    bytes.put_u8(0x80 | opcode);
    match length {
        0..=125 => bytes.put_u8(length as u8),
        126..=0xffff => {
            bytes.put_u8(126);
            bytes.put_u16(length as u16);
        }
        _ => {
            bytes.put_u8(127);
            bytes.put_u64(length as u64);
        }
    }
    bytes
}

/// The reason as far as a close frame holds it, cut between characters.
pub(crate) fn cut_reason(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(trunkline_proto::limits::CLOSE_REASON_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_to_clients_are_encoded_as_the_rfc_says() {
        assert_eq!(&Frame::message(MessageKind::Text, &Bytes::from_static(b"Hello")).head[..], b"\x81\x05Hello");
        assert_eq!(&Frame::close(CloseCode(1000), "bye").head[..], b"\x88\x05\x03\xe8bye");
        assert_eq!(&Frame::close(CloseCode::NO_STATUS, "bye").head[..], b"\x88\x00");
        let large = Frame::message(MessageKind::Binary, &Bytes::from(vec![1; 70_000]));
        assert_eq!(&large.head[..], b"\x82\x7f\x00\x00\x00\x00\x00\x01\x11\x70");
        assert_eq!(large.tail.len(), 70_000);
        assert_eq!(Frame::close(CloseCode(1000), &"é".repeat(100)).head.len(), 2 + 2 + 122);
    }
}
