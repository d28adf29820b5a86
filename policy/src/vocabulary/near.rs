//! Suggestions for unknown words by edit distance.
//!
//! The distance counts insertions, deletions, replacements and swaps of neighbours.

use stage0_contract::edit_distance;

/// Shorter words resemble everything.
const SHORTEST: usize = 4;
/// Longer words are not compared.
const LONGEST: usize = 40;

/// The nearest words, at most `most`: within one edit of a short word, within two of a longer one.
pub(crate) fn nearest<'w>(word: &str, words: impl Iterator<Item = &'w str>, most: usize) -> Vec<&'w str> {
    let letters: Vec<char> = word.chars().take(LONGEST + 1).collect();
    if letters.len() < SHORTEST || letters.len() > LONGEST {
        return Vec::new();
    }
    let within = if letters.len() < 5 { 1 } else { 2 };
    let mut near: Vec<(usize, &str)> = words
        .filter(|candidate| candidate.chars().count().abs_diff(letters.len()) <= within)
        .filter_map(|candidate| Some((distance(&letters, candidate, within)?, candidate)))
        .collect();
    near.sort_unstable();
    near.dedup();
    near.into_iter().take(most).map(|(_, candidate)| candidate).collect()
}

/// The number of edits between two words; `None` if there are more than `within`.
pub(crate) fn distance(from: &[char], to: &str, within: usize) -> Option<usize> {
    edit_distance(from, &to.chars().collect::<Vec<_>>(), within)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(word: &str) -> Vec<&'static str> {
        nearest(word, ["delete", "deploy", "write", "loop", "data_deletion"].into_iter(), 3)
    }

    #[test]
    fn a_slip_of_the_keyboard_is_near_and_another_word_is_not() {
        assert_eq!(near("delte"), ["delete"]);
        assert_eq!(near("dpeloy"), ["deploy"]);
        assert_eq!(near("wirte"), ["write"]);
        assert_eq!(near("data_deletoin"), ["data_deletion"]);
        for far in ["teleport", "lo", "xyz", "irreversible", &"a".repeat(1_000)] {
            assert!(near(far).is_empty(), "{far}");
        }
    }
}
