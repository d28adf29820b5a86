//! What a caller may do with webhook endpoints: pure.
//!
//! A deleted endpoint does not exist, except for deleting it again. Only the length and the characters of a URL are
//! checked here: where it leads is checked at every delivery, because addresses change.

use jiff::Timestamp;
use stage0_contract::{
    Caller, Caps, CreateWebhook, FieldError, Refusal, RotateWebhookSecret, UpdateWebhook, WebhookFilters, is_blank,
};

use super::{end_of_overlap, invalid_if_any, is_operator};
use crate::store::record::{SealedSecret, WebhookRecord};

const MAX_URL_CHARS: usize = 2_000;
const MAX_EVENTS: usize = 100;
const MAX_ENVIRONMENTS: usize = 100;
const MAX_ENVIRONMENT_CHARS: usize = 1_000;
/// Of all environments of one endpoint: keystore and exporters hold every endpoint in memory.
const MAX_ENVIRONMENTS_BYTES: usize = 8_192;
const MAX_DESCRIPTION_CHARS: usize = 500;
const MAX_REASON_CHARS: usize = 500;
const MAX_RATE: u32 = 10_000;
/// Secrets that sign at a time: every delivery carries one signature for each.
const MAX_SECRETS: usize = 5;

pub(crate) fn valid_webhook(call: &CreateWebhook) -> Result<(), Refusal> {
    let mut errors: Vec<_> = bad_url(&call.url).into_iter().collect();
    errors.extend(bad_filters(&call.filters));
    errors.extend(bad_description(&call.description));
    errors.extend(call.rate_limit.and_then(|rate| bad_rate(rate, 1)));
    invalid_if_any(errors)
}

pub(crate) fn check_endpoint_cap(endpoints: u64, caps: &Caps) -> Result<(), Refusal> {
    let most = caps.endpoints();
    if endpoints < most {
        return Ok(());
    }
    Err(Refusal::Conflict(format!(
        "the account has {endpoints} webhook endpoints, and its cap `max_endpoints` is {most}: delete one first, or \
         ask the operator to raise the cap"
    )))
}

pub(crate) fn own_webhook(caller: &Caller, found: Option<WebhookRecord>) -> Result<WebhookRecord, Refusal> {
    own(caller, found).and_then(|record| existing(Some(record)))
}

pub(crate) fn existing(found: Option<WebhookRecord>) -> Result<WebhookRecord, Refusal> {
    found.filter(WebhookRecord::exists).ok_or(Refusal::NotFound)
}

pub(crate) fn updated(call: UpdateWebhook, mut record: WebhookRecord) -> Result<WebhookRecord, Refusal> {
    let mut errors: Vec<_> = call.url.as_deref().and_then(bad_url).into_iter().collect();
    errors.extend(call.filters.iter().flat_map(bad_filters));
    errors.extend(call.description.as_deref().and_then(bad_description));
    errors.extend(call.rate_limit.and_then(|rate| bad_rate(rate, 0)));
    invalid_if_any(errors)?;
    let webhook = &mut record.webhook;
    if let Some(url) = call.url {
        webhook.url = url;
    }
    if let Some(filters) = call.filters {
        webhook.filters = filters;
    }
    if let Some(description) = call.description {
        webhook.description = description;
    }
    if let Some(rate) = call.rate_limit {
        webhook.rate_limit = (rate > 0).then_some(rate);
    }
    match call.enabled {
        Some(true) => return Ok(enabled(record)),
        Some(false) => record.webhook.enabled = false,
        None => {}
    }
    Ok(record)
}

pub(crate) fn enabled(mut record: WebhookRecord) -> WebhookRecord {
    record.webhook.enabled = true;
    record.webhook.disabled_reason = None;
    record
}

/// The first reason stands, and an endpoint that its owner disabled stays so.
pub(crate) fn disabled(mut record: WebhookRecord, reason: &str) -> WebhookRecord {
    if record.webhook.enabled {
        record.webhook.enabled = false;
        record.webhook.disabled_reason = Some(reason.chars().take(MAX_REASON_CHARS).collect());
    }
    record
}

/// The old secrets that sign beside a new one. An overlap never lengthens a secret's time.
pub(crate) fn overlapping(
    call: &RotateWebhookSecret,
    mut old: Vec<SealedSecret>,
    now: Timestamp,
) -> Result<Vec<SealedSecret>, Refusal> {
    let end = end_of_overlap(call.overlap_seconds, now)?;
    for secret in &mut old {
        secret.ends_at = Some(secret.ends_at.map_or(end, |existing| existing.min(end)));
    }
    old.retain(|secret| secret.signs_at(now));
    if old.len() >= MAX_SECRETS {
        return Err(Refusal::Conflict(format!(
            "the endpoint has {MAX_SECRETS} secrets that sign; wait until one has ended, or rotate with \
             `overlap_seconds` 0"
        )));
    }
    Ok(old)
}

/// The record of a deleted endpoint. The time of the first deletion stands.
pub(crate) fn deleted(caller: &Caller, found: Option<WebhookRecord>, now: Timestamp) -> Result<WebhookRecord, Refusal> {
    let record = own(caller, found)?;
    Ok(if record.exists() { record.tombstone(now) } else { record })
}

fn own(caller: &Caller, found: Option<WebhookRecord>) -> Result<WebhookRecord, Refusal> {
    found.filter(|record| is_operator(caller) || record.webhook.account == caller.account).ok_or(Refusal::NotFound)
}

fn bad_url(url: &str) -> Option<FieldError> {
    let good = (url.starts_with("https://") || url.starts_with("http://"))
        && url.len() <= MAX_URL_CHARS
        && url.bytes().all(|byte| byte.is_ascii_graphic());
    let message = format!("must begin with `https://` and have at most {MAX_URL_CHARS} visible ASCII characters");
    (!good).then(|| FieldError::new("url", message))
}

fn bad_filters(filters: &WebhookFilters) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(verdicts) = &filters.verdicts {
        let again = verdicts.iter().enumerate().any(|(at, verdict)| verdicts.iter().take(at).any(|v| v == verdict));
        if verdicts.is_empty() || again {
            errors.push(FieldError::new("verdicts", "must name at least one verdict, and each once"));
        }
    }
    if let Some(events) = &filters.events {
        if !(1..=MAX_EVENTS).contains(&events.len()) {
            errors.push(FieldError::new("events", format!("must have 1 to {MAX_EVENTS} items")));
        }
        for (at, event) in events.iter().take(MAX_EVENTS).enumerate() {
            let message = if !WebhookFilters::can_name(event) {
                "must be the type of an event, such as `approval.requested`, or a kind, such as `approval.*`"
            } else if events.iter().take(at).any(|earlier| earlier == event) {
                "must not be named twice"
            } else {
                continue;
            };
            errors.push(FieldError::new(format!("events[{at}]"), message));
        }
    }
    if let Some(environments) = &filters.environments {
        if !(1..=MAX_ENVIRONMENTS).contains(&environments.len()) {
            errors.push(FieldError::new("environments", format!("must have 1 to {MAX_ENVIRONMENTS} items")));
        }
        if environments.iter().map(String::len).sum::<usize>() > MAX_ENVIRONMENTS_BYTES {
            let message = format!("must have at most {MAX_ENVIRONMENTS_BYTES} bytes in all");
            errors.push(FieldError::new("environments", message));
        }
        let bad = |environment: &str| is_blank(environment) || environment.chars().count() > MAX_ENVIRONMENT_CHARS;
        for (at, _) in environments.iter().take(MAX_ENVIRONMENTS).enumerate().filter(|(_, text)| bad(text)) {
            let message = format!("must have 1 to {MAX_ENVIRONMENT_CHARS} characters and not be blank");
            errors.push(FieldError::new(format!("environments[{at}]"), message));
        }
    }
    errors
}

fn bad_description(description: &str) -> Option<FieldError> {
    let bad = description.chars().count() > MAX_DESCRIPTION_CHARS;
    bad.then(|| FieldError::new("description", format!("must have at most {MAX_DESCRIPTION_CHARS} characters")))
}

fn bad_rate(rate: u32, min: u32) -> Option<FieldError> {
    let bad = !(min..=MAX_RATE).contains(&rate);
    bad.then(|| FieldError::new("rate_limit", format!("must be {min} to {MAX_RATE}")))
}

#[cfg(test)]
mod tests {
    use super::super::require;
    use super::super::tests::{caller, paths};
    use super::*;
    use crate::store::record::tests::{at, secret, webhook};
    use stage0_contract::{Scope, Verdict, WebhookId};

    const NOW: i64 = 1_000;

    fn create() -> CreateWebhook {
        CreateWebhook {
            caller: caller("a", &[Scope::WebhooksManage]),
            account: None,
            url: "https://hooks.example/in?a=b".to_owned(),
            filters: WebhookFilters::default(),
            description: String::new(),
            rate_limit: None,
        }
    }

    fn update() -> UpdateWebhook {
        UpdateWebhook {
            caller: caller("a", &[Scope::WebhooksManage]),
            id: WebhookId::parse("we_1").unwrap(),
            url: None,
            filters: None,
            description: None,
            rate_limit: None,
            enabled: None,
        }
    }

    fn rotate(overlap_seconds: u64) -> RotateWebhookSecret {
        let UpdateWebhook { caller, id, .. } = update();
        RotateWebhookSecret { caller, id, overlap_seconds }
    }

    fn environments(items: &[&str]) -> WebhookFilters {
        let items = items.iter().map(|item| (*item).to_owned()).collect();
        WebhookFilters { environments: Some(items), ..WebhookFilters::default() }
    }

    #[test]
    fn no_other_scope_manages_endpoints() {
        for scope in Scope::ALL {
            let may = require(&caller("a", &[scope]), Scope::WebhooksManage);
            if matches!(scope, Scope::WebhooksManage | Scope::Operator) {
                assert_eq!(may, Ok(()));
            } else {
                assert_eq!(may, Err(Refusal::ScopeMissing(Scope::WebhooksManage)), "{scope}");
            }
        }
    }

    #[test]
    fn a_foreign_unknown_or_deleted_endpoint_does_not_exist() {
        let manager = caller("a", &[Scope::WebhooksManage]);
        let gone = webhook("we_1", "a").tombstone(at(1));
        for found in [None, Some(webhook("we_1", "b")), Some(gone.clone())] {
            assert_eq!(own_webhook(&manager, found), Err(Refusal::NotFound));
        }
        assert_eq!(existing(Some(gone)), Err(Refusal::NotFound));
        for found in [None, Some(webhook("we_1", "b")), Some(webhook("we_1", "b").tombstone(at(1)))] {
            assert_eq!(deleted(&manager, found, at(NOW)), Err(Refusal::NotFound));
        }
        let operator = caller("o", &[Scope::Operator]);
        assert!(own_webhook(&operator, Some(webhook("we_1", "b"))).is_ok());
        assert!(own_webhook(&manager, Some(webhook("we_1", "a"))).is_ok());
    }

    #[test]
    fn a_bad_body_names_every_bad_field() {
        let filters = WebhookFilters { verdicts: Some(Vec::new()), ..environments(&["prod", "\u{200b} ", "x", ""]) };
        let mut call = create();
        (call.url, call.description) = ("ftp://a".to_owned(), "é".repeat(501));
        (call.rate_limit, call.filters) = (Some(0), filters.clone());
        let all = ["url", "verdicts", "environments[1]", "environments[3]", "description", "rate_limit"];
        assert_eq!(paths(valid_webhook(&call)), all);
        let patch = UpdateWebhook {
            url: Some(call.url),
            filters: Some(filters),
            description: Some(call.description),
            rate_limit: Some(10_001),
            ..update()
        };
        assert_eq!(paths(updated(patch, webhook("we_1", "a")).map(drop)), all);
    }

    #[test]
    fn a_url_is_short_visible_ascii_with_an_http_scheme() {
        for bad in ["", "hooks.example", "//hooks.example", "https://a b", "https://a\n", "https://é", "javascript:1"]
        {
            assert_eq!(paths(valid_webhook(&CreateWebhook { url: bad.to_owned(), ..create() })), ["url"], "{bad}");
        }
        let url = |length: usize| "https://".to_owned() + &"a".repeat(length - 8);
        assert_eq!(paths(valid_webhook(&CreateWebhook { url: url(2_001), ..create() })), ["url"]);
        for good in [url(2_000), "http://localhost:1".to_owned(), "https://a".to_owned()] {
            assert_eq!(valid_webhook(&CreateWebhook { url: good, ..create() }), Ok(()));
        }
    }

    #[test]
    fn a_filter_of_events_names_known_types_and_kinds_once() {
        let judged = |events: &[&str]| {
            let events = Some(events.iter().map(|event| (*event).to_owned()).collect());
            valid_webhook(&CreateWebhook { filters: WebhookFilters { events, ..Default::default() }, ..create() })
        };
        assert_eq!(judged(&["approval.*", "stop.*", "decision.recorded", "approval.voted"]), Ok(()));
        let unknown = ["stop.started", "approval", "approval.", "Approval.*", "*", "", ".*", "decisions.expired"];
        let wrong: Vec<_> = (1..unknown.len()).map(|at| format!("events[{at}]")).collect();
        assert_eq!(paths(judged(&unknown)), wrong);
        assert_eq!(paths(judged(&["stop.*", "approval.*", "stop.*"])), ["events[2]"]);
        assert_eq!(paths(judged(&[])), ["events"]);
        assert_eq!(paths(judged(&["stop.*"; 101]))[0], "events");
    }

    #[test]
    fn filters_are_neither_empty_nor_repeated_nor_too_large() {
        let verdicts =
            |verdicts: &[Verdict]| WebhookFilters { verdicts: Some(verdicts.to_vec()), ..WebhookFilters::default() };
        let many = vec!["e"; 101];
        let long = "é".repeat(1_001);
        // Each is valid alone; together they have the maximal size.
        let large = "é".repeat(512);
        for (bad, path) in [
            (environments(&[[&*large].repeat(8), vec!["e"]].concat()), "environments"),
            (verdicts(&[]), "verdicts"),
            (verdicts(&[Verdict::Allow, Verdict::Deny, Verdict::Allow]), "verdicts"),
            (environments(&[]), "environments"),
            (environments(&many), "environments"),
            (environments(&["e", &long]), "environments[1]"),
        ] {
            assert_eq!(paths(valid_webhook(&CreateWebhook { filters: bad, ..create() })), [path]);
        }
        for good in [
            verdicts(&[Verdict::Allow, Verdict::Deny]),
            environments(&many[1..]),
            environments(&[&long[2..]]),
            environments(&[&*large; 8]),
        ] {
            assert_eq!(valid_webhook(&CreateWebhook { filters: good, ..create() }), Ok(()));
        }
    }

    #[test]
    fn a_rate_limit_is_at_least_one_and_zero_removes_it() {
        for (rate, good) in [(0, false), (1, true), (10_000, true), (10_001, false)] {
            let call = CreateWebhook { rate_limit: Some(rate), ..create() };
            assert_eq!(valid_webhook(&call).is_ok(), good, "{rate}");
        }
        let limit = |rate| {
            let call = UpdateWebhook { rate_limit: Some(rate), ..update() };
            updated(call, webhook("we_1", "a")).unwrap().webhook.rate_limit
        };
        assert_eq!((limit(0), limit(7)), (None, Some(7)));
    }

    #[test]
    fn an_account_has_at_most_a_hundred_endpoints_or_as_many_as_its_cap_says() {
        assert_eq!(check_endpoint_cap(99, &Caps::NONE), Ok(()));
        for full in [100, 101] {
            match check_endpoint_cap(full, &Caps::NONE) {
                Err(Refusal::Conflict(text)) => assert!(text.contains("`max_endpoints` is 100"), "{text}"),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(check_endpoint_cap(100, &Caps { max_endpoints: Some(101), ..Caps::NONE }), Ok(()));
    }

    #[test]
    fn an_update_leaves_what_it_does_not_name() {
        let before = webhook("we_1", "a");
        assert_eq!(updated(update(), before.clone()), Ok(before.clone()));
        let url = Some("https://other.example".to_owned());
        let after = updated(UpdateWebhook { url, ..update() }, before.clone()).unwrap();
        assert_eq!(after.webhook.url, "https://other.example");
        let url = before.webhook.url.clone();
        assert_eq!(WebhookRecord { webhook: stage0_contract::Webhook { url, ..after.webhook }, ..after }, before);
    }

    #[test]
    fn the_first_disabled_reason_stands_until_the_endpoint_is_enabled() {
        let before = webhook("we_1", "a");
        let once = disabled(before.clone(), "said 410");
        assert_eq!((once.webhook.enabled, once.webhook.disabled_reason.as_deref()), (false, Some("said 410")));
        assert_eq!(disabled(once.clone(), "failed"), once);
        assert_eq!(enabled(once.clone()), before);
        assert_eq!(updated(UpdateWebhook { enabled: Some(true), ..update() }, once).unwrap(), before);
        let stopped = updated(UpdateWebhook { enabled: Some(false), ..update() }, before).unwrap();
        assert_eq!(disabled(stopped.clone(), "failed"), stopped);
    }

    #[test]
    fn a_long_disabled_reason_is_truncated() {
        let reason = disabled(webhook("we_1", "a"), &"é".repeat(600)).webhook.disabled_reason.unwrap();
        assert_eq!(reason.chars().count(), 500);
    }

    #[test]
    fn a_repeated_deletion_keeps_the_time_of_the_first() {
        let manager = caller("a", &[Scope::WebhooksManage]);
        let once = deleted(&manager, Some(webhook("we_1", "a")), at(NOW)).unwrap();
        assert_eq!(once.deleted_at, Some(at(NOW)));
        assert_eq!(deleted(&manager, Some(once.clone()), at(NOW + 9)), Ok(once));
    }

    #[test]
    fn an_overlap_is_at_most_thirty_days() {
        let found = vec![secret("s", None)];
        let over = overlapping(&rotate(2_592_001), found.clone(), at(NOW));
        assert_eq!(paths(over.map(drop)), ["overlap_seconds"]);
        let most = overlapping(&rotate(2_592_000), found, at(NOW)).unwrap();
        assert_eq!(most[0].ends_at, Some(at(NOW + 2_592_000)));
    }

    #[test]
    fn no_overlap_ends_every_old_secret_at_once() {
        let found = vec![secret("a", None), secret("b", Some(NOW + 9))];
        assert_eq!(overlapping(&rotate(0), found, at(NOW)), Ok(Vec::new()));
    }

    #[test]
    fn an_overlap_never_lengthens_a_secrets_time_and_drops_ended_secrets() {
        let found = vec![secret("a", None), secret("b", Some(NOW + 9)), secret("c", Some(NOW))];
        let left = overlapping(&rotate(60), found, at(NOW)).unwrap();
        assert_eq!(left, [secret("a", Some(NOW + 60)), secret("b", Some(NOW + 9))]);
    }

    #[test]
    fn at_most_five_secrets_sign() {
        let found = |signing: usize| vec![secret("s", Some(NOW + 9)); signing];
        assert_eq!(overlapping(&rotate(60), found(4), at(NOW)).unwrap().len(), 4);
        match overlapping(&rotate(60), found(5), at(NOW)) {
            Err(Refusal::Conflict(text)) => assert!(text.contains("5 secrets"), "{text}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(overlapping(&rotate(0), found(5), at(NOW)), Ok(Vec::new()));
    }
}
