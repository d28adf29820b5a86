//! Near names: which known names a misspelt one may have meant.
//!
//! Owns the search. Only names of nearly the same length are compared, and a comparison ends as soon as it is worse
//! than two edits, so that a request full of misspelt names costs little more than reading it.

use super::names::ConstraintName;

/// Edits (a letter added, left out, changed, or two exchanged) that make another spelling.
const MAX_EDITS: usize = 2;
/// Suggestions for one name.
pub(super) const MAX_SUGGESTIONS: usize = 3;

/// Keys of names, to be asked by similarity.
#[derive(Debug, Default)]
pub(super) struct Near {
    /// By length in characters, then by text.
    keys: Vec<(Vec<char>, ConstraintName)>,
}

impl Near {
    pub(super) fn of(keys: Vec<(String, ConstraintName)>) -> Self {
        let mut keys: Vec<(Vec<char>, ConstraintName)> =
            keys.into_iter().map(|(key, name)| (key.chars().collect(), name)).collect();
        keys.sort_by(|a, b| (a.0.len(), &a.0).cmp(&(b.0.len(), &b.0)));
        Self { keys }
    }

    /// Constraints with a name within `edits` of the key, the nearest first. Of a short name fewer letters may be
    /// wrong: `mfa` is near to half of all words.
    pub(super) fn suggest(&self, key: &str, edits: usize) -> Vec<&'static str> {
        let key: Vec<char> = key.chars().collect();
        let shortest = key.len().saturating_sub(MAX_EDITS);
        let from = self.keys.partition_point(|(known, _)| known.len() < shortest);
        let alike = self.keys.iter().skip(from).take_while(|(known, _)| known.len() <= key.len() + MAX_EDITS);
        let mut found: Vec<(usize, ConstraintName)> = alike
            .filter_map(|(known, name)| {
                let may = match known.len() {
                    0..=3 => 0,
                    4..=5 => 1,
                    _ => MAX_EDITS,
                };
                distance(&key, known, may.min(edits)).map(|distance| (distance, *name))
            })
            .collect();
        found.sort_unstable();
        let mut names: Vec<&'static str> = Vec::new();
        for (_, name) in found {
            if names.len() < MAX_SUGGESTIONS && !names.contains(&name.as_str()) {
                names.push(name.as_str());
            }
        }
        names
    }
}

/// How many edits lie between two texts, if not more than `most`. Only the diagonals that can matter are computed.
fn distance(a: &[char], b: &[char], most: usize) -> Option<usize> {
    if a.len().abs_diff(b.len()) > most {
        return None;
    }
    let beyond = most + 1;
    let mut two_back: Vec<usize> = Vec::new();
    let mut back: Vec<usize> = (0..=b.len()).map(|j| j.min(beyond)).collect();
    let mut a_before = None;
    for (i, &ca) in a.iter().enumerate() {
        let mut row = vec![beyond; b.len() + 1];
        let mut best = beyond;
        if let Some(first) = row.first_mut() {
            *first = (i + 1).min(beyond);
            best = *first;
        }
        let at = |row: &[usize], j: usize| row.get(j).copied().unwrap_or(beyond);
        for j in i.saturating_sub(most)..b.len().min(i + most + 1) {
            let Some(&cb) = b.get(j) else { break };
            let mut least = (at(&back, j) + usize::from(ca != cb)).min(at(&back, j + 1) + 1).min(at(&row, j) + 1);
            if let Some(before) = j.checked_sub(1)
                && b.get(before) == Some(&ca)
                && a_before == Some(cb)
            {
                least = least.min(at(&two_back, before) + 1);
            }
            if let Some(cell) = row.get_mut(j + 1) {
                *cell = least.min(beyond);
                best = best.min(*cell);
            }
        }
        if best > most {
            return None;
        }
        a_before = Some(ca);
        two_back = std::mem::replace(&mut back, row);
    }
    back.last().copied().filter(|distance| *distance <= most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edits(a: &str, b: &str) -> Option<usize> {
        distance(&a.chars().collect::<Vec<_>>(), &b.chars().collect::<Vec<_>>(), MAX_EDITS)
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
