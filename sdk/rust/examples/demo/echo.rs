//! The handler of `/echo`: the example `echo` and `trunkline dev` both run this one.

use trunkline_sdk::{Context, Handler, HandlerError, Message, Opened, Registration};

/// Sends every message back. Takes the first subprotocol that is offered.
pub(crate) struct Echo;

impl Handler for Echo {
    async fn opened(&self, _: &mut Context, opened: Opened) -> Result<Registration, HandlerError> {
        Ok(match opened.subprotocols.first() {
            Some(subprotocol) => Registration::accept().subprotocol(subprotocol),
            None => Registration::accept(),
        })
    }

    async fn message(&self, cx: &mut Context, message: Message) -> Result<(), HandlerError> {
        cx.push(message);
        Ok(())
    }
}
