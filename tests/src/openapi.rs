//! Holds every answer that a test sees to the OpenAPI document.
//!
//! An answer is looked up by method, path and status. A status, a media type or a member that the document does not
//! declare fails the test, as does a value outside its schema: what an integrator's generated client could not read, no
//! test accepts.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex};

use jsonschema::Validator;
use serde_json::{Map, Value, json};
use stage0_contract::{Operation, openapi};

use crate::Answer;

/// What the suite puts before the paths where it tests a base path.
const BASE_PATH: &str = "/stage0";

/// The document, where an object holds no members but those that it lists.
static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    let mut document = openapi("https://localhost");
    if let Some(schemas) = document["components"]["schemas"].as_object_mut() {
        schemas.values_mut().for_each(close);
    }
    document
});

/// By reference to the schema.
static VALIDATORS: LazyLock<Mutex<HashMap<String, &'static Validator>>> = LazyLock::new(Mutex::default);

fn close(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if object.get("type") == Some(&json!("object")) && object.contains_key("properties") {
                object.entry("additionalProperties").or_insert(false.into());
            }
            object.values_mut().for_each(close);
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

/// Fails unless the document declares the answer.
#[track_caller]
pub fn assert_declared(method: &str, path: &str, answer: &Answer) {
    let path = normal(path);
    let method = if method == "HEAD" { "GET" } else { method };
    let mut at_path = Operation::ALL.iter().copied().filter(|operation| matches(operation.path(), &path)).peekable();
    let what = format!("{method} {path}: {} {}", answer.status, answer.text);
    if at_path.peek().is_none() {
        assert!([400, 404, 429].contains(&answer.status), "not a path of the document: {what}");
        return assert_schema("#/components/schemas/ErrorBody", answer, &what);
    }
    // The literal path goes before one with a parameter.
    let Some(operation) = at_path.find(|operation| operation.method().as_str() == method) else {
        assert!([400, 405, 429].contains(&answer.status), "not an operation of the document: {what}");
        return assert_schema("#/components/schemas/ErrorBody", answer, &what);
    };
    if answer.status == 304 || !operation.is_described() {
        return;
    }
    let declared = &DOCUMENT["paths"][operation.path()][method.to_ascii_lowercase()]["responses"];
    let response = match &declared[answer.status.to_string()] {
        Value::Null => panic!("not a declared status: {what}"),
        response => resolve(response),
    };
    let Some(content) = response["content"].as_object() else {
        return assert!(answer.text.is_empty(), "no body is declared: {what}");
    };
    assert_body(content, answer, &what);
}

fn assert_body(content: &Map<String, Value>, answer: &Answer, what: &str) {
    if answer.text.is_empty() && answer.header("content-length") != "0" {
        // The answer to a HEAD.
        return;
    }
    let media_type = answer.header("content-type").split(';').next().unwrap_or_default();
    let Some(declared) = content.get(media_type) else { panic!("`{media_type}` is not declared: {what}") };
    if let Some(reference) = declared["schema"]["$ref"].as_str() {
        assert_schema(reference, answer, what);
    }
}

fn assert_schema(reference: &str, answer: &Answer, what: &str) {
    if !answer.text.is_empty() {
        let faults = faults(reference, &answer.body);
        assert!(faults.is_empty(), "{reference}: {faults:#?}\n{what}");
    }
}

/// What of a value does not follow a component of the document, such as `#/components/schemas/Run`.
pub fn faults(reference: &str, value: &Value) -> Vec<String> {
    let validator = *VALIDATORS.lock().unwrap().entry(reference.to_owned()).or_insert_with(|| {
        let root = json!({"$ref": reference, "components": DOCUMENT["components"]});
        let validator = jsonschema::draft202012::options().should_validate_formats(true).build(&root);
        Box::leak(Box::new(validator.unwrap()))
    });
    validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

fn resolve(response: &Value) -> &Value {
    match response["$ref"].as_str() {
        Some(reference) => DOCUMENT.pointer(&reference[1..]).unwrap(),
        None => response,
    }
}

/// The path as the gateway takes it: without query, base path, repeated and last slashes.
fn normal(path: &str) -> String {
    let path = path.split('?').next().unwrap_or_default();
    let segments: Vec<_> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    let path = format!("/{}", segments.join("/"));
    path.strip_prefix(BASE_PATH).filter(|rest| rest.starts_with('/')).map_or(path.clone(), str::to_owned)
}

fn matches(pattern: &str, path: &str) -> bool {
    let (pattern, path): (Vec<_>, Vec<_>) = (pattern.split('/').collect(), path.split('/').collect());
    pattern.len() == path.len()
        && pattern.iter().zip(&path).all(|(pattern, segment)| pattern.starts_with('{') || pattern == segment)
}
