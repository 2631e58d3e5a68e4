//! Takes TCP connections and turns upgrade requests into connections of the log. A stranger costs at most a few KiB and ten
//! seconds, from accept on, whatever it sends or does not send.

use std::{
    future::poll_fn,
    io,
    net::{SocketAddr, TcpListener as StdListener},
    rc::Rc,
    sync::Arc,
    task::{Poll, ready},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use socket2::{Domain, Protocol, Type};
use tokio::{
    io::ReadBuf,
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout_at},
};
use trunkline_proto::{ConnectionId, RecordKind, record::encode_record, v1};

use crate::{
    api::Api,
    config::ApiConfig,
    core::{
        Answer, Millis, Registration,
        auth::{Denied, Identity},
        connection::Connection,
        handshake::{Head, HeadReader, Upgrade, is_origin_allowed},
    },
    gate::Place,
    inbox::shard_of,
    metrics::HandshakeOutcome,
    shard::{Shard, ShardOptions},
    sink::RecordSink,
    socket::Socket,
    stream::Stream,
};

/// From accept to the complete request.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a refused client may take to read its answer and close.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes read at once from a client without a connection. Small: the head of a browser is 500 bytes.
const READ_BYTES: usize = 2048;
/// Connections the kernel keeps ready for accept (bounded by `somaxconn`).
const BACKLOG: i32 = 4096;
/// Pause after accept has failed for want of file descriptors or memory: closing sockets gives them back.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// One listening socket per shard on the same address (SO_REUSEPORT where there are several), nonblocking. Port 0 is drawn
/// once. Fails if anything listens there already.
pub fn bind(address: SocketAddr, shards: usize) -> io::Result<Vec<StdListener>> {
    if shards <= 1 {
        return Ok(vec![listen(address, false)?]);
    }
    // without SO_REUSEPORT, so that another process's port is not shared by mistake
    let first = listen(address, false)?;
    let address = first.local_addr()?;
    drop(first);
    (0..shards).map(|_| listen(address, true)).collect()
}

fn listen(address: SocketAddr, is_shared: bool) -> io::Result<StdListener> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(is_shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts until the shard stops accepting.
pub(crate) async fn serve<S: RecordSink>(shard: Rc<Shard<S>>, listener: TcpListener) {
    let on_loopback = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
    // each handshake in flight holds one clone
    let handshakes = Rc::new(());
    while shard.is_accepting.get() {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shard.stops_accepting.notified() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {
                continue;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        // a push must not wait for the answer to the one before it
        let _ = stream.set_nodelay(true);
        if Rc::strong_count(&handshakes) > shard.options.handshakes_max {
            shard.unmatched.handshake(HandshakeOutcome::Unavailable);
            // the send buffer of a fresh socket takes it; by TLS it would be no answer
            if shard.options.tls.is_none() {
                let _ = stream.try_write(&busy().to_bytes());
            }
            continue;
        }
        let (shard, held) = (Rc::clone(&shard), Rc::clone(&handshakes));
        tokio::task::spawn_local(async move {
            handshake(&shard, stream, Peer { address: peer, on_loopback }).await;
            drop(held);
        });
    }
}

fn busy() -> Answer {
    Answer::unavailable("too many connections; try again later", retry_after())
}

/// Spread, so that those who are sent away do not come back together.
fn retry_after() -> u32 {
    rand::random_range(1..=5)
}

/// Where a request comes from, and to.
#[derive(Clone, Copy)]
struct Peer {
    address: SocketAddr,
    on_loopback: bool,
}

async fn handshake<S: RecordSink>(shard: &Rc<Shard<S>>, tcp: TcpStream, mut peer: Peer) {
    let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
    let (gate, tls) = (&shard.options.gate, shard.options.tls.as_ref());
    // before TLS, whose handshakes cost more than anything else a stranger may ask for. Who speaks for others is known by the head only
    let entered = match gate.is_proxy(peer.address.ip()) {
        true => Ok(None),
        false => gate.enter(peer.address.ip()),
    };
    if entered.is_err() && tls.is_some() {
        // an answer would cost the handshake
        return shard.unmatched.handshake(HandshakeOutcome::RateLimited);
    }
    let accepted = timeout_at(deadline, Stream::accept(tcp, tls)).await;
    // who cannot finish a handshake cannot be answered
    let Ok(Ok(mut stream)) = accepted else { return shard.unmatched.handshake(HandshakeOutcome::Abandoned) };
    let mut place = match entered {
        Ok(place) => place,
        Err(()) => return turn_away(shard, &mut stream, &crowded(), HandshakeOutcome::RateLimited, None).await,
    };
    let head = match timeout_at(deadline, read_head(&mut stream, &shard.options.headers)).await {
        Ok(Ok(head)) => head,
        // nobody is there to be answered
        Ok(Err(_)) => return shard.unmatched.handshake(HandshakeOutcome::Abandoned),
        Err(_) => Head::Answer(Answer::new(408, "the request took longer than 10 s")),
    };
    let (answer, outcome, api) = match head {
        Head::Upgrade(mut upgrade) => {
            if gate.is_proxy(peer.address.ip()) {
                peer.address = match gate.client(peer.address.ip(), &upgrade.forwarded) {
                    same if same == peer.address.ip() => peer.address,
                    // its port is not known
                    client => SocketAddr::new(client, 0),
                };
                place = match gate.enter(peer.address.ip()) {
                    Ok(place) => place,
                    Err(()) => {
                        return turn_away(shard, &mut stream, &crowded(), HandshakeOutcome::RateLimited, None).await;
                    }
                };
            }
            match admit(shard, &mut upgrade, peer.on_loopback) {
                Ok((api, parameters, identity)) => {
                    let admitted = Admitted { api, parameters, identity, place };
                    return open(shard, stream, peer.address, *upgrade, admitted);
                }
                Err(refusal) => refusal,
            }
        }
        Head::Answer(answer) => (answer, HandshakeOutcome::Refused, None),
        Head::More => return,
    };
    turn_away(shard, &mut stream, &answer, outcome, api).await;
}

fn crowded() -> Answer {
    Answer::new(429, "too many connections from this address; try again later")
        .header("Retry-After", &retry_after().to_string())
}

/// Counts and sends a refusal.
async fn turn_away<S: RecordSink>(
    shard: &Shard<S>,
    stream: &mut Stream,
    answer: &Answer,
    outcome: HandshakeOutcome,
    api: Option<&Api>,
) {
    api.map_or(&shard.unmatched, |api| &api.metrics).handshake(outcome);
    // a client that does not read it is left alone
    // boxed: its buffer must not be part of every handshake
    let _ = timeout_at(Instant::now() + REFUSAL_TIMEOUT, Box::pin(refuse(stream, answer))).await;
}

async fn read_head(stream: &mut Stream, kept: &Arc<[String]>) -> io::Result<Head> {
    let mut reader = HeadReader::keeping(Arc::clone(kept));
    loop {
        let head = poll_fn(|cx| {
            // not across the await: a stranger who sends nothing costs no buffer
            let mut buffer = [0; READ_BYTES];
            let mut read = ReadBuf::new(&mut buffer);
            ready!(stream.poll_read(cx, &mut read))?;
            Poll::Ready(match read.filled() {
                [] => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                filled => Ok(reader.feed(filled)),
            })
        });
        match head.await? {
            Head::More => {}
            head => return Ok(head),
        }
    }
}

/// Sends the answer, shuts down, and reads on until the client has closed: dropping a socket with unread bytes would reset the
/// connection before the answer is read.
async fn refuse(stream: &mut Stream, answer: &Answer) -> io::Result<()> {
    let bytes = answer.to_bytes();
    let mut sent = 0;
    while sent < bytes.len() || stream.holds_bytes() {
        poll_fn(|cx| stream.poll_write_ready(cx)).await?;
        let done = match bytes.get(sent..).unwrap_or_default() {
            [] => stream.try_flush().map(|()| 0),
            rest => stream.try_write(rest),
        };
        match done {
            Ok(count) => sent += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    poll_fn(|cx| stream.poll_shutdown(cx)).await?;
    let mut buffer = [0; READ_BYTES];
    let mut is_open = true;
    while is_open {
        is_open = poll_fn(|cx| {
            let mut read = ReadBuf::new(&mut buffer);
            ready!(stream.poll_read(cx, &mut read))?;
            Poll::Ready(Ok::<_, io::Error>(!read.filled().is_empty()))
        })
        .await?;
    }
    Ok(())
}

type Refusal<'a> = (Answer, HandshakeOutcome, Option<&'a Api>);

/// Finds the API and checks what stands before a connection. The API's place is taken.
fn admit<'a, S: RecordSink>(
    shard: &'a Shard<S>,
    upgrade: &mut Upgrade,
    on_loopback: bool,
) -> Result<(&'a Arc<Api>, Vec<v1::Header>, Identity), Refusal<'a>> {
    let Some((api, parameters)) = route(&shard.options.apis, &upgrade.path) else {
        return Err((Answer::new(404, "no API has this path"), HandshakeOutcome::Refused, None));
    };
    let ApiConfig { origins, origin_required, .. } = &api.config;
    if !is_origin_allowed(upgrade.origin.as_deref(), origins, *origin_required, on_loopback) {
        return Err((Answer::new(403, "this origin may not connect"), HandshakeOutcome::Refused, Some(api)));
    }
    let auth = api.auth();
    let identity = auth.authenticate(upgrade, unix_seconds()).map_err(|denied| {
        if let (Denied::UnknownKey, Some(source)) = (denied, api.source()) {
            source.handle_unknown_key();
        }
        let is_ours = denied == Denied::NoKeys;
        let outcome = if is_ours { HandshakeOutcome::Unavailable } else { HandshakeOutcome::Refused };
        (auth.answer(denied, retry_after()), outcome, Some(&**api))
    })?;
    upgrade.check_subprotocols().map_err(|answer| (answer, HandshakeOutcome::Refused, Some(&**api)))?;
    if !shard.is_accepting.get() || !shard.sink.has_room() || !api.take_place() {
        return Err((busy(), HandshakeOutcome::Unavailable, Some(api)));
    }
    Ok((api, parameters, identity))
}

/// By the machine's clock: tokens are made by others.
fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The API whose path answers this one, the most literal first, and its parameters.
fn route<'a>(apis: &'a [Arc<Api>], path: &str) -> Option<(&'a Arc<Api>, Vec<v1::Header>)> {
    let mut best: Option<(&Arc<Api>, Vec<v1::Header>)> = None;
    for api in apis {
        let Some(parameters) = api.config.path.matches(path) else { continue };
        if best.as_ref().is_none_or(|(other, _)| api.config.path.is_before(&other.config.path)) {
            let header = |(name, value): (&str, &str)| v1::Header { name: name.to_owned(), value: value.to_owned() };
            best = Some((api, parameters.into_iter().map(header).collect()));
        }
    }
    best
}

/// Who may come in, where.
struct Admitted<'a> {
    api: &'a Arc<Api>,
    parameters: Vec<v1::Header>,
    identity: Identity,
    place: Option<Box<Place>>,
}

/// Appends ConnectionOpened; the socket's own task does the rest.
fn open<S: RecordSink>(
    shard: &Rc<Shard<S>>,
    stream: Stream,
    peer: SocketAddr,
    upgrade: Upgrade,
    Admitted { api, parameters, identity, place }: Admitted<'_>,
) {
    let connection = draw_id(&shard.options);
    let now = shard.now();
    let subprotocol = api.subprotocol(&upgrade.subprotocols);
    let handler_group = api.config.deciding_group();
    let registration = Registration {
        accept: upgrade.accept,
        offered: upgrade.subprotocols.clone(),
        subprotocol: subprotocol.clone(),
        channels: api.config.channels.clone(),
        needs_decision: !handler_group.is_empty(),
        expires: identity.expires.map(|at| now + Millis::from_secs(at.saturating_sub(unix_seconds()))),
        sender: api.sender(now, peer.ip()),
    };
    let opened = v1::ConnectionOpened {
        edge: shard.options.edge.to_string(),
        incarnation: shard.sink.incarnation(),
        peer: peer.to_string(),
        path: upgrade.path,
        query: upgrade.query,
        headers: upgrade.headers,
        subprotocols: upgrade.subprotocols,
        principal: identity.principal,
        attributes: identity.attributes,
        channels: api.config.channels.clone(),
        handler_group: handler_group.to_owned(),
        subprotocol,
        parameters,
    };
    let receiver = shard.sink.append_tracked(connection, |out| {
        encode_record(out, RecordKind::ConnectionOpened, connection, api.name(), &opened);
    });
    let core = Connection::new(now, &api.limits, registration);
    shard.insert(Socket::new(core, stream, connection, Arc::clone(api), receiver).holding(place, identity.proof));
}

/// An id of this shard, unguessable: from the operating system's generator by way of a cryptographic one.
fn draw_id(options: &ShardOptions) -> ConnectionId {
    loop {
        let id = ConnectionId(rand::random());
        if shard_of(id, options.shards) == options.index && !id.is_none() {
            return id;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::EdgeConfig, gate::Gate};

    #[test]
    fn ids_belong_to_the_shard_and_never_repeat() {
        let mut seen = std::collections::BTreeSet::new();
        for index in 0..3 {
            let options = ShardOptions {
                edge: "e".into(),
                index,
                shards: 3,
                apis: Arc::default(),
                gate: Arc::new(Gate::new(&EdgeConfig::new("e", Vec::new(), "pki".into()))),
                headers: Arc::default(),
                tls: None,
                handshakes_max: 1,
            };
            for _ in 0..10_000 {
                let id = draw_id(&options);
                assert_eq!(shard_of(id, 3), index);
                assert!(seen.insert(id));
            }
        }
    }

    #[test]
    fn most_literal_path_wins() {
        let api = |name: &str, path: &str| Arc::new(Api::load(ApiConfig::new(name, path.parse().unwrap())).unwrap());
        let apis = [api("any", "/rooms/{room}"), api("lobby", "/rooms/lobby"), api("deep", "/{a}/{b}")];
        let routed = |path| route(&apis, path).map(|(api, parameters)| (api.name().to_owned(), parameters.len()));
        assert_eq!(routed("/rooms/lobby"), Some(("lobby".to_owned(), 0)));
        assert_eq!(routed("/rooms/42"), Some(("any".to_owned(), 1)));
        assert_eq!(routed("/x/y"), Some(("deep".to_owned(), 2)));
        assert_eq!(routed("/x"), None);
    }
}
