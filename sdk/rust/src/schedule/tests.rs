use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;
use trunkline_proto::{limits, v1::subscribe_request::Request};

use super::*;

fn bounds() -> Bounds {
    Bounds { workers: 4, credit: 64, commits_max: 2, extend_every: Duration::from_secs(10) }
}

fn connection(n: u8) -> Bytes {
    Bytes::copy_from_slice(&[n; 16])
}

fn event(offset: u64, lane: u8) -> v1::Event {
    v1::Event { offset, attempt: 1, connection: connection(lane), ..Default::default() }
}

fn events(partition: u32, epoch: u64, events: Vec<v1::Event>) -> v1::Events {
    v1::Events { partition, epoch, events }
}

fn start() -> (Schedule, Instant) {
    let mut schedule = Schedule::new(bounds());
    schedule.handle_assigned(0, 1);
    (schedule, Instant::now())
}

fn commit(schedule: &mut Schedule, now: Instant) -> v1::Commit {
    match schedule.next_request(now) {
        Some(Request::Commit(commit)) => commit,
        other => panic!("{other:?}"),
    }
}

fn acknowledge(schedule: &mut Schedule, work: &Work) {
    schedule.handle_finished(work.id, Verdict::Acknowledge(vec![v1::Command::default()]));
}

fn offsets(commit: &v1::Commit) -> Vec<u64> {
    commit.outcomes.iter().map(|outcome| outcome.offset).collect()
}

fn is_released(outcome: &v1::Outcome) -> bool {
    matches!(&outcome.verdict, Some(v1::outcome::Verdict::Refused(refused)) if refused.released)
}

#[test]
fn one_event_of_a_connection_runs_at_a_time() {
    let (mut schedule, now) = start();
    schedule.handle_events(now, events(0, 1, vec![event(1, 1), event(2, 1), event(3, 2)])).unwrap();
    let (first, other) = (schedule.next_work().unwrap(), schedule.next_work().unwrap());
    assert_eq!((first.event.offset, other.event.offset), (1, 3));
    assert!(schedule.next_work().is_none());
    acknowledge(&mut schedule, &first);
    assert_eq!(schedule.next_work().unwrap().event.offset, 2);
}

#[test]
fn what_has_finished_goes_into_one_commit() {
    let (mut schedule, now) = start();
    schedule.handle_events(now, events(0, 1, (1..=4).map(|n| event(n, n as u8)).collect())).unwrap();
    for _ in 0..4 {
        let work = schedule.next_work().unwrap();
        acknowledge(&mut schedule, &work);
    }
    let commit = commit(&mut schedule, now);
    assert_eq!((offsets(&commit), commit.commands.len()), (vec![1, 2, 3, 4], 4));
    assert!(!schedule.has_request(now));
    schedule.handle_committed(now, commit.id, Code::Applied);
    assert!(schedule.is_drained());
}

#[test]
fn a_connection_s_later_outcome_waits_for_the_commit_before_it() {
    let (mut schedule, now) = start();
    schedule.handle_events(now, events(0, 1, vec![event(1, 1), event(2, 1)])).unwrap();
    let work = schedule.next_work().unwrap();
    acknowledge(&mut schedule, &work);
    let first = commit(&mut schedule, now);
    let work = schedule.next_work().unwrap();
    acknowledge(&mut schedule, &work);
    assert!(!schedule.has_request(now));
    // came to nothing: both go together, in order, after a pause
    schedule.handle_committed(now, first.id, Code::Throttled);
    assert!(!schedule.has_request(now));
    let later = schedule.next_timer().unwrap();
    assert_eq!(offsets(&commit(&mut schedule, later)), [1, 2]);
}

#[test]
fn refusing_an_event_gives_back_the_later_ones() {
    let (mut schedule, now) = start();
    schedule.handle_events(now, events(0, 1, vec![event(1, 1), event(2, 1), event(3, 1)])).unwrap();
    let work = schedule.next_work().unwrap();
    schedule.handle_finished(work.id, Verdict::Refuse(Duration::from_millis(700)));
    let refused = commit(&mut schedule, now);
    assert_eq!(offsets(&refused), [1, 2, 3]);
    let delay = v1::Refused { delay_ms: 700, released: false };
    assert_eq!(refused.outcomes[0].verdict, Some(v1::outcome::Verdict::Refused(delay)));
    assert!(refused.outcomes[1..].iter().all(is_released));
    // one more was on its way: it is given back too, and nothing runs
    schedule.handle_events(now, events(0, 1, vec![event(4, 1)])).unwrap();
    assert!(schedule.next_work().is_none());
    schedule.handle_committed(now, refused.id, Code::Applied);
    let late = commit(&mut schedule, now);
    assert!(offsets(&late) == [4] && is_released(&late.outcomes[0]));
    schedule.handle_committed(now, late.id, Code::Applied);
    // and then it all comes again
    schedule.handle_events(now, events(0, 1, vec![event(1, 1), event(2, 1)])).unwrap();
    assert_eq!(schedule.next_work().unwrap().event.offset, 1);
}

#[test]
fn a_refused_event_may_come_again_before_the_commit_s_answer() {
    let (mut schedule, now) = start();
    schedule.handle_events(now, events(0, 1, vec![event(1, 1)])).unwrap();
    let work = schedule.next_work().unwrap();
    schedule.handle_finished(work.id, Verdict::Refuse(Duration::ZERO));
    let refused = commit(&mut schedule, now);
    schedule.handle_events(now, events(0, 1, vec![event(1, 1), event(2, 1)])).unwrap();
    let again = schedule.next_work().unwrap();
    assert_eq!(again.event.offset, 1);
    schedule.handle_committed(now, refused.id, Code::Applied);
    acknowledge(&mut schedule, &again);
    assert_eq!(offsets(&commit(&mut schedule, now)), [1]);
    assert_eq!(schedule.next_work().unwrap().event.offset, 2);
}

#[test]
fn a_redelivery_of_what_is_still_here_is_ignored() {
    let (mut schedule, now) = start();
    schedule.handle_events(now, events(0, 1, vec![event(1, 1), event(2, 1)])).unwrap();
    let work = schedule.next_work().unwrap();
    schedule.handle_events(now, events(0, 1, vec![event(1, 1), event(2, 1)])).unwrap();
    acknowledge(&mut schedule, &work);
    let first = commit(&mut schedule, now);
    schedule.handle_events(now, events(0, 1, vec![event(1, 1)])).unwrap();
    schedule.handle_committed(now, first.id, Code::Applied);
    let work = schedule.next_work().unwrap();
    assert_eq!(work.event.offset, 2);
    acknowledge(&mut schedule, &work);
    let last = commit(&mut schedule, now);
    schedule.handle_committed(now, last.id, Code::Applied);
    assert!(schedule.is_drained());
}

#[test]
fn a_stale_epoch_drops_everything_but_the_runs() {
    let (mut schedule, now) = start();
    schedule.handle_events(now, events(0, 1, (1..=9).map(|n| event(n, (n % 3) as u8)).collect())).unwrap();
    let work = schedule.next_work().unwrap();
    let still_running = schedule.next_work().unwrap();
    acknowledge(&mut schedule, &work);
    let commit = commit(&mut schedule, now);
    schedule.handle_committed(now, commit.id, Code::StaleEpoch);
    assert!(!schedule.has_request(now) && schedule.next_work().is_none());
    schedule.handle_events(now, events(0, 1, vec![event(10, 1)])).unwrap();
    assert!(schedule.next_work().is_none(), "events of an epoch that is over");
    // assigned again: the connection whose old run goes on waits for it
    schedule.handle_assigned(0, 2);
    let lane = still_running.event.connection[0];
    schedule.handle_events(now, events(0, 2, vec![event(still_running.event.offset, lane)])).unwrap();
    assert!(schedule.next_work().is_none());
    acknowledge(&mut schedule, &still_running);
    assert!(!schedule.has_request(now), "the old run comes to nothing");
    assert_eq!(schedule.next_work().unwrap().event.offset, still_running.event.offset);
}

#[test]
fn one_outcome_that_is_not_open_does_not_hold_up_the_others() {
    let (mut schedule, now) = start();
    schedule.handle_events(now, events(0, 1, (1..=3).map(|n| event(n, n as u8)).collect())).unwrap();
    for _ in 0..3 {
        let work = schedule.next_work().unwrap();
        acknowledge(&mut schedule, &work);
    }
    let all = commit(&mut schedule, now);
    schedule.handle_committed(now, all.id, Code::NotOpen);
    let mut sent = Vec::new();
    while let Some(Request::Commit(one)) = schedule.next_request(now) {
        assert_eq!(one.outcomes.len(), 1);
        sent.push(one.outcomes[0].offset);
        let code = if one.outcomes[0].offset == 2 { Code::NotOpen } else { Code::Applied };
        schedule.handle_committed(now, one.id, code);
    }
    sent.sort_unstable();
    assert_eq!(sent, [1, 2, 3]);
    assert!(schedule.is_drained());
}

#[test]
fn events_after_one_whose_outcome_came_too_late_are_given_back_in_order() {
    let (mut schedule, now) = start();
    schedule.handle_events(now, events(0, 1, (1..=3).map(|n| event(n, 1)).collect())).unwrap();
    let first = schedule.next_work().unwrap();
    acknowledge(&mut schedule, &first);
    let late = commit(&mut schedule, now);
    let running = schedule.next_work().unwrap();
    assert_eq!((offsets(&late), running.event.offset), (vec![1], 2));
    schedule.handle_committed(now, late.id, Code::NotOpen);
    assert!(!schedule.has_request(now), "3 goes back behind 2");
    acknowledge(&mut schedule, &running);
    assert!(schedule.next_work().is_none());
    let back = commit(&mut schedule, now);
    assert_eq!((offsets(&back), back.commands.len()), (vec![2, 3], 0));
    assert!(back.outcomes.iter().all(is_released));
    schedule.handle_committed(now, back.id, Code::Applied);
    schedule.handle_events(now, events(0, 1, (1..=3).map(|n| event(n, 1)).collect())).unwrap();
    for offset in 1..=3 {
        let work = schedule.next_work().unwrap();
        assert_eq!(work.event.offset, offset);
        acknowledge(&mut schedule, &work);
    }
}

#[test]
fn an_answer_the_broker_finds_malformed_is_refused_without_its_commands() {
    let (mut schedule, now) = start();
    schedule.handle_events(now, events(0, 1, vec![event(1, 1), event(2, 1)])).unwrap();
    let work = schedule.next_work().unwrap();
    acknowledge(&mut schedule, &work);
    let bad = commit(&mut schedule, now);
    let running = schedule.next_work().unwrap();
    assert_eq!(schedule.handle_committed(now, bad.id, Code::Invalid), Some(Code::Invalid));
    acknowledge(&mut schedule, &running);
    let later = schedule.next_timer().unwrap();
    let again = commit(&mut schedule, later);
    assert_eq!((offsets(&again), again.commands.len()), (vec![1, 2], 0));
    assert!(!is_released(&again.outcomes[0]) && is_released(&again.outcomes[1]));
}

#[test]
fn slow_events_are_extended() {
    let (mut schedule, now) = start();
    schedule.handle_events(now, events(0, 1, vec![event(1, 1), event(2, 1)])).unwrap();
    schedule.next_work().unwrap();
    let later = schedule.next_timer().unwrap();
    assert_eq!(later, now + bounds().extend_every);
    schedule.handle_timer(later);
    match schedule.next_request(later) {
        Some(Request::Extend(extend)) => assert_eq!((extend.epoch, extend.offsets), (1, vec![2, 1])),
        other => panic!("{other:?}"),
    }
}

#[test]
fn commits_stay_within_the_limits() {
    let (mut schedule, now) = start();
    schedule.handle_events(now, events(0, 1, vec![event(1, 1), event(2, 2), event(3, 3)])).unwrap();
    let large = |bytes: usize, count: usize| {
        let push = v1::Pushed { kind: 1, payload: vec![0; bytes].into() };
        vec![v1::Command { command: Some(v1::command::Command::Push(push)), ..Default::default() }; count]
    };
    for commands in [large(10, 1000), large(10, 100), large(3 << 20, 1)] {
        let work = schedule.next_work().unwrap();
        schedule.handle_finished(work.id, Verdict::Acknowledge(commands));
    }
    assert_eq!(offsets(&commit(&mut schedule, now)), [1], "1,024 commands");
    assert_eq!(offsets(&commit(&mut schedule, now)), [2], "1 MiB");
    assert!(!schedule.has_request(now), "two commits are on their way");
}

#[test]
fn stopping_gives_back_what_has_not_begun() {
    let (mut schedule, now) = start();
    schedule.handle_events(now, events(0, 1, vec![event(1, 1), event(2, 1), event(3, 2)])).unwrap();
    let work = schedule.next_work().unwrap();
    schedule.handle_stop();
    assert!(schedule.next_work().is_none());
    assert!(matches!(schedule.next_request(now), Some(Request::Credit(credit)) if credit.amount == -64));
    let given_back = commit(&mut schedule, now);
    assert!(given_back.outcomes.iter().all(is_released) && given_back.outcomes.len() == 2);
    schedule.handle_committed(now, given_back.id, Code::Applied);
    assert!(!schedule.is_drained());
    acknowledge(&mut schedule, &work);
    let last = commit(&mut schedule, now);
    schedule.handle_committed(now, last.id, Code::Applied);
    assert!(schedule.is_drained());
}

#[test]
fn a_broker_that_ignores_the_credit_is_found_out() {
    let (mut schedule, now) = start();
    let flood = (1..=129).map(|n| event(n, (n % 7) as u8)).collect();
    assert!(schedule.handle_events(now, events(0, 1, flood)).is_err());
}

/// A broker in miniature: per connection an ordered list of events, redelivery of what was refused, duplicates now and then.
#[derive(Default)]
struct Model {
    /// Lane → offsets not settled, in order.
    open: BTreeMap<(u32, u8), Vec<u64>>,
    given: BTreeSet<(u32, u64)>,
    settled: Vec<(u32, u8, u64)>,
    refusals: usize,
}

impl Model {
    fn lane_of(&self, partition: u32, offset: u64) -> u8 {
        let lane = self.open.iter().find(|((of, _), offsets)| *of == partition && offsets.contains(&offset));
        lane.map(|((_, lane), _)| *lane).expect("an outcome of an open event")
    }

    /// What may be delivered: of each lane the longest prefix, so that nothing overtakes.
    fn deliverable(&mut self, partition: u32) -> Vec<v1::Event> {
        let mut events = Vec::new();
        for ((_, lane), offsets) in self.open.iter().filter(|((of, _), _)| *of == partition) {
            for offset in offsets {
                if self.given.insert((partition, *offset)) {
                    events.push(event(*offset, *lane));
                }
            }
        }
        events
    }

    fn apply(&mut self, commit: &v1::Commit) {
        for outcome in &commit.outcomes {
            let lane = self.lane_of(commit.partition, outcome.offset);
            assert!(self.given.remove(&(commit.partition, outcome.offset)), "settled without being given");
            if !matches!(outcome.verdict, Some(v1::outcome::Verdict::Refused(_))) {
                let offsets = self.open.get_mut(&(commit.partition, lane)).unwrap();
                assert_eq!(offsets[0], outcome.offset, "settled out of order");
                offsets.remove(0);
                self.settled.push((commit.partition, lane, outcome.offset));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever finishes when, and whatever becomes of commits: order holds, everything is settled once, bounds hold.
    #[test]
    fn every_event_is_settled_once_and_in_order(
        lanes in proptest::collection::vec((0u32..3, 0u8..5), 1..60),
        choices in proptest::collection::vec((0u8..12, any::<u16>()), 50..400),
    ) {
        let mut now = Instant::now();
        let mut schedule = Schedule::new(bounds());
        let mut model = Model::default();
        for (n, (partition, lane)) in lanes.iter().enumerate() {
            model.open.entry((*partition, *lane)).or_default().push(n as u64 + 1);
        }
        let mut epochs = [1u64; 3];
        for partition in 0..3 {
            schedule.handle_assigned(partition, 1);
        }
        let mut runs: Vec<Work> = Vec::new();
        let mut commits: VecDeque<v1::Commit> = VecDeque::new();
        // the generated chaos first, then a broker and a handler that behave, until nothing is left
        let orderly = (0..20_000).map(|n| ([0, 1, 2, 3, 4][n % 5], n as u16));
        for (choice, pick) in choices.into_iter().chain(orderly) {
            let partition = u32::from(pick) % 3;
            match choice {
                0 => {
                    let deliverable = model.deliverable(partition);
                    schedule.handle_events(now, events(partition, epochs[partition as usize], deliverable)).unwrap();
                }
                1 => while let Some(work) = schedule.next_work() {
                    for other in runs.iter().filter(|other| other.partition == work.partition) {
                        prop_assert_ne!(&other.event.connection, &work.event.connection, "two runs of a connection");
                    }
                    runs.push(work);
                    prop_assert!(runs.len() <= bounds().workers);
                },
                2 | 5 | 6 if !runs.is_empty() => {
                    let work = runs.swap_remove(usize::from(pick) % runs.len());
                    let verdict = match choice {
                        5 => { model.refusals += 1; Verdict::Refuse(Duration::ZERO) }
                        6 => Verdict::Park("no".into()),
                        _ => Verdict::Acknowledge(vec![v1::Command::default(); usize::from(pick % 3)]),
                    };
                    schedule.handle_finished(work.id, verdict);
                }
                3 => {
                    if let Some(Request::Commit(commit)) = schedule.next_request(now) {
                        prop_assert!(commit.outcomes.len() <= limits::OUTCOMES_MAX && !commit.outcomes.is_empty());
                        commits.push_back(commit);
                        prop_assert!(commits.len() <= bounds().commits_max);
                    }
                }
                4 => if let Some(commit) = commits.pop_front() {
                    let current = commit.epoch == epochs[commit.partition as usize];
                    if current {
                        model.apply(&commit);
                    }
                    schedule.handle_committed(now, commit.id, if current { Code::Applied } else { Code::StaleEpoch });
                },
                7 | 8 => if let Some(commit) = commits.pop_front() {
                    schedule.handle_committed(now, commit.id, if choice == 7 { Code::Throttled } else { Code::NoLeader });
                },
                9 => {
                    // the lease is lost and taken again: what was given is open again
                    epochs[partition as usize] += 1;
                    schedule.handle_revoked(partition, epochs[partition as usize]);
                    schedule.handle_assigned(partition, epochs[partition as usize]);
                    model.given.retain(|(of, _)| *of != partition);
                    commits.retain(|commit| commit.partition != partition);
                }
                10 => {
                    now += Duration::from_secs(6);
                    schedule.handle_timer(now);
                    let held = schedule.count_held();
                    prop_assert_eq!(schedule.held, held);
                }
                _ => now += Duration::from_millis(100),
            }
            if choice < 5 && pick % 50 == 0 {
                now += Duration::from_secs(1);
            }
        }
        prop_assert!(model.open.values().all(Vec::is_empty), "left open: {:?} {:#?}", model.open, schedule);
        let settled: BTreeSet<_> = model.settled.iter().collect();
        prop_assert_eq!(settled.len(), model.settled.len(), "settled twice");
        prop_assert_eq!(settled.len(), lanes.len());
    }
}
