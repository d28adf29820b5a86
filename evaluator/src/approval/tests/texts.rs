//! For how long an action's text is kept, and what is shown of it in that time.

use stage0_contract::{ApprovalChange, ChangeApproval, ManageReply, ReadPeople, ShowApproval};
use stage0_policy::PackSet;

use super::*;
use crate::approval::text;
use crate::engines::Engines;

const GOAL: &str = "Deploy the whole payroll service";

/// Answers for the keystore until the work is done.
async fn with_people<T>(backplane: &Backplane, people: &People, work: impl Future<Output = T>) -> T {
    let mut asked = backplane.requests.serve::<ReadPeople>().await.unwrap();
    let keystore = async {
        while let Some(request) = asked.next().await {
            request.answer(&ManageReply::Done(people.clone())).await;
        }
    };
    tokio::select! {
        done = work => done,
        () = keystore => panic!("the keystore stopped"),
    }
}

/// Cancels an approval; for how long its text is kept then. Until then each of these sees the whole text.
async fn kept_after_cancel(by: &Actor, readers: &[&Actor], text_ttl: Duration) -> Duration {
    let mut backplane = Backplane::embedded();
    let noted = NotedStore::of(&mut backplane);
    let config = RunConfig { approval_text_ttl: text_ttl, ..RunConfig::default() };
    let (approvals, people) = (Approvals::new(&backplane, config), team());
    let engines = Engines::open(Arc::new(PackSet::embedded().unwrap())).unwrap();
    let pending =
        StoredApproval { created_at: from_now(0), expires_at: from_now(600), ..approval_of(terms(&[(&["rm"], 1)])) };
    let StoredApproval { account, id, .. } = &pending;
    let action = CheckRequest::parse(json!({"goal": GOAL})).unwrap();
    let sealed = text::seal(&people.text_key, account, &digest(), &action).unwrap();
    let place = ApprovalStore::place(account, &digest());
    with_people(&backplane, &people, async {
        approvals.store.put_text(account, id, sealed, Duration::from_secs(100_000), deadline()).await.unwrap();
        assert!(approvals.store.put(&place, &pending, None, deadline()).await.unwrap());
        let (account, id) = (account.clone(), id.clone());
        let change = ApprovalChange::Cancel {};
        let cancel = ChangeApproval { account, actor: by.clone(), id, change, reason: String::new() };
        let done = approvals.change(&engines, &cancel, deadline()).await;
        assert!(
            matches!(&done, ManageReply::Done(done) if done.approval.status == ApprovalStatus::Cancelled),
            "{done:?}"
        );
        for &reader in readers {
            let ChangeApproval { account, id, .. } = cancel.clone();
            let show = ShowApproval { account, actor: reader.clone(), id, wait: None };
            let shown = approvals.show(&engines, &show, deadline()).await;
            let ManageReply::Done(view) = shown else { panic!("not shown: {shown:?}") };
            assert_eq!(view.action.unwrap()["goal"], GOAL, "{}", reader.key_id);
        }
    })
    .await;
    noted.take_ttl(&format!("approvals.t.{account}.{id}"))
}

#[tokio::test]
async fn a_text_is_kept_for_a_minute_if_its_own_workload_cancels_and_for_its_time_if_a_member_does() {
    let workload = Actor { holder: agent(), scopes: [Scope::Check].into(), ..actor("x") };
    let ann = actor("ann");
    let (second, minute, day) = (Duration::from_secs(1), Duration::from_secs(60), Duration::from_secs(86_400));
    for (by, text_ttl, kept) in [(&workload, day, minute), (&workload, 10 * second, 10 * second), (&ann, day, day)] {
        assert_eq!(kept_after_cancel(by, &[&workload, &ann], text_ttl).await, kept, "{}", by.key_id);
    }
}
