//! The forms of secrets that are known by their looks.
//!
//! Owns one table of kinds and patterns and the two ways of asking it: one pass over all patterns for "is there anything", and one
//! pattern after the other for what and where. Patterns have no nested repetition; matching is linear.

use std::ops::Range;
use std::sync::LazyLock;

use regex::{Regex, RegexSet};
use stage0_contract::plain;

use super::{REDACTED, assignment};

/// Whether a match is what it looks like.
#[derive(Clone, Copy)]
enum Proof {
    /// The form alone.
    Form,
    /// The first group must look random: this check.
    Token(fn(&str) -> bool),
    /// A value follows; see [`assignment`].
    Assignment,
}

/// Kinds in the order in which they are told: the particular before the general.
const TABLE: [(&str, &str, Proof); 20] = [
    (
        "private_key",
        r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(?s:.*?)(?:-----END [A-Z0-9 ]+-----|\z)",
        Proof::Form,
    ),
    ("aws_access_key_id", r"(?-u:\b)(?:AKIA|ASIA)[A-Z0-9]{16}(?-u:\b)", Proof::Form),
    (
        "aws_secret_access_key",
        r#"(?i-u)aws_?secret_?(?:access_?)?key["']?\s*[:=]\s*["']?[A-Za-z0-9/+=]{40}"#,
        Proof::Form,
    ),
    ("gcp_api_key", r"AIza[0-9A-Za-z_-]{35}", Proof::Form),
    ("github_token", r"gh[pousr]_[0-9A-Za-z]{36,}", Proof::Form),
    ("github_token", r"github_pat_[0-9A-Za-z_]{22,}", Proof::Form),
    ("gitlab_token", r"glpat-[0-9A-Za-z_-]{20,}", Proof::Form),
    ("slack_token", r"xox[abeoprs]-[0-9A-Za-z-]{10,}", Proof::Form),
    ("stripe_key", r"(?:sk|rk)_live_[0-9A-Za-z]{16,}", Proof::Form),
    ("anthropic_key", r"(?-u:\b)sk-ant-[0-9A-Za-z_-]{20,}", Proof::Form),
    ("openai_key", r"(?-u:\b)(sk-(?:proj-|svcacct-)?[0-9A-Za-z_-]{20,})", Proof::Token(is_random)),
    ("stage0_key", r"s0_[0-9a-hjkmnp-tv-z]{16}_[0-9a-hjkmnp-tv-z]{32,}", Proof::Form),
    ("jwt", r"eyJ[0-9A-Za-z_-]{6,}\.eyJ[0-9A-Za-z_-]{6,}\.[0-9A-Za-z_-]*", Proof::Form),
    ("bearer_token", r"(?i-u)\bbearer\s+([0-9A-Za-z._~+/=-]{16,})", Proof::Token(has_digit)),
    (
        "bearer_token",
        r#"(?i-u)\bauthorization["']?\s*[:=]\s*["']?bearer\s+([0-9A-Za-z._~+/=-]{6,})"#,
        Proof::Token(is_bearer),
    ),
    ("basic_credentials", r#"(?i-u)\bauthorization["']?\s*[:=]\s*["']?basic\s+[0-9A-Za-z+/=]{8,}"#, Proof::Form),
    ("azure_key", r"(?i-u)\b(?:AccountKey|SharedAccessKey)=[0-9A-Za-z+/]{20,}=*", Proof::Form),
    (
        "url_credentials",
        r#"(?i)[a-z][a-z0-9+.-]{0,30}://[^\s/@:"'<>]*:([^\s/@"'<>]+)@"#,
        Proof::Token(assignment::is_no_placeholder),
    ),
    ("url_credentials", r#"(?i)https?://([0-9a-z_-]{20,})@[a-z0-9]"#, Proof::Token(has_digit)),
    (
        "password",
        r#"(?i-u)(?:password|passwd|passphrase|pwd|secret|(?:api|private|secret|access|account|signing|encryption)[_ -]?key|(?:access|refresh|auth|session)[_-]?token)["'`]?\s*(=>|:=|={1,3}|:)\s*"#,
        Proof::Assignment,
    ),
];

/// The compiled table.
pub(super) struct Detector(Option<Compiled>);

struct Compiled {
    any: RegexSet,
    each: Vec<(&'static str, Regex, Proof)>,
}

impl Detector {
    /// The process's detector.
    pub(super) fn get() -> &'static Self {
        static DETECTOR: LazyLock<Detector> = LazyLock::new(|| Detector(Compiled::build().ok()));
        &DETECTOR
    }

    /// Whether the text may hold a secret; `false` is certain.
    pub(super) fn suspects(&self, text: &str) -> bool {
        self.0.as_ref().is_none_or(|compiled| compiled.any.is_match(text))
    }

    /// The kind of the first secret in the text, raw or normalised.
    pub(super) fn kind(&self, text: &str) -> Option<&'static str> {
        let Some(compiled) = &self.0 else { return Some("unknown") };
        compiled.kind(text).or_else(|| if text.is_ascii() { None } else { compiled.kind(&plain(text)) })
    }

    /// The text with what can be cut out of it replaced.
    pub(super) fn replace(&self, text: &str) -> String {
        let Some(compiled) = &self.0 else { return REDACTED.to_owned() };
        let mut ranges: Vec<Range<usize>> =
            compiled.each.iter().flat_map(|(_, regex, proof)| secrets(regex, *proof, text)).collect();
        ranges.sort_unstable_by_key(|r| r.start);
        let (mut masked, mut kept) = (String::with_capacity(text.len()), 0);
        for range in ranges {
            if range.start >= kept {
                masked.push_str(text.get(kept..range.start).unwrap_or_default());
                masked.push_str(REDACTED);
            }
            kept = kept.max(range.end);
        }
        masked.push_str(text.get(kept..).unwrap_or_default());
        masked
    }
}

impl Compiled {
    fn build() -> Result<Self, regex::Error> {
        let any = RegexSet::new(TABLE.iter().map(|(_, pattern, _)| pattern))?;
        let each = TABLE.iter().map(|(kind, pattern, proof)| Ok((*kind, Regex::new(pattern)?, *proof)));
        Ok(Self { any, each: each.collect::<Result<_, regex::Error>>()? })
    }

    fn kind(&self, text: &str) -> Option<&'static str> {
        let suspects = self.any.matches(text);
        let mut suspected = self.each.iter().enumerate().filter(|(index, _)| suspects.matched(*index)).map(|(_, e)| e);
        suspected.find(|(_, regex, proof)| secrets(regex, *proof, text).next().is_some()).map(|(kind, _, _)| *kind)
    }
}

/// Where the pattern finds what is proved to be a secret.
fn secrets<'a>(regex: &'a Regex, proof: Proof, text: &'a str) -> impl Iterator<Item = Range<usize>> + use<'a> {
    regex.captures_iter(text).filter_map(move |found| {
        let whole = found.get(0)?;
        match proof {
            Proof::Form => Some(whole.range()),
            Proof::Token(holds) => holds(found.get(1)?.as_str()).then(|| whole.range()),
            Proof::Assignment => {
                let rest = text.get(whole.end()..)?;
                let length = assignment::value(rest, found.get(1)?.as_str())?;
                Some(whole.start()..whole.end() + length)
            }
        }
    })
}

/// After its header a token is what prose is not: with a digit, or long.
fn is_bearer(token: &str) -> bool {
    (has_digit(token) || token.len() >= 16) && assignment::is_no_placeholder(token)
}

fn has_digit(token: &str) -> bool {
    token.bytes().any(|b| b.is_ascii_digit())
}

/// Digits among capitals and small letters, or long with digits: no hyphenated prose.
fn is_random(token: &str) -> bool {
    let upper = token.bytes().any(|b| b.is_ascii_uppercase());
    has_digit(token) && (upper || token.len() >= 40)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_compiles() {
        assert!(Compiled::build().is_ok());
    }

    #[test]
    fn every_known_form_is_found() {
        for (kind, text) in [
            ("private_key", "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNza"),
            ("private_key", "-----BEGIN PGP PRIVATE KEY BLOCK-----"),
            ("aws_access_key_id", "key ASIAIOSFODNN7EXAMPLE."),
            ("aws_secret_access_key", "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
            ("gcp_api_key", "AIzaSyA1234567890abcdefghijklmnopqrstuv"),
            ("github_token", "ghp_0123456789abcdefghijABCDEFGHIJ012345"),
            ("github_token", "github_pat_11ABCDEFG0123456789_abcdef"),
            ("gitlab_token", "glpat-0123456789abcdefghij"),
            ("slack_token", "xoxb-123456789012-abcdef"),
            ("stripe_key", "sk_live_0123456789abcdefghij"),
            ("anthropic_key", "sk-ant-api03-abcdefghijklmnopqrst"),
            ("openai_key", "sk-proj-Abcdefghijklmnop0123456789"),
            ("stage0_key", "s0_0w3ge1r70w3ge1r7_144gj289144gj289144gj289144gj289ka2s328"),
            ("jwt", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3"),
            ("bearer_token", "Authorization: Bearer abc123def456ghi789"),
            ("basic_credentials", "Authorization: Basic dXNlcjpwYXNz"),
            ("azure_key", "AccountName=a;AccountKey=abcdefghijklmnopqrstuvwxyz0123=="),
            ("url_credentials", "postgres://app:s3cr3t@db/main"),
            ("url_credentials", "redis://:hunter22@cache:6379"),
            ("url_credentials", "https://0123456789abcdefghij0123@git.example.com/x"),
            ("password", "password=hunter22"),
        ] {
            assert_eq!(Detector::get().kind(text), Some(kind), "{text}");
        }
    }

    #[test]
    fn what_only_looks_similar_is_harmless() {
        for text in [
            "-----BEGIN PUBLIC KEY-----",
            "-----BEGIN CERTIFICATE-----",
            "AKIA is a prefix",
            "a bearer token is needed",
            "bearer authentication-is-required",
            "the risk-assessment-of-the-whole-department",
            "sk-learn-is-a-popular-python-library",
            "https://example.com:8443/path@tag",
            "https://<user>:<password>@host",
            "postgres://app:${DB_PASSWORD}@db/main",
            "ops@example.com",
            "eyJ is how a token starts",
            "run_9f3d7f51",
        ] {
            assert_eq!(Detector::get().kind(text), None, "{text}");
        }
    }
}
