//! A keystore that runs, and the questions that tests ask of it.

use std::path::Path;
use std::time::Duration;

use stage0_backplane::{Backplane, ServeError};
use stage0_contract::{
    Account, AccountId, ApiKey, Caller, CreateAccount, CreateKey, KeyCreated, KeyId, KeyIdentity, KeystoreStatus,
    ListKeys, ManageReply, RefreshKey, RefreshKeyReply, Request, RevokeKey, Revoked, RotateKey, Scope, Scopes,
    VerifyKey, VerifyKeyReply,
};
use stage0_keystore::{BuildError, HashCost, Keystore, KeystoreConfig, OPERATOR_KEY_FILE};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Long enough for the slowest machine; nothing waits for it to pass.
const ENOUGH: Duration = Duration::from_secs(30);

pub(crate) struct Running {
    pub(crate) backplane: Backplane,
    /// The operator's key, from its file.
    pub(crate) operator: Caller,
    stop: CancellationToken,
    task: JoinHandle<Result<(), ServeError>>,
}

/// The least that Argon2 allows: what is tested here is not the cost of a guess.
pub(crate) fn config(dir: &Path) -> KeystoreConfig {
    KeystoreConfig { hash_cost: HashCost { memory_kib: 8, passes: 1 }, ..KeystoreConfig::new(dir) }
}

pub(crate) fn scopes(scopes: &[Scope]) -> Scopes {
    scopes.iter().copied().collect()
}

impl Running {
    pub(crate) async fn start(dir: &Path) -> Self {
        Self::try_start(dir).await.unwrap()
    }

    pub(crate) async fn try_start(dir: &Path) -> Result<Self, BuildError> {
        let backplane = Backplane::embedded();
        let keystore = Keystore::build(config(dir), backplane.clone()).await?;
        let stop = CancellationToken::new();
        let task = tokio::spawn(keystore.run_until(stop.clone().cancelled_owned()));
        let text = std::fs::read_to_string(dir.join(OPERATOR_KEY_FILE)).unwrap();
        let key = ApiKey::parse(text.trim_end()).unwrap();
        // Served from now on, or from a moment later.
        let identity = loop {
            match backplane.requests.ask(&VerifyKey { key: key.clone() }, ENOUGH).await {
                Ok(VerifyKeyReply::Valid(identity)) => break identity,
                Ok(other) => panic!("the operator's key is refused: {other:?}"),
                Err(_) => tokio::task::yield_now().await,
            }
        };
        Ok(Self { backplane, operator: Caller::from(&identity), stop, task })
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }

    pub(crate) async fn ask<R: Request>(&self, question: &R) -> R::Reply {
        self.backplane.requests.ask(question, ENOUGH).await.unwrap()
    }

    pub(crate) async fn account(&self, name: &str) -> Account {
        let call = CreateAccount { caller: self.operator.clone(), name: name.to_owned(), plan: None };
        done(self.ask(&call).await)
    }

    pub(crate) async fn key(&self, account: &AccountId, with: &[Scope]) -> KeyCreated {
        done(self.ask(&self.create(account, with)).await)
    }

    pub(crate) fn create(&self, account: &AccountId, with: &[Scope]) -> CreateKey {
        CreateKey {
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
        match self.ask(&VerifyKey { key: key.clone() }).await {
            VerifyKeyReply::Valid(identity) => Some(identity),
            VerifyKeyReply::Invalid => None,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn lives(&self, id: &KeyId) -> bool {
        match self.ask(&RefreshKey { key_id: id.clone() }).await {
            RefreshKeyReply::Live(_) => true,
            RefreshKeyReply::Gone => false,
            RefreshKeyReply::Failed => panic!("could not tell"),
        }
    }

    pub(crate) async fn keys_of(&self, account: &AccountId) -> usize {
        let (caller, account) = (self.operator.clone(), Some(account.clone()));
        done(self.ask(&ListKeys { caller, account, cursor: None, limit: 1_000 }).await).items.len()
    }

    pub(crate) async fn writable(&self) -> bool {
        self.ask(&KeystoreStatus {}).await.writable
    }
}

pub(crate) fn done<T: std::fmt::Debug>(reply: ManageReply<T>) -> T {
    match reply {
        ManageReply::Done(done) => done,
        other => panic!("{other:?}"),
    }
}
