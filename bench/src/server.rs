//! The processes under test: started for real, watched through /proc, stopped by SIGTERM.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

/// A running server: `trunkline`, the floor or a peer.
pub(crate) struct Server {
    child: Child,
    /// Kept open: a process whose output nobody takes would end.
    output: BufReader<ChildStdout>,
    listeners: BTreeMap<String, SocketAddr>,
}

impl Server {
    /// Starts `binary` and reads its `listening NAME ADDR` lines until `ready`.
    pub(crate) fn start(binary: &Path, arguments: &[&str]) -> anyhow::Result<Self> {
        Self::spawn(binary, arguments)?.ready()
    }

    /// Starts `binary` and waits for nothing.
    pub(crate) fn spawn(binary: &Path, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut child = Command::new(binary)
            .args(arguments)
            // what is killed on purpose is missed by the others, who warn
            .env("TRUNKLINE_LOG", "error")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        let output = BufReader::new(child.stdout.take().context("no standard output")?);
        Ok(Self { child, output, listeners: BTreeMap::new() })
    }

    /// Waits until it is ready. Blocks.
    pub(crate) fn ready(mut self) -> anyhow::Result<Self> {
        let mut line = String::new();
        while self.output.read_line(&mut line)? > 0 {
            if line.trim_end() == "ready" {
                return Ok(self);
            }
            if let Some((name, address)) =
                line.strip_prefix("listening ").and_then(|rest| rest.trim_end().split_once(' '))
            {
                self.listeners.insert(name.to_owned(), address.parse()?);
            }
            line.clear();
        }
        bail!("a server ended before it was ready: {}", self.child.wait()?)
    }

    /// The bound address of a listener: `ws`, `http`, `grpc`, `link`, `edge-http`.
    pub(crate) fn address(&self, listener: &str) -> anyhow::Result<SocketAddr> {
        self.listeners.get(listener).copied().with_context(|| format!("no listener {listener}: {:?}", self.listeners))
    }

    /// Time on a processor so far, all threads: from the scheduler, which counts nanoseconds where /proc/PID/stat samples ticks.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        let mut nanoseconds = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // a thread of the blocking pool may end in between
            let Ok(stat) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
            nanoseconds += stat.split_whitespace().next().context("odd schedstat")?.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// Resident memory, in bytes.
    pub(crate) fn resident(&self) -> anyhow::Result<u64> {
        resident(self.child.id())
    }

    /// SIGTERM, then waits for the drain; SIGKILL after 40 s.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        self.terminate();
        let since = Instant::now();
        while self.child.try_wait()?.is_none() {
            if since.elapsed() > Duration::from_secs(40) {
                self.child.kill()?;
                bail!("the server did not drain within 40 s");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    fn terminate(&self) {
        if let Some(id) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            // it fails only if the process is gone, which is what is wanted
            let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // after `stop` both calls find nothing to do
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Resident memory of a process, in bytes.
pub(crate) fn resident(process: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.split_whitespace().next().context("odd VmRSS")?.parse()?;
    Ok(kib << 10)
}
