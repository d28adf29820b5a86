//! A TOML file as a tree that can be merged and written again, each value with its line.

use std::collections::{BTreeMap, HashMap, HashSet};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::files::Files;

/// A value and the line (from 1) where it stands; `None` where it is inherited.
#[derive(Debug, Clone)]
struct Node {
    line: Option<usize>,
    value: Value,
}

#[derive(Debug, Clone)]
enum Value {
    Table(Tree),
    List(Vec<Node>),
    Text(String),
    /// A number, a truth value or a date, as it is written.
    Other(String),
}

/// A table by key.
#[derive(Debug, Clone, Default)]
pub(in crate::pack) struct Tree(BTreeMap<String, Node>);

/// A text of a list or a key of a table, and the line of the pack's own file where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::pack) struct Word {
    pub(in crate::pack) text: String,
    pub(in crate::pack) line: Option<usize>,
}

/// Where the lines of a text begin, so that the line of each value is found without reading the text again.
struct Lines<'t> {
    text: &'t str,
    begins: Vec<usize>,
}

impl Lines<'_> {
    fn of(&self, offset: usize) -> usize {
        self.begins.partition_point(|begin| *begin <= offset)
    }
}

impl Tree {
    pub(super) fn read(text: &str) -> Result<Self, toml::de::Error> {
        let begins = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        let lines = Lines { text, begins };
        Ok(table(DeTable::parse(text)?.get_ref(), &lines))
    }

    /// A file that has been parsed before; empty if there is none.
    pub(in crate::pack) fn of(files: &Files, name: &str) -> Self {
        files.get(name).and_then(|text| Self::read(text).ok()).unwrap_or_default()
    }

    /// The same values, none of which stands in the pack's own file.
    pub(super) fn inherited(mut self) -> Self {
        self.0.values_mut().for_each(Node::forget);
        self
    }

    /// This tree, with the other one's values over it.
    pub(super) fn with(mut self, over: Self) -> Self {
        for (key, node) in over.0 {
            let merged = match self.0.remove(&key) {
                Some(under) => under.with(node),
                None => node,
            };
            self.0.insert(key, merged);
        }
        self
    }

    fn node(&self, path: &[&str]) -> Option<&Node> {
        let (first, rest) = path.split_first()?;
        let node = self.0.get(*first)?;
        match (&node.value, rest) {
            (_, []) => Some(node),
            (Value::Table(table), rest) => table.node(rest),
            _ => None,
        }
    }

    /// The line of a value, or of the header of its table.
    pub(in crate::pack) fn line(&self, path: &[&str]) -> Option<usize> {
        self.node(path)?.line
    }

    /// A single value, as it is written.
    pub(in crate::pack) fn value(&self, path: &[&str]) -> Option<String> {
        match &self.node(path)?.value {
            Value::Text(_) | Value::Other(_) => Some(self.node(path)?.inline()),
            Value::Table(_) | Value::List(_) => None,
        }
    }

    /// The keys of a table.
    pub(in crate::pack) fn keys(&self, path: &[&str]) -> Vec<Word> {
        let Some(Node { value: Value::Table(table), .. }) = self.node(path) else { return Vec::new() };
        table.0.iter().map(|(key, node)| Word { text: key.clone(), line: node.line }).collect()
    }

    /// The texts of the lists at or below these keys.
    pub(in crate::pack) fn words(&self, keys: &[&str]) -> Vec<Word> {
        let mut words = Vec::new();
        for key in keys {
            self.node(&[key]).into_iter().for_each(|node| node.words(&mut words));
        }
        words
    }

    /// The texts of one list.
    pub(in crate::pack) fn list(&self, path: &[&str]) -> Vec<Word> {
        let mut words = Vec::new();
        self.node(path).into_iter().for_each(|node| node.words(&mut words));
        words
    }

    /// By word or key: the first line where it stands.
    pub(super) fn places(&self) -> HashMap<&str, usize> {
        let mut places = HashMap::new();
        self.0.iter().for_each(|(key, node)| node.places(Some(key), &mut places));
        places
    }

    pub(super) fn take(&mut self, path: &[&str]) {
        match path {
            [] => {}
            [key] => drop(self.0.remove(*key)),
            [first, rest @ ..] => {
                if let Some(Node { value: Value::Table(table), .. }) = self.0.get_mut(*first) {
                    table.take(rest);
                }
            }
        }
    }

    /// Takes words out of all lists at or below these keys.
    pub(super) fn take_words(&mut self, keys: &[&str], words: &[Word]) {
        let words: HashSet<&str> = words.iter().map(|word| word.text.as_str()).collect();
        if !words.is_empty() {
            for key in keys {
                self.0.get_mut(*key).into_iter().for_each(|node| node.take_words(&words));
            }
        }
    }

    /// The tree as a text, and for each of its lines the line of the pack's own file.
    pub(super) fn written(&self) -> (String, Vec<Option<usize>>) {
        let mut writer = Writer::default();
        writer.table(self, "");
        (writer.text, writer.lines)
    }
}

fn table(table: &DeTable<'_>, lines: &Lines<'_>) -> Tree {
    let mut tree = Tree::default();
    for (key, value) in table {
        let line = Some(lines.of(key.span().start));
        tree.0.insert(key.get_ref().to_string(), Node { line, ..node(value, lines) });
    }
    tree
}

fn node(value: &Spanned<DeValue<'_>>, lines: &Lines<'_>) -> Node {
    let line = Some(lines.of(value.span().start));
    let value = match value.get_ref() {
        DeValue::Table(inner) => Value::Table(table(inner, lines)),
        DeValue::Array(items) => Value::List(items.iter().map(|item| node(item, lines)).collect()),
        DeValue::String(text) => Value::Text(text.to_string()),
        _ => Value::Other(lines.text.get(value.span()).unwrap_or_default().to_owned()),
    };
    Node { line, value }
}

impl Node {
    fn forget(&mut self) {
        self.line = None;
        match &mut self.value {
            Value::Table(table) => table.0.values_mut().for_each(Self::forget),
            Value::List(items) => items.iter_mut().for_each(Self::forget),
            Value::Text(_) | Value::Other(_) => {}
        }
    }

    fn with(self, over: Self) -> Self {
        let value = match (self.value, over.value) {
            (Value::Table(under), Value::Table(over)) => Value::Table(under.with(over)),
            (Value::List(mut items), Value::List(over)) => {
                // What the pack lists again stands there once, as its own.
                let again: HashSet<&str> = over.iter().filter_map(Self::text).collect();
                items.retain(|item| item.text().is_none_or(|text| !again.contains(text)));
                items.extend(over);
                Value::List(items)
            }
            (_, over) => over,
        };
        Self { line: over.line, value }
    }

    fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            Value::Table(_) | Value::List(_) | Value::Other(_) => None,
        }
    }

    fn words(&self, words: &mut Vec<Word>) {
        match &self.value {
            Value::Table(table) => table.0.values().for_each(|node| node.words(words)),
            Value::List(items) => {
                words.extend(
                    items.iter().filter_map(|item| Some(Word { text: item.text()?.to_owned(), line: item.line })),
                );
            }
            Value::Text(_) | Value::Other(_) => {}
        }
    }

    fn places<'n>(&'n self, key: Option<&'n str>, places: &mut HashMap<&'n str, usize>) {
        for text in key.into_iter().chain(self.text()) {
            if let Some(line) = self.line {
                places.entry(text).or_insert(line);
            }
        }
        match &self.value {
            Value::Table(table) => table.0.iter().for_each(|(key, node)| node.places(Some(key), places)),
            Value::List(items) => items.iter().for_each(|item| item.places(None, places)),
            Value::Text(_) | Value::Other(_) => {}
        }
    }

    fn take_words(&mut self, words: &HashSet<&str>) {
        match &mut self.value {
            Value::Table(table) => table.0.values_mut().for_each(|node| node.take_words(words)),
            Value::List(items) => items.retain(|item| item.text().is_none_or(|text| !words.contains(text))),
            Value::Text(_) | Value::Other(_) => {}
        }
    }

    /// The value in one line.
    fn inline(&self) -> String {
        let joined = |parts: Vec<String>| parts.join(", ");
        match &self.value {
            Value::Table(table) => {
                let pairs = table.0.iter().map(|(key, node)| format!("{} = {}", bare_or_quoted(key), node.inline()));
                format!("{{ {} }}", joined(pairs.collect()))
            }
            Value::List(items) => format!("[{}]", joined(items.iter().map(Self::inline).collect())),
            Value::Text(text) => quoted(text),
            Value::Other(written) => written.clone(),
        }
    }
}

#[derive(Default)]
struct Writer {
    text: String,
    lines: Vec<Option<usize>>,
}

impl Writer {
    fn line(&mut self, line: &str, own: Option<usize>) {
        self.text.push_str(line);
        self.text.push('\n');
        self.lines.push(own);
    }

    /// Values first: after the header of a table within it they would be that one's.
    fn table(&mut self, table: &Tree, path: &str) {
        for (key, node) in &table.0 {
            let key = bare_or_quoted(key);
            match &node.value {
                Value::Table(_) => {}
                Value::List(items) => {
                    self.line(&format!("{key} = ["), node.line);
                    items.iter().for_each(|item| self.line(&format!("    {},", item.inline()), item.line));
                    self.line("]", node.line);
                }
                Value::Text(_) | Value::Other(_) => self.line(&format!("{key} = {}", node.inline()), node.line),
            }
        }
        for (key, node) in &table.0 {
            let Value::Table(inner) = &node.value else { continue };
            let key = bare_or_quoted(key);
            let path = if path.is_empty() { key } else { format!("{path}.{key}") };
            self.line(&format!("[{path}]"), node.line);
            self.table(inner, &path);
        }
    }
}

fn bare_or_quoted(key: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if !key.is_empty() && key.bytes().all(is_bare) { key.to_owned() } else { quoted(key) }
}

/// A basic string in one line.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
