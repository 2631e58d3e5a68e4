use trunkline_proto::{Batch, Offset, RecordKind, Source, v1};

use super::{
    super::{
        Applied, LoggedEntry, Phase, Refusal, Reply, Targets, Verdict,
        expand::{self, Recipient},
    },
    log::Log,
    *,
};

#[test]
fn a_connection_lives_from_opened_to_closed() {
    let mut log = Log::with_edge();
    assert_eq!(log.edge(&[opened(id(1), "", &[])]).reply(), Reply::Edge { last_sequence: 1 });
    let view = log.state.connection(&id(1)).unwrap();
    assert_eq!((view.api, view.edge, view.incarnation, view.phase), ("chat", "e1", 1, Phase::Open));
    assert_eq!((view.peer, view.opened.to_string().as_str()), ("203.0.113.7:50000", "2.0"));
    assert_eq!(log.state.api_connection_count("chat"), 1);
    assert!(log.edge(&[message(id(1)), message(id(1)), closed(id(1))]).refused.is_empty());
    assert_eq!((log.state.connection_count(), log.state.api_connection_count("chat")), (0, 0));
}

#[test]
fn a_message_makes_its_connection_active_and_nothing_else_does() {
    let mut log = Log::with_connection(&[]);
    let opened_at = log.time;
    let active = |log: &Log| log.state.connection(&id(1)).unwrap().last_active.0;
    assert_eq!(active(&log), opened_at);
    log.time += 2_700_000;
    log.one(submit(), &[pushed(id(1)), attributes(id(1), &[("k", "v")], &[])]);
    assert_eq!(active(&log), opened_at);
    log.edge(&[message(id(1))]);
    assert_eq!(active(&log), opened_at + 2_000_000, "to the second, never after it was");
    log.time += 3_600_000_000 * 24 * 365 * 200;
    log.edge(&[message(id(1))]);
    assert_eq!(active(&log), opened_at + u64::from(u32::MAX) * 1_000_000, "as far as it can be told");
    assert_eq!(log.replayed(), log.state);
    let decoded = super::super::Partition::decode(&log.state.encode()).unwrap();
    assert_eq!(decoded.connection(&id(1)).unwrap().last_active.0, active(&log));
}

#[test]
fn who_is_closed_is_told_with_how_it_came_to_be() {
    let mut log = Log::with_connection(&[]);
    let opened_at = log.time;
    log.time += 5;
    log.one(submit(), &[attributes(id(1), &[("tenant", "acme")], &[])]);
    let at = log.state.connection(&id(1)).unwrap().opened;
    let open = log.state.opening(&id(1)).unwrap();
    let applied = log.edge(&[closed(id(1)), closed(id(1))]);
    assert_eq!(applied.closed, [(id(1), open.clone())], "once");
    assert_eq!((open.offset, open.time, open.api.as_str(), open.trimmed), (at.0, opened_at, "chat", true));
    let opened = open.opened.unwrap();
    assert_eq!((opened.peer.as_str(), &opened.attributes["tenant"][..]), ("203.0.113.7:50000", "acme"));
    assert_eq!(log.state.opening(&id(1)), None);
    // the leader's own closes too
    log.edge(&[super::opened(id(2), "", &[])]);
    log.leader(&[lost("e1", 1)]);
    let applied = log.leader(&[closed(id(2))]);
    assert_eq!(applied.closed.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [id(2)]);
}

#[test]
fn a_connection_closes_once() {
    let mut log = Log::with_connection(&[]);
    let applied = log.edge(&[closed(id(1)), closed(id(1)), message(id(1))]);
    assert_eq!(applied.refused, [(1, Refusal::Gone), (2, Refusal::Gone)]);
}

#[test]
fn an_id_in_use_is_not_opened_again() {
    let mut log = Log::with_connection(&[]);
    assert_eq!(log.edge(&[opened(id(1), "", &[])]).verdict(0), refused(Refusal::ConnectionExists));
}

/// What edge `e1` is told of refused openings: connection and status, at the tail and by who reads the log.
fn turned_away(log: &Log, applied: &Applied) -> Vec<(ConnectionId, u32)> {
    let at_tail: Vec<_> =
        applied.deliveries.iter().map(|delivery| (delivery.position, delivery.record.clone())).collect();
    let e1 = log.state.edge_index("e1").unwrap();
    assert!(applied.deliveries.iter().all(|delivery| delivery.targets == Targets::Edges([e1][..].into())));
    let (index, entry) = log.entries.last().unwrap().clone();
    let logged = LoggedEntry { index, entry, refused: applied.refused.clone() };
    let from_log = expand::entry(log.state.id(), log.state.partition_count(), &logged);
    let from_log: Vec<_> = from_log
        .map(|(offset, expanded)| {
            assert_eq!(expanded.recipient, Recipient::Edge("e1".into()));
            (offset.position(), expanded.record)
        })
        .collect();
    assert_eq!(from_log, at_tail);
    let status = |record: &Record| record.decode::<v1::ConnectionRejected>().unwrap().status;
    at_tail.iter().map(|(_, record)| (record.connection, status(record))).collect()
}

#[test]
fn whatever_an_opening_is_refused_for_its_edge_is_told() {
    let mut log = Log::with_connection(&[]);
    let peer = "p".repeat(5000);
    let body = v1::ConnectionOpened { edge: "e1".into(), incarnation: 1, peer, ..Default::default() };
    let too_long = Record::new(RecordKind::ConnectionOpened, id(3), "chat", &body);
    let applied = log.edge(&[
        opened(id(1), "", &[]),
        opened(id(2), "", &["line\nbreak"]),
        too_long,
        message(id(3)),
        opened(id(4), "", &[]),
    ]);
    let refused = [Refusal::ConnectionExists, Refusal::Malformed, Refusal::Limit, Refusal::Gone];
    assert_eq!(applied.refused, (0..).zip(refused).collect::<Vec<_>>());
    assert_eq!(turned_away(&log, &applied), [(id(1), 409), (id(2), 500), (id(3), 503)]);
}

#[test]
fn openings_refused_with_their_batch_are_not_answered() {
    let mut log = Log::with_connection(&[]);
    for (incarnation, sequence) in [(1, 7), (9, 2)] {
        let applied = log.batch_of("e1", incarnation, sequence, &[opened(id(2), "", &[]), opened(id(3), "", &[])]);
        assert_eq!(applied.refused.len(), 2);
        assert_eq!(turned_away(&log, &applied), []);
    }
    // nor is what no edge wrote
    let applied = log.one(submit(), &[opened(id(2), "", &[])]);
    assert_eq!((applied.verdict(0), turned_away(&log, &applied)), (refused(Refusal::Malformed), Vec::new()));
}

#[test]
fn messages_of_a_connection_not_open_are_refused_alone() {
    let mut log = Log::with_connection(&[]);
    let applied = log.edge(&[message(id(1)), message(id(9)), message(id(1))]);
    assert_eq!(applied.refused, [(1, Refusal::Gone)]);
    assert_eq!(applied.reply(), Reply::Edge { last_sequence: 2 });
}

#[test]
fn another_edge_cannot_speak_for_a_connection() {
    let mut log = Log::with_connection(&[]);
    log.leader(&[attached("e2", 0, "n")]);
    let applied = log.batch_of("e2", 1, 1, &[message(id(1)), closed(id(1))]);
    assert_eq!(applied.refused, [(0, Refusal::Gone), (1, Refusal::Gone)]);
}

#[test]
fn an_event_names_the_api_of_its_connection() {
    let mut log = Log::with_connection(&[]);
    let other = Record::new(RecordKind::MessageReceived, id(1), "other", &v1::MessageReceived::default());
    assert_eq!(log.edge(&[other]).verdict(0), refused(Refusal::Malformed));
}

#[test]
fn opened_is_malformed_when_it_is_not_its_edges_own() {
    let mut log = Log::of(0, 2);
    log.leader(&[attached("e1", 0, "n")]);
    let of_other_edge = v1::ConnectionOpened { edge: "e2".into(), incarnation: 1, ..Default::default() };
    let of_other_life = v1::ConnectionOpened { edge: "e1".into(), incarnation: 2, ..Default::default() };
    let records = [
        opened(id_in(1, 1), "", &[]), // partition 1's
        opened(ConnectionId::NONE, "", &[]),
        opened(id(1), "no such name!", &[]),
        opened(id(1), "", &["line\nbreak"]),
        Record::new(RecordKind::ConnectionOpened, id(1), "chat", &of_other_edge),
        Record::new(RecordKind::ConnectionOpened, id(1), "chat", &of_other_life),
        Record::new(RecordKind::ConnectionOpened, id(1), "", &v1::ConnectionOpened::default()),
        pushed(id(1)), // no event
    ];
    let applied = log.edge(&records);
    let all: Vec<_> = (0..records.len() as u16).map(|position| (position, Refusal::Malformed)).collect();
    assert_eq!(applied.refused, all);
    assert_eq!(log.state.connection_count(), 0);
}

#[test]
fn opened_and_its_messages_may_share_a_batch() {
    let mut log = Log::with_edge();
    assert!(log.edge(&[opened(id(1), "", &[]), message(id(1)), closed(id(1))]).refused.is_empty());
}

#[test]
fn positions_count_over_all_batches() {
    let mut log = Log::with_connection(&[]);
    let edge = Source::Edge(v1::EdgeSource { edge: "e1".into(), incarnation: 1, sequence: 2 });
    let applied = log.put(&[
        Batch::new(submit(), &[pushed(id(9)), pushed(id(1))]),
        Batch::new(edge, &[message(id(9)), message(id(1))]),
    ]);
    assert_eq!(applied.refused, [(0, Refusal::Gone), (2, Refusal::Gone)]);
    assert_eq!((applied.outcomes[1].first, applied.outcomes[1].count), (2, 2));
    assert_eq!(applied.verdict(3), Verdict::Applied);
}

#[test]
fn time_never_goes_back() {
    let mut log = Log::with_edge();
    log.time = 500;
    assert_eq!(log.edge(&[opened(id(1), "", &[])]).time.0, 1_000_000);
    assert_eq!(log.state.connection(&id(1)).unwrap().opened_at.0, 1_000_000);
}

#[test]
fn pages_go_by_id() {
    let mut log = Log::with_edge();
    log.edge(&[opened(id(3), "", &[]), opened(id(1), "", &[]), opened(id(2), "", &[])]);
    let after: Vec<_> = log.state.connections_after(Some(id(1))).map(|view| view.id).collect();
    assert_eq!(after, [id(2), id(3)]);
    assert_eq!(log.state.connections_after(None).count(), 3);
}

#[test]
fn skipped_entries_move_applied_only() {
    let mut log = Log::with_connection(&[]);
    let digest = log.state.digest();
    log.state.skip(trunkline_proto::LogIndex(7));
    assert_eq!((log.state.applied().0, log.state.digest()), (7, digest));
    log.edge(&[closed(id(1))]);
    assert_eq!(log.offset(0), Offset::new(trunkline_proto::LogIndex(8), 0));
}
