//! `stage0 usage`: what the key's account has used, and what is left.

use reqwest::Method;
use stage0_contract::{StoredBytes, UNLIMITED, Usage};

use crate::client::{Client, Target, Whose, block_on};
use crate::exit::Exit;
use crate::out;
use crate::settings::client::ClientSettings;
use crate::table::Table;

/// Asks and shows.
pub(crate) fn run(as_json: bool, settings: &ClientSettings) -> Exit {
    crate::run::finished(show(as_json, settings))
}

fn show(as_json: bool, settings: &ClientSettings) -> anyhow::Result<()> {
    let client = Client::new(Target::find(settings, Whose::Account)?, settings.timeout)?;
    let usage: Usage = block_on(client.call(Method::GET, &["usage"], &[], None))?;
    if as_json {
        return out::json(&usage);
    }
    Ok(out::line(for_people(&usage))?)
}

fn for_people(usage: &Usage) -> String {
    let mut table = Table::new(["WINDOW", "USED", "LIMIT", "REMAINING"]);
    for (window, used, limit, remaining) in [
        ("this minute", usage.minute_used, usage.per_minute_limit, usage.minute_remaining),
        (&usage.day_key, usage.daily_used, usage.daily_quota, usage.daily_remaining),
        (&usage.month_key, usage.monthly_used, usage.monthly_quota, usage.monthly_remaining),
    ] {
        let told = |number: u64| if limit == UNLIMITED { "unlimited".to_owned() } else { number.to_string() };
        table.row([out::plain(window), used.to_string(), told(limit), told(remaining)]);
    }
    if let Some(StoredBytes { used, quota, remaining }) = usage.stored_bytes {
        let told = |number: u64| if quota == UNLIMITED { "unlimited".to_owned() } else { number.to_string() };
        table.row(["stored bytes today".to_owned(), used.to_string(), told(quota), told(remaining)]);
    }
    format!("plan  {}\nkey   {}\n\n{table}", usage.plan.as_str(), usage.api_key_id)
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
    }
}
