//! The document of the HTTP API: pinned, complete, and without what client generators stumble over.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use stage0_contract::{Operation, openapi};

/// The document as it is reviewed. The gateway puts the URL of its own in the place of this one.
fn document() -> Value {
    openapi("https://localhost:8443")
}

fn pinned() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json")
}

/// A change of the API is a change of this file. `UPDATE_OPENAPI=1 cargo test -p stage0-contract` writes it.
#[test]
fn the_openapi_document_is_the_pinned_one() {
    let text = format!("{}\n", serde_json::to_string_pretty(&document()).unwrap());
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(pinned(), &text).unwrap();
    }
    let pinned = std::fs::read_to_string(pinned()).unwrap_or_default();
    let change = text.lines().zip(pinned.lines()).find(|(new, old)| new != old);
    assert!(text == pinned, "docs/openapi.json is not what the types say, first at {change:?}: see the test's comment");
}

/// Each object of the document, with its path.
fn each(value: &Value, path: &str, look: &mut impl FnMut(&str, &serde_json::Map<String, Value>)) {
    match value {
        Value::Object(object) => {
            look(path, object);
            object.iter().for_each(|(name, value)| each(value, &format!("{path}/{name}"), look));
        }
        Value::Array(items) => items.iter().for_each(|item| each(item, path, look)),
        _ => {}
    }
}

#[test]
fn every_reference_names_a_component_and_every_component_is_used() {
    let document = document();
    let mut used = BTreeSet::new();
    each(&document, "", &mut |path, object| {
        let Some(reference) = object.get("$ref") else { return };
        let reference = reference.as_str().unwrap();
        assert!(document.pointer(&reference[1..]).is_some(), "{path}: {reference}");
        assert_eq!(reference.matches('/').count(), 3, "{path}: {reference} leads into a component");
        used.insert(reference.to_owned());
    });
    for (kind, components) in document["components"].as_object().unwrap() {
        for name in components.as_object().unwrap().keys().filter(|_| kind != "securitySchemes") {
            assert!(used.contains(&format!("#/components/{kind}/{name}")), "{kind}/{name} is not used");
        }
    }
}

#[test]
fn each_operation_has_one_tag_and_an_id_of_its_own() {
    let document = document();
    let tags: Vec<_> = document["tags"].as_array().unwrap().iter().map(|tag| tag["name"].clone()).collect();
    let mut ids = BTreeSet::new();
    each(&document, "", &mut |path, object| {
        let Some(id) = object.get("operationId") else { return };
        assert!(ids.insert(id.as_str().unwrap().to_owned()), "{id} stands twice");
        let [tag] = object["tags"].as_array().unwrap().as_slice() else { panic!("{path}: not one tag") };
        assert!(tags.contains(tag), "{path}: {tag} is not described");
        assert_eq!(path.contains("/callbacks/"), tag == "events", "{path}");
    });
    let events = &document["paths"]["/v1/webhooks"]["post"]["callbacks"];
    let described = Operation::ALL.iter().filter(|operation| operation.is_described()).count();
    assert_eq!(ids.len(), described + events.as_object().unwrap().len());
}

#[test]
fn every_property_and_parameter_is_described() {
    let mut missing = Vec::new();
    each(&document(), "", &mut |path, object| {
        if path.contains("/example") {
            return;
        }
        let described = |value: &Value| value.get("description").is_some() || value.get("$ref").is_some();
        if let Some(Value::Object(properties)) = object.get("properties") {
            missing.extend(properties.iter().filter(|(_, p)| !described(p)).map(|(name, _)| format!("{path}.{name}")));
        }
        if object.contains_key("in") && !described(&Value::Object(object.clone())) {
            missing.push(path.to_owned());
        }
    });
    assert!(missing.is_empty(), "{missing:#?}");
}
