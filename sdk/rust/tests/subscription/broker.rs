//! A broker in miniature that speaks the real protocol: it gives out events in order, keeps what is open, applies commits or
//! answers what a test wants, and records everything.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::AbortHandle,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};
use trunkline_sdk::proto::v1::{
    self, Code, SubscribeRequest, SubscribeResponse,
    handlers_server::{Handlers, HandlersServer},
    outcome::Verdict,
    subscribe_request::Request as Req,
    subscribe_response::Response as Resp,
};

/// What a broker that forbids does with joins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    Waiting,
    Refusing,
}

#[derive(Default)]
pub(crate) struct State {
    /// Open events of partition 0, in order, with whether they are given out.
    open: Vec<(v1::Event, bool)>,
    /// Who this is, and where all are.
    pub(crate) brokers: v1::Brokers,
    epoch: u64,
    /// Told with each assignment.
    pub(crate) trimmed: Option<v1::TrimmedRange>,
    stream: Option<mpsc::Sender<Result<SubscribeResponse, Status>>>,
    /// What the next commits are answered in place of being applied.
    pub(crate) answers: VecDeque<Code>,
    /// Apply the commit, but answer that nobody knows.
    pub(crate) lose_answers: usize,
    /// Joins wait, and are refused then.
    pub(crate) forbids: Option<Hold>,
    pub(crate) joins: Vec<v1::Join>,
    pub(crate) commits: Vec<v1::Commit>,
    pub(crate) extends: Vec<v1::Extend>,
    pub(crate) credits: Vec<i32>,
    /// Results for `Submit`, one call each.
    pub(crate) submit: VecDeque<Result<v1::SubmitResponse, Status>>,
    pub(crate) submitted: Vec<v1::SubmitRequest>,
}

#[derive(Clone)]
pub(crate) struct Broker {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    pub(crate) address: SocketAddr,
    server: Arc<Mutex<Option<AbortHandle>>>,
}

impl Broker {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (changed, _) = watch::channel(0);
        let broker = Self { state: Arc::default(), changed, address, server: Arc::default() };
        // by default each broker knows itself alone
        let id = u64::from(address.port());
        let own = v1::BrokerAddress { id, grpc: address.to_string() };
        broker.with(|state| state.brokers = v1::Brokers { broker: id, brokers: vec![own] });
        broker.serve(listener);
        broker
    }

    fn serve(&self, listener: TcpListener) {
        let service = HandlersServer::new(self.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        let task = tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        *self.server.lock().unwrap() = Some(task.abort_handle());
    }

    /// Ends the stream; with it the lease: what is open is given again with attempt + 1.
    pub(crate) fn end_stream(&self) {
        self.with(|state| {
            if let Some(stream) = state.stream.take() {
                let _ = stream.try_send(Err(Status::unavailable("going away")));
            }
            for (event, given) in &mut state.open {
                if std::mem::take(given) {
                    event.attempt += 1;
                }
            }
        });
    }

    /// Takes the partition away and gives it back, without a word about what is open.
    pub(crate) fn reassign(&self) {
        self.with(|state| {
            for (_, given) in &mut state.open {
                *given = false;
            }
            state.assign();
        });
        self.give_out();
    }

    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let result = f(&mut self.state.lock().unwrap());
        self.changed.send_modify(|n| *n += 1);
        result
    }

    /// Waits until a condition holds.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&State) -> bool) {
        let mut changed = self.changed.subscribe();
        let holds = async {
            loop {
                changed.borrow_and_update();
                if condition(&self.state.lock().unwrap()) {
                    return;
                }
                changed.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(20), holds).await.unwrap_or_else(|_| panic!("never: {what}"));
    }

    pub(crate) async fn until_all_settled(&self) {
        self.until("everything is settled", |state| state.open.is_empty()).await;
    }

    /// Puts a message of a connection into the log.
    pub(crate) fn message(&self, offset: u64, connection: u8, text: &str) {
        let message = v1::MessageReceived { kind: 1, payload: text.to_owned().into() };
        self.event(offset, connection, v1::event::Event::Message(message));
    }

    pub(crate) fn event(&self, offset: u64, connection: u8, event: v1::event::Event) {
        let connection = vec![connection; 16].into();
        let event = v1::Event { offset, time: offset, attempt: 1, connection, api: "test".into(), event: Some(event) };
        self.with(|state| state.open.push((event, false)));
        self.give_out();
    }

    /// Tells the member where brokers are.
    pub(crate) fn tell(&self, brokers: v1::Brokers) {
        self.with(|state| state.send(Resp::Brokers(brokers)));
    }

    fn give_out(&self) {
        self.with(|state| {
            let Some(stream) = state.stream.clone() else { return };
            let mut events = Vec::new();
            for (event, given) in &mut state.open {
                if !std::mem::replace(given, true) {
                    events.push(event.clone());
                }
            }
            if !events.is_empty() {
                let events = v1::Events { partition: 0, epoch: state.epoch, events };
                let _ = stream.try_send(Ok(SubscribeResponse { response: Some(Resp::Events(events)) }));
            }
        });
    }

    fn commit(&self, commit: v1::Commit) {
        let (id, partition) = (commit.id, commit.partition);
        let delays = self.with(|state| {
            state.commits.push(commit.clone());
            let (code, delays) = state.apply(&commit);
            let status = v1::Status { code: code as i32, message: String::new() };
            let result = v1::CommitResult { id, partition, status: Some(status), offset: 1, commands: Vec::new() };
            state.send(Resp::Committed(result));
            delays
        });
        for delay in delays {
            let broker = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                broker.give_out();
            });
        }
    }
}

impl State {
    fn send(&self, response: Resp) {
        if let Some(stream) = &self.stream {
            let _ = stream.try_send(Ok(SubscribeResponse { response: Some(response) }));
        }
    }

    fn assign(&mut self) {
        self.epoch += 1;
        self.send(Resp::Assigned(v1::Assigned { partition: 0, epoch: self.epoch, trimmed: self.trimmed }));
    }

    fn apply(&mut self, commit: &v1::Commit) -> (Code, Vec<Duration>) {
        if let Some(answer) = self.answers.pop_front() {
            return (answer, Vec::new());
        }
        if commit.epoch != self.epoch {
            return (Code::StaleEpoch, Vec::new());
        }
        let is_open = |offset| self.open.iter().any(|(event, given)| event.offset == offset && *given);
        if !commit.outcomes.iter().all(|outcome| is_open(outcome.offset)) {
            return (Code::NotOpen, Vec::new());
        }
        let mut delays = Vec::new();
        for outcome in &commit.outcomes {
            match &outcome.verdict {
                Some(Verdict::Refused(refused)) => {
                    let Some((event, given)) = self.open.iter_mut().find(|(event, _)| event.offset == outcome.offset)
                    else {
                        continue;
                    };
                    event.attempt += u32::from(!refused.released);
                    *given = false;
                    if !refused.released {
                        delays.push(Duration::from_millis(refused.delay_ms.into()));
                    }
                }
                _ => self.open.retain(|(event, _)| event.offset != outcome.offset),
            }
        }
        match self.lose_answers.checked_sub(1) {
            Some(left) => {
                self.lose_answers = left;
                (Code::Unknown, delays)
            }
            None => (Code::Applied, delays),
        }
    }

    /// Payloads of the pushes of every commit, in order.
    pub(crate) fn pushed(&self) -> Vec<String> {
        let commands = self.commits.iter().flat_map(|commit| &commit.commands);
        let pushes = commands.filter_map(|command| match &command.command {
            Some(v1::command::Command::Push(push)) => Some(String::from_utf8_lossy(&push.payload).into_owned()),
            _ => None,
        });
        pushes.collect()
    }
}

#[tonic::async_trait]
impl Handlers for Broker {
    type SubscribeStream = ReceiverStream<Result<SubscribeResponse, Status>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let mut requests = request.into_inner();
        let (sender, receiver) = mpsc::channel(1000);
        let broker = self.clone();
        let brokers = self.with(|state| state.brokers.clone());
        let greeting = SubscribeResponse { response: Some(Resp::Brokers(brokers)) };
        let _ = sender.try_send(Ok(greeting));
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                match request.request {
                    Some(Req::Join(join)) => {
                        broker.until("joins go on", |state| state.forbids != Some(Hold::Waiting)).await;
                        if join.group == "forbidden" || broker.with(|state| state.forbids.is_some()) {
                            let _ = sender.send(Err(Status::permission_denied("not this group"))).await;
                            return;
                        }
                        broker.with(|state| {
                            state.joins.push(join);
                            state.stream = Some(sender.clone());
                            state.send(Resp::Joined(v1::Joined { partitions: 1, broker: 1 }));
                            state.assign();
                        });
                        broker.give_out();
                    }
                    Some(Req::Commit(commit)) => broker.commit(commit),
                    Some(Req::Extend(extend)) => broker.with(|state| state.extends.push(extend)),
                    Some(Req::Credit(credit)) => broker.with(|state| state.credits.push(credit.amount)),
                    None => {}
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn submit(&self, request: Request<v1::SubmitRequest>) -> Result<Response<v1::SubmitResponse>, Status> {
        self.with(|state| {
            state.submitted.push(request.into_inner());
            state.submit.pop_front().unwrap_or_else(|| Err(Status::unimplemented("not expected"))).map(Response::new)
        })
    }
}
