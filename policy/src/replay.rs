//! Deciding again from the facts that were recorded with a decision.
//!
//! All rules are evaluated, without triggers. The verdict is concluded as that of a check is.
//! INVARIANT: what the recorded facts do not tell is named as the reason why nothing is decided, and never guessed; no
//! facts, whatever they are, make a replay panic.

use stage0_contract::{KeptFacts, ReplayGap, Replayed, Verdict};

use crate::decision::{self, Replay};
use crate::engine::Engine;
use crate::facts::{Attribute, Attributes, Custom, FactValue, Group, Kind, RUN_NAMED};
use crate::kept::FORM;
use crate::pack::Pack;

/// The fact that depends on the pack's windows whatever the request declares.
const WINDOWS_OPEN: &str = "windows_open";
/// Without a declared window the other one, `window_open`, is true by every pack. One that is declared may even be
/// refused by a pack that does not have it.
const WINDOW_DECLARED: &str = "change_window_declared";

impl Engine {
    /// Decides again what was decided from these facts, or says why it cannot. Where the floor was stricter, its
    /// verdict stands.
    pub fn replay(&self, kept: &KeptFacts) -> Replayed {
        let recalled = match Recalled::of(kept, self.pack()) {
            Ok(recalled) => recalled,
            Err(gap) => return Replayed::Not(gap),
        };
        let outcome = self.evaluate_by(|attribute| recalled.value(attribute));
        let replay = Replay { pro: kept.pro, is_denied: kept.denied, mistyped: &recalled.custom.mistyped };
        let replayed = decision::replayed(self.pack(), &outcome, &replay);
        match (replayed, kept.floor) {
            (Replayed::Decided { verdict, .. }, Some(floor)) if floor > verdict => by_floor(floor),
            (replayed, _) => replayed,
        }
    }
}

fn by_floor(verdict: Verdict) -> Replayed {
    Replayed::Decided { verdict, code: None, rule: None }
}

/// The facts that the rules of a pack read, as they were recorded.
struct Recalled {
    values: Vec<(Attribute, FactValue)>,
    custom: Custom,
    has_custom: bool,
}

impl Recalled {
    fn of(kept: &KeptFacts, pack: &Pack) -> Result<Self, ReplayGap> {
        let own = pack.read_by();
        let mut named = Attributes::default();
        pack.rules.values().for_each(|rule| named.extend(rule.attributes));
        let names = |wanted: fn(Attribute) -> bool| named.iter().any(wanted);
        let windows = names(|attribute| attribute.name() == WINDOWS_OPEN)
            || kept.values.get(WINDOW_DECLARED).is_none_or(|declared| *declared != false);
        if kept.v != FORM {
            return Err(ReplayGap::Unreadable);
        }
        if kept.read_by.words != own.words {
            return Err(ReplayGap::Words);
        }
        if windows && kept.read_by.windows != own.windows {
            return Err(ReplayGap::Windows);
        }
        // Of a check without a run nothing was counted, whatever a pack counts.
        let has_run = kept.values.get(RUN_NAMED).is_none_or(|named| *named != false);
        if has_run && names(|attribute| attribute.group() == Group::Run) && kept.read_by.run != own.run {
            return Err(ReplayGap::Run);
        }
        let custom = pack.custom.recall(kept)?;
        let named = named.iter().filter(|attribute| attribute.kind() != Kind::Custom);
        let values = named.filter_map(|attribute| recall(kept, attribute, pack).transpose());
        Ok(Self { values: values.collect::<Result<_, _>>()?, custom, has_custom: !pack.custom.is_empty() })
    }

    fn value(&self, attribute: Attribute) -> Option<FactValue> {
        if attribute.kind() == Kind::Custom {
            return self.has_custom.then(|| self.custom.record());
        }
        let found = self.values.iter().find(|(known, _)| *known == attribute);
        found.map(|(_, value)| value.clone())
    }
}

/// The recorded value of a fact; none where an optional one was absent.
fn recall(kept: &KeptFacts, attribute: Attribute, pack: &Pack) -> Result<Option<(Attribute, FactValue)>, ReplayGap> {
    let name = attribute.name();
    if kept.unread.iter().any(|unread| unread == name) {
        return Err(ReplayGap::Fact);
    }
    let is_without_run = kept.values.get(RUN_NAMED).is_some_and(|named| *named == false);
    if attribute.kind() == Kind::RunCalls && is_without_run {
        let none = pack.run_calls.iter().map(|tool| (tool.clone(), FactValue::Long(0)));
        return Ok(Some((attribute, FactValue::Record(none.collect()))));
    }
    match kept.values.get(name) {
        Some(value) => {
            let value = FactValue::recall(attribute.kind(), value, &pack.run_calls).ok_or(ReplayGap::Unreadable)?;
            Ok(Some((attribute, value)))
        }
        None if attribute.is_optional() => Ok(None),
        None => Err(ReplayGap::Fact),
    }
}
