//! Suggestions for unknown words by edit distance.
//!
//! Owns the distance (insertions, deletions, replacements and swaps of neighbours) and its bounds: long words get no
//! suggestion, and candidates whose length differs too much are not compared.

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
fn distance(from: &[char], to: &str, within: usize) -> Option<usize> {
    let to: Vec<char> = to.chars().collect();
    let mut two_back: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.iter().enumerate() {
        let mut row = Vec::with_capacity(above.len());
        row.push(i + 1);
        for (j, b) in to.iter().enumerate() {
            let at = |row: &[usize], column: usize| row.get(column).copied().unwrap_or(usize::MAX / 2);
            let mut edits = (at(&above, j) + usize::from(a != b)).min(at(&above, j + 1) + 1).min(at(&row, j) + 1);
            let swapped = i > 0 && j > 0 && from.get(i - 1) == Some(b) && to.get(j - 1) == Some(a);
            if swapped {
                edits = edits.min(at(&two_back, j - 1) + 1);
            }
            row.push(edits);
        }
        if row.iter().min().is_none_or(|least| *least > within) {
            return None;
        }
        two_back = std::mem::replace(&mut above, row);
    }
    above.last().copied().filter(|edits| *edits <= within)
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
