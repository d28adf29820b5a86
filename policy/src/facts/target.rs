//! Target resources and resource scopes, compared as canonical paths.
//!
//! A path becomes canonical by reading `\` as `/`, percent-decoding once, and removing `.` and
//! `..` segments. A text that another program could still read differently (`%2e` again, `..;`, an invalid escape,
//! `{…}`, a query) has no canonical form: as a target it is outside every scope, as a scope it contains nothing.

use std::borrow::Cow;
use std::collections::HashSet;

use stage0_contract::{Word, is_invisible};

use super::patterns::Patterns;

/// A canonical target: a path without empty segments, or `scheme://host` followed by such a path.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target(String);

#[derive(Debug, Default, Clone)]
pub(super) struct Scope(Patterns);

impl Target {
    /// `None` for a text without a canonical form.
    pub(super) fn read(raw: &str) -> Option<Self> {
        let raw = raw.trim_matches(|c: char| c.is_whitespace() || is_invisible(c));
        if raw.chars().any(is_invisible) {
            return None;
        }
        let word = Word::new(raw);
        canonical(word.known()?).map(Self)
    }

    pub(super) fn into_text(self) -> String {
        self.0
    }
}

impl Scope {
    /// The scope of one list; an entry without a canonical form contains nothing.
    pub(super) fn of(entries: &[Word]) -> Self {
        let mut exact = HashSet::new();
        let mut prefixes = Vec::new();
        for text in entries.iter().filter_map(Word::known) {
            match text.strip_suffix('*') {
                None => exact.extend(canonical(text)),
                Some(stem) => match stem_path(stem) {
                    Some(Stem::Prefix(path)) => prefixes.push(path),
                    Some(Stem::Host(host)) => {
                        prefixes.push(format!("{host}/"));
                        exact.insert(host);
                    }
                    None => {}
                },
            }
        }
        Self(Patterns::of(exact, prefixes))
    }

    /// What every list contains; `None` without a list.
    pub(super) fn intersection(lists: &[Vec<Word>]) -> Option<Self> {
        Patterns::intersection(lists.iter().map(|list| Self::of(list).0).collect()).map(Self)
    }

    pub(super) fn contains(&self, target: &Target) -> bool {
        self.0.matches(&target.0)
    }
}

/// The text before a `*`.
enum Stem {
    Prefix(String),
    /// `scheme://host`: the host itself and every path on it. `https://a.example*` must not contain
    /// `https://a.example.evil.io`.
    Host(String),
}

fn stem_path(stem: &str) -> Option<Stem> {
    let stem = decoded_path(stem)?;
    let last = stem.rsplit('/').next().unwrap_or_default();
    if let Some((scheme, rest)) = split_scheme(&stem)
        && !rest.is_empty()
        && !rest.contains('/')
    {
        return is_authority(rest).then(|| Stem::Host(format!("{scheme}://{rest}")));
    }
    // `a/.*` would contain all of `a`, and `a/..*` more than that.
    if is_dots(last.trim()) {
        return None;
    }
    let path = canonical_path(&stem)?;
    // `a/../*` would contain everything, which its author cannot have meant.
    if (path.is_empty() || path == "/") && stem.split('/').any(|segment| segment.trim() == "..") {
        return None;
    }
    // `a/*` must not contain `ab`, so the separator before the star is kept.
    let ends_in_separator = last.trim().is_empty() && !path.is_empty() && !path.ends_with('/');
    Some(Stem::Prefix(if ends_in_separator { format!("{path}/") } else { path }))
}

fn canonical(text: &str) -> Option<String> {
    canonical_path(&decoded_path(text)?)
}

/// The text percent-decoded once, with `/` as its only separator; `None` if programs could then read it in different
/// ways.
fn decoded_path(text: &str) -> Option<Cow<'_, str>> {
    if let Some((_, rest)) = split_scheme(text) {
        // Programs disagree on where the host ends if it contains these.
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if authority.contains('%') || rest.contains('\\') {
            return None;
        }
    }
    let decoded = if text.contains('%') { Cow::Owned(percent_decoded(text)?) } else { Cow::Borrowed(text) };
    let is_ambiguous = |c: char| c.is_control() || matches!(c, '?' | '#' | ';' | '{' | '}' | '`');
    if decoded.contains(is_ambiguous) || decoded.contains("$(") {
        return None;
    }
    Some(if decoded.contains('\\') { Cow::Owned(decoded.replace('\\', "/")) } else { decoded })
}

/// `None` for an invalid escape, for bytes that are not UTF-8, for a text that a second decoding would change, and for
/// letters that are not normalised.
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

/// Whether the text after a `%` could be read as an escape: two digits, or the `u` that some servers accept.
fn is_escape(text: &str) -> bool {
    let mut bytes = text.bytes();
    match (bytes.next(), bytes.next()) {
        (Some(b'u'), _) => true,
        (Some(first), Some(second)) => first.is_ascii_hexdigit() && second.is_ascii_hexdigit(),
        _ => false,
    }
}

/// The path without empty, `.` and `..` segments; `None` when it climbs above its root or has an ambiguous segment.
fn canonical_path(text: &str) -> Option<String> {
    let (root, rest) = match split_scheme(text) {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            if !is_authority(host) {
                return None;
            }
            (format!("{scheme}://{host}"), path)
        }
        // Some programs read `//` as `/`, others as the start of a host.
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
            // Some programs read `...` and `..x` as names, others as levels up.
            other if other.starts_with("..") => return None,
            name => kept.push(name),
        }
    }
    match (root.is_empty() || root == "/", kept.is_empty()) {
        // An absolute path and a relative one are different targets.
        (true, _) => Some(format!("{root}{}", kept.join("/"))),
        (false, true) => Some(root),
        (false, false) => Some(format!("{root}/{}", kept.join("/"))),
    }
}

fn split_scheme(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let mut bytes = scheme.bytes();
    let valid = bytes.next().is_some_and(|b| b.is_ascii_lowercase())
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b));
    valid.then_some((scheme, rest))
}

/// Whether the text can be a host with a port or a user. Some programs end the host at white space.
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

    fn contains(scope: &str, target: &str) -> bool {
        let entries: Vec<Word> = scope.split(',').map(Word::new).collect();
        Target::read(target).is_some_and(|target| Scope::of(&entries).contains(&target))
    }

    #[test]
    fn a_target_that_any_program_could_read_as_outside_the_scope_is_outside() {
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
            assert!(!contains("staging/*", target), "{target}");
            assert!(!contains("staging/*,staging/a*", target), "{target}");
        }
    }

    #[test]
    fn equivalent_spellings_of_a_target_inside_a_scope_are_inside() {
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
            assert!(contains("staging/*", target), "{target}");
        }
        assert!(contains("accounts:staging", "Accounts:Staging"));
        assert!(contains("*", "anything/at all") && !contains("*", "../x") && !contains("../*", "x"));
        // An absolute path is a different target.
        assert!(!contains("staging/*", "/staging/a") && !contains("/staging/*", "staging/a"));
        assert!(
            contains("/staging/*", "/staging/./a")
                && contains("/*", "/etc/passwd")
                && !contains("/staging/*", "//staging/a")
        );
        assert!(!contains("/a/../*", "/etc/passwd"));
        assert!(contains("/home/u/tools/*", "%2Fhome%2Fu%2Ftools%2Fx") && !contains("/home/u/tools/*", "%2Fhome%2Fu"));
    }

    #[test]
    fn a_star_after_a_host_matches_paths_only() {
        for scope in ["https://api.example.com*", "https://api.example.com/*"] {
            for target in
                ["https://api.example.com/v1", "HTTPS://API.example.com/v1/../v2", "https://api.example.com/@x"]
            {
                assert!(contains(scope, target), "{scope} {target}");
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
                assert!(!contains(scope, target), "{scope} {target}");
            }
        }
        assert!(contains("https://api.example.com*", "https://api.example.com"));
        assert!(contains("https://api.example.com/v1*", "https://api.example.com/v12"));
        assert!(contains("https://*", "https://any.example/x") && !contains("https://*", "http://any.example/x"));
        assert!(!contains("https://api.*", "https://api.evil.io/"));
        assert!(
            contains("s3://bucket/logs/*", "s3://bucket/logs/a")
                && !contains("s3://bucket/logs/*", "s3://bucket/logs-b/a")
        );
    }

    #[test]
    fn a_scope_without_a_canonical_form_contains_nothing() {
        for scope in
            ["staging/%2e%2e/*", "staging/{a}/*", "staging/..;/*", "a/50%off/*", "staging/.*", "staging/..*", "../*"]
        {
            for target in ["staging/a", "staging", "a/b", "prod/x", "x", "staging/{a}/b", "a/50%off/b", "staging-evil"]
            {
                assert!(!contains(scope, target), "{scope} {target}");
            }
        }
        assert!(!contains("staging/ *", "staging-evil") && contains("staging/ *", "staging/a"));
    }

    proptest! {
        #[test]
        fn an_intersection_of_scopes_contains_what_each_of_them_contains(
            lists in prop::collection::vec(prop::collection::vec("[ab/]{0,4}\\*?", 1..6), 1..6), target in "[ab/]{0,5}"
        ) {
            let lists: Vec<Vec<Word>> = lists.iter().map(|list| list.iter().map(|e| Word::new(e)).collect()).collect();
            let Some(target) = Target::read(&target) else { return Ok(()) };
            let each = lists.iter().all(|list| Scope::of(list).contains(&target));
            prop_assert_eq!(Scope::intersection(&lists).unwrap().contains(&target), each);
        }
    }
}
