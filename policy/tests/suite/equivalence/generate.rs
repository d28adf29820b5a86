//! Requests that satisfy rules often: a case of the pack, with a few changes.
//!
//! A rule is drawn first, then a case that satisfies it, so that rules with one case come as often as those with many.
//! Changes take members and words from other cases and from the pack's vocabulary, move numbers across limits, and
//! change who asks, what the run did, and when.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Map, Value, json};

const NOON: i64 = 1_773_662_400;
const MAX_CHANGES: usize = 4;
const SECRET: &str = "password=hunter22";

/// A request with all that decides it, before it is parsed.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    pub(super) body: Value,
    pub(super) evaluated_at: i64,
    /// As a case has it; null for a gateway that does not tell who asks.
    pub(super) caller: Value,
    /// As a case has it; null where the state of the run is not told.
    pub(super) run: Value,
    /// The approval that the server holds.
    pub(super) held: Held,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    None,
    Approved,
    Denied,
}

/// One change of a draft. An index chooses among what the draft or the other cases have.
#[derive(Debug, Clone)]
enum Change {
    /// Takes a member of the request from another case.
    Borrow(&'static str, Index),
    /// Takes a member of `context` from another case.
    BorrowContext(Index, Index),
    DropContext(Index),
    /// Gives a member of `context` a value that another case has, or any other.
    Set(Index, Value),
    /// Moves a number of `context` by so much.
    Move(Index, i64),
    Add(&'static str, Index),
    Remove(&'static str, Index),
    Secret(&'static str),
    Pro,
    At(i64),
    Run(&'static str, Value),
    BorrowRun(Index),
    Caller(&'static str, Value),
    BorrowCaller(Index),
    Held(Held),
    Untold(&'static str),
}

#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// Begins with a rule that the pack does not inherit.
    is_own: bool,
    rule: Index,
    case: Index,
    changes: Vec<Change>,
}

/// The cases of a pack, and the words that its requests may have.
pub(super) struct Source {
    pub(super) cases: Vec<Draft>,
    /// For each rule: the cases that satisfy it.
    pub(super) by_rule: BTreeMap<String, Vec<usize>>,
    /// The rules that are not inherited.
    pub(super) own: BTreeSet<String>,
    members: Vec<String>,
    words: Vec<String>,
}

impl Source {
    /// The cases and words of the packs in these folders.
    pub(super) fn read(folders: &[&Path]) -> Self {
        let (mut cases, mut words) = (Vec::new(), BTreeSet::new());
        for file in folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap()) {
            let path = file.unwrap().path();
            let (name, text) = (path.file_name().unwrap().to_str().unwrap(), fs::read_to_string(&path).unwrap());
            if name.ends_with(".json") {
                cases.extend(serde_json::from_str::<Vec<Value>>(&text).unwrap().iter().map(draft));
            } else if ["effects.toml", "tools.toml", "vocabulary.toml", "constraints.toml"].contains(&name) {
                collect(&text.parse::<toml::Table>().unwrap().into(), &mut words);
            }
        }
        let lists = ["tools", "side_effects", "constraints"];
        let listed = cases.iter().flat_map(|case| lists.iter().filter_map(|list| case.body[list].as_array())).flatten();
        words.extend(listed.filter_map(Value::as_str).map(str::to_owned));
        let contexts = cases.iter().filter_map(|case| case.body["context"].as_object());
        let members: BTreeSet<String> = contexts.flat_map(Map::keys).cloned().collect();
        Self {
            by_rule: BTreeMap::new(),
            own: BTreeSet::new(),
            members: members.into_iter().collect(),
            words: words.into_iter().collect(),
            cases,
        }
    }

    pub(super) fn draft(&self, plan: &Plan) -> Draft {
        let rules = self.by_rule.iter().filter(|(rule, _)| !plan.is_own || self.own.contains(*rule));
        let cases: Vec<&Vec<usize>> = rules.map(|(_, cases)| cases).collect();
        let cases = cases[plan.rule.index(cases.len())];
        let mut draft = self.cases[cases[plan.case.index(cases.len())]].clone();
        for change in &plan.changes {
            self.change(&mut draft, change);
        }
        draft
    }

    fn change(&self, draft: &mut Draft, change: &Change) {
        let context = |draft: &mut Draft| draft.body["context"].as_object().cloned().unwrap_or_default();
        match change {
            Change::Borrow(member, case) => {
                let other = &case.get(&self.cases).body;
                match other.get(*member) {
                    Some(value) => draft.body[*member] = value.clone(),
                    None => drop(draft.body.as_object_mut().unwrap().remove(*member)),
                }
            }
            Change::BorrowContext(case, member) => {
                let Some(other) = case.get(&self.cases).body["context"].as_object().filter(|c| !c.is_empty()) else {
                    return;
                };
                let names: Vec<String> = other.keys().cloned().collect();
                let name = member.get(&names);
                let mut own = context(draft);
                own.insert(name.clone(), other[name].clone());
                draft.body["context"] = own.into();
            }
            Change::DropContext(member) => {
                let mut own = context(draft);
                let names: Vec<String> = own.keys().cloned().collect();
                if !names.is_empty() {
                    own.remove(member.get(&names));
                    draft.body["context"] = own.into();
                }
            }
            Change::Set(member, value) => {
                let mut own = context(draft);
                own.insert(member.get(&self.members).clone(), value.clone());
                draft.body["context"] = own.into();
            }
            Change::Move(member, by) => {
                let mut own = context(draft);
                let moved = |value: &Value| Some(Value::from(value.as_i64()?.saturating_add(*by)));
                let numbers: Vec<(String, Value)> =
                    own.iter().filter_map(|(name, value)| Some((name.clone(), moved(value)?))).collect();
                if !numbers.is_empty() {
                    let (name, value) = member.get(&numbers).clone();
                    own.insert(name, value);
                    draft.body["context"] = own.into();
                }
            }
            Change::Add(list, word) => {
                let mut words = draft.body[*list].as_array().cloned().unwrap_or_default();
                words.push(word.get(&self.words).as_str().into());
                draft.body[*list] = words.into();
            }
            Change::Remove(list, index) => {
                let mut words = draft.body[*list].as_array().cloned().unwrap_or_default();
                if !words.is_empty() {
                    words.remove(index.index(words.len()));
                    draft.body[*list] = words.into();
                }
            }
            Change::Secret("goal") => {
                let goal = draft.body["goal"].as_str().unwrap_or_default();
                draft.body["goal"] = format!("{goal} {SECRET}").into();
            }
            Change::Secret(member) => {
                let mut own = context(draft);
                own.insert((*member).to_owned(), SECRET.into());
                draft.body["context"] = own.into();
            }
            Change::Pro => draft.body["pro"] = true.into(),
            Change::At(at) => draft.evaluated_at = *at,
            Change::Run(member, value) => {
                if !draft.run.is_object() {
                    draft.run = json!({});
                }
                draft.run[*member] = value.clone();
                let mut own = context(draft);
                own.entry("run_id").or_insert_with(|| "run-1".into());
                draft.body["context"] = own.into();
            }
            Change::BorrowRun(case) => draft.run = case.get(&self.cases).run.clone(),
            Change::Caller(member, value) => {
                if !draft.caller.is_object() {
                    draft.caller = json!({});
                }
                draft.caller[*member] = value.clone();
            }
            Change::BorrowCaller(case) => draft.caller = case.get(&self.cases).caller.clone(),
            Change::Held(held) => draft.held = *held,
            Change::Untold("run") => draft.run = Value::Null,
            Change::Untold("caller") => draft.caller = Value::Null,
            Change::Untold(member) => {
                if let Some(caller) = draft.caller.as_object_mut() {
                    caller.insert((*member).to_owned(), Value::Null);
                }
            }
        }
    }
}

fn draft(case: &Value) -> Draft {
    let object = |name: &str| case.get(name).cloned().unwrap_or_else(|| json!({}));
    Draft {
        body: case["request"].clone(),
        evaluated_at: case["evaluated_at"].as_i64().unwrap_or(NOON),
        caller: object("caller"),
        run: object("run"),
        held: Held::None,
    }
}

/// The words of every list.
fn collect(value: &toml::Value, words: &mut BTreeSet<String>) {
    match value {
        toml::Value::Array(items) => words.extend(items.iter().filter_map(toml::Value::as_str).map(str::to_owned)),
        toml::Value::Table(members) => members.values().for_each(|member| collect(member, words)),
        _ => {}
    }
}

pub(super) fn plan() -> impl Strategy<Value = Plan> {
    let changes = prop::collection::vec(change(), 0..=MAX_CHANGES);
    (prop::bool::weighted(0.7), any::<Index>(), any::<Index>(), changes)
        .prop_map(|(is_own, rule, case, changes)| Plan { is_own, rule, case, changes })
}

fn change() -> impl Strategy<Value = Change> {
    const MEMBERS: [&str; 6] = ["tools", "side_effects", "constraints", "context", "environment", "success_criteria"];
    const LISTS: [&str; 3] = ["tools", "side_effects", "constraints"];
    let index = any::<Index>;
    prop_oneof![
        4 => (select(&MEMBERS[..]), index()).prop_map(|(member, case)| Change::Borrow(member, case)),
        4 => (index(), index()).prop_map(|(case, member)| Change::BorrowContext(case, member)),
        2 => index().prop_map(Change::DropContext),
        3 => (index(), value()).prop_map(|(member, value)| Change::Set(member, value)),
        3 => (index(), select(vec![-100, -2, -1, 1, 2, 5, 1_000])).prop_map(|(member, by)| Change::Move(member, by)),
        3 => (select(&LISTS[..]), index()).prop_map(|(list, word)| Change::Add(list, word)),
        2 => (select(&LISTS[..]), index()).prop_map(|(list, word)| Change::Remove(list, word)),
        1 => select(vec!["goal", "note", "resource_scope"]).prop_map(Change::Secret),
        1 => Just(Change::Pro),
        2 => at().prop_map(Change::At),
        4 => run(),
        1 => index().prop_map(Change::BorrowRun),
        2 => caller(),
        1 => index().prop_map(Change::BorrowCaller),
        1 => select(vec![Held::Approved, Held::Denied]).prop_map(Change::Held),
        1 => select(vec!["run", "caller", "groups", "key_name"]).prop_map(Change::Untold),
    ]
}

/// Numbers around limits, in each form that a client may send, and words in other spellings.
fn value() -> impl Strategy<Value = Value> {
    select(vec![
        json!(null),
        json!(true),
        json!(false),
        json!(-1),
        json!(0),
        json!(1),
        json!(2),
        json!(5.0),
        json!(50),
        json!(51),
        json!(500),
        json!(501),
        json!(10_000),
        json!(10_001),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(0.1),
        json!(1_000.000_1),
        json!("0.00005"),
        json!("1000.00"),
        json!("10000.0001"),
        json!("-0.5"),
        json!(""),
        json!("production"),
        json!("d\u{435}ploy"),
        json!("a/../b"),
        json!([]),
        json!(["a", "b"]),
        json!(["record/7", "record/8"]),
        json!(["production", "staging"]),
        json!([1]),
        json!({"a": 1}),
        json!("2026-03-16T11:59:00Z"),
    ])
}

/// The edges of windows and freezes, and any second of some years.
fn at() -> impl Strategy<Value = i64> {
    let days = 86_400;
    prop_oneof![
        NOON - 400 * days..NOON + 1_500 * days,
        select(vec![NOON - 5 * 3_600, NOON - 2 * days, NOON + 5 * 3_600 - 1, NOON + 5 * 3_600, 1_893_456_000]),
    ]
}

fn run() -> impl Strategy<Value = Change> {
    let count = select(vec![0, 1, 2, 3, 4, 5, 9, 10, 19, 20, 99, 100]);
    let tool =
        select(vec!["send_email", "delete_record", "read_record", "send_payment", "bash", "sh\u{435}ll", "shell"]);
    prop_oneof![
        3 => (tool.clone(), count.clone()).prop_map(|(tool, calls)| ("calls", json!({tool: calls}))),
        1 => count.clone().prop_map(|count| ("allowed", json!(count))),
        1 => count.clone().prop_map(|count| ("denied", json!(count))),
        1 => count.prop_map(|count| ("deferred", json!(count))),
        1 => select(vec!["ALLOW", "DENY", "DEFER"]).prop_map(|verdict| ("last_verdict", json!(verdict))),
        1 => select(vec![0.0, 1.5, 4.99, 5.0, 49.0, 50.0]).prop_map(|usd| ("cost_usd", json!(usd))),
        1 => select(vec![0, 59, 3_600, 3_601]).prop_map(|seconds| ("seconds", json!(seconds))),
        1 => select(vec![0, 600, 601]).prop_map(|seconds| ("seconds_since_allowed", json!(seconds))),
        1 => any::<bool>().prop_map(|approved| ("approved", json!(approved))),
        // Under `*`, for every target that the check names.
        2 => tool.prop_map(|tool| ("target_tools", json!({"*": [tool]}))),
    ]
    .prop_map(|(member, value)| Change::Run(member, value))
}

fn caller() -> impl Strategy<Value = Change> {
    let word = |member: &'static str, words: Vec<&'static str>| select(words).prop_map(move |w| (member, json!(w)));
    prop_oneof![
        word("account", vec!["acc", "acc_closed"]),
        word("key_id", vec!["k1", "leaked"]),
        word("key_name", vec!["", "bot-1", "deployer", "sre"]),
        word("workload", vec!["w1", "w2", "w3"]),
        word("member", vec!["", "mem_1"]),
        word("owner", vec!["", "mem_2"]),
        select(vec![json!([]), json!(["interns"]), json!(["release-managers", "ops"])]).prop_map(|g| ("groups", g)),
    ]
    .prop_map(|(member, value)| Change::Caller(member, value))
}
