//! Commands for other partitions, and commands that acknowledge nothing.

use std::{collections::BTreeMap, time::Duration};

use trunkline_proto::{PartitionId, RecordKind, v1};

use super::broker::{Broker, PATIENCE, ack, code, codes, connection, join, join_channel, publish, push};
use crate::access::Caller;

async fn forwarded(broker: &Broker) {
    let begun = tokio::time::Instant::now();
    let waiting = || {
        let partitions = broker.node.partition_count().iter();
        partitions.map(|id| broker.node.partition(id).unwrap().state.read().outbox_len()).sum::<usize>()
    };
    while waiting() > 0 {
        assert!(begun.elapsed() < PATIENCE, "{} forwards wait", waiting());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn commands_reach_other_partitions_once_and_in_order() {
    let broker = Broker::start(8).await;
    for partition in 0..8 {
        broker.opened(connection(partition, 1), "chat", "").await;
    }
    let mut member = broker.join(v1::Join { kinds: vec![2], credit: 1000, ..join("chat", "a") });
    member.assigned(8).await;
    let source = connection(0, 1);
    let mut dir = None;
    for n in 0..100 {
        let offset = broker.message(source, "chat", &n.to_string()).await;
        let event = member.event().await;
        assert_eq!(event.offset, offset.0);
        let mut commands: Vec<_> = (0..8).map(|to| push(connection(to, 1), &n.to_string())).collect();
        commands.push(publish("lobby", &n.to_string()));
        let result = member.commit(0, vec![ack(event.offset)], commands).await;
        assert_eq!(code(&result), v1::Code::Applied);
        let here = codes(&result.commands)[..8].iter().filter(|code| **code == v1::Code::Applied).count();
        assert_eq!(here, 1, "{result:?}");
        if n == 60 {
            dir = Some(broker.dir.clone());
        }
    }
    drop(member);
    // stopped with forwards under way: nothing is lost and nothing repeated
    broker.stop().await;
    let broker = Broker::open(dir.unwrap(), 8, Duration::from_secs(60)).await;
    forwarded(&broker).await;
    for partition in 0..8u16 {
        let log = broker.log(PartitionId(partition)).await;
        let pushed = log
            .iter()
            .filter(|(_, record)| record.kind == RecordKind::Pushed && record.connection == connection(partition, 1));
        let texts: Vec<_> = pushed.map(|(_, record)| record.decode::<v1::Pushed>().unwrap().payload).collect();
        let expected: Vec<_> = (0..100).map(|n: u32| n.to_string()).collect();
        assert_eq!(texts, expected, "partition {partition}");
    }
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn joins_reach_the_channels_partition_and_closes_leave_it() {
    let broker = Broker::start(8).await;
    let members: Vec<_> = (0..8).map(|partition| connection(partition, 1)).collect();
    for id in &members {
        broker.opened(*id, "chat", "").await;
    }
    let commands: Vec<_> = members.iter().map(|id| join_channel(*id, "lobby")).collect();
    let results = broker.submitter.submit(&Caller::default(), "", &commands).await.unwrap();
    assert!(codes(&results).iter().all(|code| matches!(code, v1::Code::Applied | v1::Code::Forwarded)), "{results:?}");
    forwarded(&broker).await;
    let owner = broker.node.partition(broker.node.partition_count().of_name("lobby")).unwrap();
    let in_channel = || owner.state.read().channel_members("lobby").count();
    assert_eq!(in_channel(), 8);
    broker.closed(members[3], "chat").await;
    broker.closed(members[5], "chat").await;
    forwarded(&broker).await;
    assert_eq!(in_channel(), 6);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn submit_under_a_key_takes_effect_once() {
    let broker = Broker::start(8).await;
    for partition in 0..8 {
        broker.opened(connection(partition, 1), "chat", "").await;
    }
    // numbers that are not consecutive within a partition
    let order = [0, 1, 0, 2, 2, 1, 7, 0];
    let commands: Vec<_> = order.iter().map(|to| push(connection(*to, 1), "x")).collect();
    let first = broker.submitter.submit(&Caller::named("me"), "key", &commands).await.unwrap();
    assert_eq!(codes(&first), [v1::Code::Applied; 8]);
    let again = broker.submitter.submit(&Caller::named("me"), "key", &commands).await.unwrap();
    let places = |results: &[v1::CommandResult]| -> Vec<_> {
        results.iter().map(|result| (result.partition, result.offset)).collect()
    };
    assert_eq!((codes(&again), places(&again)), (codes(&first), places(&first)));
    let mut other = commands.clone();
    other[2] = push(connection(0, 1), "y");
    let reused = codes(&broker.submitter.submit(&Caller::named("me"), "key", &other).await.unwrap());
    assert_eq!(reused[2], v1::Code::KeyReused);
    assert_eq!(reused.iter().filter(|code| **code == v1::Code::Applied).count(), 7);
    // somebody else's key is another key
    assert_eq!(
        codes(&broker.submitter.submit(&Caller::named("you"), "key", &other).await.unwrap()),
        [v1::Code::Applied; 8]
    );
    let mut pushed = BTreeMap::new();
    for id in broker.node.partition_count().iter() {
        let log = broker.log(id).await;
        pushed.insert(id.0, log.iter().filter(|(_, record)| record.kind == RecordKind::Pushed).count());
    }
    assert_eq!(pushed.into_values().collect::<Vec<_>>(), [6, 4, 4, 0, 0, 0, 0, 2]);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn each_command_of_a_submit_has_a_result_of_its_own() {
    let broker = Broker::start(2).await;
    let id = connection(0, 1);
    broker.opened(id, "chat", "").await;
    let unlogged = v1::Command { unlogged: true, ..publish("lobby", "typing") };
    let accept = v1::Command { command: Some(v1::command::Command::Accept(Default::default())), ..push(id, "") };
    let commands = [push(id, "x"), push(connection(1, 9), "x"), v1::Command::default(), unlogged, accept];
    let results = broker.submitter.submit(&Caller::default(), "", &commands).await.unwrap();
    use v1::Code::{Applied, Gone, Invalid};
    assert_eq!(codes(&results), [Applied, Gone, Invalid, Applied, Invalid]);
    assert_eq!(broker.unlogged.0.lock().len(), 1);
    assert!(broker.submitter.submit(&Caller::default(), "", &vec![push(id, "x"); 1025]).await.is_err());
    assert!(broker.submitter.submit(&Caller::default(), &"k".repeat(256), &commands).await.is_err());
    broker.stop().await;
}
