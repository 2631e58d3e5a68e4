//! Answers what other brokers ask of this one beyond Raft: commands, forwards and moved groups of partitions it leads, and what operators want of it.

use std::{pin::Pin, sync::Arc};

use bytes::Bytes;

use crate::{
    forward,
    node::{CallKind, Calls, Node},
    release, reset,
    submit::Submitter,
};

/// What this broker says of itself: an encoded `trunkline.v1.DescribeResponse`.
pub type Describe = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Bytes> + Send>> + Send + Sync>;

/// Who answers.
pub struct Answers {
    /// The broker's partitions.
    pub node: Node,
    /// Applies commands.
    pub submitter: Submitter,
    /// Describes this broker.
    pub describe: Describe,
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answers").finish_non_exhaustive()
    }
}

impl Calls for Answers {
    fn call(&self, _from: u64, kind: CallKind, body: Bytes) -> Pin<Box<dyn Future<Output = Bytes> + Send + '_>> {
        Box::pin(async move {
            match kind {
                CallKind::Submit => self.submitter.answer(body).await,
                CallKind::Forward => forward::answer(&self.node, body).await,
                CallKind::ReadIndex => self.node.answer_read_index(body).await,
                CallKind::Admin => self.node.answer_admin(body, || (self.describe)()).await,
                CallKind::Reset => reset::answer(&self.node, body).await,
                CallKind::Release => release::answer(&self.node, body).await,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio_util::sync::CancellationToken;
    use trunkline_proto::{
        Batch, ConnectionId, LogIndex, Offset, PartitionId, Record, RecordKind, Source, v1, v1::peer as pb,
    };

    use super::*;
    use crate::{
        access::Caller,
        core::Verdict,
        node::{
            Role,
            cluster_tests::{Cluster, eventually, handle},
        },
        reset::ResetError,
        submit::UnloggedSink,
        testing::{connection, count},
    };

    struct Unlogged(tokio::sync::mpsc::UnboundedSender<Record>);

    impl UnloggedSink for Unlogged {
        fn publish(&self, record: Record) {
            let _ = self.0.send(record);
        }
    }

    /// What runs above a node.
    struct Upper {
        submitter: Submitter,
        unlogged: tokio::sync::mpsc::UnboundedReceiver<Record>,
        shutdown: CancellationToken,
    }

    fn upper(node: &Node) -> Upper {
        let (sender, unlogged) = tokio::sync::mpsc::unbounded_channel();
        let submitter = Submitter::new(node.clone(), Arc::new(Unlogged(sender)));
        let answers = Answers {
            node: node.clone(),
            submitter: submitter.clone(),
            describe: Arc::new(|| Box::pin(async { Bytes::new() })),
        };
        node.set_calls(Arc::new(answers));
        let shutdown = CancellationToken::new();
        tokio::spawn(forward::run(node.clone(), shutdown.clone()));
        Upper { submitter, unlogged, shutdown }
    }

    /// Three brokers with what runs above them; partition 0 is led by broker 1, partition 1 by broker 2.
    async fn cluster() -> (Cluster, Vec<Upper>) {
        let cluster = Cluster::formed().await;
        cluster.open_connections().await;
        let uppers = (1..=3).map(|id| upper(cluster.node(id))).collect();
        for (partition, to) in [(0, 1), (1, 2)] {
            cluster.node(3).transfer_leader(PartitionId(partition), to).await.unwrap();
            eventually(|| (cluster.leader(partition) == Some(to)).then_some(())).await;
        }
        (cluster, uppers)
    }

    async fn stop(cluster: Cluster, uppers: Vec<Upper>) {
        uppers.iter().for_each(|upper| upper.shutdown.cancel());
        cluster.stop_all().await;
    }

    fn command(connection: ConnectionId, command: v1::command::Command) -> v1::Command {
        v1::Command { connection: connection.0.to_vec().into(), command: Some(command), unlogged: false }
    }

    fn push(to: ConnectionId) -> v1::Command {
        command(to, v1::command::Command::Push(v1::Pushed { kind: 1, payload: "hi".into() }))
    }

    fn join(who: ConnectionId, channel: &str) -> v1::Command {
        command(who, v1::command::Command::Join(v1::ChannelJoined { channel: channel.into(), ..Default::default() }))
    }

    fn codes(results: &[v1::CommandResult]) -> Vec<v1::Code> {
        results.iter().map(|result| result.status.as_ref().unwrap().code()).collect()
    }

    #[tokio::test]
    async fn a_submit_to_any_broker_takes_effect_once() {
        let (cluster, mut uppers) = cluster().await;
        let commands = [push(connection(0, 1)), push(connection(1, 1)), push(connection(1, 7))];
        let first = uppers[2].submitter.submit(&Caller::named("me"), "key", &commands).await.unwrap();
        assert_eq!(codes(&first), [v1::Code::Applied, v1::Code::Applied, v1::Code::Gone]);
        for upper in &uppers {
            let again = upper.submitter.submit(&Caller::named("me"), "key", &commands).await.unwrap();
            assert_eq!(codes(&again), codes(&first));
            for (again, first) in again.iter().zip(&first) {
                assert_eq!((again.offset, again.partition), (first.offset, first.partition), "the first one's result");
            }
        }
        cluster.same_everywhere(&[1, 2, 3]).await;
        // what skips the log goes to who leads, and nowhere else
        let channel = (0..).map(|n| format!("c{n}")).find(|name| count(2).of_name(name) == PartitionId(1)).unwrap();
        let publish = v1::Published { channel, kind: 1, payload: "now".into(), ..Default::default() };
        let publish = v1::command::Command::Publish(publish);
        let publish = v1::Command { connection: Bytes::new(), command: Some(publish), unlogged: true };
        uppers[0].submitter.submit(&Caller::default(), "", &[publish]).await.unwrap();
        let arrived = tokio::time::timeout(Duration::from_secs(10), uppers[1].unlogged.recv()).await.unwrap();
        assert!(arrived.is_some());
        assert!(uppers[0].unlogged.try_recv().is_err());
        stop(cluster, uppers).await;
    }

    #[tokio::test]
    async fn what_is_for_a_partition_whose_replica_here_is_damaged_goes_to_its_leader() {
        let (cluster, mut uppers) = cluster().await;
        let (node, damaged) = (cluster.node(1), PartitionId(1));
        let mut role = handle(node, 1).role.clone();
        node.spoil(damaged, LogIndex(3));
        node.read_log(damaged, LogIndex(0), 1 << 20).await.unwrap_err();
        role.wait_for(|role| *role == Role::Closed).await.unwrap();
        let results = uppers[0]
            .submitter
            .submit(&Caller::named("me"), "key", &[push(connection(1, 1)), push(connection(1, 7))])
            .await;
        let results = results.unwrap();
        assert_eq!(codes(&results), [v1::Code::Applied, v1::Code::Gone]);
        assert_eq!(node.other_leader(damaged), Some(2));
        // and so does what its own log forwards there
        let channel = (0..).map(|n| format!("c{n}")).find(|name| count(2).of_name(name) == damaged).unwrap();
        uppers[0].submitter.submit(&Caller::default(), "", &[join(connection(0, 1), &channel)]).await.unwrap();
        let joined = || handle(cluster.node(2), 1).state.read().channel_members(&channel).count();
        eventually(|| (joined() == 1).then_some(())).await;
        let publish = v1::Published { channel: channel.clone(), kind: 1, payload: "now".into(), ..Default::default() };
        let publish = v1::command::Command::Publish(publish);
        let publish = v1::Command { connection: Bytes::new(), command: Some(publish), unlogged: true };
        uppers[0].submitter.submit(&Caller::default(), "", &[publish]).await.unwrap();
        tokio::time::timeout(Duration::from_secs(10), uppers[1].unlogged.recv()).await.unwrap().unwrap();
        // another leads it
        cluster.node(2).transfer_leader(damaged, 3).await.unwrap();
        eventually(|| (node.other_leader(damaged) == Some(3)).then_some(())).await;
        let results =
            uppers[0].submitter.submit(&Caller::named("me"), "other", &[push(connection(1, 1))]).await.unwrap();
        assert_eq!(codes(&results), [v1::Code::Applied]);
        stop(cluster, uppers).await;
    }

    #[tokio::test]
    async fn an_unreached_leader_is_told_apart_from_an_unknown_outcome() {
        let (mut cluster, uppers) = cluster().await;
        cluster.stop(2).await;
        let results = uppers[2].submitter.submit(&Caller::default(), "", &[push(connection(1, 1))]).await.unwrap();
        let code = codes(&results)[0];
        assert!(matches!(code, v1::Code::NoLeader | v1::Code::Unknown | v1::Code::Applied), "{code:?}");
        // and once another leads it is applied, though it is asked before that is known
        let done = tokio::time::timeout(Duration::from_secs(20), async {
            while codes(&uppers[2].submitter.submit(&Caller::default(), "", &[push(connection(1, 1))]).await.unwrap())
                != [v1::Code::Applied]
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        done.await.unwrap();
        stop(cluster, uppers).await;
    }

    #[tokio::test]
    async fn what_a_replaced_leader_has_not_answered_goes_to_the_next_one_under_its_key() {
        let (cluster, uppers) = cluster().await;
        cluster.same_everywhere(&[1, 2, 3]).await;
        cluster.deafen(2, true);
        let (keyed, bare) = ([push(connection(1, 1))], [push(connection(1, 1))]);
        let me = Caller::named("me");
        let keyed = uppers[0].submitter.submit(&me, "key", &keyed);
        let (keyed, bare) = tokio::join!(keyed, uppers[2].submitter.submit(&me, "", &bare));
        let keyed = keyed.unwrap();
        assert_eq!(codes(&keyed), [v1::Code::Applied], "{keyed:?}");
        // without a key it could take effect twice
        assert_eq!(codes(&bare.unwrap()), [v1::Code::Unknown]);
        cluster.deafen(2, false);
        let first = uppers[0].submitter.submit(&Caller::named("me"), "key", &[push(connection(1, 1))]).await.unwrap();
        let message = first[0].status.as_ref().unwrap().message.clone();
        assert!(message.contains("before"), "it took effect once: {message}");
        cluster.same_everywhere(&[1, 2, 3]).await;
        stop(cluster, uppers).await;
    }

    /// Answers as a broker does, but for calls of one kind.
    struct But {
        answers: Answers,
        kind: CallKind,
        answer: Bytes,
    }

    impl Calls for But {
        fn call(&self, from: u64, kind: CallKind, body: Bytes) -> Pin<Box<dyn Future<Output = Bytes> + Send + '_>> {
            if kind == self.kind {
                return Box::pin(async { self.answer.clone() });
            }
            self.answers.call(from, kind, body)
        }
    }

    /// From now on broker 2, which leads partition 1, answers calls of this kind so.
    fn spoil(cluster: &Cluster, uppers: &[Upper], kind: CallKind, answer: &impl prost::Message) {
        let describe: Describe = Arc::new(|| Box::pin(async { Bytes::new() }));
        let answers = Answers { node: cluster.node(2).clone(), submitter: uppers[1].submitter.clone(), describe };
        cluster.node(2).set_calls(Arc::new(But { answers, kind, answer: answer.encode_to_vec().into() }));
    }

    /// A group that has settled everything there is, in both partitions.
    async fn group(cluster: &Cluster, name: &str) {
        let start = Some(v1::Start { at: Some(v1::start::At::Latest(true)) });
        let assigned =
            v1::HandlerAssigned { group: name.into(), member: "m".into(), epoch: 1, start, ..Default::default() };
        let record = Record::new(RecordKind::HandlerAssigned, Default::default(), "", &assigned);
        for partition in 0..2 {
            let batch = || Batch::new(Source::Leader, std::slice::from_ref(&record));
            assert_eq!(cluster.append(partition, batch).await, Verdict::Applied);
        }
        cluster.same_everywhere(&[1, 2, 3]).await;
    }

    /// How far a group is in each partition, as a broker's replicas say.
    fn through(cluster: &Cluster, broker: u64, name: &str) -> [Offset; 2] {
        [0, 1].map(|partition| handle(cluster.node(broker), partition).state.read().group(name).unwrap().through)
    }

    #[tokio::test]
    async fn a_group_is_moved_everywhere_whichever_broker_is_asked() {
        let (cluster, uppers) = cluster().await;
        group(&cluster, "chat").await;
        let earliest = Some(v1::Start { at: Some(v1::start::At::Earliest(true)) });
        let latest = Some(v1::Start { at: Some(v1::start::At::Latest(true)) });
        for broker in 1..=3 {
            reset::reset_group(cluster.node(broker), "chat", earliest).await.unwrap();
            // it has waited for its own replicas
            assert_eq!(through(&cluster, broker, "chat"), [Offset::ZERO; 2]);
            let ends = [0, 1].map(|partition| Offset::end_of(handle(cluster.node(broker), partition).tail.applied()));
            reset::reset_group(cluster.node(broker), "chat", latest).await.unwrap();
            let moved = through(&cluster, broker, "chat");
            assert!(moved.iter().zip(ends).all(|(moved, end)| *moved >= end), "{moved:?} {ends:?}");
        }
        let none = reset::reset_group(cluster.node(3), "nobody", latest).await.unwrap_err();
        assert_eq!(none, ResetError::NoGroup);
        stop(cluster, uppers).await;
    }

    #[tokio::test]
    async fn a_group_is_moved_nowhere_where_a_leader_is_missing_and_a_failure_midway_says_how_far_it_came() {
        let (cluster, uppers) = cluster().await;
        group(&cluster, "chat").await;
        let before = through(&cluster, 1, "chat");
        assert!(before.iter().all(|through| *through > Offset::ZERO));
        let earliest = Some(v1::Start { at: Some(v1::start::At::Earliest(true)) });
        let lost = pb::ReadIndexResponse { index: 0, error: "no majority".into() };
        spoil(&cluster, &uppers, CallKind::ReadIndex, &lost);
        let refused = reset::reset_group(cluster.node(3), "chat", earliest).await.unwrap_err();
        assert!(matches!(&refused, ResetError::NotCurrent(at) if at.partition == PartitionId(1)), "{refused}");
        assert_eq!(refused.code(), v1::Code::NoLeader);
        assert_eq!(through(&cluster, 1, "chat"), before);
        // now it goes away behind the question
        let gone = v1::Status { code: v1::Code::NoLeader.into(), message: "gone".into() };
        spoil(&cluster, &uppers, CallKind::Reset, &gone);
        let stopped = reset::reset_group(cluster.node(3), "chat", earliest).await.unwrap_err();
        assert_eq!(stopped.code(), v1::Code::NoLeader);
        let said = "partition 1: gone. Moved partitions: 0; not tried: none. Repeating it is harmless";
        assert_eq!(stopped.to_string(), said);
        assert_eq!(through(&cluster, 1, "chat")[0], Offset::ZERO);
        assert_eq!(through(&cluster, 2, "chat")[1], before[1]);
        let again = upper(cluster.node(2));
        reset::reset_group(cluster.node(3), "chat", earliest).await.unwrap();
        assert_eq!(through(&cluster, 3, "chat"), [Offset::ZERO; 2]);
        again.shutdown.cancel();
        stop(cluster, uppers).await;
    }

    #[tokio::test]
    async fn dead_letters_are_taken_out_whichever_broker_is_asked() {
        let (cluster, uppers) = cluster().await;
        group(&cluster, "chat").await;
        let (base, end) = {
            let state = handle(cluster.node(1), 1).state.read();
            (state.group("chat").unwrap().through, Offset::end_of(state.applied()))
        };
        let record = Record::new(RecordKind::MessageReceived, connection(1, 1), "api", &v1::MessageReceived::default());
        let parked = v1::Parked { reason: "why".into(), record: record.bytes().clone(), attempt: 2 };
        let offsets: Vec<u64> = (1..=3).map(|n| base.0 - n).rev().collect();
        let holes = offsets.iter().map(|offset| v1::Hole { offset: *offset, attempt: 1, not_before: 0 });
        let assigned = v1::HandlerAssigned {
            group: "late".into(),
            member: "m".into(),
            epoch: 1,
            start: Some(v1::Start { at: Some(v1::start::At::Earliest(true)) }),
            ..Default::default()
        };
        let settled = v1::HandlerCommitted {
            group: "late".into(),
            member: "m".into(),
            epoch: 1,
            through: end.0,
            holes: holes.clone().collect(),
            ..Default::default()
        };
        let outcome =
            |offset: &u64| v1::Outcome { offset: *offset, verdict: Some(v1::outcome::Verdict::Parked(parked.clone())) };
        let set_aside = v1::HandlerCommitted {
            base: end.0,
            through: end.0,
            holes: Vec::new(),
            outcomes: offsets.iter().map(outcome).collect(),
            ..settled.clone()
        };
        let assign = Record::new(RecordKind::HandlerAssigned, Default::default(), "", &assigned);
        let batch = || Batch::new(Source::Leader, std::slice::from_ref(&assign));
        assert_eq!(cluster.append(1, batch).await, Verdict::Applied);
        for commit in [&settled, &set_aside] {
            let record = Record::new(RecordKind::HandlerCommitted, Default::default(), "", commit);
            let batch = || Batch::new(Source::Commit, std::slice::from_ref(&record));
            assert_eq!(cluster.append(1, batch).await, Verdict::Applied);
        }
        cluster.same_everywhere(&[1, 2, 3]).await;
        let left = |broker: u64| {
            let (events, more) = release::page(cluster.node(broker), PartitionId(1), "late", Offset::ZERO, 10);
            assert!(!more);
            events.into_iter().map(|event| event.record.unwrap().offset).collect::<Vec<_>>()
        };
        assert_eq!(left(1), offsets);
        let (first, more) = release::page(cluster.node(1), PartitionId(1), "late", Offset(offsets[0]), 1);
        let event = &first[0];
        assert_eq!((event.attempts, event.reason.as_str(), more), (2, "why", true));
        assert_eq!(event.record.as_ref().unwrap().kind, u32::from(RecordKind::MessageReceived as u8));
        let wish =
            |offsets: &[u64], discard| v1::ParkedReleased { group: "late".into(), offsets: offsets.into(), discard };
        // broker 2 leads partition 1
        for (broker, offset, discard) in [(1, offsets[0], false), (2, offsets[1], true), (3, offsets[2], false)] {
            let released = release::release(cluster.node(broker), PartitionId(1), wish(&[offset], discard)).await;
            assert_eq!(released.code(), v1::Code::Applied, "{}", released.message);
            let again = release::release(cluster.node(broker), PartitionId(1), wish(&[offset], discard)).await;
            assert_eq!(again.code(), v1::Code::Gone, "{}", again.message);
        }
        for none in [wish(&[], true), v1::ParkedReleased { group: "a b".into(), ..wish(&[1], true) }] {
            assert_eq!(release::release(cluster.node(1), PartitionId(1), none).await.code(), v1::Code::Invalid);
        }
        cluster.same_everywhere(&[1, 2, 3]).await;
        assert_eq!(left(3), Vec::<u64>::new());
        let open: Vec<u64> = handle(cluster.node(3), 1)
            .state
            .read()
            .group("late")
            .unwrap()
            .holes()
            .map(|(offset, _)| offset.0)
            .collect();
        assert_eq!(open, [offsets[0], offsets[2]], "the one between is forgotten");
        stop(cluster, uppers).await;
    }

    #[tokio::test]
    async fn forwards_reach_a_partition_of_another_broker_once_whoever_leads_it() {
        let (mut cluster, mut uppers) = cluster().await;
        let names: Vec<String> =
            (0..).map(|n| format!("c{n}")).filter(|name| count(2).of_name(name) == PartitionId(1)).take(60).collect();
        let (early, late) = names.split_at(30);
        let joins = |names: &[String]| names.iter().map(|name| join(connection(0, 1), name)).collect::<Vec<_>>();
        let results = uppers[2].submitter.submit(&Caller::named("me"), "early", &joins(early)).await.unwrap();
        assert!(codes(&results).iter().all(|code| *code == v1::Code::Applied), "{:?}", codes(&results));
        let members = |cluster: &Cluster, id: u64, names: &[String]| {
            let state = handle(cluster.node(id), 1).state.read();
            names.iter().filter(|name| state.channel_members(name).count() == 1).count()
        };
        eventually(|| (members(&cluster, 2, early) == 30).then_some(())).await;
        // the target's leader dies while more are on their way
        let results = uppers[0].submitter.submit(&Caller::named("me"), "late", &joins(late)).await.unwrap();
        assert!(codes(&results).iter().all(|code| *code == v1::Code::Applied), "{:?}", codes(&results));
        uppers.remove(1).shutdown.cancel();
        cluster.stop(2).await;
        eventually(|| cluster.leader(1)).await;
        eventually(|| (members(&cluster, 1, &names) == 60 && members(&cluster, 3, &names) == 60).then_some(())).await;
        let source = handle(cluster.node(1), 0);
        eventually(|| (source.state.read().outbox_len() == 0).then_some(())).await;
        assert!(matches!(*source.role.borrow(), Role::Leader { .. }));
        stop(cluster, uppers).await;
    }
}
