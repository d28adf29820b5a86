//! By what a pack reads facts: digests that are equal for two packs that read every request alike.
//!
//! The files of words are hashed by what they say, in the order of their names: comments, the order of tables and that
//! of words in a list make no difference. What only rules and scores use is left out.
//! INVARIANT: whatever a fact is read by is in one of the three, except for the types of declared members, with which a
//! replay reads those members again.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};
use stage0_contract::ReadBy;
use toml::{Table, Value};

use crate::facts::RunNeeds;
use crate::files::{CONSTRAINTS, EFFECTS, Files, TOOLS, VOCABULARY};
use crate::vocabulary::{Edition, Windows};

/// Hexadecimal digits of a digest.
const SHOWN: usize = 16;
const WORDS: [&str; 4] = [VOCABULARY, EFFECTS, TOOLS, CONSTRAINTS];
/// A key of `tools.toml` that changes the effect of rules, and no fact.
const OF_RULES: &str = "undeclared_effects";
const FORMS: &str = "forms";
/// What the words of secrets add to.
const EXTENDS: &str = "extends";

/// What facts are read by.
pub(super) struct Sources<'a> {
    /// The files in force.
    pub(super) files: &'a Files,
    /// The texts of the forms of secrets, the oldest first.
    pub(super) secrets: &'a [Cow<'static, str>],
    pub(super) edition: Edition,
    pub(super) windows: &'a Windows,
    pub(super) run_calls: &'a [String],
    pub(super) run_needs: RunNeeds,
}

impl Sources<'_> {
    pub(super) fn digests(&self) -> ReadBy {
        ReadBy { words: self.words(), windows: self.windows(), run: self.run() }
    }

    fn words(&self) -> String {
        let mut digest = Hash::default();
        digest.text(&(self.edition as u8).to_string());
        for file in WORDS {
            let Some(text) = self.files.get(file) else { continue };
            digest.text(file);
            match text.parse::<Table>() {
                Ok(mut table) => {
                    if file == TOOLS {
                        table.remove(OF_RULES);
                    }
                    digest.table(&table);
                }
                // Unreachable for a pack that was parsed.
                Err(_) => digest.text(text),
            }
        }
        self.secrets(&mut digest);
        digest.shown()
    }

    /// Forms in their order, since the first that fits names the secret, and words as sets.
    fn secrets(&self, digest: &mut Hash) {
        let mut lists: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
        for text in self.secrets {
            let Ok(table) = text.parse::<Table>() else {
                digest.text(text);
                continue;
            };
            for (name, value) in table.iter().filter(|(name, _)| *name != EXTENDS) {
                match value {
                    Value::Array(forms) if name == FORMS => forms.iter().for_each(|form| digest.value(form)),
                    Value::Table(words) => {
                        for (list, words) in words {
                            let texts = words.as_array().into_iter().flatten().filter_map(Value::as_str);
                            lists.entry((name.clone(), list.clone())).or_default().extend(texts.map(str::to_owned));
                        }
                    }
                    other => digest.value(other),
                }
            }
        }
        for ((table, list), words) in lists {
            [table, list].iter().for_each(|name| digest.text(name));
            digest.texts(words.iter().map(String::as_str));
        }
    }

    fn windows(&self) -> String {
        let mut digest = Hash::default();
        for (name, window) in self.windows {
            digest.text(name);
            digest.text(&window.written());
        }
        digest.shown()
    }

    fn run(&self) -> String {
        let RunNeeds { calls, allowed, verdicts, targets } = self.run_needs;
        let mut digest = Hash::default();
        for needs in [calls, allowed, verdicts, targets] {
            digest.text(if needs { "1" } else { "0" });
        }
        let counted: BTreeSet<&str> = self.run_calls.iter().map(String::as_str).collect();
        digest.texts(counted.into_iter());
        digest.shown()
    }
}

/// Each text is preceded by its length, so that two different contents never hash the same bytes.
#[derive(Default)]
struct Hash(Sha256);

impl Hash {
    fn number(&mut self, number: usize) {
        self.0.update((number as u64).to_be_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len());
        self.0.update(text.as_bytes());
    }

    fn texts<'t>(&mut self, texts: impl ExactSizeIterator<Item = &'t str>) {
        self.number(texts.len());
        texts.for_each(|text| self.text(text));
    }

    fn table(&mut self, table: &Table) {
        let members: BTreeMap<&String, &Value> = table.iter().collect();
        self.number(members.len());
        for (name, value) in members {
            self.text(name);
            self.value(value);
        }
    }

    fn value(&mut self, value: &Value) {
        self.text(value.type_str());
        match value {
            Value::Table(table) => self.table(table),
            Value::Array(items) => match items.iter().map(Value::as_str).collect::<Option<BTreeSet<&str>>>() {
                Some(words) => self.texts(words.into_iter()),
                None => {
                    self.number(items.len());
                    items.iter().for_each(|item| self.value(item));
                }
            },
            Value::String(text) => self.text(text),
            other => self.text(&other.to_string()),
        }
    }

    fn shown(self) -> String {
        let hex: String = self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        hex.get(..SHOWN).unwrap_or(&hex).to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::WindowSpec;

    const EFFECTS_TEXT: &str = "[listed]\nhigh = [\"wipe\", \"pay\"]\nloop = [\"poll\"]\n[verbs]\nhigh = [\"drop\"]\n";
    const TOOLS_TEXT: &str = "undeclared_effects = \"advise\"\n[sensitive]\nruns = [\"bash\"]\n";
    const SECRETS_TEXT: &str = "[[forms]]\nkind = \"a\"\npatterns = ['a1', 'a2']\n[[forms]]\nkind = \"b\"\n\
                                patterns = ['b']\nproof = \"digit\"\n[names]\ntokens = [\"x\", \"y\"]\n";

    fn words(effects: &str, tools: &str, secrets: &[&str], edition: Edition) -> String {
        let files = Files::of([(EFFECTS, effects), (TOOLS, tools), ("codes.toml", "[A]\n"), ("a.cedar", "forbid")]);
        let secrets: Vec<Cow<'static, str>> = secrets.iter().map(|text| (*text).to_owned().into()).collect();
        let (windows, run_needs) = (Windows::new(), RunNeeds::default());
        Sources { files: &files, secrets: &secrets, edition, windows: &windows, run_calls: &[], run_needs }.words()
    }

    fn of(effects: &str, tools: &str, secrets: &[&str]) -> String {
        words(effects, tools, secrets, Edition::Second)
    }

    #[test]
    fn what_reads_alike_has_the_same_digest_and_any_other_word_another_one() {
        let known = of(EFFECTS_TEXT, TOOLS_TEXT, &[SECRETS_TEXT]);
        assert_eq!(known.len(), SHOWN);
        let turned = "# Ours.\n[verbs]\nhigh = ['drop']\n[listed]\nloop = [\"poll\"]\nhigh = [\"pay\",\n  \"wipe\"]\n";
        let defers = TOOLS_TEXT.replace("advise", "defer");
        let names = "[names]\ntokens = [\"y\", \"x\"]\n";
        let forms = SECRETS_TEXT.split("[names]").next().unwrap();
        let added = format!("extends = \"baseline\"\n{names}");
        for same in [
            of(turned, TOOLS_TEXT, &[SECRETS_TEXT]),
            of(EFFECTS_TEXT, &defers, &[SECRETS_TEXT]),
            of(EFFECTS_TEXT, TOOLS_TEXT, &[&format!("{forms}{names}")]),
            of(EFFECTS_TEXT, TOOLS_TEXT, &[forms, &added]),
        ] {
            assert_eq!(same, known);
        }
        let with = |from: &str, to: &str| of(&EFFECTS_TEXT.replacen(from, to, 1), TOOLS_TEXT, &[SECRETS_TEXT]);
        let secrets = |from: &str, to: &str| of(EFFECTS_TEXT, TOOLS_TEXT, &[&SECRETS_TEXT.replacen(from, to, 1)]);
        let others = [
            with("\"wipe\"", "\"wipes\""),
            with(", \"pay\"", ""),
            with("\"wipe\", \"pay\"", "\"wipepay\""),
            with("high = [\"drop\"]", "medium = [\"drop\"]"),
            with("loop = [\"poll\"]\n[verbs]\n", "[verbs]\nloop = [\"poll\"]\n"),
            of(EFFECTS_TEXT, &TOOLS_TEXT.replace("bash", "sh"), &[SECRETS_TEXT]),
            secrets("'a1'", "'a3'"),
            secrets("\"digit\"", "\"random\""),
            secrets("tokens", "hints"),
            secrets("\"x\", ", ""),
            words(EFFECTS_TEXT, TOOLS_TEXT, &[SECRETS_TEXT], Edition::First),
        ];
        let mut all: BTreeSet<&String> = others.iter().collect();
        assert!(!all.contains(&known), "{others:?}");
        all.insert(&known);
        assert_eq!(all.len(), others.len() + 1, "{others:?}");
    }

    #[test]
    fn windows_and_counted_tools_have_digests_of_their_own() {
        let window = |text: &str| toml::from_str::<WindowSpec>(text).unwrap().read().unwrap();
        let of = |named: &[(&str, &str)], run_calls: &[&str], run_needs: RunNeeds| {
            let files = Files::default();
            let windows: Windows = named.iter().map(|(name, text)| ((*name).to_owned(), window(text))).collect();
            let run_calls: Vec<String> = run_calls.iter().map(|tool| (*tool).to_owned()).collect();
            let sources = Sources {
                files: &files,
                secrets: &[],
                edition: Edition::Second,
                windows: &windows,
                run_calls: &run_calls,
                run_needs,
            };
            sources.digests()
        };
        let office = "zone = \"Etc/UTC\"\ndays = [\"mon\", \"tue\"]\nopens = \"09:00\"\ncloses = \"17:00\"";
        let none = RunNeeds::default();
        let known = of(&[("office", office)], &["a", "b"], none);
        let turned = office.replace("\"mon\", \"tue\"", "\"tue\", \"mon\", \"tue\"");
        assert_eq!(of(&[("office", &turned)], &["b", "a"], none), known);
        for (name, from, to) in [
            ("desk", "", ""),
            ("office", "Etc/UTC", "Europe/Berlin"),
            ("office", "\"mon\", ", ""),
            ("office", "09:00", "09:01"),
            ("office", "17:00", "17:01"),
        ] {
            let other = of(&[(name, &office.replace(from, to))], &["a", "b"], none);
            assert_ne!(other.windows, known.windows, "{name}: {to}");
            assert_eq!((&other.words, &other.run), (&known.words, &known.run));
        }
        for (calls, needs) in [(&["a"][..], none), (&["ab"], none), (&["a", "b"], RunNeeds { verdicts: true, ..none })]
        {
            let other = of(&[("office", office)], calls, needs);
            assert_ne!(other.run, known.run);
            assert_eq!((&other.words, &other.windows), (&known.words, &known.windows));
        }
    }
}
