//! What waits for one socket: bytes in order, bounded by who adds them.

use std::{collections::VecDeque, io::IoSlice};

use bytes::{Buf, Bytes};

use super::server_frame::Frame;

/// Most slices of one write (Linux takes 1024; more than this gains nothing).
pub const SLICES_MAX: usize = 64;

#[derive(Debug)]
struct Part {
    bytes: Bytes,
    /// Whether a frame begins here; a large one goes on in the next part.
    begins: bool,
}

/// The unsent bytes of a connection. Takes no memory of its own while at most one part waits: a publish to many costs no
/// allocation for each.
#[derive(Debug, Default)]
pub struct Outbound {
    front: Option<Part>,
    /// What follows it; empty if there is no front.
    rest: VecDeque<Part>,
    bytes: usize,
    /// The last part is a pong of which nothing has been sent.
    ends_with_pong: bool,
}

impl Outbound {
    /// Unsent bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing is unsent.
    pub fn is_empty(&self) -> bool {
        self.front.is_none()
    }

    /// Adds a frame.
    pub fn push(&mut self, frame: &Frame) {
        self.push_part(frame.head.clone(), true);
        if !frame.tail.is_empty() {
            self.push_part(frame.tail.clone(), false);
        }
    }

    /// Puts what is no frame, an HTTP answer, before everything else; only where nothing has been sent yet.
    pub fn push_answer(&mut self, bytes: Bytes) {
        self.bytes += bytes.len();
        if let Some(second) = self.front.replace(Part { bytes, begins: true }) {
            self.rest.push_front(second);
        }
    }

    /// Adds a pong. While the socket takes nothing only the newest stays (RFC 6455 §5.5.3).
    pub fn push_pong(&mut self, pong: &Frame, is_blocked: bool) {
        if is_blocked && self.ends_with_pong {
            let older = self.rest.pop_back().or_else(|| self.front.take());
            self.bytes -= older.map_or(0, |older| older.bytes.len());
        }
        self.push(pong);
        self.ends_with_pong = true;
    }

    /// Drops every frame that has not begun to be sent.
    pub fn drop_unsent_frames(&mut self) {
        if self.front.as_ref().is_some_and(|part| part.begins) {
            *self = Self::default();
            return;
        }
        let keep = self.rest.iter().position(|part| part.begins).unwrap_or(self.rest.len());
        self.rest.truncate(keep);
        self.bytes = self.parts().map(|part| part.bytes.len()).sum();
        self.ends_with_pong = false;
    }

    /// The next bytes to send if they are one part.
    pub fn single(&self) -> Option<&[u8]> {
        self.front.as_ref().filter(|_| self.rest.is_empty()).map(|part| &part.bytes[..])
    }

    /// The next bytes to send, as slices for one write: how many there are.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES_MAX]) -> usize {
        let mut count = 0;
        for (slice, part) in slices.iter_mut().zip(self.parts()) {
            *slice = IoSlice::new(&part.bytes);
            count += 1;
        }
        count
    }

    /// So many bytes have been sent.
    pub fn advance(&mut self, mut sent: usize) {
        self.bytes = self.bytes.saturating_sub(sent);
        while let Some(part) = &mut self.front {
            if sent < part.bytes.len() {
                if sent > 0 {
                    part.bytes.advance(sent);
                    // what is left may no longer be dropped, nor replaced if it is a pong
                    part.begins = false;
                    self.ends_with_pong &= !self.rest.is_empty();
                }
                return;
            }
            sent -= part.bytes.len();
            self.front = self.rest.pop_front();
        }
        // an idle connection keeps no queue
        *self = Self::default();
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        self.front.iter().chain(&self.rest)
    }

    fn push_part(&mut self, bytes: Bytes, begins: bool) {
        self.bytes += bytes.len();
        self.ends_with_pong = false;
        let part = Part { bytes, begins };
        if self.front.is_none() {
            self.front = Some(part);
        } else {
            self.rest.push_back(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use trunkline_proto::v1::MessageKind;

    use super::*;

    fn frame(length: usize) -> Frame {
        Frame::message(MessageKind::Binary, &Bytes::from(vec![7; length]))
    }

    fn written(outbound: &Outbound) -> Vec<u8> {
        outbound.parts().flat_map(|part| part.bytes.to_vec()).collect()
    }

    #[test]
    fn frame_that_has_begun_is_finished() {
        for (sent, kept) in [(0, 0), (1, 100_009), (10, 100_000), (11, 99_999), (100_010, 0)] {
            let mut outbound = Outbound::default();
            outbound.push(&frame(100_000));
            outbound.push(&frame(5));
            outbound.advance(sent);
            outbound.drop_unsent_frames();
            assert_eq!((outbound.bytes(), written(&outbound).len()), (kept, kept), "{sent}");
        }
    }

    #[test]
    fn only_the_newest_pong_waits() {
        let mut outbound = Outbound::default();
        outbound.push_pong(&Frame::pong(b"1"), false);
        outbound.push_pong(&Frame::pong(b"2"), false);
        assert_eq!(outbound.bytes(), 6);
        outbound.push_pong(&Frame::pong(b"3"), true);
        assert_eq!(written(&outbound), b"\x8a\x011\x8a\x013");
        outbound.advance(4);
        outbound.push_pong(&Frame::pong(b"4"), true);
        assert_eq!(written(&outbound), b"\x013\x8a\x014", "a pong that has begun stays");
    }

    #[test]
    fn slices_and_advance_agree() {
        let mut outbound = Outbound::default();
        for length in 0..100 {
            outbound.push(&frame(length));
        }
        let (expected, mut sent) = (written(&outbound), Vec::new());
        while !outbound.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = outbound.slices(&mut slices);
            let all: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
            let taken = all.len().min(37);
            sent.extend_from_slice(&all[..taken]);
            outbound.advance(taken);
        }
        assert_eq!(sent, expected);
        assert_eq!(outbound.bytes(), 0);
    }
}
