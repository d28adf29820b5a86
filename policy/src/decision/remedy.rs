//! Remedies: the place in the request that an issue is about, what was compared, and which change would settle it.
//!
//! Section 3 of the contract has their form. A caller may make a change with a value by itself; evidence that a person
//! or another system must give is named without a value.
//! INVARIANT: no change loosens or removes a constraint, or removes or renames an effect, a tool, a target or a
//! counter; and where the request holds a secret, a remedy holds no word of it.

use serde_json::{Map, Value, json};

use crate::facts::Culprit;

const MAX_ITEMS: usize = 20;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change {
    Add {
        path: String,
        value: String,
    },
    Replace {
        path: String,
        value: String,
    },
    /// A person or another system (`by`) must give the member.
    Evidence {
        path: String,
        by: &'static str,
    },
}

impl Change {
    pub(super) fn person(path: &str) -> Self {
        Self::Evidence { path: path.to_owned(), by: "person" }
    }

    pub(super) fn system(path: &str) -> Self {
        Self::Evidence { path: path.to_owned(), by: "system" }
    }

    pub(super) fn add_constraint(value: &str) -> Self {
        Self::Add { path: "constraints".to_owned(), value: value.to_owned() }
    }

    fn is_evidence(&self) -> bool {
        matches!(self, Self::Evidence { .. })
    }

    fn path(&self) -> &str {
        match self {
            Self::Add { path, .. } | Self::Replace { path, .. } | Self::Evidence { path, .. } => path,
        }
    }

    fn to_json(&self) -> Value {
        match self {
            Self::Add { path, value } => json!({"op": "add", "path": path, "value": value}),
            Self::Replace { path, value } => json!({"op": "replace", "path": path, "value": value}),
            Self::Evidence { path, by } => json!({"path": path, "by": by}),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Remedy {
    pub(super) at: Vec<String>,
    /// Words and numbers of the request, in the caller's units.
    pub(super) found: Vec<Value>,
    pub(super) allowed: Vec<Value>,
    pub(super) write: Vec<Change>,
    /// Known words similar to an unknown one.
    pub(super) did_you_mean: Vec<String>,
}

impl Remedy {
    pub(super) fn at(mut self, path: &str) -> Self {
        self.at.push(path.to_owned());
        self
    }

    pub(super) fn declared(mut self, paths: impl IntoIterator<Item = String>) -> Self {
        self.at.extend(paths);
        self
    }

    pub(super) fn of(culprits: &[Culprit]) -> Self {
        culprits.iter().fold(Self::default(), |remedy, one| remedy.at(&one.at).found(one.found.clone()))
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

    pub(super) fn shares_evidence_with(&self, other: &Self) -> bool {
        self.write.iter().any(|change| change.is_evidence() && other.write.contains(change))
    }

    pub(super) fn merge(&mut self, other: Self) {
        union(&mut self.at, other.at);
        union(&mut self.found, other.found);
        union(&mut self.allowed, other.allowed);
        union(&mut self.write, other.write);
        union(&mut self.did_you_mean, other.did_you_mean);
    }

    /// Removes the changes by which a caller would say that an action is approved. Whether there were any.
    pub(super) fn drop_claim(&mut self) -> bool {
        const CLAIM: [&str; 3] = ["context.approval_status", "context.approved_by", "context.approved_at"];
        let before = self.write.len();
        self.write.retain(|change| !CLAIM.contains(&change.path()));
        self.write.len() < before
    }

    /// Removes everything that is or holds a word of the request.
    pub(super) fn hide_words(&mut self) {
        self.found.retain(|value| !value.is_string());
        self.allowed.retain(|value| !value.is_string());
        self.did_you_mean.clear();
        self.write.retain(Change::is_evidence);
    }

    pub(super) fn add_to(self, details: &mut Map<String, Value>) {
        let mut list = |name: &str, values: Vec<Value>| {
            if !values.is_empty() {
                details.insert(name.to_owned(), values.into_iter().take(MAX_ITEMS).collect());
            }
        };
        list("at", self.at.into_iter().map(Value::from).collect());
        list("found", self.found);
        list("allowed", self.allowed);
        list("write", self.write.iter().map(Change::to_json).collect());
        list("did_you_mean", self.did_you_mean.into_iter().map(Value::from).collect());
    }

    /// "It belongs in `context.actor_role`; see `constraints[0]`."
    pub(super) fn hint(&self) -> Option<String> {
        let quoted = |paths: Vec<&str>| paths.iter().map(|path| format!("`{path}`")).collect::<Vec<_>>().join(", ");
        let missing: Vec<&str> = self.write.iter().filter(|change| change.is_evidence()).map(Change::path).collect();
        let by: Vec<&str> = self.at.iter().map(String::as_str).filter(|path| !missing.contains(path)).take(4).collect();
        match (missing.is_empty(), by.is_empty()) {
            (true, true) => None,
            (true, false) => Some(format!("See {}.", quoted(by))),
            (false, true) => Some(format!("It belongs in {}.", quoted(missing))),
            (false, false) => Some(format!("It belongs in {}; see {}.", quoted(missing), quoted(by))),
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
