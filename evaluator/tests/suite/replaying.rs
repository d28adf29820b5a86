//! Recorded decisions that another policy decides again, over the backplane.

use std::time::Duration;

use stage0_contract::{
    AccountId, AccountRules, ActivePolicies, EvaluateReply, KeptFacts, MAX_REPLAY_BATCH, PolicyBundle, PolicyVersion,
    ReplayDecisions, ReplayDecisionsReply, ReplayGap, Replayed, Verdict,
};

use super::published::{Deployment, WAIT_TIMEOUT, pack, payment, version_of};

async fn asked(deployment: &Deployment, version: &PolicyVersion, facts: Vec<KeptFacts>) -> ReplayDecisionsReply {
    let version = Some(version.clone());
    let message = ReplayDecisions { account: AccountId::parse("acc").unwrap(), version, facts };
    deployment.caller.requests.request(&message, WAIT_TIMEOUT).await.unwrap()
}

/// Two packs that read facts alike: one defers large amounts, the other denies them.
fn published() -> [(PolicyVersion, PolicyBundle); 2] {
    ["defer", "deny"].map(|effect| {
        let bundle = pack("ours", effect);
        (version_of(&bundle), bundle)
    })
}

/// The facts that are recorded of a payment that this version decides; none: the evaluator's own.
async fn kept(deployment: &Deployment, version: Option<&PolicyVersion>, amount: i64) -> KeptFacts {
    let policy = ActivePolicies { default: version.cloned(), ..ActivePolicies::default() };
    let rules = AccountRules { policy, record_facts: true, ..AccountRules::default() };
    let EvaluateReply::Decided(evaluation) = deployment.ask(&payment(amount), rules).await else { panic!("refused") };
    *evaluation.recordable.unwrap().facts.expect("facts are kept")
}

fn verdict(replayed: &Replayed) -> Option<Verdict> {
    match replayed {
        Replayed::Decided { verdict, .. } => Some(*verdict),
        Replayed::Not(_) => None,
    }
}

#[tokio::test]
async fn decisions_are_replayed_in_their_order_and_those_that_cannot_be_say_why() {
    let both = published();
    let deployment = Deployment::start(both.to_vec()).await;
    let [(defers, _), (denies, _)] = &both;
    let [small, large] = [kept(&deployment, Some(defers), 500).await, kept(&deployment, Some(defers), 501).await];
    let unreadable = KeptFacts { v: 9, ..small.clone() };
    let facts = vec![large.clone(), unreadable, small, large];
    for (version, of_large) in [(defers, Verdict::Defer), (denies, Verdict::Deny)] {
        let reply = asked(&deployment, version, facts.clone()).await;
        let ReplayDecisionsReply::Replayed(replayed) = reply else { panic!("{reply:?}") };
        let verdicts: Vec<_> = replayed.iter().map(verdict).collect();
        assert_eq!(verdicts, [Some(of_large), None, Some(Verdict::Allow), Some(of_large)], "{replayed:#?}");
        assert_eq!(replayed[1], Replayed::Not(ReplayGap::Unreadable));
        let Replayed::Decided { code: Some(code), rule: Some(rule), .. } = &replayed[0] else {
            panic!("{replayed:#?}")
        };
        assert_eq!((code.as_str(), rule.as_str()), ("LARGE_AMOUNT", "ours.large"));
    }
    let none = asked(&deployment, denies, Vec::new()).await;
    assert_eq!(none, ReplayDecisionsReply::Replayed(Vec::new()));
}

#[tokio::test]
async fn a_version_that_is_not_there_and_a_batch_beyond_the_bound_replay_nothing() {
    let [(defers, deferring), (denies, _)] = published();
    let deployment = Deployment::start(vec![(defers.clone(), deferring)]).await;
    let small = kept(&deployment, Some(&defers), 500).await;
    let reply = asked(&deployment, &denies, vec![small.clone()]).await;
    assert!(matches!(&reply, ReplayDecisionsReply::Unable(why) if why.contains(denies.as_str())), "{reply:?}");
    let reply = asked(&deployment, &defers, vec![small.clone(); MAX_REPLAY_BATCH + 1]).await;
    assert!(matches!(&reply, ReplayDecisionsReply::Unable(_)), "{reply:?}");
    let reply = asked(&deployment, &defers, vec![small.clone(); MAX_REPLAY_BATCH]).await;
    let ReplayDecisionsReply::Replayed(replayed) = reply else { panic!("{reply:?}") };
    assert_eq!(replayed.iter().filter(|one| verdict(one) == Some(Verdict::Allow)).count(), MAX_REPLAY_BATCH);
}

#[tokio::test]
async fn without_a_version_the_evaluators_own_policy_replays() {
    let deployment = Deployment::start(Vec::new()).await;
    let large = kept(&deployment, None, 501).await;
    let message = ReplayDecisions { account: AccountId::parse("acc").unwrap(), version: None, facts: vec![large] };
    let reply = deployment.caller.requests.request(&message, WAIT_TIMEOUT).await.unwrap();
    let ReplayDecisionsReply::Replayed(replayed) = reply else { panic!("{reply:?}") };
    assert_eq!(replayed.iter().map(verdict).collect::<Vec<_>>(), [Some(Verdict::Allow)]);
}

#[tokio::test]
async fn a_replay_past_its_time_has_no_answer_and_the_next_one_is_made() {
    let both = published();
    let deployment = Deployment::start(both.to_vec()).await;
    let small = kept(&deployment, Some(&both[0].0), 500).await;
    let message = ReplayDecisions {
        account: AccountId::parse("acc").unwrap(),
        version: Some(both[1].0.clone()),
        facts: vec![small.clone(); MAX_REPLAY_BATCH],
    };
    let late = deployment.caller.requests.request(&message, Duration::from_millis(1)).await;
    assert!(!matches!(late, Ok(ReplayDecisionsReply::Replayed(_))), "{late:?}");
    let reply = asked(&deployment, &both[1].0, vec![small]).await;
    assert!(matches!(&reply, ReplayDecisionsReply::Replayed(replayed) if replayed.len() == 1), "{reply:?}");
}
