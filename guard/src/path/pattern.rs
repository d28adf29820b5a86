//! Patterns of a shell, compared with the names that matter.
//!
//! A pattern that says no more than `*` or `*.ext` stands for the ordinary files of a directory, as `grep -r` does; the
//! shell leaves hidden ones out. INVARIANT: every other pattern that could stand for such a name counts as that name.

use super::names::{CONTROL_DIRECTORIES, CONTROL_NAMES, SECRET_DIRECTORIES, SECRET_ENDINGS, SECRET_NAMES};

/// The longest part of a pattern that is compared, in bytes; a longer one could stand for any name.
const MAX_PART_BYTES: usize = 100;

/// Whether a pattern could stand for a file that holds secrets: `.en*`, `.{env,x}`, `id_*`, `secrets.jso?`.
pub(crate) fn pattern_names_secret(text: &str) -> bool {
    parts(text).flat_map(alternatives).any(|part| {
        part.starts_with("id_")
            || could_be_one_of(&part, &[SECRET_NAMES, SECRET_DIRECTORIES])
            || SECRET_ENDINGS.iter().any(|ending| could_end_with(&part, ending))
    })
}

/// Whether a pattern could stand for a file that decides what runs.
pub(crate) fn pattern_names_control(text: &str) -> bool {
    parts(text).flat_map(alternatives).any(|part| could_be_one_of(&part, &[CONTROL_NAMES, CONTROL_DIRECTORIES]))
}

/// Whether one part of a path, which may be a pattern, could stand for exactly this name. As in a shell, a pattern
/// stands for a hidden name only where it begins with the dot.
pub(super) fn part_could_be(part: &str, name: &str) -> bool {
    if part == name || !is_pattern(part) {
        return part == name;
    }
    let fits = |part: &String| (!name.starts_with('.') || part.starts_with('.')) && could_be(&simple(part), name);
    part.len() > MAX_PART_BYTES || alternatives(part).iter().any(fits)
}

fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split('/').filter(|part| part.contains(['*', '?', '[', '{']))
}

/// The parts that `{a,b}` stands for, where there is one such list; a part with more of them stays as it is.
fn alternatives(part: &str) -> Vec<String> {
    let whole = vec![part.to_owned()];
    let Some((before, rest)) = part.split_once('{').filter(|_| part.len() <= MAX_PART_BYTES) else { return whole };
    let Some((list, after)) = rest.split_once('}') else { return whole };
    if list.contains('{') || after.contains(['{', '}']) || !list.contains(',') {
        return whole;
    }
    list.split(',').map(|item| format!("{before}{item}{after}")).collect()
}

fn could_be_one_of(part: &str, lists: &[&[&str]]) -> bool {
    if part.len() > MAX_PART_BYTES || part.starts_with('.') {
        return true;
    }
    let says_nothing = part.chars().all(|c| c == '*') || part.strip_prefix("*.").is_some_and(|rest| !is_pattern(rest));
    let pattern: Vec<char> = simple(part);
    !says_nothing && lists.iter().copied().flatten().any(|name| could_be(&pattern, name))
}

fn could_end_with(part: &str, ending: &str) -> bool {
    if part.ends_with(ending) {
        return true;
    }
    let pattern = simple(part);
    let says_nothing = pattern.iter().all(|c| *c == '*');
    !says_nothing
        && (0..pattern.len()).any(|at| {
            // A `*` before the ending stands for what is before it; alone it says nothing about the ending.
            let rest = pattern.get(at..).unwrap_or_default();
            rest.iter().any(|c| *c != '*') && rest.first() == Some(&'.') && could_be(rest, ending)
        })
}

fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '[', '{'])
}

/// In lower case, with `[…]` as one unknown character and `{…}` as any text.
fn simple(part: &str) -> Vec<char> {
    let mut out = Vec::new();
    let mut chars = part.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '[' => {
                chars.by_ref().find(|c| *c == ']');
                out.push('?');
            }
            '{' => {
                chars.by_ref().find(|c| *c == '}');
                out.push('*');
            }
            '}' => {}
            _ => out.extend(c.to_lowercase()),
        }
    }
    out
}

/// Whether a pattern of `*`, `?` and characters fits a name.
fn could_be(pattern: &[char], name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    let (mut at, mut of, mut star) = (0, 0, None);
    while of < name.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, of));
                at += 1;
            }
            Some(c) if *c == '?' || Some(c) == name.get(of) => {
                at += 1;
                of += 1;
            }
            _ => match star {
                Some((place, from)) => {
                    star = Some((place, from + 1));
                    at = place + 1;
                    of = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern.get(at..).unwrap_or_default().iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_that_could_be_a_secret_or_a_file_of_control_is_told_from_its_neighbours() {
        for pattern in
            [".en*", ".{env,x}", "id_*", "secrets.jso?", "serv.ke*", "shado[w]", "enviro?", "key.p?m", "*.key", "*.ke?"]
        {
            assert!(pattern_names_secret(pattern), "{pattern}");
        }
        for pattern in [".clau?e/x", ".gi[t]/hooks/x", ".gi*/x", "a/.b*", "opencode.jso?", "{.git,a}/x"] {
            assert!(pattern_names_control(pattern), "{pattern}");
        }
        for pattern in ["*", "*.rs", "src/*.md", "src/**/*.ts", "test_*.py", "a?", "*.json", "*_test.go", "{a,b}.rs/x"]
        {
            assert!(!pattern_names_control(pattern) || pattern.contains('{'), "{pattern}");
            assert!(!pattern_names_secret(pattern) || pattern.contains('{'), "{pattern}");
        }
    }
}
