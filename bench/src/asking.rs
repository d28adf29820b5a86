//! What is asked: the bytes of a request, and which run its check names.
//!
//! Owns the body: case 023 of the contract with four constraints of six as they are there. It differs in two things. Its run is left
//! out, as checks that name one run wait for each other, and all contestants would measure that; those who measure runs name one
//! here. And its limits on iterations and time are beyond reach: a run that met one would get DEFER, which writes nothing.
//! INVARIANT: all bodies of one contestant are of one length, so that a number is written into the bytes and nothing is made anew.

use std::ops::Range;

use anyhow::Context as _;
use serde_json::Value;

/// Six constraints, two side effects, eleven members of `context`; no run.
const BODY: &str = include_str!("../request.json");
/// Checks of one young run: about what an agent's task takes.
const YOUNG: u64 = 20;
/// A run that remembers so many checks has grown to its full size: the evaluator keeps a hundred.
const GROWN: u64 = 128;
/// So that a number has a place of its own in the bytes.
const DIGITS: usize = 8;

/// Which runs the checks of one contestant name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runs {
    /// None.
    Nameless,
    /// Each connection its own, for good: it grows to its full size.
    OfLine,
    /// Each connection its own, and a new one after [`YOUNG`] checks.
    Young,
    /// All connections the same one.
    ForAll,
}

/// One connection's request.
pub(crate) struct Asking {
    bytes: Vec<u8>,
    /// Where the number of a young run stands.
    number: Option<Range<usize>>,
    asked: u64,
}

impl Runs {
    /// The body of one connection's first check.
    pub(crate) fn body(self, line: usize) -> anyhow::Result<String> {
        let mut body: Value = serde_json::from_str(BODY)?;
        if let Some(run) = self.name(line) {
            let context = body.get_mut("context").and_then(Value::as_object_mut).context("no context")?;
            context.insert("run_id".to_owned(), run.into());
        }
        Ok(body.to_string())
    }

    /// Checks after which the runs of so many connections are as large as they become.
    pub(crate) fn grown_after(self, lines: usize) -> u64 {
        match self {
            Self::Nameless | Self::Young => 0,
            Self::OfLine => GROWN * lines as u64,
            Self::ForAll => GROWN,
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

impl Asking {
    /// A POST of a body that stays the same.
    pub(crate) fn new(path: &str, key: Option<&str>, body: &str) -> Self {
        let key = key.map(|key| format!("x-api-key: {key}\r\n")).unwrap_or_default();
        let text = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\n{key}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        Self { bytes: text.into_bytes(), number: None, asked: 0 }
    }

    /// One connection's checks.
    pub(crate) fn check(key: &str, runs: Runs, line: usize) -> anyhow::Result<Self> {
        let mut asking = Self::new("/check", Some(key), &runs.body(line)?);
        match runs {
            Runs::Nameless | Runs::OfLine | Runs::ForAll => {}
            Runs::Young => {
                let run = runs.name(line).unwrap_or_default();
                let end = find(&asking.bytes, run.as_bytes()).context("the body names no run")? + run.len();
                asking.number = Some(end - DIGITS..end);
            }
        }
        Ok(asking)
    }

    /// The bytes to send now.
    pub(crate) fn next(&mut self) -> &[u8] {
        if let Some(place) = self.number.clone().and_then(|place| self.bytes.get_mut(place)) {
            let number = format!("{:0DIGITS$}", self.asked / YOUNG);
            place.iter_mut().zip(number.bytes()).for_each(|(old, new)| *old = new);
        }
        self.asked += 1;
        &self.bytes
    }
}

/// Where some bytes begin among others.
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
            let mut asking = Asking::check("k", runs, line).unwrap();
            (0..50).map(|_| run_of(asking.next())).collect()
        };
        (0..3).map(of_line).collect()
    }

    #[test]
    fn a_nameless_check_names_no_run() {
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
    fn one_run_for_all_is_one() {
        let named = named(Runs::ForAll);
        assert_eq!(named.into_iter().flatten().collect::<BTreeSet<_>>().len(), 1);
    }

    #[test]
    fn only_runs_that_last_have_to_grow() {
        assert_eq!(Runs::OfLine.grown_after(64), 64 * Runs::ForAll.grown_after(64));
        assert_eq!((Runs::Nameless.grown_after(64), Runs::Young.grown_after(64)), (0, 0));
    }
}
