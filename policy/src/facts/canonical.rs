//! The one form in which a fact holds a word, for tools that read rules: a literal in another form never matches.
//!
//! Facts that hold texts as they were sent, such as members of `custom`, have no such form.

use stage0_contract::{Spelling, Verdict, Word};

use super::approval::Status;
use super::proposal::AMBIGUOUS;
use super::run::stored_tool;
use super::target::Target;
use super::tool_name::tool_name;
use crate::approval::group;
use crate::pack::Pack;
use crate::vocabulary::{Class, Edition};

/// What a fact makes of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Canonical {
    /// The fact can hold it as it is.
    Same,
    /// The fact holds this instead.
    Other(String),
    /// The fact holds only these.
    OneOf(Vec<String>),
    /// The fact holds it in no form.
    Never,
}

impl Canonical {
    /// What the fact of this name makes of a word of a rule. Only packs of the second edition have one form of words.
    pub(crate) fn of(fact: &str, word: &str, pack: &Pack) -> Self {
        if pack.vocabulary.edition() == Edition::First || word == AMBIGUOUS || word.is_empty() {
            return Self::Same;
        }
        if let Some(words) = all_words(fact, pack) {
            return if words.iter().any(|known| known == word) { Self::Same } else { Self::OneOf(words) };
        }
        let spelling = Spelling::of(word);
        let known = || Word::new(word).known().map(str::to_owned);
        let form = match fact {
            "tool_names" => tool_name(word),
            // A tool in camel case is there in both readings, as an effect is.
            "tools" | "run_tools" | "run_target_tools" => {
                stored_tool(word).and_then(|form| if form == word { Some(form) } else { forbidden_name(word) })
            }
            // An effect in camel case is there in both readings, and the one with `_` is how people write it.
            "effects" if spelling.folded() != Some(word) => spelling.split().map(str::to_owned),
            "effects" | "role" | "required_roles" => spelling.folded().map(str::to_owned),
            "environment" | "environments" | "allowed_environments" => {
                pack.vocabulary.names.environment(&spelling).or(spelling.folded()).map(str::to_owned)
            }
            "mcp_servers" | "tenant" | "target_tenants" | "agent" => known(),
            // A target is decoded once, so what looks encoded may be the form of one that was encoded twice.
            "targets" if word.contains('%') => return Self::Same,
            "targets" => Target::read(word).map(Target::into_text),
            "groups" => group(word).or_else(|| group(&known()?)),
            _ => return Self::Same,
        };
        match form {
            Some(form) if form == word => Self::Same,
            Some(form) => Self::Other(form),
            None => Self::Never,
        }
    }
}

/// As people write a tool in lists that forbid it.
fn forbidden_name(word: &str) -> Option<String> {
    stored_tool(&tool_name(word)?)
}

/// Every word that a fact of few words can hold.
fn all_words(fact: &str, pack: &Pack) -> Option<Vec<String>> {
    let texts = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    match fact {
        "effect_classes" => {
            let classes = Class::ALL.into_iter().filter(|class| *class != Class::None).map(Class::as_str);
            Some(classes.map(str::to_owned).collect())
        }
        "run_last_verdict" => Some(texts(&[Verdict::Allow, Verdict::Deny, Verdict::Defer].map(Verdict::as_str))),
        "approval_status" => Some(texts(&Status::ALL.map(Status::as_str))),
        "windows_open" => Some(pack.windows.keys().cloned().collect()),
        _ => None,
    }
}
