//! A broker's link over a real node, and an edge made by hand.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use quinn::crypto::rustls::QuicClientConfig;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use trunkline_proto::{
    Batch, ConnectionId, Offset, PartitionCount, PartitionId, Record, RecordKind, Source, limits,
    link::{ALPN, Delivery, Frame, LINK_VERSION, UplinkBatch},
    v1::{self, MessageKind, link as pb},
};

use super::super::{
    Link, Sessions, Settings,
    frames::{FrameReader, FrameWriter},
    handler, watch,
};
use crate::{
    append::Appended,
    node::{Node, NodeConfig},
    quic::{self, Handlers, Identity, Pki, endpoint, tls},
};

/// Longer than anything takes here; a test that waits so long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// An authority and what it signs.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A node's certificate and key.
pub(crate) struct Signed {
    pub certificate: CertificateDer<'static>,
    pub key: KeyPair,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    pub(crate) fn sign(&self, dns_name: &str) -> Signed {
        self.sign_with(dns_name, |_| ())
    }

    pub(crate) fn sign_with(&self, dns_name: &str, change: impl FnOnce(&mut CertificateParams)) -> Signed {
        let mut params = CertificateParams::new(vec![dns_name.to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Signed { certificate, key }
    }

    /// Writes the PKI folder of broker 1.
    pub(crate) fn write(&self, folder: &Path) {
        self.write_broker(folder, 1);
    }

    /// Writes the PKI folder of a broker.
    pub(crate) fn write_broker(&self, folder: &Path, id: u64) {
        let broker = self.sign(&format!("broker.{id}.trunkline.internal"));
        std::fs::write(folder.join("ca.pem"), self.issuer.pem()).unwrap();
        let pem = pem("CERTIFICATE", &broker.certificate);
        std::fs::write(folder.join(format!("broker-{id}.pem")), pem).unwrap();
        std::fs::write(folder.join(format!("broker-{id}.key")), broker.key.serialize_pem()).unwrap();
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

/// A node with its link.
pub(crate) struct Broker {
    pub node: Node,
    pub link: Arc<Link>,
    pub address: SocketAddr,
    pub authority: Authority,
    pub folder: tempfile::TempDir,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

/// What tests vary.
#[derive(Clone, Copy)]
pub(crate) struct Options {
    pub partitions: u16,
    pub grace: Duration,
    pub tail_bytes: usize,
    pub in_flight_bytes: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { partitions: 1, grace: Duration::from_secs(30), tail_bytes: 16 << 20, in_flight_bytes: 8 << 20 }
    }
}

impl Broker {
    pub(crate) async fn start(options: Options) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), Authority::new(), options).await
    }

    async fn start_in(folder: tempfile::TempDir, authority: Authority, options: Options) -> Self {
        let count = PartitionCount::new(options.partitions).unwrap();
        let mut config = NodeConfig::new(folder.path().join("data"), "test", count);
        config.tail_bytes = options.tail_bytes;
        let node = Node::open(config).await.unwrap();
        node.wait_ready().await.unwrap();
        authority.write(folder.path());
        let pki = Pki::load(folder.path(), &Identity::broker(1)).unwrap();
        let tls = tls::server_config(&pki).unwrap();
        let socket = quic::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        let endpoint = endpoint::endpoint(socket, tls, count).unwrap();
        let settings = Settings {
            broker: 1,
            cluster: "test".to_owned(),
            grace: options.grace,
            edges_max: 16,
            in_flight_bytes: options.in_flight_bytes,
        };
        let link = Arc::new(Link {
            node: node.clone(),
            settings,
            sessions: Arc::new(Sessions::default()),
            shutdown: CancellationToken::new(),
        });
        let handlers = Handlers {
            edges: handler(link.clone()),
            peers: Arc::new(|accepted| Box::pin(async move { drop(accepted) })),
            edges_max: 16,
        };
        let shutdown = link.shutdown.clone();
        let serving = async move {
            quic::serve(endpoint.clone(), handlers, shutdown).await;
            quic::close(&endpoint, "shutdown").await;
        };
        let tasks = vec![tokio::spawn(serving), tokio::spawn(watch(link.clone()))];
        Self { node, link, address, authority, folder, tasks }
    }

    pub(crate) async fn stop(self) -> (tempfile::TempDir, Authority) {
        self.link.shutdown.cancel();
        for task in self.tasks {
            timeout(PATIENCE, task).await.unwrap().unwrap();
        }
        self.node.shutdown().await;
        (self.folder, self.authority)
    }

    pub(crate) async fn restart(self, options: Options) -> Self {
        let (folder, authority) = self.stop().await;
        Self::start_in(folder, authority, options).await
    }

    /// Appends one record as a submitted command.
    pub(crate) async fn submit(&self, partition: u16, record: Record) -> Appended {
        let partition = self.node.partition(PartitionId(partition)).unwrap();
        partition.append.append(Batch::new(Source::Submit(v1::SubmitSource::default()), &[record])).await.unwrap()
    }

    /// Publishes to a channel of a broker with one partition.
    pub(crate) async fn publish(&self, channel: &str, text: &str) -> Offset {
        self.submit(0, published(channel, text)).await.offset(0)
    }

    pub(crate) async fn push(&self, connection: ConnectionId, text: &str) -> Offset {
        let body = v1::Pushed { kind: MessageKind::Text.into(), payload: Bytes::copy_from_slice(text.as_bytes()) };
        self.submit(0, Record::new(RecordKind::Pushed, connection, "", &body)).await.offset(0)
    }
}

pub(crate) fn published(channel: &str, text: &str) -> Record {
    let body = v1::Published {
        channel: channel.to_owned(),
        kind: MessageKind::Text.into(),
        payload: Bytes::copy_from_slice(text.as_bytes()),
        ..Default::default()
    };
    Record::new(RecordKind::Published, ConnectionId::NONE, "", &body)
}

/// A client's TLS, as an edge of that certificate has it.
pub(crate) fn client_config(authority: &Authority, signed: Option<&Signed>, alpn: &[u8]) -> quinn::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.issuer.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match signed {
        Some(signed) => {
            let key = PrivateKeyDer::try_from(signed.key.serialize_der()).unwrap();
            builder.with_client_auth_cert(vec![signed.certificate.clone()], key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()))
}

pub(crate) fn client_endpoint() -> quinn::Endpoint {
    quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap()
}

/// A bidirectional stream of frames.
pub(crate) struct Stream {
    pub(in crate::link) reader: FrameReader,
    pub(in crate::link) writer: FrameWriter,
}

impl Stream {
    pub(crate) async fn open(connection: &quinn::Connection) -> Self {
        let (send, receive) = connection.open_bi().await.unwrap();
        Self { reader: FrameReader::new(receive, limits::FRAME_BYTES_MAX), writer: FrameWriter::new(send) }
    }

    pub(crate) async fn send(&mut self, frame: Frame) {
        timeout(PATIENCE, self.writer.send(&frame)).await.unwrap().unwrap();
    }

    /// The next frame; `None` at the stream's end, however it ended.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        timeout(PATIENCE, self.reader.next()).await.expect("a frame in time").ok().flatten()
    }

    /// The next frame that `want` takes; others are skipped.
    pub(crate) async fn wait<T>(&mut self, mut want: impl FnMut(&Frame) -> Option<T>) -> T {
        loop {
            let frame = self.next().await.expect("the stream goes on");
            if let Some(found) = want(&frame) {
                return found;
            }
        }
    }

    pub(crate) async fn goodbye(&mut self) -> pb::Reason {
        self.wait(|frame| match frame {
            Frame::Goodbye(goodbye) => Some(goodbye.reason()),
            _ => None,
        })
        .await
    }

    pub(crate) async fn applied(&mut self, sequence: u64) {
        self.wait(|frame| match frame {
            Frame::Applied { sequence: applied } if *applied >= sequence => Some(()),
            _ => None,
        })
        .await;
    }
}

/// A QUIC connection of an edge, after Welcome.
pub(crate) struct Edge {
    pub connection: quinn::Connection,
    pub control: Stream,
    pub welcome: pb::Welcome,
    pub name: String,
    _endpoint: quinn::Endpoint,
}

impl Edge {
    pub(crate) async fn connect(broker: &Broker, name: &str, nonce: u8, incarnation: u64) -> Self {
        let (connection, endpoint) = Self::dial(broker, name).await;
        let mut control = Stream::open(&connection).await;
        control.send(hello(name, nonce, incarnation)).await;
        let Some(Frame::Welcome(welcome)) = control.next().await else { panic!("no Welcome") };
        Self { connection, control, welcome, name: name.to_owned(), _endpoint: endpoint }
    }

    pub(crate) async fn dial(broker: &Broker, name: &str) -> (quinn::Connection, quinn::Endpoint) {
        let signed = broker.authority.sign(&format!("edge.{name}.trunkline.internal"));
        let endpoint = client_endpoint();
        let config = client_config(&broker.authority, Some(&signed), ALPN);
        let connecting = endpoint.connect_with(config, broker.address, "broker.1.trunkline.internal").unwrap();
        (timeout(PATIENCE, connecting).await.unwrap().unwrap(), endpoint)
    }

    /// Opens a partition's stream; gives what it was told.
    pub(crate) async fn attach(&self, partition: u32, after: u64) -> (Stream, pb::Attached) {
        self.attach_with(partition, after, Vec::new()).await
    }

    pub(crate) async fn attach_with(&self, partition: u32, after: u64, apis: Vec<pb::Api>) -> (Stream, pb::Attached) {
        let mut stream = Stream::open(&self.connection).await;
        stream.send(self.attach_frame(partition, after, apis)).await;
        match stream.next().await {
            Some(Frame::Attached(attached)) => (stream, attached),
            other => panic!("not attached: {other:?}"),
        }
    }

    pub(crate) fn attach_frame(&self, partition: u32, after: u64, apis: Vec<pb::Api>) -> Frame {
        let (edge, incarnation) = (self.name.clone(), self.welcome.incarnation);
        Frame::Attach(pb::Attach { partition, edge, incarnation, after, apis })
    }

    pub(crate) fn opened(&self, connection: ConnectionId, channels: &[&str]) -> Record {
        let body = v1::ConnectionOpened {
            edge: self.name.clone(),
            incarnation: self.welcome.incarnation,
            channels: channels.iter().map(|channel| (*channel).to_owned()).collect(),
            ..Default::default()
        };
        Record::new(RecordKind::ConnectionOpened, connection, "chat", &body)
    }
}

pub(crate) fn hello(name: &str, nonce: u8, incarnation: u64) -> Frame {
    let nonce = Bytes::copy_from_slice(&[nonce; 16]);
    Frame::Hello(pb::Hello { version: LINK_VERSION, edge: name.to_owned(), nonce, incarnation })
}

pub(crate) fn message(connection: ConnectionId, text: &str) -> Record {
    let body = v1::MessageReceived { kind: MessageKind::Text.into(), payload: Bytes::copy_from_slice(text.as_bytes()) };
    Record::new(RecordKind::MessageReceived, connection, "chat", &body)
}

pub(crate) fn batch(sequence: u64, records: &[Record]) -> Frame {
    let Batch { count, records, .. } = Batch::new(Source::Leader, records);
    Frame::Batch(UplinkBatch { sequence, count, records })
}

pub(crate) fn connection(n: u8) -> ConnectionId {
    ConnectionId([n; 16])
}

/// What a delivery is, for comparing.
pub(crate) fn text_of(delivery: &Delivery) -> String {
    let record = &delivery.record;
    match record.kind {
        RecordKind::Published => {
            let body: v1::Published = record.decode().unwrap();
            format!("published {} {}", body.channel, String::from_utf8_lossy(&body.payload))
        }
        RecordKind::Pushed => {
            let body: v1::Pushed = record.decode().unwrap();
            format!("pushed {}", String::from_utf8_lossy(&body.payload))
        }
        RecordKind::ChannelJoined => format!("joined {}", record.decode::<v1::ChannelJoined>().unwrap().channel),
        kind => kind.name().to_owned(),
    }
}

/// Polls until `done`.
pub(crate) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(waited.await.is_ok(), "never: {what}");
}
