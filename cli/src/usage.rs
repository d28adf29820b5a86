//! `stage0 usage`: the quotas of the key's account, used and remaining.

use reqwest::Method;
use serde::Deserialize;
use serde_json::Value;
use stage0_contract::{StoredBytes, UNLIMITED, Usage};

use crate::client::{Connection, Credential, block_on, parse, target};
use crate::out;
use crate::settings::client::ClientSettings;
use crate::table::Table;

pub(crate) fn run(as_json: bool, settings: &ClientSettings) -> anyhow::Result<()> {
    let client = Connection::new(target(settings, Credential::Account)?, settings.timeout)?;
    let answer: Value = block_on(client.call(Method::GET, &["usage"], &[], None))?;
    if as_json {
        return out::json(&answer);
    }
    Ok(out::line(for_people(&parse(&answer)?))?)
}

#[derive(Deserialize)]
struct UsageAnswer {
    #[serde(flatten)]
    usage: Usage,
    /// How old the counts of other gateways may be. Absent from an older gateway.
    #[serde(default)]
    may_lag_seconds: Option<u64>,
}

fn for_people(UsageAnswer { usage, may_lag_seconds }: &UsageAnswer) -> String {
    let mut table = Table::new(["CHECKS", "USED", "LIMIT", "REMAINING"]);
    let (day, month) = (format!("today, {}", usage.day_key), format!("this month, {}", usage.month_key));
    for (window, used, limit, remaining) in [
        ("this minute", usage.minute_used, usage.per_minute_limit, usage.minute_remaining),
        (&day, usage.daily_used, usage.daily_quota, usage.daily_remaining),
        (&month, usage.monthly_used, usage.monthly_quota, usage.monthly_remaining),
    ] {
        table.row([window.to_owned(), used.to_string(), or_unlimited(limit, limit), or_unlimited(remaining, limit)]);
    }
    if let Some(StoredBytes { used, quota, remaining }) = usage.stored_bytes {
        let (limit, remaining) = (or_unlimited(quota, quota), or_unlimited(remaining, quota));
        table.row(["stored bytes today".to_owned(), used.to_string(), limit, remaining]);
    }
    let lag = match may_lag_seconds {
        Some(0) => "\n\nThe counts are exact.".to_owned(),
        Some(seconds) => format!("\n\nChecks at other gateways may be missing for up to {seconds} s."),
        None => String::new(),
    };
    let key = format!("key   {} (the counts are for its whole account)", usage.api_key_id);
    format!("plan  {}\n{key}\n\n{table}{lag}", usage.plan.as_str())
}

fn or_unlimited(number: u64, limit: u64) -> String {
    if limit == UNLIMITED { "unlimited".to_owned() } else { number.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unlimited_quota_is_shown_as_a_word() {
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
    fn the_lag_of_other_gateways_is_shown() {
        let text = include_str!("../../contract/fixtures/usage.json");
        let mut answer: Value = serde_json::from_str(text).unwrap();
        answer["may_lag_seconds"] = 7.into();
        let shown = for_people(&UsageAnswer::deserialize(&answer).unwrap());
        assert!(shown.ends_with("may be missing for up to 7 s."), "{shown}");
        answer["may_lag_seconds"] = 0.into();
        assert!(for_people(&UsageAnswer::deserialize(&answer).unwrap()).ends_with("exact."));
    }
}
