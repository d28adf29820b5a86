//! The matrix: whatever the Stage0 server does other than to allow completely, the tool does not run.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use stage0_client::selftest::{End, Reply, selftest};

use crate::stage0::answer;
use crate::world::{Session, World, is_refused, new_guard, wait_for};

const TIMEOUT: Duration = Duration::from_millis(1_500);

#[tokio::test(flavor = "multi_thread")]
async fn no_fault_of_the_stage0_server_lets_a_tool_run() {
    let world = World::new().await;
    let client = world.stage0.client().with_timeout(TIMEOUT);
    let report = selftest(&client, async |client, probe| {
        let world = World::new().await;
        // With whole lists: most of these servers would decide no list either, and an unknown tool proves nothing.
        let guard = Arc::new(new_guard(client, world.pins()).with_whole_lists());
        let mut session = Session::start(guard, world.dir.path());
        session.begin("2025-06-18").await;
        let answer = session.call(1, "write_file", json!({"path": "/tmp/x"})).await;
        if world.runs() > 0 {
            probe.acted();
            return Ok(());
        }
        assert!(!world.read("got").contains("tools/call"), "the server saw it");
        assert!(is_refused(&answer), "{answer}");
        Err(answer["result"]["content"][0]["text"].to_string())
    });
    let report = report.await.unwrap_or_else(|error| panic!("{error}"));
    assert!(report.findings.len() > 40);
    assert!(report.findings.iter().all(|finding| matches!(finding.end, End::Refused(_))), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_decides_no_list_gets_no_tool_shown_or_run() {
    let world = World::new().await;
    world.stage0.says(|path, _| match path {
        "/check" => answer("ALLOW"),
        _ => Reply::answer(503, &[], "{}"),
    });
    let mut session = world.session();
    let list = session.ask(1, "tools/list", json!({})).await;
    assert_eq!(list["error"]["code"], -32001, "{list}");
    assert_eq!(session.call(2, "write_file", json!({})).await["error"]["code"], -32602);
    assert_eq!(world.runs(), 0);
}

#[tokio::test]
async fn an_answer_of_the_guarded_server_that_two_parsers_read_differently_is_dropped() {
    for result in [r#"{},"id":77"#, r#"{},"result":{}"#, "{", r#"{},"Result":{}"#] {
        let world = World::new().await;
        let mut session = world.listed().await;
        world.write("result", result);
        session.send(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"write_file"}}"#).await;
        wait_for("the run", || world.runs() == 1).await;
        assert_eq!(session.ask(2, "ping", json!({})).await["result"], json!({}), "{result}");
        session.close_input();
        let lost = session.receive().await;
        assert_eq!((&lost["id"], lost["error"]["code"].is_i64()), (&json!(1), true), "{result}: {lost}");
        wait_for("the outcome", || world.stage0.outcomes().iter().any(|o| o["status"] == "unknown")).await;
    }
}
