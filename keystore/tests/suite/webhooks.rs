//! Webhook endpoints and retention, as gateway and exporter request them.

use std::time::Duration;

use stage0_backplane::{Event, Subscription};
use stage0_contract::{
    AccountId, Caller, CapChanges, Change, CreateWebhook, DEFAULT_RETENTION_DAYS, DeleteWebhook, DisableWebhook,
    EnableWebhook, GetWebhook, KeyChanged, Limits, ListRetentions, ListWebhooks, ManageReply, Notice, Plan, Refusal,
    RotateWebhookSecret, Scope, UNLIMITED, UpdateAccount, UpdateWebhook, Verdict, Webhook, WebhookChanged,
    WebhookFilters, WebhookId,
};
use stage0_keystore::{KeystoreConfig, Plans, SECRETS_KEY_FILE, SecretsKey};

use crate::harness::{Running, config, done, next_key_notice, refused};

fn update(caller: &Caller, id: &WebhookId) -> UpdateWebhook {
    UpdateWebhook {
        caller: caller.clone(),
        id: id.clone(),
        url: None,
        filters: None,
        description: None,
        rate_limit: None,
        enabled: None,
    }
}

fn rotate(caller: &Caller, id: &WebhookId, overlap_seconds: u64) -> RotateWebhookSecret {
    RotateWebhookSecret { caller: caller.clone(), id: id.clone(), overlap_seconds }
}

fn list(caller: &Caller, cursor: Option<String>, limit: u32) -> ListWebhooks {
    ListWebhooks { caller: caller.clone(), account: None, cursor, limit }
}

async fn get(running: &Running, caller: &Caller, id: &WebhookId) -> ManageReply<Webhook> {
    running.ask(&GetWebhook { caller: caller.clone(), id: id.clone() }).await
}

/// The refusals of every call that names an endpoint.
async fn refusals(running: &Running, caller: &Caller, id: &WebhookId) -> Vec<Refusal> {
    let (caller, id) = (caller.clone(), id.clone());
    vec![
        refused(get(running, &caller, &id).await),
        refused(running.ask(&update(&caller, &id)).await),
        refused(running.ask(&rotate(&caller, &id, 0)).await),
        refused(running.ask(&EnableWebhook { caller: caller.clone(), id: id.clone() }).await),
        refused(running.ask(&DeleteWebhook { caller, id }).await),
    ]
}

async fn heard<N: Notice>(listener: &mut Subscription<N>) -> N {
    match tokio::time::timeout(Duration::from_secs(10), listener.next()).await.unwrap().unwrap() {
        Event::Message(notice) => notice,
        Event::Gap => panic!("a gap"),
    }
}

#[tokio::test]
async fn managing_endpoints_needs_the_scope() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let account = running.account("a").await.id;
    let id = running.webhook(&account).await.webhook.id;
    let other = running.caller(&account, &[Scope::KeysManage]).await;
    let missing = Refusal::ScopeMissing(Scope::WebhooksManage);
    assert!(refusals(&running, &other, &id).await.iter().all(|refusal| *refusal == missing));
    let create = CreateWebhook { caller: other.clone(), ..running.create_webhook(&account) };
    assert_eq!(refused(running.ask(&create).await), missing);
    assert_eq!(refused(running.ask(&list(&other, None, 1)).await), missing);
    running.stop().await;
}

#[tokio::test]
async fn a_caller_whose_key_ended_manages_no_endpoint() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let account = running.account("a").await.id;
    let id = running.webhook(&account).await.webhook.id;
    let manager = running.caller(&account, &[Scope::WebhooksManage]).await;
    running.revoke(&manager.key_id).await;
    let missing = Refusal::ScopeMissing(Scope::WebhooksManage);
    assert!(refusals(&running, &manager, &id).await.iter().all(|refusal| *refusal == missing));
    running.stop().await;
}

#[tokio::test]
async fn a_foreign_unknown_or_deleted_endpoint_does_not_exist() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (mine, theirs) = (running.account("mine").await.id, running.account("theirs").await.id);
    let manager = running.caller(&mine, &[Scope::WebhooksManage]).await;
    let foreign = running.webhook(&theirs).await.webhook.id;
    for id in [foreign, WebhookId::parse("we_none").unwrap()] {
        assert!(refusals(&running, &manager, &id).await.iter().all(|refusal| *refusal == Refusal::NotFound));
    }
    let create = CreateWebhook { caller: manager.clone(), ..running.create_webhook(&theirs) };
    assert_eq!(refused(running.ask(&create).await), Refusal::NotFound);
    let list_theirs = ListWebhooks { account: Some(theirs), ..list(&manager, None, 1) };
    assert_eq!(refused(running.ask(&list_theirs).await), Refusal::NotFound);
    let unknown = AccountId::parse("acc_none").unwrap();
    assert_eq!(refused(running.ask(&running.create_webhook(&unknown)).await), Refusal::NotFound);
    let gone = running.webhook(&mine).await.webhook.id;
    running.delete_webhook(&gone).await;
    assert_eq!(refused(get(&running, &manager, &gone).await), Refusal::NotFound);
    assert_eq!(refused(running.ask(&update(&manager, &gone)).await), Refusal::NotFound);
    let disable = DisableWebhook { id: gone, reason: "410".to_owned() };
    assert_eq!(refused(running.ask(&disable).await), Refusal::NotFound);
    running.stop().await;
}

#[tokio::test]
async fn a_new_endpoint_is_as_requested_and_its_secret_is_shown_once() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let account = running.account("a").await.id;
    let manager = running.caller(&account, &[Scope::WebhooksManage]).await;
    let filters = WebhookFilters {
        events: None,
        verdicts: Some(vec![Verdict::Deny]),
        environments: Some(vec!["prod".to_owned()]),
    };
    let create = CreateWebhook {
        caller: manager.clone(),
        account: None,
        filters: filters.clone(),
        rate_limit: Some(9),
        ..running.create_webhook(&account)
    };
    let made = done(running.ask(&create).await);
    assert_eq!((&made.webhook.account, &made.webhook.url), (&account, &create.url));
    assert_eq!((made.webhook.filters.clone(), made.webhook.rate_limit, made.webhook.enabled), (filters, Some(9), true));
    assert!(made.webhook.id.as_str().starts_with("we_") && made.webhook.id.as_str().len() == 19);
    assert_eq!(made.webhook.created_at.subsec_nanosecond(), 0);
    assert_eq!(done(get(&running, &manager, &made.webhook.id).await), made.webhook);
    let [endpoint] = running.endpoints().await.try_into().unwrap();
    assert_eq!((endpoint.webhook, endpoint.secrets), (made.webhook.clone(), vec![made.secret.clone()]));
    assert_eq!(endpoint.retention_days, DEFAULT_RETENTION_DAYS);
    assert!(!format!("{made:?}").contains(made.secret.expose()));
    running.stop().await;
}

#[tokio::test]
async fn an_update_changes_the_named_members_and_a_bad_one_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let account = running.account("a").await.id;
    let manager = running.caller(&account, &[Scope::WebhooksManage]).await;
    let made = running.webhook(&account).await.webhook;
    let bad = UpdateWebhook {
        url: Some("https://é".to_owned()),
        description: Some("fine".to_owned()),
        rate_limit: Some(10_001),
        ..update(&manager, &made.id)
    };
    let Refusal::Invalid(errors) = refused(running.ask(&bad).await) else { panic!() };
    assert_eq!(errors.iter().map(|error| error.path.as_str()).collect::<Vec<_>>(), ["url", "rate_limit"]);
    assert_eq!(done(get(&running, &manager, &made.id).await), made);
    let good = UpdateWebhook { rate_limit: Some(5), enabled: Some(false), ..update(&manager, &made.id) };
    let changed = Webhook { rate_limit: Some(5), enabled: false, ..made.clone() };
    assert_eq!(done(running.ask(&good).await), changed);
    let free = UpdateWebhook { rate_limit: Some(0), enabled: Some(true), ..update(&manager, &made.id) };
    assert_eq!(done(running.ask(&free).await), made);
    running.stop().await;
}

#[tokio::test]
async fn an_endpoint_disabled_by_the_exporter_has_its_reason_until_it_is_enabled() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let account = running.account("a").await.id;
    let made = running.webhook(&account).await.webhook;
    for reason in ["it said 410", "it failed for days"] {
        done(running.ask(&DisableWebhook { id: made.id.clone(), reason: reason.to_owned() }).await);
        let found = done(get(&running, &running.operator, &made.id).await);
        assert_eq!((found.enabled, found.disabled_reason.as_deref()), (false, Some("it said 410")));
    }
    assert!(!running.endpoints().await[0].webhook.enabled);
    let enable = EnableWebhook { caller: running.operator.clone(), id: made.id.clone() };
    assert_eq!(done(running.ask(&enable).await), made);
    running.stop().await;
}

#[tokio::test]
async fn old_secrets_sign_beside_the_new_one_during_the_overlap() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let account = running.account("a").await.id;
    let made = running.webhook(&account).await;
    let (operator, id) = (running.operator.clone(), made.webhook.id.clone());
    let mut secrets = vec![made.secret];
    for _ in 0..4 {
        secrets.insert(0, done(running.ask(&rotate(&operator, &id, 3_600)).await).secret);
        assert_eq!(running.endpoints().await[0].secrets, secrets);
    }
    assert!(matches!(refused(running.ask(&rotate(&operator, &id, 60)).await), Refusal::Conflict(_)));
    let Refusal::Invalid(errors) = refused(running.ask(&rotate(&operator, &id, 2_592_001)).await) else { panic!() };
    assert_eq!(errors[0].path, "overlap_seconds");
    assert_eq!(running.endpoints().await[0].secrets, secrets);
    let last = done(running.ask(&rotate(&operator, &id, 0)).await).secret;
    assert_eq!(running.endpoints().await[0].secrets, [last]);
    running.stop().await;
}

#[tokio::test]
async fn an_account_has_at_most_a_hundred_endpoints() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (account, other) = (running.account("a").await.id, running.account("b").await.id);
    let mut last = None;
    for _ in 0..100 {
        last = Some(running.webhook(&account).await.webhook.id);
    }
    match refused(running.ask(&running.create_webhook(&account)).await) {
        Refusal::Conflict(text) => assert!(text.contains("100"), "{text}"),
        refusal => panic!("{refusal:?}"),
    }
    running.webhook(&other).await;
    running.delete_webhook(&last.unwrap()).await;
    running.webhook(&account).await;
    running.stop().await;
}

#[tokio::test]
async fn the_notice_of_each_endpoint_change_is_published_before_the_reply() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let account = running.account("a").await.id;
    let mut notices = running.backplane.notices.subscribe::<WebhookChanged>().await.unwrap();
    let id = running.webhook(&account).await.webhook.id;
    let operator = running.operator.clone();
    done(running.ask(&UpdateWebhook { enabled: Some(false), ..update(&operator, &id) }).await);
    done(running.ask(&EnableWebhook { caller: operator.clone(), id: id.clone() }).await);
    done(running.ask(&rotate(&operator, &id, 60)).await);
    done(running.ask(&DisableWebhook { id: id.clone(), reason: "r".to_owned() }).await);
    // The second call is no change, and still its notice is published: the first one may have been lost.
    running.delete_webhook(&id).await;
    running.delete_webhook(&id).await;
    for _ in 0..7 {
        assert_eq!(heard(&mut notices).await, WebhookChanged { account: account.clone(), id: id.clone() });
    }
    running.stop().await;
}

#[tokio::test]
async fn endpoint_lists_are_paged_by_id_without_deleted_endpoints() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (account, other) = (running.account("a").await.id, running.account("b").await.id);
    let manager = running.caller(&account, &[Scope::WebhooksManage]).await;
    let mut made = Vec::new();
    for _ in 0..6 {
        made.push(running.webhook(&account).await.webhook);
    }
    made.sort_by(|a, b| a.id.cmp(&b.id));
    running.delete_webhook(&made.remove(2).id).await;
    running.webhook(&other).await;
    let (mut found, mut cursor, mut sizes) = (Vec::new(), None, Vec::new());
    loop {
        let page = done(running.ask(&list(&manager, cursor, 2)).await);
        sizes.push(page.items.len());
        found.extend(page.items);
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!((found, sizes), (made, vec![2, 2, 1]));
    assert_eq!(running.endpoints().await.len(), 6);
    running.stop().await;
}

#[tokio::test]
async fn an_exporters_pages_stay_small_enough_to_be_sent_with_large_endpoints() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let account = running.account("a").await.id;
    // A control character takes six bytes as JSON, so these endpoints have the maximal size and number.
    let environments = vec!["\u{1}".repeat(999) + "e"; 8];
    let filters = WebhookFilters { events: None, verdicts: None, environments: Some(environments) };
    for _ in 0..100 {
        done(running.ask(&CreateWebhook { filters: filters.clone(), ..running.create_webhook(&account) }).await);
    }
    assert_eq!(running.endpoints().await.len(), 100);
    let page =
        done(running.ask(&ListWebhooks { account: Some(account), ..list(&running.operator, None, 1_000) }).await);
    assert!(page.items.len() < 100 && page.next_cursor.is_some());
    running.stop().await;
}

#[tokio::test]
async fn a_configured_secrets_key_is_used_and_none_is_created() {
    let dir = tempfile::tempdir().unwrap();
    let given = |text: &str| KeystoreConfig { secrets_key: SecretsKey::parse(text).ok(), ..config(dir.path()) };
    let running = Running::start_with(given(&"ab".repeat(32))).await.unwrap();
    let account = running.account("a").await.id;
    let secret = running.webhook(&account).await.secret;
    running.stop().await;
    assert!(!dir.path().join(SECRETS_KEY_FILE).exists());
    assert!(Running::start_with(given(&"cd".repeat(32))).await.is_err());
    assert!(Running::start_with(config(dir.path())).await.is_err());
    let running = Running::start_with(given(&"ab".repeat(32))).await.unwrap();
    assert_eq!(running.endpoints().await[0].secrets, [secret]);
    running.stop().await;
}

/// Nothing changes.
pub(crate) fn unchanged(running: &Running, account: &AccountId) -> UpdateAccount {
    UpdateAccount {
        record_facts: None,
        approvals: None,
        four_eyes: None,
        policy_changes: None,
        caller: running.operator.clone(),
        account: account.clone(),
        plan: None,
        retention_days: None,
        per_minute: None,
        daily: None,
        monthly: None,
        require_run_id: None,
        caps: CapChanges::default(),
    }
}

#[tokio::test]
async fn only_an_operator_sets_an_accounts_retention() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let account = running.account("a").await.id;
    let set = |caller: &Caller, account: &AccountId, days: Option<u32>| UpdateAccount {
        caller: caller.clone(),
        retention_days: Some(days.map_or(Change::Plans, Change::Own)),
        ..unchanged(&running, account)
    };
    let manager = running.caller(&account, &[Scope::KeysManage]).await;
    let missing = Refusal::ScopeMissing(Scope::Operator);
    assert_eq!(refused(running.ask(&set(&manager, &account, Some(5))).await), missing);
    let unknown = AccountId::parse("acc_none").unwrap();
    assert_eq!(refused(running.ask(&set(&running.operator, &unknown, Some(5))).await), Refusal::NotFound);
    for bad in [0, 3_651] {
        let reply = running.ask(&set(&running.operator, &account, Some(bad))).await;
        let Refusal::Invalid(errors) = refused(reply) else { panic!() };
        assert_eq!(errors[0].path, "retention_days");
    }
    running.stop().await;
}

#[tokio::test]
async fn a_new_retention_is_announced_and_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let account = running.account("a").await.id;
    let key = running.key(&account, &[Scope::Check]).await.key;
    running.webhook(&account).await;
    assert_eq!(running.verify(&key).await.unwrap().retention_days, DEFAULT_RETENTION_DAYS);
    let mut notices = running.backplane.notices.subscribe::<KeyChanged>().await.unwrap();
    for (days, kept) in [(Some(7), 7), (None, DEFAULT_RETENTION_DAYS), (Some(9), 9)] {
        let retention_days = Some(days.map_or(Change::Plans, Change::Own));
        let call = UpdateAccount { retention_days, ..unchanged(&running, &account) };
        assert_eq!(done(running.ask(&call).await).retention_days, days);
        assert_eq!(next_key_notice(&mut notices).await.0, account);
        assert_eq!(running.verify(&key).await.unwrap().retention_days, kept);
        assert_eq!(running.endpoints().await[0].retention_days, kept);
    }
    running.stop().await;
    let running = Running::start(dir.path()).await;
    let page = done(running.ask(&ListRetentions { cursor: None }).await);
    assert_eq!(page.items.iter().filter(|(id, _)| *id == account).collect::<Vec<_>>(), [&(account.clone(), 9)]);
    let operator = (running.operator.account.clone(), DEFAULT_RETENTION_DAYS);
    assert!(page.items.contains(&operator) && page.items.len() == 2 && page.next_cursor.is_none());
    running.stop().await;
}

#[tokio::test]
async fn changed_plan_limits_and_run_id_are_announced_and_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let account = running.account("a").await.id;
    let key = running.key(&account, &[Scope::Check]).await.key;
    let told = running.verify(&key).await.unwrap();
    assert!(told.limits.is_none() && !told.require_run_id, "without a plan nothing is limited");
    let mut notices = running.backplane.notices.subscribe::<KeyChanged>().await.unwrap();
    let free = UpdateAccount { plan: Some(Plan::Free), ..unchanged(&running, &account) };
    assert_eq!(done(running.ask(&free).await).plan, Plan::Free);
    assert_eq!(next_key_notice(&mut notices).await.0, account);
    let told = running.verify(&key).await.unwrap();
    assert_eq!(told.limits, Limits { per_minute: Some(60), daily: Some(1_000), monthly: Some(10_000) });
    let own = UpdateAccount {
        per_minute: Some(Change::Own(7)),
        daily: Some(Change::Own(UNLIMITED)),
        require_run_id: Some(true),
        ..unchanged(&running, &account)
    };
    done(running.ask(&own).await);
    let expected = Limits { per_minute: Some(7), daily: None, monthly: Some(10_000) };
    let told = running.verify(&key).await.unwrap();
    assert_eq!((told.limits, told.require_run_id, told.plan), (expected, true, Plan::Free));
    running.stop().await;
    let plans = Plans::parse("[free]\nmonthly = 5\n[pro]\n[unlimited]\n").unwrap();
    let config = KeystoreConfig { plans: Some(plans), ..config(dir.path()) };
    let running = Running::start_with(config).await.unwrap();
    let told = running.verify(&key).await.unwrap();
    let expected = Limits { per_minute: Some(7), daily: None, monthly: Some(5) };
    assert_eq!((told.limits, told.require_run_id), (expected, true), "other plans, the same limits of its own");
    let back = UpdateAccount {
        per_minute: Some(Change::Plans),
        daily: Some(Change::Plans),
        require_run_id: Some(false),
        ..unchanged(&running, &account)
    };
    let account = done(running.ask(&back).await);
    assert!(account.limits.is_none() && !account.require_run_id);
    running.stop().await;
}
