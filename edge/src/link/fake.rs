//! A broker of these tests: speaks the frames over real QUIC, with certificates of an authority of its own.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::{
    sync::{Notify, broadcast, watch},
    time::timeout,
};
use trunkline_proto::{
    Batch, Offset, Record, RecordKind, Source,
    link::{ALPN, Frame, UplinkBatch},
    v1::link as pb,
};
use trunkline_quic::Identity;

use super::frames::{FrameReader, FrameWriter};
use crate::config::BrokerAddress;

const PATIENCE: Duration = Duration::from_secs(20);

/// Whatever a test waits for comes, or the test says where it waited.
pub(crate) async fn soon<F: Future>(what: &'static str, future: F) -> F::Output {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited too long for {what}"))
}

/// A certificate authority and its folder.
pub(crate) struct Pki {
    folder: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let pki = Self { folder: tempfile::tempdir().unwrap(), issuer };
        pki.write("ca.pem", &pki.issuer.pem());
        pki.write_node(&Identity::edge("e1"));
        pki
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    fn write_node(&self, node: &Identity) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![node.dns_name()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        self.write(&node.certificate_file(), &certificate.pem());
        self.write(&node.key_file(), &key.serialize_pem());
    }

    /// A server that shows the certificate of broker `id`.
    pub(crate) fn server(&self, id: u64) -> quinn::ServerConfig {
        let broker = Identity::broker(id);
        self.write_node(&broker);
        let tls = trunkline_quic::Pki::load(self.path(), &broker).unwrap().server_config(&[ALPN]).unwrap();
        quinn::ServerConfig::with_crypto(Arc::new(tls))
    }
}

pub(crate) struct Broker {
    /// What it tells of others.
    pub(crate) brokers: Vec<pb::BrokerLink>,
    pub(crate) id: u64,
    pub(crate) endpoint: quinn::Endpoint,
}

impl Broker {
    pub(crate) fn start(pki: &Pki, id: u64) -> Self {
        Self::start_at(pki, id, SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    pub(crate) fn start_at(pki: &Pki, id: u64, address: SocketAddr) -> Self {
        Self { id, brokers: Vec::new(), endpoint: quinn::Endpoint::server(pki.server(id), address).unwrap() }
    }

    pub(crate) fn address(&self) -> BrokerAddress {
        BrokerAddress { id: self.id, link: self.endpoint.local_addr().unwrap().to_string() }
    }

    /// The next edge that says hello.
    pub(crate) async fn hello(&self) -> Hello {
        let connection = soon("a connection", self.endpoint.accept()).await.unwrap().await.unwrap();
        let (send, receive) = soon("the control stream", connection.accept_bi()).await.unwrap();
        let (mut reader, writer) = (FrameReader::new(receive), FrameWriter::new(send));
        match soon("Hello", reader.next()).await.unwrap() {
            Frame::Hello(hello) => {
                Hello { broker: self.id, brokers: self.brokers.clone(), hello, connection, reader, writer }
            }
            other => panic!("{other:?}"),
        }
    }

    /// Welcomes the next edge, and takes its stream of partition 0.
    pub(crate) async fn link(&self, incarnation: u64) -> (Hello, Stream) {
        let mut hello = self.hello().await;
        hello.welcome(incarnation, 1).await;
        let stream = hello.stream().await;
        (hello, stream)
    }
}

pub(crate) struct Hello {
    broker: u64,
    brokers: Vec<pb::BrokerLink>,
    pub(crate) hello: pb::Hello,
    pub(crate) connection: quinn::Connection,
    reader: FrameReader,
    pub(crate) writer: FrameWriter,
}

impl Hello {
    pub(crate) async fn welcome(&mut self, incarnation: u64, partition_count: u32) {
        self.welcome_to("test", incarnation, partition_count).await;
    }

    pub(crate) async fn welcome_to(&mut self, cluster: &str, incarnation: u64, partition_count: u32) {
        let welcome = pb::Welcome {
            cluster: cluster.to_owned(),
            partition_count,
            incarnation,
            broker: self.broker,
            leaders: Vec::new(),
            brokers: self.brokers.clone(),
            grace_ms: 10_000,
        };
        self.writer.send(&Frame::Welcome(welcome)).await.unwrap();
    }

    /// Until the edge pings: it has taken the Welcome.
    pub(crate) async fn pinged(&mut self) {
        assert_eq!(soon("a ping", self.reader.next()).await.unwrap(), Frame::Ping);
    }

    pub(crate) async fn stream(&self) -> Stream {
        let (send, receive) = soon("a stream", self.connection.accept_bi()).await.unwrap();
        let (mut reader, writer) = (FrameReader::new(receive), FrameWriter::new(send));
        match soon("Attach", reader.next()).await.unwrap() {
            Frame::Attach(attach) => Stream { attach, reader, writer },
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) struct Stream {
    pub(crate) attach: pb::Attach,
    pub(crate) reader: FrameReader,
    pub(crate) writer: FrameWriter,
}

impl Stream {
    pub(crate) async fn send(&mut self, frame: Frame) {
        soon("room on the stream", self.writer.send(&frame)).await.unwrap();
    }

    pub(crate) async fn attached(&mut self, last_sequence: u64, start: Offset) {
        self.send(Frame::Attached(pb::Attached { last_sequence, start: start.0 })).await;
    }

    pub(crate) async fn goodbye(&mut self, reason: pb::Reason, leader: u64, address: &str) {
        let goodbye = pb::Goodbye { reason: reason.into(), leader, address: address.to_owned(), ..Default::default() };
        self.send(Frame::Goodbye(goodbye)).await;
    }

    /// Until a batch comes.
    pub(crate) async fn batch(&mut self) -> UplinkBatch {
        loop {
            match soon("a batch", self.reader.next()).await.unwrap() {
                Frame::Batch(batch) => return batch,
                Frame::Seen { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Until deliveries up to `offset` have been handed over.
    pub(crate) async fn seen(&mut self, offset: Offset) {
        loop {
            match soon("Seen", self.reader.next()).await.unwrap() {
                Frame::Seen { offset: seen } if seen >= offset => return,
                Frame::Seen { .. } | Frame::Batch(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

/// A broker that applies whatever comes, remembers it, and sends what it is told to on every stream.
pub(crate) struct Automatic {
    pub(crate) address: BrokerAddress,
    inner: Arc<Inner>,
}

struct Inner {
    partitions: u32,
    log: Mutex<Vec<Record>>,
    /// Last applied sequence of each incarnation and partition.
    sequences: Mutex<BTreeMap<(u64, u32), u64>>,
    /// The partition that is not attached for now.
    held: watch::Sender<Option<u32>>,
    /// Incarnation and partition of each Attach.
    asked: watch::Sender<Vec<(u64, u32)>>,
    arrived: Notify,
    frames: broadcast::Sender<Frame>,
}

impl Automatic {
    /// Of one partition.
    pub(crate) fn start(pki: &Pki) -> Self {
        Self::start_with(pki, 1, None)
    }

    /// Does not attach the partition `held` until it is told to.
    pub(crate) fn start_with(pki: &Pki, partitions: u32, held: Option<u32>) -> Self {
        let broker = Broker::start(pki, 1);
        let inner = Inner {
            partitions,
            log: Mutex::default(),
            held: watch::Sender::new(held),
            asked: watch::Sender::default(),
            sequences: Mutex::default(),
            arrived: Notify::new(),
            frames: broadcast::Sender::new(64),
        };
        let (address, inner) = (broker.address(), Arc::new(inner));
        tokio::spawn(Arc::clone(&inner).serve(broker));
        Self { address, inner }
    }

    /// Attaches every partition but this one from now on.
    pub(crate) fn hold(&self, partition: Option<u32>) {
        self.inner.held.send_replace(partition);
    }

    /// Until the edge wants this partition attached.
    pub(crate) async fn asked(&self, incarnation: u64, partition: u32) {
        let mut asked = self.inner.asked.subscribe();
        let asked = asked.wait_for(|asked| asked.contains(&(incarnation, partition)));
        drop(soon("Attach", asked).await.unwrap());
    }

    /// Sends a frame on each partition's stream.
    pub(crate) fn send(&self, frame: Frame) {
        self.inner.frames.send(frame).unwrap();
    }

    /// The n-th record of this kind, once it is there.
    pub(crate) async fn record(&self, kind: RecordKind, n: usize) -> Record {
        let found = async {
            loop {
                let arrived = self.inner.arrived.notified();
                if let Some(record) = self.inner.log.lock().iter().filter(|record| record.kind == kind).nth(n) {
                    return record.clone();
                }
                arrived.await;
            }
        };
        soon(kind.name(), found).await
    }
}

impl Inner {
    async fn serve(self: Arc<Self>, broker: Broker) {
        let mut granted = 0;
        loop {
            let Some(incoming) = broker.endpoint.accept().await else { return };
            let Ok(connection) = incoming.await else { continue };
            let Ok((send, receive)) = connection.accept_bi().await else { continue };
            let (mut reader, writer) = (FrameReader::new(receive), FrameWriter::new(send));
            let Ok(Frame::Hello(hello)) = reader.next().await else { continue };
            granted += u64::from(hello.incarnation == 0);
            let mut hello =
                Hello { broker: broker.id, brokers: broker.brokers.clone(), hello, connection, reader, writer };
            hello.welcome(granted, self.partitions).await;
            tokio::spawn(Arc::clone(&self).session(hello));
        }
    }

    async fn session(self: Arc<Self>, mut hello: Hello) {
        loop {
            tokio::select! {
                stream = hello.connection.accept_bi() => match stream {
                    Ok((send, receive)) => {
                        let (reader, writer) = (FrameReader::new(receive), FrameWriter::new(send));
                        tokio::spawn(Arc::clone(&self).stream(reader, writer));
                    }
                    Err(_) => return,
                },
                () = tokio::time::sleep(Duration::from_secs(1)) => {
                    let _ = hello.writer.send(&Frame::Ping).await;
                }
            }
        }
    }

    async fn stream(self: Arc<Self>, mut reader: FrameReader, mut writer: FrameWriter) {
        let Ok(Frame::Attach(attach)) = reader.next().await else { return };
        let life = (attach.incarnation, attach.partition);
        self.asked.send_modify(|asked| asked.push(life));
        let _ = self.held.subscribe().wait_for(|held| *held != Some(attach.partition)).await;
        let mut frames = self.frames.subscribe();
        let last_sequence = self.sequences.lock().get(&life).copied().unwrap_or_default();
        let attached = pb::Attached { last_sequence, start: attach.after };
        let mut answer = Frame::Attached(attached);
        while writer.send(&answer).await.is_ok() {
            answer = loop {
                tokio::select! {
                    frame = reader.next() => match frame {
                        Ok(Frame::Batch(batch)) => break self.apply(life, batch),
                        Ok(_) => {}
                        Err(_) => return,
                    },
                    Ok(frame) = frames.recv() => break frame,
                }
            };
        }
    }

    fn apply(&self, life: (u64, u32), batch: UplinkBatch) -> Frame {
        let mut sequences = self.sequences.lock();
        let last = sequences.entry(life).or_default();
        if batch.sequence == *last + 1 {
            *last += 1;
            let batch = Batch::checked(Source::Leader, batch.count, batch.records).unwrap();
            self.log.lock().extend(batch.iter().map(Result::unwrap));
            self.arrived.notify_waiters();
        }
        Frame::Applied { sequence: *last }
    }
}
