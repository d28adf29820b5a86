//! Records as they are stored, and the records of other tests.

use super::*;
use stage0_contract::{ApprovalMode, Member, MemberStatus, Person, Stop, StopScope};

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

pub(crate) fn account(id: &str) -> Account {
    Account {
        record_facts: false,
        id: AccountId::parse(id).unwrap(),
        name: id.to_owned(),
        plan: stage0_contract::Plan::Free,
        created_at: at(1),
        retention_days: None,
        limits: stage0_contract::Limits::NONE,
        require_run_id: false,
        caps: stage0_contract::Caps::NONE,
        approvals: ApprovalMode::Caller,
        four_eyes: true,
        policy_changes: stage0_contract::PolicyChanges::Single,
    }
}

pub(crate) fn webhook(id: &str, account: &str) -> WebhookRecord {
    let webhook = Webhook {
        id: WebhookId::parse(id).unwrap(),
        account: AccountId::parse(account).unwrap(),
        url: "https://hooks.example/in".to_owned(),
        filters: WebhookFilters { events: None, verdicts: None, environments: Some(vec!["prod".to_owned()]) },
        description: "d".to_owned(),
        rate_limit: Some(5),
        enabled: true,
        disabled_reason: None,
        created_at: at(1),
    };
    WebhookRecord { webhook, secrets: vec![secret("sealed", None)], deleted_at: None }
}

pub(crate) fn secret(sealed: &str, ends_at: Option<i64>) -> SealedSecret {
    SealedSecret { sealed: Sealed(sealed.to_owned()), created_at: at(1), ends_at: ends_at.map(at) }
}

pub(crate) fn key(id: &str, account: &str, scopes: &[stage0_contract::Scope]) -> KeyRecord {
    KeyRecord {
        id: KeyId::parse(id).unwrap(),
        account: AccountId::parse(account).unwrap(),
        name: "n".to_owned(),
        scopes: scopes.iter().copied().collect(),
        hash: KeyHash("$argon2id$secret".to_owned()),
        created_at: at(1),
        expires_at: None,
        revoked_at: None,
        holder: None,
    }
}

pub(crate) fn member(id: &str, account: &str) -> MemberRecord {
    let member = Member {
        id: MemberId::parse(id).unwrap(),
        account: AccountId::parse(account).unwrap(),
        name: "Ada".to_owned(),
        mail: Some("ada@example.org".to_owned()),
        groups: vec!["release-managers".to_owned()],
        status: MemberStatus::Active,
        scopes: [stage0_contract::Scope::ApprovalsDecide].into(),
        created_at: at(1),
        delegate: None,
    };
    MemberRecord { member, made_by: Vec::new(), invitation: None, removed_at: None }
}

pub(crate) fn stop(id: &str, account: &str) -> StopRecord {
    let stop = Stop {
        id: StopId::parse(id).unwrap(),
        account: Some(AccountId::parse(account).unwrap()),
        scope: StopScope::Account,
        value: None,
        reason: "incident".to_owned(),
        created_at: at(1),
        until: None,
        key_id: KeyId::parse("k").unwrap(),
        member_id: None,
    };
    StopRecord { stop, account: AccountId::parse(account).unwrap(), ended_at: None }
}

/// A stop of every account, kept under the operator's.
pub(crate) fn stop_of_all(id: &str, operator: &str) -> StopRecord {
    let mut record = stop(id, operator);
    (record.stop.account, record.stop.scope) = (None, StopScope::All);
    record
}

#[test]
fn a_key_expires_at_the_beginning_of_its_last_second() {
    let mut key = key("k", "a", &[]);
    key.expires_at = Some(at(10));
    assert!(key.is_active_at(at(9)));
    assert!(!key.is_active_at(at(10)));
    assert!(!key.is_active_at(at(11)));
}

#[test]
fn a_revoked_key_is_not_active_whatever_its_expiry() {
    let mut key = key("k", "a", &[]);
    key.revoked_at = Some(at(5));
    key.expires_at = Some(at(100));
    assert!(!key.is_active_at(at(6)));
}

#[test]
fn a_secret_ends_at_the_beginning_of_its_last_second() {
    assert!(secret("s", None).signs_at(at(10)));
    assert!(secret("s", Some(11)).signs_at(at(10)));
    assert!(!secret("s", Some(10)).signs_at(at(10)));
    assert!(!secret("s", Some(9)).signs_at(at(10)));
}

#[test]
fn a_deleted_endpoint_keeps_nothing_that_its_owner_entered() {
    let gone = webhook("we_1", "a").tombstone(at(9));
    assert!(!gone.exists());
    let text = serde_json::to_string(&gone).unwrap();
    assert!(["hooks.example", "prod", "sealed", "\"d\""].iter().all(|given| !text.contains(given)), "{text}");
    assert_eq!((gone.webhook.id.as_str(), gone.webhook.account.as_str()), ("we_1", "a"));
}

#[test]
fn debug_shows_no_hash_and_no_sealed_secret() {
    assert!(!format!("{:?}", key("k", "a", &[])).contains("secret"));
    assert!(!format!("{:?}", webhook("we_1", "a").secrets).contains("\"sealed\""));
}

#[test]
fn a_keys_identity_has_the_retention_limits_and_caps_of_its_account() {
    let (mut of, plans) = (account("a"), Plans::built_in().unwrap());
    let rules = AccountRules::default();
    let identity = |of: &Account| key("k", "a", &[]).identity(of, &plans, rules.clone(), Vec::new());
    assert_eq!((identity(&of).retention_days, identity(&of).limits.daily), (of.plan.retention_days(), Some(1_000)));
    of.retention_days = Some(7);
    of.limits.daily = Some(5);
    of.limits.monthly = Some(stage0_contract::UNLIMITED);
    let limits = identity(&of).limits;
    assert_eq!((limits.per_minute, limits.daily, limits.monthly), (Some(60), Some(5), None));
    assert_eq!(identity(&of).retention_days, 7);
    assert_eq!(identity(&of).caps, plans.caps(&of));
    of.plan = stage0_contract::Plan::Unlimited;
    of.limits = stage0_contract::Limits::NONE;
    assert!(identity(&of).limits.is_none());
}

#[test]
fn a_summary_holds_nothing_of_the_hash() {
    let text = serde_json::to_string(&key("k", "a", &[]).summary()).unwrap();
    assert!(!text.contains("argon2") && !text.contains("hash"), "{text}");
}

#[test]
fn an_identity_has_the_holder_and_the_rules_of_its_account() {
    let (of, plans) = (account("a"), Plans::built_in().unwrap());
    let mut record = key("k2", "a", &[]);
    let stops = vec![stop("stop_1", "a").stop];
    let rules = AccountRules {
        approvals: ApprovalMode::Verified,
        four_eyes: false,
        stops,
        floor: Some(policies::tests::version("floor")),
        ..AccountRules::default()
    };
    let identity = record.identity(&of, &plans, rules.clone(), Vec::new());
    assert_eq!(identity.rules, rules);
    assert_eq!(identity.holder, Some(Holder::of_workload(record.id.clone())), "of an older version");
    let holder = Holder { owner: Some(member("m", "a").member.id), ..Holder::of_workload(key("k1", "a", &[]).id) };
    record.holder = Some(holder.clone());
    let identity = record.identity(&of, &plans, AccountRules::default(), vec!["finance".to_owned()]);
    assert_eq!(identity.holder, Some(holder.clone()));
    assert_eq!((identity.key_name.as_deref(), identity.groups), (Some("n"), Some(vec!["finance".to_owned()])));
    assert_eq!((record.summary().owner, holder.member), (holder.owner, None));
}

#[test]
fn a_record_from_before_members_is_read_and_written_as_it_was() {
    let text = concat!(
        r#"{"key":{"id":"k","account":"a","name":"n","scopes":["check"],"hash":"h","#,
        r#""created_at":"1970-01-01T00:00:01Z"}}"#
    );
    let record: Record = serde_json::from_str(text).unwrap();
    assert!(matches!(&record, Record::Key(key) if key.holder() == Holder::of_workload(key.id.clone())));
    assert_eq!(serde_json::to_string(&record).unwrap(), text, "or journal and store would disagree");
    let text = serde_json::to_string(&Record::Account(account("a"))).unwrap();
    assert!(!text.contains("approvals") && !text.contains("four_eyes"), "{text}");
}

#[test]
fn a_removed_member_keeps_its_id_and_its_makers_alone() {
    let mut record = member("mem_1", "a");
    record.made_by = vec![Person::Member(member("mem_2", "a").member.id)];
    record.invitation = Some(Invitation { hash: CodeHash("hash".to_owned()), expires_at: at(9) });
    let gone = record.clone().tombstone(at(5));
    assert!(record.exists() && !gone.exists() && gone.made_by == record.made_by);
    let text = serde_json::to_string(&gone).unwrap();
    assert!(["Ada", "example.org", "release", "decide", "\"hash\""].iter().all(|of| !text.contains(of)), "{text}");
}

#[test]
fn only_what_takes_rights_away_is_stored_on_a_full_disk() {
    let mut ended = stop("stop_1", "a");
    assert!(Record::Stop(ended.clone()).takes_away());
    ended.ended_at = Some(at(5));
    assert!(!Record::Stop(ended.clone()).takes_away(), "checks are allowed again");
    ended.stop.until = Some(at(5));
    assert!(Record::Stop(ended).takes_away(), "it had ended by itself");
    assert!(!Record::Member(member("m", "a")).takes_away());
    assert!(Record::Member(member("m", "a").tombstone(at(5))).takes_away());
}

#[test]
fn a_stop_holds_until_the_beginning_of_its_last_second_or_until_it_is_resumed() {
    let mut record = stop("stop_1", "a");
    assert!(record.holds_at(at(100)));
    record.stop.until = Some(at(10));
    assert!(record.holds_at(at(9)) && !record.holds_at(at(10)));
    record.ended_at = Some(at(5));
    assert!(!record.holds_at(at(9)) && record.ends() == Some(at(5)));
}
