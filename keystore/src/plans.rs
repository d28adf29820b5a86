//! Plans: how many checks each lets an account make.
//!
//! Owns the reading of `plans.toml`, the built-in one or the operator's; every mistake in it is named at once. Which plan has `pro`
//! is no setting, and counting is the gateway's.

use stage0_contract::{Account, Limits, Plan, UNLIMITED};
use toml::{Table, Value};

/// As it stands in the source.
const BUILT_IN: &str = include_str!("../plans.toml");
const PLANS: [Plan; 3] = [Plan::Free, Plan::Pro, Plan::Unlimited];

/// The limits of every plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plans {
    free: Limits,
    pro: Limits,
}

/// What is wrong with a file of plans, all of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct PlansError(pub Vec<String>);

impl Plans {
    /// Those that the product comes with.
    pub fn built_in() -> Result<Self, PlansError> {
        Self::parse(BUILT_IN)
    }

    /// Reads TOML: one table for each plan, in it at most `per_minute`, `daily` and `monthly`.
    pub fn parse(text: &str) -> Result<Self, PlansError> {
        let mut table: Table = text.parse().map_err(|error: toml::de::Error| {
            let place = error.span().map_or(0, |span| text.get(..span.start).unwrap_or_default().lines().count());
            PlansError(vec![format!("line {}: {}", place.max(1), error.message())])
        })?;
        let mut wrong = Vec::new();
        let [free, pro, unlimited] = PLANS.map(|plan| limits(plan, table.remove(plan.as_str()), &mut wrong));
        if !unlimited.is_none() {
            wrong.push("[unlimited] must have no limits".to_owned());
        }
        wrong.extend(table.keys().map(|name| format!("`{name}` is no plan: there are free, pro and unlimited")));
        if wrong.is_empty() { Ok(Self { free, pro }) } else { Err(PlansError(wrong)) }
    }

    /// What an account may use: its own limits where it has some, else its plan's.
    pub(crate) fn limits(&self, account: &Account) -> Limits {
        let plan = match account.plan {
            Plan::Free => self.free,
            Plan::Pro => self.pro,
            Plan::Unlimited => Limits::NONE,
        };
        plan.unless(account.limits)
    }
}

fn limits(plan: Plan, table: Option<Value>, wrong: &mut Vec<String>) -> Limits {
    let name = plan.as_str();
    let mut limits = Limits::NONE;
    let Some(Value::Table(table)) = table else {
        wrong.push(format!("the table [{name}] is missing"));
        return limits;
    };
    for (key, value) in table {
        let place = match key.as_str() {
            "per_minute" => &mut limits.per_minute,
            "daily" => &mut limits.daily,
            "monthly" => &mut limits.monthly,
            _ => {
                wrong.push(format!("{name}.{key} is not known: there are per_minute, daily and monthly"));
                continue;
            }
        };
        *place = value.as_integer().and_then(|n| u64::try_from(n).ok()).filter(|n| (1..UNLIMITED).contains(n));
        if place.is_none() {
            wrong.push(format!("{name}.{key} must be a whole number from 1 to {}", UNLIMITED - 1));
        }
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_plans_are_sound_and_only_unlimited_has_no_limit() {
        let plans = Plans::built_in().unwrap();
        for limits in [plans.free, plans.pro] {
            assert!(limits.per_minute.is_some() && limits.daily.is_some() && limits.monthly.is_some());
        }
    }

    #[test]
    fn every_mistake_is_named_at_once() {
        let text = "[free]\nper_minute = 0\ndaily = -1\nhourly = 3\n[pro]\nmonthly = \"many\"\ndaily = 1.5\n\
            per_minute = 9007199254740991\n[unlimited]\ndaily = 5\n[gold]\n";
        let PlansError(wrong) = Plans::parse(text).unwrap_err();
        for named in [
            "free.per_minute",
            "free.daily",
            "free.hourly",
            "pro.monthly",
            "pro.daily",
            "pro.per_minute",
            "[unlimited] must have no limits",
            "`gold` is no plan",
        ] {
            assert!(wrong.iter().any(|line| line.starts_with(named)), "{named}: {wrong:?}");
        }
        assert_eq!(wrong.len(), 8);
    }

    #[test]
    fn a_plan_that_is_missing_and_text_that_is_no_toml_are_refused() {
        assert_eq!(Plans::parse("[free]\n[unlimited]\n").unwrap_err().0, ["the table [pro] is missing"]);
        assert_eq!(Plans::parse("free = 3\n[pro]\n[unlimited]\n").unwrap_err().0, ["the table [free] is missing"]);
        assert!(Plans::parse("[free]\n[pro]\nx = = 1\n").unwrap_err().0[0].starts_with("line 3: "));
    }
}
