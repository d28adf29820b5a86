//! `stage0 usage`: what the key's account has used, and what is left.

use reqwest::Method;
use serde::Deserialize;
use serde_json::Value;
use stage0_contract::{StoredBytes, UNLIMITED, Usage};

use crate::client::{Client, ClientError, Target, Whose, block_on};
use crate::exit::Exit;
use crate::out::{self, plain};
use crate::settings::client::ClientSettings;
use crate::table::Table;

/// Asks and shows.
pub(crate) fn run(as_json: bool, settings: &ClientSettings) -> Exit {
    crate::run::finished(show(as_json, settings))
}

fn show(as_json: bool, settings: &ClientSettings) -> anyhow::Result<()> {
    let client = Client::new(Target::find(settings, Whose::Account)?, settings.timeout)?;
    let answer: Value = block_on(client.call(Method::GET, &["usage"], &[], None))?;
    if as_json {
        return out::json(&answer);
    }
    let told: Told = Told::deserialize(&answer).map_err(|error| ClientError::Unreadable(plain(&error.to_string())))?;
    Ok(out::line(for_people(&told))?)
}

/// The answer.
#[derive(Deserialize)]
struct Told {
    #[serde(flatten)]
    usage: Usage,
    /// How long checks of other gateways may take to be counted in this answer; a gateway that is older does not say it.
    #[serde(default)]
    may_lag_seconds: Option<u64>,
}

fn for_people(Told { usage, may_lag_seconds }: &Told) -> String {
    let mut table = Table::new(["CHECKS", "USED", "LIMIT", "REMAINING"]);
    let (day, month) = (format!("today, {}", usage.day_key), format!("this month, {}", usage.month_key));
    for (window, used, limit, remaining) in [
        ("this minute", usage.minute_used, usage.per_minute_limit, usage.minute_remaining),
        (&day, usage.daily_used, usage.daily_quota, usage.daily_remaining),
        (&month, usage.monthly_used, usage.monthly_quota, usage.monthly_remaining),
    ] {
        let told = |number: u64| if limit == UNLIMITED { "unlimited".to_owned() } else { number.to_string() };
        table.row([plain(window), used.to_string(), told(limit), told(remaining)]);
    }
    if let Some(StoredBytes { used, quota, remaining }) = usage.stored_bytes {
        let told = |number: u64| if quota == UNLIMITED { "unlimited".to_owned() } else { number.to_string() };
        table.row(["stored bytes today".to_owned(), used.to_string(), told(quota), told(remaining)]);
    }
    let lag = match may_lag_seconds {
        Some(0) => "\n\nThe counts are exact.".to_owned(),
        Some(seconds) => format!("\n\nChecks at other gateways may be missing for up to {seconds} s."),
        None => String::new(),
    };
    let key = format!("key   {} (the counts are of its whole account)", usage.api_key_id);
    format!("plan  {}\n{key}\n\n{table}{lag}", usage.plan.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_number_and_none_is_a_word() {
        let text = include_str!("../../contract/fixtures/usage.json");
        let shown = for_people(&serde_json::from_str(text).unwrap());
        assert!(shown.contains("2026-01-31") && shown.contains("998"), "{shown}");
        assert!(shown.contains("unlimited") && !shown.contains("9007199254740991"), "{shown}");
        assert!(!shown.contains("stored"), "a gateway that does not count them says nothing: {shown}");
        let text = include_str!("../../contract/fixtures/usage_stored_bytes.json");
        let shown = for_people(&serde_json::from_str(text).unwrap());
        assert!(shown.contains("stored bytes today") && shown.contains("9999880"), "{shown}");
        assert!(!shown.contains("other gateways"), "a gateway that does not know says nothing: {shown}");
    }

    #[test]
    fn how_far_other_gateways_may_lag_is_told() {
        let text = include_str!("../../contract/fixtures/usage.json");
        let mut answer: Value = serde_json::from_str(text).unwrap();
        answer["may_lag_seconds"] = 7.into();
        let shown = for_people(&Told::deserialize(&answer).unwrap());
        assert!(shown.ends_with("may be missing for up to 7 s."), "{shown}");
        answer["may_lag_seconds"] = 0.into();
        assert!(for_people(&Told::deserialize(&answer).unwrap()).ends_with("exact."));
    }
}
