//! The targets, a test for each so that they run beside each other, and the proof that a driven target can fail.

use std::collections::BTreeSet;
use std::fs;

use stage0_fuzz::{TARGETS, Target};

use super::changes::Material;
use super::driver::{folder, fuzz, inputs, judge, run, words};

/// An input is read by a person when it fails.
const MAX_CORPUS_BYTES: usize = 16 << 10;

#[test]
fn every_input_of_every_corpus_holds_and_some_are_taken_and_some_are_not() {
    for target in &TARGETS {
        let mut taken = BTreeSet::new();
        for (file, input) in inputs(target.name) {
            assert!(input.len() <= MAX_CORPUS_BYTES, "corpus/{}/{file} has {} bytes", target.name, input.len());
            let is_taken = judge(target, &input).unwrap_or_else(|why| panic!("corpus/{}/{file}: {why}", target.name));
            taken.insert(is_taken);
        }
        assert_eq!(taken.len(), 2, "corpus/{}: all are {}", target.name, taken.contains(&true));
    }
}

#[test]
fn every_corpus_and_every_dictionary_is_of_a_target() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
    let corpora: BTreeSet<String> = fs::read_dir(folder()).unwrap().map(|entry| name(entry.unwrap())).collect();
    assert_eq!(corpora, targets);
    let dictionaries = fs::read_dir(folder().join("../dictionaries")).unwrap();
    let dictionaries: BTreeSet<String> = dictionaries.map(|entry| name(entry.unwrap()).replace(".dict", "")).collect();
    assert_eq!(dictionaries, targets);
    for target in &targets {
        assert!(words(target).len() >= 10, "{target}");
    }
}

/// A driver that changed nothing would pass every other test.
#[test]
fn an_input_that_no_corpus_has_is_found_and_made_small() {
    let has = |input: &[u8]| input.windows(2).any(|pair| pair == b"bb");
    let target = Target::new("needle", |input| {
        assert!(!input.windows(2).any(|pair| pair == b"bb"), "found");
        true
    });
    let material = Material { inputs: vec![b"a".to_vec(), b"c".to_vec()], words: vec![b"b".to_vec()] };
    let failure = run(&target, &material, 1, 5_000).expect_err("it is found");
    assert!(failure.seed == 1 && failure.why.contains("found"), "{failure:?}");
    assert!(has(&failure.input) && failure.input.len() <= 8, "{failure:?}");
    assert!(run(&Target::new("nothing", |input| input.is_empty()), &material, 1, 200).is_ok());
}

#[test]
fn an_input_for_which_too_much_is_allocated_fails() {
    let target = Target::new("large", |input| vec![0_u8; input.len() << 20].len() > 1);
    assert!(judge(&target, &[0; 4]).is_ok());
    let refused = judge(&target, &[0; 100]).expect_err("a hundred megabytes for a hundred bytes");
    assert!(refused.contains("bytes were allocated"), "{refused}");
}

#[test]
fn strict_json_is_what_serde_json_reads_or_is_refused_for_a_reason() {
    fuzz("strict_json");
}

#[test]
fn a_constraint_is_written_in_one_form_and_read_as_it_stands() {
    fuzz("constraint");
}

#[test]
fn normalising_a_word_twice_is_normalising_it_once() {
    fuzz("word");
}

#[test]
fn an_api_key_that_is_taken_is_one_that_the_formatter_writes() {
    fuzz("api_key");
}

#[test]
fn an_identifier_that_is_read_is_written_as_the_same() {
    fuzz("identifier");
}

#[test]
fn a_webhook_url_leads_to_no_address_that_is_not_global() {
    fuzz("webhook_url");
}

#[test]
fn a_check_that_is_taken_keeps_its_bounds_and_a_refusal_quotes_nothing() {
    fuzz("check_request");
}

#[test]
fn a_proxy_header_is_read_to_its_own_end_wherever_it_is_split() {
    fuzz("proxy_header");
}

#[test]
fn a_client_does_not_choose_the_address_that_it_is_counted_under() {
    fuzz("client_address");
}

#[test]
fn a_policy_pack_loads_as_one_version_or_names_its_faults() {
    fuzz("policy_pack");
}

#[test]
fn a_hook_event_that_cannot_be_read_is_denied_in_the_agents_form() {
    fuzz("hook_event");
}

#[test]
fn a_shell_command_that_cannot_be_read_is_unknown() {
    fuzz("shell_command");
}

#[test]
fn an_mcp_message_that_is_not_understood_is_not_passed_on_as_another_one() {
    fuzz("mcp_message");
}

#[test]
fn a_stream_of_an_mcp_server_is_the_same_wherever_it_is_split() {
    fuzz("mcp_stream");
}

#[test]
fn no_line_stops_the_verification_of_a_log() {
    fuzz("decision_log");
}

#[test]
fn only_a_complete_recorded_allow_lets_a_caller_act() {
    fuzz("check_answer");
}

#[test]
fn a_header_of_a_message_is_written_as_it_was_read() {
    fuzz("message_header");
}
