//! The log read back: replay into a state, and restarts.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::ensure;

use super::{Setup, idle::start_broker};
use crate::{
    client::Http,
    fill::{self, Contents, Filled},
    report::{Report, Runs},
};

/// How fast a log of `messages` messages of `connections` connections, picked at random, is read back, checked and applied: by
/// the code that makes snapshots, and by a broker that starts without one.
pub(crate) async fn replay(setup: &Setup, connections: u64, messages: u64, report: &mut Report) -> anyhow::Result<()> {
    report.scenario(format!("replay, connections: {connections}, messages: {messages}"));
    let folder = setup.folder()?;
    let data = folder.path().join("data");
    let contents = Contents { connections, channels: 0, messages, payload: setup.payload };
    let started = Instant::now();
    let filled = fill::fill(&data, contents).await?;
    let events = (connections + messages) as f64;
    report.add("events/s appended, no link", &Runs::of(vec![events / started.elapsed().as_secs_f64()]), "≥ 500000");
    let (mut rates, mut starts) = (Vec::new(), Vec::new());
    for _ in 0..setup.repeat {
        let started = Instant::now();
        let state = fill::replay(&data, filled.last)?;
        rates.push(events / started.elapsed().as_secs_f64());
        // every record's bytes and verdict are in the digest
        ensure!(Filled::of(&state) == filled, "the replay came to another state");
    }
    report.add("events/s from disk into a state", &Runs::of(rates), "≥ 1000000");
    for _ in 0..setup.repeat {
        let copy = setup.folder()?;
        copy_folder(&data, &copy.path().join("data"))?;
        starts.push(events / restarted(setup, copy.path(), connections).await?.whole);
    }
    report.add("events/s by a broker that starts", &Runs::of(starts), "≥ 1000000");
    Ok(())
}

/// From the process's start until a broker is ready and shows every connection, with a snapshot and without.
pub(crate) async fn restart(setup: &Setup, connections: u64, report: &mut Report) -> anyhow::Result<()> {
    report.scenario(format!("restart of a broker, connections: {connections}"));
    let folder = setup.folder()?;
    let data = folder.path().join("data");
    let contents = Contents { connections, channels: 0, messages: 0, payload: 0 };
    let filled = fill::fill(&data, contents).await?;
    let empty = setup.folder()?;
    let empty = restarted(setup, empty.path(), 0).await?.resident;
    for (with, target) in [("log alone", ""), ("snapshot", "≤ 5 at 1000000")] {
        if with != "log alone" {
            let started = Instant::now();
            fill::snapshot(&data, filled.last)?;
            report.add("making a snapshot, s", &Runs::of(vec![started.elapsed().as_secs_f64()]), "");
        }
        let (mut ready, mut whole, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..setup.repeat {
            let copy = setup.folder()?;
            copy_folder(&data, &copy.path().join("data"))?;
            let restarted = restarted(setup, copy.path(), connections).await?;
            ready.push(restarted.ready);
            whole.push(restarted.whole);
            bytes.push(restarted.resident.saturating_sub(empty) as f64 / connections as f64);
        }
        report.add(&format!("{with}, ready, s"), &Runs::of(ready), target);
        report.add(&format!("{with}, all connections, s"), &Runs::of(whole), "");
        report.add(&format!("{with}, broker bytes/connection"), &Runs::of(bytes), "");
    }
    Ok(())
}

struct Restarted {
    /// Seconds until the broker says that it is ready.
    ready: f64,
    /// Seconds until it shows all connections.
    whole: f64,
    /// Its memory then, in bytes.
    resident: u64,
}

async fn restarted(setup: &Setup, folder: &Path, connections: u64) -> anyhow::Result<Restarted> {
    let started = Instant::now();
    let broker = start_broker(setup, folder, "64MiB")?;
    let ready = started.elapsed().as_secs_f64();
    let mut http = Http::connect(broker.address("http")?).await?;
    loop {
        let (status, body) = http.request("GET", "/v1/cluster", &[]).await?;
        ensure!(status == 200, "/v1/cluster answered {status}");
        let cluster: serde_json::Value = serde_json::from_slice(&body)?;
        // the edge is not there: within seconds it is lost and its connections go
        if cluster["partitions"][0]["connections"].as_u64() == Some(connections) {
            break;
        }
        ensure!(started.elapsed() < Duration::from_secs(120), "the broker shows other connections: {cluster}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let whole = started.elapsed().as_secs_f64();
    let resident = broker.resident()?;
    broker.kill()?;
    Ok(Restarted { ready, whole, resident })
}

fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for file in std::fs::read_dir(from)? {
        let file = file?;
        let target = to.join(file.file_name());
        if file.file_type()?.is_dir() {
            copy_folder(&file.path(), &target)?;
        } else {
            std::fs::copy(file.path(), target)?;
        }
    }
    Ok(())
}
