//! `GET /v1/log`: a partition's records as JSON.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use trunkline_proto::{LogIndex, Offset, PartitionId, Timestamp, json};

use super::{App, extract::InQuery, problem::Problem};
use crate::{grpc, node::ReadError};

/// Most records of one answer.
const LIMIT_MAX: usize = 1000;
const LIMIT_DEFAULT: usize = 100;
/// Bytes of log read at once.
const READ_BYTES: usize = 1 << 20;
/// Bytes of log behind one answer, however many records are asked for.
const ANSWER_BYTES: usize = 8 << 20;

/// Query of `/v1/log`.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LogQuery {
    partition: u16,
    /// `index.position` (inclusive), a time of RFC 3339, `earliest` or `latest`; default earliest.
    from: String,
    limit: Option<usize>,
    /// The end is as far as this broker has it, which may be old: answers without a leader too.
    local: bool,
}

/// `GET /v1/log`
pub(super) async fn read(State(app): State<App>, InQuery(query): InQuery<LogQuery>) -> Result<Json<Page>, Problem> {
    let limit = match query.limit.unwrap_or(LIMIT_DEFAULT) {
        limit @ 1..=LIMIT_MAX => limit,
        limit => return Err(Problem::invalid(format!("limit {limit} must be 1 to {LIMIT_MAX}"))),
    };
    let node = &app.0.node;
    let partition = PartitionId(query.partition);
    let Some(handle) = node.partition(partition) else {
        return Err(Problem::invalid(format!("partition {partition} must be below {}", node.partition_count().get())));
    };
    if !query.local {
        node.current([partition]).await?;
    }
    let from = start(&app, partition, &query.from).await?;
    let (count, end) = (node.partition_count(), handle.tail.applied());
    let mut records = Vec::new();
    let (mut after, mut bytes, mut next) = (LogIndex(from.index().0.saturating_sub(1)), 0, from);
    while records.len() < limit && after < end && bytes < ANSWER_BYTES {
        let read = node.read_log(partition, after, READ_BYTES).await.map_err(problem)?;
        if read.through <= after {
            break;
        }
        for entry in read.entries {
            after = entry.index;
            for (offset, record, batch) in entry.raw_records() {
                if offset < from || entry.is_refused(offset.position()) {
                    continue;
                }
                if records.len() == limit {
                    return Ok(answer(records, next, end));
                }
                bytes += record.bytes().len();
                next = Offset(offset.0 + 1);
                let logged = grpc::log::logged((partition, count), &entry, offset, &record, batch);
                records.push(json::record(partition.0, &logged, false));
            }
            next = next.max(Offset::new(LogIndex(entry.index.0 + 1), 0));
        }
        after = after.max(read.through);
    }
    Ok(answer(records, next, end))
}

/// Records, where the next page begins, and where the log ends.
#[derive(Serialize)]
pub(super) struct Page {
    records: Vec<json::Object>,
    next: String,
    end: String,
}

fn answer(records: Vec<json::Object>, next: Offset, end: LogIndex) -> Json<Page> {
    Json(Page { records, next: next.to_string(), end: Offset::end_of(end).to_string() })
}

/// The first offset to show.
async fn start(app: &App, partition: PartitionId, from: &str) -> Result<Offset, Problem> {
    let node = &app.0.node;
    match from {
        "" | "earliest" => Ok(node.earliest(partition)),
        "latest" => {
            let applied = node.partition(partition).map_or(LogIndex(0), |handle| handle.tail.applied());
            Ok(Offset::new(LogIndex(applied.0 + 1), 0))
        }
        text => {
            if let Ok(offset) = text.parse::<Offset>() {
                return Ok(offset);
            }
            let Some(time) = json::parse_time(text) else {
                return Err(Problem::invalid("from is index.position, a time of RFC 3339, earliest or latest"));
            };
            // the first entry stamped at `time` or later follows the last one stamped before it
            let before = Timestamp(time.0.saturating_sub(1));
            let index = node.index_at(partition, before).await.map_err(problem)?;
            Ok(Offset::new(LogIndex(index.0 + 1), 0))
        }
    }
}

fn problem(error: ReadError) -> Problem {
    match error {
        ReadError::Trimmed { earliest } => Problem::trimmed(earliest),
        ReadError::Future { .. } => Problem::invalid(error.to_string()),
        ReadError::Damaged { .. } | ReadError::Store(_) => Problem::internal(error.to_string()),
    }
}
