//! What an approval says of the operator's floor, where one was evaluated beside the policy that deferred the action.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Issue, PolicyVersion};

/// Of an issue that the floor raised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApprovalIssueDetails {
    /// The floor's version.
    pub policy: PolicyVersion,
}

impl ApprovalIssueDetails {
    /// Those of an issue; none: the policy raised it that decides.
    pub fn of(issue: &Issue) -> Option<Self> {
        let policy = issue.details.get("policy")?.as_str()?;
        PolicyVersion::parse(policy).ok().map(|policy| Self { policy })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_issue_names_the_floor_that_raised_it_and_nothing_else_of_its_details() {
        let issue = |details: serde_json::Value| -> Issue {
            serde_json::from_value(json!({"code": "LARGE_AMOUNT", "severity": "HIGH", "message": "m", "rule": "r",
                "next_action": "stop", "details": details}))
            .unwrap()
        };
        let floor = "house@1.0.0+0123456789ab";
        let details = ApprovalIssueDetails::of(&issue(json!({"policy": floor, "custom.amount": 501}))).unwrap();
        assert_eq!(serde_json::to_value(&details).unwrap(), json!({"policy": floor}));
        assert_eq!(ApprovalIssueDetails::of(&issue(json!({"custom.amount": 501}))), None);
    }
}
