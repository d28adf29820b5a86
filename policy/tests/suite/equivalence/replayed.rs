//! Facts that were recorded with a decision come to the same decision again: for the requests of the generator, under
//! the pack that decided them.

use std::cell::RefCell;

use stage0_contract::{KeptFacts, ReplayGap, Replayed};
use stage0_policy::{Answer, Pack, TimeLimit, deciding_issue};

use super::{Asked, Check, Draft, Subject, baseline, every_fact, policy_folder, seed};

const BASELINE: u32 = 1_000;
const EACH_TEMPLATE: u32 = 300;
const EVERY_FACT: u32 = 1_000;

/// What became of the generated requests.
#[derive(Debug, Default)]
struct Fates {
    same: u32,
    with_secret: u32,
    /// A fact that the rules name was not told, or is not kept.
    unread: u32,
    /// Of the largest facts as JSON.
    bytes: usize,
}

impl Subject {
    /// Decides a draft with and without recorded facts, and replays what was recorded.
    fn replay(&self, draft: &Draft, fates: &RefCell<Fates>) -> Option<Result<(), String>> {
        let mut asked = Asked::of(draft)?;
        asked.know_targets(&self.engine, &draft.run["target_tools"]).ok()?;
        let answer = |asked: &Asked| -> Option<Answer> {
            let Check { request, snapshot, held } = asked.check();
            self.engine.answer(request, snapshot, held, TimeLimit::NONE).ok()
        };
        let plain = answer(&asked)?;
        asked.request.asker.as_mut()?.rules.record_facts = true;
        let mut kept = answer(&asked).expect("what is decided without is decided with");
        let facts = kept.evaluation.recordable.as_mut().unwrap().facts.take();
        let shown = |answer: &Answer| format!("{:#?} {:#?} {:#?}", answer.evaluation, answer.run, answer.terms);
        if shown(&plain) != shown(&kept) {
            return Some(Err(format!("decided as\n{}\nand with facts\n{}", shown(&plain), shown(&kept))));
        }
        let Some(facts) = facts else {
            fates.borrow_mut().with_secret += 1;
            return Some(if plain.run.has_secrets { Ok(()) } else { Err("nothing is kept".to_owned()) });
        };
        let json = serde_json::to_string(&facts).unwrap();
        let read: KeptFacts = serde_json::from_str(&json).unwrap();
        let most = fates.borrow().bytes.max(json.len());
        fates.borrow_mut().bytes = most;
        let decision = &plain.evaluation.decision;
        let (code, rule) = deciding_issue(decision).map(|issue| (issue.code.clone(), issue.rule.clone())).unzip();
        let expected = Replayed::Decided { verdict: decision.verdict, code, rule };
        Some(match self.engine.replay(&read) {
            replayed if replayed == expected => {
                fates.borrow_mut().same += 1;
                Ok(())
            }
            Replayed::Not(ReplayGap::Fact) if !read.unread.is_empty() => {
                fates.borrow_mut().unread += 1;
                Ok(())
            }
            replayed => Err(format!("{decision:#?}\nis {expected:?},\nand replays as {replayed:?} from\n{json}")),
        })
    }

    fn prove_replay(&self, name: &str, requests: u32) {
        let (seed, fates) = (seed(), RefCell::default());
        let outcome = self.for_all(requests, seed, |draft| self.replay(draft, &fates));
        outcome.unwrap_or_else(|difference| panic!("{name}, STAGE0_SEED={seed}: {difference}"));
        let fates = fates.into_inner();
        println!("{name}: {fates:?}");
        assert!(fates.same > requests / 3, "{name}, STAGE0_SEED={seed}: {fates:?}");
    }
}

#[test]
fn recorded_facts_come_to_the_same_decision_by_the_baseline() {
    Subject::new(Pack::embedded().unwrap(), &baseline()).prove_replay("baseline", BASELINE);
}

#[test]
fn recorded_facts_come_to_the_same_decision_by_every_template() {
    for name in Pack::templates() {
        let pack = Pack::template(name).unwrap().unwrap();
        Subject::new(pack, &policy_folder(name)).prove_replay(name, EACH_TEMPLATE);
    }
}

#[test]
fn recorded_facts_come_to_the_same_decision_by_rules_about_every_fact() {
    let pack = Pack::from_dir(&every_fact()).unwrap_or_else(|error| panic!("{:#?}", error.faults));
    Subject::new(pack, &every_fact()).prove_replay("every-fact", EVERY_FACT);
}
