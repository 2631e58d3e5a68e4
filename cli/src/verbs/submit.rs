//! `push`, `publish`, `close`: commands from the command line.

use std::io::{IsTerminal as _, Read as _};

use serde_json::json;
use trunkline_proto::{CloseCode, limits};
use trunkline_sdk::{Applied, Command, Message, Publish};

use super::Remote;
use crate::{
    args::{CloseArgs, PublishArgs, PushArgs},
    exit::Failure,
    render::out::Out,
};

pub(crate) async fn push(args: PushArgs) -> Result<(), Failure> {
    let message = payload(args.payload, args.binary)?;
    send(&Remote::new(&args.remote)?, Command::push(args.id, message), args.key).await
}

pub(crate) async fn publish(args: PublishArgs) -> Result<(), Failure> {
    let mut words = args.words.into_iter();
    let channel = match &args.api {
        None => Some(words.next().ok_or_else(|| Failure::usage("name a channel, or an API by --api"))?),
        Some(_) => None,
    };
    let text = words.next();
    if words.next().is_some() {
        return Err(Failure::usage("--api takes the place of the channel: only the message may follow"));
    }
    let message = payload(text, args.binary)?;
    let mut publish = match (channel, args.api) {
        (Some(channel), _) => Publish::to_channel(channel, message),
        (None, api) => Publish::to_api(api.unwrap_or_default(), message),
    };
    for connection in args.except {
        publish = publish.except(connection);
    }
    if args.unlogged {
        publish = publish.unlogged();
    }
    send(&Remote::new(&args.remote)?, publish.into(), args.key).await
}

pub(crate) async fn close(args: CloseArgs) -> Result<(), Failure> {
    let command = Command::close(args.id, CloseCode(args.code), args.reason);
    send(&Remote::new(&args.remote)?, command, None).await
}

async fn send(remote: &Remote, command: Command, key: Option<String>) -> Result<(), Failure> {
    let submission = remote.client.submission().command(command).key(key.unwrap_or_default());
    let applied = remote.check(submission.send_one().await)?;
    let mut out = Out::new();
    if remote.json {
        out.json(&json!({
            "partition": applied.partition.0, "offset": applied.offset.to_string(), "forwarded": applied.forwarded,
        }))?;
    } else {
        out.line(describe(applied))?;
    }
    out.flush()
}

fn describe(applied: Applied) -> String {
    match applied {
        Applied { offset, .. } if offset.0 == 0 => "sent, not logged".to_owned(),
        Applied { partition, offset, forwarded: false } => format!("applied at {partition}/{offset}"),
        Applied { partition, offset, forwarded: true } => {
            format!("logged at {partition}/{offset}, on its way to its partition")
        }
    }
}

/// The argument, or standard input. Text must be UTF-8.
fn payload(argument: Option<String>, binary: bool) -> Result<Message, Failure> {
    let bytes = match argument {
        Some(text) => text.into_bytes(),
        None => read_input()?,
    };
    if binary {
        return Ok(Message::binary(bytes));
    }
    Message::text_from_bytes(bytes.into())
        .map_err(|error| Failure::usage(format!("the message is no UTF-8 ({error}); --binary sends it as it is")))
}

fn read_input() -> Result<Vec<u8>, Failure> {
    let input = std::io::stdin();
    if input.is_terminal() {
        return Err(Failure::usage("give the message as an argument, or on standard input"));
    }
    let mut bytes = Vec::new();
    let limit = limits::MESSAGE_BYTES_MAX;
    // one byte more than allowed is enough to know
    let read = input.lock().take(limit as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| Failure::Other(anyhow::Error::new(error).context("standard input")))?;
    if bytes.len() > limit {
        return Err(Failure::usage(format!("the message exceeds {limit} bytes")));
    }
    Ok(bytes)
}
