//! `stage0 policy diff`: what changes when one pack takes the place of another. Anything looser is exit code 1.
//!
//! The text has all that is looser; of cases that become stricter it has a few, and JSON has them all.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use stage0_contract::{Effect, Verdict};
use stage0_policy::diff::{
    AnnotationDiff, CaseDiff, Cases, Change, ConditionDiff, Count, DecidedBy, Direction, Outcome, PackDiff, RuleDiff,
    ValueDiff, Weakening, WordDiff,
};
use stage0_policy::{Pack, PackError};

use super::{ensure_pack, faults};
use crate::args::policy::DiffArgs;
use crate::exit::Exit;
use crate::out::{self, Painted, Terminal, plain, wrapped};

/// Columns where the output is no terminal, and at most.
const WIDTH: usize = 100;
const CODES: &str = "codes.toml";
const BASELINE: &str = "baseline";
/// Cases with the same two verdicts that are shown if nothing about them is looser.
const MAX_SHOWN: usize = 10;
/// Characters of a value or a goal that are shown.
const MAX_VALUE: usize = 300;
const MAX_GOAL: usize = 60;

pub(super) fn diff(arguments: &DiffArgs) -> anyhow::Result<Exit> {
    let DiffArgs { old, new, allow_looser, json } = arguments;
    let mut packs = Vec::new();
    for pack in [old, new] {
        match load(pack, *json)? {
            Ok(loaded) => packs.push(loaded),
            Err(refused) if *json => {
                out::json(&json!({"refused": pack, "faults": faults::for_json(pack, refused)}))?;
                return Ok(Exit::Failed);
            }
            Err(refused) => return Err(faults::refused(pack, refused)),
        }
    }
    let [old, new] = packs.as_slice() else { return Ok(Exit::Failed) };
    let diff = PackDiff::between(old, new)?;
    if *json {
        out::json(&diff)?;
    } else {
        let terminal = Terminal::of_stdout();
        let width = terminal.width.unwrap_or(WIDTH).clamp(60, WIDTH);
        out::painted(&Shown { text: Painted::new(terminal.colours), width }.diff(&diff))?;
    }
    Ok(if diff.outcome.is_looser() && !allow_looser { Exit::Failed } else { Exit::Done })
}

/// A pack that is compiled in by its name, or a folder.
fn load(pack: &Path, as_json: bool) -> anyhow::Result<Result<Arc<Pack>, PackError>> {
    let name = pack.to_str().unwrap_or_default();
    if name == BASELINE {
        return Ok(Pack::embedded());
    }
    if let Some(template) = Pack::template(name) {
        return Ok(template);
    }
    ensure_pack(pack, as_json)?;
    Ok(Pack::from_dir(pack))
}

struct Shown {
    text: Painted,
    width: usize,
}

impl Shown {
    fn diff(mut self, diff: &PackDiff) -> Painted {
        self.text.push(&format!("old  {}\nnew  {}\n", diff.old, diff.new));
        self.heading("Rules", diff.rules.is_empty());
        let mut rules: Vec<&RuleDiff> = diff.rules.iter().collect();
        rules.sort_by_key(|rule| rule.direction);
        rules.into_iter().for_each(|rule| self.rule(rule));
        self.heading("Words", diff.words.is_empty());
        self.words(&diff.words);
        self.heading("Values", diff.values.is_empty());
        self.values(&diff.values);
        diff.weakens.iter().for_each(|weakening| self.weakening(weakening));
        self.cases(&diff.cases);
        self.text.push(&format!("\ndigest {}\n{}", diff.diff_digest, summary(&diff.outcome)));
        self.text
    }

    fn heading(&mut self, heading: &str, is_empty: bool) {
        if !is_empty {
            self.text.push(&format!("\n{heading}\n"));
        }
    }

    /// A paragraph. Its first line begins with `first`, the others below its end.
    fn line(&mut self, first: &str, text: &str) {
        let indent = first.chars().count();
        self.text.push(&wrapped(&format!("{first}{text}"), self.width, indent));
        self.text.push("\n");
    }

    fn rule(&mut self, rule: &RuleDiff) {
        let RuleDiff { rule: id, change, direction, effect, message, file, line, annotations, condition, .. } = rule;
        let mark = match change {
            Change::Added => '+',
            Change::Removed => '-',
            Change::Changed | Change::Moved => '~',
        };
        let effect = match effect {
            Effect::Deny => "denies",
            Effect::Defer => "defers",
            Effect::Advise => "advises",
        };
        let old = if *change == Change::Removed { "old " } else { "" };
        let text = format!("{} {effect}: {} ({old}{}:{line})", plain(id), plain(message), plain(file));
        self.line(&format!("  {mark} {:<8}  ", direction.as_str()), &text);
        for AnnotationDiff { name, from, to, direction } in annotations {
            let value = |value: &Option<String>| value.as_deref().map_or_else(|| "none".to_owned(), plain);
            self.line("      ", &format!("@{name}: {} → {}{}", value(from), value(to), noted(*direction)));
        }
        if let Some(ConditionDiff { from, to, direction }) = condition {
            self.line("      ", &format!("condition{}", noted(*direction)));
            for (mark, conditions) in [('-', from), ('+', to)] {
                conditions.iter().for_each(|condition| self.line(&format!("        {mark} "), &plain(condition)));
            }
        }
    }

    /// Words that came the same way stand together.
    fn words(&mut self, words: &[WordDiff]) {
        let mut together: BTreeMap<_, Vec<&str>> = BTreeMap::new();
        for WordDiff { file, word, change, from, to, direction } in words {
            together.entry((file, direction, change, from, to)).or_default().push(word);
        }
        let mut last = "";
        for ((file, direction, _, from, to), words) in together {
            if *file != last {
                self.text.push(&format!("  {file}\n"));
                last = file;
            }
            let way = match (from.as_slice(), to.as_slice()) {
                ([], to) => format!("added to {}", to.join(", ")),
                (from, []) => format!("removed from {}", from.join(", ")),
                (from, to) => format!("moved from {} to {}", from.join(", "), to.join(", ")),
            };
            let words: Vec<String> = words.into_iter().map(|word| cut(&plain(word), MAX_VALUE)).collect();
            self.line(&format!("    {:<8}  ", direction.as_str()), &format!("{}: {}", plain(&way), words.join(", ")));
        }
    }

    /// Texts of codes that only one pack has are not shown.
    fn values(&mut self, values: &[ValueDiff]) {
        let mut sorted: Vec<&ValueDiff> = values.iter().collect();
        sorted.sort_by_key(|value| value.direction);
        let is_code = |value: &&ValueDiff| value.file == CODES && (value.from.is_none() || value.to.is_none());
        let (codes, others): (Vec<&ValueDiff>, Vec<&ValueDiff>) = sorted.into_iter().partition(is_code);
        others.into_iter().for_each(|value| self.value(value));
        for (change, is_added) in [("added", true), ("removed", false)] {
            let names = codes.iter().filter(|code| code.to.is_some() == is_added).map(|code| plain(&code.name));
            let names: Vec<String> = names.collect();
            if !names.is_empty() {
                self.line("  neutral   ", &format!("{CODES} {change}: {}", names.join(", ")));
            }
        }
    }

    fn value(&mut self, value: &ValueDiff) {
        let ValueDiff { file, name, from, to, direction } = value;
        let shown = |value: &Option<Value>| value.as_ref().map_or_else(|| "none".to_owned(), of_value);
        let text = format!("{file} {}: {} → {}", plain(name), shown(from), shown(to));
        self.line(&format!("  {:<8}  ", direction.as_str()), &text);
    }

    fn weakening(&mut self, weakening: &Weakening) {
        let Weakening { pack, weakened } = weakening;
        self.heading(&format!("{pack} says that it weakens"), false);
        self.line("  reason    ", &plain(&weakened.reason));
        for (list, names) in [
            ("without", &weakened.without),
            ("replaces", &weakened.replaces),
            ("words", &weakened.words),
            ("numbers", &weakened.numbers),
        ] {
            if !names.is_empty() {
                self.line(&format!("  {list:<8}  "), &plain(&names.join(", ")));
            }
        }
    }

    /// Cases with the same two verdicts stand together.
    fn cases(&mut self, cases: &Cases) {
        self.heading("Cases", false);
        self.line("  ", &counts(cases));
        for together in cases.changed.chunk_by(|one, other| step(one) == step(other)) {
            let Some(first) = together.first() else { continue };
            self.step(first, together.len());
            let shown = if first.direction == Direction::Looser { together.len() } else { MAX_SHOWN };
            together.iter().take(shown).for_each(|case| self.case(case));
            let more = together.len().saturating_sub(shown);
            if more > 0 {
                self.text.push(&format!("    … and {more} more: --json has them all\n"));
            }
        }
    }

    fn step(&mut self, case: &CaseDiff, count: usize) {
        let word = |verdict: Option<Verdict>| verdict.map_or("refused", Verdict::as_str);
        self.text.push(&format!("  {:<8}  ", case.direction.as_str()));
        self.text.word(word(case.from));
        self.text.push(" → ");
        self.text.word(word(case.to));
        self.text.push(&format!(": {}\n", plural(count, "case", "cases")));
    }

    fn case(&mut self, case: &CaseDiff) {
        let goal = cut(&plain(&case.goal), MAX_GOAL);
        self.line("    ", &format!("{} ({}): {goal}", plain(&case.case), plain(&case.pack)));
        let (before, now) = (by(case.from, &case.old_rules), by(case.to, &case.new_rules));
        self.line("      ", &format!("{before} → {now}"));
    }
}

fn step(case: &CaseDiff) -> (Direction, Option<Verdict>, Option<Verdict>) {
    (case.direction, case.from, case.to)
}

fn noted(direction: Direction) -> String {
    if direction == Direction::Neutral { String::new() } else { format!(" ({})", direction.as_str()) }
}

fn by(verdict: Option<Verdict>, rules: &[DecidedBy]) -> String {
    match verdict {
        None => "refused".to_owned(),
        Some(_) if rules.is_empty() => "no rule objects".to_owned(),
        Some(_) => rules.iter().map(|rule| plain(&rule.rule)).collect::<Vec<_>>().join(", "),
    }
}

fn counts(cases: &Cases) -> String {
    let Cases { decided, only_old_decides, only_new_decides, none_decides, left_out, changed } = cases;
    let mut told = vec![format!("{decided} decided by both packs")];
    for (count, what) in [
        (only_old_decides, "refused by the new pack alone"),
        (only_new_decides, "refused by the old pack alone"),
        (none_decides, "refused by both"),
        (left_out, "not looked at"),
    ] {
        told.extend((*count > 0).then(|| format!("{count} {what}")));
    }
    format!("{}; {} come to another verdict", told.join(", "), changed.len())
}

fn plural(count: usize, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}

/// The last line.
fn summary(outcome: &Outcome) -> String {
    let told = |name: &str, count: Count| {
        let Count { cases, entries } = count;
        let text = format!("{name}: {}, {}", plural(cases, "case", "cases"), plural(entries, "entry", "entries"));
        (count != Count::default()).then_some(text)
    };
    let all = [("looser", outcome.looser), ("stricter", outcome.stricter), ("neutral", outcome.neutral)];
    let told: Vec<String> = all.into_iter().filter_map(|(name, count)| told(name, count)).collect();
    if told.is_empty() { "no difference".to_owned() } else { told.join("; ") }
}

fn of_value(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(of_value).collect::<Vec<_>>().join(", "),
        Value::Object(members) => {
            let member = |(name, value): (&String, &Value)| format!("{name} {}", of_value(value));
            members.iter().map(member).collect::<Vec<_>>().join("; ")
        }
        other => other.to_string(),
    };
    cut(&plain(&text), MAX_VALUE)
}

fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}
