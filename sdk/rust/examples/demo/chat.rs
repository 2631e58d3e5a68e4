//! The handler of `/chat`: the example `chat` and `trunkline dev` both run this one.

use std::{collections::HashMap, sync::Mutex};

use trunkline_sdk::{Client, Closed, ConnectionId, Context, Handler, HandlerError, Message, Offset};

/// The channel of the chat room.
const ROOM: &str = "chat";
/// Longest nickname and longest line, in characters.
const NICKNAME_MAX: usize = 32;
const LINE_MAX: usize = 2000;
/// Nicknames remembered here; those forgotten are asked for again.
const KNOWN_MAX: usize = 100_000;

/// The first message is a nickname, then everyone in the room sees what one says. The nickname is an attribute of the
/// connection, so it survives this process.
pub(crate) struct Chat {
    client: Client,
    /// Nicknames seen by this process, and the event that set each.
    known: Mutex<HashMap<ConnectionId, (String, Offset)>>,
}

impl Chat {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, known: Mutex::default() }
    }

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

    fn remember(&self, cx: &Context, nickname: &str) -> Result<(), HandlerError> {
        let mut known = self.known.lock().map_err(|_| "poisoned")?;
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(cx.connection(), (nickname.to_owned(), cx.offset()));
        Ok(())
    }

    fn introduce(&self, cx: &mut Context, nickname: &str) -> Result<(), HandlerError> {
        let length = nickname.chars().count();
        if !(1..=NICKNAME_MAX).contains(&length) || nickname.contains(|c: char| c == ':' || c == '*' || c.is_control())
        {
            cx.push(format!("* a nickname has 1 to {NICKNAME_MAX} characters, without : and *"));
            return Ok(());
        }
        self.remember(cx, nickname)?;
        cx.set_attribute("nickname", nickname).join(ROOM).publish(ROOM, format!("* {nickname} joined"));
        Ok(())
    }
}

impl Handler for Chat {
    async fn message(&self, cx: &mut Context, message: Message) -> Result<(), HandlerError> {
        let Some(text) = message.text().map(str::trim) else {
            cx.push("* text only, please");
            return Ok(());
        };
        match self.nickname(cx).await? {
            None => self.introduce(cx, text)?,
            Some(_) if text.chars().count() > LINE_MAX => {
                cx.push(format!("* at most {LINE_MAX} characters, please"));
            }
            Some(nickname) => {
                cx.publish(ROOM, format!("{nickname}: {text}"));
            }
        }
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
