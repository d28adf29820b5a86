//! Targets and scopes as paths: the one plain form in which they are compared.
//!
//! Owns the reading of contract section 2: `\` is `/`, one percent-decoding, `.` and `..` segments removed. What some
//! other reader could still understand otherwise then (`%2e` again, `..;`, an invalid escape, `{…}`, a query) is in no
//! plain form: as a target it lies outside, as a scope it holds nothing.

use std::borrow::Cow;
use std::collections::HashSet;

use stage0_contract::{Word, is_invisible};

use super::patterns::Patterns;

/// A place as it is compared: a path without empty segments, or `scheme://host` and such a path.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target(String);

/// Targets that a request allows itself.
#[derive(Debug, Default, Clone)]
pub(super) struct Scope(Patterns);

impl Target {
    /// Nothing for a text that is in no plain form.
    pub(super) fn read(raw: &str) -> Option<Self> {
        let raw = raw.trim_matches(|c: char| c.is_whitespace() || is_invisible(c));
        if raw.chars().any(is_invisible) {
            return None;
        }
        let word = Word::new(raw);
        plain_path(word.known()?).map(Self)
    }
}

impl Scope {
    /// The scope of one list; an entry that is in no plain form holds nothing.
    pub(super) fn of(entries: &[Word]) -> Self {
        let (mut exact, mut below) = (HashSet::new(), Vec::new());
        for text in entries.iter().filter_map(Word::known) {
            match text.strip_suffix('*') {
                None => exact.extend(plain_path(text)),
                Some(stem) => match stem_path(stem) {
                    Some(Stem::Prefix(path)) => below.push(path),
                    Some(Stem::Host(host)) => {
                        below.push(format!("{host}/"));
                        exact.insert(host);
                    }
                    None => {}
                },
            }
        }
        Self(Patterns::of(exact, below))
    }

    /// What lies in every one of several scopes; none where there are none.
    pub(super) fn of_all(lists: &[Vec<Word>]) -> Option<Self> {
        Patterns::all(lists.iter().map(|list| Self::of(list).0).collect()).map(Self)
    }

    pub(super) fn holds(&self, target: &Target) -> bool {
        self.0.hold(&target.0)
    }
}

/// What stands before a `*`.
enum Stem {
    /// Any text that begins so.
    Prefix(String),
    /// `scheme://host`: the host alone, and what lies below it. `https://a.example*` must not hold
    /// `https://a.example.evil.io`.
    Host(String),
}

fn stem_path(stem: &str) -> Option<Stem> {
    let stem = unescaped(stem)?;
    let last = stem.rsplit('/').next().unwrap_or_default();
    if let Some((scheme, rest)) = split_scheme(&stem)
        && !rest.is_empty()
        && !rest.contains('/')
    {
        return is_authority(rest).then(|| Stem::Host(format!("{scheme}://{rest}")));
    }
    // `a/.*` would be all of `a`, and `a/..*` more than that.
    if is_dots(last.trim()) {
        return None;
    }
    let path = path_of(&stem)?;
    // `a/../*` would be everything, which nobody writes so.
    if (path.is_empty() || path == "/") && stem.split('/').any(|segment| segment.trim() == "..") {
        return None;
    }
    // `a/*` must not hold `ab`: the separator before the star stays.
    let open = last.trim().is_empty() && !path.is_empty() && !path.ends_with('/');
    Some(Stem::Prefix(if open { format!("{path}/") } else { path }))
}

/// The path in its one plain form, of a text in normal form.
fn plain_path(text: &str) -> Option<String> {
    path_of(&unescaped(text)?)
}

/// The text after one percent-decoding, with `/` alone as separator; nothing where it is in no plain form then.
fn unescaped(text: &str) -> Option<Cow<'_, str>> {
    if let Some((_, rest)) = split_scheme(text) {
        // Where the host ends is read in more than one way with these.
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if authority.contains('%') || rest.contains('\\') {
            return None;
        }
    }
    let decoded = if text.contains('%') { Cow::Owned(percent_decoded(text)?) } else { Cow::Borrowed(text) };
    let telling = |c: char| c.is_control() || matches!(c, '?' | '#' | ';' | '{' | '}' | '`');
    if decoded.contains(telling) || decoded.contains("$(") {
        return None;
    }
    Some(if decoded.contains('\\') { Cow::Owned(decoded.replace('\\', "/")) } else { decoded })
}

/// Decoded once. Nothing for an invalid escape, for bytes that are no UTF-8, for what a second decoding would change,
/// and for letters that are not in normal form.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut pieces = text.split('%');
    bytes.extend_from_slice(pieces.next()?.as_bytes());
    for piece in pieces {
        let (digits, rest) = piece.split_at_checked(2)?;
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    let decoded = String::from_utf8(bytes).ok()?.to_lowercase();
    let normal = Word::new(&decoded).known() == Some(decoded.as_str());
    (normal && !decoded.split('%').skip(1).any(is_escape)).then_some(decoded)
}

/// Whether what stands behind a `%` could be read as an escape: two digits, or `u` as some servers take it.
fn is_escape(behind: &str) -> bool {
    let mut bytes = behind.bytes();
    match (bytes.next(), bytes.next()) {
        (Some(b'u'), _) => true,
        (Some(first), Some(second)) => first.is_ascii_hexdigit() && second.is_ascii_hexdigit(),
        _ => false,
    }
}

/// The path without empty, `.` and `..` segments; nothing when it climbs above its root or has a segment that may mean
/// another one.
fn path_of(text: &str) -> Option<String> {
    let (root, rest) = match split_scheme(text) {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            if !is_authority(host) {
                return None;
            }
            (format!("{scheme}://{host}"), path)
        }
        // Two slashes are one to some readers, and a host to others.
        None if text.starts_with("//") => return None,
        None if text.starts_with('/') => ("/".to_owned(), text),
        None => (String::new(), text),
    };
    let mut kept: Vec<&str> = Vec::new();
    for segment in rest.split('/').map(str::trim) {
        match segment {
            "" | "." => {}
            ".." => {
                kept.pop()?;
            }
            // `...`, `..x`: two levels up for some, a name for others.
            other if other.starts_with("..") => return None,
            name => kept.push(name),
        }
    }
    match (root.is_empty() || root == "/", kept.is_empty()) {
        // What begins at the root is another place than what does not.
        (true, _) => Some(format!("{root}{}", kept.join("/"))),
        (false, true) => Some(root),
        (false, false) => Some(format!("{root}/{}", kept.join("/"))),
    }
}

/// `https` and what stands behind `://`.
fn split_scheme(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let mut bytes = scheme.bytes();
    let valid = bytes.next().is_some_and(|b| b.is_ascii_lowercase())
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b));
    valid.then_some((scheme, rest))
}

/// A host, with a port or a user: blanks end it for some readers.
fn is_authority(host: &str) -> bool {
    !host.contains(char::is_whitespace)
}

fn is_dots(segment: &str) -> bool {
    !segment.is_empty() && segment.bytes().all(|b| b == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn holds(scope: &str, target: &str) -> bool {
        let entries: Vec<Word> = scope.split(',').map(Word::new).collect();
        Target::read(target).is_some_and(|target| Scope::of(&entries).holds(&target))
    }

    #[test]
    fn what_climbs_out_of_a_scope_in_some_reading_lies_outside() {
        for target in [
            "staging/..;/prod",
            "staging/..;a=b/prod",
            "staging/;/../../prod",
            "staging/%252e%252e/prod",
            "staging/%2e%2e/prod",
            "staging/.%2e/prod",
            "staging/%25252e%25252e/prod",
            "staging/%c0%ae%c0%ae/prod",
            "staging/%e0%80%ae%e0%80%ae/prod",
            "staging/%ef%bc%8e%ef%bc%8e/prod",
            "staging/%u002e%u002e/prod",
            "staging/%25u002e%25u002e/prod",
            "staging/{a,../../prod}",
            "staging/%7ba,../../prod%7d",
            "staging/x?path=../../prod",
            "staging/x%3fpath=../../prod",
            "staging/x#../../prod",
            "staging/a/50%off",
            "staging/50%",
            "staging/50%2",
            "staging/\u{ff05}2e\u{ff05}2e/prod",
            "staging/\u{2025}/prod",
            "staging/../prod",
            "staging\\..\\prod",
            "staging%5c..%5cprod",
            "staging%2f..%2fprod",
            "staging/.. /prod",
            "staging/%2e%2e%20/prod",
            "staging/.../prod",
            "staging/....//prod",
            "staging/..\u{200b}/prod",
            "staging/a%00/../../prod",
            "staging/a\u{0}b",
            "staging/a%0a",
            "staging/$(echo ../../prod)",
            "staging/`echo ../../prod`",
            "staging/${UP}/prod",
            "../staging/a",
            "staging-evil/a",
            "staging",
            "prod/staging/a",
            "stagin\u{433}/a",
            "staging/%d0%b0dmin",
        ] {
            assert!(!holds("staging/*", target), "{target}");
            assert!(!holds("staging/*,staging/a*", target), "{target}");
        }
    }

    #[test]
    fn the_plain_spellings_of_a_target_in_a_scope_lie_inside() {
        for target in [
            "staging/a",
            "Staging//A",
            "./staging/a",
            "staging\\a",
            "staging/x/../a",
            "staging%2fa",
            "%73taging/a",
            "staging/a b",
            "staging/a%20b",
            "staging/50%25off",
            "staging/a.b..c",
            "staging/.hidden",
            "staging/caf%c3%a9",
            "\u{200b} staging/a \u{feff}",
            "ｓｔａｇｉｎｇ/a",
        ] {
            assert!(holds("staging/*", target), "{target}");
        }
        assert!(holds("accounts:staging", "Accounts:Staging"));
        assert!(holds("*", "anything/at all") && !holds("*", "../x") && !holds("../*", "x"));
        // What begins at the root is another place.
        assert!(!holds("staging/*", "/staging/a") && !holds("/staging/*", "staging/a"));
        assert!(
            holds("/staging/*", "/staging/./a") && holds("/*", "/etc/passwd") && !holds("/staging/*", "//staging/a")
        );
        assert!(!holds("/a/../*", "/etc/passwd"));
        assert!(holds("/home/u/tools/*", "%2Fhome%2Fu%2Ftools%2Fx") && !holds("/home/u/tools/*", "%2Fhome%2Fu"));
    }

    #[test]
    fn a_star_behind_a_host_stands_for_paths_only() {
        for scope in ["https://api.example.com*", "https://api.example.com/*"] {
            for target in
                ["https://api.example.com/v1", "HTTPS://API.example.com/v1/../v2", "https://api.example.com/@x"]
            {
                assert!(holds(scope, target), "{scope} {target}");
            }
            for target in [
                "https://api.example.com.evil.io/v1",
                "https://api.example.com.evil.io",
                "https://api.example.com@evil.io/v1",
                "https://api.example.com:8443@evil.io/v1",
                "https://api.example.com%2f@evil.io/v1",
                "https://api.example.com%2eevil.io/v1",
                "https://api.example.com\\@evil.io/v1",
                "https://evil.io/https://api.example.com/v1",
                "https://evil.io#https://api.example.com/",
                "https://api.example.com/../evil.io",
                "https://api.example.com /v1",
                "http://api.example.com/v1",
                "https:/api.example.com/v1",
                "//api.example.com/v1",
            ] {
                assert!(!holds(scope, target), "{scope} {target}");
            }
        }
        assert!(holds("https://api.example.com*", "https://api.example.com"));
        assert!(holds("https://api.example.com/v1*", "https://api.example.com/v12"));
        assert!(holds("https://*", "https://any.example/x") && !holds("https://*", "http://any.example/x"));
        assert!(!holds("https://api.*", "https://api.evil.io/"));
        assert!(
            holds("s3://bucket/logs/*", "s3://bucket/logs/a") && !holds("s3://bucket/logs/*", "s3://bucket/logs-b/a")
        );
    }

    #[test]
    fn a_scope_that_is_in_no_plain_form_holds_nothing() {
        for scope in
            ["staging/%2e%2e/*", "staging/{a}/*", "staging/..;/*", "a/50%off/*", "staging/.*", "staging/..*", "../*"]
        {
            for target in ["staging/a", "staging", "a/b", "prod/x", "x", "staging/{a}/b", "a/50%off/b", "staging-evil"]
            {
                assert!(!holds(scope, target), "{scope} {target}");
            }
        }
        assert!(!holds("staging/ *", "staging-evil") && holds("staging/ *", "staging/a"));
    }

    proptest! {
        #[test]
        fn scopes_together_hold_what_each_of_them_holds(
            lists in prop::collection::vec(prop::collection::vec("[ab/]{0,4}\\*?", 1..6), 1..6), target in "[ab/]{0,5}"
        ) {
            let lists: Vec<Vec<Word>> = lists.iter().map(|list| list.iter().map(|e| Word::new(e)).collect()).collect();
            let Some(target) = Target::read(&target) else { return Ok(()) };
            let each = lists.iter().all(|list| Scope::of(list).holds(&target));
            prop_assert_eq!(Scope::of_all(&lists).unwrap().holds(&target), each);
        }
    }
}
