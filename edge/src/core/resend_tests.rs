//! Whatever the acknowledgements, reconnects and losses: the applied stream is exactly the appended stream.

use bytes::BufMut;
use proptest::prelude::*;

use super::*;

/// A record for these tests: a number, and filler up to `length` bytes.
fn put(number: u32, length: usize) -> impl FnOnce(&mut BytesMut) {
    move |out| {
        out.put_u32_le(length.max(8) as u32);
        out.put_u32_le(number);
        out.put_bytes(0, length.max(8) - 8);
    }
}

fn numbers(batch: &UplinkBatch) -> Vec<u32> {
    let mut rest = &batch.records[..];
    let mut numbers = Vec::new();
    while !rest.is_empty() {
        let length = u32::from_le_bytes(rest[..4].try_into().unwrap()) as usize;
        numbers.push(u32::from_le_bytes(rest[4..8].try_into().unwrap()));
        rest = &rest[length..];
    }
    assert_eq!(numbers.len(), usize::from(batch.count));
    numbers
}

#[test]
fn what_waits_becomes_one_batch() {
    let mut outgoing = Outgoing::<u32>::default();
    assert!(outgoing.append(None, put(1, 8)).wakes);
    assert!(!outgoing.append(Some(2), put(2, 8)).wakes);
    let first = outgoing.take().unwrap();
    assert_eq!((first.sequence, numbers(&first)), (1, vec![1, 2]));
    assert_eq!(outgoing.take(), None);
    assert!(outgoing.append(Some(3), put(3, 8)).wakes, "all was sent: the sender sleeps");
    assert_eq!(outgoing.take().unwrap().sequence, 2);
    assert_eq!(outgoing.bytes(), 24);
    let released = outgoing.applied(1).unwrap();
    assert_eq!((released.bytes, released.waiters), (16, vec![2]));
    assert_eq!((outgoing.last_applied(), outgoing.last_appended(), outgoing.bytes()), (1, 2, 8));
}

#[test]
fn a_new_stream_gets_what_is_not_applied_unchanged() {
    let mut outgoing = Outgoing::<u32>::default();
    let sent: Vec<_> = (0..4)
        .map(|number| {
            outgoing.append(None, put(number, 8));
            outgoing.take().unwrap()
        })
        .collect();
    outgoing.append(None, put(4, 8));
    outgoing.attached(2).unwrap();
    assert_eq!(outgoing.take().as_ref(), sent.get(2));
    assert_eq!(outgoing.take().as_ref(), sent.get(3));
    assert_eq!(numbers(&outgoing.take().unwrap()), [4]);
    assert!(outgoing.is_sent());
}

#[test]
fn batches_are_bounded() {
    let mut outgoing = Outgoing::<u32>::default();
    for number in 0..10_000 {
        outgoing.append(None, put(number, 8));
    }
    outgoing.append(None, put(10_000, BATCH_BYTES_MAX * 3));
    outgoing.append(None, put(10_001, 8));
    outgoing.append(None, put(10_002, BATCH_BYTES_MAX));
    let batches: Vec<_> = std::iter::from_fn(|| outgoing.take()).collect();
    let counts: Vec<_> = batches.iter().map(|batch| batch.count).collect();
    assert_eq!(counts, [4096, 4096, 1808, 1, 1, 1], "a large record travels alone");
    assert_eq!(batches.iter().flat_map(numbers).collect::<Vec<_>>(), (0..10_003).collect::<Vec<_>>());
}

#[test]
fn while_many_are_on_their_way_what_comes_waits_together() {
    let mut outgoing = Outgoing::<u32>::default();
    for number in 0..100 {
        outgoing.append(None, put(number, 8));
        let _ = outgoing.take();
    }
    assert!(!outgoing.is_sent());
    outgoing.applied(1).unwrap();
    let next = outgoing.take().unwrap();
    assert_eq!((next.sequence, next.count), (BATCHES_IN_FLIGHT_MAX as u64 + 1, 100 - BATCHES_IN_FLIGHT_MAX as u16));
}

#[test]
fn contradictions_are_errors_and_change_nothing() {
    let mut outgoing = Outgoing::<u32>::default();
    for number in 0..3 {
        outgoing.append(None, put(number, 8));
        outgoing.take();
    }
    outgoing.applied(2).unwrap();
    assert_eq!(outgoing.attached(1).unwrap_err(), SequenceError::Behind { last: 1, applied: 2 });
    assert_eq!(outgoing.attached(4).unwrap_err(), SequenceError::Ahead { last: 4, made: 3 });
    assert_eq!(outgoing.applied(4).unwrap_err(), SequenceError::Ahead { last: 4, made: 3 });
    assert_eq!(outgoing.applied(1).unwrap().bytes, 0, "late news is no news");
    assert_eq!((outgoing.last_applied(), outgoing.last_appended()), (2, 3));
}

#[test]
fn reset_gives_every_waiter_back() {
    let mut outgoing = Outgoing::default();
    outgoing.append(Some("sent"), put(0, 8));
    outgoing.take();
    outgoing.append(Some("open"), put(1, 8));
    let released = outgoing.reset();
    assert_eq!((released.bytes, released.waiters), (16, vec!["sent", "open"]));
    outgoing.append(None, put(2, 8));
    assert_eq!(outgoing.take().unwrap().sequence, 1);
}

/// A partition that applies batches in sequence, and the streams to it: what was written to an older stream may still arrive.
#[derive(Default)]
struct Partition {
    last: u64,
    log: Vec<u32>,
    /// Written and not yet looked at, over all streams.
    arriving: VecDeque<UplinkBatch>,
    /// Acknowledgements on the current stream.
    answers: VecDeque<u64>,
}

impl Partition {
    fn apply_one(&mut self) {
        let Some(batch) = self.arriving.pop_front() else { return };
        if batch.sequence == self.last + 1 {
            self.last += 1;
            self.log.extend(numbers(&batch));
        }
        self.answers.push_back(self.last);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Append(usize),
    Send,
    Apply,
    Answer,
    /// The stream breaks; so many of the batches under way are lost with it, the newest first.
    Reconnect(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prop_oneof![8usize..64, Just(100_000), Just(300_000)].prop_map(Step::Append),
        4 => Just(Step::Send),
        4 => Just(Step::Apply),
        4 => Just(Step::Answer),
        1 => (0usize..8).prop_map(Step::Reconnect),
    ]
}

proptest! {
    #[test]
    fn applied_stream_is_the_appended_stream(steps in proptest::collection::vec(step(), 1..400)) {
        let (mut outgoing, mut partition) = (Outgoing::<u32>::default(), Partition::default());
        let (mut appended, mut released, mut bytes) = (0u32, Vec::new(), 0);
        for step in steps.into_iter().chain([Step::Reconnect(1000)]) {
            let (last, is_new) = match step {
                Step::Append(length) => {
                    bytes += outgoing.append(Some(appended), put(appended, length)).bytes;
                    appended += 1;
                    continue;
                }
                Step::Send => { partition.arriving.extend(outgoing.take()); continue }
                Step::Apply => { partition.apply_one(); continue }
                Step::Answer => match partition.answers.pop_front() { Some(last) => (last, false), None => continue },
                Step::Reconnect(lost) => {
                    partition.arriving.truncate(partition.arriving.len().saturating_sub(lost));
                    partition.answers.clear();
                    (partition.last, true)
                }
            };
            let gone = if is_new { outgoing.attached(last).unwrap() } else { outgoing.applied(last).unwrap() };
            bytes -= gone.bytes;
            released.extend(gone.waiters);
            prop_assert_eq!(bytes, outgoing.bytes());
            prop_assert!(released.len() <= partition.log.len(), "nobody is told before it is applied");
        }
        while !outgoing.is_sent() || !partition.arriving.is_empty() {
            partition.arriving.extend(outgoing.take());
            partition.apply_one();
            released.extend(outgoing.applied(partition.last).unwrap().waiters);
        }
        let all: Vec<u32> = (0..appended).collect();
        prop_assert_eq!(&partition.log, &all);
        prop_assert_eq!(&released, &all);
        prop_assert_eq!(outgoing.bytes(), 0);
    }
}
