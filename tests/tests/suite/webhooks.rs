//! Endpoints over the control API: who may do what with them, and what is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};
use stage0_tests::{Api, Receiver, Stack, account_scopes};

const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

fn fields(answer: &Value) -> Vec<&str> {
    let mut fields: Vec<_> = answer.as_object().unwrap().keys().map(String::as_str).collect();
    fields.sort_unstable();
    fields
}

#[tokio::test]
async fn an_endpoint_is_made_shown_changed_and_deleted() {
    let stack = Stack::build().dev().await;
    let body = json!({
        "url": "https://hooks.example.com/in?x=1", "verdicts": ["DENY", "DEFER"], "environments": ["production"],
        "description": "ours", "rate_limit": 50
    });
    let mut made = stack.api.post("/v1/webhooks", &body).await.expect(201);
    let shown = [
        "account",
        "created_at",
        "description",
        "disabled_reason",
        "enabled",
        "environments",
        "id",
        "rate_limit",
        "url",
        "verdicts",
    ];
    let mut created = shown.to_vec();
    created.push("secret");
    created.sort_unstable();
    assert_eq!(fields(&made), created);
    for (name, value) in body.as_object().unwrap() {
        assert_eq!(&made[name], value, "{name}");
    }
    assert_eq!(
        (&made["account"], &made["enabled"], &made["disabled_reason"]),
        (&json!(stack.account), &json!(true), &json!(null))
    );
    let secret = made.as_object_mut().unwrap().remove("secret").unwrap();
    assert_eq!(secret.as_str().unwrap().strip_prefix("whsec_").unwrap().len(), 44, "base64 of 32 bytes");

    let path = format!("/v1/webhooks/{}", made["id"].as_str().unwrap());
    assert_eq!(stack.api.get(&path).await.expect(200), made);
    assert_eq!(stack.api.get("/v1/webhooks").await.expect(200), json!({"items": [made], "next_cursor": null}));
    let by_operator = stack.operator.get(&format!("/v1/webhooks?account={}", stack.account)).await.expect(200);
    assert_eq!(by_operator["items"], json!([made]));

    let changed = stack.api.patch(&path, &json!({"description": "theirs", "enabled": false})).await.expect(200);
    assert_eq!((&changed["description"], &changed["enabled"]), (&json!("theirs"), &json!(false)));
    assert_eq!((&changed["verdicts"], &changed["rate_limit"]), (&json!(["DENY", "DEFER"]), &json!(50)));
    let changed = stack.api.patch(&path, &json!({"verdicts": null, "rate_limit": null})).await.expect(200);
    assert_eq!((&changed["verdicts"], &changed["rate_limit"]), (&json!(null), &json!(null)));
    assert_eq!(changed["environments"], json!(["production"]));
    let changed = stack.api.patch(&path, &json!({"url": "https://hooks.example.org/"})).await.expect(200);
    assert_eq!(changed["url"], "https://hooks.example.org/");
    let enabled = stack.api.post(&format!("{path}/enable"), &json!({})).await.expect(200);
    assert_eq!(enabled["enabled"], true);

    assert_eq!(stack.api.delete(&path).await.status, 204);
    stack.api.get(&path).await.assert_error(404, "not_found");
    assert_eq!(stack.api.delete(&path).await.status, 204, "twice is once");
    assert_eq!(stack.api.get("/v1/webhooks").await.expect(200)["items"], json!([]));
}

#[tokio::test]
async fn bodies_and_queries_of_webhook_calls_are_validated_field_by_field() {
    let stack = Stack::build().dev().await;
    let refuse = async |body: Value, named: &[&str]| {
        let answer = stack.api.post("/v1/webhooks", &body).await;
        answer.assert_error(422, "validation_failed");
        let paths: Vec<_> =
            answer.body["errors"].as_array().unwrap().iter().map(|e| e["path"].as_str().unwrap()).collect();
        assert_eq!(paths, named, "{body}: {}", answer.text);
    };
    let url = "https://h.example";
    for bad in [
        "",
        "h.example",
        "ftp://h.example/",
        "http://h.example/",
        "http://127.0.0.1:8080/",
        "https://user:pass@h.example/",
        "https://h.example/#part",
        "https://h .example/",
        "https://",
        "javascript:alert(1)",
        "file:///etc/passwd",
    ] {
        refuse(json!({"url": bad}), &["url"]).await;
    }
    refuse(json!({"url": format!("https://h.example/{}", "x".repeat(2_000))}), &["url"]).await;
    refuse(json!({}), &["url"]).await;
    refuse(json!({"url": 7}), &["url"]).await;
    refuse(json!({"url": url, "verdicts": ["ALLOW", "MAYBE"]}), &["verdicts[1]"]).await;
    refuse(json!({"url": url, "verdicts": []}), &["verdicts"]).await;
    refuse(json!({"url": url, "verdicts": "DENY"}), &["verdicts"]).await;
    refuse(json!({"url": url, "environments": [7]}), &["environments[0]"]).await;
    refuse(json!({"url": url, "environments": [" "]}), &["environments[0]"]).await;
    refuse(json!({"url": url, "description": "x".repeat(501)}), &["description"]).await;
    refuse(json!({"url": url, "rate_limit": 0}), &["rate_limit"]).await;
    refuse(json!({"url": url, "rate_limit": 10_001}), &["rate_limit"]).await;
    refuse(json!({"url": url, "secret": "whsec_mine"}), &["secret"]).await;
    refuse(json!({"url": url, "enabled": false}), &["enabled"]).await;

    let (id, _) = stack.api.webhook(url).await;
    let path = format!("/v1/webhooks/{id}");
    for body in [
        json!({"url": "http://h.example/"}),
        json!({"enabled": "yes"}),
        json!({"secret": "x"}),
        json!({"account": "acc_1"}),
        json!({"rate_limit": -1}),
    ] {
        stack.api.patch(&path, &body).await.assert_error(422, "validation_failed");
    }
    for body in [
        json!({}),
        json!({"from": "2026-01-01T00:00:00Z"}),
        json!({"from": "soon", "to": "2026-01-01T00:00:00Z"}),
        json!({"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"}),
        json!({"from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z", "x": 1}),
    ] {
        stack.api.post(&format!("{path}/replay"), &body).await.assert_error(422, "validation_failed");
    }
    for (action, body) in [
        ("rotate-secret", json!({"overlap_seconds": -1})),
        ("rotate-secret", json!({"overlap_seconds": 40_000_000})),
        ("rotate-secret", json!({"secret": "mine"})),
        ("enable", json!({"x": 1})),
        ("test", json!({"x": 1})),
    ] {
        stack.api.post(&format!("{path}/{action}"), &body).await.assert_error(422, "validation_failed");
    }
    for path in ["/v1/webhooks?limit=0".to_owned(), "/v1/webhooks?x=1".to_owned(), format!("{path}/deliveries?limit=1")]
    {
        stack.api.get(&path).await.assert_error(422, "validation_failed");
    }
}

#[tokio::test]
async fn an_endpoint_is_visible_only_to_its_own_account_with_the_scope() {
    let stack = Stack::build().dev().await;
    let (id, _) = stack.api.webhook("https://h.example/").await;
    let (_, key, _) = stack.operator.account("theirs", None, &account_scopes()).await;
    let theirs = stack.api.with_key(&key);
    let (_, key, _) = stack.operator.account("weak", None, &["check", "decisions:read"]).await;
    let weak = stack.api.with_key(&key);
    let times = json!({"from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z"});
    let all = |id: &str| {
        let path = format!("/v1/webhooks/{id}");
        vec![
            (Method::GET, path.clone(), json!(null)),
            (Method::PATCH, path.clone(), json!({"enabled": false})),
            (Method::POST, format!("{path}/rotate-secret"), json!({})),
            (Method::POST, format!("{path}/enable"), json!({})),
            (Method::POST, format!("{path}/test"), json!({})),
            (Method::POST, format!("{path}/replay"), times.clone()),
            (Method::GET, format!("{path}/deliveries"), json!(null)),
            (Method::DELETE, path, json!(null)),
        ]
    };
    let send = async |api: &Api, (method, path, body): (Method, String, Value)| {
        let sent = [("content-type", "application/json")];
        let body = (!body.is_null()).then(|| body.to_string().into_bytes());
        api.send(method, &path, if body.is_some() { &sent } else { &[] }, body).await
    };
    for unknown in [id.as_str(), "we_0000", "%2e%2e", "x"] {
        for call in all(unknown) {
            send(&theirs, call).await.assert_error(404, "not_found");
        }
    }
    for call in all(&id) {
        let answer = send(&weak, call.clone()).await;
        answer.assert_error(403, "scope_missing");
        assert!(answer.body["message"].as_str().unwrap().contains("`webhooks:manage`"), "{}", answer.text);
        send(&stack.api.without_key(), call).await.assert_error(401, "unauthorized");
    }
    weak.post("/v1/webhooks", &json!({"url": "https://h.example/"})).await.assert_error(403, "scope_missing");
    weak.get("/v1/webhooks").await.assert_error(403, "scope_missing");
    let foreign = format!("/v1/webhooks?account={}", stack.account);
    theirs.get(&foreign).await.assert_error(404, "not_found");
    let body = json!({"url": "https://h.example/", "account": stack.account});
    theirs.post("/v1/webhooks", &body).await.assert_error(404, "not_found");
    let found = stack.api.get(&format!("/v1/webhooks/{id}")).await.expect(200);
    assert_eq!(found["enabled"], true, "nobody changed it");
}

#[tokio::test]
async fn an_account_has_a_hundred_endpoints_and_no_more() {
    let stack = Stack::build().dev().await;
    let url = |n: usize| json!({"url": format!("https://h.example/{n}")});
    let mut last = String::new();
    for n in 0..100 {
        (last, _) = stack.api.webhook_with(&url(n)).await;
    }
    stack.api.post("/v1/webhooks", &url(100)).await.assert_error(409, "conflict");
    assert_eq!(stack.api.delete(&format!("/v1/webhooks/{last}")).await.status, 204);
    stack.api.post("/v1/webhooks", &url(100)).await.expect(201);
    let (mut seen, mut cursor) = (0, String::new());
    loop {
        let page = stack.api.get(&format!("/v1/webhooks?limit=30{cursor}")).await.expect(200);
        seen += page["items"].as_array().unwrap().len();
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, 100);
}

#[tokio::test]
async fn a_webhook_test_reports_its_outcome() {
    let stack = Stack::build().private_webhooks().dev().await;
    let receiver = Receiver::plain().await;
    let (id, secret) = stack.api.webhook(&receiver.url("/in")).await;
    let path = format!("/v1/webhooks/{id}/test");
    let tested = stack.api.post(&path, &json!({})).await.expect(200);
    assert_eq!((&tested["delivered"], &tested["status"], &tested["error"]), (&json!(true), &json!(200), &json!(null)));
    let came = receiver.seen("/in");
    assert_eq!((came.len(), came[0].kind().as_str()), (1, "webhook.test"));
    assert!(came[0].is_signed_by(&secret) && came[0].headers["content-type"] == "application/json");
    receiver.always("/in", stage0_tests::Reply::status(500));
    let tested = stack.api.send(Method::POST, &path, &[], None).await.expect(200);
    assert_eq!((&tested["delivered"], &tested["status"]), (&json!(false), &json!(500)));
    assert_eq!(tested["error"], "the endpoint answered 500");
    drop(receiver);
    let (nobody, _) = stack.api.webhook("http://127.0.0.1:9/").await;
    let tested = stack.api.post(&format!("/v1/webhooks/{nobody}/test"), &json!({})).await.expect(200);
    assert_eq!((&tested["delivered"], &tested["status"]), (&json!(false), &json!(null)));
    assert!(tested["error"].as_str().unwrap().starts_with("no connection"), "{tested}");
    assert!(stack.api.deliveries(&id).await.is_empty(), "a test is no event");
}

/// The last delivery of a fresh decision, once it looks as it should.
async fn fresh(stack: &Stack, receiver: &Receiver, what: &str, looks: impl Fn(&stage0_tests::Delivery) -> bool) {
    stage0_backplane::testing::wait_for(what, WAIT_TIMEOUT, async || {
        let id = stack.api.decide(&Api::harmless()).await;
        let find = |came: &[stage0_tests::Delivery]| came.iter().find(|d| d.id() == format!("dec_{id}")).cloned();
        looks(&receiver.wait_for("the decision", "/in", WAIT_TIMEOUT, find).await)
    })
    .await;
}

#[tokio::test]
async fn while_a_secret_is_rotated_both_sign_and_then_only_the_new_one() {
    let stack = Stack::build().private_webhooks().dev().await;
    let receiver = Receiver::plain().await;
    let (id, first) = stack.api.webhook(&receiver.url("/in")).await;
    fresh(&stack, &receiver, "the first secret", |d| d.signatures() == 1 && d.is_signed_by(&first)).await;
    let path = format!("/v1/webhooks/{id}/rotate-secret");
    let rotated = stack.api.send(Method::POST, &path, &[], None).await.expect(201);
    let second = rotated["secret"].as_str().unwrap().to_owned();
    assert_eq!(rotated["id"], id);
    assert_ne!(first, second);
    let both = |d: &stage0_tests::Delivery| d.signatures() == 2 && d.is_signed_by(&first) && d.is_signed_by(&second);
    fresh(&stack, &receiver, "both secrets", both).await;
    let rotated = stack.api.post(&path, &json!({"overlap_seconds": 0})).await.expect(201);
    let third = rotated["secret"].as_str().unwrap().to_owned();
    fresh(&stack, &receiver, "the third secret alone", |d| d.signatures() == 1 && d.is_signed_by(&third)).await;
    assert!(receiver.seen("/in").iter().all(|d| [&first, &second, &third].iter().any(|secret| d.is_signed_by(secret))));
}

#[tokio::test]
async fn webhook_filters_select_decisions_by_environment_and_verdict() {
    let stack = Stack::build().private_webhooks().dev().await;
    let receiver = Receiver::plain().await;
    for (path, filters) in [
        ("/all", json!({})),
        ("/denied", json!({"verdicts": ["DENY"]})),
        ("/unclear", json!({"verdicts": ["DEFER", "ALLOW"], "environments": null})),
        ("/production", json!({"environments": ["Production", "staging"]})),
        ("/alias", json!({"environments": ["PRD"]})),
        ("/no-alias", json!({"environments": ["preprod", "prod-eu", "dev"]})),
        ("/nowhere", json!({"environments": ["nowhere"]})),
    ] {
        let mut body = filters.clone();
        body["url"] = receiver.url(path).into();
        stack.api.webhook_with(&body).await;
    }
    let allowed = stack.api.decide(&Api::harmless()).await;
    let denied = stack.api.decide(&Api::forbidden()).await;
    let deferred = stack.api.decide(&Api::unclear()).await;
    // A mark goes to everybody: behind it nothing more of these can come.
    for (path, mut expected) in [
        ("/all", vec![&allowed, &denied, &deferred]),
        ("/denied", vec![&denied]),
        ("/unclear", vec![&allowed, &deferred]),
        ("/production", vec![&denied]),
        ("/alias", vec![&denied]),
        ("/no-alias", vec![]),
        ("/nowhere", vec![]),
    ] {
        let find = |came: &[stage0_tests::Delivery]| {
            let ids: Vec<_> = came.iter().map(|d| d.id().to_owned()).collect();
            let marked = ids.iter().any(|id| id.starts_with("mark_"));
            let mut decisions: Vec<_> =
                ids.iter().filter_map(|id| id.strip_prefix("dec_")).map(str::to_owned).collect();
            decisions.sort();
            expected.sort();
            (marked && decisions.iter().eq(expected.iter().copied())).then_some(())
        };
        receiver.wait_for("what the filters let through, and a mark", path, WAIT_TIMEOUT, find).await;
    }
}

#[tokio::test]
async fn a_replay_sends_what_was_recorded_then_with_new_numbers() {
    let stack = Stack::build().exporters(2).private_webhooks().nats().await;
    let receiver = Receiver::plain().await;
    let (id, secret) = stack.api.webhook(&receiver.url("/in")).await;
    let decide = async |count: usize| {
        let mut ids = Vec::new();
        for _ in 0..count {
            ids.push(format!("dec_{}", stack.api.decide(&Api::harmless()).await));
        }
        ids
    };
    decide(3).await;
    let from = Timestamp::now();
    let inside = decide(4).await;
    let to = Timestamp::now();
    decide(3).await;
    // Delivery is at least once: what comes twice under one number is one event.
    let by_number = |came: &[stage0_tests::Delivery]| -> BTreeMap<u64, String> {
        came.iter().map(|d| (d.sequence(), d.id().to_owned())).collect()
    };
    let decisions = |events: &BTreeMap<u64, String>| events.values().filter(|id| id.starts_with("dec_")).count();
    let has_no_gap = |events: &BTreeMap<u64, String>| events.keys().copied().eq(1..=events.len() as u64);
    receiver
        .wait_for("all ten", "/in", WAIT_TIMEOUT, |came| {
            let events = by_number(came);
            (decisions(&events) == 10 && has_no_gap(&events)).then_some(())
        })
        .await;
    let replay = json!({"from": from.to_string(), "to": to.to_string()});
    stack.api.post(&format!("/v1/webhooks/{id}/replay"), &replay).await.expect(202);
    let came = receiver
        .wait_for("the four once more", "/in", WAIT_TIMEOUT, |came| {
            let events = by_number(came);
            let times = |id: &String| events.values().filter(|other| *other == id).count();
            (inside.iter().all(|id| times(id) == 2) && has_no_gap(&events)).then(|| came.to_vec())
        })
        .await;
    let events = by_number(&came);
    assert!(came.iter().all(|d| events[&d.sequence()] == d.id()), "each has a number of its own");
    assert!(came.iter().all(|d| d.is_signed_by(&secret)));
    assert_eq!(decisions(&events), 14);
}

/// An endpoint has 256 events on their way at most, so the rest of what was read waits for room.
#[tokio::test]
async fn a_replay_that_waits_for_room_at_its_end_sends_the_rest() {
    const DECISIONS: usize = 265;
    let stack = Stack::build().private_webhooks().dev().await;
    let receiver = Receiver::plain().await;
    let (id, _) = stack.api.webhook(&receiver.url("/in")).await;
    let from = Timestamp::now();
    for _ in 0..DECISIONS {
        stack.api.decide(&Api::harmless()).await;
    }
    let replay = json!({"from": from.to_string(), "to": Timestamp::now().to_string()});
    let decisions = |came: &[stage0_tests::Delivery]| {
        came.iter().filter(|d| d.id().starts_with("dec_")).map(|d| d.sequence()).collect::<BTreeSet<_>>().len()
    };
    let find = |count: usize| move |came: &[_]| (decisions(came) == count).then_some(());
    receiver.wait_for("every decision", "/in", WAIT_TIMEOUT, find(DECISIONS)).await;
    stack.api.post(&format!("/v1/webhooks/{id}/replay"), &replay).await.expect(202);
    receiver.wait_for("every decision once more", "/in", WAIT_TIMEOUT, find(2 * DECISIONS)).await;
}

#[tokio::test]
async fn an_event_holds_the_decision_and_none_of_the_request() {
    let stack = Stack::build().private_webhooks().dev().await;
    let receiver = Receiver::plain().await;
    stack.api.webhook(&receiver.url("/in")).await;
    let body = json!({
        "goal": "unmistakable words", "tools": ["web_search"], "debug_store_input": true,
        "context": {"run_id": "run-7", "note": "unmistakable note"}
    });
    let id = stack.api.decide(&body).await;
    let find = |came: &[stage0_tests::Delivery]| came.iter().find(|d| d.id() == format!("dec_{id}")).cloned();
    let delivery = receiver.wait_for("the decision", "/in", WAIT_TIMEOUT, find).await;
    let event = delivery.event();
    assert_eq!(fields(&event), ["data", "timestamp", "type"]);
    let (record, data) = (stack.api.get(&format!("/v1/decisions/{id}")).await.expect(200), &event["data"]);
    assert_eq!(event["timestamp"], record["recorded_at"]);
    for same in
        ["request_id", "verdict", "issues", "account", "key_id", "run_id", "policy_version", "task_hash", "chain"]
    {
        assert_eq!(data[same], record[same], "{same}");
    }
    for never in ["input", "client", "durations", "meta", "goal", "context"] {
        assert!(data.get(never).is_none(), "{never}");
    }
    // The names of the tools tell what was attempted.
    assert_eq!(data["tools"], json!(["web_search"]));
    let text = String::from_utf8(delivery.body.clone()).unwrap();
    assert!(!text.contains("unmistakable") && !text.contains("127.0.0.1"), "{text}");
    // With the hash a receiver follows the chain of what it downloads.
    let export = stack.api.get("/v1/decisions/export").await.text;
    let line = export.lines().find(|line| line.contains(&id)).unwrap();
    assert_eq!(data["hash"], stage0_contract::LineHash::of(line.as_bytes()).to_string());
}
