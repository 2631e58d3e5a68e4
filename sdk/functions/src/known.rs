//! What is known of connections besides their ids: the events of some dialects tell more of a connection than a message's record does.
//! A bounded memory of what this process has seen opened; what it has not seen is asked for, which the brokers tell as long as the log has
//! the connection's end.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use trunkline_proto::{ConnectionId, Offset, v1};
use trunkline_sdk::{Assignment, Client, ClientError, Retry};

use crate::kept::Kept;

/// Most connections remembered. With more the oldest are asked for again.
const REMEMBERED_MAX: usize = 100_000;
/// Bytes of them, about: what clients say of themselves has many lengths, and functions may keep 4 KiB with each.
const REMEMBERED_BYTES_MAX: usize = 64 << 20;
/// Of one whose texts are empty.
const IDENTITY_BYTES: usize = 256;
/// Waits between looks whether a connection is open: its decision is on the way through the log. A quarter of a minute in all.
const OPEN_ASKED_MS: [u64; 12] = [2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 4000, 8000];

/// A connection as it was opened, as far as events repeat it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Identity {
    /// Microseconds since the epoch.
    pub(crate) opened_at: u64,
    /// The client's address without its port.
    pub(crate) address: String,
    pub(crate) user_agent: String,
    /// What the client called the gateway.
    pub(crate) host: String,
    pub(crate) principal: String,
    /// What its token claimed.
    pub(crate) claims: BTreeMap<String, String>,
    pub(crate) subprotocol: String,
    pub(crate) kept: Kept,
    /// While it is the same, nobody else can have changed what is kept.
    pub(crate) assignment: Option<Assignment>,
}

impl Identity {
    pub(crate) fn new(opened: &v1::ConnectionOpened, opened_at: u64) -> Self {
        let header = |name: &str| {
            opened
                .headers
                .iter()
                .find(|header| header.name == name)
                .map(|header| header.value.clone())
                .unwrap_or_default()
        };
        Self {
            opened_at,
            address: address(&opened.peer).to_owned(),
            user_agent: header("user-agent"),
            host: header("host"),
            principal: opened.principal.clone(),
            claims: opened.attributes.clone(),
            subprotocol: opened.subprotocol.clone(),
            kept: Kept::of(&opened.attributes),
            assignment: None,
        }
    }

    fn bytes(&self) -> usize {
        let claims: usize = self.claims.iter().map(|(key, value)| key.len() + value.len() + 64).sum();
        let texts = [&self.address, &self.user_agent, &self.host, &self.principal];
        IDENTITY_BYTES
            + claims
            + self.subprotocol.len()
            + self.kept.bytes()
            + texts.iter().map(|text| text.len()).sum::<usize>()
    }
}

/// `address:port` without the port.
pub(crate) fn address(peer: &str) -> &str {
    peer.rsplit_once(':').map_or(peer, |(address, _)| address.trim_start_matches('[').trim_end_matches(']'))
}

/// See the module's head. One for all APIs of a process.
#[derive(Debug)]
pub struct Known {
    client: Client,
    remembered: Mutex<Remembered>,
}

#[derive(Debug, Default)]
struct Remembered {
    identities: HashMap<ConnectionId, Arc<Identity>>,
    bytes: usize,
    /// In the order they came; ids of closed ones are passed over.
    order: VecDeque<ConnectionId>,
}

impl Remembered {
    fn insert(&mut self, id: ConnectionId, identity: Arc<Identity>) {
        self.bytes += identity.bytes();
        match self.identities.insert(id, identity) {
            Some(before) => self.bytes -= before.bytes(),
            None => self.order.push_back(id),
        }
        while self.order.len() > REMEMBERED_MAX || self.bytes > REMEMBERED_BYTES_MAX {
            let Some(oldest) = self.order.pop_front() else { return };
            self.remove(oldest);
        }
    }

    fn remove(&mut self, id: ConnectionId) -> Option<Arc<Identity>> {
        let identity = self.identities.remove(&id)?;
        self.bytes -= identity.bytes();
        Some(identity)
    }
}

impl Known {
    /// Remembers nothing yet, and asks by `client`.
    pub fn new(client: Client) -> Self {
        Self { client, remembered: Mutex::default() }
    }

    pub(crate) fn remember(&self, id: ConnectionId, identity: impl Into<Arc<Identity>>) {
        self.remembered.lock().insert(id, identity.into());
    }

    pub(crate) fn forget(&self, id: ConnectionId) {
        self.remembered.lock().remove(id);
    }

    /// Of a connection, open or closed, by one of its events. Nothing is known of one whose end retention has taken, nor without the right to
    /// ask: the function is called all the same. With an assignment, what was kept under another one is asked for again.
    pub(crate) async fn identity(
        &self,
        id: ConnectionId,
        event: Offset,
        assignment: Option<Assignment>,
    ) -> Result<Arc<Identity>, ClientError> {
        let remembered = self.remembered.lock().identities.get(&id).cloned();
        let known = match remembered {
            Some(identity) if assignment.is_none() || identity.assignment == assignment => return Ok(identity),
            Some(identity) => identity,
            None => match Self::asked(id, self.client.opening(id, event).await)? {
                Some(opening) => Arc::new(Identity::new(&opening.opened.unwrap_or_default(), opening.time)),
                None if assignment.is_none() => return Ok(Arc::default()),
                None => Arc::default(),
            },
        };
        let identity = match assignment {
            None => known,
            Some(_) => Arc::new(self.with_kept(id, &known, assignment).await?),
        };
        self.remember(id, identity.clone());
        Ok(identity)
    }

    /// With what is kept now. A connection that is closed has a user still, and no state any more.
    async fn with_kept(
        &self,
        id: ConnectionId,
        known: &Identity,
        assignment: Option<Assignment>,
    ) -> Result<Identity, ClientError> {
        let known = known.clone();
        Ok(match Self::asked(id, self.client.connection(id).await)? {
            Some(connection) => {
                let kept = Kept::of(&connection.attributes);
                Identity { subprotocol: connection.subprotocol, kept, assignment, ..known }
            }
            None => Identity { kept: known.kept.clone().stateless(), assignment, ..known },
        })
    }

    /// What brokers tell, if they know and may tell it.
    fn asked<T>(id: ConnectionId, answer: Result<T, ClientError>) -> Result<Option<T>, ClientError> {
        match answer {
            Ok(told) => Ok(Some(told)),
            Err(error) if error.is_gone() => Ok(None),
            Err(error) if error.retry() == Retry::No => {
                tracing::warn!(connection = %id, %error, "who a connection is cannot be asked");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Until a connection is open; `false` if it will not be, or not soon.
    pub(crate) async fn until_open(&self, id: ConnectionId) -> bool {
        for wait in OPEN_ASKED_MS {
            match self.client.connection(id).await {
                Ok(connection) if connection.phase == v1::ConnectionPhase::Open as i32 => return true,
                Ok(connection) if connection.phase != v1::ConnectionPhase::Pending as i32 => return false,
                Err(error) if error.is_gone() => return false,
                Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(wait)).await,
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_the_oldest_go_first() {
        let mut remembered = Remembered::default();
        let id = |n: usize| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&n.to_be_bytes());
            ConnectionId(bytes)
        };
        for n in 0..REMEMBERED_MAX + 10 {
            remembered.insert(id(n), Arc::default());
            remembered.insert(id(n), Arc::default());
        }
        assert_eq!((remembered.identities.len(), remembered.order.len()), (REMEMBERED_MAX, REMEMBERED_MAX));
        assert!(!remembered.identities.contains_key(&id(9)) && remembered.identities.contains_key(&id(10)));
        assert_eq!(remembered.bytes, REMEMBERED_MAX * IDENTITY_BYTES);
        let long = [("connectionState".to_owned(), "x".repeat(REMEMBERED_BYTES_MAX / 2))];
        let long = Identity { kept: Kept::of(&long.into()), ..Identity::default() };
        remembered.insert(id(1), Arc::new(long));
        assert!(remembered.bytes <= REMEMBERED_BYTES_MAX && remembered.identities.contains_key(&id(1)));
        assert!(!remembered.identities.contains_key(&id(10)));
        for n in 0..REMEMBERED_MAX + 10 {
            remembered.remove(id(n));
        }
        assert_eq!((remembered.identities.len(), remembered.bytes), (0, 0));
    }

    #[test]
    fn addresses_lose_their_port() {
        for (peer, expected) in [("10.0.2.14:1234", "10.0.2.14"), ("[::1]:80", "::1"), ("", "")] {
            assert_eq!(address(peer), expected);
        }
    }
}
