//! Verifies a downloaded log with keys that the user kept, by the contract's `ChainVerifier`.
//!
//! The file is read twice, first for its marks, which the verifier needs at the start. Nothing in the file is trusted:
//! a line of any length and content is at most a finding and never ends the verification.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use stage0_contract::{ChainVerifier, LineType, PublicKey, PublicKeys, Report, Window};

use super::lines::MAX_LINE_BYTES;
use super::progress::{Progress, size};

const MAX_LINE: u64 = MAX_LINE_BYTES as u64;

pub(super) fn verify(
    file: &Path,
    keys: Vec<PublicKey>,
    window: Window,
    progress: &mut Progress,
) -> anyhow::Result<Report> {
    let mut marks = Vec::new();
    each_line(file, "marks", progress, |line| {
        if LineType::of(line).is_some_and(LineType::is_mark) {
            marks.push(line.to_vec());
        }
    })?;
    let mut verifier = ChainVerifier::new(window, keys, marks.iter().map(Vec::as_slice));
    drop(marks);
    each_line(file, "lines", progress, |line| verifier.read_line(line))?;
    Ok(verifier.finish())
}

pub(super) fn read_keys(file: &Path) -> anyhow::Result<Vec<PublicKey>> {
    let cannot = || format!("cannot use `{}` (--keys)", file.display());
    let text = std::fs::read(file).with_context(cannot)?;
    let keys: PublicKeys = serde_json::from_slice(&text).with_context(cannot)?;
    anyhow::ensure!(!keys.items.is_empty(), "{}: it holds no keys", cannot());
    Ok(keys.items)
}

fn each_line(path: &Path, what: &str, progress: &mut Progress, mut visit: impl FnMut(&[u8])) -> anyhow::Result<()> {
    let read = File::open(path).and_then(|file| {
        let total = file.metadata()?.len();
        let mut bytes = 0;
        let mut count = 0_u64;
        lines(BufReader::new(file), MAX_LINE, |line| {
            visit(line);
            bytes += u64::try_from(line.len()).unwrap_or_default() + 1;
            count += 1;
            // Reading the clock may take longer than reading a line.
            if count.is_multiple_of(256) {
                progress.update(Instant::now(), || format!("{what}: {} of {}", size(bytes), size(total)));
            }
        })
    });
    read.with_context(|| format!("cannot read `{}` (--file)", path.display()))
}

/// Visits every line without its line feed. Only the beginning of an overlong line is visited, which cannot be valid.
fn lines(mut reader: BufReader<impl io::Read>, max: u64, mut visit: impl FnMut(&[u8])) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if (&mut reader).take(max).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if line.pop_if(|last| *last == b'\n').is_none() {
            skip_line(&mut reader)?;
        }
        visit(&line);
    }
}

fn skip_line(reader: &mut BufReader<impl io::Read>) -> io::Result<()> {
    loop {
        let held = reader.fill_buf()?;
        let (length, end) = (held.len(), held.iter().position(|byte| *byte == b'\n'));
        match end {
            Some(end) => {
                reader.consume(end + 1);
                return Ok(());
            }
            None if length == 0 => return Ok(()),
            None => reader.consume(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;
    use stage0_contract::{FindingKind, Head, LineHeader, Link};

    use super::*;

    fn all(text: &str, max: u64) -> Vec<String> {
        let mut found = Vec::new();
        let reader = BufReader::with_capacity(3, text.as_bytes());
        lines(reader, max, |line| found.push(String::from_utf8(line.to_vec()).unwrap())).unwrap();
        found
    }

    /// A chain of one writer as a gateway writes it, with a line of a type that only a newer version knows in it.
    fn log() -> Vec<String> {
        let mut head: Option<Head> = None;
        let mut lines = Vec::new();
        for (sequence, kind) in
            (1..).zip(["decision.recorded", "approval.foreseen", "approval.used", "decision.recorded"])
        {
            let chain = Link {
                writer: serde_json::from_value(json!("01890000-0000-7000-8000-000000000001")).unwrap(),
                sequence,
                previous: head.map(|head| head.as_previous()),
                after: None,
                mark: None,
            };
            let (recorded_at, expires_at) = (Timestamp::UNIX_EPOCH, 1_000);
            let header = LineHeader { line: LineType::Decision, chain, recorded_at, expires_at };
            let line = header.with(br#"{"account":"acc_1"}"#).unwrap();
            let line = String::from_utf8(line).unwrap().replacen("decision.recorded", kind, 1);
            head = Some(header.head(line.as_bytes()));
            lines.push(line);
        }
        lines
    }

    fn verified(lines: &[String]) -> Report {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), lines.join("\n")).unwrap();
        let now = Timestamp::UNIX_EPOCH;
        let window = Window { from: None, to: None, now, horizon: now, kept: None, signed: None };
        verify(file.path(), Vec::new(), window, &mut Progress::new(false)).unwrap()
    }

    #[test]
    fn a_log_of_a_newer_version_is_verified_line_by_line() {
        let report = verified(&log());
        assert!(report.ok, "{:#?}", report.findings);
        assert_eq!((report.records, report.other_lines), (2, 2));
        for place in 0..3 {
            let mut lines = log();
            lines[place] = lines[place].replace("acc_1", "acc_1\",\"x\":\"");
            assert_eq!(verified(&lines).findings[0].kind, FindingKind::Altered, "{place}");
            let mut lines = log();
            lines.remove(place);
            assert_eq!(verified(&lines).findings[0].kind, FindingKind::Missing, "{place}");
        }
    }

    #[test]
    fn every_line_is_visited_even_the_last_without_a_line_feed() {
        assert_eq!(all("", 9), Vec::<String>::new());
        assert_eq!(all("a\n\nbc\n", 9), ["a", "", "bc"]);
        assert_eq!(all("a\nbc", 9), ["a", "bc"]);
    }

    #[test]
    fn an_overlong_line_is_visited_in_part() {
        assert_eq!(all("a\n0123456789abcdef\nb\n", 4), ["a", "0123", "b"]);
        assert_eq!(all("0123456789", 4), ["0123"]);
    }
}
