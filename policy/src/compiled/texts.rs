//! Sets: nearly always of texts, so that they are compared without being built.
//!
//! INVARIANT: no comparison takes time in proportion to the product of two sizes that a caller chooses.

use std::collections::HashSet;

use super::value::Value;

/// Up to this many items are searched one by one.
const FEW: usize = 16;

#[derive(Debug)]
pub(super) enum Texts<'v> {
    /// A list of the rule; sorted, each once.
    Sorted(&'v [Box<str>]),
    Names(&'v [&'static str]),
    Words(&'v [String]),
    Gathered(Vec<String>),
    /// A list of the rule with values of any type in it; `read` bounds its length.
    Listed(Vec<Value<'v>>),
}

impl Texts<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Sorted(texts) => texts.len(),
            Self::Names(names) => names.len(),
            Self::Words(words) => words.len(),
            Self::Gathered(words) => words.len(),
            Self::Listed(items) => items.len(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn contains(&self, value: &Value<'_>) -> bool {
        match (self, value) {
            (Self::Listed(items), _) => items.iter().any(|item| item.is(value)),
            (_, Value::Text(text)) => self.has(text),
            _ => false,
        }
    }

    pub(super) fn contains_all(&self, others: &Self) -> bool {
        self.test(others, true)
    }

    pub(super) fn contains_any(&self, others: &Self) -> bool {
        !self.test(others, false)
    }

    /// Whether for each of the others it is `wanted` that it is among these.
    fn test(&self, others: &Self, wanted: bool) -> bool {
        if self.len() > FEW && others.len() > FEW && !matches!(self, Self::Sorted(_) | Self::Listed(_)) {
            let index = self.index();
            return others.all(|other| matches!(other, Value::Text(text) if index.contains(text)) == wanted);
        }
        others.all(|other| self.contains(other) == wanted)
    }

    fn all(&self, mut test: impl FnMut(&Value<'_>) -> bool) -> bool {
        match self {
            Self::Sorted(texts) => texts.iter().all(|text| test(&Value::Text(text))),
            Self::Names(names) => names.iter().all(|name| test(&Value::Text(name))),
            Self::Words(words) => words.iter().all(|word| test(&Value::Text(word))),
            Self::Gathered(words) => words.iter().all(|word| test(&Value::Text(word))),
            Self::Listed(items) => items.iter().all(test),
        }
    }

    fn has(&self, text: &str) -> bool {
        match self {
            Self::Sorted(texts) => texts.binary_search_by(|known| (**known).cmp(text)).is_ok(),
            Self::Names(names) => names.contains(&text),
            Self::Words(words) => words.iter().any(|word| word == text),
            Self::Gathered(words) => words.iter().any(|word| word == text),
            Self::Listed(items) => items.iter().any(|item| item.is(&Value::Text(text))),
        }
    }

    fn index(&self) -> HashSet<&str> {
        match self {
            Self::Sorted(texts) => texts.iter().map(AsRef::as_ref).collect(),
            Self::Names(names) => names.iter().copied().collect(),
            Self::Words(words) => words.iter().map(String::as_str).collect(),
            Self::Gathered(words) => words.iter().map(String::as_str).collect(),
            Self::Listed(items) => items.iter().filter_map(|item| item.text().ok()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn long_and_short_lists_compare_as_sets() {
        let words = |numbers: std::ops::Range<usize>| -> Vec<String> { numbers.map(|n| n.to_string()).collect() };
        let lists = [words(0..0), words(3..5), words(0..16), words(0..17), words(0..40), words(20..60), words(90..130)];
        for one in &lists {
            for other in &lists {
                let sorted: BTreeSet<Box<str>> = other.iter().map(|word| word.as_str().into()).collect();
                let sorted: Vec<Box<str>> = sorted.into_iter().collect();
                let sets = [one, other].map(|words| words.iter().collect::<BTreeSet<_>>());
                let [all, any] = [sets[1].is_subset(&sets[0]), !sets[0].is_disjoint(&sets[1])];
                for others in [Texts::Words(other), Texts::Gathered(other.clone()), Texts::Sorted(&sorted)] {
                    let these = Texts::Words(one);
                    assert_eq!(these.contains_all(&others), all, "{one:?} {other:?}");
                    assert_eq!(these.contains_any(&others), any, "{one:?} {other:?}");
                    assert_eq!(others.contains_any(&these), any, "{one:?} {other:?}");
                }
            }
        }
    }
}
