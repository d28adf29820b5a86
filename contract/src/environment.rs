//! Names of environments, as filters compare them: of decisions that are read, and of webhooks.
//!
//! A pack may define more aliases, which count in decisions but not in filters, because neither the gateway nor the
//! exporter has a pack.
//! INVARIANT: a filter selects among an account's own records and decides nothing.

use crate::Word;

/// Aliases that every installation knows, and what they stand for.
const ALIASES: [(&str, &str); 6] = [
    ("prod", "production"),
    ("prd", "production"),
    ("live", "production"),
    ("stage", "staging"),
    ("stg", "staging"),
    ("dev", "development"),
];

/// Whether both name the same environment. A name that mixes scripts equals nothing, not even itself.
pub fn is_same_environment(one: &str, other: &str) -> bool {
    name(one).is_some_and(|one| name(other).is_some_and(|other| one == other))
}

fn name(text: &str) -> Option<String> {
    let word = Word::new(text);
    // A hyphen, a blank and an underscore are equivalent.
    let name: String = word.known()?.chars().map(|c| if c == '-' || c == ' ' { '_' } else { c }).collect();
    Some(of_alias(&name).map_or(name, str::to_owned))
}

/// The environment that an alias stands for.
pub(crate) fn of_alias(alias: &str) -> Option<&'static str> {
    ALIASES.iter().find(|(known, _)| *known == alias).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_is_what_it_stands_for_and_what_else_stands_for_it() {
        for group in [
            &["production", "prod", "prd", "live", "PROD", " Production ", "ＰＲＯＤ"][..],
            &["staging", "stage", "stg"],
            &["development", "dev"],
            &["eu-west", "eu_west", "EU West"],
            &[""],
        ] {
            for one in group {
                assert!(group.iter().all(|other| is_same_environment(one, other)), "{one}");
            }
        }
        for (one, other) in [
            ("prod", "staging"),
            ("prod", "preprod"),
            ("prod", "non-prod"),
            ("prod", "prod-eu"),
            ("dev", "devel"),
            ("live", "alive"),
            ("", "prod"),
            ("eu__west", "eu_west"),
            ("prоd", "prоd"),
        ] {
            assert!(!is_same_environment(one, other), "{one} {other}");
        }
    }
}
