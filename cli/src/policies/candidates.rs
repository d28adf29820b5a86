//! `stage0 policy shadow`, `candidates` and `withdraw`: policies that are tried before they decide everything.

use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};
use stage0_contract::{
    AccountId, Activation, CandidateCounts, CandidateMode, Candidates, Disagreement, PoliciesInForce, PolicyCandidate,
    ReturnAt, ShownCandidate, Verdict, is_same_environment,
};

use super::next::quoted;
use super::{POLICIES, connect, in_force, resolve, show, told};
use crate::args::policies::OfAccount;
use crate::args::policies::trials::{CandidatesArgs, ShadowArgs, TrialPlace, WithdrawArgs};
use crate::client::{Connection, ConnectionError, Credential, Query, parse, target};
use crate::keys::set;
use crate::out::{self, plain};
use crate::settings::client::ClientSettings;
use crate::table::{Table, fields, optional, seconds};

pub(super) async fn shadow(args: &ShadowArgs, settings: &ClientSettings) -> anyhow::Result<()> {
    let ShadowArgs { version, percent, place } = args;
    let client = connect(settings, settings.timeout)?;
    let of = OfAccount { account: place.account.clone(), all_accounts: false, json: place.json };
    let version = resolve(&client, version, &of).await?;
    let [v1, policies] = POLICIES;
    let path = [v1, policies, version.as_str(), "shadow"];
    let mut body = body_of(place, &client);
    set(&mut body, "percent", *percent);
    let answer: Value = client.call(Method::POST, &path, &[], Some(&body)).await?;
    shown(&answer, place.json, &client)
}

pub(super) async fn withdraw(WithdrawArgs { place }: &WithdrawArgs, settings: &ClientSettings) -> anyhow::Result<()> {
    let client = connect(settings, settings.timeout)?;
    let [v1, policies] = POLICIES;
    let body = body_of(place, &client);
    let path = [v1, policies, "withdraw"];
    let answer: Result<Value, ConnectionError> = client.call(Method::POST, &path, &[], Some(&body)).await;
    match answer {
        Ok(answer) => shown(&answer, place.json, &client),
        Err(error) => Err(elsewhere(error, place, &client).await),
    }
}

/// The refusal, with where something is tried if nothing is tried at this place.
async fn elsewhere(error: ConnectionError, place: &TrialPlace, client: &Connection) -> anyhow::Error {
    let is_conflict = matches!(error, ConnectionError::Refused { status: 409, .. });
    let error = anyhow::Error::new(error);
    if !is_conflict {
        return error;
    }
    let of = OfAccount { account: place.account.clone(), all_accounts: false, json: place.json };
    let Ok(answer) = in_force(client, &of).await else { return error };
    let Ok(in_force) = parse::<PoliciesInForce>(&answer) else { return error };
    match tried_elsewhere(place.environment.as_deref(), &in_force.candidates) {
        Some(told) => error.context(told),
        None => error,
    }
}

/// Where something is tried; none where something is tried at this place, and the refusal is about something else.
fn tried_elsewhere(environment: Option<&str>, candidates: &[PolicyCandidate]) -> Option<String> {
    let is_here = |candidate: &PolicyCandidate| match (environment, candidate.environment.as_deref()) {
        (Some(asked), Some(tried)) => is_same_environment(asked, tried),
        (asked, tried) => asked == tried,
    };
    if candidates.iter().any(is_here) {
        return None;
    }
    let tried = candidates.iter().map(|candidate| {
        let at = candidate.environment.as_deref();
        let flag =
            at.map_or_else(|| "without `--environment`".to_owned(), |name| format!("`--environment {}`", quoted(name)));
        format!("{} {} ({flag})", in_list(candidate), candidate.version)
    });
    let tried: Vec<String> = tried.collect();
    Some(match tried.as_slice() {
        [] => "the account tries nothing".to_owned(),
        tried => format!("what the account tries is elsewhere: {}", tried.join(", ")),
    })
}

pub(super) async fn list(args: &CandidatesArgs, settings: &ClientSettings) -> anyhow::Result<()> {
    // What differs is shown to keys of the account alone, so its own key goes before the operator's.
    let credential = if args.account.is_some() { Credential::AccountOrOperator } else { Credential::Account };
    let client = Connection::new(target(settings, credential)?, settings.timeout)?;
    let [v1, policies] = POLICIES;
    let account = args.account.as_ref().or(client.account());
    let query = Query::default().with("account", account).with("ended", args.ended.then_some(true));
    let answer: Value = client.call(Method::GET, &[v1, policies, "candidates"], &query.pairs(), None).await?;
    if args.json {
        return out::json(&answer);
    }
    let Candidates { items } = parse(&answer)?;
    if items.is_empty() {
        out::stderr_line(if args.ended { "no trial ended here" } else { "no policy is tried here" });
    }
    for (number, candidate) in items.iter().enumerate() {
        out::line(format!("{}{}", if number > 0 { "\n" } else { "" }, one(candidate)))?;
        let (table, notes) = disagreements(candidate);
        if let Some(table) = table {
            out::line("")?;
            table.print()?;
        }
        for note in notes {
            out::line(note)?;
        }
    }
    Ok(())
}

fn body_of(place: &TrialPlace, client: &Connection) -> Value {
    let TrialPlace { environment, reason, account, .. } = place;
    let mut body = json!({});
    set(&mut body, "account", account.as_ref().or(client.account()).map(AccountId::as_str));
    set(&mut body, "environment", environment.as_deref());
    set(&mut body, "reason", reason.as_deref());
    body
}

fn shown(answer: &Value, as_json: bool, client: &Connection) -> anyhow::Result<()> {
    if as_json { out::json(answer) } else { told(answer, client) }
}

/// The beginning or the end of a trial.
pub(super) fn change(activation: &Activation, candidate: &PolicyCandidate) -> Vec<(&'static str, String)> {
    let Activation { account, version, from, returned_for, .. } = activation;
    // At its end, `version` is what decides all of it again.
    let active = if version.as_ref() == Some(&candidate.version) { from.as_ref() } else { version.as_ref() };
    let end = match returned_for {
        Some(counts) if is_uncounted(activation) => {
            ("ended by itself", format!("what it decided was not counted: {}", found(counts)))
        }
        Some(counts) => ("ended by itself", found(counts)),
        None => ("returns", candidate.return_at.as_ref().map_or_else(|| "-".to_owned(), returns)),
    };
    vec![
        ("version", candidate.version.to_string()),
        ("share", share(candidate)),
        ("active", show::named(active)),
        ("account", account.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string)),
        ("where", show::place(false, candidate.environment.as_deref())),
        end,
    ]
}

/// Whether a canary ended without having passed its terms: because too little of what it decided was counted.
pub(super) fn is_uncounted(activation: &Activation) -> bool {
    let terms = activation.candidate.as_ref().and_then(|candidate| candidate.return_at);
    activation.returned_for.zip(terms).is_some_and(|(counts, terms)| !terms.is_passed(&counts))
}

/// A candidate and what was counted, without what differs.
fn one(ShownCandidate { candidate, ended_at, findings }: &ShownCandidate) -> String {
    let CandidateCounts { checks, disagreements, looser, errors, not_judged } = findings.counts;
    let returns = candidate.return_at.as_ref().map_or_else(|| "never: it has no effect".to_owned(), returns);
    let mut rows = vec![
        ("where", show::place(false, candidate.environment.as_deref())),
        ("share", share(candidate)),
        ("since", format!("{} by key {}", seconds(candidate.started_at), candidate.key_id)),
    ];
    rows.extend(ended_at.map(|at| ("ended", seconds(at).to_string())));
    rows.extend([
        ("returns", returns),
        ("checks", format!("{checks} judged by both, {not_judged} by only one of them")),
        ("disagreements", format!("{disagreements}{}, of these {looser} looser", rate(disagreements, checks))),
        ("errors", format!("{errors}{} with a rule that failed", rate(errors, checks))),
    ]);
    format!("{}  {}\n{}", mode(candidate.mode), candidate.version, fields(rows))
}

/// What differs, and what the table leaves out.
fn disagreements(ShownCandidate { findings, .. }: &ShownCandidate) -> (Option<Table>, Vec<String>) {
    let headings = ["CHANGE", "COUNT", "CODE", "RULE", "AGENT", "LAST", "REQUEST"];
    let mut table = Table::new(headings).shrinkable(&[(5, 0), (4, 8), (3, 16), (2, 12)]);
    for Disagreement { from, to, code, rule, agent, count, request_id, last_at } in &findings.disagreements {
        let last = Timestamp::from_second(*last_at).ok();
        table.row([
            step(*from, *to),
            count.to_string(),
            code.to_string(),
            rule.clone(),
            agent.clone().unwrap_or_default(),
            optional(last.as_ref()),
            request_id.to_string(),
        ]);
    }
    let mut notes = Vec::new();
    if findings.left_out > 0 {
        notes.push(format!("{} more are of other kinds, which are only counted", findings.left_out));
    } else if findings.counts.disagreements + findings.counts.errors > 0 && findings.disagreements.is_empty() {
        notes.push("what differs is shown to keys of the account".to_owned());
    }
    (Some(table).filter(|_| !findings.disagreements.is_empty()), notes)
}

pub(super) fn step(from: Verdict, to: Verdict) -> String {
    format!("{} → {}", from.as_str(), to.as_str())
}

/// In a few words, for a table of what decides.
pub(super) fn brief(candidate: &PolicyCandidate) -> String {
    format!("{}, {}", mode(candidate.mode), share(candidate))
}

/// For a list of versions: how it is tried, and where.
pub(super) fn in_list(candidate: &PolicyCandidate) -> String {
    let PolicyCandidate { mode: how, percent, environment, .. } = candidate;
    let is_whole_shadow = (*how, *percent) == (CandidateMode::Shadow, 100);
    let share = if is_whole_shadow { String::new() } else { format!(" {percent}%") };
    let at = environment.as_deref().map(|name| format!(" in {}", plain(name))).unwrap_or_default();
    format!("{}{share}{at}", mode(*how))
}

fn mode(mode: CandidateMode) -> &'static str {
    match mode {
        CandidateMode::Shadow => "shadow",
        CandidateMode::Canary => "canary",
    }
}

fn share(PolicyCandidate { mode, percent, .. }: &PolicyCandidate) -> String {
    let verb = match mode {
        CandidateMode::Shadow => "judges",
        CandidateMode::Canary => "decides",
    };
    format!("{verb} {percent}% of the runs")
}

fn found(counts: &CandidateCounts) -> String {
    let CandidateCounts { checks, disagreements, looser, errors, .. } = counts;
    format!("{checks} checks: {disagreements} disagreements, of these {looser} looser; {errors} errors")
}

/// When a canary ends by itself, in words.
pub(super) fn returns(ReturnAt { disagreement_percent, error_percent, min_checks }: &ReturnAt) -> String {
    let when = |percent: u8, first: &str, more: &str| match percent {
        0 => Some(first.to_owned()),
        100.. => None,
        percent => Some(format!("more than {percent}% of {more}")),
    };
    let parts: Vec<String> = [
        when(*disagreement_percent, "one verdict differs", "its verdicts differ"),
        when(*error_percent, "a rule fails in one check", "its checks have a rule that fails"),
    ]
    .into_iter()
    .flatten()
    .collect();
    if parts.is_empty() {
        return "never by itself".to_owned();
    }
    let is_rate = [disagreement_percent, error_percent].into_iter().any(|percent| (1..100).contains(percent));
    let of = if is_rate { format!("; rates are of at least {min_checks} checks") } else { String::new() };
    format!("when {}{of}", parts.join(", or "))
}

/// Such as ` (2.5%)`; nothing where there are no checks. What is rounded never reads as none or as all.
fn rate(count: u64, of: u64) -> String {
    let (count, of) = (u128::from(count), u128::from(of));
    match (count * 1_000 + of / 2).checked_div(of) {
        None => String::new(),
        Some(0) if count > 0 => " (under 0.1%)".to_owned(),
        Some(1_000) if count < of => " (over 99.9%)".to_owned(),
        Some(thousandths) => format!(" ({}.{}%)", thousandths / 10, thousandths % 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture<T: serde::de::DeserializeOwned>(text: &str) -> T {
        serde_json::from_str(text).unwrap()
    }

    fn candidates() -> Candidates {
        fixture(include_str!("../../../contract/fixtures/candidates.json"))
    }

    #[test]
    fn when_a_canary_ends_is_said_in_words() {
        let told = |disagreement_percent, error_percent, min_checks| {
            returns(&ReturnAt { disagreement_percent, error_percent, min_checks })
        };
        assert_eq!(
            told(2, 0, 50),
            "when more than 2% of its verdicts differ, or a rule fails in one check; rates are of at least 50 checks"
        );
        assert_eq!(told(0, 0, 50), "when one verdict differs, or a rule fails in one check");
        assert_eq!(
            told(100, 3, 9),
            "when more than 3% of its checks have a rule that fails; rates are of at least 9 checks"
        );
        assert_eq!(told(100, 100, 1), "never by itself");
    }

    #[test]
    fn a_candidate_is_shown_with_its_counts_and_then_with_what_differs() {
        let Candidates { items } = candidates();
        let text = one(&items[0]);
        assert!(text.starts_with("canary  acme@1.2.0+0123456789ab\n"), "{text}");
        for part in [
            "environment staging",
            "decides 10% of the runs",
            "2026-03-16T12:05:00Z by key key_2",
            "240 judged by both, 2 by only one",
            "6 (2.5%), of these 1 looser",
            "0 (0.0%) with a rule that failed",
        ] {
            assert!(text.contains(part), "`{part}` in {text}");
        }
        let (table, notes) = disagreements(&items[0]);
        let table = table.unwrap().to_string();
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[1].starts_with("DENY → ALLOW  1") && lines[1].contains("refund-bot"), "{table}");
        assert!(lines[2].starts_with("ALLOW → DENY  5") && lines[2].contains("2026-03-16T12:00:00Z"), "{table}");
        assert!(notes.is_empty(), "{notes:?}");
    }

    #[test]
    fn what_is_only_counted_is_said_and_what_an_operator_is_not_shown_too() {
        let Candidates { mut items } = candidates();
        items[0].findings.left_out = 3;
        assert_eq!(disagreements(&items[0]).1, ["3 more are of other kinds, which are only counted"]);
        items[0].findings.left_out = 0;
        items[0].findings.disagreements.clear();
        let (table, notes) = disagreements(&items[0]);
        assert!(table.is_none());
        assert_eq!(notes, ["what differs is shown to keys of the account"]);
        items[0].findings.counts = CandidateCounts::default();
        assert!(disagreements(&items[0]).1.is_empty(), "nothing differs");
        let text = one(&items[0]);
        assert!(text.contains("disagreements  0, of these 0 looser"), "no rate of no checks: {text}");
    }

    #[test]
    fn a_rate_is_rounded_and_never_hides_what_there_is() {
        for (count, of, shown) in [
            (6, 2_400, " (0.3%)"),
            (1, 3, " (33.3%)"),
            (2, 3, " (66.7%)"),
            (0, 9, " (0.0%)"),
            (9, 9, " (100.0%)"),
            (1, 9_999, " (under 0.1%)"),
            (9_998, 9_999, " (over 99.9%)"),
            (0, 0, ""),
            (u64::MAX, u64::MAX, " (100.0%)"),
        ] {
            assert_eq!(rate(count, of), shown, "{count} of {of}");
        }
    }

    #[test]
    fn what_is_tried_elsewhere_is_named_and_what_is_tried_here_is_not() {
        let tried = candidates().items.remove(0).candidate;
        let here = |environment| tried_elsewhere(environment, std::slice::from_ref(&tried));
        let told = here(None).unwrap();
        assert!(told.contains("canary 10% in staging") && told.contains("`--environment staging`"), "{told}");
        assert!(here(Some("production")).is_some());
        assert_eq!(here(Some("staging")), None);
        assert_eq!(tried_elsewhere(None, &[]).unwrap(), "the account tries nothing");
        let of_default = PolicyCandidate { environment: None, ..tried.clone() };
        assert!(tried_elsewhere(Some("staging"), &[of_default]).unwrap().contains("without `--environment`"));
    }

    #[test]
    fn what_ended_is_shown_with_the_time() {
        let Candidates { items } = fixture(include_str!("../../../contract/fixtures/candidates_ended.json"));
        let at = items[0].ended_at.unwrap();
        assert!(one(&items[0]).contains(&format!("\nended          {}\n", seconds(at))), "{}", one(&items[0]));
        assert!(!one(&candidates().items[0]).contains("ended"));
    }

    #[test]
    fn the_beginning_and_the_end_of_a_trial_name_what_is_tried_and_what_is_active() {
        for (text, part) in [
            (
                include_str!("../../../contract/fixtures/activation_canary.json"),
                "when more than 2% of its verdicts differ",
            ),
            (include_str!("../../../contract/fixtures/activation_shadow.json"), "judges 20% of the runs"),
            (include_str!("../../../contract/fixtures/activation_withdrawn.json"), "it denies too many refunds"),
            (include_str!("../../../contract/fixtures/activation_returned.json"), "240 checks: 6 disagreements"),
        ] {
            let activation: Activation = fixture(text);
            let told = show::activation(&activation, None);
            let line = |name: &str| told.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
            assert!(line("version").ends_with("acme@1.2.0+0123456789ab"), "{told}");
            assert!(line("active").ends_with("acme@1.1.0+ba9876543210"), "{told}");
            assert!(told.contains(part), "`{part}` in {told}");
        }
    }
}
