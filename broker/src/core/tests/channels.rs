use trunkline_proto::limits;

use super::{
    super::{Refusal, Verdict},
    log::Log,
    *,
};

fn members(log: &Log, channel: &str) -> Vec<ConnectionId> {
    log.state.channel_members(channel).collect()
}

#[test]
fn initial_channels_are_joined_at_once_and_told_one_by_one() {
    let mut log = Log::with_edge();
    let applied = log.edge(&[opened(id(1), "", &["b", "a", "b"])]);
    let delivered: Vec<_> = applied.deliveries.into_iter().map(|delivery| delivery.record).collect();
    assert_eq!(delivered, [joined(id(1), "b"), joined(id(1), "a")]);
    assert_eq!(log.state.channels().collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn joining_twice_is_applied_and_not_told() {
    let mut log = Log::with_connection(&[]);
    let applied = log.one(submit(), &[joined(id(1), "a"), joined(id(1), "a")]);
    assert_eq!((applied.refused.len(), applied.deliveries.len()), (0, 1));
    assert_eq!(members(&log, "a"), [id(1)]);
}

#[test]
fn leaving_is_told_once() {
    let mut log = Log::with_connection(&["a"]);
    let applied = log.one(submit(), &[left(id(1), "a"), left(id(1), "a")]);
    assert_eq!((applied.refused.len(), applied.deliveries.len()), (0, 1));
    assert_eq!(log.state.channel_count(), 0);
}

#[test]
fn a_publish_goes_to_edges_with_members_at_that_point() {
    let mut log = Log::with_connection(&[]);
    let applied =
        log.one(submit(), &[published("a"), joined(id(1), "a"), published("a"), left(id(1), "a"), published("a")]);
    let positions: Vec<_> = applied.deliveries.iter().map(|delivery| delivery.position).collect();
    assert_eq!((applied.refused.len(), positions), (0, vec![1, 2, 3]));
}

#[test]
fn a_close_takes_the_connection_out_of_its_channels_untold() {
    let mut log = Log::with_connection(&["a", "b"]);
    log.edge(&[opened(id(2), "", &["a"])]);
    assert!(log.edge(&[closed(id(1))]).deliveries.is_empty());
    assert_eq!((members(&log, "a"), log.state.channel_count()), (vec![id(2)], 1));
}

#[test]
fn channels_of_a_connection_are_bounded() {
    let mut log = Log::with_connection(&[]);
    let names: Vec<String> = (0..limits::CHANNELS_PER_CONNECTION_MAX).map(|n| format!("c{n}")).collect();
    let records: Vec<_> = names.iter().map(|name| joined(id(1), name)).collect();
    assert!(log.one(submit(), &records).refused.is_empty());
    assert_eq!(log.verdict(submit(), joined(id(1), "more")), refused(Refusal::Limit));
    assert_eq!(log.verdict(submit(), joined(id(1), "c0")), Verdict::Applied);
    let mut too_many: Vec<&str> = names.iter().map(String::as_str).collect();
    too_many.push("more");
    assert_eq!(log.edge(&[opened(id(2), "", &too_many)]).verdict(0), refused(Refusal::Limit));
    assert!(log.state.connection(&id(2)).is_none());
}

#[test]
fn members_are_listed_by_edge_then_id() {
    let mut log = Log::with_edge();
    log.edge(&[opened(id(2), "", &["a"]), opened(id(1), "", &["a"])]);
    assert_eq!(members(&log, "a"), [id(1), id(2)]);
}
