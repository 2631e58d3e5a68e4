//! Sends every message back: `cargo run -p trunkline-sdk --example echo -- [BROKER] [API]`.

use trunkline_sdk::{Context, Handler, HandlerError, Message, Opened, Registration, Subscriber};

struct Echo;

impl Handler for Echo {
    async fn opened(&self, _: &mut Context, opened: Opened) -> Result<Registration, HandlerError> {
        // the first subprotocol the client offers, if any
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

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt::init();
    let mut arguments = std::env::args().skip(1);
    let broker = arguments.next().unwrap_or_else(|| "http://127.0.0.1:7070".to_owned());
    let api = arguments.next().unwrap_or_else(|| "echo".to_owned());
    let stop = async {
        // without a signal handler ctrl-c would end the process without giving events back
        let _ = tokio::signal::ctrl_c().await;
    };
    Subscriber::builder(broker).group(api.clone()).apis([api]).run_until(Echo, stop).await?;
    Ok(())
}
