//! What the serve loops share, and the handlers that do more than one thing.
//!
//! What takes rights away goes to the writer's urgent lane, the rest to its ordinary lane after admission. A request
//! that cannot be handled is answered with `Failed` or `Busy`, which no caller takes for a verdict.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use stage0_contract::{
    AcceptInvitation, AccountId, Caller, CreateKey, DeletionPermit, EndpointsPage, InvitationAccepted, KeyCreated,
    KeySummary, KeystoreStatusReply, ListEndpoints, ListKeys, ManageReply, MarkSigned, NoteKeyUses, NoteKeyUsesReply,
    Page, People, PermitDeletion, PublicKeys, ReadPeople, Request as _, RotateKey, SignMark, SigningKeys,
};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::admission::{Admission, Admitted};
use super::callers::Callers;
use super::permits::Permits;
use super::verify::Verifier;
use crate::admin::announce::{Announcer, Changed};
use crate::admin::new_key::NewKeys;
use crate::admin::rules::whole_seconds;
use crate::admin::writer::{Lane, Writer, WriterError};
use crate::admin::{self, AdminService, ChangeResult, ManageError, Precheck, marks, members, webhooks};
use crate::head::HeadStored;
use crate::last_used::LastUsed;
use crate::lease::tenure::Tenure;
use crate::seal::Sealer;
use crate::signer::{self, Signer};
use crate::sources::Clock;
use crate::store::CommitError;
use crate::store::record::CodeHash;
use crate::store::record_store::RecordStore;

const RESERVE_INTERVAL: Duration = Duration::from_secs(5);
/// Codes of invitations that are judged at a time. Their senders are unknown, and each costs a hash.
pub(crate) const MAX_ACCEPTANCES: usize = 2;

pub(crate) struct Handlers {
    pub(crate) store: RecordStore,
    pub(crate) precheck: Precheck,
    pub(crate) admission: Arc<Admission>,
    pub(crate) new_keys: NewKeys,
    /// Bounds the calls of [`MAX_ACCEPTANCES`].
    pub(crate) acceptances: Semaphore,
    pub(crate) verifier: Arc<Verifier>,
    pub(crate) callers: Callers,
    pub(crate) permits: Arc<Permits>,
    pub(crate) sealing_key: Option<String>,
    pub(crate) writer: Writer,
    pub(crate) writable: Arc<AtomicBool>,
    pub(crate) disk_low: Arc<AtomicBool>,
    pub(crate) announcer: Announcer,
    pub(crate) last_used: Arc<LastUsed>,
    pub(crate) sealer: Arc<Sealer>,
    pub(crate) signer: Arc<Signer>,
    pub(crate) clock: Clock,
    pub(crate) tenure: Tenure,
    pub(crate) head: HeadStored,
}

impl Handlers {
    pub(crate) fn status(&self) -> KeystoreStatusReply {
        KeystoreStatusReply {
            writable: self.writable.load(Ordering::Acquire),
            disk_low: self.disk_low.load(Ordering::Acquire),
            sealing_key: self.sealing_key.clone(),
        }
    }

    pub(crate) async fn maintain_reserve(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(RESERVE_INTERVAL)).await.is_some() {
            let deadline = Instant::now() + RESERVE_INTERVAL;
            if self.writer.run(Lane::Urgent, deadline, |admin| admin.durable.reserve.maintain()).await.is_err() {
                tracing::debug!("disk reserve was not checked: the writer has no time");
            }
        }
    }

    pub(super) async fn create_key(&self, call: CreateKey, deadline: Instant) -> Result<KeyCreated, ManageError> {
        let _admitted = self.admit(&call.caller.account)?;
        let (precheck, checked) = (self.precheck.clone(), call.clone());
        self.blocking(move |now| precheck.new_key(&checked, now)).await?;
        let hashed = self.new_keys.draw(self.admission.is_crowded(), deadline).await?;
        self.write(Lane::Ordinary, deadline, move |admin| admin.create_key(&call, hashed)).await
    }

    pub(super) async fn rotate_key(&self, call: RotateKey, deadline: Instant) -> Result<KeyCreated, ManageError> {
        let admitted = self.admit(&call.caller.account)?;
        let (precheck, checked) = (self.precheck.clone(), call.clone());
        self.blocking(move |now| precheck.successor(&checked, now)).await?;
        let hashed = self.new_keys.draw(self.admission.is_crowded(), deadline).await?;
        let done = self.write(Lane::Ordinary, deadline, move |admin| admin.rotate_key(&call, hashed)).await?;
        drop(admitted);
        Ok(self.announced(done).await)
    }

    /// The key is hashed before the code is looked up, so that no code, known or not, used or expired, differs from
    /// another in its time.
    pub(super) async fn accept_invitation(
        &self,
        call: AcceptInvitation,
        deadline: Instant,
    ) -> Result<InvitationAccepted, ManageError> {
        let busy = || ManageError::Writer(WriterError::QueueFull);
        let admitted = self.acceptances.try_acquire().map_err(|_| busy())?;
        let hashed = self.new_keys.draw(true, deadline).await?;
        let code = CodeHash::of(&call.code);
        let done = self.write(Lane::Ordinary, deadline, move |admin| admin.accept_invitation(&code, hashed)).await?;
        drop(admitted);
        Ok(self.announced(done).await)
    }

    pub(super) async fn read_people(&self, call: ReadPeople) -> Result<People, ManageError> {
        let (sealer, precheck) = (Arc::clone(&self.sealer), self.precheck.clone());
        self.read(move |store, now| members::read_people(store, &precheck, &sealer, &call, now)).await
    }

    pub(super) async fn list_keys(&self, call: ListKeys) -> Result<Page<KeySummary>, ManageError> {
        let last_used = Arc::clone(&self.last_used);
        self.read(move |store, now| {
            let mut page = admin::list_keys(store, &call, now)?;
            page.items.iter_mut().for_each(|key| key.last_used_at = last_used.of(&key.id));
            Ok(page)
        })
        .await
    }

    /// Nothing is decided by last uses, so a disk that is nearly full is kept for what matters more.
    pub(super) async fn note_key_uses(&self, call: NoteKeyUses) -> NoteKeyUsesReply {
        if self.disk_low.load(Ordering::Acquire) {
            return NoteKeyUsesReply::Failed;
        }
        let (last_used, store, now) = (Arc::clone(&self.last_used), self.store.clone(), (self.clock)());
        let noted = tokio::task::spawn_blocking(move || last_used.note(&store, &call, now)).await;
        // After a panic, too, the gateway reports these uses again.
        if noted.unwrap_or(false) { NoteKeyUsesReply::Noted } else { NoteKeyUsesReply::Failed }
    }

    pub(super) async fn permit_deletion(&self, call: PermitDeletion) -> Result<DeletionPermit, ManageError> {
        let permits = Arc::clone(&self.permits);
        self.read(move |store, now| {
            let Caller { account, key_id, .. } = admin::may_delete(store, &call, now)?;
            Ok(permits.issue(&account, call.before, &key_id, now))
        })
        .await
    }

    pub(super) async fn list_endpoints(&self, call: ListEndpoints) -> Result<EndpointsPage, ManageError> {
        let sealer = Arc::clone(&self.sealer);
        self.read(move |store, now| webhooks::list_endpoints(store, &sealer, &call, now)).await
    }

    /// The mark of a deletion is signed only with the permit that a caller was given for it.
    pub(super) async fn sign_mark(&self, call: SignMark, deadline: Instant) -> ManageReply<MarkSigned> {
        // Logged once, where it happened; without this check each mark would log it again.
        if !self.writable.load(Ordering::Acquire) || self.disk_low.load(Ordering::Acquire) {
            return ManageReply::Failed;
        }
        let Some(_turn) = self.signer.turn(deadline).await else { return ManageReply::Busy };
        let (signer, permits) = (Arc::clone(&self.signer), Arc::clone(&self.permits));
        let sign = move |admin: &mut AdminService| {
            if !permits.allow(&call.mark, call.permit.as_ref(), admin.now()) {
                return Err(ManageError::NoPermit);
            }
            admin.sign_mark(&signer, &call)
        };
        match self.write(Lane::Ordinary, deadline, sign).await {
            // `Failed` and not a refusal: the mark is sound, and the exporter asks for it again.
            Err(ManageError::Commit(CommitError::DiskFull)) => ManageReply::Failed,
            signed => admin::reply(SignMark::SUBJECT, signed),
        }
    }

    pub(super) async fn signing_keys(&self, call: SigningKeys) -> Result<PublicKeys, ManageError> {
        self.read(move |store, now| {
            let last_mark = call.account.as_ref().map(|account| marks::last_line(store, account, now)).transpose()?;
            Ok(PublicKeys { last_mark: last_mark.flatten(), ..signer::public_keys(store)? })
        })
        .await
    }

    pub(super) async fn add<T: Send + 'static>(
        &self,
        account: &AccountId,
        deadline: Instant,
        change: impl FnOnce(&mut AdminService) -> ChangeResult<T> + Send + 'static,
    ) -> Result<T, ManageError> {
        let admitted = self.admit(account)?;
        let done = self.write(Lane::Ordinary, deadline, change).await?;
        drop(admitted);
        Ok(self.announced(done).await)
    }

    /// Makes an idempotent change in the urgent lane. It succeeds only once every process was notified: a caller who is
    /// told that a key is revoked relies on it. Otherwise the change stands, and the caller can ask for it again.
    pub(super) async fn change<T: Send + 'static>(
        &self,
        deadline: Instant,
        change: impl FnOnce(&mut AdminService) -> ChangeResult<T> + Send + 'static,
    ) -> Result<T, ManageError> {
        let (done, changed) = self.write(Lane::Urgent, deadline, change).await?;
        let announced = match changed {
            Some(changed) => self.announcer.announce(changed).await,
            None => true,
        };
        if announced { Ok(done) } else { Err(ManageError::NotAnnounced) }
    }

    /// Announces a change that stands in any case: what was made is handed out only once, in this reply.
    async fn announced<T>(&self, (done, changed): (T, Option<Changed>)) -> T {
        if let Some(changed) = changed {
            self.announcer.announce(changed).await;
        }
        done
    }

    async fn write<T: Send + 'static>(
        &self,
        lane: Lane,
        deadline: Instant,
        change: impl FnOnce(&mut AdminService) -> Result<T, ManageError> + Send + 'static,
    ) -> Result<T, ManageError> {
        let done = self.writer.run(lane, deadline, change).await.map_err(ManageError::Writer)??;
        // An acknowledged change is known outside of the directory, or a restore could undo it unnoticed.
        self.head.wait().await;
        Ok(done)
    }

    fn admit(&self, account: &AccountId) -> Result<Admitted, ManageError> {
        self.admission.admit(account).ok_or(ManageError::Writer(WriterError::QueueFull))
    }

    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&RecordStore, Timestamp) -> Result<T, ManageError> + Send + 'static,
    ) -> Result<T, ManageError> {
        let store = self.store.clone();
        self.blocking(move |now| read(&store, now)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(Timestamp) -> Result<T, ManageError> + Send + 'static,
    ) -> Result<T, ManageError> {
        let now = whole_seconds((self.clock)());
        tokio::task::spawn_blocking(move || work(now)).await.map_err(ManageError::Read)?
    }
}
