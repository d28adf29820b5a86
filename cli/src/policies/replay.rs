//! `stage0 policy replay`: recorded decisions, decided again by another pack.

use jiff::Timestamp;
use reqwest::Method;
use serde_json::Value;
use stage0_contract::{PolicyReplay, PolicyVersion, ReplayGap};

use super::candidates::step;
use super::compare::COMPARE_TIMEOUT;
use super::{POLICIES, resolve};
use crate::args::policies::OfAccount;
use crate::args::policies::trials::ReplayArgs;
use crate::client::{Connection, ConnectionError, Credential, Query, parse, target};
use crate::exit::Exit;
use crate::out;
use crate::settings::client::ClientSettings;
use crate::table::{Table, fields, seconds};

pub(super) async fn replay(args: &ReplayArgs, settings: &ClientSettings) -> anyhow::Result<Exit> {
    let ReplayArgs { version, environment, from, until, gate, limit, allow_looser, json } = args;
    // The operator reads no decisions, and so replays none.
    let target = target(settings, Credential::Account)?;
    let client = Connection::new(target, settings.timeout_or(COMPARE_TIMEOUT))?;
    let of = OfAccount { account: None, all_accounts: false, json: *json };
    let version = match resolve(&client, version, &of).await {
        Ok(version) => version,
        // An operator's key does not see what the account published.
        Err(error) => return Err(refused(&client, version).await.unwrap_or(error)),
    };
    // Both ends of a period are counted from the same time.
    let now = Timestamp::now();
    let query = Query::default()
        .with("environment", environment.as_deref())
        .with("from", from.map(|from| from.at(now)))
        .with("until", until.map(|until| until.at(now)))
        .with("gate", gate.then_some(true))
        .with("limit", *limit);
    let answer = fetch(&client, &version, &query).await.map_err(denied)?;
    let replay: PolicyReplay = parse(&answer)?;
    if *json {
        out::json(&answer)?;
    } else {
        print(&replay)?;
    }
    if let Some(why) = nothing(&replay) {
        out::stderr_line(format!("error: nothing was replayed: {why}"));
        return Ok(Exit::Failed);
    }
    Ok(if replay.flips > 0 && !allow_looser { Exit::Failed } else { Exit::Done })
}

/// Whether the server lets this key replay nothing at all; none: it does.
async fn refused(client: &Connection, wanted: &str) -> Option<anyhow::Error> {
    let [v1, policies] = POLICIES;
    let path = [v1, policies, wanted, "replay"];
    let asked: Result<Value, ConnectionError> = client.call(Method::GET, &path, &[("limit", "1")], None).await;
    asked.err().filter(is_denied).map(denied)
}

fn is_denied(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::Refused { status: 403, .. })
}

/// An operator's key, or one of the account that lacks the scope.
fn denied(error: ConnectionError) -> anyhow::Error {
    let is_denied = is_denied(&error);
    let error = anyhow::Error::new(error);
    if !is_denied {
        return error;
    }
    error.context(
        "a replay reads the account's own decisions: it needs a key of the account with `policies:manage` \
         (--key-file FILE), and an operator's key replays nothing",
    )
}

/// Why nothing at all was replayed; none: something was.
fn nothing(PolicyReplay { decisions, replayed, not_replayed, .. }: &PolicyReplay) -> Option<String> {
    if *replayed > 0 {
        return None;
    }
    if *decisions == 0 {
        return Some("no decision of that place was recorded in that time".to_owned());
    }
    let gaps = not_replayed.iter().map(|gap| format!("of {}, {}", gap.count, why(gap.why)));
    let mut told = vec![format!("{decisions} decisions were read, and none could be decided again")];
    told.extend(gaps);
    if not_replayed.iter().any(|gap| gap.why == ReplayGap::NotKept) {
        let command = "`stage0 accounts update ACCOUNT --record-facts true`, with an operator's key";
        told.push(format!("{command}, keeps facts from then on"));
    }
    Some(told.join("; "))
}

pub(super) async fn fetch(
    client: &Connection,
    version: &PolicyVersion,
    query: &Query,
) -> Result<Value, ConnectionError> {
    let [v1, policies] = POLICIES;
    client.call(Method::GET, &[v1, policies, version.as_str(), "replay"], &query.pairs(), None).await
}

/// What was read, which verdicts change, what could not be replayed, and then each decision that differs.
pub(super) fn print(replay: &PolicyReplay) -> anyhow::Result<()> {
    out::line(summary(replay))?;
    let tables = [
        (!replay.changes.is_empty(), changes(replay)),
        (!replay.not_replayed.is_empty(), gaps(replay)),
        (!replay.items.is_empty(), decisions(replay)),
    ];
    for (_, table) in tables.iter().filter(|(is_shown, _)| *is_shown) {
        out::line("")?;
        table.print()?;
    }
    if replay.left_out > 0 {
        out::line(format!("{} more differ, and are not listed", replay.left_out))?;
    }
    Ok(())
}

fn summary(replay: &PolicyReplay) -> String {
    let PolicyReplay { version, from, until, decisions, has_older, replayed, flips, .. } = replay;
    let older = if *has_older { "; there are older ones" } else { "" };
    let others = match decisions.saturating_sub(*replayed) {
        0 => String::new(),
        others => format!(", and {others} not"),
    };
    fields([
        ("version", version.to_string()),
        ("decisions", format!("{decisions} read, from {} until {until}{older}", seconds(*from))),
        ("replayed", format!("{replayed}{others}")),
        ("looser", flips.to_string()),
    ])
}

fn changes(replay: &PolicyReplay) -> Table {
    let mut table = Table::new(["CHANGE", "DECISIONS"]);
    for change in &replay.changes {
        table.row([step(change.from, change.to), change.count.to_string()]);
    }
    table
}

fn gaps(replay: &PolicyReplay) -> Table {
    let mut table = Table::new(["NOT REPLAYED", "WHY"]).shrinkable(&[(1, 20)]);
    for gap in &replay.not_replayed {
        table.row([gap.count.to_string(), why(gap.why).to_owned()]);
    }
    table
}

/// `CHANGE` is from what the active policy decides; `WAS` is the recorded verdict.
fn decisions(replay: &PolicyReplay) -> Table {
    let headings = ["CHANGE", "RECORDED", "REQUEST", "CODE", "RULE", "WAS", "DECIDED BY"];
    let mut table = Table::new(headings).shrinkable(&[(6, 0), (5, 0), (4, 16), (3, 12), (1, 0)]);
    for decision in &replay.items {
        table.row([
            step(decision.from, decision.to),
            seconds(decision.recorded_at).to_string(),
            decision.request_id.to_string(),
            decision.code.as_ref().map(ToString::to_string).unwrap_or_default(),
            decision.rule.clone().unwrap_or_default(),
            decision.recorded.as_str().to_owned(),
            decision.policy_version.to_string(),
        ]);
    }
    table
}

/// Why a decision cannot be decided again.
fn why(gap: ReplayGap) -> &'static str {
    match gap {
        ReplayGap::NotKept => "no facts were kept with it: not asked for then, a secret, a stop, or too large",
        ReplayGap::Words => "the version reads words otherwise: its vocabulary or edition differs",
        ReplayGap::Windows => "the version has other windows of time, and one counts here",
        ReplayGap::Run => "the version counts something of runs that was not counted",
        ReplayGap::Member => "the version declares a member of `context` whose value was not kept",
        ReplayGap::Fact => "the version names a fact whose value was not read or not kept",
        ReplayGap::Unreadable => "what was kept cannot be read by this release",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replay() -> PolicyReplay {
        serde_json::from_str(include_str!("../../../contract/fixtures/policy_replay.json")).unwrap()
    }

    #[test]
    fn that_nothing_was_replayed_is_said_with_the_reason() {
        assert_eq!(nothing(&replay()), None);
        let none = PolicyReplay { decisions: 0, replayed: 0, not_replayed: Vec::new(), ..replay() };
        assert_eq!(nothing(&none).unwrap(), "no decision of that place was recorded in that time");
        let why = nothing(&PolicyReplay { replayed: 0, ..replay() }).unwrap();
        for part in
            ["1000 decisions were read", "of 58, no facts were kept", "--record-facts true", "of 2, the version"]
        {
            assert!(why.contains(part), "`{part}` in {why}");
        }
        let not_replayed = vec![stage0_contract::NotReplayed { why: ReplayGap::Words, count: 9 }];
        let why = nothing(&PolicyReplay { replayed: 0, not_replayed, ..replay() }).unwrap();
        assert!(why.contains("reads words otherwise") && !why.contains("--record-facts"), "{why}");
    }

    #[test]
    fn only_a_missing_right_is_explained_with_the_key_that_a_replay_needs() {
        let error = |status| ConnectionError::Refused {
            status,
            message: "the key needs the scope `policies:manage`".to_owned(),
            request_id: None,
            fields: Vec::new(),
            retry_after: None,
        };
        let told = |status| crate::failure::describe(&denied(error(status)));
        assert!(
            told(403).contains("it needs a key of the account") && told(403).contains("--key-file"),
            "{}",
            told(403)
        );
        assert!(!told(404).contains("--key-file"), "{}", told(404));
    }

    #[test]
    fn what_was_read_is_told_from_what_was_replayed() {
        let told = summary(&replay());
        for part in [
            "version    acme@1.2.0+0123456789ab\n",
            "1000 read, from 2026-03-09T12:00:00Z until 2026-03-16T12:00:00Z; there are older ones",
            "replayed   940, and 60 not",
            "looser     3",
        ] {
            assert!(told.contains(part), "`{part}` in {told}");
        }
        let all = summary(&PolicyReplay { decisions: 940, has_older: false, ..replay() });
        assert!(all.contains("replayed   940\n") && !all.contains("older"), "{all}");
    }

    #[test]
    fn changes_gaps_and_decisions_are_tables_in_the_servers_order() {
        let replay = replay();
        let changes = changes(&replay).to_string();
        let lines: Vec<&str> = changes.lines().skip(1).collect();
        assert_eq!(lines, ["DENY → ALLOW   1", "DEFER → ALLOW  2", "ALLOW → DENY   5"]);
        let gaps = gaps(&replay).to_string();
        assert!(gaps.contains("58            no facts were kept") && gaps.contains("a member of `context`"), "{gaps}");
        let mut replay = replay;
        replay.items[0].recorded = stage0_contract::Verdict::Defer;
        let decisions = decisions(&replay).to_string();
        let line = decisions.lines().nth(1).unwrap();
        assert!(line.starts_with("DENY → ALLOW  2026-03-16T11:58:21Z  01a20c2e-"), "{line}");
        assert!(line.ends_with("acme.refunds.limit  DEFER  acme@1.1.0+ba9876543210"), "{line}");
    }
}
