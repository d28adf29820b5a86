//! The account and the keys of `stage0 dev`: created once, found again, repaired when something is missing.
//!
//! Each step checks what exists before it creates anything, so the next start completes what a crash interrupted; at
//! worst an unused key stays active.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use stage0_backplane::Backplane;
use stage0_contract::{
    Account, AccountId, ApiKey, ApprovalMode, Caller, CapChanges, CreateAccount, CreateKey, KeyIdentity, ListAccounts,
    ManageReply, Refusal, Request, Scope, Scopes, UpdateAccount, VerifyKey, VerifyKeyReply,
};

use crate::dev_file::{API_KEY_FILE, DevFile, OPERATOR_KEY_FILE};
use crate::files;

const ACCOUNT: &str = "dev";
const KEY: &str = "stage0 dev";
/// The keystore runs in the same process; in an unoptimised build a hash takes seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const PAGE: u32 = 1000;

pub(super) struct Access {
    pub(super) account: AccountId,
    pub(super) api_key: ApiKey,
    pub(super) operator_key: ApiKey,
    /// Whose approvals count in the account.
    pub(super) approvals: ApprovalMode,
}

/// `approvals` is the mode that the account is switched to; `None` leaves it as it is.
pub(super) async fn secure(
    backplane: &Backplane,
    data_dir: &Path,
    approvals: Option<ApprovalMode>,
) -> anyhow::Result<Access> {
    let keystore = Keystore { backplane };
    // An unreadable dev.json is no failure: it only helps, and is written again.
    let last = DevFile::read(data_dir).ok().flatten();
    let (operator_key, operator) = operator(&keystore, data_dir, last.as_ref()).await?;
    let file = data_dir.join(API_KEY_FILE);
    let (account, api_key, mode) = match read(&file) {
        Some(key) => match keystore.identity(&key).await?.filter(has_its_scopes) {
            Some(identity) => (identity.account, key, identity.rules.approvals),
            None => {
                tracing::warn!(file = %file.display(), "the key is refused or lacks a scope; a new one replaces it");
                new_key(&keystore, &operator).await?
            }
        },
        None => {
            tracing::info!(file = %file.display(), "there is no key; one is created");
            new_key(&keystore, &operator).await?
        }
    };
    files::replace(&file, &format!("{}\n", api_key.expose()))?;
    let approvals = match approvals.filter(|wanted| *wanted != mode) {
        Some(wanted) => keystore.set_approvals(&operator, &account, wanted).await?,
        None => mode,
    };
    Ok(Access { account, api_key, operator_key, approvals })
}

/// The keystore writes the operator's key once; when its file is gone, the last `dev.json` still has it.
async fn operator(
    keystore: &Keystore<'_>,
    data_dir: &Path,
    last: Option<&DevFile>,
) -> anyhow::Result<(ApiKey, Caller)> {
    let file = data_dir.join(OPERATOR_KEY_FILE);
    let candidates = [(read(&file), false), (last.map(|last| last.operator_key.clone()), true)];
    for (key, is_lost) in candidates {
        let Some(key) = key else { continue };
        let Some(identity) = keystore.identity(&key).await?.filter(is_operator) else { continue };
        if is_lost {
            tracing::warn!(file = %file.display(), "the operator's key was missing or refused; restored from dev.json");
            files::replace(&file, &format!("{}\n", key.expose()))?;
        }
        let operator = Caller::new(&identity, &key);
        return Ok((key, operator));
    }
    bail!("`{}` holds no active operator's key: restore it, or start with another --data-dir", file.display())
}

async fn new_key(keystore: &Keystore<'_>, operator: &Caller) -> anyhow::Result<(AccountId, ApiKey, ApprovalMode)> {
    let account = match keystore.account(operator, ACCOUNT).await? {
        Some(account) => account,
        None => {
            let create = CreateAccount {
                caller: operator.clone(),
                name: ACCOUNT.to_owned(),
                plan: None,
                approvals: Some(ApprovalMode::Caller),
            };
            keystore.manage(&create).await.context("cannot make the account")?
        }
    };
    let create = CreateKey {
        caller: operator.clone(),
        account: Some(account.id),
        name: KEY.to_owned(),
        scopes: workload_scopes(),
        expires_at: None,
        owner: None,
    };
    let created = keystore.manage(&create).await.context("cannot make the key")?;
    Ok((created.account, created.key, account.approvals))
}

struct Keystore<'a> {
    backplane: &'a Backplane,
}

impl Keystore<'_> {
    async fn identity(&self, key: &ApiKey) -> anyhow::Result<Option<KeyIdentity>> {
        let request = VerifyKey { key: key.clone(), request_id: None };
        match self.backplane.requests.request(&request, ANSWER_TIMEOUT).await.context("the keystore does not answer")? {
            VerifyKeyReply::Valid(identity) => Ok(Some(identity)),
            VerifyKeyReply::Invalid => Ok(None),
            VerifyKeyReply::Busy | VerifyKeyReply::Failed => bail!("the keystore cannot verify a key"),
        }
    }

    async fn set_approvals(
        &self,
        operator: &Caller,
        account: &AccountId,
        approvals: ApprovalMode,
    ) -> anyhow::Result<ApprovalMode> {
        let update = UpdateAccount {
            caller: operator.clone(),
            account: account.clone(),
            plan: None,
            retention_days: None,
            per_minute: None,
            daily: None,
            monthly: None,
            require_run_id: None,
            approvals: Some(approvals),
            four_eyes: None,
            policy_changes: None,
            record_facts: None,
            caps: CapChanges::default(),
        };
        let account = self.manage(&update).await.context("cannot switch the account's approvals")?;
        Ok(account.approvals)
    }

    async fn account(&self, operator: &Caller, name: &str) -> anyhow::Result<Option<Account>> {
        let mut cursor = None;
        loop {
            let list = ListAccounts { caller: operator.clone(), cursor, limit: PAGE };
            let page = self.manage(&list).await.context("cannot list accounts")?;
            if let Some(account) = page.items.into_iter().find(|account| account.name == name) {
                return Ok(Some(account));
            }
            match page.next_cursor {
                Some(next) => cursor = Some(next),
                None => return Ok(None),
            }
        }
    }

    async fn manage<T, R: Request<Reply = ManageReply<T>>>(&self, call: &R) -> anyhow::Result<T> {
        match self.backplane.requests.request(call, ANSWER_TIMEOUT).await.context("the keystore does not answer")? {
            ManageReply::Done(done) => Ok(done),
            ManageReply::Refused(Refusal::NotFound) => bail!("the keystore does not know it"),
            ManageReply::Refused(Refusal::Missing(what)) => bail!("{what}"),
            ManageReply::Refused(Refusal::ScopeMissing(scope)) => bail!("the operator's key lacks the scope `{scope}`"),
            ManageReply::Refused(Refusal::Invalid(_)) => bail!("the keystore finds the call invalid"),
            ManageReply::Refused(Refusal::Conflict(why)) => bail!("{why}"),
            ManageReply::Failed => bail!("the keystore could not do it; its log says why"),
            ManageReply::Busy => bail!("the keystore has too much to do"),
        }
    }
}

/// Every scope that a workload may have: not those of members and of the operator.
pub(crate) fn workload_scopes() -> Scopes {
    let others = [Scope::Operator, Scope::ApprovalsDecide, Scope::ApprovalsGrant];
    Scope::ALL.into_iter().filter(|scope| !others.contains(scope)).collect()
}

fn has_its_scopes(identity: &KeyIdentity) -> bool {
    workload_scopes().is_subset(&identity.scopes)
}

fn is_operator(identity: &KeyIdentity) -> bool {
    identity.scopes.contains(&Scope::Operator)
}

/// The key in a file; a file that holds no valid key counts as missing.
fn read(path: &Path) -> Option<ApiKey> {
    let text = std::fs::read_to_string(path).ok()?;
    ApiKey::parse(text.trim()).ok()
}
