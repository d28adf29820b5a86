//! `stage0 decisions export`: the log's own bytes, to a file that is whole or not there, or to standard output.
//!
//! Owns the way from cut to cut: a download that is cut is resumed behind the last decision that came whole, until the
//! server says that it is the end. [`Lines`] sees to it that no line is lost and none comes twice; only whole lines are
//! written.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;
use stage0_contract::RequestId;
use tokio::runtime::Runtime;

use super::DECISIONS;
use super::lines::Lines;
use super::progress::{Progress, size};
use super::retry::Retry;
use crate::client::{Client, ClientError, Download, Query, runtime};
use crate::new_file::NewFile;
use crate::out;

/// How an export is made.
pub(super) struct Export<'c> {
    pub(super) client: &'c Client,
    pub(super) from: Option<Timestamp>,
    pub(super) to: Option<Timestamp>,
    /// For so long no new line may come.
    pub(super) timeout: Duration,
    pub(super) progress: bool,
    pub(super) as_json: bool,
}

/// What has been handed on.
#[derive(Default, Serialize)]
struct Count {
    lines: u64,
    bytes: u64,
    /// That were answered with a part of it.
    #[serde(rename = "parts")]
    requests: u32,
    /// When the last decision of it was recorded.
    last_at: Option<Timestamp>,
}

impl Count {
    /// What an empty export means, for whoever finds the file so.
    fn remark(&self) -> Option<&'static str> {
        match (self.lines, self.last_at) {
            (0, _) => Some("the export is empty: nothing was recorded in this time (--from, --to)"),
            (_, None) => Some("the export holds no decision: its lines are checkpoints and marks of deletions"),
            (_, Some(_)) => None,
        }
    }
}

/// Where whole lines go.
enum Output {
    File(NewFile),
    Stdout,
}

impl Export<'_> {
    /// Downloads; the file is made before the server is asked, so that nothing is walked for a file that cannot be.
    pub(super) fn run(self, to: &Path) -> anyhow::Result<()> {
        let mut output = if to == Path::new("-") { Output::Stdout } else { Output::File(NewFile::create(to)?) };
        let count = self.download(&mut output)?;
        // Otherwise standard output is the log's alone.
        let Output::File(file) = output else { return Ok(()) };
        file.keep()?;
        if self.as_json {
            return out::json(&count);
        }
        let Count { lines, bytes, requests, .. } = count;
        let resumed = if requests > 1 { format!(", in {requests} parts") } else { String::new() };
        Ok(out::line(format!("{lines} lines, {bytes} bytes{resumed}"))?)
    }

    fn download(&self, output: &mut Output) -> anyhow::Result<Count> {
        let runtime = runtime()?;
        let (mut lines, mut count, mut start) = (Lines::default(), Count::default(), Start::Beginning);
        let mut retry = Retry::new(self.timeout, Instant::now());
        let mut progress = Progress::new(self.progress);
        loop {
            let part = Part { export: self, runtime: &runtime, start };
            let taken = part.take(output, &mut lines, &mut count, &mut retry, &mut progress)?;
            let error = match taken {
                Outcome::Complete => {
                    count.last_at = lines.last_recorded();
                    write(output, &lines.end(), &mut count)?;
                    count.remark().iter().for_each(|remark| progress.note(remark));
                    return Ok(count);
                }
                Outcome::NobodyReads => return Ok(count),
                Outcome::Failed(error) => error,
            };
            if let Start::Behind(id) = start
                && is_gone(&error)
                && let Some(time) = lines.cut_behind_expired()
            {
                start = Start::At(time);
                progress.note(format!("{id} has expired meanwhile; goes on {start}"));
                continue;
            }
            let Some(delay) = retry.after(&error, Instant::now()) else {
                return Err(final_error(error, start));
            };
            start = lines.cut().map_or(Start::Beginning, Start::Behind);
            progress.note(format!("{error}; goes on {start} in {} s", delay.as_secs_f32()));
            // On the runtime, so that what is left of the connection is closed meanwhile.
            runtime.block_on(async { tokio::time::sleep(delay).await });
        }
    }
}

/// Where a request begins.
#[derive(Clone, Copy)]
enum Start {
    Beginning,
    Behind(RequestId),
    At(Timestamp),
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Beginning => f.write_str("from the beginning"),
            Self::Behind(id) => write!(f, "behind {id}"),
            Self::At(time) => write!(f, "from {time}"),
        }
    }
}

/// One request of an export.
struct Part<'e> {
    export: &'e Export<'e>,
    runtime: &'e Runtime,
    start: Start,
}

/// How a request ended.
enum Outcome {
    /// The server said that this was all.
    Complete,
    NobodyReads,
    Failed(ClientError),
}

impl Part<'_> {
    fn take(
        &self,
        output: &mut Output,
        lines: &mut Lines,
        count: &mut Count,
        retry: &mut Retry,
        progress: &mut Progress,
    ) -> anyhow::Result<Outcome> {
        let [v1, decisions] = DECISIONS;
        let (from, after) = match self.start {
            Start::Beginning => (self.export.from, None),
            Start::Behind(id) => (self.export.from, Some(id)),
            Start::At(time) => (Some(self.export.from.map_or(time, |from| from.max(time))), None),
        };
        let query = Query::default().with("from", from).with("to", self.export.to).with("after", after);
        let begun = Download::begin(self.runtime, self.export.client, &[v1, decisions, "export"], &query);
        let mut download = match begun {
            Ok(download) => download,
            Err(error) => return Ok(Outcome::Failed(error)),
        };
        retry.answered();
        count.requests += 1;
        let mut whole = Vec::new();
        loop {
            match download.next(self.runtime) {
                Ok(Some(piece)) => lines.take(piece.as_ref(), &mut whole)?,
                Ok(None) => return Ok(Outcome::Complete),
                Err(error) => return Ok(Outcome::Failed(error)),
            }
            if !whole.is_empty() {
                retry.advanced(Instant::now());
                if !write(output, &whole, count)? {
                    return Ok(Outcome::NobodyReads);
                }
                whole.clear();
            }
            // How far it is in the log, by the log's own time.
            let at = lines.last_recorded().map(|at| format!("{at}  ")).unwrap_or_default();
            progress.tell(Instant::now(), || format!("{at}{} lines, {}", count.lines, size(count.bytes)));
        }
    }
}

/// False once nobody reads any more.
fn write(output: &mut Output, whole: &[u8], count: &mut Count) -> anyhow::Result<bool> {
    count.bytes += u64::try_from(whole.len()).unwrap_or(u64::MAX);
    count.lines += u64::try_from(whole.iter().filter(|byte| **byte == b'\n').count()).unwrap_or(u64::MAX);
    match output {
        Output::File(file) => file.write(whole).map(|()| true),
        Output::Stdout => Ok(out::stream(whole)?),
    }
}

/// Whether the server refuses to go on behind a decision.
fn is_about_after(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused { status: 422, fields, .. } if fields.iter().any(|field| field == "after"))
}

/// Whether it knows how to, and the decision is not there any more.
fn is_gone(error: &ClientError) -> bool {
    is_about_after(error)
        && matches!(error, ClientError::Refused { message, .. } if !message.contains("is not known to this call"))
}

/// Why an export ends without being whole.
fn final_error(error: ClientError, start: Start) -> anyhow::Error {
    let Start::Behind(after) = start else { return error.into() };
    let why = if is_about_after(&error) {
        format!(
            "the download was cut, and this gateway cannot go on behind {after}: it is older than this command line; \
             upgrade the gateway, or export shorter periods with --from and --to"
        )
    } else {
        format!("the download was cut behind {after} and could not be resumed")
    };
    anyhow::Error::from(error).context(why)
}
