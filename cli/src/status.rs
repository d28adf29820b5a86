//! `stage0 status`: the processes of the deployment, and what is wrong with them. A problem is exit code 1.

use std::collections::BTreeSet;

use reqwest::Method;
use stage0_contract::{InstanceHeartbeat, InstanceState, InstanceStatus, Role, Status, may_run_together};

use crate::client::{Connection, Credential, block_on, target};
use crate::exit::Exit;
use crate::out::{self, plain};
use crate::settings::client::ClientSettings;
use crate::table::{Table, optional};

pub(crate) fn run(as_json: bool, settings: &ClientSettings) -> anyhow::Result<Exit> {
    let client = Connection::new(target(settings, Credential::Operator)?, settings.timeout)?;
    let status: Status = block_on(client.call(Method::GET, &["v1", "status"], &[], None))?;
    let problems = problems(&status);
    if as_json {
        out::json(&status)?;
        problems.iter().for_each(out::stderr_line);
    } else {
        table(&status).print()?;
        out::line(remarks(&status, &problems))?;
    }
    Ok(if problems.is_empty() { Exit::Done } else { Exit::Failed })
}

fn table(status: &Status) -> Table {
    let headings = ["ROLE", "INSTANCE", "STATE", "UP", "VERSION", "ABOUT"];
    let mut table = Table::new(headings).shrinkable(&[(4, 5), (5, 12), (1, 8)]).coloured(2);
    for one in &status.instances {
        let up = status.at.duration_since(one.seen.started_at).as_secs().max(0);
        table.row([
            one.seen.role.to_string(),
            plain(&one.seen.instance),
            state(one),
            age(up.unsigned_abs()),
            plain(&one.seen.version),
            about(one),
        ]);
    }
    table
}

fn remarks(status: &Status, problems: &[String]) -> String {
    let mut text = String::new();
    for one in &status.instances {
        for remark in &one.seen.remarks {
            text.push_str(&format!("{} {}: {}\n", one.seen.role, plain(&one.seen.instance), plain(remark)));
        }
    }
    text.push('\n');
    text.push_str(&if problems.is_empty() { "all is well".to_owned() } else { problems.join("\n") });
    text
}

fn state(one: &InstanceStatus) -> String {
    match one.seen.state {
        InstanceState::Lost => format!("lost {} ago", age(one.seconds_ago)),
        InstanceState::Ready | InstanceState::NotReady | InstanceState::Stopping => {
            one.seen.state.as_str().replace('_', " ")
        }
    }
}

fn about(one: &InstanceStatus) -> String {
    match (&one.seen.delivery, &one.seen.policy_version) {
        (Some(lag), _) => {
            let endpoints = match lag.endpoints {
                0 => return "no webhook endpoints".to_owned(),
                1 => "1 webhook endpoint".to_owned(),
                many => format!("{many} webhook endpoints"),
            };
            if lag.oldest_seconds == 0 {
                return format!("{endpoints}, all delivered");
            }
            format!("{endpoints}, {} behind, oldest event {}", lag.behind, age(lag.oldest_seconds))
        }
        (None, policy) => optional(policy.as_ref()),
    }
}

fn age(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

fn problems(status: &Status) -> Vec<String> {
    let mut problems = Vec::new();
    let has_ready =
        |role| status.instances.iter().any(|one| one.seen.role == role && one.seen.state == InstanceState::Ready);
    for role in Role::ALL.into_iter().filter(|role| !has_ready(*role)) {
        problems.push(format!("problem: no {role} is ready"));
    }
    for one in &status.instances {
        let (role, name) = (one.seen.role, plain(&one.seen.instance));
        match one.seen.state {
            InstanceState::Ready | InstanceState::Stopping => {}
            // Only one keystore serves; the others are on standby.
            InstanceState::NotReady if role == Role::Keystore && has_ready(Role::Keystore) => {}
            InstanceState::NotReady => problems.push(format!("problem: {role} {name} is not ready")),
            // A replaced process is shown in the table and is no problem.
            InstanceState::Lost if is_replaced(one, status) => {}
            InstanceState::Lost => {
                problems.push(format!("problem: {role} {name} was lost: it ended without saying so"));
            }
        }
    }
    let running: Vec<_> = status.instances.iter().filter(|one| one.seen.state != InstanceState::Lost).collect();
    let versions = running.iter().map(|one| plain(&one.seen.version));
    let policies = running.iter().filter_map(|one| one.seen.policy_version.as_ref().map(ToString::to_string));
    for one in running.iter().filter(|one| one.seen.log_edition < InstanceHeartbeat::LOG_EDITION) {
        let (role, name) = (one.seen.role, plain(&one.seen.instance));
        problems.push(format!(
            "problem: {role} {name} cannot read lines about approvals, so that none is opened: upgrade it"
        ));
    }
    problems.extend(apart(&running));
    problems.extend(unless_same("several versions run", versions));
    problems.extend(unless_same("evaluators decide by several policies", policies));
    problems
}

/// Processes whose protocols are too far apart to run side by side.
fn apart(running: &[&InstanceStatus]) -> Option<String> {
    let staying = || running.iter().copied().filter(|one| one.seen.state != InstanceState::Stopping);
    let oldest = staying().min_by_key(|one| one.seen.protocol_version)?;
    let newest = staying().max_by_key(|one| one.seen.protocol_version)?;
    if may_run_together(oldest.seen.protocol_version, newest.seen.protocol_version) {
        return None;
    }
    let name = |one: &InstanceStatus| {
        format!("{} {} speaks protocol {}", one.seen.role, plain(&one.seen.instance), one.seen.protocol_version)
    };
    Some(format!(
        "problem: {}, and {}: they must not run side by side (docs/OPERATIONS.md)",
        name(oldest),
        name(newest)
    ))
}

fn unless_same(problem: &str, values: impl Iterator<Item = String>) -> Option<String> {
    let values: BTreeSet<String> = values.collect();
    let list = || values.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    (values.len() > 1).then(|| format!("problem: {problem}: {}", list()))
}

/// Whether a ready process of the same role started after the last heartbeat of the lost one.
fn is_replaced(lost: &InstanceStatus, status: &Status) -> bool {
    let silent = i64::try_from(lost.seconds_ago).unwrap_or(i64::MAX);
    let last_heartbeat = status.at.as_second().saturating_sub(silent);
    status.instances.iter().any(|one| {
        one.seen.role == lost.seen.role
            && one.seen.state == InstanceState::Ready
            && one.seen.started_at.as_second() >= last_heartbeat
    })
}

#[cfg(test)]
mod tests {
    use stage0_contract::{DeliveryLag, PROTOCOL_VERSION, PolicyVersion};

    use super::*;

    fn for_people(status: &Status, problems: &[String]) -> String {
        format!("{}\n{}", table(status), remarks(status, problems))
    }

    fn one(role: Role, state: InstanceState) -> InstanceStatus {
        let seen = InstanceHeartbeat {
            role,
            instance: "host-1".to_owned(),
            version: "0.1.0".to_owned(),
            started_at: jiff::Timestamp::UNIX_EPOCH,
            state,
            remarks: Vec::new(),
            policy_version: None,
            delivery: None,
            log_edition: InstanceHeartbeat::LOG_EDITION,
            policy_edition: InstanceHeartbeat::POLICY_EDITION,
            policies: Vec::new(),
            protocol_version: PROTOCOL_VERSION,
        };
        InstanceStatus { seen, seconds_ago: 9 }
    }

    fn healthy() -> Status {
        let instances = Role::ALL.map(|role| one(role, InstanceState::Ready)).to_vec();
        Status { at: "1970-01-01T00:03:00Z".parse().unwrap(), instances }
    }

    #[test]
    fn a_deployment_with_every_role_ready_has_no_problem() {
        let status = healthy();
        assert!(problems(&status).is_empty());
        let shown = for_people(&status, &[]);
        assert!(shown.contains("3 min") && shown.ends_with("all is well"), "{shown}");
    }

    #[test]
    fn every_problem_is_named() {
        let mut status = healthy();
        status.instances.remove(2);
        status.instances.push(one(Role::Gateway, InstanceState::Lost));
        status.instances.push(one(Role::Evaluator, InstanceState::NotReady));
        status.instances[0].seen.version = "0.2.0".to_owned();
        for (index, policy) in [(1, "a@1.0.0+0123456789ab"), (2, "b@1.0.0+0123456789ab")] {
            status.instances[index].seen.policy_version = Some(PolicyVersion::parse(policy).unwrap());
        }
        let found = problems(&status).join("\n");
        for part in [
            "no keystore",
            "gateway host-1 was lost",
            "evaluator host-1 is not ready",
            "0.1.0, 0.2.0",
            "several policies",
        ] {
            assert!(found.contains(part), "{part}: {found}");
        }
    }

    #[test]
    fn a_process_that_cannot_read_lines_about_approvals_is_named_unless_it_is_lost() {
        let mut status = healthy();
        status.instances[3].seen.log_edition = 0;
        let found = problems(&status).join("\n");
        assert!(found.contains("audit-export host-1 cannot read lines about approvals"), "{found}");
        status.instances.push(one(Role::AuditExport, InstanceState::Ready));
        status.instances[3].seen.state = InstanceState::Lost;
        assert!(!problems(&status).join("\n").contains("cannot read"));
    }

    #[test]
    fn protocols_that_are_too_far_apart_are_a_problem_whichever_gateway_is_asked() {
        let mut status = healthy();
        status.instances[1].seen.protocol_version = 7;
        status.instances[2].seen.protocol_version = 8;
        let far = |status: &Status| problems(status).join("\n").contains("must not run side by side");
        assert!(far(&status));
        let found = problems(&status).join("\n");
        assert!(found.contains("gateway host-1 speaks protocol 1, and keystore host-1 speaks protocol 8"), "{found}");
        for one in &mut status.instances {
            one.seen.protocol_version = one.seen.protocol_version.max(7);
        }
        assert!(!far(&status), "neighbours may");
        status.instances[0].seen.protocol_version = 1;
        status.instances[0].seen.state = InstanceState::Stopping;
        assert!(!far(&status), "it ends");
    }

    #[test]
    fn a_lost_process_that_was_replaced_is_no_problem() {
        let mut status = healthy();
        status.instances.push(one(Role::Gateway, InstanceState::Lost));
        assert_eq!(problems(&status).len(), 1);
        status.instances[0].seen.started_at = "1970-01-01T00:02:52Z".parse().unwrap();
        assert!(problems(&status).is_empty());
    }

    #[test]
    fn a_keystore_on_standby_is_no_problem_unless_no_other_serves() {
        let mut status = healthy();
        status.instances.push(one(Role::Keystore, InstanceState::NotReady));
        assert!(problems(&status).is_empty());
        status.instances.retain(|one| one.seen.role != Role::Keystore || one.seen.state == InstanceState::NotReady);
        assert!(problems(&status).join("\n").contains("keystore host-1 is not ready"));
    }

    #[test]
    fn delivery_lag_and_lost_processes_are_shown_in_words() {
        let mut status = healthy();
        status.instances[3].seen.delivery = Some(DeliveryLag { endpoints: 3, behind: 1, oldest_seconds: 7_300 });
        status.instances[0].seen.state = InstanceState::Lost;
        status.instances[1].seen.remarks = vec!["a\u{1b}[2Jb".to_owned()];
        let shown = for_people(&status, &[]);
        assert!(
            shown.contains("3 webhook endpoints, 1 behind, oldest event 2 h") && shown.contains("lost 9 s ago"),
            "{shown}"
        );
        assert!(!shown.contains('\u{1b}'), "{shown:?}");
    }
}
