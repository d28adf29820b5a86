//! The proof of a pack: its cases are run each time it is loaded, and it is refused if one fails. Those of packs that
//! are compiled in are run by the tests alone.
//!
//! Every rule must be satisfied by at least one case, no trigger may hide a satisfied rule, and the facts of every case
//! must fit the schema.

use std::collections::{BTreeSet, HashSet};

use cedar_policy::EntityUid;
use serde::Serialize;
use stage0_contract::{
    ApprovalTerms, CheckRequest, Decision, FieldError, Issue, IssueCode, PolicyVersion, Requirement, Severity, Verdict,
};

use super::cases::{Case, Expectation, line_of_case};
use super::{OwnTypes, Pack, rules};
use crate::engine::Engine;
use crate::evaluation;
use crate::explain::CaseExplanation;
use crate::facts::{Facts, Groups};
use crate::files::{CASES, Fault, Files, PackError, SCHEMA};
use crate::rule::Rule;
use crate::time_limit::TimeLimit;

/// The bytes of Cedar that the cases of a pack evaluate together. A long list is read for each case, so neither the
/// number of rules nor the number of cases bounds the time by itself.
const MAX_EVALUATED_BYTES: usize = 1_000_000_000;

/// The result of one case.
#[derive(Debug, Clone, Serialize)]
pub struct CaseOutcome {
    /// The case.
    pub id: String,
    /// The answer that it expects.
    pub expected: Expectation,
    /// The verdict; `None` if the request was refused.
    pub verdict: Option<Verdict>,
    /// The codes of its issues, each once.
    pub codes: Vec<IssueCode>,
    /// The issues of the decision, each with the rule that raised it.
    pub reasons: Vec<Reason>,
    /// On DEFER: what the decision demands of an approval.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalTerms>,
    /// Expected texts that do not occur in the answer.
    pub unsaid: Vec<String>,
    /// Why there was no decision.
    pub error: Option<String>,
    /// Whether the answer is the expected one.
    pub passed: bool,
}

/// An issue of a case's decision, and where its rule stands.
#[derive(Debug, Clone, Serialize)]
pub struct Reason {
    /// The rule's `@id`, or the evaluator's own name.
    pub rule: String,
    /// The pack that the rule is inherited from; `None` for the pack's own rules.
    pub inherited: Option<PolicyVersion>,
    /// The file of the rule, if the pack has it.
    pub file: Option<String>,
    /// The line of the rule, from 1.
    pub line: Option<usize>,
    /// The code of the issue.
    pub code: IssueCode,
    /// Its severity.
    pub severity: Severity,
    /// Its message.
    pub message: String,
}

/// A decision with what it demands of an approval, or why there is none.
type Decided = Result<(Decision, Option<ApprovalTerms>), Vec<FieldError>>;

/// Which rules a case asks, and which of them it satisfies.
#[derive(Debug)]
pub(crate) struct Trial {
    pub(crate) evaluated: BTreeSet<String>,
    pub(crate) matched: BTreeSet<String>,
    /// Whether its request names a run.
    pub(crate) run_named: bool,
}

impl Case {
    pub(super) fn trial(&self, engine: &Engine) -> Option<Trial> {
        let facts = self.facts(engine, engine.pack().groups)?;
        let outcome = engine.evaluate(&facts);
        let ids = |rules: &[&Rule]| rules.iter().map(|rule| rule.id.clone()).collect();
        Some(Trial { evaluated: ids(&outcome.evaluated), matched: ids(&outcome.matched), run_named: facts.run_named })
    }

    fn facts(&self, engine: &Engine, groups: Groups) -> Option<Facts> {
        self.read(engine, groups).map(|(_, facts)| facts).ok()
    }

    /// The request and its facts, or why it is refused.
    fn read(&self, engine: &Engine, groups: Groups) -> Result<(&CheckRequest, Facts), Vec<FieldError>> {
        let request = self.request.as_ref().map_err(Clone::clone)?;
        Ok((request, engine.facts_in(request, &self.circumstances(groups))?))
    }

    pub(super) fn explain(&self, engine: &Engine) -> CaseExplanation {
        let explained = match &self.request {
            Ok(request) => engine.explain_in(request, &self.circumstances(engine.pack().groups)),
            Err(errors) => Err(errors.clone()),
        };
        explained.into()
    }

    pub(crate) fn run(&self, engine: &Engine) -> CaseOutcome {
        let read = self.read(engine, engine.pack().groups);
        let decided = read.map(|(request, facts)| engine.decide_by(request, &facts, &engine.evaluate(&facts)));
        self.outcome(decided, engine.pack())
    }

    fn outcome(&self, decided: Decided, pack: &Pack) -> CaseOutcome {
        let mut outcome = CaseOutcome {
            id: self.id.clone(),
            expected: self.expected.clone(),
            verdict: None,
            codes: Vec::new(),
            reasons: Vec::new(),
            approval: None,
            unsaid: Vec::new(),
            error: None,
            passed: false,
        };
        let reported = match decided {
            Ok((decision, terms)) => {
                let codes: BTreeSet<IssueCode> = decision.issues.iter().map(|issue| issue.code.clone()).collect();
                outcome.passed =
                    self.expected.met_by(decision.verdict, &codes) && self.expected.asked_by(terms.as_ref());
                outcome.approval = terms;
                outcome.verdict = Some(decision.verdict);
                outcome.codes = codes.into_iter().collect();
                outcome.reasons = reasons(&decision, pack);
                if self.expected.says.is_empty() { String::new() } else { reported(&decision) }
            }
            Err(errors) => {
                let reported: Vec<String> = errors.iter().map(|e| format!("{} {}", e.path, e.message)).collect();
                let reported = reported.join("; ");
                outcome.passed = self.expected.refused;
                outcome.error = Some(reported.clone());
                reported
            }
        };
        outcome.unsaid = self.expected.says.iter().filter(|text| !reported.contains(*text)).cloned().collect();
        outcome.passed &= outcome.unsaid.is_empty();
        outcome
    }
}

impl Expectation {
    fn met_by(&self, verdict: Verdict, codes: &BTreeSet<IssueCode>) -> bool {
        self.verdicts.contains(&verdict)
            && self.codes.iter().all(|code| codes.contains(code))
            && (self.codes_any.is_empty() || self.codes_any.iter().any(|code| codes.contains(code)))
            && !self.absent_codes.iter().any(|code| codes.contains(code))
    }

    /// Whether these terms have the requirement that is expected, or none is expected.
    pub(crate) fn asked_by(&self, terms: Option<&ApprovalTerms>) -> bool {
        let is_asked =
            |one: &Requirement, wanted: &Requirement| (&one.groups, one.quorum) == (&wanted.groups, wanted.quorum);
        let has = |wanted: &Requirement| {
            terms.is_some_and(|terms| terms.requirements.iter().any(|one| is_asked(one, wanted)))
        };
        self.approval.as_ref().is_none_or(has)
    }
}

fn reported(decision: &Decision) -> String {
    let mut reported = serde_json::to_string(&decision.issues).unwrap_or_default();
    for text in std::iter::once(&decision.reason).chain(&decision.clarifying_questions) {
        reported.push('\n');
        reported.push_str(text);
    }
    reported
}

fn reasons(decision: &Decision, pack: &Pack) -> Vec<Reason> {
    let reason = |issue: &Issue| {
        let rule = pack.rules.get(&issue.rule);
        Reason {
            rule: issue.rule.clone(),
            inherited: rule.and_then(|rule| rule.inherited.clone()),
            file: rule.map(|rule| rule.file.clone()),
            line: rule.map(|rule| rule.line),
            code: issue.code.clone(),
            severity: issue.severity,
            message: issue.message.clone(),
        }
    };
    decision.issues.iter().map(reason).collect()
}

/// Whom a requirement asks, such as "one approval from the group `finance`".
pub fn demand(Requirement { groups, quorum, .. }: &Requirement) -> String {
    let approvals = if *quorum == 1 { "one approval".to_owned() } else { format!("{quorum} approvals") };
    let names: Vec<String> = groups.iter().map(|group| format!("`{group}`")).collect();
    match names.len() {
        0 => format!("{approvals} from any member"),
        1 => format!("{approvals} from the group {}", names.concat()),
        _ => format!("{approvals} from the groups {}", names.join(" or ")),
    }
}

impl CaseOutcome {
    /// Whether the decision demands of an approval what the case expects.
    pub fn is_asked(&self) -> bool {
        self.expected.asked_by(self.approval.as_ref())
    }

    fn complaint(&self) -> String {
        let list = |codes: &[IssueCode]| codes.iter().map(IssueCode::as_str).collect::<Vec<_>>().join(", ");
        let Expectation { verdicts, refused, codes, codes_any, says, absent_codes, approval } = &self.expected;
        let verdicts: Vec<&str> =
            verdicts.iter().map(|v| v.as_str()).chain(refused.then_some("a refusal (422)")).collect();
        let mut wanted = format!("wants {} with [{}]", verdicts.join(" or "), list(codes));
        if !codes_any.is_empty() {
            wanted.push_str(&format!(" and any of [{}]", list(codes_any)));
        }
        if !absent_codes.is_empty() {
            wanted.push_str(&format!(" without [{}]", list(absent_codes)));
        }
        if !says.is_empty() {
            wanted.push_str(&format!(" saying {says:?}"));
        }
        if let Some(approval) = approval {
            wanted.push_str(&format!(" and {}", demand(approval)));
        }
        let came = match (&self.error, self.verdict) {
            (Some(error), _) => error.clone(),
            (None, Some(verdict)) => {
                let terms = self.approval.as_ref().filter(|_| approval.is_some());
                let demands =
                    terms.map(|terms| terms.requirements.iter().map(demand).collect::<Vec<_>>().join(" and "));
                let demands = demands.map_or_else(String::new, |demands| format!(" and {demands}"));
                format!("{verdict} with [{}]{demands}", list(&self.codes))
            }
            (None, None) => "nothing".to_owned(),
        };
        format!("the case {wanted} and comes to {came}")
    }
}

/// A fault if running the cases would take unreasonably long. Those of the packs that it extends run on both packs.
pub(super) fn too_long(pack: &Pack, cases: &[Case]) -> Option<Fault> {
    let bytes = |pack: &Pack| -> usize { pack.sources.iter().map(String::len).sum() };
    let parent = pack.lineage.parent.as_deref();
    let inherited: usize = parent.into_iter().flat_map(Pack::ancestors).map(|pack| pack.case_count).sum();
    let (own, count) = (bytes(pack), cases.len().saturating_add(inherited));
    let of_parent = parent.map_or(0, bytes).saturating_mul(inherited);
    let evaluated = own.saturating_mul(count).saturating_add(of_parent);
    let message = format!(
        "{count} cases, {inherited} of them inherited, of {own} bytes of rules evaluate {evaluated} bytes, and may \
         evaluate {MAX_EVALUATED_BYTES}"
    );
    (evaluated > MAX_EVALUATED_BYTES).then(|| Fault::new(CASES, message))
}

/// The refusal of a pack whose cases take longer than the limit.
pub(super) fn in_time(limit: TimeLimit) -> Result<(), PackError> {
    let message = "loading the pack and running its cases takes too long: give it fewer rules or cases, or try again \
                   when the evaluators have less to do";
    limit.check().map_err(|_| PackError::of(Fault::new(CASES, message)))
}

/// Runs the cases and returns a fault for everything that they do not prove.
pub(super) fn prove(
    pack: &Pack,
    cases: &[Case],
    engine: &Engine,
    files: &Files,
    limit: TimeLimit,
) -> Result<Vec<Fault>, PackError> {
    let mut faults = Vec::new();
    let mut satisfied: HashSet<String> = HashSet::new();
    for case in cases {
        in_time(limit)?;
        let at = |message: String| {
            let quoted = format!("\"{}\"", case.id);
            let (file, text) = files.cases().find(|(_, text)| text.contains(&quoted)).unwrap_or((CASES, ""));
            Fault::new(file, message).at(line_of_case(text, &case.id)).rule(&case.id)
        };
        let read = case.read(engine, pack.groups);
        let all = read.as_ref().ok().map(|(_, facts)| engine.evaluate_all(facts));
        if let Some((_, Some(_))) = &all {
            // The pack is as its author wants it; the compiler is wrong.
            pack.leave_to_cedar();
        }
        let mut bucketed = BTreeSet::new();
        let decided = read.map(|(request, facts)| {
            let evaluated = engine.evaluate(&facts);
            bucketed.extend(evaluated.matched.iter().map(|rule| rule.id.clone()));
            engine.decide_by(request, &facts, &evaluated)
        });
        let outcome = case.outcome(decided, pack);
        if !outcome.passed {
            faults.push(at(outcome.complaint()));
        }
        let Some((all, _)) = all else { continue };
        for rule in all.matched {
            if !bucketed.contains(&rule.id) {
                let message = format!("its `@trigger` hides it in case `{}`", case.id);
                faults.push(Fault::new(&rule.file, message).at(rule.line).rule(&rule.id));
            }
        }
        satisfied.extend(bucketed);
    }
    // The cases of the parent have satisfied its rules.
    let own = pack.rules.values().filter(|rule| rule.inherited.is_none());
    for rule in own.filter(|rule| !satisfied.contains(&rule.id)) {
        let message = "no case satisfies it: an untested rule is no rule";
        faults.push(Fault::new(&rule.file, message).at(rule.line).rule(&rule.id));
    }
    faults.extend(misfits(pack, cases, engine, files));
    Ok(faults)
}

/// A fault if the facts of a case do not fit the schema that its rules were checked against.
fn misfits(pack: &Pack, cases: &[Case], engine: &Engine, files: &Files) -> Vec<Fault> {
    let mut faults = Vec::new();
    let Some(schema) = rules::schema(files, &mut faults) else { return faults };
    let Ok(action) = evaluation::ACTION.parse::<EntityUid>() else { return faults };
    let text = files.get(SCHEMA).unwrap_or_default();
    let described = OwnTypes::read(SCHEMA, text, pack.vocabulary.edition(), &mut faults).attributes;
    let fits = |case: &&Case| {
        let Some(facts) = case.facts(engine, Groups::ALL) else { return true };
        evaluation::context(&facts, described).is_ok_and(|context| context.validate(&schema, &action).is_ok())
    };
    if let Some(case) = cases.iter().find(|case| !fits(case)) {
        let message = "a fact of this case has another type than the schema says, or is not described as optional";
        faults.push(Fault::new(SCHEMA, message).rule(&case.id));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pack_whose_compiled_rule_differs_from_cedar_on_a_case_is_left_to_cedar_and_passes() {
        let files = Files::embedded();
        let (pack, cases) = Pack::parse(&files, None).unwrap();
        let pack = std::sync::Arc::new(pack.miscompiled("value.vague_goal"));
        let engine = Engine::new(std::sync::Arc::clone(&pack)).unwrap();
        assert!(!pack.is_left_to_cedar());
        let faults = prove(&pack, &cases, &engine, &files, TimeLimit::NONE).unwrap();
        assert!(faults.is_empty() && pack.is_left_to_cedar(), "{faults:?}");
        assert!(!Pack::load(&files).unwrap().is_left_to_cedar());
    }

    #[test]
    fn who_must_approve_reads_as_a_sentence() {
        let of = |groups: &[&str], quorum| {
            let groups = groups.iter().map(|group| (*group).to_owned()).collect();
            demand(&Requirement { groups, quorum, escalation: None })
        };
        assert_eq!(of(&["finance"], 1), "one approval from the group `finance`");
        assert_eq!(of(&["duty", "finance"], 2), "2 approvals from the groups `duty` or `finance`");
        assert_eq!(of(&[], 1), "one approval from any member");
        assert_eq!(of(&[], 3), "3 approvals from any member");
    }
}
