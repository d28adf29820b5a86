//! What is asked, and who in here answers it.
//!
//! Owns the split: what changes something goes to the writer, what only reads goes to the store on a thread that may block, keys
//! go to the verifier. A question that cannot be answered is answered with `Failed`, which no caller takes for a verdict.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use stage0_contract::{
    Account, CreateAccount, CreateKey, KeyCreated, KeySummary, KeystoreStatusReply, ListAccounts, ListKeys,
    ManageReply, Page, RevokeKey, Revoked, RotateKey, UpdateAccount,
};
use tokio::time::Instant;

use crate::announce::{Announcer, Changed};
use crate::manage::{self, Clock, Desk, Undone};
use crate::rules::whole_seconds;
use crate::seal::Sealer;
use crate::signer::Signer;
use crate::store::Store;
use crate::verify::Verifier;
use crate::writer::Writer;

mod webhooks;

/// Where every question arrives.
pub(crate) struct Counter {
    pub(crate) store: Store,
    pub(crate) verifier: Arc<Verifier>,
    pub(crate) writer: Writer,
    pub(crate) writable: Arc<AtomicBool>,
    pub(crate) announcer: Announcer,
    pub(crate) sealer: Arc<Sealer>,
    pub(crate) signer: Arc<Signer>,
    pub(crate) clock: Clock,
}

impl Counter {
    pub(crate) fn status(&self) -> KeystoreStatusReply {
        KeystoreStatusReply { writable: self.writable.load(Ordering::Acquire) }
    }

    pub(crate) async fn create_account(&self, call: CreateAccount, until: Instant) -> ManageReply<Account> {
        self.change("create account", until, move |desk| desk.create_account(call)).await
    }

    pub(crate) async fn update_account(&self, call: UpdateAccount, until: Instant) -> ManageReply<Account> {
        self.change_and_tell("update account", until, move |desk| desk.update_account(&call)).await
    }

    pub(crate) async fn create_key(&self, call: CreateKey, until: Instant) -> ManageReply<KeyCreated> {
        self.change("create key", until, move |desk| desk.create_key(call)).await
    }

    pub(crate) async fn rotate_key(&self, call: RotateKey, until: Instant) -> ManageReply<KeyCreated> {
        self.change_and_tell("rotate key", until, move |desk| desk.rotate_key(call)).await
    }

    pub(crate) async fn revoke_key(&self, call: RevokeKey, until: Instant) -> ManageReply<Revoked> {
        self.change_and_tell("revoke key", until, move |desk| desk.revoke_key(&call)).await
    }

    pub(crate) async fn list_accounts(&self, call: ListAccounts) -> ManageReply<Page<Account>> {
        self.read("list accounts", move |store, now| manage::list_accounts(store, &call, now)).await
    }

    pub(crate) async fn list_keys(&self, call: ListKeys) -> ManageReply<Page<KeySummary>> {
        self.read("list keys", move |store, now| manage::list_keys(store, &call, now)).await
    }

    /// Every process hears of the change before the caller does.
    async fn change_and_tell<T: Send + 'static>(
        &self,
        call: &'static str,
        until: Instant,
        change: impl FnOnce(&mut Desk) -> Result<(T, Changed), Undone> + Send + 'static,
    ) -> ManageReply<T> {
        match self.change(call, until, change).await {
            ManageReply::Done((done, changed)) => {
                self.announcer.announce(changed).await;
                ManageReply::Done(done)
            }
            ManageReply::Refused(refusal) => ManageReply::Refused(refusal),
            ManageReply::Failed => ManageReply::Failed,
        }
    }

    async fn change<T: Send + 'static>(
        &self,
        call: &'static str,
        until: Instant,
        change: impl FnOnce(&mut Desk) -> Result<T, Undone> + Send + 'static,
    ) -> ManageReply<T> {
        let done = self.writer.ask(until, change).await;
        manage::reply(call, done.unwrap_or_else(|error| Err(Undone::NoAnswer(error))))
    }

    async fn read<T: Send + 'static>(
        &self,
        call: &'static str,
        read: impl FnOnce(&Store, Timestamp) -> Result<T, Undone> + Send + 'static,
    ) -> ManageReply<T> {
        let (store, now) = (self.store.clone(), whole_seconds((self.clock)()));
        let done = tokio::task::spawn_blocking(move || read(&store, now)).await;
        manage::reply(call, done.unwrap_or_else(|error| Err(Undone::Read(error))))
    }
}
