//! Activations that wait for a second member: who approves what, and what a proposal survives.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use stage0_contract::{
    AccountId, ActivatePolicy, ActivationDone, ApiKey, Caller, DecideProposal, ForgetPolicy, InviteMember, KeyChanged,
    ListProposals, MAX_PENDING_PROPOSALS, ManageReply, MemberId, PolicyChanges, PolicyProposal, ProposalDecided,
    ProposalDecision, ProposalId, ProposalStatus, Refusal, RollbackPolicy, RotateKey, Scope, ShowProposal,
    UpdateAccount, UpdateMember,
};

use crate::harness::{LOSSES, Running, caller_of, caller_of_member, done, invite, next_key_notice, refused, scopes};
use crate::policies::{acme, activate, decides, history, publish, roll_back, version};
use crate::webhooks::unchanged;

/// A person of the team, with the key that it uses.
struct Person {
    id: MemberId,
    caller: Caller,
}

/// An account that wants a second member, whose own two versions are published.
struct Team {
    running: Running,
    account: AccountId,
    /// A workload that the operator made.
    bot: Caller,
    checks: ApiKey,
}

impl Team {
    async fn start(dir: &std::path::Path) -> Self {
        let running = Running::start(dir).await;
        let account = running.account("a").await.id;
        let bot = running.caller(&account, &[Scope::PoliciesManage, Scope::KeysManage, Scope::MembersManage]).await;
        let checks = running.key(&account, &[Scope::Check]).await.key;
        for number in [1, 2] {
            publish(&running, &bot, &acme(number)).await;
        }
        let team = Self { running, account, bot, checks };
        team.set(PolicyChanges::SecondMember).await;
        team
    }

    async fn set(&self, policy_changes: PolicyChanges) {
        let policy_changes = Some(policy_changes);
        let call = UpdateAccount { policy_changes, ..unchanged(&self.running, &self.account) };
        assert_eq!(Some(done(self.running.ask(&call).await).policy_changes), policy_changes);
    }

    /// A member whom the operator invited.
    async fn person(&self) -> Person {
        self.invited_by(&self.running.operator).await
    }

    async fn invited_by(&self, by: &Caller) -> Person {
        let with = scopes(&[Scope::PoliciesManage, Scope::MembersManage, Scope::KeysManage]);
        let call = InviteMember { account: Some(self.account.clone()), scopes: Some(with), ..invite(by, "Ada") };
        let invited = done(self.running.ask(&call).await);
        let accepted = done(self.running.accept(&invited.invitation_code).await);
        Person { id: accepted.member.id.clone(), caller: caller_of_member(&accepted) }
    }

    async fn try_propose(&self, call: ActivatePolicy) -> ManageReply<ActivationDone> {
        self.running.ask(&ActivatePolicy { proposes: true, ..call }).await
    }

    async fn propose(&self, by: &Caller, number: u32) -> PolicyProposal {
        done(self.try_propose(activate(by, &acme(number))).await).proposal.unwrap()
    }

    async fn decide(&self, by: &Caller, id: &ProposalId, decision: ProposalDecision) -> ManageReply<ProposalDecided> {
        let reason = Some("because".to_owned());
        let call = DecideProposal { caller: by.clone(), id: id.clone(), decision, reason, is_trial: false };
        self.running.ask(&call).await
    }

    async fn approve(&self, by: &Caller, of: &PolicyProposal) -> ManageReply<ProposalDecided> {
        self.decide(by, &of.id, ProposalDecision::Approve).await
    }

    /// That the keystore refuses the approval because this is no other person.
    async fn is_no_other(&self, by: &Caller, of: &PolicyProposal) {
        let text = conflict(self.approve(by, of).await);
        assert!(text.contains("somebody else must approve"), "{text}");
        assert_eq!(self.status(of).await, ProposalStatus::Pending);
        assert_eq!(self.active().await, None);
    }

    async fn status(&self, of: &PolicyProposal) -> ProposalStatus {
        done(self.running.ask(&ShowProposal { caller: self.bot.clone(), id: of.id.clone() }).await).status
    }

    async fn active(&self) -> Option<stage0_contract::PolicyVersion> {
        decides(&self.running, &self.checks, None).await[0].clone()
    }

    async fn list(
        &self,
        by: &Caller,
        account: Option<&AccountId>,
    ) -> ManageReply<stage0_contract::Page<PolicyProposal>> {
        self.running.ask(&all_of(by, account)).await
    }
}

fn all_of(by: &Caller, account: Option<&AccountId>) -> ListProposals {
    ListProposals { caller: by.clone(), account: account.cloned(), status: None, cursor: None, limit: 1_000 }
}

fn conflict<T: std::fmt::Debug>(reply: ManageReply<T>) -> String {
    match refused(reply) {
        Refusal::Conflict(text) => text,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_activation_waits_for_a_second_member_and_names_both() {
    let dir = tempfile::tempdir().unwrap();
    let team = Team::start(dir.path()).await;
    let (ada, bo) = (team.person().await, team.person().await);
    let trial = ActivatePolicy { is_trial: true, ..activate(&ada.caller, &acme(1)) };
    assert!(done(team.running.ask(&trial).await).proposal.is_some());
    assert!(done(team.list(&ada.caller, None).await).items.is_empty(), "a trial makes none");
    let text = conflict(team.running.ask(&activate(&ada.caller, &acme(1))).await);
    assert!(text.contains("`policy_changes`"), "a call that does not propose does nothing: {text}");

    let why = ActivatePolicy {
        reason: Some("limit of refunds".to_owned()),
        accept_flips: Some(3),
        diff_digest: Some("0".repeat(64)),
        ..activate(&ada.caller, &acme(1))
    };
    let proposed = done(team.try_propose(why.clone()).await);
    let proposal = proposed.proposal.unwrap();
    assert!(proposed.is_new && proposal.status == ProposalStatus::Pending && proposal.from.is_none());
    assert_eq!((&proposal.proposed_by.member_id, team.active().await), (&Some(ada.id.clone()), None));
    conflict(team.try_propose(ActivatePolicy { accept_flips: Some(4), ..why.clone() }).await);
    let again = done(team.try_propose(why).await);
    assert_eq!((again.is_new, again.proposal.as_ref()), (false, Some(&proposal)), "the same call again");

    let trial = DecideProposal {
        caller: bo.caller.clone(),
        id: proposal.id.clone(),
        decision: ProposalDecision::Approve,
        reason: Some("agreed".to_owned()),
        is_trial: true,
    };
    assert_eq!(done(team.running.ask(&trial).await).activation.unwrap().version, Some(acme(1)));
    assert_eq!((team.active().await, team.status(&proposal).await), (None, ProposalStatus::Pending));
    let mut notices = team.running.backplane.notices.subscribe::<KeyChanged>().await.unwrap();
    let decided = done(team.running.ask(&DecideProposal { is_trial: false, ..trial }).await);
    assert_eq!(next_key_notice(&mut notices).await.0, team.account, "every gateway is told");
    assert_eq!(team.active().await, Some(acme(1)));
    assert_eq!((decided.proposal.status, decided.is_new), (ProposalStatus::Approved, true));
    let made = history(&team.running, &ada.caller).await;
    assert_eq!(Some(&made[0]), decided.activation.as_ref());
    assert_eq!((made.len(), made[0].member_id.as_ref()), (1, Some(&bo.id)));
    assert_eq!((made[0].reason.as_deref(), made[0].accepted_flips), (Some("limit of refunds"), Some(3)));
    let of = made[0].proposal.clone().unwrap();
    assert_eq!((of.id, of.proposed_by.member_id), (proposal.id.clone(), Some(ada.id)));
    assert_eq!(of.approval_reason.as_deref(), Some("agreed"));
    let text = conflict(team.approve(&bo.caller, &proposal).await);
    assert!(text.contains("it is approved"), "{text}");
    team.running.stop().await;
}

#[tokio::test]
async fn who_proposed_it_or_stands_behind_that_key_does_not_approve_it() {
    let dir = tempfile::tempdir().unwrap();
    let team = Team::start(dir.path()).await;
    let ada = team.person().await;
    // Its own second key, and the member whom Ada invited.
    let rotate = RotateKey { caller: ada.caller.clone(), id: ada.caller.key_id.clone(), overlap_seconds: 600 };
    let second = caller_of(&done(team.running.ask(&rotate).await));
    let invited = team.invited_by(&ada.caller).await;
    let of_ada = team.propose(&ada.caller, 1).await;
    for by in [&ada.caller, &second, &invited.caller] {
        team.is_no_other(by, &of_ada).await;
    }
    // A member that was invited by the same one, and a workload, whose maker does not matter.
    let text = conflict(team.approve(&team.bot, &of_ada).await);
    assert!(text.contains("only a member's own key"), "{text}");
    let text = conflict(team.approve(&team.running.operator, &of_ada).await);
    assert!(text.contains("only a member's own key"), "the operator is no person: {text}");
    let sibling = team.invited_by(&ada.caller).await;
    let of_invited = team.propose(&invited.caller, 2).await;
    for by in [&ada.caller, &sibling.caller] {
        team.is_no_other(by, &of_invited).await;
    }
    // Who changed the groups of the proposer.
    let bo = team.person().await;
    let groups = Some(vec!["chosen".to_owned()]);
    let update =
        UpdateMember { caller: bo.caller.clone(), id: ada.id.clone(), name: None, mail: None, groups: groups.clone() };
    done(team.running.ask(&update).await);
    team.is_no_other(&bo.caller, &of_ada).await;
    // What the operator does leaves no trace.
    let cy = team.person().await;
    let update = UpdateMember { caller: team.running.operator.clone(), id: cy.id.clone(), ..update };
    done(team.running.ask(&update).await);
    done(team.approve(&cy.caller, &of_ada).await);
    assert_eq!(team.active().await, Some(acme(1)));
    team.running.stop().await;
}

#[tokio::test]
async fn who_owns_made_or_rotated_a_workload_does_not_approve_what_it_proposed() {
    let dir = tempfile::tempdir().unwrap();
    let team = Team::start(dir.path()).await;
    let (ada, bo, cy) = (team.person().await, team.person().await, team.person().await);
    let create = |caller: &Caller| stage0_contract::CreateKey {
        caller: caller.clone(),
        ..team.running.create(&team.account, &[Scope::PoliciesManage])
    };
    let made = caller_of(&done(team.running.ask(&create(&ada.caller)).await));
    let owned = stage0_contract::CreateKey { owner: Some(bo.id.clone()), ..create(&team.running.operator) };
    let owned = caller_of(&done(team.running.ask(&owned).await));
    let rotate = RotateKey { caller: cy.caller.clone(), id: owned.key_id.clone(), overlap_seconds: 0 };
    let rotated = caller_of(&done(team.running.ask(&rotate).await));
    let of_made = team.propose(&made, 1).await;
    team.is_no_other(&ada.caller, &of_made).await;
    let of_rotated = team.propose(&rotated, 2).await;
    for by in [&bo, &cy] {
        team.is_no_other(&by.caller, &of_rotated).await;
    }
    // A member whom the workload itself invited.
    let by_bot = team.invited_by(&team.bot).await;
    let staging = ActivatePolicy { environment: Some("staging".to_owned()), ..activate(&team.bot, &acme(1)) };
    let of_bot = done(team.try_propose(staging).await).proposal.unwrap();
    team.is_no_other(&by_bot.caller, &of_bot).await;
    done(team.approve(&ada.caller, &of_bot).await);
    done(team.approve(&bo.caller, &of_made).await);
    assert_eq!(team.active().await, Some(acme(1)));
    team.running.stop().await;
}

#[tokio::test]
async fn without_the_setting_by_the_operator_and_back_nothing_waits() {
    let dir = tempfile::tempdir().unwrap();
    let team = Team::start(dir.path()).await;
    let ada = team.person().await;
    team.set(PolicyChanges::Single).await;
    let text = conflict(team.try_propose(activate(&ada.caller, &acme(1))).await);
    assert!(text.contains("`policy_changes`"), "a call that would propose does nothing: {text}");
    assert!(done(team.running.ask(&activate(&ada.caller, &acme(1))).await).proposal.is_none());
    team.set(PolicyChanges::SecondMember).await;
    let of_account =
        ActivatePolicy { account: Some(team.account.clone()), ..activate(&team.running.operator, &acme(2)) };
    let by_operator = done(team.running.ask(&of_account).await);
    assert!(by_operator.proposal.is_none() && by_operator.activation.proposal.is_none());
    assert_eq!(team.active().await, Some(acme(2)));
    done(team.running.ask(&RollbackPolicy { expected: Some(acme(2)), ..roll_back(&ada.caller) }).await);
    assert_eq!(team.active().await, Some(acme(1)));
    // What is active already needs no one else.
    let same = done(team.running.ask(&activate(&ada.caller, &acme(1))).await);
    assert!(!same.is_new && same.proposal.is_none());
    // An account that wants nothing of it, and the deployment.
    let other = team.running.account("b").await.id;
    let its = team.running.caller(&other, &[Scope::PoliciesManage]).await;
    let house = version("house@1.0.0+0123456789ab");
    publish(&team.running, &team.running.operator, &house).await;
    assert!(done(team.running.ask(&activate(&its, &house)).await).proposal.is_none());
    assert!(done(team.running.ask(&activate(&team.running.operator, &house)).await).proposal.is_none());
    team.running.stop().await;
}

#[tokio::test]
async fn a_proposal_whose_ground_has_changed_ends_as_outdated_and_another_stays() {
    let dir = tempfile::tempdir().unwrap();
    let team = Team::start(dir.path()).await;
    let (ada, bo, cy) = (team.person().await, team.person().await, team.person().await);
    let stale = team.propose(&ada.caller, 1).await;
    let staging = ActivatePolicy { environment: Some("staging".to_owned()), ..activate(&ada.caller, &acme(1)) };
    let elsewhere = done(team.try_propose(staging).await).proposal.unwrap();
    let of_account =
        ActivatePolicy { account: Some(team.account.clone()), ..activate(&team.running.operator, &acme(2)) };
    done(team.running.ask(&of_account).await);
    let decided = done(team.approve(&bo.caller, &stale).await);
    assert_eq!((decided.proposal.status, decided.is_new), (ProposalStatus::Outdated, true));
    assert!(decided.activation.is_none() && team.active().await == Some(acme(2)));
    let again = done(team.approve(&bo.caller, &stale).await);
    assert_eq!((again.proposal, again.is_new), (decided.proposal, false), "its line may be missing");
    assert!(conflict(team.approve(&cy.caller, &stale).await).contains("it is outdated"));
    // The default is what stands behind staging, and that has changed too.
    assert_eq!(done(team.approve(&bo.caller, &elsewhere).await).proposal.status, ProposalStatus::Outdated);
    let fresh = team.propose(&ada.caller, 1).await;
    assert_eq!((fresh.from.as_ref(), fresh.id != stale.id), (Some(&acme(2)), true));
    // A change at another place is none of this one's.
    let production = ActivatePolicy { environment: Some("production".to_owned()), ..of_account };
    done(team.running.ask(&production).await);
    done(team.approve(&bo.caller, &fresh).await);
    assert_eq!(team.active().await, Some(acme(1)));
    team.running.stop().await;
}

#[tokio::test]
async fn a_proposal_is_denied_with_a_reason_or_cancelled_and_ends_once() {
    let dir = tempfile::tempdir().unwrap();
    let team = Team::start(dir.path()).await;
    let (ada, bo) = (team.person().await, team.person().await);
    let first = team.propose(&team.bot, 1).await;
    let silent = DecideProposal {
        caller: bo.caller.clone(),
        id: first.id.clone(),
        decision: ProposalDecision::Deny,
        reason: None,
        is_trial: false,
    };
    assert!(matches!(refused(team.running.ask(&silent).await), Refusal::Invalid(_)));
    let text = conflict(team.decide(&team.bot, &first.id, ProposalDecision::Deny).await);
    assert!(text.contains("only a member's own key"), "{text}");
    let denied = done(team.decide(&bo.caller, &first.id, ProposalDecision::Deny).await);
    assert_eq!((denied.proposal.status, denied.is_new), (ProposalStatus::Denied, true));
    assert_eq!(denied.proposal.decided_by.as_ref().unwrap().member_id, Some(bo.id.clone()));
    let again = done(team.decide(&bo.caller, &first.id, ProposalDecision::Deny).await);
    assert_eq!((again.proposal, again.is_new), (denied.proposal, false), "its line may be missing");
    for (by, decision) in [
        (&ada.caller, ProposalDecision::Deny),
        (&ada.caller, ProposalDecision::Approve),
        (&bo.caller, ProposalDecision::Cancel),
    ] {
        assert!(conflict(team.decide(by, &first.id, decision).await).contains("it is denied"), "{decision:?}");
    }
    // Proposed again, and taken back by its own key, by a member, and by the operator, but by no other workload.
    let other = team.running.caller(&team.account, &[Scope::PoliciesManage]).await;
    for by in [&team.bot, &ada.caller, &team.running.operator] {
        let next = team.propose(&team.bot, 1).await;
        assert!(conflict(team.decide(&other, &next.id, ProposalDecision::Cancel).await).contains("only a member"));
        let cancelled = done(team.decide(by, &next.id, ProposalDecision::Cancel).await);
        assert_eq!(cancelled.proposal.status, ProposalStatus::Cancelled);
        assert!(conflict(team.approve(&bo.caller, &next).await).contains("it is cancelled"));
    }
    assert_eq!(team.active().await, None);
    team.running.stop().await;
}

#[tokio::test]
async fn proposals_are_seen_and_decided_in_their_own_account_alone() {
    let dir = tempfile::tempdir().unwrap();
    let team = Team::start(dir.path()).await;
    let bo = team.person().await;
    let proposal = team.propose(&team.bot, 1).await;
    let other = team.running.account("b").await.id;
    let (_, stranger) = team.running.member(&other, &[Scope::PoliciesManage]).await;
    assert!(done(team.list(&stranger, None).await).items.is_empty());
    assert_eq!(refused(team.list(&stranger, Some(&team.account)).await), Refusal::NotFound);
    let show = |caller: &Caller| ShowProposal { caller: caller.clone(), id: proposal.id.clone() };
    assert_eq!(refused(team.running.ask(&show(&stranger)).await), Refusal::NotFound);
    for decision in [ProposalDecision::Approve, ProposalDecision::Deny, ProposalDecision::Cancel] {
        assert_eq!(refused(team.decide(&stranger, &proposal.id, decision).await), Refusal::NotFound);
    }
    let unscoped = team.running.caller(&team.account, &[Scope::KeysManage]).await;
    let missing = Refusal::ScopeMissing(Scope::PoliciesManage);
    assert_eq!(refused(team.list(&unscoped, None).await), missing);
    assert_eq!(refused(team.running.ask(&show(&unscoped)).await), missing);
    assert_eq!(refused(team.decide(&unscoped, &proposal.id, ProposalDecision::Cancel).await), missing);
    assert_eq!(
        done(team.list(&team.running.operator, Some(&team.account)).await).items,
        std::slice::from_ref(&proposal)
    );
    assert_eq!(done(team.running.ask(&show(&team.running.operator)).await), proposal);
    assert_eq!(done(team.list(&bo.caller, None).await).items, [proposal]);
    team.running.stop().await;
}

#[tokio::test]
async fn twenty_wait_in_an_account_one_for_each_version_at_a_place_and_none_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let team = Team::start(dir.path()).await;
    let ada = team.person().await;
    let at = |by: &Caller, number: usize| ActivatePolicy {
        environment: Some(format!("e{number}")),
        ..activate(by, &acme(1))
    };
    for number in 0..MAX_PENDING_PROPOSALS {
        done(team.try_propose(at(&team.bot, number)).await);
    }
    let text = conflict(team.try_propose(at(&team.bot, 99)).await);
    assert!(text.contains("20 activations are proposed"), "{text}");
    let text = conflict(team.try_propose(at(&ada.caller, 3)).await);
    assert!(text.contains("is proposed there already"), "{text}");
    let forget =
        |number| ForgetPolicy { caller: ada.caller.clone(), version: acme(number), account: None, is_trial: false };
    assert!(conflict(team.running.ask(&forget(1)).await).contains("proposes it"));
    done(team.running.ask(&forget(2)).await);
    let all = done(team.list(&ada.caller, None).await).items;
    assert_eq!(all.len(), MAX_PENDING_PROPOSALS);
    for proposal in &all {
        done(team.decide(&ada.caller, &proposal.id, ProposalDecision::Cancel).await);
    }
    done(team.try_propose(at(&ada.caller, 3)).await);
    team.running.stop().await;
}

#[tokio::test]
async fn of_two_approvals_at_once_one_activates() {
    let dir = tempfile::tempdir().unwrap();
    let team = Team::start(dir.path()).await;
    let (ada, bo) = (team.person().await, team.person().await);
    let proposal = team.propose(&team.bot, 1).await;
    let (one, two) = tokio::join!(team.approve(&ada.caller, &proposal), team.approve(&bo.caller, &proposal));
    let (won, lost) = if matches!(one, ManageReply::Done(_)) { (one, two) } else { (two, one) };
    assert_eq!(done(won).activation.unwrap().version, Some(acme(1)));
    assert!(conflict(lost).contains("it is approved"));
    assert_eq!(history(&team.running, &ada.caller).await.len(), 1);
    team.running.stop().await;
}

#[tokio::test]
async fn proposals_and_the_setting_survive_restarts_and_lost_files() {
    let dir = tempfile::tempdir().unwrap();
    let team = Team::start(dir.path()).await;
    let (ada, bo) = (team.person().await, team.person().await);
    let denied = team.propose(&ada.caller, 1).await;
    done(team.decide(&bo.caller, &denied.id, ProposalDecision::Deny).await);
    let waits = team.propose(&ada.caller, 1).await;
    let before = done(team.list(&ada.caller, None).await).items;
    let Team { mut running, account, bot, checks } = team;
    for lost in LOSSES {
        running.stop().await;
        running = Running::start_without(dir.path(), lost).await;
        assert_eq!(done(running.ask(&all_of(&ada.caller, None)).await).items, before, "{lost:?}");
    }
    let team = Team { running, account, bot, checks };
    let text = conflict(team.running.ask(&activate(&ada.caller, &acme(2))).await);
    assert!(text.contains("`policy_changes`"), "{text}");
    team.is_no_other(&ada.caller, &waits).await;
    done(team.approve(&bo.caller, &waits).await);
    assert_eq!(team.active().await, Some(acme(1)));
    team.running.stop().await;
}

const DIRECTORY: &str = "STAGE0_TEST_PROPOSER_DIRECTORY";

/// Not a test: the process that is killed runs this. Without its environment variable it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proposer_process() {
    let Some(dir) = std::env::var_os(DIRECTORY) else { return };
    let team = Team::start(std::path::Path::new(&dir)).await;
    let bo = team.person().await;
    println!("\nack account {}", team.account);
    for turn in 0_u32.. {
        let proposal = team.propose(&team.bot, 1 + turn % 2).await;
        println!("\nask {}", proposal.id);
        done(team.approve(&bo.caller, &proposal).await);
        println!("\nack {}", proposal.id);
    }
}

#[tokio::test]
async fn after_a_kill_each_approval_is_whole_or_not_there() {
    for (round, approvals) in [1, 7, 20].into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "proposals::proposer_process", "--nocapture"])
            .env(DIRECTORY, dir.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (mut account, mut acknowledged, mut asked) = (None, Vec::new(), 0);
        for line in output.lines().map_while(Result::ok) {
            if let Some(id) = line.strip_prefix("ack account ") {
                account = Some(AccountId::parse(id).unwrap());
            } else if let Some(id) = line.strip_prefix("ack ") {
                acknowledged.push(ProposalId::parse(id).unwrap());
            } else if line.starts_with("ask ") {
                asked += 1;
                if asked == approvals {
                    // Some time within the approval, which takes two writes to the disk.
                    std::thread::sleep(Duration::from_micros(700 * round as u64));
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        let running = Running::start(dir.path()).await;
        let account = account.unwrap();
        let mut approved = done(running.ask(&all_of(&running.operator, Some(&account))).await).items;
        approved.retain(|proposal| proposal.status == ProposalStatus::Approved);
        let mut approved: Vec<_> = approved.into_iter().map(|proposal| proposal.id).collect();
        let read = stage0_contract::ReadPolicyHistory {
            caller: running.operator.clone(),
            account: Some(account),
            cursor: None,
            limit: 1_000,
        };
        let made = done(running.ask(&read).await).items;
        let mut made: Vec<_> = made.into_iter().filter_map(|activation| Some(activation.proposal?.id)).collect();
        assert!(acknowledged.iter().all(|id| approved.contains(id)), "round {round}");
        approved.sort_unstable();
        made.sort_unstable();
        assert_eq!(approved, made, "round {round}: each approved proposal has its activation, and no other has one");
        running.stop().await;
    }
}
