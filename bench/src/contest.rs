//! The contestants and their turns. Each has a gateway and an account of its own; those of one environment share
//! keystore, evaluator and exporter, which idle while others have their turn. Only selected contestants are started.

use std::time::Duration;

use anyhow::Context as _;
use stage0_contract::AccountId;

use crate::environments::Environments;
use crate::load::{Endpoint, Target};
use crate::pace::Pace;
use crate::product::{Installation, Log};
use crate::receiver::Receiver;
use crate::report::{HalfRate, Report, Row};
use crate::request::{CheckRequest, Runs};
use crate::{Compare, floors, turn, webhooks};

/// Before a contestant's first turn that counts; repeated until its runs have grown.
const WARM_UP: Duration = Duration::from_secs(1);
const UNREACHABLE_QUOTA: u64 = 1_000_000_000;
/// Case 023 is allowed. Only an ALLOW advances a run: another verdict would be cheaper.
const WANTED: &str = r#""verdict":"ALLOW""#;

struct Way {
    label: &'static str,
    log: Log,
    webhook: bool,
    runs: Runs,
    limit: Option<u64>,
}

const DISCARDED: Way =
    Way { label: "records discarded", log: Log::Discarded, webhook: false, runs: Runs::Nameless, limit: None };
const WEBHOOK: &str = "recorded, webhook";
const RECORDED: Way = Way { label: "recorded", log: Log::Stored, ..DISCARDED };
/// `c0` to `c7`, `d0` to `d7` and `e0` to `e7`.
const WAYS: [Way; 8] = [
    DISCARDED,
    RECORDED,
    Way { label: WEBHOOK, webhook: true, ..RECORDED },
    Way { label: "recorded, run state", runs: Runs::OfLine, ..RECORDED },
    Way { label: "recorded, quotas", limit: Some(UNREACHABLE_QUOTA), ..RECORDED },
    Way { label: "recorded, both", runs: Runs::OfLine, limit: Some(UNREACHABLE_QUOTA), ..RECORDED },
    Way { label: "recorded, one run for all", runs: Runs::ForAll, ..RECORDED },
    Way { label: "recorded, young runs", runs: Runs::Young, ..RECORDED },
];

struct Contestant {
    target: Target,
    row: Row,
}

struct Contest<'a> {
    settings: &'a Compare,
    environments: &'a Environments,
    entered: Vec<Contestant>,
    /// Accounts whose decisions can be delivered again.
    recorded: Vec<(&'a Installation, AccountId)>,
}

pub(crate) async fn compare(settings: &Compare) -> anyhow::Result<Report> {
    let environments = Environments::start().await?;
    let receiver = Receiver::start().await?;
    let mut contest = Contest { settings, environments: &environments, entered: Vec::new(), recorded: Vec::new() };
    contest.enter_floors().await?;
    for (letter, place, installation) in [
        ("c", "embedded", &environments.embedded),
        ("d", "NATS", &environments.on_nats),
        ("e", "NATS, keys", &environments.authenticated),
    ] {
        for (index, way) in WAYS.iter().enumerate() {
            contest.enter(installation, &format!("{letter}{index} {place}, {}", way.label), way, &receiver).await?;
        }
    }
    let Contest { mut entered, recorded, .. } = contest;
    let time = turn(settings.seconds);
    for repeat in 0..settings.repeats {
        for Contestant { target, row } in &mut entered {
            let taken = target.turn(Pace::AsAnswered, time).await;
            row.add(&taken.with_context(|| row.name.clone())?)?;
            webhooks::drain(&receiver).await;
        }
        eprintln!("turn {} of {} is over", repeat + 1, settings.repeats);
    }
    let half_rates = at_half_rate(settings, &mut entered, &receiver).await?;
    let rows: Vec<_> = entered.into_iter().map(|contestant| contestant.row).collect();
    let deliveries =
        if settings.only.is_empty() { webhooks::compare(&recorded, &receiver, time * 2).await? } else { Vec::new() };
    Ok(Report::new(settings, &rows, &half_rates, deliveries))
}

/// Recorded checks at half of their maximum, with a webhook and without, where both take part.
async fn at_half_rate(
    settings: &Compare,
    entered: &mut [Contestant],
    receiver: &Receiver,
) -> anyhow::Result<Vec<HalfRate>> {
    let mut rows = Vec::new();
    // Contestants with a webhook follow those without.
    for index in 1..entered.len() {
        let Some((before, [with, ..])) = entered.split_at_mut_checked(index) else { continue };
        let Some(without) = before.last_mut() else { continue };
        if !(without.row.name.ends_with(RECORDED.label) && with.row.name.ends_with(WEBHOOK)) {
            continue;
        }
        let mut half = HalfRate::new(&with.row.name, without.row.rate() / 2.0)?;
        for _ in 0..settings.repeats {
            let time = turn(settings.seconds);
            webhooks::at_half_rate(&mut half, &mut without.target, &mut with.target, receiver, time).await?;
        }
        rows.push(half);
    }
    Ok(rows)
}

impl<'a> Contest<'a> {
    async fn enter_floors(&mut self) -> anyhow::Result<()> {
        let workers = floors::workers();
        let Environments { tls, ca, nats, .. } = self.environments;
        let body = Runs::Nameless.body(0)?;
        for name in ["a  TLS echo", "b  TLS + NATS echo"] {
            if !self.takes_part(name) {
                continue;
            }
            let address = match name.starts_with('a') {
                true => floors::tls_echo(tls, workers)?,
                false => {
                    tokio::spawn(floors::nats_responder(nats).await?);
                    floors::nats_echo(tls, workers, nats).await?
                }
            };
            let askings = (0..self.settings.connections).map(|_| CheckRequest::new("/echo", None, &body));
            let target = Target::connect(&Endpoint::new(address, ca)?, askings.collect(), None).await;
            self.warm_up(name, target.with_context(|| name)?, 0).await?;
        }
        Ok(())
    }

    async fn enter(
        &mut self,
        installation: &'a Installation,
        name: &str,
        way: &Way,
        receiver: &Receiver,
    ) -> anyhow::Result<()> {
        if !self.takes_part(name) {
            return Ok(());
        }
        let served = installation.gateway(name, way.log, way.limit).await?;
        if way.webhook {
            installation.webhook(&served.account, receiver.address).await?;
        }
        let endpoint = Endpoint::new(served.address, &self.environments.ca)?;
        let lines = self.settings.connections;
        let askings =
            (0..lines).map(|line| CheckRequest::check(&served.key, way.runs, line)).collect::<Result<_, _>>()?;
        let target = Target::connect(&endpoint, askings, Some(WANTED)).await.with_context(|| name.to_owned())?;
        self.warm_up(name, target, way.runs.checks_until_grown(lines)).await?;
        if way.label == RECORDED.label {
            self.recorded.push((installation, served.account));
        }
        Ok(())
    }

    async fn warm_up(&mut self, name: &str, mut target: Target, checks: u64) -> anyhow::Result<()> {
        let mut answered = 0;
        loop {
            let turn = target.turn(Pace::AsAnswered, WARM_UP).await.with_context(|| name.to_owned())?;
            anyhow::ensure!(turn.latencies.len() > 0, "{name}: nothing was answered");
            answered += turn.latencies.len();
            if answered >= checks {
                break;
            }
        }
        self.entered.push(Contestant { target, row: Row::new(name)? });
        Ok(())
    }

    fn takes_part(&self, name: &str) -> bool {
        let only = &self.settings.only;
        only.is_empty() || only.iter().any(|one| name.starts_with(one.as_str()))
    }
}
