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
    /// The form alone; where it has a group, that is the secret.
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
        r#"(?i-u)aws_?secret_?(?:access_?)?key["']?\s*[:=]\s*["']?([A-Za-z0-9/+=]{40})"#,
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
    ("basic_credentials", r#"(?i-u)\bauthorization["']?\s*[:=]\s*["']?basic\s+([0-9A-Za-z+/=]{8,})"#, Proof::Form),
    ("azure_key", r"(?i-u)\b(?:AccountKey|SharedAccessKey)=([0-9A-Za-z+/]{20,}=*)", Proof::Form),
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

/// One secret in a text.
pub(super) struct Hit {
    /// With what tells it: what is cut out.
    whole: Range<usize>,
    /// The secret itself: what must stand nowhere else either.
    value: Range<usize>,
}

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

    /// Every secret in the text as it stands, with its kind.
    pub(super) fn hits<'t>(&'t self, text: &'t str) -> impl Iterator<Item = (&'static str, Hit)> + use<'t> {
        let each = self.0.iter().flat_map(|compiled| &compiled.each);
        each.flat_map(move |(kind, regex, proof)| secrets(regex, *proof, text).map(|hit| (*kind, hit)))
    }

    /// The text with what can be cut out of it replaced. Where a value ends no pattern knows for certain: what follows without a
    /// space or a quote goes with it, after the name of a passphrase the rest of the line.
    pub(super) fn replace(&self, text: &str) -> String {
        if self.0.is_none() {
            return REDACTED.to_owned();
        }
        let mut ranges: Vec<Range<usize>> = self.hits(text).map(|(_, hit)| hit.whole).collect();
        ranges.sort_unstable_by_key(|r| r.start);
        let (mut masked, mut kept) = (String::with_capacity(text.len()), 0);
        for range in ranges {
            if range.start >= kept {
                masked.push_str(text.get(kept..range.start).unwrap_or_default());
                masked.push_str(REDACTED);
            }
            kept = kept.max(assignment::end(text, &range));
        }
        masked.push_str(text.get(kept..).unwrap_or_default());
        masked
    }
}

impl Hit {
    /// The secret itself.
    pub(super) fn value<'t>(&self, text: &'t str) -> &'t str {
        text.get(self.value.clone()).unwrap_or_default()
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
fn secrets<'a>(regex: &'a Regex, proof: Proof, text: &'a str) -> impl Iterator<Item = Hit> + use<'a> {
    regex.captures_iter(text).filter_map(move |found| {
        let whole = found.get(0)?.range();
        match proof {
            Proof::Form => Some(Hit { value: found.get(1).map_or(whole.clone(), |group| group.range()), whole }),
            Proof::Token(holds) => {
                let token = found.get(1)?;
                holds(token.as_str()).then(|| Hit { value: token.range(), whole })
            }
            Proof::Assignment => {
                let length = assignment::value(text.get(whole.end..)?, found.get(1)?.as_str())?;
                let value = whole.end..whole.end + length;
                Some(Hit { whole: whole.start..value.end, value })
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

/// One for each kind and form: its kind, a text with it, and what must not be shown of it.
#[cfg(test)]
pub(crate) const EXAMPLES: [(&str, &str, &str); 21] = [
    ("private_key", "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNza", "b3BlbnNza"),
    ("private_key", "-----BEGIN PGP PRIVATE KEY BLOCK-----", "PGP"),
    ("aws_access_key_id", "key ASIAIOSFODNN7EXAMPLE.", "IOSFODNN7EXAMPLE"),
    ("aws_secret_access_key", "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "bPxRfiCYEXAMPLEKEY"),
    ("gcp_api_key", "AIzaSyA1234567890abcdefghijklmnopqrstuv", "hijklmnopqrstuv"),
    ("github_token", "ghp_0123456789abcdefghijABCDEFGHIJ012345", "ABCDEFGHIJ012345"),
    ("github_token", "github_pat_11ABCDEFG0123456789_abcdef", "0123456789_abcdef"),
    ("gitlab_token", "glpat-0123456789abcdefghij", "abcdefghij"),
    ("slack_token", "xoxb-123456789012-abcdef", "abcdef"),
    ("stripe_key", "sk_live_0123456789abcdefghij", "abcdefghij"),
    ("anthropic_key", "sk-ant-api03-abcdefghijklmnopqrst", "klmnopqrst"),
    ("openai_key", "sk-proj-Abcdefghijklmnop0123456789", "klmnop0123456789"),
    ("stage0_key", "s0_0w3ge1r70w3ge1r7_144gj289144gj289144gj289144gj289ka2s328", "144gj289"),
    ("jwt", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3", "dozjgNryP4J3"),
    ("bearer_token", "Authorization: Bearer abc123def456ghi789", "def456ghi789"),
    ("basic_credentials", "Authorization: Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
    ("azure_key", "AccountName=a;AccountKey=abcdefghijklmnopqrstuvwxyz0123==", "uvwxyz0123"),
    ("url_credentials", "postgres://app:s3cr3t@db/main", "s3cr3t"),
    ("url_credentials", "redis://:hunter22@cache:6379", "hunter22"),
    ("url_credentials", "https://0123456789abcdefghij0123@git.example.com/x", "abcdefghij0123"),
    ("password", "password=hunter22", "hunter22"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_compiles() {
        assert!(Compiled::build().is_ok());
    }

    #[test]
    fn every_known_form_is_found() {
        for (kind, text, _) in EXAMPLES {
            assert_eq!(Detector::get().kind(text), Some(kind), "{text}");
        }
    }

    #[test]
    fn nothing_of_a_known_form_is_left_by_masking() {
        for (kind, text, secret) in EXAMPLES {
            let masked = Detector::get().replace(&format!("so {text} so"));
            assert!(!masked.contains(secret) && masked.contains(REDACTED), "{kind}: {masked}");
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
