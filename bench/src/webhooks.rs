//! Deliveries a second, against a bare loop of POSTs to the same receiver: the same bodies, the same concurrency. And
//! what a subscribed webhook costs checks at half of the maximum rate, and how far deliveries lag behind them.

use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use stage0_contract::{AccountId, ReplayWebhook};

use crate::load::Target;
use crate::pace::Pace;
use crate::product::Installation;
use crate::receiver::Receiver;
use crate::report::{Deliveries, HalfRate};

/// Concurrent requests to one endpoint, as in the exporter.
const CONCURRENCY: usize = 16;
/// About the size of a decision's event.
const BODY_BYTES: usize = 1_900;

/// Replays what was recorded to a new endpoint of each account, and runs a bare loop beside each.
pub(crate) async fn compare(
    recorded: &[(&Installation, AccountId)],
    receiver: &Receiver,
    time: Duration,
) -> anyhow::Result<Vec<Deliveries>> {
    let mut rows = Vec::new();
    for ((installation, account), name) in recorded.iter().zip(["embedded", "NATS"]) {
        let id = installation.webhook(account, receiver.address).await?;
        let replay = ReplayWebhook { account: account.clone(), id, from: Timestamp::UNIX_EPOCH, to: Timestamp::now() };
        let before = receiver.count();
        installation.manage(&replay).await?;
        // The measurement starts when the first one arrives.
        while receiver.count() == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let delivered = rate(receiver, time).await;
        let bare = bare_loop(receiver, time).await?;
        rows.push(Deliveries { name: name.to_owned(), delivered, bare });
    }
    Ok(rows)
}

/// Checks at a fixed rate in turns, without a webhook and with one.
pub(crate) async fn at_half_rate(
    half: &mut HalfRate,
    without: &mut Target,
    with: &mut Target,
    receiver: &Receiver,
    time: Duration,
) -> anyhow::Result<()> {
    let pace = Pace::PerSecond(half.per_second);
    half.without.add(&without.turn(pace, time).await?)?;
    receiver.take_lags()?;
    let before = receiver.count();
    let turn = with.turn(pace, time).await?;
    half.behind.push(turn.latencies.len().saturating_sub(receiver.count() - before));
    half.with.add(&turn)?;
    drain(receiver).await;
    half.lags.add(&receiver.take_lags()?)
}

/// Waits until the deliveries of one contestant are through, so that they do not burden another.
pub(crate) async fn drain(receiver: &Receiver) {
    let mut last = receiver.count();
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = receiver.count();
        if now == last {
            return;
        }
        last = now;
    }
}

async fn rate(receiver: &Receiver, time: Duration) -> f64 {
    let (before, began) = (receiver.count(), Instant::now());
    tokio::time::sleep(time).await;
    (receiver.count() - before) as f64 / began.elapsed().as_secs_f64()
}

async fn bare_loop(receiver: &Receiver, time: Duration) -> anyhow::Result<f64> {
    // The replay is not part of either measurement: the loop runs once it is through.
    let mut last = 0;
    while receiver.count() != last {
        last = receiver.count();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let client = reqwest::Client::builder().no_proxy().build()?;
    let (url, body) = (format!("http://{}/", receiver.address), Bytes::from(vec![b'x'; BODY_BYTES]));
    let (before, began) = (receiver.count(), Instant::now());
    let loops = (0..CONCURRENCY).map(|_| {
        let (client, url, body) = (client.clone(), url.clone(), body.clone());
        tokio::spawn(async move {
            while began.elapsed() < time {
                client.post(&url).body(body.clone()).send().await?.bytes().await?;
            }
            anyhow::Ok(())
        })
    });
    for one in loops.collect::<Vec<_>>() {
        one.await??;
    }
    Ok((receiver.count() - before) as f64 / began.elapsed().as_secs_f64())
}
