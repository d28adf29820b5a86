//! A running keystore, and the requests that tests send to it.

use std::path::Path;
use std::time::Duration;

use stage0_backplane::embedded::{Bus, OpenError};
use stage0_backplane::{Backplane, Event, Subscription};
use stage0_contract::{
    AcceptInvitation, Account, AccountId, ApiKey, Caller, CreateAccount, CreateKey, CreateWebhook, DeleteWebhook,
    Endpoint, InvitationAccepted, InvitationCode, InviteMember, KeyChanged, KeyCreated, KeyId, KeyIdentity,
    KeystoreStatus, ListEndpoints, ListKeys, ManageReply, MemberId, RefreshKey, RefreshKeyReply, Refusal, Request,
    RevokeKey, Revoked, RotateKey, Scope, Scopes, VerifyKey, VerifyKeyReply, WebhookCreated, WebhookDeleted,
    WebhookFilters, WebhookId,
};
use stage0_keystore::{BuildError, HashCost, Health, Keystore, KeystoreConfig, OPERATOR_KEY_FILE, RunError};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Long enough for the slowest machine; nothing waits for it to pass.
const ENOUGH: Duration = Duration::from_secs(30);

/// What a start may have to do without: nothing, or one of the two that are rebuilt from each other.
pub(crate) const LOSSES: [Option<&str>; 3] = [None, Some("store"), Some("journal")];

pub(crate) struct Running {
    pub(crate) backplane: Backplane,
    /// The operator's key, from its file.
    pub(crate) operator: Caller,
    pub(crate) health: Health,
    stop: CancellationToken,
    task: JoinHandle<Result<(), RunError>>,
}

/// The cheapest hash that Argon2 allows: these tests are not about the cost of a guess.
pub(crate) fn config(dir: &Path) -> KeystoreConfig {
    KeystoreConfig { hash_cost: HashCost { memory_kib: 8, passes: 1 }, ..KeystoreConfig::new(dir) }
}

pub(crate) fn scopes(scopes: &[Scope]) -> Scopes {
    scopes.iter().copied().collect()
}

/// The state store, in a file beside the directory's, which outlasts a keystore.
pub(crate) async fn state_store(dir: &Path) -> Bus {
    let state = dir.join("state");
    std::fs::create_dir_all(&state).unwrap();
    let mut opened = Bus::open(&state);
    // The threads of the one before it may still be closing it.
    while opened.as_ref().is_err_and(|error| matches!(error, OpenError::Locked(_))) {
        tokio::task::yield_now().await;
        opened = Bus::open(&state);
    }
    opened.unwrap()
}

/// Polls a condition; the only waiting of these tests.
pub(crate) async fn wait_for(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let until = tokio::time::Instant::now() + ENOUGH;
    while !condition().await {
        assert!(tokio::time::Instant::now() < until, "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A caller without a key.
pub(crate) fn anonymous() -> Caller {
    let (account, key_id) = (AccountId::parse("a").unwrap(), KeyId::parse("k").unwrap());
    Caller { account, key_id, scopes: scopes(&[]), key: None }
}

/// The caller that presents a new key.
pub(crate) fn caller_of(made: &KeyCreated) -> Caller {
    let KeyCreated { id, key, account, scopes, .. } = made.clone();
    Caller { account, key_id: id, scopes, key: Some(key) }
}

pub(crate) fn caller_of_member(accepted: &InvitationAccepted) -> Caller {
    let InvitationAccepted { member, key_id, key } = accepted.clone();
    Caller { account: member.account, key_id, scopes: member.scopes, key: Some(key) }
}

pub(crate) fn invite(caller: &Caller, name: &str) -> InviteMember {
    InviteMember {
        caller: caller.clone(),
        account: None,
        name: name.to_owned(),
        mail: Some("ada@example.org".to_owned()),
        groups: vec!["release-managers".to_owned()],
        scopes: None,
        valid_seconds: 3_600,
    }
}

/// Removes a file, or a directory with everything in it.
pub(crate) fn remove(path: &Path) {
    if path.is_dir() { std::fs::remove_dir_all(path).unwrap() } else { std::fs::remove_file(path).unwrap() }
}

impl Running {
    pub(crate) async fn start(dir: &Path) -> Self {
        Self::try_start(dir).await.unwrap()
    }

    /// With an account of its own.
    pub(crate) async fn with_account(dir: &Path) -> (Self, AccountId) {
        let running = Self::start(dir).await;
        let account = running.account("a").await.id;
        (running, account)
    }

    /// Starts again after one of [`LOSSES`].
    pub(crate) async fn start_without(dir: &Path, lost: Option<&str>) -> Self {
        if let Some(lost) = lost {
            remove(&dir.join(lost));
        }
        Self::start(dir).await
    }

    pub(crate) async fn try_start(dir: &Path) -> Result<Self, BuildError> {
        Self::start_with(config(dir)).await
    }

    pub(crate) async fn start_with(config: KeystoreConfig) -> Result<Self, BuildError> {
        let file = config.data_dir.join(OPERATOR_KEY_FILE);
        // Anonymous until the operator's key has been verified.
        let mut running = Self::start_as(config, anonymous()).await?;
        running.become_operator(&file).await;
        Ok(running)
    }

    /// Signs in with the operator's key from its file.
    pub(crate) async fn become_operator(&mut self, file: &Path) {
        let key = ApiKey::parse(std::fs::read_to_string(file).unwrap().trim_end()).unwrap();
        self.operator = Caller::new(&self.verify(&key).await.unwrap(), &key);
    }

    pub(crate) async fn start_as(config: KeystoreConfig, operator: Caller) -> Result<Self, BuildError> {
        let backplane = state_store(&config.data_dir).await.connect();
        Self::start_on(config, backplane, operator).await
    }

    pub(crate) async fn start_on(
        config: KeystoreConfig,
        backplane: Backplane,
        operator: Caller,
    ) -> Result<Self, BuildError> {
        let health = Health::default();
        let keystore = Keystore::build(config, backplane.clone(), health.clone()).await?;
        let stop = CancellationToken::new();
        let task = tokio::spawn(keystore.run_until(stop.clone().cancelled_owned()));
        // It serves from now on, or a moment later.
        while backplane.requests.request(&KeystoreStatus {}, ENOUGH).await.is_err() {
            tokio::task::yield_now().await;
        }
        Ok(Self { backplane, operator, health, stop, task })
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// Sends requests to a keystore that somebody else started.
    pub(crate) fn beside(backplane: Backplane, operator: Caller) -> Self {
        let (health, stop) = (Health::default(), CancellationToken::new());
        Self { backplane, operator, health, stop, task: tokio::spawn(async { Ok(()) }) }
    }

    /// Why it ended by itself.
    pub(crate) async fn ended(self) -> RunError {
        self.task.await.unwrap().unwrap_err()
    }

    pub(crate) async fn ask<R: Request>(&self, request: &R) -> R::Reply {
        self.backplane.requests.request(request, ENOUGH).await.unwrap()
    }

    pub(crate) async fn account(&self, name: &str) -> Account {
        let call = CreateAccount { approvals: None, caller: self.operator.clone(), name: name.to_owned(), plan: None };
        done(self.ask(&call).await)
    }

    pub(crate) async fn key(&self, account: &AccountId, with: &[Scope]) -> KeyCreated {
        done(self.ask(&self.create(account, with)).await)
    }

    /// The caller with a new key of the account.
    pub(crate) async fn caller(&self, account: &AccountId, with: &[Scope]) -> Caller {
        caller_of(&self.key(account, with).await)
    }

    /// A member whom the operator invited, with its first key and these scopes beside `approvals:decide`.
    pub(crate) async fn member(&self, account: &AccountId, more: &[Scope]) -> (MemberId, Caller) {
        let mut with = scopes(more);
        with.insert(Scope::ApprovalsDecide);
        let call =
            InviteMember { account: Some(account.clone()), scopes: Some(with), ..invite(&self.operator, "Grace") };
        let invited = done(self.ask(&call).await);
        let accepted = done(self.accept(&invited.invitation_code).await);
        (accepted.member.id.clone(), caller_of_member(&accepted))
    }

    pub(crate) async fn accept(&self, code: &InvitationCode) -> ManageReply<InvitationAccepted> {
        self.ask(&AcceptInvitation { code: code.clone() }).await
    }

    pub(crate) fn create(&self, account: &AccountId, with: &[Scope]) -> CreateKey {
        CreateKey {
            owner: None,
            caller: self.operator.clone(),
            account: Some(account.clone()),
            name: "key".to_owned(),
            scopes: scopes(with),
            expires_at: None,
        }
    }

    pub(crate) async fn revoke(&self, id: &KeyId) -> Revoked {
        done(self.ask(&RevokeKey { caller: self.operator.clone(), id: id.clone() }).await)
    }

    pub(crate) async fn rotate(&self, id: &KeyId, overlap_seconds: u64) -> KeyCreated {
        done(self.ask(&RotateKey { caller: self.operator.clone(), id: id.clone(), overlap_seconds }).await)
    }

    pub(crate) async fn verify(&self, key: &ApiKey) -> Option<KeyIdentity> {
        match self.ask(&VerifyKey { key: key.clone(), request_id: None }).await {
            VerifyKeyReply::Valid(identity) => Some(identity),
            VerifyKeyReply::Invalid => None,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn is_active(&self, id: &KeyId) -> bool {
        match self.ask(&RefreshKey { key_id: id.clone(), request_id: None }).await {
            RefreshKeyReply::Live(_) => true,
            RefreshKeyReply::Gone => false,
            RefreshKeyReply::Failed => panic!("could not tell"),
        }
    }

    pub(crate) async fn keys_of(&self, account: &AccountId) -> usize {
        let (caller, account) = (self.operator.clone(), Some(account.clone()));
        done(self.ask(&ListKeys { caller, account, cursor: None, limit: 1_000 }).await).items.len()
    }

    pub(crate) async fn webhook(&self, account: &AccountId) -> WebhookCreated {
        done(self.ask(&self.create_webhook(account)).await)
    }

    pub(crate) fn create_webhook(&self, account: &AccountId) -> CreateWebhook {
        CreateWebhook {
            caller: self.operator.clone(),
            account: Some(account.clone()),
            url: "https://hooks.example/in".to_owned(),
            filters: WebhookFilters::default(),
            description: "ours".to_owned(),
            rate_limit: None,
        }
    }

    pub(crate) async fn delete_webhook(&self, id: &WebhookId) -> WebhookDeleted {
        done(self.ask(&DeleteWebhook { caller: self.operator.clone(), id: id.clone() }).await)
    }

    /// All endpoints that an exporter gets, page after page.
    pub(crate) async fn endpoints(&self) -> Vec<Endpoint> {
        let (mut found, mut cursor) = (Vec::new(), None);
        loop {
            let page = done(self.ask(&ListEndpoints { cursor }).await);
            found.extend(page.items);
            cursor = page.next_cursor;
            if cursor.is_none() {
                return found;
            }
        }
    }

    pub(crate) async fn writable(&self) -> bool {
        self.ask(&KeystoreStatus {}).await.writable
    }
}

/// The account and key of the next notice about one key.
pub(crate) async fn next_key_notice(notices: &mut Subscription<KeyChanged>) -> (AccountId, KeyId) {
    loop {
        match tokio::time::timeout(ENOUGH, notices.next()).await.unwrap().unwrap() {
            Event::Message(KeyChanged::One { account, key_id }) => return (account, key_id),
            // The keystore begins to serve.
            Event::Message(KeyChanged::Any {}) => {}
            Event::Gap => panic!("a gap"),
        }
    }
}

pub(crate) fn done<T: std::fmt::Debug>(reply: ManageReply<T>) -> T {
    match reply {
        ManageReply::Done(done) => done,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn refused<T: std::fmt::Debug>(reply: ManageReply<T>) -> Refusal {
    match reply {
        ManageReply::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}
