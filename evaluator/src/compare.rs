//! Compares two policies before one takes the place of the other: what changes, and how much of it is looser.
//!
//! Both are loaded as for a check. One pair is compared at a time in a process ([`Turns`]), and what takes too long, or
//! cannot be loaded, is no comparison: nothing is activated by a guess.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use stage0_contract::{
    ComparePolicies, ComparePoliciesReply, ComparedCase, ComparedRule, ComparedValue, ComparedWeakening, ComparedWord,
    DifferenceCount, DifferenceDirection, DifferenceKind, LeftOut, PolicyComparison, Verdict,
};
use stage0_policy::diff::{
    CaseDiff, Change, Count, DecidedBy, Direction, Outcome, PackDiff, RuleDiff, ValueDiff, Weakening, WordDiff,
};
use stage0_policy::{Pack, Weakened};
use tokio::time::Instant;

use crate::published::{NotLoaded, Published};
use crate::turns::{NotDone, Turns};

/// Characters of a text that are shown.
const MAX_TEXT: usize = 200;
/// Names that are shown of one entry.
const MAX_NAMES: usize = 10;
/// Comparisons that are kept, so that a pair which was reviewed a moment ago is not compared again to be activated.
const MAX_KEPT: usize = 8;

/// Compares the policies of a process.
#[derive(Debug)]
pub(crate) struct Comparer {
    /// The pack that decides where none is active.
    own: Arc<Pack>,
    turns: Turns,
    /// The newest last.
    kept: Mutex<VecDeque<Kept>>,
}

/// A comparison of two packs. The packs themselves are its key: digests in versions are short.
#[derive(Debug)]
struct Kept {
    old: Arc<Pack>,
    new: Arc<Pack>,
    comparison: PolicyComparison,
}

impl Comparer {
    pub(crate) fn new(own: Arc<Pack>) -> Arc<Self> {
        Arc::new(Self { own, turns: Turns::new("policy-compare"), kept: Mutex::default() })
    }

    pub(crate) async fn compare(
        &self,
        published: &Published,
        message: &ComparePolicies,
        deadline: Instant,
    ) -> ComparePoliciesReply {
        let (old, new) = match self.load(published, message, deadline).await {
            Ok(packs) => packs,
            Err(error) => return ComparePoliciesReply::Unable(error.to_string()),
        };
        if let Some(comparison) = self.known(&old, &new) {
            return ComparePoliciesReply::Compared(Box::new(comparison));
        }
        let packs = (Arc::clone(&old), Arc::clone(&new));
        match self.turns.run(deadline, move || PackDiff::between(&packs.0, &packs.1).map(|diff| compared(&diff))).await
        {
            Ok(Ok(comparison)) => {
                self.keep(Kept { old, new, comparison: comparison.clone() });
                ComparePoliciesReply::Compared(Box::new(comparison))
            }
            Ok(Err(error)) => ComparePoliciesReply::Unable(format!("they cannot be compared: {error}")),
            Err(NotDone::Busy) => ComparePoliciesReply::Busy,
            Err(NotDone::Ended) => ComparePoliciesReply::Unable("the thread that compares them ended".to_owned()),
            Err(NotDone::TooLong) => ComparePoliciesReply::Unable("it takes too long to compare them".to_owned()),
        }
    }

    fn known(&self, old: &Arc<Pack>, new: &Arc<Pack>) -> Option<PolicyComparison> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.iter().find(|kept| Arc::ptr_eq(&kept.old, old) && Arc::ptr_eq(&kept.new, new));
        found.map(|kept| kept.comparison.clone())
    }

    fn keep(&self, comparison: Kept) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back(comparison);
        if kept.len() > MAX_KEPT {
            kept.pop_front();
        }
    }

    /// The old and the new pack. An old one that this release cannot load as what it was published as decides nothing;
    /// its files are compared with all the same, else nothing could take its place.
    async fn load(
        &self,
        published: &Published,
        message: &ComparePolicies,
        deadline: Instant,
    ) -> Result<(Arc<Pack>, Arc<Pack>), NotLoaded> {
        let ComparePolicies { account, old, new } = message;
        let old = async {
            match old {
                Some(old) => published.load_or_renew(account.as_ref(), old, deadline).await,
                None => Ok(Arc::clone(&self.own)),
            }
        };
        let (old, new) = tokio::join!(old, published.load(account.as_ref(), new, deadline));
        Ok((old?, new?))
    }
}

/// A difference as people read it.
fn compared(diff: &PackDiff) -> PolicyComparison {
    let Outcome { looser, stricter, neutral } = diff.outcome;
    let mut cases: Vec<&CaseDiff> = diff.cases.changed.iter().collect();
    cases.sort_by_key(|case| gravity(case));
    let mut rules: Vec<&RuleDiff> = diff.rules.iter().collect();
    rules.sort_by_key(|rule| rule.direction);
    let mut words: Vec<&WordDiff> = diff.words.iter().collect();
    words.sort_by_key(|word| word.direction);
    let mut values: Vec<&ValueDiff> = diff.values.iter().collect();
    values.sort_by_key(|value| value.direction);
    let comparison = PolicyComparison {
        old: diff.old.clone(),
        new: diff.new.clone(),
        diff_digest: diff.diff_digest.clone(),
        flips: (looser.cases + looser.entries) as u64,
        looser: count(looser),
        stricter: count(stricter),
        neutral: count(neutral),
        decided_cases: diff.cases.decided as u64,
        cases: cases.into_iter().map(case).collect(),
        rules: rules.into_iter().map(rule).collect(),
        words: words.into_iter().map(word).collect(),
        values: values.into_iter().map(value).collect(),
        weakens: diff.weakens.iter().map(weakening).collect(),
        left_out: LeftOut::default(),
    };
    comparison.bounded()
}

/// DENY to ALLOW before DEFER to ALLOW before DENY to DEFER, and the reverse of them in the same order. A request that
/// is refused does not run, as after a DENY.
fn gravity(case: &CaseDiff) -> impl Ord + use<> {
    let strength = |verdict: Option<Verdict>| verdict.unwrap_or(Verdict::Deny);
    let (from, to) = (strength(case.from), strength(case.to));
    (case.direction, from.min(to), Reverse(from.max(to)))
}

fn case(case: &CaseDiff) -> ComparedCase {
    let rules = |rules: &[DecidedBy]| names(rules.iter().map(|rule| &rule.rule));
    ComparedCase {
        case: shown(&case.case),
        pack: shown(&case.pack),
        goal: shown(&case.goal),
        from: case.from,
        to: case.to,
        direction: direction(case.direction),
        old_rules: rules(&case.old_rules),
        new_rules: rules(&case.new_rules),
    }
}

fn rule(rule: &RuleDiff) -> ComparedRule {
    let annotations = rule.annotations.iter().map(|annotation| annotation.name);
    let condition = rule.condition.as_ref().map(|_| "condition");
    ComparedRule {
        rule: shown(&rule.rule),
        change: kind(rule.change),
        direction: direction(rule.direction),
        message: shown(&rule.message),
        file: shown(&rule.file),
        line: rule.line as u64,
        differs: annotations.chain(condition).map(str::to_owned).collect(),
    }
}

fn word(word: &WordDiff) -> ComparedWord {
    ComparedWord {
        file: word.file.to_owned(),
        word: shown(&word.word),
        change: kind(word.change),
        direction: direction(word.direction),
        from: names(&word.from),
        to: names(&word.to),
    }
}

fn value(value: &ValueDiff) -> ComparedValue {
    let short = |value: &Option<Value>| {
        let text = value.as_ref()?.to_string();
        // A long one is the beginning of its text, which may be no JSON.
        if text.chars().nth(MAX_TEXT).is_none() { value.clone() } else { Some(Value::String(shown(&text))) }
    };
    ComparedValue {
        file: value.file.to_owned(),
        name: shown(&value.name),
        direction: direction(value.direction),
        from: short(&value.from),
        to: short(&value.to),
    }
}

fn weakening(Weakening { pack, weakened }: &Weakening) -> ComparedWeakening {
    let Weakened { reason, without, replaces, words, numbers } = weakened;
    let all = without.iter().chain(replaces).chain(words).chain(numbers);
    ComparedWeakening { pack: shown(pack), reason: shown(reason), names: names(all) }
}

fn count(Count { cases, entries }: Count) -> DifferenceCount {
    DifferenceCount { cases: cases as u64, entries: entries as u64 }
}

fn direction(direction: Direction) -> DifferenceDirection {
    match direction {
        Direction::Looser => DifferenceDirection::Looser,
        Direction::Unclear => DifferenceDirection::Unclear,
        Direction::Stricter => DifferenceDirection::Stricter,
        Direction::Neutral => DifferenceDirection::Neutral,
    }
}

fn kind(change: Change) -> DifferenceKind {
    match change {
        Change::Added => DifferenceKind::Added,
        Change::Removed => DifferenceKind::Removed,
        Change::Changed => DifferenceKind::Changed,
        Change::Moved => DifferenceKind::Moved,
    }
}

fn names<'a>(all: impl IntoIterator<Item = &'a String>) -> Vec<String> {
    all.into_iter().take(MAX_NAMES).map(|name| shown(name)).collect()
}

fn shown(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(case: &str, from: Option<Verdict>, to: Option<Verdict>, direction: Direction) -> CaseDiff {
        CaseDiff {
            case: case.to_owned(),
            pack: "acme@1.0.0".to_owned(),
            goal: "g".to_owned(),
            from,
            to,
            direction,
            old_rules: Vec::new(),
            new_rules: Vec::new(),
        }
    }

    #[test]
    fn the_gravest_cases_come_first_and_a_refused_request_counts_as_denied() {
        use Verdict::{Allow, Defer, Deny};
        let mut cases = [
            changed("5", Some(Allow), Some(Deny), Direction::Stricter),
            changed("4", Some(Deny), Some(Defer), Direction::Looser),
            changed("3", Some(Defer), Some(Allow), Direction::Looser),
            changed("1", Some(Deny), Some(Allow), Direction::Looser),
            changed("2", None, Some(Allow), Direction::Looser),
            changed("6", None, Some(Deny), Direction::Neutral),
        ];
        cases.sort_by_key(gravity);
        assert_eq!(cases.each_ref().map(|case| case.case.as_str()), ["1", "2", "3", "4", "5", "6"]);
    }

    #[test]
    fn long_texts_are_cut_and_short_values_keep_their_type() {
        let text = "ä".repeat(MAX_TEXT);
        assert_eq!(shown(&text), text);
        assert_eq!(shown(&format!("{text}b")), format!("{text}…"));
        let of = |from: Value| {
            let differs = ValueDiff {
                file: "pack.toml",
                name: "n".to_owned(),
                from: Some(from),
                to: None,
                direction: Direction::Looser,
            };
            value(&differs).from.unwrap()
        };
        assert_eq!(of(serde_json::json!({"a": 1})), serde_json::json!({"a": 1}));
        assert!(of(Value::String(format!("{text}b"))).as_str().unwrap().ends_with('…'));
        assert_eq!(names(&vec!["n".to_owned(); MAX_NAMES + 1]).len(), MAX_NAMES);
    }

    #[test]
    fn the_last_comparisons_are_kept_by_their_packs() {
        let (baseline, other) = (Pack::embedded().unwrap(), Pack::template("money-movement").unwrap().unwrap());
        let comparer = Comparer::new(Arc::clone(&baseline));
        let comparison = compared(&PackDiff::between(&baseline, &baseline).unwrap());
        let kept = |old: &Arc<Pack>, new: &Arc<Pack>| {
            comparer.keep(Kept { old: Arc::clone(old), new: Arc::clone(new), comparison: comparison.clone() });
        };
        kept(&baseline, &other);
        assert_eq!(comparer.known(&baseline, &other), Some(comparison.clone()));
        assert_eq!(comparer.known(&other, &baseline), None, "the other way round");
        (0..MAX_KEPT).for_each(|_| kept(&other, &baseline));
        assert_eq!(comparer.known(&baseline, &other), None, "the oldest leaves");
    }

    #[tokio::test]
    async fn a_comparison_that_takes_too_long_is_none() {
        let baseline = Pack::embedded().unwrap();
        let comparer = Comparer::new(Arc::clone(&baseline));
        let work = {
            let own = Arc::clone(&comparer.own);
            move || PackDiff::between(&own, &baseline).map(|diff| compared(&diff).flips).unwrap()
        };
        assert_eq!(comparer.turns.run(Instant::now(), work.clone()).await, Err(NotDone::TooLong));
        // It is done to its end, and the next one has its turn then.
        let later = Instant::now() + std::time::Duration::from_secs(60);
        assert_eq!(comparer.turns.run(later, work).await, Ok(0));
    }
}
