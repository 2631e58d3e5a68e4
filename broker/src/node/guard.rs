//! Stops what the store can no longer be trusted with: one damaged partition, or all of them once a write has failed.

use std::collections::BTreeSet;

use tokio::task::JoinSet;

use super::members::successor;
use crate::{
    raft::{Group, Peers},
    store::Health,
};

/// Runs until dropped.
pub(super) async fn run(health: Health, peers: Peers, groups: Vec<Group>) {
    let mut failures = health.subscribe();
    let mut given_up = BTreeSet::new();
    loop {
        let found = failures.borrow_and_update().clone();
        let mut leaving = JoinSet::new();
        for group in &groups {
            if found.of(group.partition()).is_some() && given_up.insert(group.partition()) {
                let (group, peers) = (group.clone(), peers.clone());
                leaving.spawn(async move { group.give_up(successor(&group, &peers), &peers).await });
            }
        }
        // each is bounded
        leaving.join_all().await;
        if failures.changed().await.is_err() {
            return;
        }
    }
}
