//! Names of environments, as filters compare them: of decisions that are read, and of webhooks.
//!
//! Owns the other names that every installation knows (contract, section 1). What is recorded keeps the text that was
//! sent; whoever looks for one name finds the others. A pack may know more aliases: they decide, and filters do not
//! know them, as neither the gateway nor the exporter has a pack. INVARIANT: a filter picks among an account's own
//! records and decides nothing.

use crate::Word;

/// An alias and what it stands for.
const ALIASES: [(&str, &str); 6] = [
    ("prod", "production"),
    ("prd", "production"),
    ("live", "production"),
    ("stage", "staging"),
    ("stg", "staging"),
    ("dev", "development"),
];

/// Whether both name the same environment. A name that mixes scripts is no other's, nor its own.
pub fn is_same_environment(one: &str, other: &str) -> bool {
    name(one).is_some_and(|one| name(other).is_some_and(|other| one == other))
}

fn name(text: &str) -> Option<String> {
    let word = Word::new(text);
    // One hyphen, blank and underscore are the same.
    let name: String = word.known()?.chars().map(|c| if c == '-' || c == ' ' { '_' } else { c }).collect();
    Some(ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, full)| (*full).to_owned()))
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
