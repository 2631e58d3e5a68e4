//! A connection between its request and its 101: what it still waits for (whoever sees 101 is in the log and in its
//! channels).

use std::sync::Arc;

use bytes::Bytes;
use trunkline_proto::{limits::CHANNELS_PER_CONNECTION_MAX, v1};

use super::{Millis, answer::switching_protocols, outbound::Outbound, senders::SharedBucket};

/// What a connection starts with.
#[derive(Debug, Clone, Default)]
pub struct Registration {
    /// What `Sec-WebSocket-Accept` must say.
    pub accept: String,
    /// Offered by the client.
    pub offered: Vec<String>,
    /// Chosen already (registration "accept"); empty: none.
    pub subprotocol: String,
    /// Joined at once.
    pub channels: Vec<String>,
    /// Whether a handler decides.
    pub needs_decision: bool,
    /// What proves who the client is holds until then; none: for good.
    pub expires: Option<Millis>,
    /// Messages of its address, where they are bounded.
    pub sender: Option<Arc<SharedBucket>>,
}

/// A registration under way.
#[derive(Debug)]
pub(crate) struct Pending {
    registration: Registration,
    headers: Vec<v1::Header>,
    is_applied: bool,
    /// Joins seen. They come from the channels' partitions and so in any order with the decision.
    joined: Vec<String>,
    pub(crate) deadline: Millis,
    /// Deliveries that came already: they follow the 101.
    pub(crate) deliveries: Outbound,
}

impl Pending {
    pub(crate) fn new(registration: Registration, deadline: Millis) -> Self {
        Self {
            registration,
            headers: Vec::new(),
            is_applied: false,
            joined: Vec::new(),
            deadline,
            deliveries: Outbound::default(),
        }
    }

    /// ConnectionOpened is applied.
    pub(crate) fn applied(&mut self) {
        self.is_applied = true;
    }

    /// In the log, and only the decision is missing.
    pub(crate) fn waits_for_handler(&self) -> bool {
        self.is_applied && self.registration.needs_decision
    }

    /// The handler lets it in. A subprotocol the client did not offer is not named (RFC 6455 §4.2.2).
    pub(crate) fn accepted(&mut self, accepted: v1::ConnectionAccepted) {
        let registration = &mut self.registration;
        registration.needs_decision = false;
        if registration.offered.contains(&accepted.subprotocol) {
            registration.subprotocol = accepted.subprotocol;
        }
        registration.channels.extend(accepted.channels);
        self.headers = accepted.headers;
    }

    /// It is in this channel.
    pub(crate) fn joined(&mut self, channel: &str) {
        // no more than it may be in, and each is wanted or was joined by a handler meanwhile
        if self.joined.len() < 2 * CHANNELS_PER_CONNECTION_MAX && !self.joined.iter().any(|joined| joined == channel) {
            self.joined.push(channel.to_owned());
        }
    }

    /// The 101, if nothing is missing.
    pub(crate) fn answer(&self) -> Option<Bytes> {
        let registration = &self.registration;
        let is_ready = self.is_applied
            && !registration.needs_decision
            && registration.channels.iter().all(|channel| self.joined.contains(channel));
        is_ready.then(|| switching_protocols(&registration.accept, &registration.subprotocol, &self.headers))
    }
}
