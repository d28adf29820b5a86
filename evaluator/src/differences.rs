//! Reports that compiled rules and Cedar came to different outcomes, which is a defect of ours and never of a policy.
//!
//! The policy crate denies the check and leaves the policy to Cedar; here a person hears of it.

use stage0_contract::EvaluateRequest;
use stage0_policy::{Difference, Pack};

use crate::metrics;

/// A check was evaluated in both ways.
pub(crate) fn found_by_check(message: &EvaluateRequest, differences: &[Difference]) {
    for Difference { policy_version, rules } in differences {
        metrics::policy_differs();
        tracing::error!(
            request_id = %message.request_id,
            account = %message.account,
            %policy_version,
            rules = rules.join(", "),
            "compiled rules differ from Cedar: the check is denied, and Cedar evaluates the policy from now on"
        );
    }
}

/// The cases of a policy were evaluated in both ways when it was loaded.
pub(crate) fn found_by_cases(pack: &Pack) {
    if pack.is_left_to_cedar() {
        metrics::policy_differs();
        tracing::error!(
            policy_version = %pack.version(),
            "compiled rules differ from Cedar on a case: Cedar evaluates the policy"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use metrics_exporter_prometheus::PrometheusBuilder;
    use serde_json::json;
    use stage0_contract::{AccountId, CallerTexts, CheckRequest, EvaluateReply, IssueCode, RequestId, Verdict};
    use stage0_policy::{PackSet, TimeLimit};

    use super::*;
    use crate::handler::Handler;
    use crate::published::Chosen;

    fn page_of(work: impl FnOnce()) -> String {
        let recorder = PrometheusBuilder::new().build_recorder();
        ::metrics::with_local_recorder(&recorder, work);
        recorder.handle().render()
    }

    fn message() -> EvaluateRequest {
        EvaluateRequest {
            asker: None,
            request_id: RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap(),
            account: AccountId::parse("acc").unwrap(),
            request: CheckRequest::parse(json!({"goal": "optimise", "success_criteria": ["x"]})).unwrap(),
            evaluated_at: 1_773_662_400,
            operation: None,
            caller: CallerTexts::default(),
            max_runs: None,
        }
    }

    #[test]
    fn a_check_on_which_a_compiled_rule_differs_is_denied_and_counted_once() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/baseline");
        let pack = Arc::into_inner(Pack::from_dir(&folder).unwrap()).unwrap().miscompiled("value.vague_goal");
        let chosen = Chosen { own: Some(Arc::new(pack)), ..Chosen::default() };
        let handler = Handler::new(Arc::new(PackSet::embedded().unwrap())).unwrap();
        let decide = || match handler.evaluate(&message(), &chosen, None, None, TimeLimit::NONE).reply {
            EvaluateReply::Decided(evaluation) => evaluation.decision,
            other => panic!("{other:?}"),
        };
        let page = page_of(|| {
            let denied = decide();
            assert_eq!((denied.verdict, denied.issues[0].code.as_str()), (Verdict::Deny, IssueCode::POLICY_ERROR));
            assert_ne!(decide().verdict, Verdict::Deny);
        });
        assert!(page.contains("stage0_policy_differences_total 1\n"), "{page}");
    }

    #[test]
    fn a_policy_that_agrees_with_cedar_on_its_cases_is_not_counted() {
        let page = page_of(|| found_by_cases(&Pack::embedded().unwrap()));
        assert!(!page.contains("stage0_policy_differences_total"), "{page}");
    }
}
