//! Edges: which incarnation is current, the last batch applied, and the connections each incarnation has open. An incarnation
//! that is lost or replaced is fenced at once; the connections it leaves behind are an obligation of whoever leads.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use trunkline_proto::{ConnectionId, Offset, limits, v1};

use super::{
    effects::{EdgeIndex, Refusal, Reply},
    snapshot::{Reader, SnapshotError, Writer},
};
use crate::controls;

/// Most edge names a partition remembers.
pub(super) const EDGES_MAX: usize = 65_536;
/// Longest nonce of an edge process, in bytes.
const NONCE_BYTES_MAX: usize = 64;

/// One edge.
#[derive(Clone, Debug)]
pub(super) struct Edge {
    pub name: Arc<str>,
    /// 0: never attached here, known by a forwarded join only.
    pub incarnation: u64,
    /// Last applied batch of the current incarnation.
    pub last_sequence: u64,
    /// The current incarnation is fenced.
    pub lost: bool,
    /// Where the current incarnation attached.
    pub attached: Offset,
    /// Of the process that asked for the current incarnation (partition 0 only).
    nonce: Box<[u8]>,
    /// Open connections by incarnation; only the current one may be empty.
    connections: BTreeMap<u64, BTreeSet<ConnectionId>>,
}

impl Edge {
    fn is_fenced(&self, incarnation: u64) -> bool {
        self.lost || incarnation != self.incarnation
    }

    fn attached(&self) -> Reply {
        Reply::Attached { incarnation: self.incarnation, last_sequence: self.last_sequence }
    }

    fn fenced(&self) -> Reply {
        Reply::Fenced { current: self.incarnation }
    }

    fn replace(&mut self, incarnation: u64, nonce: &[u8], offset: Offset) {
        self.incarnation = incarnation;
        self.last_sequence = 0;
        self.lost = false;
        self.attached = offset;
        self.nonce = nonce.into();
    }

    /// How many connections are open, of any incarnation.
    pub(super) fn connection_count(&self) -> usize {
        self.connections.values().map(BTreeSet::len).sum()
    }

    /// All its open connections with their incarnation.
    pub(super) fn connections(&self) -> impl Iterator<Item = (u64, ConnectionId)> {
        self.connections.iter().flat_map(|(incarnation, ids)| ids.iter().map(|id| (*incarnation, *id)))
    }
}

/// The edges this partition has ever seen.
#[derive(Clone, Default, Debug)]
pub(super) struct Edges {
    indexes: BTreeMap<Arc<str>, EdgeIndex>,
    edges: Vec<Edge>,
}

impl Edges {
    pub(super) fn len(&self) -> usize {
        self.edges.len()
    }

    pub(super) fn index(&self, name: &str) -> Option<EdgeIndex> {
        self.indexes.get(name).copied()
    }

    pub(super) fn get(&self, index: EdgeIndex) -> Option<&Edge> {
        self.edges.get(index.0 as usize)
    }

    fn get_mut(&mut self, index: EdgeIndex) -> Option<&mut Edge> {
        self.edges.get_mut(index.0 as usize)
    }

    pub(super) fn name(&self, index: EdgeIndex) -> &str {
        self.get(index).map_or("", |edge| &edge.name)
    }

    /// In the order of their indexes.
    pub(super) fn iter(&self) -> impl Iterator<Item = (EdgeIndex, &Edge)> {
        self.edges.iter().enumerate().map(|(index, edge)| (EdgeIndex(index as u32), edge))
    }

    /// The index of `name`, a new one if need be.
    pub(super) fn intern(&mut self, name: &str) -> Result<EdgeIndex, Refusal> {
        if let Some(index) = self.index(name) {
            return Ok(index);
        }
        if self.edges.len() >= EDGES_MAX {
            return Err(Refusal::Limit);
        }
        let (index, name) = (EdgeIndex(self.edges.len() as u32), Arc::<str>::from(name));
        self.indexes.insert(name.clone(), index);
        self.edges.push(Edge {
            name,
            incarnation: 0,
            last_sequence: 0,
            lost: false,
            attached: Offset::ZERO,
            nonce: Box::default(),
            connections: BTreeMap::new(),
        });
        Ok(index)
    }

    /// Takes a batch's sequence number, or says why not.
    pub(super) fn admit(&mut self, source: &v1::EdgeSource) -> Result<EdgeIndex, (Refusal, Reply)> {
        let Some(index) = self.index(&source.edge) else { return Err((Refusal::Fenced, Reply::Fenced { current: 0 })) };
        let Some(edge) = self.get_mut(index) else { return Err((Refusal::Fenced, Reply::Fenced { current: 0 })) };
        if edge.is_fenced(source.incarnation) && !controls::NO_FENCING.is_on() || source.incarnation == 0 {
            return Err((Refusal::Fenced, edge.fenced()));
        }
        if edge.last_sequence.checked_add(1) != Some(source.sequence) {
            return Err((Refusal::OutOfSequence, Reply::Edge { last_sequence: edge.last_sequence }));
        }
        edge.last_sequence = source.sequence;
        Ok(index)
    }

    /// An edge asks for an incarnation (0, where `grants`) or brings the one it was granted.
    pub(super) fn attach(
        &mut self,
        body: &v1::EdgeAttached,
        grants: bool,
        offset: Offset,
    ) -> (Reply, Result<(), Refusal>) {
        if !limits::is_name(&body.edge) || body.nonce.len() > NONCE_BYTES_MAX || (body.incarnation == 0 && !grants) {
            return (Reply::None, Err(Refusal::Malformed));
        }
        let known = self.index(&body.edge).and_then(|index| self.get(index));
        let current = known.map_or(0, |edge| edge.incarnation);
        // what partition 0 has not granted does not exist
        if body.incarnation < current && body.incarnation != 0 || grants && body.incarnation > current {
            return (Reply::Fenced { current }, Err(Refusal::Fenced));
        }
        if body.incarnation == current
            && let Some(edge) = known
            && current != 0
        {
            return if edge.lost { (edge.fenced(), Err(Refusal::Fenced)) } else { (edge.attached(), Ok(())) };
        }
        let index = match self.intern(&body.edge) {
            Ok(index) => index,
            Err(refusal) => return (Reply::None, Err(refusal)),
        };
        let Some(edge) = self.get_mut(index) else { return (Reply::None, Err(Refusal::Limit)) };
        if body.incarnation != 0 {
            edge.replace(body.incarnation, &body.nonce, offset);
        } else if edge.incarnation == 0 || edge.lost || *edge.nonce != body.nonce[..] {
            match edge.incarnation.checked_add(1) {
                Some(next) => edge.replace(next, &body.nonce, offset),
                None => return (edge.fenced(), Err(Refusal::Limit)),
            }
        }
        (edge.attached(), Ok(()))
    }

    /// Fences the current incarnation.
    pub(super) fn lose(&mut self, body: &v1::EdgeLost) -> Result<(), Refusal> {
        let edge = self.index(&body.edge).and_then(|index| self.get_mut(index)).ok_or(Refusal::Fenced)?;
        if body.incarnation == 0 || edge.is_fenced(body.incarnation) {
            return Err(Refusal::Fenced);
        }
        edge.lost = true;
        Ok(())
    }

    /// Whether connections of that incarnation wait for the leader to close them.
    pub(super) fn is_fenced(&self, index: EdgeIndex, incarnation: u64) -> bool {
        self.get(index).is_none_or(|edge| edge.is_fenced(incarnation))
    }

    pub(super) fn opened(&mut self, index: EdgeIndex, incarnation: u64, id: ConnectionId) {
        if let Some(edge) = self.get_mut(index) {
            edge.connections.entry(incarnation).or_default().insert(id);
        }
    }

    pub(super) fn closed(&mut self, index: EdgeIndex, incarnation: u64, id: &ConnectionId) {
        let Some(edge) = self.get_mut(index) else { return };
        if let Some(ids) = edge.connections.get_mut(&incarnation) {
            ids.remove(id);
            if ids.is_empty() {
                edge.connections.remove(&incarnation);
            }
        }
    }

    /// As [`Edges::opened`], for a decoded snapshot: false if there is no such edge.
    pub(super) fn restore(&mut self, index: EdgeIndex, incarnation: u64, id: ConnectionId) -> bool {
        self.opened(index, incarnation, id);
        self.get(index).is_some()
    }

    /// Connections of lost and replaced incarnations, by edge, incarnation and id.
    pub(super) fn obligations(&self) -> impl Iterator<Item = ConnectionId> {
        self.edges.iter().flat_map(|edge| {
            let fenced = edge.connections.iter().filter(|(incarnation, _)| edge.is_fenced(**incarnation));
            fenced.flat_map(|(_, ids)| ids.iter().copied())
        })
    }

    pub(super) fn encode(&self, out: &mut Writer) {
        out.length(self.edges.len());
        for edge in &self.edges {
            out.text(&edge.name);
            out.u64(edge.incarnation);
            out.u64(edge.last_sequence);
            out.u8(u8::from(edge.lost));
            out.u64(edge.attached.0);
            out.bytes(&edge.nonce);
        }
    }

    /// Without the connections, which tell their edges themselves ([`Edges::restore`]).
    pub(super) fn decode(input: &mut Reader<'_>) -> Result<Self, SnapshotError> {
        let mut edges = Self::default();
        for n in 0..input.length()? {
            let index = edges.intern(input.text()?).map_err(|_| SnapshotError::Invalid("edges"))?;
            let edge = edges.get_mut(index).filter(|_| index.0 as usize == n);
            let edge = edge.ok_or(SnapshotError::Invalid("edges"))?;
            edge.incarnation = input.u64()?;
            edge.last_sequence = input.u64()?;
            edge.lost = input.u8()? != 0;
            edge.attached = input.offset()?;
            edge.nonce = input.bytes()?.into();
        }
        Ok(edges)
    }
}
