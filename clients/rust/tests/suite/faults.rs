//! Every fault of the selftest, and the selftest itself.

use std::convert::Infallible;
use std::time::Duration;

use stage0_client::selftest::{End, Report, Scenario, SelftestError, selftest, target};
use stage0_client::{Client, NotAllowed, RunError};

use crate::harness::action;

const TIMEOUT: Duration = Duration::from_secs(2);

async fn client() -> Client {
    let server = Scenario::ALLOW.start().await.unwrap();
    Client::new(target(&server).unwrap()).unwrap().with_timeout(TIMEOUT)
}

fn assert_all_refused(report: &Report) {
    assert_eq!(report.findings.len(), Scenario::FAULTS.len());
    for finding in &report.findings {
        assert!(matches!(finding.end, End::Refused(_)), "{report}");
        // Bounded, not exact: the machine may be busy.
        assert!(finding.took < TIMEOUT + Duration::from_secs(8), "{report}");
    }
}

#[tokio::test]
async fn a_check_allows_nothing_but_a_complete_allow() {
    let report = selftest(&client().await, async |client, probe| {
        let allowed = client.check(&action()).await?;
        assert!(!allowed.policy_version().as_str().is_empty());
        probe.acted();
        Ok::<(), NotAllowed>(())
    })
    .await
    .unwrap();
    assert_all_refused(&report);
    let ends = |name: &str| {
        let finding = report.findings.iter().find(|finding| finding.scenario == name);
        finding.unwrap_or_else(|| panic!("no scenario {name}")).end.to_string()
    };
    for (scenario, text) in [
        ("DENY", "denied: "),
        ("DEFER", "deferred: "),
        ("403", "the server answers 403: no (request r-1)"),
        ("307 to an ALLOW", "the server answers 307"),
        ("ALLOW with status 201", "a decision has status 200, this has 201"),
        ("ALLOW with the signal NO_GO", "contradict each other"),
        ("ALLOW and DENY in one", "a member name twice"),
        ("ALLOW without request_id", "`request_id`"),
        ("ALLOW without policy_version", "`policy_version`"),
        ("ALLOW that is not recorded", "records nothing"),
        ("ALLOW of a test mode", "test mode"),
        ("no answer", "did not answer in time"),
        ("slow headers", "did not answer in time"),
        ("a slow body", "did not answer in time"),
        ("no TLS handshake", "did not answer in time"),
        ("nothing listens", "cannot reach"),
        ("a certificate of another authority", "not signed by a trusted authority"),
        ("a certificate for another name", "for another name"),
        ("a certificate that has expired", "has expired"),
    ] {
        assert!(ends(scenario).contains(text), "{scenario}: {}", ends(scenario));
    }
}

#[tokio::test]
async fn a_run_runs_nothing_but_what_a_complete_allow_allows() {
    let report = selftest(&client().await.without_reports(), async |client, probe| {
        let work = async |_| {
            probe.acted();
            Ok::<(), Infallible>(())
        };
        client.run(&action(), work).await.map_err(|error| match error {
            RunError::NotAllowed(error) => error.to_string(),
            RunError::Failed(never) => match never {},
        })
    })
    .await
    .unwrap();
    assert_all_refused(&report);
}

#[tokio::test]
async fn the_selftest_finds_code_that_acts_without_a_decision() {
    let client = client().await;
    let careless = selftest(&client, async |client, probe| {
        match client.check(&action()).await {
            Ok(_) | Err(NotAllowed::Undecided(_)) => probe.acted(),
            Err(NotAllowed::Denied(_) | NotAllowed::Deferred(_)) => {}
        }
        Ok::<(), Infallible>(())
    });
    let Err(SelftestError::Failed(report)) = careless.await else { panic!("it was passed") };
    let found: Vec<&str> = report.findings.iter().map(|finding| finding.scenario).collect();
    assert!(!found.contains(&"DENY") && !found.contains(&"DEFER"), "{found:?}");
    assert_eq!(found.len(), Scenario::FAULTS.len() - 2, "{found:?}");
}

#[tokio::test]
async fn the_selftest_proves_nothing_for_code_that_never_acts() {
    let idle = selftest(&client().await, async |_, _| Ok::<(), Infallible>(())).await;
    assert!(matches!(idle, Err(SelftestError::NeverActs(_))), "{idle:?}");
}

#[test]
fn every_scenario_has_a_name_of_its_own() {
    let mut names: Vec<&str> = Scenario::FAULTS.iter().map(|scenario| scenario.name).collect();
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
}
