//! Step 9 of the walk. Replication to other brokers. A cluster of one has no peers: every peer is unreachable here, which
//! openraft takes as it takes a peer that is down.

use std::{future::Future, io};

use openraft::{
    BasicNode, RaftNetworkFactory, RaftNetworkV2,
    errors::{RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::RPCOption,
    raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse},
    type_config::alias::SnapshotOf,
};

use super::{
    transfer::SnapshotData,
    types::{Types, Vote},
};

/// Makes the connections of one partition's group to its peers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Network;

/// The connection of one group to one peer.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    id: u64,
}

impl Peer {
    fn unreachable(&self) -> Unreachable<Types> {
        let reason = format!("broker {} is not reachable: this broker has no links to peers", self.id);
        Unreachable::new(&io::Error::new(io::ErrorKind::NotConnected, reason))
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, _node: &BasicNode) -> Peer {
        Peer { id: target }
    }
}

impl RaftNetworkV2<Types> for Peer {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        _rpc: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        Err(self.unreachable().into())
    }

    async fn vote(
        &mut self,
        _rpc: VoteRequest<Types>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        Err(self.unreachable().into())
    }

    // the default grants: a peer that cannot be reached must not
    async fn pre_vote(
        &mut self,
        _rpc: VoteRequest<Types>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        Err(self.unreachable().into())
    }

    async fn full_snapshot(
        &mut self,
        _vote: Vote,
        _snapshot: SnapshotOf<Types, SnapshotData>,
        _cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        Err(self.unreachable().into())
    }
}
