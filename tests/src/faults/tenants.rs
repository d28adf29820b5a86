//! Accounts, keys and people of a run, and what is found of them in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use tokio::task::JoinHandle;

use super::deployment::Deployment;
use crate::api::Api;
use crate::history::{Change, Delivered, Found, History, Record, Rules};
use crate::receiver::{Delivery, Receiver};
use crate::stack::account_scopes;
use crate::team::{Agent, Member};

/// ALLOWs of one run.
pub(super) const RUN_LIMIT: u64 = 5;
/// Decisions a day of the account with a limit.
const DAILY_LIMIT: u64 = 40;
/// An event that failed twice is sent again after five minutes, and a fifth more.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(400);
const SETTLE_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a key that was revoked during a fault may be let in.
const CACHED_KEY_TIMEOUT: Duration = Duration::from_secs(65);
const TAKE_INTERVAL: Duration = Duration::from_millis(100);

/// A key that asks.
#[derive(Clone)]
pub struct Asker {
    pub account: String,
    pub key: String,
    pub api: Api,
}

struct Tenant {
    account: String,
    path: String,
    admin: Api,
    secret: String,
}

pub struct Tenants {
    all: Vec<Tenant>,
    /// Of the accounts without limits: asks what is allowed, denied and deferred.
    pub plain: Vec<[Asker; 3]>,
    pub runs: Asker,
    pub capped: Asker,
    pub agent: Asker,
    pub members: Vec<Member>,
    pub operator: Api,
    /// Account in which keys are made and revoked.
    pub keys: String,
    /// Whose checks are stopped and resumed.
    pub stopped: Asker,
    pub stopper: Api,
    verdicts: BTreeMap<String, Vec<String>>,
    delivered: Arc<Mutex<Vec<Delivered>>>,
    taking: Option<JoinHandle<()>>,
}

impl Tenants {
    pub async fn new(deployment: &Deployment) -> Self {
        let operator = deployment.operator();
        let mut making = Making { operator: &operator, deployment, all: vec![], verdicts: BTreeMap::new() };
        let mut plain = Vec::new();
        for name in ["one", "two"] {
            let account = making.tenant(name, &json!({})).await;
            let allowed = making.asker(&account, &["ALLOW"]).await;
            let denied = making.asker(&account, &["DENY"]).await;
            let deferred = making.asker(&account, &["DEFER"]).await;
            plain.push([allowed, denied, deferred]);
        }
        let account = making.tenant("runs", &json!({})).await;
        let runs = making.asker(&account, &["ALLOW", "DEFER"]).await;
        let account = making.tenant("capped", &json!({"daily": DAILY_LIMIT})).await;
        let capped = making.asker(&account, &["ALLOW"]).await;
        let team = making.tenant("team", &json!({"approvals": "verified"})).await;
        let agent = making.asker(&team, &["ALLOW", "DEFER"]).await;
        let mut members = Vec::new();
        for name in ["Ada", "Bob"] {
            let body = json!({"account": team, "name": name, "groups": ["release-managers"]});
            members.push(operator.invite(&body).await);
        }
        let keys = making.tenant("keys", &json!({})).await;
        let account = making.tenant("stopped", &json!({})).await;
        let stopped = making.asker(&account, &["ALLOW", "DENY"]).await;
        let Making { all, verdicts, .. } = making;
        let stopper = all.last().expect("a tenant").admin.clone();
        let delivered = Arc::default();
        let mut tenants = Self {
            all,
            plain,
            runs,
            capped,
            agent,
            members,
            operator,
            keys,
            stopped,
            stopper,
            verdicts,
            delivered,
            taking: None,
        };
        tenants.take_deliveries(&deployment.receiver);
        tenants.until_recordable(deployment).await;
        tenants
    }

    /// Lines about approvals are written once every gateway has heard of every process.
    async fn until_recordable(&mut self, deployment: &Deployment) {
        for (number, url) in deployment.urls.iter().enumerate() {
            let api = self.agent.api.at(url);
            let opens = async || {
                let body = Api::deployment_of(&format!("first at {number}"));
                api.check(&body).await.body["approval"].is_object()
            };
            wait_for("an approval that is opened", SETTLE_TIMEOUT, opens).await;
        }
    }

    /// From now on what the receiver gets is judged and put away.
    fn take_deliveries(&mut self, receiver: &Arc<Receiver>) {
        let tenants: Vec<_> = self
            .all
            .iter()
            .map(|tenant| (tenant.path.clone(), tenant.account.clone(), tenant.secret.clone()))
            .collect();
        let (receiver, delivered) = (Arc::clone(receiver), Arc::clone(&self.delivered));
        self.taking = Some(tokio::spawn(async move {
            loop {
                for delivery in receiver.take() {
                    let of = tenants.iter().find(|(path, ..)| *path == delivery.path).expect("a tenant's path");
                    delivered.lock().unwrap().push(judged(&delivery, &of.1, &of.2));
                }
                tokio::time::sleep(TAKE_INTERVAL).await;
            }
        }));
    }

    pub fn rules(&self) -> Rules {
        Rules {
            verdicts: self.verdicts.clone(),
            run_limit: RUN_LIMIT,
            account_limits: [(self.capped.account.clone(), DAILY_LIMIT)].into(),
            delivered: self.all.iter().map(|tenant| tenant.account.clone()).collect(),
        }
    }

    /// Reads everything back, once it all runs again and no client asks any more.
    pub async fn find(&self, deployment: &Deployment, history: &History, keys: &[(String, Api)]) -> Found {
        let url = &deployment.urls[0];
        let mut found = Found::default();
        // Keys are tried, which is recorded.
        self.find_changes(url, history, keys, &mut found).await;
        for tenant in &self.all {
            let admin = tenant.admin.at(url);
            let sealed = async || admin.get("/v1/decisions/verify").await.body["unsealed"] == 0;
            wait_for("a checkpoint over all", SETTLE_TIMEOUT, sealed).await;
            let report = admin.verify().await;
            let verified = (report["ok"] == true, report["records"].as_u64().unwrap_or(0));
            found.verified.insert(tenant.account.clone(), verified);
            let records = admin.decisions("limit=1000").await;
            found.records.extend(records.iter().map(|record| recorded(&tenant.account, record)));
        }
        self.find_counts(url, history, &mut found).await;
        self.find_deliveries(&mut found).await;
        found
    }

    async fn find_counts(&self, url: &str, history: &History, found: &mut Found) {
        let asked = history.ops.iter().filter_map(|op| op.asked());
        let runs: BTreeSet<&String> = asked.clone().filter_map(|asked| asked.run.as_ref()).collect();
        let reads = self.admin_of(&self.runs.account).at(url);
        for run in runs {
            let answer = reads.get(&format!("/v1/runs/{run}")).await;
            if let Some(count) = answer.body["iterations"].as_u64() {
                found.runs.insert(run.clone(), count);
            }
        }
        let approvals: BTreeSet<&String> = asked.filter_map(|asked| asked.approval.as_ref()).collect();
        for approval in approvals {
            let shown = self.agent.api.at(url).get(&format!("/v1/approvals/{approval}")).await.expect(200);
            let text = |name: &str| shown[name].as_str().map(str::to_owned);
            found.approvals.insert(approval.clone(), (text("status").unwrap_or_default(), text("used_by")));
        }
    }

    async fn find_changes(&self, url: &str, history: &History, keys: &[(String, Api)], found: &mut Found) {
        let changes = || history.ops.iter().filter_map(|op| op.changed());
        let revoked: BTreeSet<&str> = changes()
            .filter_map(|change| match change {
                Change::KeyRevoked(id) => Some(id.as_str()),
                _ => None,
            })
            .collect();
        let began = Instant::now();
        for (id, api) in keys {
            let mut status = 0;
            // A notice that was sent while a part was cut off may be late by as much as a key is cached.
            let known = async || {
                status = api.at(url).check(&Api::harmless()).await.status;
                status == 401
                    || status == 200 && (!revoked.contains(id.as_str()) || began.elapsed() > CACHED_KEY_TIMEOUT)
            };
            wait_for("an answer about a key", SETTLE_TIMEOUT, known).await;
            found.keys.insert(id.clone(), status == 200);
        }
        let listed = self.stopper.at(url).get("/v1/stops").await.expect(200);
        let listed: BTreeSet<&str> =
            listed["items"].as_array().unwrap().iter().filter_map(|stop| stop["id"].as_str()).collect();
        for change in changes() {
            if let Change::Stopped { id, .. } | Change::Resumed { id, .. } = change {
                found.stops.insert(id.clone(), listed.contains(id.as_str()));
            }
        }
    }

    /// Waits until every record has come, or for as long as that may take.
    async fn find_deliveries(&self, found: &mut Found) {
        let recorded: BTreeSet<&str> = found.records.iter().map(|record| record.id.as_str()).collect();
        let began = Instant::now();
        loop {
            let is_complete = {
                let delivered = self.delivered.lock().unwrap();
                let ids = delivered.iter().filter_map(|delivery| Some(delivery.decision.as_ref()?.0.as_str()));
                let ids: BTreeSet<&str> = ids.collect();
                recorded.is_subset(&ids) && are_numbered(&delivered)
            };
            if is_complete || began.elapsed() > DELIVERY_TIMEOUT {
                break;
            }
            tokio::time::sleep(TAKE_INTERVAL).await;
        }
        found.deliveries = self.delivered.lock().unwrap().clone();
    }

    fn admin_of(&self, account: &str) -> &Api {
        &self.all.iter().find(|tenant| tenant.account == account).expect("a tenant").admin
    }
}

impl Drop for Tenants {
    fn drop(&mut self) {
        if let Some(taking) = &self.taking {
            taking.abort();
        }
    }
}

/// Accounts that are being made.
struct Making<'d> {
    operator: &'d Api,
    deployment: &'d Deployment,
    all: Vec<Tenant>,
    verdicts: BTreeMap<String, Vec<String>>,
}

impl Making<'_> {
    /// An account with these settings, and a webhook for everything.
    async fn tenant(&mut self, name: &str, settings: &Value) -> String {
        let made = self.operator.post("/v1/accounts", &json!({"name": name})).await.expect(201);
        let account = made["id"].as_str().unwrap().to_owned();
        if settings.as_object().is_some_and(|settings| !settings.is_empty()) {
            self.operator.patch(&format!("/v1/accounts/{account}"), settings).await.expect(200);
        }
        let body = json!({"account": account, "name": "admin", "scopes": account_scopes()});
        let made = self.operator.post("/v1/keys", &body).await.expect(201);
        let admin = self.operator.with_key(made["key"].as_str().unwrap());
        let path = format!("/{name}");
        let (_, secret) = admin.webhook(&self.deployment.receiver.url(&path)).await;
        self.all.push(Tenant { account: account.clone(), path, admin, secret });
        account
    }

    async fn asker(&mut self, account: &str, verdicts: &[&str]) -> Asker {
        let body = json!({"account": account, "name": "asks", "scopes": ["check"]});
        let Agent { key_id, api } = self.operator.make_agent(&body).await;
        let verdicts = verdicts.iter().map(|&verdict| verdict.to_owned()).collect();
        self.verdicts.insert(key_id.clone(), verdicts);
        Asker { account: account.to_owned(), key: key_id, api }
    }
}

fn recorded(account: &str, record: &Value) -> Record {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Record {
        account: account.to_owned(),
        id: text(&record["request_id"]).unwrap_or_default(),
        verdict: text(&record["verdict"]).unwrap_or_default(),
        key: text(&record["key_id"]).unwrap_or_default(),
        run: text(&record["run_id"]),
        approval: text(&record["approval"]["id"]),
    }
}

fn judged(delivery: &Delivery, account: &str, secret: &str) -> Delivered {
    let event = delivery.event();
    let text = |name: &str| event["data"][name].as_str().unwrap_or_default().to_owned();
    let is_decision = event["type"] == "decision.recorded";
    Delivered {
        account: account.to_owned(),
        event: delivery.id().to_owned(),
        sequence: delivery.sequence(),
        decision: is_decision.then(|| (text("request_id"), text("verdict"))),
        is_signed: delivery.is_signed_by(secret),
        body: BuildHasherDefault::<DefaultHasher>::default().hash_one(&delivery.body),
    }
}

/// Whether each account's numbers go from 1 on without a gap so far.
fn are_numbered(delivered: &[Delivered]) -> bool {
    let mut numbers: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
    for delivery in delivered {
        numbers.entry(&delivery.account).or_default().insert(delivery.sequence);
    }
    numbers.values().all(|numbers| numbers.iter().copied().eq(1..=numbers.len() as u64))
}
