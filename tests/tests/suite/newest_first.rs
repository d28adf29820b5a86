//! `GET /v1/decisions?order=desc`: the newest first, page after page, with all filters, on every store.

use serde_json::Value;
use stage0_tests::{Api, Stack};

async fn ids(api: &Api, query: &str) -> Vec<String> {
    let all = api.decisions(query).await;
    all.iter().map(|record| record["request_id"].as_str().unwrap().to_owned()).collect()
}

fn reversed(ids: &[String]) -> Vec<String> {
    ids.iter().rev().cloned().collect()
}

async fn the_newest_are_listed_first(stack: &Stack) {
    for _ in 0..4 {
        stack.api.check(&Api::harmless()).await.expect(200);
        stack.api.check(&Api::forbidden()).await.expect(200);
        stack.api.check(&Api::unclear()).await.expect(200);
    }
    // Made at the same time they share a batch.
    let harmless = Api::harmless();
    let together = (0..20).map(|_| stack.api.decide(&harmless));
    futures_util::future::join_all(together).await;
    let oldest_first = ids(&stack.api, "").await;
    assert_eq!(oldest_first.len(), 32);
    assert_eq!(ids(&stack.api, "order=asc").await, oldest_first);
    for limit in [1, 2, 7, 31, 32, 33, 1_000] {
        assert_eq!(ids(&stack.api, &format!("order=desc&limit={limit}")).await, reversed(&oldest_first), "{limit}");
    }
    for filter in ["verdict=DENY", "environment=production", "code=CONTEXT_REQUIRED"] {
        let found = ids(&stack.api, filter).await;
        assert_eq!(found.len(), 4, "{filter}");
        assert_eq!(ids(&stack.api, &format!("order=desc&limit=3&{filter}")).await, reversed(&found), "{filter}");
    }
    let middle = &stack.api.decisions("").await[6]["recorded_at"];
    for side in ["from", "to"] {
        let filter = format!("{side}={}", middle.as_str().unwrap());
        let found = ids(&stack.api, &filter).await;
        assert!(found.len() >= 7 && found.len() < 32, "{filter}");
        assert_eq!(ids(&stack.api, &format!("order=desc&{filter}")).await, reversed(&found), "{filter}");
    }
    // What is recorded meanwhile is in no page that goes back from here.
    let first = stack.api.get("/v1/decisions?order=desc&limit=5").await.expect(200);
    let cursor = first["next_cursor"].as_str().unwrap();
    let newest = stack.api.decide(&Api::harmless()).await;
    let rest = ids(&stack.api, &format!("cursor={cursor}")).await;
    assert_eq!(rest, reversed(&oldest_first)[5..], "a cursor holds its order");
    assert_eq!(ids(&stack.api, "order=desc&limit=500").await[0], newest);
    the_orders_are_kept_apart(&stack.api, cursor).await;
    // An account sees its own.
    let (_, theirs, _) = stack.operator.account("theirs", None, &["decisions:read"]).await;
    assert!(stack.api.with_key(&theirs).decisions("order=desc").await.is_empty());
}

async fn the_orders_are_kept_apart(api: &Api, desc: &str) {
    let page = api.get("/v1/decisions?limit=5").await.expect(200);
    let asc = page["next_cursor"].as_str().unwrap();
    for (order, cursor) in [("asc", desc), ("desc", asc)] {
        let answer = api.get(&format!("/v1/decisions?order={order}&cursor={cursor}")).await;
        answer.assert_error(422, "validation_failed");
        let paths: Vec<&Value> = answer.body["errors"].as_array().unwrap().iter().map(|e| &e["path"]).collect();
        assert_eq!(paths, ["cursor"], "{}", answer.text);
    }
    for (order, cursor) in [("asc", asc), ("desc", desc)] {
        api.get(&format!("/v1/decisions?order={order}&cursor={cursor}")).await.expect(200);
    }
    for other in ["", "ASC", "descending", "newest", "-1"] {
        let answer = api.get(&format!("/v1/decisions?order={other}")).await;
        answer.assert_error(422, "validation_failed");
        let message = answer.body["message"].as_str().unwrap();
        assert!(message.contains("order: ") && message.contains("`asc`") && message.contains("`desc`"), "{message}");
    }
}

#[tokio::test]
async fn the_newest_decisions_are_listed_first_in_the_file() {
    the_newest_are_listed_first(&Stack::build().dev().await).await;
}

#[tokio::test]
async fn the_newest_decisions_are_listed_first_on_nats() {
    the_newest_are_listed_first(&Stack::build().nats().await).await;
}
