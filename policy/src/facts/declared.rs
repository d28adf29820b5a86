//! The constraints of a request, merged: each recognised name once, each limit at its strictest.
//!
//! Of two numbers the smaller one counts, allow lists are intersected and deny lists are united. A window that the pack
//! does not define is an invalid field. Constraints without effect are kept with their index, so that none is ignored
//! silently. Lists become sets here, so that no later step compares every entry with every other one.

use std::collections::{BTreeSet, HashSet};

use stage0_contract::{
    Constraint, ConstraintValue, FieldError, FlagName, LimitName, ListName, Names, Reading, Spelling, Word,
};

use super::actions::Actions;
use super::patterns::Patterns;
use super::tool_list::{AllowedTools, DeniedTools};
use crate::vocabulary::{Edition, Vocabulary, Windows};

#[derive(Debug, Default)]
pub(crate) struct Declared {
    /// Few, and read often: searched without hashing, like the limits.
    flags: Vec<FlagName>,
    /// Each with its smallest value.
    limits: Vec<(LimitName, i64)>,
    /// Canonical names, each once, in the order of the request.
    pub(crate) names: Vec<&'static str>,
    /// Normalised constraints, each once, in the order of the request.
    pub(crate) normalised: Vec<String>,
    /// Normalised constraints that count as a guardrail for a high effect.
    pub(crate) guardrails: Vec<String>,
    /// The index of each recognised item, with its canonical name.
    pub(crate) indexes: Vec<(usize, &'static str)>,
    /// Indexes of items without any effect.
    pub(crate) ignored: Vec<usize>,
    /// Ignored items that look like a misspelt constraint.
    pub(crate) not_understood: Vec<NotUnderstood>,
    pub(crate) approval_for: Actions,
    /// As the caller wrote them, like the lists of environments.
    pub(crate) required_roles: Option<Vec<String>>,
    pub(crate) allowed_environments: Option<Vec<String>>,
    pub(crate) denied_environments: Vec<String>,
    /// In each group at least one window must be open.
    pub(crate) windows: BTreeSet<BTreeSet<String>>,
    /// Each list must have an entry that contains the target.
    pub(crate) resource_scopes: Vec<Vec<Word>>,
    pub(crate) mcp_servers: Option<Patterns>,
    pub(crate) tools: Option<AllowedTools>,
    pub(crate) denied_tools: Option<DeniedTools>,
    /// A list of tools or servers restricts something: it has no lone `*`.
    pub(crate) tools_listed: bool,
}

/// An item that looks like a constraint but is not one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotUnderstood {
    pub(crate) index: usize,
    /// Canonical names, the nearest first.
    pub(crate) did_you_mean: Vec<&'static str>,
}

/// Lists of all constraints, collected before they are merged.
#[derive(Default)]
struct Lists {
    actions: Vec<String>,
    roles: Option<Vec<ListedName>>,
    environments: Option<Vec<ListedName>>,
    tools: Vec<Vec<String>>,
    denied_tools: Vec<String>,
    servers: Vec<Vec<String>>,
}

/// A name on a list and the forms in which it is compared.
struct ListedName {
    text: String,
    folded: String,
    split: String,
}

impl Declared {
    /// Reads the constraints of a request that the gateway has validated.
    pub(crate) fn read(
        constraints: &[String],
        vocabulary: &Vocabulary,
        windows: &Windows,
    ) -> Result<Self, Vec<FieldError>> {
        let mut declared = Self::default();
        let mut lists = Lists::default();
        let mut errors = Vec::new();
        let mut seen = HashSet::new();
        for (index, text) in constraints.iter().enumerate() {
            match Constraint::read(text, vocabulary.constraints.names()) {
                Ok(Reading::Off | Reading::Text) => declared.ignored.push(index),
                Ok(Reading::NotUnderstood(did_you_mean)) => {
                    declared.ignored.push(index);
                    declared.not_understood.push(NotUnderstood { index, did_you_mean });
                }
                Ok(Reading::Constraint(constraint)) => {
                    if let Some(error) = unknown_window(&constraint, windows, index) {
                        errors.push(error);
                        continue;
                    }
                    declared.indexes.push((index, constraint.name()));
                    let form = constraint.normalised();
                    if seen.insert(form.clone()) {
                        declared.add(&constraint, form, vocabulary);
                        declared.merge(constraint, &mut lists, vocabulary);
                    }
                }
                Err(error) => errors.push(field_error(index, &error)),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        declared.set_lists(lists, vocabulary.edition());
        Ok(declared)
    }

    /// The errors that only the pack can find, in constraints whose grammar was checked without one: values under the
    /// pack's aliases, and windows.
    pub(crate) fn review(constraints: &[String], vocabulary: &Vocabulary, windows: &Windows) -> Vec<FieldError> {
        let mut errors = Vec::new();
        for (index, text) in constraints.iter().enumerate() {
            // The caller already reports these.
            if Constraint::read(text, Names::built_in()).is_err() {
                continue;
            }
            match Constraint::read(text, vocabulary.constraints.names()) {
                Ok(Reading::Constraint(constraint)) => errors.extend(unknown_window(&constraint, windows, index)),
                Ok(Reading::Off | Reading::Text | Reading::NotUnderstood(_)) => {}
                Err(error) => errors.push(field_error(index, &error)),
            }
        }
        errors
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.names.contains(&name)
    }

    pub(crate) fn flag(&self, flag: FlagName) -> bool {
        self.flags.contains(&flag)
    }

    /// The smallest declared value, in the unit of [`ConstraintValue::Limit`].
    pub(crate) fn limit(&self, limit: LimitName) -> Option<i64> {
        self.limits.iter().find(|(name, _)| *name == limit).map(|(_, value)| *value)
    }

    /// Whether a constraint restricts what a sensitive tool may do.
    pub(crate) fn guards_tools(&self) -> bool {
        self.tools_listed
            || [FlagName::Sandbox, FlagName::DryRun, FlagName::ReadOnly].iter().any(|flag| self.flag(*flag))
    }

    /// Removes limits that are not enforced from the guardrails: they stop nothing.
    pub(crate) fn drop_guardrails(&mut self, names: &[&'static str]) {
        self.guardrails.retain(|form| !names.contains(&form.split(':').next().unwrap_or_default()));
    }

    fn add(&mut self, constraint: &Constraint, form: String, vocabulary: &Vocabulary) {
        let name = constraint.name();
        if !self.has(name) {
            self.names.push(name);
        }
        let second = vocabulary.edition() == Edition::Second;
        let any = second && allows_anything(constraint);
        self.tools_listed |= !any
            && matches!(
                constraint.value,
                ConstraintValue::List(ListName::AllowedTools | ListName::AllowedMcpServers, _)
            );
        if vocabulary.constraints.is_guardrail(name) && !any {
            self.guardrails.push(form.clone());
        }
        self.normalised.push(form);
    }

    fn merge(&mut self, constraint: Constraint, lists: &mut Lists, vocabulary: &Vocabulary) {
        match constraint.value {
            ConstraintValue::Flag(flag) => {
                self.flags.push(flag);
                if flag == FlagName::NoRepeatCalls {
                    self.add_limit(LimitName::SameTool, 1);
                }
            }
            ConstraintValue::Limit(limit, value) => self.add_limit(limit, value),
            ConstraintValue::List(list, entries) => self.add_list(list, entries, lists, vocabulary),
        }
    }

    pub(super) fn add_limit(&mut self, limit: LimitName, value: i64) {
        match self.limits.iter_mut().find(|(name, _)| *name == limit) {
            Some((_, smallest)) => *smallest = value.min(*smallest),
            None => self.limits.push((limit, value)),
        }
    }

    fn add_list(&mut self, list: ListName, entries: Vec<String>, lists: &mut Lists, vocabulary: &Vocabulary) {
        let edition = vocabulary.edition();
        match list {
            ListName::RequireApprovalFor => lists.actions.extend(entries),
            ListName::RequiredRole => intersect(&mut lists.roles, entries, edition, str::to_owned),
            ListName::AllowedEnvironment | ListName::Environment => {
                let canonical = |name: &str| vocabulary.names.canonical(name);
                intersect(&mut lists.environments, entries, edition, canonical);
            }
            ListName::DeniedEnvironment => self.denied_environments.extend(entries),
            ListName::AllowedChangeWindow => {
                self.windows.insert(entries.iter().filter_map(|name| window_name(name)).collect());
            }
            ListName::ResourceScope => {
                self.resource_scopes.push(entries.iter().map(|entry| Word::new(entry)).collect());
            }
            ListName::AllowedMcpServers => lists.servers.push(entries),
            ListName::AllowedTools => lists.tools.push(entries),
            ListName::DeniedTools => lists.denied_tools.extend(entries),
        }
    }

    fn set_lists(&mut self, lists: Lists, edition: Edition) {
        let actions: Vec<Word> = lists.actions.iter().map(|action| Word::new(action)).collect();
        self.approval_for = Actions::of(&actions);
        let texts = |entries: Vec<ListedName>| entries.into_iter().map(|entry| entry.text).collect();
        self.required_roles = lists.roles.map(texts);
        self.allowed_environments = lists.environments.map(texts);
        self.mcp_servers = Patterns::intersection(lists.servers.iter().map(|list| servers(list, edition)).collect());
        self.tools = AllowedTools::of(&lists.tools, edition);
        self.denied_tools = (!lists.denied_tools.is_empty()).then(|| DeniedTools::of(&lists.denied_tools));
    }
}

/// Whether a list has a lone `*`, so that it restricts nothing.
fn allows_anything(constraint: &Constraint) -> bool {
    let ConstraintValue::List(list, entries) = &constraint.value else { return false };
    matches!(list, ListName::AllowedTools | ListName::AllowedMcpServers | ListName::ResourceScope)
        && entries.iter().any(|entry| entry == "*")
}

/// An ambiguous server matches nothing, so it is left out.
fn servers(list: &[String], edition: Edition) -> Patterns {
    let words = list.iter().filter_map(|server| Word::new(server).known().map(str::to_owned));
    match edition {
        Edition::First => Patterns::of(words.collect(), Vec::new()),
        Edition::Second => Patterns::of_entries(words),
    }
}

fn field_error(index: usize, error: &stage0_contract::ConstraintError) -> FieldError {
    FieldError::new(format!("constraints[{index}]"), error.to_string())
}

fn unknown_window(constraint: &Constraint, windows: &Windows, index: usize) -> Option<FieldError> {
    let ConstraintValue::List(ListName::AllowedChangeWindow, names) = &constraint.value else { return None };
    let unknown = names.iter().any(|name| window_name(name).is_none_or(|name| windows.get(&name).is_none()));
    unknown.then(|| {
        let known = windows.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let hint = if known.is_empty() { "it defines none".to_owned() } else { format!("it defines {known}") };
        FieldError::new(
            format!("constraints[{index}]"),
            format!("names a change window that the policy does not define: {hint}"),
        )
    })
}

fn window_name(name: &str) -> Option<String> {
    Word::name(name).known().map(str::to_owned)
}

/// Keeps the order of the first list. Ambiguous names match nothing, so they are left out: an empty list allows no one.
fn intersect(
    list: &mut Option<Vec<ListedName>>,
    names: Vec<String>,
    edition: Edition,
    canonical: impl Fn(&str) -> String,
) {
    let entries: Vec<ListedName> =
        names.into_iter().filter_map(|text| ListedName::of(text, edition, &canonical)).collect();
    match list {
        Some(before) => {
            let folded: HashSet<&str> = entries.iter().map(|entry| entry.folded.as_str()).collect();
            let split: HashSet<&str> = entries.iter().map(|entry| entry.split.as_str()).collect();
            before.retain(|entry| folded.contains(entry.folded.as_str()) || split.contains(entry.split.as_str()));
        }
        None => *list = Some(entries),
    }
}

impl ListedName {
    fn of(text: String, edition: Edition, canonical: impl Fn(&str) -> String) -> Option<Self> {
        let (folded, split) = match edition {
            Edition::First => {
                let word = Word::new(&text).known()?.to_owned();
                return Some(Self { text: word.clone(), folded: word.clone(), split: word });
            }
            Edition::Second => {
                let spelling = Spelling::of(&text);
                (canonical(spelling.folded()?), canonical(spelling.split()?))
            }
        };
        Some(Self { text, folded, split })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::Pack;

    fn read(constraints: &[&str]) -> Result<Declared, Vec<FieldError>> {
        let pack = Pack::embedded().unwrap();
        let constraints: Vec<String> = constraints.iter().map(|c| (*c).to_owned()).collect();
        Declared::read(&constraints, &pack.vocabulary, &pack.windows)
    }

    #[test]
    fn of_two_declarations_of_a_constraint_the_stricter_one_counts() {
        let declared = read(&[
            "max_iterations: 9",
            "max_iterations: 3",
            "same_tool_limit: 4",
            "no_repeat_calls",
            "required_role: a, b",
            "required_role: b, c",
            "allowed_environment: x",
            "allowed_environment: y",
            "approval_required: true",
            "approval_required: false",
        ])
        .unwrap();
        assert_eq!((declared.limit(LimitName::MaxIterations), declared.limit(LimitName::SameTool)), (Some(3), Some(1)));
        assert_eq!(declared.required_roles, Some(vec!["b".to_owned()]));
        assert_eq!(declared.allowed_environments, Some(vec![]));
        assert!(declared.flag(FlagName::ApprovalRequired));
    }

    #[test]
    fn a_change_window_that_the_pack_does_not_define_is_an_invalid_field() {
        let errors = read(&["sandbox", "allowed_change_window: business_hours, blue_moon"]).unwrap_err();
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].path, "constraints[1]");
        assert!(!errors[0].message.contains("blue_moon"));
        assert!(read(&["allowed_change_window: Business Hours"]).is_ok());
    }

    #[test]
    fn a_change_window_that_is_repeated_counts_once() {
        let names = "business_hours, Business Hours, business_hours";
        let declared = read(&[&format!("allowed_change_window: {names}"), "business_hours_only"]).unwrap();
        assert_eq!(declared.windows.len(), 1);
    }

    #[test]
    fn a_name_must_be_on_every_list_of_a_constraint() {
        let declared = read(&[
            "allowed_tools: a, b, c",
            "allowed_tools: c, B, d",
            "allowed_mcp_servers: d\u{435}v",
            "required_role: Platform Admin, x",
            "require_role: y, platform_admin",
            "allowed_environment: prod, qa",
            "environment: production",
        ])
        .unwrap();
        let tools = declared.tools.as_ref().unwrap();
        assert_eq!(["a", "b", "c", "d"].map(|tool| tools.allows(tool)), [false, true, true, false]);
        assert!(!declared.mcp_servers.as_ref().unwrap().matches("d\u{435}v"), "a look-alike matches nothing");
        assert_eq!(declared.required_roles, Some(vec!["Platform Admin".to_owned()]));
        assert_eq!(declared.allowed_environments, Some(vec!["prod".to_owned()]));
    }

    #[test]
    fn constraints_without_effect_are_kept_with_their_index() {
        let declared = read(&[
            "no side effects",
            "sandbox",
            "sandbox: off",
            "alowed_tools: a",
            "max_tokens: 5",
            "allowedEnvs: dev",
            "SANDBOX",
        ])
        .unwrap();
        assert_eq!(declared.names, ["sandbox", "allowed_environment"]);
        assert_eq!(declared.normalised, ["sandbox", "allowed_environment: dev"]);
        assert_eq!(declared.indexes, [(1, "sandbox"), (5, "allowed_environment"), (6, "sandbox")]);
        assert_eq!(declared.ignored, [0, 2, 3, 4]);
        assert_eq!(declared.not_understood, [NotUnderstood { index: 3, did_you_mean: vec!["allowed_tools"] }]);
    }

    #[test]
    fn constraints_that_restrict_no_effect_are_not_guardrails() {
        let none = [
            "mfa_required",
            "read_only",
            "dry_run",
            "sandbox",
            "environment: dev",
            "denied_tools: a",
            "denied_environment: dev",
            "approval_max_age: 1h",
            "allowed_tools: *",
            "allowed_mcp_servers: a, *",
            "resource_scope: **",
        ];
        assert!(read(&none).unwrap().guardrails.is_empty());
        assert_eq!(read(&["timeout: 5s"]).unwrap().guardrails, ["timeout: 5s"]);
        let mut declared = read(&["timeout: 5s", "allowed_tools: a*"]).unwrap();
        declared.drop_guardrails(&["timeout"]);
        assert_eq!(declared.guardrails, ["allowed_tools: a*"]);
    }

    #[test]
    fn a_list_with_a_lone_star_guards_no_tool() {
        for guard in ["sandbox", "dry_run", "read_only", "allowed_tools: a", "allowed_mcp_servers: a*"] {
            assert!(read(&[guard]).unwrap().guards_tools(), "{guard}");
        }
        for none in ["allowed_tools: *", "allowed_mcp_servers: *", "denied_tools: a", "mfa_required", "sandbox: off"] {
            assert!(!read(&[none]).unwrap().guards_tools(), "{none}");
        }
    }

    #[test]
    fn a_review_reports_only_what_the_gateway_could_not_know() {
        let constraints = [
            "budget_usd: five",
            "max_cost_usd: five",
            "allowedChangeWindow: nights",
            "allowed_change_window: business_hours",
            "allowedTools: (a)",
            "alowed_tools: (a)",
        ]
        .map(str::to_owned);
        let pack = Pack::embedded().unwrap();
        let fails_at_gateway = |text: &String| Constraint::parse(text).is_err();
        let by_gateway: Vec<usize> =
            (0..constraints.len()).filter(|&index| fails_at_gateway(&constraints[index])).collect();
        assert_eq!(by_gateway, [1, 4]);
        let errors = Declared::review(&constraints, &pack.vocabulary, &pack.windows);
        let paths: Vec<&str> = errors.iter().map(|error| error.path.as_str()).collect();
        assert_eq!(paths, ["constraints[0]", "constraints[2]"]);
        assert!(errors[0].message.contains("`max_cost_usd: 2.50`"), "{errors:?}");
    }

    #[test]
    fn a_pack_of_the_first_edition_keeps_its_constraint_names() {
        let pack = Pack::load(&crate::files::Files::first_edition()).unwrap();
        let constraints = ["allowedTools: a", "budget: 5", "denied_tools: a", "max_retries: 3", "allowed_tools: *"];
        let declared = Declared::read(&constraints.map(str::to_owned), &pack.vocabulary, &pack.windows).unwrap();
        assert_eq!(declared.names, ["max_retries", "allowed_tools"]);
        assert_eq!(declared.guardrails, ["max_retries: 3", "allowed_tools: *"]);
        assert_eq!((declared.ignored, declared.not_understood), (vec![0, 1, 2], vec![]));
        assert!(!declared.tools.unwrap().allows("a"), "a star is a letter");
    }
}
