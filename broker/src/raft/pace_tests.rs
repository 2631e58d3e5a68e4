use super::*;

const MB: f64 = 1e6;
const CONFIGURED: f64 = 64.0 * MB;

/// Commits that take so many milliseconds, while so much is written and a follower catches up.
fn busy(milliseconds: f64, written: f64) -> Seen {
    Seen { commits: 100, took: milliseconds / 1e3, written, is_waiting: true, is_catching_up: true }
}

fn alone(milliseconds: f64, written: f64) -> Seen {
    Seen { is_catching_up: false, ..busy(milliseconds, written) }
}

fn silent(is_waiting: bool) -> Seen {
    Seen { commits: 0, took: 0.0, written: 0.0, is_waiting, is_catching_up: true }
}

/// A leader that has written so much for a while, with commits of 3 ms.
fn settled(written: f64) -> Throttle {
    let mut throttle = Throttle::new(CONFIGURED);
    (0..400).for_each(|_| throttle.turn(&alone(3.0, written)));
    throttle
}

/// The rate after each of these intervals.
fn rates(throttle: &mut Throttle, seen: &[Seen]) -> Vec<f64> {
    let mut rate = |seen| {
        throttle.turn(seen);
        (throttle.rate / MB * 10.0).round() / 10.0
    };
    seen.iter().map(&mut rate).collect()
}

#[test]
fn the_rate_halves_when_commits_get_slower_and_grows_slowly_otherwise() {
    let mut throttle = settled(0.0);
    throttle.rate = 20.0 * MB;
    let seen = [3.0, 3.9, 4.1, 3.0, 60.0, 60.0, 60.0, 3.0].map(|took| busy(took, 0.0));
    assert_eq!(rates(&mut throttle, &seen), [22.0, 24.2, 12.1, 13.3, 6.7, 4.0, 4.0, 4.4]);
}

#[test]
fn a_follower_gets_more_than_what_is_written_however_slow_commits_are() {
    for written in [12.0 * MB, 40.0 * MB, 500.0 * MB] {
        let mut throttle = settled(written);
        for took in [3.0, 30.0, 3000.0] {
            (0..100).for_each(|_| throttle.turn(&busy(took, written)));
            assert!(throttle.rate > 1.2 * written, "{} of {written} while commits take {took} ms", throttle.rate);
        }
    }
}

#[test]
fn the_rate_ends_at_what_is_configured_unless_more_is_written() {
    for (written, most) in [(0.0, CONFIGURED), (20.0 * MB, CONFIGURED), (100.0 * MB, 125.0 * MB)] {
        let mut throttle = settled(written);
        (0..400).for_each(|_| throttle.turn(&busy(3.0, written)));
        assert!((throttle.rate - most).abs() < MB, "{} while {written} are written", throttle.rate);
    }
}

#[test]
fn it_begins_low_each_time_somebody_has_to_catch_up() {
    let mut throttle = settled(12.0 * MB);
    (0..100).for_each(|_| throttle.turn(&busy(3.0, 12.0 * MB)));
    assert_eq!(rates(&mut throttle, &[alone(3.0, 12.0 * MB), busy(3.0, 12.0 * MB)]), [15.0, 16.5]);
}

#[test]
fn nothing_holds_it_back_where_nobody_waits_or_all_wait_for_the_follower() {
    assert_eq!(rates(&mut settled(0.0), &[silent(false)]), [64.0]);
    let rates = rates(&mut settled(0.0), &[silent(true); 9]);
    assert_eq!(rates, [4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 64.0, 64.0]);
}

#[test]
fn what_commits_take_is_not_forgotten_while_somebody_catches_up() {
    let mut throttle = settled(0.0);
    (0..400).for_each(|_| throttle.turn(&busy(30.0, 0.0)));
    assert!(throttle.usual.is_some_and(|usual| (usual - 0.003).abs() < 1e-6));
    // a leader that is new to it has only what it sees
    let mut throttle = Throttle::new(CONFIGURED);
    throttle.turn(&silent(true));
    assert_eq!(throttle.usual, None);
    throttle.turn(&busy(5.0, 0.0));
    assert_eq!(throttle.usual, Some(0.005));
}

#[test]
fn bytes_take_their_time_and_pauses_are_not_saved_up() {
    let begun = Instant::now();
    let at = |seconds| begun + Duration::from_secs(seconds);
    assert_eq!(paid_after(None, begun, 500, 250.0), at(2));
    assert_eq!(paid_after(Some(begun), begun, 500, 250.0), at(2));
    assert_eq!(paid_after(Some(at(2)), at(2), 1000, 500.0), at(4));
    assert_eq!(paid_after(Some(at(4)), at(60), 500, 500.0), at(61));
}

#[test]
fn the_bytes_at_the_end_of_a_log_are_counted_however_large_its_entries_are() {
    for entry in [100, 10_000, STEP_BYTES, 1 << 20] {
        let mut recent = Recent::default();
        let count = (2 * FAR_BYTES / entry) as u64;
        (0..count).for_each(|index| recent.push(index, entry));
        assert_eq!(recent.after(0), None);
        assert!(recent.steps.len() <= FAR_BYTES / STEP_BYTES + 2);
        for lacked in [0, 1, 2, 5] {
            let after = recent.after(count - lacked.min(count)).expect("it is near");
            let off = (lacked as usize * entry).abs_diff(after);
            assert!(off <= STEP_BYTES + entry, "{after} bytes in {lacked} entries of {entry}");
        }
        let far = count - (FAR_BYTES / entry) as u64 - (2 * STEP_BYTES / entry) as u64 - 2;
        assert_eq!(recent.after(far), None, "entries of {entry}");
    }
}

#[test]
fn what_is_truncated_or_from_before_the_count_is_not_counted() {
    let mut recent = Recent::default();
    assert_eq!(recent.after(0), None);
    (10..20).for_each(|index| recent.push(index, STEP_BYTES));
    assert_eq!((recent.after(9), recent.after(10)), (None, Some(10 * STEP_BYTES)));
    recent.truncate(15);
    assert_eq!(recent.after(10), Some(5 * STEP_BYTES));
    recent.truncate(3);
    assert_eq!((recent.after(3), recent.bytes), (None, 0));
}

#[test]
fn whoever_is_far_behind_is_so_until_it_is_near() {
    let cases = [
        (false, None, true),
        (false, Some(FAR_BYTES - 1), false),
        (true, Some(FAR_BYTES - 1), true),
        (true, Some(NEAR_BYTES), true),
        (true, Some(NEAR_BYTES - 1), false),
        (true, Some(0), false),
        (true, None, true),
    ];
    for (was, lacks, expected) in cases {
        assert_eq!(is_far(was, lacks), expected, "{was} {lacks:?}");
    }
}

#[test]
fn who_gives_a_proposal_up_no_longer_waits_for_it() {
    let pace = Arc::new(Pace::new(1));
    let (first, second) = (pace.proposed(10), pace.proposed(20));
    first.applied();
    drop((first, second));
    let state = pace.state.as_ref().expect("a bound").lock();
    assert_eq!((state.waiting, state.commits, state.bytes), (0, 1, 10));
}

#[tokio::test]
async fn one_follower_waits_for_what_it_was_sent_and_another_does_not() {
    let [one, other] = [Paid::default(), Paid::default()];
    let (bound, free) = (Pace::new(1), Pace::new(0));
    // whether it goes at once
    let goes =
        async |pace: &Pace, paid, bytes| tokio::time::timeout(Duration::ZERO, pace.take(paid, bytes)).await.is_ok();
    assert!(goes(&bound, &one, 1 << 30).await);
    assert!(goes(&bound, &other, 1 << 30).await);
    assert!(!goes(&bound, &one, 1).await);
    assert!(goes(&free, &one, 1 << 30).await && goes(&free, &one, 1).await);
}
