//! Words: normalising one twice is normalising it once, and what could be a look-alike equals nothing.
//!
//! The two halves of the input, at the first line feed, are compared with each other as well.

use stage0_contract::{Spelling, Word, hidden, is_invisible, is_same_environment, parts, plain, visible};

use crate::{Target, text};

pub(crate) const TARGET: Target = Target::new("word", check);

fn check(input: &[u8]) -> bool {
    let text = text(input);
    let (one, other) = text.split_once('\n').unwrap_or((&text, ""));
    for word in [one, other, text.as_ref()] {
        is_stable(word);
    }
    are_compared_alike(one, other);
    Word::new(&text).known().is_some()
}

fn is_stable(raw: &str) {
    let (plain_text, text) = (plain(raw), visible(raw));
    assert_eq!(plain(&plain_text), plain_text, "`plain` of {raw:?}");
    assert_eq!(visible(&text), text, "`visible` of {raw:?}");
    assert!(!plain_text.chars().any(is_invisible), "{plain_text:?}");
    let most = 6 * raw.chars().count() + 192;
    assert!(text.chars().count() <= most, "{} characters become {}", raw.chars().count(), text.chars().count());
    let (word, name) = (Word::new(raw), Word::name(raw));
    assert_eq!(word.as_str(), text);
    assert_eq!(Word::name(name.as_str()).as_str(), name.as_str(), "`Word::name` of {raw:?}");
    for word in [&word, &name] {
        let is_known = word.known().is_some();
        assert_eq!((word.matches(word), word.is(word.as_str())), (is_known, is_known), "{word:?}");
        if let Some(known) = word.known() {
            assert!(hidden(known).is_none() && !known.chars().any(is_invisible), "{known:?}");
        }
    }
    let spelling = Spelling::of(raw);
    assert_eq!(spelling.folded().is_some(), word.known().is_some());
    let is_known = word.known().is_some();
    assert_eq!((spelling.is_same(&spelling), spelling.may_be(&spelling)), (is_known, is_known), "{spelling:?}");
    let parts = parts(raw);
    assert!(parts.iter().all(|part| !part.is_empty()) && parts.len() <= plain_text.chars().count(), "{parts:?}");
}

fn are_compared_alike(one: &str, other: &str) {
    let (word, another) = (Word::new(one), Word::new(other));
    let (spelling, spelled) = (Spelling::of(one), Spelling::of(other));
    assert_eq!(word.matches(&another), another.matches(&word), "{word:?} {another:?}");
    assert_eq!(spelling.is_same(&spelled), spelled.is_same(&spelling), "{spelling:?} {spelled:?}");
    assert_eq!(spelling.may_be(&spelled), spelled.may_be(&spelling), "{spelling:?} {spelled:?}");
    assert!(!word.matches(&another) || spelling.is_same(&spelled), "{spelling:?} {spelled:?}");
    assert!(!spelling.is_same(&spelled) || spelling.may_be(&spelled), "{spelling:?} {spelled:?}");
    assert_eq!(is_same_environment(one, other), is_same_environment(other, one), "{one:?} {other:?}");
    assert_eq!(is_same_environment(one, one), word.known().is_some(), "{one:?}");
}
