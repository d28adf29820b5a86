//! Members of an account: invited, accepted, changed and removed, and who stands behind the keys that they make.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use stage0_contract::{
    AcceptInvitation, AccountId, ApprovalMode, Caller, CreateAccount, CreateKey, DelegateMember, Holder,
    InvitationCode, InviteMember, KeyChanged, ListKeys, ListMembers, ManageReply, Member, MemberId, MemberInvited,
    MemberStatus, People, Person, PersonRecord, ReadPeople, Refusal, ReinviteMember, RemoveMember, RevokeKey,
    RotateKey, Scope, UpdateAccount, UpdateMember,
};
use tokio::task::JoinSet;

use crate::harness::{LOSSES, Running, caller_of, caller_of_member, done, invite, next_key_notice, refused, scopes};
use crate::webhooks::unchanged;

async fn list(running: &Running, account: &AccountId) -> Vec<Member> {
    let call =
        ListMembers { caller: running.operator.clone(), account: Some(account.clone()), cursor: None, limit: 1_000 };
    done(running.ask(&call).await).items
}

async fn people(running: &Running, account: &AccountId) -> People {
    done(running.ask(&ReadPeople { account: account.clone() }).await)
}

async fn person(running: &Running, account: &AccountId, id: &MemberId) -> PersonRecord {
    people(running, account).await.members.into_iter().find(|person| person.id == *id).unwrap()
}

async fn holder(running: &Running, key: &stage0_contract::ApiKey) -> Holder {
    running.verify(key).await.unwrap().holder.unwrap()
}

#[tokio::test]
async fn an_invitation_makes_one_key_of_a_member_whose_inviter_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let (running, account) = Running::with_account(dir.path()).await;
    let manager = running.key(&account, &[Scope::MembersManage]).await;
    let MemberInvited { member, invitation_code: code, invitation_expires_at } =
        done(running.ask(&invite(&caller_of(&manager), "Ada")).await);
    assert_eq!((member.status, member.name.as_str()), (MemberStatus::Invited, "Ada"));
    assert_eq!(invitation_expires_at, member.created_at + SignedDuration::from_secs(3_600));
    assert!(!person(&running, &account, &member.id).await.may_decide, "it has no key yet");
    let accepted = done(running.accept(&code).await);
    assert_eq!(accepted.member, Member { status: MemberStatus::Active, ..member.clone() });
    let identity = running.verify(&accepted.key).await.unwrap();
    assert_eq!(identity.scopes, scopes(&[Scope::ApprovalsDecide]));
    let own = Holder { member: Some(member.id.clone()), ..Holder::of_workload(accepted.key_id.clone()) };
    assert_eq!(identity.holder, Some(own));
    assert_eq!(refused(running.accept(&code).await), Refusal::NotFound, "a code is used once");
    let unknown = InvitationCode::from_random(&[7; 20]);
    assert_eq!(refused(running.accept(&unknown).await), Refusal::NotFound);
    let expected = PersonRecord {
        id: member.id.clone(),
        groups: vec!["release-managers".to_owned()],
        may_decide: true,
        keys: vec![accepted.key_id.clone()],
        made_by: vec![Person::Workload(manager.id.clone())],
        delegate: None,
    };
    assert_eq!(people(&running, &account).await.members, [expected]);
    let revoke = RevokeKey { caller: running.operator.clone(), id: accepted.key_id };
    done(running.ask(&revoke).await);
    let ended = person(&running, &account, &member.id).await;
    assert_eq!((ended.may_decide, ended.keys), (false, Vec::new()), "its key has ended");
    running.stop().await;
}

#[tokio::test]
async fn a_members_keys_are_named_by_their_first_one_until_it_is_invited_again() {
    let dir = tempfile::tempdir().unwrap();
    let (running, account) = Running::with_account(dir.path()).await;
    let rights = scopes(&[Scope::ApprovalsDecide, Scope::KeysManage]);
    let call = InviteMember {
        account: Some(account.clone()),
        scopes: Some(rights.clone()),
        ..invite(&running.operator, "Ada")
    };
    let invited = done(running.ask(&call).await);
    let first = done(running.accept(&invited.invitation_code).await);
    let id = first.member.id.clone();
    assert_eq!(person(&running, &account, &id).await.keys, std::slice::from_ref(&first.key_id));
    let caller = caller_of_member(&first);
    assert_eq!(caller.scopes, rights);
    for overlap_seconds in [60, 0] {
        let rotate = RotateKey { caller: caller.clone(), id: first.key_id.clone(), overlap_seconds };
        done(running.ask(&rotate).await);
        assert_eq!(person(&running, &account, &id).await.keys, std::slice::from_ref(&first.key_id), "rotated");
    }
    let again = ReinviteMember { caller: running.operator.clone(), id: id.clone(), valid_seconds: 60 };
    let code = done(running.ask(&again).await).invitation_code;
    let second = done(running.accept(&code).await);
    assert_eq!(person(&running, &account, &id).await.keys, [second.key_id], "the earlier keys ended");
    running.stop().await;
}

#[tokio::test]
async fn of_many_acceptances_of_one_code_exactly_one_gets_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let (running, account) = Running::with_account(dir.path()).await;
    let call = InviteMember { account: Some(account.clone()), ..invite(&running.operator, "Ada") };
    let code = done(running.ask(&call).await).invitation_code;
    let mut asked = JoinSet::new();
    for number in 0..32_u8 {
        let requests = running.backplane.requests.clone();
        let unknown = InvitationCode::from_random(&[number; 20]);
        let code = if number % 2 == 0 { code.clone() } else { unknown };
        asked.spawn(async move {
            requests.request(&AcceptInvitation { code }, std::time::Duration::from_secs(30)).await.unwrap()
        });
    }
    let mut keys = 0;
    while let Some(reply) = asked.join_next().await {
        match reply.unwrap() {
            ManageReply::Done(_) => keys += 1,
            // Beyond the few that are judged at a time.
            ManageReply::Busy | ManageReply::Refused(Refusal::NotFound) => {}
            other => panic!("{other:?}"),
        }
    }
    // Each of them may have been one too many.
    while keys == 0 {
        keys += usize::from(matches!(running.accept(&code).await, ManageReply::Done(_)));
    }
    assert_eq!((keys, running.keys_of(&account).await), (1, 1));
    running.stop().await;
}

#[tokio::test]
async fn a_new_invitation_ends_the_old_code_and_its_acceptance_the_old_key() {
    let dir = tempfile::tempdir().unwrap();
    let (running, account) = Running::with_account(dir.path()).await;
    let manager = running.key(&account, &[Scope::MembersManage]).await;
    let first = done(running.ask(&invite(&caller_of(&manager), "Ada")).await);
    let (id, other) = (first.member.id, running.key(&account, &[Scope::MembersManage]).await);
    let again = |by: &Caller| ReinviteMember { caller: by.clone(), id: id.clone(), valid_seconds: 60 };
    let second = done(running.ask(&again(&caller_of(&other))).await);
    assert_eq!(refused(running.accept(&first.invitation_code).await), Refusal::NotFound, "it was replaced");
    let lost = done(running.accept(&second.invitation_code).await);
    let third = done(running.ask(&again(&running.operator)).await);
    assert!(running.is_active(&lost.key_id).await, "until the invitation is accepted");
    let mut notices = running.backplane.notices.subscribe::<KeyChanged>().await.unwrap();
    let found = done(running.accept(&third.invitation_code).await);
    assert!(!running.is_active(&lost.key_id).await && running.is_active(&found.key_id).await);
    assert_eq!(next_key_notice(&mut notices).await, (account.clone(), found.key_id));
    let made_by = [manager.id, other.id].map(Person::Workload);
    assert_eq!(person(&running, &account, &id).await.made_by, made_by, "not the operator");
    running.stop().await;
}

#[tokio::test]
async fn a_removed_members_keys_and_invitations_end_at_once_and_its_name_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (running, account) = Running::with_account(dir.path()).await;
    let manager = running.caller(&account, &[Scope::MembersManage]).await;
    let invited = done(running.ask(&invite(&manager, "Ada")).await);
    let accepted = done(running.accept(&invited.invitation_code).await);
    let id = accepted.member.id.clone();
    let again = ReinviteMember { caller: manager.clone(), id: id.clone(), valid_seconds: 60 };
    let pending = done(running.ask(&again).await).invitation_code;
    let mut notices = running.backplane.notices.subscribe::<KeyChanged>().await.unwrap();
    let remove = RemoveMember { caller: manager.clone(), id: id.clone() };
    done(running.ask(&remove).await);
    assert_eq!(next_key_notice(&mut notices).await.0, account);
    assert_eq!(running.verify(&accepted.key).await, None);
    assert_eq!(refused(running.accept(&pending).await), Refusal::NotFound);
    assert_eq!(list(&running, &account).await, []);
    let gone = person(&running, &account, &id).await;
    assert_eq!((gone.may_decide, gone.groups, gone.made_by.len()), (false, Vec::new(), 1));
    done(running.ask(&remove).await);
    assert_eq!(next_key_notice(&mut notices).await.0, account, "announced again for a minute");
    assert_eq!(refused(running.ask(&again).await), Refusal::NotFound);
    let update = UpdateMember { caller: manager, id, name: None, mail: None, groups: None };
    assert_eq!(refused(running.ask(&update).await), Refusal::NotFound);
    running.stop().await;
}

#[tokio::test]
async fn all_keys_of_a_member_that_rotated_often_are_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let (running, account) = Running::with_account(dir.path()).await;
    let (id, mut caller) = running.member(&account, &[Scope::KeysManage]).await;
    let mut keys = vec![caller.key_id.clone()];
    for _ in 0..70 {
        let id = caller.key_id.clone();
        let made = done(running.ask(&RotateKey { caller, id, overlap_seconds: 3_600 }).await);
        caller = caller_of(&made);
        keys.push(made.id);
    }
    assert!(running.is_active(&keys[0]).await && running.is_active(&keys[70]).await);
    done(running.ask(&RemoveMember { caller: running.operator.clone(), id }).await);
    for key in &keys {
        assert!(!running.is_active(key).await, "{key}");
    }
    running.stop().await;
}

#[tokio::test]
async fn members_and_their_invitations_survive_restarts_and_lost_files() {
    let dir = tempfile::tempdir().unwrap();
    let (running, account) = Running::with_account(dir.path()).await;
    let manager = running.caller(&account, &[Scope::MembersManage]).await;
    let used = done(running.ask(&invite(&manager, "Ada")).await);
    let accepted = done(running.accept(&used.invitation_code).await);
    let mut pending = done(running.ask(&invite(&manager, "Grace")).await);
    let removed = done(running.ask(&invite(&manager, "Eve")).await).member.id;
    done(running.ask(&RemoveMember { caller: manager, id: removed.clone() }).await);
    let (members, before) = (list(&running, &account).await, people(&running, &account).await);
    assert_eq!((members.len(), before.members.len()), (2, 3));
    running.stop().await;
    for lost in LOSSES {
        let running = Running::start_without(dir.path(), lost).await;
        assert_eq!(list(&running, &account).await, members, "{lost:?}");
        assert_eq!(people(&running, &account).await, before, "{lost:?}");
        assert_eq!(refused(running.accept(&used.invitation_code).await), Refusal::NotFound, "{lost:?}");
        assert!(running.is_active(&accepted.key_id).await);
        // A second invitation replaces the first; it is the one that the next start must know.
        let again =
            ReinviteMember { caller: running.operator.clone(), id: pending.member.id.clone(), valid_seconds: 3_600 };
        let next = done(running.ask(&again).await);
        assert_eq!(refused(running.accept(&pending.invitation_code).await), Refusal::NotFound, "{lost:?}");
        pending = next;
        running.stop().await;
    }
    let running = Running::start(dir.path()).await;
    done(running.accept(&pending.invitation_code).await);
    running.stop().await;
    let journal = std::fs::read(dir.path().join(stage0_keystore::JOURNAL_FILE)).unwrap();
    let journal = String::from_utf8_lossy(&journal);
    for code in [&used.invitation_code, &pending.invitation_code] {
        assert!(!journal.contains(code.expose()), "only a hash is stored");
    }
}

#[tokio::test]
async fn calls_about_members_need_their_scope_and_reach_no_other_account() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (mine, theirs) = (running.account("mine").await.id, running.account("theirs").await.id);
    let (foreign, _) = running.member(&theirs, &[]).await;
    let manager = running.caller(&mine, &[Scope::MembersManage]).await;
    let lacking = [Scope::MembersManage, Scope::ApprovalsDecide, Scope::Operator];
    let others: Vec<_> = Scope::ALL.into_iter().filter(|scope| !lacking.contains(scope)).collect();
    let others = running.caller(&mine, &others).await;
    for (caller, refusal) in [(manager, Refusal::NotFound), (others, Refusal::ScopeMissing(Scope::MembersManage))] {
        let invite = InviteMember { account: Some(theirs.clone()), ..invite(&caller, "Eve") };
        assert_eq!(refused(running.ask(&invite).await), refusal);
        let list = ListMembers { caller: caller.clone(), account: Some(theirs.clone()), cursor: None, limit: 1 };
        assert_eq!(refused(running.ask(&list).await), refusal);
        let again = ReinviteMember { caller: caller.clone(), id: foreign.clone(), valid_seconds: 60 };
        assert_eq!(refused(running.ask(&again).await), refusal);
        let update = UpdateMember { caller: caller.clone(), id: foreign.clone(), name: None, mail: None, groups: None };
        assert_eq!(refused(running.ask(&update).await), refusal);
        let delegate = DelegateMember { caller: caller.clone(), id: foreign.clone(), to: None, until: None };
        assert_eq!(refused(running.ask(&delegate).await), Refusal::ScopeMissing(Scope::Operator));
        assert_eq!(refused(running.ask(&RemoveMember { caller, id: foreign.clone() }).await), refusal);
    }
    assert_eq!(list(&running, &theirs).await.len(), 1);
    let unknown = ReadPeople { account: AccountId::parse("acc_none").unwrap() };
    assert_eq!(refused(running.ask(&unknown).await), Refusal::NotFound);
    running.stop().await;
}

#[tokio::test]
async fn members_are_listed_in_pages() {
    let dir = tempfile::tempdir().unwrap();
    let (running, account) = Running::with_account(dir.path()).await;
    let manager = running.caller(&account, &[Scope::MembersManage]).await;
    let mut ids = BTreeSet::new();
    for name in ["Ada", "Grace", "Alan"] {
        ids.insert(done(running.ask(&invite(&manager, name)).await).member.id);
    }
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let page = ListMembers { caller: manager.clone(), account: None, cursor, limit: 2 };
        let page = done(running.ask(&page).await);
        assert!(page.items.len() <= 2);
        found.extend(page.items.into_iter().map(|member| member.id));
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(found, ids.into_iter().collect::<Vec<_>>());
    running.stop().await;
}

#[tokio::test]
async fn a_member_delegates_by_its_own_key_without_a_scope_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (running, account) = Running::with_account(dir.path()).await;
    let ((away, caller), (to, other)) = (running.member(&account, &[]).await, running.member(&account, &[]).await);
    let until = Timestamp::from_second(Timestamp::now().as_second() + 3_600).unwrap();
    let call = |caller: &Caller| DelegateMember {
        caller: caller.clone(),
        id: away.clone(),
        to: Some(to.clone()),
        until: Some(until),
    };
    assert_eq!(refused(running.ask(&call(&other)).await), Refusal::ScopeMissing(Scope::Operator));
    let manager = running.caller(&account, &[Scope::MembersManage]).await;
    assert_eq!(refused(running.ask(&call(&manager)).await), Refusal::ScopeMissing(Scope::Operator));
    // The same claims with another's key.
    let stolen = Caller { key: other.key.clone(), ..caller.clone() };
    assert_eq!(refused(running.ask(&call(&stolen)).await), Refusal::ScopeMissing(Scope::Operator));
    let delegate = done(running.ask(&call(&caller)).await).delegate.unwrap();
    assert_eq!((&delegate.to, delegate.until), (&to, until));
    assert_eq!(person(&running, &account, &away).await.delegate, Some(delegate));
    let end = DelegateMember { to: None, until: None, ..call(&caller) };
    assert_eq!(done(running.ask(&end).await).delegate, None);
    running.stop().await;
}

#[tokio::test]
async fn a_workloads_keys_keep_their_name_their_owner_and_who_knows_their_secret() {
    let dir = tempfile::tempdir().unwrap();
    let (running, account) = Running::with_account(dir.path()).await;
    let (owner, _) = running.member(&account, &[]).await;
    let (maker, by) = running.member(&account, &[Scope::KeysManage, Scope::Check]).await;
    let (other, by_other) = running.member(&account, &[Scope::KeysManage, Scope::Check]).await;
    let call = CreateKey {
        caller: by.clone(),
        account: None,
        owner: Some(owner.clone()),
        ..running.create(&account, &[Scope::Check])
    };
    let first = done(running.ask(&call).await);
    let expected = Holder {
        owner: Some(owner.clone()),
        made_by: Some(Person::Member(maker.clone())),
        ..Holder::of_workload(first.id.clone())
    };
    assert_eq!(holder(&running, &first.key).await, expected);
    let second = done(running.ask(&RotateKey { caller: by.clone(), id: first.id, overlap_seconds: 60 }).await);
    assert_eq!(holder(&running, &second.key).await, expected, "the same workload");
    let third = RotateKey { caller: by_other, id: second.id, overlap_seconds: 0 };
    let third = done(running.ask(&third).await);
    let seen = Holder { known_to: vec![Person::Member(other.clone())], ..expected.clone() };
    assert_eq!(holder(&running, &third.key).await, seen, "who rotates a key sees its secret");
    let fourth = running.rotate(&third.id, 0).await;
    assert_eq!(holder(&running, &fourth.key).await, seen, "the operator is no person of the account");
    let list = ListKeys { caller: by.clone(), account: None, cursor: None, limit: 1_000 };
    let keys = done(running.ask(&list).await).items;
    let shown = keys.iter().find(|key| key.id == fourth.id).unwrap();
    assert_eq!((&shown.owner, &shown.member), (&Some(owner), &None));
    let own = keys.iter().find(|key| key.id == by.key_id).unwrap();
    assert_eq!((&own.owner, &own.member), (&None, &Some(maker)));
    // A member's key is its own affair.
    let rotate = |caller: &Caller| RotateKey { caller: caller.clone(), id: by.key_id.clone(), overlap_seconds: 0 };
    assert!(matches!(refused(running.ask(&rotate(&running.operator)).await), Refusal::Conflict(_)));
    let rotated = done(running.ask(&rotate(&by)).await);
    assert_eq!(holder(&running, &rotated.key).await.workload, by.key_id);
    running.stop().await;
}

#[tokio::test]
async fn only_an_active_member_of_the_account_owns_a_workload() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (mine, theirs) = (running.account("mine").await.id, running.account("theirs").await.id);
    let (foreign, _) = running.member(&theirs, &[]).await;
    let call = InviteMember { account: Some(mine.clone()), ..invite(&running.operator, "Ada") };
    let invited = done(running.ask(&call).await);
    let owned = |owner: &MemberId| CreateKey { owner: Some(owner.clone()), ..running.create(&mine, &[Scope::Check]) };
    for bad in [&foreign, &invited.member.id, &MemberId::parse("mem_none").unwrap()] {
        match refused(running.ask(&owned(bad)).await) {
            Refusal::Invalid(errors) => assert_eq!(errors[0].path, "owner"),
            other => panic!("{other:?}"),
        }
    }
    done(running.accept(&invited.invitation_code).await);
    done(running.ask(&owned(&invited.member.id)).await);
    let decides = running.create(&mine, &[Scope::ApprovalsDecide]);
    assert!(matches!(refused(running.ask(&decides).await), Refusal::Invalid(_)));
    running.stop().await;
}

#[tokio::test]
async fn the_rules_of_an_account_are_in_the_identity_of_its_keys_and_their_change_is_announced() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let call = CreateAccount {
        caller: running.operator.clone(),
        name: "a".to_owned(),
        plan: None,
        approvals: Some(ApprovalMode::Verified),
    };
    let account = done(running.ask(&call).await);
    assert_eq!((account.approvals, account.four_eyes), (ApprovalMode::Verified, true));
    let made = running.key(&account.id, &[Scope::Check]).await;
    let rules = async || running.verify(&made.key).await.unwrap().rules;
    assert_eq!((rules().await.approvals, rules().await.four_eyes), (ApprovalMode::Verified, true));
    let mut notices = running.backplane.notices.subscribe::<KeyChanged>().await.unwrap();
    let update = UpdateAccount {
        approvals: Some(ApprovalMode::Caller),
        four_eyes: Some(false),
        ..unchanged(&running, &account.id)
    };
    let changed = done(running.ask(&update).await);
    assert_eq!((changed.approvals, changed.four_eyes), (ApprovalMode::Caller, false));
    assert_eq!(next_key_notice(&mut notices).await.0, account.id);
    assert_eq!((rules().await.approvals, rules().await.four_eyes), (ApprovalMode::Caller, false));
    assert_eq!(done(running.ask(&unchanged(&running, &account.id)).await), changed, "what is absent stays");
    let silent = running.account("b").await;
    assert_eq!((silent.approvals, silent.four_eyes), (ApprovalMode::Caller, true));
    running.stop().await;
}

#[tokio::test]
async fn each_accounts_key_of_texts_stays_the_same_and_differs_from_others() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path()).await;
    let (a, b) = (running.account("a").await.id, running.account("b").await.id);
    let (of_a, of_b) = (people(&running, &a).await.text_key, people(&running, &b).await.text_key);
    assert_ne!(of_a, of_b);
    running.stop().await;
    let running = Running::start(dir.path()).await;
    assert_eq!(people(&running, &a).await.text_key, of_a);
    running.stop().await;
}
