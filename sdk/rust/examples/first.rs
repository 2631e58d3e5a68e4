//! The handler of the README. Start `trunkline dev` first, then `cargo build --workspace --examples` and
//! `target/debug/examples/first`.

use trunkline_sdk::{Context, Handler, HandlerError, Message, Subscriber};

struct Shout;

impl Handler for Shout {
    async fn message(&self, cx: &mut Context, message: Message) -> Result<(), HandlerError> {
        let text = message.text().unwrap_or("only text, please").to_uppercase();
        cx.push(text);
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), trunkline_sdk::SubscribeError> {
    Subscriber::builder("http://127.0.0.1:7070").group("shout").apis(["echo"]).run(Shout).await
}
