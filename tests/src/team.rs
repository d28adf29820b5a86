//! An account with people: members who decide, agents that ask, and the calls that they make about approvals and stops.
//!
//! Members are invited and accept as people do, so that each key is shown to its member alone. The calls return whole
//! answers: what is refused is as interesting as what is done.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use tempfile::{NamedTempFile, TempDir};

use crate::api::{Answer, Api};
use crate::process::command;
use crate::stack::{Stack, account_scopes};

/// How long an approval may take to be what it must be; the machine may be slow.
const STATUS_TIMEOUT: Duration = Duration::from_secs(20);

/// Gateways listen for three seconds first.
const RECORDABLE_TIMEOUT: Duration = Duration::from_secs(60);

const JSON: (&str, &str) = ("content-type", "application/json");

/// An account, and a key that may do everything there except deciding, which only members' keys may.
pub struct Team {
    pub account: String,
    pub admin: Api,
    operator: Api,
}

/// A person with a key.
pub struct Member {
    pub id: String,
    pub key_id: String,
    pub api: Api,
}

/// A workload.
pub struct Agent {
    pub key_id: String,
    pub api: Api,
}

impl Team {
    /// Where only approvals that are held here count.
    pub async fn verified(stack: &Stack) -> Self {
        Self::in_mode(stack, "verified").await
    }

    /// Where the caller's own word counts as well.
    pub async fn caller(stack: &Stack) -> Self {
        Self::in_mode(stack, "caller").await
    }

    async fn in_mode(stack: &Stack, approvals: &str) -> Self {
        let body = json!({"name": "team", "approvals": approvals});
        let account = stack.operator.post("/v1/accounts", &body).await.expect(201);
        let account = account["id"].as_str().unwrap().to_owned();
        let operator = stack.operator.clone();
        if stack.nats.is_some() {
            until_recordable(stack).await;
        }
        let body = json!({"account": account, "name": "admin", "scopes": account_scopes()});
        let made = operator.post("/v1/keys", &body).await.expect(201);
        Self { account, admin: operator.with_key(made["key"].as_str().unwrap()), operator }
    }

    /// The same team, asked at another gateway.
    #[must_use]
    pub fn at(&self, url: &str) -> Self {
        Self { account: self.account.clone(), admin: self.admin.at(url), operator: self.operator.at(url) }
    }

    /// A member of these groups, invited by the operator, who counts as another person for everybody.
    pub async fn member(&self, name: &str, groups: &[&str]) -> Member {
        self.member_with(&json!({"name": name, "groups": groups})).await
    }

    /// As above, with more than a name and groups.
    pub async fn member_with(&self, body: &Value) -> Member {
        let mut body = body.clone();
        body["account"] = self.account.as_str().into();
        self.operator.invite(&body).await
    }

    /// A workload that the operator made.
    pub async fn agent(&self) -> Agent {
        self.agent_with(&json!({})).await
    }

    /// As above, with an owner, for example.
    pub async fn agent_with(&self, more: &Value) -> Agent {
        let mut body = json!({"account": self.account, "name": "agent", "scopes": ["check"]});
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        self.operator.make_agent(&body).await
    }

    /// Changes a setting of the account.
    pub async fn set(&self, change: &Value) {
        self.operator.patch(&format!("/v1/accounts/{}", self.account), change).await.expect(200);
    }
}

/// Lines about approvals are written once a gateway has heard of every process; asked in an account of its own.
async fn until_recordable(stack: &Stack) {
    let (_, key, _) = stack.operator.account("early", None, &["check"]).await;
    for url in &stack.urls {
        let api = stack.api.with_key(&key).at(url);
        let mut asked = 0;
        let opens = async || {
            asked += 1;
            let body = Api::deployment_of(&format!("service {asked} of {url}"));
            api.check(&body).await.body["approval"].is_object()
        };
        wait_for("an approval that is opened", RECORDABLE_TIMEOUT, opens).await;
    }
}

impl Member {
    /// The same member at another gateway.
    #[must_use]
    pub fn at(&self, url: &str) -> Self {
        Self { id: self.id.clone(), key_id: self.key_id.clone(), api: self.api.at(url) }
    }
}

impl Agent {
    /// The same workload at another gateway.
    #[must_use]
    pub fn at(&self, url: &str) -> Self {
        Self { key_id: self.key_id.clone(), api: self.api.at(url) }
    }

    /// Another key of the same workload; the old one ends.
    pub async fn rotated(&self, by: &Api) -> Self {
        let made = by.post(&format!("/v1/keys/{}/rotate", self.key_id), &json!({})).await.expect(201);
        Self::of(by, &made)
    }

    fn of(by: &Api, made: &Value) -> Self {
        let text = |name: &str| made[name].as_str().unwrap();
        Self { key_id: text("id").to_owned(), api: by.with_key(text("key")) }
    }
}

impl Api {
    /// An action that needs an approval and nothing else.
    pub fn deployment() -> Value {
        json!({"goal": "Deploy the payments service", "success_criteria": ["deployment completes safely"],
            "side_effects": ["deploy"], "constraints": ["allowed_tools: argo_cd"], "tools": ["argo_cd"],
            "environment": "staging", "context": {"actor_role": "platform_admin"}})
    }

    /// The same kind of action with another goal, and so another action.
    pub fn deployment_of(what: &str) -> Value {
        let mut body = Self::deployment();
        body["goal"] = format!("Deploy the {what} service").into();
        body
    }

    /// Invites somebody, who accepts.
    pub async fn invite(&self, body: &Value) -> Member {
        let invited = self.post("/v1/members", body).await.expect(201);
        self.accept(invited["invitation_code"].as_str().unwrap()).await
    }

    /// Accepts an invitation.
    pub async fn accept(&self, code: &str) -> Member {
        let made = self.try_accept(code).await.expect(201);
        let text = |name: &str| made[name].as_str().unwrap().to_owned();
        Member { id: text("id"), key_id: text("key_id"), api: self.with_key(&text("key")) }
    }

    /// Shows a code, which may be wrong.
    pub async fn try_accept(&self, code: &str) -> Answer {
        self.without_key().post("/v1/invitations/accept", &json!({"code": code})).await
    }

    /// Makes a key of a new workload.
    pub async fn make_agent(&self, body: &Value) -> Agent {
        Agent::of(self, &self.post("/v1/keys", body).await.expect(201))
    }

    /// Asks under an `Idempotency-Key`.
    pub async fn check_under(&self, key: &str, body: &Value) -> Answer {
        self.try_check_under(key, body).await.expect("an answer")
    }

    /// As above, where there may be no answer at all.
    pub async fn try_check_under(&self, key: &str, body: &Value) -> Result<Answer, reqwest::Error> {
        let headers = [JSON, ("idempotency-key", key)];
        self.try_send(Method::POST, "/check", &headers, Some(body.to_string().into_bytes())).await
    }

    /// Asks for an action that must be deferred: the approval that the answer names.
    pub async fn deferred(&self, body: &Value) -> Value {
        let answer = self.check(body).await.expect(200);
        assert_eq!(answer["verdict"], "DEFER", "{answer:#}");
        assert!(answer["approval"].is_object(), "no approval is opened: {answer:#}");
        answer["approval"].clone()
    }

    /// Asks for an action: verdict, and the answer.
    pub async fn verdict(&self, body: &Value) -> (String, Value) {
        let answer = self.check(body).await.expect(200);
        (answer["verdict"].as_str().unwrap().to_owned(), answer)
    }

    /// The approval with the id of what is given: an approval, or the short form in an answer.
    pub async fn approval(&self, of: &Value) -> Answer {
        self.get(&path(of)).await
    }

    /// Waits for a change of it.
    pub async fn wait(&self, of: &Value, wait: &str) -> Answer {
        self.get(&format!("{}?wait={wait}", path(of))).await
    }

    /// Where it stands.
    pub async fn standing(&self, of: &Value) -> String {
        self.approval(of).await.expect(200)["status"].as_str().unwrap().to_owned()
    }

    /// Waits until it stands so: a use is confirmed a moment after the answer has left.
    pub async fn until(&self, of: &Value, status: &str) {
        wait_for(status, STATUS_TIMEOUT, async || self.standing(of).await == status).await;
    }

    /// Approves what was shown.
    pub async fn approve(&self, shown: &Value) -> Answer {
        let body = json!({"action_digest": shown["action_digest"], "reason": "checked the plan"});
        self.post(&format!("{}/approve", path(shown)), &body).await
    }

    /// Denies what was shown.
    pub async fn deny(&self, shown: &Value, reason: &str) -> Answer {
        let body = json!({"action_digest": shown["action_digest"], "reason": reason});
        self.post(&format!("{}/deny", path(shown)), &body).await
    }

    pub async fn cancel(&self, of: &Value) -> Answer {
        self.post(&format!("{}/cancel", path(of)), &json!({"reason": "no longer needed"})).await
    }

    pub async fn reopen(&self, of: &Value, reason: &str) -> Answer {
        self.post(&format!("{}/reopen", path(of)), &json!({"reason": reason})).await
    }

    pub async fn report(&self, of: &Value, status: &str) -> Answer {
        self.post(&format!("{}/outcome", path(of)), &json!({"status": status})).await
    }

    /// The types of what happened to it, the oldest first.
    pub async fn history(&self, of: &Value) -> Vec<String> {
        let history = self.get(&format!("{}/history", path(of))).await.expect(200);
        let events = history["items"].as_array().unwrap();
        events.iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect()
    }

    /// Stops checks: the stop's id.
    pub async fn stop(&self, body: &Value) -> String {
        self.post("/v1/stops", body).await.expect(201)["id"].as_str().unwrap().to_owned()
    }

    pub async fn resume(&self, stop: &str, reason: &str) -> Answer {
        self.post(&format!("/v1/stops/{stop}/resume"), &json!({"reason": reason})).await
    }

    /// Every line of the log that may be downloaded, as it is stored.
    pub async fn lines(&self) -> Vec<Value> {
        let export = self.get("/v1/decisions/export").await;
        assert_eq!(export.status, 200, "{}", export.text);
        export.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Runs a command of the product as the holder of this key does.
    pub fn cli(&self, ca: &Path, arguments: &[&str]) -> Output {
        let mut command: Command = command();
        command.args(arguments).env("STAGE0_URL", &self.url).env("STAGE0_CA", ca);
        let mut file = NamedTempFile::new().unwrap();
        if let Some(key) = &self.key {
            file.write_all(key.as_bytes()).unwrap();
            command.arg("--key-file").arg(file.path());
        }
        command.output().expect("stage0 starts")
    }
}

fn path(of: &Value) -> String {
    format!("/v1/approvals/{}", of["id"].as_str().expect("an approval with an id"))
}

/// Folders with a policy pack whose rules say who must approve.
pub struct Packs {
    directory: TempDir,
    first: String,
}

impl Packs {
    /// The baseline with annotations on a rule, such as `approval.high_effect`, named and numbered as wanted.
    pub fn annotated(version: &str, rules: &[(&str, &str)]) -> Self {
        let packs = Self { directory: tempfile::tempdir().unwrap(), first: version.to_owned() };
        packs.add(version, rules);
        packs
    }

    /// A pack that extends the baseline with these files.
    pub fn extending_baseline(version: &str, files: &[(&str, &str)]) -> Self {
        let packs = Self { directory: tempfile::tempdir().unwrap(), first: version.to_owned() };
        let manifest = format!("name = \"team\"\nversion = \"{version}\"\nextends = \"baseline@2\"\n");
        let folder = packs.folder(version);
        std::fs::create_dir(&folder).unwrap();
        for (file, text) in files.iter().copied().chain([("pack.toml", manifest.as_str())]) {
            std::fs::write(folder.join(file), text).unwrap();
        }
        packs
    }

    /// One more version beside those that there are.
    pub fn add(&self, version: &str, rules: &[(&str, &str)]) {
        self.write(version, |file, text| {
            let annotated = rules.iter().fold(text, |text, (rule, annotations)| {
                let id = format!("@id(\"{rule}\")");
                text.replace(&id, &format!("{id}\n{annotations}"))
            });
            match file {
                "pack.toml" => annotated
                    .replace("name = \"baseline\"", "name = \"team\"")
                    .replace("version = \"2.0.0\"", &format!("version = \"{version}\"")),
                _ => annotated,
            }
        });
    }

    /// Further lines at the end of a pack's `pack.toml`.
    pub fn extend(&self, version: &str, lines: &str) {
        let file = self.folder(version).join("pack.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(file, format!("{text}\n{lines}\n")).unwrap();
    }

    fn folder(&self, version: &str) -> PathBuf {
        self.directory.path().join(format!("team-{version}"))
    }

    fn write(&self, version: &str, change: impl Fn(&str, String) -> String) {
        let baseline = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/baseline");
        let folder = self.folder(version);
        std::fs::create_dir(&folder).unwrap();
        for entry in std::fs::read_dir(baseline).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            let text = std::fs::read_to_string(entry.path()).unwrap();
            std::fs::write(folder.join(&name), change(&name, text)).unwrap();
        }
    }

    /// What a process is given so that it decides by the first pack.
    pub fn arguments(&self) -> Vec<String> {
        self.active(&self.first)
    }

    /// What a process is given so that it decides by this version.
    pub fn active(&self, version: &str) -> Vec<String> {
        let folder = self.directory.path().to_str().unwrap().to_owned();
        vec!["--policies".to_owned(), folder, "--active-policy".to_owned(), format!("team@{version}")]
    }
}

/// Two members of `release-managers` must approve an effect that cannot be undone.
pub fn two_release_managers() -> Packs {
    Packs::annotated("1.0.0", &[("approval.high_effect", TWO_RELEASE_MANAGERS)])
}

/// The annotations of the rule above.
pub const TWO_RELEASE_MANAGERS: &str = "@approvers(\"release-managers\")\n@quorum(\"2\")\n\
    @approve_within(\"1h\")\n@approval_valid_for(\"15m\")";
