//! Every rule of the decision alone, then all together against what must never be.

use proptest::prelude::*;
use trunkline_proto::{Entry, PartitionCount, PartitionId};

use super::*;

const HOUR: u64 = 3_600_000_000;

fn limits() -> Limits {
    Limits {
        time: Duration::ZERO,
        bytes: 0,
        bytes_max: 0,
        drop_unsettled: false,
        group_expiry: Duration::from_secs(7 * 24 * 3600),
    }
}

/// A milestone every 10 entries, 100 bytes and one hour; the log ends at index 105.
fn facts() -> Facts {
    let milestone = |n: u64| Milestone { index: LogIndex(n * 10), time: Timestamp(n * HOUR), bytes: n * 100 };
    let mut milestones: Vec<_> = (1..=10).map(milestone).collect();
    milestones.push(Milestone { index: LogIndex(105), time: Timestamp(10 * HOUR + HOUR / 2), bytes: 1050 });
    Facts { retained: 1050, milestones, forwarded: Offset::end_of(LogIndex(105)), ..Facts::default() }
}

fn at(hours: u64) -> Timestamp {
    Timestamp(hours * HOUR)
}

fn through(limits: Limits, now: Timestamp, facts: &Facts) -> Option<u64> {
    Retention(limits).decide(now, facts).map(|trim| trim.through.0)
}

fn hours(hours: u64) -> Limits {
    Limits { time: Duration::from_secs(hours * 3600), ..limits() }
}

fn bytes(bytes: u64) -> Limits {
    Limits { bytes, ..limits() }
}

#[test]
fn without_limits_nothing_goes() {
    assert_eq!(through(limits(), at(1_000_000), &facts()), None);
    assert_eq!(through(bytes(1), at(0), &Facts::default()), None, "nor does what is not there");
}

#[test]
fn a_log_that_holds_nothing_with_a_time_is_not_old() {
    let mut state = Partition::new(PartitionId(0), PartitionCount::new(1).unwrap());
    (1..=3).for_each(|index| state.skip(LogIndex(index)));
    assert_eq!(through(hours(7 * 24), at(500_000), &Facts::of(&state, false)), None, "blank entries have no time");
    let entry = Entry { time: at(499_999), batches: Vec::new() };
    state.apply(LogIndex(4), &entry);
    state.skip(LogIndex(5));
    assert_eq!(through(hours(7 * 24), at(500_000), &Facts::of(&state, false)), None);
    assert_eq!(through(hours(7 * 24), at(501_000), &Facts::of(&state, false)), Some(5));
}

#[test]
fn what_is_older_than_allowed_goes() {
    assert_eq!(through(hours(5), at(6), &facts()), None, "not older by a step yet: a trim is not free");
    assert_eq!(through(hours(5), at(7), &facts()), Some(20));
    assert_eq!(through(hours(5), at(12), &facts()), Some(70));
    assert_eq!(through(hours(5), at(100), &facts()), Some(105), "a log that nobody writes to any more goes as a whole");
    assert_eq!(through(hours(5), Timestamp(0), &facts()), None, "a clock that went back takes nothing");
}

#[test]
fn what_is_more_than_allowed_goes_oldest_first_and_a_step_more() {
    assert_eq!(through(bytes(1050), at(11), &facts()), None);
    assert_eq!(through(bytes(1000), at(11), &facts()), Some(20), "50 are too many, and 62 are a step");
    assert_eq!(through(bytes(500), at(11), &facts()), Some(60));
    assert_eq!(through(bytes(1), at(11), &facts()), Some(105));
}

#[test]
fn of_two_limits_the_one_that_takes_more_counts() {
    let both = |hours: u64, bytes: u64| Limits { time: Duration::from_secs(hours * 3600), bytes, ..limits() };
    assert_eq!(through(both(5, 500), at(7), &facts()), Some(60));
    assert_eq!(through(both(5, 1000), at(12), &facts()), Some(70));
}

#[test]
fn what_is_trimmed_is_not_trimmed_again() {
    let mut facts = facts();
    facts.first = LogIndex(61);
    assert_eq!(through(bytes(500), at(11), &facts), None);
    facts.first = LogIndex(60);
    assert_eq!(through(bytes(500), at(11), &facts), Some(60));
}

#[test]
fn what_a_group_has_not_settled_stays() {
    let mut facts = facts();
    facts.groups = vec![("slow".into(), Offset::new(LogIndex(35), 2)), ("quick".into(), Offset::end_of(LogIndex(100)))];
    assert_eq!(through(bytes(500), at(11), &facts), Some(30));
    facts.groups[0].1 = Offset::new(LogIndex(30), 7);
    assert_eq!(through(bytes(500), at(11), &facts), Some(20), "it has settled a part of entry 30 only");
    facts.groups[0].1 = Offset::end_of(LogIndex(30));
    assert_eq!(through(bytes(500), at(11), &facts), Some(30));
    facts.groups[0].1 = Offset::ZERO;
    assert_eq!(through(bytes(500), at(11), &facts), None);
}

#[test]
fn what_is_not_forwarded_stays_even_at_the_cap() {
    let mut facts = facts();
    facts.forwarded = Offset::new(LogIndex(24), 3);
    let cap = Limits { bytes_max: 1000, drop_unsettled: true, ..bytes(500) };
    for limits in [bytes(500), cap] {
        assert_eq!(through(limits, at(11), &facts), Some(20));
    }
}

#[test]
fn a_snapshot_on_its_way_holds_everything_but_not_beyond_the_cap() {
    let mut facts = facts();
    facts.is_sending = true;
    assert_eq!(through(bytes(500), at(11), &facts), None);
    assert_eq!(through(Limits { bytes_max: 1051, ..bytes(500) }, at(11), &facts), None);
    assert_eq!(through(Limits { bytes_max: 1050, ..bytes(500) }, at(11), &facts), Some(60));
}

#[test]
fn at_the_cap_groups_hold_the_log_unless_they_are_to_skip() {
    let mut facts = facts();
    facts.groups = vec![("slow".into(), Offset::end_of(LogIndex(30))), ("quick".into(), Offset::end_of(LogIndex(60)))];
    let refuse = Limits { bytes_max: 1050, ..bytes(500) };
    assert_eq!(
        Retention(refuse).decide(at(11), &facts),
        Some(Trim { through: LogIndex(30), skipping: Vec::new() }),
        "appends are refused until they have caught up"
    );
    let skip = Limits { drop_unsettled: true, ..refuse };
    let trim = Retention(skip).decide(at(11), &facts);
    assert_eq!(trim, Some(Trim { through: LogIndex(60), skipping: vec!["slow".into()] }));
    let unbounded = Limits { bytes_max: 1050, drop_unsettled: true, ..limits() };
    assert_eq!(through(unbounded, at(11), &facts), Some(10), "the cap alone takes no more than it must");
    facts.retained = 1049;
    assert_eq!(through(skip, at(11), &facts), Some(30), "below the cap nobody skips");
}

#[test]
fn a_group_expires_only_without_members_and_after_its_time() {
    let retention = Retention(limits());
    let week = 7 * 24;
    assert!(!retention.is_expired(at(week - 1), at(0)));
    assert!(retention.is_expired(at(week), at(0)));
    assert!(!retention.is_expired(at(0), at(week)), "a clock that went back forgets nobody");
    assert!(!Retention(Limits { group_expiry: Duration::ZERO, ..limits() }).is_expired(at(100 * week), at(0)));
    let group = |name: &str, has_member, active| GroupFact { name: name.into(), epoch: 3, has_member, active };
    let groups = vec![group("old", false, at(0)), group("new", false, at(week)), group("here", true, at(0))];
    let mut attendance = Attendance::default();
    let present = BTreeSet::from(["here".to_owned()]);
    let notes = attendance.notes(&retention, at(week + 1), groups.clone(), &present);
    assert_eq!(notes, [Note::Forgotten("old".into(), 3)]);
    let present = BTreeSet::from(["here".to_owned(), "old".to_owned()]);
    assert_eq!(attendance.notes(&retention, at(week + 1), groups, &present), [], "somebody is just coming");
}

#[test]
fn a_member_that_does_not_come_back_is_none_any_more() {
    let retention = Retention(limits());
    let group = |epoch| vec![GroupFact { name: "g".into(), epoch, has_member: true, active: at(0) }];
    let (mut attendance, nobody) = (Attendance::default(), BTreeSet::new());
    let minutes = |minutes: u64| Timestamp(1000 * HOUR + minutes * 60_000_000);
    assert_eq!(attendance.notes(&retention, minutes(0), group(1), &nobody), [], "this broker has just begun to lead");
    assert_eq!(attendance.notes(&retention, minutes(9), group(1), &nobody), []);
    assert_eq!(attendance.notes(&retention, minutes(9), group(2), &nobody), [], "assigned anew: it begins again");
    assert_eq!(attendance.notes(&retention, minutes(18), group(2), &nobody), []);
    assert_eq!(attendance.notes(&retention, minutes(19), group(2), &nobody), [Note::Unattended("g".into())]);
    let present = BTreeSet::from(["g".to_owned()]);
    assert_eq!(attendance.notes(&retention, minutes(20), group(2), &present), []);
    assert_eq!(attendance.notes(&retention, minutes(29), group(2), &nobody), [], "it was there meanwhile");
}

fn any_facts() -> impl Strategy<Value = Facts> {
    let steps = prop::collection::vec((1..20u64, 0..3 * HOUR, 1..500u64), 1..40);
    let groups = prop::collection::vec((0..800u64, any::<u16>()), 0..4);
    (steps, groups, 0..800u64, any::<bool>(), 0..100u64).prop_map(|(steps, groups, forwarded, is_sending, first)| {
        let mut last = Milestone { index: LogIndex(first), time: Timestamp(0), bytes: 0 };
        let milestone = |(index, time, bytes)| {
            last = Milestone {
                index: LogIndex(last.index.0 + index),
                time: Timestamp(last.time.0 + time),
                bytes: last.bytes + bytes,
            };
            last
        };
        let milestones: Vec<Milestone> = steps.into_iter().map(milestone).collect();
        let end = milestones.last().map_or(0, |last| last.index.0);
        let offset = |index: u64, position| Offset::new(LogIndex(index.min(end)), position);
        let groups = groups.into_iter().enumerate();
        let groups = groups.map(|(n, (index, position))| (format!("g{n}"), offset(index, position))).collect();
        let retained = milestones.last().map_or(0, |last| last.bytes);
        Facts {
            first: LogIndex(first),
            retained,
            milestones,
            forwarded: offset(forwarded, u16::MAX),
            groups,
            is_sending,
        }
    })
}

proptest! {
    #[test]
    fn nothing_that_is_needed_ever_goes(
        facts in any_facts(), now in 0..200 * HOUR, hours in 0..100u64, bytes in 0..10_000u64, cap in 0..10_000u64,
        drop_unsettled in any::<bool>(),
    ) {
        let limits = Limits {
            time: Duration::from_secs(hours * 3600), bytes, bytes_max: cap, drop_unsettled, ..limits()
        };
        let Some(trim) = Retention(limits).decide(Timestamp(now), &facts) else { return Ok(()) };
        let end = Offset::end_of(trim.through);
        let is_full = cap != 0 && facts.retained >= cap;
        let most = [bytes, cap].into_iter().filter(|limit| *limit != 0).min();
        prop_assert!(end <= facts.forwarded);
        prop_assert!(trim.through >= facts.first);
        prop_assert!(!facts.is_sending || is_full);
        prop_assert!(trim.skipping.is_empty() || (is_full && drop_unsettled));
        for (name, limit) in &facts.groups {
            prop_assert!(*limit >= end || trim.skipping.contains(name));
        }
        let at = facts.milestones.iter().find(|milestone| milestone.index == trim.through).unwrap();
        let is_old = hours != 0 && now.saturating_sub(at.time.0) >= hours * HOUR;
        let next = facts.milestones.iter().rev().find(|milestone| milestone.index < trim.through);
        let rest = facts.retained - next.map_or(0, |next| next.bytes);
        prop_assert!(is_old || most.is_some_and(|most| rest > most - most / STEPS), "it was neither too old nor too much");
    }
}
