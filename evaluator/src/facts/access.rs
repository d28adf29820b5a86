//! Who acts, and where.
//!
//! Owns which member of `context` names the role (the first present wins) and which name an environment (all count). A word that
//! mixes scripts becomes the empty text, which no declared list can hold.

use stage0_contract::{CheckRequest, Word, is_blank};

use super::evidence::Evidence;

/// Role and environments, normalised.
#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) role: Option<String>,
    /// Each once.
    pub(crate) environments: Vec<String>,
}

impl Access {
    pub(crate) fn read(request: &CheckRequest, evidence: &mut Evidence<'_>) -> Self {
        let mut environments = Vec::new();
        let outer = request.environment.as_deref().filter(|e| !is_blank(e));
        for name in ["environment", "target_environment"] {
            match evidence.member(name) {
                Some(value) if !value.is_string() => evidence.mark("environment"),
                _ => environments.extend(evidence.text(name).map(word)),
            }
        }
        environments.extend(outer.map(word));
        environments.sort_unstable();
        environments.dedup();
        Self { role: role(evidence), environments }
    }
}

/// The environment as the caller wrote it, trimmed; empty when none is named.
pub(crate) fn as_given(request: &CheckRequest) -> String {
    let inner = |name| request.context.as_ref().and_then(|c| c.get(name)).and_then(|v| v.as_str());
    let mut given = [request.environment.as_deref(), inner("environment"), inner("target_environment")].into_iter();
    given.find_map(|text| text.filter(|t| !is_blank(t))).map(|t| t.trim().to_owned()).unwrap_or_default()
}

fn role(evidence: &mut Evidence<'_>) -> Option<String> {
    for name in ["actor_role", "user_role", "requester_role"] {
        match evidence.member(name) {
            None => {}
            Some(value) if value.as_str().is_some_and(is_blank) => {}
            // Of the wrong type: nobody knows who acts, and the next member must not stand in.
            Some(_) => return evidence.text(name).map(word),
        }
    }
    None
}

fn word(raw: &str) -> String {
    Word::new(raw).known().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(body: Value) -> (Access, Vec<&'static str>) {
        let request = CheckRequest::parse(body).unwrap();
        let mut evidence = Evidence::new(request.context.as_ref());
        let access = Access::read(&request, &mut evidence);
        (access, evidence.malformed())
    }

    #[test]
    fn the_first_role_present_wins_and_a_broken_one_hides_the_next() {
        let role = |context: Value| read(json!({"goal": "g", "context": context})).0.role;
        assert_eq!(role(json!({"user_role": "Dev", "actor_role": null})), Some("dev".to_owned()));
        assert_eq!(role(json!({"user_role": "dev", "actor_role": " "})), Some("dev".to_owned()));
        assert_eq!(role(json!({"user_role": "admin", "actor_role": "viewer"})), Some("viewer".to_owned()));
        assert_eq!(role(json!({"user_role": "admin", "actor_role": 7})), None);
        assert_eq!(role(json!({"actor_role": "\u{430}dmin"})), Some(String::new()));
    }

    #[test]
    fn every_environment_that_is_named_counts() {
        let (access, malformed) = read(json!({"goal": "g", "environment": "Staging",
            "context": {"environment": "staging ", "target_environment": "production"}}));
        assert_eq!(access.environments, ["production", "staging"]);
        assert!(malformed.is_empty());
        let (access, malformed) =
            read(json!({"goal": "g", "environment": "staging", "context": {"target_environment": 3}}));
        assert_eq!((access.environments, malformed), (vec!["staging".to_owned()], vec!["environment"]));
    }
}
