//! An approval as a person reads it: where it stands, what is risky in the action, the action itself, and the facts of
//! the approval with its digest in full.

use jiff::Timestamp;
use serde_json::Value;
use stage0_contract::{Approval, ApprovalHistory, ApprovalStatus, Requirement, Vote};

use super::action::Action;
use crate::decision::wire_word;
use crate::out::{Painted, Terminal};
use crate::table::seconds;

/// The width where there is no terminal.
const DEFAULT_WIDTH: usize = 100;
/// The column of values.
const COLUMN: usize = 18;

pub(super) fn for_people(approval: &Approval, terminal: Terminal) -> Painted {
    let mut page = Page::new(terminal);
    summary(approval, &mut page.text);
    let action = Action::of(approval);
    page.heading("Risk");
    issues(approval, &mut page);
    action.risks(approval, &mut page);
    page.heading("Action");
    action.rest(&mut page);
    page.heading("Approval");
    facts(approval, &mut page);
    page.text
}

/// Where the approval stands, in a few lines.
pub(super) fn summary(approval: &Approval, text: &mut Painted) {
    text.word(approval.status.as_str());
    text.push(&format!("  {}", approval.id));
    text.push(&format!("\n  {}", standing(approval)));
    let quorum = approval.terms.quorum();
    if approval.status == ApprovalStatus::Pending
        && let Some(eligible) = approval.eligible.filter(|eligible| *eligible < quorum)
    {
        text.push(&format!(
            "\n  It cannot be approved: {quorum} must approve, and only {eligible} may. Invite members, or add them to \
             a group."
        ));
    }
    if let Some(why) = &approval.stopped {
        text.push("\n  A stop holds it up: ");
        text.exact(why, DEFAULT_WIDTH, 4);
    }
}

fn standing(approval: &Approval) -> String {
    let given = approvals_given(approval);
    let at = |at: Option<Timestamp>| at.map_or_else(String::new, |at| format!(" at {}", seconds(at)));
    match approval.status {
        ApprovalStatus::Pending => {
            let demands: Vec<String> = approval.terms.requirements.iter().map(demand).collect();
            format!("{} must approve until {}; {given} so far", demands.join(" and "), seconds(approval.expires_at))
        }
        ApprovalStatus::Approved => {
            let until = approval.usable_until.map_or_else(String::new, |until| format!(", until {}", seconds(until)));
            format!("approved by {given}; workload {} may use it once{until}", approval.workload)
        }
        ApprovalStatus::Denied => format!("denied{}; the same action is DENY for an hour", at(approval.decided_at)),
        ApprovalStatus::Expired => format!("its time was over{}; ask again", at(approval.decided_at)),
        ApprovalStatus::Cancelled => format!("taken back{}", at(approval.decided_at)),
        ApprovalStatus::Reserved => "a check uses it; that this is recorded is not confirmed yet".to_owned(),
        ApprovalStatus::Consumed => format!("used once{}", at(approval.used_at)),
    }
}

/// Such as `2 members of release-managers`.
pub(super) fn demand(Requirement { groups, quorum, .. }: &Requirement) -> String {
    let people = if *quorum == 1 { "member" } else { "members" };
    let of = if groups.is_empty() { String::new() } else { format!(" of {}", groups.join(" or ")) };
    format!("{quorum} {people}{of}")
}

/// How many people have approved, as far as votes tell: whether each counts is judged when the approval is used.
pub(super) fn approvals_given(approval: &Approval) -> usize {
    let people = |vote: &Vote| vote.external.as_ref().map_or(1, |external| external.approved_by.len());
    approval.votes.iter().filter(|vote| vote.approve).map(people).sum()
}

/// A length of time for people.
pub(crate) fn length(seconds: i64) -> String {
    match seconds {
        hours if hours % 3_600 == 0 => format!("{} h", hours / 3_600),
        minutes if minutes % 60 == 0 => format!("{} min", minutes / 60),
        seconds => format!("{seconds} s"),
    }
}

fn issues(approval: &Approval, page: &mut Page) {
    let mut issues: Vec<_> = approval.issues.iter().collect();
    issues.sort_by_key(|issue| std::cmp::Reverse(issue.severity));
    for issue in issues {
        page.text.push("\n  ");
        page.text.word(&wire_word(&issue.severity));
        page.text.push(&format!(" {}: ", issue.code));
        page.text.exact(&issue.message, page.width, 4);
    }
}

fn facts(approval: &Approval, page: &mut Page) {
    // The digest is never wrapped, so that it can be copied as one word.
    page.line("digest", approval.action_digest.as_str());
    page.line("asked by", &format!("key {}, workload {}", approval.key_id, approval.workload));
    page.line("request", &approval.request_id.to_string());
    page.line("policy", approval.policy_version.as_str());
    page.line("opened", &seconds(approval.created_at).to_string());
    page.line("decide until", &seconds(approval.expires_at).to_string());
    page.line("usable", &format!("once, for {} after it is approved", length(approval.terms.valid_seconds)));
    let shared = approval.terms.escalation.as_ref().map(|escalation| (escalation, String::new()));
    let requirements = approval.terms.requirements.iter();
    let own = requirements.filter_map(|one| Some((one.escalation.as_ref()?, format!(" for {}", demand(one)))));
    for (escalation, what) in shared.into_iter().chain(own) {
        let (after, groups) = (length(escalation.after_seconds), escalation.groups.join(" or "));
        page.line("escalation", &format!("after {after} members of {groups} may decide too{what}"));
    }
    if let Some(eligible) = approval.eligible {
        page.line("may approve", &format!("{eligible} {} now", if eligible == 1 { "person" } else { "people" }));
    }
    for vote in &approval.votes {
        page.vote(vote);
    }
    if let Some(request) = approval.used_by {
        page.line("used by", &format!("request {request}"));
    }
    if let Some(outcome) = &approval.outcome {
        page.line("outcome", &format!("{} at {}", wire_word(&outcome.status), seconds(outcome.at)));
    }
    page.exact("url", &approval.url);
}

/// All that happened: a line for each event, and below it why and with which facts.
pub(super) fn history(history: &ApprovalHistory, terminal: Terminal) -> Painted {
    let mut page = Page::new(terminal);
    for (index, event) in history.items.iter().enumerate() {
        let by = match event.actor.as_ref().map(|actor| (&actor.member_id, &actor.key_id)) {
            Some((Some(member), key)) => format!("{member} with key {key}"),
            Some((None, key)) => format!("key {key}"),
            None => "time".to_owned(),
        };
        let line_break = if index == 0 { "" } else { "\n" };
        let (at, kind) = (seconds(event.at), wire_word(&event.kind));
        page.text.push(&format!("{line_break}{at}  {kind:<20}  by {by}"));
        if let Some(request) = event.request_id {
            page.line("request", &request.to_string());
        }
        if let Some(reason) = &event.reason {
            page.exact("reason", reason);
        }
        if !event.details.is_empty() {
            page.exact("details", &Value::from(event.details.clone()).to_string());
        }
    }
    page.text
}

/// A text that grows line by line: names in one column, values in another.
pub(super) struct Page {
    pub(super) text: Painted,
    pub(super) width: usize,
}

impl Page {
    pub(super) fn new(terminal: Terminal) -> Self {
        Self { text: Painted::new(terminal.colours), width: terminal.width.unwrap_or(DEFAULT_WIDTH) }
    }

    pub(super) fn heading(&mut self, heading: &str) {
        self.text.push(&format!("\n\n{heading}"));
    }

    /// A name and a value of our own.
    pub(super) fn line(&mut self, name: &str, value: &str) {
        self.name(name);
        self.text.push(value);
    }

    /// A name of our own and a value of somebody else.
    pub(super) fn exact(&mut self, name: &str, value: &str) {
        self.name(name);
        self.text.exact(value, self.width, COLUMN);
    }

    pub(super) fn name(&mut self, name: &str) {
        let width = COLUMN - 2;
        self.text.push(&format!("\n  {name:<width$}"));
    }

    fn vote(&mut self, vote: &Vote) {
        let verb = if vote.approve { "approved" } else { "denied" };
        let who = vote.member_id.as_ref().map_or_else(|| "another system".to_owned(), ToString::to_string);
        let place = vote.on_behalf_of.as_ref().map_or_else(String::new, |away| format!(" in the place of {away}"));
        self.line("vote", &format!("{who}{place} {verb} at {} with key {}", seconds(vote.at), vote.key_id));
        if let Some(external) = &vote.external {
            self.exact("", &format!("there: {}", external.approved_by.join(", ")));
            self.exact("", &format!("evidence: {}", external.evidence));
        }
        if !vote.reason.is_empty() {
            self.exact("", &vote.reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use stage0_contract::Severity;

    use super::super::tests::{fixtures, pending};
    use super::*;

    const PLAIN: Terminal = Terminal { width: None, colours: false };

    fn shown(approval: &Approval) -> String {
        for_people(approval, PLAIN).as_str().to_owned()
    }

    #[test]
    fn risk_stands_before_the_action_and_the_gravest_issue_first() {
        let mut approval = pending(&json!({"goal": "Deploy the payments service", "tools": ["argo_cd"],
            "side_effects": ["deployment"], "constraints": ["rollback_plan_required"]}));
        let mut grave = approval.issues[0].clone();
        (grave.severity, grave.message) = (Severity::High, "the gravest".to_owned());
        approval.issues.push(grave);
        let shown = shown(&approval);
        let order = [
            "pending  apr_1\n  2 members of release-managers must approve until",
            "Risk\n  HIGH APPROVAL_REQUIRED: the gravest\n  MEDIUM ",
            "side effects    deployment",
            "tools           argo_cd",
            "environment     production",
            "Action\n  goal            Deploy the payments service",
            "constraints     rollback_plan_required",
            "Approval\n  digest          9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\n",
            "usable          once, for 15 min after it is approved",
            "vote            mem_1 approved at 2026-03-16T12:05:00Z with key key_2\n                  checked the plan",
        ];
        let mut from = 0;
        for part in order {
            let at = shown[from..].find(part);
            from += at.unwrap_or_else(|| panic!("`{part}` is missing or stands too early in\n{shown}"));
        }
    }

    #[test]
    fn a_used_approval_shows_who_approved_in_whose_place_and_what_came_of_it() {
        let shown = shown(&fixtures()[1]);
        for part in [
            "consumed  apr_1\n  used once at 2026-03-16T12:05:00Z",
            "another system approved",
            "there: ops-lead\n",
            "evidence: https://tickets.example/CHG-12",
            "mem_2 in the place of mem_3 approved",
            "after 30 min members of duty-managers may decide too",
            "used by         request 0190163d-8694-739b-aea5-966c26f8ad92",
            "outcome         succeeded at",
            "is not shown to this key",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }

    #[test]
    fn too_few_people_and_a_stop_are_said_at_the_top() {
        let mut approval = fixtures().remove(0);
        assert!(!shown(&approval).contains("cannot be approved"));
        (approval.eligible, approval.stopped) = (Some(1), Some("incident \u{202e}12".to_owned()));
        let shown = shown(&approval);
        assert!(shown.contains("It cannot be approved: 2 must approve, and only 1 may."), "{shown}");
        assert!(shown.contains(r"A stop holds it up: incident \u{202e}12"), "{shown}");
    }

    #[test]
    fn the_history_names_who_did_it_or_that_time_did() {
        let text = include_str!("../../../contract/fixtures/approval_history.json");
        let mut fixture: Value = serde_json::from_str(text).unwrap();
        fixture["done"]["items"][1]["reason"] = "not on a Friday\u{202e}".into();
        let shown = history(&serde_json::from_value(fixture["done"].clone()).unwrap(), PLAIN);
        for part in [
            "2026-03-16T12:00:00Z  approval.requested    by key key_1\n  request         0190163d-",
            r#"details         {"quorum":2,"groups":["release-managers"],"#,
            "approval.denied       by mem_1 with key key_2\n  reason          not on a Friday\\u{202e}\n",
            "approval.expired      by time",
        ] {
            assert!(shown.as_str().contains(part), "{part}: {}", shown.as_str());
        }
    }

    #[test]
    fn lengths_of_time_are_shown_in_the_largest_whole_unit() {
        assert_eq!([length(7_200), length(900), length(61)], ["2 h", "15 min", "61 s"]);
    }
}
