//! Events that were not recorded in time: handed out once, in order, and whatever else of the account cannot be read.

use std::collections::HashSet;

use stage0_contract::{
    AccountEvents, ApprovalEvent, CollectEvents, EventRef, Grant, GrantId, ManageReply, SettleEvents,
};

use super::*;
use crate::approval::grants::{StoredGrant, StoredGrants};
use crate::approval::index::Index;
use crate::approval::record::blank_event;

/// The accounts of a page, and where the next one begins.
pub(super) async fn page(approvals: &Approvals, cursor: Option<String>) -> (Vec<AccountEvents>, Option<String>) {
    match approvals.collect(&CollectEvents { cursor }, deadline()).await {
        ManageReply::Done(page) => (page.accounts, page.next_cursor),
        reply => panic!("not collected: {reply:?}"),
    }
}

async fn settle(approvals: &Approvals, found: &AccountEvents) -> bool {
    let recorded = found.events.iter().map(EventRef::of);
    let settle = SettleEvents { account: found.account.clone(), recorded: recorded.collect(), released: None };
    matches!(approvals.settle(&settle, deadline()).await, ManageReply::Done(_))
}

/// Stores a pending approval of an action of its own with this many events that were not recorded in time.
async fn stored(approvals: &Approvals, owner: &str, action: u64, events: usize) -> StoredApproval {
    let action_digest = ActionDigest::parse(&format!("{action:064x}").chars().rev().collect::<String>()).unwrap();
    let mut approval = approval_of(terms(&[(&["rm"], 2)]));
    approval.id = id_in(slot_of(&action_digest), [1, 2, 3, 4]).unwrap();
    (approval.account, approval.action_digest) = (account(owner), action_digest);
    (approval.expires_at, approval.outbox) = (from_now(600), Outbox::default());
    approval.opened(3);
    while approval.outbox.events.len() < events {
        let event = approval.event(LineType::ApprovalVoted, at(1));
        approval.push(event);
    }
    let place = ApprovalStore::place(&approval.account, &approval.action_digest);
    assert!(approvals.store.put(&place, &approval, None, deadline()).await.unwrap());
    approvals.store.reindex(&approval, deadline()).await.unwrap();
    approval
}

/// Puts something in a record's place that is none.
async fn break_record(backplane: &Backplane, key: &str) {
    let store = &backplane.state_store;
    let revision = store.get(key, deadline()).await.unwrap().map(|record| record.revision);
    store.put(key, "no record".into(), revision, None, deadline()).await.unwrap();
}

/// Has ann change an approval.
async fn change(approvals: &Approvals, stored: &StoredApproval, change: impl Fn(&mut StoredApproval, Change<'_>)) {
    let (people, ann) = (team(), actor("ann"));
    let directory = Directory::new(&people);
    let changed = approvals.update(&stored.account, &stored.id, deadline(), |approval, _| {
        change(approval, Change { actor: &ann, directory: &directory, reason: "", now: at(50) });
        true
    });
    assert!(changed.await.unwrap());
}

/// A vote, a cancellation, and the end of a time, of approvals on different pages.
async fn change_some(approvals: &Approvals, stored: &[StoredApproval]) {
    let [.., expired, cancelled] = stored else { panic!("too few") };
    change(approvals, &stored[0], |approval, by| {
        let digest = approval.action_digest.clone();
        approval.approve(&digest, by).unwrap();
    })
    .await;
    change(approvals, cancelled, |approval, by| approval.cancel(by).unwrap()).await;
    change(approvals, expired, |approval, by| approval.expires_at = by.now).await;
}

#[tokio::test]
async fn each_event_is_handed_out_once_and_in_order_over_pages_and_rounds_while_approvals_change() {
    let approvals = Approvals::new(&Backplane::embedded(), RunConfig::default());
    let mut all = Vec::new();
    // More accounts than a page has, and two of them with more events.
    for number in 0..55 {
        all.push(stored(&approvals, &format!("acc-{number:02}"), number, 2).await);
    }
    for (action, owner) in [(90, "acc-07"), (91, "acc-07"), (92, "acc-60"), (93, "acc-60"), (94, "acc-60")] {
        all.push(stored(&approvals, owner, action, 45).await);
    }
    let (mut collected, mut pages): (Vec<ApprovalEvent>, _) = (Vec::new(), 0);
    for round in 0.. {
        assert!(round < 20, "it comes to an end");
        let (mut found, mut cursor) = (Vec::new(), None);
        loop {
            let (accounts, next) = page(&approvals, cursor).await;
            assert!(accounts.iter().all(|account| account.events.len() <= 50));
            assert!(accounts.iter().map(|account| account.events.len()).sum::<usize>() <= 200);
            found.extend(accounts);
            pages += 1;
            if pages == 1 {
                change_some(&approvals, &all).await;
            }
            cursor = next;
            if cursor.is_none() {
                break;
            }
        }
        if found.is_empty() {
            break;
        }
        for account in &found {
            assert!(settle(&approvals, account).await);
        }
        collected.extend(found.into_iter().flat_map(|account| account.events));
    }
    assert!(pages > 4, "{pages}");
    for approval in &all {
        let (_, kept, _) = approvals.store.find(&approval.account, &approval.id, deadline()).await.unwrap().unwrap();
        let own = collected.iter().filter(|event| event.approval_id.as_ref() == Some(&approval.id));
        let own: Vec<_> = own.map(|event| event.event_id).collect();
        let expected: Vec<_> = kept.outbox.events.iter().map(|stored| stored.event.event_id).collect();
        assert_eq!(own, expected, "{}", approval.id);
        assert!(kept.outbox.unrecorded(None).is_empty());
    }
    let kinds: HashSet<_> = collected.iter().map(|event| event.kind).collect();
    assert!(kinds.contains(&LineType::ApprovalCancelled) && kinds.contains(&LineType::ApprovalExpired), "{kinds:?}");
    assert_eq!(collected.len(), 55 * 2 + 5 * 45 + 3, "with a vote, a cancellation and an end");
}

#[tokio::test]
async fn a_malformed_record_does_not_keep_the_accounts_other_events_from_being_handed_out() {
    let of_second = format!("approvals.a.acc.2{}", "0".repeat(31));
    for (broken, expected) in [("approvals.g.acc", 6), (&of_second, 4)] {
        let backplane = Backplane::embedded();
        let approvals = Approvals::new(&backplane, RunConfig::default());
        for action in [1, 2, 3] {
            stored(&approvals, "acc", action, 2).await;
        }
        let set_due = |index: &mut Index| index.grants_due_at = Some(at(0));
        approvals.store.change_index(&account("acc"), deadline(), set_due).await.unwrap();
        break_record(&backplane, broken).await;
        let (accounts, _) = page(&approvals, None).await;
        assert_eq!(accounts.iter().map(|account| account.events.len()).sum::<usize>(), expected, "{broken}");
    }
}

#[tokio::test]
async fn what_a_successor_took_over_is_settled_although_the_record_of_the_ended_one_is_malformed() {
    let backplane = Backplane::embedded();
    let approvals = Approvals::new(&backplane, RunConfig::default());
    let ended = stored(&approvals, "acc", 1, 2).await;
    let found = approvals.store.current(&ended.account, ended.slot(), deadline()).await.unwrap();
    let mut heir = StoredApproval { id: id_in(ended.slot(), [9; 4]).unwrap(), ..ended.clone() };
    heir.outbox = Outbox::default();
    heir.opened(3);
    heir.outbox.inherit(&ended.outbox);
    let place = ApprovalStore::place(&heir.account, &heir.action_digest);
    assert!(approvals.store.put(&place, &heir, found.revision, deadline()).await.unwrap());
    break_record(&backplane, &format!("approvals.a.acc.{}", ended.id)).await;
    let (accounts, _) = page(&approvals, None).await;
    assert_eq!(accounts[0].events.len(), 3);
    assert!(!settle(&approvals, &accounts[0]).await, "the caller hears that not all is settled");
    let current = approvals.store.current(&heir.account, heir.slot(), deadline()).await.unwrap();
    assert!(current.value.unwrap().outbox.unrecorded(None).is_empty());
}

fn grant_with(number: usize, events: usize) -> StoredGrant {
    let grant = Grant {
        id: GrantId::parse(&format!("grt_{number}")).unwrap(),
        workload: key(AGENT),
        run_id: None,
        tool: Some("argo_cd".to_owned()),
        effects: None,
        environment: None,
        until: from_now(600),
        created_at: at(0),
        votes: Vec::new(),
        revoked_at: None,
        uses: 0,
        used_by: Vec::new(),
    };
    let mut outbox = Outbox::default();
    for _ in 0..events {
        let event = blank_event(LineType::GrantCreated, at(1));
        outbox.push(grant.id.as_str(), ApprovalEvent { grant_id: Some(grant.id.clone()), ..event });
    }
    StoredGrant { grant, votes: Vec::new(), asker: agent(), outbox, is_crowded: false }
}

#[tokio::test]
async fn the_events_of_an_accounts_grants_come_in_pages_of_fifty_in_all() {
    let approvals = Approvals::new(&Backplane::embedded(), RunConfig::default());
    let add = |grants: &mut StoredGrants, _| {
        grants.grants = (0..3).map(|number| grant_with(number, 40)).collect();
        Ok::<_, ()>(())
    };
    approvals.store.change_grants(&account("acc"), deadline(), add).await.unwrap().unwrap();
    let mut ids = HashSet::new();
    for expected in [50, 50, 20] {
        let (accounts, _) = page(&approvals, None).await;
        assert_eq!(accounts[0].events.len(), expected);
        assert!(settle(&approvals, &accounts[0]).await);
        ids.extend(accounts[0].events.iter().map(|event| event.event_id));
    }
    assert_eq!(ids.len(), 120);
    assert!(page(&approvals, None).await.0.is_empty());
}
