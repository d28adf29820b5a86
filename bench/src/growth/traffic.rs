//! Checks over connections that stay open, each with the bytes that its number calls for, and what they cost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};

use crate::deployment::{Deployment, Usage};
use crate::load::{Endpoint, Line};

/// A deployment is at rest once it takes less than this part of a core several times in a row.
const REST_CPU: f64 = 0.1;
const REST_SAMPLES: usize = 3;
const REST_SAMPLE_TIME: Duration = Duration::from_millis(500);
const REST_TIMEOUT: Duration = Duration::from_secs(1_800);
/// Enough to keep two cores busy.
pub(super) const CONNECTIONS: usize = 32;

pub(super) struct Traffic {
    lines: Vec<Line>,
}

#[derive(Clone, Copy)]
pub(super) enum Until {
    Answered(u64),
    Over(Duration),
}

/// What was answered, and what that cost each process.
pub(super) struct Spent {
    pub(super) answered: u64,
    pub(super) seconds: f64,
    before: Vec<Usage>,
    after: Vec<Usage>,
}

impl Traffic {
    /// Opens [`CONNECTIONS`], in turns to each gateway.
    pub(super) async fn connect(deployment: &Deployment) -> anyhow::Result<Self> {
        let mut lines = Vec::with_capacity(CONNECTIONS);
        for address in deployment.addresses().iter().cycle().take(CONNECTIONS) {
            lines.push(Endpoint::new(*address, deployment.ca())?.open(None).await?);
        }
        Ok(Self { lines })
    }

    /// Sends requests number 0, 1, 2, … as fast as they are answered.
    pub(super) async fn send(
        &mut self,
        deployment: &Deployment,
        until: Until,
        request: impl Fn(u64) -> Vec<u8> + Send + Sync + 'static,
    ) -> anyhow::Result<Spent> {
        let (next, request) = (Arc::new(AtomicU64::new(0)), Arc::new(request));
        let (before, begun) = (deployment.usage()?, Instant::now());
        let tasks = std::mem::take(&mut self.lines).into_iter().map(|mut line| {
            let (next, request) = (Arc::clone(&next), Arc::clone(&request));
            tokio::spawn(async move {
                let mut answered = 0_u64;
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let is_over = match until {
                        Until::Answered(count) => number >= count,
                        Until::Over(time) => begun.elapsed() >= time,
                    };
                    if is_over {
                        return anyhow::Ok((line, answered));
                    }
                    match line.ask(&request(number)).await? {
                        200 => answered += 1,
                        status => bail!("check {number} was not answered: {status}"),
                    }
                }
            })
        });
        let mut answered = 0;
        for task in tasks.collect::<Vec<_>>() {
            let (line, of_line) = task.await??;
            self.lines.push(line);
            answered += of_line;
        }
        ensure!(answered > 0, "nothing was answered");
        Ok(Spent { answered, seconds: begun.elapsed().as_secs_f64(), before, after: deployment.usage()? })
    }
}

impl Spent {
    /// Includes what was spent until now, such as on deliveries.
    pub(super) fn extend(&mut self, deployment: &Deployment) -> anyhow::Result<()> {
        self.after = deployment.usage()?;
        Ok(())
    }

    /// Microseconds of processor time for each answer, of all processes.
    pub(super) fn cpu(&self) -> f64 {
        self.cpu_of("")
    }

    /// The same, of the processes whose names begin like this.
    pub(super) fn cpu_of(&self, role: &str) -> f64 {
        let sum = |usages: &[Usage]| -> f64 { of_role(usages, role).map(|usage| usage.cpu.as_secs_f64()).sum() };
        (sum(&self.after) - sum(&self.before)) / self.answered as f64 * 1e6
    }

    pub(super) fn per_second(&self) -> f64 {
        self.answered as f64 / self.seconds
    }

    /// Megabytes that these processes held at the end.
    pub(super) fn memory_of(&self, role: &str) -> f64 {
        memory_of(&self.after, role)
    }
}

/// Waits until work in the background is done, such as the lists that a keystore writes after its start. Returns how
/// many seconds that took.
pub(super) async fn settle(deployment: &Deployment) -> anyhow::Result<f64> {
    let cpu = || -> anyhow::Result<f64> { Ok(deployment.usage()?.iter().map(|usage| usage.cpu.as_secs_f64()).sum()) };
    let (begun, mut before, mut quiet) = (Instant::now(), cpu()?, 0);
    while quiet < REST_SAMPLES {
        ensure!(begun.elapsed() < REST_TIMEOUT, "the deployment does not come to rest");
        tokio::time::sleep(REST_SAMPLE_TIME).await;
        let now = cpu()?;
        quiet = if now - before < REST_CPU * REST_SAMPLE_TIME.as_secs_f64() { quiet + 1 } else { 0 };
        before = now;
    }
    Ok((begun.elapsed() - REST_SAMPLE_TIME * REST_SAMPLES as u32).as_secs_f64())
}

/// Megabytes of memory that is no file's, of the processes whose names begin like this.
pub(super) fn memory_of(usages: &[Usage], role: &str) -> f64 {
    of_role(usages, role).map(|usage| usage.anonymous as f64 / 1e6).sum()
}

fn of_role<'u>(usages: &'u [Usage], role: &'u str) -> impl Iterator<Item = &'u Usage> {
    usages.iter().filter(move |usage| usage.process.starts_with(role))
}
