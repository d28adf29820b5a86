//! The digest of an action: what an approval is of. Two requests with one digest are the same action.
//!
//! It is the SHA-256 of the canonical JSON of account, environment, policy version and request, without the members of
//! `context` that change from one attempt to the next. Every other member is bound, those that nothing reads too.

use std::fmt;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::canonical::canonical_hash;
use crate::{AccountId, CONTEXT_MEMBERS, CheckRequest, IdError, PolicyVersion};

/// Members of `context` that start so are left out: what the caller says of an approval.
pub const VOLATILE_CONTEXT_PREFIXES: [&str; 2] = ["approval_", "approved_"];
/// Members of `context` that are left out: what the agent's loop has counted. Of `loop_state` its `run_id` stays.
pub const VOLATILE_CONTEXT_MEMBERS: [&str; 5] =
    ["current_iteration", "retry_count", "elapsed_seconds", "recent_tools", "cumulative_cost_usd"];

/// The digest of an action: 64 hexadecimal digits in lower case.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ActionDigest(String);

impl ActionDigest {
    /// The digest of a request of this account under this policy. `environment` is the one that the policy resolved;
    /// `also_volatile` are further members of `context` that the policy pack leaves out.
    pub fn of(
        request: &CheckRequest,
        account: &AccountId,
        environment: &str,
        policy_version: &PolicyVersion,
        also_volatile: &[String],
    ) -> Self {
        let body = Map::from_iter([
            ("account".to_owned(), account.as_str().into()),
            ("environment".to_owned(), environment.into()),
            ("policy_version".to_owned(), policy_version.as_str().into()),
            ("request".to_owned(), bound_request(request, also_volatile).into()),
        ]);
        Self(canonical_hash(&body))
    }

    /// Reads 64 hexadecimal digits in lower case.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let is_hash = text.len() == 64 && HEXLOWER.decode(text.as_bytes()).is_ok();
        if is_hash { Ok(Self(text.to_owned())) } else { Err(IdError { expected: "64 hexadecimal digits" }) }
    }

    /// The digest as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Every member of the request that is bound. The environment stands at one place, wherever the caller wrote it, and a
/// context of which nothing is bound is none.
fn bound_request(request: &CheckRequest, also_volatile: &[String]) -> Map<String, Value> {
    let texts = |texts: &[String]| Value::from(texts.to_vec());
    let inner = request.context.as_ref().and_then(|context| context.get("environment"));
    let environment = request.environment.as_deref().map(Value::from).or_else(|| inner.cloned());
    let context = |all: &Map<String, Value>| {
        let bound = bound_context(all, request.environment.as_deref(), also_volatile);
        (!bound.is_empty()).then_some(bound)
    };
    let mut bound = request.unknown.clone();
    bound.extend([
        ("constraints".to_owned(), texts(&request.constraints)),
        ("context".to_owned(), request.context.as_ref().and_then(context).into()),
        ("debug_store_input".to_owned(), request.debug_store_input.into()),
        ("environment".to_owned(), environment.into()),
        ("goal".to_owned(), request.goal.as_str().into()),
        ("policy_pack_version".to_owned(), request.policy_pack_version.as_deref().into()),
        ("pro".to_owned(), request.pro.into()),
        // Absent and `[]` are different statements.
        ("side_effects".to_owned(), request.side_effects_stated.then(|| texts(&request.side_effects)).into()),
        ("success_criteria".to_owned(), texts(&request.success_criteria)),
        ("tools".to_owned(), texts(&request.tools)),
    ]);
    bound
}

/// `environment`: that of the request beside its context. The one in the context is bound here only where it says
/// something else.
fn bound_context(
    context: &Map<String, Value>,
    environment: Option<&str>,
    also_volatile: &[String],
) -> Map<String, Value> {
    let is_bound = |name: &str, value: &Value| match name {
        "environment" => environment.is_some_and(|outer| value.as_str() != Some(outer)),
        "loop_state" => false,
        name => {
            !VOLATILE_CONTEXT_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
                && !VOLATILE_CONTEXT_MEMBERS.contains(&name)
                // A pack leaves out members of its own, never one that the contract knows.
                && (is_known(name) || !also_volatile.iter().any(|member| member == name))
        }
    };
    let bound = context.iter().filter(|(name, value)| is_bound(name, value));
    let mut bound: Map<String, Value> = bound.map(|(name, value)| (name.clone(), value.clone())).collect();
    let run = context.get("loop_state").and_then(Value::as_object).and_then(|state| state.get("run_id"));
    if let Some(run) = run {
        bound.insert("loop_state".to_owned(), Map::from_iter([("run_id".to_owned(), run.clone())]).into());
    }
    bound
}

fn is_known(name: &str) -> bool {
    CONTEXT_MEMBERS.iter().any(|member| member.name == name)
}

impl TryFrom<String> for ActionDigest {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        Self::parse(&text)
    }
}

impl From<ActionDigest> for String {
    fn from(digest: ActionDigest) -> Self {
        digest.0
    }
}

impl fmt::Display for ActionDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ActionDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
