//! Who is connected, now or at a moment of the past.

use trunkline_proto::{ConnectionId, Offset, PartitionId, v1};

use crate::{
    core::{ConnectionView, Partition},
    node::{Moment, Node, PartitionHandle, ReadError},
};

/// Page size of a list that asks for none.
pub const LIMIT_DEFAULT: usize = 100;
/// Largest page of a list.
pub const LIMIT_MAX: usize = 1000;
/// Connections looked at before the state's lock is let go: apply needs it.
const LOCKED_MAX: usize = 2048;
/// Connections, or members of a channel, in one message of `StateAt`.
const CHUNK: usize = 512;

/// A connection as users see it.
pub fn to_proto(view: &ConnectionView<'_>) -> v1::Connection {
    v1::Connection {
        connection: bytes::Bytes::copy_from_slice(&view.id.0),
        api: view.api.to_owned(),
        edge: view.edge.to_owned(),
        opened_at: view.opened_at.0,
        subprotocol: view.subprotocol.to_owned(),
        attributes: view.attributes.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        channels: view.channels.iter().map(|channel| channel.to_string()).collect(),
        opened_offset: view.opened.0,
        phase: view.phase.to_proto().into(),
        peer: view.peer.to_owned(),
        principal: view.principal.to_owned(),
        last_active_at: view.last_active.0,
    }
}

/// The connection, unless it is closed.
pub fn get(node: &Node, id: &ConnectionId) -> Option<v1::Connection> {
    let partition = node.partition(id.partition(node.partition_count()))?;
    partition.state.read().connection(id).as_ref().map(to_proto)
}

/// What a list asks for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Query {
    /// Of this API; empty: all.
    pub api: String,
    /// In this channel; empty: all.
    pub channel: String,
    /// Page size; 0: [`LIMIT_DEFAULT`], at most [`LIMIT_MAX`].
    pub limit: usize,
    /// Last connection of the page before.
    pub after: Option<ConnectionId>,
}

/// A page of open connections by id, and whether there are more.
pub fn list(node: &Node, query: &Query) -> (Vec<v1::Connection>, bool) {
    let limit = match query.limit {
        0 => LIMIT_DEFAULT,
        limit => limit.min(LIMIT_MAX),
    };
    let mut found =
        if query.channel.is_empty() { all(node, query, limit + 1) } else { members(node, query, limit + 1) };
    let more = found.len() > limit;
    found.truncate(limit);
    (found, more)
}

fn all(node: &Node, query: &Query, most: usize) -> Vec<v1::Connection> {
    let mut found = Vec::new();
    for id in node.partition_count().iter() {
        if let Some(partition) = node.partition(id) {
            found.extend(of_partition(partition, query, most));
        }
    }
    found.sort_unstable_by(|one, other| one.connection.cmp(&other.connection));
    found.truncate(most);
    found
}

fn of_partition(partition: &PartitionHandle, query: &Query, most: usize) -> Vec<v1::Connection> {
    let (mut found, mut after) = (Vec::new(), query.after);
    loop {
        let state = partition.state.read();
        let mut looked_at = 0;
        for view in state.connections_after(after).take(LOCKED_MAX) {
            looked_at += 1;
            after = Some(view.id);
            if query.api.is_empty() || view.api == query.api {
                found.push(to_proto(&view));
            }
            if found.len() == most {
                return found;
            }
        }
        if looked_at < LOCKED_MAX {
            return found;
        }
    }
}

fn members(node: &Node, query: &Query, most: usize) -> Vec<v1::Connection> {
    let Some(owner) = node.partition(node.partition_count().of_name(&query.channel)) else { return Vec::new() };
    let mut ids: Vec<ConnectionId> = {
        let state = owner.state.read();
        state.channel_members(&query.channel).filter(|id| query.after.is_none_or(|after| *id > after)).collect()
    };
    ids.sort_unstable();
    // a member may have closed meanwhile: its own partition knows
    let found = ids.iter().filter_map(|id| get(node, id));
    found.filter(|connection| query.api.is_empty() || connection.api == query.api).take(most).collect()
}

/// Connections and channels of a partition at a moment, in messages of bounded size. Blocking work happens on the blocking pool.
pub async fn state_at(
    node: &Node,
    partition: PartitionId,
    moment: Moment,
) -> Result<impl Iterator<Item = v1::StateAtResponse> + Send + use<>, ReadError> {
    let (state, through) = node.state_at(partition, moment).await?;
    let digested = tokio::task::spawn_blocking(move || (state.state_digest(), state)).await;
    let (digest, state) = digested.map_err(|error| ReadError::Store(error.to_string()))?;
    Ok(chunks(state, through, digest))
}

fn chunks(state: Partition, through: Offset, digest: u64) -> impl Iterator<Item = v1::StateAtResponse> + Send {
    let names: Vec<String> = state.channels().map(str::to_owned).collect();
    let (mut after, mut names, mut connections_left) = (None, names.into_iter(), true);
    let mut first = true;
    let mut members: Option<(String, std::vec::IntoIter<ConnectionId>)> = None;
    std::iter::from_fn(move || {
        let mut response = v1::StateAtResponse { through: through.0, digest, ..Default::default() };
        if connections_left {
            for view in state.connections_after(after).take(CHUNK) {
                after = Some(view.id);
                response.connections.push(to_proto(&view));
            }
            connections_left = response.connections.len() == CHUNK;
        }
        if response.connections.is_empty() {
            let mut room = CHUNK;
            while room > 0 {
                let (name, ids) = match &mut members {
                    Some(current) => current,
                    None => {
                        let Some(name) = names.next() else { break };
                        let ids: Vec<_> = state.channel_members(&name).collect();
                        members.insert((name, ids.into_iter()))
                    }
                };
                let some: Vec<_> = ids.by_ref().take(room).map(|id| bytes::Bytes::copy_from_slice(&id.0)).collect();
                room -= some.len().max(1).min(room);
                if !some.is_empty() {
                    response.channels.push(v1::Channel { channel: name.clone(), connections: some });
                }
                if ids.len() == 0 {
                    members = None;
                }
            }
        }
        // an empty partition still says where it stands
        let something = !response.connections.is_empty() || !response.channels.is_empty() || first;
        first = false;
        something.then_some(response)
    })
}
