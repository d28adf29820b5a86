//! Compiled rules find what Cedar finds: generated packs of a handful of rules judge generated requests in both ways, a
//! hundred thousand times.
//!
//! The rules are of every form that is compiled, with facts that may be absent, numbers that overflow and operands of
//! wrong types, because a rule that fails must fail in both. `STAGE0_SEED` repeats a failure, and
//! `STAGE0_COMPARED_REQUESTS` sets how many there are.

use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use stage0_policy::Pack;
use stage0_policy::test_support::{LooseRules, Whole};
use texts::RuleTexts;

use super::generate::plan;
use super::{Asked, Subject, every_fact, seed, seed_bytes};

mod texts;

/// Requests that are judged, unless the environment says otherwise. Each generated one is judged by some packs.
const REQUESTS: usize = 100_000;
const PACKS_OF_A_REQUEST: usize = 5;
const REQUESTS_OF_A_PACK: usize = 200;
const RULES_OF_A_PACK: usize = 6;

/// How often what happened.
#[derive(Debug, Default)]
struct Counts {
    judged: usize,
    rules: usize,
    compiled: usize,
    satisfied: usize,
    failed: usize,
}

fn requests() -> usize {
    let given = std::env::var("STAGE0_COMPARED_REQUESTS").ok();
    given.map_or(REQUESTS, |given| given.parse().expect("STAGE0_COMPARED_REQUESTS is a number"))
}

#[test]
fn compiled_rules_find_what_cedar_finds_by_random_rules() {
    let pack = Pack::from_dir(&every_fact()).unwrap_or_else(|error| panic!("{:#?}", error.faults));
    let (seed, subject) = (seed(), Subject::new(pack, &every_fact()));
    let mut runner =
        TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &seed_bytes(seed)));
    let (mut texts, plans, mut counts) = (RuleTexts::new(seed), plan(), Counts::default());
    while counts.judged < requests() {
        let packs: Vec<Vec<String>> =
            (0..PACKS_OF_A_REQUEST).map(|_| (0..RULES_OF_A_PACK).map(|_| texts.rule()).collect()).collect();
        let packs: Vec<(LooseRules, &Vec<String>)> =
            packs.iter().map(|texts| (LooseRules::parse(texts), texts)).collect();
        counts.rules += PACKS_OF_A_REQUEST * RULES_OF_A_PACK;
        counts.compiled += packs.iter().map(|(rules, _)| rules.compiled()).sum::<usize>();
        let mut requests = 0;
        while requests < REQUESTS_OF_A_PACK {
            let draft = subject.source.draft(&plans.new_tree(&mut runner).unwrap().current());
            let Some(asked) = Asked::of(&draft) else { continue };
            let Ok(whole) = Whole::read(&subject.engine, asked.check()) else { continue };
            for (rules, texts) in &packs {
                let (by_cedar, compiled) = (rules.by_cedar(&whole), rules.by_themselves(&whole));
                assert_eq!(compiled, by_cedar, "STAGE0_SEED={seed}: {texts:#?}\n{:#?}", whole.facts());
                counts.satisfied += by_cedar.satisfied.len();
                counts.failed += by_cedar.failed.len();
                counts.judged += 1;
            }
            requests += 1;
        }
    }
    println!("STAGE0_SEED={seed}: {counts:?}");
    let judgements = counts.compiled * REQUESTS_OF_A_PACK;
    assert!(counts.compiled * 10 > counts.rules * 8, "few rules are compiled: {counts:?}");
    for seen in [counts.satisfied, counts.failed] {
        assert!(seen * 20 > judgements, "the rules prove little: {counts:?}");
    }
}
