//! `stage0 stop`, `resume` and `stops`.

use serde_json::{Value, json};

use crate::harness::{Dev, ended, run};
use crate::impostor::{Impostor, answer, answer_with, refusal};

fn stop() -> Value {
    let fixture: Value = serde_json::from_str(include_str!("../../../contract/fixtures/stop_reply_done.json")).unwrap();
    fixture["done"].clone()
}

#[test]
fn a_stop_says_what_it_covers_and_how_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let (server, requests) = Impostor::recording(&dev, vec![answer_with("201 Created", &stop().to_string())]);
    let stopped = ended(&mut server.client(&["stop", "--environment", "production", "--reason", "incident 12"]));
    assert_eq!((stopped.code, stopped.err.as_str()), (0, ""), "{}", stopped.err);
    for part in ["covers   environment production", "`stage0 resume stop_1 --reason …` ends it"] {
        assert!(stopped.out.contains(part), "{part}: {}", stopped.out);
    }
    let request = requests.try_recv().unwrap();
    assert!(request.line.starts_with("POST /v1/stops "), "{}", request.line);
    let body: Value = serde_json::from_str(&request.body).unwrap();
    assert_eq!(body, json!({"scope": "environment", "value": "production", "reason": "incident 12"}));

    let (server, requests) = Impostor::recording(&dev, vec![answer(&stop().to_string())]);
    let resumed = ended(&mut server.client(&["resume", "stop_1", "--reason", "it is over"]));
    assert_eq!((resumed.code, resumed.out.as_str()), (0, "resumed stop_1: environment production\n"));
    let request = requests.try_recv().unwrap();
    assert!(request.line.starts_with("POST /v1/stops/stop_1/resume "), "{}", request.line);
    assert_eq!(request.body, r#"{"reason":"it is over"}"#);
}

#[test]
fn stops_are_listed_and_a_refusal_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let page: Value = serde_json::from_str(include_str!("../../../contract/fixtures/stop_page.json")).unwrap();
    let listed = ended(&mut Impostor::start(&dev, vec![answer(&page["done"].to_string())]).client(&["stops"]));
    assert_eq!((listed.code, listed.err.as_str()), (0, ""), "{}", listed.err);
    let lines: Vec<&str> = listed.out.lines().collect();
    assert!(
        lines[1].starts_with("stop_1  environment production ") && lines[1].ends_with("incident 12"),
        "{}",
        lines[1]
    );
    assert!(lines[2].contains("every account") && lines[2].contains("key key_2"), "{}", lines[2]);
    let none = json!({"items": [], "next_cursor": null}).to_string();
    let none = ended(&mut Impostor::start(&dev, vec![answer(&none)]).client(&["stops"]));
    assert!(none.code == 0 && none.err.contains("no stop holds"), "{}", none.err);
    let why = "only a member's key or the operator resumes";
    let refused = Impostor::start(&dev, vec![refusal("409 Conflict", why)]);
    let refused = ended(&mut refused.client(&["resume", "stop_1", "--reason", "x"]));
    assert!(refused.code == 1 && refused.err.contains(why), "{}", refused.err);
}

#[test]
fn a_stop_without_scope_or_reason_is_not_sent() {
    for (wrong, flag) in [
        (&["stop", "--reason", "x"][..], "--environment"),
        (&["stop", "--account-wide"], "--reason"),
        (&["stop", "--tool", "x", "--all", "--reason", "x"], "--all"),
        (&["stop", "--tool", "x", "--reason", "x", "--until", "yesterday"], "--until"),
        (&["resume", "stop_1"], "--reason"),
    ] {
        let refused = run(wrong);
        assert!(refused.code == 64 && refused.err.contains(flag), "{wrong:?}: {}", refused.err);
    }
}
