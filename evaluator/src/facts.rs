//! Facts: what a request says, computed once and typed, so that a rule only has to compare.
//!
//! Owns the way from words, constraints and context to the record that rules see; pure, without floats, clocks or I/O. Which words
//! mean what is the pack's vocabulary; what follows from a fact is a rule's business.
//! INVARIANT: where a request says a thing twice the stricter holds, and what cannot be read is in `malformed`, never a
//! default that allows more.

mod access;
mod approval;
mod attributes;
mod declared;
mod effects;
mod evidence;
mod goal;
mod prefixes;
mod run;
mod scope;
mod target;
mod triggers;
mod window;

use serde_json::Value;
use stage0_contract::{CheckRequest, FieldError, Micros, RunId};

use crate::pack::{Vocabulary, Windows};
use crate::secrets::{self, Finding};
use crate::time_limit::{OutOfTime, TimeLimit};

pub(crate) use attributes::{Attribute, Attributes, FactValue};
pub(crate) use declared::Declared;
pub(crate) use triggers::{Trigger, Triggers};
pub(crate) use window::{Window, WindowSpec};

use access::Access;
use approval::Approval;
use effects::Effects;
use evidence::Evidence;
use run::Run;
pub(crate) use run::{Calls, Past, Said};
use scope::Scopes;

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
    pub(crate) window_open: bool,
    /// When the declared windows are next open together, RFC 3339.
    pub(crate) next_opening: Option<String>,
    pub(crate) sensitive_tool: bool,
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
        evaluated_at: i64,
        past: Option<&Past>,
        limit: TimeLimit,
    ) -> Result<Self, NotRead> {
        limit.check()?;
        let declared = Declared::read(&request.constraints, vocabulary, windows)?;
        limit.check()?;
        let mut evidence = Evidence::new(request.context.as_ref());
        let effects = Effects::read(&request.side_effects, vocabulary);
        let tools = scope::ProposedTools::read(request, &mut evidence);
        limit.check()?;
        let approval = Approval::read(&declared, request, &tools, &mut evidence);
        let access = Access::read(request, &mut evidence);
        run::mark_unless_named(&RunId::of(request), &mut evidence);
        limit.check()?;
        let run = Run::read(&declared, &tools, &mut evidence, past);
        limit.check()?;
        let scopes = Scopes::read(&declared, &tools, &mut evidence);
        let (ticket_named, rollback_plan) = (evidence.ticket(), evidence.flag("rollback_plan").unwrap_or(false));
        let mfa_verified = evidence.flag("mfa_verified").unwrap_or(false);
        limit.check()?;
        let (window_open, next_opening) = window::judge(&declared.windows, windows, evaluated_at);
        let nothing_declared =
            request.tools.is_empty() && request.constraints.is_empty() && request.side_effects.is_empty();
        let context_empty = request.context.as_ref().is_none_or(|c| c.values().all(Value::is_null));
        Ok(Self {
            context_present: request.context.is_some(),
            ticket_named,
            mfa_verified,
            rollback_plan,
            window_open,
            next_opening,
            sensitive_tool: tools.any_sensitive(vocabulary),
            criteria_missing: request.success_criteria.is_empty(),
            bare: nothing_declared && context_empty && request.environment.is_none(),
            goal_vague: request.side_effects.is_empty() && goal::is_vague(&request.goal, vocabulary),
            secrets: secrets::find_within(request, limit)?,
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
