//! `stage0 stack open`: creates an account, a key and the receiver's endpoint, and prints how to use the stack. Each
//! step keeps what exists. A crash leaves at worst an unused key, and the next run continues.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use reqwest::Method;
use serde_json::{Value, json};
use stage0_client::Target;
use stage0_client::target::read_key;
use stage0_contract::{Account, AccountId, ApiKey, KeyCreated, Page, Usage, Webhook, WebhookCreated};
use tokio::runtime::Runtime;

use super::CA_FILE;
use crate::args::VERSION;
use crate::args::stack::OpenArgs;
use crate::client::{Connection, ConnectionError, runtime};
use crate::dev::access::workload_scopes;
use crate::dev::banner::ACTION;
use crate::dev_file::{self, API_KEY_FILE, DevFile, OPERATOR_KEY_FILE};
use crate::{files, out};

const ACCOUNT_NAME: &str = "demo";
const KEY_NAME: &str = "stage0 stack";
/// Time for the services to start; their images are present.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
const RETRY_DELAY: Duration = Duration::from_millis(250);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const PAGE_LIMIT: &str = "1000";

pub(super) struct StackOpen(pub(super) OpenArgs);

impl StackOpen {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let operator_key = read_key(&self.0.operator_key)?;
        let runtime = runtime()?;
        let operator = self.client(operator_key.clone(), None)?;
        wait_until_ready(&runtime, &operator)?;
        let (account, api_key) = match self.stored_key(&runtime)? {
            Some(stored) => stored,
            None => create_key(&runtime, &operator)?,
        };
        self.write(&operator_key, &account, &api_key)?;
        let client = self.client(api_key, Some(account))?;
        self.ensure_webhook(&runtime, &client).context("cannot create the receiver's endpoint")?;
        Ok(out::line(banner(&self.0))?)
    }

    /// Makes sure that an enabled endpoint for the receiver exists and that the receiver has its secret.
    fn ensure_webhook(&self, runtime: &Runtime, client: &Connection) -> anyhow::Result<()> {
        let path = ["v1", "webhooks"];
        let list: Page<Webhook> = runtime.block_on(client.call(Method::GET, &path, &[("limit", PAGE_LIMIT)], None))?;
        let existing = list.items.iter().find(|webhook| webhook.url.as_str() == self.0.endpoint.as_str());
        let created: WebhookCreated = match existing {
            Some(webhook) if self.0.secret.exists() => {
                if !webhook.enabled {
                    let enable = ["v1", "webhooks", webhook.id.as_str(), "enable"];
                    runtime.block_on(client.execute(Method::POST, &enable))?;
                }
                return Ok(());
            }
            Some(webhook) => {
                let rotate = ["v1", "webhooks", webhook.id.as_str(), "rotate-secret"];
                runtime.block_on(client.call(Method::POST, &rotate, &[], Some(&json!({}))))?
            }
            None => {
                let body = json!({ "url": self.0.endpoint.as_str(), "description": "the local stack's receiver" });
                runtime.block_on(client.call(Method::POST, &path, &[], Some(&body)))?
            }
        };
        files::replace(&self.0.secret, &format!("{}\n", created.secret.expose()))
    }

    fn client(&self, key: ApiKey, account: Option<AccountId>) -> Result<Connection, ConnectionError> {
        let target = Target {
            url: self.0.url.clone(),
            ca: Some(self.0.dir.join(CA_FILE)),
            key: Some(key),
            key_origin: None,
            account,
        };
        Connection::new(target, REQUEST_TIMEOUT)
    }

    fn stored_key(&self, runtime: &Runtime) -> anyhow::Result<Option<(AccountId, ApiKey)>> {
        // A damaged file counts as none: the next step creates a new key.
        let Some(dev) = DevFile::read(&self.0.dir).ok().flatten() else { return Ok(None) };
        let client = self.client(dev.api_key.clone(), Some(dev.account.clone()))?;
        match runtime.block_on(client.call::<Usage>(Method::GET, &["usage"], &[], None)) {
            Ok(_) => Ok(Some((dev.account, dev.api_key))),
            Err(ConnectionError::Refused { status: 401, .. }) => Ok(None),
            Err(error) => Err(error).context("cannot check the key of an earlier start"),
        }
    }

    /// Writes `dev.json` last, because it refers to the other files.
    fn write(&self, operator_key: &ApiKey, account: &AccountId, api_key: &ApiKey) -> anyhow::Result<()> {
        let dev = DevFile {
            url: self.0.url.to_string(),
            ca_file: self.0.dir.join(CA_FILE),
            api_key: api_key.clone(),
            operator_key: operator_key.clone(),
            account: account.clone(),
        };
        files::replace(&self.0.dir.join(API_KEY_FILE), &format!("{}\n", api_key.expose()))?;
        files::replace(&self.0.dir.join(OPERATOR_KEY_FILE), &format!("{}\n", operator_key.expose()))?;
        dev_file::write(&dev, &self.0.dir)
    }
}

fn wait_until_ready(runtime: &Runtime, client: &Connection) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        let answer = runtime.block_on(client.call::<Value>(Method::GET, &["readyz"], &[], None));
        let Err(error) = answer else { return Ok(()) };
        if Instant::now() > deadline {
            return Err(error).with_context(|| format!("the stack is not ready after {READY_TIMEOUT:?}"));
        }
        runtime.block_on(tokio::time::sleep(RETRY_DELAY));
    }
}

/// Creates a key in the account `demo`, which is created if it is missing.
fn create_key(runtime: &Runtime, operator: &Connection) -> anyhow::Result<(AccountId, ApiKey)> {
    let path = ["v1", "accounts"];
    let list = runtime.block_on(operator.call(Method::GET, &path, &[("limit", PAGE_LIMIT)], None));
    let list: Page<Account> = list.context("cannot list accounts")?;
    let account = match list.items.into_iter().find(|account| account.name == ACCOUNT_NAME) {
        Some(account) => account.id,
        None => {
            let body = json!({ "name": ACCOUNT_NAME });
            let created = runtime.block_on(operator.call::<Account>(Method::POST, &path, &[], Some(&body)));
            created.context("cannot create the account")?.id
        }
    };
    let body = json!({ "account": account, "name": KEY_NAME, "scopes": workload_scopes() });
    let created = runtime.block_on(operator.call(Method::POST, &["v1", "keys"], &[], Some(&body)));
    let created: KeyCreated = created.context("cannot create the key")?;
    Ok((created.account, created.key))
}

/// The next steps for a person. It holds no key: its commands fetch the key.
fn banner(OpenArgs { published, page, host, .. }: &OpenArgs) -> String {
    let public_url = format!("https://{}", published.at(host));
    let page = page.at(host);
    format!(
        "\
Stage0 {VERSION} is ready at {public_url}

Get a key and the certificate authority, then ask whether an action may run:

  (umask 077; docker compose run --rm -T cli stack key > stage0.key)
  docker compose run --rm -T cli stack ca > stage0-ca.pem
  curl --cacert stage0-ca.pem \\
    -H \"x-api-key: $(cat stage0.key)\" \\
    -H 'content-type: application/json' \\
    -d '{ACTION}' \\
    {public_url}/check

decisions  http://{page} (signed, delivered, verified)
status     docker compose run --rm cli status
docs       {public_url}/docs"
    )
}
