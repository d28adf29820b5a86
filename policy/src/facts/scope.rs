//! Scopes: which resources, servers, tenants, tools and environments are outside the lists that the request declares.
//!
//! `target` compares resources and `tool_list` tools. An ambiguous name (letters of mixed scripts) is inside no allow
//! list, and every deny list denies it.

use stage0_contract::{CheckRequest, FlagName, LimitName, Spelling, Word, is_blank};

use super::access::environments;
use super::culprit::{Culprit, MAX_CULPRITS};
use super::declared::Declared;
use super::evidence::Evidence;
use super::mcp::servers;
use super::patterns::Patterns;
use super::target::{Scope, Target};
use crate::vocabulary::{Edition, Names, Vocabulary};

/// For each declared scope: whether the request has evidence for it, and what is outside.
#[derive(Debug, Default)]
pub(crate) struct Scopes {
    pub(crate) record_count: Option<i64>,
    pub(crate) resources_named: bool,
    pub(crate) resources_outside: Vec<Culprit>,
    pub(crate) mcp_servers_named: bool,
    pub(crate) mcp_servers_outside: Vec<Culprit>,
    pub(crate) tenants_named: bool,
    pub(crate) tenants_outside: Vec<Culprit>,
    pub(crate) tools_outside: Vec<Culprit>,
    pub(crate) tools_denied: Vec<Culprit>,
    pub(crate) environments_denied: Vec<Culprit>,
}

impl Scopes {
    pub(crate) fn read<'a>(
        declared: &Declared,
        request: &'a CheckRequest,
        vocabulary: &Vocabulary,
        evidence: &mut Evidence<'a>,
    ) -> Self {
        let mut scopes = Self::default();
        if declared.limit(LimitName::MaxRecords).is_some() {
            scopes.record_count = evidence.count("record_count");
        }
        if !declared.resource_scopes.is_empty() {
            scopes.read_resources(&declared.resource_scopes, evidence);
        }
        if let Some(servers) = &declared.mcp_servers {
            scopes.read_servers(servers, request, vocabulary.edition(), evidence);
        }
        if declared.flag(FlagName::TenantIsolation) {
            scopes.read_tenants(evidence);
        }
        if let Some(allowed) = &declared.tools {
            scopes.tools_outside = culprits(tools(request, evidence), |tool| !allowed.allows(tool));
        }
        if let Some(denied) = &declared.denied_tools {
            scopes.tools_denied = culprits(tools(request, evidence), |tool| denied.denies(tool));
        }
        if !declared.denied_environments.is_empty() {
            let read = |name: &str| Environment::of(name, &vocabulary.names);
            let denied: Vec<Environment> = declared.denied_environments.iter().map(|name| read(name)).collect();
            let named = environments(request, evidence).into_iter().map(|(at, name)| (at.to_owned(), name));
            scopes.environments_denied = culprits(named, |name| denied.iter().any(|denied| denied.may_be(&read(name))));
        }
        scopes
    }

    fn read_resources(&mut self, scopes: &[Vec<Word>], evidence: &mut Evidence<'_>) {
        let mut targets = items(evidence, "target_resources").unwrap_or_default();
        let named = evidence.text("resource_scope").map(|text| ("context.resource_scope".to_owned(), text));
        targets.extend(named);
        let Some(scope) = Scope::intersection(scopes) else { return };
        self.resources_named = !targets.is_empty();
        self.resources_outside =
            culprits(targets, |target| !Target::read(target).is_some_and(|target| scope.contains(&target)));
    }

    /// An empty list of active servers is evidence that none is active. A server whose tool is proposed is active too.
    fn read_servers<'a>(
        &mut self,
        allowed: &Patterns,
        request: &'a CheckRequest,
        edition: Edition,
        evidence: &mut Evidence<'a>,
    ) {
        let active = items(evidence, "active_mcp_servers");
        self.mcp_servers_named = active.is_some();
        let listed = |server: &str| Word::new(server).known().is_some_and(|server| allowed.matches(server));
        self.mcp_servers_outside = culprits(active.unwrap_or_default(), |server| !listed(server));
        if edition == Edition::First {
            return;
        }
        let of_servers: Vec<(String, &str)> =
            tools(request, evidence).into_iter().filter(|(_, tool)| !servers(tool).is_empty()).collect();
        self.mcp_servers_named |= !of_servers.is_empty();
        let mut outside = culprits(of_servers, |tool| {
            // The server is the longest candidate on the list, or else the text before the first `__`.
            let servers = servers(tool);
            let named = servers.iter().find(|server| allowed.contains_exactly(server)).or_else(|| servers.last());
            !named.is_some_and(|server| listed(server))
        });
        self.mcp_servers_outside.append(&mut outside);
        self.mcp_servers_outside.truncate(MAX_CULPRITS);
    }

    fn read_tenants(&mut self, evidence: &mut Evidence<'_>) {
        let own = evidence.text("tenant_id").map(Word::new);
        let targets = items(evidence, "target_tenants").unwrap_or_default();
        self.tenants_named = own.is_some() && !targets.is_empty();
        if let Some(own) = own {
            self.tenants_outside = culprits(targets, |target| !Word::new(target).matches(&own));
        }
    }
}

type NameAt<'a> = (String, &'a str);

fn culprits<'a>(names: impl IntoIterator<Item = NameAt<'a>>, is_wrong: impl Fn(&str) -> bool) -> Vec<Culprit> {
    let wrong = names.into_iter().filter(|(_, name)| is_wrong(name));
    wrong.map(|(at, name)| Culprit::new(at, name)).take(MAX_CULPRITS).collect()
}

/// The items of an array that are not blank; `None` where it is absent, or malformed because an item is not a string.
fn items<'a>(evidence: &mut Evidence<'a>, name: &'static str) -> Option<Vec<NameAt<'a>>> {
    let texts: Option<Vec<&'a str>> =
        evidence.member(name)?.as_array().and_then(|items| items.iter().map(|item| item.as_str()).collect());
    let Some(texts) = texts else {
        evidence.mark_malformed(name);
        return None;
    };
    let named = texts.into_iter().enumerate().filter(|(_, text)| !is_blank(text));
    Some(named.map(|(index, text)| (format!("context.{name}[{index}]"), text)).collect())
}

fn tools<'a>(request: &'a CheckRequest, evidence: &mut Evidence<'a>) -> Vec<NameAt<'a>> {
    let listed = request.tools.iter().enumerate().map(|(index, tool)| (format!("tools[{index}]"), tool.as_str()));
    let current = evidence.text("current_tool").map(|tool| ("context.current_tool".to_owned(), tool));
    listed.chain(current).collect()
}

/// A name of an environment in the readings in which it is denied; `None` for an ambiguous name.
pub(super) struct Environment(Option<[String; 2]>);

impl Environment {
    pub(super) fn of(name: &str, names: &Names) -> Self {
        let spelling = Spelling::of(name);
        let readings = || Some([names.canonical(spelling.folded()?), names.canonical(spelling.split()?)]);
        Self(readings())
    }

    /// Whether the two have a reading in common, or one of them is ambiguous.
    pub(super) fn may_be(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(one), Some(two)) => one.iter().any(|reading| two.contains(reading)),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use stage0_contract::CheckRequest;

    fn read(constraint: &str, context: impl Into<Value>) -> Scopes {
        let pack = crate::pack::Pack::embedded().unwrap();
        let declared = Declared::read(&[constraint.to_owned()], &pack.vocabulary, &pack.windows).unwrap();
        let request = CheckRequest::parse(json!({"goal": "g", "context": context.into()})).unwrap();
        let mut evidence = Evidence::new(request.context.as_ref());
        Scopes::read(&declared, &request, &pack.vocabulary, &mut evidence)
    }

    fn outside(scope: &str, target: &str) -> bool {
        !read(&format!("resource_scope: {scope}"), json!({"target_resources": [target]})).resources_outside.is_empty()
    }

    #[test]
    fn a_resource_scope_without_a_star_is_exact() {
        assert!(!outside("accounts:staging", "Accounts:Staging"));
        assert!(outside("accounts:staging", "accounts:staging2"));
        assert!(outside("accounts:staging", "accounts:staging/a"));
        assert!(!outside("*", "anything/at all"));
        assert!(outside("*", "../x"));
        assert!(outside("../*", "x"));
    }

    fn found(culprits: &[Culprit]) -> Vec<(&str, &str)> {
        culprits.iter().map(|culprit| (culprit.at.as_str(), culprit.found.as_str())).collect()
    }

    #[test]
    fn every_target_resource_and_the_resource_scope_of_the_context_count() {
        let scopes = read("resource_scope: a/*", json!({"target_resources": ["a/1", " ", "b/1", "A/..;/b"]}));
        assert!(scopes.resources_named);
        assert_eq!(
            found(&scopes.resources_outside),
            [("context.target_resources[2]", "b/1"), ("context.target_resources[3]", "A/..;/b")]
        );
        let scopes = read("resource_scope: a", json!({"resource_scope": "b"}));
        assert_eq!(found(&scopes.resources_outside), [("context.resource_scope", "b")]);
        assert!(!read("resource_scope: a/*", json!({"target_resources": ["a/1", "/"]})).resources_outside.is_empty());
        let empty = read("resource_scope: a", json!({"target_resources": []}));
        assert!(!empty.resources_named && empty.resources_outside.is_empty());
        let many = read("resource_scope: a", json!({"target_resources": vec!["b"; 1_000]}));
        assert_eq!(many.resources_outside.len(), MAX_CULPRITS);
    }

    #[test]
    fn an_empty_list_of_active_servers_is_evidence_and_an_unlisted_server_is_outside() {
        assert!(read("allowed_mcp_servers: a", json!({"active_mcp_servers": []})).mcp_servers_named);
        assert!(!read("allowed_mcp_servers: a", json!({})).mcp_servers_named);
        assert!(!read("allowed_mcp_servers: a", json!({"active_mcp_servers": ["a", null]})).mcp_servers_named);
        let scopes = read("allowed_mcp_servers: a, git*", json!({"active_mcp_servers": ["A", "b", "GitHub"]}));
        assert_eq!(found(&scopes.mcp_servers_outside), [("context.active_mcp_servers[1]", "b")]);
        let scopes = read("allowed_mcp_servers: git-hub", json!({"active_mcp_servers": ["git_hub"]}));
        assert_eq!(scopes.mcp_servers_outside.len(), 1, "a server is an identity");
    }

    #[test]
    fn the_server_of_a_proposed_tool_counts_as_active() {
        let servers = |constraint: &str, tool: &str| read(constraint, json!({"current_tool": tool}));
        let scopes = servers("allowed_mcp_servers: github", "mcp__filesystem__write_file");
        assert!(scopes.mcp_servers_named);
        assert_eq!(found(&scopes.mcp_servers_outside), [("context.current_tool", "mcp__filesystem__write_file")]);
        for (allowed, tool) in [
            ("filesystem", "mcp__FileSystem__write_file"),
            ("my__server", "mcp__my__server__write"),
            ("my", "mcp__my__server__write"),
            ("*", "mcp__any__write"),
        ] {
            let scopes = servers(&format!("allowed_mcp_servers: {allowed}"), tool);
            assert!(scopes.mcp_servers_outside.is_empty() && scopes.mcp_servers_named, "{allowed} {tool}");
        }
        let plain = servers("allowed_mcp_servers: github", "write_file");
        assert!(plain.mcp_servers_outside.is_empty() && !plain.mcp_servers_named);
    }

    #[test]
    fn tenant_isolation_compares_tenants_exactly() {
        let tenants = |context: Value| read("tenant_isolation", context);
        let scopes = tenants(json!({"tenant_id": "t1", "target_tenants": ["t1", "t9", "t_1", "t-1"]}));
        let outside: Vec<&str> = found(&scopes.tenants_outside).into_iter().map(|(at, _)| at).collect();
        assert_eq!(outside, ["context.target_tenants[1]", "context.target_tenants[2]", "context.target_tenants[3]"]);
        assert!(tenants(json!({"tenant_id": "t1", "target_tenants": ["T1 "]})).tenants_outside.is_empty());
        assert!(!tenants(json!({"tenant_id": "t1"})).tenants_named);
        assert!(!tenants(json!({"target_tenants": ["t1"]})).tenants_named);
        let alike = tenants(json!({"tenant_id": "t\u{456}1", "target_tenants": ["t\u{456}1"]}));
        assert!(!alike.tenants_outside.is_empty());
    }

    #[test]
    fn the_current_tool_must_be_on_the_list_of_allowed_tools_too() {
        let scopes = read("allowed_tools: a", json!({"current_tool": "b"}));
        assert_eq!(found(&scopes.tools_outside), [("context.current_tool", "b")]);
        assert!(read("allowed_tools: a", json!({"current_tool": "A"})).tools_outside.is_empty());
        let scopes = read("denied_tools: b*", json!({"current_tool": "Bash"}));
        assert_eq!(found(&scopes.tools_denied), [("context.current_tool", "Bash")]);
        assert!(read("denied_tools: b*", json!({"current_tool": "a"})).tools_denied.is_empty());
    }

    #[test]
    fn an_environment_is_denied_in_every_spelling_and_under_every_alias() {
        let denied = |denied: &str, named: &str| {
            let constraint = format!("denied_environment: {denied}");
            !read(&constraint, json!({"target_environment": named})).environments_denied.is_empty()
        };
        for (list, named) in [
            ("production", "Prod"),
            ("prod", "production"),
            ("live", "PRD"),
            ("pre-prod", "preProd"),
            ("preProd", "preprod"),
            ("qa", "q\u{430}"),
        ] {
            assert!(denied(list, named), "{list} {named}");
        }
        for (list, named) in [("production", "staging"), ("prod", "preprod"), ("pre-prod", "pre__prod")] {
            assert!(!denied(list, named), "{list} {named}");
        }
    }
}
