//! Webhook endpoints: changes, pages, and the handling of their secrets.
//!
//! A secret leaves the keystore in the reply that created it and in the exporter's pages; it is stored encrypted. A
//! call without a change writes nothing and is announced all the same, because the first notice may have been lost.

use jiff::Timestamp;
use stage0_contract::{
    Caller, CreateWebhook, DeleteWebhook, DisableWebhook, EnableWebhook, Endpoint, EndpointsPage, GetWebhook,
    ListEndpoints, ListWebhooks, Page, Refusal, RotateWebhookSecret, Scope, UpdateWebhook, Webhook, WebhookChanged,
    WebhookCreated, WebhookDeleted, WebhookDisabled, WebhookId, WebhookSecret,
};
use zeroize::Zeroizing;

use super::pages::one_page;
use super::{AdminService, ChangeResult, ManageError, authorized, new_id};
use crate::admin::announce::Changed;
use crate::admin::rules::{self, webhooks as webhook_rules};
use crate::seal::Sealer;
use crate::sources::random;
use crate::store::record::{Record, SealedSecret, WebhookRecord};
use crate::store::record_store::{RecordStore, StoreError};

const ENDPOINTS_PER_PAGE: usize = 500;

impl AdminService {
    pub(crate) fn create_webhook(&mut self, call: CreateWebhook) -> ChangeResult<WebhookCreated> {
        let (now, store) = (self.now(), self.store());
        let caller = authorized(store, &call.caller, Scope::WebhooksManage, now)?;
        let account = rules::target_account(&caller, call.account.as_ref())?;
        webhook_rules::valid_webhook(&call)?;
        let caps = self.precheck().caps(&account)?;
        webhook_rules::check_endpoint_cap(self.precheck().population().existing_webhooks(&account, now), &caps)?;
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
        let (webhook, changed) = self.put_webhook(record, None, &caller, "created")?;
        Ok((WebhookCreated { webhook, secret }, changed))
    }

    pub(crate) fn update_webhook(&mut self, call: UpdateWebhook) -> ChangeResult<Webhook> {
        let (caller, old) = self.webhook_of(&call.caller, &call.id)?;
        let new = webhook_rules::updated(call, old.clone())?;
        self.put_webhook(new, Some(&old), &caller, "updated")
    }

    pub(crate) fn enable_webhook(&mut self, call: &EnableWebhook) -> ChangeResult<Webhook> {
        let (caller, old) = self.webhook_of(&call.caller, &call.id)?;
        self.put_webhook(webhook_rules::enabled(old.clone()), Some(&old), &caller, "enabled")
    }

    pub(crate) fn rotate_webhook_secret(&mut self, call: &RotateWebhookSecret) -> ChangeResult<WebhookCreated> {
        let now = self.now();
        let (caller, old) = self.webhook_of(&call.caller, &call.id)?;
        let overlapping = webhook_rules::overlapping(call, old.secrets.clone(), now)?;
        let (secret, sealed) = self.new_secret(&call.id, now)?;
        let secrets = std::iter::once(sealed).chain(overlapping).collect();
        let new = WebhookRecord { secrets, ..old.clone() };
        let (webhook, changed) = self.put_webhook(new, Some(&old), &caller, "given a new secret")?;
        Ok((WebhookCreated { webhook, secret }, changed))
    }

    pub(crate) fn delete_webhook(&mut self, call: &DeleteWebhook) -> ChangeResult<WebhookDeleted> {
        let (now, store) = (self.now(), self.store());
        let caller = authorized(store, &call.caller, Scope::WebhooksManage, now)?;
        let old = store.webhook(&call.id)?;
        let new = webhook_rules::deleted(&caller, old.clone(), now)?;
        let (_, changed) = self.put_webhook(new, old.as_ref(), &caller, "deleted")?;
        Ok((WebhookDeleted {}, changed))
    }

    /// For the exporter, which has no key: the backplane's credentials decide who may call this.
    pub(crate) fn disable_webhook(&mut self, call: &DisableWebhook) -> ChangeResult<WebhookDisabled> {
        let old = webhook_rules::existing(self.store().webhook(&call.id)?)?;
        let new = webhook_rules::disabled(old.clone(), &call.reason);
        let changed = changed(&new.webhook);
        if new != old {
            tracing::warn!(account = %new.webhook.account, webhook = %call.id, "webhook disabled by the exporter");
            self.commit(&[Record::Webhook(new)])?;
        }
        Ok((WebhookDisabled {}, changed))
    }

    fn webhook_of(&self, caller: &Caller, id: &WebhookId) -> Result<(Caller, WebhookRecord), ManageError> {
        let store = self.store();
        let caller = authorized(store, caller, Scope::WebhooksManage, self.now())?;
        let found = webhook_rules::own_webhook(&caller, store.webhook(id)?)?;
        Ok((caller, found))
    }

    fn put_webhook(
        &mut self,
        new: WebhookRecord,
        old: Option<&WebhookRecord>,
        caller: &Caller,
        change: &'static str,
    ) -> ChangeResult<Webhook> {
        let webhook = new.webhook.clone();
        if old != Some(&new) {
            let mut records = vec![Record::Webhook(new)];
            // The change that adds an endpoint also forgets endpoints that were deleted long ago.
            if old.is_none() {
                records.extend(self.precheck().population().surplus_webhooks(&webhook.account, webhook.created_at));
            }
            self.commit(&records)?;
            let (account, by) = (&webhook.account, &caller.key_id);
            tracing::info!(%account, webhook = %webhook.id, %by, change, "webhook changed");
        }
        let changed = changed(&webhook);
        Ok((webhook, changed))
    }

    fn new_secret(&self, endpoint: &WebhookId, now: Timestamp) -> Result<(WebhookSecret, SealedSecret), ManageError> {
        let secret = WebhookSecret::from_random(&Zeroizing::new(random()?));
        let sealed = self.sealer.seal(endpoint, &secret)?;
        Ok((secret, SealedSecret { sealed, created_at: now, ends_at: None }))
    }
}

pub(crate) fn list_webhooks(
    store: &RecordStore,
    call: &ListWebhooks,
    now: Timestamp,
) -> Result<Page<Webhook>, ManageError> {
    let caller = authorized(store, &call.caller, Scope::WebhooksManage, now)?;
    let account = rules::target_account(&caller, call.account.as_ref())?;
    let (after, limit) = rules::page(call.cursor.as_deref(), call.limit, WebhookId::parse)?;
    store.account(&account)?.ok_or(Refusal::NotFound)?;
    let (records, next) = one_page(store.webhooks(&account, after.as_ref()), limit, id)?;
    let items = records.into_iter().map(|record| record.webhook).collect();
    Ok(Page { items, next_cursor: next.map(|id| id.as_str().to_owned()) })
}

pub(crate) fn get_webhook(store: &RecordStore, call: &GetWebhook, now: Timestamp) -> Result<Webhook, ManageError> {
    let caller = authorized(store, &call.caller, Scope::WebhooksManage, now)?;
    Ok(webhook_rules::own_webhook(&caller, store.webhook(&call.id)?)?.webhook)
}

pub(crate) fn list_endpoints(
    store: &RecordStore,
    sealer: &Sealer,
    call: &ListEndpoints,
    now: Timestamp,
) -> Result<EndpointsPage, ManageError> {
    let (records, next_cursor) = one_page(store.all_webhooks(call.cursor.as_ref()), ENDPOINTS_PER_PAGE, id)?;
    let mut items = Vec::with_capacity(records.len());
    for WebhookRecord { webhook, secrets, .. } in records {
        let signing = secrets.iter().filter(|secret| secret.signs_at(now));
        let secrets = signing.map(|secret| sealer.open(&webhook.id, &secret.sealed)).collect::<Result<_, _>>()?;
        let retention_days = store.account(&webhook.account)?.ok_or(StoreError::Inconsistent)?.retention();
        items.push(Endpoint { webhook, secrets, retention_days });
    }
    Ok(EndpointsPage { items, next_cursor })
}

fn id(record: &WebhookRecord) -> WebhookId {
    record.webhook.id.clone()
}

fn changed(webhook: &Webhook) -> Option<Changed> {
    Some(Changed::Webhook(WebhookChanged { account: webhook.account.clone(), id: webhook.id.clone() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::tests::store_with;
    use crate::seal::tests::sealer_of;
    use crate::store::record::tests::{account, at, webhook};

    fn endpoints(count: usize, description: &str) -> impl Iterator<Item = Result<WebhookRecord, StoreError>> {
        (0..count).map(move |number| {
            let mut record = webhook(&format!("we_{number:03}"), "a");
            record.webhook.description = description.to_owned();
            Ok(record)
        })
    }

    fn page(count: usize, description: &str, limit: usize) -> (usize, Option<String>) {
        let (page, next) = one_page(endpoints(count, description), limit, id).unwrap();
        (page.len(), next.map(|id| id.as_str().to_owned()))
    }

    #[test]
    fn a_page_ends_where_the_next_endpoint_would_not_fit() {
        assert_eq!(page(3, &"d".repeat(400_000), 500), (2, Some("we_001".to_owned())));
        assert_eq!(page(2, &"d".repeat(400_000), 500), (2, None));
        // An endpoint of any size gets a page, so that listing always makes progress.
        assert_eq!(page(2, &"d".repeat(2_000_000), 500), (1, Some("we_000".to_owned())));
    }

    #[test]
    fn a_page_has_at_most_its_limit_and_a_cursor_only_if_more_follow() {
        assert_eq!(page(4, "d", 3), (3, Some("we_002".to_owned())));
        assert_eq!(page(3, "d", 3), (3, None));
        assert_eq!(page(0, "d", 3), (0, None));
    }

    #[test]
    fn an_endpoint_that_cannot_be_read_fails_the_page() {
        let broken = std::iter::once(Err(StoreError::Inconsistent));
        assert!(one_page(endpoints(1, "d").chain(broken), 3, id).is_err());
    }

    #[test]
    fn the_exporter_gets_the_secrets_that_sign_now_newest_first() {
        let sealer = sealer_of(1);
        let mut record = webhook("we_1", "a");
        let secret = |byte| WebhookSecret::from_random(&[byte; 32]);
        let sealed = |byte, ends_at: Option<i64>| SealedSecret {
            sealed: sealer.seal(&record.webhook.id, &secret(byte)).unwrap(),
            created_at: at(1),
            ends_at: ends_at.map(at),
        };
        record.secrets = vec![sealed(1, None), sealed(2, Some(101)), sealed(3, Some(100))];
        let (_dir, store) = store_with(vec![Record::Account(account("a")), Record::Webhook(record)]);
        let signing = |now| {
            let page = list_endpoints(&store, &sealer, &ListEndpoints { cursor: None }, at(now)).unwrap();
            page.items.into_iter().flat_map(|endpoint| endpoint.secrets).collect::<Vec<_>>()
        };
        assert_eq!(signing(99), [secret(1), secret(2), secret(3)]);
        assert_eq!(signing(100), [secret(1), secret(2)]);
        assert_eq!(signing(101), [secret(1)]);
    }
}
