use trunkline_proto::{
    Batch, Entry, LogIndex, Offset, RecordKind, Source, limits, v1, v1::outcome::Verdict as Outcome,
};

use super::{
    super::{PARKED_MAX, Partition, Refusal, Reply, Verdict},
    log::Log,
    *,
};

pub(super) fn assigned(group: &str, epoch: u64, base: u64, through: u64) -> Record {
    assigned_with(group, epoch, base, through, &[])
}

fn assigned_with(group: &str, epoch: u64, base: u64, through: u64, holes: &[(u64, u32)]) -> Record {
    let body = v1::HandlerAssigned {
        group: group.into(),
        member: "m".into(),
        epoch,
        base,
        through,
        holes: proto_holes(holes),
        ..Default::default()
    };
    of_leader(RecordKind::HandlerAssigned, &body)
}

fn started(group: &str, at: v1::start::At) -> Record {
    let start = Some(v1::Start { at: Some(at) });
    let body = v1::HandlerAssigned { group: group.into(), member: "m".into(), epoch: 1, start, ..Default::default() };
    of_leader(RecordKind::HandlerAssigned, &body)
}

fn proto_holes(holes: &[(u64, u32)]) -> Vec<v1::Hole> {
    holes.iter().map(|(offset, attempt)| v1::Hole { offset: *offset, attempt: *attempt, not_before: 0 }).collect()
}

pub(super) fn commit(
    group: &str,
    epoch: u64,
    base: u64,
    through: u64,
    outcomes: &[(u64, Outcome)],
    holes: &[(u64, u32)],
    commands: &[Record],
) -> Batch {
    let outcome = |(offset, verdict): &(u64, Outcome)| v1::Outcome { offset: *offset, verdict: Some(verdict.clone()) };
    let body = v1::HandlerCommitted {
        group: group.into(),
        member: "m".into(),
        epoch,
        base,
        through,
        outcomes: outcomes.iter().map(outcome).collect(),
        holes: proto_holes(holes),
        commands: commands.len() as u32,
    };
    let mut records = vec![of_leader(RecordKind::HandlerCommitted, &body)];
    records.extend_from_slice(commands);
    Batch::new(Source::Commit, &records)
}

pub(super) fn ack() -> Outcome {
    Outcome::Acknowledged(v1::Acknowledged {})
}

fn again(delay_ms: u32) -> Outcome {
    Outcome::Refused(v1::Refused { delay_ms, released: false })
}

fn given_back() -> Outcome {
    Outcome::Refused(v1::Refused { delay_ms: 0, released: true })
}

fn parked() -> Outcome {
    Outcome::Parked(v1::Parked { reason: "broken".into(), record: "bytes".into(), attempt: 3 })
}

/// Group `g` at epoch 1 before four events: opened and three messages, at the returned offsets.
fn trimmed(through: u64, skipping: &[&str]) -> Record {
    let skipping = skipping.iter().map(|group| (*group).to_owned()).collect();
    of_leader(RecordKind::Trimmed, &v1::Trimmed { through, skipping })
}

fn four_events() -> (Log, u64, [u64; 4]) {
    let mut log = Log::with_edge();
    log.leader(&[assigned("g", 1, 0, 0)]);
    log.edge(&[opened(id(1), "", &[]), message(id(1)), message(id(1)), message(id(1))]);
    let base = log.state.group("g").unwrap().through.0;
    let offsets = [0, 1, 2, 3].map(|position| log.offset(position).0);
    (log, base, offsets)
}

fn holes(log: &Log) -> Vec<(u64, u32, u64)> {
    let group = log.state.group("g").unwrap();
    group.holes().map(|(offset, hole)| (offset.0, hole.attempt, hole.not_before.0)).collect()
}

#[test]
fn a_group_starts_where_its_first_assignment_says() {
    use v1::start::At;
    let mut log = Log::with_connection(&[]); // 1: attached, 2: opened
    log.edge(&[message(id(1)), message(id(1))]); // 3
    let starts = [
        ("latest", At::Latest(true), Offset::end_of(LogIndex(3)), 0),
        ("earliest", At::Earliest(true), Offset::ZERO, 3),
        ("offset", At::Offset(Offset::new(LogIndex(3), 1).0), Offset::new(LogIndex(3), 0), 3),
        ("future", At::Offset(u64::MAX), Offset::end_of(LogIndex(6)), 0),
    ];
    for (group, at, through, lag) in starts {
        assert_eq!(log.leader(&[started(group, at)]).reply(), Reply::Group { epoch: 1, through });
        assert_eq!(log.state.group_lag(group), lag, "{group}");
    }
    assert_eq!(log.leader(&[started("time", At::Time(5))]).verdict(0), refused(Refusal::Malformed));
}

#[test]
fn a_commit_settles_what_it_names_and_lag_falls() {
    let (mut log, base, [a, b, c, d]) = four_events();
    assert_eq!(log.state.group_lag("g"), 4);
    assert!(log.put(&[commit("g", 1, base, c, &[(a, ack()), (c, ack())], &[(b, 1)], &[])]).refused.is_empty());
    assert_eq!((log.state.group_lag("g"), holes(&log)), (2, vec![(b, 1, 0)]));
    assert_eq!(log.state.group("g").unwrap().through.0, c);
    assert!(log.put(&[commit("g", 1, c, d, &[(b, ack()), (d, ack())], &[], &[])]).refused.is_empty());
    assert_eq!((log.state.group_lag("g"), holes(&log).len()), (0, 0));
}

#[test]
fn a_commit_applies_wholly_or_not_at_all() {
    let (mut log, base, [a, b, c, d]) = four_events();
    let commands = [pushed(id(1)), pushed(id(1))];
    let mut expect = |batch: Batch, refusal: Refusal| {
        let applied = log.put(&[batch]);
        assert_eq!(applied.refused, [(0, refusal), (1, Refusal::WithBatch), (2, Refusal::WithBatch)]);
        assert!(applied.deliveries.is_empty());
    };
    expect(commit("g", 0, base, a, &[(a, ack())], &[], &commands), Refusal::StaleEpoch);
    expect(commit("g", 2, base, a, &[(a, ack())], &[], &commands), Refusal::StaleEpoch);
    expect(commit("none", 1, base, a, &[(a, ack())], &[], &commands), Refusal::StaleEpoch);
    expect(commit("g", 1, base - 1, a, &[(a, ack())], &[], &commands), Refusal::NotOpen);
    expect(commit("g", 1, base, base - 1, &[], &[], &commands), Refusal::NotOpen);
    expect(commit("g", 1, base, a, &[(a, ack()), (b, ack())], &[], &commands), Refusal::NotOpen);
    expect(commit("g", 1, base, b, &[(a, ack()), (a, ack())], &[(b, 1)], &commands), Refusal::NotOpen);
    expect(commit("g", 1, base, b, &[(a, ack()), (b, ack())], &[(b, 1)], &commands), Refusal::NotOpen);
    expect(commit("g", 1, base, a, &[(base, ack()), (a, ack())], &[], &commands), Refusal::NotOpen);
    expect(commit("g", 1, base, a, &[(a, ack())], &[(b, 1)], &commands), Refusal::NotOpen);
    expect(commit("g", 1, base, u64::MAX, &[(a, ack())], &[], &commands), Refusal::NotOpen);
    expect(commit("g", 1, base, d, &[(a, ack())], &[(c, 1), (b, 1)], &commands), Refusal::Malformed);
    expect(commit("g", 1, base, d, &[(a, ack())], &[(c, 0)], &commands), Refusal::Malformed);
    let applied = log.put(&[commit("g", 1, base, a, &[(a, ack())], &[], &[pushed(id(9)), pushed(id(1))])]);
    assert_eq!((applied.refused, applied.deliveries.len()), (vec![(1, Refusal::Gone)], 1));
}

#[test]
fn inside_a_commit_its_outcomes_and_the_commands_so_far_have_happened() {
    let (mut log, base, [a, ..]) = four_events();
    let before = log.state.clone();
    let joins = [joined(id(1), "red"), joined(id(9), "red"), joined(id(1), "blue")];
    let batch = commit("g", 1, base, a, &[(a, ack())], &[], &joins);
    assert_eq!(log.put(&[batch, Batch::new(submit(), &[joined(id(1), "green")])]).refused, [(2, Refusal::Gone)]);
    let (index, entry) = log.entries.last().unwrap();
    let mut digests = Vec::new();
    for (position, channels) in [(0, 0), (1, 1), (2, 1), (3, 2), (4, 3), (u16::MAX, 3)] {
        let mut state = before.clone();
        state.apply_until(*index, entry, position);
        state.check().unwrap();
        assert_eq!((state.group_lag("g"), state.group("g").unwrap().through.0), (3, a));
        assert_eq!(state.connection(&id(1)).unwrap().channels.len(), channels, "{position}");
        digests.push(state.digest());
    }
    assert_eq!(digests[4..], [log.state.digest(); 2]);
    digests.dedup();
    assert_eq!(digests.len(), 5, "what was folded is in the digest");
    // refused as a whole it has done nothing, wherever one looks
    let mut state = before.clone();
    let (refused_whole, seen) = (commit("g", 2, base, a, &[(a, ack())], &[], &joins), LogIndex(index.0));
    let entry = Entry { time: entry.time, batches: vec![refused_whole] };
    state.apply_until(seen, &entry, 1);
    assert_eq!((state.group_lag("g"), state.connection(&id(1)).unwrap().channels.len()), (4, 0));
}

#[test]
fn a_commit_of_the_wrong_shape_is_malformed() {
    let (mut log, base, [a, ..]) = four_events();
    let good = commit("g", 1, base, a, &[(a, ack())], &[], &[pushed(id(1))]);
    let records: Vec<Record> = good.iter().map(Result::unwrap).collect();
    let shapes: [&[Record]; 4] = [
        &records[..1],                             // a command too few
        &records[1..],                             // no outcomes
        &[records[0].clone(), records[0].clone()], // no command
        &[records[0].clone(), message(id(1))],     // an event
    ];
    for shape in shapes {
        assert_eq!(log.one(Source::Commit, shape).verdict(0), refused(Refusal::Malformed));
    }
    assert!(log.one(Source::Commit, &[]).refused.is_empty());
    assert!(log.put(&[good]).refused.is_empty());
}

#[test]
fn the_same_commit_twice_settles_once() {
    let (mut log, base, [a, ..]) = four_events();
    let batch = commit("g", 1, base, a, &[(a, ack())], &[], &[pushed(id(1))]);
    assert_eq!(log.put(std::slice::from_ref(&batch)).deliveries.len(), 1);
    let applied = log.put(&[batch]);
    assert_eq!((applied.verdict(0), applied.deliveries.len()), (refused(Refusal::NotOpen), 0));
}

#[test]
fn refused_events_come_again_and_released_ones_keep_their_attempt() {
    let (mut log, base, [a, b, c, _]) = four_events();
    let outcomes = [(a, again(0)), (b, again(250)), (c, given_back())];
    log.put(&[commit("g", 1, base, c, &outcomes, &[], &[])]);
    assert_eq!(holes(&log), [(a, 2, 0), (b, 2, 1_250_000), (c, 1, 0)]);
    log.put(&[commit("g", 1, c, c, &[(a, given_back()), (b, again(0))], &[], &[])]);
    assert_eq!(holes(&log), [(a, 2, 0), (b, 3, 0), (c, 1, 0)]);
}

#[test]
fn parked_events_are_kept_with_their_bytes() {
    let (mut log, base, [a, b, ..]) = four_events();
    log.put(&[commit("g", 1, base, b, &[(a, parked())], &[(b, 1)], &[])]);
    log.put(&[commit("g", 1, b, b, &[(b, parked())], &[], &[])]);
    let group = log.state.group("g").unwrap();
    let kept: Vec<_> = group.parked().map(|(offset, event)| (offset.0, event.attempt, &event.record[..])).collect();
    assert_eq!(kept, [(a, 3, &b"bytes"[..]), (b, 3, &b"bytes"[..])]);
    assert_eq!((group.lag, group.hole_count(), group.settled), (2, 0, 2));
}

#[test]
fn too_many_parked_events_or_holes_refuse_the_commit() {
    let mut log = Log::with_edge();
    log.leader(&[assigned("g", 1, 0, 0)]);
    let mut base = log.state.group("g").unwrap().through.0;
    for _ in 0..4 {
        log.edge(&vec![message(id(9)); 4000]);
    }
    let mut round = |verdict: fn(u64) -> (u64, Outcome), index: u64, count: u16| {
        let offsets: Vec<u64> = (0..count).map(|n| Offset::new(LogIndex(index), n).0).collect();
        let through = offsets[offsets.len() - 1];
        let outcomes: Vec<_> = offsets.into_iter().map(verdict).collect();
        let verdict = log.put(&[commit("g", 1, base, through, &outcomes, &[], &[])]).verdict(0);
        if verdict == Verdict::Applied {
            base = through;
        }
        verdict
    };
    let park: fn(u64) -> (u64, Outcome) = |offset| (offset, parked());
    assert_eq!((PARKED_MAX, limits::HOLES_MAX), (10_000, 10_000));
    assert_eq!([round(park, 3, 4000), round(park, 4, 4000), round(park, 5, 2000)], [const { Verdict::Applied }; 3]);
    assert_eq!(round(park, 6, 1), refused(Refusal::Limit));
    let refuse: fn(u64) -> (u64, Outcome) = |offset| (offset, again(0));
    assert_eq!(
        [round(refuse, 7, 4000), round(refuse, 8, 4000), round(refuse, 9, 2000)],
        [const { Verdict::Applied }; 3]
    );
    assert_eq!(round(refuse, 10, 1), refused(Refusal::Limit));
}

#[test]
fn an_assignment_follows_the_last_epoch_and_hands_over_what_was_given() {
    let (mut log, base, [a, b, c, d]) = four_events();
    log.put(&[commit("g", 1, base, b, &[(b, ack())], &[(a, 1)], &[])]);
    for (record, refusal) in [
        (assigned("g", 1, b, b), Refusal::StaleEpoch),
        (assigned("g", 3, b, b), Refusal::StaleEpoch),
        (assigned("g", 2, base, b), Refusal::NotOpen),
        (assigned_with("g", 2, b, d, &[(base, 1)]), Refusal::NotOpen),
        (assigned("new", 2, 0, 0), Refusal::StaleEpoch),
        (assigned("no name", 1, 0, 0), Refusal::Malformed),
    ] {
        assert_eq!(log.leader(&[record]).verdict(0), refused(refusal));
    }
    let applied = log.leader(&[assigned_with("g", 2, b, d, &[(a, 2), (c, 2), (d, 2)])]);
    assert_eq!(applied.reply(), Reply::Group { epoch: 2, through: Offset(d) });
    assert_eq!(holes(&log), [(a, 2, 0), (c, 2, 0), (d, 2, 0)]);
    assert_eq!(log.state.group_lag("g"), 3);
    // the last member's commits are of no use any more
    assert_eq!(log.put(&[commit("g", 1, d, d, &[(a, ack())], &[], &[])]).verdict(0), refused(Refusal::StaleEpoch));
    assert_eq!(log.put(&[commit("g", 2, d, d, &[(a, ack())], &[], &[])]).verdict(0), Verdict::Applied);
}

#[test]
fn a_reset_moves_a_group_and_clears_its_holes() {
    let (mut log, base, [a, b, ..]) = four_events();
    log.put(&[commit("g", 1, base, b, &[(b, ack())], &[(a, 1)], &[])]);
    let reset = |group: &str, through: u64| {
        of_leader(RecordKind::GroupReset, &v1::GroupReset { group: group.into(), through, ..Default::default() })
    };
    assert_eq!(log.leader(&[reset("none", 0)]).verdict(0), refused(Refusal::Gone));
    assert_eq!(log.leader(&[reset("g", u64::MAX)]).verdict(0), refused(Refusal::Malformed));
    assert_eq!(log.leader(&[reset("g", 0)]).reply(), Reply::Group { epoch: 1, through: Offset::ZERO });
    assert_eq!((holes(&log).len(), log.state.group_lag("g")), (0, 4));
    assert_eq!(log.put(&[commit("g", 1, b, b, &[], &[], &[])]).verdict(0), refused(Refusal::NotOpen));
    assert_eq!(log.put(&[commit("g", 1, 0, a, &[(a, ack())], &[], &[])]).verdict(0), Verdict::Applied);
}

#[test]
fn a_dead_letter_is_taken_out_to_be_tried_again_or_forgotten() {
    let (mut log, base, [a, b, c, d]) = four_events();
    let release = |log: &mut Log, group: &str, offsets: &[u64], discard: bool| {
        let body = v1::ParkedReleased { group: group.into(), offsets: offsets.into(), discard };
        log.leader(&[of_leader(RecordKind::ParkedReleased, &body)]).verdict(0)
    };
    let left = |log: &Log| log.state.group("g").unwrap().parked().map(|(offset, _)| offset.0).collect::<Vec<_>>();
    log.put(&[commit("g", 1, base, d, &[(a, parked()), (b, parked()), (c, parked()), (d, ack())], &[], &[])]);
    for wrong in [&[] as &[u64], &[b, a], &[a, a]] {
        assert_eq!(release(&mut log, "g", wrong, false), refused(Refusal::Malformed), "{wrong:?}");
    }
    assert_eq!(release(&mut log, "none", &[a], false), refused(Refusal::Gone));
    assert_eq!(release(&mut log, "g", &[a, d], false), refused(Refusal::Gone), "one of them is none: nothing happens");
    assert_eq!((left(&log), log.state.group_lag("g")), (vec![a, b, c], 0));
    assert_eq!(release(&mut log, "g", &[b], false), Verdict::Applied);
    assert_eq!((left(&log), holes(&log), log.state.group_lag("g")), (vec![a, c], vec![(b, 1, 0)], 1));
    assert_eq!(log.state.retention_limit(&[]).0, b - 1, "it is needed again");
    assert_eq!(release(&mut log, "g", &[b], false), refused(Refusal::Gone), "it is open already");
    // the member may settle it, in the epoch it has
    assert_eq!(log.put(&[commit("g", 1, d, d, &[(b, parked())], &[], &[])]).verdict(0), Verdict::Applied);
    assert_eq!((left(&log), log.state.group_lag("g")), (vec![a, b, c], 0));
    // what is in no log any more can only be forgotten
    let trimmed = trimmed(a, &[]);
    assert_eq!(log.leader(&[trimmed]).verdict(0), Verdict::Applied);
    assert_eq!(release(&mut log, "g", &[a, c], false), refused(Refusal::NotOpen));
    assert_eq!(release(&mut log, "g", &[a, c], true), Verdict::Applied);
    assert_eq!((left(&log), holes(&log), log.state.group_lag("g")), (vec![b], vec![], 0));
    // after a reset over it, it is open before it is taken out
    let reset = v1::GroupReset { group: "g".into(), through: a, ..Default::default() };
    log.leader(&[of_leader(RecordKind::GroupReset, &reset)]);
    assert_eq!(release(&mut log, "g", &[b], false), Verdict::Applied);
    assert_eq!((left(&log), holes(&log)), (vec![], vec![]));
}

#[test]
fn lag_counts_what_the_filter_takes_only() {
    let mut log = Log::with_edge();
    let filtered = |group: &str, apis: &[&str], kinds: &[u32]| {
        let apis = apis.iter().map(|api| (*api).into()).collect();
        let (group, member) = (group.into(), "m".into());
        let body = v1::HandlerAssigned { group, member, epoch: 1, apis, kinds: kinds.into(), ..Default::default() };
        of_leader(RecordKind::HandlerAssigned, &body)
    };
    log.leader(&[filtered("chat", &["chat"], &[]), filtered("other", &["other"], &[]), filtered("opened", &[], &[1])]);
    assert_eq!(log.leader(&[filtered("bad", &[], &[18])]).verdict(0), refused(Refusal::Malformed));
    log.edge(&[opened(id(1), "", &[]), message(id(1)), message(id(9)), closed(id(1))]);
    assert_eq!(["chat", "other", "opened", "none"].map(|group| log.state.group_lag(group)), [3, 0, 1, 0]);
}

#[test]
fn a_filter_that_changes_is_counted_anew_and_nobody_keeps_it() {
    let (mut log, base, _) = four_events();
    let nobody = v1::HandlerAssigned { group: "g".into(), epoch: 2, base, through: base, ..Default::default() };
    log.leader(&[of_leader(RecordKind::HandlerAssigned, &nobody)]);
    let group = log.state.group("g").unwrap();
    assert_eq!((group.member, group.epoch, group.lag), ("", 2, 4));
    let messages = v1::HandlerAssigned { member: "m".into(), epoch: 3, kinds: vec![2], ..nobody };
    log.leader(&[of_leader(RecordKind::HandlerAssigned, &messages)]);
    assert_eq!(log.state.group_lag("g"), 3);
}

#[test]
fn lag_is_right_again_at_the_end_of_a_long_log() {
    let mut log = Log::with_connection(&[]);
    for _ in 0..10 {
        log.edge(&vec![message(id(1)); 4000]);
    }
    let middle = Offset::new(LogIndex(7), 0).0;
    log.leader(&[started("g", v1::start::At::Offset(middle))]);
    // 24,000 messages are open; counted from the sample before
    let lag = log.state.group_lag("g");
    assert!((24_000..=28_096).contains(&lag), "{lag}");
    let (base, end) = (log.state.group("g").unwrap().through.0, log.offset(0).0);
    log.put(&[commit("g", 1, base, end, &[], &[(middle, 1)], &[])]);
    assert_eq!(log.state.group_lag("g"), 1);
}

#[test]
fn nothing_a_group_still_needs_is_trimmed() {
    let (mut log, base, [a, b, c, _]) = four_events();
    let trim = |log: &mut Log, through: u64| log.leader(&[trimmed(through, &[])]).verdict(0);
    assert_eq!(trim(&mut log, a), refused(Refusal::NotOpen));
    log.put(&[commit("g", 1, base, c, &[(a, ack()), (c, ack())], &[(b, 1)], &[])]);
    assert_eq!(log.state.retention_limit(&[]).0, b - 1);
    assert_eq!(trim(&mut log, b), refused(Refusal::NotOpen));
    assert_eq!(trim(&mut log, a), Verdict::Applied);
    assert_eq!(trim(&mut log, a), refused(Refusal::NotOpen));
    assert_eq!(log.state.trimmed().0, a);
    log.leader(&[started("late", v1::start::At::Earliest(true))]);
    assert_eq!(log.state.group("late").unwrap().through.0, a);
}

#[test]
fn what_retention_takes_of_a_group_is_skipped_and_what_is_settled_stays_so() {
    let (mut log, base, [a, b, c, d]) = four_events();
    let skip = |through: u64| trimmed(through, &["g"]);
    log.put(&[commit("g", 1, base, d, &[(a, ack()), (d, ack())], &[(b, 1), (c, 2)], &[])]);
    // a hole goes; the prefix is beyond it and does not come back
    assert_eq!(log.leader(&[skip(b)]).verdict(0), Verdict::Applied);
    assert_eq!(log.state.group("g").unwrap().through.0, d);
    assert_eq!((holes(&log), log.state.group_lag("g")), (vec![(c, 2, 0)], 1));
    let skipped = log.state.group("g").unwrap().skipped().unwrap();
    assert_eq!((skipped.after.0, skipped.through.0, skipped.epoch), (b - 1, b, 1));
    // whoever has the partition now was not told: what it settles proves nothing
    log.put(&[commit("g", 1, d, d, &[(c, again(0))], &[], &[])]);
    assert_eq!(log.state.group("g").unwrap().skipped(), Some(skipped));
    // more goes than it has settled
    log.edge(&[message(id(1))]);
    let end = Offset::end_of(log.state.applied()).0;
    log.leader(&[skip(end)]);
    let view = log.state.group("g").unwrap();
    assert_eq!((view.through.0, view.lag, view.hole_count()), (end, 0, 0));
    assert_eq!(view.skipped().map(|all| (all.after.0, all.through.0)), Some((b - 1, end)));
    assert_eq!(log.state.check(), Ok(()));
    assert!(Partition::decode(&log.state.encode()).unwrap() == log.state);
    // the next member is told, and has read it once it settles something
    log.leader(&[assigned("g", 2, end, end)]);
    log.edge(&[message(id(1))]);
    let next = log.offset(0).0;
    log.put(&[commit("g", 2, end, end, &[], &[], &[])]);
    assert!(log.state.group("g").unwrap().skipped().is_some(), "the broker's own commit proves nothing");
    log.put(&[commit("g", 2, end, next, &[(next, ack())], &[], &[])]);
    assert_eq!(log.state.group("g").unwrap().skipped(), None);
}

#[test]
fn a_trim_that_is_refused_takes_nothing_of_anybody() {
    let (mut log, _, [a, b, ..]) = four_events();
    // it came after the leader had looked
    log.leader(&[started("late", v1::start::At::Offset(a))]);
    let before = log.state.clone();
    let open = |log: &Log| log.state.group("g").map(|view| (view.retention_limit(), view.skipped().is_some()));
    assert_eq!(log.leader(&[trimmed(b, &["g"])]).verdict(0), refused(Refusal::NotOpen));
    assert_eq!(open(&log), Some((before.group("g").unwrap().retention_limit(), false)));
    assert_eq!(log.state.trimmed(), before.trimmed());
    // nor beyond what is to be forwarded or there at all
    assert_eq!(log.leader(&[trimmed(u64::MAX, &["g", "late"])]).verdict(0), refused(Refusal::NotOpen));
    assert_eq!(open(&log).map(|(_, told)| told), Some(false));
    // one that is forgotten by then is no obstacle
    assert_eq!(log.leader(&[trimmed(b, &["g", "late", "gone"])]).verdict(0), Verdict::Applied);
    for group in ["g", "late"] {
        let view = log.state.group(group).unwrap();
        assert_eq!(
            (view.retention_limit().0, view.skipped().map(|skipped| skipped.through.0)),
            (b, Some(b)),
            "{group}"
        );
    }
    assert_eq!(log.state.trimmed().0, b);
}

#[test]
fn a_group_whose_start_is_trimmed_is_told_unless_it_takes_what_there_is() {
    use v1::start::At;
    let mut log = Log::with_connection(&[]);
    log.edge(&[message(id(1))]);
    let through = Offset::end_of(log.state.applied());
    log.leader(&[trimmed(through.0, &[])]);
    let skipped = |log: &Log, group: &str| {
        let view = log.state.group(group).unwrap();
        assert!(view.through >= through);
        view.skipped().map(|skipped| (skipped.after.0, skipped.through))
    };
    for (group, at, told) in [
        ("earliest", At::Earliest(true), None),
        ("latest", At::Latest(true), None),
        ("next", At::Offset(through.0 + 1), None),
        ("last", At::Offset(through.0), Some((through.0 - 1, through))),
        ("first", At::Offset(0), Some((0, through))),
    ] {
        assert_eq!(log.leader(&[started(group, at)]).verdict(0), Verdict::Applied);
        assert_eq!(skipped(&log, group), told, "{group}");
    }
    assert_eq!(log.state.check(), Ok(()));
    assert!(Partition::decode(&log.state.encode()).unwrap() == log.state);
}

#[test]
fn a_group_is_forgotten_only_while_nobody_is_its_member() {
    let (mut log, base, _) = four_events();
    let forget = |log: &mut Log, group: &str, epoch: u64| {
        let body = v1::GroupDropped { group: group.into(), epoch };
        log.leader(&[of_leader(RecordKind::GroupDropped, &body)]).verdict(0)
    };
    assert_eq!(forget(&mut log, "nobody", 1), refused(Refusal::Gone));
    assert_eq!(forget(&mut log, "g", 1), refused(Refusal::NotOpen));
    let nobody = v1::HandlerAssigned { group: "g".into(), epoch: 2, base, through: base, ..Default::default() };
    log.leader(&[of_leader(RecordKind::HandlerAssigned, &nobody)]);
    let active = log.state.group("g").unwrap().active;
    assert_eq!(active, log.state.time());
    assert_eq!(forget(&mut log, "g", 1), refused(Refusal::StaleEpoch), "it was assigned meanwhile");
    assert_eq!(forget(&mut log, "g", 2), Verdict::Applied);
    assert!(log.state.group("g").is_none());
    assert_eq!(log.state.retention_limit(&[]), Offset::end_of(log.state.applied()), "it holds nothing back any more");
    log.put(&[commit("g", 2, base, base, &[], &[], &[])]);
    assert!(log.state.group("g").is_none());
    log.leader(&[started("g", v1::start::At::Earliest(true))]);
    assert_eq!(log.state.group("g").unwrap().epoch, 1, "it begins anew");
}

#[test]
fn what_is_trimmed_is_not_counted_as_retained() {
    let mut log = Log::with_connection(&[]);
    for _ in 0..40 {
        log.edge(&vec![message(id(1)); 1000]);
    }
    let before = log.state.retained_bytes();
    let milestones: Vec<_> = log.state.milestones().collect();
    let middle = milestones[milestones.len() / 2];
    log.leader(&[trimmed(Offset::end_of(middle.index).0, &[])]);
    assert_eq!(log.state.first_retained(), LogIndex(middle.index.0 + 1));
    let added = log.state.retained_bytes() + middle.bytes - before;
    assert!(added < 200, "but for the record itself: {added}");
    assert!(log.state.milestones().next().unwrap().index > middle.index);
}

#[test]
fn an_apply_version_nobody_knows_is_refused() {
    let mut log = Log::new();
    for version in [0, 1, 2, u32::MAX] {
        let record = of_leader(RecordKind::ApplyVersion, &v1::ApplyVersion { version });
        assert_eq!(log.leader(&[record]).verdict(0), refused(Refusal::Malformed));
    }
    assert_eq!(log.state.apply_version(), 1);
}
