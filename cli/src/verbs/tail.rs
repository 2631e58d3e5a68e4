//! `tail`: the log of one or all partitions. Finished reads are merged by time; with --follow records come as they come.

use std::collections::VecDeque;

use tokio::{sync::mpsc, task::JoinSet};
use trunkline_proto::v1::{LoggedRecord, ReadRequest, ReadResponse};
use trunkline_sdk::{Client, ClientError, LogPages, StartAt};

use super::Remote;
use crate::{
    args::TailArgs,
    exit::Failure,
    moment::From,
    render::{json, line, out::Out, table},
};

/// Pages that wait to be printed.
const PAGES_MAX: usize = 16;

pub(crate) async fn run(args: TailArgs) -> Result<(), Failure> {
    let remote = Remote::new(&args.remote)?;
    let partitions = remote.partitions(args.partition).await?;
    if matches!(args.from, Some(From::Offset(_))) && partitions.len() > 1 {
        return Err(Failure::usage("an offset belongs to one partition: add --partition"));
    }
    let mut printer = Printer::new(&args);
    let result = if args.follow {
        follow(&remote, &args, partitions, &mut printer).await
    } else {
        merge(&remote, &args, partitions, &mut printer).await
    };
    result?;
    printer.out.flush()
}

fn request(args: &TailArgs, partition: u16) -> ReadRequest {
    let default = if args.follow { StartAt::Latest } else { StartAt::Earliest };
    ReadRequest {
        partition: u32::from(partition),
        from: Some(args.from.map_or(default, From::start).into()),
        limit: args.limit.unwrap_or(0),
        follow: args.follow,
        raw: args.raw,
        api: args.api.clone().unwrap_or_default(),
        connection: args.connection.map(|id| id.0.to_vec()).unwrap_or_default().into(),
        until: 0,
        local: args.local,
    }
}

struct Printer {
    out: Out,
    json: bool,
    raw: bool,
    left: u64,
    width: Option<u16>,
}

impl Printer {
    fn new(args: &TailArgs) -> Self {
        let left = args.limit.map_or(u64::MAX, u64::from);
        Self { out: Out::new(), json: args.remote.json, raw: args.raw, left, width: table::terminal_width() }
    }

    /// Prints a record; whether more may follow.
    fn print(&mut self, partition: u16, record: &LoggedRecord) -> Result<bool, Failure> {
        let object = json::record(partition, record, self.raw);
        if self.json {
            self.out.json(&object)?;
        } else {
            self.out.line(line::record(&object, self.width))?;
        }
        self.left = self.left.saturating_sub(1);
        Ok(self.left > 0)
    }
}

/// One partition's records, a page at a time.
struct Reader {
    partition: u16,
    pages: LogPages,
    waiting: VecDeque<LoggedRecord>,
}

impl Reader {
    /// The next record's time; `None` at the end.
    async fn peek(&mut self) -> Result<Option<u64>, ClientError> {
        while self.waiting.is_empty() {
            match self.pages.next().await? {
                Some(page) => self.waiting.extend(page.records),
                None => return Ok(None),
            }
        }
        Ok(self.waiting.front().map(|record| record.time))
    }
}

async fn merge(remote: &Remote, args: &TailArgs, partitions: Vec<u16>, printer: &mut Printer) -> Result<(), Failure> {
    let mut readers = Vec::new();
    for partition in partitions {
        let pages = remote.check(remote.client.read(request(args, partition)).await)?;
        readers.push(Reader { partition, pages, waiting: VecDeque::new() });
    }
    loop {
        let mut earliest: Option<(u64, usize)> = None;
        for (n, reader) in readers.iter_mut().enumerate() {
            if let Some(time) = remote.check(reader.peek().await)? {
                earliest = earliest.into_iter().chain([(time, n)]).min();
            }
        }
        let Some(reader) = earliest.and_then(|(_, n)| readers.get_mut(n)) else { return Ok(()) };
        let Some(record) = reader.waiting.pop_front() else { return Ok(()) };
        if !printer.print(reader.partition, &record)? {
            return Ok(());
        }
    }
}

async fn follow(remote: &Remote, args: &TailArgs, partitions: Vec<u16>, printer: &mut Printer) -> Result<(), Failure> {
    let (sender, mut pages) = mpsc::channel(PAGES_MAX);
    let mut tasks = JoinSet::new();
    for partition in partitions {
        tasks.spawn(read(remote.client.clone(), request(args, partition), partition, sender.clone()));
    }
    drop(sender);
    while let Some((partition, page)) = pages.recv().await {
        for record in remote.check(page)?.records {
            if !printer.print(partition, &record)? {
                return Ok(());
            }
        }
        printer.out.flush()?;
    }
    Ok(())
}

type Page = (u16, Result<ReadResponse, ClientError>);

/// Reads one partition until it ends or nobody listens. The first error is the last page.
async fn read(client: Client, request: ReadRequest, partition: u16, sender: mpsc::Sender<Page>) {
    let mut pages = match client.read(request).await {
        Ok(pages) => pages,
        Err(error) => {
            // nobody listens: the command is over
            let _ = sender.send((partition, Err(error))).await;
            return;
        }
    };
    loop {
        let page = match pages.next().await.transpose() {
            Some(page) => page,
            None => return,
        };
        let failed = page.is_err();
        if sender.send((partition, page)).await.is_err() || failed {
            return;
        }
    }
}
