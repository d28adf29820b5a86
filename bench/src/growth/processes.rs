//! Evaluators and gateways from one to eight, each a process, on one nats-server.
//!
//! On a machine with few cores more processes cannot answer more checks. What is seen is whether a check costs more
//! the more of them there are, and what each costs while it has nothing to do.

use std::path::Path;
use std::time::Duration;

use super::curve::{Curve, measured};
use super::traffic::{Traffic, Until};
use crate::deployment::{Deployment, Plan};
use crate::request::{CheckRequest, Runs};

pub(super) const SIZES: [u64; 4] = [1, 2, 4, 8];
const SETTLE_TIME: Duration = Duration::from_secs(1);
const IDLE_TIME: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy)]
pub(super) enum Role {
    Evaluator,
    Gateway,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Evaluator => "evaluator",
            Self::Gateway => "gateway",
        }
    }

    fn plan(self, stage0: &Path, size: usize) -> Plan {
        let plan = Plan::on_nats(stage0);
        match self {
            Self::Evaluator => plan.evaluators(size),
            Self::Gateway => plan.gateways(size),
        }
    }
}

pub(super) async fn curve(role: Role, stage0: &Path, sizes: &[u64], time: Duration) -> anyhow::Result<Curve> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let method = format!(
        "Recorded checks on NATS as fast as they are answered, {} s at each size, load and servers on {cores} cores.",
        time.as_secs()
    );
    let expected = "CPU of a check nearly flat: batches get smaller as each process sees fewer checks. Idle processes \
                    cost their heartbeats. Memory is linear: each is a process.";
    let name = match role {
        Role::Evaluator => "evaluators",
        Role::Gateway => "gateways",
    };
    let mut curve = Curve::new(name, name, method, expected);
    for &size in sizes {
        let deployment = Deployment::start(role.plan(stage0, usize::try_from(size)?)).await?;
        let idle = idle_cpu(&deployment).await?;
        let key = deployment.access("processes").await?.key;
        let body = Runs::Nameless.body(0)?;
        let requests = move |_| CheckRequest::new("/check", Some(&key), &body).next().to_vec();
        let mut traffic = Traffic::connect(&deployment).await?;
        traffic.send(&deployment, Until::Over(SETTLE_TIME), requests.clone()).await?;
        let spent = traffic.send(&deployment, Until::Over(time), requests).await?;
        curve.add(
            size,
            vec![
                measured("checks in a second", "1/s", spent.per_second()),
                measured("CPU of a check", "µs", spent.cpu()),
                measured("of it, gateways", "µs", spent.cpu_of("gateway")),
                measured("of it, evaluators", "µs", spent.cpu_of("evaluator")),
                measured("of it, nats-server", "µs", spent.cpu_of("nats-server")),
                measured("memory of these processes", "MB", spent.memory_of(role.name())),
                measured("CPU of all at rest", "ms a second", idle),
            ],
        );
    }
    Ok(curve)
}

/// Milliseconds of processor time in a second without checks.
pub(super) async fn idle_cpu(deployment: &Deployment) -> anyhow::Result<f64> {
    let sum = || -> anyhow::Result<f64> { Ok(deployment.usage()?.iter().map(|usage| usage.cpu.as_secs_f64()).sum()) };
    tokio::time::sleep(SETTLE_TIME).await;
    let before = sum()?;
    tokio::time::sleep(IDLE_TIME).await;
    Ok((sum()? - before) / IDLE_TIME.as_secs_f64() * 1e3)
}
