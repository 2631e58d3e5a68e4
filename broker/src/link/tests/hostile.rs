use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;
use trunkline_proto::{
    ConnectionId, PartitionId, Record, RecordKind,
    link::{ALPN, Frame},
    v1::{self, link as pb},
};

use super::support::{
    Authority, Broker, Edge, Options, PATIENCE, Signed, Stream, batch, client_config, client_endpoint, connection,
    hello, message,
};

/// Whether a client with this certificate and ALPN gets as far as a Welcome.
async fn gets_in(broker: &Broker, signed: Option<&Signed>, alpn: &[u8]) -> bool {
    let endpoint = client_endpoint();
    let config = client_config(&broker.authority, signed, alpn);
    let connecting = endpoint.connect_with(config, broker.address, "broker.1.trunkline.internal").unwrap();
    let Ok(connection) = timeout(PATIENCE, connecting).await.unwrap() else { return false };
    // with TLS 1.3 a client hears of its refusal after its own handshake is done
    let Ok((send, receive)) = connection.open_bi().await else { return false };
    let mut stream = Stream {
        reader: super::super::frames::FrameReader::new(receive, 1 << 16),
        writer: super::super::frames::FrameWriter::new(send),
    };
    let _ = stream.writer.send(&hello("a", 1, 0)).await;
    matches!(stream.next().await, Some(Frame::Welcome(_)))
}

#[tokio::test]
async fn only_edges_of_this_authority_get_in() {
    let broker = Broker::start(Options::default()).await;
    let sign = |name: &str| broker.authority.sign(name);
    assert!(gets_in(&broker, Some(&sign("edge.a.trunkline.internal")), ALPN).await);
    assert!(!gets_in(&broker, None, ALPN).await, "no certificate");
    assert!(!gets_in(&broker, Some(&sign("edge.a.trunkline.internal")), b"h3").await, "wrong ALPN");
    assert!(!gets_in(&broker, Some(&sign("edge.b.trunkline.internal")), ALPN).await, "another edge's name");
    assert!(!gets_in(&broker, Some(&sign("broker.1.trunkline.internal")), ALPN).await, "a broker's certificate");
    assert!(!gets_in(&broker, Some(&sign("example.com")), ALPN).await, "no node's certificate");
    let foreign = Authority::new().sign("edge.a.trunkline.internal");
    assert!(!gets_in(&broker, Some(&foreign), ALPN).await, "another authority");
    let expired = broker.authority.sign_with("edge.a.trunkline.internal", |params| {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    });
    assert!(!gets_in(&broker, Some(&expired), ALPN).await, "expired");
    assert!(gets_in(&broker, Some(&sign("edge.a.trunkline.internal")), ALPN).await, "and the good one still");
    broker.stop().await;
}

#[tokio::test]
async fn a_wrong_hello_is_refused_with_a_reason() {
    let broker = Broker::start(Options::default()).await;
    let good = match hello("a", 1, 0) {
        Frame::Hello(hello) => hello,
        _ => unreachable!(),
    };
    for wrong in [
        Frame::Hello(pb::Hello { version: 99, ..good.clone() }),
        Frame::Hello(pb::Hello { edge: "b".to_owned(), ..good.clone() }),
        Frame::Hello(pb::Hello { nonce: Bytes::new(), ..good.clone() }),
        Frame::Ping,
        batch(1, &[message(connection(1), "x")]),
    ] {
        let (connection, _endpoint) = Edge::dial(&broker, "a").await;
        let mut control = Stream::open(&connection).await;
        control.send(wrong.clone()).await;
        assert_eq!(control.goodbye().await, pb::Reason::Invalid, "{wrong:?}");
    }
    broker.stop().await;
}

#[tokio::test]
async fn a_wrong_attach_or_batch_ends_the_stream_and_leaves_the_log_alone() {
    let broker = Broker::start(Options { partitions: 2, ..Options::default() }).await;
    let edge = Edge::connect(&broker, "a", 1, 0).await;
    let applied = |partition: u16| broker.node.partition(PartitionId(partition)).unwrap().tail.applied();
    let attach = |partition, edge_name: &str, incarnation| {
        let edge = edge_name.to_owned();
        Frame::Attach(pb::Attach { partition, edge, incarnation, ..Default::default() })
    };
    let before = (applied(0), applied(1));
    for wrong in [
        attach(7, "a", 1),
        attach(u32::MAX, "a", 1),
        attach(0, "b", 1),
        attach(0, "a", 0),
        attach(0, "a", 2),
        Frame::Ping,
        batch(1, &[message(connection(2), "x")]),
    ] {
        let mut stream = Stream::open(&edge.connection).await;
        stream.send(wrong.clone()).await;
        assert_eq!(stream.goodbye().await, pb::Reason::Invalid, "{wrong:?}");
    }
    assert_eq!((applied(0), applied(1)), before);
    // connection(1) belongs to partition 1, connection(2) to partition 0
    let pushed = Record::new(RecordKind::Pushed, connection(2), "chat", &v1::Pushed::default());
    let foreign = v1::ConnectionOpened { edge: "b".to_owned(), incarnation: 1, ..Default::default() };
    let foreign = Record::new(RecordKind::ConnectionOpened, connection(2), "chat", &foreign);
    for wrong in [
        batch(1, &[message(connection(1), "another partition's")]),
        batch(1, &[message(ConnectionId::NONE, "nobody's")]),
        batch(1, &[pushed]),
        batch(1, &[foreign]),
        Frame::Applied { sequence: 1 },
    ] {
        let (mut stream, _) = edge.attach(0, 0).await;
        let before = applied(0);
        stream.send(wrong.clone()).await;
        assert_eq!(stream.goodbye().await, pb::Reason::Invalid, "{wrong:?}");
        assert_eq!(applied(0), before, "{wrong:?}");
    }
    broker.stop().await;
}

#[tokio::test]
async fn frames_that_are_none_end_the_stream_not_the_broker() {
    let broker = Broker::start(Options::default()).await;
    let edge = Edge::connect(&broker, "a", 1, 0).await;
    for garbage in [
        &[0, 0, 0, 0][..],
        &[0xff, 0xff, 0xff, 0xff, 5],
        &[1, 0, 0, 0, 200],
        &[4, 0, 0, 0, 3, 0xff, 0xff, 0xff],
        &[3, 0, 0, 0, 5, 1, 2],
    ] {
        let (mut send, receive) = edge.connection.open_bi().await.unwrap();
        send.write_all(garbage).await.unwrap();
        let reader = super::super::frames::FrameReader::new(receive, 1 << 16);
        let mut stream = Stream { reader, writer: super::super::frames::FrameWriter::new(send) };
        assert_eq!(stream.goodbye().await, pb::Reason::Invalid, "{garbage:?}");
    }
    // the session lives on
    let (mut stream, _) = edge.attach(0, 0).await;
    stream.send(batch(1, &[edge.opened(connection(1), &[])])).await;
    stream.applied(1).await;
    broker.stop().await;
}

#[tokio::test]
async fn garbage_datagrams_are_dropped() {
    let broker = Broker::start(Options::default()).await;
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut datagram = vec![0u8; 1300];
    for n in 0..2000u32 {
        for (at, byte) in datagram.iter_mut().enumerate() {
            *byte = (n.wrapping_mul(2_654_435_761).wrapping_add(at as u32 * 97) >> 7) as u8;
        }
        // every kind of first byte, and some that claim to be an Initial of QUIC 1
        datagram[0] = n as u8;
        if n % 3 == 0 {
            datagram[0] |= 0xc0;
            datagram[1..5].copy_from_slice(&[0, 0, 0, 1]);
        }
        let length = (n as usize * 13) % datagram.len();
        let _ = socket.send_to(&datagram[..length], broker.address).await;
    }
    let edge = timeout(Duration::from_secs(10), Edge::connect(&broker, "a", 1, 0)).await.unwrap();
    assert_eq!(edge.welcome.incarnation, 1);
    broker.stop().await;
}
