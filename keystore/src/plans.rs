//! Plans: how many checks each lets an account make, and how much the account may hold.
//!
//! Every mistake in `plans.toml`, the built-in one or the operator's, is named at once. Counting is the gateway's.

use stage0_contract::{Account, Caps, Limits, Plan, UNLIMITED};
use toml::{Table, Value};

const BUILT_IN: &str = include_str!("../plans.toml");
const PLANS: [Plan; 3] = [Plan::Free, Plan::Pro, Plan::Unlimited];

/// The limits and caps of every plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plans {
    free: PlanRules,
    pro: PlanRules,
    unlimited: PlanRules,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PlanRules {
    limits: Limits,
    caps: Caps,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct PlansError(pub Vec<String>);

impl Plans {
    /// The plans that the product comes with.
    pub fn built_in() -> Result<Self, PlansError> {
        Self::parse(BUILT_IN)
    }

    /// Reads TOML with one table for each plan; `plans.toml` explains the members.
    pub fn parse(text: &str) -> Result<Self, PlansError> {
        let mut table: Table = text.parse().map_err(|error: toml::de::Error| {
            let place = error.span().map_or(0, |span| text.get(..span.start).unwrap_or_default().lines().count());
            PlansError(vec![format!("line {}: {}", place.max(1), error.message())])
        })?;
        let mut wrong = Vec::new();
        let [free, pro, unlimited] = PLANS.map(|plan| rules(plan, table.remove(plan.as_str()), &mut wrong));
        if !unlimited.limits.is_none() {
            wrong.push("[unlimited] must have no limits".to_owned());
        }
        wrong.extend(table.keys().map(|name| format!("`{name}` is no plan: there are free, pro and unlimited")));
        if wrong.is_empty() { Ok(Self { free, pro, unlimited }) } else { Err(PlansError(wrong)) }
    }

    pub(crate) fn limits(&self, account: &Account) -> Limits {
        self.of(account.plan).limits.unless(account.limits)
    }

    pub(crate) fn caps(&self, account: &Account) -> Caps {
        self.of(account.plan).caps.unless(account.caps)
    }

    fn of(&self, plan: Plan) -> PlanRules {
        match plan {
            Plan::Free => self.free,
            Plan::Pro => self.pro,
            Plan::Unlimited => self.unlimited,
        }
    }
}

fn rules(plan: Plan, table: Option<Value>, wrong: &mut Vec<String>) -> PlanRules {
    let name = plan.as_str();
    let (mut limits, mut caps) = (Limits::NONE, Caps::NONE);
    let Some(Value::Table(table)) = table else {
        wrong.push(format!("the table [{name}] is missing"));
        return PlanRules { limits, caps };
    };
    for (key, value) in table {
        let (place, min) = match key.as_str() {
            "per_minute" => (&mut limits.per_minute, 1),
            "daily" => (&mut limits.daily, 1),
            "monthly" => (&mut limits.monthly, 1),
            "max_keys" => (&mut caps.max_keys, 0),
            "max_endpoints" => (&mut caps.max_endpoints, 0),
            "max_runs" => (&mut caps.max_runs, 0),
            "stored_bytes" => (&mut caps.stored_bytes, 0),
            _ => {
                wrong.push(format!(
                    "{name}.{key} is not known: there are per_minute, daily, monthly, max_keys, max_endpoints, \
                     max_runs and stored_bytes"
                ));
                continue;
            }
        };
        *place = value.as_integer().and_then(|n| u64::try_from(n).ok()).filter(|n| (min..UNLIMITED).contains(n));
        if place.is_none() {
            wrong.push(format!("{name}.{key} must be a whole number from {min} to {}", UNLIMITED - 1));
        }
    }
    PlanRules { limits, caps }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_plans_are_sound_and_only_unlimited_has_no_limit() {
        let plans = Plans::built_in().unwrap();
        for PlanRules { limits, caps } in [plans.free, plans.pro] {
            assert!(caps.keys() <= Caps::DEFAULT_MAX_KEYS && caps.stored_bytes().is_some());
            assert!(limits.per_minute.is_some() && limits.daily.is_some() && limits.monthly.is_some());
        }
    }

    #[test]
    fn every_mistake_is_named_at_once() {
        let text = "[free]\nper_minute = 0\ndaily = -1\nhourly = 3\n[pro]\nmonthly = \"many\"\ndaily = 1.5\n\
            per_minute = 9007199254740991\nmax_keys = -1\n[unlimited]\ndaily = 5\n[gold]\n";
        let PlansError(wrong) = Plans::parse(text).unwrap_err();
        for named in [
            "free.per_minute",
            "free.daily",
            "free.hourly",
            "pro.monthly",
            "pro.daily",
            "pro.per_minute",
            "pro.max_keys",
            "[unlimited] must have no limits",
            "`gold` is no plan",
        ] {
            assert!(wrong.iter().any(|line| line.starts_with(named)), "{named}: {wrong:?}");
        }
        assert_eq!(wrong.len(), 9);
    }

    #[test]
    fn an_accounts_own_caps_override_those_of_its_plan() {
        let text = "[free]\nmax_keys = 2\n[pro]\n[unlimited]\nmax_endpoints = 3\nstored_bytes = 0\nmax_runs = 7\n";
        let plans = Plans::parse(text).unwrap();
        let mut account = crate::store::record::tests::account("a");
        assert_eq!((plans.caps(&account).keys(), plans.caps(&account).endpoints()), (2, Caps::DEFAULT_MAX_ENDPOINTS));
        account.plan = Plan::Unlimited;
        let caps = plans.caps(&account);
        assert_eq!((caps.endpoints(), caps.stored_bytes(), caps.runs()), (3, Some(0), 7));
        assert_eq!(caps.keys(), Caps::DEFAULT_MAX_KEYS, "also without a plan there is a cap");
        account.caps.max_endpoints = Some(9);
        assert_eq!(plans.caps(&account).endpoints(), 9);
    }

    #[test]
    fn a_missing_plan_and_invalid_toml_are_refused() {
        assert_eq!(Plans::parse("[free]\n[unlimited]\n").unwrap_err().0, ["the table [pro] is missing"]);
        assert_eq!(Plans::parse("free = 3\n[pro]\n[unlimited]\n").unwrap_err().0, ["the table [free] is missing"]);
        assert!(Plans::parse("[free]\n[pro]\nx = = 1\n").unwrap_err().0[0].starts_with("line 3: "));
    }
}
