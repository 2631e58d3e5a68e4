use super::{
    super::{Refusal, Reply, Targets},
    log::Log,
    *,
};

fn granted(incarnation: u64, last_sequence: u64) -> Reply {
    Reply::Attached { incarnation, last_sequence }
}

#[test]
fn partition_0_grants_incarnations_once_per_nonce() {
    let mut log = Log::new();
    assert_eq!(log.leader(&[attached("e1", 0, "a")]).reply(), granted(1, 0));
    log.edge(&[]);
    assert_eq!(log.leader(&[attached("e1", 0, "a")]).reply(), granted(1, 1));
    assert_eq!(log.leader(&[attached("e1", 1, "a")]).reply(), granted(1, 1));
    assert_eq!(log.leader(&[attached("e1", 0, "b")]).reply(), granted(2, 0));
    let applied = log.leader(&[attached("e1", 1, "a")]);
    assert_eq!((applied.verdict(0), applied.reply()), (refused(Refusal::Fenced), Reply::Fenced { current: 2 }));
    // never granted
    assert_eq!(log.leader(&[attached("e1", 9, "a")]).verdict(0), refused(Refusal::Fenced));
}

#[test]
fn other_partitions_take_what_was_granted_and_grant_nothing() {
    let mut log = Log::of(1, 2);
    assert_eq!(log.leader(&[attached("e1", 0, "a")]).verdict(0), refused(Refusal::Malformed));
    assert_eq!(log.leader(&[attached("e1", 4, "a")]).reply(), granted(4, 0));
    assert_eq!(log.leader(&[attached("e1", 3, "a")]).reply(), Reply::Fenced { current: 4 });
}

#[test]
fn batches_apply_once_and_in_order() {
    let mut log = Log::with_edge();
    log.batch_of("e1", 1, 1, &[opened(id(1), "", &[])]);
    for wrong in [0, 1, 3, u64::MAX] {
        let applied = log.batch_of("e1", 1, wrong, &[message(id(1)), message(id(1))]);
        assert_eq!(applied.refused, [(0, Refusal::OutOfSequence), (1, Refusal::WithBatch)]);
        assert_eq!(applied.reply(), Reply::Edge { last_sequence: 1 });
    }
    assert_eq!(log.batch_of("e1", 1, 2, &[message(id(1))]).reply(), Reply::Edge { last_sequence: 2 });
}

#[test]
fn an_unknown_edge_is_fenced() {
    let mut log = Log::new();
    let applied = log.batch_of("e7", 1, 1, &[opened(id(1), "", &[])]);
    assert_eq!((applied.verdict(0), applied.reply()), (refused(Refusal::Fenced), Reply::Fenced { current: 0 }));
}

#[test]
fn a_lost_edge_is_fenced_and_its_connections_are_owed_a_close() {
    let mut log = Log::with_connection(&["lobby"]);
    assert_eq!(log.leader(&[closed(id(1))]).verdict(0), refused(Refusal::NotOpen));
    assert!(log.leader(&[lost("e1", 1)]).refused.is_empty());
    assert_eq!(log.leader(&[lost("e1", 1)]).verdict(0), refused(Refusal::Fenced));
    let applied = log.edge(&[message(id(1))]);
    assert_eq!((applied.verdict(0), applied.reply()), (refused(Refusal::Fenced), Reply::Fenced { current: 1 }));
    assert_eq!(log.leader(&[attached("e1", 1, "n")]).reply(), Reply::Fenced { current: 1 });
    assert_eq!(log.state.obligations(10), [(id(1), "chat".to_owned())]);
    assert!(log.leader(&[closed(id(1))]).refused.is_empty());
    assert_eq!(log.leader(&[closed(id(1))]).verdict(0), refused(Refusal::Gone));
    assert_eq!((log.state.obligations(10).len(), log.state.channel_count()), (0, 0));
    // the same process may come back under a new incarnation
    assert_eq!(log.leader(&[attached("e1", 0, "n")]).reply(), granted(2, 0));
}

#[test]
fn a_replaced_incarnation_leaves_an_obligation_and_the_new_one_works() {
    let mut log = Log::with_connection(&[]);
    log.leader(&[attached("e1", 0, "twin")]);
    assert_eq!(log.edge(&[message(id(1))]).reply(), Reply::Fenced { current: 2 });
    let mut body: v1::ConnectionOpened = opened(id(2), "", &[]).decode().unwrap();
    body.incarnation = 2;
    let applied = log.batch_of("e1", 2, 1, &[Record::new(RecordKind::ConnectionOpened, id(2), "chat", &body)]);
    assert!(applied.refused.is_empty());
    assert_eq!(log.state.obligations(10), [(id(1), "chat".to_owned())]);
    assert_eq!(log.leader(&[closed(id(2))]).verdict(0), refused(Refusal::NotOpen));
    assert_eq!(log.state.edge("e1").unwrap().connections, 2);
}

#[test]
fn obligations_come_in_chunks() {
    let mut log = Log::with_edge();
    let records: Vec<_> = (1..=5).map(|n| opened(id(n), "", &[])).collect();
    log.edge(&records);
    log.leader(&[lost("e1", 1)]);
    assert_eq!(log.state.obligations(3).len(), 3);
}

#[test]
fn an_api_wide_publish_goes_to_every_edge() {
    let mut log = Log::with_edge();
    let body = v1::Published { api: "chat".into(), kind: 2, ..Default::default() };
    let applied = log.one(submit(), &[Record::new(RecordKind::Published, ConnectionId::NONE, "", &body)]);
    assert_eq!(applied.deliveries[0].targets, Targets::All);
}
