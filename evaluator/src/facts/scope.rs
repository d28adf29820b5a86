//! Scopes: whether targets, servers, tenants and tools lie inside what the request allows itself.
//!
//! Owns the comparison of names with lists and of paths with patterns. Nothing that mixes scripts lies inside anything, and a path
//! that climbs above its root lies outside.

use stage0_contract::{CheckRequest, FlagName, Word};

use super::declared::Declared;
use super::evidence::Evidence;
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
        if !declared.mcp_servers.is_empty() {
            // No server active is an answer, and a harmless one.
            let active = evidence.words("active_mcp_servers");
            scopes.mcp_servers_named = active.is_some();
            scopes.mcp_servers_outside = active.iter().flatten().any(|server| !listed(server, &declared.mcp_servers));
        }
        if declared.flag(FlagName::TenantIsolation) {
            scopes.read_tenants(evidence);
        }
        scopes.tools_outside = !declared.tools.is_empty() && tools.all().any(|tool| !listed(tool, &declared.tools));
        scopes
    }

    fn read_resources(&mut self, scopes: &[Vec<Word>], evidence: &mut Evidence<'_>) {
        let mut targets = evidence.words("target_resources").unwrap_or_default();
        targets.extend(evidence.text("resource_scope").map(Word::new));
        let scopes: Vec<Vec<Pattern>> = scopes.iter().map(|s| s.iter().filter_map(Pattern::new).collect()).collect();
        self.resources_named = !targets.is_empty();
        self.resources_outside = targets.iter().any(|target| match target.known().and_then(segments) {
            Some(path) => !scopes.iter().all(|scope| scope.iter().any(|pattern| pattern.holds(&path))),
            None => true,
        });
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

fn listed(word: &Word, lists: &[Vec<Word>]) -> bool {
    lists.iter().all(|list| list.iter().any(|entry| entry.matches(word)))
}

/// One entry of a resource scope, as a normalised path.
struct Pattern {
    path: String,
    prefix: bool,
}

impl Pattern {
    /// Nothing for an entry that can hold no path.
    fn new(word: &Word) -> Option<Self> {
        let text = word.known()?;
        let Some(stem) = text.strip_suffix('*') else {
            return Some(Self { path: segments(text)?, prefix: false });
        };
        let mut path = segments(stem)?;
        // `a/*` must not hold `ab`: the separator before the star stays.
        if stem.ends_with(['/', '\\']) && !path.is_empty() {
            path.push('/');
        }
        Some(Self { path, prefix: true })
    }

    fn holds(&self, path: &str) -> bool {
        if self.prefix { path.starts_with(&self.path) } else { path == self.path }
    }
}

/// The path without empty, `.` and `..` segments; nothing when it climbs above its root.
fn segments(text: &str) -> Option<String> {
    // Once only: what is encoded twice names something else, and is compared as it stands.
    let text = text.replace("%2e", ".").replace("%2f", "/").replace("%5c", "\\").replace('\\', "/");
    let mut kept: Vec<&str> = Vec::new();
    for segment in text.split('/') {
        match segment.trim() {
            "" | "." => {}
            ".." => {
                kept.pop()?;
            }
            name => kept.push(name),
        }
    }
    Some(kept.join("/"))
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
    fn a_path_cannot_climb_out_of_its_scope() {
        for target in [
            "prod/a",
            "staging/../prod/a",
            "staging\\..\\prod",
            "staging/%2e%2e/prod",
            "staging%2f..%2fprod",
            "staging/.%2e/prod",
            "staging%5c..%5cprod",
            "../staging/a",
            "staging/../../staging/a",
            "stagin\u{433}/a",
            "staging-evil/a",
            "staging",
            "",
        ] {
            let outside = outside("staging/*", if target.is_empty() { "/" } else { target });
            assert!(outside, "{target:?}");
        }
        for target in ["staging/a", "Staging//a", "./staging/a", "staging/x/../a", "/staging/a", "staging\\a"] {
            assert!(!outside("staging/*", target), "{target:?}");
        }
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
