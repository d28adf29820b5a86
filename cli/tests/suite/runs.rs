//! `stage0 runs` and `stage0 usage` against a running server.

use serde_json::{Value, json};

use crate::harness::{Dev, ended};
use crate::impostor::{Impostor, answer};

fn run(id: &str, usd: f64) -> Value {
    json!({"run_id": id, "first_seen": "2026-11-26T13:00:00Z", "last_seen": "2026-11-26T13:01:00Z",
        "expires_at": "2026-11-27T13:01:00Z", "iterations": 3, "retries": 1, "elapsed_seconds": 60.0,
        "cost": {"spent_usd": usd, "reserved_usd": 0.5, "total_usd": usd + 0.5}, "tools": ["shell"],
        "tool_calls": {"shell": 1}, "reservations": []})
}

fn page(runs: &[Value], next: Option<&str>) -> String {
    answer(&json!({"items": runs, "next_cursor": next}).to_string())
}

#[test]
fn runs_are_listed_page_after_page() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let pages = || vec![page(&[run("a", 1.0)], Some("1")), page(&[], Some("2")), page(&[run("b c", 2.0)], None)];
    let table = ended(&mut Impostor::start(&dev, pages()).client(&["runs", "list"]));
    assert_eq!((table.code, table.err.as_str()), (0, ""), "{}", table.err);
    let lines: Vec<&str> = table.out.lines().collect();
    assert!(lines[0].starts_with("RUN ") && lines.len() == 3, "{}", table.out);
    assert!(lines[1].starts_with("a ") && lines[1].contains(" 3 ") && lines[1].contains(" 1.5 "), "{}", lines[1]);
    assert!(lines[2].starts_with("b c ") && lines[2].contains(" 2.5 "), "{}", lines[2]);

    let listed = ended(&mut Impostor::start(&dev, pages()).client(&["runs", "list", "--json"]));
    let listed: Value = serde_json::from_str(&listed.out).unwrap();
    assert_eq!((listed["items"].as_array().unwrap().len(), &listed["next_cursor"]), (2, &Value::Null));
    let first = ended(&mut Impostor::start(&dev, pages()).client(&["runs", "list", "--limit", "1"]));
    assert!(first.out.lines().count() == 2 && first.err.contains("there are more (--limit)"), "{}", first.err);
    let none = ended(&mut Impostor::start(&dev, vec![page(&[], None)]).client(&["runs", "list"]));
    assert!(none.code == 0 && none.err.contains("no run"), "{}", none.err);
    let hostile =
        ended(&mut Impostor::start(&dev, vec![page(&[json!({"run_id": 7})], None)]).client(&["runs", "list"]));
    assert!(hostile.code == 1 && hostile.err.contains("cannot be read"), "{}", hostile.err);
}

#[test]
fn a_run_is_shown_and_ended_for_people_and_for_programs() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let action = json!({"goal": "Read the weekly sales report", "success_criteria": ["a summary"],
        "tools": ["read_file"], "context": {"run_id": "run-1"}});
    assert_eq!(dev.check(&action, &[]).code, 0);
    let shown = dev.ask(&["runs", "show", "run-1"]);
    assert!(
        shown.code == 0 && shown.out.contains("run      run-1\n") && shown.out.contains("\nends "),
        "{}",
        shown.out
    );
    let shown: Value = serde_json::from_str(&dev.ask(&["runs", "show", "run-1", "--json"]).out).unwrap();
    assert_eq!(shown["run_id"], "run-1");
    let ended: Value = serde_json::from_str(&dev.ask(&["runs", "end", "run-1", "--json"]).out).unwrap();
    assert_eq!(ended, json!({"run_id": "run-1", "ended": true}));
    assert_eq!(dev.ask(&["runs", "show", "run-1"]).code, 1);
    let usage = dev.ask(&["usage"]);
    assert!(
        usage.code == 0 && usage.out.contains("today, 20") && usage.out.contains("this month, 20"),
        "{}",
        usage.out
    );
}
