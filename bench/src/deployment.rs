//! The product as it is deployed: its own binary as processes of their own, either `stage0 dev` or one process for each
//! role on a real nats-server. What it measures is therefore what a user runs, and each process has its own usage.
//!
//! Owns which processes there are, how each is started and when all of them are ready, and talks to them as an operator
//! over HTTPS. They end with the value, and with this program however that ends (`process.rs`).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use reqwest::{Certificate, Method};
use serde_json::{Value, json};
use stage0_keystore::OPERATOR_KEY_FILE;
use tempfile::TempDir;

mod nats;
mod plan;
mod process;
mod usage;

pub(crate) use nats::Nats;
pub(crate) use plan::Plan;
use plan::Servers;
pub(crate) use process::{Process, run_child};
pub(crate) use usage::Usage;

const READY_TIMEOUT: Duration = Duration::from_secs(60);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const RETRY_DELAY: Duration = Duration::from_millis(20);

/// Processes end in this order, before the directory is removed.
pub(crate) struct Deployment {
    processes: Vec<Process>,
    nats: Option<Nats>,
    /// Of each gateway, or of `dev`.
    addresses: Vec<SocketAddr>,
    ca: PathBuf,
    data: PathBuf,
    client: reqwest::Client,
    operator: String,
    _directory: TempDir,
}

/// An account, and a key of it that may check.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub(crate) account: String,
    pub(crate) key: String,
}

impl Deployment {
    /// Starts every process of the plan and waits until each gateway says that it is ready.
    pub(crate) async fn start(plan: Plan) -> anyhow::Result<Self> {
        ensure!(plan.stage0.exists(), "there is no `{}`: build it, or name it with --stage0", plan.stage0.display());
        let directory = tempfile::tempdir()?;
        let started = match plan.is_embedded {
            true => Started::dev(&plan, directory.path()).await?,
            false => Started::on_nats(&plan, directory.path()).await?,
        };
        let Started { processes, nats, addresses, ca, data } = started;
        let operator = data.join(OPERATOR_KEY_FILE);
        let operator = std::fs::read_to_string(&operator).with_context(|| operator.display().to_string())?;
        let authority = Certificate::from_pem(&std::fs::read(&ca)?)?;
        let client =
            reqwest::Client::builder().tls_certs_only([authority]).no_proxy().timeout(ANSWER_TIMEOUT).build()?;
        let operator = operator.trim().to_owned();
        let mut deployment = Self { processes, nats, addresses, ca, data, client, operator, _directory: directory };
        deployment.wait_until_ready().await?;
        if let (Servers::TwoOfThree, Some(nats)) = (plan.servers, &mut deployment.nats) {
            nats.lose_one();
            deployment.wait_until_ready().await?;
        }
        Ok(deployment)
    }

    /// Where HTTPS is served: by each gateway, or by `dev`.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Of the first gateway.
    pub(crate) fn address(&self) -> anyhow::Result<SocketAddr> {
        self.addresses.first().copied().context("a deployment without a gateway")
    }

    /// The authority that signed the gateways' certificates.
    pub(crate) fn ca(&self) -> &Path {
        &self.ca
    }

    /// The keystore's directory, or that of `dev`.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// Every process with its CPU time so far, its memory and its open files; servers of NATS come last.
    ///
    /// Also empties logs that have grown large: a gateway writes a line for each check.
    pub(crate) fn usage(&self) -> anyhow::Result<Vec<Usage>> {
        let nats = self.nats.iter().flat_map(Nats::processes);
        self.processes.iter().chain(nats).map(|process| process.trim_log().and_then(|()| process.usage())).collect()
    }

    /// A new account and a key with the scope `check`.
    pub(crate) async fn access(&self, name: &str) -> anyhow::Result<Access> {
        let account = self.account(name).await?;
        let key = self.key(&account, &["check"]).await?;
        Ok(Access { account, key })
    }

    /// A new account without limits; its id.
    pub(crate) async fn account(&self, name: &str) -> anyhow::Result<String> {
        text(&self.call(Method::POST, "/v1/accounts", &json!({"name": name})).await?, "id")
    }

    /// A new key of this account.
    pub(crate) async fn key(&self, account: &str, scopes: &[&str]) -> anyhow::Result<String> {
        let body = json!({"account": account, "name": "bench", "scopes": scopes});
        text(&self.call(Method::POST, "/v1/keys", &body).await?, "key")
    }

    /// Limits the account's checks of a minute, a day and a month.
    pub(crate) async fn limit(&self, account: &str, checks: u64) -> anyhow::Result<()> {
        let limits = json!({"per_minute": checks, "daily": checks, "monthly": checks});
        self.call(Method::PATCH, &format!("/v1/accounts/{account}"), &limits).await.map(drop)
    }

    /// A new endpoint of this account on this machine; its id.
    pub(crate) async fn webhook(&self, account: &str, receiver: SocketAddr) -> anyhow::Result<String> {
        let body = json!({"account": account, "url": format!("http://{receiver}/")});
        let made = self.call(Method::POST, "/v1/webhooks", &body).await?;
        let made = made.get("webhook").unwrap_or(&made);
        text(made, "id")
    }

    /// A call with the operator's key, over the first gateway; null where the answer has no body.
    pub(crate) async fn call(&self, method: Method, path: &str, body: &Value) -> anyhow::Result<Value> {
        let url = format!("https://localhost:{}{path}", self.address()?.port());
        let mut request = self.client.request(method.clone(), url).header("x-api-key", &self.operator);
        if !body.is_null() {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = request.send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        ensure!(status.is_success(), "{method} {path}: {status}: {text}");
        Ok(if text.is_empty() { Value::Null } else { serde_json::from_str(&text)? })
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        for address in &self.addresses {
            let url = format!("https://localhost:{}/readyz", address.port());
            loop {
                let last = match self.client.get(&url).send().await {
                    Ok(answer) if answer.status().is_success() => break,
                    Ok(answer) => answer.text().await.unwrap_or_default(),
                    Err(error) => error.to_string(),
                };
                for process in &mut self.processes {
                    process.ensure_running()?;
                }
                ensure!(begun.elapsed() < READY_TIMEOUT, "not ready after {READY_TIMEOUT:?}: {last}");
                tokio::time::sleep(RETRY_DELAY).await;
            }
        }
        Ok(())
    }
}

/// Processes that listen, and perhaps still wait for each other.
struct Started {
    processes: Vec<Process>,
    nats: Option<Nats>,
    addresses: Vec<SocketAddr>,
    ca: PathBuf,
    data: PathBuf,
}

impl Started {
    async fn dev(plan: &Plan, directory: &Path) -> anyhow::Result<Self> {
        let data = directory.join("data");
        plan.place_files(&data)?;
        let mut dev = plan.dev(directory, &data)?;
        let end_of_banner = |line: &str| line.starts_with("Ctrl-C stops it").then_some(());
        dev.wait_for("the end of the banner", end_of_banner).await?;
        let found: Value = serde_json::from_str(&std::fs::read_to_string(data.join("dev.json"))?)?;
        let url = text(&found, "url")?;
        let address = url.strip_prefix("https://").context("no HTTPS address")?.replace("localhost", "127.0.0.1");
        let (processes, addresses) = (vec![dev], vec![address.parse()?]);
        Ok(Self { processes, nats: None, addresses, ca: data.join("tls/ca.pem"), data })
    }

    /// All at once, as they wait for each other.
    async fn on_nats(plan: &Plan, directory: &Path) -> anyhow::Result<Self> {
        let nats = match plan.servers {
            Servers::One => Nats::start(directory).await?,
            other => Nats::start_cluster(directory, other != Servers::ThreeRelaxed).await?,
        };
        plan.make_message_keys(directory)?;
        let data = directory.join("keys");
        plan.place_files(&data)?;
        let mut keystore = plan.keystore("keystore", &nats, directory, &data)?;
        let start = |role: &str, count: usize, start: &dyn Fn(&str) -> anyhow::Result<Process>| {
            let names = (1..=count).map(|number| if count == 1 { role.to_owned() } else { format!("{role} {number}") });
            names.map(|name| start(&name)).collect::<anyhow::Result<Vec<_>>>()
        };
        let mut evaluators = start("evaluator", plan.evaluators, &|name| plan.evaluator(name, &nats, directory))?;
        let exporter = plan.exporter("audit-export", &nats, directory)?;
        // The first one makes the certificates that all of them use.
        let mut gateways = start("gateway", plan.gateways.min(1), &|name| plan.gateway(name, &nats, directory))?;
        let mut addresses = Vec::new();
        for number in 0..plan.gateways {
            if number > 0 {
                gateways.push(plan.gateway(&format!("gateway {}", number + 1), &nats, directory)?);
            }
            let gateway = gateways.last_mut().context("no gateway")?;
            addresses.push(gateway_address(gateway).await?);
        }
        let serves = |line: &str| logged(line, "keystore serves", "message");
        keystore.wait_for("a keystore that serves", serves).await?;
        for evaluator in &mut evaluators {
            evaluator.wait_for("an evaluator that starts", |line| logged(line, "evaluator starts", "version")).await?;
        }
        let processes = gateways.into_iter().chain(evaluators).chain([keystore, exporter]).collect();
        Ok(Self { processes, nats: Some(nats), addresses, ca: directory.join("tls/ca.pem"), data })
    }
}

async fn gateway_address(gateway: &mut Process) -> anyhow::Result<SocketAddr> {
    let address = gateway.wait_for("a gateway that starts", |line| logged(line, "gateway starts", "address")).await?;
    Ok(address.parse()?)
}

/// A field of a JSON log line with this message.
fn logged(line: &str, message: &str, field: &str) -> Option<String> {
    let line: Value = serde_json::from_str(line).ok()?;
    (line.get("message")? == message).then(|| line.get(field)?.as_str().map(str::to_owned))?
}

fn text(value: &Value, name: &str) -> anyhow::Result<String> {
    let found = value.get(name).and_then(Value::as_str);
    Ok(found.with_context(|| format!("an answer without `{name}`: {value}"))?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_read_from_the_line_with_its_message_alone() {
        let line = r#"{"level":"INFO","message":"gateway starts","address":"127.0.0.1:8443"}"#;
        assert_eq!(logged(line, "gateway starts", "address").as_deref(), Some("127.0.0.1:8443"));
        assert_eq!(logged(line, "evaluator starts", "address"), None);
        assert_eq!(logged("not JSON", "gateway starts", "address"), None);
    }
}
