//! A message to an HTTP function by way of the log and the bridge, and the answer back to the socket; in turns with the same requests
//! made directly to the same function. What lies between the two is what the gateway adds.

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{JoinSet, LocalSet, spawn_local},
};

use super::{Setup, echo::drive_echo, histogram, milliseconds};
use crate::{
    client::{self, Http},
    report::{Report, Runs, Subject, rows},
    server::Server,
};

/// Connections at full load: what a bridge calls at once here.
const CONNECTIONS: usize = 64;
/// Longest request that the function reads.
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// Requests/s and latency through the bridge, beside calling the function directly; then one at a time.
pub(crate) async fn functions(setup: &Setup, report: &mut Report) -> anyhow::Result<()> {
    for connections in [CONNECTIONS, 1] {
        report.scenario(format!(
            "functions, connections: {connections}, one message in flight on each; floor: the function called directly"
        ));
        let (mut measured, mut added) = (rows::<4>(), Vec::new());
        for _ in 0..setup.repeat {
            let function = Server::start(&std::env::current_exe()?, &["--child", "function"])?;
            let address = function.address("http")?;
            let direct = LocalSet::new().run_until(call_directly(address, connections, setup)).await?;
            let (through, cpu) = through_the_bridge(setup, address, connections).await?;
            function.kill()?;
            for (subject, latencies, cpu) in
                [(Subject::Floor, &direct, None), (Subject::Trunkline, &through, Some(cpu))]
            {
                let values = [
                    Some(latencies.len() as f64 / setup.load().as_secs_f64()),
                    cpu.map(|cpu| latencies.len() as f64 / cpu.as_secs_f64()),
                    Some(milliseconds(latencies, 0.5)),
                    Some(milliseconds(latencies, 0.99)),
                ];
                let rows = measured.iter_mut().zip(values);
                rows.for_each(|(runs, value)| value.into_iter().for_each(|value| runs.push(subject, value)));
            }
            added.push(milliseconds(&through, 0.5) - milliseconds(&direct, 0.5));
        }
        report.add_all(["requests/s", "requests per server CPU-second", "p50 ms", "p99 ms"], measured, [""; 4]);
        report.add("added by the gateway, p50 ms", &Runs::of(added), "");
    }
    Ok(())
}

async fn through_the_bridge(
    setup: &Setup,
    function: SocketAddr,
    connections: usize,
) -> anyhow::Result<(Histogram<u64>, Duration)> {
    let folder = setup.folder()?;
    let server = setup.dev_with(folder.path(), &config(function))?;
    let sockets = client::connect_many(server.address("ws")?, "/function", connections);
    let sockets = LocalSet::new().run_until(sockets).await?;
    // the first second warms the way up and is not counted
    let warm = drive_echo(sockets, 1, setup.payload, Duration::from_secs(1));
    let (_, sockets) = LocalSet::new().run_until(warm).await?;
    let before = server.cpu()?;
    let driven = drive_echo(sockets, 1, setup.payload, setup.load());
    let (latencies, _sockets) = LocalSet::new().run_until(driven).await?;
    let cpu = server.cpu()?.saturating_sub(before);
    server.stop()?;
    Ok((latencies, cpu))
}

/// The function's answer is the request: in the `scf` dialect that is a push of the same message.
fn config(function: SocketAddr) -> String {
    format!(
        "[[api]]\nname = \"function\"\npath = \"/function\"\nregistration = \"accept\"\n\n[api.functions]\ndialect = \"scf\"\n\
         transmission = \"http://{function}/transmission\"\nintegration_response = true\nconcurrency = {CONNECTIONS}\n"
    )
}

/// The requests that the bridge would make, over as many connections.
async fn call_directly(function: SocketAddr, connections: usize, setup: &Setup) -> anyhow::Result<Histogram<u64>> {
    let data = "x".repeat(setup.payload.div_ceil(3) * 4);
    let id = "xawexasdfewezdfsdfeasd";
    let body = format!(
        r#"{{"websocket":{{"action":"data send","secConnectionID":"{id}","dataType":"binary","data":"{data}"}}}}"#
    );
    let (body, latencies) = (Rc::<[u8]>::from(body.into_bytes()), Rc::new(RefCell::new(histogram()?)));
    let deadline = Instant::now() + setup.load();
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let (body, latencies) = (body.clone(), latencies.clone());
        tasks.spawn_local(async move {
            let mut http = Http::connect(function).await?;
            while Instant::now() < deadline {
                let since = client::now();
                let (status, _) = http.request("POST", "/transmission", &body).await?;
                anyhow::ensure!(status == 200, "the function answered {status}");
                latencies.borrow_mut().saturating_record(client::now() - since);
            }
            Ok(())
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    let latencies = latencies.borrow().clone();
    Ok(latencies)
}

/// The function as a child process: answers each request with its own body.
pub(crate) async fn serve() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    say(&listener)?;
    LocalSet::new()
        .run_until(async move {
            loop {
                let (stream, _) = listener.accept().await?;
                spawn_local(async move {
                    // callers close as they like
                    let _ = answer(stream).await;
                });
            }
        })
        .await
}

#[allow(clippy::print_stdout)] // what the parent waits for
fn say(listener: &TcpListener) -> anyhow::Result<()> {
    println!("listening http {}\nready", listener.local_addr()?);
    Ok(())
}

async fn answer(mut stream: TcpStream) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut read = Vec::new();
    loop {
        let (head, length) = loop {
            if let Some(found) = whole_head(&read)? {
                break found;
            }
            anyhow::ensure!(stream.read_buf(&mut read).await? > 0, "closed");
        };
        while read.len() < head + length {
            anyhow::ensure!(stream.read_buf(&mut read).await? > 0, "closed");
        }
        let mut response = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").into_bytes();
        response.extend(read.drain(..head + length).skip(head));
        stream.write_all(&response).await?;
    }
}

/// Bytes of the head and of the body behind it, once the head is whole.
fn whole_head(read: &[u8]) -> anyhow::Result<Option<(usize, usize)>> {
    anyhow::ensure!(read.len() <= REQUEST_BYTES_MAX, "an endless request");
    let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&read[..end])?.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")).map(str::trim);
    Ok(Some((end + 4, length.map_or(Ok(0), str::parse)?)))
}
