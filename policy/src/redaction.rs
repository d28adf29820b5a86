//! The texts of a request that may be recorded with its decision: the run's id, the names of its tools, the caller's
//! own texts, and the request itself if it asks for that.
//!
//! INVARIANT: they hold no secret that the detector finds anywhere in the request, and without `debug_store_input` no
//! text of the request except the run's id and the names of its tools.

use serde_json::{Map, Value};
use stage0_contract::{CallerTexts, CheckRequest, EvaluateRequest, RedactedTexts, RunId};

use crate::facts::Facts;
use crate::secrets::{self, Detector, Finding, Masking, REDACTED};
use crate::time_limit::{OutOfTime, TimeLimit};

/// The length at which a text other than the input is cut, in characters.
const MAX_CHARS: usize = 256;

#[derive(Debug, Default)]
pub(crate) struct ActionSummary {
    effect_classes: Vec<&'static str>,
    tools: Vec<String>,
}

impl ActionSummary {
    pub(crate) fn of(facts: &Facts) -> Self {
        Self { effect_classes: facts.effects.classes(), tools: facts.tools.names() }
    }
}

/// Masks and cuts the texts that may be recorded. `found` are the secrets that were found in the request.
pub(crate) fn redacted_texts(
    check: &EvaluateRequest,
    action: ActionSummary,
    found: &[Finding],
    detector: &Detector,
    limit: TimeLimit,
) -> Result<RedactedTexts, OutOfTime> {
    let request = &check.request;
    let caller = &check.caller;
    let caller_texts = || [&caller.client_request_id, &caller.user_agent].into_iter().flatten().map(String::as_str);
    // Most requests have no secret, and then their own texts need no second scan.
    let suspicious = !found.is_empty() || caller_texts().any(|text| detector.suspects(text, limit));
    let masking = if suspicious { Some(Masking::of(request, caller_texts(), detector, limit)?) } else { None };
    let redacted = |text: &str| redact(masking.as_ref(), text, detector);
    // The first text that names a run, even where the two places differ.
    let run_id = request.context.as_ref().and_then(|context| RunId::named_in(context).find_map(Result::ok));
    let run_id = run_id.map(|run_id| redacted(&run_id)).transpose()?;
    let caller = CallerTexts {
        client_request_id: caller.client_request_id.as_deref().map(redacted).transpose()?,
        user_agent: caller.user_agent.as_deref().map(redacted).transpose()?,
    };
    let tools = match &masking {
        None => action.tools,
        Some(_) => action.tools.iter().map(|tool| redacted(tool)).collect::<Result<_, _>>()?,
    };
    let effect_classes = action.effect_classes.into_iter().map(str::to_owned).collect();
    let masking = masking.unwrap_or_else(|| Masking::new(detector, limit));
    let input = request.debug_store_input.then(|| input(request, &masking)).transpose()?;
    Ok(RedactedTexts { run_id, effect_classes, tools, caller, input, facts: None })
}

/// Masks a text, then cuts it: a cut text could lack what identifies its secret.
fn redact(masking: Option<&Masking<'_>>, text: &str, detector: &Detector) -> Result<String, OutOfTime> {
    let masked = masking.map_or_else(|| Ok(text.to_owned()), |masking| masking.text(text))?;
    let Some((end, _)) = masked.char_indices().nth(MAX_CHARS) else { return Ok(masked) };
    let cut = masked.get(..end).unwrap_or_default();
    // The cut could turn a harmless text into the form of a secret.
    Ok(if secrets::mask(cut, detector) == cut { cut.to_owned() } else { REDACTED.to_owned() })
}

/// The members of the request under the contract's names. Absent members stay absent.
fn input(request: &CheckRequest, masking: &Masking<'_>) -> Result<Map<String, Value>, OutOfTime> {
    let text = |text: &str| masking.text(text).map(Value::from);
    let mut input = Map::new();
    input.insert("goal".to_owned(), text(&request.goal)?);
    for (name, items) in secrets::lists(request) {
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

    fn keep(body: Value, caller: CallerTexts) -> RedactedTexts {
        let check = EvaluateRequest {
            asker: None,
            request_id: RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap(),
            account: AccountId::parse("acc").unwrap(),
            request: CheckRequest::parse(body).unwrap(),
            evaluated_at: 1_773_662_400,
            operation: None,
            caller,
            max_runs: None,
        };
        redacted_texts(&check, ActionSummary::default(), &find(&check.request, baseline()), baseline(), TimeLimit::NONE)
            .unwrap()
    }

    fn kept(body: Value) -> RedactedTexts {
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

    fn holds(kept: &RedactedTexts, secret: &str) -> bool {
        let text = serde_json::to_string(kept).unwrap().replace("\\n", " ");
        stage0_contract::visible(&text).contains(&stage0_contract::visible(secret))
    }

    #[test]
    fn without_debug_store_input_only_the_run_id_of_a_request_is_recorded() {
        let body = json!({"goal": "keep private", "success_criteria": ["keep private"], "environment": "keep private",
            "context": {"run_id": "run_1", "note": "keep private"}, "debug_store_input": false});
        let kept = kept(body);
        assert_eq!(kept, RedactedTexts { run_id: Some("run_1".to_owned()), ..RedactedTexts::default() });
    }

    #[test]
    fn the_stored_input_of_a_request_without_secrets_is_unchanged() {
        let body = json!({
            "goal": "Reset the password: user forgot it — jetzt, 幫我", "success_criteria": ["ｗｉｄｅ"],
            "constraints": ["max_iterations: 3"], "tools": ["shell"], "side_effects": ["deploy"],
            "environment": "Staging ", "context": {"password": "required",
                "nested": [{"n": 1.5, "none": null, "yes": true, "api_key": "${API_KEY}"}]},
        });
        assert_eq!(input_of(body.clone()), body);
        let smallest = input_of(json!({"goal": "g", "policy_pack_version": "b@1+c", "colour": "red"}));
        assert_eq!(
            smallest,
            json!({"goal": "g", "success_criteria": [], "constraints": [], "tools": [], "side_effects": []})
        );
    }

    #[test]
    fn no_known_secret_is_recorded_from_any_member_of_a_request() {
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
    fn no_real_form_of_a_secret_is_left_in_the_recorded_texts() {
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
    fn the_text_around_a_secret_is_recorded() {
        let input = input_of(json!({"goal": "log in with password=hunter22 and go", "context": {
            "password=hunter22": 1, "pwd=hunter23": 2, "db": {"user": "bob", "password": "correcthorse"}}}));
        assert_eq!(input["goal"], "log in with [redacted] and go");
        assert_eq!(
            input["context"],
            json!({"[redacted]": 1, "[redacted] (1)": 2, "db": {"user": "bob", "password": "[redacted]"}})
        );
    }

    #[test]
    fn a_value_under_the_name_of_a_secret_is_masked_whatever_its_type_and_depth() {
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
    fn a_secret_found_in_one_member_is_masked_in_every_other() {
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
    fn the_value_of_an_assignment_is_masked_elsewhere_too() {
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
    fn a_private_key_in_pieces_masks_the_whole_request() {
        let lines = ["-----BEGIN RSA PRIVATE KEY-----", "MIIEpAIBAAKCAQEA", "-----END RSA PRIVATE KEY-----"];
        let input = input_of(json!({"goal": "g", "context": {"pem": lines}}));
        assert!(!input.to_string().contains("MIIEpAIBAAKCAQEA"), "{input}");
    }

    #[test]
    fn a_request_with_too_many_secrets_is_masked_as_a_whole() {
        let many: Vec<String> = (0..60).map(|n| format!("password=hunter{n}")).collect();
        let input = input_of(json!({"goal": "the word", "context": {"many": many}}));
        assert!(!input.to_string().contains("word") && !input.to_string().contains("hunter"), "{input}");
    }

    #[test]
    fn the_recorded_run_id_is_the_first_text_or_whole_number_that_names_a_run() {
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
    fn a_long_text_is_cut_after_it_is_masked() {
        let run = |id: String| kept(json!({"goal": "g", "context": {"run_id": id}})).run_id.unwrap();
        assert_eq!(run("é".repeat(300)), "é".repeat(256));
        // Cut first, the beginning of this key would not be recognised.
        let split = run(format!("{} AKIAIOSFODNN7EXAMPLE", "x".repeat(245)));
        assert!(!split.contains("AKIA"), "{split}");
        // A word of the wrong length for a key becomes one by the cut.
        assert_eq!(run(format!("{} AKIAIOSFODNN7EXAMPLEANDMORE", "x".repeat(235))), REDACTED);
    }
}
