//! What is never allowed is surely denied: for questions made of the requests of the generator, and calls that have all
//! of the question and anything else.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use serde_json::{Map, Value, json};
use stage0_contract::Verdict;
use stage0_policy::{Pack, TimeLimit};

use super::generate::Held;
use super::{Asked, Check, Draft, Subject, baseline, every_fact, policy_folder, seed};

const BASELINE: u32 = 300;
const EACH_TEMPLATE: u32 = 60;
const EVERY_FACT: u32 = 300;
/// Questions that are made of one request, each with other parts of it.
const QUESTIONS: u64 = 4;
/// Other requests whose open parts a call is given.
const OTHERS: usize = 12;
const ENVIRONMENTS: [&str; 2] = ["environment", "target_environment"];
const CURRENT_TOOL: &str = "current_tool";

/// What was asked, and what became of the calls.
#[derive(Debug, Default)]
struct Counts {
    asked: u32,
    never: u32,
    denied: u32,
    refused: u32,
    /// The requests before this one.
    others: VecDeque<Draft>,
}

/// Chances that are the same for the same request.
struct Chance(u64);

impl Chance {
    fn of(draft: &Draft, question: u64) -> Self {
        let mut hasher = DefaultHasher::new();
        (draft.body.to_string(), question).hash(&mut hasher);
        Self(hasher.finish() | 1)
    }

    fn is_one_in(&mut self, of: u64) -> bool {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.is_multiple_of(of)
    }
}

fn members(body: &Value) -> Map<String, Value> {
    body["context"].as_object().cloned().unwrap_or_default()
}

fn texts(body: &Value, list: &str) -> Vec<Value> {
    body[list].as_array().cloned().unwrap_or_default()
}

/// A part of a request, as a question about its first tool.
fn question(draft: &Draft, chance: &mut Chance) -> Draft {
    let tool = texts(&draft.body, "tools").into_iter().next().unwrap_or_else(|| "read_record".into());
    let names_environment = !chance.is_one_in(3);
    let mut context = members(&draft.body);
    context.retain(|name, _| match name.as_str() {
        name if ENVIRONMENTS.contains(&name) => names_environment,
        CURRENT_TOOL => chance.is_one_in(8),
        _ => !chance.is_one_in(2),
    });
    let mut constraints = texts(&draft.body, "constraints");
    constraints.retain(|_| !chance.is_one_in(2));
    let mut body = json!({"goal": "anything at all", "tools": [tool], "constraints": constraints,
        "side_effects": texts(&draft.body, "side_effects")});
    if let Some(environment) = draft.body.get("environment").filter(|_| names_environment) {
        body["environment"] = environment.clone();
    }
    if !context.is_empty() {
        body["context"] = context.into();
    }
    Draft { body, run: Value::Null, held: Held::None, ..draft.clone() }
}

/// Whether a question names an environment.
fn names_environment(question: &Draft) -> bool {
    let context = members(&question.body);
    let named = ENVIRONMENTS.iter().filter_map(|name| context.get(*name)).chain(question.body.get("environment"));
    named.filter_map(Value::as_str).any(|name| !name.trim().is_empty())
}

/// A call of the question, with what is open as another request has it.
fn call(question: &Draft, other: &Draft, chance: &mut Chance) -> Draft {
    let mut body = other.body.clone();
    let is_settled = names_environment(question);
    let mut context = members(&other.body);
    context.retain(|name, _| !(name == CURRENT_TOOL || is_settled && ENVIRONMENTS.contains(&name.as_str())));
    if chance.is_one_in(4) {
        context.insert(CURRENT_TOOL.to_owned(), question.body["tools"][0].clone());
    }
    context.extend(members(&question.body));
    body["tools"] = question.body["tools"].clone();
    let mut constraints = texts(&other.body, "constraints");
    constraints.extend(texts(&question.body, "constraints"));
    if chance.is_one_in(2) {
        constraints.reverse();
    }
    body["constraints"] = constraints.into();
    let effects = texts(&question.body, "side_effects");
    let object = body.as_object_mut().unwrap();
    if is_settled {
        object.remove("environment");
        object.extend(question.body.get("environment").map(|name| ("environment".to_owned(), name.clone())));
    }
    object.remove("context");
    if !context.is_empty() {
        object.insert("context".to_owned(), context.into());
    }
    object.insert("side_effects".to_owned(), effects.clone().into());
    if effects.is_empty() && chance.is_one_in(2) {
        object.remove("side_effects");
    }
    Draft { body, caller: question.caller.clone(), ..other.clone() }
}

impl Subject {
    /// Asks about parts of a request, and judges calls of what is never allowed.
    fn ask(&self, draft: &Draft, counts: &RefCell<Counts>) -> Option<Result<(), String>> {
        Asked::of(draft)?;
        let others: Vec<Draft> = counts.borrow().others.iter().chain([draft]).cloned().collect();
        for number in 0..QUESTIONS {
            let mut chance = Chance::of(draft, number);
            let question = question(draft, &mut chance);
            let Some(asked) = Asked::of(&question) else { continue };
            let Ok(codes) = self.engine.never_allows(&asked.request, TimeLimit::NONE) else { continue };
            counts.borrow_mut().asked += 1;
            if codes.is_empty() {
                continue;
            }
            counts.borrow_mut().never += 1;
            for other in &others {
                let call = call(&question, other, &mut chance);
                match self.verdict(&call) {
                    None => counts.borrow_mut().refused += 1,
                    Some((Verdict::Deny, found)) if codes.iter().all(|code| found.contains(&code.to_string())) => {
                        counts.borrow_mut().denied += 1;
                    }
                    Some(verdict) => {
                        return Some(Err(format!("never {codes:?}: {question:#?}\nyet {verdict:?}: {call:#?}")));
                    }
                }
            }
        }
        let mut counts = counts.borrow_mut();
        counts.others.push_back(draft.clone());
        if counts.others.len() > OTHERS {
            counts.others.pop_front();
        }
        Some(Ok(()))
    }

    /// The verdict and the codes; `None` for a call that is refused.
    fn verdict(&self, call: &Draft) -> Option<(Verdict, Vec<String>)> {
        let mut asked = Asked::of(call)?;
        asked.know_targets(&self.engine, &call.run["target_tools"]).ok()?;
        let Check { request, snapshot, held } = asked.check();
        let decision = self.engine.answer(request, snapshot, held, TimeLimit::NONE).ok()?.evaluation.decision;
        Some((decision.verdict, decision.issues.iter().map(|issue| issue.code.to_string()).collect()))
    }

    fn prove_never(&self, name: &str, requests: u32) {
        let (seed, counts) = (seed(), RefCell::default());
        let outcome = self.for_all(requests, seed, |draft| self.ask(draft, &counts));
        outcome.unwrap_or_else(|difference| panic!("{name}, STAGE0_SEED={seed}: {difference}"));
        let Counts { asked, never, denied, refused, .. } = counts.into_inner();
        println!("{name}: {asked} questions, {never} never, {denied} calls denied, {refused} refused");
        assert!(never > 0 && never < asked && denied > refused, "{name}, STAGE0_SEED={seed}: {never} of {asked}");
    }
}

#[test]
fn what_is_never_allowed_by_a_template_is_denied_whatever_else_a_call_says() {
    for name in Pack::templates() {
        let pack = Pack::template(name).unwrap().unwrap();
        Subject::new(pack, &policy_folder(name)).prove_never(name, EACH_TEMPLATE);
    }
}

#[test]
fn what_is_never_allowed_by_the_baseline_is_denied_whatever_else_a_call_says() {
    Subject::new(Pack::embedded().unwrap(), &baseline()).prove_never("baseline", BASELINE);
}

#[test]
fn what_is_never_allowed_by_rules_about_every_fact_is_denied_whatever_else_a_call_says() {
    let pack = Pack::from_dir(&every_fact()).unwrap_or_else(|error| panic!("{:#?}", error.faults));
    Subject::new(pack, &every_fact()).prove_never("every-fact", EVERY_FACT);
}
