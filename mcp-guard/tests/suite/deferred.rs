//! Calls that wait for an approval, in the form that each client can use.

use serde_json::{Value, json};

use crate::stage0::{answer, waits_for_approval, waits_for_two, without_approval};
use crate::world::{Session, World, is_refused};

const URL: &str = "https://s0.example/v1/approvals/apr_0w3ge1r7";

fn meta(capabilities: &Value) -> Value {
    json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": capabilities})
}

fn opens_pages() -> Value {
    meta(&json!({"elicitation": {"url": {}}}))
}

/// A client of 2026-07-28, whose first call waits for an approval.
async fn waiting(world: &World) -> (Session, Value) {
    let mut session = world.session();
    session.ask(-1, "tools/list", json!({"_meta": opens_pages()})).await;
    world.stage0.says(|_, _| waits_for_approval(URL));
    let params = json!({"name": "write_file", "arguments": {"path": "/tmp/x"}, "_meta": opens_pages()});
    let asked = session.ask(1, "tools/call", params).await;
    (session, asked)
}

#[tokio::test]
async fn an_older_client_reads_which_approval_it_waits_for_and_calls_again_unchanged() {
    let world = World::new().await;
    let mut session = world.listed().await;
    world.stage0.says(|_, _| waits_for_approval(URL));
    let deferred = session.call(1, "write_file", json!({"path": "/tmp/x"})).await;
    assert!(is_refused(&deferred), "{deferred}");
    let text = deferred["result"]["content"][0]["text"].as_str().unwrap();
    assert!(text.contains("`stage0 approvals approve apr_0w3ge1r7 --key-file KEY`"), "{text}");
    assert_eq!(text.matches("unchanged").count(), 1, "{text}");
    assert!(!text.contains(URL) && !text.contains("Who approves it?"), "neither is of use to a model: {text}");
    assert_eq!(deferred["result"]["structuredContent"]["approval_id"], "apr_0w3ge1r7");
    assert_eq!(world.runs(), 0);
    world.stage0.says(|_, _| answer("ALLOW"));
    session.call(2, "write_file", json!({"path": "/tmp/x"})).await;
    assert_eq!(world.runs(), 1);
    let asked = world.stage0.asked("/check");
    assert_eq!(asked[0], asked[1], "the approval is of the same question");
}

#[tokio::test]
async fn a_client_that_opens_pages_is_not_asked_to_unless_the_guard_was_started_for_it() {
    let world = World::new().await;
    let (_session, deferred) = waiting(&world).await;
    assert!(is_refused(&deferred), "{deferred}");
    assert!(deferred["result"].get("inputRequests").is_none(), "{deferred}");
}

/// What the model reads of a DEFER.
async fn told(says: impl Fn() -> stage0_client::selftest::Reply + Send + 'static) -> (String, Value) {
    let world = World::new().await;
    let mut session = world.listed().await;
    world.stage0.says(move |_, _| says());
    let deferred = session.call(1, "write_file", json!({"path": "/tmp/x"})).await;
    assert!(is_refused(&deferred) && world.runs() == 0, "{deferred}");
    let result = &deferred["result"];
    (result["content"][0]["text"].as_str().unwrap().to_owned(), result["structuredContent"].clone())
}

#[tokio::test]
async fn a_call_that_opens_no_approval_says_why() {
    let (text, decision) = told(|| without_approval("20 approvals of this workload are pending already")).await;
    assert!(text.contains("No approval is open for this call: 20 approvals of this workload"), "{text}");
    assert!(text.contains("stage0 approvals cancel") && !text.contains("Who approves it?"), "{text}");
    assert_eq!(decision["approval_note"], "20 approvals of this workload are pending already");
    assert!(decision.get("approval_id").is_none());
    let (text, decision) = told(|| answer("DEFER")).await;
    assert!(text.contains("Who approves it?") && !text.contains("stage0 approvals"), "{text}");
    assert!(decision.get("approval_note").is_none(), "{decision}");
}

#[tokio::test]
async fn an_approval_that_too_few_people_can_give_says_so() {
    let (text, _) = told(|| waits_for_two(URL)).await;
    assert!(text.contains("2 people approve (of finance)"), "{text}");
    assert!(text.contains("Only 1 of the 2 people") && text.contains("stage0 members invite"), "{text}");
    let (text, _) = told(|| waits_for_approval(URL)).await;
    assert!(text.contains("A person approves it") && !text.contains("Only "), "{text}");
}

#[tokio::test]
async fn a_client_that_opens_pages_is_asked_to_and_its_second_call_is_decided_again() {
    let world = World::eliciting().await;
    let (mut session, asked) = waiting(&world).await;
    let result = &asked["result"];
    assert_eq!(result["resultType"], "input_required", "{asked}");
    assert!(result.get("content").is_none() && result.get("isError").is_none(), "{asked}");
    let question = &result["inputRequests"]["stage0_approval"];
    assert_eq!((&question["method"], &question["params"]["url"]), (&json!("elicitation/create"), &json!(URL)));
    let again = |id: i64| {
        let responses = json!({"stage0_approval": {"action": "accept"}});
        json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": "write_file",
            "arguments": {"path": "/tmp/x"}, "_meta": opens_pages(), "inputResponses": responses,
            "requestState": result["requestState"]}})
        .to_string()
    };
    world.stage0.says(|_, _| answer("ALLOW"));
    session.send(again(2)).await;
    let done = session.receive().await;
    assert_eq!((&done["id"], world.runs()), (&json!(2), 1), "{done}");
    let got = world.read("got");
    let call = got.lines().last().unwrap();
    assert!(call.contains("/tmp/x") && !call.contains("requestState") && !call.contains("inputResponses"), "{call}");
    session.send(again(3)).await;
    assert_eq!(session.receive().await["error"]["code"], -32602, "a state comes back once");
    assert_eq!(world.runs(), 1);
}

#[tokio::test]
async fn accepting_to_open_the_page_is_no_approval_and_there_is_no_second_question() {
    let world = World::eliciting().await;
    let (mut session, asked) = waiting(&world).await;
    let params = json!({"name": "write_file", "arguments": {"path": "/tmp/x"}, "_meta": opens_pages(),
        "inputResponses": {"stage0_approval": {"action": "accept"}}, "requestState": asked["result"]["requestState"]});
    let still = session.ask(2, "tools/call", params).await;
    assert!(is_refused(&still), "a client that does not wait would ask on and on: {still}");
    assert!(still.to_string().contains("stage0 approvals approve apr_0w3ge1r7"), "{still}");
    assert!(still["result"].get("requestState").is_none() && asked["result"]["requestState"].is_string());
    assert_eq!(world.stage0.asked("/check").len(), 2);
    assert_eq!(world.runs(), 0);
}

#[tokio::test]
async fn a_state_belongs_to_one_call_and_a_person_may_decline() {
    let world = World::eliciting().await;
    let (mut session, asked) = waiting(&world).await;
    world.stage0.says(|_, _| answer("ALLOW"));
    let state = &asked["result"]["requestState"];
    let call = |tool: &str, arguments: Value, action: &str, state: &Value| {
        json!({"name": tool, "arguments": arguments, "_meta": opens_pages(),
            "inputResponses": {"stage0_approval": {"action": action}}, "requestState": state})
    };
    for (id, params) in [
        (2, call("write_file", json!({"path": "/etc/passwd"}), "accept", state)),
        (3, call("read_file", json!({"path": "/tmp/x"}), "accept", state)),
        (4, call("write_file", json!({"path": "/tmp/x"}), "accept", &json!("stage0-guard.1.AAAA"))),
        (5, call("write_file", json!({"path": "/tmp/x"}), "accept", &json!(7))),
    ] {
        assert_eq!(session.ask(id, "tools/call", params).await["error"]["code"], -32602, "{id}");
    }
    let declined = session.ask(6, "tools/call", call("write_file", json!({"path": "/tmp/x"}), "decline", state)).await;
    assert!(is_refused(&declined), "{declined}");
    assert_eq!(world.runs(), 0);
}

#[tokio::test]
async fn a_client_that_opens_no_pages_gets_an_error_and_no_question() {
    let world = World::eliciting().await;
    let mut session = world.session();
    session.ask(-1, "tools/list", json!({"_meta": opens_pages()})).await;
    world.stage0.says(|_, _| waits_for_approval(URL));
    for (id, capabilities) in
        [(1, json!({})), (2, json!({"elicitation": {}})), (3, json!({"elicitation": {"form": {}}}))]
    {
        let params = json!({"name": "write_file", "arguments": {}, "_meta": meta(&capabilities)});
        let deferred = session.ask(id, "tools/call", params).await;
        assert!(is_refused(&deferred), "{deferred}");
        assert_eq!(deferred["result"]["resultType"], "complete");
    }
    world.stage0.says(|_, _| waits_for_approval("/v1/approvals/apr_0w3ge1r7"));
    let params = json!({"name": "write_file", "arguments": {}, "_meta": opens_pages()});
    assert!(is_refused(&session.ask(4, "tools/call", params).await), "there is no page to open");
    assert_eq!(world.runs(), 0);
}

#[tokio::test]
async fn the_servers_own_questions_pass_and_their_answers_are_part_of_what_is_decided() {
    let world = World::new().await;
    let mut session = world.session();
    session.ask(-1, "tools/list", json!({"_meta": opens_pages()})).await;
    let params = |answer: &str| {
        json!({"name": "write_file", "arguments": {}, "_meta": opens_pages(),
            "inputResponses": {"which": {"action": "accept", "content": {"name": answer}}}, "requestState": "servers"})
    };
    session.ask(1, "tools/call", params("a")).await;
    session.ask(2, "tools/call", params("hunter2")).await;
    assert_eq!(world.runs(), 2);
    assert!(world.read("got").contains("hunter2"), "the server gets its answer");
    let asked = world.stage0.asked("/check");
    let digest = |index: usize| asked[index]["context"]["input_responses_sha256"].clone();
    assert!(digest(0).is_string() && digest(0) != digest(1));
    assert!(!asked[1].to_string().contains("hunter2"));
}

#[tokio::test]
async fn a_version_that_is_not_spoken_is_refused() {
    let world = World::new().await;
    let mut session = world.session();
    for (id, version) in [(1, "2027-01-01"), (2, "2025-06-18"), (3, "")] {
        let meta = json!({"io.modelcontextprotocol/protocolVersion": version});
        let refused = session.ask(id, "tools/list", json!({"_meta": meta})).await;
        assert_eq!(refused["error"]["code"], -32022, "{version}: {refused}");
        assert_eq!(refused["error"]["data"]["supported"], json!(["2026-07-28"]));
    }
    world.write("version", "2027-01-01");
    let begun = session.ask(4, "initialize", json!({"protocolVersion": "2027-01-01"})).await;
    assert_eq!(begun["error"]["code"], -32602, "the server chose it: {begun}");
}
