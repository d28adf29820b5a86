//! `stage0 decisions export`: downloads the bytes of the log to a new file or to standard output.
//!
//! A download that breaks off continues after the last complete decision, until the server marks the end. [`Lines`]
//! ensures that no line is lost or written twice. Only complete lines are written.

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
use crate::client::{Connection, ConnectionError, Download, Query, runtime};
use crate::new_file::NewFile;
use crate::out;

pub(super) struct Export<'c> {
    pub(super) client: &'c Connection,
    pub(super) from: Option<Timestamp>,
    pub(super) to: Option<Timestamp>,
    /// The export fails if no new line arrives for this long.
    pub(super) timeout: Duration,
    pub(super) progress: bool,
    pub(super) as_json: bool,
}

#[derive(Default, Serialize)]
struct Count {
    lines: u64,
    bytes: u64,
    #[serde(rename = "parts")]
    requests: u32,
    last_at: Option<Timestamp>,
}

impl Count {
    fn remark(&self) -> Option<&'static str> {
        match (self.lines, self.last_at) {
            (0, _) => Some("the export is empty: nothing was recorded in this period (--from, --to)"),
            (_, None) => Some("the export holds no decisions, only checkpoints and marks of deletions"),
            (_, Some(_)) => None,
        }
    }
}

enum Output {
    File(NewFile),
    Stdout,
}

impl Export<'_> {
    /// The file is created first, so that the server does no work for a file that cannot be written.
    pub(super) fn run(self, to: &Path) -> anyhow::Result<()> {
        let mut output = if to == Path::new("-") { Output::Stdout } else { Output::File(NewFile::create(to)?) };
        let count = self.download(&mut output)?;
        // On standard output the log must stand alone, without a summary.
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
        let mut lines = Lines::default();
        let mut count = Count::default();
        let mut start = Start::Beginning;
        let mut retry = Retry::new(self.timeout, Instant::now());
        let mut progress = Progress::new(self.progress);
        loop {
            let part = Part { export: self, runtime: &runtime, start };
            let outcome = part.download(output, &mut lines, &mut count, &mut retry, &mut progress)?;
            let error = match outcome {
                Outcome::Complete => {
                    count.last_at = lines.last_recorded();
                    write(output, &lines.end(), &mut count)?;
                    count.remark().iter().for_each(|remark| progress.note(remark));
                    return Ok(count);
                }
                Outcome::PipeClosed => return Ok(count),
                Outcome::Failed(error) => error,
            };
            if let Start::After(id) = start
                && is_gone(&error)
                && let Some(time) = lines.cut_after_expired()
            {
                start = Start::At(time);
                progress.note(format!("{id} has expired; continues {start}"));
                continue;
            }
            let Some(delay) = retry.after(&error, Instant::now()) else {
                return Err(final_error(error, start));
            };
            start = lines.cut().map_or(Start::Beginning, Start::After);
            progress.note(format!("{error}; continues {start} in {} s", delay.as_secs_f32()));
            // Sleeps on the runtime, so that the old connection can be closed meanwhile.
            runtime.block_on(async { tokio::time::sleep(delay).await });
        }
    }
}

#[derive(Clone, Copy)]
enum Start {
    Beginning,
    After(RequestId),
    At(Timestamp),
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Beginning => f.write_str("from the beginning"),
            Self::After(id) => write!(f, "after {id}"),
            Self::At(time) => write!(f, "from {time}"),
        }
    }
}

struct Part<'e> {
    export: &'e Export<'e>,
    runtime: &'e Runtime,
    start: Start,
}

enum Outcome {
    Complete,
    PipeClosed,
    Failed(ConnectionError),
}

impl Part<'_> {
    fn download(
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
            Start::After(id) => (self.export.from, Some(id)),
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
        let mut complete = Vec::new();
        loop {
            match download.next(self.runtime) {
                Ok(Some(chunk)) => lines.take(chunk.as_ref(), &mut complete)?,
                Ok(None) => return Ok(Outcome::Complete),
                Err(error) => return Ok(Outcome::Failed(error)),
            }
            if !complete.is_empty() {
                retry.advanced(Instant::now());
                if !write(output, &complete, count)? {
                    return Ok(Outcome::PipeClosed);
                }
                complete.clear();
            }
            let at = lines.last_recorded().map(|at| format!("{at}  ")).unwrap_or_default();
            progress.update(Instant::now(), || format!("{at}{} lines, {}", count.lines, size(count.bytes)));
        }
    }
}

/// Returns false if the pipe is closed.
fn write(output: &mut Output, lines: &[u8], count: &mut Count) -> anyhow::Result<bool> {
    count.bytes += u64::try_from(lines.len()).unwrap_or(u64::MAX);
    count.lines += u64::try_from(lines.iter().filter(|byte| **byte == b'\n').count()).unwrap_or(u64::MAX);
    match output {
        Output::File(file) => file.write(lines).map(|()| true),
        Output::Stdout => Ok(out::stream(lines)?),
    }
}

/// Whether the server knows `after`, but the decision is gone.
fn is_gone(error: &ConnectionError) -> bool {
    error.is_about("after")
        && matches!(error, ConnectionError::Refused { message, .. } if !message.contains("is not known to this call"))
}

fn final_error(error: ConnectionError, start: Start) -> anyhow::Error {
    let Start::After(after) = start else { return error.into() };
    let why = if error.is_about("after") {
        format!(
            "the download broke off, and this gateway cannot continue after {after}: it is older than this command \
             line; upgrade the gateway, or export shorter periods with --from and --to"
        )
    } else {
        format!("the download broke off after {after} and could not be resumed")
    };
    anyhow::Error::from(error).context(why)
}
