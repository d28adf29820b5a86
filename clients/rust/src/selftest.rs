//! Proves that a program which acts on decisions does not act without one: a real HTTPS server that misbehaves.
//!
//! [`selftest`] starts one server for each [`Scenario`] on the loopback interface, with certificates that are made on
//! the spot, and runs the caller's own code against it. The code gets a [`Probe`] to call in the place of the tool.
//!
//! ```no_run
//! use stage0_client::selftest::selftest;
//! use stage0_client::{Action, Client, NotAllowed};
//!
//! # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
//! let report = selftest(&client, async |client, probe| {
//!     client.check(&Action::new("Deploy").tool("deploy").effect("deploy")).await?;
//!     probe.acted();
//!     Ok::<(), NotAllowed>(())
//! })
//! .await?;
//! println!("{report}");
//! # Ok(())
//! # }
//! ```

mod certificates;
mod scenario;
mod server;

use std::fmt::{self, Display};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use stage0_contract::ApiKey;

use crate::client::Client;
use crate::connection::ConnectionError;
use crate::target::Target;

pub use scenario::Scenario;
pub use server::{Reply, Request, Server};

/// Beside the client's own timeout, for the rest of the caller's code and a busy machine.
const EXTRA_TIME: Duration = Duration::from_secs(10);

/// Most scenarios wait for a timeout.
const AT_ONCE: usize = 8;

/// Stands for the tool.
#[derive(Debug, Clone, Default)]
pub struct Probe(Arc<AtomicU32>);

impl Probe {
    /// The tool runs.
    pub fn acted(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn has_acted(&self) -> bool {
        self.0.load(Ordering::SeqCst) > 0
    }
}

/// What the caller's code did in one scenario.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The scenario's name.
    pub scenario: &'static str,
    /// What came of it.
    pub end: End,
    /// How long it took.
    pub took: Duration,
}

/// How the caller's code ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It acted. In all scenarios except the first, that is the fault that is looked for.
    Acted,
    /// It returned this error, and did not act.
    Refused(String),
    /// It returned without an error, and did not act.
    Returned,
    /// It did not act, and had not returned long after the client's timeout.
    Hangs,
}

/// What happened in each scenario.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// In the order of [`Scenario::FAULTS`].
    pub findings: Vec<Finding>,
}

/// Why the selftest is not passed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say what is wrong")]
pub enum SelftestError {
    #[error("the selftest's server cannot be started")]
    Server(#[source] io::Error),
    #[error("the selftest's client cannot be made")]
    Client(#[source] ConnectionError),
    #[error("it does not act even when it is allowed, so the selftest proves nothing: {0}")]
    NeverActs(String),
    #[error("it acts, or does not return, without a decision:\n{0}")]
    Failed(Report),
}

/// Runs the caller's code in every scenario, with a client that has the options of this one. An error says where it
/// acted without a complete ALLOW. It takes about as long as five of the client's
/// timeouts: several scenarios run at the same time.
pub async fn selftest<A, E>(client: &Client, act: A) -> Result<Report, SelftestError>
where
    A: AsyncFn(Client, Probe) -> Result<(), E>,
    E: Display,
{
    let allowed = find(client, &Scenario::ALLOW, &act).await?;
    if allowed.end != End::Acted {
        return Err(SelftestError::NeverActs(allowed.end.to_string()));
    }
    let findings = stream::iter(Scenario::FAULTS).map(|scenario| find(client, scenario, &act));
    let findings: Vec<Finding> = findings.buffered(AT_ONCE).try_collect().await?;
    let is_wrong = |finding: &&Finding| matches!(finding.end, End::Acted | End::Hangs);
    let wrong: Vec<Finding> = findings.iter().filter(is_wrong).cloned().collect();
    if wrong.is_empty() { Ok(Report { findings }) } else { Err(SelftestError::Failed(Report { findings: wrong })) }
}

async fn find<A, E>(client: &Client, scenario: &Scenario, act: &A) -> Result<Finding, SelftestError>
where
    A: AsyncFn(Client, Probe) -> Result<(), E>,
    E: Display,
{
    let server = scenario.start().await.map_err(SelftestError::Server)?;
    let client = client.at(target(&server).map_err(SelftestError::Server)?).map_err(SelftestError::Client)?;
    let probe = Probe::default();
    let started = Instant::now();
    let limit = client.timeout() * 2 + EXTRA_TIME;
    let result = tokio::time::timeout(limit, act(client, probe.clone())).await;
    let end = match result {
        _ if probe.has_acted() => End::Acted,
        Ok(Ok(())) => End::Returned,
        Ok(Err(error)) => End::Refused(error.to_string()),
        Err(_) => End::Hangs,
    };
    Ok(Finding { scenario: scenario.name, end, took: started.elapsed() })
}

/// The server, with a key that no other server knows.
pub fn target(server: &Server) -> io::Result<Target> {
    let (mut id, mut secret) = ([0; 10], [0; 20]);
    getrandom::fill(&mut id).and_then(|()| getrandom::fill(&mut secret)).map_err(io::Error::other)?;
    let key = ApiKey::from_random(id, secret).map_err(io::Error::other)?;
    Ok(Target { url: server.url().clone(), ca: Some(server.ca()), key: Some(key), key_origin: None, account: None })
}

impl Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Acted => f.write_str("ACTED"),
            Self::Refused(why) => write!(f, "did not act: {why}"),
            Self::Returned => f.write_str("did not act, and returned no error"),
            Self::Hangs => f.write_str("DID NOT RETURN in time"),
        }
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { scenario, end, took } in &self.findings {
            writeln!(f, "{scenario:<48} {:>5.1} s  {end}", took.as_secs_f64())?;
        }
        Ok(())
    }
}
