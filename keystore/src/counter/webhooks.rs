//! Questions about webhook endpoints, retention and signatures, and who in here answers them.
//!
//! Owns the same split as its parent. What the exporter asks carries no caller: the backplane's credentials decide who
//! may ask. But the mark of a deletion is signed only with the permit that was given to a caller for it. Its pages are
//! decrypted on a thread that may block; marks are signed by the writer, which keeps what it signed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use stage0_contract::{
    CreateWebhook, DeleteWebhook, DisableWebhook, EnableWebhook, EndpointsPage, GetWebhook, ListEndpoints,
    ListRetentions, ListWebhooks, ManageReply, MarkSigned, Page, PublicKeys, RetentionsPage, RotateWebhookSecret,
    SignMark, SigningKeys, UpdateWebhook, Webhook, WebhookCreated, WebhookDeleted, WebhookDisabled,
};
use tokio::time::Instant;

use super::Counter;
use crate::manage::{self, Desk, Undone, marks, webhooks};
use crate::signer;
use crate::store::Store;
use crate::vault::CommitError;
use crate::writer::Lane;

impl Counter {
    pub(crate) async fn create_webhook(&self, call: CreateWebhook, until: Instant) -> ManageReply<WebhookCreated> {
        let account = call.caller.account.clone();
        self.add_and_tell("create webhook", &account, until, move |desk| desk.create_webhook(call)).await
    }

    pub(crate) async fn update_webhook(&self, call: UpdateWebhook, until: Instant) -> ManageReply<Webhook> {
        let account = call.caller.account.clone();
        self.add_and_tell("update webhook", &account, until, move |desk| desk.update_webhook(call)).await
    }

    pub(crate) async fn enable_webhook(&self, call: EnableWebhook, until: Instant) -> ManageReply<Webhook> {
        let account = call.caller.account.clone();
        self.add_and_tell("enable webhook", &account, until, move |desk| desk.enable_webhook(&call)).await
    }

    pub(crate) async fn rotate_webhook(
        &self,
        call: RotateWebhookSecret,
        until: Instant,
    ) -> ManageReply<WebhookCreated> {
        let account = call.caller.account.clone();
        self.add_and_tell("rotate webhook secret", &account, until, move |desk| desk.rotate_webhook(&call)).await
    }

    pub(crate) async fn delete_webhook(&self, call: DeleteWebhook, until: Instant) -> ManageReply<WebhookDeleted> {
        self.change_and_tell("delete webhook", Lane::Urgent, until, move |desk| desk.delete_webhook(&call)).await
    }

    pub(crate) async fn disable_webhook(&self, call: DisableWebhook, until: Instant) -> ManageReply<WebhookDisabled> {
        self.change_and_tell("disable webhook", Lane::Urgent, until, move |desk| desk.disable_webhook(&call)).await
    }

    pub(crate) async fn list_webhooks(&self, call: ListWebhooks) -> ManageReply<Page<Webhook>> {
        self.read("list webhooks", move |store, now| webhooks::list_webhooks(store, &call, now)).await
    }

    pub(crate) async fn get_webhook(&self, call: GetWebhook) -> ManageReply<Webhook> {
        self.read("get webhook", move |store, now| webhooks::get_webhook(store, &call, now)).await
    }

    pub(crate) async fn list_endpoints(&self, call: ListEndpoints) -> ManageReply<EndpointsPage> {
        let sealer = Arc::clone(&self.sealer);
        self.read("list endpoints", move |store, now| webhooks::list_endpoints(store, &sealer, &call, now)).await
    }

    pub(crate) async fn list_retentions(&self, call: ListRetentions) -> ManageReply<RetentionsPage> {
        self.read("list retentions", move |store, _| manage::list_retentions(store, &call)).await
    }

    pub(crate) async fn sign_mark(&self, call: SignMark, until: Instant) -> ManageReply<MarkSigned> {
        // That a write failed, or that the disk is nearly full, was said once; each mark would say it again.
        if !self.writable.load(Ordering::Acquire) || self.disk_low.load(Ordering::Acquire) {
            return ManageReply::Failed;
        }
        let Some(_turn) = self.signer.turn(until).await else { return ManageReply::Busy };
        let (signer, permits) = (Arc::clone(&self.signer), Arc::clone(&self.permits));
        let sign = move |desk: &mut Desk| {
            if !permits.allow(&call.mark, call.permit.as_ref(), desk.now()) {
                return Err(Undone::NoPermit);
            }
            desk.sign_mark(&signer, &call)
        };
        let signed = self.write(Lane::Ordinary, until, sign).await;
        // A mark that has no room is no wrong mark: it is asked for again.
        if matches!(signed, Err(Undone::Commit(CommitError::DiskFull))) {
            return ManageReply::Failed;
        }
        manage::reply("sign mark", signed)
    }

    pub(crate) async fn signing_keys(&self, call: SigningKeys) -> ManageReply<PublicKeys> {
        let keys = move |store: &Store, now| {
            let last_mark = match &call.account {
                Some(account) => marks::last_line(store, account, now)?,
                None => None,
            };
            Ok(PublicKeys { last_mark, ..signer::public_keys(store)? })
        };
        self.read("signing keys", keys).await
    }
}
