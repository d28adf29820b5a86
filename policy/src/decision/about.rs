//! What a rule is about: the table from the name in `@about` to a function that builds the remedy.
//!
//! Remedies are built only for satisfied rules, so an allowed request pays nothing for them.

use serde_json::{Number, Value};
use stage0_contract::{ApprovalSource, CheckRequest, Constraint, LimitName, Reading as Read, is_blank};

use super::remedy::{Change, Remedy};
use crate::facts::{ApprovalStatus, Culprit, EffectReading, Facts, Source, classify, counter_of, effect_text};
use crate::pack::Pack;
use crate::rule::Rule;
use crate::vocabulary::Class;

pub(super) struct Context<'a> {
    pub(super) request: &'a CheckRequest,
    pub(super) facts: &'a Facts,
    pub(super) pack: &'a Pack,
    pub(super) rule: &'a Rule,
}

/// One row of the table, by its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct About(u8);

type BuildRemedy = fn(&Context<'_>) -> Remedy;

/// The retries that a loop without a limit may have; the baseline's rule has the same number.
const DEFAULT_MAX_RETRIES: i64 = 5;
/// What a remedy proposes for a loop without a limit. The server counts iterations and not retries.
const PROPOSED_MAX_ITERATIONS: i64 = 10;
/// The longest effect or list of tools that a remedy proposes, in bytes. An item of a request has at most 1,000.
const MAX_PROPOSED_BYTES: usize = 900;

const TABLE: &[(&str, BuildRemedy)] = &[
    ("approval", approval),
    ("approval_age", |a| {
        let mut remedy = a.evidence("approval_max_age", &[Change::person("context.approved_at")]);
        // Of an approval that is held here the caller's time says nothing.
        if a.facts.approval.source != Some(ApprovalSource::Approval) && !a.facts.approval.only_held {
            remedy = remedy.counter(a, "approved_at");
            remedy = a.member("approved_at").cloned().into_iter().fold(remedy, Remedy::found);
        }
        remedy.allowed(a.limit(LimitName::ApprovalMaxAge).map(units))
    }),
    ("approval_time", |_| Remedy::default().at("context.approved_at").write(Change::person("context.approved_at"))),
    ("approver", |_| Remedy::default().at("context.approval_status").write(Change::person("context.approved_by"))),
    ("change_window", |a| a.evidence("allowed_change_window", &[])),
    ("communication", |a| {
        a.effects(|effect| effect.class == Class::Communication).write(Change::add_constraint("approval_required"))
    }),
    ("constraint", constraint),
    ("contradiction", contradiction),
    ("cost", |a| a.amount("max_cost_usd", "cumulative_cost_usd", a.facts.run.cost_micros, a.limit(LimitName::MaxCost))),
    ("criteria", |_| Remedy::default().at("success_criteria").write(Change::person("success_criteria"))),
    ("customer_visible", |a| {
        let remedy = a.effects(|effect| effect.customer_visible).write(Change::person("context.approval_status"));
        if a.facts.approval.customer_visible_refused {
            return remedy.write(Change::person("context.customer_visible_approved"));
        }
        remedy
    }),
    ("denied_environment", denied_environment),
    ("denied_tools", |a| Remedy::of(&a.facts.scopes.tools_denied).declared(a.paths_of("denied_tools"))),
    ("elapsed", |a| a.amount("timeout", "elapsed_seconds", a.facts.run.elapsed_micros, a.limit(LimitName::Timeout))),
    ("environment", |a| {
        let outside = &a.facts.access.environments_outside;
        let mut remedy = Remedy::of(outside).allowed(a.facts.access.allowed_environments.iter().flatten().cloned());
        let missing = [Culprit::new("context.environment", "")];
        let wrong = if outside.is_empty() { &missing } else { outside.as_slice() };
        // Two lists without a common environment allow none.
        if !remedy.allowed.is_empty() {
            for culprit in wrong {
                remedy = remedy.write(Change::system(&culprit.at));
            }
        }
        let places = a.paths_of("allowed_environment").into_iter().chain(a.paths_of("environment"));
        remedy.declared(places)
    }),
    ("goal", |_| Remedy::default().at("goal").write(Change::person("goal"))),
    ("guardrail", |a| {
        a.effects(|effect| effect.class == Class::High).write(Change::add_constraint("approval_required"))
    }),
    ("impact", impact),
    ("iterations", |a| {
        a.count("max_iterations", "current_iteration", a.facts.run.iteration, a.limit(LimitName::MaxIterations))
    }),
    ("limits_not_enforced", limits_not_enforced),
    ("loop_limits", |a| {
        let limit = format!("max_iterations: {PROPOSED_MAX_ITERATIONS}");
        a.effects(|effect| effect.class == Class::Loop).write(Change::add_constraint(&limit))
    }),
    ("mcp_servers", |a| a.outside("allowed_mcp_servers", &a.facts.scopes.mcp_servers_outside)),
    ("mcp_servers_named", |a| a.evidence("allowed_mcp_servers", &[Change::system("context.active_mcp_servers")])),
    ("members", members),
    ("records", |a| {
        let found = a.facts.scopes.record_count.unwrap_or_default();
        a.count("max_records", "record_count", found, a.limit(LimitName::MaxRecords))
    }),
    ("resources", |a| a.outside("resource_scope", &a.facts.scopes.resources_outside)),
    ("resources_named", |a| a.evidence("resource_scope", &[Change::system("context.target_resources")])),
    ("retries", |a| {
        let allowed = a.limit(LimitName::MaxRetries).or(Some(DEFAULT_MAX_RETRIES));
        a.count("max_retries", "retry_count", a.facts.run.retries, allowed)
    }),
    ("role", role),
    ("rollback_plan", |a| a.evidence("rollback_plan_required", &[Change::person("context.rollback_plan")])),
    ("same_tool", |a| {
        let remedy =
            a.count("same_tool_limit", "recent_tools", a.facts.run.same_tool_calls, a.limit(LimitName::SameTool));
        remedy.declared(a.paths_of("no_repeat_calls"))
    }),
    ("second_factor", |a| a.evidence("mfa_required", &[Change::person("context.mfa_verified")])),
    ("secrets", |a| a.facts.secrets.iter().fold(Remedy::default(), |remedy, secret| remedy.at(&secret.path))),
    ("self_approval", |_| Remedy::default().at("context.approved_by").write(Change::person("context.approved_by"))),
    ("sensitive_tool", sensitive_tool),
    ("tenants", |a| {
        let remedy = Remedy::of(&a.facts.scopes.tenants_outside).declared(a.paths_of("tenant_isolation"));
        remedy.allowed(a.member("tenant_id").and_then(Value::as_str))
    }),
    ("tenants_named", |a| {
        let evidence = [Change::system("context.tenant_id"), Change::system("context.target_tenants")];
        a.evidence("tenant_isolation", &evidence)
    }),
    ("ticket", |a| a.evidence("require_ticket", &[Change::system("context.ticket_id")])),
    ("tools", |a| a.outside("allowed_tools", &a.facts.scopes.tools_outside)),
    ("undeclared_effect", undeclared_effect),
    ("unknown_effect", unknown_effect),
];

impl About {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        TABLE.iter().position(|(known, _)| *known == name).and_then(|at| u8::try_from(at).ok()).map(Self)
    }

    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        TABLE.iter().map(|(name, _)| *name)
    }

    /// Whether the rule is about malformed members of `context`. Each such rule names its own.
    pub(super) fn is_members(self) -> bool {
        TABLE.get(usize::from(self.0)).is_some_and(|(name, _)| *name == "members")
    }

    pub(super) fn remedy(self, context: &Context<'_>) -> Remedy {
        TABLE.get(usize::from(self.0)).map(|(_, build)| build(context)).unwrap_or_default()
    }
}

impl Remedy {
    fn counter(self, context: &Context<'_>, member: &str) -> Self {
        if context.is_given(member) { self.at(&format!("context.{member}")) } else { self }
    }
}

impl<'a> Context<'a> {
    fn paths_of(&self, name: &str) -> Vec<String> {
        let indexes = self.facts.declared.indexes.iter().filter(|(_, declared)| *declared == name);
        indexes.map(|(index, _)| format!("constraints[{index}]")).collect()
    }

    /// Names that are on none of the declared lists, with the entries of these lists.
    fn outside(&self, constraint: &str, names: &[Culprit]) -> Remedy {
        let declared = self.facts.declared.normalised.iter().filter_map(|declared| declared.split_once(": "));
        let entries = declared.filter(|(name, _)| *name == constraint).flat_map(|(_, list)| list.split(", "));
        Remedy::of(names).declared(self.paths_of(constraint)).allowed(entries)
    }

    fn evidence(&self, constraint: &str, changes: &[Change]) -> Remedy {
        let remedy = Remedy::default().declared(self.paths_of(constraint));
        changes.iter().cloned().fold(remedy, Remedy::write)
    }

    fn limit(&self, limit: LimitName) -> Option<i64> {
        self.facts.declared.limit(limit)
    }

    fn count(&self, constraint: &str, member: &str, found: i64, allowed: Option<i64>) -> Remedy {
        Remedy::default().counter(self, member).declared(self.paths_of(constraint)).found(found).allowed(allowed)
    }

    /// As [`Self::count`], in dollars or seconds.
    fn amount(&self, constraint: &str, member: &str, found: i64, allowed: Option<i64>) -> Remedy {
        let remedy = Remedy::default().counter(self, member).declared(self.paths_of(constraint));
        remedy.found(units(found)).allowed(allowed.map(units))
    }

    fn effects(&self, is_wanted: impl Fn(&EffectReading) -> bool) -> Remedy {
        Remedy::of(&self.facts.effects.culprits(&self.request.side_effects, is_wanted))
    }

    fn member(&self, name: &str) -> Option<&'a Value> {
        self.request.context.as_ref()?.get(name)
    }

    fn mistyped(&self, names: &[&'static str]) -> Vec<&'static str> {
        let is_mistyped = |name: &&&str| self.member(name).is_some_and(|value| !value.is_null() && !value.is_string());
        names.iter().filter(is_mistyped).copied().collect()
    }

    /// Whether a member of `context` is given and not blank, whatever its type.
    fn is_given(&self, member: &str) -> bool {
        self.member(member).is_some_and(|value| !value.is_null() && !value.as_str().is_some_and(is_blank))
    }
}

/// Dollars or seconds, as the caller writes them.
#[expect(clippy::cast_precision_loss, reason = "for display only; nothing is decided by it")]
pub(super) fn units(micros: i64) -> Value {
    Number::from_f64(micros as f64 / 1_000_000.0).map_or(Value::Null, Value::Number)
}

fn approval(a: &Context<'_>) -> Remedy {
    let facts = a.facts;
    let mut remedy = Remedy::of(&facts.approval.named_by);
    remedy.merge(a.effects(|effect| matches!(effect.class, Class::High | Class::Communication | Class::Approval)));
    remedy.found.clear();
    let places = a.paths_of("approval_required").into_iter().chain(a.paths_of("require_approval_for"));
    remedy = remedy.declared(places).write(Change::person("context.approval_status"));
    // What the caller says was compared only if its word counts.
    if facts.approval.only_held || facts.approval.denied {
        return remedy;
    }
    if let Some(sent) = a.member("approval_status").filter(|sent| sent.is_string()) {
        remedy = remedy.found(sent.clone());
    }
    remedy = remedy.allowed(["approved"]);
    if facts.approval.time_unusable { remedy.write(Change::person("context.approved_at")) } else { remedy }
}

fn constraint(a: &Context<'_>) -> Remedy {
    let mut remedy = Remedy::default();
    for item in &a.facts.declared.not_understood {
        let Some(text) = a.request.constraints.get(item.index) else { continue };
        let path = format!("constraints[{}]", item.index);
        remedy = remedy.at(&path).found(text.clone());
        remedy.did_you_mean.extend(item.did_you_mean.iter().map(|name| (*name).to_owned()));
        let Some(value) = item.did_you_mean.first().and_then(|name| renamed(text, name, a.pack)) else { continue };
        remedy = remedy.write(Change::Replace { path, value });
    }
    remedy
}

/// The constraint under another name; `None` where that does not take this value.
fn renamed(text: &str, name: &str, pack: &Pack) -> Option<String> {
    let text = text.trim();
    let head = text.find(|c: char| !c.is_alphanumeric() && !matches!(c, '_' | '-')).unwrap_or(text.len());
    let rest = text.get(head..)?.trim_start().trim_start_matches([':', '=']).trim();
    // A comparison that the constraint does not make cannot be corrected by its name alone.
    if rest.starts_with(['<', '>', '=', '!', '≤', '≥', '≠']) {
        return None;
    }
    let written = if rest.is_empty() { name.to_owned() } else { format!("{name}: {rest}") };
    let read = Constraint::read(&written, pack.vocabulary.constraints.names());
    matches!(read, Ok(Read::Constraint(_))).then_some(written)
}

fn contradiction(a: &Context<'_>) -> Remedy {
    let read_only = a.paths_of("read_only");
    let dry_run = a.paths_of("dry_run");
    // An approval settles a high effect beside `read_only`. An effect that writes needs a change that only the caller
    // can make.
    let only_high = !a.facts.effects.writes && dry_run.is_empty();
    let remedy = a.effects(|effect| effect.writes || effect.class == Class::High).declared(read_only).declared(dry_run);
    if only_high { remedy.write(Change::person("context.approval_status")) } else { remedy }
}

fn denied_environment(a: &Context<'_>) -> Remedy {
    let denied = &a.facts.scopes.environments_denied;
    let remedy = Remedy::of(denied).declared(a.paths_of("denied_environment"));
    if denied.is_empty() { remedy.write(Change::system("context.environment")) } else { remedy }
}

fn impact(a: &Context<'_>) -> Remedy {
    let facts = a.facts;
    let mut remedy = a.effects(|effect| effect.impact);
    if facts.access.role.is_none() {
        remedy = remedy.write(Change::system("context.actor_role"));
    }
    if facts.access.environments.is_empty() {
        remedy = remedy.write(Change::system("context.environment"));
    }
    let is_unclear = matches!(facts.approval.status, ApprovalStatus::Absent | ApprovalStatus::Unrecognised);
    if is_unclear {
        remedy = remedy.write(Change::person("context.approval_status"));
    }
    remedy
}

fn limits_not_enforced(a: &Context<'_>) -> Remedy {
    let mut remedy = Remedy::default();
    for name in &a.facts.limits_not_enforced {
        let Some(counter) = counter_of(name) else { continue };
        let evidence = Change::system(&format!("context.{counter}"));
        remedy = remedy.declared(a.paths_of(name)).write(evidence);
    }
    if a.facts.limits_not_enforced.is_empty() {
        remedy = remedy.at("context.retry_count").write(Change::system("context.retry_count"));
    }
    remedy
}

fn members(a: &Context<'_>) -> Remedy {
    const BY_PERSON: [&str; 3] = ["approval_status", "approved_by", "approved_at"];
    let mut remedy = Remedy::default();
    let is_named = |field: &str| a.rule.fields.iter().any(|name| name == field);
    let mut malformed: Vec<&str> =
        a.rule.fields.iter().map(String::as_str).filter(|field| a.facts.malformed.contains(field)).collect();
    // The facts have one name for all members that may name a role, and one for both that may name an environment.
    if is_named("actor_role") && a.facts.malformed.contains(&"role") {
        malformed = a.mistyped(&["actor_role", "user_role", "requester_role"]);
    } else if is_named("environment") && a.facts.malformed.contains(&"environment") {
        malformed = a.mistyped(&["environment", "target_environment"]);
    }
    for field in malformed {
        let nested = a.member("loop_state").is_some_and(|state| state.get(field).is_some()) && !a.is_given(field);
        let path = if nested { format!("context.loop_state.{field}") } else { format!("context.{field}") };
        let change = if BY_PERSON.contains(&field) { Change::person(&path) } else { Change::system(&path) };
        remedy = remedy.at(&path).write(change);
    }
    remedy
}

fn role(a: &Context<'_>) -> Remedy {
    let outside = &a.facts.access.role_outside;
    let path = outside.first().map_or("context.actor_role", |culprit| culprit.at.as_str());
    let remedy = Remedy::of(outside).declared(a.paths_of("required_role"));
    let roles: Vec<String> = a.facts.access.required_roles.clone().unwrap_or_default();
    // Two lists without a common role allow no one to act.
    if roles.is_empty() { remedy } else { remedy.allowed(roles).write(Change::system(path)) }
}

fn sensitive_tool(a: &Context<'_>) -> Remedy {
    let remedy = Remedy::of(&a.facts.tool_risks.sensitive_tools);
    // A list of the request's own tools is correct whatever they do.
    let is_plain = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.:".contains(&b));
    let current = a.member("current_tool").and_then(Value::as_str);
    let mut names: Vec<&str> = a.request.tools.iter().map(String::as_str).collect();
    names.extend(current.filter(|current| !names.contains(current)));
    let list = format!("allowed_tools: {}", names.join(", "));
    let usable = names.iter().all(|name| is_plain(name)) && list.len() <= MAX_PROPOSED_BYTES;
    if usable && a.facts.declared.tools.is_none() { remedy.write(Change::add_constraint(&list)) } else { remedy }
}

fn undeclared_effect(a: &Context<'_>) -> Remedy {
    let undeclared = &a.facts.tool_risks.undeclared;
    let mut remedy = Remedy::of(undeclared);
    let Some((words, _)) = a.pack.vocabulary.second() else { return remedy };
    for culprit in undeclared {
        let effect = plain_effect(&culprit.found);
        let is_grave = classify(&effect, words, Source::Effect).class >= Class::Communication;
        let value = if is_grave && effect.len() <= MAX_PROPOSED_BYTES { effect } else { "execute".to_owned() };
        let change = Change::Add { path: "side_effects".to_owned(), value };
        if !remedy.write.contains(&change) {
            remedy = remedy.write(change);
        }
    }
    remedy
}

/// The side effect that a tool's name announces, without the punctuation of a call.
fn plain_effect(tool: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ':');
    let effect: String = effect_text(tool).chars().map(|c| if is_plain(c) { c } else { ' ' }).collect();
    effect.split_whitespace().collect::<Vec<_>>().join(" ").trim_matches([':', ' ', '.']).to_owned()
}

fn unknown_effect(a: &Context<'_>) -> Remedy {
    let is_unknown = |effect: &EffectReading| effect.unknown || !effect.unknown_parts.is_empty();
    let mut remedy = a.effects(is_unknown);
    for reading in a.facts.effects.readings.iter().filter(|reading| is_unknown(reading)) {
        for near in &reading.near {
            if !remedy.did_you_mean.contains(near) {
                remedy.did_you_mean.push(near.clone());
            }
        }
    }
    remedy
}
