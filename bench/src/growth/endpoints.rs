//! Webhook endpoints from one to 10,000, in `stage0 dev`: what they cost while their accounts do nothing, and what one
//! delivery costs among them.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use futures_util::{StreamExt as _, TryStreamExt as _};

use super::curve::{Curve, Measured, measured};
use super::processes::idle_cpu;
use super::traffic::{Traffic, Until, memory_of, settle};
use crate::deployment::{Access, Deployment, Plan};
use crate::receiver::Receiver;
use crate::request::{CheckRequest, Runs};

pub(super) const SIZES: [u64; 5] = [1, 10, 100, 1_000, 10_000];
/// As many as a plan gives an account.
const OF_ACCOUNT: u64 = 100;
const CREATED_TOGETHER: usize = 8;
const DELIVERED: u64 = 500;
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

pub(super) async fn curve(stage0: &Path, sizes: &[u64]) -> anyhow::Result<Curve> {
    let method = format!(
        "`stage0 dev` with this many endpoints, {OF_ACCOUNT} of an account, made by its API. One account with one \
         endpoint makes {DELIVERED} checks; an account without any makes as many."
    );
    let expected = "flat for a check and a delivery of one account; memory and time at rest are linear: each endpoint \
                    has a cursor, a lease and a worker.";
    let mut curve = Curve::new("webhook endpoints", "endpoints", method, expected);
    for &size in sizes {
        curve.add(size, point(stage0, size).await?);
    }
    Ok(curve)
}

async fn point(stage0: &Path, size: u64) -> anyhow::Result<Vec<Measured>> {
    let receiver = Receiver::start().await?;
    let deployment = Deployment::start(Plan::embedded(stage0)).await?;
    let begun = Instant::now();
    let delivering = deployment.access("delivering").await?;
    deployment.webhook(&delivering.account, receiver.address).await?;
    add_others(&deployment, size.saturating_sub(1), &receiver).await?;
    let made = begun.elapsed().as_secs_f64() * 1e3 / size as f64;
    settle(&deployment).await?;
    let idle = idle_cpu(&deployment).await?;
    let memory = memory_of(&deployment.usage()?, "");
    let plain = deployment.access("plain").await?;
    let mut traffic = Traffic::connect(&deployment).await?;
    let without = traffic.send(&deployment, Until::Answered(DELIVERED), checks(&plain)?).await?;
    let before = receiver.count();
    let begun = Instant::now();
    let mut with = traffic.send(&deployment, Until::Answered(DELIVERED), checks(&delivering)?).await?;
    while receiver.count() - before < DELIVERED {
        ensure!(begun.elapsed() < DELIVERY_TIMEOUT, "{} of {DELIVERED} were delivered", receiver.count() - before);
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    let delivered = begun.elapsed().as_secs_f64();
    with.extend(&deployment)?;
    Ok(vec![
        measured("creation of an endpoint", "ms", made),
        measured("CPU at rest", "ms a second", idle),
        measured("memory at rest", "MB", memory),
        measured("CPU of a check without delivery", "µs", without.cpu()),
        measured("CPU of a check and its delivery", "µs", with.cpu()),
        measured("deliveries in a second, with their checks", "1/s", DELIVERED as f64 / delivered),
    ])
}

/// Endpoints of accounts that never check.
async fn add_others(deployment: &Deployment, count: u64, receiver: &Receiver) -> anyhow::Result<()> {
    let mut accounts = Vec::new();
    for number in 0..count.div_ceil(OF_ACCOUNT) {
        accounts.push(deployment.account(&format!("idle-{number}")).await?);
    }
    let accounts = &accounts;
    let made = (0..count).map(|number| async move {
        match accounts.get((number / OF_ACCOUNT) as usize) {
            Some(account) => deployment.webhook(account, receiver.address).await.map(drop),
            None => Ok(()),
        }
    });
    futures_util::stream::iter(made).buffer_unordered(CREATED_TOGETHER).try_collect().await
}

fn checks(access: &Access) -> anyhow::Result<impl Fn(u64) -> Vec<u8> + Clone + use<>> {
    let (key, body) = (access.key.clone(), Runs::Nameless.body(0)?);
    Ok(move |_| CheckRequest::new("/check", Some(&key), &body).next().to_vec())
}
