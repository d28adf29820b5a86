//! Backups of every age: refused with a reason, and accepted only with every key revoked that the state store does not
//! list as active.

use std::collections::BTreeSet;
use std::path::Path;

use jiff::Timestamp;
use stage0_backplane::BoxFuture;
use stage0_contract::{
    AccountId, ApiKey, CreateStop, InviteMember, KeyCreated, KeyId, LineHash, Mark, MarkBody, Previous, Refusal,
    RemoveMember, Scope, SignMark, StopScope,
};
use stage0_keystore::{BuildError, Health, Keystore, KeystoreConfig, OPERATOR_KEY_FILE};

use crate::damage::copy_dir;
use crate::harness::{Running, anonymous, config, done, invite, refused, remove, state_store};
use crate::older::{LIVE, older};
use crate::stops::{create, listed, of_key};

/// A directory with a history: its backups, and what was acknowledged after each.
struct History {
    dir: tempfile::TempDir,
    account: AccountId,
    is_active: KeyCreated,
    revoked: KeyCreated,
    rotated: KeyCreated,
    later: KeyCreated,
}

const FILES: [&str; 2] = ["journal", "store"];

impl History {
    /// Backups: `empty` before anything, `first` before the revocation, `second` before the last key.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Running::start(dir.path()).await.stop().await;
        back_up(dir.path(), "empty");
        let running = Running::start(dir.path()).await;
        let account = running.account("restore").await.id;
        let is_active = running.key(&account, &[Scope::Check]).await;
        let revoked = running.key(&account, &[Scope::Check]).await;
        let rotated = running.key(&account, &[Scope::Check]).await;
        running.webhook(&account).await;
        running.stop().await;
        back_up(dir.path(), "first");
        let running = Running::start(dir.path()).await;
        running.revoke(&revoked.id).await;
        running.rotate(&rotated.id, 3_600).await;
        running.stop().await;
        back_up(dir.path(), "second");
        let running = Running::start(dir.path()).await;
        let later = running.key(&account, &[Scope::Check]).await;
        running.stop().await;
        back_up(dir.path(), "newest");
        Self { dir, account, is_active, revoked, rotated, later }
    }

    fn put_back(&self, name: &str) {
        for file in FILES {
            self.remove(file);
            copy(&self.dir.path().join(name).join(file), &self.dir.path().join(file));
        }
    }

    fn remove(&self, file: &str) {
        remove(&self.dir.path().join(file));
    }

    /// Checks that the start is refused and changes no file. Returns the reason.
    async fn is_refused(&self) -> String {
        let journal = std::fs::read(self.dir.path().join("journal")).ok();
        let error = Running::try_start(self.dir.path()).await.err().expect("it started");
        assert_eq!(std::fs::read(self.dir.path().join("journal")).ok(), journal);
        let text = std::error::Error::source(&error).unwrap().to_string();
        assert!(text.contains("--accept-restore") && text.contains("nothing was changed"), "{text}");
        text
    }

    async fn accepted(&self) -> Running {
        let config = KeystoreConfig { accept_restore: true, ..config(self.dir.path()) };
        Running::start_as(config, anonymous()).await.unwrap()
    }

    /// Checks that it starts without `--accept-restore` and takes changes.
    async fn goes_on(&self, running: Running) {
        running.stop().await;
        let mut running = Running::start_as(config(self.dir.path()), anonymous()).await.unwrap();
        running.become_operator(&self.dir.path().join(OPERATOR_KEY_FILE)).await;
        running.account("after").await;
        running.stop().await;
    }
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        copy_dir(from, to);
    } else {
        std::fs::copy(from, to).unwrap();
    }
}

fn back_up(dir: &Path, name: &str) {
    std::fs::create_dir(dir.join(name)).unwrap();
    for file in FILES {
        copy(&dir.join(file), &dir.join(name).join(file));
    }
}

async fn valid(running: &Running, key: &ApiKey) -> bool {
    running.verify(key).await.is_some()
}

#[tokio::test]
async fn backups_of_every_age_are_refused_until_the_restore_is_accepted() {
    let history = History::new().await;
    for backup in ["empty", "first", "second"] {
        history.put_back(backup);
        assert!(history.is_refused().await.contains("older than what was acknowledged"), "{backup}");
    }
    history.put_back("newest");
    let running = Running::start(history.dir.path()).await;
    assert!(valid(&running, &history.later.key).await && !valid(&running, &history.revoked.key).await);
    running.stop().await;
}

#[tokio::test]
async fn an_accepted_backup_reactivates_no_revoked_key_and_keeps_active_ones() {
    let history = History::new().await;
    history.put_back("first");
    let running = history.accepted().await;
    assert!(valid(&running, &history.is_active.key).await);
    assert!(!valid(&running, &history.revoked.key).await);
    assert!(!valid(&running, &history.later.key).await, "the backup does not know it");
    let rotated = running.verify(&history.rotated.key).await.expect("its overlap is not over");
    assert!(rotated.expires_at.is_some(), "the end that the rotation gave it holds");
    assert!(running.endpoints().await.iter().all(|endpoint| !endpoint.webhook.enabled));
    history.goes_on(running).await;
    history.put_back("newest");
    assert!(history.is_refused().await.contains("not those of the keystore that served last"));
}

#[tokio::test]
async fn a_restore_reports_accounts_and_keys_that_are_newer_than_the_backup() {
    let history = History::new().await;
    let running = Running::start(history.dir.path()).await;
    let account = running.account("newer").await.id;
    let dead = running.key(&account, &[Scope::Check]).await;
    let idle = running.account("without keys").await.id;
    running.stop().await;
    for (gone, unknown) in [([account, idle].to_vec(), [dead.id].to_vec()), (Vec::new(), Vec::new())] {
        history.put_back("second");
        let config = KeystoreConfig { accept_restore: true, ..config(history.dir.path()) };
        let backplane = state_store(history.dir.path()).await.connect();
        let building: BoxFuture<'_, _> = Box::pin(Keystore::build(config, backplane, Health::default()));
        let keystore = building.await.unwrap();
        let mut told = keystore.restored().unwrap().clone();
        told.unknown.retain(|id| *id != history.later.id);
        assert_eq!(told.vanished.into_iter().collect::<BTreeSet<_>>(), gone.into_iter().collect());
        assert_eq!(told.unknown, unknown);
        let running: BoxFuture<'_, _> = Box::pin(keystore.run_until(async {}));
        running.await.unwrap();
    }
}

#[tokio::test]
async fn a_store_without_its_journal_is_accepted_only_if_it_is_the_newest() {
    let history = History::new().await;
    history.remove("journal");
    Running::start(history.dir.path()).await.stop().await;
    history.put_back("first");
    history.remove("journal");
    assert!(history.is_refused().await.contains("older than what was acknowledged"));
}

#[tokio::test]
async fn an_empty_directory_is_refused_while_the_state_store_has_a_head() {
    let history = History::new().await;
    for file in FILES.iter().chain(&["operator.key"]) {
        history.remove(file);
    }
    assert!(history.is_refused().await.contains("it holds nothing"));
    let running = history.accepted().await;
    assert!(!valid(&running, &history.is_active.key).await);
    history.goes_on(running).await;
}

#[tokio::test]
async fn a_restore_without_a_state_store_revokes_every_key_and_writes_a_new_operators_key() {
    let history = History::new().await;
    let old = std::fs::read_to_string(history.dir.path().join(OPERATOR_KEY_FILE)).unwrap();
    std::fs::remove_dir_all(history.dir.path().join("state")).unwrap();
    assert!(history.is_refused().await.contains("lost its record"));
    let running = history.accepted().await;
    for key in [&history.is_active.key, &history.later.key, &ApiKey::parse(old.trim_end()).unwrap()] {
        assert!(!valid(&running, key).await);
    }
    history.goes_on(running).await;
    assert_ne!(std::fs::read_to_string(history.dir.path().join(OPERATOR_KEY_FILE)).unwrap(), old);
}

#[tokio::test]
async fn zeros_over_acknowledged_changes_are_damage() {
    let history = History::new().await;
    let path = history.dir.path().join("journal");
    let mut journal = std::fs::read(&path).unwrap();
    let old = std::fs::read(history.dir.path().join("second/journal")).unwrap().len();
    journal[old..].fill(0);
    std::fs::write(&path, journal).unwrap();
    history.remove("store");
    assert!(history.is_refused().await.contains("older than what was acknowledged"));
}

#[tokio::test]
async fn accepting_a_restore_changes_nothing_for_the_newest_directory() {
    let history = History::new().await;
    let running = history.accepted().await;
    assert!(valid(&running, &history.is_active.key).await && valid(&running, &history.later.key).await);
    assert_eq!(running.endpoints().await.len(), 1);
    assert!(running.endpoints().await[0].webhook.enabled);
    history.goes_on(running).await;
}

/// Restores only the files that OPERATIONS.md names: they record themselves that there was a head.
#[tokio::test]
async fn a_backup_beside_a_new_state_store_is_refused() {
    for backup in ["first", "second", "newest"] {
        for lost in [None, Some("journal"), Some("store")] {
            let history = History::new().await;
            history.put_back(backup);
            std::fs::remove_dir_all(history.dir.path().join("state")).unwrap();
            for file in ["state-store.json", OPERATOR_KEY_FILE].into_iter().chain(lost) {
                history.remove(file);
            }
            assert!(history.is_refused().await.contains("lost its record"), "{backup} without {lost:?}");
            let running = history.accepted().await;
            for key in [&history.is_active.key, &history.revoked.key, &history.rotated.key, &history.later.key] {
                assert!(!valid(&running, key).await, "{backup} without {lost:?}");
            }
            history.goes_on(running).await;
        }
    }
}

#[tokio::test]
async fn a_deployment_from_before_heads_starts_and_records_its_head() {
    let dir = tempfile::tempdir().unwrap();
    let data = older(dir.path());
    Running::start_as(config(&data), anonymous()).await.unwrap().stop().await;
    std::fs::remove_dir_all(data.join("state")).unwrap();
    std::fs::remove_file(data.join("state-store.json")).unwrap();
    let refused = Running::start_as(config(&data), anonymous()).await.err().expect("it started");
    assert!(std::error::Error::source(&refused).unwrap().to_string().contains("lost its record"));
}

#[tokio::test]
async fn files_without_a_recorded_head_are_restored_if_the_operator_accepts_it() {
    let dir = tempfile::tempdir().unwrap();
    let data = older(dir.path());
    let config = KeystoreConfig { accept_restore: true, ..config(&data) };
    let running = Running::start_as(config, anonymous()).await.unwrap();
    for id in LIVE {
        assert!(
            !running.is_active(&KeyId::parse(id).unwrap()).await,
            "{id} is active, and nobody knows whether it may"
        );
    }
    running.stop().await;
}

#[tokio::test]
async fn an_accepted_restore_revokes_keys_of_removed_members_ends_invitations_and_keeps_stops() {
    let history = History::new().await;
    let running = Running::start(history.dir.path()).await;
    let account = &history.account;
    let ((removed, caller), (_, kept)) = (running.member(account, &[]).await, running.member(account, &[]).await);
    let call = InviteMember { account: Some(account.clone()), ..invite(&running.operator, "Ada") };
    let pending = done(running.ask(&call).await).invitation_code;
    let stop = CreateStop { account: Some(account.clone()), ..create(&running.operator, StopScope::Account) };
    let stop = done(running.ask(&stop).await);
    running.stop().await;
    back_up(history.dir.path(), "members");
    let running = Running::start(history.dir.path()).await;
    done(running.ask(&RemoveMember { caller: running.operator.clone(), id: removed }).await);
    running.stop().await;
    history.put_back("members");
    assert!(history.is_refused().await.contains("older than what was acknowledged"));
    let mut running = history.accepted().await;
    assert!(!running.is_active(&caller.key_id).await && running.is_active(&kept.key_id).await);
    assert_eq!(refused(running.accept(&pending).await), Refusal::NotFound);
    assert_eq!(of_key(&running, &history.is_active.key).await, std::slice::from_ref(&stop));
    running.become_operator(&history.dir.path().join(OPERATOR_KEY_FILE)).await;
    assert_eq!(listed(&running, account).await, [stop]);
    running.stop().await;
}

/// The store of a copy that went on elsewhere, put in place of the newest one.
#[tokio::test]
async fn a_newer_store_of_another_fork_is_refused_without_its_journal() {
    let (root, history) = (tempfile::tempdir().unwrap(), History::new().await);
    let fork = root.path().join("fork");
    copy_dir(history.dir.path(), &fork);
    let running = Running::start(history.dir.path()).await;
    running.revoke(&history.is_active.id).await;
    running.stop().await;
    let running = Running::start(&fork).await;
    for _ in 0..3 {
        running.key(&history.account, &[Scope::Check]).await;
    }
    running.stop().await;
    for file in FILES {
        history.remove(file);
    }
    copy(&fork.join("store"), &history.dir.path().join("store"));
    assert!(history.is_refused().await.contains("say nothing of change"));
}

#[tokio::test]
async fn a_refused_start_says_which_part_failed() {
    let history = History::new().await;
    history.put_back("first");
    let error = Running::try_start(history.dir.path()).await.err().expect("it started");
    assert!(matches!(error, BuildError::Open(_)), "{error:?}");
}

fn checkpoint(account: &AccountId, last: Option<&str>) -> SignMark {
    let (now, before) = (Timestamp::now(), last.map(|line| serde_json::from_str::<Mark>(line).unwrap()));
    let previous = last.zip(before.as_ref()).map(|(line, mark)| Previous {
        hash: LineHash::of(line.as_bytes()),
        recorded_at: mark.recorded_at,
        expires_at: mark.expires_at,
    });
    let mark = Mark {
        body: MarkBody::Checkpoint {},
        account: account.clone(),
        number: before.map_or(1, |mark| mark.number + 1),
        previous,
        recorded_at: now,
        expires_at: now.as_second() + 30 * 86_400,
        through: 1,
        covered: 0,
        heads: Vec::new(),
    };
    SignMark { mark, last: last.map(str::to_owned), takes_earlier: false, permit: None }
}

/// Only the decision log tells how new the directory must be, because every mark is stored before it is returned.
#[tokio::test]
async fn a_directory_and_state_store_put_back_together_are_noticed_at_the_next_mark() {
    let root = tempfile::tempdir().unwrap();
    let (dir, copied) = (root.path().join("data"), root.path().join("copy"));
    let running = Running::start(&dir).await;
    let account = running.account("a").await.id;
    let first = done(running.ask(&checkpoint(&account, None)).await).line;
    running.stop().await;
    copy_dir(&dir, &copied);
    let running = Running::start(&dir).await;
    let second = done(running.ask(&checkpoint(&account, Some(&first))).await).line;
    assert!(!running.health.rolled_back(), "the next mark is no proof of anything");
    running.stop().await;
    // The state store, too, is from the time of the copy.
    let running = Running::start_as(config(&copied), anonymous()).await.unwrap();
    assert!(!running.health.rolled_back());
    done(running.ask(&checkpoint(&account, Some(&second))).await);
    assert!(running.health.rolled_back());
    running.stop().await;
}
