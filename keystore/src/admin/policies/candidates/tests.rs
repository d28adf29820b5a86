//! What begins and ends a candidate, under which id, and what another change in between does.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use super::*;
use crate::admin::announce::Changed;
use crate::plans::Plans;
use crate::seal::tests::sealer_of;
use crate::sources::Clock;
use crate::store::DurableStore;
use crate::store::record::Record;
use crate::store::record::policies::tests::{owner, policy, version};
use crate::store::record::tests::{account, at, key, member};
use crate::store::snapshot::StoreId;
use stage0_contract::{
    Account, ActivatePolicy, Activation, CandidateCounts, CheckRequest, DecideProposal, Holder, PolicyChanges,
    ProposalDecision, ProposalStatus, ReturnAt, RollbackPolicy,
};

const TERMS: CanaryTerms =
    CanaryTerms { percent: 20, return_at: ReturnAt { disagreement_percent: 2, error_percent: 0, min_checks: 50 } };

/// An account with three versions, of which `v1` is the default, a workload `bot`, and the member `ada`.
struct Lab {
    admin: AdminService,
    time: Arc<AtomicI64>,
    _dir: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        Self::with(1, PolicyChanges::Single)
    }

    fn with(directory: u8, policy_changes: PolicyChanges) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let durable = DurableStore::open(dir.path(), StoreId::from_random([directory; 16]), at(1)).unwrap();
        let time = Arc::new(AtomicI64::new(100));
        let clock = Arc::clone(&time);
        let clock: Clock = Arc::new(move || at(clock.load(Ordering::Relaxed)));
        let mut admin = AdminService::new(durable, Arc::new(sealer_of(1)), clock, Plans::built_in().unwrap()).unwrap();
        let mut own = key("ada", "a", &[Scope::PoliciesManage]);
        own.holder = Some(Holder { member: Some(member("ada", "a").member.id), ..own.holder() });
        let mut active = ActiveRecord { account: owner(Some("a")), sequence: 1, ..ActiveRecord::default() };
        active.default.activate(version("v1"));
        let mut records = vec![
            Record::Account(Account { policy_changes, ..account("a") }),
            Record::Key(key("bot", "a", &[Scope::PoliciesManage])),
            Record::Member(member("ada", "a")),
            Record::Key(own),
            Record::ActivePolicies(active),
        ];
        records.extend(["v1", "v2", "v3"].map(|pack| Record::Policy(policy(pack, Some("a")))));
        admin.commit(&records).unwrap();
        Self { admin, time, _dir: dir }
    }

    fn record(&self) -> ActiveRecord {
        self.admin.store().active_policies(owner(Some("a")).as_ref()).unwrap()
    }

    fn candidates(&self) -> Vec<PolicyCandidate> {
        self.record().candidates
    }

    fn newest(&self) -> Activation {
        self.admin.store().activations(owner(Some("a")).as_ref(), None).next().unwrap().unwrap()
    }

    fn shadow(&mut self, call: &ShadowPolicy) -> CandidateChanged {
        self.admin.shadow_policy(call).unwrap().0
    }

    fn activate(&mut self, call: &ActivatePolicy) -> ActivationDone {
        self.admin.activate_policy(call).unwrap().0
    }

    fn withdraw(&mut self, call: &WithdrawCandidate) -> Result<CandidateChanged, Refusal> {
        refusal(self.admin.withdraw_candidate(call))
    }

    fn returns(&mut self, call: &ReturnCanary) -> Result<CandidateChanged, Refusal> {
        refusal(self.admin.return_canary(call))
    }
}

fn refusal<T>(done: ChangeResult<T>) -> Result<T, Refusal> {
    match done {
        Ok((done, _)) => Ok(done),
        Err(ManageError::Refused(refusal)) => Err(refusal),
        Err(other) => panic!("{other:?}"),
    }
}

fn conflict<T: std::fmt::Debug>(done: Result<T, Refusal>) -> String {
    match done {
        Err(Refusal::Conflict(text)) => text,
        other => panic!("{other:?}"),
    }
}

fn caller(name: &str) -> Caller {
    let key = key(name, "a", &[Scope::PoliciesManage]);
    Caller { account: key.account, key_id: key.id, scopes: key.scopes, key: None }
}

fn shadow(pack: &str, environment: Option<&str>) -> ShadowPolicy {
    ShadowPolicy {
        caller: caller("bot"),
        version: version(pack),
        account: None,
        environment: environment.map(str::to_owned),
        percent: 50,
        reason: Some("try it".to_owned()),
        sequence: None,
        is_trial: false,
    }
}

fn activate(pack: &str, canary: Option<CanaryTerms>) -> ActivatePolicy {
    ActivatePolicy {
        caller: caller("bot"),
        version: version(pack),
        account: None,
        environment: None,
        floor: false,
        reason: None,
        expected: None,
        diff_digest: None,
        accept_flips: None,
        replayed_until: None,
        canary,
        replayed: None,
        judged: None,
        sequence: None,
        proposes: false,
        is_trial: false,
    }
}

fn withdraw(environment: Option<&str>) -> WithdrawCandidate {
    WithdrawCandidate {
        caller: caller("bot"),
        account: None,
        environment: environment.map(str::to_owned),
        reason: Some("enough".to_owned()),
        sequence: None,
        is_trial: false,
    }
}

/// Ends this canary, after so many disagreements in 50 checks.
fn returning(candidate: &PolicyCandidate, disagreements: u64) -> ReturnCanary {
    let counts = CandidateCounts { checks: 50, disagreements, ..CandidateCounts::default() };
    ReturnCanary {
        account: account("a").id,
        candidate: candidate.id,
        counts,
        is_uncounted: false,
        sequence: None,
        is_trial: false,
    }
}

#[test]
fn a_shadow_is_tried_and_begun_under_the_same_id_and_changes_nothing_that_is_active() {
    let mut lab = Lab::new();
    let before = lab.record();
    let call = shadow("v2", Some("production"));
    let (tried, hint) = lab.admin.shadow_policy(&ShadowPolicy { is_trial: true, ..call.clone() }).unwrap();
    assert!(matches!(hint, Some(Changed::Policy(hint)) if hint.versions == [version("v2")]));
    assert_eq!(lab.record(), before, "a trial does nothing");
    let sequence = Some(tried.activation.sequence);
    let (done, announced) = lab.admin.shadow_policy(&ShadowPolicy { sequence, ..call }).unwrap();
    assert!(matches!(announced, Some(Changed::Activation(..))), "gateways are told");
    assert_eq!((&done.activation, done.is_outdated), (&tried.activation, false), "what was recorded is what was made");
    let candidate = done.activation.candidate.clone().unwrap();
    assert_eq!((candidate.mode, candidate.percent, candidate.return_at), (CandidateMode::Shadow, 50, None));
    assert_eq!((candidate.environment.as_deref(), candidate.id.get_version_num()), (Some("production"), 8));
    assert_eq!((done.activation.kind, lab.newest()), (ActivationKind::ShadowStarted, done.activation));
    assert_eq!(lab.record(), ActiveRecord { sequence: 2, candidates: vec![candidate], ..before });
}

#[test]
fn each_candidate_has_an_id_of_its_own_also_in_a_restored_directory() {
    let (mut lab, mut restored) = (Lab::new(), Lab::with(2, PolicyChanges::Single));
    let id = |changed: CandidateChanged| changed.activation.candidate.unwrap().id;
    let first = id(lab.shadow(&shadow("v2", None)));
    let again = id(lab.shadow(&ShadowPolicy { percent: 51, ..shadow("v2", None) }));
    let other = id(restored.shadow(&shadow("v2", None)));
    assert!(first != again && first != other && again != other);
    assert_eq!(lab.candidates().len(), 1, "the new one took the place of the old one");
}

#[test]
fn a_canary_decides_a_share_and_leaves_what_is_active_and_where_a_rollback_leads() {
    let mut lab = Lab::new();
    let before = lab.record();
    let (accept_flips, diff_digest) = (Some(3), Some("0".repeat(64)));
    let call = ActivatePolicy { accept_flips, diff_digest, ..activate("v2", Some(TERMS)) };
    let tried = lab.activate(&ActivatePolicy { is_trial: true, ..call.clone() });
    assert_eq!(tried.replaces, [Some(version("v1"))], "it is compared as any activation is");
    let (judged, sequence) = (Some(tried.replaces), Some(tried.activation.sequence));
    let done = lab.activate(&ActivatePolicy { judged, sequence, ..call });
    assert!(done.is_new && done.activation == tried.activation);
    let Activation { kind, version: to, from, accepted_flips, candidate, .. } = done.activation;
    assert_eq!((kind, to, from), (ActivationKind::CanaryStarted, Some(version("v2")), Some(version("v1"))));
    let candidate = candidate.unwrap();
    assert_eq!((accepted_flips, candidate.percent, candidate.return_at), (Some(3), 20, Some(TERMS.return_at)));
    assert_eq!(lab.record(), ActiveRecord { sequence: 2, candidates: vec![candidate], ..before });
}

#[test]
fn a_canary_takes_the_place_of_a_shadow_there_and_what_is_active_is_not_tried() {
    let mut lab = Lab::new();
    lab.shadow(&shadow("v2", None));
    lab.shadow(&shadow("v2", Some("production")));
    lab.activate(&activate("v2", Some(TERMS)));
    let modes: Vec<_> = lab.candidates().iter().map(|found| (found.mode, found.environment.clone())).collect();
    let production = Some("production".to_owned());
    assert_eq!(modes, [(CandidateMode::Shadow, production), (CandidateMode::Canary, None)]);
    let text = conflict(refusal(lab.admin.activate_policy(&activate("v1", Some(TERMS)))));
    assert!(text.contains("is active there already"), "{text}");
    let text = conflict(refusal(lab.admin.shadow_policy(&shadow("v1", None))));
    assert!(text.contains("is active there already"), "{text}");
    // The default decides in production as well.
    conflict(refusal(lab.admin.shadow_policy(&shadow("v1", Some("prod")))));
    let unknown = refusal(lab.admin.shadow_policy(&shadow("v9", None)));
    assert!(matches!(unknown, Err(Refusal::Missing(_))), "{unknown:?}");
}

#[test]
fn terms_out_of_range_are_refused_by_their_names() {
    let mut lab = Lab::new();
    let paths = |refused: Result<(), Refusal>| match refused {
        Err(Refusal::Invalid(errors)) => errors.into_iter().map(|error| error.path).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let none = ShadowPolicy { percent: 0, ..shadow("v2", None) };
    assert_eq!(paths(refusal(lab.admin.shadow_policy(&none)).map(drop)), ["percent"]);
    let more = activate("v2", Some(CanaryTerms { percent: 101, ..TERMS }));
    assert_eq!(paths(refusal(lab.admin.activate_policy(&more)).map(drop)), ["canary.percent"]);
    let blank = WithdrawCandidate { reason: Some(" ".to_owned()), ..withdraw(None) };
    assert_eq!(paths(lab.withdraw(&blank).map(drop)), ["reason"]);
    assert!(lab.candidates().is_empty());
}

#[test]
fn an_activation_or_a_rollback_ends_what_is_tried_at_its_place_in_the_same_change() {
    let mut lab = Lab::new();
    lab.shadow(&shadow("v2", Some("production")));
    lab.activate(&activate("v2", Some(TERMS)));
    let of = |lab: &Lab| lab.candidates().into_iter().map(|found| found.environment).collect::<Vec<_>>();
    let production = Some("production".to_owned());
    let (whole, _) = lab.admin.activate_policy(&activate("v2", None)).unwrap();
    assert!(whole.is_new && whole.activation.candidate.is_none());
    assert_eq!((of(&lab), lab.record().sequence), (vec![production.clone()], 4));
    lab.activate(&activate("v3", Some(TERMS)));
    let sequence = lab.record().sequence;
    let text = conflict(refusal(lab.admin.activate_policy(&activate("v2", None))));
    assert_eq!(text, format!("it is active already, and `{}` is tried there as a canary: withdraw it", version("v3")));
    assert_eq!((of(&lab), lab.record().sequence), (vec![production.clone(), None], sequence), "nothing changed");
    lab.withdraw(&withdraw(None)).unwrap();
    // What is tried at another place does not stand in its way.
    assert!(!lab.activate(&activate("v2", None)).is_new, "it is active");
    lab.activate(&activate("v3", Some(TERMS)));
    let back = RollbackPolicy {
        caller: caller("bot"),
        account: None,
        environment: None,
        floor: false,
        reason: None,
        expected: None,
        sequence: None,
        is_trial: false,
    };
    lab.admin.roll_back_policy(&back).unwrap();
    assert_eq!((of(&lab), lab.record().default.active), (vec![production], Some(version("v1"))));
    let in_production = ActivatePolicy { environment: Some("PROD".to_owned()), ..activate("v3", None) };
    lab.activate(&in_production);
    assert!(lab.candidates().is_empty(), "by any of its names");
}

#[test]
fn a_candidate_is_withdrawn_once_and_the_change_says_what_decides_again() {
    let mut lab = Lab::new();
    lab.activate(&activate("v2", Some(TERMS)));
    lab.shadow(&shadow("v3", Some("production")));
    let [canary, shadow] = <[_; 2]>::try_from(lab.candidates()).unwrap();
    let trial = WithdrawCandidate { is_trial: true, ..withdraw(None) };
    let tried = lab.withdraw(&trial).unwrap();
    assert_eq!(lab.candidates().len(), 2);
    let done = lab.withdraw(&withdraw(None)).unwrap();
    assert_eq!((done.activation.clone(), lab.newest()), (tried.activation, done.activation.clone()));
    let Activation { kind, version: to, from, candidate, reason, returned_for, .. } = done.activation;
    assert_eq!((kind, to, from), (ActivationKind::CanaryEnded, Some(version("v1")), Some(version("v2"))));
    assert_eq!((candidate, reason.as_deref(), returned_for), (Some(canary), Some("enough"), None));
    assert!(conflict(lab.withdraw(&withdraw(None))).contains("no policy is tried there"));
    let done = lab.withdraw(&withdraw(Some("prod"))).unwrap().activation;
    // The account has nothing of its own there.
    assert_eq!((done.kind, done.version, done.candidate), (ActivationKind::ShadowEnded, None, Some(shadow)));
    assert!(lab.candidates().is_empty());
}

#[test]
fn a_canary_that_differs_too_often_returns_and_its_key_is_named() {
    let mut lab = Lab::new();
    lab.activate(&activate("v2", Some(TERMS)));
    let canary = lab.candidates().remove(0);
    assert!(conflict(lab.returns(&returning(&canary, 1))).contains("no more often"));
    let tried = lab.returns(&ReturnCanary { is_trial: true, ..returning(&canary, 2) }).unwrap();
    assert_eq!(lab.candidates(), std::slice::from_ref(&canary));
    let sequence = Some(tried.activation.sequence);
    let (done, announced) = lab.admin.return_canary(&ReturnCanary { sequence, ..returning(&canary, 2) }).unwrap();
    assert!(matches!(announced, Some(Changed::Activation(..))));
    assert!(lab.candidates().is_empty() && done.activation == tried.activation && done.retention_days > 0);
    let Activation { kind, version: to, key_id, member_id, returned_for, .. } = done.activation;
    assert_eq!((kind, to), (ActivationKind::CanaryEnded, Some(version("v1"))));
    assert_eq!((key_id, member_id), (canary.key_id.clone(), None));
    assert_eq!(returned_for.unwrap().disagreements, 2);
    assert_eq!(lab.returns(&returning(&canary, 2)), Err(Refusal::NotFound), "it has ended");
}

#[test]
fn of_two_changes_that_were_tried_at_once_one_is_made_and_the_other_is_outdated() {
    let mut lab = Lab::new();
    lab.activate(&activate("v2", Some(TERMS)));
    let canary = lab.candidates().remove(0);
    // All of them were tried at this place among the changes.
    let sequence = Some(lab.record().sequence + 1);
    assert!(!lab.shadow(&ShadowPolicy { sequence, ..shadow("v3", Some("production")) }).is_outdated);
    let after = lab.record();
    assert!(lab.shadow(&ShadowPolicy { sequence, ..shadow("v3", Some("staging")) }).is_outdated);
    assert!(lab.withdraw(&WithdrawCandidate { sequence, ..withdraw(None) }).unwrap().is_outdated);
    assert!(lab.returns(&ReturnCanary { sequence, ..returning(&canary, 9) }).unwrap().is_outdated);
    let again = lab.activate(&ActivatePolicy { sequence, ..activate("v3", Some(TERMS)) });
    assert!(again.is_outdated && !again.is_new);
    assert_eq!(lab.record(), after, "none of them changed anything");
    // A trial is made from what is there now.
    let sequence =
        Some(lab.activate(&ActivatePolicy { is_trial: true, ..activate("v3", Some(TERMS)) }).activation.sequence);
    assert!(!lab.activate(&ActivatePolicy { sequence, ..activate("v3", Some(TERMS)) }).is_outdated);
    // What it would take the place of is another matter.
    let judged = Some(vec![Some(version("v3"))]);
    assert!(lab.activate(&ActivatePolicy { judged, ..activate("v2", Some(TERMS)) }).is_outdated);
}

#[test]
fn an_approved_canary_begins_as_it_was_proposed_and_under_the_id_that_was_recorded() {
    let mut lab = Lab::with(1, PolicyChanges::SecondMember);
    let call = ActivatePolicy { proposes: true, ..activate("v2", Some(TERMS)) };
    let proposal = lab.activate(&call).proposal.unwrap();
    assert_eq!((proposal.canary, lab.candidates().len()), (Some(TERMS), 0));
    assert_eq!(lab.activate(&call).proposal.as_ref(), Some(&proposal), "the same call again");
    for other in [None, Some(CanaryTerms { percent: 21, ..TERMS })] {
        let text = conflict(refusal(lab.admin.activate_policy(&ActivatePolicy { canary: other, ..call.clone() })));
        assert!(text.contains("is proposed there already"), "{text}");
    }
    // A shadow has no effect, so it needs no second member.
    lab.shadow(&shadow("v3", Some("production")));
    let decide = |is_trial| DecideProposal {
        caller: caller("ada"),
        id: proposal.id.clone(),
        decision: ProposalDecision::Approve,
        reason: None,
        is_trial,
    };
    let tried = lab.admin.decide_proposal(&decide(true)).unwrap().0.activation.unwrap();
    // A change at another place, after the line of the approval was written.
    lab.withdraw(&withdraw(Some("production"))).unwrap();
    let decided = lab.admin.decide_proposal(&decide(false)).unwrap().0;
    let made = decided.activation.unwrap();
    assert_eq!((decided.proposal.status, made.kind), (ProposalStatus::Approved, ActivationKind::CanaryStarted));
    assert_eq!((&made.candidate, made.key_id.as_str()), (&tried.candidate, "ada"));
    assert_eq!(lab.candidates(), [made.candidate.unwrap()]);
    assert_eq!((made.proposal.unwrap().id, lab.record().default.active), (proposal.id.clone(), Some(version("v1"))));
    // An approval of the whole ends it.
    let whole = lab.activate(&ActivatePolicy { canary: None, ..call }).proposal.unwrap();
    let approve = DecideProposal { id: whole.id, ..decide(false) };
    assert_eq!(lab.admin.decide_proposal(&approve).unwrap().0.activation.unwrap().kind, ActivationKind::Activated);
    assert!(lab.candidates().is_empty() && lab.record().default.active == Some(version("v2")));
}

#[test]
fn a_place_that_is_only_tried_takes_no_room_of_an_environment_with_a_policy() {
    let mut lab = Lab::new();
    lab.shadow(&shadow("v2", Some("production")));
    assert!(lab.record().environments.is_empty());
    lab.activate(&ActivatePolicy { environment: Some("staging".to_owned()), ..activate("v2", Some(TERMS)) });
    assert!(lab.record().environments.is_empty());
    assert_eq!(lab.record().policies().of(Some("staging")), Some(&version("v1")));
}

#[test]
fn a_canary_decides_only_where_what_it_was_compared_with_is_active() {
    let mut lab = Lab::new();
    let check = CheckRequest::parse(serde_json::json!({"goal": "read a table"})).unwrap();
    let decides = |lab: &Lab| {
        let store = lab.admin.store();
        let account = store.account(&account("a").id).unwrap().unwrap();
        let rules = store.rules_of(&account, lab.admin.now()).unwrap();
        rules.canary_of(&check).map(|canary| canary.version.clone())
    };
    lab.shadow(&shadow("v2", None));
    assert!(lab.candidates()[0].against.is_empty(), "a shadow is compared with whatever is active");
    let all = CanaryTerms { percent: 100, ..TERMS };
    lab.activate(&activate("v2", Some(all)));
    assert_eq!(lab.candidates()[0].against, [Some(version("v1"))]);
    assert_eq!(decides(&lab), Some(version("v2")));
    // Another version is active by now, as where the deployment's stands behind the place.
    let mut record = lab.record();
    record.default.activate(version("v3"));
    lab.admin.commit(&[Record::ActivePolicies(record)]).unwrap();
    assert_eq!((lab.candidates().len(), decides(&lab)), (1, None));
    // It decides nothing, so the same terms begin another one.
    lab.activate(&activate("v2", Some(all)));
    assert_eq!(lab.candidates()[0].against, [Some(version("v3"))]);
    assert_eq!(decides(&lab), Some(version("v2")));
}

#[test]
fn the_same_again_keeps_what_is_counted_and_other_terms_begin_another() {
    let mut lab = Lab::new();
    let text = "it is tried there already, on the same terms";
    lab.shadow(&shadow("v2", Some("production")));
    lab.activate(&activate("v2", Some(TERMS)));
    let before = lab.record();
    for is_trial in [true, false] {
        let again = ShadowPolicy { is_trial, ..shadow("v2", Some("PROD")) };
        assert_eq!(conflict(refusal(lab.admin.shadow_policy(&again))), text);
        let again = ActivatePolicy { is_trial, ..activate("v2", Some(TERMS)) };
        assert_eq!(conflict(refusal(lab.admin.activate_policy(&again))), text);
    }
    assert_eq!(lab.record(), before);
    assert!(lab.activate(&activate("v2", Some(CanaryTerms { percent: 21, ..TERMS }))).is_new);
    lab.shadow(&ShadowPolicy { percent: 51, ..shadow("v2", Some("PROD")) });
    lab.shadow(&ShadowPolicy { percent: 51, ..shadow("v3", Some("PROD")) });
    let shares: Vec<_> = lab.candidates().iter().map(|found| found.percent).collect();
    assert_eq!(shares, [21, 51], "each in the place of the one before");
    // Once it was withdrawn, it may begin again.
    lab.withdraw(&withdraw(None)).unwrap();
    lab.activate(&activate("v2", Some(TERMS)));
}

#[test]
fn a_hundred_candidates_begin_in_24_hours_and_the_next_once_the_first_is_older() {
    let mut lab = Lab::new();
    let nth = |number: u8| ShadowPolicy { percent: 1 + number, ..shadow("v2", None) };
    lab.shadow(&nth(0));
    lab.time.store(200, Ordering::Relaxed);
    lab.activate(&activate("v2", Some(TERMS)));
    // What ends one is not counted.
    lab.withdraw(&withdraw(None)).unwrap();
    for number in 2..100 {
        lab.shadow(&nth(number));
    }
    for text in [
        conflict(refusal(lab.admin.shadow_policy(&shadow("v3", None)))),
        conflict(refusal(lab.admin.activate_policy(&activate("v3", Some(TERMS))))),
    ] {
        assert!(text.contains("100 policies began to be tried within 24 hours"), "{text}");
    }
    // What is active is no candidate, and withdrawals are free.
    lab.withdraw(&withdraw(None)).unwrap();
    assert!(lab.activate(&activate("v3", None)).is_new);
    let day = 24 * 60 * 60;
    lab.time.store(99 + day, Ordering::Relaxed);
    conflict(refusal(lab.admin.shadow_policy(&shadow("v2", None))));
    lab.time.store(100 + day, Ordering::Relaxed);
    lab.shadow(&shadow("v2", None));
    conflict(refusal(lab.admin.shadow_policy(&shadow("v1", None))));
}

#[test]
fn a_canary_that_is_not_counted_returns_whatever_its_counts_are_and_the_change_says_why() {
    let mut lab = Lab::new();
    lab.activate(&activate("v2", Some(TERMS)));
    let canary = lab.candidates().remove(0);
    let counted = returning(&canary, 0);
    assert!(conflict(lab.returns(&counted)).contains("no more often"));
    let uncounted = ReturnCanary { is_uncounted: true, ..counted.clone() };
    let tried = lab.returns(&ReturnCanary { is_trial: true, ..uncounted.clone() }).unwrap();
    let sequence = Some(tried.activation.sequence);
    let done = lab.returns(&ReturnCanary { sequence, ..uncounted.clone() }).unwrap();
    assert_eq!(done.activation, tried.activation);
    assert_eq!(done.activation.reason.as_deref(), Some("what it decides is not counted"));
    assert_eq!((done.activation.returned_for, lab.candidates().len()), (Some(counted.counts), 0));
    assert_eq!(lab.returns(&uncounted), Err(Refusal::NotFound), "it has ended");
    // One that differs too often has no reason but its counts.
    lab.activate(&activate("v2", Some(TERMS)));
    let canary = lab.candidates().remove(0);
    assert_eq!(lab.returns(&returning(&canary, 2)).unwrap().activation.reason, None);
}
