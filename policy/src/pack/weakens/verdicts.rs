//! The cases of the packs that a pack extends, run against it: no verdict may be milder, except where something that
//! `[weakens]` names explains it.
//!
//! A rule that is left out explains a milder verdict as far as no other rule of the parent asks for more. A word
//! explains the cases whose request contains it, a window those that name it (all, if a rule reads which windows are
//! open), and `pro.denies_from` those with `pro`. Nothing else explains anything: scores and terms of approvals change
//! no verdict.

use std::sync::Arc;

use stage0_contract::{Effect, Verdict, parts};

use crate::engine::Engine;
use crate::files::{Fault, Files, MANIFEST, PackError};
use crate::pack::cases::{self, Case};
use crate::pack::proof::in_time;
use crate::pack::{Pack, Weakened, extends};
use crate::time_limit::TimeLimit;

/// Faults of this kind that are listed.
const MAX_LISTED: usize = 20;

/// Returns a fault for each case whose verdict is milder than the parent's. A refused request is as strict as can be.
pub(in crate::pack) fn compare(
    pack: &Pack,
    engine: &Engine,
    own: &Files,
    limit: TimeLimit,
) -> Result<Vec<Fault>, PackError> {
    let mut faults = Vec::new();
    let Some(parent) = pack.lineage.parent.as_ref() else { return Ok(faults) };
    let line = extends::wanted(own).ok().flatten().map(|extends| extends.line);
    let cases = inherited_cases(parent)?;
    let before = Engine::new(Arc::clone(parent))?;
    for (origin, case) in &cases {
        in_time(limit)?;
        let [strict, verdict] = [&before, engine].map(|engine| case.run(engine).verdict);
        if rank(verdict) >= rank(strict)
            || pack.weakened().is_some_and(|weakened| explains(weakened, case, verdict, &before))
        {
            continue;
        }
        let shown = |verdict: Option<Verdict>| verdict.map_or("a refusal", Verdict::as_str);
        let unless = pack.weakened().map_or("", |_| ", and nothing that `[weakens]` names explains it");
        let message = format!(
            "the case comes to {} here and to {} in `{origin}`: a verdict may only become stricter{unless}",
            shown(verdict),
            shown(strict)
        );
        faults.push(Fault { line, ..Fault::new(MANIFEST, message).rule(&case.id) });
        if faults.len() == MAX_LISTED {
            break;
        }
    }
    Ok(faults)
}

fn rank(verdict: Option<Verdict>) -> u8 {
    verdict.map_or(3, |verdict| verdict as u8)
}

/// Whether something that is named as milder can be why a case comes to this verdict.
fn explains(weakened: &Weakened, case: &Case, verdict: Option<Verdict>, before: &Engine) -> bool {
    let Ok(request) = &case.request else { return false };
    let text = serde_json::to_string(request).unwrap_or_default();
    let text = format!("_{}", parts(&text).join("_"));
    // Also a form of the word: `creating` of `create`.
    let contains = |word: &str| text.contains(format!("_{}", parts(word).join("_")).trim_end_matches(['e', 'y']));
    let reads_windows = before.pack().reads("windows_open");
    let by_number = |number: &String| match number.split_once('.') {
        Some(("windows", window)) => reads_windows || contains(window),
        Some(("pro", _)) => request.pro,
        _ => false,
    };
    if weakened.words.iter().any(|word| contains(word.as_str())) || weakened.numbers.iter().any(by_number) {
        return true;
    }
    let left_out = |id: &String| weakened.without.contains(id) || weakened.replaces.contains(id);
    let Some(trial) = case.trial(before) else { return false };
    if !trial.matched.iter().any(left_out) {
        return false;
    }
    // What the rules that are not left out ask for together.
    let pack = before.pack();
    let kept = trial.matched.iter().filter(|id| !left_out(id)).filter_map(|id| pack.rules.get(id));
    let least = kept.map(|rule| match rule.effect {
        Effect::Deny => Verdict::Deny,
        Effect::Advise if request.pro && rule.severity >= pack.pro.denies_from => Verdict::Deny,
        Effect::Defer => Verdict::Defer,
        Effect::Advise => Verdict::Allow,
    });
    rank(verdict) >= rank(Some(least.max_by_key(|least| rank(Some(*least))).unwrap_or(Verdict::Allow)))
}

/// All cases of a pack and of those that it extends, each with the pack that it is from.
fn inherited_cases(parent: &Pack) -> Result<Vec<(&str, Case)>, PackError> {
    let mut all = Vec::new();
    for pack in parent.ancestors() {
        if pack.lineage.files.cases().next().is_none() {
            continue;
        }
        let mut faults = Vec::new();
        let cases = cases::parse(&pack.lineage.files, &mut faults).filter(|_| faults.is_empty());
        // They were parsed when the pack was loaded.
        let cases = cases.ok_or(PackError { faults })?;
        all.extend(cases.into_iter().map(|case| (pack.label(), case)));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::CASES;

    fn case(request: &str) -> Case {
        let text = format!(
            r#"[{{"id": "c", "expect": ["DEFER", "DENY"], "request": {{"goal": "Deploy the hotfix of May",
            "success_criteria": ["x"], "environment": "staging", "context": {{}}, {request}}}}}]"#
        );
        cases::parse(&Files::of([(CASES, text.as_str())]), &mut Vec::new()).unwrap().remove(0)
    }

    fn weakened(without: &[&str], words: &[&str], numbers: &[&str]) -> Weakened {
        let [without, words, numbers] =
            [without, words, numbers].map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        Weakened { reason: "r".to_owned(), without, replaces: Vec::new(), words, numbers }
    }

    #[test]
    fn only_what_can_be_why_explains_a_milder_verdict() {
        let before = Engine::new(Pack::embedded().unwrap()).unwrap();
        let deploy = case(r#""side_effects": ["deploy"], "constraints": ["approval_required"]"#);
        assert_eq!(deploy.run(&before).verdict, Some(Verdict::Defer));
        let deferring = ["approval.required", "approval.high_effect"];
        let mut both = weakened(&deferring[..1], &[], &[]);
        assert!(!explains(&both, &deploy, Some(Verdict::Allow), &before), "the other rule defers as well");
        both.replaces.push(deferring[1].to_owned());
        for (weakened, explained) in [
            (both, true),
            (weakened(&["loop.cost"], &[], &[]), false),
            (weakened(&[], &["deploy"], &[]), true),
            (weakened(&[], &["hotfixe"], &[]), true),
            (weakened(&[], &["refund", "ploy", "deployer"], &[]), false),
            (weakened(&[], &[], &["scores.base.none", "approvals.within", "pro.denies_from", "windows.noon"]), false),
        ] {
            assert_eq!(explains(&weakened, &deploy, Some(Verdict::Allow), &before), explained, "{weakened:?}");
        }
        let pro = case(r#""side_effects": ["deploy"], "pro": true, "constraints": ["allowed_change_window: noon"]"#);
        for number in ["pro.denies_from", "windows.noon"] {
            assert!(explains(&weakened(&[], &[], &[number]), &pro, Some(Verdict::Allow), &before), "{number}");
        }
    }
}
