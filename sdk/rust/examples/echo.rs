//! Sends every message back (demo/echo.rs). `trunkline dev --no-handlers`, then
//! `cargo build --workspace --examples` and `target/debug/examples/echo [BROKER] [API]`.

#[path = "demo/echo.rs"]
mod demo;

use trunkline_sdk::Subscriber;

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
    Subscriber::builder(broker).group(api.clone()).apis([api]).run_until(demo::Echo, stop).await?;
    Ok(())
}
