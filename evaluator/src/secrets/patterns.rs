//! The forms of secrets that are known by their looks.
//!
//! Owns one table of kinds and patterns and the two ways of asking it: which of the patterns are worth a look, and
//! where they find what. Each pattern is a search of its own: one automaton of all of them has so many states that a
//! text of random letters makes it five hundred times slower. Patterns have no nested repetition, and what follows a
//! name is read once, however many names stand before it: finding everything is linear in the text.

use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;
use stage0_contract::plain;

use super::{REDACTED, assignment};
use crate::time_limit::TimeLimit;

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
        r#"(?i-u)(?:password|passwd|passphrase|pwd|secret|(?:api|private|secret|access|account|signing|encryption)[_ -]?key|(?:access|refresh|auth|session)[_-]?token)["'`]?\s*(?:=>|:=|={1,3}|:)\s*"#,
        Proof::Assignment,
    ),
];

/// Matches that are looked at before the time is looked at again.
const LOOKED_AT_TOGETHER: usize = 1_024;

/// One secret in a text.
pub(super) struct Hit {
    /// With what tells it: what is cut out.
    whole: Range<usize>,
    /// The secret itself: what must stand nowhere else either.
    value: Range<usize>,
}

/// The compiled table.
pub(super) struct Detector(Option<Vec<Form>>);

/// One row of the table.
struct Form {
    kind: &'static str,
    regex: Regex,
    proof: Proof,
}

/// Rows of the table that may find something in a text, a bit for each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Suspects(u32);

impl Suspects {
    /// None of them; certain.
    pub(super) const NONE: Self = Self(0);
    const ALL: Self = Self(u32::MAX);

    fn has(self, index: usize) -> bool {
        self.0 & (1 << index) != 0
    }
}

impl Detector {
    /// The process's detector.
    pub(super) fn get() -> &'static Self {
        static DETECTOR: LazyLock<Detector> = LazyLock::new(|| Detector(Form::compile_all().ok()));
        &DETECTOR
    }

    /// The rows that may find something in the text, and those known before.
    pub(super) fn suspects(&self, text: &str, known: Suspects) -> Suspects {
        let Some(forms) = &self.0 else { return Suspects::ALL };
        let more = forms.iter().enumerate().filter(|(index, form)| !known.has(*index) && form.regex.is_match(text));
        Suspects(more.fold(known.0, |bits, (index, _)| bits | (1 << index)))
    }

    /// The kind of the first secret that these rows find in the text, raw or normalised. A search of few rows is for
    /// many short texts: each row that finds where and what allocates. Means nothing once `limit` is reached.
    pub(super) fn kind(&self, text: &str, suspects: Suspects, limit: TimeLimit) -> Option<&'static str> {
        let Some(forms) = &self.0 else { return Some("unknown") };
        let kind = |text: &str| {
            let mut suspected =
                forms.iter().enumerate().filter(|(index, _)| suspects.has(*index)).map(|(_, form)| form);
            suspected.find(|form| form.secrets(text, limit).next().is_some()).map(|form| form.kind)
        };
        kind(text).or_else(|| if text.is_ascii() { None } else { kind(&plain(text)) })
    }

    /// As [`Detector::kind`], by all rows.
    pub(super) fn any_kind(&self, text: &str, limit: TimeLimit) -> Option<&'static str> {
        let suspects = self.suspects(text, Suspects::NONE);
        let normalised = || if text.is_ascii() { suspects } else { self.suspects(&plain(text), suspects) };
        match normalised() {
            Suspects::NONE => None,
            suspects => self.kind(text, suspects, limit),
        }
    }

    /// Every secret that these rows find in the text as it stands, with its kind; not all of them once `limit` is
    /// reached.
    pub(super) fn hits<'t>(
        &'t self,
        text: &'t str,
        suspects: Suspects,
        limit: TimeLimit,
    ) -> impl Iterator<Item = (&'static str, Hit)> + use<'t> {
        let forms = self.0.iter().flatten().enumerate().filter(move |(index, _)| suspects.has(*index));
        forms.map(|(_, form)| form).flat_map(move |form| form.secrets(text, limit).map(move |hit| (form.kind, hit)))
    }

    /// The text with what can be cut out of it replaced. Where a value ends no pattern knows for certain: what follows
    /// without a space or a quote goes with it, after the name of a passphrase the rest of the line. What overlaps is
    /// cut out as one. Means nothing once `limit` is reached.
    pub(super) fn replace(&self, text: &str, suspects: Suspects, limit: TimeLimit) -> String {
        if self.0.is_none() {
            return REDACTED.to_owned();
        }
        let mut ranges: Vec<Range<usize>> = self.hits(text, suspects, limit).map(|(_, hit)| hit.whole).collect();
        ranges.sort_unstable_by_key(|range| (range.start, range.end));
        let mut masked = String::with_capacity(text.len());
        let mut cut: Option<Range<usize>> = None;
        let mut kept = 0;
        for range in ranges {
            match &mut cut {
                // Where the cut ends is known: it is asked again only from there on.
                Some(cut) if range.start < cut.end => {
                    if range.end > cut.end || assignment::is_phrase(text, &range) {
                        cut.end = assignment::end(text, &range, range.end.max(cut.end));
                    }
                }
                _ => {
                    if let Some(done) = cut.take() {
                        kept = push_cut(&mut masked, text, kept, &done);
                    }
                    cut = Some(range.start..assignment::end(text, &range, range.end));
                }
            }
        }
        if let Some(done) = cut {
            kept = push_cut(&mut masked, text, kept, &done);
        }
        masked.push_str(text.get(kept..).unwrap_or_default());
        masked
    }
}

/// The text up to the cut and what stands in its place; where the text goes on.
fn push_cut(masked: &mut String, text: &str, kept: usize, cut: &Range<usize>) -> usize {
    masked.push_str(text.get(kept..cut.start).unwrap_or_default());
    masked.push_str(REDACTED);
    cut.end
}

impl Hit {
    /// The secret itself.
    pub(super) fn value<'t>(&self, text: &'t str) -> &'t str {
        text.get(self.value.clone()).unwrap_or_default()
    }
}

impl Form {
    fn compile_all() -> Result<Vec<Self>, regex::Error> {
        let compile = |(kind, pattern, proof)| Ok(Self { kind, regex: Regex::new(pattern)?, proof });
        TABLE.into_iter().map(compile).collect()
    }

    /// Where the pattern finds what is proved to be a secret, one after the other, until `limit`.
    fn secrets<'a>(&'a self, text: &'a str, limit: TimeLimit) -> Box<dyn Iterator<Item = Hit> + 'a> {
        let mut looked_at = 0_usize;
        let mut in_time = move || {
            looked_at += 1;
            !looked_at.is_multiple_of(LOOKED_AT_TOGETHER) || limit.check().is_ok()
        };
        let captures = || self.regex.captures_iter(text);
        match self.proof {
            Proof::Form => Box::new(captures().take_while(move |_| in_time()).filter_map(|found| {
                let whole = found.get(0)?.range();
                Some(Hit { value: found.get(1).map_or(whole.clone(), |group| group.range()), whole })
            })),
            Proof::Token(holds) => Box::new(captures().take_while(move |_| in_time()).filter_map(move |found| {
                let (whole, token) = (found.get(0)?.range(), found.get(1)?);
                holds(token.as_str()).then(|| Hit { value: token.range(), whole })
            })),
            Proof::Assignment => {
                let mut values = assignment::Values::of(text);
                Box::new(self.regex.find_iter(text).take_while(move |_| in_time()).filter_map(move |found| {
                    let bare_colon = found.as_str().trim_ascii_end().ends_with(':');
                    let value = values.at(found.end(), bare_colon)?;
                    Some(Hit { whole: found.start()..value.end, value })
                }))
            }
        }
    }
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
        assert!(Form::compile_all().is_ok_and(|forms| forms.len() <= 32), "a bit for each");
    }

    #[test]
    fn every_known_form_is_found() {
        for (kind, text, _) in EXAMPLES {
            assert_eq!(Detector::get().any_kind(text, TimeLimit::NONE), Some(kind), "{text}");
        }
    }

    #[test]
    fn nothing_of_a_known_form_is_left_by_masking() {
        for (kind, text, secret) in EXAMPLES {
            let masked = crate::secrets::mask(&format!("so {text} so"));
            assert!(!masked.contains(secret) && masked.contains(REDACTED), "{kind}: {masked}");
        }
    }

    #[test]
    fn a_search_within_one_text_ends_with_its_time() {
        let text = format!("{}password=hunter22", "secret: none ".repeat(2 * LOOKED_AT_TOGETHER));
        let detector = Detector::get();
        assert_eq!(detector.any_kind(&text, TimeLimit::NONE), Some("password"));
        assert_eq!(detector.any_kind(&text, TimeLimit::over()), None, "who asks looks at the time, too");
        let request = stage0_contract::CheckRequest::parse(serde_json::json!({"goal": "g", "context": {"n": text}}));
        assert!(super::super::find_within(&request.unwrap(), TimeLimit::over()).is_err());
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
            assert_eq!(Detector::get().any_kind(text, TimeLimit::NONE), None, "{text}");
        }
    }
}
