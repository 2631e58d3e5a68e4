//! One stream to one broker: connect, join, run what the schedule says, send what it wants sent, and all of it again when the
//! stream ends. Runs of the handler are tasks of their own: one that panics loses nothing but itself.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::{self, JoinError, JoinSet},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use trunkline_proto::{
    CloseCode, ConnectionId, Offset, PartitionId, Timestamp, limits,
    v1::{
        self, Code, SubscribeRequest, SubscribeResponse, handlers_client::HandlersClient, subscribe_request::Request,
        subscribe_response::Response,
    },
};

use crate::{
    backoff::Backoff,
    brokers::{Brokers, Claim, Target},
    command::Command,
    complaints::Complaints,
    context::{Assignment, Context, Origin},
    error::{ClientError, Retry},
    event::{Closed, Message, Opened},
    handler::{Decision, Handler, HandlerError, Registration, Then, Trimmed},
    lane::WorkId,
    schedule::{Bounds, Schedule, Verdict, Work, refuse_delay},
    subscription::Settings,
};

/// Requests on their way into the stream; when full the session goes on reading and keeps what it would send.
const REQUESTS_MAX: usize = 16;
/// Commits without an answer: enough to keep a broker busy, few enough that they grow under load.
const COMMITS_MAX: usize = 8;
/// A broker that has not answered the join by then is given up.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Short enough that the partitions of a broker that is back are not idle for long.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Why a stream ended.
enum Ended {
    Stopped,
    /// Another session holds a stream to this broker.
    Twice,
    Lost(String),
    Refused(ClientError),
}

pub(crate) struct Session<H> {
    target: Target,
    brokers: Brokers,
    /// Attempts since the last stream.
    attempts: usize,
    settings: Arc<Settings>,
    handler: Arc<H>,
    workers: Arc<Semaphore>,
    stopped: watch::Receiver<bool>,
    schedule: Schedule,
    runs: JoinSet<Verdict>,
    /// Which work a task is, and the attempt it is at.
    tasks: HashMap<task::Id, (WorkId, u32)>,
    backoff: Backoff,
    /// No other session of this process has it.
    number: u64,
    /// Of streams.
    lost: Complaints,
    /// Of runs.
    unhandled: Arc<Mutex<Complaints>>,
}

/// How many sessions there were.
static SESSIONS: AtomicU64 = AtomicU64::new(0);

impl<H: Handler> Session<H> {
    pub(crate) fn new(
        (target, brokers): (Target, Brokers),
        settings: Arc<Settings>,
        handler: Arc<H>,
        workers: Arc<Semaphore>,
        stopped: watch::Receiver<bool>,
    ) -> Self {
        let schedule = Schedule::new(Bounds {
            workers: settings.workers,
            credit: settings.credit,
            commits_max: COMMITS_MAX,
            extend_every: settings.extend_every,
        });
        let backoff = Backoff::new(RECONNECT.0, RECONNECT.1);
        let (runs, tasks) = (JoinSet::new(), HashMap::new());
        let number = SESSIONS.fetch_add(1, Ordering::Relaxed);
        let (lost, unhandled) = (Complaints::default(), Arc::default());
        Self {
            target,
            brokers,
            attempts: 0,
            settings,
            handler,
            workers,
            stopped,
            schedule,
            runs,
            tasks,
            backoff,
            number,
            lost,
            unhandled,
        }
    }

    /// Until stopped, not needed any more (Ok), or refused for good.
    pub(crate) async fn run(mut self) -> Result<(), ClientError> {
        // whatever ends it: another one may be needed in its place
        let _ended = Ending(self.target, self.brokers.clone());
        loop {
            let Some(broker) = self.brokers.address(self.target, self.attempts) else {
                tracing::info!(broker = ?self.target, "the broker has left the cluster");
                return Ok(());
            };
            self.attempts = self.attempts.wrapping_add(1);
            let ended = self.connect_and_serve(&broker).await;
            self.brokers.released(self.target);
            self.schedule.handle_disconnected();
            match ended {
                Ended::Stopped | Ended::Twice => return Ok(()),
                Ended::Refused(error) => return Err(error),
                Ended::Lost(reason) => {
                    let delay = self.backoff.next();
                    let group = &self.settings.group;
                    if let Some(times) = self.lost.failed(Instant::now().into_std()) {
                        tracing::warn!(%broker, %group, %reason, times, "no stream to the broker, trying again");
                    } else {
                        tracing::debug!(%broker, %group, %reason, ?delay, "no stream to the broker, trying again");
                    }
                    if self.wait(delay).await {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Waits between attempts; whether it was stopped meanwhile.
    async fn wait(&mut self, delay: Duration) -> bool {
        tokio::select! {
            _ = self.stopped.wait_for(|stopped| *stopped) => true,
            () = tokio::time::sleep(delay) => false,
        }
    }

    async fn connect_and_serve(&mut self, address: &str) -> Ended {
        let mut stopped = self.stopped.clone();
        let joining = timeout(JOIN_TIMEOUT, self.join(address));
        let joined = tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => return Ended::Stopped,
            joined = joining => joined,
        };
        let (requests, responses) = match joined {
            Err(_) => return Ended::Lost(format!("no answer within {JOIN_TIMEOUT:?}")),
            Ok(Err(ended)) => return ended,
            Ok(Ok(joined)) => joined,
        };
        if let Some(failures) = self.lost.passed() {
            tracing::info!(broker = address, group = %self.settings.group, failures, "there is a stream to the broker again");
        }
        self.backoff.reset();
        self.attempts = 0;
        self.serve(requests, responses).await
    }

    /// Opens a stream and joins, unless another session holds a stream to whoever answers.
    async fn join(&self, address: &str) -> Result<Stream, Ended> {
        let channel = self.settings.credentials.connect_lazy(address);
        let channel = channel.map_err(|error| Ended::Lost(error.to_string()))?;
        let mut client = HandlersClient::new(channel).max_decoding_message_size(limits::FRAME_BYTES_MAX);
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        let answered = client.subscribe(ReceiverStream::new(receiver)).await;
        let mut responses = answered.map_err(|status| ended(status.into()))?.into_inner();
        let greeting = match next(&mut responses).await? {
            Response::Brokers(greeting) => greeting,
            other => return Err(Ended::Lost(format!("{other:?} in place of a greeting"))),
        };
        match self.brokers.greeted(self.target, address, &greeting) {
            Claim::Held => {}
            Claim::Twice => return Err(Ended::Twice),
            Claim::Other => return Err(Ended::Lost(format!("broker {} answers there", greeting.broker))),
        }
        let join = SubscribeRequest { request: Some(Request::Join(self.settings.join())) };
        requests.send(join).await.map_err(|_| Ended::Lost("the stream was closed".to_owned()))?;
        loop {
            match next(&mut responses).await? {
                Response::Joined(joined) => {
                    let settings = &self.settings;
                    tracing::info!(broker = joined.broker, group = %settings.group, member = %settings.member, "joined");
                    return Ok((requests, responses));
                }
                Response::Brokers(told) => self.brokers.learn(&told),
                other => return Err(Ended::Lost(format!("{other:?} in place of Joined"))),
            }
        }
    }

    async fn serve(
        &mut self,
        requests: mpsc::Sender<SubscribeRequest>,
        mut responses: Streaming<SubscribeResponse>,
    ) -> Ended {
        let mut stopped = self.stopped.clone();
        let mut give_up = None;
        loop {
            self.start_runs();
            if give_up.is_some() && self.schedule.is_drained() {
                return Ended::Stopped;
            }
            let now = Instant::now().into_std();
            let timer = self.schedule.next_timer().map(Instant::from_std);
            // biased: runs and answers first, so that a commit takes all there is
            tokio::select! {
                biased;
                _ = stopped.wait_for(|stopped| *stopped), if give_up.is_none() => {
                    give_up = Some(Instant::now() + self.settings.grace);
                    self.schedule.handle_stop();
                }
                Some(run) = self.runs.join_next_with_id(), if !self.runs.is_empty() => self.finish_runs(run),
                response = responses.message() => {
                    if let Some(ended) = self.handle_response(response) {
                        return ended;
                    }
                }
                permit = requests.reserve(), if self.schedule.has_request(now) => match permit {
                    Ok(permit) => if let Some(request) = self.schedule.next_request(now) {
                        permit.send(SubscribeRequest { request: Some(request) });
                    },
                    Err(_) => return Ended::Lost("the stream was closed".to_owned()),
                },
                () = until(timer), if timer.is_some() => self.schedule.handle_timer(Instant::now().into_std()),
                () = until(give_up), if give_up.is_some() => return Ended::Stopped,
            }
        }
    }

    fn handle_response(&mut self, response: Result<Option<SubscribeResponse>, tonic::Status>) -> Option<Ended> {
        let now = Instant::now().into_std();
        let response = match response {
            Ok(Some(response)) => response.response?,
            Ok(None) => return Some(Ended::Lost("the broker ended the stream".to_owned())),
            Err(status) => return Some(ended(status.into())),
        };
        match response {
            Response::Joined(_) => {}
            Response::Brokers(told) => self.brokers.learn(&told),
            Response::Assigned(assigned) => {
                tracing::debug!(partition = assigned.partition, epoch = assigned.epoch, "assigned");
                if let Some(trimmed) = assigned.trimmed {
                    self.tell_trimmed(assigned.partition, trimmed);
                }
                self.schedule.handle_assigned(assigned.partition, assigned.epoch);
            }
            Response::Revoked(revoked) => {
                tracing::debug!(partition = revoked.partition, epoch = revoked.epoch, "revoked");
                self.schedule.handle_revoked(revoked.partition, revoked.epoch);
            }
            Response::Events(events) => {
                if let Err(overflow) = self.schedule.handle_events(now, events) {
                    return Some(Ended::Lost(overflow.to_string()));
                }
            }
            Response::Committed(result) => self.handle_committed(now, result),
        }
        None
    }

    fn tell_trimmed(&self, partition: u32, range: v1::TrimmedRange) {
        let Ok(partition) = u16::try_from(partition) else { return };
        let (partition, from, through) = (PartitionId(partition), Offset(range.from), Offset(range.through));
        tracing::warn!(group = %self.settings.group, %partition, %from, %through,
            "retention has taken offsets before the group was given the events there");
        self.handler.trimmed(Trimmed { partition, from, through });
    }

    fn handle_committed(&mut self, now: std::time::Instant, result: v1::CommitResult) {
        let status = result.status.unwrap_or_default();
        for command in &result.commands {
            let refused = command.status.clone().unwrap_or_default();
            match refused.code() {
                Code::Applied | Code::Forwarded => {}
                Code::Gone => tracing::debug!(partition = result.partition, "a command's connection is gone"),
                code => {
                    tracing::warn!(partition = result.partition, code = code.as_str_name(), reason = %refused.message,
                    "a command of a handler was refused");
                }
            }
        }
        if let Some(code) = self.schedule.handle_committed(now, result.id, status.code()) {
            tracing::error!(partition = result.partition, code = code.as_str_name(), reason = %status.message,
                "the broker does not take what a handler answered; the event will come again");
        }
    }

    fn start_runs(&mut self) {
        while let Some(work) = self.schedule.next_work() {
            let (id, attempt) = (work.id, work.event.attempt);
            let assignment = Assignment { session: self.number, generation: work.generation };
            let run = handle(
                self.handler.clone(),
                self.settings.clone(),
                self.workers.clone(),
                (work, assignment),
                self.unhandled.clone(),
            );
            self.tasks.insert(self.runs.spawn(run).id(), (id, attempt));
        }
    }

    fn finish_runs(&mut self, first: Result<(task::Id, Verdict), JoinError>) {
        let mut next = Some(first);
        while let Some(run) = next {
            self.finish_run(run);
            next = self.runs.try_join_next_with_id();
        }
    }

    fn finish_run(&mut self, run: Result<(task::Id, Verdict), JoinError>) {
        let task = run.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let Some((work, attempt)) = self.tasks.remove(&task) else { return };
        let verdict = run.map(|(_, verdict)| verdict).unwrap_or_else(|error| {
            tracing::error!(%error, "a handler panicked; the event will come again");
            Verdict::Refuse(refuse_delay(attempt))
        });
        self.schedule.handle_finished(work, verdict);
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// A broker's own "no" is final; everything else may pass.
fn ended(error: ClientError) -> Ended {
    use tonic::Code as C;
    match &error {
        ClientError::Refused {
            retry: Retry::No,
            grpc: C::InvalidArgument | C::PermissionDenied | C::Unauthenticated | C::AlreadyExists,
            ..
        } => Ended::Refused(error),
        _ => Ended::Lost(error.to_string()),
    }
}

type Stream = (mpsc::Sender<SubscribeRequest>, Streaming<SubscribeResponse>);

async fn next(responses: &mut Streaming<SubscribeResponse>) -> Result<Response, Ended> {
    loop {
        match responses.message().await {
            Ok(Some(SubscribeResponse { response: Some(response) })) => return Ok(response),
            // of a newer version
            Ok(Some(SubscribeResponse { response: None })) => {}
            Ok(None) => return Err(Ended::Lost("the broker ended the stream".to_owned())),
            Err(status) => return Err(ended(status.into())),
        }
    }
}

/// Tells that a session is over, however it ends.
struct Ending(Target, Brokers);

impl Drop for Ending {
    fn drop(&mut self) {
        self.1.ended(self.0);
    }
}

/// Runs the handler on one event.
async fn handle<H: Handler>(
    handler: Arc<H>,
    settings: Arc<Settings>,
    workers: Arc<Semaphore>,
    (work, assignment): (Work, Assignment),
    complaints: Arc<Mutex<Complaints>>,
) -> Verdict {
    // never closed: an error would only mean one worker more
    let _permit = workers.acquire().await;
    let Work { partition, event, .. } = work;
    let (attempt, offset) = (event.attempt, Offset(event.offset));
    let (Ok(connection), Ok(partition), Some(kind)) =
        (ConnectionId::from_slice(&event.connection), u16::try_from(partition), event.event)
    else {
        return Verdict::Park("an event this version of the SDK does not know".to_owned());
    };
    let origin = Origin {
        group: settings.group.clone(),
        partition: PartitionId(partition),
        offset,
        time: Timestamp(event.time),
        attempt,
        connection,
        api: event.api,
        assignment,
    };
    let mut cx = Context::new(origin);
    let result = match timeout(settings.timeout, call(&*handler, &mut cx, kind)).await {
        Ok(result) => result.and_then(|()| cx.finish().map_err(HandlerError::from)),
        Err(_) => Err(HandlerError::from(format!("no answer within {:?}", settings.timeout))),
    };
    let now = Instant::now().into_std();
    match result {
        Ok(commands) => {
            if let Some(failures) = locked(&complaints).passed_among_others(now) {
                tracing::info!(group = %settings.group, failures, "events are handled again");
            }
            Verdict::Acknowledge(commands)
        }
        Err(error) => {
            // where a service behind the handler is away, that is each of its events, again and again
            if let Some(times) = locked(&complaints).failed(now) {
                tracing::warn!(%connection, %offset, attempt, %error, times, "an event was not handled");
            } else {
                tracing::debug!(%connection, %offset, attempt, %error, "an event was not handled");
            }
            match error.then {
                Then::Retry => Verdict::Refuse(refuse_delay(attempt)),
                Then::RetryAfter(delay) => Verdict::Refuse(delay),
                Then::Park(reason) => Verdict::Park(reason),
            }
        }
    }
}

fn locked(complaints: &Mutex<Complaints>) -> MutexGuard<'_, Complaints> {
    // counts are whole at any time
    complaints.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn call<H: Handler>(handler: &H, cx: &mut Context, event: v1::event::Event) -> Result<(), HandlerError> {
    match event {
        v1::event::Event::Opened(opened) => {
            let decider = opened.handler_group.clone();
            let registration = handler.opened(cx, Opened(opened)).await?;
            decide(cx, &decider, registration);
            Ok(())
        }
        v1::event::Event::Message(message) => handler.message(cx, Message::received(message)).await,
        v1::event::Event::Closed(closed) => handler.closed(cx, Closed::new(closed)).await,
    }
}

/// Turns a registration into commands: a decision if this group is asked for one. Elsewhere the connection is open already:
/// channels and attributes are applied to it, and a rejection closes it, unless another group decides.
fn decide(cx: &mut Context, decider: &str, registration: Registration) {
    let connection = cx.connection();
    match registration.0 {
        Decision::Accept(accepted) if decider == cx.group() => cx.decide(Command::accept(connection, accepted)),
        Decision::Reject(rejected) if decider == cx.group() => cx.decide(Command::reject(connection, rejected)),
        Decision::Accept(accepted) => {
            if !accepted.attributes.is_empty() {
                cx.command(Command::attributes(connection, accepted.attributes, [] as [String; 0]));
            }
            for channel in accepted.channels {
                cx.join(channel);
            }
        }
        Decision::Reject(_) if decider.is_empty() => {
            cx.close(CloseCode::POLICY, "rejected");
        }
        Decision::Reject(_) => {
            tracing::warn!(%connection, group = decider, "another group decides about this connection");
        }
    }
}
