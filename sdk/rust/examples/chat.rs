//! A chat room: the first message is a nickname, then everyone in channel `chat` sees what one says.
//! `cargo run -p trunkline-sdk --example chat -- [BROKER] [API]`.
//!
//! The nickname is an attribute of the connection: kept in the log, so that a handler that restarts asks for it and goes on.

use std::{collections::HashMap, sync::Mutex};

use trunkline_sdk::{Client, Closed, ConnectionId, Context, Handler, HandlerError, Message, Offset, Subscriber};

const ROOM: &str = "chat";

struct Chat {
    client: Client,
    /// Nicknames of connections seen by this process, and the event that set each. Never more than connections are open.
    known: Mutex<HashMap<ConnectionId, (String, Offset)>>,
}

impl Chat {
    /// The nickname a connection has had before this event.
    async fn nickname(&self, cx: &Context) -> Result<Option<String>, HandlerError> {
        let known = self.known.lock().map_err(|_| "poisoned")?.get(&cx.connection()).cloned();
        match known {
            // this very event set it, and is delivered again
            Some((_, offset)) if offset == cx.offset() => Ok(None),
            Some((nickname, _)) => Ok(Some(nickname)),
            None => match self.client.connection(cx.connection()).await {
                Ok(connection) => Ok(connection.attributes.get("nickname").cloned()),
                Err(error) if error.is_gone() => Ok(None),
                Err(error) => Err(error.into()),
            },
        }
    }
}

impl Handler for Chat {
    async fn message(&self, cx: &mut Context, message: Message) -> Result<(), HandlerError> {
        let Some(text) = message.text() else {
            cx.push("* text only, please");
            return Ok(());
        };
        if let Some(nickname) = self.nickname(cx).await? {
            cx.publish(ROOM, format!("{nickname}: {text}"));
            return Ok(());
        }
        let nickname = text.trim();
        if !(1..=32).contains(&nickname.chars().count()) || nickname.contains(|c: char| c == ':' || c.is_control()) {
            cx.push("* a nickname has 1 to 32 characters, and no colon");
            return Ok(());
        }
        self.known.lock().map_err(|_| "poisoned")?.insert(cx.connection(), (nickname.to_owned(), cx.offset()));
        cx.set_attribute("nickname", nickname).join(ROOM).publish(ROOM, format!("* {nickname} joined"));
        Ok(())
    }

    async fn closed(&self, cx: &mut Context, _: Closed) -> Result<(), HandlerError> {
        let known = self.known.lock().map_err(|_| "poisoned")?.remove(&cx.connection());
        if let Some((nickname, _)) = known {
            cx.publish(ROOM, format!("* {nickname} left"));
        }
        Ok(())
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt::init();
    let mut arguments = std::env::args().skip(1);
    let broker = arguments.next().unwrap_or_else(|| "http://127.0.0.1:7070".to_owned());
    let api = arguments.next().unwrap_or_else(|| "chat".to_owned());
    let chat = Chat { client: Client::new(broker.clone())?, known: Mutex::default() };
    Subscriber::builder(broker).group(api.clone()).apis([api]).run(chat).await?;
    Ok(())
}
