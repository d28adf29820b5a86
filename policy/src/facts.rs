//! Facts: what a request says, computed once and typed, so that a rule only has to compare.
//!
//! Pure, without floats, clocks or I/O. The pack's vocabulary decides what a word means, and rules decide what follows
//! from a fact.
//! INVARIANT: where a request says a thing twice, the stricter one counts; what cannot be read is listed in `malformed`
//! and never becomes a default that allows more.

mod access;
mod actions;
mod approval;
mod caller;
mod canonical;
mod clock;
mod cover;
mod culprit;
mod custom;
mod decimal;
mod declared;
mod effects;
mod evidence;
mod goal;
mod history;
mod limits;
mod mcp;
mod past;
mod patterns;
mod proposal;
mod run;
mod schema;
mod scope;
mod table;
mod target;
mod tool_list;
mod tool_name;
mod tools;

use serde_json::Value;
use stage0_contract::{CheckRequest, FieldError, LimitName, Micros, RunId};

use crate::approval::Approvals;
use crate::pack::Pack;
use crate::secrets::{self, Finding};
use crate::time_limit::{OutOfTime, TimeLimit};
use crate::vocabulary::{self, Edition};

pub use history::{RunHistory, RunNeeds, TargetHash};
pub use run::{Reported, RunFacts, RunSnapshot, ToolCalls};
pub use table::{FactRow, table};

pub(crate) use access::{are_environments_settled, is_role_settled, resolved_environment};
pub(crate) use approval::{Status as ApprovalStatus, without_claim};
pub(crate) use caller::{Asking, NamedCaller};
pub(crate) use canonical::Canonical;
pub(crate) use cover::{covering_stop, grant_covers};
pub(crate) use culprit::Culprit;
pub(crate) use custom::{
    CUSTOM, Custom, CustomType, CustomTypes, MAX_CUSTOM_MEMBERS, is_absent, is_harmless, is_short,
};
pub(crate) use decimal::Decimal;
pub(crate) use declared::Declared;
pub(crate) use effects::{Reading as EffectReading, Source, classify};
pub(crate) use limits::counter_of;
pub(crate) use run::{is_stored_name, stored_tool};
pub(crate) use schema::schema;
pub(crate) use table::{Attribute, Attributes, FactValue, FactView, Group, Groups, Kind, Trigger, Triggers};
pub(crate) use tool_name::readings;
pub(crate) use tools::effect_text;

use access::Access;
use approval::Approval;
use caller::Caller;
use clock::Clock;
use effects::Effects;
use evidence::Evidence;
use past::Past;
use proposal::{Proposal, Targets};
use scope::Scopes;
use tool_name::NamedTools;
use tools::{ProposedTools, ToolRisks};

/// The fact that tells a run that counted nothing from a check without a run.
pub(crate) const RUN_NAMED: &str = "run_named";

#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) declared: Declared,
    pub(crate) effects: Effects,
    pub(crate) approval: Approval,
    pub(crate) access: Access,
    pub(crate) run: RunFacts,
    pub(crate) scopes: Scopes,
    pub(crate) context_present: bool,
    /// Members of `context` with a wrong type or range; sorted, each once.
    pub(crate) malformed: Vec<&'static str>,
    pub(crate) ticket_named: bool,
    pub(crate) mfa_verified: bool,
    pub(crate) rollback_plan: bool,
    /// Canonical names of declared limits whose counter is missing.
    pub(crate) limits_not_enforced: Vec<&'static str>,
    /// `retry_count` is given but is no number of retries.
    pub(crate) retry_count_unusable: bool,
    /// The approval is older than `approval_max_age` allows, or its age is unknown.
    pub(crate) approval_stale: bool,
    pub(crate) window_open: bool,
    /// When all declared windows are next open at once, in RFC 3339.
    pub(crate) next_opening: Option<String>,
    pub(crate) tool_risks: ToolRisks,
    pub(crate) tools: ProposedTools,
    pub(crate) criteria_missing: bool,
    /// No tools, constraints, side effects, context entries or environment.
    pub(crate) bare: bool,
    pub(crate) goal_vague: bool,
    pub(crate) secrets: Vec<Finding>,
    pub(crate) estimated_cost: Option<Micros>,
    /// As the caller wrote it, trimmed; empty without one.
    pub(crate) environment: String,
    pub(crate) run_named: bool,
    /// The next five are read only for a pack that names a fact of theirs.
    proposal: Option<Box<Proposal>>,
    clock: Option<Clock>,
    caller: Option<Box<Caller>>,
    /// None too where the state of the run was not told.
    past: Option<Box<Past>>,
    pub(crate) custom: Option<Box<Custom>>,
}

/// What the run did before the check.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Before<'a> {
    /// It is not told, so that a rule about it fails.
    Unknown,
    /// It is the first check.
    Nothing,
    Known(&'a RunHistory),
}

/// What a check is decided by, besides its request and the pack.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Circumstances<'a> {
    /// In seconds since the epoch.
    pub(crate) evaluated_at: i64,
    pub(crate) snapshot: Option<&'a RunSnapshot>,
    /// Of no use where the request names no run.
    pub(crate) before: Before<'a>,
    pub(crate) approvals: Approvals<'a>,
    pub(crate) asking: Asking<'a>,
    /// The groups of facts to read: those that the pack's rules name, or all.
    pub(crate) groups: Groups,
}

/// Why a request could not be decided.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvaluateError {
    /// The request names something that the pack does not define.
    #[error("the policy does not know a word of the request")]
    Invalid(Vec<FieldError>),
    /// The time limit passed before the decision was made.
    #[error(transparent)]
    OutOfTime(#[from] OutOfTime),
}

impl From<Vec<FieldError>> for EvaluateError {
    fn from(errors: Vec<FieldError>) -> Self {
        Self::Invalid(errors)
    }
}

impl Facts {
    /// Checks `limit` between steps.
    pub(crate) fn read(
        request: &CheckRequest,
        pack: &Pack,
        circumstances: &Circumstances<'_>,
        limit: TimeLimit,
    ) -> Result<Self, EvaluateError> {
        limit.check()?;
        let Circumstances { evaluated_at, snapshot, approvals, .. } = *circumstances;
        let Pack { vocabulary, windows, .. } = pack;
        access::check_environments_agree(request, vocabulary)?;
        let mut declared = Declared::read(&request.constraints, vocabulary, windows)?;
        limit.check()?;
        let mut evidence = Evidence::new(request.context.as_ref());
        let effects = Effects::read(&request.side_effects, vocabulary);
        let tools = ProposedTools::read(request, &mut evidence);
        limit.check()?;
        let inputs =
            approval::Inputs { request, declared: &declared, effects: &effects, tools: &tools, vocabulary, approvals };
        let approval = Approval::read(&inputs, evaluated_at, &mut evidence);
        let access = Access::read(request, &declared, vocabulary, &mut evidence);
        let run_id = RunId::of(request);
        if run_id.is_err() {
            // A run whose name is unusable may have counted anything.
            evidence.mark_counters_malformed();
        }
        limit.check()?;
        let secrets = secrets::find_within(request, pack.secrets(), limit)?;
        let run = RunFacts::read(&declared, &tools, &mut evidence, snapshot, !secrets.is_empty());
        let has_run = snapshot.is_some() || matches!(run_id, Ok(Some(_)));
        let limits_not_enforced = limits::not_enforced(&declared, request, has_run, &evidence);
        if vocabulary.edition() == Edition::Second {
            declared.drop_guardrails(&limits_not_enforced);
        }
        limit.check()?;
        let scopes = Scopes::read(&declared, request, vocabulary, &mut evidence);
        limit.check()?;
        let (window_open, next_opening) = vocabulary::judge(&declared.windows, windows, evaluated_at);
        limit.check()?;
        let mut run = run;
        let more = More::read(request, pack, circumstances, &effects, has_run, limit)?;
        if let Some(targets) = more.targets.filter(|_| snapshot.is_some() && secrets.is_empty()) {
            run.targets = targets.hashes().cloned().collect();
        }
        run.called = more.tools.filter(|_| snapshot.is_some()).map(|tools| tools.calls(!secrets.is_empty()));
        let nothing_declared = request.tools.is_empty() && request.constraints.is_empty() && !effects.scoped;
        let context_empty = request.context.as_ref().is_none_or(|c| c.values().all(Value::is_null));
        Ok(Self {
            context_present: request.context.is_some(),
            ticket_named: evidence.has_ticket(),
            mfa_verified: evidence.flag("mfa_verified").unwrap_or(false),
            rollback_plan: evidence.flag("rollback_plan").unwrap_or(false),
            limits_not_enforced,
            retry_count_unusable: limits::retry_count_unusable(request),
            approval_stale: is_stale(declared.limit(LimitName::ApprovalMaxAge), approval.approved_at, evaluated_at),
            window_open,
            next_opening,
            tool_risks: ToolRisks::read(request, &tools, &effects, vocabulary),
            tools,
            criteria_missing: request.success_criteria.is_empty(),
            bare: nothing_declared && context_empty && request.environment.is_none(),
            goal_vague: !effects.scoped && goal::is_vague(&request.goal, vocabulary),
            secrets,
            estimated_cost: run.estimated_cost,
            environment: access::environment_as_written(request),
            malformed: evidence.malformed(),
            run_named: has_run,
            proposal: more.proposal,
            clock: more.clock,
            caller: more.caller,
            past: more.past,
            custom: more.custom,
            declared,
            effects,
            approval,
            access,
            run,
            scopes,
        })
    }
}

/// The facts that only some packs name.
struct More {
    proposal: Option<Box<Proposal>>,
    clock: Option<Clock>,
    caller: Option<Box<Caller>>,
    past: Option<Box<Past>>,
    custom: Option<Box<Custom>>,
    /// For the state of the run.
    targets: Option<Targets>,
    /// For the state of the run.
    tools: Option<NamedTools>,
}

impl More {
    fn read(
        request: &CheckRequest,
        pack: &Pack,
        circumstances: &Circumstances<'_>,
        effects: &Effects,
        has_run: bool,
        limit: TimeLimit,
    ) -> Result<Self, OutOfTime> {
        let Circumstances { evaluated_at, before, asking, groups, .. } = *circumstances;
        let reads = |group| groups.contains(group);
        let counts_tools = has_run && (pack.run_needs().calls || pack.run_needs().targets);
        let tools = (counts_tools || reads(Group::Proposal)).then(|| NamedTools::read(request, limit)).transpose()?;
        let proposal = tools.as_ref().filter(|_| reads(Group::Proposal));
        let proposal = proposal.map(|tools| Proposal::read(request, tools, effects, &pack.vocabulary, limit));
        let targets = (pack.run_needs().targets || reads(Group::Run)).then(|| Targets::read(request));
        let history = match before {
            // Without a run nothing is counted.
            _ if !has_run => Some(RunHistory::default()),
            Before::Nothing => Some(RunHistory::default()),
            Before::Known(history) => Some(history.clone()),
            Before::Unknown => None,
        };
        let past = history.filter(|_| reads(Group::Run)).zip(targets.as_ref());
        let context = request.context.as_ref();
        Ok(Self {
            proposal: proposal.transpose()?.map(Box::new),
            clock: reads(Group::Time).then(|| Clock::read(evaluated_at, &pack.windows)),
            caller: reads(Group::Caller).then(|| Box::new(Caller::read(asking))),
            past: past.map(|(history, targets)| Box::new(Past::read(history, targets, &pack.run_calls))),
            custom: (!pack.custom.is_empty()).then(|| Box::new(Custom::read(&pack.custom, context))),
            targets: targets.filter(|_| pack.run_needs().targets),
            tools: tools.filter(|_| counts_tools),
        })
    }
}

/// How far ahead of ours the clock that wrote `approved_at` may run.
const MAX_CLOCK_SKEW_SECONDS: i64 = 300;

/// Whether an approval is older than `max_age`, lies in the future, or does not say when it was given.
fn is_stale(max_age: Option<i64>, approved_at: Option<i64>, evaluated_at: i64) -> bool {
    let Some(max_age) = max_age else { return false };
    let Some(age) = approved_at.and_then(|at| evaluated_at.checked_sub(at)) else { return true };
    age < -MAX_CLOCK_SKEW_SECONDS || age.saturating_mul(1_000_000) > max_age
}

#[cfg(test)]
mod tests;
