//! The client that enforces decisions.
//!
//! INVARIANT: every way out of [`Client::check`] other than a complete, recorded ALLOW is an error, within the
//! deadline, so that `client.check(&action).await?` in front of the action is enough.

mod calls;
mod exchange;
mod run;
mod wait;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Map, Value};
use stage0_contract::CheckResponse;
use tokio::time::Instant;

use crate::action::Action;
use crate::connection::{Answer, Connection, ConnectionError};
use crate::judge::{Allowed, Judged, judge};
use crate::refusal::{Deferred, Denied, NotAllowed, Undecided};
use crate::target::{Credential, Lookup, Target};

pub use calls::{GuardReport, OutcomeReport, ToolsProbe};
pub use run::RunError;

/// The time for all attempts of one call.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// The time to connect, a part of the whole.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const REQUEST_ID: &str = "x-request-id";

/// Asks a server before each action. Clones share their connections.
#[derive(Clone)]
pub struct Client {
    connection: Arc<Connection>,
    timeout: Duration,
    environment: Option<String>,
    context: Map<String, Value>,
    /// Until the server says that the key may not.
    reports: Arc<AtomicBool>,
}

impl Client {
    /// A client of the server that the environment names, or of a `stage0 dev` that was started in this directory.
    pub fn from_env() -> Result<Self, ConnectionError> {
        Self::new(Lookup::from_env()?.find(Credential::Account)?)
    }

    /// A client of a server.
    pub fn new(target: Target) -> Result<Self, ConnectionError> {
        let connection = Connection::build(target, |builder| builder.connect_timeout(CONNECT_TIMEOUT))?;
        Ok(Self {
            connection: Arc::new(connection),
            timeout: DEFAULT_TIMEOUT,
            environment: None,
            context: Map::new(),
            reports: Arc::new(AtomicBool::new(true)),
        })
    }

    /// The time for all attempts of one call, instead of 5 seconds. The server needs up to 2 seconds for one.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The run that all checks belong to, unless one names another.
    #[must_use]
    pub fn with_run_id(self, run_id: impl Into<String>) -> Self {
        self.with_context("run_id", run_id.into())
    }

    /// The agent that acts.
    #[must_use]
    pub fn with_agent(self, agent: impl Into<String>) -> Self {
        self.with_context("agent_id", agent.into())
    }

    /// The environment of all checks that name none.
    #[must_use]
    pub fn with_environment(mut self, environment: impl Into<String>) -> Self {
        self.environment = Some(environment.into());
        self
    }

    /// A member of the context of all checks, unless one has it.
    #[must_use]
    pub fn with_context(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.context.insert(name.into(), value.into());
        self
    }

    /// Without reports of what came of actions ([`Client::run`]).
    #[must_use]
    pub fn without_reports(mut self) -> Self {
        self.reports = Arc::new(AtomicBool::new(false));
        self
    }

    /// A client of another server with the same options.
    #[cfg(feature = "selftest")]
    pub(crate) fn at(&self, target: Target) -> Result<Self, ConnectionError> {
        let Self { timeout, environment, context, .. } = self.clone();
        let reports = Arc::new(AtomicBool::new(self.reports.load(std::sync::atomic::Ordering::Relaxed)));
        Ok(Self { timeout, environment, context, reports, ..Self::new(target)? })
    }

    /// The connection, for calls that this client has no method for.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The time for all attempts of one call.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Asks whether the action may run now. `Ok` is the only permission to act.
    pub async fn check(&self, action: &Action) -> Result<Allowed, NotAllowed> {
        self.ask(self.with_defaults(action)).await
    }

    fn with_defaults(&self, action: &Action) -> Action {
        let mut action = action.clone();
        for (name, value) in &self.context {
            action.default_context(name, value);
        }
        if let Some(environment) = &self.environment {
            action.default_environment(environment);
        }
        action
    }

    async fn ask(&self, action: Action) -> Result<Allowed, NotAllowed> {
        let once = match action.once() {
            Some(key) => key.to_owned(),
            None => exchange::random_key().map_err(|error| Undecided::Request(error.to_string()))?,
        };
        let body = serde_json::to_vec(action.body()).map_err(|error| Undecided::Request(error.to_string()))?;
        let call = exchange::Call { method: Method::POST, path: &["check"], query: &[], body: Some(body) };
        let answer = self.exchange(&call, Some(&once), Instant::now() + self.timeout).await?;
        match decided(&answer)? {
            Judged::Allowed(allowed) => Ok(allowed),
            Judged::Denied(response) => Err(Denied(response).into()),
            Judged::Deferred(response) => Err(deferred(response, action)),
        }
    }
}

fn decided(answer: &Answer) -> Result<Judged, NotAllowed> {
    if !answer.status.is_success() {
        return Err(ConnectionError::refused(answer.status, &answer.headers, &answer.body).into());
    }
    let status = answer.status.as_u16();
    judge(status, &answer.body).map_err(|why| {
        let request_id = answer.headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).map(crate::text::plain);
        Undecided::Answer { why, status, request_id }.into()
    })
}

fn deferred(response: CheckResponse, action: Action) -> NotAllowed {
    Deferred { response, action }.into()
}
