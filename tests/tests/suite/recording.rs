//! What is answered is recorded, and read by those who may: one decision, lists, downloads, and the proof that none is
//! missing.

use std::collections::BTreeSet;

use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};
use stage0_tests::{Api, Stack, account_scopes};

const JSON: (&str, &str) = ("content-type", "application/json");

fn mixed() -> [(Value, &'static str); 3] {
    [(Api::harmless(), "ALLOW"), (Api::forbidden(), "DENY"), (Api::unclear(), "DEFER")]
}

fn ids(records: &[Value]) -> Vec<String> {
    records.iter().map(|record| record["request_id"].as_str().unwrap().to_owned()).collect()
}

/// As times: as texts they do not sort, since their fractions are of different lengths.
fn at(record: &Value) -> Timestamp {
    record["recorded_at"].as_str().unwrap().parse().unwrap()
}

/// An answer without the words that were compared, which stand in the answer alone.
pub(crate) fn kept(answer: &Value) -> Value {
    let mut kept = answer.clone();
    kept["constraints_ignored"] = json!([]);
    for issue in kept["issues"].as_array_mut().unwrap() {
        let details = issue["details"].as_object_mut().unwrap();
        details.retain(|name, _| !["found", "allowed", "write", "did_you_mean", "run"].contains(&name.as_str()));
    }
    kept
}

/// The one who asks elsewhere finds it.
async fn every_answer_is_found_at_once(stack: &Stack, elsewhere: &Api) {
    for _ in 0..5 {
        for (body, verdict) in mixed() {
            let answer = stack.api.check(&body).await.expect(200);
            assert_eq!(answer["verdict"], verdict);
            let id = answer["request_id"].as_str().unwrap();
            let found = elsewhere.get(&format!("/v1/decisions/{id}")).await;
            assert_eq!(found.header("x-request-id").len(), 36);
            let record = found.expect(200);
            for (name, value) in kept(&answer).as_object().unwrap() {
                assert_eq!(&record[name], value, "{name}");
            }
            assert_eq!(record["type"], "decision.recorded");
            assert_eq!(record["account"], stack.account);
            let key = stack.api.key.as_ref().unwrap();
            assert!(key.contains(record["key_id"].as_str().unwrap()), "{}", record["key_id"]);
            assert_eq!(record["client"]["address"], "127.0.0.1");
            for time in ["evaluation_ms", "total_ms"] {
                assert!(record["durations"][time].as_f64().unwrap() > 0.0, "{time}");
            }
            assert!(record["chain"]["sequence"].as_u64().unwrap() > 0);
            let thirty_days = record["timestamp"].as_i64().unwrap() + 30 * 86_400;
            assert!((thirty_days - record["expires_at"].as_i64().unwrap()).abs() <= 2, "{record}");
        }
    }
    assert_eq!(stack.api.verify().await["records"], 15);
}

#[tokio::test]
async fn every_answer_is_found_at_once_in_one_process() {
    let stack = Stack::build().dev().await;
    every_answer_is_found_at_once(&stack, &stack.api.clone()).await;
}

#[tokio::test]
async fn every_answer_is_found_at_once_from_another_gateway() {
    let stack = Stack::build().gateways(2).nats().await;
    every_answer_is_found_at_once(&stack, &stack.api_at(1)).await;
}

#[tokio::test]
async fn a_decision_is_read_by_its_own_account_alone_and_with_the_scope() {
    let stack = Stack::build().dev().await;
    let id = stack.api.decide(&Api::harmless()).await;
    let (_, theirs, _) = stack.operator.account("theirs", None, &account_scopes()).await;
    let theirs = stack.api.with_key(&theirs);
    theirs.get(&format!("/v1/decisions/{id}")).await.assert_error(404, "not_found");
    assert!(theirs.decisions("").await.is_empty());
    assert_eq!(theirs.get("/v1/decisions/export").await.text, "");
    assert_eq!(theirs.verify().await["records"], 0);
    // The right to delete does not include the right to read, nor the other way round.
    let (_, deleter, _) = stack.operator.account("d", None, &["decisions:delete"]).await;
    let deleter = stack.api.with_key(&deleter);
    for path in ["", "/export", "/verify", &format!("/{id}")] {
        let path = format!("/v1/decisions{path}");
        for refused in [&deleter, &stack.operator] {
            let answer = refused.get(&path).await;
            answer.assert_error(403, "scope_missing");
            assert!(answer.body["message"].as_str().unwrap().contains("`decisions:read`"), "{}", answer.text);
        }
        stack.api.without_key().get(&path).await.assert_error(401, "unauthorized");
    }
    let (_, reader, _) = stack.operator.account("r", None, &["decisions:read", "check"]).await;
    let answer = stack.api.with_key(&reader).delete("/v1/decisions?before=2026-01-01T00:00:00Z").await;
    answer.assert_error(403, "scope_missing");
    assert!(answer.body["message"].as_str().unwrap().contains("`decisions:delete`"));
    stack.operator.delete("/v1/decisions?before=2026-01-01T00:00:00Z").await.assert_error(403, "scope_missing");
    for nothing in ["x", "0000", "00000000-0000-7000-8000-000000000000", "..%2f..", &"9".repeat(3_000)] {
        stack.api.get(&format!("/v1/decisions/{nothing}")).await.assert_error(404, "not_found");
    }
    stack.api.get(&format!("/v1/decisions/{id}")).await.expect(200);
}

#[tokio::test]
async fn no_text_is_kept_unless_it_is_asked_for_and_then_masked() {
    let stack = Stack::build().dev().await;
    let mut body = json!({
        "goal": "unmistakable words password=correcthorse", "success_criteria": ["unmistakable end"], "tools": ["t"],
        "context": {"note": "unmistakable note", "run_id": "run-7", "token": "AKIAIOSFODNN7EXAMPLE"}
    });
    let id = stack.api.decide(&body).await;
    let record = stack.api.get(&format!("/v1/decisions/{id}")).await;
    assert!(!record.text.contains("unmistakable") && record.body.get("input").is_none(), "{}", record.text);
    assert_eq!(record.body["run_id"], "run-7");
    body["debug_store_input"] = json!(true);
    let id = stack.api.decide(&body).await;
    let record = stack.api.get(&format!("/v1/decisions/{id}")).await;
    assert_eq!(record.body["input"]["goal"], "unmistakable words [redacted]", "{}", record.text);
    assert_eq!(record.body["input"]["context"]["note"], "unmistakable note");
    for secret in ["correcthorse", "AKIAIOSFODNN7EXAMPLE"] {
        assert!(!record.text.contains(secret), "{secret} in {}", record.text);
    }
}

#[tokio::test]
async fn the_callers_own_id_and_user_agent_are_kept_and_masked() {
    let stack = Stack::build().dev().await;
    let check = async |id: &str, agent: &str| {
        let headers = [JSON, ("x-request-id", id), ("user-agent", agent)];
        let answer = stack.api.send(Method::POST, "/check", &headers, Some(Api::harmless().to_string().into_bytes()));
        let answer = answer.await.expect(200);
        let record = stack.api.get(&format!("/v1/decisions/{}", answer["request_id"].as_str().unwrap())).await;
        (answer, record)
    };
    let (answer, record) = check("mine-7", "agent/1.0").await;
    assert_eq!(answer["meta"]["client_request_id"], "mine-7");
    assert_eq!(record.body["meta"], answer["meta"]);
    assert_eq!(record.body["client"]["user_agent"], "agent/1.0");
    let (answer, record) = check("AKIAIOSFODNN7EXAMPLE", "agent AKIAIOSFODNN7EXAMPLE").await;
    assert_eq!(answer["meta"]["client_request_id"], "AKIAIOSFODNN7EXAMPLE", "the caller gets its own id back");
    assert!(!record.text.contains("AKIA"), "{}", record.text);
    assert_eq!(record.body["client"]["user_agent"], "agent [redacted]");
    let (_, record) = check("mine-8", &"a".repeat(2_000)).await;
    assert_eq!(record.body["client"]["user_agent"], "a".repeat(256));
    assert_eq!(stack.api.verify().await["ok"], true);
}

#[tokio::test]
async fn decision_lists_hold_exactly_what_their_filters_select() {
    let stack = Stack::build().dev().await;
    let run = |name: &str| {
        json!({"goal": "Search for Python documentation", "tools": ["web_search"],
        "context": {"run_id": name}})
    };
    let allowed = stack.api.decide(&run("one")).await;
    let denied = stack.api.decide(&Api::forbidden()).await;
    let deferred = stack.api.decide(&Api::unclear()).await;
    let second = stack.api.decide(&run("two")).await;
    let listed = async |query: &str| ids(&stack.api.decisions(query).await);
    let all = [&allowed, &denied, &deferred, &second];
    assert_eq!(listed("").await.iter().collect::<Vec<_>>(), all);
    assert_eq!(listed("verdict=ALLOW").await.iter().collect::<Vec<_>>(), [&allowed, &second]);
    assert_eq!(listed("verdict=DENY").await, [denied.as_str()]);
    assert_eq!(listed("verdict=DEFER&limit=1").await, [deferred.as_str()]);
    assert_eq!(listed("environment=production").await, [denied.as_str()]);
    assert_eq!(listed("environment=nowhere").await, [""; 0]);
    assert_eq!(listed("code=ENVIRONMENT_NOT_ALLOWED").await, [denied.as_str()]);
    assert_eq!(listed("code=CONTEXT_REQUIRED").await, [deferred.as_str()]);
    assert_eq!(listed("run_id=two").await, [second.as_str()]);
    assert_eq!(listed("run_id=two&verdict=DENY").await, [""; 0]);
    let records = stack.api.decisions("").await;
    let (first, last) = (at(&records[1]), at(&records[2]));
    let inside = records.iter().filter(|record| (first..=last).contains(&at(record)));
    let between: Vec<_> = inside.map(|record| record["request_id"].clone()).collect();
    assert_eq!(json!(listed(&format!("from={first}&to={last}")).await), json!(between));
    assert_eq!(listed("to=2020-01-01T00:00:00Z").await, [""; 0]);
    assert_eq!(listed("from=2099-01-01T00:00:00Z").await, [""; 0]);
}

#[tokio::test]
async fn bad_query_parameters_are_named() {
    let stack = Stack::build().dev().await;
    for (path, query, named) in [
        ("", "verdict=allow", "verdict"),
        ("", "limit=0", "limit"),
        ("", "limit=1001", "limit"),
        ("", "limit=-1", "limit"),
        ("", "cursor=x", "cursor"),
        ("", "cursor=1.-1", "cursor"),
        ("", "code=not%20a%20code", "code"),
        ("", "from=yesterday", "from"),
        ("", "to=1", "to"),
        ("", "verdict=DENY&verdict=ALLOW", "verdict"),
        ("", "colour=red", "colour"),
        ("/export", "to=never", "to"),
        ("/export", "limit=1", "limit"),
        ("/verify", "from=never", "from"),
        ("/verify", "kept=7", "kept"),
        ("/verify", "kept=7:00", "kept"),
    ] {
        let answer = stack.api.get(&format!("/v1/decisions{path}?{query}")).await;
        answer.assert_error(422, "validation_failed");
        let paths: Vec<_> =
            answer.body["errors"].as_array().unwrap().iter().map(|e| e["path"].as_str().unwrap()).collect();
        assert_eq!(paths, [named], "{query}");
    }
    for (query, named) in [
        ("", "before"),
        ("before=soon", "before"),
        ("before=2099-01-01T00:00:00Z", "before"),
        ("before=2026-01-01T00:00:00Z&x=1", "x"),
    ] {
        let answer = stack.api.delete(&format!("/v1/decisions?{query}")).await;
        answer.assert_error(422, "validation_failed");
        assert!(answer.body["message"].as_str().unwrap().contains(&format!("{named}: ")), "{}", answer.text);
    }
}

#[tokio::test]
async fn other_methods_are_refused_and_head_is_answered_without_a_body() {
    let stack = Stack::build().dev().await;
    let id = stack.api.decide(&Api::harmless()).await;
    for path in [
        "/v1/decisions",
        "/v1/decisions/export",
        "/v1/decisions/verify",
        &format!("/v1/decisions/{id}"),
        "/v1/signing-keys",
    ] {
        let head = stack.api.head(path).await;
        assert_eq!((head.status, head.text.as_str()), (200, ""), "{path}");
        assert_eq!(head.header("x-request-id").len(), 36);
        for method in [Method::POST, Method::PUT, Method::PATCH] {
            let answer = stack.api.send(method, path, &[], None).await;
            answer.assert_error(405, "method_not_allowed");
            assert!(answer.header("allow").contains("GET"), "{path}");
        }
    }
    let keys = stack.api.without_key().get("/v1/signing-keys").await.expect(200);
    assert_eq!(keys["items"].as_array().unwrap().len(), 1);
}

/// Pages through while checks go on; each page as long as `limit` says.
async fn paging_yields_each_record_once(stack: &Stack, limit: usize, before: usize, meanwhile: usize) {
    let mut made = Vec::new();
    for n in 0..before {
        made.push(stack.api.decide(&mixed()[n % 3].0).await);
    }
    let checks = {
        let api = stack.api_at(stack.urls.len() - 1);
        tokio::spawn(async move {
            let mut made = Vec::new();
            for n in 0..meanwhile {
                made.push(api.decide(&mixed()[n % 3].0).await);
            }
            made
        })
    };
    let (mut seen, mut cursor, mut records) = (Vec::new(), String::new(), Vec::new());
    // While new ones are written, and after the last of them until nothing more comes.
    loop {
        let written = checks.is_finished();
        let page = stack.api.get(&format!("/v1/decisions?limit={limit}{cursor}")).await.expect(200);
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= limit);
        seen.extend(ids(items));
        records.extend(items.iter().cloned());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None if written => break,
            // Nothing more yet: the same page once more, without what was seen of it.
            None => {
                seen.truncate(seen.len() - items.len());
                records.truncate(records.len() - items.len());
            }
        }
    }
    made.extend(checks.await.unwrap());
    let unique: BTreeSet<_> = seen.iter().collect();
    assert_eq!(unique.len(), seen.len(), "a record came twice");
    assert_eq!(unique, made.iter().collect());
    // In the order in which each writer wrote them.
    let mut last = std::collections::BTreeMap::new();
    for record in records {
        let (writer, sequence) = (record["chain"]["writer"].to_string(), record["chain"]["sequence"].as_u64().unwrap());
        let before = last.insert(writer, sequence);
        assert_eq!(before.unwrap_or(0) + 1, sequence, "{record}");
    }
    assert_eq!(ids(&stack.api.decisions("limit=1000").await), seen);
}

#[tokio::test]
async fn paging_one_by_one_yields_each_record_once_while_new_ones_are_written() {
    let stack = Stack::build().dev().await;
    paging_yields_each_record_once(&stack, 1, 30, 30).await;
}

#[tokio::test]
async fn paging_on_nats_yields_each_record_once_while_another_gateway_writes() {
    let stack = Stack::build().gateways(2).nats().await;
    paging_yields_each_record_once(&stack, 7, 40, 60).await;
}

#[tokio::test]
async fn records_that_were_written_together_are_paged_one_by_one_too() {
    let stack = Stack::build().dev().await;
    // Many at once share entries of the log.
    let checks: Vec<_> = (0..60)
        .map(|n| {
            let api = stack.api.clone();
            tokio::spawn(async move { api.decide(&mixed()[n % 3].0).await })
        })
        .collect();
    let mut made = BTreeSet::new();
    for check in checks {
        made.insert(check.await.unwrap());
    }
    for limit in [1, 2, 13] {
        let listed = ids(&stack.api.decisions(&format!("limit={limit}")).await);
        assert_eq!(listed.len(), 60);
        assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), made);
    }
    let denied = stack.api.decisions("limit=1&verdict=DENY").await;
    assert_eq!(denied.len(), 20);
}

async fn a_download_is_the_log(stack: &Stack) {
    for n in 0..12 {
        stack.api.decide(&mixed()[n % 3].0).await;
    }
    let records = stack.api.decisions("").await;
    let download = stack.api.get("/v1/decisions/export").await;
    assert_eq!(download.status, 200);
    assert_eq!(download.header("content-type"), "application/x-ndjson");
    assert!(download.header("content-disposition").starts_with("attachment"));
    assert!(download.text.ends_with('\n'));
    let lines: Vec<Value> = download.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let decisions: Vec<_> = lines.iter().filter(|line| line["type"] == "decision.recorded").cloned().collect();
    assert_eq!(decisions, records);
    let from = at(&records[6]);
    let later = stack.api.get(&format!("/v1/decisions/export?from={from}")).await.text;
    let later = later.lines().filter(|line| line.contains("decision.recorded")).count();
    let expected = records.iter().filter(|record| at(record) >= from).count();
    assert_eq!(later, expected);
    let report = stack.api.verify().await;
    assert_eq!((&report["ok"], &report["records"], &report["findings"]), (&json!(true), &json!(12), &json!([])));
}

#[tokio::test]
async fn a_download_is_the_log_in_one_process() {
    let stack = Stack::build().dev().await;
    a_download_is_the_log(&stack).await;
}

#[tokio::test]
async fn a_download_is_the_log_on_nats() {
    let stack = Stack::build().nats().await;
    a_download_is_the_log(&stack).await;
}

#[tokio::test]
async fn a_list_by_environment_finds_its_aliases_and_shows_what_was_sent() {
    let stack = Stack::build().dev().await;
    let groups = [&["production", "prod", "prd", "live", "Prod"][..], &["staging", "stage", "stg"], &["dev"], &["qa"]];
    for environment in groups.into_iter().flatten() {
        let mut check = Api::harmless();
        check["environment"] = (*environment).into();
        stack.api.check(&check).await.expect(200);
    }
    stack.api.check(&Api::harmless()).await.expect(200);
    let found = async |query: String| {
        let all = stack.api.decisions(&query).await;
        all.iter().map(|record| record["environment"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for group in groups {
        for name in group {
            assert_eq!(found(format!("environment={name}")).await, group, "{name}");
        }
    }
    assert_eq!(found("environment=development".to_owned()).await, ["dev"]);
    for other in ["preprod", "prod-eu", "pro", "devel"] {
        assert!(found(format!("environment={other}")).await.is_empty(), "{other}");
    }
    let newest = found("environment=live&order=desc&limit=2".to_owned()).await;
    assert_eq!(newest, ["Prod", "live", "prd", "prod", "production"]);
}
