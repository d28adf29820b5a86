//! The Cedar schema of a pack, written from the fact table, with the pack's own types in it.

use super::custom::CustomTypes;
use super::table::{Attribute, Kind};

/// The whole schema: entities, action, every fact of the second edition. `custom` and `run_calls` are facts only where
/// the pack declares members for them.
pub(crate) fn schema(custom: &CustomTypes, run_calls: &[String]) -> String {
    let mut text = String::from(
        "entity Agent;\nentity Proposal;\n\naction \"check\" appliesTo {\n    principal: Agent,\n    resource: \
         Proposal,\n    context: Facts,\n};\n",
    );
    if !custom.is_empty() {
        text.push_str("\ntype Custom = {\n");
        for (name, kind) in custom.iter() {
            text.push_str(&format!("    {name}?: {},\n", kind.as_str()));
        }
        text.push_str("};\n");
    }
    if !run_calls.is_empty() {
        text.push_str("\ntype RunCalls = {\n");
        for name in run_calls {
            // The debug form of a text is Cedar's form of it: names of tools are in normal form.
            text.push_str(&format!("    {name:?}: Long,\n"));
        }
        text.push_str("};\n");
    }
    text.push_str("\ntype Facts = {\n");
    for attribute in Attribute::all() {
        let is_declared = match attribute.kind() {
            Kind::Custom => !custom.is_empty(),
            Kind::RunCalls => !run_calls.is_empty(),
            _ => true,
        };
        if is_declared {
            let mark = if attribute.is_optional() { "?" } else { "" };
            text.push_str(&format!("    {}{mark}: {},\n", attribute.name(), attribute.kind().as_str()));
        }
    }
    text.push_str("};\n");
    text
}

#[cfg(test)]
mod tests {
    use super::super::custom::CustomType;
    use super::*;
    use cedar_policy::Schema;
    use std::collections::BTreeMap;

    #[test]
    fn the_schema_of_every_set_of_own_types_is_valid() {
        let all = CustomType::ALL.into_iter().map(|kind| (format!("{kind:?}"), kind));
        let custom = CustomTypes(BTreeMap::from_iter(all));
        let calls = ["send_email".to_owned(), "mcp__github__push".to_owned(), "vendor.tool".to_owned()];
        for (custom, calls) in
            [(&custom, &calls[..]), (&CustomTypes::default(), &[]), (&custom, &[]), (&CustomTypes::default(), &calls)]
        {
            let text = schema(custom, calls);
            assert!(Schema::from_cedarschema_str(&text).is_ok(), "{text}");
            assert_eq!(text.contains("custom: Custom"), !custom.is_empty());
            assert_eq!(text.contains("run_calls: RunCalls"), !calls.is_empty());
        }
    }

    #[test]
    fn the_schema_names_every_fact_with_its_type() {
        let text = schema(&CustomTypes::default(), &[]);
        for line in ["    role?: String,", "    tools: Set<String>,", "    now: datetime,", "    run_named: Bool,"] {
            assert!(text.lines().any(|one| one == line), "{line}");
        }
    }
}
