//! What bad keys cost good traffic: the same steady load alone and under a flood, in turns.
//!
//! Owns the flood: well-formed keys that nobody issued, each with an id of its own, each over a connection of its own from one of
//! many addresses. So neither the throttle of an address nor that of a key's id stops it, and every key asks for a hash: what is
//! left is the keystore's bounded pool. Both loads share the machine's cores with the servers, handshakes of the flood included.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use stage0_contract::{ApiKey, ApiKeyError, AuditMode};
use tokio::task::JoinSet;

use crate::Flood;
use crate::asking::{Asking, Runs};
use crate::load::{Door, Pace, Target};
use crate::places::Places;

mod report;

pub(crate) use report::Report;
use report::Row;

const WARM_UP: Duration = Duration::from_secs(1);
/// Keys that still wait for their hash are no load of the next turn: the pool's queue is about a second long.
const SETTLE: Duration = Duration::from_secs(2);
/// The first address of the flood; good traffic comes from 127.0.0.1.
const FIRST_ADDRESS: u32 = 0x7F01_0001;
/// A bad key that gets no answer in so long counts as unanswered.
const PATIENCE: Duration = Duration::from_secs(10);

/// What bad keys were told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Told {
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

/// Good traffic of one place, and the flood that goes to the same gateway.
struct Field {
    door: Door,
    good: Target,
    row: Row,
    /// Bad keys so far: no two are the same.
    sent: u64,
}

pub(crate) async fn flood(settings: &Flood) -> anyhow::Result<Report> {
    let places = Places::start().await?;
    let mut fields = Vec::new();
    for (name, installation) in [("embedded", &places.embedded), ("NATS", &places.on_nats)] {
        let served = installation.gateway(name, AuditMode::Required, None).await?;
        let door = Door::new(served.address, &places.ca)?;
        let askings = (0..settings.connections).map(|line| Asking::check(&served.key, Runs::Nameless, line));
        let askings = askings.collect::<Result<_, _>>()?;
        let mut good = Target::connect(&door, askings, Some(r#""verdict":"ALLOW""#)).await?;
        good.turn(settings.pace(), WARM_UP).await.with_context(|| name)?;
        fields.push(Field { door, good, row: Row::new(name), sent: 0 });
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

impl Field {
    async fn take_turns(&mut self, settings: &Flood) -> anyhow::Result<()> {
        let (pace, time) = (settings.pace(), settings.turn());
        self.row.alone.add(self.good.turn(pace, time).await?);
        let first = self.sent;
        self.sent += settings.bad_keys();
        let bad = rush(&self.door, first..self.sent, settings);
        let (good, told) = tokio::join!(self.good.turn(pace, time), bad);
        self.row.flooded.add(good?);
        self.row.told.add(told?);
        tokio::time::sleep(SETTLE).await;
        Ok(())
    }
}

impl Told {
    /// Counts one answer; none where nothing came.
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

/// Bad keys at a steady rate, whatever becomes of those before.
async fn rush(door: &Door, numbers: std::ops::Range<u64>, settings: &Flood) -> anyhow::Result<Told> {
    let body: Arc<str> = Runs::Nameless.body(0)?.into();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / settings.bad.max(1));
    let mut under_way = JoinSet::new();
    for number in numbers {
        ticks.tick().await;
        let (door, body) = (door.clone(), Arc::clone(&body));
        let (key, from) = (bad_key(number)?, address(number, settings.addresses));
        under_way.spawn(async move {
            let asked = async {
                let mut line = door.open(Some(from)).await?;
                line.ask(Asking::new("/check", Some(key.expose()), &body).next()).await
            };
            tokio::time::timeout(PATIENCE, asked).await.ok().and_then(Result::ok)
        });
    }
    let mut told = Told::default();
    while let Some(status) = under_way.join_next().await {
        told.count(status?);
    }
    Ok(told)
}

/// Right in form and checksum, and nobody's.
fn bad_key(number: u64) -> Result<ApiKey, ApiKeyError> {
    let [a, b, c, d, e, f, g, h] = number.to_be_bytes();
    ApiKey::from_random([0xBA, 0xD0, a, b, c, d, e, f, g, h], [7; 20])
}

/// One after the other, around and around.
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
    fn every_fate_of_a_bad_key_is_counted_apart() {
        let mut told = Told::default();
        for status in [Some(401), Some(429), Some(503), Some(200), None, Some(401)] {
            told.count(status);
        }
        let once = Told { unauthorized: 2, throttled: 1, unavailable: 1, otherwise: 1, unanswered: 1 };
        assert_eq!(told, once);
        told.add(once);
        assert_eq!(told, Told { unauthorized: 4, throttled: 2, unavailable: 2, otherwise: 2, unanswered: 2 });
    }
}
