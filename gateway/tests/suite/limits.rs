//! Rate limits and quotas.

use std::num::NonZeroU32;

use serde_json::json;
use stage0_contract::Limits;

use crate::harness::{Stack, TENANT};

#[tokio::test]
async fn a_used_up_daily_quota_is_a_402_and_the_check_is_not_evaluated() {
    let stack = Stack::start().await;
    stack.services.change(TENANT, |identity| {
        identity.limits = Limits { daily: Some(2), ..Limits::NONE };
    });
    let body = json!({"goal": "g"});
    for remaining in ["1", "0"] {
        let answer = stack.check(&body).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("ratelimit-limit"), Some("2"));
        assert_eq!(answer.header("ratelimit-remaining"), Some(remaining));
    }
    let refused = stack.check(&body).await;
    assert_eq!(refused.refusal(), (402, "quota_exceeded".to_owned()));
    assert_eq!(refused.header("ratelimit-remaining"), Some("0"), "a refusal has the headers, too");
    assert_eq!(stack.services.evaluations(), 2);
}

#[tokio::test]
async fn a_refused_check_is_not_counted_against_the_quota() {
    let stack = Stack::start().await;
    stack.services.change(TENANT, |identity| {
        identity.limits = Limits { daily: Some(1), ..Limits::NONE };
    });
    assert_eq!(stack.check(&json!({"goal": ""})).await.status, 422);
    assert_eq!(stack.check(&json!({"goal": "g"})).await.status, 200);
    assert_eq!(stack.check(&json!({"goal": "g"})).await.status, 402);
}

#[tokio::test]
async fn requests_of_one_address_beyond_its_rate_get_429_and_probes_are_exempt() {
    let stack = Stack::with(|config| config.requests_per_second_per_address = NonZeroU32::new(1)).await;
    let mut refused = None;
    for _ in 0..1_000 {
        let answer = stack.get(TENANT, "/usage").await;
        if answer.status == 429 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.unwrap();
    assert_eq!(refused.refusal(), (429, "rate_limited".to_owned()));
    assert_eq!((refused.header("retry-after"), &refused.json()["retry_after_seconds"]), (Some("1"), &json!(1)));
    for _ in 0..5 {
        assert_eq!(stack.get(TENANT, "/healthz").await.status, 200);
    }
}

#[tokio::test]
async fn management_calls_of_one_key_are_limited_per_minute() {
    let stack = Stack::with(|config| config.management_calls_per_minute = NonZeroU32::new(2)).await;
    let mut statuses = Vec::new();
    for _ in 0..20 {
        // An invalid query is refused after the call was counted.
        statuses.push(stack.get(TENANT, "/v1/keys?limit=x").await.status.as_u16());
    }
    assert_eq!(statuses.first(), Some(&422));
    assert_eq!(statuses.last(), Some(&429));
}
