//! Role and environment: who acts, and where.
//!
//! Of the members of `context` that name a role the first one present counts; of those that name an environment all
//! count. Names are compared with the declared lists after folding, environments also by the pack's aliases. An
//! ambiguous word (letters of mixed scripts) becomes the empty text, which is on no declared list.

use std::collections::BTreeSet;

use serde_json::{Map, Value};
use stage0_contract::{CheckRequest, FieldError, Spelling, Word, is_blank};

use super::culprit::Culprit;
use super::declared::Declared;
use super::evidence::Evidence;
use super::proposal::member;
use crate::vocabulary::{Edition, Vocabulary};

/// Role and environments as rules compare them. A name on a declared list is spelled as on the list.
#[derive(Debug, Default)]
pub(crate) struct Access {
    pub(crate) role: Option<String>,
    pub(crate) required_roles: Option<Vec<String>>,
    pub(crate) environments: Vec<String>,
    pub(crate) allowed_environments: Option<Vec<String>>,
    /// The role as it was sent, where it is not on the list of required roles.
    pub(crate) role_outside: Vec<Culprit>,
    /// Environments as they were sent, where they are not on the list of allowed ones.
    pub(crate) environments_outside: Vec<Culprit>,
}

/// Members of `context` that name the role, in order of precedence.
const ROLES: [&str; 3] = ["actor_role", "user_role", "requester_role"];

impl Access {
    pub(crate) fn read<'a>(
        request: &'a CheckRequest,
        declared: &Declared,
        vocabulary: &Vocabulary,
        evidence: &mut Evidence<'a>,
    ) -> Self {
        let read = |list: &Option<Vec<String>>, kind: Kind| -> Option<Vec<Name>> {
            Some(list.as_ref()?.iter().map(|name| Name::of(name, kind, vocabulary)).collect())
        };
        let names = |list: &Option<Vec<Name>>| -> Option<Vec<String>> {
            Some(list.as_ref()?.iter().map(|name| name.canonical().to_owned()).collect())
        };
        let required = read(&declared.required_roles, Kind::Role);
        let allowed = read(&declared.allowed_environments, Kind::Environment);
        let mut access =
            Self { required_roles: names(&required), allowed_environments: names(&allowed), ..Self::default() };
        if let Some((member, sent)) = role(evidence) {
            let (name, listed) = Name::of(sent, Kind::Role, vocabulary).find_on(required.as_deref());
            access.role = Some(name);
            if required.is_some() && !listed {
                access.role_outside.push(Culprit::new(format!("context.{member}"), sent));
            }
        }
        for (at, sent) in environments(request, evidence) {
            let (name, listed) = Name::of(sent, Kind::Environment, vocabulary).find_on(allowed.as_deref());
            access.environments.push(name);
            if allowed.is_some() && !listed {
                access.environments_outside.push(Culprit::new(at, sent));
            }
        }
        access.environments.sort_unstable();
        access.environments.dedup();
        access
    }
}

/// Refuses a request whose two environments are different ones by the pack's aliases.
pub(crate) fn check_environments_agree(request: &CheckRequest, vocabulary: &Vocabulary) -> Result<(), Vec<FieldError>> {
    let Some((outer, inner)) = request.two_environments() else { return Ok(()) };
    let [outer, inner] = [outer, inner].map(|sent| Name::of(sent, Kind::Environment, vocabulary));
    if outer.is(&inner) { Ok(()) } else { Err(vec![FieldError::environments_differ()]) }
}

/// The environment as the caller wrote it, trimmed; empty when the request names none.
pub(crate) fn environment_as_written(request: &CheckRequest) -> String {
    let inner = |name| request.context.as_ref().and_then(|c| c.get(name)).and_then(|v| v.as_str());
    let mut named = [request.environment.as_deref(), inner("environment"), inner("target_environment")].into_iter();
    named.find_map(|text| text.filter(|t| !is_blank(t))).map(|t| t.trim().to_owned()).unwrap_or_default()
}

/// The environment that counts in an action's digest: the pack's name for the one that the request names; empty where
/// it names none, or one that is ambiguous.
pub(crate) fn resolved_environment(request: &CheckRequest, vocabulary: &Vocabulary) -> String {
    let sent = environment_as_written(request);
    if sent.is_empty() { sent } else { Name::of(&sent, Kind::Environment, vocabulary).canonical().to_owned() }
}

/// Whether no list of allowed environments can spell an environment of the request otherwise.
pub(crate) fn are_environments_settled(request: &CheckRequest, vocabulary: &Vocabulary) -> bool {
    let named = environments(request, &mut Evidence::new(request.context.as_ref()));
    named.into_iter().all(|(_, sent)| is_settled(sent, Kind::Environment, vocabulary))
}

/// Whether no further member of `context` can name another role, and no list of required roles can spell it otherwise.
pub(crate) fn is_role_settled(context: Option<&Map<String, Value>>, vocabulary: &Vocabulary) -> bool {
    for name in ROLES {
        match context.and_then(|context| context.get(name)) {
            None => return false,
            Some(Value::Null) => {}
            Some(Value::String(sent)) if is_blank(sent) => {}
            Some(Value::String(sent)) => return is_settled(sent, Kind::Role, vocabulary),
            Some(_) => return true,
        }
    }
    true
}

/// Whether a name is spelled the same on every list that has it: `pre_prod` is not, because a list may say `preProd`.
fn is_settled(sent: &str, kind: Kind, vocabulary: &Vocabulary) -> bool {
    if vocabulary.edition() == Edition::First {
        return true;
    }
    let spelling = Spelling::of(sent);
    // An ambiguous name is on no list.
    let (Some(folded), Some(split)) = (spelling.folded(), spelling.split()) else { return true };
    let names = &vocabulary.names;
    let is_alias = || names.environment(&spelling).is_some() || !names.has_alias_of_letters(folded);
    folded == split && !folded.contains('_') && (kind == Kind::Role || is_alias())
}

/// Every environment that the request names, by the pack's name for it; `None` stands for those that cannot be read.
pub(super) fn canonical_environments(request: &CheckRequest, vocabulary: &Vocabulary) -> BTreeSet<Option<String>> {
    let canonical = |sent: &str| {
        let name = Name::of(sent, Kind::Environment, vocabulary);
        Some(name.canonical().to_owned()).filter(|name| !name.is_empty())
    };
    let inner = ["environment", "target_environment"].into_iter().filter_map(|name| member(request, name));
    let inner = inner.map(|value| value.as_str().and_then(canonical));
    let outer = request.environment.as_deref().filter(|text| !is_blank(text)).map(canonical);
    outer.into_iter().chain(inner).collect()
}

fn role<'a>(evidence: &mut Evidence<'a>) -> Option<(&'static str, &'a str)> {
    for name in ROLES {
        match evidence.member(name) {
            None => {}
            Some(value) if value.as_str().is_some_and(is_blank) => {}
            // A value of the wrong type leaves the role unknown: the next member must not replace it.
            Some(value) => {
                if !value.is_string() {
                    // One name for all three members, so that a rule need not list them.
                    evidence.mark_malformed("role");
                }
                return evidence.text(name).map(|sent| (name, sent));
            }
        }
    }
    None
}

/// The path of each environment, and its name as it was sent.
pub(super) fn environments<'a>(request: &'a CheckRequest, evidence: &mut Evidence<'a>) -> Vec<(&'static str, &'a str)> {
    let mut sent: Vec<(&'static str, &'a str)> = Vec::new();
    sent.extend(request.environment.as_deref().filter(|e| !is_blank(e)).map(|text| ("environment", text)));
    for (name, at) in [("environment", "context.environment"), ("target_environment", "context.target_environment")] {
        if evidence.member(name).is_some_and(|value| !value.is_string()) {
            evidence.mark_malformed("environment");
        }
        sent.extend(evidence.text(name).map(|text| (at, text)));
    }
    sent
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Role,
    /// Compared by the pack's aliases too.
    Environment,
}

/// A name in the form in which the pack's edition compares it.
enum Name {
    /// First edition: the whole normalised word.
    Whole(String),
    Spelled {
        spelling: Spelling,
        /// The environment of the pack that this is a name of.
        alias: Option<String>,
    },
}

impl Name {
    fn of(sent: &str, kind: Kind, vocabulary: &Vocabulary) -> Self {
        match vocabulary.edition() {
            Edition::First => Self::Whole(Word::new(sent).known().unwrap_or_default().to_owned()),
            Edition::Second => {
                let spelling = Spelling::of(sent);
                let alias = (kind == Kind::Environment).then(|| vocabulary.names.environment(&spelling)).flatten();
                Self::Spelled { alias: alias.map(str::to_owned), spelling }
            }
        }
    }

    fn canonical(&self) -> &str {
        match self {
            Self::Whole(word) => word,
            Self::Spelled { alias: Some(name), .. } => name,
            Self::Spelled { spelling, alias: None } => spelling.folded().unwrap_or_default(),
        }
    }

    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Spelled { spelling: one, .. }, Self::Spelled { spelling: two, .. }) if one.is_same(two) => true,
            // One may be an alias of the other.
            _ => !self.canonical().is_empty() && self.canonical() == other.canonical(),
        }
    }

    /// The name as the list spells it, and whether it is on the list.
    fn find_on(&self, list: Option<&[Self]>) -> (String, bool) {
        let found = list.and_then(|list| list.iter().find(|one| one.is(self)));
        (found.unwrap_or(self).canonical().to_owned(), found.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Files;
    use crate::pack::Pack;
    use serde_json::json;

    const ROLE: &str = "required_role: platform_admin, sre";
    const ENVIRONMENT: &str = "allowed_environment: staging, pre-prod";

    fn read_with(body: Value, vocabulary: &Vocabulary) -> (Access, Vec<&'static str>) {
        let pack = Pack::embedded().unwrap();
        let request = CheckRequest::parse(body).unwrap();
        let declared = Declared::read(&request.constraints, vocabulary, &pack.windows).unwrap();
        let mut evidence = Evidence::new(request.context.as_ref());
        let access = Access::read(&request, &declared, vocabulary, &mut evidence);
        (access, evidence.malformed())
    }

    fn read(body: Value) -> (Access, Vec<&'static str>) {
        read_with(body, &Pack::embedded().unwrap().vocabulary)
    }

    #[test]
    fn the_first_role_present_counts_even_if_it_is_malformed() {
        let role = |context: Value| read(json!({"goal": "g", "context": context})).0.role;
        assert_eq!(role(json!({"user_role": "Dev", "actor_role": null})), Some("dev".to_owned()));
        assert_eq!(role(json!({"user_role": "dev", "actor_role": " "})), Some("dev".to_owned()));
        assert_eq!(role(json!({"user_role": "admin", "actor_role": "viewer"})), Some("viewer".to_owned()));
        assert_eq!(role(json!({"user_role": "admin", "actor_role": 7})), None);
        assert_eq!(role(json!({"actor_role": "\u{430}dmin"})), Some(String::new()));
        let malformed = read(json!({"goal": "g", "context": {"user_role": ["sre"]}})).1;
        assert_eq!(malformed, ["role", "user_role"]);
    }

    #[test]
    fn every_environment_that_the_request_names_counts() {
        let (access, malformed) = read(json!({"goal": "g", "environment": "Staging",
            "context": {"environment": "staging ", "target_environment": "production"}}));
        assert_eq!(access.environments, ["production", "staging"]);
        assert!(malformed.is_empty());
        let (access, malformed) =
            read(json!({"goal": "g", "environment": "staging", "context": {"target_environment": 3}}));
        assert_eq!(
            (access.environments, malformed),
            (vec!["staging".to_owned()], vec!["environment", "target_environment"])
        );
    }

    #[test]
    fn a_required_role_is_matched_in_any_spelling() {
        let outside = |role: &str| {
            let (access, _) = read(json!({"goal": "g", "constraints": [ROLE], "context": {"user_role": role}}));
            let inside = access.required_roles.unwrap().contains(&access.role.unwrap());
            assert_eq!(inside, access.role_outside.is_empty(), "{role}");
            access.role_outside
        };
        for role in ["platform_admin", "Platform Admin", "PLATFORM-ADMIN", "platformAdmin", "ＳＲＥ", "s\u{200b}re"]
        {
            assert!(outside(role).is_empty(), "{role}");
        }
        for role in ["platform__admin", "platformadmin", "admin", "sres", "sr\u{435}", "platform_admin_2"] {
            assert_eq!(outside(role), [Culprit::new("context.user_role", role)]);
        }
    }

    #[test]
    fn an_allowed_environment_is_matched_in_any_spelling_and_under_any_alias() {
        let outside = |constraint: &str, context: Value| {
            let (access, _) = read(json!({"goal": "g", "constraints": [constraint], "context": context}));
            let allowed = access.allowed_environments.unwrap();
            let inside = access.environments.iter().all(|environment| allowed.contains(environment));
            assert_eq!(inside, access.environments_outside.is_empty());
            access.environments_outside.into_iter().map(|culprit| (culprit.at, culprit.found)).collect::<Vec<_>>()
        };
        for inside in ["staging", "STG", "stage", "ステージング", "pre_prod", "Pre Prod", "preProd"] {
            assert_eq!(outside(ENVIRONMENT, json!({"environment": inside})), [], "{inside}");
        }
        for other in ["PRODUCTION", "prod", "pre__prod", "preprod", "stag\u{456}ng", "staging2", "本番"] {
            let expected = ("context.environment".to_owned(), other.to_owned());
            assert_eq!(outside(ENVIRONMENT, json!({"environment": other})), [expected]);
        }
        for allowed in ["prod", "production", "Live"] {
            let constraint = format!("allowed_environment: {allowed}");
            for sent in ["prod", "PRD", "production", "本番"] {
                assert_eq!(outside(&constraint, json!({"environment": sent})), [], "{allowed} {sent}");
            }
        }
        // Every environment that is named must be allowed.
        let expected = ("context.target_environment".to_owned(), "prod".to_owned());
        assert_eq!(outside(ENVIRONMENT, json!({"environment": "stg", "target_environment": "prod"})), [expected]);
    }

    #[test]
    fn two_environments_of_a_request_agree_by_the_aliases_of_the_pack() {
        let pack = Pack::embedded().unwrap();
        let one = |outer: &str, inner: &str| {
            let body = json!({"goal": "g", "environment": outer, "context": {"environment": inner}});
            check_environments_agree(&CheckRequest::parse(body).unwrap(), &pack.vocabulary).is_ok()
        };
        for (outer, inner) in [("prod", "production"), ("prd", "live"), ("stg", "Stage"), ("pre-prod", "Pre Prod")] {
            assert!(one(outer, inner) && one(inner, outer), "{outer} {inner}");
        }
        for (outer, inner) in [("prod", "staging"), ("dev", "d\u{435}v"), ("d\u{435}v", "d\u{435}v "), ("qa", "test")] {
            assert!(!one(outer, inner) && !one(inner, outer), "{outer} {inner}");
        }
    }

    #[test]
    fn the_first_edition_compares_roles_and_environments_as_whole_words() {
        let pack = Pack::load(&Files::first_edition()).unwrap();
        let (access, _) = read_with(
            json!({"goal": "g", "constraints": [ENVIRONMENT, ROLE],
                "context": {"environment": "STAGING", "target_environment": "stg", "actor_role": "Platform Admin"}}),
            &pack.vocabulary,
        );
        assert_eq!((access.environments_outside.len(), access.role_outside.len()), (1, 1));
        let body = json!({"goal": "g", "environment": "prod", "context": {"environment": "production"}});
        assert!(check_environments_agree(&CheckRequest::parse(body).unwrap(), &pack.vocabulary).is_err());
    }
}
