//! `stage0 doctor account`: whether enough people can approve what waits.
//!
//! It asks a running server with the account's key. Whether a person counts for one action is the server's to judge;
//! this compares how many could with how many each pending approval needs. What the key may not read is skipped.

use jiff::Timestamp;
use serde_json::json;
use stage0_contract::{Approval, Member, MemberStatus, Page, Requirement, Scope};

use super::{Finding, report};
use crate::client::{Connection, ConnectionError, Credential, Limit, Query, block_on, target};
use crate::exit::{Exit, ended};
use crate::members;
use crate::settings::client::ClientSettings;

const APPROVALS: [&str; 2] = ["v1", "approvals"];
/// Enough to find what cannot be approved.
const MAX_APPROVALS: Limit = Limit { items: 1_000, per_page: 100 };
const INVITE: &str = "`stage0 members invite NAME --group GROUP` invites one";

pub(crate) fn account(settings: &ClientSettings, as_json: bool) -> Exit {
    match examine(settings) {
        Ok(findings) => report(&json!("account"), &findings, as_json),
        Err(error) => ended::<()>(Err(error)),
    }
}

fn examine(settings: &ClientSettings) -> anyhow::Result<Vec<Finding>> {
    let client = Connection::new(target(settings, Credential::Account)?, settings.timeout)?;
    let members: Result<Page<Member>, ConnectionError> = members::all(&client, None);
    let query = Query::default().with("status", Some("pending"));
    let pending: Result<Page<Approval>, ConnectionError> =
        block_on(client.list(&APPROVALS, &query, Some(MAX_APPROVALS)));
    let mut findings = Vec::new();
    let members = match readable(members)? {
        Some(members) => {
            findings.push(deciders(&members.items));
            Some(members.items)
        }
        None => {
            let advice = "give --key-file with a key that has the scope `members:manage`";
            findings.push(Finding::skipped("members", "this key may not read them", advice));
            None
        }
    };
    match readable(pending)? {
        Some(pending) => {
            findings.extend(approvals(&pending.items, members.as_deref(), Timestamp::now()));
        }
        None => {
            let advice = "give --key-file with a key that has the scope `decisions:read` or `approvals:decide`";
            findings.push(Finding::skipped("approvals", "this key may not read them", advice));
        }
    }
    Ok(findings)
}

/// `None` if the key lacks the scope.
fn readable<T>(answer: Result<T, ConnectionError>) -> Result<Option<T>, ConnectionError> {
    match answer {
        Err(ConnectionError::Refused { status: 403, .. }) => Ok(None),
        answer => answer.map(Some),
    }
}

fn may_decide(member: &Member) -> bool {
    member.status == MemberStatus::Active && member.scopes.contains(&Scope::ApprovalsDecide)
}

fn deciders(members: &[Member]) -> Finding {
    let invited = members.iter().filter(|member| member.status == MemberStatus::Invited).count();
    let waiting = if invited == 0 { String::new() } else { format!("; {invited} invited, not accepted yet") };
    match members.iter().filter(|member| may_decide(member)).count() {
        0 => Finding::warn("members", format!("none may approve{waiting}: what needs an approval waits"), INVITE),
        1 => {
            let found = format!("1 may approve{waiting}, and nothing that this person owns or made asks");
            Finding::warn("members", found, format!("{INVITE}; a team of one: docs/approvals.md"))
        }
        many => Finding::ok("members", format!("{many} may approve{waiting}")),
    }
}

/// A finding for each pending approval that too few people can give, or one that says that there is none.
fn approvals(pending: &[Approval], members: Option<&[Member]>, now: Timestamp) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    for approval in pending {
        let quorum = approval.terms.quorum();
        if let Some(eligible) = approval.eligible.filter(|eligible| *eligible < quorum) {
            let found = format!("{} needs {quorum} people, and the server knows {eligible} who may", approval.id);
            findings.push(Finding::warn("approvals", found, INVITE));
            continue;
        }
        let Some(members) = members else { continue };
        for requirement in &approval.terms.requirements {
            let able = able(members, requirement, approval, now);
            if able < requirement.quorum as usize {
                let of = match requirement.groups.as_slice() {
                    [] => String::new(),
                    groups => format!(" of {}", groups.join(" or ")),
                };
                let found = format!("{} needs {} members{of}, and {able} may approve", approval.id, requirement.quorum);
                findings.push(Finding::warn("approvals", found, INVITE));
            }
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok("approvals", format!("{} pending; enough people may approve them", pending.len())));
    }
    findings
}

/// How many members may approve by their groups, by the groups of those in whose place they decide, or by escalation.
fn able(members: &[Member], requirement: &Requirement, approval: &Approval, now: Timestamp) -> usize {
    let escalated = approval
        .terms
        .escalation_of(requirement)
        .filter(|escalation| now.duration_since(approval.created_at).as_secs() >= escalation.after_seconds);
    let is_asked = |group: &String| {
        requirement.groups.contains(group) || escalated.is_some_and(|escalation| escalation.groups.contains(group))
    };
    let has_group = |member: &Member| requirement.groups.is_empty() || member.groups.iter().any(is_asked);
    let stands_in = |member: &Member| {
        let mut away = members.iter().filter(|other| has_group(other));
        away.any(|other| {
            other.delegate.as_ref().is_some_and(|delegate| delegate.to == member.id && delegate.until > now)
        })
    };
    members.iter().filter(|member| may_decide(member) && (has_group(member) || stands_in(member))).count()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use stage0_contract::{Delegate, MemberId};

    use super::super::Severity;
    use super::*;

    fn items<T: serde::de::DeserializeOwned>(fixture: &str) -> Vec<T> {
        let fixture: Value = serde_json::from_str(fixture).unwrap();
        serde_json::from_value(fixture["done"]["items"].clone()).unwrap()
    }

    fn members() -> Vec<Member> {
        items(include_str!("../../../contract/fixtures/member_page.json"))
    }

    /// Two of `release-managers` are needed.
    fn pending() -> Vec<Approval> {
        let mut approvals: Vec<Approval> = items(include_str!("../../../contract/fixtures/approval_page.json"));
        approvals.truncate(1);
        approvals
    }

    fn now() -> Timestamp {
        "2026-03-16T12:30:00Z".parse().unwrap()
    }

    #[test]
    fn fewer_people_than_a_pending_approval_needs_is_a_warning() {
        let found = approvals(&pending(), Some(&members()), now());
        assert_eq!(found[0].severity, Severity::Warn);
        assert!(found[0].found.contains("needs 2 members of release-managers, and 1 may approve"), "{found:?}");
        let mut enough = members();
        enough[1].groups = vec!["release-managers".to_owned()];
        assert_eq!(approvals(&pending(), Some(&enough), now())[0].severity, Severity::Warn, "an invited one may not");
        enough[1].status = MemberStatus::Active;
        assert_eq!(approvals(&pending(), Some(&enough), now())[0].severity, Severity::Ok);
    }

    #[test]
    fn a_member_who_stands_in_and_an_escalation_count() {
        let mut members = members();
        let mut third = members[0].clone();
        (third.id, third.delegate) = (MemberId::parse("mem_3").unwrap(), None);
        members[1].status = MemberStatus::Active;
        members.push(third);
        members[2].groups = vec!["duty-managers".to_owned()];
        members[0].delegate =
            Some(Delegate { to: members[1].id.clone(), until: "2026-03-16T13:00:00Z".parse().unwrap() });
        let one = |quorum| Requirement { groups: vec!["release-managers".to_owned()], quorum, escalation: None };
        let mut approval = pending().remove(0);
        assert_eq!(able(&members, &one(2), &approval, now()), 2, "mem_2 decides in the place of mem_1");
        let later = "2026-03-16T13:00:00Z".parse().unwrap();
        assert_eq!(able(&members, &one(2), &approval, later), 1, "until then");
        approval.terms.escalation =
            Some(stage0_contract::Escalation { after_seconds: 1_800, groups: vec!["duty-managers".to_owned()] });
        assert_eq!(able(&members, &one(2), &approval, now()), 3);
    }

    #[test]
    fn what_the_server_counts_is_believed_before_the_list() {
        let mut pending = pending();
        pending[0].eligible = Some(1);
        let found = approvals(&pending, None, now());
        assert!(found[0].severity == Severity::Warn && found[0].found.contains("the server knows 1"), "{found:?}");
        pending[0].eligible = Some(2);
        assert_eq!(approvals(&pending, None, now())[0].severity, Severity::Ok);
    }

    #[test]
    fn one_person_who_may_approve_is_a_warning_and_two_are_none() {
        assert_eq!(deciders(&[]).severity, Severity::Warn);
        let mut members = members();
        let one = deciders(&members);
        assert!(one.severity == Severity::Warn && one.found.contains("1 invited, not accepted yet"), "{one}");
        members[1].status = MemberStatus::Active;
        assert_eq!(deciders(&members).severity, Severity::Ok);
        members[1].scopes.clear();
        assert_eq!(deciders(&members).severity, Severity::Warn, "a key that may not decide does not count");
    }
}
