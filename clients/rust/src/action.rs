//! What a check asks about.

use serde_json::{Map, Value};
use stage0_contract::canonical_hash;

/// An action that an agent proposes: the body of `POST /check`.
///
/// Name the tool and what it changes outside. An action without effects says so with [`Action::no_effects`]; one that
/// does not say anything is treated with more suspicion.
///
/// ```
/// use serde_json::json;
/// use stage0_client::Action;
///
/// let arguments = json!({"path": "/srv/app/config.toml"});
/// let action = Action::new("Update the configuration")
///     .tool("write_file")
///     .effect("write")
///     .context("environment", "production")
///     .arguments(&arguments);
/// # assert_eq!(action.body()["tools"], json!(["write_file"]));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Action {
    body: Map<String, Value>,
    idempotency_key: Option<String>,
}

impl Action {
    /// An action with its goal: what it is for, in the agent's words.
    pub fn new(goal: impl Into<String>) -> Self {
        let goal = (String::from("goal"), Value::String(goal.into()));
        Self { body: Map::from_iter([goal]), idempotency_key: None }
    }

    /// A request that is already in its JSON form.
    pub fn from_body(body: Map<String, Value>) -> Self {
        Self { body, idempotency_key: None }
    }

    /// The request as it stands, before the client's own defaults are added.
    pub fn body(&self) -> &Map<String, Value> {
        &self.body
    }

    /// One more tool that will be used.
    #[must_use]
    pub fn tool(self, name: impl Into<String>) -> Self {
        self.push("tools", name.into())
    }

    /// One more thing that changes outside, such as `write`, `deploy` or `external_notification`.
    #[must_use]
    pub fn effect(self, effect: impl Into<String>) -> Self {
        self.push("side_effects", effect.into())
    }

    /// States that nothing changes outside.
    #[must_use]
    pub fn no_effects(self) -> Self {
        self.set("side_effects", Value::Array(Vec::new()))
    }

    /// One more limit that the agent declares, such as `max_cost_usd: 5`.
    #[must_use]
    pub fn constraint(self, constraint: impl Into<String>) -> Self {
        self.push("constraints", constraint.into())
    }

    /// One more sign that the goal is reached.
    #[must_use]
    pub fn success_criterion(self, criterion: impl Into<String>) -> Self {
        self.push("success_criteria", criterion.into())
    }

    /// Where it will run.
    #[must_use]
    pub fn environment(self, environment: impl Into<String>) -> Self {
        self.set("environment", Value::String(environment.into()))
    }

    /// A fact about the situation, such as `actor_role` or `target_resources`.
    #[must_use]
    pub fn context(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.set_context(name.into(), value.into());
        self
    }

    /// The arguments of the tool call, as a digest in `context.arguments_sha256`: an approval is then of exactly these.
    /// The arguments themselves are not sent.
    #[must_use]
    pub fn arguments(self, arguments: &Value) -> Self {
        let hash = match arguments {
            Value::Object(members) => canonical_hash(members),
            other => canonical_hash(&Map::from_iter([(String::from("arguments"), other.clone())])),
        };
        self.context("arguments_sha256", hash)
    }

    /// Any other member of the request.
    #[must_use]
    pub fn set(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.body.insert(name.into(), value.into());
        self
    }

    /// The key under which the same check may be asked again: 1 to 128 visible ASCII characters, a new one for each
    /// action. Without one, each [`check`](crate::Client::check) has a random one of its own.
    #[must_use]
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    pub(crate) fn once(&self) -> Option<&str> {
        self.idempotency_key.as_deref()
    }

    /// For another check of the same action.
    pub(crate) fn without_key(mut self) -> Self {
        self.idempotency_key = None;
        self
    }

    /// Adds a member of the context where the action has none of that name.
    pub(crate) fn default_context(&mut self, name: &str, value: &Value) {
        let is_free = match self.body.get("context") {
            None | Some(Value::Null) => true,
            Some(Value::Object(context)) => !context.contains_key(name),
            Some(_) => false,
        };
        if is_free {
            self.set_context(name.to_owned(), value.clone());
        }
    }

    /// Adds the environment where the action names none, at either place.
    pub(crate) fn default_environment(&mut self, environment: &str) {
        let in_context = self.body.get("context").and_then(|context| context.get("environment"));
        if self.body.get("environment").or(in_context).is_none() {
            self.body.insert("environment".to_owned(), environment.into());
        }
    }

    fn set_context(&mut self, name: String, value: Value) {
        let context = self.body.entry("context").or_insert_with(|| Value::Object(Map::new()));
        if context.is_null() {
            *context = Value::Object(Map::new());
        }
        // A context of another type stays as it is: the server says what is wrong with it.
        if let Value::Object(members) = context {
            members.insert(name, value);
        }
    }

    fn push(mut self, name: &str, text: String) -> Self {
        let list = self.body.entry(name).or_insert_with(|| Value::Array(Vec::new()));
        match list {
            Value::Array(items) => items.push(Value::String(text)),
            other => *other = Value::Array(vec![Value::String(text)]),
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_action_is_the_body_of_a_check() {
        let action = Action::new("g").tool("a").tool("b").effect("write").constraint("max_cost_usd: 5");
        let action =
            action.success_criterion("done").environment("prod").context("actor_role", "admin").set("pro", true);
        assert_eq!(
            Value::Object(action.body().clone()),
            json!({"goal": "g", "tools": ["a", "b"], "side_effects": ["write"], "constraints": ["max_cost_usd: 5"],
                "success_criteria": ["done"], "environment": "prod", "context": {"actor_role": "admin"}, "pro": true})
        );
        assert_eq!(Action::new("g").no_effects().body()["side_effects"], json!([]));
        assert!(!Action::new("g").body().contains_key("side_effects"), "absent states nothing");
    }

    #[test]
    fn equal_arguments_have_equal_digests_and_are_not_sent() {
        let digest = |arguments: Value| Action::new("g").arguments(&arguments).body()["context"].clone();
        let one = digest(json!({"path": "/etc/passwd", "n": 1}));
        assert_eq!(one, digest(json!({"n": 1.0, "path": "/etc/passwd"})));
        assert_ne!(one, digest(json!({"n": 2, "path": "/etc/passwd"})));
        assert_ne!(digest(json!(["a"])), digest(json!(["b"])));
        assert!(!one.to_string().contains("passwd"), "{one}");
        assert_eq!(one["arguments_sha256"].as_str().unwrap().len(), 64);
    }

    #[test]
    fn a_default_never_replaces_what_the_action_says() {
        let mut action = Action::new("g").context("run_id", "mine").context("environment", "staging");
        action.default_context("run_id", &json!("theirs"));
        action.default_context("agent_id", &json!("a1"));
        action.default_environment("prod");
        assert_eq!(action.body()["context"], json!({"run_id": "mine", "environment": "staging", "agent_id": "a1"}));
        assert!(!action.body().contains_key("environment"));
        let mut bare = Action::new("g").set("context", Value::Null);
        bare.default_environment("prod");
        bare.default_context("run_id", &json!("r"));
        assert_eq!((&bare.body()["environment"], &bare.body()["context"]), (&json!("prod"), &json!({"run_id": "r"})));
        let mut wrong = Action::new("g").set("context", "text");
        wrong.default_context("run_id", &json!("r"));
        assert_eq!(wrong.body()["context"], "text", "the server names the mistake");
    }
}
