//! A pack's rules, from ten to as many as a pack may have: one decision on one thread, in stage0-policy itself, and a
//! check over HTTPS that the pack decides.
//!
//! The rules are an organisation's own, below those of the baseline. None is satisfied by the request: what is measured
//! is asking them. They come in two kinds: rules that every check has to ask, and rules whose trigger the check lacks.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use stage0_contract::{AccountId, CallerTexts, EvaluateRequest, RequestId, parse_strict};
use stage0_policy::bench_support::{self, TYPICAL_REQUEST};
use stage0_policy::{Engine, Pack};

use super::curve::{Curve, Measured, measured};
use crate::quantiles::median;

/// A pack may have a thousand rules; the rest are the baseline's.
pub(super) const SIZES: [u64; 5] = [10, 30, 100, 300, 900];
const NOW: i64 = 1_773_662_400;
const TURNS: usize = 31;
const DECISIONS_OF_TURN: u32 = 100;

/// What a rule of the pack needs to be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Every check is asked.
    Always,
    /// Only checks that declare a constraint are asked.
    Triggered,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Triggered => "triggered",
        }
    }
}

pub(super) fn curve(sizes: &[u64]) -> anyhow::Result<Curve> {
    let method = "One decision by stage0-policy on one thread: processor time, median of turns; a pack with this many \
                  rules of its own over the baseline's."
        .to_owned();
    let expected = "linear in the rules that a check has to ask, with the baseline's as a constant; flat in rules \
                    whose trigger it lacks.";
    // Loads what all packs share.
    point(sizes.first().copied().unwrap_or(1), Kind::Always)?;
    let mut curve = Curve::new("rules of a pack", "own rules", method, expected);
    for &size in sizes {
        let mut numbers = Vec::new();
        for kind in [Kind::Always, Kind::Triggered] {
            numbers.extend(point(size, kind)?);
        }
        curve.add(size, numbers);
    }
    Ok(curve)
}

fn point(size: u64, kind: Kind) -> anyhow::Result<Vec<Measured>> {
    let directory = tempfile::tempdir()?;
    let folder = write_pack(directory.path(), size, kind)?;
    let begun = Instant::now();
    let pack = Pack::from_dir(&folder).map_err(|error| anyhow::anyhow!("{error}"))?;
    let loaded = begun.elapsed().as_secs_f64() * 1e3;
    let engine = Engine::new(pack).map_err(|error| anyhow::anyhow!("{error}"))?;
    let check = check()?;
    let mut costs = Vec::with_capacity(TURNS);
    for _ in 0..TURNS {
        let begun = thread_time();
        for _ in 0..DECISIONS_OF_TURN {
            bench_support::answer(&engine, &check).context("the request was not decided")?;
        }
        costs.push((thread_time() - begun) / f64::from(DECISIONS_OF_TURN) * 1e6);
    }
    let [cost_name, load_name] = match kind {
        Kind::Always => ["a decision that asks all of them", "loading and proving such a pack"],
        Kind::Triggered => ["a decision that asks none of them", "loading and proving that pack"],
    };
    Ok(vec![measured(cost_name, "µs", median(costs)), measured(load_name, "ms", loaded)])
}

/// Writes the pack into a folder of its own and returns it.
pub(super) fn write_pack(directory: &Path, size: u64, kind: Kind) -> anyhow::Result<PathBuf> {
    let folder = directory.join(format!("bench-{}-{size}", kind.name()));
    std::fs::create_dir(&folder)?;
    let (mut rules, mut cases) = (String::new(), Vec::new());
    for number in 0..size {
        let (trigger, condition) = match kind {
            Kind::Always => ("", String::new()),
            Kind::Triggered => ("@trigger(\"max_records\")\n", "context has max_records && ".to_owned()),
        };
        writeln!(
            rules,
            "@id(\"bench.rule_{number:04}\")\n{trigger}@effect(\"deny\")\n@code(\"BENCH_RULE\")\n\
             @message(\"the tool number {number} is not used in production\")\n\
             forbid (principal, action, resource)\n\
             when {{ {condition}context.tools.contains(\"bench_tool_{number:04}\") && context.scoped_effects }};\n"
        )?;
        cases.push(case(number, kind));
    }
    let manifest = format!("name = \"bench-{}-{size}\"\nversion = \"1.0.0\"\nextends = \"baseline@2\"\n", kind.name());
    let codes = "[BENCH_RULE]\nmeaning = \"A tool that the bench refuses.\"\nremedy = \"Final: use another tool.\"\n";
    for (file, text) in [
        ("pack.toml", manifest.as_str()),
        ("codes.toml", codes),
        ("bench.cedar", &rules),
        ("cases.json", &lines(&cases)),
    ] {
        std::fs::write(folder.join(file), text)?;
    }
    Ok(folder)
}

/// Each rule needs a case that satisfies it.
fn case(number: u64, kind: Kind) -> Value {
    let constraints = match kind {
        Kind::Always => json!(["sandbox"]),
        Kind::Triggered => json!(["sandbox", "max_records:5"]),
    };
    json!({"id": format!("rule-{number:04}"), "expect": ["DENY"], "codes": ["BENCH_RULE"], "request": {
        "goal": "Write the report of last week to the archive", "success_criteria": ["written"],
        "constraints": constraints, "tools": [format!("bench_tool_{number:04}")], "side_effects": ["write"],
        "context": {"environment": "staging", "record_count": 1}}})
}

/// Cases stand one on each line.
fn lines(cases: &[Value]) -> String {
    let lines: Vec<_> = cases.iter().map(Value::to_string).collect();
    format!("[\n{}\n]\n", lines.join(",\n"))
}

fn check() -> anyhow::Result<EvaluateRequest> {
    let body = parse_strict(TYPICAL_REQUEST.as_bytes()).context("the request is not JSON")?;
    let request = stage0_contract::CheckRequest::parse(body).map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
    Ok(EvaluateRequest {
        asker: None,
        request_id: RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91")?,
        account: AccountId::parse("bench")?,
        request,
        evaluated_at: NOW,
        operation: None,
        caller: CallerTexts { client_request_id: None, user_agent: None },
        max_runs: None,
    })
}

/// Processor time of this thread, in seconds.
fn thread_time() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pack_has_as_many_rules_of_its_own_as_asked_for_and_both_kinds_load() {
        let directory = tempfile::tempdir().unwrap();
        let mut counts = Vec::new();
        for (size, kind) in [(10, Kind::Always), (10, Kind::Triggered), (20, Kind::Always)] {
            let pack = Pack::from_dir(&write_pack(directory.path(), size, kind).unwrap()).unwrap();
            counts.push(pack.rule_count());
        }
        let &[ten, triggered, twenty] = counts.as_slice() else { unreachable!() };
        assert_eq!((triggered, twenty), (ten, ten + 10));
    }
}
