//! Compiled rules find what Cedar finds: a hundred thousand generated requests, each judged by a handful of generated
//! rules in both ways.
//!
//! The rules are of every form that is compiled, with facts that may be absent, numbers that overflow and operands of
//! wrong types, because a rule that fails must fail in both. `STAGE0_SEED` repeats a failure, and
//! `STAGE0_COMPARED_REQUESTS` sets how many requests there are.

use std::cell::RefCell;

use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use stage0_policy::Pack;
use stage0_policy::test_support::{LooseRules, Whole};
use texts::RuleTexts;

use super::generate::plan;
use super::{Asked, Subject, every_fact, seed, seed_bytes};

mod texts;

/// Requests that are judged, unless the environment says otherwise.
const REQUESTS: u32 = 100_000;
/// Generated packs are small, and there are many.
const RULES: usize = 6;
const REQUESTS_OF_A_PACK: u32 = 200;

/// How often what happened.
#[derive(Debug, Default)]
struct Counts {
    rules: usize,
    compiled: usize,
    satisfied: usize,
    failed: usize,
}

fn requests() -> u32 {
    let given = std::env::var("STAGE0_COMPARED_REQUESTS").ok();
    given.map_or(REQUESTS, |given| given.parse().expect("STAGE0_COMPARED_REQUESTS is a number"))
}

#[test]
fn compiled_rules_find_what_cedar_finds_by_random_rules() {
    let pack = Pack::from_dir(&every_fact()).unwrap_or_else(|error| panic!("{:#?}", error.faults));
    let (seed, subject) = (seed(), Subject::new(pack, &every_fact()));
    let mut runner =
        TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &seed_bytes(seed)));
    let (rule_texts, plans) = (RefCell::new(RuleTexts::new(seed)), plan());
    let (mut judged, mut counts) = (0, Counts::default());
    while judged < requests() {
        let texts: Vec<String> = (0..RULES).map(|_| rule_texts.borrow_mut().rule()).collect();
        let rules = LooseRules::parse(&texts);
        counts.rules += RULES;
        counts.compiled += rules.compiled();
        let mut of_this_pack = 0;
        while of_this_pack < REQUESTS_OF_A_PACK {
            let draft = subject.source.draft(&plans.new_tree(&mut runner).unwrap().current());
            let Some(asked) = Asked::of(&draft) else { continue };
            let Ok(whole) = Whole::read(&subject.engine, asked.check()) else { continue };
            let (by_cedar, compiled) = (rules.by_cedar(&whole), rules.by_themselves(&whole));
            assert_eq!(compiled, by_cedar, "STAGE0_SEED={seed}: {texts:#?}\n{:#?}", whole.facts());
            counts.satisfied += by_cedar.satisfied.len();
            counts.failed += by_cedar.failed.len();
            of_this_pack += 1;
        }
        judged += of_this_pack;
    }
    println!("{judged} requests, STAGE0_SEED={seed}: {counts:?}");
    let judgements = counts.compiled * REQUESTS_OF_A_PACK as usize;
    assert!(counts.compiled * 10 > counts.rules * 8, "few rules are compiled: {counts:?}");
    for seen in [counts.satisfied, counts.failed] {
        assert!(seen * 20 > judgements, "the rules prove little: {counts:?}");
    }
}
