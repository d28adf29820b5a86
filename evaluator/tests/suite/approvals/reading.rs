//! What is read of an approval, by whom, and what a malformed record hides.

use super::*;

#[tokio::test]
async fn the_text_is_sealed_and_shown_to_its_workload_and_to_those_who_may_decide_alone() {
    let goal = "Carry out the zanzibar change";
    let stage = Stage::new(1).await;
    let approval = stage.open(&check(1, goal)).await;
    let id = approval.id.clone().unwrap();
    let until = Instant::now() + WAIT_TIMEOUT;
    for under in ["approvals.a.acc", "approvals.t.acc", "approvals.i"] {
        let page = stage.caller.state_store.list(under, None, 10, until).await.unwrap();
        assert_eq!(page.records.len(), 1, "{under}");
        assert!(!String::from_utf8_lossy(&page.records[0].1.value).contains("zanzibar"), "{under}");
    }
    let reader = actor("reader", Holder::of_workload(KeyId::parse("reader").unwrap()), &[Scope::DecisionsRead]);
    for (actor, sees) in [
        (agent(), true),
        (member("ann"), true),
        (member("dan"), false),
        (member("owner"), false),
        (reader.clone(), false),
    ] {
        let ManageReply::Done(view) = stage.show(&actor, &id).await else { panic!("not shown to {actor:?}") };
        let shown = view.action.as_ref().is_some_and(|action| action["goal"] == goal);
        assert_eq!((shown, view.action.is_some()), (sees, sees), "{actor:?}");
        assert_eq!((view.eligible, view.status), (Some(3), ApprovalStatus::Pending));
    }
    let foreign = actor("foreign", Holder::of_workload(KeyId::parse("foreign").unwrap()), &[Scope::Check]);
    assert_eq!(stage.show(&foreign, &id).await, ManageReply::Refused(Refusal::NotFound));
    let fetch = |actor: &Actor| FetchAction { account: account(), actor: actor.clone(), id: id.clone() };
    for other in [&foreign, &reader, &member("ann")] {
        assert_eq!(stage.ask(&fetch(other)).await, ManageReply::Refused(Refusal::NotFound));
    }
    let ManageReply::Done(fetched) = stage.ask(&fetch(&agent())).await else { panic!("not fetched") };
    assert_eq!(fetched.request, check(1, goal).request);
    let list = |actor: &Actor, group: Option<&str>| ListApprovals {
        account: account(),
        actor: actor.clone(),
        status: Some(ApprovalStatus::Pending),
        group: group.map(str::to_owned),
        cursor: None,
        limit: 10,
    };
    for (actor, group, count) in [
        (&reader, None, 1),
        (&reader, Some("rm"), 1),
        (&reader, Some("dev"), 0),
        (&foreign, None, 0),
        (&agent(), None, 1),
    ] {
        let ManageReply::Done(page) = stage.ask(&list(actor, group)).await else { panic!("no list") };
        assert_eq!(page.items.len(), count, "{actor:?}");
        assert!(page.items.iter().all(|approval| approval.action.is_none()));
    }
}

#[tokio::test]
async fn a_text_is_gone_some_time_after_the_end() {
    let config = RunConfig { approval_text_ttl: Duration::from_secs(1), ..RunConfig::default() };
    let stage = Stage::with(1, config).await;
    let approval = stage.open(&check(1, GOAL)).await;
    let fetch = FetchAction { account: account(), actor: agent(), id: approval.id.clone().unwrap() };
    assert!(matches!(stage.ask(&fetch).await, ManageReply::Done(_)));
    assert!(matches!(stage.change(&agent(), &approval, ApprovalChange::Cancel {}, "").await, ManageReply::Done(_)));
    let gone = async { while matches!(stage.ask(&fetch).await, ManageReply::Done(_)) {} };
    tokio::time::timeout(WAIT_TIMEOUT, gone).await.unwrap();
    refused(stage.ask(&fetch).await, "send the whole request again");
    assert!(stage.seen(&approval).await.action.is_none());
}

#[tokio::test]
async fn a_forged_or_moved_record_lets_nothing_pass() {
    let stage = Stage::new(1).await;
    let approval = stage.approved(&check(1, GOAL)).await;
    let other = stage.open(&check(2, "Carry out another change")).await;
    let store = &stage.caller.state_store;
    let until = Instant::now() + WAIT_TIMEOUT;
    let approved = store.get(&record_key(&approval), until).await.unwrap().unwrap();
    let pending = store.get(&record_key(&other), until).await.unwrap().unwrap();
    for forged in [approved.value, "no record".into()] {
        let current = store.get(&record_key(&other), until).await.unwrap().unwrap();
        store.put(&record_key(&other), forged, Some(current.revision), None, until).await.unwrap();
        let decided = stage.check(&check(3, "Carry out another change")).await.decision;
        assert_eq!((decided.verdict, &decided.approval), (Verdict::Defer, &None));
        assert_eq!(stage.vote("ann", &other).await, ManageReply::Failed);
    }
    let current = store.get(&record_key(&other), until).await.unwrap().unwrap();
    store.put(&record_key(&other), pending.value, Some(current.revision), None, until).await.unwrap();
    assert_eq!(stage.open(&check(4, "Carry out another change")).await.id, other.id, "the true one is taken");
    stage.alter(&record_key(&approval), |record| record["votes"] = json!([])).await;
    let decided = stage.check(&check(5, GOAL)).await.decision;
    assert_eq!(decided.verdict, Verdict::Defer, "a status without votes is worth nothing");
}

/// The ids on all pages of a list.
async fn listed(stage: &Stage, limit: u32) -> Vec<ApprovalId> {
    let (mut ids, mut cursor) = (Vec::new(), None);
    loop {
        let (account, actor) = (account(), member("ann"));
        let message = ListApprovals { account, actor, status: None, group: None, cursor, limit };
        let ManageReply::Done(page) = stage.ask(&message).await else { panic!("no list") };
        ids.extend(page.items.into_iter().map(|approval| approval.id));
        cursor = page.next_cursor;
        if cursor.is_none() {
            ids.sort_unstable();
            return ids;
        }
    }
}

#[tokio::test]
async fn a_malformed_or_moved_record_is_not_listed_and_hides_no_other() {
    let stage = Stage::new(1).await;
    let mut opened = Vec::new();
    for number in 1..5 {
        opened.push(stage.open(&check(number, &format!("Carry out change number {number}"))).await);
    }
    let ids = |of: &[ApprovalRef]| {
        let mut ids: Vec<_> = of.iter().map(|approval| approval.id.clone().unwrap()).collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(listed(&stage, 10).await, ids(&opened));
    let (store, until) = (&stage.caller.state_store, Instant::now() + WAIT_TIMEOUT);
    let copied = store.get(&record_key(&opened[0]), until).await.unwrap().unwrap();
    let elsewhere = format!("approvals.a.acc.{}", "cd".repeat(16));
    store.put(&elsewhere, copied.value, None, None, until).await.unwrap();
    let broken = store.get(&record_key(&opened[2]), until).await.unwrap().unwrap();
    store.put(&record_key(&opened[2]), "no record".into(), Some(broken.revision), None, until).await.unwrap();
    stage.alter(&record_key(&opened[3]), |record| record["account"] = "other".into()).await;
    for limit in [1, 10] {
        assert_eq!(listed(&stage, limit).await, ids(&opened[..2]), "{limit} on a page");
    }
    for unreadable in &opened[2..] {
        let shown = stage.show(&member("ann"), unreadable.id.as_ref().unwrap()).await;
        assert_eq!(shown, ManageReply::Failed, "that it cannot be read is not the same as that there is none");
    }
    for by in ["ann", "bob"] {
        assert!(matches!(stage.vote(by, &opened[0]).await, ManageReply::Done(_)));
    }
    assert_eq!(stage.check(&check(9, "Carry out change number 1")).await.decision.verdict, Verdict::Allow);
}
