//! What may be recorded of a request beside its decision: the run, the caller's texts, and the request itself when it asks for that.
//!
//! Owns which texts those are and how long.
//! INVARIANT: no secret that the detector finds anywhere in the question is in them, and without `debug_store_input` no
//! text of the request but the run's id and the names of its tools is.

use std::borrow::Cow;

use serde_json::{Map, Value};
use stage0_contract::{CallerTexts, CheckRequest, EvaluateRequest, Recordable, RunId, is_blank};

use crate::secrets::{self, Detector, Finding, Masking, REDACTED};
use crate::time_limit::{OutOfTime, TimeLimit};

/// The longest text beside the input, in characters.
const MAX_CHARS: usize = 256;

/// What an action attempts, in the policy's words.
#[derive(Debug, Default)]
pub(crate) struct Attempted {
    /// The risk classes of its side effects.
    pub(crate) effect_classes: Vec<&'static str>,
    /// The names of its tools, normalised.
    pub(crate) tools: Vec<String>,
}

/// Takes what may be kept; `found` is what was found in the request.
pub(crate) fn recordable(
    question: &EvaluateRequest,
    attempted: Attempted,
    found: &[Finding],
    detector: &Detector,
    limit: TimeLimit,
) -> Result<Recordable, OutOfTime> {
    let (request, caller) = (&question.request, &question.caller);
    let beside = || [&caller.client_request_id, &caller.user_agent].into_iter().flatten().map(String::as_str);
    // The usual request has no secret, and then its own texts need no second look.
    let suspicious = !found.is_empty() || beside().any(|text| secrets::suspects(text, detector, limit));
    let masking = if suspicious { Some(Masking::of(request, beside(), detector, limit)?) } else { None };
    let shown = |text: &str| short(masking.as_ref(), text, detector);
    let run_id = run_id(request).map(|run| shown(&run)).transpose()?;
    let caller = CallerTexts {
        client_request_id: caller.client_request_id.as_deref().map(shown).transpose()?,
        user_agent: caller.user_agent.as_deref().map(shown).transpose()?,
    };
    let tools = match &masking {
        None => attempted.tools,
        Some(_) => attempted.tools.iter().map(|tool| shown(tool)).collect::<Result<_, _>>()?,
    };
    let effect_classes = attempted.effect_classes.into_iter().map(str::to_owned).collect();
    let input = if request.debug_store_input {
        Some(input(request, &masking.unwrap_or_else(|| Masking::new(detector, limit)))?)
    } else {
        None
    };
    Ok(Recordable { run_id, effect_classes, tools, caller, input })
}

fn named(members: &Map<String, Value>) -> Option<Cow<'_, str>> {
    RunId::text_of(members.get("run_id")?)
}

fn run_id(request: &CheckRequest) -> Option<Cow<'_, str>> {
    let context = request.context.as_ref()?;
    let inner = context.get("loop_state").and_then(Value::as_object);
    let mut said = [Some(context), inner].into_iter().flatten().filter_map(named);
    said.find(|id| !is_blank(id))
}

/// Masked first: a cut could hide what makes a secret one.
fn short(masking: Option<&Masking<'_>>, text: &str, detector: &Detector) -> Result<String, OutOfTime> {
    let masked = masking.map_or_else(|| Ok(text.to_owned()), |masking| masking.text(text))?;
    let Some((end, _)) = masked.char_indices().nth(MAX_CHARS) else { return Ok(masked) };
    let cut = masked.get(..end).unwrap_or_default();
    // And it could make one of what was none.
    Ok(if secrets::mask(cut, detector) == cut { cut.to_owned() } else { REDACTED.to_owned() })
}

/// The request's own members, by the contract's names; absent ones stay absent.
fn input(request: &CheckRequest, masking: &Masking<'_>) -> Result<Map<String, Value>, OutOfTime> {
    let text = |text: &str| masking.text(text).map(Value::from);
    let mut input = Map::new();
    input.insert("goal".to_owned(), text(&request.goal)?);
    for (name, items) in [
        ("success_criteria", &request.success_criteria),
        ("constraints", &request.constraints),
        ("tools", &request.tools),
        ("side_effects", &request.side_effects),
    ] {
        let items: Vec<Value> = items.iter().map(|item| text(item)).collect::<Result<_, _>>()?;
        input.insert(name.to_owned(), items.into());
    }
    if let Some(context) = &request.context {
        input.insert("context".to_owned(), masking.members(context)?.into());
    }
    if let Some(environment) = &request.environment {
        input.insert("environment".to_owned(), text(environment)?);
    }
    Ok(input)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::forms::EXAMPLES;
    use crate::secrets::{baseline, find};
    use serde_json::json;
    use stage0_contract::{AccountId, RequestId};

    fn keep(body: Value, caller: CallerTexts) -> Recordable {
        let question = EvaluateRequest {
            request_id: RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap(),
            account: AccountId::parse("acc").unwrap(),
            request: CheckRequest::parse(body).unwrap(),
            evaluated_at: 1_773_662_400,
            operation: None,
            caller,
            max_runs: None,
        };
        recordable(&question, Attempted::default(), &find(&question.request, baseline()), baseline(), TimeLimit::NONE)
            .unwrap()
    }

    fn kept(body: Value) -> Recordable {
        keep(body, CallerTexts::default())
    }

    fn input_of(body: Value) -> Value {
        let Value::Object(mut body) = body else { panic!("no object") };
        body.insert("debug_store_input".to_owned(), true.into());
        kept(body.into()).input.unwrap().into()
    }

    /// In full-width letters, with an invisible character in the middle of the secret.
    fn disguised(text: &str, secret: &str) -> String {
        let at = text.find(secret).unwrap() + secret.len() / 2;
        let wide = |c: char| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' => char::from_u32(c as u32 - 0x20 + 0xff00).unwrap(),
            other => other,
        };
        text[..at].chars().chain(['\u{200b}']).chain(text[at..].chars()).map(wide).collect()
    }

    fn holds(kept: &Recordable, secret: &str) -> bool {
        let told = serde_json::to_string(kept).unwrap().replace("\\n", " ");
        stage0_contract::visible(&told).contains(&stage0_contract::visible(secret))
    }

    #[test]
    fn without_being_asked_nothing_of_the_request_is_kept_but_the_run() {
        let body = json!({"goal": "tell nobody", "success_criteria": ["tell nobody"], "environment": "tell nobody",
            "context": {"run_id": "run_1", "note": "tell nobody"}, "debug_store_input": false});
        let kept = kept(body);
        assert_eq!(kept, Recordable { run_id: Some("run_1".to_owned()), ..Recordable::default() });
    }

    #[test]
    fn the_input_of_a_harmless_request_is_its_own_text() {
        let body = json!({
            "goal": "Reset the password: user forgot it — jetzt, 幫我", "success_criteria": ["ｗｉｄｅ"],
            "constraints": ["max_iterations: 3"], "tools": ["shell"], "side_effects": ["deploy"], "environment": "Staging ",
            "context": {"password": "required", "nested": [{"n": 1.5, "none": null, "yes": true, "api_key": "${API_KEY}"}]},
        });
        assert_eq!(input_of(body.clone()), body);
        let smallest = input_of(json!({"goal": "g", "policy_pack_version": "b@1+c", "colour": "red"}));
        assert_eq!(
            smallest,
            json!({"goal": "g", "success_criteria": [], "constraints": [], "tools": [], "side_effects": []})
        );
    }

    #[test]
    fn no_known_secret_survives_at_any_place() {
        for (kind, text, secret) in EXAMPLES {
            for text in [text.to_owned(), disguised(text, secret)] {
                for body in [
                    json!({"goal": &text}),
                    json!({"goal": "g", "success_criteria": ["x", &text]}),
                    json!({"goal": "g", "constraints": [&text]}),
                    json!({"goal": "g", "tools": [&text]}),
                    json!({"goal": "g", "side_effects": [&text]}),
                    json!({"goal": "g", "environment": &text}),
                    json!({"goal": "g", "context": {"ticket_id": &text}}),
                    json!({"goal": "g", "context": {"run_id": &text}}),
                    json!({"goal": "g", "context": {"loop_state": {"run_id": &text}}}),
                    json!({"goal": "g", "context": {"a": [{"b": [[&text]]}]}}),
                    json!({"goal": "g", "context": {&text: 1}}),
                    json!({"goal": "g", "context": {"a": {&text: {"b": 1}}}}),
                ] {
                    let mut stored = body.clone();
                    stored["debug_store_input"] = true.into();
                    for body in [body, stored] {
                        assert!(!holds(&kept(body.clone()), secret), "{kind}: {body}");
                    }
                }
                for (id, agent) in [(Some(text.clone()), None), (None, Some(text.clone()))] {
                    let caller = CallerTexts { client_request_id: id, user_agent: agent };
                    let kept = keep(json!({"goal": "g"}), caller);
                    assert!(!holds(&kept, secret), "{kind}: {kept:?}");
                    assert!(serde_json::to_string(&kept).unwrap().contains(REDACTED), "{kind}: {kept:?}");
                }
            }
        }
    }

    #[test]
    fn no_real_form_is_left_in_what_is_stored() {
        for (text, secrets) in crate::secrets::forms::real() {
            let body = json!({"goal": &text, "tools": ["t", &text], "constraints": [&text], "success_criteria": [&text],
                "environment": &text, "context": {"run_id": &text, "a": [{"b": &text}]},
                "debug_store_input": true});
            let caller = CallerTexts { client_request_id: Some(text.clone()), user_agent: Some(text.clone()) };
            let kept = keep(body, caller);
            for secret in secrets.iter().filter(|secret| secret.len() >= 4) {
                assert!(!holds(&kept, secret), "{text}: {kept:?}");
            }
        }
    }

    #[test]
    fn what_is_around_a_secret_is_kept() {
        let input = input_of(json!({"goal": "log in with password=hunter22 and go", "context": {
            "password=hunter22": 1, "pwd=hunter23": 2, "db": {"user": "bob", "password": "correcthorse"}}}));
        assert_eq!(input["goal"], "log in with [redacted] and go");
        assert_eq!(
            input["context"],
            json!({"[redacted]": 1, "[redacted] (1)": 2, "db": {"user": "bob", "password": "[redacted]"}})
        );
    }

    #[test]
    fn a_value_under_a_telling_name_is_hidden_whatever_its_type_and_depth() {
        for value in [
            json!("correcthorse"),
            json!(["correcthorse"]),
            json!({"v": "correcthorse"}),
            json!([[{"v": ["correcthorse"]}]]),
        ] {
            let input = input_of(json!({"goal": "g", "context": {"a": {"Client-Secret": value}}}));
            assert!(!input.to_string().contains("correcthorse") && input.to_string().contains(REDACTED), "{input}");
        }
        let input = input_of(json!({"goal": "g", "context": {"password": 12345678, "count": 12345678, "other": 7}}));
        assert_eq!(input["context"], json!({"password": REDACTED, "count": REDACTED, "other": 7}));
    }

    #[test]
    fn a_secret_found_in_one_place_is_hidden_in_every_other() {
        let body = json!({"goal": "log in with Hunter22!", "environment": "hunter22", "tools": ["ｈunter\u{200b}22"],
            "context": {"password": "hunter22", "run_id": "run-hunter22-1", "hunter22": 1}, "debug_store_input": true});
        let caller = CallerTexts {
            client_request_id: Some("hunter22".to_owned()),
            user_agent: Some("agent/1.0 (hunter22)".to_owned()),
        };
        let kept = keep(body, caller);
        assert!(!holds(&kept, "hunter22"), "{kept:?}");
        assert_eq!(kept.run_id.as_deref(), Some(REDACTED));
        let caller = CallerTexts { user_agent: Some("x password=hunter22".to_owned()), ..CallerTexts::default() };
        let kept = keep(json!({"goal": "g", "context": {"run_id": "hunter22"}}), caller);
        assert!(!holds(&kept, "hunter22"), "{kept:?}");
    }

    #[test]
    fn what_is_secret_is_the_value_and_not_its_name() {
        for (goal, secret) in [
            (
                "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
                "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            ),
            ("Authorization: Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
            ("AccountKey=abcdefghijklmnopqrstuvwxyz0123==", "abcdefghijklmnopqrstuvwxyz0123=="),
            ("Authorization: Bearer abc123def456ghi789", "abc123def456ghi789"),
            ("postgres://app:s3cr3t@db/main", "s3cr3t"),
            ("api_key='abcd1234'", "abcd1234"),
        ] {
            let kept = kept(json!({"goal": goal, "context": {"run_id": secret}}));
            assert_eq!(kept.run_id.as_deref(), Some(REDACTED), "{goal}");
        }
    }

    #[test]
    fn a_private_key_in_pieces_hides_everything() {
        let lines = ["-----BEGIN RSA PRIVATE KEY-----", "MIIEpAIBAAKCAQEA", "-----END RSA PRIVATE KEY-----"];
        let input = input_of(json!({"goal": "g", "context": {"pem": lines}}));
        assert!(!input.to_string().contains("MIIEpAIBAAKCAQEA"), "{input}");
    }

    #[test]
    fn more_secrets_than_are_told_apart_hide_everything() {
        let many: Vec<String> = (0..60).map(|n| format!("password=hunter{n}")).collect();
        let input = input_of(json!({"goal": "the word", "context": {"many": many}}));
        assert!(!input.to_string().contains("word") && !input.to_string().contains("hunter"), "{input}");
    }

    #[test]
    fn the_run_is_the_first_text_or_whole_number_that_names_one() {
        for (context, run) in [
            (json!({"run_id": "a", "loop_state": {"run_id": "b"}}), Some("a")),
            (json!({"run_id": " ", "loop_state": {"run_id": "b"}}), Some("b")),
            (json!({"run_id": null, "loop_state": {"run_id": "b"}}), Some("b")),
            (json!({"run_id": 7}), Some("7")),
            (json!({"run_id": 7.5}), None),
            (json!({"run_id": [7]}), None),
            (json!({"loop_state": "b"}), None),
            (json!({}), None),
        ] {
            assert_eq!(kept(json!({"goal": "g", "context": &context})).run_id.as_deref(), run, "{context}");
        }
    }

    #[test]
    fn a_long_text_is_cut_after_it_was_masked() {
        let run = |id: String| kept(json!({"goal": "g", "context": {"run_id": id}})).run_id.unwrap();
        assert_eq!(run("é".repeat(300)), "é".repeat(256));
        // Cut first, nothing would tell the beginning of this key.
        let split = run(format!("{} AKIAIOSFODNN7EXAMPLE", "x".repeat(245)));
        assert!(!split.contains("AKIA"), "{split}");
        // A word of the wrong length for a key becomes one by the cut.
        assert_eq!(run(format!("{} AKIAIOSFODNN7EXAMPLEANDMORE", "x".repeat(235))), REDACTED);
    }
}
