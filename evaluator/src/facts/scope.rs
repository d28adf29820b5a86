//! Scopes: whether targets, servers, tenants and tools lie inside what the request allows itself.
//!
//! Owns the comparison of names with lists; how targets are compared is `target`'s. Nothing that mixes scripts lies
//! inside anything.

use std::collections::HashSet;

use stage0_contract::{CheckRequest, FlagName, Word};

use super::declared::Declared;
use super::evidence::Evidence;
use super::target::{Scope, Target};
use crate::pack::Vocabulary;

/// Which scopes have evidence, and which are left.
#[derive(Debug, Default)]
pub(crate) struct Scopes {
    pub(crate) record_count: Option<i64>,
    pub(crate) resources_named: bool,
    pub(crate) resources_outside: bool,
    pub(crate) mcp_servers_named: bool,
    pub(crate) mcp_servers_outside: bool,
    pub(crate) tenants_named: bool,
    pub(crate) tenants_outside: bool,
    pub(crate) tools_outside: bool,
}

impl Scopes {
    pub(crate) fn read(declared: &Declared, tools: &ProposedTools, evidence: &mut Evidence<'_>) -> Self {
        let mut scopes = Self::default();
        if declared.max_records.is_some() {
            scopes.record_count = evidence.count("record_count");
        }
        if !declared.resource_scopes.is_empty() {
            scopes.read_resources(&declared.resource_scopes, evidence);
        }
        if let Some(servers) = &declared.mcp_servers {
            // No server active is an answer, and a harmless one.
            let active = evidence.words("active_mcp_servers");
            scopes.mcp_servers_named = active.is_some();
            scopes.mcp_servers_outside = active.iter().flatten().any(|server| !listed(server, servers));
        }
        if declared.flag(FlagName::TenantIsolation) {
            scopes.read_tenants(evidence);
        }
        scopes.tools_outside =
            declared.tools.as_ref().is_some_and(|allowed| tools.all().any(|tool| !listed(tool, allowed)));
        scopes
    }

    fn read_resources(&mut self, scopes: &[Vec<Word>], evidence: &mut Evidence<'_>) {
        let mut targets = evidence.texts("target_resources").unwrap_or_default();
        targets.extend(evidence.text("resource_scope"));
        let Some(scope) = Scope::of_all(scopes) else { return };
        self.resources_named = !targets.is_empty();
        self.resources_outside = targets.iter().any(|target| !Target::read(target).is_some_and(|t| scope.holds(&t)));
    }

    fn read_tenants(&mut self, evidence: &mut Evidence<'_>) {
        let own = evidence.text("tenant_id").map(Word::new);
        let targets = evidence.words("target_tenants").unwrap_or_default();
        self.tenants_named = own.is_some() && !targets.is_empty();
        self.tenants_outside = own.is_some_and(|own| targets.iter().any(|target| !target.matches(&own)));
    }
}

/// The tools of a request: those it lists and the one it calls next.
#[derive(Debug)]
pub(crate) struct ProposedTools {
    listed: Vec<Word>,
    current: Vec<Word>,
}

impl ProposedTools {
    pub(crate) fn read(request: &CheckRequest, evidence: &mut Evidence<'_>) -> Self {
        Self {
            listed: request.tools.iter().map(|t| Word::new(t)).collect(),
            current: evidence.text("current_tool").map(Word::new).into_iter().collect(),
        }
    }

    /// Everything that may be called.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Word> {
        self.listed.iter().chain(&self.current)
    }

    /// What is called next: `current_tool`, else each of `tools`.
    pub(crate) fn proposed(&self) -> &[Word] {
        if self.current.is_empty() { &self.listed } else { &self.current }
    }

    /// Whether one of them, or a part of its dotted name, can do anything. A name that mixes scripts may be such a one.
    pub(crate) fn any_sensitive(&self, vocabulary: &Vocabulary) -> bool {
        self.all().any(|tool| {
            let Some(name) = Word::name(tool.as_str()).known().map(str::to_owned) else { return true };
            vocabulary.is_sensitive_tool(&name) || name.split(['.', '/', ':']).any(|p| vocabulary.is_sensitive_tool(p))
        })
    }
}

fn listed(word: &Word, names: &HashSet<String>) -> bool {
    word.known().is_some_and(|name| names.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(constraint: &str, context: impl Into<Value>) -> Scopes {
        let pack = crate::pack::Pack::embedded().unwrap();
        let declared = Declared::read(&[constraint.to_owned()], pack.vocabulary(), pack.windows()).unwrap();
        let request = CheckRequest::parse(json!({"goal": "g", "context": context.into()})).unwrap();
        let mut evidence = Evidence::new(request.context.as_ref());
        let tools = ProposedTools::read(&request, &mut evidence);
        Scopes::read(&declared, &tools, &mut evidence)
    }

    fn outside(scope: &str, target: &str) -> bool {
        read(&format!("resource_scope: {scope}"), json!({"target_resources": [target]})).resources_outside
    }

    #[test]
    fn a_scope_without_a_star_is_exact() {
        assert!(!outside("accounts:staging", "Accounts:Staging"));
        assert!(outside("accounts:staging", "accounts:staging2"));
        assert!(outside("accounts:staging", "accounts:staging/a"));
        assert!(!outside("*", "anything/at all"));
        assert!(outside("*", "../x"));
        assert!(outside("../*", "x"));
    }

    #[test]
    fn every_target_counts_and_so_does_the_scope_that_the_context_names() {
        let scopes = read("resource_scope: a/*", json!({"target_resources": ["a/1", "b/1"]}));
        assert!(scopes.resources_named && scopes.resources_outside);
        assert!(read("resource_scope: a", json!({"resource_scope": "b"})).resources_outside);
        assert!(read("resource_scope: a/*", json!({"resource_scope": "a/..;/b"})).resources_outside);
        assert!(read("resource_scope: a/*", json!({"target_resources": ["a/1", "/"]})).resources_outside);
        assert!(!read("resource_scope: a", json!({"target_resources": []})).resources_named);
    }

    #[test]
    fn no_active_server_is_evidence_and_a_foreign_one_is_outside() {
        assert!(read("allowed_mcp_servers: a", json!({"active_mcp_servers": []})).mcp_servers_named);
        assert!(!read("allowed_mcp_servers: a", json!({})).mcp_servers_named);
        assert!(read("allowed_mcp_servers: a", json!({"active_mcp_servers": ["A", "b"]})).mcp_servers_outside);
    }

    #[test]
    fn a_tenant_is_only_itself() {
        let tenants = |context: Value| read("tenant_isolation", context);
        assert!(tenants(json!({"tenant_id": "t1", "target_tenants": ["t1", "t2"]})).tenants_outside);
        assert!(!tenants(json!({"tenant_id": "t1", "target_tenants": ["T1 "]})).tenants_outside);
        assert!(!tenants(json!({"tenant_id": "t1"})).tenants_named);
        assert!(!tenants(json!({"target_tenants": ["t1"]})).tenants_named);
        assert!(tenants(json!({"tenant_id": "t\u{456}1", "target_tenants": ["t\u{456}1"]})).tenants_outside);
    }

    #[test]
    fn the_tool_that_is_called_next_must_be_allowed_too() {
        assert!(read("allowed_tools: a", json!({"current_tool": "b"})).tools_outside);
        assert!(!read("allowed_tools: a", json!({"current_tool": "A"})).tools_outside);
    }
}
