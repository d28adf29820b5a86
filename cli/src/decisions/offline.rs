//! Verifies a downloaded log here: the contract's walk over a file, with keys that somebody kept.
//!
//! The file is read twice, marks first, because a walk begins with them; only they are held, never the decisions. It trusts nothing
//! that the file says of itself: a line of any length and content is a finding, never a stop.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use serde::Deserialize;
use stage0_contract::{LineType, PublicKey, PublicKeys, Report, Walk, Window};

use super::lines::MAX_LINE_BYTES;
use super::progress::{Progress, size};

const MAX_LINE: u64 = MAX_LINE_BYTES as u64;

/// Walks the file.
pub(super) fn verify(
    file: &Path,
    keys: Vec<PublicKey>,
    window: Window,
    progress: &mut Progress,
) -> anyhow::Result<Report> {
    let mut marks = Vec::new();
    each_line(file, "marks", progress, |line| {
        if is_mark(line) {
            marks.push(line.to_vec());
        }
    })?;
    let mut walk = Walk::new(window, keys, marks.iter().map(Vec::as_slice));
    drop(marks);
    each_line(file, "decisions", progress, |line| walk.see(line))?;
    Ok(walk.finish())
}

/// The keys as `stage0 decisions keys` printed them.
pub(super) fn read_keys(file: &Path) -> anyhow::Result<Vec<PublicKey>> {
    let cannot = || format!("cannot use `{}` (--keys)", file.display());
    let text = std::fs::read(file).with_context(cannot)?;
    let keys: PublicKeys = serde_json::from_slice(&text).with_context(cannot)?;
    anyhow::ensure!(!keys.items.is_empty(), "{}: it holds no key", cannot());
    Ok(keys.items)
}

fn is_mark(line: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Kind {
        #[serde(rename = "type")]
        line: LineType,
    }
    match serde_json::from_slice(line) {
        Ok(Kind { line: LineType::Checkpoint | LineType::Deletion | LineType::Expiry | LineType::WebhookDisabled }) => {
            true
        }
        Ok(Kind { line: LineType::Decision }) | Err(_) => false,
    }
}

fn each_line(path: &Path, what: &str, progress: &mut Progress, mut see: impl FnMut(&[u8])) -> anyhow::Result<()> {
    let read = File::open(path).and_then(|file| {
        let (all, mut bytes, mut count) = (file.metadata()?.len(), 0, 0_u64);
        lines(BufReader::new(file), MAX_LINE, |line| {
            see(line);
            (bytes, count) = (bytes + u64::try_from(line.len()).unwrap_or_default() + 1, count + 1);
            // Looking at the clock costs more than many a line.
            if count.is_multiple_of(256) {
                progress.tell(Instant::now(), || format!("{what}: {} of {}", size(bytes), size(all)));
            }
        })
    });
    read.with_context(|| format!("cannot read `{}` (--file)", path.display()))
}

/// Hands out every line without its line feed; of one that is too long its beginning, which nobody takes for a line of ours.
fn lines(mut reader: BufReader<impl io::Read>, most: u64, mut see: impl FnMut(&[u8])) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if (&mut reader).take(most).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if line.pop_if(|last| *last == b'\n').is_none() {
            skip_line(&mut reader)?;
        }
        see(&line);
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
    use super::*;

    fn all(text: &str, most: u64) -> Vec<String> {
        let mut found = Vec::new();
        let reader = BufReader::with_capacity(3, text.as_bytes());
        lines(reader, most, |line| found.push(String::from_utf8(line.to_vec()).unwrap())).unwrap();
        found
    }

    #[test]
    fn every_line_is_seen_also_the_last_one_without_its_end() {
        assert_eq!(all("", 9), Vec::<String>::new());
        assert_eq!(all("a\n\nbc\n", 9), ["a", "", "bc"]);
        assert_eq!(all("a\nbc", 9), ["a", "bc"]);
    }

    #[test]
    fn a_line_without_end_is_seen_and_not_held() {
        assert_eq!(all("a\n0123456789abcdef\nb\n", 4), ["a", "0123", "b"]);
        assert_eq!(all("0123456789", 4), ["0123"]);
    }
}
