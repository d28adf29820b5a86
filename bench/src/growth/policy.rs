//! A pack's rules as a caller sees them: checks over HTTPS that a pack of that many rules decides, in `stage0 dev`.

use std::path::Path;
use std::time::Duration;

use super::curve::{Curve, measured};
use super::rules::{Kind, write_pack};
use super::traffic::{Traffic, Until, memory_of};
use crate::deployment::{Deployment, Plan};
use crate::request::{CheckRequest, Runs};

const SETTLE_TIME: Duration = Duration::from_secs(1);

pub(super) async fn curve(stage0: &Path, sizes: &[u64], time: Duration) -> anyhow::Result<Curve> {
    let method = format!(
        "Recorded checks over HTTPS in `stage0 dev` as fast as they are answered, {} s at each size; every check asks \
         all rules of the pack.",
        time.as_secs()
    );
    let expected = "linear in the rules that a check has to ask, with TLS, record and the baseline as a constant.";
    let mut curve = Curve::new("rules of a pack, over /check", "own rules", method, expected);
    for &size in sizes {
        let directory = tempfile::tempdir()?;
        let folder = write_pack(directory.path(), size, Kind::Always)?;
        let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let (packs, active) = (directory.path().display().to_string(), format!("{name}@1.0.0"));
        let plan = Plan::embedded(stage0).evaluator_with(&["--policies", &packs, "--active-policy", &active]);
        let deployment = Deployment::start(plan).await?;
        let memory = memory_of(&deployment.usage()?, "");
        let (key, body) = (deployment.access("rules").await?.key, Runs::Nameless.body(0)?);
        let requests = move |_| CheckRequest::new("/check", Some(&key), &body).next().to_vec();
        let mut traffic = Traffic::connect(&deployment).await?;
        traffic.send(&deployment, Until::Over(SETTLE_TIME), requests.clone()).await?;
        let spent = traffic.send(&deployment, Until::Over(time), requests).await?;
        curve.add(
            size,
            vec![
                measured("CPU of a check", "µs", spent.cpu()),
                measured("checks in a second", "1/s", spent.per_second()),
                measured("memory at rest", "MB", memory),
            ],
        );
    }
    Ok(curve)
}
