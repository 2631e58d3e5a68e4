//! The handler: each event of an API becomes a call of its function, with as many attempts at once as the API allows; what is left
//! undone then is decided by `on_failure`. The SDK keeps a connection's events in order and one at a time.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{sync::Semaphore, time::Instant};
use trunkline_proto::{limits, v1::CloseCause};
use trunkline_sdk::{
    Assignment, CloseCode, Closed, Command, Context, Handler, HandlerError, Message, Opened, Registration,
};

use crate::{
    call::{Call, Place, Reply},
    dialect::{self, Decision, Transmission},
    failure::{Failure, backoff},
    http::Caller,
    kept::{Kept, Said},
    known::{Identity, Known},
    measure,
    settings::{ApiSettings, OnFailure},
    unanswered::Unanswered,
    welcomes::Welcomes,
};

/// A registration this much older than its timeout is not asked for any more: its client has had its answer. Generous, as
/// clocks differ.
const LATE: Duration = Duration::from_secs(30);

/// Largest body of an answer to a client that is turned away.
const REJECTION_BYTES_MAX: usize = 64 << 10;

/// The functions of one API.
#[derive(Clone, Debug)]
pub struct Bridge {
    settings: Arc<ApiSettings>,
    caller: Caller,
    known: Arc<Known>,
    places: Arc<Places>,
    unanswered: Arc<Unanswered>,
    welcomes: Arc<Welcomes>,
}

/// What an answer comes to, with what it leaves with the connection.
struct Answered<T> {
    value: T,
    kept: Kept,
    set: BTreeMap<String, String>,
    channels: Vec<String>,
}

/// Calls at once. Those for new connections have places of their own, as they have credits of their own at the broker: a function that
/// hangs keeps nobody out that another one lets in. Places are taken in the order they are asked for, and a connection asks for one at
/// a time, so that none waits for more than one call of each other.
#[derive(Debug)]
struct Places {
    registrations: Semaphore,
    others: Semaphore,
}

impl Bridge {
    /// A handler for the events of the settings' API.
    pub fn new(settings: ApiSettings, caller: Caller, known: Arc<Known>) -> Self {
        let places = || Semaphore::new(settings.concurrency);
        let places = Places { registrations: places(), others: places() };
        Self {
            settings: Arc::new(settings),
            caller,
            known,
            places: Arc::new(places),
            unanswered: Arc::default(),
            welcomes: Arc::default(),
        }
    }

    /// Calls until an attempt succeeds by `judge`, it makes no sense to try again, or attempts or time are over. A place is taken for the
    /// call alone, not for the wait before the next.
    async fn attempts<T>(
        &self,
        places: &Semaphore,
        (place, call): (&Place, &Call),
        until: Option<Instant>,
        judge: impl Fn(&Reply) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut attempt = 1;
        loop {
            let judged = match within(until, places.acquire()).await {
                // an error: closed, which it never is
                Ok(_place) => {
                    let judged = self.attempt(place, call, until).await.and_then(|reply| judge(&reply));
                    if until.is_some() {
                        self.note(place, judged.as_ref().err());
                    }
                    judged
                }
                Err(late) => Err(late),
            };
            let failure = match judged {
                Ok(value) => {
                    measure::count_call(&self.settings.api, call.function, None);
                    return Ok(value);
                }
                Err(failure) => failure,
            };
            measure::count_call(&self.settings.api, call.function, Some(&failure));
            let wait = backoff(self.settings.backoff, attempt, rand::random());
            let wait = failure.retry_after().map_or(wait, |asked| asked.max(wait));
            let in_time = until.is_none_or(|until| Instant::now() + wait < until);
            if attempt > self.settings.retries || !failure.may_pass() || !in_time {
                return Err(failure);
            }
            attempt += 1;
            tokio::time::sleep(wait).await;
        }
    }

    /// What a call for a new connection says of whether it must be cleaned up after although it is turned away: a decision says no, and
    /// a failure says yes if the function may have run.
    fn note(&self, place: &Place, failure: Option<&Failure>) {
        match failure {
            None => self.unanswered.forget(&place.connection),
            Some(failure) if failure.may_have_run() => self.unanswered.remember(&place.connection),
            Some(_) => {}
        }
    }

    async fn attempt(&self, place: &Place, call: &Call, until: Option<Instant>) -> Result<Reply, Failure> {
        let since = Instant::now();
        let own = since + self.settings.timeout;
        let deadline = until.map_or(own, |until| until.min(own));
        let answered = self.caller.call(&self.settings, place, call, deadline).await;
        measure::record_call(&self.settings.api, since.elapsed());
        answered
    }

    /// The end of an event whose call failed for good.
    fn failed(&self, cx: &mut Context, failure: Failure, is_open: bool) -> Result<(), HandlerError> {
        let count = |then| measure::count_failure(&self.settings.api, then);
        match self.settings.on_failure {
            OnFailure::Retry => {
                count("retry");
                let wait =
                    backoff(self.settings.backoff, cx.attempt().saturating_add(self.settings.retries), rand::random());
                Err(HandlerError::retry_after(failure.retry_after().map_or(wait, |asked| asked.max(wait)))
                    .because(failure))
            }
            OnFailure::Close if is_open => {
                count("close");
                tracing::warn!(api = self.settings.api, connection = %cx.connection(), offset = %cx.offset(), %failure,
                    "the connection is closed");
                cx.close(CloseCode::INTERNAL, "the function failed");
                Ok(())
            }
            OnFailure::Close | OnFailure::DeadLetter => {
                count("dead_letter");
                Err(HandlerError::park(failure.to_string()))
            }
        }
    }

    /// What to push to the client, within what can be pushed: the same answer would come again and again.
    fn response(&self, reply: &Reply) -> Result<Option<Message>, Failure> {
        let most = limits::MESSAGE_BYTES_MAX;
        match dialect::response(&self.settings, reply)? {
            Some(message) if message.payload().len() > most => Err(Failure::TooLarge(most)),
            response => Ok(response),
        }
    }

    /// Who a connection is, as far as the dialect tells it.
    async fn identity(&self, cx: &Context) -> Result<Arc<Identity>, HandlerError> {
        if !dialect::tells_identity(self.settings.dialect) {
            return Ok(Arc::default());
        }
        Ok(self.known.identity(cx.connection(), cx.offset(), self.assignment(cx)).await?)
    }

    /// Where answers leave something with a connection: what is remembered of it holds for one assignment.
    fn assignment(&self, cx: &Context) -> Option<Assignment> {
        dialect::keeps(self.settings.dialect).then(|| cx.assignment())
    }

    async fn register(&self, cx: &Context, opened: &Opened, who: &Identity) -> Result<Answered<Decision>, Failure> {
        let place = place(cx);
        let Some(call) = dialect::registration(&self.settings, &place, opened) else {
            return answered(Decision::accept(), &Said::default(), who);
        };
        let until = self.settings.decides.then(|| Instant::now() + self.settings.registration_timeout);
        self.attempts(&self.places.registrations, (&place, &call), until, |reply| {
            let decision = dialect::decide(&self.settings, reply, opened)?;
            match &decision {
                Decision::Reject { body, .. } if body.len() > REJECTION_BYTES_MAX => {
                    Err(Failure::TooLarge(REJECTION_BYTES_MAX))
                }
                Decision::Reject { .. } => answered(decision, &Said::default(), who),
                Decision::Accept { .. } => answered(decision, &dialect::welcome(&self.settings, reply)?, who),
            }
        })
        .await
    }

    /// Tells that a connection is open. It is once the decision is in the log, after this event is done: so this goes on beside it, and
    /// whatever comes of the connection next waits for it. Like its original it is told once, and a failure is only logged.
    fn tell_connected(&self, cx: &Context, who: &Identity) {
        let place = place(cx);
        let Some(call) = dialect::connected(&self.settings, &place, who) else { return };
        let (bridge, connection) = (self.clone(), cx.connection());
        let has_begun = self.welcomes.begin(connection, async move {
            if !bridge.known.until_open(connection).await {
                return;
            }
            let judge = |reply: &Reply| dialect::done(&bridge.settings, reply);
            if let Err(failure) = bridge.attempts(&bridge.places.others, (&place, &call), None, judge).await {
                measure::count_failure(&bridge.settings.api, "ignore");
                tracing::warn!(api = bridge.settings.api, %connection, %failure, "a function was not told of an open connection");
            }
        });
        if !has_begun {
            measure::count_failure(&self.settings.api, "ignore");
            tracing::warn!(api = self.settings.api, %connection, "a function was not told of an open connection: too many wait for it");
        }
    }
}

impl Handler for Bridge {
    async fn opened(&self, cx: &mut Context, opened: Opened) -> Result<Registration, HandlerError> {
        if self.settings.decides && age(cx) > self.settings.registration_timeout + LATE {
            return Ok(Registration::reject(504, "the registration came too late"));
        }
        let who = Identity { assignment: self.assignment(cx), ..Identity::new(&opened, cx.time().0) };
        match self.register(cx, &opened, &who).await {
            Ok(Answered { value: Decision::Accept { subprotocol }, kept, set, channels }) => {
                let who = Identity { kept, subprotocol: subprotocol.clone().unwrap_or(who.subprotocol), ..who };
                self.tell_connected(cx, &who);
                if dialect::tells_identity(self.settings.dialect) {
                    self.known.remember(cx.connection(), who);
                }
                let accept = channels.into_iter().fold(Registration::accept(), Registration::channel).attributes(set);
                Ok(subprotocol.into_iter().fold(accept, Registration::subprotocol))
            }
            Ok(Answered { value: Decision::Reject { status, body }, .. }) => Ok(Registration::reject(status, body)),
            Err(failure) if self.settings.decides => {
                measure::count_failure(&self.settings.api, "reject");
                tracing::warn!(api = self.settings.api, connection = %cx.connection(), %failure, "a registration is refused");
                Ok(Registration::reject(failure.status(), "the registration function failed"))
            }
            // the client is in already
            Err(failure) => self.failed(cx, failure, true).map(|()| Registration::accept()),
        }
    }

    async fn message(&self, cx: &mut Context, message: Message) -> Result<(), HandlerError> {
        self.welcomes.done(cx.connection()).await;
        let (place, who) = (place(cx), self.identity(cx).await?);
        let call = match dialect::transmission(&self.settings, &place, &who, &message) {
            Transmission::Call(call) => call,
            Transmission::Answer(text) => {
                cx.push(text);
                return Ok(());
            }
            Transmission::Nothing => return Ok(()),
        };
        drop(message);
        let judge = |reply: &Reply| answered(self.response(reply)?, &dialect::said(&self.settings, reply)?, &who);
        match self.attempts(&self.places.others, (&place, &call), None, judge).await {
            Ok(Answered { value: response, kept, set, .. }) => {
                if let Some(response) = response {
                    cx.push(response);
                }
                if !set.is_empty() {
                    cx.command(Command::attributes(cx.connection(), set, [] as [String; 0]));
                    self.known.remember(cx.connection(), Identity { kept, ..Identity::clone(&who) });
                }
                Ok(())
            }
            Err(failure) => self.failed(cx, failure, true),
        }
    }

    async fn closed(&self, cx: &mut Context, closed: Closed) -> Result<(), HandlerError> {
        self.welcomes.done(cx.connection()).await;
        let place = place(cx);
        // who was turned away was never there, unless its function may think otherwise
        if closed.cause == CloseCause::Rejected && !self.unanswered.has(&place.connection) {
            self.known.forget(cx.connection());
            return Ok(());
        }
        let who = self.identity(cx).await?;
        let Some(call) = dialect::cleanup(&self.settings, &place, &who, &closed) else {
            self.known.forget(cx.connection());
            return Ok(());
        };
        let called =
            self.attempts(&self.places.others, (&place, &call), None, |reply| dialect::done(&self.settings, reply));
        match called.await {
            Ok(()) => {
                self.unanswered.forget(&place.connection);
                self.known.forget(cx.connection());
                Ok(())
            }
            Err(failure) => self.failed(cx, failure, false),
        }
    }
}

/// What is to be done besides, by an answer that was found good.
fn answered<T>(value: T, said: &Said, who: &Identity) -> Result<Answered<T>, Failure> {
    let (kept, set) = who.kept.after(said)?;
    Ok(Answered { value, kept, set, channels: said.channels.clone() })
}

/// What is ready by then; without a moment, whenever it is.
async fn within<T>(until: Option<Instant>, ready: impl Future<Output = T>) -> Result<T, Failure> {
    let since = Instant::now();
    match until {
        Some(until) => tokio::time::timeout_at(until, ready).await.map_err(|_| Failure::Timeout(since.elapsed())),
        None => Ok(ready.await),
    }
}

fn place(cx: &Context) -> Place {
    Place {
        connection: cx.connection().to_string(),
        key: cx.idempotency_key(),
        attempt: cx.attempt(),
        time: cx.time().0,
    }
}

/// How old the event is, by this machine's clock.
fn age(cx: &Context) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_micros(cx.time().0))
}
