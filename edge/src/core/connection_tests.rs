use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::core::Rate;

fn limits() -> Limits {
    Limits {
        max_message: 1000,
        max_frame: 1000,
        max_fragments: 256,
        text_only: false,
        max_queue: 100,
        registration_timeout: Millis(15_000),
        idle_timeout: Millis(600_000),
        ping_interval: Millis(25_000),
        ping_timeout: Millis(10_000),
        max_lifetime: Millis::ZERO,
        messages: Rate::UNBOUNDED,
    }
}

fn client(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first, 0x80 | payload.len() as u8, 0, 0, 0, 0];
    frame.extend_from_slice(payload);
    frame
}

/// So that a `&mut dyn FnMut` can be passed on.
macro_rules! call {
    ($rig:expr, $method:ident $(, $argument:expr)*) => {
        $rig.step(|core, mut out| core.$method($($argument,)* &mut out))
    };
}

/// A connection, and what came out of it as text.
struct Rig {
    connection: Connection,
    limits: Limits,
    out: Vec<String>,
}

impl Rig {
    fn pending(registration: Registration) -> Self {
        let limits = limits();
        Self { connection: Connection::new(Millis::ZERO, &limits, registration), limits, out: Vec::new() }
    }

    fn open() -> Self {
        let mut rig = Self::pending(Registration::default());
        call!(rig, handle_opened, Millis::ZERO, true);
        assert_eq!(rig.take(), ["Accepted"]);
        rig.sent();
        rig
    }

    fn step<T>(&mut self, step: impl FnOnce(&mut Connection, &mut dyn FnMut(Output<'_>)) -> T) -> T {
        let out = &mut self.out;
        step(&mut self.connection, &mut |output| {
            out.push(match output {
                Output::Message(kind, payload) => format!("{kind:?} {}", String::from_utf8_lossy(payload)),
                Output::Closed { code, reason, cause, record, .. } => {
                    let mark = if record { "" } else { " unrecorded" };
                    format!("Closed {} {reason:?} {cause:?}{mark}", code.0)
                }
                Output::Answered(outcome) => format!("{outcome:?}"),
            });
        })
    }

    fn bytes(&mut self, now: u64, bytes: &[u8]) {
        let limits = self.limits.clone();
        let mut bytes = bytes.to_vec();
        self.step(|core, mut out| core.handle_bytes(Millis(now), &limits, &mut bytes, &mut out));
    }

    fn timer(&mut self, now: u64) {
        let limits = self.limits.clone();
        self.step(|core, mut out| core.handle_timer(Millis(now), &limits, &mut out));
    }

    fn deadline(&self) -> Option<u64> {
        self.connection.deadline(&self.limits).map(|deadline| deadline.0)
    }

    fn deliver(&mut self, payload: &str) -> Offer {
        let frame = Frame::message(MessageKind::Text, &Bytes::copy_from_slice(payload.as_bytes()));
        let limits = self.limits.clone();
        self.step(|core, mut out| core.handle_delivery(Millis(1), &limits, &frame, &mut out))
    }

    fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.out)
    }

    /// Everything queued is sent: what it was.
    fn sent(&mut self) -> Vec<u8> {
        let mut sent = Vec::new();
        while !self.connection.outbound().is_empty() {
            let mut slices = [std::io::IoSlice::new(&[]); crate::core::outbound::SLICES_MAX];
            let count = self.connection.outbound().slices(&mut slices);
            let bytes: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
            self.connection.handle_sent(Millis(1), bytes.len());
            sent.extend(bytes);
        }
        sent
    }
}

#[test]
fn switches_protocols_only_when_nothing_is_missing() {
    let registration = Registration {
        accept: "key=".to_owned(),
        offered: vec!["chat".to_owned()],
        channels: vec!["lobby".to_owned()],
        needs_decision: true,
        ..Registration::default()
    };
    let accepted = v1::ConnectionAccepted {
        subprotocol: "chat".to_owned(),
        channels: vec!["room".to_owned()],
        ..Default::default()
    };
    // in any order
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]] {
        let mut rig = Rig::pending(registration.clone());
        assert_eq!(rig.deliver("welcome"), Offer::Taken);
        for (number, step) in order.into_iter().enumerate() {
            assert!(!rig.connection.is_open(), "{order:?} after {number}");
            assert!(rig.connection.outbound().is_empty(), "nothing goes before the answer");
            match step {
                0 => call!(rig, handle_opened, Millis(1), true),
                1 => call!(rig, handle_accepted, Millis(1), accepted.clone()),
                2 => call!(rig, handle_joined, Millis(1), "lobby"),
                _ => call!(rig, handle_joined, Millis(1), "room"),
            }
        }
        assert!(rig.connection.is_open());
        assert_eq!(rig.take(), ["Accepted"]);
        let sent = rig.sent();
        assert!(sent.ends_with(b"\r\n\r\n\x81\x07welcome"), "deliveries follow the answer");
        assert!(String::from_utf8_lossy(&sent).contains("\r\nSec-WebSocket-Protocol: chat\r\n"));
    }
}

#[test]
fn subprotocol_the_client_did_not_offer_is_not_named() {
    let mut rig = Rig::pending(Registration { needs_decision: true, ..Registration::default() });
    call!(rig, handle_opened, Millis(1), true);
    call!(
        rig,
        handle_accepted,
        Millis(1),
        v1::ConnectionAccepted { subprotocol: "x".to_owned(), ..Default::default() }
    );
    assert!(!String::from_utf8(rig.sent()).unwrap().contains("Protocol:"));
}

#[test]
fn pending_connection_ends_in_one_answer_and_one_record() {
    let pending = || Rig::pending(Registration { needs_decision: true, ..Registration::default() });
    let status = |rig: &mut Rig| String::from_utf8(rig.sent()).unwrap().split(' ').nth(1).map(str::to_owned);

    let mut rig = pending();
    call!(rig, handle_opened, Millis(1), true);
    rig.timer(14_999);
    assert_eq!(rig.take(), [""; 0]);
    rig.timer(15_000);
    assert_eq!(rig.take(), ["Closed 1006 \"\" RegistrationTimeout", "TimedOut"]);
    assert_eq!(status(&mut rig).as_deref(), Some("504"));
    assert!(rig.connection.wants_shutdown());

    // no answer from the log: no handler was asked
    let mut rig = pending();
    rig.timer(15_000);
    assert_eq!(rig.take(), ["Closed 1006 \"\" RegistrationTimeout", "Unavailable"]);
    assert_eq!(status(&mut rig).as_deref(), Some("503"));

    let mut rig = pending();
    rig.deliver("dropped");
    call!(rig, handle_rejected, Millis(1), v1::ConnectionRejected { status: 401, body: Bytes::from_static(b"no") });
    assert_eq!(rig.take(), ["Closed 1006 \"\" Rejected", "Rejected"]);
    assert_eq!(status(&mut rig).as_deref(), Some("401"));
    call!(rig, handle_accepted, Millis(1), v1::ConnectionAccepted::default());
    assert_eq!(rig.take(), [""; 0]);

    let mut rig = pending();
    call!(rig, handle_gone);
    assert_eq!(rig.take(), ["Abandoned", "Closed 1006 \"\" ClientVanished"]);
    assert!(rig.connection.is_over());

    let mut rig = pending();
    rig.bytes(1, &client(0x81, b"early"));
    assert_eq!(rig.take().last().map(String::as_str), Some("Refused"));
    assert_eq!(status(&mut rig).as_deref(), Some("400"));

    let mut rig = pending();
    call!(rig, handle_opened, Millis(1), false);
    assert_eq!(rig.take(), ["Closed 1006 \"\" EdgeLost unrecorded", "Unavailable"]);
    assert_eq!(status(&mut rig).as_deref(), Some("503"));
}

#[test]
fn client_closes_and_is_answered_with_its_code() {
    let mut rig = Rig::open();
    rig.bytes(5, &[client(0x81, b"last"), client(0x88, b"\x0b\xb8bye"), client(0x81, b"ignored")].concat());
    assert_eq!(rig.take(), ["Text last", "Closed 3000 \"bye\" Client"]);
    assert!(!rig.connection.wants_shutdown(), "the answer goes out first");
    assert_eq!(rig.sent(), b"\x88\x02\x0b\xb8");
    assert!(rig.connection.wants_shutdown());
    call!(rig, handle_gone);
    assert_eq!(rig.take(), [""; 0]);
    assert!(rig.connection.is_over());

    let mut rig = Rig::open();
    rig.bytes(5, &client(0x88, b""));
    assert_eq!(rig.take(), ["Closed 1005 \"\" Client"]);
    assert_eq!(rig.sent(), b"\x88\x00");
}

#[test]
fn handler_closes_and_waits_for_the_client_five_seconds() {
    let mut rig = Rig::open();
    call!(rig, handle_close, Millis(100), CloseCode(4001), "enough", CloseCause::Handler);
    assert_eq!(rig.take(), ["Closed 4001 \"enough\" Handler"]);
    rig.bytes(200, &client(0x81, b"late"));
    assert_eq!(rig.take(), [""; 0], "nothing is recorded after the close");
    assert_eq!(rig.deadline(), Some(5100));
    assert!(!rig.connection.wants_shutdown());
    let mut never = rig;
    let mut rig = Rig::open();
    call!(rig, handle_close, Millis(100), CloseCode(4001), "enough", CloseCause::Handler);
    rig.sent();
    rig.bytes(200, &client(0x88, b"\x0f\xa1"));
    assert!(rig.connection.wants_shutdown());
    never.timer(5100);
    assert!(never.connection.is_over());
}

#[test]
fn violations_close_with_their_code() {
    for (bytes, expected) in [
        (vec![0x81, 0x01, b'x'], "Closed 1002 \"frame is not masked\" ProtocolError"),
        (client(0x81, b"\xff"), "Closed 1007 \"text is not UTF-8\" ProtocolError"),
        (vec![0x82, 0xfe, 0xff, 0xff, 0, 0, 0, 0], "Closed 1009 \"message is too large\" TooLarge"),
    ] {
        let mut rig = Rig::open();
        rig.bytes(5, &bytes);
        assert_eq!(rig.take(), [expected]);
        rig.bytes(6, &client(0x81, b"more"));
        assert_eq!(rig.take(), [""; 0]);
        rig.sent();
        assert!(rig.connection.wants_shutdown());
    }
}

#[test]
fn slow_consumer_is_closed_and_its_torn_frame_finished() {
    let mut rig = Rig::open();
    assert_eq!(rig.deliver(&"x".repeat(90)), Offer::Taken);
    rig.connection.handle_sent(Millis(1), 10);
    rig.connection.handle_blocked();
    assert_eq!(rig.deliver("fits"), Offer::Taken);
    assert_eq!(rig.deliver(&"y".repeat(50)), Offer::Full);
    assert_eq!(rig.take(), ["Closed 1013 \"too slow\" SlowConsumer"]);
    let sent = rig.sent();
    assert_eq!(&sent[..82], "x".repeat(82).as_bytes());
    assert_eq!(&sent[82..84], b"\x88\x0a");
    assert_eq!(rig.deliver("z"), Offer::Ignored);
}

#[test]
fn one_frame_of_any_size_goes_through_an_empty_queue() {
    let mut rig = Rig::open();
    assert_eq!(rig.deliver(&"x".repeat(100_000)), Offer::Taken);
    assert_eq!(rig.sent().len(), 100_010);
    assert_eq!(rig.deliver("x"), Offer::Taken);
}

#[test]
fn silent_client_is_pinged_and_then_given_up() {
    let mut rig = Rig::open();
    assert_eq!(rig.deadline(), Some(25_000));
    rig.bytes(20_000, &client(0x81, b"a"));
    rig.take();
    assert_eq!(rig.deadline(), Some(45_000));
    rig.timer(45_000);
    assert_eq!(rig.sent(), b"\x89\x00");
    assert_eq!(rig.deadline(), Some(55_000));
    rig.bytes(50_000, &client(0x8a, b""));
    assert_eq!(rig.deadline(), Some(75_000), "a pong is a sign of life");
    rig.timer(75_000);
    rig.timer(85_000);
    assert_eq!(rig.take(), ["Closed 1001 \"no pong\" PingTimeout"]);
}

#[test]
fn idle_and_lifetime_end_a_connection() {
    let mut rig = Rig::open();
    rig.limits.ping_interval = Millis::ZERO;
    rig.limits.idle_timeout = Millis(1000);
    rig.bytes(500, &client(0x89, b""));
    rig.timer(1000);
    assert_eq!(rig.take(), ["Closed 1001 \"idle\" Idle"], "pings are no messages");

    let mut rig = Rig::open();
    rig.limits.max_lifetime = Millis(1000);
    rig.bytes(999, &client(0x81, b"x"));
    rig.take();
    rig.connection.handle_pause(Millis(999));
    rig.timer(1000);
    assert_eq!(rig.take(), ["Closed 1001 \"end of its lifetime\" MaxLifetime"]);
}

#[test]
fn room_is_room_also_if_only_bytes_of_tls_were_waiting() {
    let mut rig = Rig::open();
    rig.connection.handle_blocked();
    assert!(rig.connection.is_blocked());
    rig.connection.handle_sent(Millis(1), 0);
    assert!(!rig.connection.is_blocked(), "or the next delivery would wait for somebody to wake its socket");
}

#[test]
fn a_token_ends_its_connection_paused_or_not() {
    for is_paused in [false, true] {
        let mut rig = Rig::pending(Registration { expires: Some(Millis(5000)), ..Registration::default() });
        call!(rig, handle_opened, Millis(1), true);
        rig.take();
        if is_paused {
            rig.connection.handle_pause(Millis(2));
        }
        assert_eq!(rig.deadline(), Some(5000));
        rig.timer(4999);
        assert_eq!(rig.take(), [""; 0]);
        rig.timer(5000);
        assert_eq!(rig.take(), ["Closed 1008 \"token expired\" TokenExpired"]);
    }
}

#[test]
fn a30_what_is_revoked_ends_its_connection_if_it_has_not_expired_before() {
    for (expires, revoked, at, reason) in [
        (None, 3000, 3000, "token revoked"),
        (Some(Millis(5000)), 3000, 3000, "token revoked"),
        (Some(Millis(5000)), 6000, 5000, "token expired"),
    ] {
        let mut rig = Rig::pending(Registration { expires, ..Registration::default() });
        call!(rig, handle_opened, Millis(1), true);
        rig.take();
        rig.connection.handle_revoked(Millis(revoked));
        rig.connection.handle_revoked(Millis(revoked + 1000));
        rig.timer(at - 1);
        assert_eq!(rig.take(), [""; 0]);
        rig.timer(at);
        assert_eq!(rig.take(), [format!("Closed 1008 \"{reason}\" TokenExpired")]);
    }
    // one without an answer gets it first: then it is over at once
    let mut rig = Rig::pending(Registration::default());
    rig.connection.handle_revoked(Millis(1));
    call!(rig, handle_opened, Millis(2), true);
    rig.take();
    assert_eq!(rig.deadline(), Some(1));
}

#[test]
fn deadlines_stop_while_reading_is_paused() {
    let mut rig = Rig::open();
    rig.timer(25_000);
    rig.connection.handle_pause(Millis(26_000));
    assert_eq!(rig.deadline(), None);
    rig.timer(1_000_000);
    assert_eq!(rig.take(), [""; 0]);
    assert_eq!(rig.connection.handle_resume(Millis(1_000_000)), Millis(974_000));
    assert_eq!(rig.deadline(), Some(25_000 + 974_000 + 10_000));
}

#[test]
fn half_a_message_may_not_stay_for_ever() {
    let mut rig = Rig::open();
    rig.limits.ping_interval = Millis::ZERO;
    rig.bytes(1000, &client(0x01, b"begun"));
    rig.bytes(20_000, &client(0x00, b"on"));
    assert_eq!(rig.deadline(), Some(31_000));
    rig.timer(31_000);
    assert_eq!(rig.take(), ["Closed 1008 \"message took too long\" RateLimited"]);
    // each message anew
    let mut rig = Rig::open();
    rig.limits.ping_interval = Millis::ZERO;
    rig.bytes(1000, &client(0x01, b"begun"));
    rig.bytes(20_000, &[client(0x80, b"done"), client(0x01, b"next")].concat());
    assert_eq!(rig.deadline(), Some(50_000));
}

#[test]
fn floods_are_refused() {
    let mut rig = Rig::open();
    rig.bytes(1, &client(0x89, b"p").repeat(30));
    assert_eq!(rig.sent(), b"\x8a\x01p".repeat(30));
    rig.bytes(1, &client(0x8a, b""));
    assert_eq!(rig.take(), ["Closed 1008 \"too many control frames\" RateLimited"]);

    let mut rig = Rig::open();
    rig.limits.messages = Rate { per_second: 1, burst: 2 };
    rig.bytes(1, &client(0x82, b"m").repeat(3));
    assert_eq!(rig.take(), ["Binary m", "Binary m", "Closed 1008 \"too many messages\" RateLimited"]);
}

#[test]
fn drain_closes_each_at_its_time_and_a_lost_incarnation_records_nothing() {
    let mut rig = Rig::open();
    rig.connection.handle_drain(Millis(3000), CloseCause::EdgeDrained, true);
    rig.bytes(2000, &client(0x81, b"still"));
    assert_eq!(rig.deadline(), Some(3000));
    rig.timer(3000);
    assert_eq!(rig.take(), ["Text still", "Closed 1012 \"\" EdgeDrained"]);

    let mut rig = Rig::open();
    rig.connection.handle_drain(Millis(3000), CloseCause::EdgeLost, false);
    assert!(!rig.connection.wants_bytes(), "what is read could not be recorded");
    rig.bytes(2000, &client(0x81, b"lost"));
    rig.timer(3000);
    assert_eq!(rig.take(), ["Closed 1012 \"\" EdgeLost unrecorded"]);
    assert_eq!(rig.sent(), b"\x88\x02\x03\xf4");
}

#[derive(Debug, Clone)]
enum Step {
    Bytes(Vec<u8>),
    Gone,
    Later(u64),
    Opened(bool),
    Accepted,
    Rejected,
    Joined(bool),
    Deliver(usize),
    Close(u16),
    Drain(bool),
    Overload,
    Pause,
    Resume,
    Sent(usize),
    Blocked,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (prop_oneof![Just(0x81u8), Just(0x82), Just(0x01), Just(0x80), Just(0x89), Just(0x8a), Just(0x88)],
              proptest::collection::vec(any::<u8>(), 0..20), 0..30usize)
            .prop_map(|(first, payload, cut)| {
                let mut bytes = client(first, &payload);
                bytes.truncate(bytes.len().saturating_sub(cut.saturating_sub(20)));
                Step::Bytes(bytes)
            }),
        1 => any::<Vec<u8>>().prop_map(Step::Bytes),
        1 => Just(Step::Gone),
        4 => (0..20_000u64).prop_map(Step::Later),
        2 => proptest::bool::weighted(0.9).prop_map(Step::Opened),
        2 => Just(Step::Accepted),
        1 => Just(Step::Rejected),
        2 => any::<bool>().prop_map(Step::Joined),
        4 => (0..200usize).prop_map(Step::Deliver),
        1 => any::<u16>().prop_map(Step::Close),
        1 => any::<bool>().prop_map(Step::Drain),
        1 => Just(Step::Overload),
        1 => Just(Step::Pause),
        1 => Just(Step::Resume),
        4 => (0..200usize).prop_map(Step::Sent),
        1 => Just(Step::Blocked),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever happens: nothing after the close, one close, a bounded queue, an end.
    #[test]
    fn every_life_ends_once(steps in proptest::collection::vec(step(), 0..80), needs_decision: bool) {
        let registration = Registration {
            channels: vec!["a".to_owned()], needs_decision, ..Registration::default()
        };
        let mut rig = Rig::pending(registration);
        let mut now = 0;
        for step in steps {
            match step {
                Step::Bytes(bytes) => {
                    // the driver reads only while it may
                    if rig.connection.wants_bytes() {
                        rig.bytes(now, &bytes);
                    }
                }
                Step::Gone => call!(rig, handle_gone),
                Step::Later(time) => {
                    now += time;
                    rig.timer(now);
                }
                Step::Opened(is_applied) => call!(rig, handle_opened, Millis(now), is_applied),
                Step::Accepted => call!(rig, handle_accepted, Millis(now), v1::ConnectionAccepted::default()),
                Step::Rejected => call!(rig, handle_rejected, Millis(now), v1::ConnectionRejected::default()),
                Step::Joined(is_wanted) => {
                    call!(rig, handle_joined, Millis(now), if is_wanted { "a" } else { "b" });
                }
                Step::Deliver(length) => { rig.deliver(&"x".repeat(length)); }
                Step::Close(code) => {
                    call!(rig, handle_close, Millis(now), CloseCode(code), "reason", CloseCause::Handler);
                }
                Step::Drain(record) => {
                    rig.connection.handle_drain(Millis(now + 500), CloseCause::EdgeDrained, record);
                }
                Step::Overload => call!(rig, handle_overload, Millis(now), "overload"),
                Step::Pause => rig.connection.handle_pause(Millis(now)),
                Step::Resume => { rig.connection.handle_resume(Millis(now)); }
                Step::Sent(bytes) => {
                    let sent = bytes.min(rig.connection.outbound().bytes());
                    rig.connection.handle_sent(Millis(now), sent);
                }
                Step::Blocked => rig.connection.handle_blocked(),
            }
            // one frame or answer of any size, and control frames within their rate
            prop_assert!(rig.connection.outbound().bytes() <= 600 + 100 + 30 * 127 + 127);
            let open = rig.connection.is_open();
            let deadline = rig.connection.deadline(&rig.limits);
            prop_assert!(open || rig.connection.is_over() || deadline.is_some(), "what is not open has a deadline");
        }
        // at the latest: the incarnation is lost, and time passes
        rig.connection.handle_drain(Millis(now), CloseCause::EdgeLost, true);
        rig.timer(now);
        rig.timer(now + 5001);
        prop_assert!(rig.connection.is_over());
        let closes: Vec<usize> = rig.out.iter().enumerate().filter(|(_, out)| out.starts_with("Closed")).map(|(at, _)| at).collect();
        prop_assert_eq!(closes.len(), 1, "{:?}", rig.out);
        prop_assert!(!rig.out[closes[0]..].iter().any(|out| out.starts_with("Text") || out.starts_with("Binary")));
    }
}
