//! Files that were lost, cut, flipped or rolled back between two starts.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use stage0_backplane::Backplane;
use stage0_contract::{
    AccountId, ApiKey, CreateStop, KeyId, MemberId, ReadPeople, Scope, Stop, StopScope, WebhookCreated, WebhookId,
};
use stage0_keystore::{OPERATOR_KEY_FILE, SECRETS_KEY_FILE, SIGNING_KEY_FILE};

use crate::harness::{Running, anonymous, config, done};
use crate::stops::{create, listed};

/// A directory and the changes that were acknowledged in it.
struct Kept {
    dir: tempfile::TempDir,
    account: AccountId,
    live: Vec<ApiKey>,
    ended: Vec<KeyId>,
    endpoints: Vec<WebhookCreated>,
    deleted: Vec<WebhookId>,
    members: Vec<MemberId>,
    stops: Vec<Stop>,
}

impl Kept {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let running = Running::start(dir.path()).await;
        let account = running.account("damage").await.id;
        running.stop().await;
        let (live, ended, endpoints, deleted) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (members, stops) = (Vec::new(), Vec::new());
        let mut kept = Self { dir, account, live, ended, endpoints, deleted, members, stops };
        kept.change_more().await;
        kept
    }

    async fn change_more(&mut self) {
        let running = Running::start(self.dir.path()).await;
        for _ in 0..5 {
            let key = running.key(&self.account, &[Scope::Check]).await;
            self.live.push(running.key(&self.account, &[Scope::Check]).await.key);
            running.revoke(&key.id).await;
            self.ended.push(key.id);
        }
        let gone = running.webhook(&self.account).await.webhook.id;
        self.endpoints.push(running.webhook(&self.account).await);
        running.delete_webhook(&gone).await;
        self.deleted.push(gone);
        let (id, caller) = running.member(&self.account, &[]).await;
        self.members.push(id);
        self.live.extend(caller.key);
        let stop = CreateStop {
            account: Some(self.account.clone()),
            value: Some(format!("tool_{}", self.stops.len())),
            ..create(&running.operator, StopScope::Tool)
        };
        self.stops.push(done(running.ask(&stop).await));
        running.stop().await;
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Checks that every acknowledged change is there, that changes are taken, and that all are there after a restart.
    async fn holds(&mut self) {
        for _ in 0..2 {
            let running = Running::start(self.dir.path()).await;
            for key in &self.live {
                assert_eq!(running.verify(key).await.map(|identity| identity.account), Some(self.account.clone()));
            }
            for id in &self.ended {
                assert!(!running.is_active(id).await, "{id} came back to life");
            }
            assert_eq!(running.keys_of(&self.account).await, self.live.len() + self.ended.len());
            let found = running.endpoints().await;
            assert_eq!(found.len(), self.endpoints.len());
            for WebhookCreated { webhook, secret } in &self.endpoints {
                assert!(found.iter().any(|found| found.webhook == *webhook && found.secrets == [secret.clone()]));
            }
            assert!(!found.iter().any(|found| self.deleted.contains(&found.webhook.id)));
            let people = done(running.ask(&ReadPeople { account: self.account.clone() }).await).members;
            for id in &self.members {
                assert!(people.iter().any(|person| person.id == *id && person.may_decide), "member {id} is lost");
            }
            let stops = listed(&running, &self.account).await;
            assert!(stops.len() == self.stops.len() && self.stops.iter().all(|stop| stops.contains(stop)));
            assert!(running.writable().await);
            self.live.push(running.key(&self.account, &[Scope::Check]).await.key);
            running.stop().await;
        }
    }

    fn aside(&self, name: &str) -> usize {
        let names = std::fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|found| found.to_string_lossy().starts_with(&format!("{name}.damaged-"))).count()
    }

    async fn is_refused(&self) -> String {
        match Running::try_start(self.dir.path()).await {
            Ok(_) => panic!("it started"),
            Err(error) => std::error::Error::source(&error).unwrap().to_string(),
        }
    }
}

fn flip(file: &Path, at: u64) {
    let mut file = OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[byte[0] ^ 0x55]).unwrap();
}

fn length(file: &Path) -> u64 {
    std::fs::metadata(file).unwrap().len()
}

fn cut(file: &Path, to: u64) {
    OpenOptions::new().write(true).open(file).unwrap().set_len(to).unwrap();
}

pub(crate) fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[tokio::test]
async fn a_directory_with_both_files_damaged_is_refused_and_not_changed() {
    let kept = Kept::new().await;
    flip(&kept.path("journal"), length(&kept.path("journal")) / 2);
    std::fs::remove_dir_all(kept.path("store")).unwrap();
    let journal = std::fs::read(kept.path("journal")).unwrap();
    let text = kept.is_refused().await;
    assert!(text.contains("journal") && text.contains("store") && text.contains("restore"), "{text}");
    assert_eq!(std::fs::read(kept.path("journal")).unwrap(), journal);
    assert!(!kept.path("store").exists());
}

#[tokio::test]
async fn a_directory_that_lost_everything_but_the_operators_key_is_refused() {
    let kept = Kept::new().await;
    std::fs::remove_file(kept.path("journal")).unwrap();
    std::fs::remove_dir_all(kept.path("store")).unwrap();
    assert!(kept.is_refused().await.contains("operator.key"));
}

#[tokio::test]
async fn a_damaged_journal_beside_a_rolled_back_store_is_refused() {
    let mut kept = Kept::new().await;
    copy_dir(&kept.path("store"), &kept.path("old"));
    let before = length(&kept.path("journal"));
    kept.change_more().await;
    flip(&kept.path("journal"), before + 40);
    std::fs::remove_dir_all(kept.path("store")).unwrap();
    std::fs::rename(kept.path("old"), kept.path("store")).unwrap();
    assert!(kept.is_refused().await.contains("older than the journal"));
}

#[tokio::test]
async fn a_second_process_is_refused() {
    let kept = Kept::new().await;
    let running = Running::start(kept.dir.path()).await;
    for remove_lock_file in [false, true] {
        if remove_lock_file {
            std::fs::remove_file(kept.path("lock")).unwrap();
        }
        let refused = Running::start_on(config(kept.dir.path()), Backplane::embedded(), anonymous()).await;
        let error = refused.err().expect("it started");
        let text = std::error::Error::source(&error).unwrap().to_string();
        assert!(text.contains("in use by another process"), "{text}");
        assert_eq!((kept.aside("journal"), kept.aside("store")), (0, 0));
    }
    running.stop().await;
}

#[tokio::test]
async fn a_store_that_was_deleted_is_rebuilt() {
    let mut kept = Kept::new().await;
    std::fs::remove_dir_all(kept.path("store")).unwrap();
    kept.holds().await;
}

#[tokio::test]
async fn a_store_whose_files_were_cut_is_rebuilt() {
    for part in [0, 1, 2, 3] {
        let mut kept = Kept::new().await;
        let file = kept.path("store/db");
        cut(&file, length(&file) * part / 4);
        kept.holds().await;
        assert!(part > 0 || kept.aside("store") == 1);
    }
    let mut kept = Kept::new().await;
    cut(&kept.path("store/conf"), 3);
    kept.holds().await;
}

#[tokio::test]
async fn a_store_with_flipped_bytes_is_rebuilt() {
    for step in [61, 997, 4_099] {
        let mut kept = Kept::new().await;
        let file = kept.path("store/db");
        let content = std::fs::read(&file).unwrap();
        let used = content.iter().rposition(|byte| *byte != 0).unwrap() as u64;
        for at in (0..used).step_by(step) {
            flip(&file, at);
        }
        kept.holds().await;
    }
}

#[tokio::test]
async fn a_store_that_was_rolled_back_is_rebuilt() {
    let mut kept = Kept::new().await;
    copy_dir(&kept.path("store"), &kept.path("old"));
    kept.change_more().await;
    std::fs::remove_dir_all(kept.path("store")).unwrap();
    std::fs::rename(kept.path("old"), kept.path("store")).unwrap();
    kept.holds().await;
    assert_eq!(kept.aside("store"), 1);
}

#[tokio::test]
async fn a_store_of_another_directory_is_put_aside() {
    let (mut kept, other) = (Kept::new().await, Kept::new().await);
    std::fs::remove_dir_all(kept.path("store")).unwrap();
    copy_dir(&other.path("store"), &kept.path("store"));
    kept.holds().await;
    assert_eq!(kept.aside("store"), 1);
}

#[tokio::test]
async fn a_journal_with_flipped_bytes_is_rewritten_from_the_store() {
    for part in [0, 1, 2, 3, 4] {
        let mut kept = Kept::new().await;
        let file = kept.path("journal");
        flip(&file, (length(&file) - 1) * part / 4);
        kept.holds().await;
        assert_eq!(kept.aside("journal"), 1);
    }
}

#[tokio::test]
async fn a_journal_that_lost_acknowledged_changes_is_rewritten_from_the_store() {
    for lost in [1, 30, 700] {
        let mut kept = Kept::new().await;
        let file = kept.path("journal");
        cut(&file, length(&file) - lost);
        kept.holds().await;
    }
    let mut kept = Kept::new().await;
    std::fs::remove_file(kept.path("journal")).unwrap();
    kept.holds().await;
}

#[tokio::test]
async fn an_append_that_was_never_finished_is_cut_off() {
    for tail in [&b"S0KJ"[..], &b"S0"[..], &[0; 500][..]] {
        let mut kept = Kept::new().await;
        OpenOptions::new().append(true).open(kept.path("journal")).unwrap().write_all(tail).unwrap();
        kept.holds().await;
        assert_eq!((kept.aside("journal"), kept.aside("store")), (0, 0));
    }
}

#[tokio::test]
async fn the_files_are_private_and_contain_no_key() {
    let kept = Kept::new().await;
    let mode = |name: &str| std::fs::metadata(kept.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(""), mode("store")), (0o700, 0o700));
    for file in ["journal", OPERATOR_KEY_FILE, SECRETS_KEY_FILE, SIGNING_KEY_FILE] {
        assert_eq!(mode(file), 0o600, "{file}");
    }
    let (_, key) = kept.live[0].expose().rsplit_once('_').unwrap();
    let endpoint = kept.endpoints[0].secret.expose().strip_prefix("whsec_").unwrap();
    let raw = data_encoding::BASE64.decode(endpoint.as_bytes()).unwrap();
    let mut searched = 0;
    for (file, bytes) in every_file(kept.dir.path()) {
        for secret in [key.as_bytes(), endpoint.as_bytes(), &raw] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret), "{} holds a secret", file.display());
        }
        searched += usize::from(bytes.windows(4).any(|window| window == b"key/" || window == b"\"key"));
    }
    assert!(searched >= 2, "journal and store were not searched");
}

fn every_file(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.extend(every_file(&entry.path()));
        } else {
            found.push((entry.path(), std::fs::read(entry.path()).unwrap()));
        }
    }
    found
}

#[tokio::test]
async fn a_lost_secrets_key_refuses_the_start_until_it_is_restored() {
    let mut kept = Kept::new().await;
    let (key, aside) = (kept.path(SECRETS_KEY_FILE), kept.path("aside"));
    std::fs::rename(&key, &aside).unwrap();
    for _ in 0..2 {
        let text = kept.is_refused().await;
        assert!(text.contains("restore `secrets.key` from the backup"), "{text}");
        assert!(!key.exists());
    }
    for wrong in ["", "0", &("ab".repeat(32) + "\n")] {
        std::fs::write(&key, wrong).unwrap();
        assert!(kept.is_refused().await.contains("secrets"), "{wrong}");
        assert_eq!(std::fs::read_to_string(&key).unwrap(), wrong);
    }
    std::fs::rename(&aside, &key).unwrap();
    kept.holds().await;
}
