//! The handler of the system tests: one process, one group, one behaviour. It writes every event down before it answers, so
//! that a test can tell what reached the group even when this process was killed.
//!
//! ```text
//! e2e_handler BEHAVIOUR --broker URL[,URL…] --group G --api A --member M --journal FILE [--latest]
//! ```
//!
//! | behaviour | does |
//! |---|---|
//! | `echo` | sends each message back |
//! | `effects` | answers message `M` with the push `ack M` and the publish `effect M` on channel `effects`, in one commit |
//! | `gate` | decides registrations by the query: `?reject=403`, `?silent`, `?protocol=P`, `?attribute=K:V`, `?channel=C`; obeys messages: `join C`, `leave C`, `set K V`, `publish C TEXT`, `close CODE` |

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::Write as _,
    sync::Arc,
};

use anyhow::{Context as _, bail};
use tokio::signal::unix::{SignalKind, signal};
use trunkline_sdk::{
    CloseCode, Closed, Context, Handler, HandlerError, Message, Opened, Registration, StartAt, Subscriber,
};

/// Channel of the publishes of `effects`.
const EFFECTS: &str = "effects";

#[derive(Clone, Copy, Debug)]
enum Behaviour {
    Echo,
    Effects,
    Gate,
}

struct Probe {
    behaviour: Behaviour,
    journal: Arc<Journal>,
}

impl Handler for Probe {
    async fn opened(&self, cx: &mut Context, opened: Opened) -> Result<Registration, HandlerError> {
        self.journal.write(cx, "connection_opened", "")?;
        match self.behaviour {
            Behaviour::Gate => decide(&opened).await,
            Behaviour::Echo | Behaviour::Effects => Ok(Registration::accept()),
        }
    }

    async fn message(&self, cx: &mut Context, message: Message) -> Result<(), HandlerError> {
        let text = message.text().unwrap_or_default().to_owned();
        self.journal.write(cx, "message_received", &text)?;
        match self.behaviour {
            Behaviour::Echo => {
                cx.push(message);
            }
            Behaviour::Effects => {
                cx.push(format!("ack {text}"));
                cx.publish(EFFECTS, format!("effect {text}"));
            }
            Behaviour::Gate => obey(cx, &text)?,
        }
        Ok(())
    }

    async fn closed(&self, cx: &mut Context, closed: Closed) -> Result<(), HandlerError> {
        self.journal.write(cx, "connection_closed", &closed.code.0.to_string())?;
        Ok(())
    }
}

async fn decide(opened: &Opened) -> Result<Registration, HandlerError> {
    if opened.query_parameter("silent").is_some() {
        std::future::pending::<()>().await;
    }
    if let Some(status) = opened.query_parameter("reject") {
        return Ok(Registration::reject(status.parse()?, "not today"));
    }
    let mut answer = Registration::accept();
    if let Some(protocol) = opened.query_parameter("protocol") {
        answer = answer.subprotocol(protocol);
    }
    if let Some((key, value)) = opened.query_parameter("attribute").as_deref().and_then(|pair| pair.split_once(':')) {
        answer = answer.attribute(key, value);
    }
    if let Some(channel) = opened.query_parameter("channel") {
        answer = answer.channel(channel);
    }
    Ok(answer)
}

fn obey(cx: &mut Context, text: &str) -> Result<(), HandlerError> {
    let words: Vec<&str> = text.splitn(3, ' ').collect();
    match words.as_slice() {
        ["join", channel] => cx.join(*channel),
        ["leave", channel] => cx.leave(*channel),
        ["set", key, value] => cx.set_attribute(*key, *value),
        ["publish", channel, text] => cx.publish(*channel, *text),
        ["close", code] => cx.close(CloseCode(code.parse()?), "as you wish"),
        _ => cx.push(format!("did not understand {text}")),
    };
    // an answer tells the client that the command before it is in the log
    cx.push(format!("done {text}"));
    Ok(())
}

/// One JSON line an event, one write each: what was written survives the process.
struct Journal {
    file: File,
}

impl Journal {
    fn open(path: &str) -> anyhow::Result<Self> {
        let file =
            OpenOptions::new().create(true).append(true).open(path).with_context(|| format!("cannot open {path}"))?;
        Ok(Self { file })
    }

    fn write(&self, cx: &Context, kind: &str, text: &str) -> std::io::Result<()> {
        let line = format!(
            "{{\"group\":{},\"partition\":{},\"offset\":\"{}\",\"attempt\":{},\"kind\":\"{kind}\",\"connection\":\"{}\",\"text\":{}}}\n",
            json_string(cx.group()),
            cx.partition(),
            cx.offset(),
            cx.attempt(),
            cx.connection(),
            json_string(text),
        );
        (&self.file).write_all(line.as_bytes())
    }
}

fn json_string(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for char in text.chars() {
        match char {
            '"' | '\\' => quoted.extend(['\\', char]),
            char if u32::from(char) < 0x20 => quoted.push_str(&format!("\\u{:04x}", u32::from(char))),
            char => quoted.push(char),
        }
    }
    quoted.push('"');
    quoted
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let behaviour = match args.next().as_deref() {
        Some("echo") => Behaviour::Echo,
        Some("effects") => Behaviour::Effects,
        Some("gate") => Behaviour::Gate,
        other => bail!("unknown behaviour {other:?}"),
    };
    let mut start = StartAt::Earliest;
    let mut flags = BTreeMap::new();
    while let Some(flag) = args.next() {
        if flag == "--latest" {
            start = StartAt::Latest;
        } else {
            let value = args.next().with_context(|| format!("{flag} needs a value"))?;
            flags.insert(flag, value);
        }
    }
    let flag = |name: &str| flags.get(name).cloned().with_context(|| format!("{name} is missing"));
    let journal = Arc::new(Journal::open(&flag("--journal")?)?);
    let mut terminate = signal(SignalKind::terminate())?;
    let brokers: Vec<String> = flag("--broker")?.split(',').map(str::to_owned).collect();
    let subscriber = Subscriber::builder(brokers)
        .group(flag("--group")?)
        .member(flag("--member")?)
        .apis([flag("--api")?])
        .start(start);
    let mut out = std::io::stdout();
    writeln!(out, "ready")?;
    let stop = async move {
        terminate.recv().await;
    };
    subscriber.run_until(Probe { behaviour, journal }, stop).await?;
    Ok(())
}
