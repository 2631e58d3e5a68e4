//! One broker that trims: what is readable, what is on disk, what a kill leaves.

use std::{path::Path, time::Duration};

use trunkline_proto::{LogIndex, PartitionId};

use super::*;
use crate::{
    append::{AppendError, Full},
    grpc::log::{Query, Reading},
    handlers::member::{Member, OUTGOING_MAX, Terms},
    node::{Moment, NodeConfig, ReadError},
    store,
    testing::{attach, connection, count, edge, message, opened},
};

const P: PartitionId = PartitionId(0);
const MIB: u64 = 1 << 20;
/// Moments at which a trim is interrupted.
const COPIES: usize = 8;

fn limits() -> Limits {
    Limits { time: Duration::ZERO, bytes: 2 * MIB, bytes_max: 0, drop_unsettled: false, group_expiry: Duration::ZERO }
}

async fn open(config: NodeConfig) -> Node {
    let node = Node::open(config).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), node.wait_ready()).await.unwrap().unwrap();
    node
}

fn config(dir: &Path) -> NodeConfig {
    NodeConfig::new(dir, "test", count(1))
}

fn partition(node: &Node) -> &PartitionHandle {
    node.partition(P).unwrap()
}

/// A connection and so many messages of 64 KiB, each an entry.
async fn talk(node: &Node, messages: u64) {
    let append = &partition(node).append;
    append.append(attach(0)).await.unwrap();
    append.append(edge(1, &[opened(connection(0, 1))])).await.unwrap();
    for n in 0..messages {
        append.append(say(n)).await.unwrap();
    }
}

fn say(n: u64) -> Batch {
    // no two bytes alike to a compressor
    let mut noise = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let payload = std::iter::repeat_with(|| {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        noise as u8
    });
    edge(n + 2, &[message(connection(0, 1), &payload.take(64 << 10).collect::<Vec<u8>>())])
}

/// The retention of a broker, until dropped.
struct Keeping(tokio_util::sync::DropGuard, Arc<Registry>);

fn keep(node: &Node, limits: Limits) -> Keeping {
    let stop = CancellationToken::new();
    let registry = Registry::new(node.clone(), Duration::from_secs(60), stop.clone());
    let settings = Settings { limits, check_every: Duration::from_millis(20) };
    tokio::spawn(run(node.clone(), registry.clone(), settings, stop.clone()));
    Keeping(stop.drop_guard(), registry)
}

impl Keeping {
    async fn stop(self) {
        let Self(guard, registry) = self;
        drop(guard);
        registry.drain().await;
    }
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), waiting).await.is_ok(), "{what}");
}

/// Whether nothing is on disk that is trimmed, and everything else.
fn is_trimmed_on_disk(node: &Node) -> bool {
    let Some(reader) = node.reader(P) else { return false };
    let first = node.earliest(P).index();
    let snapshots = store::snapshot::list(&reader).unwrap();
    let oldest = snapshots.last().map(|manifest| manifest.last.index.0 + 1);
    let is_gone = |index: u64| reader.entry(LogIndex(index)).unwrap().is_none();
    first.0 > 0
        && (0..first.0).all(is_gone)
        && !is_gone(first.0)
        && oldest == Some(first.0)
        && reader.purged().unwrap().map(|purged| purged.index.0 + 1) == Some(first.0)
}

#[tokio::test]
async fn what_is_too_much_is_trimmed_told_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(config(dir.path())).await;
    let keeping = keep(&node, limits());
    talk(&node, 100).await;
    until("trimmed and deleted", async || {
        is_trimmed_on_disk(&node) && partition(&node).state.read().retained_bytes() <= 3 * MIB
    })
    .await;
    keeping.stop().await;
    // a trim that was on its way is applied before this
    partition(&node).append.append(attach(0)).await.unwrap();
    until("settled", async || is_trimmed_on_disk(&node)).await;
    let (earliest, trimmed) = (node.earliest(P), ReadError::Trimmed { earliest: node.earliest(P) });
    let before = LogIndex(earliest.index().0 - 1);
    assert_eq!(node.read_log(P, LogIndex(0), 1).await.unwrap_err(), trimmed);
    assert_eq!(node.read_log(P, LogIndex(before.0 - 1), 1).await.unwrap_err(), trimmed);
    assert_eq!(node.read_log(P, before, 1).await.unwrap().entries[0].index, earliest.index());
    // what tools read by
    for at in [v1::start::At::Offset(1 << 16), v1::start::At::Time(1)] {
        let query = Query {
            partition: P,
            from: Some(v1::Start { at: Some(at) }),
            limit: 0,
            follow: true,
            raw: false,
            api: String::new(),
            connection: None,
            until: Offset::MAX,
        };
        assert_eq!(Reading::open(&node, query).await.unwrap_err(), trimmed, "{at:?}");
    }
    let at = |offset| node.state_at(P, Moment::Offset(offset));
    assert_eq!(at(Offset::new(before, 0)).await.unwrap_err(), trimmed, "of that entry only the whole is known");
    assert_eq!(node.state_at(P, Moment::Time(Timestamp(1))).await.unwrap_err(), trimmed);
    assert_eq!(at(Offset::end_of(before)).await.unwrap().0.applied(), before);
    let now = Offset::end_of(partition(&node).tail.applied());
    assert!(at(now).await.unwrap().0 == *partition(&node).state.read());
    let digest = partition(&node).state.read().digest();
    node.shutdown().await;
    let report = store::verify(dir.path(), |_| {}).unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!(report.partitions[0].range.map(|(first, _)| first), Some(earliest.index()));
    let node = open(config(dir.path())).await;
    assert_eq!((node.earliest(P), partition(&node).state.read().digest()), (earliest, digest));
    assert_eq!(node.read_log(P, LogIndex(0), 1).await.unwrap_err(), trimmed);
    let next = partition(&node).append.append(say(100)).await.unwrap();
    assert_eq!(next.verdict(0), Verdict::Applied, "the edge goes on where it stopped");
    node.shutdown().await;
}

#[tokio::test]
async fn a_kill_at_any_moment_of_a_trim_leaves_a_sound_folder() {
    let (dir, copies) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let node = open(config(dir.path())).await;
    talk(&node, 60).await;
    let through = Offset::end_of(LogIndex(40));
    let trim = record(RecordKind::Trimmed, &v1::Trimmed { through: through.0, ..Default::default() });
    partition(&node).append.append(Batch::new(Source::Leader, &[trim])).await.unwrap();
    let contents = partition(&node).state.read().digest();
    let mut whole = Vec::new();
    for n in 0..COPIES {
        let (from, to) = (dir.path().to_owned(), copies.path().join(n.to_string()));
        // a file that RocksDB deletes under the copy ends it: that one is left out
        let copy = tokio::task::spawn_blocking(move || store::copy_folder(&from, &to));
        if copy.await.is_ok() {
            whole.push(n);
        }
    }
    assert!(!whole.is_empty());
    until("trimmed and deleted", async || is_trimmed_on_disk(&node)).await;
    node.shutdown().await;
    let mut opened = 0;
    for n in whole {
        let dir = copies.path().join(n.to_string());
        let node = match Node::open(config(&dir)).await {
            Ok(node) => node,
            // a file of RocksDB was made or deleted while the folder was copied
            Err(error) if error.to_string().contains("No such file") => continue,
            Err(error) => panic!("copy {n}: {error}"),
        };
        node.wait_ready().await.unwrap();
        opened += 1;
        until("done after the restart", async || is_trimmed_on_disk(&node)).await;
        assert_eq!(node.earliest(P), Offset::new(LogIndex(41), 0));
        assert_eq!(partition(&node).state.read().digest(), contents, "copy {n}");
        node.shutdown().await;
        let report = store::verify(&dir, |_| {}).unwrap();
        assert!(report.is_sound(), "copy {n}: {report:?}");
    }
    assert!(opened > 0);
}

fn assigned(group: &str, member: &str, epoch: u64) -> Batch {
    let start = v1::Start { at: Some(v1::start::At::Earliest(true)) };
    let (group, member, start) = (group.to_owned(), member.to_owned(), Some(start));
    let body = v1::HandlerAssigned { group, member, epoch, start, ..Default::default() };
    Batch::new(Source::Leader, &[record(RecordKind::HandlerAssigned, &body)])
}

#[tokio::test]
async fn a_full_log_takes_only_what_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(NodeConfig { retained_max: 4 * MIB, ..config(dir.path()) }).await;
    let append = &partition(&node).append;
    append.append(assigned("slow", "m", 1)).await.unwrap();
    let capped = Limits { bytes_max: 4 * MIB, ..limits() };
    let keeping = keep(&node, capped);
    append.append(attach(0)).await.unwrap();
    append.append(edge(1, &[opened(connection(0, 1))])).await.unwrap();
    let mut sent = 0;
    let full = loop {
        match append.append(say(sent)).await {
            Ok(_) => sent += 1,
            Err(error) => break error,
        }
        assert!(sent < 100, "the cap of 4 MiB does not hold");
    };
    let AppendError::Full(Full::Log { retained, limit }) = full else { panic!("{full:?}") };
    assert!(retained >= limit && limit == 4 * MIB && sent >= 60);
    assert_eq!(node.earliest(P), Offset::ZERO, "the group holds all of it");
    // what the group settles is taken, and makes room
    let through = partition(&node).state.read().group("slow").unwrap().through;
    let end = Offset::end_of(partition(&node).tail.applied());
    let commit = v1::HandlerCommitted {
        group: "slow".into(),
        member: "m".into(),
        epoch: 1,
        base: through.0,
        through: end.0,
        ..Default::default()
    };
    let commit = Batch::new(Source::Commit, &[record(RecordKind::HandlerCommitted, &commit)]);
    assert_eq!(append.append(commit).await.unwrap().verdict(0), Verdict::Applied);
    until("room again", async || append.append(say(sent)).await.is_ok()).await;
    assert!(node.earliest(P) > Offset::ZERO);
    keeping.stop().await;
    node.shutdown().await;
}

#[tokio::test]
async fn a_group_that_sees_no_matching_event_holds_nothing_while_its_member_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(config(dir.path())).await;
    let keeping = keep(&node, limits());
    let join = v1::Join {
        group: "other".into(),
        member: "m".into(),
        apis: vec!["nowhere".into()],
        start: Some(v1::Start { at: Some(v1::start::At::Earliest(true)) }),
        credit: 1,
        ..Default::default()
    };
    let (outgoing, _responses) = tokio::sync::mpsc::channel(OUTGOING_MAX);
    let member = Arc::new(Member::new(Terms::check(join).unwrap(), Default::default(), outgoing));
    keeping.1.join(&member);
    until("assigned", async || partition(&node).state.read().group("other").is_some()).await;
    let begun = partition(&node).state.read().group("other").unwrap().through;
    talk(&node, 60).await;
    until("trimmed", async || node.earliest(P) > begun).await;
    // what retention does not ask for it does not say: a log that nobody writes to does not grow by itself
    until("settled", async || is_trimmed_on_disk(&node)).await;
    until("quiet", async || {
        let end = partition(&node).tail.applied();
        // several looks of the keeper
        tokio::time::sleep(Duration::from_millis(100)).await;
        partition(&node).tail.applied() == end
    })
    .await;
    keeping.stop().await;
    node.shutdown().await;
}

#[tokio::test]
async fn at_the_cap_groups_skip_where_the_operator_wants_that() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(NodeConfig { retained_max: 4 * MIB, ..config(dir.path()) }).await;
    partition(&node).append.append(assigned("slow", "m", 1)).await.unwrap();
    let keeping = keep(&node, Limits { bytes_max: 4 * MIB, drop_unsettled: true, ..limits() });
    partition(&node).append.append(attach(0)).await.unwrap();
    partition(&node).append.append(edge(1, &[opened(connection(0, 1))])).await.unwrap();
    for n in 0..150 {
        until("room", async || match partition(&node).append.append(say(n)).await {
            Ok(_) => true,
            Err(AppendError::Full(_)) => false,
            Err(error) => panic!("{error}"),
        })
        .await;
    }
    let state = partition(&node).state.read().clone();
    let slow = state.group("slow").unwrap();
    assert!(slow.through >= state.trimmed() && state.trimmed() > Offset::ZERO);
    let skipped = slow.skipped().unwrap();
    assert!(skipped.after < skipped.through && skipped.through >= state.trimmed(), "its next member is told");
    keeping.stop().await;
    node.shutdown().await;
}

#[tokio::test]
async fn a_group_that_nobody_comes_back_to_is_forgotten_and_holds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(config(dir.path())).await;
    let append = &partition(&node).append;
    append.append(assigned("gone", "", 1)).await.unwrap();
    append.append(assigned("stays", "m", 1)).await.unwrap();
    talk(&node, 60).await;
    let keeping = keep(&node, Limits { group_expiry: Duration::from_millis(1), ..limits() });
    until("forgotten", async || partition(&node).state.read().group("gone").is_none()).await;
    assert!(partition(&node).state.read().group("stays").is_some(), "its member may be on the way");
    assert_eq!(node.earliest(P), Offset::ZERO);
    keeping.stop().await;
    node.shutdown().await;
}

#[tokio::test]
async fn a_disk_without_room_refuses_appends_until_there_is_some() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(NodeConfig { disk_reserve: 1, ..config(dir.path()) }).await;
    let append = &partition(&node).append;
    append.append(attach(0)).await.unwrap();
    node.pretend_free(0);
    let opening = edge(1, &[opened(connection(0, 1))]);
    let error = append.append(opening.clone()).await.unwrap_err();
    assert!(matches!(error, AppendError::Full(Full::Disk(_))), "{error}");
    assert!(error.to_string().contains("broker.disk_reserve"));
    assert!(node.space().is_err() && node.health().is_ok(), "the store itself is well");
    node.pretend_free(1);
    assert_eq!(append.append(opening).await.unwrap().verdict(0), Verdict::Applied);
    assert_eq!(node.space(), Ok(()));
    node.shutdown().await;
}
