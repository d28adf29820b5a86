//! Calls of tools over standard streams: what passes, and everything that does not.

use serde_json::{Value, json};
use stage0_client::selftest::Reply;

use crate::stage0::answer;
use crate::world::{World, is_refused, wait_for};

#[tokio::test]
async fn an_allowed_call_reaches_the_server_byte_for_byte_and_its_result_the_client() {
    let world = World::new().await;
    let mut session = world.listed().await;
    let call = concat!(
        r#"{ "method":"tools/call","jsonrpc":"2.0", "params":{"arguments":{"n":1.50e1,"path":"\u002ftmp/x", "z":-0},"#,
        r#""name":"write_file"},"id":"c-\u0031"}"#
    );
    session.send(call).await;
    let result = session.receive_raw().await;
    assert_eq!(
        result,
        r#"{"jsonrpc":"2.0","id":"c-\u0031","result":{"content":[{"type":"text","text":"done \u0041"}]}}"#
    );
    assert_eq!(world.read("got").lines().last(), Some(call));
    assert_eq!(world.runs(), 1);
    assert_eq!(session.end().await, 7, "the server's exit code");
}

#[tokio::test]
async fn the_question_names_server_tool_digest_and_the_arguments_of_the_table_and_no_others() {
    let world = World::new().await;
    let mut session = world.listed().await;
    session.call(1, "write_file", json!({"path": "/tmp/x", "content": "hunter2"})).await;
    let asked = world.stage0.asked("/check").pop().unwrap();
    assert_eq!(asked["tools"], json!(["mcp__files__write_file"]));
    assert_eq!(asked["side_effects"], json!(["filesystem_modification"]));
    assert_eq!(asked["context"]["arguments"], json!({"path": "/tmp/x"}));
    assert_eq!(asked["context"]["target_resources"], json!(["/tmp/x"]));
    assert_eq!(asked["context"]["arguments_sha256"].as_str().unwrap().len(), 64);
    assert!(!asked.to_string().contains("hunter2"), "{asked}");
}

#[tokio::test]
async fn a_denied_call_is_an_error_that_says_why_and_the_server_does_not_see_it() {
    let world = World::new().await;
    let mut session = world.listed().await;
    world.stage0.says(|_, _| answer("DENY"));
    let denied = session.call(1, "write_file", json!({})).await;
    assert!(is_refused(&denied), "{denied}");
    let text = denied["result"]["content"][0]["text"].as_str().unwrap();
    assert!(text.contains("TEST_REASON") && text.contains("request_approval"), "{text}");
    let decision = &denied["result"]["structuredContent"];
    assert_eq!((&decision["verdict"], &decision["reasons"]), (&json!("DENY"), &json!(["TEST_REASON"])));
    assert!(decision["request_id"].is_string());
    let with_schema = session.call(2, "read_file", json!({})).await;
    assert!(is_refused(&with_schema) && with_schema["result"].get("structuredContent").is_none(), "{with_schema}");
    assert_eq!(with_schema["result"]["_meta"]["stage0/decision"]["verdict"], "DENY");
    assert_eq!(world.runs(), 0);
    assert!(!world.read("got").contains("tools/call"));
}

#[tokio::test]
async fn a_message_that_two_parsers_could_read_differently_reaches_no_server() {
    let world = World::new().await;
    let mut session = world.listed().await;
    for line in [
        r#"[{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"write_file"}}]"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call","params":{"name":"write_file"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","METHOD":"tools/call","params":{"name":"write_file"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read_file","name":"write_file"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read_file","Name":"write_file"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"write_file","arguments":{"p":1,"p":2}}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"write_file","arguments":{"p":1,"P":2}}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"write_file","arguments":{"PATH":"/etc"}}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"write_file","argumentſ":{}}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"write_file"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"write_file"}} {}"#,
        r#"{"jsonrpc":"2.0","id":null,"method":"tools/call","params":{"name":"write_file"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":["write_file"]}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"write_file","arguments":"x"}}"#,
        concat!(
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":"#,
            "\r",
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"write_file"}}"#,
            "\r}}"
        ),
        "not JSON",
    ] {
        session.send(line).await;
        let answer = session.receive().await;
        assert!(answer["error"]["code"].is_i64(), "{line}: {answer}");
    }
    session.send(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xff\"}").await;
    assert_eq!(session.receive().await["error"]["code"], -32700);
    assert_eq!(session.ask(2, "ping", json!({})).await["result"], json!({}), "the session goes on");
    assert_eq!((world.runs(), world.stage0.asked("/check").len()), (0, 0));
    assert!(!world.read("got").contains("write_file"), "{}", world.read("got"));
}

#[tokio::test]
async fn a_notification_that_is_a_call_reaches_no_server() {
    let world = World::new().await;
    let mut session = world.listed().await;
    session.send(r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"write_file"}}"#).await;
    let hidden = r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":CALL}}"#;
    let call = "\r{\"jsonrpc\":\"2.0\",\"id\":9,\"method\":\"tools/call\",\"params\":{\"name\":\"write_file\"}}\r";
    session.send(hidden.replace("CALL", call)).await;
    assert_eq!(session.receive().await["error"]["code"], -32600);
    session.send(r#"{"jsonrpc":"2.0","method":"notifications/other"}"#).await;
    session.send(r#"{"jsonrpc":"2.0","method":"notifications/roots/list_changed"}"#).await;
    session.ask(1, "ping", json!({})).await;
    let got = world.read("got");
    assert!(got.contains("roots/list_changed") && !got.contains("notifications/other"), "{got}");
    assert_eq!(world.runs(), 0);
}

#[tokio::test]
async fn arguments_of_a_megabyte_are_refused_and_a_little_less_passes() {
    let world = World::new().await;
    let mut session = world.listed().await;
    let call = |id: i64, length: usize| {
        json!({"jsonrpc": "2.0", "id": id, "method": "tools/call",
            "params": {"name": "write_file", "arguments": {"content": "a".repeat(length)}}})
        .to_string()
    };
    session.send(call(1, 1_000_000)).await;
    assert_eq!(session.receive().await["error"]["code"], -32600);
    assert_eq!(world.runs(), 0);
    session.send(call(2, 200_000)).await;
    let answer = session.receive().await;
    assert_eq!((&answer["id"], world.runs()), (&json!(2), 1), "{answer}");
}

#[tokio::test]
async fn unknown_methods_and_unknown_tools_are_refused() {
    let world = World::new().await;
    let mut session = world.session();
    let unlisted = session.call(1, "write_file", json!({})).await;
    assert_eq!(unlisted["error"]["code"], -32602, "it was not listed: {unlisted}");
    session.begin("2025-06-18").await;
    for (id, method, code) in [(2, "tools/execute", -32601), (3, "ask/me", -32601), (4, "Tools/Call", -32601)] {
        let answer = session.ask(id, method, json!({"name": "write_file"})).await;
        assert_eq!(answer["error"]["code"], code, "{method}: {answer}");
    }
    assert_eq!(session.call(5, "delete_all", json!({})).await["error"]["code"], -32602);
    assert_eq!(world.runs(), 0);
    session.call(6, "write_file", json!({})).await;
    assert_eq!(world.runs(), 1, "its listed neighbour runs");
}

#[tokio::test]
async fn resources_are_decided_as_reads() {
    let world = World::new().await;
    let mut session = world.listed().await;
    let read = session.ask(1, "resources/read", json!({"uri": "file:///a"})).await;
    assert!(read["result"]["contents"].is_array(), "{read}");
    let asked = world.stage0.asked("/check").pop().unwrap();
    assert_eq!(
        (&asked["side_effects"], &asked["context"]["target_resources"]),
        (&json!(["read"]), &json!(["file:///a"]))
    );
    world.stage0.says(|_, _| answer("DENY"));
    let denied = session.ask(2, "resources/read", json!({"uri": "file:///a"})).await;
    assert_eq!((&denied["error"]["code"], &denied["error"]["data"]["verdict"]), (&json!(-32001), &json!("DENY")));
    assert_eq!(session.ask(3, "resources/read", json!({})).await["error"]["code"], -32602);
    assert_eq!(world.runs(), 1);
}

#[tokio::test]
async fn the_outcome_of_a_call_is_reported() {
    let world = World::new().await;
    world.stage0.says(|path, _| match path {
        "/check" => answer("ALLOW"),
        _ => Reply::answer(404, &[], "{}"),
    });
    let mut session = world.listed().await;
    let statuses = |count: usize| {
        let stage0 = world.stage0.clone();
        async move {
            wait_for("the outcome", || stage0.outcomes().len() >= count).await;
            stage0.outcomes().iter().map(|outcome| outcome["status"].clone()).collect::<Vec<Value>>()
        }
    };
    session.call(1, "write_file", json!({})).await;
    assert_eq!(statuses(1).await, ["succeeded"]);
    world.write("result", r#"{"content":[],"isError":true}"#);
    session.call(2, "write_file", json!({})).await;
    assert_eq!(statuses(2).await[1], "failed");
    world.write("silent", "");
    session.send(r#"{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"write_file"}}"#).await;
    wait_for("the third run", || world.runs() == 3).await;
    session.send(r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":3}}"#).await;
    assert_eq!(statuses(3).await[2], "unknown", "it was cancelled while it ran");
    world.write("die", "");
    session.send(r#"{"jsonrpc":"2.0","id":4,"method":"tools/call","params":{"name":"write_file"}}"#).await;
    let lost = session.receive().await;
    assert!(lost["error"]["code"].is_i64(), "{lost}");
    assert_eq!(statuses(4).await[3], "unknown", "the server died while it ran");
}

#[tokio::test]
async fn a_key_that_may_not_report_is_not_asked_to_again() {
    let world = World::new().await;
    world.stage0.says(|path, _| match path {
        "/check" => answer("ALLOW"),
        "/v1/probes" => Reply::answer(404, &[], "{}"),
        _ => Reply::answer(403, &[], "{}"),
    });
    let mut session = world.listed().await;
    session.call(1, "write_file", json!({})).await;
    wait_for("the report", || !world.stage0.outcomes().is_empty()).await;
    for id in 2..5 {
        session.call(id, "write_file", json!({})).await;
    }
    session.end().await;
    assert_eq!(world.stage0.outcomes().len(), 1);
    assert_eq!(world.runs(), 4);
}

#[tokio::test]
async fn an_id_that_is_still_open_is_refused() {
    let world = World::new().await;
    let mut session = world.listed().await;
    world.write("silent", "");
    let call = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"write_file"}}"#;
    session.send(call).await;
    wait_for("the first run", || world.runs() == 1).await;
    session.send(call).await;
    assert_eq!(session.receive().await["error"]["code"], -32600);
    assert_eq!(world.runs(), 1);
}
