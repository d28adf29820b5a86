//! The facts of a decision that are recorded with it, so that another policy can decide it again.
//!
//! Typed and small: what rules compare, and numbers and Booleans that other packs may declare. `replay` reads them.
//! INVARIANT: none are kept of a request that holds a secret, and no goal, no argument of a tool and no longer text is
//! kept of any request.

use serde_json::{Map, Value};
use stage0_contract::{CheckRequest, KeptFacts, MAX_KEPT_FACTS_BYTES, MAX_KEPT_MEMBERS};

use crate::facts::{Attribute, CUSTOM, FactValue, Facts, Kind, is_absent, is_harmless, is_short};
use crate::pack::{Pack, is_identifier};

/// The form of what is kept. A release that keeps something else, or reads a fact otherwise, has another one.
pub(crate) const FORM: u8 = 1;
/// The most names of members, with their values or without. Of a request with more nothing is kept.
const MAX_NAMES: usize = 200;
/// Facts about tools and effects: the text of one may go on with its arguments.
const OF_ACTIONS: [&str; 6] = ["tools", "tool_names", "mcp_servers", "effects", "run_tools", "run_target_tools"];
/// Words of a name. What has more is a sentence.
const MAX_WORDS: usize = 4;
/// Room for the floor's verdict, which is added where there is a floor.
const FLOOR_BYTES: usize = 20;

/// The facts to record with a decision; none where they may hold a secret, or are too large. All groups must be read.
pub(crate) fn facts(pack: &Pack, request: &CheckRequest, facts: &Facts) -> Option<KeptFacts> {
    if !facts.secrets.is_empty() {
        return None;
    }
    let mut kept = KeptFacts {
        v: FORM,
        pro: request.pro,
        denied: facts.approval.denied,
        place: request.environment_name().filter(|name| is_short(name)).map(str::to_owned),
        read_by: pack.read_by().clone(),
        ..KeptFacts::default()
    };
    for attribute in Attribute::all() {
        let is_counted = attribute.kind() != Kind::RunCalls || !pack.run_calls.is_empty();
        if attribute.kind() == Kind::Custom || !is_counted {
            continue;
        }
        match attribute.value(facts) {
            Some(value) if is_kept(attribute, &value) => {
                kept.values.insert(attribute.name().to_owned(), value.into());
            }
            None if attribute.is_optional() => {}
            Some(_) | None => kept.unread.push(attribute.name().to_owned()),
        }
    }
    if !pack.custom.is_empty() {
        kept.values.insert(CUSTOM.to_owned(), pack.custom.kept(request.context.as_ref()).into());
    }
    kept.unread.sort_unstable();
    (kept.members, kept.unkept) = members(pack, request.context.as_ref())?;
    let bytes = serde_json::to_vec(&kept).ok()?.len();
    (bytes + FLOOR_BYTES <= MAX_KEPT_FACTS_BYTES).then_some(kept)
}

/// Whether a value holds no longer text, and no tool or effect with its arguments.
fn is_kept(attribute: Attribute, value: &FactValue) -> bool {
    let has_arguments = |text: &String| OF_ACTIONS.contains(&attribute.name()) && text.contains(['(', '\n']);
    let is_sentence = |text: &str| text.split_whitespace().nth(MAX_WORDS).is_some();
    let is_kept = |text: &String| is_short(text) && !is_sentence(text) && !has_arguments(text);
    match value {
        FactValue::Text(text) => is_kept(text),
        FactValue::Set(texts) => texts.iter().all(is_kept),
        _ => true,
    }
}

/// The members of `context` that the pack does not declare and another one may: those that are kept, and the names of
/// the others. None where there are too many.
fn members(pack: &Pack, context: Option<&Map<String, Value>>) -> Option<(Map<String, Value>, Vec<String>)> {
    let is_other = |name: &String| is_identifier(name) && pack.custom.get(name).is_none();
    let others = context.into_iter().flatten().filter(|(name, value)| is_other(name) && !is_absent(value));
    let mut others: Vec<(&String, &Value)> = others.take(MAX_NAMES + 1).collect();
    if others.len() > MAX_NAMES {
        return None;
    }
    others.sort_unstable_by_key(|(name, _)| *name);
    let (mut members, mut unkept) = (Map::new(), Vec::new());
    for (name, value) in others {
        if members.len() < MAX_KEPT_MEMBERS && is_harmless(value) {
            members.insert(name.clone(), value.clone());
        } else {
            unkept.push(name.clone());
        }
    }
    Some((members, unkept))
}
