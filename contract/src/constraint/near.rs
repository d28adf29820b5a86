//! Near names: which known names a misspelt one may have meant.
//!
//! Only names of nearly the same length are compared, and a comparison ends as soon as it is worse than two edits, so
//! that a request full of misspelt names costs little more than reading it.

use super::names::{ConstraintName, Names};

/// Edits that make another spelling.
const MAX_EDITS: usize = 2;
pub(super) const MAX_SUGGESTIONS: usize = 3;
/// More edits than any limit.
const FAR: usize = usize::MAX / 2;

impl Names {
    /// Constraints with a name within `edits` of the key, the nearest first. Of a short name fewer letters may be
    /// wrong: `mfa` is near to half of all words.
    pub(super) fn suggest(&self, key: &str, edits: usize) -> Vec<&'static str> {
        let key: Vec<char> = key.chars().collect();
        let mut found: Vec<(usize, ConstraintName)> = Vec::new();
        for (known, name) in &self.keys {
            let may = match known.len() {
                0..=3 => 0,
                4..=5 => 1,
                _ => MAX_EDITS,
            };
            found.extend(edit_distance(&key, known, may.min(edits)).map(|distance| (distance, *name)));
        }
        found.sort_unstable_by_key(|(distance, name)| (*distance, name.place()));
        let mut names: Vec<&'static str> = Vec::new();
        for (_, name) in found {
            if names.len() < MAX_SUGGESTIONS && !names.contains(&name.as_str()) {
                names.push(name.as_str());
            }
        }
        names
    }
}

/// How many edits lie between two texts, if not more than `most`: letters added, left out, changed or exchanged.
pub fn edit_distance(from: &[char], to: &[char], most: usize) -> Option<usize> {
    if from.len().abs_diff(to.len()) > most {
        return None;
    }
    let mut two_back: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.iter().enumerate() {
        let mut row = Vec::with_capacity(above.len());
        row.push(i + 1);
        for (j, b) in to.iter().enumerate() {
            // Only the diagonals that can matter.
            if i.abs_diff(j) > most {
                row.push(FAR);
                continue;
            }
            let at = |row: &[usize], column: usize| row.get(column).copied().unwrap_or(FAR);
            let mut edits = (at(&above, j) + usize::from(a != b)).min(at(&above, j + 1) + 1).min(at(&row, j) + 1);
            if i > 0 && j > 0 && from.get(i - 1) == Some(b) && to.get(j - 1) == Some(a) {
                edits = edits.min(at(&two_back, j - 1) + 1);
            }
            row.push(edits);
        }
        if row.iter().min().is_none_or(|least| *least > most) {
            return None;
        }
        two_back = std::mem::replace(&mut above, row);
    }
    above.last().copied().filter(|edits| *edits <= most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edits(a: &str, b: &str) -> Option<usize> {
        edit_distance(&a.chars().collect::<Vec<_>>(), &b.chars().collect::<Vec<_>>(), MAX_EDITS)
    }

    #[test]
    fn letters_added_left_out_changed_or_exchanged_are_edits() {
        for (a, b, edits_between) in [
            ("sandbox", "sandbox", Some(0)),
            ("sandbx", "sandbox", Some(1)),
            ("sandboxx", "sandbox", Some(1)),
            ("snadbox", "sandbox", Some(1)),
            ("sanbdx", "sandbox", Some(2)),
            ("sendbux", "sandbox", Some(2)),
            ("sadnbxo", "sandbox", Some(2)),
            ("sabdxo", "sandbox", None),
            ("box", "sandbox", None),
            ("abcdefg", "sandbox", None),
            ("", "ab", Some(2)),
            ("", "abc", None),
        ] {
            assert_eq!(edits(a, b), edits_between, "{a} {b}");
        }
    }
}
