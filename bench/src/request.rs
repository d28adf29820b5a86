//! The request: its bytes, and which run its check names.
//!
//! The body is case 023 of the contract without its run, as checks that name one run wait for each other; contestants
//! that measure runs name one here. Its limits on iterations and time are out of reach: a run that hit one would get
//! DEFER, which writes nothing. INVARIANT: all bodies of one contestant have the same length, so that a number is
//! written into the bytes and nothing is built again.

use std::ops::Range;

use anyhow::Context as _;
use serde_json::Value;

/// Six constraints, two side effects, eleven members of `context`; no run.
const BODY: &str = include_str!("../request.json");
/// Checks of one young run: about as many as an agent's task takes.
const CHECKS_OF_YOUNG_RUN: u64 = 20;
/// A run that remembers this many checks has reached its full size: the evaluator keeps a hundred.
const CHECKS_OF_GROWN_RUN: u64 = 128;
/// Fixed, so that the number can be overwritten in the bytes.
const DIGITS: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runs {
    Nameless,
    /// Each connection keeps a run of its own, which grows to its full size.
    OfLine,
    /// Each connection has a run of its own, and a new one after [`CHECKS_OF_YOUNG_RUN`] checks.
    Young,
    ForAll,
}

pub(crate) struct CheckRequest {
    bytes: Vec<u8>,
    /// The offset of a young run's number.
    number: Option<Range<usize>>,
    asked: u64,
}

impl Runs {
    pub(crate) fn body(self, line: usize) -> anyhow::Result<String> {
        let mut body: Value = serde_json::from_str(BODY)?;
        if let Some(run) = self.name(line) {
            let context = body.get_mut("context").and_then(Value::as_object_mut).context("no context")?;
            context.insert("run_id".to_owned(), run.into());
        }
        Ok(body.to_string())
    }

    pub(crate) fn checks_until_grown(self, lines: usize) -> u64 {
        match self {
            Self::Nameless | Self::Young => 0,
            Self::OfLine => CHECKS_OF_GROWN_RUN * lines as u64,
            Self::ForAll => CHECKS_OF_GROWN_RUN,
        }
    }

    fn name(self, line: usize) -> Option<String> {
        match self {
            Self::Nameless => None,
            Self::OfLine | Self::Young => Some(format!("run-{line:04}-{:0DIGITS$}", 0)),
            Self::ForAll => Some(format!("run-{:04}-{:0DIGITS$}", 0, 0)),
        }
    }
}

impl CheckRequest {
    pub(crate) fn new(path: &str, key: Option<&str>, body: &str) -> Self {
        let key = key.map(|key| format!("x-api-key: {key}\r\n")).unwrap_or_default();
        let text = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\n{key}content-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        Self { bytes: text.into_bytes(), number: None, asked: 0 }
    }

    pub(crate) fn check(key: &str, runs: Runs, line: usize) -> anyhow::Result<Self> {
        let mut asking = Self::new("/check", Some(key), &runs.body(line)?);
        if runs == Runs::Young {
            let run = runs.name(line).unwrap_or_default();
            let end = find(&asking.bytes, run.as_bytes()).context("the body names no run")? + run.len();
            asking.number = Some(end - DIGITS..end);
        }
        Ok(asking)
    }

    pub(crate) fn next(&mut self) -> &[u8] {
        if let Some(place) = self.number.clone().and_then(|place| self.bytes.get_mut(place)) {
            let number = format!("{:0DIGITS$}", self.asked / CHECKS_OF_YOUNG_RUN);
            place.iter_mut().zip(number.bytes()).for_each(|(old, new)| *old = new);
        }
        self.asked += 1;
        &self.bytes
    }
}

pub(crate) fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn run_of(request: &[u8]) -> Option<String> {
        let (head, body) = std::str::from_utf8(request).unwrap().split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{head}");
        let body: Value = serde_json::from_str(body).unwrap();
        body["context"].get("run_id").map(|run| run.as_str().unwrap().to_owned())
    }

    /// Runs of the first 50 checks on each of three lines.
    fn named(runs: Runs) -> Vec<BTreeSet<Option<String>>> {
        let of_line = |line| {
            let mut asking = CheckRequest::check("k", runs, line).unwrap();
            (0..50).map(|_| run_of(asking.next())).collect()
        };
        (0..3).map(of_line).collect()
    }

    #[test]
    fn checks_of_plain_contestants_name_no_run() {
        assert_eq!(named(Runs::Nameless), vec![BTreeSet::from([None]); 3]);
    }

    #[test]
    fn each_line_has_a_run_of_its_own_and_keeps_it() {
        let named = named(Runs::OfLine);
        assert!(named.iter().all(|of_line| of_line.len() == 1 && !of_line.contains(&None)));
        assert_eq!(named.into_iter().flatten().collect::<BTreeSet<_>>().len(), 3);
    }

    #[test]
    fn a_young_run_ends_after_its_checks_and_is_no_other_lines() {
        let named = named(Runs::Young);
        assert!(named.iter().all(|of_line| of_line.len() == 3 && !of_line.contains(&None)));
        assert_eq!(named.into_iter().flatten().collect::<BTreeSet<_>>().len(), 9);
    }

    #[test]
    fn a_shared_run_has_one_id() {
        let named = named(Runs::ForAll);
        assert_eq!(named.into_iter().flatten().collect::<BTreeSet<_>>().len(), 1);
    }

    #[test]
    fn only_runs_that_last_have_to_grow() {
        assert_eq!(Runs::OfLine.checks_until_grown(64), 64 * Runs::ForAll.checks_until_grown(64));
        assert_eq!((Runs::Nameless.checks_until_grown(64), Runs::Young.checks_until_grown(64)), (0, 0));
    }
}
