//! Facts: what a request says, computed once and typed, so that a rule only has to compare.
//!
//! Owns the way from words, constraints and context to the record that rules see; pure, without floats, clocks or I/O. Which words
//! mean what is the pack's vocabulary; what follows from a fact is a rule's business.
//! INVARIANT: where a request says a thing twice the stricter holds, and what cannot be read is in `malformed`, never a
//! default that allows more.

mod access;
mod actions;
mod approval;
mod attributes;
mod culprit;
mod declared;
mod effects;
mod environment;
mod evidence;
mod goal;
mod limits;
mod patterns;
mod prefixes;
mod run;
mod scope;
mod target;
mod tool_list;
mod tools;
mod triggers;
mod window;

use serde_json::Value;
use stage0_contract::{CheckRequest, FieldError, Micros, RunId};

use crate::pack::{Edition, Vocabulary, Windows};
use crate::secrets::{self, Detector, Finding};
use crate::time_limit::{OutOfTime, TimeLimit};

pub(crate) use attributes::{Attribute, Attributes, FactValue};
pub(crate) use culprit::Culprit;
pub(crate) use declared::Declared;
pub(crate) use effects::{As, Reading as EffectReading, judge};
pub(crate) use tools::action;
pub(crate) use triggers::{Trigger, Triggers};
pub(crate) use window::{Window, WindowSpec};

use access::Access;
use approval::{Approval, Asked};
use effects::Effects;
use evidence::Evidence;
use run::Run;
pub(crate) use run::{Calls, Past, Said};
use scope::Scopes;
use tools::{Powers, ProposedTools};

/// All that rules can know about a request.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) declared: Declared,
    pub(crate) effects: Effects,
    pub(crate) approval: Approval,
    pub(crate) access: Access,
    pub(crate) run: Run,
    pub(crate) scopes: Scopes,
    pub(crate) context_present: bool,
    /// Members of `context` that cannot be used; sorted, each once.
    pub(crate) malformed: Vec<&'static str>,
    pub(crate) ticket_named: bool,
    pub(crate) mfa_verified: bool,
    pub(crate) rollback_plan: bool,
    /// Limits that nothing is compared with: canonical names.
    pub(crate) limits_not_enforced: Vec<&'static str>,
    /// `retry_count` is given and says nothing.
    pub(crate) retries_unread: bool,
    /// The approval is older than `approval_max_age` lets it be, or nobody knows how old it is.
    pub(crate) approval_stale: bool,
    pub(crate) window_open: bool,
    /// When the declared windows are next open together, RFC 3339.
    pub(crate) next_opening: Option<String>,
    pub(crate) powers: Powers,
    pub(crate) tools: ProposedTools,
    pub(crate) criteria_missing: bool,
    /// No tools, constraints, side effects, context entries or environment.
    pub(crate) bare: bool,
    pub(crate) goal_vague: bool,
    pub(crate) secrets: Vec<Finding>,
    pub(crate) estimated_cost: Option<Micros>,
    /// As given, trimmed.
    pub(crate) environment: String,
}

/// Why there are no facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NotRead {
    /// The request names what the pack does not know.
    Invalid(Vec<FieldError>),
    /// It took too long.
    OutOfTime,
}

impl From<Vec<FieldError>> for NotRead {
    fn from(errors: Vec<FieldError>) -> Self {
        Self::Invalid(errors)
    }
}

impl From<OutOfTime> for NotRead {
    fn from(_: OutOfTime) -> Self {
        Self::OutOfTime
    }
}

impl Facts {
    /// Reads a request at a time (seconds since the epoch) with what is remembered of its run, and looks at `limit`
    /// between its steps.
    pub(crate) fn read(
        request: &CheckRequest,
        vocabulary: &Vocabulary,
        windows: &Windows,
        detector: &Detector,
        evaluated_at: i64,
        past: Option<&Past>,
        limit: TimeLimit,
    ) -> Result<Self, NotRead> {
        limit.check()?;
        access::one_environment(request, vocabulary)?;
        let mut declared = Declared::read(&request.constraints, vocabulary, windows)?;
        limit.check()?;
        let mut evidence = Evidence::new(request.context.as_ref());
        let effects = Effects::read(&request.side_effects, vocabulary);
        let tools = ProposedTools::read(request, &mut evidence);
        limit.check()?;
        let asked = Asked { request, declared: &declared, effects: &effects, tools: &tools, vocabulary, evaluated_at };
        let approval = Approval::read(&asked, &mut evidence);
        let access = Access::read(request, &declared, vocabulary, &mut evidence);
        let run_id = RunId::of(request);
        run::mark_unless_named(&run_id, &mut evidence);
        limit.check()?;
        let run = Run::read(&declared, &tools, &mut evidence, past);
        let counted = past.is_some() || matches!(run_id, Ok(Some(_)));
        let limits_not_enforced = limits::not_enforced(&declared, request, counted, &evidence);
        if vocabulary.edition() == Edition::Second {
            declared.without_guardrails(&limits_not_enforced);
        }
        limit.check()?;
        let scopes = Scopes::read(&declared, request, vocabulary, &mut evidence);
        let (ticket_named, rollback_plan) = (evidence.ticket(), evidence.flag("rollback_plan").unwrap_or(false));
        let mfa_verified = evidence.flag("mfa_verified").unwrap_or(false);
        limit.check()?;
        let (window_open, next_opening) = window::judge(&declared.windows, windows, evaluated_at);
        let nothing_declared = request.tools.is_empty() && request.constraints.is_empty() && !effects.scoped;
        let context_empty = request.context.as_ref().is_none_or(|c| c.values().all(Value::is_null));
        Ok(Self {
            context_present: request.context.is_some(),
            ticket_named,
            mfa_verified,
            rollback_plan,
            limits_not_enforced,
            retries_unread: limits::retries_unread(request),
            approval_stale: stale(declared.approval_max_age, approval.approved_at, evaluated_at),
            window_open,
            next_opening,
            powers: Powers::read(request, &tools, &effects, vocabulary),
            tools,
            criteria_missing: request.success_criteria.is_empty(),
            bare: nothing_declared && context_empty && request.environment.is_none(),
            goal_vague: !effects.scoped && goal::is_vague(&request.goal, vocabulary),
            secrets: secrets::find_within(request, detector, limit)?,
            estimated_cost: run.estimated_cost,
            environment: access::as_given(request),
            malformed: evidence.malformed(),
            declared,
            effects,
            approval,
            access,
            run,
            scopes,
        })
    }
}

/// A clock that runs ahead makes no approval one of the future.
const APPROVAL_CLOCK_SKEW_SECONDS: i64 = 300;

/// Whether an approval is older than it may be, lies in the future, or says not when it was given.
fn stale(max_age: Option<Micros>, approved_at: Option<i64>, evaluated_at: i64) -> bool {
    let Some(max_age) = max_age else { return false };
    let Some(age) = approved_at.and_then(|at| evaluated_at.checked_sub(at)) else { return true };
    age < -APPROVAL_CLOCK_SKEW_SECONDS || age.saturating_mul(1_000_000) > max_age.get()
}
