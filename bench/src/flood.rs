//! What bad keys cost good traffic: the same steady load alone and under a flood, in turns.
//!
//! The flood's keys were never issued, each has an id of its own and comes over a connection of its own from one of
//! many addresses. So no rate limit stops it, and every key needs a hash: only the keystore's bounded pool is left.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use stage0_contract::{ApiKey, ApiKeyError};
use tokio::task::JoinSet;

use crate::environments::Environments;
use crate::load::{Endpoint, Target};
use crate::pace::Pace;
use crate::product::Log;
use crate::request::{CheckRequest, Runs};
use crate::{Flood, turn};

mod report;

pub(crate) use report::Report;
use report::Row;

const WARM_UP: Duration = Duration::from_secs(1);
/// Lets keys that still wait for their hash finish before the next turn: the pool's queue is about a second long.
const SETTLE_DELAY: Duration = Duration::from_secs(2);
/// The first address of the flood; good traffic comes from 127.0.0.1.
const FIRST_ADDRESS: u32 = 0x7F01_0001;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct BadKeyAnswers {
    /// 401: hashed, and refused.
    unauthorized: u64,
    /// 429: throttled.
    throttled: u64,
    /// 503: the pool was full, or too slow.
    unavailable: u64,
    otherwise: u64,
    /// Not connected, or closed without an answer.
    unanswered: u64,
}

struct Contest {
    endpoint: Endpoint,
    good: Target,
    row: Row,
    /// Bad keys sent so far: no two are the same.
    sent: u64,
}

pub(crate) async fn flood(settings: &Flood) -> anyhow::Result<Report> {
    let environments = Environments::start().await?;
    let mut fields = Vec::new();
    for (name, installation) in [("embedded", &environments.embedded), ("NATS", &environments.on_nats)] {
        let served = installation.gateway(name, Log::Stored, None).await?;
        let endpoint = Endpoint::new(served.address, &environments.ca)?;
        let askings = (0..settings.connections).map(|line| CheckRequest::check(&served.key, Runs::Nameless, line));
        let askings = askings.collect::<Result<_, _>>()?;
        let mut good = Target::connect(&endpoint, askings, Some(r#""verdict":"ALLOW""#)).await?;
        good.turn(Pace::PerSecond(settings.rate.into()), WARM_UP).await.with_context(|| name)?;
        fields.push(Contest { endpoint, good, row: Row::new(name), sent: 0 });
    }
    for repeat in 0..settings.repeats {
        for field in &mut fields {
            field.take_turns(settings).await.with_context(|| field.row.name.clone())?;
        }
        eprintln!("turn {} of {} is over", repeat + 1, settings.repeats);
    }
    Ok(Report::new(settings, fields.into_iter().map(|field| field.row).collect()))
}

impl Contest {
    async fn take_turns(&mut self, settings: &Flood) -> anyhow::Result<()> {
        let (pace, time) = (Pace::PerSecond(settings.rate.into()), turn(settings.seconds));
        self.row.alone.add(&self.good.turn(pace, time).await?);
        let first = self.sent;
        self.sent += u64::from(settings.bad) * time.as_secs();
        let bad = send_bad_keys(&self.endpoint, first..self.sent, settings, &mut self.row.told);
        let (good, bad) = tokio::join!(self.good.turn(pace, time), bad);
        bad?;
        self.row.flooded.add(&good?);
        tokio::time::sleep(SETTLE_DELAY).await;
        Ok(())
    }
}

impl BadKeyAnswers {
    fn count(&mut self, status: Option<u16>) {
        match status {
            Some(401) => self.unauthorized += 1,
            Some(429) => self.throttled += 1,
            Some(503) => self.unavailable += 1,
            Some(_) => self.otherwise += 1,
            None => self.unanswered += 1,
        }
    }
}

/// Sends bad keys at a steady rate, whether or not earlier ones are answered.
async fn send_bad_keys(
    endpoint: &Endpoint,
    numbers: std::ops::Range<u64>,
    settings: &Flood,
    told: &mut BadKeyAnswers,
) -> anyhow::Result<()> {
    let body: Arc<str> = Runs::Nameless.body(0)?.into();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / settings.bad.max(1));
    let mut under_way = JoinSet::new();
    for number in numbers {
        ticks.tick().await;
        let (endpoint, body) = (endpoint.clone(), Arc::clone(&body));
        let (key, from) = (bad_key(number)?, address(number, settings.addresses));
        under_way.spawn(async move {
            let asked = async {
                let mut line = endpoint.open(Some(from)).await?;
                line.ask(CheckRequest::new("/check", Some(key.expose()), &body).next()).await
            };
            tokio::time::timeout(ANSWER_TIMEOUT, asked).await.ok().and_then(Result::ok)
        });
    }
    while let Some(status) = under_way.join_next().await {
        told.count(status?);
    }
    Ok(())
}

/// A key with a valid form and checksum that was never issued.
fn bad_key(number: u64) -> Result<ApiKey, ApiKeyError> {
    let [a, b, c, d, e, f, g, h] = number.to_be_bytes();
    ApiKey::from_random([0xBA, 0xD0, a, b, c, d, e, f, g, h], [7; 20])
}

fn address(number: u64, count: u32) -> Ipv4Addr {
    let index = number % u64::from(count.max(1));
    Ipv4Addr::from(FIRST_ADDRESS.saturating_add(u32::try_from(index).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn bad_keys_are_well_formed_and_each_has_an_id_of_its_own() {
        let keys = (0..1_000).map(|number| bad_key(number).unwrap());
        let ids: BTreeSet<_> = keys.map(|key| ApiKey::parse(key.expose()).unwrap().id().to_string()).collect();
        assert_eq!(ids.len(), 1_000);
    }

    #[test]
    fn addresses_are_as_many_as_asked_for_and_none_is_that_of_good_traffic() {
        let used: BTreeSet<_> = (0..1_000).map(|number| address(number, 300)).collect();
        assert_eq!(used.len(), 300);
        assert!(used.iter().all(Ipv4Addr::is_loopback) && !used.contains(&Ipv4Addr::LOCALHOST));
    }

    #[test]
    fn each_answer_to_a_bad_key_is_counted_separately() {
        let mut told = BadKeyAnswers::default();
        for status in [Some(401), Some(429), Some(503), Some(200), None, Some(401)] {
            told.count(status);
        }
        let once = BadKeyAnswers { unauthorized: 2, throttled: 1, unavailable: 1, otherwise: 1, unanswered: 1 };
        assert_eq!(told, once);
    }
}
