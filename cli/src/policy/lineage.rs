//! What a valid pack extends, and what it and the packs that it extends make milder: what a reviewer reads first.

use serde_json::{Value, json};
use stage0_policy::Pack;
use stage0_policy::diff::Weakening;

use crate::out::plain;

/// The packs that a pack extends, and all `[weakens]` among them and it.
pub(super) struct Lineage {
    /// Name and number of the pack itself.
    name: String,
    /// Full versions, the nearest first.
    extends: Vec<String>,
    /// The pack's own first.
    weakens: Vec<Weakening>,
}

impl Lineage {
    pub(super) fn of(pack: &Pack) -> Self {
        let extends = pack.parents().map(|parent| parent.version().to_string()).collect();
        Self { name: label(pack.version().as_str()).to_owned(), extends, weakens: pack.weakenings() }
    }

    /// One line for the packs that it extends, and one for each that makes its parent milder.
    pub(super) fn lines(&self) -> Vec<String> {
        let extends = (!self.extends.is_empty()).then(|| format!("extends {}", self.extends.join(", which extends ")));
        extends.into_iter().chain(self.weakens.iter().map(|weakening| self.weakens(weakening))).collect()
    }

    /// Such as `weakens baseline@2.0.0: leaves out approval.communication`; of a pack that it extends, with its name.
    fn weakens(&self, Weakening { pack, weakened }: &Weakening) -> String {
        let lists = [
            ("leaves out", &weakened.without),
            ("replaces", &weakened.replaces),
            ("milder words", &weakened.words),
            ("milder numbers", &weakened.numbers),
        ];
        let named = lists.into_iter().filter(|(_, names)| !names.is_empty());
        let named: Vec<String> = named.map(|(what, names)| format!("{what} {}", names.join(", "))).collect();
        let chain: Vec<&str> =
            std::iter::once(self.name.as_str()).chain(self.extends.iter().map(|one| label(one))).collect();
        let at = chain.iter().position(|one| one == pack).unwrap_or_default();
        let who = if at == 0 { String::new() } else { format!("{pack} ") };
        format!("{who}weakens {}: {}", chain.get(at + 1).unwrap_or(&"its parent"), plain(&named.join("; ")))
    }

    /// An answer with `extends` and `weakens` in it.
    pub(super) fn added_to(&self, mut answer: Value) -> Value {
        if let Some(members) = answer.as_object_mut() {
            members.insert("extends".to_owned(), json!(self.extends));
            members.insert("weakens".to_owned(), json!(self.weakens));
        }
        answer
    }
}

/// The part before the digest.
fn label(version: &str) -> &str {
    version.split_once('+').map_or(version, |(label, _)| label)
}
