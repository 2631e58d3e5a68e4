use proptest::prelude::*;

use super::{super::server_frame::header, *};

const MAX: usize = 1 << 20;

fn bounds(bytes: usize) -> MessageBounds {
    MessageBounds { bytes, frame: bytes, fragments: 256, text_only: false }
}

/// A client's frame, masked, its length in the shortest form.
fn client(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let mut frame = header(first & 0x0f, payload.len(), payload.len() + 4).to_vec();
    frame[0] = first;
    frame[1] |= 0x80;
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// What a reader makes of the bytes, cut into pieces of these sizes.
fn read(bytes: &[u8], cuts: &[usize], max: usize) -> (Vec<String>, Option<Violation>) {
    let (mut reader, mut seen, mut rest) = (FrameReader::default(), Vec::new(), bytes);
    let mut cuts = cuts.iter().cycle();
    while !rest.is_empty() {
        let cut = cuts.next().map_or(rest.len(), |cut| (*cut).clamp(1, rest.len()));
        let mut piece = rest[..cut].to_vec();
        rest = &rest[cut..];
        let mut at = 0;
        loop {
            match reader.next(&mut piece, &mut at, bounds(max)) {
                Ok(Some(received)) => {
                    let is_close = matches!(received, Received::Close(..));
                    seen.push(format!("{received:?}"));
                    if is_close {
                        return (seen, None);
                    }
                }
                Ok(None) => break,
                Err(violation) => return (seen, Some(violation)),
            }
        }
        assert_eq!(at, piece.len(), "everything is taken or kept");
    }
    (seen, None)
}

fn text(payload: &str) -> String {
    format!("{:?}", Received::Message(MessageKind::Text, payload.as_bytes()))
}

fn violation(bytes: &[u8]) -> Option<Violation> {
    let whole = read(bytes, &[], MAX).1;
    assert_eq!(read(bytes, &[1], MAX).1, whole, "byte by byte is judged alike");
    whole
}

#[test]
fn whole_message_is_borrowed_from_the_buffer() {
    let mut reader = FrameReader::default();
    let mut bytes = [client(0x81, b"one"), client(0x82, b"two")].concat();
    let mut at = 0;
    assert_eq!(reader.next(&mut bytes, &mut at, bounds(MAX)), Ok(Some(Received::Message(MessageKind::Text, b"one"))));
    assert_eq!(reader.next(&mut bytes, &mut at, bounds(MAX)), Ok(Some(Received::Message(MessageKind::Binary, b"two"))));
    assert_eq!(reader.next(&mut bytes, &mut at, bounds(MAX)), Ok(None));
    assert!(!reader.is_mid_message());
    assert_eq!(reader.kept_bytes(), 0);
}

#[test]
fn control_frames_come_between_fragments() {
    let bytes =
        [client(0x01, b"he"), client(0x89, b"ping"), client(0x00, b""), client(0x8a, b""), client(0x80, b"llo")]
            .concat();
    for cuts in [&[][..], &[1], &[2, 3], &[7]] {
        let (seen, violation) = read(&bytes, cuts, MAX);
        assert_eq!(violation, None);
        let expected = [format!("{:?}", Received::Ping(b"ping")), format!("{:?}", Received::Pong(b"")), text("hello")];
        assert_eq!(seen, expected, "{cuts:?}");
    }
}

#[test]
fn memory_is_given_back_after_a_message_in_pieces() {
    let mut reader = FrameReader::default();
    let bytes = client(0x82, &[7; 5000]);
    for piece in bytes.chunks(1000) {
        let mut at = 0;
        let mut piece = piece.to_vec();
        let _ = reader.next(&mut piece, &mut at, bounds(MAX)).unwrap();
    }
    let mut at = 0;
    assert_eq!(reader.next(&mut [], &mut at, bounds(MAX)), Ok(None));
    assert_eq!(reader.kept_bytes(), 0);
}

#[test]
fn rules_of_framing_are_held() {
    let unmasked = [0x81, 0x01, b'x'];
    let long_ping = [&[0x89, 0x80 | 126, 0, 126][..], &[0; 130]].concat();
    let not_minimal_16 = [&[0x81, 0x80 | 126, 0, 5][..], &[0; 9]].concat();
    let not_minimal_64 = [&[0x81, 0x80 | 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff][..], &[0; 9]].concat();
    let top_bit = [0x82, 0x80 | 127, 0x80, 0, 0, 0, 0, 0, 0, 0];
    let cases = [
        (&unmasked[..], Violation::Unmasked),
        (&[0xc1, 0x80, 0, 0, 0, 0], Violation::ReservedBits),
        (&[0xa1, 0x80, 0, 0, 0, 0], Violation::ReservedBits),
        (&[0x91, 0x80, 0, 0, 0, 0], Violation::ReservedBits),
        (&[0x83, 0x80, 0, 0, 0, 0], Violation::Opcode),
        (&[0x8b, 0x80, 0, 0, 0, 0], Violation::Opcode),
        (&[0x09, 0x80, 0, 0, 0, 0], Violation::FragmentedControl),
        (&long_ping, Violation::LongControl),
        (&[0x80, 0x80, 0, 0, 0, 0], Violation::Continuation),
        (&not_minimal_16, Violation::LengthForm),
        (&not_minimal_64, Violation::LengthForm),
        (&top_bit, Violation::LengthRange),
    ];
    for (bytes, expected) in cases {
        assert_eq!(violation(bytes), Some(expected), "{bytes:x?}");
    }
    assert_eq!(violation(&[client(0x01, b"a"), client(0x81, b"b")].concat()), Some(Violation::Interleaved));
}

#[test]
fn close_frames_are_checked() {
    let close = |payload: &[u8]| read(&client(0x88, payload), &[], MAX);
    assert_eq!(close(b"").0, [format!("{:?}", Received::Close(CloseCode::NO_STATUS, ""))]);
    assert_eq!(close(b"\x03\xe8bye").0, [format!("{:?}", Received::Close(CloseCode(1000), "bye"))]);
    assert_eq!(close(b"\x03").1, Some(Violation::CloseFrame));
    assert_eq!(close(b"\x03\xe8\xff").1, Some(Violation::Utf8));
    for code in [0u16, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2999, 5000, 65535] {
        assert_eq!(close(&code.to_be_bytes()).1, Some(Violation::CloseFrame), "{code}");
    }
    for code in [1000u16, 1003, 1007, 1014, 3000, 4999] {
        assert_eq!(close(&code.to_be_bytes()).1, None, "{code}");
    }
}

#[test]
fn size_is_judged_by_the_declared_length() {
    let declared = |length: u64| [&[0x82, 0x80 | 127][..], &length.to_be_bytes(), &[1, 2, 3, 4]].concat();
    assert_eq!(violation(&declared(1 << 30)), Some(Violation::TooLarge));
    assert_eq!(violation(&declared((1 << 63) - 1)), Some(Violation::TooLarge));
    assert_eq!(read(&client(0x82, &[0; 100]), &[], 100).1, None);
    assert_eq!(read(&client(0x82, &[0; 101]), &[], 100).1, Some(Violation::TooLarge));
    let split = [client(0x02, &[0; 60]), client(0x80, &[0; 41])].concat();
    assert_eq!(read(&split, &[], 100).1, Some(Violation::TooLarge));
    assert_eq!(read(&split, &[], 101).1, None);
}

#[test]
fn one_frame_may_be_bounded_more_than_its_message() {
    let bounds = MessageBounds { frame: 60, ..bounds(100) };
    let read = |bytes: &[u8]| {
        let (mut reader, mut bytes, mut at) = (FrameReader::default(), bytes.to_vec(), 0);
        reader.next(&mut bytes, &mut at, bounds).map(|received| received.is_some())
    };
    assert_eq!(read(&[client(0x01, &[b'x'; 60]), client(0x80, &[b'x'; 40])].concat()), Ok(true));
    assert_eq!(read(&client(0x81, &[b'x'; 61])), Err(Violation::LargeFrame));
    assert_eq!(read(&[client(0x01, b"x"), client(0x80, &[b'x'; 61])].concat()), Err(Violation::LargeFrame));
    assert_eq!(read(&client(0x81, &[b'x'; 101])), Err(Violation::TooLarge));
    assert_eq!(Violation::LargeFrame.code(), CloseCode::TOO_LARGE);
}

#[test]
fn where_only_text_is_accepted_binary_is_refused_by_its_first_frame() {
    let bounds = MessageBounds { text_only: true, ..bounds(MAX) };
    let read = |bytes: &[u8]| {
        let (mut reader, mut bytes, mut at) = (FrameReader::default(), bytes.to_vec(), 0);
        reader.next(&mut bytes, &mut at, bounds).map(|received| received.is_some())
    };
    assert_eq!(read(&client(0x02, b"")), Err(Violation::Binary));
    assert_eq!(read(&[client(0x01, b"a"), client(0x80, b"b")].concat()), Ok(true));
    assert_eq!(Violation::Binary.code(), CloseCode(1003));
}

#[test]
fn fragments_are_counted() {
    let message = |fragments: usize| {
        let mut bytes = client(0x02, b"");
        bytes.extend((2..fragments).flat_map(|_| client(0x00, b"")));
        bytes.extend(client(0x80, b""));
        bytes
    };
    assert_eq!(read(&message(256), &[], MAX).1, None);
    let (seen, violation) = read(&message(257), &[], MAX);
    assert_eq!((seen.len(), violation), (0, Some(Violation::Fragments)));
    assert_eq!(Violation::Fragments.code(), CloseCode::POLICY);
}

#[test]
fn text_fails_at_its_first_wrong_byte() {
    assert_eq!(violation(&client(0x81, b"\xed\xa0\x80")), Some(Violation::Utf8));
    // the frame declares 100 bytes; the third is hopeless, the rest never comes
    let begun = &client(0x81, &[b"ab\xff".as_slice(), &[b'x'; 97]].concat())[..9];
    assert_eq!(violation(begun), Some(Violation::Utf8));
    let split = [client(0x01, b"\xf0\x9f"), client(0x80, b"\x98\x80")].concat();
    assert_eq!(read(&split, &[], MAX), (vec![text("😀")], None));
    let unfinished = [client(0x01, b"\xf0\x9f"), client(0x80, b"\x98")].concat();
    assert_eq!(violation(&unfinished), Some(Violation::Utf8));
}

proptest! {
    #[test]
    fn cuts_change_nothing(
        messages in proptest::collection::vec((any::<bool>(), ".{0,200}", 1..5usize), 1..8),
        cuts in proptest::collection::vec(1..40usize, 1..10),
    ) {
        let mut bytes = Vec::new();
        for (is_text, payload, frames) in &messages {
            let pieces: Vec<&[u8]> = payload.as_bytes().chunks(payload.len() / frames + 1).collect();
            let last = pieces.len().saturating_sub(1);
            if pieces.is_empty() {
                bytes.extend(client(if *is_text { 0x81 } else { 0x82 }, b""));
            }
            for (number, piece) in pieces.into_iter().enumerate() {
                let opcode = match (number, is_text) { (0, true) => TEXT, (0, false) => BINARY, _ => CONTINUATION };
                bytes.extend(client(opcode | if number == last { 0x80 } else { 0 }, piece));
            }
        }
        let whole = read(&bytes, &[], MAX);
        prop_assert_eq!(whole.1, None);
        prop_assert_eq!(whole.0.len(), messages.len());
        prop_assert_eq!(read(&bytes, &cuts, MAX), whole);
    }

    #[test]
    fn noise_is_judged_alike_however_it_comes(bytes in any::<Vec<u8>>(), cuts in proptest::collection::vec(1..5usize, 1..5)) {
        prop_assert_eq!(read(&bytes, &cuts, 1000), read(&bytes, &[], 1000));
    }
}
