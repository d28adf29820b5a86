//! Runs from one to 100,000: every check names one of them, in turns.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use super::curve::{Curve, measured};
use super::traffic::{Traffic, Until};
use crate::deployment::{Deployment, Plan};
use crate::request::{CheckRequest, Runs};

pub(super) const SIZES: [u64; 6] = [1, 10, 100, 1_000, 10_000, 100_000];
/// Runs beside those that are counted, each for one first check.
const PROBES: u64 = 500;
/// An account may name 50,000 runs a day.
const ACCOUNTS: u64 = 4;
/// Stands in the body where the number of a run goes; as long as one.
const PLACE: &str = "00000000";

pub(super) async fn curves(stage0: &Path, sizes: &[u64], time: Duration) -> anyhow::Result<Vec<Curve>> {
    let places = [
        ("embedded", Plan::embedded(stage0), ["dev", "dev"]),
        ("NATS", Plan::on_nats(stage0), ["evaluator", "nats-server"]),
    ];
    let mut curves = Vec::new();
    for (place, plan, [holder, store]) in places {
        let method = format!(
            "Checks of {ACCOUNTS} accounts that name one of this many runs, each once and then in turns for {} s; \
             {PROBES} more runs are named once.",
            time.as_secs()
        );
        let expected = "flat once a run has a few checks; a run that is checked more often has a longer history, up to \
                        a hundred entries, so few runs cost more a check. Memory: a run is held while it is busy.";
        let mut curve = Curve::new(&format!("runs, {place}"), "runs", method, expected);
        for &size in sizes {
            let deployment = Deployment::start(plan.clone()).await?;
            let request = requests(&deployment).await?;
            let (of_probe, of_busy) = (request.clone(), request);
            let mut traffic = Traffic::connect(&deployment).await?;
            let first =
                traffic.send(&deployment, Until::Answered(PROBES), move |number| of_probe(size + number)).await?;
            let in_turns = move |number: u64| of_busy(number % size);
            traffic.send(&deployment, Until::Answered(size), in_turns.clone()).await?;
            let later = traffic.send(&deployment, Until::Over(time), in_turns).await?;
            let mut numbers = vec![
                measured("CPU of a run's first check", "µs", first.cpu()),
                measured("CPU of a later check", "µs", later.cpu()),
                measured("checks in a second", "1/s", later.per_second()),
                measured("memory of the process that holds runs", "MB", later.memory_of(holder)),
            ];
            if store != holder {
                numbers.push(measured("memory of nats-server", "MB", later.memory_of(store)));
            }
            curve.add(size, numbers);
        }
        curves.push(curve);
    }
    Ok(curves)
}

/// The bytes of a check by the number of its run, which belongs to one account.
async fn requests(deployment: &Deployment) -> anyhow::Result<impl Fn(u64) -> Vec<u8> + Clone + use<>> {
    let mut body: Value = serde_json::from_str(&Runs::Nameless.body(0)?)?;
    let context = body.get_mut("context").and_then(Value::as_object_mut).context("no context")?;
    context.insert("run_id".to_owned(), PLACE.into());
    let body = body.to_string();
    let mut keys = Vec::new();
    for account in 0..ACCOUNTS {
        keys.push(deployment.access(&format!("runs-{account}")).await?.key);
    }
    Ok(move |run: u64| {
        let key = keys.get((run % ACCOUNTS) as usize).map(String::as_str);
        let body = body.replacen(PLACE, &format!("{run:08}"), 1);
        CheckRequest::new("/check", key, &body).next().to_vec()
    })
}
