//! `stage0 stack open`: the last thing that `docker compose up` runs: an account, its key and the receiver's endpoint, and how to ask.
//!
//! Owns the folder of the stack's clients: `api.key`, `operator.key` and `dev.json`, by which the command line finds the server. Each step
//! looks at what is there before it makes anything; a crash after any of them leaves at worst a key that nobody knows, and the next run
//! goes on.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use reqwest::Method;
use serde_json::{Value, json};
use stage0_contract::{Account, AccountId, ApiKey, KeyCreated, Page, Usage, Webhook, WebhookCreated};
use tokio::runtime::Runtime;

use super::CA_FILE;
use crate::args::VERSION;
use crate::args::stack::OpenArgs;
use crate::client::{Client, ClientError, Target, read_key, runtime};
use crate::dev::access::every_scope;
use crate::dev::banner::ACTION;
use crate::dev_file::{API_KEY_FILE, DEV_FILE, DevFile, OPERATOR_KEY_FILE};
use crate::{files, out};

const ACCOUNT: &str = "demo";
const KEY: &str = "stage0 stack";
/// Images are there; what is waited for are services that start.
const READY_WITHIN: Duration = Duration::from_secs(120);
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(250);
/// For one exchange.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const PAGE: &str = "1000";

/// What is opened, and for whom.
pub(super) struct Opening(pub(super) OpenArgs);

impl Opening {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let operator_key = read_key(&self.0.operator_key)?;
        // One for all: a connection lives no longer than the runtime that it was made on.
        let runtime = runtime()?;
        let operator = self.client(operator_key.clone(), None)?;
        wait_until_ready(&runtime, &operator)?;
        let (account, api_key) = match self.found(&runtime)? {
            Some(found) => found,
            None => new_key(&runtime, &operator)?,
        };
        self.write(&operator_key, &account, &api_key)?;
        let client = self.client(api_key, Some(account))?;
        self.point_at_receiver(&runtime, &client).context("cannot make the receiver's endpoint")?;
        Ok(out::line(Banner(&self))?)
    }

    /// One endpoint for the receiver, enabled, whose secret it has.
    fn point_at_receiver(&self, runtime: &Runtime, client: &Client) -> anyhow::Result<()> {
        let path = ["v1", "webhooks"];
        let list: Page<Webhook> = runtime.block_on(client.call(Method::GET, &path, &[("limit", PAGE)], None))?;
        let there = list.items.iter().find(|webhook| webhook.url.as_str() == self.0.endpoint.as_str());
        let made: WebhookCreated = match there {
            Some(webhook) if self.0.secret.exists() => {
                if !webhook.enabled {
                    let enable = ["v1", "webhooks", webhook.id.as_str(), "enable"];
                    runtime.block_on(async { client.send(Method::POST, &enable, &[], None).await?.successful() })?;
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
        files::replace(&self.0.secret, &format!("{}\n", made.secret.expose()))
    }

    fn client(&self, key: ApiKey, account: Option<AccountId>) -> Result<Client, ClientError> {
        let target = Target { url: self.0.url.clone(), ca: Some(self.0.dir.join(CA_FILE)), key, account };
        Client::new(target, ANSWER_WITHIN)
    }

    /// The account and its key of an earlier start, if that key still lives.
    fn found(&self, runtime: &Runtime) -> anyhow::Result<Option<(AccountId, ApiKey)>> {
        // A torn or foreign file is only a lost hint.
        let Some(dev) = DevFile::read(&self.0.dir).ok().flatten() else { return Ok(None) };
        let client = self.client(dev.api_key.clone(), Some(dev.account.clone()))?;
        match runtime.block_on(client.call::<Usage>(Method::GET, &["usage"], &[], None)) {
            Ok(_) => Ok(Some((dev.account, dev.api_key))),
            Err(ClientError::Refused { status: 401, .. }) => Ok(None),
            Err(error) => Err(error).context("cannot find out whether the key of an earlier start lives"),
        }
    }

    /// The file that says where all is comes last.
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
        let text = serde_json::to_string_pretty(&dev).context("cannot write JSON")?;
        files::replace(&self.0.dir.join(DEV_FILE), &format!("{text}\n"))
    }
}

fn wait_until_ready(runtime: &Runtime, client: &Client) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        let answer = runtime.block_on(client.call::<Value>(Method::GET, &["readyz"], &[], None));
        let Err(error) = answer else { return Ok(()) };
        if Instant::now() > deadline {
            return Err(error).with_context(|| format!("the stack is not ready after {READY_WITHIN:?}"));
        }
        runtime.block_on(tokio::time::sleep(ASK_AGAIN_AFTER));
    }
}

/// In the account of that name, which is made when it is not there.
fn new_key(runtime: &Runtime, operator: &Client) -> anyhow::Result<(AccountId, ApiKey)> {
    let path = ["v1", "accounts"];
    let list = runtime.block_on(operator.call(Method::GET, &path, &[("limit", PAGE)], None));
    let list: Page<Account> = list.context("cannot list accounts")?;
    let account = match list.items.into_iter().find(|account| account.name == ACCOUNT) {
        Some(account) => account.id,
        None => {
            let made = runtime.block_on(operator.call(Method::POST, &path, &[], Some(&json!({ "name": ACCOUNT }))));
            let made: Account = made.context("cannot make the account")?;
            made.id
        }
    };
    let body = json!({ "account": account, "name": KEY, "scopes": every_scope() });
    let made = runtime.block_on(operator.call(Method::POST, &["v1", "keys"], &[], Some(&body)));
    let made: KeyCreated = made.context("cannot make the key")?;
    Ok((made.account, made.key))
}

/// What a person does next. Keys are not among it: the commands fetch them.
struct Banner<'a>(&'a Opening);

impl fmt::Display for Banner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OpenArgs { published, page, host, .. } = &self.0.0;
        let (public_url, page_url) = (format!("https://{}", published.at(host)), format!("http://{}", page.at(host)));
        writeln!(f, "Stage0 {VERSION} is ready at {public_url}\n")?;
        writeln!(f, "Get a key and the authority to trust, then ask whether an action may run:\n")?;
        writeln!(f, "  (umask 077; docker compose run --rm -T cli stack key > stage0.key)")?;
        writeln!(f, "  docker compose run --rm -T cli stack ca > stage0-ca.pem")?;
        writeln!(f, "  curl --cacert stage0-ca.pem \\")?;
        writeln!(f, "    -H \"x-api-key: $(cat stage0.key)\" \\")?;
        writeln!(f, "    -H 'content-type: application/json' \\")?;
        writeln!(f, "    -d '{ACTION}' \\")?;
        writeln!(f, "    {public_url}/check\n")?;
        writeln!(f, "decisions  {page_url} (signed, delivered, verified)")?;
        writeln!(f, "status     docker compose run --rm cli status")?;
        write!(f, "docs       {public_url}/docs")
    }
}
