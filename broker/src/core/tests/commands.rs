use trunkline_proto::{RecordKind, limits};

use super::{
    super::{Phase, Refusal, Verdict},
    groups::{assigned, commit},
    log::Log,
    *,
};

/// Connection 1 waits for group `g` to decide.
fn pending() -> Log {
    let mut log = Log::with_edge();
    log.leader(&[assigned("g", 1, 0, 0), assigned("other", 1, 0, 0)]);
    log.edge(&[opened(id(1), "g", &["lobby"])]);
    log
}

fn decide(log: &mut Log, group: &str, decision: Record) -> Verdict {
    let base = log.state.group(group).unwrap().through.0;
    let batch = commit(group, 1, base, base, &[], &[], &[decision]);
    log.put(&[batch]).verdict(1)
}

#[test]
fn a_push_goes_to_the_connections_edge() {
    let mut log = Log::with_connection(&[]);
    let applied = log.one(submit(), &[pushed(id(1)), pushed(id(2))]);
    assert_eq!(applied.refused, [(1, Refusal::Gone)]);
    assert_eq!(applied.deliveries.len(), 1);
    assert_eq!((applied.deliveries[0].position, &applied.deliveries[0].record), (0, &pushed(id(1))));
    assert!(applied.deliveries[0].targets.contains(log.state.edge_index("e1").unwrap()));
}

#[test]
fn a_command_bound_to_other_apis_finds_no_connection() {
    let bound = |apis: &str, record: Record| {
        let mut bytes = bytes::BytesMut::new();
        bytes.extend_from_slice(&record.bytes()[..21]);
        bytes.extend_from_slice(&[apis.len() as u8]);
        bytes.extend_from_slice(apis.as_bytes());
        bytes.extend_from_slice(&record.body());
        let length = (bytes.len() as u32 - 4).to_le_bytes();
        bytes[..4].copy_from_slice(&length);
        Record::split_from(&mut bytes.freeze()).unwrap()
    };
    let mut log = Log::with_connection(&["lobby"]);
    let commands = || {
        [
            pushed(id(1)),
            joined(id(1), "vip"),
            left(id(1), "lobby"),
            attributes(id(1), &[("a", "b")], &[]),
            close_requested(id(1), 1000),
        ]
    };
    for apis in ["news", "news,bank", "cha", "chat2", "chat2,news"] {
        let applied = log.one(submit(), &commands().map(|command| bound(apis, command)));
        assert_eq!(applied.refused, (0..5).map(|n| (n, Refusal::Gone)).collect::<Vec<_>>(), "{apis}");
        assert!(applied.deliveries.is_empty());
    }
    assert_eq!(log.state.connection(&id(1)).unwrap().channels.len(), 1);
    for apis in ["chat", "news,chat"] {
        let applied = log.one(submit(), &[bound(apis, pushed(id(1)))]);
        assert!(applied.refused.is_empty() && applied.deliveries.len() == 1, "{apis}");
    }
    assert!(log.one(submit(), &commands().map(|command| bound("chat", command))).refused.is_empty());
    // and decides no registration
    let mut log = pending();
    assert_eq!(decide(&mut log, "g", bound("news", accepted(id(1), &[]))), refused(Refusal::Gone));
    assert_eq!(decide(&mut log, "g", bound("news", rejected(id(1), 403))), refused(Refusal::Gone));
    assert_eq!(decide(&mut log, "g", bound("chat", accepted(id(1), &[]))), Verdict::Applied);
}

#[test]
fn the_first_decision_of_the_right_group_wins() {
    let mut log = pending();
    assert_eq!(log.state.connection(&id(1)).unwrap().phase, Phase::Pending);
    assert_eq!(log.state.connection(&id(1)).unwrap().handler_group, "g");
    assert_eq!(log.verdict(submit(), accepted(id(1), &[])), refused(Refusal::NotPending));
    assert_eq!(decide(&mut log, "other", accepted(id(1), &[])), refused(Refusal::NotPending));
    assert_eq!(decide(&mut log, "g", accepted(id(1), &["vip"])), Verdict::Applied);
    assert_eq!(decide(&mut log, "g", rejected(id(1), 403)), refused(Refusal::NotPending));
    let view = log.state.connection(&id(1)).unwrap();
    assert_eq!((view.phase, view.subprotocol, view.channels.len()), (Phase::Open, "v2", 2));
}

#[test]
fn an_acceptance_is_delivered_with_a_join_for_each_new_channel() {
    let mut log = pending();
    let base = log.state.group("g").unwrap().through.0;
    let decision = accepted(id(1), &["vip", "lobby", "vip"]);
    let applied = log.put(&[commit("g", 1, base, base, &[], &[], std::slice::from_ref(&decision))]);
    let delivered: Vec<_> = applied.deliveries.iter().map(|delivery| delivery.record.clone()).collect();
    assert_eq!(delivered, [decision, joined(id(1), "vip")]);
    assert!(applied.deliveries.iter().all(|delivery| delivery.position == 1));
}

#[test]
fn a_rejected_connection_takes_no_more_commands_but_ends_in_the_log() {
    let mut log = pending();
    assert_eq!(decide(&mut log, "g", rejected(id(1), 200)), refused(Refusal::Malformed));
    assert_eq!(decide(&mut log, "g", rejected(id(1), 403)), Verdict::Applied);
    assert_eq!(log.verdict(submit(), pushed(id(1))), refused(Refusal::Gone));
    assert!(log.edge(&[message(id(1)), closed(id(1))]).refused.is_empty());
    assert_eq!(decide(&mut log, "g", accepted(id(1), &[])), refused(Refusal::Gone));
}

#[test]
fn a_pending_connection_takes_pushes_and_joins() {
    let mut log = pending();
    assert!(log.one(submit(), &[pushed(id(1)), joined(id(1), "x")]).refused.is_empty());
}

#[test]
fn nobody_decides_where_nothing_is_asked() {
    let mut log = Log::with_connection(&[]);
    log.leader(&[assigned("g", 1, 0, 0)]);
    assert_eq!(decide(&mut log, "g", accepted(id(1), &[])), refused(Refusal::NotPending));
}

#[test]
fn after_a_requested_close_every_command_is_gone() {
    let mut log = Log::with_connection(&["lobby"]);
    assert_eq!(log.verdict(submit(), close_requested(id(1), 4000)), Verdict::Applied);
    assert_eq!(log.state.connection(&id(1)).unwrap().phase, Phase::Closing);
    let records = [
        pushed(id(1)),
        joined(id(1), "x"),
        left(id(1), "lobby"),
        attributes(id(1), &[("a", "b")], &[]),
        close_requested(id(1), 1000),
    ];
    let applied = log.one(submit(), &records);
    assert!(applied.refused.iter().all(|(_, refusal)| *refusal == Refusal::Gone));
    assert_eq!(applied.refused.len(), records.len());
    assert!(log.edge(&[message(id(1)), closed(id(1))]).refused.is_empty());
}

#[test]
fn attributes_are_set_removed_and_bounded() {
    let mut log = Log::with_connection(&[]);
    let long = "x".repeat(limits::ATTRIBUTES_BYTES_MAX - 2);
    let applied = log.one(
        submit(),
        &[
            attributes(id(1), &[("a", "1"), ("b", "2")], &[]),
            attributes(id(1), &[("c", "3")], &["a", "missing"]),
            attributes(id(1), &[("long", &long)], &[]),
            attributes(id(1), &[("", "3")], &[]),
            attributes(id(1), &[("cc", &long)], &["b", "c"]),
        ],
    );
    assert_eq!(applied.refused, [(2, Refusal::Limit), (3, Refusal::Malformed)]);
    assert!(applied.deliveries.is_empty());
    let view = log.state.connection(&id(1)).unwrap();
    assert_eq!(view.attributes, [("cc".into(), long.as_str().into())]);
}

#[test]
fn a_wrong_body_is_malformed_alone() {
    let mut log = Log::with_connection(&["lobby"]);
    let garbage = bytes::Bytes::from_static(&[0xff; 9]);
    let body = |kind: RecordKind| {
        let mut bytes =
            Record::new(kind, id(1), "", &v1::Pushed { kind: 1, payload: garbage.clone() }).bytes().to_vec();
        let at = bytes.len() - 9 - 2;
        bytes[at] = 0xff;
        Record::split_from(&mut bytes.into()).unwrap()
    };
    let both = v1::Published { channel: "c".into(), api: "a".into(), kind: 1, ..Default::default() };
    let short = v1::Published { channel: "c".into(), kind: 1, except: vec!["x".into()], ..Default::default() };
    let mut records: Vec<Record> = RecordKind::ALL.into_iter().filter(|kind| kind.is_command()).map(body).collect();
    records.extend([
        close_requested(id(1), 1005),
        close_requested(id(1), 70_000),
        joined(id(1), ""),
        Record::new(RecordKind::Published, ConnectionId::NONE, "", &both),
        Record::new(RecordKind::Published, ConnectionId::NONE, "", &short),
        Record::new(RecordKind::Pushed, id(1), "", &v1::Pushed::default()),
        pushed(ConnectionId::NONE),
        message(id(1)),                                 // no command
        super::super::expand::joined(id(1), "c", "e1"), // only partitions name the edge
    ]);
    let count = records.len() as u16;
    records.push(pushed(id(1)));
    let applied = log.one(submit(), &records);
    let all: Vec<_> = (0..count).map(|position| (position, Refusal::Malformed)).collect();
    assert_eq!(applied.refused, all);
    assert_eq!(applied.verdict(count), Verdict::Applied);
}
