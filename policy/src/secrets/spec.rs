//! `secrets.toml`: what a secret looks like, and which names tell of one.
//!
//! Patterns must be cheap to search for, words in normal form, nothing twice, nothing empty. A pack without the file
//! uses the forms of the compiled-in baseline; one that `extends` them adds its own. The baseline's forms then count
//! towards the pack's version. A pack that extends another pack adds to the forms of that one.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock};

use serde::Deserialize;
use stage0_contract::{Word, visible};
use toml::Spanned;

use super::{Detector, Form, MAX_TELLING, NameKind, NameWords, Proof, ValueWords};
use crate::files::{Fault, Files, SECRETS, line_of, toml_fault};
use crate::vocabulary::distance;

const EMBEDDED: &str = include_str!("../../../policies/baseline/secrets.toml");
/// The name under which the baseline's forms enter the digest of a pack that uses them.
pub(crate) const BASE: &str = "secrets.toml of the baseline";
/// The most patterns: each is a compiled automaton.
const MAX_PATTERNS: usize = 1_000;
const MAX_WORDS: usize = 2_000;
const TWICE: &str = "stands twice";
const NORMAL: &str = "is not in normal form and would match nothing: write small letters";

/// Compiled once, since most packs use it.
static BASELINE: LazyLock<Result<Arc<Detector>, Vec<Fault>>> = LazyLock::new(|| {
    let mut faults = Vec::new();
    let detector = read(&[EMBEDDED.into()], &mut faults);
    detector.filter(|_| faults.is_empty()).ok_or(faults)
});

type Words = Vec<Spanned<String>>;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSecrets {
    extends: Option<Spanned<String>>,
    forms: Vec<RawForm>,
    names: RawNames,
    values: RawValues,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawForm {
    kind: Spanned<String>,
    patterns: Words,
    #[serde(default)]
    proof: Proof,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawNames {
    phrases: Option<Words>,
    passwords: Option<Words>,
    secrets: Option<Words>,
    tokens: Option<Words>,
    hints: Option<Words>,
    other_before: Option<Words>,
    ends_meaning: Option<Words>,
    keeps_meaning: Option<Words>,
    links: Option<Words>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawValues {
    placeholders: Option<Words>,
    references: Option<Words>,
    requirements: Option<Words>,
    ordinary: Option<Words>,
}

/// The forms of a pack and the text of the baseline, if that has a part in them and no other pack stands for it.
pub(crate) struct Secrets {
    pub(crate) detector: Arc<Detector>,
    pub(crate) base: Option<&'static str>,
    /// What the forms were read from, each text in addition to those before it.
    pub(crate) texts: Vec<Cow<'static, str>>,
}

pub(crate) fn parse(files: &Files, faults: &mut Vec<Fault>) -> Option<Secrets> {
    let own = files.shared(SECRETS);
    let Some(text) = own.filter(|text| text != EMBEDDED) else {
        let base = files.get(SECRETS).is_none().then_some(EMBEDDED);
        return Some(Secrets { detector: baseline(faults)?, base, texts: vec![EMBEDDED.into()] });
    };
    let (base, texts) = match raw(&text, faults)?.extends {
        None => (None, vec![text]),
        Some(name) if name.as_ref() == "baseline" => (Some(EMBEDDED), vec![EMBEDDED.into(), text]),
        Some(name) => {
            let message = format!("`extends` must be `baseline`, and is `{}`", name.as_ref());
            faults.push(Fault::new(SECRETS, message).at(line_of(&text, name.span().start)));
            return None;
        }
    };
    Some(Secrets { detector: read(&texts, faults)?, base, texts })
}

/// The forms of a pack that extends the pack `parent`: those of that one, and its own in addition.
pub(crate) fn extend(
    files: &Files,
    parent: &str,
    detector: &Arc<Detector>,
    texts: &[Cow<'static, str>],
    faults: &mut Vec<Fault>,
) -> Option<Secrets> {
    let mut texts = texts.to_vec();
    let Some(text) = files.shared(SECRETS) else {
        return Some(Secrets { detector: Arc::clone(detector), base: None, texts });
    };
    if let Some(name) = raw(&text, faults)?.extends.filter(|name| name.as_ref() != parent) {
        let message = format!("the forms of `{parent}` are inherited: take `extends` out");
        faults.push(Fault::new(SECRETS, message).at(line_of(&text, name.span().start)));
        return None;
    }
    texts.push(text);
    Some(Secrets { detector: read(&texts, faults)?, base: None, texts })
}

pub(crate) fn baseline(faults: &mut Vec<Fault>) -> Option<Arc<Detector>> {
    match &*BASELINE {
        Ok(detector) => Some(Arc::clone(detector)),
        Err(found) => {
            faults.extend(found.iter().cloned());
            None
        }
    }
}

fn raw(text: &str, faults: &mut Vec<Fault>) -> Option<RawSecrets> {
    toml::from_str(text).map_err(|error| faults.push(near_key(toml_fault(SECRETS, text, &error)))).ok()
}

/// Merges the files: words and forms of each are added to those before.
fn read(texts: &[Cow<'static, str>], faults: &mut Vec<Fault>) -> Option<Arc<Detector>> {
    let known = faults.len();
    let mut made = Made::default();
    for (index, text) in texts.iter().enumerate() {
        let raw = raw(text, faults)?;
        let complete = index == 0;
        let mut check = Check { text, complete, faults, made: &mut made };
        check.forms(raw.forms);
        check.names(raw.names);
        check.values(raw.values);
    }
    if faults.len() > known {
        return None;
    }
    let detector = Detector::new(made.forms, made.names, made.values);
    detector.map(Arc::new).map_err(|error| faults.push(Fault::new(SECRETS, error))).ok()
}

#[derive(Default)]
struct Made {
    forms: Vec<Form>,
    patterns: HashSet<String>,
    names: NameWords,
    values: ValueWords,
    told: HashMap<String, &'static str>,
    listed: HashSet<(&'static str, String)>,
}

struct Check<'a> {
    text: &'a str,
    /// Every list is required.
    complete: bool,
    faults: &'a mut Vec<Fault>,
    made: &'a mut Made,
}

impl Check<'_> {
    fn fault(&mut self, at: usize, message: String) {
        self.faults.push(Fault::new(SECRETS, message).at(line_of(self.text, at)));
    }

    fn forms(&mut self, forms: Vec<RawForm>) {
        if forms.is_empty() && self.complete {
            self.faults.push(Fault::new(SECRETS, "`forms` is empty: add a `[[forms]]`, or `extends = \"baseline\"`"));
        }
        for form in forms {
            let (at, kind) = (form.kind.span().start, form.kind.into_inner());
            if kind.is_empty() || kind.len() > 64 || !Word::name(&kind).is(&kind) {
                self.fault(at, format!("`{kind}` is no kind: write small letters, digits and `_`, at most 64"));
            }
            if form.patterns.is_empty() {
                self.fault(at, format!("`{kind}` has no patterns"));
            }
            for pattern in form.patterns {
                let (at, pattern) = (pattern.span().start, pattern.into_inner());
                if !self.made.patterns.insert(pattern.clone()) {
                    self.fault(at, format!("a pattern of `{kind}` {TWICE}"));
                } else if self.made.forms.len() >= MAX_PATTERNS {
                    self.fault(at, format!("is one pattern more than the {MAX_PATTERNS} that a pack may have"));
                    return;
                } else {
                    match Form::new(&kind, &pattern, form.proof) {
                        Ok(form) => self.made.forms.push(form),
                        Err(error) => self.fault(at, format!("a pattern of `{kind}` {error}")),
                    }
                }
            }
        }
    }

    fn names(&mut self, names: RawNames) {
        for (list, words, kind) in [
            ("phrases", names.phrases, NameKind::Phrase),
            ("passwords", names.passwords, NameKind::Password),
            ("secrets", names.secrets, NameKind::Secret),
            ("tokens", names.tokens, NameKind::Token),
            ("hints", names.hints, NameKind::Hint),
        ] {
            for (word, at) in self.words(list, words) {
                match self.made.told.insert(word.replace(' ', ""), list) {
                    Some(other) => self.fault(at, format!("`{word}` in `{list}` {TWICE}: it is in `{other}` too")),
                    None => self.made.names.telling.push((word, kind)),
                }
            }
        }
        self.add("other_before", names.other_before, usize::MAX, |made| &mut made.names.other_before);
        self.add("ends_meaning", names.ends_meaning, usize::MAX, |made| &mut made.names.ends_meaning);
        self.add("keeps_meaning", names.keeps_meaning, usize::MAX, |made| &mut made.names.keeps_meaning);
        self.add("links", names.links, usize::MAX, |made| &mut made.values.links);
    }

    fn values(&mut self, values: RawValues) {
        self.add("placeholders", values.placeholders, MAX_TELLING, |made| &mut made.values.placeholders);
        self.add("references", values.references, MAX_TELLING, |made| &mut made.values.references);
        self.add("requirements", values.requirements, MAX_TELLING, |made| &mut made.values.requirements);
        self.add("ordinary", values.ordinary, MAX_TELLING, |made| &mut made.values.ordinary);
    }

    fn add(
        &mut self,
        list: &'static str,
        words: Option<Words>,
        max_bytes: usize,
        known: fn(&mut Made) -> &mut Vec<String>,
    ) {
        for (word, at) in self.words(list, words) {
            if word.len() > max_bytes {
                self.fault(at, format!("`{word}` in `{list}` is longer than {max_bytes} bytes"));
            }
            known(self.made).push(word);
        }
    }

    fn words(&mut self, list: &'static str, words: Option<Words>) -> Vec<(String, usize)> {
        let Some(words) = words else {
            if self.complete {
                self.faults.push(Fault::new(SECRETS, format!("`{list}` is missing")));
            }
            return Vec::new();
        };
        if words.is_empty() {
            self.faults.push(Fault::new(SECRETS, format!("`{list}` is empty")));
        }
        if words.len() > MAX_WORDS {
            let told = format!("`{list}` has {} words, and may have {MAX_WORDS}", words.len());
            self.faults.push(Fault::new(SECRETS, told));
            return Vec::new();
        }
        let mut checked = Vec::with_capacity(words.len());
        for word in words {
            let (at, word) = (word.span().start, word.into_inner());
            let spaced = word.starts_with(' ') || word.contains("  ");
            if word.is_empty() || spaced || visible(&word) != word.trim_end() {
                self.fault(at, format!("`{word}` in `{list}` {NORMAL}"));
            } else if !self.made.listed.insert((list, word.clone())) {
                self.fault(at, format!("`{word}` {TWICE} in `{list}`"));
            } else {
                checked.push((word, at));
            }
        }
        checked
    }
}

/// Appends the nearest known name to a fault.
fn near_key(fault: Fault) -> Fault {
    let names: Vec<String> = fault.message.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    let Some((unknown, known)) = names.split_first().filter(|_| fault.message.starts_with("unknown")) else {
        return fault;
    };
    let letters: Vec<char> = unknown.chars().take(64).collect();
    let edits = |name: &&String| distance(&letters, name, usize::MAX);
    let Some(nearest) = known.iter().min_by_key(edits) else { return fault };
    let what = fault.message.split('`').next().unwrap_or_default().trim().to_owned();
    Fault { message: format!("{what} `{unknown}`: did you mean `{nearest}`?"), ..fault }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<String> {
        let mut faults = Vec::new();
        parse(&Files::of([(SECRETS, text)]), &mut faults);
        faults.iter().map(Fault::to_string).collect()
    }

    fn fault(text: &str) -> String {
        let faults = faults(text);
        assert_eq!(faults.len(), 1, "{faults:#?}");
        faults[0].clone()
    }

    fn extending(rows: &str) -> String {
        format!("extends = \"baseline\"\n{rows}")
    }

    #[test]
    fn the_baseline_has_no_faults() {
        assert_eq!(faults(EMBEDDED), Vec::<String>::new());
        let changed = format!("{EMBEDDED}# changed\n");
        assert_eq!(faults(&changed), Vec::<String>::new());
    }

    #[test]
    fn a_pack_without_forms_has_those_of_the_baseline_and_shares_them() {
        let mut faults = Vec::new();
        let one = parse(&Files::default(), &mut faults).unwrap();
        let other = parse(&Files::of([(SECRETS, EMBEDDED)]), &mut faults).unwrap();
        assert!(Arc::ptr_eq(&one.detector, &other.detector));
        assert!(one.base.is_some() && other.base.is_none());
    }

    #[test]
    fn the_documented_example_adds_to_the_baseline() {
        let page = include_str!("../../../docs/policy/secrets.md");
        let example = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        assert_eq!(faults(example), Vec::<String>::new());
        let secrets = parse(&Files::of([(SECRETS, example)]), &mut Vec::new()).unwrap();
        assert!(secrets.base.is_some(), "the baseline is part of the version");
        let finds = |text: &str| crate::secrets::mask(text, &secrets.detector) != text;
        let baseline = baseline(&mut Vec::new()).unwrap();
        for text in ["use acme_live_0123456789abcdefghij", "Losungswort: hunter22"] {
            assert!(finds(text), "{text}");
            assert_eq!(crate::secrets::mask(text, &baseline), text, "it is the example's own");
        }
        assert!(finds("password=hunter22") && !finds("password=acme-vault:db/main2"));
    }

    #[test]
    fn a_bad_pattern_is_reported_with_its_line() {
        for (pattern, told) in [
            ("acme_(", "is no regular expression: unclosed group"),
            ("acme_(?:[a-z]+-)*x", "repeats what repeats already"),
            ("acme_[^a]{60000}", "is no regular expression"),
            (r"acme_(?:\w\w\w\w\w){400}", "is too large when it is compiled"),
            ("[a-z]{20}", "would be looked for in every text"),
            ("(?:acme)?", "matches the empty text"),
            (r"AIza[0-9A-Za-z_-]{35}", "stands twice"),
        ] {
            let fault = fault(&extending(&format!("[[forms]]\nkind = \"acme\"\npatterns = ['{pattern}']\n")));
            let place = if pattern.contains("60000") {
                String::new()
            } else {
                "secrets.toml:4: a pattern of `acme` ".to_owned()
            };
            if place.is_empty() {
                assert!(fault.starts_with("secrets.toml:4:"), "{fault}");
            } else {
                assert!(fault.starts_with(&format!("{place}{told}")) || fault.contains(told), "{fault}");
            }
        }
        assert!(
            fault(&extending("[[forms]]\nkind = \"Acme Key\"\npatterns = ['acme_[0-9]+']\n")).contains("is no kind")
        );
        assert!(fault(&extending("[[forms]]\nkind = \"acme\"\npatterns = []\n")).contains("has no patterns"));
    }

    #[test]
    fn words_that_are_empty_doubled_or_never_match_are_refused_with_their_line() {
        for (rows, told) in [
            ("[names]\npasswords = []\n", "secrets.toml: `passwords` is empty"),
            ("[names]\npasswords = [\"Losung\"]\n", "secrets.toml:3: `Losung` in `passwords` is not in normal form"),
            ("[names]\npasswords = [\"losung\", \"losung\"]\n", "secrets.toml:3: `losung` stands twice in `passwords`"),
            (
                "[names]\npasswords = [\"token\"]\n",
                "secrets.toml:3: `token` in `passwords` stands twice: it is in `tokens`",
            ),
            ("[values]\nplaceholders = [\"none\"]\n", "secrets.toml:3: `none` stands twice in `placeholders`"),
            (
                "[values]\nreferences = [\"a-very-long-way-to-say-elsewhere\"]\n",
                "secrets.toml:3: `a-very-long-way-to-say-elsewhere` in `references` is longer than 24 bytes",
            ),
            (
                "[values]\nplaceholder = [\"none\"]\n",
                "secrets.toml:3: unknown field `placeholder`: did you mean `placeholders`?",
            ),
            ("[name]\n", "secrets.toml:2: unknown field `name`: did you mean `names`?"),
            (
                "[[forms]]\nkind = \"a\"\npatterns = ['acme_x']\nproof = \"digits\"\n",
                "secrets.toml:5: unknown variant `digits`: did you mean `digit`?",
            ),
        ] {
            assert!(fault(&extending(rows)).starts_with(told), "{}", fault(&extending(rows)));
        }
        assert!(fault("extends = \"other\"\n").contains("must be `baseline`"));
    }

    #[test]
    fn a_file_that_extends_nothing_is_complete() {
        let told = faults("[[forms]]\nkind = \"acme\"\npatterns = ['acme_[0-9]+']\n");
        assert!(told.contains(&"secrets.toml: `passwords` is missing".to_owned()), "{told:#?}");
        assert!(
            faults("")
                .contains(&"secrets.toml: `forms` is empty: add a `[[forms]]`, or `extends = \"baseline\"`".to_owned())
        );
    }
}
