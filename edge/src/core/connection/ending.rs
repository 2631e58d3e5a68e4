//! How a connection ends: by the client, by its fault, by our own wish, or with its request refused. Each way is recorded once.

use trunkline_proto::{CloseCode, close::code_of, v1::CloseCause};

use super::{Connection, Output, Phase};
use crate::{
    core::{
        Answer, Limits, Millis,
        frame::{Received, Violation},
        limits::CLOSE_TIMEOUT,
        outbound::Outbound,
        server_frame::{Frame, cut_reason},
    },
    metrics::HandshakeOutcome,
};

/// What is recorded, and said in the close frame where there is one.
pub(super) type Ending<'a> = (CloseCode, &'a str, CloseCause);

/// Why reading ends.
pub(super) enum Stop {
    Violation(Violation),
    Flood(&'static str),
    Close(CloseCode, String),
}

impl Connection {
    /// Somebody on our side wants it closed: a handler, an operator, a drain.
    pub fn handle_close(
        &mut self,
        now: Millis,
        code: CloseCode,
        reason: &str,
        cause: CloseCause,
        out: &mut impl FnMut(Output<'_>),
    ) {
        match self.phase {
            Phase::Open => self.close(now, (code, reason, cause), out),
            Phase::Pending if cause == CloseCause::Handler => self.refuse(
                now,
                &Answer::new(403, "the connection was closed before it was open"),
                HandshakeOutcome::Rejected,
                (code, reason, cause),
                out,
            ),
            Phase::Pending => self.refuse_unavailable(now, cause, out),
            Phase::Closing | Phase::Lingering | Phase::Over => {}
        }
    }

    /// The edge drains or has lost its incarnation: close at that time. Without `record` nothing more is recorded, from now on.
    pub fn handle_drain(&mut self, at: Millis, cause: CloseCause, record: bool) {
        if matches!(self.phase, Phase::Pending | Phase::Open) {
            self.is_abandoned |= !record;
            self.drain = Some((at, cause));
        }
    }

    /// What proved who the client is has been withdrawn: close then.
    pub fn handle_revoked(&mut self, at: Millis) {
        if at < self.expires {
            (self.expires, self.is_revoked) = (at, true);
        }
    }

    /// Overload on our side: close and say "try later".
    pub fn handle_overload(&mut self, now: Millis, reason: &'static str, out: &mut impl FnMut(Output<'_>)) {
        if self.phase == Phase::Open {
            self.fail(now, (CloseCode::TRY_LATER, reason, CloseCause::RateLimited), out);
        }
    }

    /// The client has closed its side, or the socket has failed.
    pub fn handle_gone(&mut self, out: &mut impl FnMut(Output<'_>)) {
        if self.phase == Phase::Pending {
            out(Output::Answered(HandshakeOutcome::Abandoned));
        }
        if matches!(self.phase, Phase::Pending | Phase::Open) {
            self.record((CloseCode::ABNORMAL, "", CloseCause::ClientVanished), out);
        }
        self.end();
    }

    /// Reading has ended: a close frame, or what the client may not do.
    pub(super) fn stop(&mut self, now: Millis, stop: Stop, out: &mut impl FnMut(Output<'_>)) {
        match stop {
            Stop::Violation(violation) => {
                self.fail(now, (violation.code(), violation.reason(), violation.cause()), out);
            }
            Stop::Flood(reason) => self.fail(now, (CloseCode::POLICY, reason, CloseCause::RateLimited), out),
            Stop::Close(code, reason) => {
                self.record((code, &reason, CloseCause::Client), out);
                self.outbound.push(&Frame::close(code, ""));
                self.linger(now);
            }
        }
    }

    /// The close handshake: anything but the client's close frame is ignored.
    pub(super) fn await_close(&mut self, limits: &Limits, bytes: &mut [u8]) {
        let mut at = 0;
        loop {
            match self.reader.next(bytes, &mut at, limits.message_bounds()) {
                Ok(None) => return,
                Ok(Some(Received::Close(..))) | Err(_) => break,
                Ok(Some(_)) => {}
            }
        }
        self.reader.discard();
        self.phase = Phase::Lingering;
    }

    /// Closes by our own wish, and waits for the client's answer.
    pub(super) fn close(&mut self, now: Millis, ending: Ending<'_>, out: &mut impl FnMut(Output<'_>)) {
        self.say(ending, out);
        self.phase = Phase::Closing;
        self.ends = now + CLOSE_TIMEOUT;
    }

    /// Closes because the client is at fault: no answer is awaited.
    pub(super) fn fail(&mut self, now: Millis, ending: Ending<'_>, out: &mut impl FnMut(Output<'_>)) {
        self.say(ending, out);
        self.linger(now);
    }

    fn say(&mut self, (code, reason, cause): Ending<'_>, out: &mut impl FnMut(Output<'_>)) {
        self.record((code, reason, cause), out);
        self.outbound.push(&Frame::close(code, reason));
    }

    /// Answers a pending request with a refusal. Deliveries that wait are dropped.
    pub(super) fn refuse(
        &mut self,
        now: Millis,
        answer: &Answer,
        outcome: HandshakeOutcome,
        ending: Ending<'_>,
        out: &mut impl FnMut(Output<'_>),
    ) {
        self.outbound.push_answer(answer.to_bytes());
        self.record(ending, out);
        self.linger(now);
        out(Output::Answered(outcome));
    }

    pub(super) fn refuse_unavailable(&mut self, now: Millis, cause: CloseCause, out: &mut impl FnMut(Output<'_>)) {
        let answer = Answer::unavailable("no connections are taken for now", 2);
        self.refuse(now, &answer, HandshakeOutcome::Unavailable, (code_of(cause), "", cause), out);
    }

    fn record(&mut self, (code, reason, cause): Ending<'_>, out: &mut impl FnMut(Output<'_>)) {
        let was_open = self.phase == Phase::Open;
        if !std::mem::replace(&mut self.is_recorded, true) {
            out(Output::Closed { code, reason: cut_reason(reason), cause, record: !self.is_abandoned, was_open });
        }
    }

    fn linger(&mut self, now: Millis) {
        self.phase = Phase::Lingering;
        self.ends = now + CLOSE_TIMEOUT;
        self.pending = None;
        self.reader.discard();
    }

    pub(super) fn end(&mut self) {
        self.phase = Phase::Over;
        self.pending = None;
        self.reader.discard();
        self.outbound = Outbound::default();
    }
}

/// The code on the wire when the edge closes by itself: a lost incarnation is recorded as 1006 by the brokers, but the client
/// is told to come back.
pub(super) fn code_of_wire(cause: CloseCause) -> CloseCode {
    if cause == CloseCause::EdgeLost { CloseCode::RESTART } else { code_of(cause) }
}
