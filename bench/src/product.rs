//! The product as a contestant: keystore, evaluator, gateway and, where it delivers, exporter; the code that ships.

use std::future::ready;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use stage0_audit_export::egress::EgressConfig;
use stage0_audit_export::{AuditExport, ExportConfig};
use stage0_backplane::Backplane;
use stage0_backplane::embedded::Bus;
use stage0_backplane::nats::{KeySet, MessageAuth, NatsConfig};
use stage0_contract::{
    AccountId, ApiKey, Caller, CapChanges, Change, CreateAccount, CreateKey, CreateWebhook, ManageReply, Request, Role,
    Scope, UpdateAccount, VerifyKey, VerifyKeyReply, WebhookFilters, WebhookId,
};
use stage0_evaluator::{EvaluatorConfig, RunConfig};
use stage0_gateway::{Gateway, GatewayConfig, TlsFiles};
use stage0_keystore::{Health, Keystore, KeystoreConfig, LeaseTimes, OPERATOR_KEY_FILE};
use stage0_policy::PackSet;
use tokio_util::sync::CancellationToken;

use crate::discard_log::DiscardLog;
use crate::floors::KEEP_ALIVE_TIMEOUT;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Clone)]
pub(crate) enum Environment {
    Embedded(Bus),
    /// With every role's message keys, where messages are authenticated.
    Nats(Box<NatsConfig>, Option<Arc<KeySet>>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Log {
    Stored,
    /// They are acknowledged and dropped.
    Discarded,
}

impl Log {
    fn replace_in(self, backplane: Backplane) -> Backplane {
        match self {
            Self::Stored => backplane,
            Self::Discarded => Backplane { log: Arc::new(DiscardLog), ..backplane },
        }
    }
}

pub(crate) struct Installation {
    place: Environment,
    tls: TlsFiles,
    operator: Caller,
    backplane: Backplane,
}

pub(crate) struct Served {
    pub(crate) address: SocketAddr,
    pub(crate) key: String,
    pub(crate) account: AccountId,
}

impl Environment {
    pub(crate) async fn connect(&self, role: Role) -> anyhow::Result<Backplane> {
        Ok(match self {
            Self::Embedded(bus) => bus.connect(),
            Self::Nats(config, keys) => Backplane::connect(&of_role(config, keys.as_deref(), role)?).await?,
        })
    }
}

pub(crate) fn of_role(config: &NatsConfig, keys: Option<&KeySet>, role: Role) -> anyhow::Result<NatsConfig> {
    let keys = keys.map(|keys| keys.role(role).context("no keys for this role")).transpose()?;
    let auth = keys.map(|keys| MessageAuth::new(keys, role, false)).transpose()?;
    Ok(NatsConfig { auth, name: role.to_string(), ..config.clone() })
}

impl Installation {
    pub(crate) async fn start(place: Environment, directory: &Path, tls: TlsFiles) -> anyhow::Result<Self> {
        let keys = directory.join("keys");
        let lease = matches!(place, Environment::Nats(..)).then(LeaseTimes::default);
        let config = KeystoreConfig { lease, ..KeystoreConfig::new(&keys) };
        let keystore = Keystore::build(config, place.connect(Role::Keystore).await?, Health::default()).await?;
        tokio::spawn(keystore.run_until(std::future::pending()));
        let config = EvaluatorConfig { packs: PackSet::embedded()?, shards: None, runs: RunConfig::default() };
        let theirs = place.clone();
        let connect: stage0_evaluator::Connect = Arc::new(move || {
            let place = theirs.clone();
            Box::pin(async move { Ok(place.connect(Role::Evaluator).await?) })
        });
        let evaluator = stage0_evaluator::build(config, connect).await?;
        tokio::spawn(evaluator.run_until(std::future::pending()));
        let export = ExportConfig {
            egress: EgressConfig { dangerous_allow_private: true, ..EgressConfig::default() },
            ..ExportConfig::default()
        };
        let exporter = AuditExport::build(export, place.connect(Role::AuditExport).await?).await?;
        tokio::spawn(exporter.run_until(CancellationToken::new()));
        let backplane = place.connect(Role::Gateway).await?;
        let operator = operator(&backplane, &keys).await?;
        Ok(Self { place, tls, operator, backplane })
    }

    /// Starts a gateway with an account of its own that may make this many checks in a minute, a day and a month.
    pub(crate) async fn gateway(&self, name: &str, log: Log, limit: Option<u64>) -> anyhow::Result<Served> {
        let gateway = self.build(log).await?;
        let address = gateway.addr();
        tokio::spawn(gateway.run_until(CancellationToken::new()));
        let account =
            CreateAccount { caller: self.operator.clone(), name: name.to_owned(), plan: None, approvals: None };
        let account = self.manage(&account).await?.id;
        if let Some(limit) = limit {
            self.limit(&account, limit).await?;
        }
        let key = CreateKey {
            caller: self.operator.clone(),
            account: Some(account.clone()),
            name: name.to_owned(),
            scopes: [Scope::Check].into(),
            expires_at: None,
            owner: None,
        };
        let key = self.manage(&key).await?.key.expose().to_owned();
        Ok(Served { address, key, account })
    }

    async fn build(&self, log: Log) -> anyhow::Result<Gateway> {
        let config = GatewayConfig {
            keep_alive: KEEP_ALIVE_TIMEOUT,
            // All requests come from one address.
            requests_per_second_per_address: None,
            max_connections_per_address: None,
            ..GatewayConfig::new("127.0.0.1:0".parse()?, self.tls.clone())
        };
        Ok(match &self.place {
            Environment::Embedded(bus) => {
                let bus = bus.clone();
                let connect: stage0_gateway::Connect<std::convert::Infallible> =
                    Box::new(move || Box::pin(ready(Ok(log.replace_in(bus.connect())))));
                Gateway::build(config, connect).await?
            }
            Environment::Nats(nats, keys) => {
                let nats = of_role(nats, keys.as_deref(), Role::Gateway)?;
                let connect: stage0_gateway::Connect<stage0_backplane::nats::ConnectError> = Box::new(move || {
                    let nats = nats.clone();
                    Box::pin(async move { Ok(log.replace_in(Backplane::connect(&nats).await?)) })
                });
                Gateway::build(config, connect).await?
            }
        })
    }

    async fn limit(&self, account: &AccountId, limit: u64) -> anyhow::Result<()> {
        let own = Some(Change::Own(limit));
        let update = UpdateAccount {
            caller: self.operator.clone(),
            account: account.clone(),
            plan: None,
            retention_days: None,
            per_minute: own,
            daily: own,
            monthly: own,
            require_run_id: None,
            caps: CapChanges::default(),
            approvals: None,
            four_eyes: None,
            policy_changes: None,
            record_facts: None,
        };
        self.manage(&update).await.map(drop)
    }

    pub(crate) async fn webhook(&self, account: &AccountId, receiver: SocketAddr) -> anyhow::Result<WebhookId> {
        let create = CreateWebhook {
            caller: self.operator.clone(),
            account: Some(account.clone()),
            url: format!("http://{receiver}/"),
            filters: WebhookFilters::default(),
            description: String::new(),
            rate_limit: None,
        };
        Ok(self.manage(&create).await?.webhook.id)
    }

    pub(crate) async fn manage<T, R: Request<Reply = ManageReply<T>>>(&self, call: &R) -> anyhow::Result<T> {
        match self.backplane.requests.request(call, REQUEST_TIMEOUT).await? {
            ManageReply::Done(done) => Ok(done),
            ManageReply::Refused(refusal) => bail!("refused: {refusal:?}"),
            ManageReply::Failed | ManageReply::Busy => bail!("failed"),
        }
    }
}

async fn operator(backplane: &Backplane, keys: &Path) -> anyhow::Result<Caller> {
    let text = std::fs::read_to_string(keys.join(OPERATOR_KEY_FILE))?;
    let key = ApiKey::parse(text.trim()).context("the operator's key")?;
    loop {
        // Its loops start concurrently.
        match backplane.requests.request(&VerifyKey { key: key.clone(), request_id: None }, REQUEST_TIMEOUT).await {
            Ok(VerifyKeyReply::Valid(identity)) => return Ok(Caller::new(&identity, &key)),
            Ok(_) => bail!("the operator's key is refused"),
            Err(stage0_backplane::RequestError::NoResponders) => tokio::task::yield_now().await,
            Err(error) => return Err(error.into()),
        }
    }
}
