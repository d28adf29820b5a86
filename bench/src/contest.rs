//! Who takes part, and the turns.

use std::time::Duration;

use anyhow::Context as _;
use stage0_backplane::embedded::Bus;
use stage0_backplane::nats::{Connection, NatsConfig};
use stage0_backplane::testing::NatsServer;
use stage0_contract::AuditMode;

use crate::load::{Line, Target};
use crate::product::{Installation, Place};
use crate::receiver::Receiver;
use crate::report::{Report, Row};
use crate::{Compare, floors, webhooks};

/// Case 023 of the contract: six constraints, two side effects, twelve members of `context`.
const BODY: &str = include_str!("../request.json");
/// Of each contestant, before the first turn that counts.
const WARM_UP: Duration = Duration::from_secs(1);

struct Contestant {
    name: &'static str,
    target: Target,
    lines: Vec<Line>,
    row: Row,
}

/// Starts everybody, lets them take turns, then measures deliveries.
pub(crate) async fn compare(settings: &Compare) -> anyhow::Result<Report> {
    let directory = tempfile::tempdir()?;
    let (tls, ca) = stage0_gateway::dev_tls(&directory.path().join("tls"))?;
    let nats = NatsServer::start().await;
    let config = NatsConfig::new(nats.url(), "bench");
    Connection::open(&config).await?.prepare_log(1).await?;
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let receiver = Receiver::start().await?;

    let embedded = directory.path().join("embedded");
    std::fs::create_dir(&embedded)?;
    let bus = Bus::open(&embedded)?;
    let embedded = Installation::start(Place::Embedded(bus), &embedded, tls.clone()).await?;
    let on_nats = directory.path().join("nats");
    std::fs::create_dir(&on_nats)?;
    let on_nats = Installation::start(Place::Nats(Box::new(config.clone())), &on_nats, tls.clone()).await?;

    let echo = |address| Target::new(address, &ca, None, "/echo", BODY);
    let mut contestants = vec![
        ("a  TLS echo", echo(floors::tls_echo(&tls, workers)?)?),
        ("b  TLS + NATS echo", echo(floors::nats_echo(&tls, workers, &config).await?)?),
    ];
    let modes = [(AuditMode::None, false), (AuditMode::Required, false), (AuditMode::Required, true)];
    let names = [
        ["c0 embedded, not recorded", "c1 embedded, recorded", "c2 embedded, recorded, webhook"],
        ["d0 NATS, not recorded", "d1 NATS, recorded", "d2 NATS, recorded, webhook"],
    ];
    let mut recorded = Vec::new();
    for (installation, names) in [(&embedded, names[0]), (&on_nats, names[1])] {
        for ((audit, webhook), name) in modes.into_iter().zip(names) {
            let served = installation.gateway(name, audit).await?;
            if webhook {
                installation.webhook(&served.account, receiver.address).await?;
            }
            contestants.push((name, Target::new(served.address, &ca, Some(&served.key), "/check", BODY)?));
            if audit == AuditMode::Required && !webhook {
                recorded.push((installation, served.account));
            }
        }
    }
    let mut entered = Vec::new();
    let takes_part =
        |name: &str| settings.only.is_empty() || settings.only.iter().any(|one| name.starts_with(one.as_str()));
    for (name, target) in contestants.into_iter().filter(|(name, _)| takes_part(name)) {
        let lines = target.connect(settings.connections).await.with_context(|| name)?;
        let (lines, _) = target.turn(lines, WARM_UP).await.with_context(|| name)?;
        entered.push(Contestant { name, target, lines, row: Row::new(name) });
    }
    for repeat in 0..settings.repeats {
        for contestant in &mut entered {
            let lines = std::mem::take(&mut contestant.lines);
            let (lines, turn) =
                contestant.target.turn(lines, settings.turn()).await.with_context(|| contestant.name)?;
            contestant.lines = lines;
            contestant.row.add(settings.turn(), turn);
            drain(&receiver).await;
        }
        eprintln!("turn {} of {} is over", repeat + 1, settings.repeats);
    }
    let rows = entered.into_iter().map(|contestant| contestant.row).collect();
    let deliveries = if settings.only.is_empty() {
        webhooks::compare(&recorded, &receiver, settings.turn() * 2).await?
    } else {
        Vec::new()
    };
    Ok(Report::new(settings, rows, deliveries))
}

/// A backlog of one contestant's deliveries is no other one's load.
async fn drain(receiver: &Receiver) {
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
