//! Open connections: what every broker holds in memory for each, at most 250 B without attributes. What few
//! connections have is boxed away; names that repeat are numbers or shared.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU16,
    ops::Bound,
    sync::Arc,
};

use trunkline_proto::{ConnectionId, Offset, Timestamp, limits, v1};

use super::{
    effects::{EdgeIndex, Refusal},
    snapshot::{Reader, SnapshotError, Writer},
};

/// How far a connection has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Waits for its handler group's decision.
    Pending,
    /// Takes commands.
    Open,
    /// Rejected, or a close was requested: takes no more commands; its events are still taken.
    Closing,
}

impl Phase {
    /// As tools show it.
    pub fn to_proto(self) -> v1::ConnectionPhase {
        match self {
            Self::Pending => v1::ConnectionPhase::Pending,
            Self::Open => v1::ConnectionPhase::Open,
            Self::Closing => v1::ConnectionPhase::Closing,
        }
    }
}

/// A key and its value.
pub type Attribute = (Box<str>, Box<str>);

/// One open connection.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub opened_at: Timestamp,
    pub opened: Offset,
    pub incarnation: u64,
    pub peer: Box<str>,
    rare: Option<Box<Rare>>,
    pub edge: EdgeIndex,
    pub api: u16,
    /// The number of the handler group that decides (or decided) its registration, + 1.
    pub registrar: Option<NonZeroU16>,
    pub phase: Phase,
    /// Of its last message, seconds after `opened_at`: fits where the others leave room.
    active_seconds: u32,
}

/// Bytes of a connection's entry in the map: key and value.
#[cfg(test)]
pub(super) const CONNECTION_BYTES: usize = size_of::<(ConnectionId, Connection)>();
const _: () = assert!(size_of::<(ConnectionId, Connection)>() <= 80);

/// What few connections have.
#[derive(Clone, Default, Debug)]
struct Rare {
    subprotocol: Box<str>,
    principal: Box<str>,
    /// Ascending by key.
    attributes: Vec<Attribute>,
    /// Ascending.
    channels: Vec<Arc<str>>,
}

impl Connection {
    pub(super) fn new(opened_at: Timestamp, opened: Offset, edge: EdgeIndex, incarnation: u64, api: u16) -> Self {
        Self {
            opened_at,
            opened,
            incarnation,
            peer: Box::default(),
            rare: None,
            edge,
            api,
            registrar: None,
            phase: Phase::Open,
            active_seconds: 0,
        }
    }

    /// A message of it came at `now`.
    pub(super) fn active(&mut self, now: Timestamp) {
        let seconds = now.0.saturating_sub(self.opened_at.0) / 1_000_000;
        self.active_seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
    }

    /// When its last message came, to the second; when it opened, before the first.
    pub(super) fn last_active(&self) -> Timestamp {
        Timestamp(self.opened_at.0.saturating_add(u64::from(self.active_seconds) * 1_000_000))
    }

    /// What the state knows of how it came to be, its API's name aside.
    pub(super) fn opening(&self) -> v1::Opening {
        let opened = v1::ConnectionOpened {
            peer: self.peer.to_string(),
            principal: self.principal().to_owned(),
            subprotocol: self.subprotocol().to_owned(),
            attributes: self.attributes().iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            ..Default::default()
        };
        v1::Opening {
            offset: self.opened.0,
            time: self.opened_at.0,
            opened: Some(opened),
            trimmed: true,
            ..Default::default()
        }
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    pub(super) fn set_subprotocol(&mut self, subprotocol: &str) {
        if subprotocol != self.subprotocol() {
            self.rare().subprotocol = subprotocol.into();
        }
    }

    pub(super) fn set_principal(&mut self, principal: &str) {
        if !principal.is_empty() {
            self.rare().principal = principal.into();
        }
    }

    pub(super) fn subprotocol(&self) -> &str {
        self.rare.as_ref().map_or("", |rare| &rare.subprotocol)
    }

    pub(super) fn principal(&self) -> &str {
        self.rare.as_ref().map_or("", |rare| &rare.principal)
    }

    pub(super) fn attributes(&self) -> &[Attribute] {
        self.rare.as_ref().map_or(&[], |rare| &rare.attributes)
    }

    pub(super) fn channels(&self) -> &[Arc<str>] {
        self.rare.as_ref().map_or(&[], |rare| &rare.channels)
    }

    pub(super) fn is_in(&self, channel: &str) -> bool {
        self.channels().binary_search_by(|name| (**name).cmp(channel)).is_ok()
    }

    /// The attributes after this change, or why it cannot be.
    pub(super) fn changed_attributes(
        &self,
        set: &BTreeMap<String, String>,
        removed: &[String],
    ) -> Result<Vec<Attribute>, Refusal> {
        let mut attributes: BTreeMap<&str, &str> =
            self.attributes().iter().map(|(key, value)| (&**key, &**value)).collect();
        for key in removed {
            attributes.remove(key.as_str());
        }
        attributes.extend(set.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        let bytes: usize = attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > limits::ATTRIBUTES_BYTES_MAX {
            return Err(Refusal::Limit);
        }
        Ok(attributes.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }

    pub(super) fn set_attributes(&mut self, attributes: Vec<Attribute>) {
        if !attributes.is_empty() || self.rare.is_some() {
            self.rare().attributes = attributes;
        }
    }
}

/// The open connections by id.
#[derive(Clone, Default, Debug)]
pub(super) struct Connections {
    connections: BTreeMap<ConnectionId, Connection>,
    /// Every channel some connection here is in, and how many are: one name in memory for all of them.
    channel_names: BTreeMap<Arc<str>, u32>,
}

impl Connections {
    pub(super) fn len(&self) -> usize {
        self.connections.len()
    }

    pub(super) fn contains(&self, id: &ConnectionId) -> bool {
        self.connections.contains_key(id)
    }

    pub(super) fn get(&self, id: &ConnectionId) -> Option<&Connection> {
        self.connections.get(id)
    }

    pub(super) fn get_mut(&mut self, id: &ConnectionId) -> Option<&mut Connection> {
        self.connections.get_mut(id)
    }

    /// By id, those after `after`.
    pub(super) fn after(&self, after: Option<ConnectionId>) -> impl Iterator<Item = (&ConnectionId, &Connection)> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.connections.range((start, Bound::Unbounded))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&ConnectionId, &Connection)> {
        self.connections.iter()
    }

    pub(super) fn insert(&mut self, id: ConnectionId, connection: Connection) {
        self.connections.insert(id, connection);
    }

    pub(super) fn remove(&mut self, id: &ConnectionId) -> Option<Connection> {
        let connection = self.connections.remove(id)?;
        for channel in connection.channels() {
            release(&mut self.channel_names, channel);
        }
        Some(connection)
    }

    /// Puts the channel on the connection's list; `None` if it is there already (or there is no such connection).
    pub(super) fn join(&mut self, id: &ConnectionId, channel: &str) -> Option<Arc<str>> {
        let connection = self.connections.get_mut(id)?;
        let at = connection.channels().binary_search_by(|name| (**name).cmp(channel)).err()?;
        let name = share(&mut self.channel_names, channel);
        let channels = &mut connection.rare().channels;
        // most connections are in one or two channels: no room for four
        channels.reserve_exact(1);
        channels.insert(at, name.clone());
        Some(name)
    }

    /// Takes the channel off the connection's list; false if it was not there.
    pub(super) fn leave(&mut self, id: &ConnectionId, channel: &str) -> bool {
        let Some(connection) = self.connections.get_mut(id) else { return false };
        let Ok(at) = connection.channels().binary_search_by(|name| (**name).cmp(channel)) else { return false };
        connection.rare().channels.remove(at);
        release(&mut self.channel_names, channel);
        true
    }

    /// Whether the shared names are exactly those in use; for `check()`.
    pub(super) fn names_are_exact(&self) -> bool {
        let mut used: BTreeMap<&str, u32> = BTreeMap::new();
        for channel in self.connections.values().flat_map(Connection::channels) {
            *used.entry(channel).or_default() += 1;
        }
        used.into_iter().eq(self.channel_names.iter().map(|(name, count)| (&**name, *count)))
    }

    pub(super) fn encode(&self, out: &mut Writer) {
        out.length(self.connections.len());
        for (id, connection) in &self.connections {
            out.connection(id);
            encode_connection(connection, out);
        }
    }

    /// `version`: of the snapshot.
    pub(super) fn decode(input: &mut Reader<'_>, version: u16) -> Result<Self, SnapshotError> {
        let mut names = BTreeMap::new();
        // ascending by id, so the map is built in one pass and densely
        let connections = (0..input.length()?)
            .map(|_| Ok((input.connection()?, decode_connection(input, version, &mut names)?)))
            .collect::<Result<_, SnapshotError>>()?;
        Ok(Self { connections, channel_names: names })
    }
}

fn share(names: &mut BTreeMap<Arc<str>, u32>, channel: &str) -> Arc<str> {
    let known = names.get_key_value(channel).map(|(name, _)| name.clone());
    let name = known.unwrap_or_else(|| channel.into());
    *names.entry(name.clone()).or_default() += 1;
    name
}

fn release(names: &mut BTreeMap<Arc<str>, u32>, channel: &str) {
    if let Some(count) = names.get_mut(channel) {
        *count -= 1;
        if *count == 0 {
            names.remove(channel);
        }
    }
}

const PENDING: u8 = 1;
const OPEN: u8 = 2;
const CLOSING: u8 = 3;
/// The version of snapshots that first told when a connection was last active.
const ACTIVE_SINCE: u16 = 2;

fn encode_connection(connection: &Connection, out: &mut Writer) {
    out.u64(connection.opened_at.0);
    out.u64(connection.opened.0);
    out.u64(connection.incarnation);
    out.u32(connection.edge.0);
    out.u16(connection.api);
    out.u16(connection.registrar.map_or(0, NonZeroU16::get));
    out.u8(match connection.phase {
        Phase::Pending => PENDING,
        Phase::Open => OPEN,
        Phase::Closing => CLOSING,
    });
    out.u32(connection.active_seconds);
    out.text(&connection.peer);
    out.text(connection.subprotocol());
    out.text(connection.principal());
    out.u32(connection.attributes().len() as u32);
    for (key, value) in connection.attributes() {
        out.text(key);
        out.text(value);
    }
    out.u32(connection.channels().len() as u32);
    for channel in connection.channels() {
        out.text(channel);
    }
}

fn decode_connection(
    input: &mut Reader<'_>,
    version: u16,
    names: &mut BTreeMap<Arc<str>, u32>,
) -> Result<Connection, SnapshotError> {
    let (opened_at, opened, incarnation) = (Timestamp(input.u64()?), input.offset()?, input.u64()?);
    let (edge, api) = (EdgeIndex(input.u32()?), input.u16()?);
    let mut connection = Connection::new(opened_at, opened, edge, incarnation, api);
    connection.registrar = NonZeroU16::new(input.u16()?);
    connection.phase = match input.u8()? {
        PENDING => Phase::Pending,
        OPEN => Phase::Open,
        CLOSING => Phase::Closing,
        _ => return Err(SnapshotError::Invalid("phase")),
    };
    if version >= ACTIVE_SINCE {
        connection.active_seconds = input.u32()?;
    }
    connection.peer = input.text()?.into();
    connection.set_subprotocol(input.text()?);
    connection.set_principal(input.text()?);
    let mut attributes = Vec::new();
    for _ in 0..input.u32()? {
        attributes.push((input.text()?.into(), input.text()?.into()));
    }
    connection.set_attributes(attributes);
    let mut channels = BTreeSet::new();
    for _ in 0..input.u32()? {
        channels.insert(share(names, input.text()?));
    }
    if !channels.is_empty() {
        connection.rare().channels = channels.into_iter().collect();
    }
    Ok(connection)
}
