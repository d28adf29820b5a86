//! What a refusal of the Stage0 server says to the model behind the guard, and to the person who reads along.
//!
//! The model cannot change what the guard asks. So where an approval is pending, or the server says why none is, the
//! server's questions are left out: they would only invite the model to claim an approval.

use stage0_client::NotAllowed;
use stage0_client::text::plain;
use stage0_contract::{ApprovalRef, ApprovalStatus, CheckResponse, Issue};

use crate::answer::{Approval, NotRun, NotRunKind};

/// The server refuses a call, or decided nothing.
pub(crate) fn not_run(not_allowed: &NotAllowed) -> NotRun {
    let (kind, response) = match not_allowed {
        NotAllowed::Denied(denied) => (NotRunKind::Denied, denied.response()),
        NotAllowed::Deferred(deferred) => (NotRunKind::Deferred, deferred.response()),
        NotAllowed::Undecided(undecided) => {
            let mut not_run = NotRun::undecided(undecided.to_string());
            not_run.request_id = not_allowed.request_id();
            return not_run;
        }
    };
    let issues = &response.decided.issues;
    NotRun {
        kind,
        text: text(kind, response),
        reasons: issues.iter().map(|issue| issue.code.as_str().to_owned()).collect(),
        request_id: not_allowed.request_id(),
        approval: pending(kind, response).and_then(|approval| {
            let url = Some(approval.url.clone()).filter(|url| url.starts_with("https://"));
            Some(Approval { id: approval.id.as_ref()?.to_string(), url })
        }),
        approval_note: approval_note(issues),
    }
}

fn pending(kind: NotRunKind, response: &CheckResponse) -> Option<&ApprovalRef> {
    let approval = response.decided.approval.as_ref().filter(|_| kind == NotRunKind::Deferred);
    approval.filter(|approval| approval.status == ApprovalStatus::Pending)
}

/// What the server says of the approval beyond the approval itself, such as why none was opened.
fn approval_note(issues: &[Issue]) -> Option<String> {
    issues.iter().find_map(|issue| issue.details.get("approval")?.as_str()).map(plain)
}

fn text(kind: NotRunKind, response: &CheckResponse) -> String {
    let decided = &response.decided;
    let word = kind.verdict();
    let mut lines = vec![format!("The tool did not run. Stage0 decided {word} (request {}):", response.request_id)];
    lines.extend(decided.issues.iter().map(|issue| {
        let next = serde_json::to_value(issue.next_action).unwrap_or_default();
        let next = next.as_str().unwrap_or_default().to_owned();
        format!("- {}: {} (next: {next})", issue.code.as_str(), plain(&issue.message))
    }));
    if kind == NotRunKind::Denied {
        lines.push("Do not try to get the same result in another way.".to_owned());
        return lines.join("\n");
    }
    let note = approval_note(&decided.issues);
    match pending(kind, response) {
        Some(approval) => {
            lines.extend(note.map(|note| format!("About the approval: {note}.")));
            lines.extend(shortage(&decided.issues));
            lines.extend(how_to_approve(approval));
        }
        None => match note {
            Some(note) => lines.push(format!(
                "No approval is open for this call: {note}. `stage0 approvals list` shows what is pending, and \
                 `stage0 approvals cancel` takes one back. Tell the user."
            )),
            None => lines.extend(decided.clarifying_questions.iter().map(|question| format!("- {}", plain(question)))),
        },
    }
    lines.join("\n")
}

fn how_to_approve(approval: &ApprovalRef) -> Option<String> {
    let id = approval.id.as_ref()?;
    let people = match approval.quorum {
        1 => "A person approves".to_owned(),
        more => format!("{more} people approve"),
    };
    let of = match approval.groups.as_slice() {
        [] => String::new(),
        groups => format!(" (of {})", groups.iter().map(|group| plain(group)).collect::<Vec<_>>().join(", ")),
    };
    Some(format!(
        "{people}{of} it until {} with `stage0 approvals approve {id} --key-file KEY`, where KEY is the file with the \
         person's own key. Tell the user. Call this tool again, unchanged, after that, and not before.",
        approval.expires_at
    ))
}

/// Too few people may approve.
fn shortage(issues: &[Issue]) -> Option<String> {
    issues.iter().find_map(|issue| {
        let number = |name: &str| issue.details.get(name)?.as_u64();
        let (eligible, quorum) = (number("eligible")?, number("quorum")?);
        (eligible < quorum).then(|| {
            format!(
                "Only {eligible} of the {quorum} people who must approve are there: an administrator invites members \
                 (`stage0 members invite`), or gives them the groups that the approval asks for."
            )
        })
    })
}
