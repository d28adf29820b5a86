//! What a request's constraints come to: every recognised name once, each limit at its strictest.
//!
//! Owns the merging of constraints that are declared more than once: lists are intersected (all must hold), of two
//! numbers the smaller counts. A window that the pack does not define is a bad field. Lists are merged into sets while
//! they are read, so that nothing later compares each entry with each other one.

use std::collections::{BTreeSet, HashSet};

use stage0_contract::{Constraint, FieldError, FlagName, Micros, Word};

use super::approval::Actions;
use crate::pack::{Vocabulary, Windows};

/// Recognised constraints, merged.
#[derive(Debug, Default)]
pub(crate) struct Declared {
    /// Canonical names, each once, in the order of the request.
    pub(crate) names: Vec<&'static str>,
    /// Normalised forms, each once, in the order of the request.
    pub(crate) normalised: Vec<String>,
    /// Those of them that the vocabulary calls guardrails.
    pub(crate) guardrails: Vec<String>,
    pub(crate) approval_for: Actions,
    pub(crate) required_roles: Option<Vec<String>>,
    pub(crate) allowed_environments: Option<Vec<String>>,
    pub(crate) max_iterations: Option<i64>,
    pub(crate) max_retries: Option<i64>,
    pub(crate) timeout: Option<Micros>,
    pub(crate) max_cost: Option<Micros>,
    pub(crate) same_tool_limit: Option<i64>,
    pub(crate) max_records: Option<i64>,
    /// Any window of each group must be open.
    pub(crate) windows: BTreeSet<BTreeSet<String>>,
    /// Any entry of each list must hold.
    pub(crate) resource_scopes: Vec<Vec<Word>>,
    pub(crate) mcp_servers: Option<HashSet<String>>,
    pub(crate) tools: Option<HashSet<String>>,
}

impl Declared {
    /// Reads the constraints of a request that passed the edge.
    pub(crate) fn read(
        constraints: &[String],
        vocabulary: &Vocabulary,
        windows: &Windows,
    ) -> Result<Self, Vec<FieldError>> {
        let mut declared = Self::default();
        let (mut errors, mut seen, mut actions) = (Vec::new(), HashSet::new(), Vec::new());
        for (index, text) in constraints.iter().enumerate() {
            match Constraint::parse(text) {
                Ok(None) => {}
                Ok(Some(constraint)) => {
                    if let Some(error) = unknown_window(&constraint, windows, index) {
                        errors.push(error);
                    } else {
                        let form = constraint.normalised();
                        if seen.insert(form.clone()) {
                            declared.note(constraint.name(), form, vocabulary);
                        }
                        match constraint {
                            Constraint::RequireApprovalFor(words) => actions.extend(words),
                            other => declared.merge(other),
                        }
                    }
                }
                Err(error) => errors.push(FieldError::new(format!("constraints[{index}]"), error.to_string())),
            }
        }
        declared.approval_for = Actions::of(&actions);
        if errors.is_empty() { Ok(declared) } else { Err(errors) }
    }

    /// Only what the pack finds wrong with constraints whose grammar was judged elsewhere.
    pub(crate) fn review(constraints: &[String], windows: &Windows) -> Vec<FieldError> {
        let parsed = constraints.iter().enumerate().filter_map(|(i, text)| Some((i, Constraint::parse(text).ok()??)));
        parsed.filter_map(|(index, constraint)| unknown_window(&constraint, windows, index)).collect()
    }

    /// Whether a name is declared.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.names.contains(&name)
    }

    /// Whether a flag is declared.
    pub(crate) fn flag(&self, flag: FlagName) -> bool {
        self.has(flag.name())
    }

    fn note(&mut self, name: &'static str, form: String, vocabulary: &Vocabulary) {
        if !self.has(name) {
            self.names.push(name);
        }
        if vocabulary.is_guardrail(name) {
            self.guardrails.push(form.clone());
        }
        self.normalised.push(form);
    }

    fn merge(&mut self, constraint: Constraint) {
        match constraint {
            // Two calls of the same kind are one more than `no_repeat_calls` lets run.
            Constraint::Flag(FlagName::NoRepeatCalls) => least(&mut self.same_tool_limit, 1),
            // Actions are gathered where they are read.
            Constraint::Flag(_) | Constraint::RequireApprovalFor(_) => {}
            Constraint::RequiredRole(words) => intersect_in_order(&mut self.required_roles, &words),
            Constraint::AllowedEnvironment(words) => intersect_in_order(&mut self.allowed_environments, &words),
            Constraint::MaxIterations(n) => least(&mut self.max_iterations, whole(n)),
            Constraint::MaxRetries(n) => least(&mut self.max_retries, whole(n)),
            Constraint::Timeout(n) => least(&mut self.timeout, n),
            Constraint::MaxCost(n) => least(&mut self.max_cost, n),
            Constraint::SameTool(n) => least(&mut self.same_tool_limit, whole(n)),
            Constraint::MaxRecords(n) => least(&mut self.max_records, whole(n)),
            Constraint::AllowedChangeWindow(words) => {
                self.windows.insert(words.iter().filter_map(window_name).collect());
            }
            Constraint::ResourceScope(words) => self.resource_scopes.push(words),
            Constraint::AllowedMcpServers(words) => intersect(&mut self.mcp_servers, &words),
            Constraint::AllowedTools(words) => intersect(&mut self.tools, &words),
        }
    }
}

fn unknown_window(constraint: &Constraint, windows: &Windows, index: usize) -> Option<FieldError> {
    let Constraint::AllowedChangeWindow(words) = constraint else { return None };
    let unknown = words.iter().any(|w| window_name(w).is_none_or(|name| windows.get(&name).is_none()));
    unknown.then(|| {
        let known = windows.names().collect::<Vec<_>>().join(", ");
        let hint = if known.is_empty() { "it defines none".to_owned() } else { format!("it defines {known}") };
        FieldError::new(
            format!("constraints[{index}]"),
            format!("names a change window that the policy does not define: {hint}"),
        )
    })
}

fn window_name(word: &Word) -> Option<String> {
    word.known().and_then(|text| Word::name(text).known().map(str::to_owned))
}

fn least<T: Ord + Copy>(limit: &mut Option<T>, declared: T) {
    *limit = Some(limit.map_or(declared, |known| known.min(declared)));
}

/// Words that mix scripts match nothing, so they are left out: an empty set allows nobody.
fn intersect(set: &mut Option<HashSet<String>>, words: &[Word]) {
    let known: HashSet<&str> = words.iter().filter_map(Word::known).collect();
    match set {
        Some(before) => before.retain(|word| known.contains(word.as_str())),
        None => *set = Some(known.into_iter().map(str::to_owned).collect()),
    }
}

/// As [`intersect`], in the order of the first list.
fn intersect_in_order(list: &mut Option<Vec<String>>, words: &[Word]) {
    let known = || words.iter().filter_map(Word::known);
    match list {
        Some(before) => {
            let known: HashSet<&str> = known().collect();
            before.retain(|word| known.contains(word.as_str()));
        }
        None => *list = Some(known().map(str::to_owned).collect()),
    }
}

/// Constraint numbers are below 10¹³; the bound only keeps the types honest.
fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::Pack;

    fn read(constraints: &[&str]) -> Result<Declared, Vec<FieldError>> {
        let pack = Pack::embedded().unwrap();
        let constraints: Vec<String> = constraints.iter().map(|c| (*c).to_owned()).collect();
        Declared::read(&constraints, pack.vocabulary(), pack.windows())
    }

    #[test]
    fn the_stricter_of_two_declarations_holds() {
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
        assert_eq!((declared.max_iterations, declared.same_tool_limit), (Some(3), Some(1)));
        assert_eq!(declared.required_roles, Some(vec!["b".to_owned()]));
        assert_eq!(declared.allowed_environments, Some(vec![]));
        assert!(declared.flag(FlagName::ApprovalRequired));
    }

    #[test]
    fn a_window_that_the_pack_does_not_define_is_a_bad_field() {
        let errors = read(&["sandbox", "allowed_change_window: business_hours, blue_moon"]).unwrap_err();
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].path, "constraints[1]");
        assert!(!errors[0].message.contains("blue_moon"));
        assert!(read(&["allowed_change_window: Business Hours"]).is_ok());
    }

    #[test]
    fn windows_that_are_named_over_and_over_are_one() {
        let names = "business_hours, Business Hours, business_hours";
        let declared = read(&[&format!("allowed_change_window: {names}"), "business_hours_only"]).unwrap();
        assert_eq!(declared.windows.len(), 1);
    }

    #[test]
    fn a_name_must_stand_in_each_list() {
        let declared =
            read(&["allowed_tools: a, b, c", "allowed_tools: c, b, d", "allowed_mcp_servers: d\u{435}v"]).unwrap();
        let mut tools: Vec<String> = declared.tools.unwrap().into_iter().collect();
        tools.sort_unstable();
        assert_eq!(tools, ["b", "c"]);
        assert_eq!(declared.mcp_servers, Some(HashSet::new()), "a look-alike is nobody");
    }

    #[test]
    fn free_text_leaves_no_trace() {
        let declared = read(&["no side effects", "be nice"]).unwrap();
        assert!(declared.names.is_empty() && declared.normalised.is_empty());
    }

    #[test]
    fn some_constraints_are_no_guardrails() {
        let declared = read(&["mfa_required", "read_only", "dry_run", "sandbox"]).unwrap();
        assert!(declared.guardrails.is_empty());
        assert_eq!(read(&["timeout: 5s"]).unwrap().guardrails, ["timeout: 5s"]);
    }
}
