use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::oneshot, task::JoinHandle};
use trunkline_sdk::{
    Client, ClientError, Command, ConnectionId, Context, Handler, HandlerError, Message, Offset, Opened, PartitionId,
    Registration, Retry, SubscribeError, Subscriber, Trimmed,
    proto::v1::{self, Code, command::Command as C, outcome::Verdict},
};

use crate::broker::{Broker, Hold};

/// Answers each message with itself, and does as the message says.
#[derive(Default)]
struct Obedient {
    seen: Mutex<Vec<(u8, String, u32)>>,
    at_once: AtomicUsize,
    at_once_max: AtomicUsize,
    trimmed: Mutex<Vec<Trimmed>>,
}

struct Shared(Arc<Obedient>);

impl Handler for Shared {
    async fn opened(&self, cx: &mut Context, opened: Opened) -> Result<Registration, HandlerError> {
        cx.push("welcome");
        Ok(match opened.path.as_str() {
            "/no" => Registration::reject(403, "no"),
            _ => Registration::accept().subprotocol("v1").channel("lobby").attribute("who", "me"),
        })
    }

    fn trimmed(&self, trimmed: Trimmed) {
        self.0.trimmed.lock().unwrap().push(trimmed);
    }

    async fn message(&self, cx: &mut Context, message: Message) -> Result<(), HandlerError> {
        let text = message.text().unwrap_or_default().to_owned();
        self.0.seen.lock().unwrap().push((cx.connection().0[0], text.clone(), cx.attempt()));
        let now = self.0.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.at_once_max.fetch_max(now, Ordering::SeqCst);
        let result = obey(cx, &text).await;
        self.0.at_once.fetch_sub(1, Ordering::SeqCst);
        result
    }
}

async fn obey(cx: &mut Context, text: &str) -> Result<(), HandlerError> {
    cx.push(text);
    match text {
        "slow" => tokio::time::sleep(Duration::from_millis(300)).await,
        "hang" => std::future::pending().await,
        "refuse once" if cx.attempt() == 1 => return Err(HandlerError::retry_after(Duration::from_millis(20))),
        "panic once" if cx.attempt() == 1 => panic!("as asked"),
        "park" => return Err(HandlerError::park("no use")),
        "malformed once" if cx.attempt() == 1 => {
            cx.join("no\nchannel");
        }
        _ => {}
    }
    Ok(())
}

struct Running {
    broker: Broker,
    seen: Arc<Obedient>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), SubscribeError>>,
}

impl Running {
    async fn start(change: impl FnOnce(Subscriber) -> Subscriber) -> Self {
        let broker = Broker::start().await;
        let addresses = vec![broker.address.to_string()];
        Self::with(broker, addresses, change)
    }

    /// A member that is given these addresses of its broker.
    async fn start_at(
        addresses: impl FnOnce(std::net::SocketAddr) -> Vec<String>,
        prepare: impl FnOnce(&Broker),
    ) -> Self {
        let broker = Broker::start().await;
        prepare(&broker);
        let addresses = addresses(broker.address);
        Self::with(broker, addresses, |subscriber| subscriber)
    }

    fn with(broker: Broker, addresses: Vec<String>, change: impl FnOnce(Subscriber) -> Subscriber) -> Self {
        let seen = Arc::new(Obedient::default());
        let subscriber = change(Subscriber::builder(addresses).group("test").member("one"));
        let (stop, stopped) = oneshot::channel();
        let run = subscriber.run_until(Shared(seen.clone()), async {
            let _ = stopped.await;
        });
        Self { broker, seen, stop: Some(stop), task: tokio::spawn(run) }
    }

    fn seen(&self) -> Vec<(u8, String, u32)> {
        self.seen.seen.lock().unwrap().clone()
    }

    async fn stop(mut self) {
        drop(self.stop.take());
        tokio::time::timeout(Duration::from_secs(10), self.task).await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_s_messages_are_handled_in_order_and_others_beside_them() {
    let running = Running::start(|subscriber| subscriber.workers(8)).await;
    for offset in 1..=300u64 {
        running.broker.message(offset, (offset % 10) as u8, &format!("{offset}"));
    }
    running.broker.until_all_settled().await;
    let mut last: HashMap<u8, u64> = HashMap::new();
    for (connection, text, attempt) in running.seen() {
        let offset: u64 = text.parse().unwrap();
        assert!(last.insert(connection, offset).unwrap_or(0) < offset);
        assert_eq!(attempt, 1);
    }
    running.broker.with(|state| {
        assert_eq!(state.pushed().len(), 300);
        assert!(state.commits.len() < 300, "several events share a commit");
    });
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_connection_delays_no_other_and_workers_are_bounded() {
    let running = Running::start(|subscriber| subscriber.workers(3)).await;
    running.broker.message(1, 1, "slow");
    for offset in 2..=20 {
        running.broker.message(offset, offset as u8, "quick");
    }
    running.broker.until("the quick ones are settled", |state| state.pushed().len() >= 19).await;
    assert!(!running.broker.with(|state| state.pushed()).contains(&"slow".to_owned()));
    for offset in 30..=40 {
        running.broker.message(offset, offset as u8, "slow");
    }
    running.broker.until_all_settled().await;
    assert_eq!(running.seen.at_once_max.load(Ordering::SeqCst), 3);
    running.stop().await;
}

#[tokio::test]
async fn a_refused_event_comes_again_before_the_connection_s_later_ones() {
    let running = Running::start(|subscriber| subscriber).await;
    for (offset, text) in [(1, "a"), (2, "refuse once"), (3, "c"), (4, "d")] {
        running.broker.message(offset, 1, text);
    }
    running.broker.until_all_settled().await;
    assert_eq!(running.broker.with(|state| state.pushed()), ["a", "refuse once", "c", "d"]);
    let attempts: Vec<u32> = running.seen().iter().map(|(.., attempt)| *attempt).collect();
    assert_eq!(attempts, [1, 1, 2, 1, 1], "what was given back keeps its attempt");
    running.stop().await;
}

#[tokio::test]
async fn a_panic_is_a_refusal_and_takes_nothing_with_it() {
    let running = Running::start(|subscriber| subscriber).await;
    running.broker.message(1, 1, "panic once");
    running.broker.message(2, 2, "other");
    running.broker.until_all_settled().await;
    assert_eq!(running.broker.with(|state| state.pushed()), ["other", "panic once"]);
    running.stop().await;
}

#[tokio::test]
async fn a_handler_that_hangs_is_given_up() {
    let running = Running::start(|subscriber| subscriber.timeout(Duration::from_millis(50))).await;
    running.broker.message(1, 1, "hang");
    running
        .broker
        .until("it is refused", |state| {
            let outcomes = state.commits.iter().flat_map(|commit| &commit.outcomes);
            outcomes.into_iter().any(|outcome| matches!(outcome.verdict, Some(Verdict::Refused(_))))
        })
        .await;
    running.stop().await;
}

#[tokio::test]
async fn a_dead_letter_is_parked_and_the_next_one_goes_on() {
    let running = Running::start(|subscriber| subscriber).await;
    running.broker.message(1, 1, "park");
    running.broker.message(2, 1, "next");
    running.broker.until_all_settled().await;
    running.broker.with(|state| {
        assert_eq!(state.pushed(), ["next"], "a parked event's commands are dropped");
        let outcomes: Vec<_> = state.commits.iter().flat_map(|commit| &commit.outcomes).collect();
        assert!(matches!(&outcomes[0].verdict, Some(Verdict::Parked(parked)) if parked.reason == "no use"));
    });
    running.stop().await;
}

#[tokio::test]
async fn a_malformed_command_fails_its_event_only() {
    let running = Running::start(|subscriber| subscriber).await;
    running.broker.message(1, 1, "malformed once");
    running.broker.message(2, 2, "other");
    running.broker.until_all_settled().await;
    assert_eq!(running.broker.with(|state| state.pushed()), ["other", "malformed once"]);
    running.stop().await;
}

#[tokio::test]
async fn a_stream_that_ends_is_opened_again_and_open_events_are_handled_again() {
    let running = Running::start(|subscriber| subscriber).await;
    running.broker.message(1, 1, "slow");
    running.broker.message(2, 1, "after");
    running.broker.until("joined", |state| !state.joins.is_empty()).await;
    while running.seen().is_empty() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    running.broker.end_stream();
    running.broker.until("joined again", |state| state.joins.len() == 2).await;
    running.broker.until_all_settled().await;
    assert_eq!(running.broker.with(|state| state.pushed()), ["slow", "after"]);
    assert_eq!(running.seen.at_once_max.load(Ordering::SeqCst), 1, "the old run was waited for");
    running.stop().await;
}

#[tokio::test]
async fn what_was_done_under_a_stale_epoch_is_dropped() {
    let running = Running::start(|subscriber| subscriber).await;
    running.broker.message(1, 1, "slow");
    while running.seen().is_empty() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    running.broker.reassign();
    running.broker.until_all_settled().await;
    assert_eq!(running.broker.with(|state| state.pushed()), ["slow"]);
    assert_eq!(running.seen().len(), 2);
    running.stop().await;
}

#[tokio::test]
async fn a_commit_without_an_answer_is_sent_again_and_happens_once() {
    let running = Running::start(|subscriber| subscriber).await;
    running.broker.with(|state| {
        state.answers.extend([Code::Throttled, Code::NoLeader]);
        state.lose_answers = 1;
    });
    running.broker.message(1, 1, "a");
    running.broker.message(2, 1, "b");
    running.broker.until("the second is settled", |state| state.commits.len() >= 4).await;
    running.broker.until_all_settled().await;
    assert_eq!(running.seen().len(), 2, "no handler ran twice");
    running.stop().await;
}

#[tokio::test]
async fn slow_events_are_reported_as_worked_on() {
    let running = Running::start(|subscriber| subscriber.extend_every(Duration::from_millis(50))).await;
    running.broker.message(7, 1, "slow");
    running.broker.until("extended", |state| state.extends.iter().any(|extend| extend.offsets == [7])).await;
    running.broker.until_all_settled().await;
    running.stop().await;
}

#[tokio::test]
async fn stopping_finishes_what_runs_and_gives_back_the_rest() {
    let running = Running::start(|subscriber| subscriber).await;
    running.broker.message(1, 1, "slow");
    running.broker.message(2, 1, "never begun");
    while running.seen().is_empty() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let broker = running.broker.clone();
    running.stop().await;
    broker.with(|state| {
        assert_eq!(state.pushed(), ["slow"]);
        assert_eq!(state.credits, [-1024]);
        let released =
            |outcome: &&v1::Outcome| matches!(&outcome.verdict, Some(Verdict::Refused(refused)) if refused.released);
        let outcomes = state.commits.iter().flat_map(|commit| &commit.outcomes);
        assert_eq!(outcomes.filter(released).count(), 1);
    });
}

#[tokio::test]
async fn the_group_that_is_asked_decides_and_others_only_add() {
    let running = Running::start(|subscriber| subscriber).await;
    let opened = |path: &str, group: &str| {
        let opened = v1::ConnectionOpened { path: path.into(), handler_group: group.into(), ..Default::default() };
        v1::event::Event::Opened(opened)
    };
    running.broker.event(1, 1, opened("/", "test"));
    running.broker.event(2, 2, opened("/no", "test"));
    running.broker.event(3, 3, opened("/", ""));
    running.broker.event(4, 4, opened("/no", ""));
    running.broker.until_all_settled().await;
    let mut by_connection: HashMap<u8, Vec<C>> = HashMap::new();
    running.broker.with(|state| {
        for command in state.commits.iter().flat_map(|commit| commit.commands.clone()) {
            by_connection.entry(command.connection[0]).or_default().extend(command.command);
        }
    });
    assert!(matches!(&by_connection[&1][..], [C::Accept(accept), C::Push(_)] if accept.subprotocol == "v1"));
    assert!(matches!(&by_connection[&2][..], [C::Reject(reject), C::Push(_)] if reject.status == 403));
    assert!(matches!(&by_connection[&3][..], [C::Push(_), C::Attributes(_), C::Join(_)]));
    assert!(matches!(&by_connection[&4][..], [C::Push(_), C::Close(close)] if close.code == 1008));
    running.stop().await;
}

#[tokio::test]
async fn a_subscription_that_is_forbidden_ends() {
    let running = Running::start(|subscriber| subscriber.group("forbidden")).await;
    let error = tokio::time::timeout(Duration::from_secs(10), running.task).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, SubscribeError::Broker(ClientError::Refused { .. })), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_for_other_brokers_is_finished_when_one_refuses() {
    let (working, refusing) = (Broker::start().await, Broker::start().await);
    refusing.with(|state| state.forbids = Some(Hold::Waiting));
    let seen = Arc::new(Obedient::default());
    let addresses = [working.address.to_string(), refusing.address.to_string()];
    let task = tokio::spawn(Subscriber::builder(addresses).group("test").run(Shared(seen.clone())));
    working.message(1, 1, "slow");
    while seen.seen.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    refusing.with(|state| state.forbids = Some(Hold::Refusing));
    let error = tokio::time::timeout(Duration::from_secs(20), task).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, SubscribeError::Broker(ClientError::Refused { .. })), "{error}");
    working.with(|state| assert_eq!(state.pushed(), ["slow"], "it was cut off"));
}

// ---- Client ----------------------------------------------------------------------------------------------------------

fn results(codes: &[Code]) -> v1::SubmitResponse {
    let result = |code: &Code| v1::CommandResult {
        status: Some(v1::Status { code: *code as i32, message: String::new() }),
        partition: 0,
        offset: 9,
    };
    v1::SubmitResponse { results: codes.iter().map(result).collect() }
}

const ID: ConnectionId = ConnectionId([3; 16]);

#[tokio::test]
async fn a_submission_is_sent_again_only_where_that_is_safe() {
    let broker = Broker::start().await;
    let client = Client::new(broker.address.to_string()).unwrap();
    broker.with(|state| {
        state.submit.extend([Ok(results(&[Code::NoLeader])), Ok(results(&[Code::Applied]))]);
    });
    assert_eq!(client.push(ID, "x").await.unwrap().offset.0, 9);
    broker.with(|state| state.submit.push_back(Ok(results(&[Code::Unknown]))));
    let error = client.push(ID, "x").await.unwrap_err();
    assert!(error.may_have_happened() && error.retry() == Retry::SameKey, "{error}");
    // with a key it asks again by itself
    broker.with(|state| state.submit.extend([Ok(results(&[Code::Unknown])), Ok(results(&[Code::Applied]))]));
    client.submission().command(Command::push(ID, "x")).key("k").send_one().await.unwrap();
    broker.with(|state| assert_eq!(state.submitted.len(), 5));
}

#[tokio::test]
async fn one_command_may_fail_alone() {
    let broker = Broker::start().await;
    let client = Client::new(broker.address.to_string()).unwrap();
    broker.with(|state| state.submit.push_back(Ok(results(&[Code::Applied, Code::Gone, Code::Forwarded]))));
    let commands = [Command::push(ID, "a"), Command::push(ID, "b"), Command::publish("room", "c")];
    let results = client.submission().commands(commands).send().await.unwrap();
    assert!(results[0].is_ok() && results[2].as_ref().is_ok_and(|applied| applied.forwarded));
    assert_eq!(results[1].as_ref().unwrap_err().retry(), Retry::No);
}

#[tokio::test]
async fn a_broker_that_is_not_there_is_named_so() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = Client::builder(free.to_string()).timeout(Duration::from_millis(100)).build().unwrap();
    let error = client.push(ID, "x").await.unwrap_err();
    assert!(matches!(&error, ClientError::Unreachable { reason } if reason.contains("refused")), "{error}");
    assert!(!error.may_have_happened());
}

fn told(broker: u64, brokers: &[(u64, &Broker)]) -> v1::Brokers {
    let address = |(id, broker): &(u64, &Broker)| v1::BrokerAddress { id: *id, grpc: broker.address.to_string() };
    v1::Brokers { broker, brokers: brokers.iter().map(address).collect() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_given_one_broker_serves_all_and_joins_each_once() {
    let (second, third) = (Broker::start().await, Broker::start().await);
    // two names of one broker
    let running = Running::start_at(
        |first| vec![first.to_string(), format!("localhost:{}", first.port())],
        |first| {
            let all = [(1, first), (2, &second)];
            first.with(|state| state.brokers = told(1, &all));
            second.with(|state| state.brokers = told(2, &all));
            third.with(|state| state.brokers = told(3, &[(1, first), (2, &second), (3, &third)]));
        },
    )
    .await;
    second.message(1, 1, "at the second");
    second.until_all_settled().await;
    running.broker.message(1, 2, "at the first");
    running.broker.until_all_settled().await;
    // one more is added
    running.broker.tell(told(1, &[(1, &running.broker), (2, &second), (3, &third)]));
    third.message(1, 3, "at the third");
    third.until_all_settled().await;
    for broker in [&running.broker, &second, &third] {
        assert_eq!(broker.with(|state| state.joins.len()), 1, "a second join would replace the first");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_submit_goes_to_the_next_broker_where_one_is_away_or_has_no_leader() {
    let (first, second) = (Broker::start().await, Broker::start().await);
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let result = |code: Code| v1::CommandResult {
        status: Some(v1::Status { code: code.into(), message: String::new() }),
        ..Default::default()
    };
    first.with(|state| state.submit.push_back(Ok(v1::SubmitResponse { results: vec![result(Code::NoLeader)] })));
    for code in [Code::Applied, Code::Unknown] {
        second.with(|state| state.submit.push_back(Ok(v1::SubmitResponse { results: vec![result(code)] })));
    }
    let client = Client::new([gone.to_string(), first.address.to_string(), second.address.to_string()]).unwrap();
    assert!(client.publish("c", "one").await.is_ok());
    // what may have happened is not sent again without a key
    let unknown = client.publish("c", "two").await.unwrap_err();
    assert!(unknown.may_have_happened(), "{unknown:?}");
    assert_eq!((first.with(|state| state.submitted.len()), second.with(|state| state.submitted.len())), (1, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_is_told_what_retention_has_taken_before_the_events_after_it() {
    let (from, through) = (Offset(3 << 16), Offset((9 << 16) - 1));
    let prepare = |broker: &Broker| {
        broker.with(|state| state.trimmed = Some(v1::TrimmedRange { from: from.0, through: through.0 }));
    };
    let running = Running::start_at(|address| vec![address.to_string()], prepare).await;
    running.broker.message(9 << 16, 1, "after");
    running.broker.until_all_settled().await;
    let told = Trimmed { partition: PartitionId(0), from, through };
    assert_eq!(*running.seen.trimmed.lock().unwrap(), [told]);
    // nothing is missing any more
    running.broker.with(|state| state.trimmed = None);
    running.broker.reassign();
    running.broker.message(10 << 16, 1, "later");
    running.broker.until_all_settled().await;
    assert_eq!(running.seen.trimmed.lock().unwrap().len(), 1);
    running.stop().await;
}
