//! The handler: each event of an API becomes a call of its function, with as many attempts at once as the API allows; what is left
//! undone then is decided by `on_failure`. The SDK keeps a connection's events in order and one at a time.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;
use trunkline_proto::{limits, v1::CloseCause};
use trunkline_sdk::{CloseCode, Closed, Context, Handler, HandlerError, Message, Opened, Registration};

use crate::{
    call::{Call, Place, Reply},
    dialect::{self, Decision, Transmission},
    failure::{Failure, backoff},
    http::Caller,
    known::{Identity, Known},
    settings::{ApiSettings, OnFailure},
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
}

impl Bridge {
    /// A handler for the events of the settings' API.
    pub fn new(settings: ApiSettings, caller: Caller, known: Arc<Known>) -> Self {
        Self { settings: Arc::new(settings), caller, known }
    }

    /// Calls until an attempt succeeds by `judge`, it makes no sense to try again, or attempts or time are over.
    async fn attempts<T>(
        &self,
        place: &Place,
        call: &Call,
        until: Option<Instant>,
        judge: impl Fn(&Reply) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut attempt = 1;
        loop {
            let since = Instant::now();
            let own = since + self.settings.timeout;
            let deadline = until.map_or(own, |until| until.min(own));
            let answered = self.caller.call(&self.settings, place, call, deadline).await;
            let judged = answered.and_then(|reply| judge(&reply));
            self.count(call, since.elapsed(), judged.as_ref().err());
            let failure = match judged {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
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

    fn count(&self, call: &Call, took: Duration, failure: Option<&Failure>) {
        let (api, outcome) = (self.settings.api.clone(), failure.map_or("ok", Failure::name));
        let labels = [("api", api.clone()), ("function", call.function.to_owned()), ("outcome", outcome.to_owned())];
        metrics::counter!("trunkline_function_calls_total", &labels).increment(1);
        metrics::histogram!("trunkline_function_call_seconds", "api" => api).record(took.as_secs_f64());
    }

    /// The end of an event whose call failed for good.
    fn failed(&self, cx: &mut Context, failure: Failure, is_open: bool) -> Result<(), HandlerError> {
        match self.settings.on_failure {
            OnFailure::Retry => {
                let wait =
                    backoff(self.settings.backoff, cx.attempt().saturating_add(self.settings.retries), rand::random());
                Err(HandlerError::retry_after(failure.retry_after().map_or(wait, |asked| asked.max(wait)))
                    .because(failure))
            }
            OnFailure::Close if is_open => {
                tracing::warn!(api = self.settings.api, connection = %cx.connection(), offset = %cx.offset(), %failure,
                    "the connection is closed");
                cx.close(CloseCode::INTERNAL, "the function failed");
                Ok(())
            }
            OnFailure::Close | OnFailure::DeadLetter => Err(HandlerError::park(failure.to_string())),
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
    async fn identity(&self, cx: &Context) -> Result<Identity, HandlerError> {
        if !dialect::tells_identity(self.settings.dialect) {
            return Ok(Identity::default());
        }
        // one that is gone meanwhile has no name any more: the function is called all the same
        Ok(self.known.identity(cx.connection()).await?.unwrap_or_default())
    }

    async fn register(&self, cx: &Context, opened: &Opened) -> Result<Decision, Failure> {
        let place = place(cx);
        let Some(call) = dialect::registration(&self.settings, &place, opened) else { return Ok(Decision::accept()) };
        let until = self.settings.decides.then(|| Instant::now() + self.settings.registration_timeout);
        self.attempts(&place, &call, until, |reply| {
            let decision = dialect::decide(&self.settings, reply, opened)?;
            match &decision {
                Decision::Reject { body, .. } if body.len() > REJECTION_BYTES_MAX => {
                    Err(Failure::TooLarge(REJECTION_BYTES_MAX))
                }
                _ => Ok(decision),
            }
        })
        .await
    }
}

impl Handler for Bridge {
    async fn opened(&self, cx: &mut Context, opened: Opened) -> Result<Registration, HandlerError> {
        if self.settings.decides && age(cx) > self.settings.registration_timeout + LATE {
            return Ok(Registration::reject(504, "the registration came too late"));
        }
        if dialect::tells_identity(self.settings.dialect) {
            self.known.remember(cx.connection(), Identity::new(&opened, cx.time().0));
        }
        match self.register(cx, &opened).await {
            Ok(Decision::Accept { subprotocol }) => {
                let accept = Registration::accept();
                Ok(subprotocol.into_iter().fold(accept, Registration::subprotocol))
            }
            Ok(Decision::Reject { status, body }) => Ok(Registration::reject(status, body)),
            Err(failure) if self.settings.decides => {
                tracing::warn!(api = self.settings.api, connection = %cx.connection(), %failure, "a registration is refused");
                Ok(Registration::reject(failure.status(), "the registration function failed"))
            }
            // the client is in already
            Err(failure) => self.failed(cx, failure, true).map(|()| Registration::accept()),
        }
    }

    async fn message(&self, cx: &mut Context, message: Message) -> Result<(), HandlerError> {
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
        match self.attempts(&place, &call, None, |reply| self.response(reply)).await {
            Ok(response) => {
                if let Some(response) = response {
                    cx.push(response);
                }
                Ok(())
            }
            Err(failure) => self.failed(cx, failure, true),
        }
    }

    async fn closed(&self, cx: &mut Context, closed: Closed) -> Result<(), HandlerError> {
        let who = self.known.forget(cx.connection()).unwrap_or_default();
        // who was turned away was never there
        if closed.cause == CloseCause::Rejected {
            return Ok(());
        }
        let place = place(cx);
        let Some(call) = dialect::cleanup(&self.settings, &place, &who, &closed) else { return Ok(()) };
        match self.attempts(&place, &call, None, |reply| dialect::done(&self.settings, reply)).await {
            Ok(()) => Ok(()),
            Err(failure) => {
                // for the next attempt
                if who != Identity::default() {
                    self.known.remember(cx.connection(), who);
                }
                self.failed(cx, failure, false)
            }
        }
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
