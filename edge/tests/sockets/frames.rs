//! Every frame that breaks a rule ends in the right close (attacks A13 to A21).

use std::time::Duration;

use trunkline_proto::v1::CloseCause;

use crate::support::{Edge, api, code, frame};

/// Sends the bytes; the close code that answers, and the cause that is recorded.
async fn outcome(edge: &Edge, bytes: &[u8]) -> (u16, u32, CloseCause) {
    let (mut client, _) = edge.connect_raw("/echo").await;
    client.send(bytes).await;
    let (first, payload) = client.frame().await.expect("a close frame");
    assert_eq!(first, 0x88, "{payload:?}");
    // TCP ends too, though the client goes on sending
    client.send(&frame(0x81, b"more")).await;
    assert_eq!(client.rest().await, b"");
    let (recorded, _, cause) = edge.log.closed().await;
    (code(&payload), recorded, cause)
}

#[tokio::test]
async fn violations_are_answered_with_their_code() {
    let edge = Edge::start(vec![api("echo", |api| api.max_message = trunkline_proto::units::HumanSize(100))]);
    let protocol = CloseCause::ProtocolError;
    let declared = |length: u64| [&[0x82, 0xff][..], &length.to_be_bytes(), &[0; 4]].concat();
    let fragments = [frame(0x02, b""), frame(0x00, b"").repeat(256)].concat();
    let cases: Vec<(Vec<u8>, u16, CloseCause)> = vec![
        (vec![0x81, 0x01, b'x'], 1002, protocol),
        (vec![0xc1, 0x80, 0, 0, 0, 0], 1002, protocol),
        (frame(0x83, b""), 1002, protocol),
        (frame(0x8b, b""), 1002, protocol),
        (frame(0x09, b""), 1002, protocol),
        (frame(0x89, &[0; 126]), 1002, protocol),
        (frame(0x80, b""), 1002, protocol),
        ([frame(0x01, b"a"), frame(0x81, b"b")].concat(), 1002, protocol),
        (declared(1 << 63), 1002, protocol),
        (declared((1 << 63) - 1), 1009, CloseCause::TooLarge),
        (declared(1 << 30), 1009, CloseCause::TooLarge),
        (declared(3), 1002, protocol),
        (frame(0x81, &[b'x'; 101]), 1009, CloseCause::TooLarge),
        ([frame(0x01, &[b'x'; 60]), frame(0x80, &[b'x'; 41])].concat(), 1009, CloseCause::TooLarge),
        (fragments, 1008, CloseCause::RateLimited),
        (frame(0x89, b"").repeat(200), 1008, CloseCause::RateLimited),
        (frame(0x81, b"\xed\xa0\x80"), 1007, protocol),
        ([frame(0x01, b"\xf0\x9f"), frame(0x80, b"x")].concat(), 1007, protocol),
        (frame(0x88, b"\x03"), 1002, protocol),
        (frame(0x88, b"\x03\xe8\xff"), 1007, protocol),
        (frame(0x88, &1005u16.to_be_bytes()), 1002, protocol),
        (frame(0x88, &1015u16.to_be_bytes()), 1002, protocol),
        (frame(0x88, &999u16.to_be_bytes()), 1002, protocol),
        (frame(0x88, &5000u16.to_be_bytes()), 1002, protocol),
    ];
    for (bytes, wire, cause) in cases {
        if bytes.len() == 1200 {
            // pongs come first
            let (mut client, _) = edge.connect_raw("/echo").await;
            client.send(&bytes).await;
            let mut last = None;
            while let Some(frame) = client.frame().await {
                last = Some(frame);
            }
            let (first, payload) = last.unwrap();
            assert_eq!((first, code(&payload)), (0x88, wire));
            assert_eq!(edge.log.closed().await.2, cause);
            continue;
        }
        let shown = bytes[..bytes.len().min(20)].to_vec();
        assert_eq!(outcome(&edge, &bytes).await, (wire, u32::from(wire), cause), "{shown:x?}");
    }
    edge.stop().await;
}

#[tokio::test]
async fn messages_at_the_limit_pass_whole_or_in_pieces() {
    let edge = Edge::echo();
    let (mut client, _) = edge.connect_raw("/echo").await;
    for length in [0, 1, 125, 126, 65_535, 65_536, 1 << 20] {
        let payload = vec![b'x'; length];
        client.send(&frame(0x81, &payload)).await;
        assert_eq!(edge.log.message().await, payload);
    }
    let half = vec![b'y'; 1 << 19];
    client.send(&[frame(0x02, &half), frame(0x89, b"p"), frame(0x80, &half)].concat()).await;
    assert_eq!(edge.log.message().await.len(), 1 << 20);
    assert_eq!(client.frame().await, Some((0x8a, b"p".to_vec())));
    // byte by byte
    for byte in frame(0x81, "é€😀".as_bytes()) {
        client.send(&[byte]).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(edge.log.message().await, "é€😀".as_bytes());
    drop(client);
    edge.log.closed().await;
    edge.stop().await;
}

#[tokio::test]
async fn client_close_is_echoed_and_the_server_ends_first() {
    let edge = Edge::echo();
    let (mut client, _) = edge.connect_raw("/echo").await;
    client.send(&[frame(0x81, b"last"), frame(0x88, b"\x0f\xa0bye"), frame(0x81, b"ignored")].concat()).await;
    assert_eq!(client.frame().await, Some((0x88, b"\x0f\xa0".to_vec())));
    assert_eq!(client.rest().await, b"");
    assert_eq!(edge.log.message().await, &b"last"[..]);
    assert_eq!(edge.log.closed().await, (4000, "bye".to_owned(), CloseCause::Client));
    drop(client);
    edge.stop().await;
}
