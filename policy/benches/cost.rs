//! What a decision costs beside plain Cedar: processor time of each step, in turns, as a ratio to it in the same run.
//!
//! `cargo bench -p stage0-policy --bench cost`. Other work on the machine changes the times, and the ratios little.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::cast_precision_loss)]

use std::hint::black_box;
use std::path::Path;

use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use stage0_contract::{AccountId, CallerTexts, CheckRequest, EvaluateRequest, RequestId};
use stage0_policy::bench_support::{self, Measured, TYPICAL_REQUEST};
use stage0_policy::{Engine, Pack};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const NOW: i64 = 1_773_662_400;
const TURNS: usize = 101;
/// Of each step in one turn: about five milliseconds of a decision.
const TIMES: u32 = 200;

fn evaluate_request(body: &str) -> EvaluateRequest {
    EvaluateRequest {
        asker: None,
        request_id: RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap(),
        account: AccountId::parse("acc").unwrap(),
        request: CheckRequest::parse(serde_json::from_str(body).unwrap()).unwrap(),
        evaluated_at: NOW,
        operation: None,
        caller: CallerTexts {
            client_request_id: Some("a5c1f0de-7c4f-4d3c-9a55-3f1f0b7f2f11".to_owned()),
            user_agent: Some("python-requests/2.32.3 agent-runner/4.1 (linux; x86_64)".to_owned()),
        },
        max_runs: None,
    }
}

/// Nanoseconds of processor time of one call.
fn cost(work: &dyn Fn()) -> f64 {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
    };
    let began = now();
    (0..TIMES).for_each(|_| work());
    (now() - began) / f64::from(TIMES)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn measure(name: &str, folder: &str, body: &str) {
    let load = || Pack::from_dir(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies").join(folder)).unwrap();
    let (engine, by_cedar) = (Engine::new(load()).unwrap(), Engine::new(load()).unwrap());
    bench_support::leave_to_cedar(by_cedar.pack());
    assert!(!engine.pack().is_left_to_cedar(), "each has a pack of its own");
    let check = evaluate_request(body);
    let measured = Measured::new(&engine, &check.request, NOW).unwrap();
    let steps: [(&str, &dyn Fn()); 8] = [
        ("plain Cedar: all rules, all their facts", &|| measured.evaluate_all()),
        ("Cedar: rules whose trigger holds", &|| measured.evaluate_by_cedar()),
        ("the same rules, as they are evaluated", &|| measured.evaluate()),
        ("facts", &|| measured.facts(NOW)),
        ("assembly", &|| drop(black_box(measured.assemble()))),
        ("what may be recorded", &|| measured.redact(&check)),
        ("the whole answer, rules by Cedar", &|| assert!(bench_support::answer(&by_cedar, &check).is_some())),
        ("the whole answer", &|| assert!(bench_support::answer(&engine, &check).is_some())),
    ];
    let mut costs = steps.map(|_| Vec::with_capacity(TURNS));
    for _ in 0..TURNS {
        for ((_, work), costs) in steps.iter().zip(&mut costs) {
            costs.push(cost(work));
        }
    }
    let (rules, compiled) = (engine.pack().rule_count(), engine.pack().compiled_count());
    println!("{name}: {rules} rules, {compiled} compiled, {} evaluated", measured.rules());
    let costs = costs.map(median);
    let plain = costs.first().copied().unwrap_or_default();
    for ((step, _), cost) in steps.iter().zip(costs) {
        println!("  {step:42} {:8.2} µs {:6.3} of plain Cedar", cost / 1e3, cost / plain);
    }
}

fn main() {
    measure("baseline", "baseline", TYPICAL_REQUEST);
    let read = json!({"goal": "Read the quarterly report", "success_criteria": ["summary"], "tools": ["read_file"]});
    measure("baseline, a small request", "baseline", &read.to_string());
    for name in Pack::templates() {
        measure(name, name, TYPICAL_REQUEST);
    }
}
