use super::{
    super::{DEDUP_MAX, DEDUP_WINDOW, Refusal, Verdict},
    log::Log,
    *,
};

#[test]
fn a_repeat_gets_the_first_result() {
    let mut log = Log::with_connection(&[]);
    assert_eq!(log.verdict(keyed("k", 0), pushed(id(1))), Verdict::Applied);
    let original = log.offset(0);
    let applied = log.one(keyed("k", 0), &[pushed(id(1))]);
    assert_eq!(applied.verdict(0), refused(Refusal::Repeated { original, code: v1::Code::Applied }));
    assert!(applied.deliveries.is_empty());
}

#[test]
fn a_repeat_of_what_was_gone_is_gone() {
    let mut log = Log::with_connection(&[]);
    assert_eq!(log.verdict(keyed("k", 0), pushed(id(2))), refused(Refusal::Gone));
    let original = log.offset(0);
    log.edge(&[opened(id(2), "", &[])]);
    let repeated = Refusal::Repeated { original, code: v1::Code::Gone };
    assert_eq!(log.verdict(keyed("k", 0), pushed(id(2))), refused(repeated));
}

#[test]
fn another_body_under_the_same_key_is_refused() {
    let mut log = Log::with_connection(&[]);
    log.one(keyed("k", 0), &[pushed(id(1))]);
    assert_eq!(log.verdict(keyed("k", 0), close_requested(id(1), 1000)), refused(Refusal::KeyReused));
    // another command of the same request
    assert_eq!(log.verdict(keyed("k", 1), close_requested(id(1), 1000)), Verdict::Applied);
}

#[test]
fn commands_of_a_batch_are_numbered_from_its_first() {
    let mut log = Log::with_connection(&[]);
    assert!(log.one(keyed("k", 3), &[pushed(id(1)), pushed(id(1))]).refused.is_empty());
    assert_eq!(log.one(keyed("k", 4), &[pushed(id(1)), pushed(id(1))]).refused.len(), 1);
}

#[test]
fn a_limit_is_not_remembered() {
    let mut log = Log::with_connection(&[]);
    let long = "x".repeat(5000);
    let command = attributes(id(1), &[("a", &long)], &[]);
    assert_eq!(log.verdict(keyed("k", 0), command.clone()), refused(Refusal::Limit));
    assert_eq!(log.verdict(keyed("k", 0), command), refused(Refusal::Limit));
}

#[test]
fn keys_are_forgotten_after_the_window() {
    let mut log = Log::with_connection(&[]);
    log.one(keyed("k", 0), &[pushed(id(1))]);
    log.time += DEDUP_WINDOW.as_micros() as u64;
    assert!(matches!(log.verdict(keyed("k", 0), pushed(id(1))), Verdict::Refused(Refusal::Repeated { .. })));
    log.time += 1;
    assert_eq!(log.verdict(keyed("k", 0), pushed(id(1))), Verdict::Applied);
}

#[test]
fn the_oldest_key_goes_when_there_are_too_many() {
    let mut log = Log::with_connection(&[]);
    let records = vec![pushed(id(9)); 4000];
    for first in (0..=DEDUP_MAX).step_by(4000) {
        log.one(keyed("k", first as u32), &records);
    }
    assert_eq!(log.verdict(keyed("k", 0), pushed(id(9))), refused(Refusal::Gone));
    let newest = keyed("k", DEDUP_MAX as u32);
    assert!(matches!(log.verdict(newest, pushed(id(9))), Verdict::Refused(Refusal::Repeated { .. })));
}
