//! RFC 6455 frames to clients; theirs are in `frame.rs`.

use std::rc::Rc;

use bytes::{BufMut, Bytes, BytesMut};
use trunkline_proto::{CloseCode, v1::MessageKind};

use super::frame::{BINARY, CLOSE, PING, PONG, TEXT};

/// Payloads up to here are copied behind their header: one slice to write, and a small one does not keep the large buffer it
/// came in alive.
const JOINED_BYTES_MAX: usize = 16 << 10;

/// A frame to clients, encoded once for all who get it: server frames are not masked, so the bytes are the same. Cloning shares
/// them, and costs no atomic: all who get it are of one thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame(Rc<Encoded>);

#[derive(Debug, PartialEq, Eq)]
struct Encoded {
    /// The header, and the payload too if it is small.
    head: Bytes,
    /// The payload if it is large.
    tail: Bytes,
}

impl Frame {
    fn new(head: Bytes, tail: Bytes) -> Self {
        Self(Rc::new(Encoded { head, tail }))
    }

    /// What is no frame but goes out as one does: an HTTP answer.
    pub(super) fn answer(bytes: Bytes) -> Self {
        Self::new(bytes, Bytes::new())
    }

    /// A whole message.
    pub fn message(kind: MessageKind, payload: &Bytes) -> Self {
        let opcode = if kind == MessageKind::Text { TEXT } else { BINARY };
        Self::encode(opcode, payload)
    }

    /// A ping without payload.
    pub fn ping() -> Self {
        Self::new(Bytes::from_static(&[0x80 | PING, 0]), Bytes::new())
    }

    /// The answer to a ping.
    pub fn pong(payload: &[u8]) -> Self {
        Self::joined(PONG, payload)
    }

    /// A close frame. A code that may not be on the wire leaves it empty; a reason is cut to fit.
    pub fn close(code: CloseCode, reason: &str) -> Self {
        if !code.may_be_received() {
            return Self::new(Bytes::from_static(&[0x80 | CLOSE, 0]), Bytes::new());
        }
        let reason = cut_reason(reason);
        let mut payload = Vec::with_capacity(2 + reason.len());
        payload.put_u16(code.0);
        payload.put_slice(reason.as_bytes());
        Self::joined(CLOSE, &payload)
    }

    /// Bytes on the wire.
    pub fn len(&self) -> usize {
        self.0.head.len() + self.0.tail.len()
    }

    /// Its bytes after the first `sent`, in two slices; the second is empty if the first is all.
    pub(super) fn rest(&self, sent: usize) -> [&[u8]; 2] {
        let Encoded { head, tail } = &*self.0;
        match sent.checked_sub(head.len()) {
            None => [head.get(sent..).unwrap_or_default(), tail],
            Some(sent) => [tail.get(sent..).unwrap_or_default(), &[]],
        }
    }

    /// Never: a frame has a header.
    pub fn is_empty(&self) -> bool {
        false
    }

    fn encode(opcode: u8, payload: &Bytes) -> Self {
        if payload.len() <= JOINED_BYTES_MAX {
            return Self::joined(opcode, payload);
        }
        Self::new(header(opcode, payload.len(), 0).freeze(), payload.clone())
    }

    fn joined(opcode: u8, payload: &[u8]) -> Self {
        let mut bytes = header(opcode, payload.len(), payload.len());
        bytes.put_slice(payload);
        Self::new(bytes.freeze(), Bytes::new())
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

    fn bytes(frame: &Frame) -> Vec<u8> {
        frame.rest(0).concat()
    }

    #[test]
    fn frames_are_encoded_as_the_rfc_says() {
        assert_eq!(bytes(&Frame::message(MessageKind::Text, &Bytes::from_static(b"Hello"))), b"\x81\x05Hello");
        assert_eq!(bytes(&Frame::close(CloseCode(1000), "bye")), b"\x88\x05\x03\xe8bye");
        assert_eq!(bytes(&Frame::close(CloseCode::NO_STATUS, "bye")), b"\x88\x00");
        assert_eq!(Frame::close(CloseCode(1000), &"é".repeat(100)).len(), 2 + 2 + 122);
    }

    #[test]
    fn a_large_payload_is_not_copied() {
        let payload = Bytes::from(vec![1; 70_000]);
        let large = Frame::message(MessageKind::Binary, &payload);
        let [head, tail] = large.rest(0);
        assert_eq!(head, b"\x82\x7f\x00\x00\x00\x00\x00\x01\x11\x70");
        assert_eq!(tail.as_ptr_range(), payload.as_ptr_range());
        assert_eq!(large.rest(4), [&head[4..], tail]);
        assert_eq!(large.rest(10), [tail, &[]]);
        assert_eq!(large.rest(70_009), [&tail[69_999..], &[]]);
    }
}
