//! What a rule is about: the one table from `@about` to where the matter lies in a request and what would settle it.
//!
//! Owns the words and numbers that an issue compares, in the caller's own units. It is asked only for rules that are
//! satisfied, so a request that goes through pays nothing for it.

use serde_json::{Number, Value};
use stage0_contract::{CheckRequest, Constraint, Reading as Read, is_blank};

use super::remedy::{Change, Remedy};
use crate::facts::{As, Culprit, EffectReading, Facts, action, judge};
use crate::pack::{Class, Pack, Rule};

/// A request, what was found of it, and the rule that is satisfied.
pub(super) struct Asked<'a> {
    pub(super) request: &'a CheckRequest,
    pub(super) facts: &'a Facts,
    pub(super) pack: &'a Pack,
    pub(super) rule: &'a Rule,
}

/// One row of the table: its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct About(u8);

type Tell = fn(&Asked<'_>) -> Remedy;

/// What the retries of a loop without a limit may be; the baseline's rule has the same number.
const DEFAULT_MAX_RETRIES: i64 = 5;
/// The limit that is written for a loop without one: the server counts iterations of a run, and no retries.
const WRITTEN_MAX_ITERATIONS: i64 = 10;
/// The longest effect or list of tools that a change may write, in bytes: an item of a request has at most 1,000.
const MAX_WRITTEN_BYTES: usize = 900;

const TABLE: &[(&str, Tell)] = &[
    ("approval", approval),
    ("approval_age", |a| {
        let remedy = a.evidence("approval_max_age", &[Change::person("context.approved_at")]).counter(a, "approved_at");
        let sent = a.request.context.as_ref().and_then(|context| context.get("approved_at")).cloned();
        let remedy = sent.into_iter().fold(remedy, Remedy::found);
        remedy.allowed(a.facts.declared.approval_max_age.map(|age| units(age.get())))
    }),
    ("approval_time", |_| Remedy::default().at("context.approved_at").write(Change::person("context.approved_at"))),
    ("approver", |_| Remedy::default().at("context.approval_status").write(Change::person("context.approved_by"))),
    ("change_window", |a| a.evidence("allowed_change_window", &[])),
    ("communication", |a| {
        a.effects(|effect| effect.class == Class::Communication).write(Change::add_constraint("approval_required"))
    }),
    ("constraint", constraint),
    ("contradiction", contradiction),
    ("cost", |a| {
        a.amount(
            "max_cost_usd",
            "cumulative_cost_usd",
            a.facts.run.cost_micros,
            a.facts.declared.max_cost.map(|limit| limit.get()),
        )
    }),
    ("criteria", |_| Remedy::default().at("success_criteria").write(Change::person("success_criteria"))),
    ("customer_visible", |a| {
        let remedy = a.effects(|effect| effect.customer_visible).write(Change::person("context.approval_status"));
        if a.facts.approval.customer_visible_refused {
            return remedy.write(Change::person("context.customer_visible_approved"));
        }
        remedy
    }),
    ("denied_environment", denied_environment),
    ("denied_tools", |a| Remedy::of(&a.facts.scopes.tools_denied).declared(a.places("denied_tools"))),
    ("elapsed", |a| {
        a.amount(
            "timeout",
            "elapsed_seconds",
            a.facts.run.elapsed_micros,
            a.facts.declared.timeout.map(|limit| limit.get()),
        )
    }),
    ("environment", |a| {
        let outside = &a.facts.access.environments_outside;
        let mut remedy = Remedy::of(outside).allowed(a.facts.access.allowed_environments.iter().flatten().cloned());
        let missing = [Culprit::new("context.environment", "")];
        let wrong = if outside.is_empty() { &missing } else { outside.as_slice() };
        // Two lists that have no environment in common let nothing run anywhere.
        if !remedy.allowed.is_empty() {
            for culprit in wrong {
                remedy = remedy.write(Change::system(&culprit.at));
            }
        }
        let places = a.places("allowed_environment").into_iter().chain(a.places("environment"));
        remedy.declared(places)
    }),
    ("goal", |_| Remedy::default().at("goal").write(Change::person("goal"))),
    ("guardrail", |a| {
        a.effects(|effect| effect.class == Class::High).write(Change::add_constraint("approval_required"))
    }),
    ("impact", impact),
    ("iterations", |a| {
        a.count("max_iterations", "current_iteration", a.facts.run.iteration, a.facts.declared.max_iterations)
    }),
    ("limits_not_enforced", limits_not_enforced),
    ("loop_limits", |a| {
        let limit = format!("max_iterations: {WRITTEN_MAX_ITERATIONS}");
        a.effects(|effect| effect.class == Class::Loop).write(Change::add_constraint(&limit))
    }),
    ("mcp_servers", |a| {
        let remedy = Remedy::of(&a.facts.scopes.mcp_servers_outside).declared(a.places("allowed_mcp_servers"));
        remedy.allowed(a.listed("allowed_mcp_servers"))
    }),
    ("mcp_servers_named", |a| a.evidence("allowed_mcp_servers", &[Change::system("context.active_mcp_servers")])),
    ("members", members),
    ("records", |a| {
        let found = a.facts.scopes.record_count.unwrap_or_default();
        a.count("max_records", "record_count", found, a.facts.declared.max_records)
    }),
    ("resources", |a| {
        let remedy = Remedy::of(&a.facts.scopes.resources_outside).declared(a.places("resource_scope"));
        remedy.allowed(a.listed("resource_scope"))
    }),
    ("resources_named", |a| a.evidence("resource_scope", &[Change::system("context.target_resources")])),
    ("retries", |a| {
        a.count(
            "max_retries",
            "retry_count",
            a.facts.run.retries,
            a.facts.declared.max_retries.or(Some(DEFAULT_MAX_RETRIES)),
        )
    }),
    ("role", role),
    ("rollback_plan", |a| a.evidence("rollback_plan_required", &[Change::person("context.rollback_plan")])),
    ("same_tool", |a| {
        let remedy =
            a.count("same_tool_limit", "recent_tools", a.facts.run.same_tool_calls, a.facts.declared.same_tool_limit);
        remedy.declared(a.places("no_repeat_calls"))
    }),
    ("second_factor", |a| a.evidence("mfa_required", &[Change::person("context.mfa_verified")])),
    ("secrets", |a| a.facts.secrets.iter().fold(Remedy::default(), |remedy, secret| remedy.at(&secret.path))),
    ("self_approval", |_| Remedy::default().at("context.approved_by").write(Change::person("context.approved_by"))),
    ("sensitive_tool", sensitive_tool),
    ("tenants", |a| {
        let remedy = Remedy::of(&a.facts.scopes.tenants_outside).declared(a.places("tenant_isolation"));
        let own = a.request.context.as_ref().and_then(|context| context.get("tenant_id")).and_then(Value::as_str);
        remedy.allowed(own)
    }),
    ("tenants_named", |a| {
        let evidence = [Change::system("context.tenant_id"), Change::system("context.target_tenants")];
        a.evidence("tenant_isolation", &evidence)
    }),
    ("ticket", |a| a.evidence("require_ticket", &[Change::system("context.ticket_id")])),
    ("tools", |a| {
        let remedy = Remedy::of(&a.facts.scopes.tools_outside).declared(a.places("allowed_tools"));
        remedy.allowed(a.listed("allowed_tools"))
    }),
    ("undeclared_effect", undeclared_effect),
    ("unknown_effect", unknown_effect),
];

impl About {
    /// Finds a row by name.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        TABLE.iter().position(|(known, _)| *known == name).and_then(|at| u8::try_from(at).ok()).map(Self)
    }

    /// Every name, for the text of a fault.
    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        TABLE.iter().map(|(name, _)| *name)
    }

    /// Members that cannot be read: each rule is about its own.
    pub(super) fn is_members(self) -> bool {
        TABLE.get(usize::from(self.0)).is_some_and(|(name, _)| *name == "members")
    }

    pub(super) fn tell(self, asked: &Asked<'_>) -> Remedy {
        TABLE.get(usize::from(self.0)).map(|(_, tell)| tell(asked)).unwrap_or_default()
    }
}

impl Remedy {
    /// The counter of the request, where it is given.
    fn counter(self, asked: &Asked<'_>, member: &str) -> Self {
        if asked.is_given(member) { self.at(&format!("context.{member}")) } else { self }
    }
}

impl Asked<'_> {
    /// Where a constraint is declared, by its canonical name.
    fn places(&self, name: &str) -> Vec<String> {
        let places = self.facts.declared.places.iter().filter(|(_, declared)| *declared == name);
        places.map(|(index, _)| format!("constraints[{index}]")).collect()
    }

    /// What the declared lists of that name hold, as the applied constraints show it.
    fn listed(&self, name: &str) -> Vec<String> {
        let forms = self.facts.declared.normalised.iter().filter_map(|form| form.split_once(": "));
        let lists = forms.filter(|(declared, _)| *declared == name).flat_map(|(_, list)| list.split(", "));
        lists.map(str::to_owned).collect()
    }

    /// Evidence that a declared constraint needs and nobody gave.
    fn evidence(&self, constraint: &str, changes: &[Change]) -> Remedy {
        let remedy = Remedy::default().declared(self.places(constraint));
        changes.iter().cloned().fold(remedy, Remedy::write)
    }

    /// A counter of the request and the limit that it is past.
    fn count(&self, constraint: &str, member: &str, found: i64, allowed: Option<i64>) -> Remedy {
        Remedy::default().counter(self, member).declared(self.places(constraint)).found(found).allowed(allowed)
    }

    /// As [`Self::count`], in the caller's unit: dollars or seconds.
    fn amount(&self, constraint: &str, member: &str, found: i64, allowed: Option<i64>) -> Remedy {
        let remedy = Remedy::default().counter(self, member).declared(self.places(constraint));
        remedy.found(units(found)).allowed(allowed.map(units))
    }

    fn effects(&self, is_so: impl Fn(&EffectReading) -> bool) -> Remedy {
        Remedy::of(&self.facts.effects.culprits(&self.request.side_effects, is_so))
    }

    /// Of these members of `context` those that are there and are no strings.
    fn mistyped(&self, names: &[&'static str]) -> Vec<&'static str> {
        let value = |name: &str| self.request.context.as_ref().and_then(|context| context.get(name));
        let wrong = |name: &&&str| value(name).is_some_and(|value| !value.is_null() && !value.is_string());
        names.iter().filter(wrong).copied().collect()
    }

    /// A member of `context` that is there and not blank, whatever its type.
    fn is_given(&self, member: &str) -> bool {
        let value = self.request.context.as_ref().and_then(|context| context.get(member));
        value.is_some_and(|value| !value.is_null() && !value.as_str().is_some_and(is_blank))
    }
}

/// Millionths as the caller writes them.
#[expect(clippy::cast_precision_loss, reason = "for display only; nothing is decided by it")]
fn units(micros: i64) -> Value {
    Number::from_f64(micros as f64 / 1_000_000.0).map_or(Value::Null, Value::Number)
}

fn approval(a: &Asked<'_>) -> Remedy {
    let facts = a.facts;
    let mut remedy = Remedy::of(&facts.approval.named_by);
    remedy.merge(a.effects(|effect| matches!(effect.class, Class::High | Class::Communication | Class::Approval)));
    remedy.found.clear();
    let sent = a.request.context.as_ref().and_then(|context| context.get("approval_status"));
    if let Some(sent) = sent.filter(|sent| sent.is_string()) {
        remedy = remedy.found(sent.clone());
    }
    let places = a.places("approval_required").into_iter().chain(a.places("require_approval_for"));
    let remedy = remedy.declared(places).allowed(["approved"]).write(Change::person("context.approval_status"));
    if facts.approval.time_unusable { remedy.write(Change::person("context.approved_at")) } else { remedy }
}

fn constraint(a: &Asked<'_>) -> Remedy {
    let mut remedy = Remedy::default();
    for unread in &a.facts.declared.not_understood {
        let Some(text) = a.request.constraints.get(unread.index) else { continue };
        remedy.culprits(&[Culprit::item("constraints", unread.index, text)]);
        remedy.did_you_mean.extend(unread.did_you_mean.iter().map(|name| (*name).to_owned()));
        let Some(value) = unread.did_you_mean.first().and_then(|name| respelt(text, name, a.pack)) else { continue };
        remedy = remedy.write(Change::Replace { path: format!("constraints[{}]", unread.index), value });
    }
    remedy
}

/// The constraint under another name, where that is one with this value.
fn respelt(text: &str, name: &str, pack: &Pack) -> Option<String> {
    let text = text.trim();
    let head = text.find(|c: char| !c.is_alphanumeric() && !matches!(c, '_' | '-')).unwrap_or(text.len());
    let rest = text.get(head..)?.trim_start().trim_start_matches([':', '=']).trim();
    // Another comparison than the constraint makes is for the caller to put right.
    if rest.starts_with(['<', '>', '=', '!', '≤', '≥', '≠']) {
        return None;
    }
    let written = if rest.is_empty() { name.to_owned() } else { format!("{name}: {rest}") };
    let read = Constraint::read(&written, pack.vocabulary().constraints().names());
    matches!(read, Ok(Read::Constraint(_))).then_some(written)
}

fn contradiction(a: &Asked<'_>) -> Remedy {
    let facts = a.facts;
    let (reads, dry) = (a.places("read_only"), a.places("dry_run"));
    // An approval settles a high effect beside `read_only`; what writes is settled by nothing that the server may say.
    let only_high = !facts.effects.writes && dry.is_empty();
    let remedy = a.effects(|effect| effect.writes || effect.class == Class::High).declared(reads).declared(dry);
    if only_high { remedy.write(Change::person("context.approval_status")) } else { remedy }
}

fn denied_environment(a: &Asked<'_>) -> Remedy {
    let denied = &a.facts.scopes.environments_denied;
    let remedy = Remedy::of(denied).declared(a.places("denied_environment"));
    if denied.is_empty() { remedy.write(Change::system("context.environment")) } else { remedy }
}

fn impact(a: &Asked<'_>) -> Remedy {
    let facts = a.facts;
    let mut remedy = a.effects(|effect| effect.impact);
    if facts.access.role.is_none() {
        remedy = remedy.write(Change::system("context.actor_role"));
    }
    if facts.access.environments.is_empty() {
        remedy = remedy.write(Change::system("context.environment"));
    }
    if !a.is_given("approval_status") || facts.malformed.contains(&"approval_status") {
        remedy = remedy.write(Change::person("context.approval_status"));
    }
    remedy
}

fn limits_not_enforced(a: &Asked<'_>) -> Remedy {
    let mut remedy = Remedy::default();
    for name in &a.facts.limits_not_enforced {
        let counter = match *name {
            "max_iterations" => "context.current_iteration",
            "timeout" => "context.elapsed_seconds",
            "max_cost_usd" => "context.cumulative_cost_usd",
            "max_retries" => "context.retry_count",
            "max_records" => "context.record_count",
            _ => "context.recent_tools",
        };
        remedy = remedy.declared(a.places(name)).write(Change::system(counter));
    }
    if a.facts.limits_not_enforced.is_empty() {
        remedy = remedy.at("context.retry_count").write(Change::system("context.retry_count"));
    }
    remedy
}

/// Those of the rule's members that cannot be read.
fn members(a: &Asked<'_>) -> Remedy {
    const BY_PERSON: [&str; 3] = ["approval_status", "approved_by", "approved_at"];
    let mut remedy = Remedy::default();
    let names = |field: &str| a.rule.fields.iter().any(|name| name == field);
    let mut unread: Vec<&str> =
        a.rule.fields.iter().map(String::as_str).filter(|field| a.facts.malformed.contains(field)).collect();
    // The facts have one name for all members that may name a role, and one for both that may name an environment.
    if names("actor_role") && a.facts.malformed.contains(&"role") {
        unread = a.mistyped(&["actor_role", "user_role", "requester_role"]);
    } else if names("environment") && a.facts.malformed.contains(&"environment") {
        unread = a.mistyped(&["environment", "target_environment"]);
    }
    for field in unread {
        let inner = a.request.context.as_ref().and_then(|context| context.get("loop_state"));
        let nested = inner.is_some_and(|state| state.get(field).is_some()) && !a.is_given(field);
        let path = if nested { format!("context.loop_state.{field}") } else { format!("context.{field}") };
        let change = if BY_PERSON.contains(&field) { Change::person(&path) } else { Change::system(&path) };
        remedy = remedy.at(&path).write(change);
    }
    remedy
}

fn role(a: &Asked<'_>) -> Remedy {
    let outside = &a.facts.access.role_outside;
    let path = outside.first().map_or("context.actor_role", |culprit| culprit.at.as_str());
    let remedy = Remedy::of(outside).declared(a.places("required_role"));
    let roles: Vec<String> = a.facts.access.required_roles.clone().unwrap_or_default();
    // Two lists that have no role in common let nobody act.
    if roles.is_empty() { remedy } else { remedy.allowed(roles).write(Change::system(path)) }
}

fn sensitive_tool(a: &Asked<'_>) -> Remedy {
    let remedy = Remedy::of(&a.facts.powers.sensitive_tools);
    // The tools of the request and no others: true whatever they do.
    let plain = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.:".contains(&b));
    let current = a.request.context.as_ref().and_then(|context| context.get("current_tool")).and_then(Value::as_str);
    let mut names: Vec<&str> = a.request.tools.iter().map(String::as_str).collect();
    names.extend(current.filter(|current| !names.contains(current)));
    let list = format!("allowed_tools: {}", names.join(", "));
    let usable = names.iter().all(|name| plain(name)) && list.len() <= MAX_WRITTEN_BYTES;
    if usable && a.facts.declared.tools.is_none() { remedy.write(Change::add_constraint(&list)) } else { remedy }
}

fn undeclared_effect(a: &Asked<'_>) -> Remedy {
    let undeclared = &a.facts.powers.undeclared;
    let mut remedy = Remedy::of(undeclared);
    let Some(words) = a.pack.vocabulary().effects() else { return remedy };
    for culprit in undeclared {
        let effect = plain_effect(&culprit.found);
        let says = judge(&effect, words, As::Effect).class >= Class::Communication && effect.len() <= MAX_WRITTEN_BYTES;
        let value = if says { effect } else { "execute".to_owned() };
        let change = Change::Add { path: "side_effects".to_owned(), value };
        if !remedy.write.contains(&change) {
            remedy = remedy.write(change);
        }
    }
    remedy
}

/// What a tool's name says that it does, without the signs of the form in which it is called.
fn plain_effect(tool: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ':');
    let said: String = action(tool).chars().map(|c| if plain(c) { c } else { ' ' }).collect();
    said.split_whitespace().collect::<Vec<_>>().join(" ").trim_matches([':', ' ', '.']).to_owned()
}

fn unknown_effect(a: &Asked<'_>) -> Remedy {
    let readings = a.facts.effects.readings.iter();
    let unread = |effect: &EffectReading| effect.unknown || !effect.unknown_parts.is_empty();
    let mut remedy = a.effects(unread);
    for reading in readings.filter(|reading| unread(reading)) {
        for near in &reading.near {
            if !remedy.did_you_mean.contains(near) {
                remedy.did_you_mean.push(near.clone());
            }
        }
    }
    remedy
}
