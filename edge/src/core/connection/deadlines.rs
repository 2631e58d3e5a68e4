//! What a connection does when time passes: pings, timeouts, the end of its lifetime, a drain.

use trunkline_proto::{CloseCode, v1::CloseCause};

use super::{Connection, Output, Phase, ending::code_of_wire};
use crate::{
    core::{Answer, Limits, Millis, limits::ASSEMBLY_TIMEOUT, server_frame::Frame},
    metrics::HandshakeOutcome,
};

impl Connection {
    /// When [`Connection::handle_timer`] is due next.
    pub fn deadline(&self, limits: &Limits) -> Option<Millis> {
        let drain = self.drain.map(|(at, _)| at);
        match self.phase {
            Phase::Pending => earlier(self.pending.as_ref().map(|pending| pending.deadline), drain),
            Phase::Open => {
                let lifetime = after(self.opened, limits.max_lifetime);
                let expires = (self.expires < Millis::NEVER).then_some(self.expires);
                let always = earlier(earlier(lifetime, expires), drain);
                if self.paused.is_some() { always } else { earlier(always, self.client_deadline(limits)) }
            }
            Phase::Closing | Phase::Lingering => Some(self.ends),
            Phase::Over => None,
        }
    }

    /// When the client must have done something.
    fn client_deadline(&self, limits: &Limits) -> Option<Millis> {
        let ping = match self.pinged {
            Some(pinged) => Some(pinged + limits.ping_timeout),
            None => after(self.heard, limits.ping_interval),
        };
        let assembly = self.assembling.map(|since| since + ASSEMBLY_TIMEOUT);
        earlier(earlier(ping, assembly), after(self.messaged, limits.idle_timeout))
    }

    /// Time has passed.
    pub fn handle_timer(&mut self, now: Millis, limits: &Limits, out: &mut impl FnMut(Output<'_>)) {
        if let Some((_, cause)) = self.drain.filter(|(at, _)| *at <= now) {
            // does nothing if it ends already
            self.handle_close(now, code_of_wire(cause), "", cause, out);
        }
        match self.phase {
            Phase::Pending if self.pending.as_ref().is_some_and(|pending| pending.deadline <= now) => {
                self.give_up(now, out);
            }
            Phase::Open => self.check_client(now, limits, out),
            Phase::Closing | Phase::Lingering if self.ends <= now => self.end(),
            Phase::Pending | Phase::Closing | Phase::Lingering | Phase::Over => {}
        }
    }

    /// A registration took too long: its handler's silence, or the log's.
    fn give_up(&mut self, now: Millis, out: &mut impl FnMut(Output<'_>)) {
        let (answer, outcome) = if self.pending.as_ref().is_some_and(|pending| pending.waits_for_handler()) {
            (Answer::new(504, "no handler has decided in time"), HandshakeOutcome::TimedOut)
        } else {
            (Answer::unavailable("the log is out of reach", 2), HandshakeOutcome::Unavailable)
        };
        self.refuse(now, &answer, outcome, (CloseCode::ABNORMAL, "", CloseCause::RegistrationTimeout), out);
    }

    fn check_client(&mut self, now: Millis, limits: &Limits, out: &mut impl FnMut(Output<'_>)) {
        let is_due = |deadline: Option<Millis>| deadline.is_some_and(|deadline| deadline <= now);
        if is_due(after(self.opened, limits.max_lifetime)) {
            return self.close(now, (CloseCode::AWAY, "end of its lifetime", CloseCause::MaxLifetime), out);
        }
        if self.expires <= now {
            let reason = if self.is_revoked { "token revoked" } else { "token expired" };
            return self.close(now, (CloseCode::POLICY, reason, CloseCause::TokenExpired), out);
        }
        if self.paused.is_some() {
            return;
        }
        if is_due(self.assembling.map(|since| since + ASSEMBLY_TIMEOUT)) {
            return self.fail(now, (CloseCode::POLICY, "message took too long", CloseCause::RateLimited), out);
        }
        if is_due(self.pinged.map(|pinged| pinged + limits.ping_timeout)) {
            return self.close(now, (CloseCode::AWAY, "no pong", CloseCause::PingTimeout), out);
        }
        if is_due(after(self.messaged, limits.idle_timeout)) {
            return self.close(now, (CloseCode::AWAY, "idle", CloseCause::Idle), out);
        }
        if self.pinged.is_none() && is_due(after(self.heard, limits.ping_interval)) {
            self.pinged = Some(now);
            self.outbound.push(&Frame::ping());
        }
    }

    /// Reading stops: until it goes on the client is not expected to do anything.
    pub fn handle_pause(&mut self, now: Millis) {
        self.paused.get_or_insert(now);
    }

    /// Reading goes on. Says for how long it did not.
    pub fn handle_resume(&mut self, now: Millis) -> Millis {
        let Some(since) = self.paused.take() else { return Millis::ZERO };
        let paused = now.saturating_sub(since);
        self.heard = self.heard + paused;
        self.messaged = self.messaged + paused;
        self.pinged = self.pinged.map(|at| at + paused);
        self.assembling = self.assembling.map(|at| at + paused);
        paused
    }
}

fn after(since: Millis, time: Millis) -> Option<Millis> {
    (!time.is_zero()).then(|| since + time)
}

fn earlier(one: Option<Millis>, other: Option<Millis>) -> Option<Millis> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
