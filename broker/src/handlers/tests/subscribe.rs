//! What a member is given, and what its commits come to.

use std::{collections::BTreeSet, time::Duration};

use trunkline_proto::{Offset, PartitionId, RecordKind, v1, v1::subscribe_request::Request as Asked};

use super::broker::{Broker, PATIENCE, ack, code, codes, connection, join, push, refuse};
use crate::handlers::member::SessionEnd;

const P0: PartitionId = PartitionId(0);

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = tokio::time::Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "{what} within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn lag(broker: &Broker, group: &str) -> u64 {
    broker.node.partition(P0).unwrap().state.read().group_lag(group)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn events_come_in_order_and_a_commit_settles_them_with_its_commands() {
    let broker = Broker::start(1).await;
    let id = connection(0, 1);
    broker.opened(id, "chat", "").await;
    let mut member = broker.join(join("chat", "a"));
    member.assigned(1).await;
    for n in 0..10 {
        broker.message(id, "chat", &n.to_string()).await;
    }
    let events = member.events(11).await;
    assert!(events.iter().is_sorted_by_key(|event| event.offset));
    assert!(events.iter().all(|event| event.attempt == 1 && event.api == "chat" && event.connection[..] == id.0));
    let outcomes: Vec<_> = events.iter().map(|event| ack(event.offset)).collect();
    let gone = connection(0, 9);
    let result = member.commit(0, outcomes, vec![push(id, "one"), push(gone, "two"), push(id, "three")]).await;
    assert_eq!(code(&result), v1::Code::Applied);
    assert_eq!(codes(&result.commands), [v1::Code::Applied, v1::Code::Gone, v1::Code::Applied]);
    assert_eq!(lag(&broker, "chat"), 0);
    let pushed = broker.log(P0).await.into_iter().filter(|(_, record)| record.kind == RecordKind::Pushed);
    let offsets: Vec<u64> = pushed.map(|(offset, _)| offset.0).collect();
    assert_eq!(offsets, [result.commands[0].offset, result.commands[2].offset]);
    assert_eq!(offsets[0], result.offset + 1, "one entry holds the acknowledgement and the commands");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn commit_of_an_event_that_is_not_open_changes_nothing() {
    let broker = Broker::start(1).await;
    let id = connection(0, 1);
    broker.opened(id, "chat", "").await;
    let mut member = broker.join(join("chat", "a"));
    let event = member.event().await;
    let before = broker.log(P0).await.len();
    for (outcomes, commands, expected) in [
        (vec![ack(event.offset), ack(event.offset + 1)], vec![push(id, "x")], v1::Code::NotOpen),
        (vec![ack(u64::MAX)], vec![], v1::Code::NotOpen),
        (vec![ack(0)], vec![], v1::Code::NotOpen),
        (vec![ack(event.offset), ack(event.offset)], vec![], v1::Code::NotOpen),
        (vec![ack(event.offset)], vec![v1::Command::default()], v1::Code::Invalid),
        (vec![], vec![push(id, "x")], v1::Code::Invalid),
        (vec![v1::Outcome { offset: event.offset, verdict: None }], vec![], v1::Code::Invalid),
        (vec![ack(event.offset); 5000], vec![], v1::Code::Invalid),
        (vec![ack(event.offset)], vec![push(id, "x"); 1025], v1::Code::Invalid),
    ] {
        let result = member.commit(0, outcomes, commands).await;
        assert_eq!(code(&result), expected, "{result:?}");
        assert!(result.commands.is_empty());
    }
    // another partition, another epoch
    assert_eq!(code(&member.commit(1, vec![ack(event.offset)], vec![]).await), v1::Code::StaleEpoch);
    assert_eq!(code(&member.commit(70_000, vec![ack(event.offset)], vec![]).await), v1::Code::StaleEpoch);
    let epoch = member.epochs.insert(0, 77).unwrap();
    assert_eq!(code(&member.commit(0, vec![ack(event.offset)], vec![]).await), v1::Code::StaleEpoch);
    member.epochs.insert(0, epoch);
    assert_eq!(broker.log(P0).await.len(), before, "nothing reached the log");
    assert_eq!(code(&member.commit(0, vec![ack(event.offset)], vec![push(id, "x")]).await), v1::Code::Applied);
    let again = member.commit(0, vec![ack(event.offset)], vec![push(id, "x")]).await;
    assert_eq!(code(&again), v1::Code::NotOpen, "a retried commit repeats nothing");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn refused_event_comes_again_before_the_connections_later_ones() {
    let broker = Broker::start(1).await;
    let (one, other) = (connection(0, 1), connection(0, 2));
    broker.opened(one, "chat", "").await;
    let mut member = broker.join(join("chat", "a"));
    let first = member.event().await;
    assert_eq!(code(&member.commit(0, vec![refuse(first.offset, 300)], vec![]).await), v1::Code::Applied);
    let later = broker.message(one, "chat", "later").await;
    let opened = broker.opened(other, "chat", "").await;
    assert_eq!(member.event().await.offset, opened.0, "other connections do not wait");
    let again = member.events(2).await;
    assert_eq!((again[0].offset, again[0].attempt), (first.offset, 2));
    assert_eq!((again[1].offset, again[1].attempt), (later.0, 1));
    let outcomes = vec![ack(opened.0), ack(first.offset), ack(later.0)];
    assert_eq!(code(&member.commit(0, outcomes, vec![]).await), v1::Code::Applied);
    assert_eq!(lag(&broker, "chat"), 0);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn event_is_parked_with_its_record_after_its_attempts() {
    let broker = Broker::start(1).await;
    let id = connection(0, 1);
    broker.opened(id, "chat", "").await;
    let mut member = broker.join(v1::Join { max_attempts: 2, kinds: vec![2], ..join("chat", "a") });
    let poison = broker.message(id, "chat", "poison").await;
    for attempt in 1..=2 {
        let event = member.event().await;
        assert_eq!((event.offset, event.attempt), (poison.0, attempt));
        assert_eq!(code(&member.commit(0, vec![refuse(poison.0, 0)], vec![]).await), v1::Code::Applied);
    }
    member.quiet(100).await;
    let state = broker.node.partition(P0).unwrap().state.clone();
    let (offset, attempt, bytes) = {
        let state = state.read();
        let group = state.group("chat").unwrap();
        let (offset, parked) = group.parked().next().unwrap();
        (offset, parked.attempt, parked.record.clone())
    };
    assert_eq!((offset, attempt), (poison, 2));
    let (_, record) = broker.log(P0).await.into_iter().find(|(offset, _)| *offset == poison).unwrap();
    assert_eq!(bytes, record.bytes());
    assert_eq!(lag(&broker, "chat"), 0);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn event_past_its_deadline_comes_again_unless_extended() {
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let broker = Broker::open(dir, 1, Duration::from_millis(400)).await;
    broker.opened(connection(0, 1), "chat", "").await;
    let mut member = broker.join(join("chat", "a"));
    let event = member.event().await;
    for _ in 0..6 {
        member.quiet(150).await;
        let (partition, epoch) = (0, member.epochs[&0]);
        member.ask(Asked::Extend(v1::Extend { partition, epoch, offsets: vec![event.offset, 7] })).await;
    }
    let again = member.event().await;
    assert_eq!((again.offset, again.attempt), (event.offset, 2));
    assert_eq!(code(&member.commit(0, vec![ack(event.offset)], vec![]).await), v1::Code::Applied);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn credit_bounds_what_is_in_flight() {
    let broker = Broker::start(1).await;
    for n in 1..=21 {
        broker.opened(connection(0, n), "chat", "").await;
    }
    let mut member = broker.join(v1::Join { credit: 4, ..join("chat", "a") });
    let first = member.events(4).await;
    member.quiet(100).await;
    assert_eq!(code(&member.commit(0, vec![ack(first[1].offset)], vec![]).await), v1::Code::Applied);
    member.events(1).await;
    member.quiet(100).await;
    member.ask(Asked::Credit(v1::Credit { amount: 3 })).await;
    member.events(3).await;
    member.quiet(100).await;
    member.ask(Asked::Credit(v1::Credit { amount: -7 })).await;
    assert_eq!(code(&member.commit(0, vec![ack(first[0].offset)], vec![]).await), v1::Code::Applied);
    member.quiet(100).await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn pipelined_commits_all_apply() {
    let broker = Broker::start(1).await;
    let id = connection(0, 1);
    let mut member = broker.join(v1::Join { credit: 1000, ..join("chat", "a") });
    for n in 1..=3 {
        broker.opened(connection(0, n), "chat", "").await;
    }
    for n in 0..298u16 {
        broker.message(connection(0, (n % 3) as u8 + 1), "chat", "x").await;
    }
    let mut events = member.events(301).await;
    events.reverse(); // the order of commits is the member's own
    let (requests, epoch) = (member.requests.clone(), member.epochs[&0]);
    // not waiting for answers, while they are read
    tokio::spawn(async move {
        for (n, event) in (1..).zip(events) {
            let (outcomes, commands) = (vec![ack(event.offset)], vec![push(id, "x")]);
            let commit = v1::Commit { id: n, partition: 0, epoch, outcomes, commands };
            requests.send(v1::SubscribeRequest { request: Some(Asked::Commit(commit)) }).await.unwrap();
        }
    });
    for n in 1..=301 {
        let result = member.result(n).await;
        assert_eq!((code(&result), codes(&result.commands)), (v1::Code::Applied, vec![v1::Code::Applied]));
    }
    assert_eq!(lag(&broker, "chat"), 0);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn partitions_are_shared_and_a_lost_members_events_go_to_the_other() {
    let broker = Broker::start(8).await;
    for partition in 0..8 {
        broker.opened(connection(partition, 1), "chat", "").await;
    }
    let mut one = broker.join(join("chat", "one"));
    let opened = one.events(8).await;
    for event in &opened[..4] {
        let partition = u32::from(u16::from_be_bytes([event.connection[0], event.connection[1]]));
        assert_eq!(code(&one.commit(partition, vec![ack(event.offset)], vec![]).await), v1::Code::Applied);
    }
    let mut two = broker.join(join("chat", "two"));
    // what moves is decided by the names alone; the rest stays
    while one.epochs.len() + two.epochs.len() != 8 || two.epochs.is_empty() {
        tokio::select! {
            step = one.step() => step.unwrap(),
            step = two.step() => step.unwrap(),
        }
    }
    assert!(!one.epochs.is_empty() && one.epochs.keys().all(|partition| !two.epochs.contains_key(partition)));
    drop(one);
    two.assigned(8).await;
    let again = two.events(4).await;
    let expected: BTreeSet<_> = opened[4..].iter().map(|event| event.connection.clone()).collect();
    assert_eq!(again.iter().map(|event| event.connection.clone()).collect::<BTreeSet<_>>(), expected);
    assert!(again.iter().all(|event| event.attempt >= 2), "they were given before: {again:?}");
    two.quiet(100).await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn second_stream_of_a_member_replaces_the_first() {
    let broker = Broker::start(1).await;
    broker.opened(connection(0, 1), "chat", "").await;
    let mut old = broker.join(join("chat", "a"));
    let event = old.event().await;
    let mut new = broker.join(join("chat", "a"));
    assert_eq!(old.ended().await, Some(SessionEnd::Replaced));
    let again = new.event().await;
    assert_eq!((again.offset, again.attempt), (event.offset, 2));
    assert!(new.epochs[&0] > 1);
    assert_eq!(code(&new.commit(0, vec![ack(again.offset)], vec![]).await), v1::Code::Applied);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn group_goes_on_from_committed_after_a_restart() {
    let broker = Broker::start(1).await;
    let (one, other) = (connection(0, 1), connection(0, 2));
    broker.opened(one, "chat", "").await;
    broker.opened(other, "chat", "").await;
    let kept = broker.message(one, "chat", "kept").await;
    let settled = broker.message(other, "chat", "settled").await;
    let mut member = broker.join(join("chat", "a"));
    let events = member.events(4).await;
    let outcomes = vec![ack(events[0].offset), ack(events[1].offset), ack(settled.0)];
    assert_eq!(code(&member.commit(0, outcomes, vec![]).await), v1::Code::Applied);
    drop(member);
    let epoch = |broker: &Broker| broker.node.partition(P0).unwrap().state.read().group("chat").unwrap().epoch;
    until("the loss is in the log", || epoch(&broker) == 2).await;
    let dir = broker.stop().await;
    let broker = Broker::open(dir, 1, Duration::from_secs(60)).await;
    let mut member = broker.join(join("chat", "b"));
    let again = member.event().await;
    assert_eq!((again.offset, again.attempt), (kept.0, 2));
    assert_eq!(code(&member.commit(0, vec![ack(kept.0)], vec![]).await), v1::Code::Applied);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn broken_streams_are_ended_with_a_reason() {
    let broker = Broker::start(1).await;
    let base = join("chat", "a");
    let bad = [
        v1::Join { group: String::new(), ..base.clone() },
        v1::Join { group: "x".repeat(65), ..base.clone() },
        v1::Join { member: "a b".into(), ..base.clone() },
        v1::Join { credit: 0, ..base.clone() },
        v1::Join { credit: 10_001, ..base.clone() },
        v1::Join { kinds: vec![4], ..base.clone() },
        v1::Join { apis: vec!["no/slash".into()], ..base.clone() },
        v1::Join { apis: vec!["a".into(); 65], ..base.clone() },
    ];
    for join in bad {
        let mut member = broker.join(join.clone());
        assert!(matches!(member.ended().await, Some(SessionEnd::Invalid(_))), "{join:?}");
    }
    let mut member = broker.join(base.clone());
    member.ask(Asked::Join(base)).await;
    assert!(matches!(member.ended().await, Some(SessionEnd::Invalid(_))));
    until("the member is off the list", || broker.registry.members("chat").is_empty()).await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn prefix_moves_over_the_records_of_others() {
    let broker = Broker::start(1).await;
    let id = connection(0, 1);
    broker.opened(id, "other", "").await;
    let mut member = broker.join(v1::Join { apis: vec!["chat".into()], ..join("chat", "a") });
    member.assigned(1).await;
    let mut last = Offset::ZERO;
    for n in 0..1100 {
        last = broker.message(id, "other", &n.to_string()).await;
    }
    let through = || broker.node.partition(P0).unwrap().state.read().group("chat").unwrap().through;
    until("retention may pass", || last.index().0 - through().index().0 < 1024).await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn moved_group_starts_anew_from_there() {
    let broker = Broker::start(1).await;
    let id = connection(0, 1);
    broker.opened(id, "chat", "").await;
    let second = broker.message(id, "chat", "x").await;
    let mut member = broker.join(join("chat", "a"));
    for event in member.events(2).await {
        assert_eq!(code(&member.commit(0, vec![ack(event.offset)], vec![]).await), v1::Code::Applied);
    }
    let to = v1::Start { at: Some(v1::start::At::Offset(second.0)) };
    crate::reset::reset_group(&broker.node, "chat", Some(to)).await.unwrap();
    let again = member.event().await;
    assert_eq!((again.offset, member.epochs[&0]), (second.0, 2));
    assert_eq!(code(&member.commit(0, vec![ack(again.offset)], vec![]).await), v1::Code::Applied);
    member.quiet(100).await;
    broker.stop().await;
}

/// A client sends faster than its events are handled: who comes after it does not wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn one_connections_unanswered_messages_keep_nobody_else_waiting() {
    let broker = Broker::start(1).await;
    let (busy, new) = (connection(0, 1), connection(0, 2));
    broker.opened(busy, "chat", "").await;
    let mut sent = Vec::new();
    for n in 0..300 {
        sent.push(broker.message(busy, "chat", &n.to_string()).await.0);
    }
    let opened = broker.opened(new, "chat", "").await.0;
    let mut member = broker.join(v1::Join { credit: 64, ..join("chat", "a") });
    // 8 are for new connections, and of the others half
    let (share, mut events) = (28, member.events(29).await);
    events.retain(|event| event.offset != opened);
    let mut events: Vec<_> = events.iter().map(|event| event.offset).collect();
    assert_eq!(events.len(), share, "the new connection is among them");
    member.quiet(100).await;
    // and of its own everything comes, once, in order
    while events.len() < 301 {
        let outcomes = events[events.len() - share..].iter().map(|offset| ack(*offset)).collect();
        assert_eq!(code(&member.commit(0, outcomes, vec![]).await), v1::Code::Applied);
        let left = 301 - events.len();
        events.extend(member.events(share.min(left)).await.iter().map(|event| event.offset));
    }
    assert_eq!(events[1..], sent);
    broker.stop().await;
}

/// Every credit is with connections that are waited for: a new connection, whose client waits for an answer, has one left.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn new_connections_come_past_messages_that_wait_for_credit() {
    let broker = Broker::start(1).await;
    let mut member = broker.join(v1::Join { credit: 16, ..join("chat", "a") });
    for n in 1..=20 {
        let opened = broker.opened(connection(0, n), "chat", "").await;
        assert_eq!(member.event().await.offset, opened.0);
        member.commit(0, vec![ack(opened.0)], vec![]).await;
    }
    let mut messages = Vec::new();
    for n in 1..=20 {
        messages.push(broker.message(connection(0, n), "chat", "x").await.0);
    }
    let given: Vec<_> = member.events(14).await.iter().map(|event| event.offset).collect();
    assert_eq!(given, messages[..14]);
    let opened = broker.opened(connection(0, 21), "chat", "").await.0;
    assert_eq!(member.event().await.offset, opened);
    // then those that were passed, and nothing twice
    let settled = given.iter().chain([&opened]).map(|offset| ack(*offset)).collect();
    assert_eq!(code(&member.commit(0, settled, vec![]).await), v1::Code::Applied);
    let rest: Vec<_> = member.events(6).await.iter().map(|event| event.offset).collect();
    assert_eq!(rest, messages[14..]);
    member.quiet(100).await;
    broker.stop().await;
}
