//! Commands of the bench in their shortest forms, on the binary that the other tests use: that they still run, that
//! what they count adds up, and that a load leaves memory, files and answers as they were.
//!
//! Nothing here judges a speed.

// Test code: it may fail loudly.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

const CHECKS: u64 = 4_000;
const IDLE: u64 = 100;

/// Runs a command of the bench with `--json`.
fn bench(arguments: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stage0-bench"));
    let output = command.args(arguments).arg("--json").arg("--stage0").arg(stage0()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{arguments:?} prints no JSON: {error}"))
}

/// `STAGE0_BIN`, else beside the bench.
fn stage0() -> PathBuf {
    if let Some(named) = std::env::var_os("STAGE0_BIN") {
        return named.into();
    }
    let beside = PathBuf::from(env!("CARGO_BIN_EXE_stage0-bench")).with_file_name("stage0");
    assert!(beside.exists(), "{} is missing: run `cargo build`, or scripts/test.sh", beside.display());
    beside
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().unwrap_or_else(|| panic!("no list `{name}` in {value}"))
}

/// The long form takes hours: `stage0-bench soak --minutes 600 --max-growth 10`.
#[test]
fn a_load_leaves_memory_and_open_files_as_they_were_and_every_check_is_answered_and_delivered() {
    let (checks, idle) = (CHECKS.to_string(), IDLE.to_string());
    let report = bench(&["soak", "--checks", &checks, "--rate", "0", "--connections", "16", "--idle", &idle]);
    let places = list(&report, "places");
    assert_eq!(places.len(), 2);
    for place in places {
        let answered = place["answered"].as_u64().unwrap();
        assert!(answered >= CHECKS && place["refused"] == 0, "{place}");
        // Marks are delivered, too.
        assert!(place["delivered"].as_u64().unwrap() >= answered, "{place}");
        // nats-server's memory depends on when Go collects garbage.
        for process in list(place, "processes").iter().filter(|process| process["process"] != "nats-server") {
            let (begin, end) = (process["first_third"].as_f64().unwrap(), process["last_third"].as_f64().unwrap());
            assert!(end < 1.6 * begin, "memory grew: {process}");
            let (first, last) = (process["files_first"].as_u64().unwrap(), process["files_last"].as_u64().unwrap());
            assert!(last <= first + 16, "open files grew: {process}");
        }
        assert_eq!(place["idle"]["connections"], IDLE);
    }
}

#[test]
fn growth_curves_are_measured_at_their_smallest_size() {
    let report = bench(&["growth", "--only", "keys,endpoints,gateways,runs", "--largest", "1", "--seconds", "1"]);
    let curves = list(&report, "curves");
    let sizes: Vec<&str> = curves.iter().map(|curve| curve["size"].as_str().unwrap()).collect();
    for of in ["keys", "endpoints", "gateways", "runs"] {
        assert!(sizes.contains(&of), "no curve of {of} in {sizes:?}");
    }
    for curve in curves {
        assert_eq!(list(curve, "sizes"), [1], "{curve}");
        for column in list(curve, "columns") {
            let values = list(column, "values");
            assert!(values.iter().all(|value| value.as_f64().is_some_and(f64::is_finite)), "{column}");
        }
    }
}

#[test]
fn a_check_costs_processor_time_in_each_process_and_more_than_its_floor() {
    let common = ["cost", "--seconds", "1", "--repeats", "1", "--connections", "4", "--fractions", "0.5"];
    let report = bench(&[&common[..], &["--only", "b,d1,f1"]].concat());
    let contestants = list(&report, "contestants");
    let named = |name: &str| {
        let of = contestants.iter().find(|of| of["name"].as_str().unwrap().starts_with(name));
        of.unwrap_or_else(|| panic!("no {name} in {report}"))
    };
    let total = |name: &str| named(name)["maximum"]["cpu_us"].as_f64().unwrap();
    assert!(total("d1") > total("b"), "{report}");
    // Three servers of NATS beside one.
    let servers =
        |name: &str| list(named(name), "memory").iter().filter(|process| process["process"] == "nats-server").count();
    assert_eq!((servers("d1"), servers("f1")), (1, 3), "{report}");
    assert!(named("f1")["of_floor"].as_f64().is_some_and(|ratio| ratio > 0.0), "{report}");
}
