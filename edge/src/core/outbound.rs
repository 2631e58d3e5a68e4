//! What waits for one socket: bytes in order, bounded by who adds them.

use std::{collections::VecDeque, io::IoSlice};

use bytes::Bytes;

use super::server_frame::Frame;

/// Most slices of one write (Linux takes 1024; more than this gains nothing).
pub const SLICES_MAX: usize = 64;

#[derive(Debug)]
struct Part {
    frame: Frame,
    /// Bytes of it that the socket has taken.
    sent: usize,
}

impl Part {
    fn rest(&self) -> [&[u8]; 2] {
        self.frame.rest(self.sent)
    }
}

/// The unsent bytes of a connection. Takes no memory of its own while at most one frame waits: a publish to many costs no
/// allocation for each.
#[derive(Debug, Default)]
pub struct Outbound {
    /// The only one of which something may have been sent.
    front: Option<Part>,
    /// What follows it; empty if there is no front.
    rest: VecDeque<Frame>,
    bytes: usize,
    /// The last frame is a pong of which nothing has been sent.
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
        self.bytes += frame.len();
        self.ends_with_pong = false;
        if self.front.is_none() {
            self.front = Some(Part { frame: frame.clone(), sent: 0 });
        } else {
            self.rest.push_back(frame.clone());
        }
    }

    /// Puts what is no frame, an HTTP answer, before everything else; only where nothing has been sent yet.
    pub fn push_answer(&mut self, bytes: Bytes) {
        self.bytes += bytes.len();
        let answer = Part { frame: Frame::answer(bytes), sent: 0 };
        if let Some(second) = self.front.replace(answer) {
            self.rest.push_front(second.frame);
        }
    }

    /// Adds a pong. While the socket takes nothing only the newest stays (RFC 6455 §5.5.3).
    pub fn push_pong(&mut self, pong: &Frame, is_blocked: bool) {
        if is_blocked && self.ends_with_pong {
            let older = self.rest.pop_back().or_else(|| self.front.take().map(|part| part.frame));
            self.bytes -= older.map_or(0, |older| older.len());
        }
        self.push(pong);
        self.ends_with_pong = true;
    }

    /// Drops every frame that has not begun to be sent.
    pub fn drop_unsent_frames(&mut self) {
        let begun = self.front.take().filter(|part| part.sent > 0);
        let bytes = begun.as_ref().map_or(0, |part| part.frame.len() - part.sent);
        *self = Self { front: begun, bytes, ..Self::default() };
    }

    /// The next bytes to send if they are one slice.
    pub fn single(&self) -> Option<&[u8]> {
        let part = self.front.as_ref().filter(|_| self.rest.is_empty())?;
        let [first, second] = part.rest();
        second.is_empty().then_some(first)
    }

    /// The next bytes to send, as slices for one write: how many there are.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES_MAX]) -> usize {
        let mut count = 0;
        for (slice, bytes) in slices.iter_mut().zip(self.unsent()) {
            *slice = IoSlice::new(bytes);
            count += 1;
        }
        count
    }

    /// So many bytes have been sent.
    pub fn advance(&mut self, mut sent: usize) {
        self.bytes = self.bytes.saturating_sub(sent);
        while let Some(part) = &mut self.front {
            let left = part.frame.len() - part.sent;
            if sent < left {
                if sent > 0 {
                    part.sent += sent;
                    // what has begun may not be replaced, even if it is a pong
                    self.ends_with_pong &= !self.rest.is_empty();
                }
                return;
            }
            sent -= left;
            self.front = self.rest.pop_front().map(|frame| Part { frame, sent: 0 });
        }
        // an idle connection keeps no queue
        *self = Self::default();
    }

    fn unsent(&self) -> impl Iterator<Item = &[u8]> {
        let front = self.front.iter().flat_map(Part::rest);
        front.chain(self.rest.iter().flat_map(|frame| frame.rest(0))).filter(|bytes| !bytes.is_empty())
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
        outbound.unsent().flatten().copied().collect()
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
