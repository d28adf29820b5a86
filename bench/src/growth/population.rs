//! Accounts from one to 100,000, and keys from one to a million, in `stage0 dev`.
//!
//! The keystore starts with a journal that holds them ([`super::seed`]).

use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use stage0_keystore::JOURNAL_FILE;

use super::curve::{Curve, Measured, measured};
use super::seed::{Seed, key};
use super::traffic::{Traffic, Until, memory_of, settle};
use crate::deployment::{Deployment, Plan};
use crate::quantiles::median;
use crate::request::{CheckRequest, Runs};

pub(super) const ACCOUNTS: [u64; 6] = [1, 10, 100, 1_000, 10_000, 100_000];
pub(super) const KEYS: [u64; 7] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000];
/// As many keys as a plan gives an account.
const KEYS_OF_ACCOUNT: u64 = 1_000;
/// Keys beside those that are counted, each for one first check.
const PROBES: u64 = 500;
/// Of the keys curve: keys that check in turns.
const BUSY_KEYS: u64 = 100;
const CREATIONS: usize = 15;

pub(super) async fn accounts(stage0: &Path, sizes: &[u64], time: Duration) -> anyhow::Result<Curve> {
    let method = format!(
        "`stage0 dev` with this many accounts of one key each, and {PROBES} more that check once. Stored hashes have \
         Argon2's least cost. All check in turns, so that none is cached by luck."
    );
    let expected = "flat in time; memory grows with the accounts that are active: keys, chains and rate limits.";
    let mut curve = Curve::new("accounts", "accounts", method, expected);
    for &size in sizes {
        let seed = Seed { keys: size + PROBES, keys_of_account: 1 };
        let (deployment, mut numbers) = start(stage0, seed).await?;
        numbers.extend(checks(&deployment, size, size, time).await?);
        curve.add(size, numbers);
    }
    Ok(curve)
}

pub(super) async fn keys(stage0: &Path, sizes: &[u64], time: Duration) -> anyhow::Result<Curve> {
    let method = format!(
        "`stage0 dev` with this many keys, {KEYS_OF_ACCOUNT} of an account, and {PROBES} more that check once. Stored \
         hashes have Argon2's least cost; new keys are hashed at the full cost. {BUSY_KEYS} keys check in turns."
    );
    let expected = "flat in time, but for a start, which reads all of them; memory and disk are linear.";
    let mut curve = Curve::new("keys", "keys", method, expected);
    for &size in sizes {
        let (deployment, mut numbers) =
            start(stage0, Seed { keys: size + PROBES, keys_of_account: KEYS_OF_ACCOUNT }).await?;
        numbers.extend(checks(&deployment, size, size.min(BUSY_KEYS), time).await?);
        numbers.extend(changes(&deployment).await?);
        curve.add(size, numbers);
    }
    Ok(curve)
}

/// Starts twice: the first start rebuilds the store, the second one is what an operator sees.
async fn start(stage0: &Path, seed: Seed) -> anyhow::Result<(Deployment, Vec<Measured>)> {
    let directory = tempfile::tempdir()?;
    let [seeded, kept] = ["seeded", "kept"].map(|name| directory.path().join(name));
    std::fs::DirBuilder::new().mode(0o700).create(&seeded)?;
    let files = seeded.clone();
    tokio::task::spawn_blocking(move || seed.write(&files)).await??;
    let (first, rebuilt) = start_with(stage0, &seeded).await?;
    let settled = settle(&first).await?;
    // It is killed in the next line, and does not open a file again.
    std::fs::rename(first.data(), &kept)?;
    drop(first);
    let (deployment, restarted) = start_with(stage0, &kept).await?;
    settle(&deployment).await?;
    let numbers = vec![
        measured("first start, with its store rebuilt", "s", rebuilt),
        measured("work in the background after it", "s", settled),
        measured("restart", "s", restarted),
        measured("memory at rest after a restart", "MB", memory_of(&deployment.usage()?, "")),
        measured("disk of the keystore", "MB", disk(deployment.data())? / 1e6),
    ];
    Ok((deployment, numbers))
}

/// Returns how many seconds it took.
async fn start_with(stage0: &Path, files: &Path) -> anyhow::Result<(Deployment, f64)> {
    let begun = Instant::now();
    let deployment = Deployment::start(Plan::embedded(stage0).with_data(files)).await?;
    Ok((deployment, begun.elapsed().as_secs_f64()))
}

/// The bytes of the keystore's journal and store.
fn disk(data: &Path) -> anyhow::Result<f64> {
    let mut bytes = std::fs::metadata(data.join(JOURNAL_FILE))?.len();
    for file in std::fs::read_dir(data.join("store"))? {
        let file = file?.metadata()?;
        bytes += if file.is_file() { file.len() } else { 0 };
    }
    Ok(bytes as f64)
}

/// First checks of the keys after the first `size` ones; then checks of the first `busy` ones, each once and in turns.
async fn checks(deployment: &Deployment, size: u64, busy: u64, time: Duration) -> anyhow::Result<Vec<Measured>> {
    let body = Runs::Nameless.body(0)?;
    let request = move |number: u64| {
        let key = key(number).map(|key| key.expose().to_owned()).unwrap_or_default();
        CheckRequest::new("/check", Some(&key), &body).next().to_vec()
    };
    let (of_probe, of_busy) = (request.clone(), request);
    let mut traffic = Traffic::connect(deployment).await?;
    let first = traffic.send(deployment, Until::Answered(PROBES), move |number| of_probe(size + number)).await?;
    let in_turns = move |number: u64| of_busy(number % busy);
    traffic.send(deployment, Until::Answered(busy), in_turns.clone()).await?;
    let later = traffic.send(deployment, Until::Over(time), in_turns).await?;
    Ok(vec![
        measured("CPU of a key's first check", "µs", first.cpu()),
        measured("CPU of a later check", "µs", later.cpu()),
        measured("memory after the checks", "MB", later.memory_of("")),
    ])
}

/// Makes keys and lists them.
async fn changes(deployment: &Deployment) -> anyhow::Result<Vec<Measured>> {
    let account = deployment.account("changes").await?;
    let (mut made, mut listed) = (Vec::new(), Vec::new());
    for _ in 0..CREATIONS {
        let begun = Instant::now();
        deployment.key(&account, &["check"]).await?;
        made.push(begun.elapsed().as_secs_f64() * 1e3);
        let begun = Instant::now();
        let path = format!("/v1/keys?account={account}");
        deployment.call(Method::GET, &path, &Value::Null).await?;
        listed.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let begun = Instant::now();
    let path = format!("/v1/accounts/{account}");
    deployment.call(Method::PATCH, &path, &json!({"retention_days": 7})).await?;
    let changed = begun.elapsed().as_secs_f64() * 1e3;
    Ok(vec![
        measured("a new key, hashed and synced", "ms", median(made)),
        measured("a list of keys", "ms", median(listed)),
        measured("a change of an account", "ms", changed),
    ])
}
