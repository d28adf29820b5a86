//! What bad keys cost good traffic: the same steady load alone and under a flood, in turns.
//!
//! Owns the flood: well-formed keys that were never issued, each with an id of its own, each over a connection of its
//! own from one of many addresses. So neither the rate limit of an address nor that of a key's id stops it, and every
//! key needs a hash: only the keystore's bounded pool is left. Both loads share the machine's cores with the servers,
//! including the flood's handshakes.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use stage0_contract::{ApiKey, ApiKeyError};
use tokio::task::JoinSet;

use crate::Flood;
use crate::environments::Environments;
use crate::load::{Endpoint, Pace, Target};
use crate::product::Log;
use crate::request::{CheckRequest, Runs};

mod report;

pub(crate) use report::Report;
use report::Row;

const WARM_UP: Duration = Duration::from_secs(1);
/// Lets keys that still wait for their hash finish before the next turn: the pool's queue is about a second long.
const SETTLE_DELAY: Duration = Duration::from_secs(2);
/// The first address of the flood; good traffic comes from 127.0.0.1.
const FIRST_ADDRESS: u32 = 0x7F01_0001;
/// A bad key without an answer after this time counts as unanswered.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The answers to bad keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct BadKeyAnswers {
    /// 401: hashed, and refused.
    unauthorized: u64,
    /// 429: throttled.
    throttled: u64,
    /// 503: the pool was full, or too slow.
    unavailable: u64,
    /// Another status.
    otherwise: u64,
    /// Not connected, or closed without an answer.
    unanswered: u64,
}

/// Good traffic in one environment, and the flood against the same gateway.
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
        good.turn(settings.pace(), WARM_UP).await.with_context(|| name)?;
        fields.push(Contest { endpoint, good, row: Row::new(name), sent: 0 });
    }
    for repeat in 0..settings.repeats {
        for field in &mut fields {
            field.take_turns(settings).await.with_context(|| field.row.name().to_owned())?;
        }
        eprintln!("turn {} of {} is over", repeat + 1, settings.repeats);
    }
    Ok(Report::new(settings, fields.into_iter().map(|field| field.row).collect()))
}

impl Flood {
    fn pace(&self) -> Pace {
        Pace::PerSecond(self.rate)
    }
}

impl Contest {
    async fn take_turns(&mut self, settings: &Flood) -> anyhow::Result<()> {
        let (pace, time) = (settings.pace(), settings.turn());
        self.row.alone.add(self.good.turn(pace, time).await?);
        let first = self.sent;
        self.sent += settings.bad_keys();
        let bad = send_bad_keys(&self.endpoint, first..self.sent, settings);
        let (good, told) = tokio::join!(self.good.turn(pace, time), bad);
        self.row.flooded.add(good?);
        self.row.told.add(told?);
        tokio::time::sleep(SETTLE_DELAY).await;
        Ok(())
    }
}

impl BadKeyAnswers {
    /// Counts one answer; none: there was none.
    fn count(&mut self, status: Option<u16>) {
        match status {
            Some(401) => self.unauthorized += 1,
            Some(429) => self.throttled += 1,
            Some(503) => self.unavailable += 1,
            Some(_) => self.otherwise += 1,
            None => self.unanswered += 1,
        }
    }

    fn add(&mut self, other: Self) {
        self.unauthorized += other.unauthorized;
        self.throttled += other.throttled;
        self.unavailable += other.unavailable;
        self.otherwise += other.otherwise;
        self.unanswered += other.unanswered;
    }
}

/// Sends bad keys at a steady rate, whether or not earlier ones are answered.
async fn send_bad_keys(
    endpoint: &Endpoint,
    numbers: std::ops::Range<u64>,
    settings: &Flood,
) -> anyhow::Result<BadKeyAnswers> {
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
    let mut told = BadKeyAnswers::default();
    while let Some(status) = under_way.join_next().await {
        told.count(status?);
    }
    Ok(told)
}

/// A key with a valid form and checksum that was never issued.
fn bad_key(number: u64) -> Result<ApiKey, ApiKeyError> {
    let [a, b, c, d, e, f, g, h] = number.to_be_bytes();
    ApiKey::from_random([0xBA, 0xD0, a, b, c, d, e, f, g, h], [7; 20])
}

/// The addresses in turn, around and around.
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
        told.add(once);
        assert_eq!(told, BadKeyAnswers { unauthorized: 4, throttled: 2, unavailable: 2, otherwise: 2, unanswered: 2 });
    }
}
