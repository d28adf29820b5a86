//! What is asked, and who in here answers it.
//!
//! Owns the split: what changes something goes to the writer, what takes rights away before what adds some; what only
//! reads goes to the store on a thread that may block, keys go to the verifier. A question that cannot be answered is
//! answered with `Failed` or `Busy`, which no caller takes for a verdict.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use stage0_contract::{
    Account, AccountId, Caller, CreateAccount, CreateKey, DeletionPermit, KeyCreated, KeySummary, KeystoreStatusReply,
    ListAccounts, ListKeys, ManageReply, NoteKeyUses, NoteKeyUsesReply, Page, PermitDeletion, RevokeKey, Revoked,
    RotateKey, UpdateAccount,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admission::{Admission, Admitted};
use crate::announce::{Announcer, Changed};
use crate::callers::Callers;
use crate::head::HeadStored;
use crate::last_used::LastUsed;
use crate::lease::Tenure;
use crate::manage::{self, Clock, Desk, Judge, Undone};
use crate::new_key::{HashedKey, NewKeys};
use crate::permits::Permits;
use crate::rules::whole_seconds;
use crate::seal::Sealer;
use crate::signer::Signer;
use crate::store::Store;
use crate::verify::Verifier;
use crate::writer::{Lane, NoAnswer, Writer};

mod webhooks;

const RESERVE_INTERVAL: Duration = Duration::from_secs(5);

/// Where every question arrives.
pub(crate) struct Counter {
    pub(crate) store: Store,
    pub(crate) judge: Judge,
    pub(crate) admission: Arc<Admission>,
    pub(crate) new_keys: NewKeys,
    pub(crate) verifier: Arc<Verifier>,
    pub(crate) callers: Callers,
    pub(crate) permits: Arc<Permits>,
    /// To which questions are sealed.
    pub(crate) sealing_key: Option<String>,
    pub(crate) writer: Writer,
    pub(crate) writable: Arc<AtomicBool>,
    pub(crate) disk_low: Arc<AtomicBool>,
    pub(crate) announcer: Announcer,
    pub(crate) last_used: Arc<LastUsed>,
    pub(crate) sealer: Arc<Sealer>,
    pub(crate) signer: Arc<Signer>,
    pub(crate) clock: Clock,
    /// Nothing is answered without it.
    pub(crate) tenure: Tenure,
    pub(crate) head: HeadStored,
}

impl Counter {
    pub(crate) fn status(&self) -> KeystoreStatusReply {
        KeystoreStatusReply {
            writable: self.writable.load(Ordering::Acquire),
            disk_low: self.disk_low.load(Ordering::Acquire),
            sealing_key: self.sealing_key.clone(),
        }
    }

    /// Looks after the disk reserve until stopped.
    pub(crate) async fn tend_reserve(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(RESERVE_INTERVAL)).await.is_some() {
            let until = Instant::now() + RESERVE_INTERVAL;
            if self.writer.ask(Lane::Urgent, until, Desk::tend_reserve).await.is_err() {
                tracing::debug!("disk reserve was not looked after: the writer has no time");
            }
        }
    }

    pub(crate) async fn create_account(&self, call: CreateAccount, until: Instant) -> ManageReply<Account> {
        let account = call.caller.account.clone();
        self.add("create account", &account, until, move |desk| desk.create_account(call)).await
    }

    pub(crate) async fn update_account(&self, call: UpdateAccount, until: Instant) -> ManageReply<Account> {
        self.change_and_tell("update account", Lane::Urgent, until, move |desk| desk.update_account(&call)).await
    }

    pub(crate) async fn create_key(&self, call: CreateKey, until: Instant) -> ManageReply<KeyCreated> {
        let done = async {
            let admitted = self.admit(&call.caller.account)?;
            let (judge, first) = (self.judge.clone(), call.clone());
            self.look(move |now| judge.new_key(&first, now)).await?;
            let hashed = self.new_key(&admitted, until).await?;
            self.write(Lane::Ordinary, until, move |desk| desk.create_key(&call, hashed)).await
        };
        manage::reply("create key", done.await)
    }

    pub(crate) async fn rotate_key(&self, call: RotateKey, until: Instant) -> ManageReply<KeyCreated> {
        let done = async {
            let admitted = self.admit(&call.caller.account)?;
            let (judge, first) = (self.judge.clone(), call.clone());
            self.look(move |now| judge.successor(&first, now)).await?;
            let hashed = self.new_key(&admitted, until).await?;
            self.write(Lane::Ordinary, until, move |desk| desk.rotate_key(&call, hashed)).await
        };
        let done = done.await;
        self.tell("rotate key", done).await
    }

    pub(crate) async fn revoke_key(&self, call: RevokeKey, until: Instant) -> ManageReply<Revoked> {
        self.change_and_tell("revoke key", Lane::Urgent, until, move |desk| desk.revoke_key(&call)).await
    }

    pub(crate) async fn list_accounts(&self, call: ListAccounts) -> ManageReply<Page<Account>> {
        self.read("list accounts", move |store, now| manage::list_accounts(store, &call, now)).await
    }

    pub(crate) async fn list_keys(&self, call: ListKeys) -> ManageReply<Page<KeySummary>> {
        let last_used = Arc::clone(&self.last_used);
        let list = move |store: &Store, now| {
            let mut page = manage::list_keys(store, &call, now)?;
            page.items.iter_mut().for_each(|key| key.last_used_at = last_used.of(&key.id));
            Ok(page)
        };
        self.read("list keys", list).await
    }

    /// Changes nothing that is decided by; a disk that is nearly full is kept for what does.
    pub(crate) async fn note_key_uses(&self, call: NoteKeyUses) -> NoteKeyUsesReply {
        if self.disk_low.load(Ordering::Acquire) {
            return NoteKeyUsesReply::Failed;
        }
        let (last_used, store, now) = (Arc::clone(&self.last_used), self.store.clone(), (self.clock)());
        let noted = tokio::task::spawn_blocking(move || last_used.note(&store, &call, now)).await;
        // A panic of the thread is as good as a failure: it is told again.
        if noted.unwrap_or(false) { NoteKeyUsesReply::Noted } else { NoteKeyUsesReply::Failed }
    }

    /// For a deletion that an exporter carries out.
    pub(crate) async fn permit_deletion(&self, call: PermitDeletion) -> ManageReply<DeletionPermit> {
        let permits = Arc::clone(&self.permits);
        let permit = move |store: &Store, now| {
            let Caller { account, key_id, .. } = manage::may_delete(store, &call, now)?;
            Ok(permits.give(&account, call.before, &key_id, now))
        };
        self.read("permit deletion", permit).await
    }

    /// What adds something that nobody need hear of.
    async fn add<T: Send + 'static>(
        &self,
        call: &'static str,
        account: &AccountId,
        until: Instant,
        change: impl FnOnce(&mut Desk) -> Result<T, Undone> + Send + 'static,
    ) -> ManageReply<T> {
        let done = async {
            let _admitted = self.admit(account)?;
            self.write(Lane::Ordinary, until, change).await
        };
        manage::reply(call, done.await)
    }

    /// What adds something of which every process hears.
    async fn add_and_tell<T: Send + 'static>(
        &self,
        call: &'static str,
        account: &AccountId,
        until: Instant,
        change: impl FnOnce(&mut Desk) -> Result<(T, Changed), Undone> + Send + 'static,
    ) -> ManageReply<T> {
        let done = async {
            let _admitted = self.admit(account)?;
            self.write(Lane::Ordinary, until, change).await
        };
        let done = done.await;
        self.tell(call, done).await
    }

    /// What can be asked for again and is done only once.
    async fn change_and_tell<T: Send + 'static, C: Into<Option<Changed>> + Send + 'static>(
        &self,
        call: &'static str,
        lane: Lane,
        until: Instant,
        change: impl FnOnce(&mut Desk) -> Result<(T, C), Undone> + Send + 'static,
    ) -> ManageReply<T> {
        let done = async {
            let (done, changed) = self.write(lane, until, change).await?;
            let told = match changed.into() {
                Some(changed) => self.announcer.announce(changed).await,
                None => true,
            };
            // Whoever hears that a key is revoked relies on it. The change stands, and can be asked for again.
            if told { Ok(done) } else { Err(Undone::Untold) }
        };
        manage::reply(call, done.await)
    }

    /// Every process hears of the change before the caller does, or a little later: what was made is given out once.
    async fn tell<T, C: Into<Option<Changed>>>(
        &self,
        call: &'static str,
        done: Result<(T, C), Undone>,
    ) -> ManageReply<T> {
        let told = match done {
            Ok((done, changed)) => {
                if let Some(changed) = changed.into() {
                    self.announcer.announce(changed).await;
                }
                Ok(done)
            }
            Err(error) => Err(error),
        };
        manage::reply(call, told)
    }

    fn admit(&self, account: &AccountId) -> Result<Admitted, Undone> {
        self.admission.admit(account).ok_or(Undone::NoAnswer(NoAnswer::Full))
    }

    /// A new key, hashed; `admitted` bounds how many wait for that.
    async fn new_key(&self, _admitted: &Admitted, until: Instant) -> Result<HashedKey, Undone> {
        self.new_keys.draw(self.admission.is_crowded(), until).await
    }

    async fn write<T: Send + 'static>(
        &self,
        lane: Lane,
        until: Instant,
        change: impl FnOnce(&mut Desk) -> Result<T, Undone> + Send + 'static,
    ) -> Result<T, Undone> {
        let done = self.writer.ask(lane, until, change).await.map_err(Undone::NoAnswer)??;
        // What is acknowledged is known outside of the directory, or a restore would undo it unnoticed.
        self.head.settled().await;
        Ok(done)
    }

    /// Judges without changing anything.
    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(Timestamp) -> Result<T, Undone> + Send + 'static,
    ) -> Result<T, Undone> {
        let now = whole_seconds((self.clock)());
        tokio::task::spawn_blocking(move || look(now)).await.map_err(Undone::Read)?
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
