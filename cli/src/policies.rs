//! `stage0 policy publish`, `activate`, `rollback` and the other commands about packs on a server.
//!
//! A pack is loaded here before it is sent, so that its faults are shown where they stand in its files. What the server
//! then finds wrong is its own release's view of it.

mod candidates;
mod compare;
mod next;
mod proposals;
mod replay;
mod show;

use std::time::Duration;

use anyhow::{Context as _, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use stage0_contract::{
    AccountId, Activation, ActivationKind, Page, PoliciesInForce, PolicyVersion, PublishedPolicy, ShownPolicy,
};
use stage0_policy::Pack;
use tokio::time::Instant;

use crate::args::policies::{
    ActivateArgs, DeleteArgs, HistoryArgs, OfAccount, PlaceArgs, PoliciesCommand, PublishArgs, ShowArgs,
};
use crate::client::{Connection, ConnectionError, Credential, Limit, Query, parse, runtime, target};
use crate::exit::Exit;
use crate::keys::set;
use crate::out;
use crate::policy::{ensure_pack, faults};
use crate::settings::client::ClientSettings;

const POLICIES: [&str; 2] = ["v1", "policies"];
const PAGE_SIZE: u32 = 100;
/// An evaluator runs all cases of a pack before it is published.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(60);
/// How long `--wait` waits for the evaluators, and how often it asks.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
const WAIT_INTERVAL: Duration = Duration::from_millis(500);

pub(crate) fn run(command: &PoliciesCommand, settings: &ClientSettings) -> anyhow::Result<Exit> {
    runtime()?.block_on(async {
        match command {
            PoliciesCommand::Publish(args) => publish(args, settings).await,
            PoliciesCommand::Activate(args) => activate(args, settings).await,
            PoliciesCommand::Compare(args) => compare::compare(args, settings).await,
            PoliciesCommand::Rollback(args) => rollback(&args.place, settings).await.map(|()| Exit::Done),
            PoliciesCommand::History(args) => history(args, settings).await.map(|()| Exit::Done),
            PoliciesCommand::List(of) => list(of, settings).await.map(|()| Exit::Done),
            PoliciesCommand::Active(of) => active(of, settings).await.map(|()| Exit::Done),
            PoliciesCommand::Delete(args) => delete(args, settings).await.map(|()| Exit::Done),
            PoliciesCommand::Show(args) => show(args, settings).await.map(|()| Exit::Done),
            PoliciesCommand::Proposals(args) => proposals::list(args, settings).await.map(|()| Exit::Done),
            PoliciesCommand::Approve(args) => proposals::approve(args, settings).await.map(|()| Exit::Done),
            PoliciesCommand::Deny(args) => proposals::deny(args, settings).await.map(|()| Exit::Done),
            PoliciesCommand::Cancel(args) => proposals::cancel(args, settings).await.map(|()| Exit::Done),
            PoliciesCommand::Replay(args) => replay::replay(args, settings).await,
            PoliciesCommand::Shadow(args) => candidates::shadow(args, settings).await.map(|()| Exit::Done),
            PoliciesCommand::Candidates(args) => candidates::list(args, settings).await.map(|()| Exit::Done),
            PoliciesCommand::Withdraw(args) => candidates::withdraw(args, settings).await.map(|()| Exit::Done),
        }
    })
}

fn connect(settings: &ClientSettings, timeout: Duration) -> anyhow::Result<Connection> {
    Ok(Connection::new(target(settings, Credential::AccountOrOperator)?, timeout)?)
}

/// The account to name; none: that of the key, or with an operator's key every account.
fn account<'a>(of: &'a OfAccount, client: &'a Connection) -> Option<&'a AccountId> {
    of.account.as_ref().or(client.account()).filter(|_| !of.all_accounts)
}

async fn publish(PublishArgs { dir, of }: &PublishArgs, settings: &ClientSettings) -> anyhow::Result<Exit> {
    ensure_pack(dir, of.json)?;
    let refused = |refused| {
        if of.json {
            out::json(&json!({"published": false, "faults": faults::for_json(dir, refused)}))?;
            return Ok(Exit::Failed);
        }
        Err(faults::refused(dir, refused))
    };
    let bundle = match Pack::bundle(dir) {
        Ok(bundle) => bundle,
        Err(error) => return refused(error),
    };
    match Pack::from_bundle(&bundle) {
        Ok(_) => {}
        Err(error) if error.pack + 1 == bundle.packs.len() => return refused(error.refused),
        // Its files are in another directory.
        Err(error) => return Err(anyhow::Error::new(error).context("a pack that this one extends is refused")),
    }
    let client = connect(settings, settings.timeout_or(PUBLISH_TIMEOUT))?;
    let mut body = json!(bundle);
    set_owner(&mut body, of, &client);
    let answer: Value = client.call(Method::POST, &POLICIES, &[], Some(&body)).await?;
    if of.json {
        out::json(&answer)?;
        return Ok(Exit::Done);
    }
    let policy: PublishedPolicy = parse(&answer)?;
    let version = &policy.summary.version;
    let activate = next::same_key(&format!("stage0 policy activate {version}{}", next::whose(of)), settings);
    out::line(format!("{}\n\nthis makes it decide:\n  {activate}", show::published(&policy)))?;
    Ok(Exit::Done)
}

async fn activate(args: &ActivateArgs, settings: &ClientSettings) -> anyhow::Result<Exit> {
    let ActivateArgs { version, place, accept_flips, diff_digest, canary, wait } = args;
    let client = connect(settings, settings.timeout_or(compare::COMPARE_TIMEOUT))?;
    let version = resolve(&client, version, &place.of).await?;
    let [v1, policies] = POLICIES;
    let path = [v1, policies, version.as_str(), "activate"];
    let mut body = body_of(place, &client).await?;
    set(&mut body, "accept_flips", *accept_flips);
    set(&mut body, "diff_digest", diff_digest.as_deref());
    set(&mut body, "canary", canary.terms().map(|terms| json!(terms)));
    set(&mut body, "replayed_until", canary.replayed_until.map(|until| until.to_string()));
    let answer: Value = match client.call(Method::POST, &path, &[], Some(&body)).await {
        Ok(answer) => answer,
        Err(error) => match compare::looser(&error) {
            Some(looser) => return compare::refused(&client, &version, args, looser, error, settings).await,
            None => return Err(error.into()),
        },
    };
    if let Some(proposed) = proposals::of_answer(&answer) {
        if place.of.json {
            out::json(&answer)?;
        } else {
            out::line(proposals::waits(&proposed, settings))?;
        }
        return Ok(if *wait { Exit::Failed } else { Exit::Done });
    }
    changed(&answer, place, &client)?;
    if !wait {
        return Ok(Exit::Done);
    }
    let missing = wait_for(&client, &version, &place.of).await?;
    if missing.is_empty() {
        out::stderr_line("every evaluator has it");
        return Ok(Exit::Done);
    }
    out::stderr_line(format!("active, and not loaded within {WAIT_TIMEOUT:?} by {}", missing.join(", ")));
    Ok(Exit::Failed)
}

async fn rollback(place: &PlaceArgs, settings: &ClientSettings) -> anyhow::Result<()> {
    let client = connect(settings, settings.timeout)?;
    let [v1, policies] = POLICIES;
    let body = body_of(place, &client).await?;
    let answer: Value = client.call(Method::POST, &[v1, policies, "rollback"], &[], Some(&body)).await?;
    changed(&answer, place, &client)
}

async fn body_of(place: &PlaceArgs, client: &Connection) -> anyhow::Result<Value> {
    let PlaceArgs { environment, floor, reason, expected, of } = place;
    let mut body = json!({});
    set(&mut body, "environment", environment.as_deref());
    set(&mut body, "floor", floor.then_some(true));
    set(&mut body, "reason", reason.as_deref());
    let expected = match expected {
        Some(expected) => Some(resolve(client, expected, of).await?),
        None => None,
    };
    set(&mut body, "expected", expected.as_ref().map(PolicyVersion::as_str));
    // The floor is of every account.
    if !floor {
        set_owner(&mut body, of, client);
    }
    Ok(body)
}

fn changed(answer: &Value, place: &PlaceArgs, client: &Connection) -> anyhow::Result<()> {
    if place.of.json { out::json(answer) } else { told(answer, client) }
}

fn told(answer: &Value, client: &Connection) -> anyhow::Result<()> {
    let activation: Activation = parse(answer)?;
    let what = outcome(answer, activation.kind);
    // What was so before was done by the key of that time.
    let origin = client.key_origin().filter(|_| answer["unchanged"] != true);
    Ok(out::line(format!("{what}\n{}", show::activation(&activation, origin)))?)
}

fn outcome(answer: &Value, kind: ActivationKind) -> &'static str {
    match kind {
        kind if answer["unchanged"] != true => show::what(kind),
        ActivationKind::Activated | ActivationKind::RolledBack => "nothing changed: it is active already",
        _ => "nothing changed: it is tried already",
    }
}

/// Waits until every evaluator has loaded a version; the names of those that have not in time.
async fn wait_for(
    client: &Connection,
    version: &PolicyVersion,
    of: &OfAccount,
) -> Result<Vec<String>, ConnectionError> {
    let end = Instant::now() + WAIT_TIMEOUT;
    loop {
        let shown = fetch(client, version, of, false).await?;
        let shown: ShownPolicy = parse(&shown)?;
        let missing = shown.evaluators.iter().filter(|one| !one.loaded).map(|one| one.instance.clone());
        let missing: Vec<String> = missing.collect();
        // A gateway that has just started sees no evaluator yet.
        let is_done = missing.is_empty() && !shown.evaluators.is_empty();
        if is_done {
            return Ok(missing);
        }
        if Instant::now() >= end {
            return Ok(if missing.is_empty() {
                vec!["any evaluator: the gateway sees none".to_owned()]
            } else {
                missing
            });
        }
        tokio::time::sleep(WAIT_INTERVAL).await;
    }
}

async fn history(HistoryArgs { limit, of }: &HistoryArgs, settings: &ClientSettings) -> anyhow::Result<()> {
    let client = connect(settings, settings.timeout)?;
    let [v1, policies] = POLICIES;
    let query = whose(of, &client);
    let limit = Limit { items: *limit, per_page: PAGE_SIZE };
    let changes: Page<Value> = client.list(&[v1, policies, "history"], &query, Some(limit)).await?;
    if of.json {
        return out::json(&changes);
    }
    if changes.items.is_empty() {
        out::stderr_line("nothing was activated here");
    }
    let changes = changes.items.iter().map(parse::<Activation>).collect::<Result<Vec<_>, _>>()?;
    Ok(show::history(&changes).print()?)
}

async fn list(of: &OfAccount, settings: &ClientSettings) -> anyhow::Result<()> {
    let client = connect(settings, settings.timeout)?;
    let policies = published(&client, of).await?;
    if of.json {
        return out::json(&policies);
    }
    if policies.items.is_empty() {
        out::stderr_line("no policy is published");
    }
    let in_force: PoliciesInForce = parse(&in_force(&client, of).await?)?;
    let policies = policies.items.iter().map(parse::<PublishedPolicy>).collect::<Result<Vec<_>, _>>()?;
    Ok(show::list(&policies, &in_force).print()?)
}

async fn active(of: &OfAccount, settings: &ClientSettings) -> anyhow::Result<()> {
    let client = connect(settings, settings.timeout)?;
    let in_force = in_force(&client, of).await?;
    if of.json {
        return out::json(&in_force);
    }
    Ok(show::in_force(&parse(&in_force)?).print()?)
}

async fn in_force(client: &Connection, of: &OfAccount) -> Result<Value, ConnectionError> {
    let [v1, policies] = POLICIES;
    client.call(Method::GET, &[v1, policies, "active"], &whose(of, client).pairs(), None).await
}

async fn delete(DeleteArgs { version, of }: &DeleteArgs, settings: &ClientSettings) -> anyhow::Result<()> {
    let client = connect(settings, settings.timeout)?;
    let version = resolve(&client, version, of).await?;
    let [v1, policies] = POLICIES;
    let path = [v1, policies, version.as_str()];
    client.send(Method::DELETE, &path, &whose(of, &client).pairs(), None).await?.successful()?;
    if of.json {
        return out::json(&json!({"deleted": version}));
    }
    Ok(out::line(format!("deleted {version}"))?)
}

/// Whose policies a query is about.
fn whose(of: &OfAccount, client: &Connection) -> Query {
    let all = of.all_accounts.then_some(true);
    Query::default().with("account", account(of, client)).with("all_accounts", all)
}

/// Whose policies a body changes.
fn set_owner(body: &mut Value, of: &OfAccount, client: &Connection) {
    set(body, "account", account(of, client).map(AccountId::as_str));
    set(body, "all_accounts", of.all_accounts.then_some(true));
}

async fn published(client: &Connection, of: &OfAccount) -> anyhow::Result<Page<Value>> {
    let query = whose(of, client);
    Ok(client.list(&POLICIES, &query, None).await?)
}

async fn show(ShowArgs { version, files, of }: &ShowArgs, settings: &ClientSettings) -> anyhow::Result<()> {
    let client = connect(settings, settings.timeout)?;
    let version = resolve(&client, version, of).await?;
    let answer = fetch(&client, &version, of, *files).await?;
    if of.json {
        return out::json(&answer);
    }
    Ok(out::line(show::shown(&parse(&answer)?))?)
}

async fn fetch(
    client: &Connection,
    version: &PolicyVersion,
    of: &OfAccount,
    files: bool,
) -> Result<Value, ConnectionError> {
    let [v1, policies] = POLICIES;
    let query = whose(of, client).with("files", files.then_some(true));
    client.call(Method::GET, &[v1, policies, version.as_str()], &query.pairs(), None).await
}

/// The whole version: as it is written, or the published one with this name and number.
async fn resolve(client: &Connection, wanted: &str, of: &OfAccount) -> anyhow::Result<PolicyVersion> {
    if wanted.contains('+') {
        return PolicyVersion::parse(wanted).with_context(|| format!("`{}`", out::plain(wanted)));
    }
    let published = published(client, of).await?;
    let versions =
        published.items.iter().map(|policy| parse(policy).map(|policy: PublishedPolicy| policy.summary.version));
    let versions = versions.collect::<Result<Vec<PolicyVersion>, ConnectionError>>()?;
    named(&versions, wanted)
}

/// The only version with this name and number.
fn named(versions: &[PolicyVersion], wanted: &str) -> anyhow::Result<PolicyVersion> {
    let is_it = |version: &&PolicyVersion| version.as_str().split('+').next() == Some(wanted);
    let mut found: Vec<&PolicyVersion> = versions.iter().filter(is_it).collect();
    found.dedup();
    let shown = out::plain(wanted);
    ensure!(
        found.len() < 2,
        "`{shown}` is published with two contents, by the account and by the operator: name the whole version, {}",
        found.iter().map(|version| version.as_str()).collect::<Vec<_>>().join(" or ")
    );
    let found = found.first().map(|version| (*version).clone());
    found.with_context(|| format!("no policy `{shown}` is published: `stage0 policy list` shows what is"))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::policy::AnyPolicyCommand;
    use crate::args::{Cli, CliCommand};

    fn version(text: &str) -> PolicyVersion {
        PolicyVersion::parse(text).unwrap()
    }

    fn parsed(arguments: &[&str]) -> Result<PoliciesCommand, clap::Error> {
        let cli = Cli::try_parse_from([&["stage0", "policy"], arguments].concat())?;
        let CliCommand::Policy(AnyPolicyCommand::Server(command)) = cli.command else { panic!("another command") };
        Ok(command)
    }

    #[test]
    fn a_name_and_a_number_stand_for_the_only_version_that_has_them() {
        let versions = [version("a@1.0.0+000000000001"), version("a@1.0.1+000000000002")];
        assert_eq!(named(&versions, "a@1.0.1").unwrap(), versions[1]);
        for missing in ["a", "a@1", "a@1.0.2", "b@1.0.0", ""] {
            let error = named(&versions, missing).unwrap_err().to_string();
            assert!(error.contains("`stage0 policy list` shows what is"), "{error}");
        }
        let two = [version("a@1.0.0+000000000001"), version("a@1.0.0+000000000002")];
        let error = named(&two, "a@1.0.0").unwrap_err().to_string();
        assert!(error.contains("a@1.0.0+000000000001 or a@1.0.0+000000000002"), "{error}");
    }

    #[test]
    fn what_was_active_already_is_not_printed_as_activated() {
        assert_eq!(outcome(&json!({}), ActivationKind::Activated), "activated");
        assert_eq!(outcome(&json!({"unchanged": false}), ActivationKind::RolledBack), "rolled back");
        for kind in [ActivationKind::Activated, ActivationKind::RolledBack] {
            assert_eq!(outcome(&json!({"unchanged": true}), kind), "nothing changed: it is active already");
        }
    }

    #[test]
    fn what_is_tried_already_is_not_printed_as_started() {
        assert_eq!(outcome(&json!({}), ActivationKind::CanaryStarted), "canary started");
        assert_eq!(
            outcome(&json!({"unchanged": true}), ActivationKind::ShadowStarted),
            "nothing changed: it is tried already"
        );
    }

    #[test]
    fn a_canary_is_of_an_account_and_says_its_own_terms_only_with_a_share() {
        let terms = |arguments: &[&str]| {
            let Ok(PoliciesCommand::Activate(args)) = parsed(&[&["activate", "a@1.0.0"], arguments].concat()) else {
                return None;
            };
            Some(json!(args.canary.terms()))
        };
        assert_eq!(terms(&[]), Some(Value::Null));
        let default = json!({"disagreement_percent": 2, "error_percent": 0, "min_checks": 50});
        assert_eq!(terms(&["--canary", "10"]), Some(json!({"percent": 10, "return_at": default})));
        let own = ["--canary", "1", "--return-at-disagreement", "5", "--return-at-errors", "1", "--min-checks", "9"];
        let own_terms = json!({"disagreement_percent": 5, "error_percent": 1, "min_checks": 9});
        assert_eq!(terms(&own), Some(json!({"percent": 1, "return_at": own_terms})));
        for wrong in [
            &["--canary", "0"][..],
            &["--canary", "101"],
            &["--canary", "10", "--floor"],
            &["--canary", "10", "--all-accounts"],
            &["--return-at-disagreement", "5"],
            &["--return-at-errors", "5"],
            &["--min-checks", "5"],
            &["--canary", "10", "--min-checks", "0"],
            &["--canary", "10", "--return-at-errors", "101"],
            &["--replayed-until", "yesterday"],
        ] {
            assert_eq!(terms(wrong), None, "{wrong:?}");
        }
        assert!(terms(&["--replayed-until", "2026-03-16T12:00:00Z"]).is_some());
    }

    #[test]
    fn what_is_replayed_and_tried_has_bounds() {
        for wrong in [
            &["replay"][..],
            &["replay", "a@1.0.0", "--limit", "0"],
            &["replay", "a@1.0.0", "--limit", "10001"],
            &["replay", "a@1.0.0", "--from", "7d"],
            &["replay", "a@1.0.0", "--account", "acc"],
            &["shadow", "a@1.0.0", "--percent", "0"],
            &["shadow", "a@1.0.0", "--percent", "101"],
            &["shadow", "a@1.0.0", "--all-accounts"],
            &["shadow", "a@1.0.0", "--floor"],
            &["withdraw", "a@1.0.0"],
        ] {
            assert!(parsed(wrong).is_err(), "{wrong:?}");
        }
        for right in [
            &["replay", "a@1.0.0", "--limit", "10000", "--from", "-7d", "--until", "-1h"][..],
            &["shadow", "a@1.0.0", "--percent", "100", "--environment", "prod", "--account", "acc"],
            &["withdraw"],
            &["candidates", "--account", "acc", "--json"],
        ] {
            assert!(parsed(right).is_ok(), "{right:?}");
        }
    }

    #[test]
    fn the_floor_is_of_no_account_and_of_no_environment() {
        for wrong in [
            &["activate", "a@1.0.0", "--floor", "--environment", "prod"][..],
            &["activate", "a@1.0.0", "--floor", "--account", "acc"],
            &["activate", "a@1.0.0", "--all-accounts", "--account", "acc"],
            &["activate"],
            &["history", "--limit", "0"],
        ] {
            assert!(parsed(wrong).is_err(), "{wrong:?}");
        }
        assert!(parsed(&["activate", "a@1.0.0", "--floor", "--reason", "r"]).is_ok());
        assert!(parsed(&["rollback", "--expected", "a@1.0.0"]).is_ok());
    }
}
