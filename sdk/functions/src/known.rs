//! What is known of open connections besides their ids: the events of some dialects tell more of a connection than a message's
//! record does. A bounded memory of what this process has seen opened; what it has not seen is asked for.

use std::{
    collections::{HashMap, VecDeque},
    sync::OnceLock,
    time::Duration,
};

use parking_lot::Mutex;
use trunkline_proto::{ConnectionId, Offset, PartitionCount, RecordKind, v1};
use trunkline_sdk::{Assignment, Client, ClientError};

use crate::kept::Kept;

/// Most connections remembered, about 200 bytes each and what is kept with them. With more the oldest are asked for again.
const REMEMBERED_MAX: usize = 100_000;
/// Most bytes of what is kept with them: a function may keep 4 KiB with each.
const KEPT_BYTES_MAX: usize = 64 << 20;

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
            subprotocol: opened.subprotocol.clone(),
            kept: Kept::of(&opened.attributes),
            assignment: None,
        }
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
    /// Fixed with the cluster.
    partitions: OnceLock<PartitionCount>,
    remembered: Mutex<Remembered>,
}

#[derive(Debug, Default)]
struct Remembered {
    identities: HashMap<ConnectionId, Identity>,
    /// In the order they came; ids of closed ones are passed over.
    order: VecDeque<ConnectionId>,
    /// What is kept with all of them.
    kept_bytes: usize,
}

impl Remembered {
    fn insert(&mut self, id: ConnectionId, identity: Identity) {
        self.kept_bytes += identity.kept.bytes();
        match self.identities.insert(id, identity) {
            Some(before) => self.kept_bytes -= before.kept.bytes(),
            None => self.order.push_back(id),
        }
        while self.order.len() > REMEMBERED_MAX || self.kept_bytes > KEPT_BYTES_MAX {
            let Some(oldest) = self.order.pop_front() else { return };
            self.remove(&oldest);
        }
    }

    fn remove(&mut self, id: &ConnectionId) -> Option<Identity> {
        let identity = self.identities.remove(id)?;
        self.kept_bytes -= identity.kept.bytes();
        Some(identity)
    }
}

impl Known {
    /// Remembers nothing yet, and asks by `client`.
    pub fn new(client: Client) -> Self {
        Self { client, partitions: OnceLock::new(), remembered: Mutex::default() }
    }

    pub(crate) fn remember(&self, id: ConnectionId, identity: Identity) {
        self.remembered.lock().insert(id, identity);
    }

    pub(crate) fn forget(&self, id: ConnectionId) -> Option<Identity> {
        self.remembered.lock().remove(&id)
    }

    /// Of an open connection; nothing is known of one that is gone. With an assignment, what was kept under another one is asked for
    /// again.
    pub(crate) async fn identity(
        &self,
        id: ConnectionId,
        assignment: Option<Assignment>,
    ) -> Result<Option<Identity>, ClientError> {
        let remembered = self.remembered.lock().identities.get(&id).cloned();
        if let Some(identity) = &remembered
            && (assignment.is_none() || identity.assignment == assignment)
        {
            return Ok(remembered);
        }
        let connection = match self.client.connection(id).await {
            Ok(connection) => connection,
            Err(error) if error.is_gone() => return Ok(remembered),
            Err(error) => return Err(error),
        };
        let known = match remembered {
            Some(identity) => identity,
            None => match self.opened(id, connection.opened_offset).await? {
                Some(opened) => Identity::new(&opened, connection.opened_at),
                // retention has taken the record
                None => Identity {
                    opened_at: connection.opened_at,
                    address: address(&connection.peer).to_owned(),
                    principal: connection.principal,
                    ..Identity::default()
                },
            },
        };
        let kept = Kept::of(&connection.attributes);
        let identity = Identity { subprotocol: connection.subprotocol, kept, assignment, ..known };
        self.remember(id, identity.clone());
        Ok(Some(identity))
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

    async fn opened(&self, id: ConnectionId, offset: u64) -> Result<Option<v1::ConnectionOpened>, ClientError> {
        let count = match self.partitions.get() {
            Some(count) => *count,
            None => {
                let cluster = self.client.describe().await?;
                let count = u16::try_from(cluster.partition_count).ok().and_then(PartitionCount::new);
                let Some(count) = count else { return Ok(None) };
                *self.partitions.get_or_init(|| count)
            }
        };
        let request = v1::ReadRequest {
            partition: u32::from(id.partition(count).0),
            from: Some(v1::Start { at: Some(v1::start::At::Offset(offset)) }),
            limit: 1,
            until: Offset(offset).0,
            ..Default::default()
        };
        let mut pages = match self.client.read(request).await {
            Ok(pages) => pages,
            Err(error) if !matches!(error.retry(), trunkline_sdk::Retry::No) => return Err(error),
            Err(_) => return Ok(None),
        };
        while let Some(page) = pages.next().await? {
            let opened = page
                .records
                .into_iter()
                .find(|record| record.offset == offset && record.kind == u32::from(RecordKind::ConnectionOpened as u8));
            if let Some(record) = opened {
                return Ok(prost::Message::decode(record.body).ok());
            }
        }
        Ok(None)
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
            remembered.insert(id(n), Identity::default());
            remembered.insert(id(n), Identity::default());
        }
        assert_eq!((remembered.identities.len(), remembered.order.len()), (REMEMBERED_MAX, REMEMBERED_MAX));
        assert!(!remembered.identities.contains_key(&id(9)) && remembered.identities.contains_key(&id(10)));
    }

    #[test]
    fn what_is_kept_with_them_is_bounded_too() {
        let mut remembered = Remembered::default();
        let keeping = |bytes: usize| Identity {
            kept: Kept::of(&[("connectionState".to_owned(), "x".repeat(bytes))].into()),
            ..Identity::default()
        };
        let id = |n: u8| ConnectionId([n; 16]);
        for n in 0..5 {
            remembered.insert(id(n), keeping(KEPT_BYTES_MAX / 4));
        }
        let is_there = |remembered: &Remembered| [0, 1, 4].map(|n| remembered.identities.contains_key(&id(n)));
        assert_eq!((is_there(&remembered), remembered.kept_bytes), ([false, true, true], KEPT_BYTES_MAX));
        // one in place of itself, and one that goes, give back what they had
        remembered.insert(id(1), keeping(1));
        remembered.remove(&id(2));
        assert_eq!((is_there(&remembered), remembered.kept_bytes), ([false, true, true], KEPT_BYTES_MAX / 2 + 1));
    }

    #[test]
    fn addresses_lose_their_port() {
        for (peer, expected) in [("10.0.2.14:1234", "10.0.2.14"), ("[::1]:80", "::1"), ("", "")] {
            assert_eq!(address(peer), expected);
        }
    }
}
