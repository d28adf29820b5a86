//! A gateway with a keystore and an evaluator that the test controls.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Certificate, Client, Method, StatusCode};
use serde_json::{Value, json};
use stage0_backplane::Backplane;
use stage0_backplane::embedded::Bus;
use stage0_contract::{
    AccountId, AccountRules, ApiKey, Caps, CreateKey, EvaluateReply, EvaluateRequest, EvaluatorStatus,
    EvaluatorStatusReply, FieldError, Holder, KeyChanged, KeyIdentity, Limits, ManageReply, MemberId, Plan, RefreshKey,
    RefreshKeyReply, Refusal, Request, Scope, Scopes, VerifyKey, VerifyKeyReply,
};
use stage0_gateway::{Connect, Gateway, GatewayConfig, dev_tls};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::failing_log::FailingLog;

const DECIDED: &str = include_str!("../../../contract/fixtures/evaluate_reply_decided.json");
const STATUS: &str = include_str!("../../../contract/fixtures/evaluator_status_reply.json");

/// The number of the key that may check, read decisions and manage runs, keys and webhooks.
pub(crate) const TENANT: u8 = 1;
/// The number of a key with the scope `decisions:read` only.
pub(crate) const READER: u8 = 2;
/// The number of the operator's key.
pub(crate) const OPERATOR: u8 = 3;

/// The number of the key of a member who may decide about approvals, read decisions, and manage members, stops and
/// policies.
pub(crate) const MEMBER: u8 = 4;
/// The number of a workload's key that may manage the same.
pub(crate) const MANAGER: u8 = 5;
const LAST: u8 = MANAGER;

/// The key with this number.
pub(crate) fn key(number: u8) -> ApiKey {
    ApiKey::from_random([number; 10], [number; 20]).unwrap()
}

pub(crate) type Adjust = Box<dyn Fn(&EvaluateRequest, &mut EvaluateReply) + Send>;

/// What the keystore and the evaluator answer; tests change it while the gateway runs.
pub(crate) struct Services {
    pub(crate) identities: Mutex<Vec<KeyIdentity>>,
    pub(crate) reply: Mutex<EvaluateReply>,
    /// What becomes of the reply to one request.
    pub(crate) adjust: Mutex<Option<Adjust>>,
    /// Checks that reached the evaluator.
    pub(crate) evaluations: AtomicUsize,
    /// The last of them.
    pub(crate) evaluated: Mutex<Option<EvaluateRequest>>,
    /// Decisions wait for this.
    pub(crate) deciding: tokio::sync::Mutex<()>,
    /// Keys that were created.
    pub(crate) creations: AtomicUsize,
    /// The last call that created one.
    pub(crate) created: Mutex<Option<CreateKey>>,
}

impl Services {
    /// Changes the identity of a key, as an operator does; a cached one is not used any more once its notice arrives.
    pub(crate) fn change(&self, number: u8, change: impl FnOnce(&mut KeyIdentity)) {
        let mut identities = self.identities.lock().unwrap();
        change(identities.iter_mut().find(|identity| identity.key_id == *key(number).id()).unwrap());
    }

    pub(crate) fn revoke(&self, number: u8) {
        self.identities.lock().unwrap().retain(|identity| identity.key_id != *key(number).id());
    }

    pub(crate) fn evaluations(&self) -> usize {
        self.evaluations.load(Ordering::SeqCst)
    }

    fn find(&self, id: &stage0_contract::KeyId) -> Option<KeyIdentity> {
        self.identities.lock().unwrap().iter().find(|identity| identity.key_id == *id).cloned()
    }
}

/// A gateway that serves until this is dropped.
pub(crate) struct Stack {
    pub(crate) services: Arc<Services>,
    pub(crate) bus: Bus,
    /// While it fails, nothing can be recorded.
    pub(crate) log: FailingLog,
    client: Client,
    url: String,
    tasks: Vec<JoinHandle<()>>,
    _directory: tempfile::TempDir,
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or(Value::Null)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The paths of the fields that were refused.
    pub(crate) fn bad_fields(&self) -> Vec<String> {
        self.field_errors().into_iter().map(|error| error.path).collect()
    }

    pub(crate) fn field_errors(&self) -> Vec<FieldError> {
        assert_eq!(self.refusal(), (422, "validation_failed".to_owned()), "{}", self.text);
        serde_json::from_value(self.json()["errors"].clone()).unwrap()
    }

    /// The status and the code of a refusal.
    pub(crate) fn refusal(&self) -> (u16, String) {
        (self.status.as_u16(), self.json()["error"].as_str().unwrap_or_default().to_owned())
    }
}

fn identity(number: u8, account: &str, scopes: impl Into<Scopes>) -> KeyIdentity {
    KeyIdentity {
        key_id: key(number).id().clone(),
        account: AccountId::parse(account).unwrap(),
        scopes: scopes.into(),
        plan: Plan::Free,
        expires_at: None,
        retention_days: 30,
        limits: Limits::NONE,
        require_run_id: false,
        caps: Caps::NONE,
        holder: Some(Holder::of_workload(key(number).id().clone())),
        key_name: None,
        groups: None,
        rules: AccountRules::default(),
    }
}

/// The member whose key [`MEMBER`] is.
pub(crate) fn member() -> MemberId {
    MemberId::parse("mem_1").unwrap()
}

fn of_member(mut identity: KeyIdentity) -> KeyIdentity {
    identity.holder.as_mut().unwrap().member = Some(member());
    identity
}

impl Stack {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// With other settings than the defaults.
    pub(crate) async fn with(change: impl FnOnce(&mut GatewayConfig)) -> Self {
        let bus = Bus::new();
        let tenant = [Scope::Check, Scope::DecisionsRead, Scope::RunsManage, Scope::KeysManage, Scope::WebhooksManage];
        let managing = [Scope::MembersManage, Scope::StopsManage, Scope::PoliciesManage];
        let services = Arc::new(Services {
            identities: Mutex::new(vec![
                identity(TENANT, "acc", tenant),
                identity(READER, "acc", [Scope::DecisionsRead]),
                identity(OPERATOR, "operator", [Scope::Operator, Scope::Check]),
                of_member(identity(
                    MEMBER,
                    "acc",
                    managing.into_iter().chain([Scope::ApprovalsDecide, Scope::DecisionsRead]).collect::<Scopes>(),
                )),
                identity(MANAGER, "acc", managing),
            ]),
            reply: Mutex::new(serde_json::from_str(DECIDED).unwrap()),
            adjust: Mutex::default(),
            evaluations: AtomicUsize::new(0),
            evaluated: Mutex::default(),
            deciding: tokio::sync::Mutex::default(),
            creations: AtomicUsize::new(0),
            created: Mutex::default(),
        });
        let mut tasks = serve(&bus, &services).await;
        let directory = tempfile::tempdir().unwrap();
        let (tls, ca) = dev_tls(directory.path()).unwrap();
        let mut config = GatewayConfig {
            workers: 1,
            single_process: true,
            ..GatewayConfig::new("127.0.0.1:0".parse().unwrap(), tls)
        };
        change(&mut config);
        let log = FailingLog::new(bus.connect().log);
        let (connected, failing) = (bus.clone(), log.clone());
        let connect: Connect<Infallible> = Box::new(move || {
            let backplane = Backplane { log: Arc::new(failing.clone()), ..connected.connect() };
            Box::pin(async move { Ok(backplane) })
        });
        let base_path = config.base_path.clone();
        let gateway = Gateway::build(config, connect).await.unwrap();
        let url = format!("https://localhost:{}{base_path}", gateway.addr().port());
        tasks.push(tokio::spawn(async move { gateway.run_until(CancellationToken::new()).await.unwrap() }));
        let ca = Certificate::from_pem(&std::fs::read(ca).unwrap()).unwrap();
        let client = Client::builder().tls_certs_only([ca]).timeout(Duration::from_secs(30)).build().unwrap();
        Self { services, bus, log, client, url, tasks, _directory: directory }
    }

    /// Answers every request of this kind, as a service would; the requests arrive in the channel.
    pub(crate) async fn serve<M: Request + Clone>(
        &mut self,
        answer: impl Fn(&M) -> M::Reply + Send + 'static,
    ) -> mpsc::UnboundedReceiver<M> {
        let backplane = self.bus.connect();
        let mut requests = backplane.requests.serve::<M>().await.unwrap();
        let (asked, receiver) = mpsc::unbounded_channel();
        self.tasks.push(tokio::spawn(async move {
            let _backplane = backplane;
            while let Some(request) = requests.next().await {
                // A test that does not look at requests has dropped the receiver.
                asked.send(request.request.clone()).ok();
                let reply = answer(&request.request);
                request.answer(&reply).await;
            }
        }));
        receiver
    }

    /// The lines of the account's log, as an auditor downloads them.
    pub(crate) async fn lines(&self) -> Vec<Value> {
        let answer = self.get(TENANT, "/v1/decisions/export").await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Tells the gateway that a key of the account, or the account itself, has changed.
    pub(crate) async fn publish_change(&self) {
        let notice =
            KeyChanged::One { account: "acc".to_owned().try_into().unwrap(), key_id: key(TENANT).id().clone() };
        self.bus.connect().notices.publish(&notice).await.unwrap();
    }

    pub(crate) async fn post(&self, number: u8, path: &str, body: &Value) -> Answer {
        self.send_json(number, Method::POST, path, body).await
    }

    pub(crate) async fn patch(&self, number: u8, path: &str, body: &Value) -> Answer {
        self.send_json(number, Method::PATCH, path, body).await
    }

    async fn send_json(&self, number: u8, method: Method, path: &str, body: &Value) -> Answer {
        let request = self.request_as(number, method, path).header("content-type", "application/json");
        send(request.body(body.to_string())).await
    }

    /// A request without a key.
    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    /// A request with the key of this number.
    pub(crate) fn request_as(&self, number: u8, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.request(method, path).header("x-api-key", key(number).expose())
    }

    pub(crate) async fn get(&self, number: u8, path: &str) -> Answer {
        send(self.request_as(number, Method::GET, path)).await
    }

    /// A check by the tenant's key.
    pub(crate) async fn check(&self, body: &Value) -> Answer {
        send(self.check_request(body)).await
    }

    pub(crate) fn check_request(&self, body: &Value) -> reqwest::RequestBuilder {
        self.request_as(TENANT, Method::POST, "/check")
            .header("content-type", "application/json")
            .body(body.to_string())
    }
}

pub(crate) async fn send(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    Answer { status, headers, text: response.text().await.unwrap() }
}

/// The keystore and the evaluator.
async fn serve(bus: &Bus, services: &Arc<Services>) -> Vec<JoinHandle<()>> {
    let backplane = bus.connect();
    let mut verifies = backplane.requests.serve::<VerifyKey>().await.unwrap();
    let mut refreshes = backplane.requests.serve::<RefreshKey>().await.unwrap();
    let mut creates = backplane.requests.serve::<CreateKey>().await.unwrap();
    let mut statuses = backplane.requests.serve::<EvaluatorStatus>().await.unwrap();
    let services = Arc::clone(services);
    let status: EvaluatorStatusReply = serde_json::from_str(STATUS).unwrap();
    let evaluator = tokio::spawn({
        let (backplane, services) = (bus.connect(), Arc::clone(&services));
        let mut evaluations = backplane.requests.serve::<EvaluateRequest>().await.unwrap();
        async move {
            let _backplane = backplane;
            while let Some(request) = evaluations.next().await {
                *services.evaluated.lock().unwrap() = Some(request.request.clone());
                services.evaluations.fetch_add(1, Ordering::SeqCst);
                let _deciding = services.deciding.lock().await;
                let mut reply = services.reply.lock().unwrap().clone();
                if let Some(adjust) = &*services.adjust.lock().unwrap() {
                    adjust(&request.request, &mut reply);
                }
                request.answer(&reply).await;
            }
        }
    });
    let others = tokio::spawn(async move {
        let _backplane = backplane;
        loop {
            tokio::select! {
                Some(request) = verifies.next() => {
                    let known = services.find(request.request.key.id());
                    let shown = request.request.key.expose();
                    let known = known.filter(|_| (1..=LAST).any(|number| key(number).expose() == shown));
                    request.answer(&known.map_or(VerifyKeyReply::Invalid, VerifyKeyReply::Valid)).await;
                }
                Some(request) = refreshes.next() => {
                    let known = services.find(&request.request.key_id);
                    request.answer(&known.map_or(RefreshKeyReply::Gone, RefreshKeyReply::Live)).await;
                }
                Some(request) = creates.next() => {
                    let number = services.creations.fetch_add(1, Ordering::SeqCst);
                    *services.created.lock().unwrap() = Some(request.request.clone());
                    let CreateKey { name, scopes, .. } = &request.request;
                    let reply = if name == "refused" {
                        ManageReply::Refused(Refusal::Conflict("the account has too many keys".to_owned()))
                    } else {
                        let created = json!({
                            "id": format!("created{number}"),
                            "key": key(9).expose(),
                            "account": "acc",
                            "name": name,
                            "scopes": scopes,
                            "created_at": "2026-01-31T12:00:00Z",
                            "expires_at": null,
                        });
                        ManageReply::Done(serde_json::from_value(created).unwrap())
                    };
                    request.answer(&reply).await;
                }
                Some(request) = statuses.next() => request.answer(&status).await,
                else => return,
            }
        }
    });
    vec![evaluator, others]
}
