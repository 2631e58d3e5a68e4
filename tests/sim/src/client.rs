//! A WebSocket client: sends numbered messages, reads what comes, and leaves in one way or another.

use trunkline_proto::ConnectionId;

use crate::{Time, context::Context, millis};

/// Bytes of a response's head before which it must end.
const HEAD_END: &[u8] = b"\r\n\r\n";

#[derive(Debug)]
pub(crate) struct Client {
    connection: ConnectionId,
    /// Status of the response, once its head has come.
    status: Option<u16>,
    incoming: Vec<u8>,
    /// Sent, and not yet taken by the edge.
    pub(crate) outgoing: Vec<u8>,
    said: u64,
    next_at: Time,
    leaves_at: Time,
    /// Takes no bytes until then.
    pub(crate) stalls_until: Time,
    has_closed: bool,
    /// Closes TCP without a word.
    pub(crate) is_gone: bool,
}

impl Client {
    pub(crate) fn new(connection: ConnectionId, context: &mut Context) -> Self {
        let stays = if context.random.chance(300) { context.random.range(50, 3000) } else { 1 << 40 };
        Self {
            connection,
            status: None,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            said: 0,
            next_at: 0,
            leaves_at: context.now + millis(stays),
            stalls_until: 0,
            has_closed: false,
            is_gone: false,
        }
    }

    /// Bytes from the edge.
    pub(crate) fn receive(&mut self, context: &mut Context, bytes: &[u8]) {
        self.incoming.extend_from_slice(bytes);
        if self.status.is_none() {
            let Some(end) = self.incoming.windows(4).position(|window| window == HEAD_END) else { return };
            let status = std::str::from_utf8(&self.incoming[9..12]).ok().and_then(|status| status.parse().ok());
            self.incoming.drain(..end + 4);
            self.status = status.or(Some(0));
        }
        if self.status != Some(101) {
            return;
        }
        while let Some((opcode, payload, length)) = frame(&self.incoming) {
            match opcode {
                1 | 2 => {
                    let payload = payload.to_vec();
                    context.oracle.received(self.connection, &payload);
                }
                8 => self.close(),
                _ => {}
            }
            self.incoming.drain(..length);
        }
    }

    fn close(&mut self) {
        if !std::mem::replace(&mut self.has_closed, true) {
            self.outgoing.extend_from_slice(&masked(8, &1000u16.to_be_bytes()));
        }
    }

    /// Does whatever the client feels like.
    pub(crate) fn act(&mut self, context: &mut Context) {
        let now = context.now;
        if context.leaving || now >= self.leaves_at {
            match context.random.chance(300) || self.status != Some(101) {
                true => self.is_gone = true,
                false => self.close(),
            }
        } else if self.status == Some(101) && !context.hushed && !self.has_closed && now >= self.next_at {
            let text = self.said.to_string();
            self.outgoing.extend_from_slice(&masked(1, text.as_bytes()));
            self.said += 1;
            self.next_at = now + millis(context.random.range(20, 400));
            if context.random.chance(20) && !context.healed {
                self.stalls_until = now + millis(context.random.below(800));
            }
        }
    }
}

/// The first whole frame of a server: opcode, payload, and its length in all.
fn frame(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let (first, second) = (*bytes.first()?, *bytes.get(1)?);
    let (length, start) = match second {
        126 => (usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?])), 4),
        length => (usize::from(length), 2),
    };
    Some((first & 0x0f, bytes.get(start..start + length)?, start + length))
}

/// A small frame of a client; the mask of zeros changes nothing.
fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x80 | opcode, 0x80 | payload.len() as u8, 0, 0, 0, 0];
    bytes.extend_from_slice(payload);
    bytes
}
