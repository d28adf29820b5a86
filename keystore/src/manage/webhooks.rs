//! Webhook endpoints, carried out: their secrets are drawn and sealed here, and opened for the exporter.
//!
//! Owns the step from a judged call to a durable change of an endpoint. A secret leaves in the answer that made it and in the exporter's
//! pages; it is stored sealed. Pages end early before they outgrow a message. A call that changes nothing writes nothing, but is told
//! again: its first notice may not have been heard.

use jiff::Timestamp;
use stage0_contract::{
    Caller, CreateWebhook, DeleteWebhook, DisableWebhook, EnableWebhook, Endpoint, EndpointsPage, GetWebhook,
    ListEndpoints, ListWebhooks, Page, Refusal, RotateWebhookSecret, UpdateWebhook, Webhook, WebhookChanged,
    WebhookCreated, WebhookDeleted, WebhookDisabled, WebhookId, WebhookSecret,
};
use zeroize::Zeroizing;

use super::{Desk, Undone, new_id, random, standing};
use crate::announce::Changed;
use crate::record::{Record, SealedSecret, WebhookRecord};
use crate::rules::{self, webhooks as judge};
use crate::seal::Sealer;
use crate::store::{Store, StoreError};

/// Endpoints in one page of the exporter's.
const ENDPOINTS: usize = 500;
/// What the endpoints of one page weigh together, as JSON: a message carries four times as much. One alone weighs less.
const PAGE_BYTES: usize = 1 << 20;

impl Desk {
    pub(crate) fn create_webhook(&mut self, call: CreateWebhook) -> Result<(WebhookCreated, Changed), Undone> {
        let (now, store) = (self.now(), self.vault.store());
        let caller = standing(store, &call.caller, now)?;
        judge::may_manage_webhooks(&caller)?;
        let account = rules::account_meant(&caller, call.account.as_ref())?;
        judge::valid_webhook(&call)?;
        let caps = self.judge().caps(&account)?;
        judge::room_for_one_more(self.judge().population().living_webhooks(&account, now), &caps)?;
        let webhook = Webhook {
            id: new_id("we", random()?, WebhookId::parse)?,
            account,
            url: call.url,
            filters: call.filters,
            description: call.description,
            rate_limit: call.rate_limit,
            enabled: true,
            disabled_reason: None,
            created_at: now,
        };
        let (secret, sealed) = self.new_secret(&webhook.id, now)?;
        let record = WebhookRecord { webhook, secrets: vec![sealed], deleted_at: None };
        self.put_webhook(record, None, &caller, "created").map(|(webhook, changed)| {
            let created = WebhookCreated { webhook, secret };
            (created, changed)
        })
    }

    pub(crate) fn update_webhook(&mut self, call: UpdateWebhook) -> Result<(Webhook, Changed), Undone> {
        let (caller, old) = self.webhook_of(&call.caller, &call.id)?;
        let new = judge::updated(call, old.clone())?;
        self.put_webhook(new, Some(&old), &caller, "updated")
    }

    pub(crate) fn enable_webhook(&mut self, call: &EnableWebhook) -> Result<(Webhook, Changed), Undone> {
        let (caller, old) = self.webhook_of(&call.caller, &call.id)?;
        self.put_webhook(judge::enabled(old.clone()), Some(&old), &caller, "enabled")
    }

    pub(crate) fn rotate_webhook(&mut self, call: &RotateWebhookSecret) -> Result<(WebhookCreated, Changed), Undone> {
        let now = self.now();
        let (caller, old) = self.webhook_of(&call.caller, &call.id)?;
        let overlapping = judge::overlapping(call, old.secrets.clone(), now)?;
        let (secret, sealed) = self.new_secret(&call.id, now)?;
        let secrets = std::iter::once(sealed).chain(overlapping).collect();
        let new = WebhookRecord { secrets, ..old.clone() };
        let (webhook, changed) = self.put_webhook(new, Some(&old), &caller, "given a new secret")?;
        Ok((WebhookCreated { webhook, secret }, changed))
    }

    pub(crate) fn delete_webhook(&mut self, call: &DeleteWebhook) -> Result<(WebhookDeleted, Changed), Undone> {
        let (now, store) = (self.now(), self.vault.store());
        let caller = standing(store, &call.caller, now)?;
        judge::may_manage_webhooks(&caller)?;
        let old = store.webhook(&call.id)?;
        let new = judge::deleted(&caller, old.clone(), now)?;
        let (_, changed) = self.put_webhook(new, old.as_ref(), &caller, "deleted")?;
        Ok((WebhookDeleted {}, changed))
    }

    /// The exporter's: it has no key, and the backplane's credentials decide who may say this.
    pub(crate) fn disable_webhook(&mut self, call: &DisableWebhook) -> Result<(WebhookDisabled, Changed), Undone> {
        let old = judge::living(self.vault.store().webhook(&call.id)?)?;
        let new = judge::disabled(old.clone(), &call.reason);
        let changed = changed(&new.webhook);
        if new != old {
            tracing::warn!(account = %new.webhook.account, webhook = %call.id, "webhook disabled by the exporter");
            self.commit(&[Record::Webhook(new)])?;
        }
        Ok((WebhookDisabled {}, changed))
    }

    /// The endpoint that a call names, when the caller may change it.
    fn webhook_of(&self, caller: &Caller, id: &WebhookId) -> Result<(Caller, WebhookRecord), Undone> {
        let store = self.vault.store();
        let caller = standing(store, caller, self.now())?;
        judge::may_manage_webhooks(&caller)?;
        let found = judge::own_webhook(&caller, store.webhook(id)?)?;
        Ok((caller, found))
    }

    fn put_webhook(
        &mut self,
        new: WebhookRecord,
        old: Option<&WebhookRecord>,
        caller: &Caller,
        change: &'static str,
    ) -> Result<(Webhook, Changed), Undone> {
        let webhook = new.webhook.clone();
        if old != Some(&new) {
            let mut records = vec![Record::Webhook(new)];
            // A new endpoint: what was deleted long ago is forgotten in the same change.
            if old.is_none() {
                records.extend(self.judge().population().surplus_webhooks(&webhook.account, webhook.created_at));
            }
            self.commit(&records)?;
            tracing::info!(account = %webhook.account, webhook = %webhook.id, by = %caller.key_id, change, "webhook changed");
        }
        let changed = changed(&webhook);
        Ok((webhook, changed))
    }

    fn new_secret(&self, endpoint: &WebhookId, now: Timestamp) -> Result<(WebhookSecret, SealedSecret), Undone> {
        let secret = WebhookSecret::from_random(&Zeroizing::new(random()?));
        let sealed = self.sealer.seal(endpoint, &secret)?;
        Ok((secret, SealedSecret { sealed, created_at: now, ends_at: None }))
    }
}

/// One page of an account's endpoints.
pub(crate) fn list_webhooks(store: &Store, call: &ListWebhooks, now: Timestamp) -> Result<Page<Webhook>, Undone> {
    let caller = standing(store, &call.caller, now)?;
    judge::may_manage_webhooks(&caller)?;
    let account = rules::account_meant(&caller, call.account.as_ref())?;
    let (after, limit) = rules::page(call.cursor.as_deref(), call.limit, WebhookId::parse)?;
    store.account(&account)?.ok_or(Refusal::NotFound)?;
    let (records, next) = one_page(store.webhooks(&account, after.as_ref()), limit)?;
    let items = records.into_iter().map(|record| record.webhook).collect();
    Ok(Page { items, next_cursor: next.map(|id| id.as_str().to_owned()) })
}

/// One endpoint.
pub(crate) fn get_webhook(store: &Store, call: &GetWebhook, now: Timestamp) -> Result<Webhook, Undone> {
    let caller = standing(store, &call.caller, now)?;
    judge::may_manage_webhooks(&caller)?;
    Ok(judge::own_webhook(&caller, store.webhook(&call.id)?)?.webhook)
}

/// One page of all endpoints with what signs now, for the exporter.
pub(crate) fn list_endpoints(
    store: &Store,
    sealer: &Sealer,
    call: &ListEndpoints,
    now: Timestamp,
) -> Result<EndpointsPage, Undone> {
    let (records, next_cursor) = one_page(store.all_webhooks(call.cursor.as_ref()), ENDPOINTS)?;
    let mut items = Vec::with_capacity(records.len());
    for WebhookRecord { webhook, secrets, .. } in records {
        let signing = secrets.iter().filter(|secret| secret.signs_at(now));
        let secrets = signing.map(|secret| sealer.open(&webhook.id, &secret.sealed)).collect::<Result<_, _>>()?;
        let retention_days = store.account(&webhook.account)?.ok_or(StoreError::Untrue)?.retention();
        items.push(Endpoint { webhook, secrets, retention_days });
    }
    Ok(EndpointsPage { items, next_cursor })
}

/// At most `most` endpoints that fit into a message together, and the last one's id when there are more.
fn one_page(
    records: impl Iterator<Item = Result<WebhookRecord, StoreError>>,
    most: usize,
) -> Result<(Vec<WebhookRecord>, Option<WebhookId>), StoreError> {
    let (mut page, mut weight) = (Vec::new(), 0);
    for record in records {
        let record: WebhookRecord = record?;
        weight += serde_json::to_vec(&record)?.len();
        if page.len() == most || (weight > PAGE_BYTES && !page.is_empty()) {
            let last = page.last().map(|record: &WebhookRecord| record.webhook.id.clone());
            return Ok((page, last));
        }
        page.push(record);
    }
    Ok((page, None))
}

fn changed(webhook: &Webhook) -> Changed {
    Changed::Webhook(WebhookChanged { account: webhook.account.clone(), id: webhook.id.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manage::tests::kept;
    use crate::record::tests::{account, at, webhook};
    use crate::seal::tests::sealer_of;

    fn endpoints(count: usize, description: &str) -> impl Iterator<Item = Result<WebhookRecord, StoreError>> {
        (0..count).map(move |number| {
            let mut record = webhook(&format!("we_{number:03}"), "a");
            record.webhook.description = description.to_owned();
            Ok(record)
        })
    }

    fn page(count: usize, description: &str, most: usize) -> (usize, Option<String>) {
        let (page, next) = one_page(endpoints(count, description), most).unwrap();
        (page.len(), next.map(|id| id.as_str().to_owned()))
    }

    #[test]
    fn a_page_ends_where_the_next_endpoint_would_not_fit() {
        assert_eq!(page(3, &"d".repeat(400_000), 500), (2, Some("we_001".to_owned())));
        assert_eq!(page(2, &"d".repeat(400_000), 500), (2, None));
        // However much one weighs, it is a page of its own: a list never stands still.
        assert_eq!(page(2, &"d".repeat(2_000_000), 500), (1, Some("we_000".to_owned())));
    }

    #[test]
    fn a_page_has_as_many_as_were_asked_for_and_names_the_last_only_if_more_follow() {
        assert_eq!(page(4, "d", 3), (3, Some("we_002".to_owned())));
        assert_eq!(page(3, "d", 3), (3, None));
        assert_eq!(page(0, "d", 3), (0, None));
    }

    #[test]
    fn an_endpoint_that_cannot_be_read_is_an_error_and_not_left_out() {
        let broken = std::iter::once(Err(StoreError::Untrue));
        assert!(one_page(endpoints(1, "d").chain(broken), 3).is_err());
    }

    #[test]
    fn the_exporter_gets_the_secrets_that_sign_now_the_newest_first_and_no_ended_one() {
        let sealer = sealer_of(1);
        let mut record = webhook("we_1", "a");
        let secret = |byte| WebhookSecret::from_random(&[byte; 32]);
        let sealed = |byte, ends_at: Option<i64>| SealedSecret {
            sealed: sealer.seal(&record.webhook.id, &secret(byte)).unwrap(),
            created_at: at(1),
            ends_at: ends_at.map(at),
        };
        record.secrets = vec![sealed(1, None), sealed(2, Some(101)), sealed(3, Some(100))];
        let (_dir, store) = kept(vec![Record::Account(account("a")), Record::Webhook(record)]);
        let signing = |now| {
            let page = list_endpoints(&store, &sealer, &ListEndpoints { cursor: None }, at(now)).unwrap();
            page.items.into_iter().flat_map(|endpoint| endpoint.secrets).collect::<Vec<_>>()
        };
        assert_eq!(signing(99), [secret(1), secret(2), secret(3)]);
        assert_eq!(signing(100), [secret(1), secret(2)]);
        assert_eq!(signing(101), [secret(1)]);
    }
}
