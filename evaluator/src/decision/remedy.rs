//! Remedies: where in the request an issue lies, what was compared, and what would settle it.
//!
//! Owns the form of `details.at`, `found`, `allowed` and `write` (contract, section 3). A change with a value is one that
//! the caller may rightly make by itself; evidence that a person or another system must give is named without a value.
//! INVARIANT: no change loosens or removes a constraint, or removes or renames an effect, a tool, a target or a counter;
//! and where the request holds a secret, no word of it is told.

use serde_json::{Map, Value, json};

use crate::facts::Culprit;

/// Words that one list tells at most.
const MAX_TOLD: usize = 20;

/// Who gives evidence that a caller cannot rightly make up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Person,
    System,
}

/// One thing to change in the request.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change {
    /// Appends to an array.
    Add { path: String, value: String },
    /// Puts another text in the place of one.
    Replace { path: String, value: String },
    /// Somebody else must give it.
    Evidence { path: String, by: By },
}

impl Change {
    pub(super) fn person(path: &str) -> Self {
        Self::Evidence { path: path.to_owned(), by: By::Person }
    }

    pub(super) fn system(path: &str) -> Self {
        Self::Evidence { path: path.to_owned(), by: By::System }
    }

    pub(super) fn add_constraint(value: &str) -> Self {
        Self::Add { path: "constraints".to_owned(), value: value.to_owned() }
    }

    pub(super) fn path(&self) -> &str {
        match self {
            Self::Add { path, .. } | Self::Replace { path, .. } | Self::Evidence { path, .. } => path,
        }
    }

    fn to_json(&self) -> Value {
        match self {
            Self::Add { path, value } => json!({"op": "add", "path": path, "value": value}),
            Self::Replace { path, value } => json!({"op": "replace", "path": path, "value": value}),
            Self::Evidence { path, by: By::Person } => json!({"path": path, "by": "person"}),
            Self::Evidence { path, by: By::System } => json!({"path": path, "by": "system"}),
        }
    }
}

/// What an issue tells of the request.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Remedy {
    /// JSON paths.
    pub(super) at: Vec<String>,
    /// Words and numbers of the request, in its own units.
    pub(super) found: Vec<Value>,
    pub(super) allowed: Vec<Value>,
    pub(super) write: Vec<Change>,
    /// Known words near to the one that is not known.
    pub(super) did_you_mean: Vec<String>,
}

impl Remedy {
    pub(super) fn at(mut self, path: &str) -> Self {
        self.at.push(path.to_owned());
        self
    }

    /// The constraints that ask for it.
    pub(super) fn declared(mut self, places: impl IntoIterator<Item = String>) -> Self {
        self.at.extend(places);
        self
    }

    pub(super) fn of(culprits: &[Culprit]) -> Self {
        let mut remedy = Self::default();
        remedy.culprits(culprits);
        remedy
    }

    pub(super) fn culprits(&mut self, culprits: &[Culprit]) {
        for culprit in culprits {
            self.at.push(culprit.at.clone());
            self.found.push(culprit.found.clone().into());
        }
    }

    pub(super) fn found(mut self, found: impl Into<Value>) -> Self {
        self.found.push(found.into());
        self
    }

    pub(super) fn allowed<V: Into<Value>>(mut self, allowed: impl IntoIterator<Item = V>) -> Self {
        self.allowed.extend(allowed.into_iter().map(Into::into));
        self
    }

    pub(super) fn write(mut self, change: Change) -> Self {
        self.write.push(change);
        self
    }

    /// Whether both are settled by the same evidence.
    pub(super) fn meets(&self, other: &Self) -> bool {
        let evidence = |change: &&Change| matches!(change, Change::Evidence { .. });
        self.write.iter().filter(evidence).any(|change| other.write.contains(change))
    }

    /// Takes over what another one tells of the same fact.
    pub(super) fn merge(&mut self, other: Self) {
        union(&mut self.at, other.at);
        union(&mut self.found, other.found);
        union(&mut self.allowed, other.allowed);
        union(&mut self.write, other.write);
        union(&mut self.did_you_mean, other.did_you_mean);
    }

    /// Leaves out everything that is or holds a word of the request.
    pub(super) fn hide_words(&mut self) {
        self.found.retain(|value| !value.is_string());
        self.allowed.retain(|value| !value.is_string());
        self.did_you_mean.clear();
        self.write.retain(|change| matches!(change, Change::Evidence { .. }));
    }

    /// Adds what it tells to the details of an issue.
    pub(super) fn tell(self, details: &mut Map<String, Value>) {
        let mut list = |name: &str, values: Vec<Value>| {
            if !values.is_empty() {
                details.insert(name.to_owned(), values.into_iter().take(MAX_TOLD).collect());
            }
        };
        list("at", self.at.into_iter().map(Value::from).collect());
        list("found", self.found);
        list("allowed", self.allowed);
        list("write", self.write.iter().map(Change::to_json).collect());
        list("did_you_mean", self.did_you_mean.into_iter().map(Value::from).collect());
    }

    /// What answers the question: "send `context.actor_role`; `constraints[0]` requires it".
    pub(super) fn hint(&self) -> Option<String> {
        let quoted = |paths: Vec<&str>| paths.iter().map(|path| format!("`{path}`")).collect::<Vec<_>>().join(", ");
        let evidence = |change: &Change| matches!(change, Change::Evidence { .. });
        let wanted: Vec<&str> = self.write.iter().filter(|c| evidence(c)).map(Change::path).collect();
        let by: Vec<&str> = self.at.iter().map(String::as_str).filter(|path| !wanted.contains(path)).take(4).collect();
        match (wanted.is_empty(), by.is_empty()) {
            (true, true) => None,
            (true, false) => Some(format!("See {}.", quoted(by))),
            (false, true) => Some(format!("It belongs in {}.", quoted(wanted))),
            (false, false) => Some(format!("It belongs in {}; see {}.", quoted(wanted), quoted(by))),
        }
    }
}

fn union<T: PartialEq>(all: &mut Vec<T>, more: Vec<T>) {
    for one in more {
        if !all.contains(&one) {
            all.push(one);
        }
    }
}
