//! The server's process: it begins and ends with the guard.

use serde_json::json;

use crate::stage0::answer;
use crate::world::{Session, World, command, wait_for};

fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z")
}

#[tokio::test]
async fn the_servers_exit_code_is_the_guards() {
    let world = World::new().await;
    let mut session = world.session();
    session.ask(1, "ping", json!({})).await;
    assert_eq!(session.end().await, 7);
    let mut session = world.listed().await;
    world.write("die", "");
    session.send(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"write_file"}}"#).await;
    session.receive().await;
    assert_eq!(session.ended().await, 9, "it ended by itself");
}

#[tokio::test]
async fn a_server_that_does_not_end_is_ended_with_its_children() {
    let world = World::new().await;
    world.write("stubborn", "");
    let mut session = world.session();
    session.ask(1, "ping", json!({})).await;
    let pid = world.read("pid");
    assert!(is_alive(&pid));
    session.stop();
    session.ended().await;
    wait_for("the server's end", || !is_alive(&pid)).await;
}

#[tokio::test]
async fn a_call_that_is_being_decided_when_the_client_leaves_is_not_sent() {
    let world = World::new().await;
    let mut session = world.listed().await;
    world.stage0.says(|_, _| {
        std::thread::sleep(std::time::Duration::from_millis(300));
        answer("ALLOW")
    });
    session.send(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"write_file"}}"#).await;
    wait_for("the question", || !world.stage0.asked("/check").is_empty()).await;
    session.end().await;
    assert_eq!(world.runs(), 0);
    assert!(!world.read("got").contains("tools/call"));
}

#[tokio::test]
async fn a_call_that_is_cancelled_while_it_is_decided_is_not_sent() {
    let world = World::new().await;
    let mut session = world.listed().await;
    world.stage0.says(|_, _| {
        std::thread::sleep(std::time::Duration::from_millis(200));
        answer("ALLOW")
    });
    session.send(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"write_file"}}"#).await;
    wait_for("the question", || !world.stage0.asked("/check").is_empty()).await;
    session.send(r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#).await;
    wait_for("the outcome", || world.stage0.outcomes().iter().any(|outcome| outcome["status"] == "skipped")).await;
    assert_eq!(session.ask(2, "ping", json!({})).await["result"], json!({}));
    assert_eq!(world.runs(), 0);
}

#[tokio::test]
async fn a_program_that_is_not_there_is_an_error_that_names_it() {
    let world = World::new().await;
    let mut command = command(world.dir.path());
    command.program = vec!["/not/there".into()];
    let session = Session::run(world.guard(), command);
    let error = session.outcome().await.unwrap_err().to_string();
    assert!(error.contains("/not/there"), "{error}");
}
