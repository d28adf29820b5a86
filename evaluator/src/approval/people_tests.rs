//! Who counts: which keys, which systems outside, and that a large account is judged at once. And how much room an
//! account's wider grants take.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use stage0_contract::{
    AccountId, AccountRules, Actor, ApprovalTerms, CreateGrant, Delegate, Escalation, ExternalApproval, Grant, GrantId,
    Holder, KeyId, LineType, MemberId, People, Person, PersonRecord, Refusal, RequestId, Requirement, Scope, TextKey,
    Vote,
};

use super::grants::{StoredGrant, StoredGrants, fault};
use super::people::{Asker, Directory, Electorate, Question, Standing};
use super::record::{Outbox, StoredVote, blank_event};
use super::serve::asks_group;

/// What a record of the state store holds.
const RECORD_BYTES: usize = 1 << 20;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000 + second).unwrap()
}

fn key(text: &str) -> KeyId {
    KeyId::parse(text).unwrap()
}

fn member(text: &str) -> MemberId {
    MemberId::parse(text).unwrap()
}

fn person(id: &str, groups: &[&str], made_by: &[&str]) -> PersonRecord {
    PersonRecord {
        id: member(id),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        may_decide: true,
        keys: vec![key(&format!("key-{id}"))],
        made_by: made_by.iter().map(|maker| Person::Member(member(maker))).collect(),
        delegate: None,
    }
}

fn people(members: Vec<PersonRecord>) -> People {
    People { members, text_key: TextKey::new([1; 32]) }
}

fn terms(quorum: u32) -> ApprovalTerms {
    ApprovalTerms {
        requirements: vec![Requirement { groups: vec!["rm".to_owned()], quorum, escalation: None }],
        within_seconds: 100,
        valid_seconds: 50,
        reason_required: false,
        escalation: None,
    }
}

fn agent() -> Holder {
    Holder { owner: Some(member("owner")), ..Holder::of_workload(key("agent")) }
}

fn vote(of: Option<&str>, workload: &str, outside: &[&str]) -> StoredVote {
    let external = ExternalApproval {
        approved_by: outside.iter().map(|name| (*name).to_owned()).collect(),
        evidence: String::new(),
    };
    let vote = Vote {
        member_id: of.map(member),
        key_id: key("some-rotation"),
        approve: true,
        at: at(1),
        reason: String::new(),
        on_behalf_of: None,
        external: of.is_none().then_some(external),
    };
    StoredVote { vote, holder: Holder { member: of.map(member), ..Holder::of_workload(key(workload)) } }
}

fn is_enough(people: &People, votes: &[StoredVote], quorum: u32) -> bool {
    let (asker, terms) = (Asker::new(&agent(), true), terms(quorum));
    let question = Question { asker: &asker, terms: &terms, opened_at: at(0), now: at(1) };
    Directory::new(people).is_enough(votes, question)
}

#[test]
fn a_vote_counts_while_its_key_or_a_rotation_of_it_is_one_of_the_members() {
    let mut account = people(vec![person("ann", &["rm"], &[])]);
    let given = [vote(Some("ann"), "key-ann", &[])];
    assert!(is_enough(&account, &given, 1), "a rotation has the workload of the first key");
    account.members[0].keys = vec![key("key-new")];
    assert!(!is_enough(&account, &given, 1), "invited again: the earlier keys ended");
    assert!(is_enough(&account, &[vote(Some("ann"), "key-new", &[])], 1));
    account.members[0].keys.push(key("key-ann"));
    account.members[0].may_decide = false;
    assert!(!is_enough(&account, &given, 1), "no key that may decide");
}

#[test]
fn members_and_names_of_different_systems_are_not_added_up() {
    let account = people(vec![person("ann", &["rm"], &[]), person("bob", &["rm"], &[])]);
    let (ann, bob) = (vote(Some("ann"), "key-ann", &[]), vote(Some("bob"), "key-bob", &[]));
    let (one, same) = (vote(None, "itsm", &["Ann"]), vote(None, "itsm", &["Lee", "ann "]));
    let other = vote(None, "chat", &["Kim"]);
    assert!(!is_enough(&account, &[ann.clone(), one.clone()], 2), "a member and a name");
    assert!(!is_enough(&account, &[one.clone(), other.clone()], 2), "names in two systems");
    assert!(is_enough(&account, &[one.clone(), same, other.clone()], 2), "two names in one system");
    assert!(is_enough(&account, &[ann, bob, one.clone()], 2), "two members");
    assert!(is_enough(&account, &[one], 1) && is_enough(&account, &[other], 1));
}

#[test]
fn no_member_decides_in_the_place_of_one_without_a_live_key() {
    let mut account = people(vec![person("ann", &["rm"], &[]), person("bob", &["dev"], &[])]);
    account.members[0].delegate = Some(Delegate { to: member("bob"), until: at(10) });
    let standing = |account: &People| {
        let (asker, terms) = (Asker::new(&agent(), true), terms(1));
        let question = Question { asker: &asker, terms: &terms, opened_at: at(0), now: at(1) };
        Directory::new(account).standing(&member("bob"), question)
    };
    assert_eq!(standing(&account), Standing::May { on_behalf_of: Some(member("ann")) });
    account.members[0].may_decide = false;
    assert_eq!(standing(&account), Standing::OtherGroups);
}

#[test]
fn a_list_by_group_has_what_the_group_may_decide_later() {
    let mut terms = terms(1);
    let asks = |terms: &ApprovalTerms, group: &str| asks_group(terms, &group.to_owned());
    assert!(asks(&terms, "rm") && !asks(&terms, "sec"));
    terms.escalation = Some(Escalation { after_seconds: 30, groups: vec!["sec".to_owned()] });
    assert!(asks(&terms, "sec") && !asks(&terms, "dev"));
}

#[test]
fn a_chain_of_a_thousand_inviters_is_judged_at_once() {
    let name = |at: usize| format!("m{at}");
    let chained = |at: usize| match at.checked_sub(1) {
        Some(before) => person(&name(at), &["rm"], &[&name(before)]),
        None => person("m0", &["rm"], &[]),
    };
    let mut members: Vec<_> = (0..999).map(chained).collect();
    members.push(person("ann", &["rm"], &[]));
    let account = people(members);
    let (directory, started) = (Directory::new(&account), Instant::now());
    let electorate = |asker: &Asker, quorum| {
        let terms = terms(quorum);
        directory.electorate(Question { asker, terms: &terms, opened_at: at(0), now: at(1) })
    };
    for _ in 0..20 {
        let asker = Asker::new(&agent(), true);
        assert_eq!(electorate(&asker, 2), Electorate { eligible: 1_000, is_short: false });
        assert_eq!(electorate(&asker, 3), Electorate { eligible: 2, is_short: true }, "the chain is one person");
        let chained = Holder { owner: Some(member("m500")), ..Holder::of_workload(key("agent")) };
        assert_eq!(electorate(&Asker::new(&chained, true), 1), Electorate { eligible: 1, is_short: false });
    }
    // 60 questions; quadratic ones would take minutes.
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

fn create() -> CreateGrant {
    CreateGrant {
        account: AccountId::parse("acc").unwrap(),
        actor: ann(),
        holder: None,
        key_id: key("agent"),
        run_id: None,
        tool: Some("t".repeat(200)),
        effects: Some(vec!["é".repeat(100); 20]),
        environment: Some("e".repeat(200)),
        until: at(3_600),
        reason: "because".to_owned(),
    }
}

fn ann() -> Actor {
    Actor {
        key_id: key("key-ann"),
        holder: Holder { member: Some(member("ann")), ..Holder::of_workload(key("key-ann")) },
        scopes: [Scope::ApprovalsDecide].into(),
        key_name: None,
        groups: None,
        rules: AccountRules::default(),
        can_record: true,
        reports_outcomes: false,
        retention_days: 30,
    }
}

#[test]
fn what_a_grant_names_is_bounded() {
    assert!(fault(&create(), at(0)).is_none());
    let long = |part: &str| {
        let mut call = create();
        let text = Some("x".repeat(201));
        match part {
            "run_id" => call.run_id = text,
            "tool" => call.tool = text,
            _ => call.environment = text,
        }
        fault(&call, at(0)).unwrap().path
    };
    for part in ["run_id", "tool", "environment"] {
        assert_eq!(long(part), part);
    }
    for effects in [vec!["x".repeat(101)], vec!["x".to_owned(); 21]] {
        let call = CreateGrant { effects: Some(effects), ..create() };
        assert_eq!(fault(&call, at(0)).unwrap().path, "effects");
    }
}

fn grant(number: usize) -> StoredGrant {
    let CreateGrant { run_id, tool, effects, environment, until, .. } = create();
    let grant = Grant {
        id: GrantId::parse(&format!("grt_{number:032x}")).unwrap(),
        workload: key("agent"),
        run_id,
        tool,
        effects,
        environment,
        until,
        created_at: at(0),
        votes: Vec::new(),
        revoked_at: None,
        uses: 0,
        used_by: Vec::new(),
    };
    StoredGrant { grant, votes: Vec::new(), asker: agent(), outbox: Outbox::default(), is_crowded: false }
}

fn request(number: u64) -> RequestId {
    RequestId::parse(&format!("0190163d-8694-739b-aea5-{number:012x}")).unwrap()
}

fn use_it(stored: &mut StoredGrant, number: u64) {
    let blank = blank_event(LineType::ApprovalUsed, at(1));
    stored.record_use(&key("agent"), request(number), request(number), blank);
}

#[test]
fn grants_are_refused_before_a_revocation_would_not_fit() {
    let account = people(vec![person("ann", &["rm"], &[])]);
    let (directory, mut grants) = (Directory::new(&account), StoredGrants::new(AccountId::parse("acc").unwrap()));
    // Four bytes each.
    let reason = "\u{1f510}".repeat(1_000);
    let mut made = 0;
    let refused = loop {
        let mut stored = grant(made);
        stored.approve(&ann(), &directory, &reason, at(0)).unwrap();
        match grants.add(stored, at(0)) {
            Ok(()) => made += 1,
            Err(refused) => break refused,
        }
    };
    assert!(matches!(refused, Refusal::Conflict(text) if text.contains("too large")));
    assert!(made > 20, "{made}");
    assert_eq!(grants.grants.len(), made, "the refused one is not kept");
    grants.pass_time(at(1));
    assert!(grants.grants[0].is_usable(&key("agent"), at(1)), "there is room");
    while grants.check_size().is_ok() {
        let count = grants.grants[0].grant.uses;
        use_it(&mut grants.grants[0], count);
    }
    grants.pass_time(at(1));
    assert!(!grants.grants.iter().any(|stored| stored.is_usable(&key("agent"), at(1))), "a use would need room");
    for stored in &mut grants.grants {
        stored.revoke(&ann(), &reason, at(1)).unwrap();
    }
    let bytes = serde_json::to_vec(&grants).unwrap().len();
    assert!(bytes < RECORD_BYTES, "{bytes}");
}

#[test]
fn sixty_four_uses_at_the_same_time_are_released_and_twenty_are_shown() {
    let mut stored = grant(1);
    (0..64).for_each(|number| use_it(&mut stored, number));
    (0..64).for_each(|number| use_it(&mut stored, number));
    assert_eq!(stored.grant.uses, 64, "each attempt counts once");
    let shown = stored.view().used_by;
    assert_eq!((shown.len(), shown[0], shown[19]), (20, request(44), request(63)));
    assert!((0..64).all(|number| stored.release(request(number))));
    assert_eq!((stored.grant.uses, stored.outbox.events.len()), (0, 0));
}
