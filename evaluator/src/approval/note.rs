//! What a decision says of approvals beyond the approval itself: why there is none, who used it, how many people may
//! give it.
//!
//! INVARIANT: no text of the request is in it, so it may be recorded.

use stage0_contract::{Decision, Issue, NextAction, RequestId};

use super::people::Electorate;

/// What the issue says of approvals, in details of their own.
#[derive(Default)]
pub(super) struct Note {
    pub(super) approval: Option<String>,
    pub(super) used_by: Option<RequestId>,
    /// With the quorum.
    pub(super) electorate: Option<(Electorate, u32)>,
}

impl Note {
    pub(super) fn why(text: impl Into<String>) -> Self {
        Self { approval: Some(text.into()), ..Self::default() }
    }

    pub(super) fn write(&self, decision: &mut Decision) {
        let asks = |issue: &Issue| issue.next_action == NextAction::RequestApproval;
        let at = decision.issues.iter().position(asks).unwrap_or_default();
        let Some(issue) = decision.issues.get_mut(at) else { return };
        if let Some(text) = &self.approval {
            issue.details.insert("approval".to_owned(), text.as_str().into());
        }
        if let Some(request_id) = self.used_by {
            issue.details.insert("used_by".to_owned(), request_id.to_string().into());
        }
        let Some((Electorate { eligible, is_short }, quorum)) = self.electorate else { return };
        issue.details.insert("eligible".to_owned(), eligible.into());
        issue.details.insert("quorum".to_owned(), quorum.into());
        if is_short {
            let question = format!(
                "Who else may approve? The quorum is {quorum}, and only {eligible} who may approve are independent of \
                 the caller: invite members, or give members the groups that this approval asks for."
            );
            decision.clarifying_questions.push(question.clone());
            decision.defer_questions.push(question);
        }
    }
}
