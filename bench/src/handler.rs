//! The demo's echo handler as a process of its own: the child `trunkline-bench --child handler`.

#[path = "../../sdk/rust/examples/demo/echo.rs"]
mod demo;

use trunkline_sdk::{StartAt, Subscriber};

/// Handles until it is killed.
pub(crate) async fn serve(brokers: Vec<String>) -> anyhow::Result<()> {
    println!("ready");
    // the earliest: a client may be faster than the group's first member
    let subscriber = Subscriber::builder(brokers).group("echo").member("bench").apis(["echo"]);
    Ok(subscriber.start(StartAt::Earliest).run(demo::Echo).await?)
}
