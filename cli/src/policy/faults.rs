//! Faults and findings as an author sees them: message, file, line, the text with the place marked, and what to write.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::ops::Range;
use std::path::Path;

use miette::{
    Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteError, MietteSpanContents, NamedSource,
    SourceCode, SourceSpan, SpanContents,
};
use stage0_policy::{Fault, PackError};

use crate::out::plain;

/// The longest line that is shown; of a longer one, the part around the fault.
const MAX_LINE: usize = 110;
/// Characters of a long line before the fault.
const BEFORE: usize = 20;

/// Places every fault in the files of a folder, as far as they can be read.
pub(super) fn locate<'f>(dir: &Path, faults: impl IntoIterator<Item = &'f mut Fault>) {
    let mut sources = Sources::of(dir);
    for fault in faults {
        if let Some(text) = sources.text(&fault.file) {
            fault.locate(text);
        }
    }
}

/// A refusal, each of its faults shown where it stands.
pub(crate) fn refused(dir: &Path, mut refused: PackError) -> anyhow::Error {
    locate(dir, &mut refused.faults);
    let count = match refused.faults.len() {
        1 => "1 fault".to_owned(),
        many => format!("{many} faults"),
    };
    let shown = shown(dir, refused.faults.iter().map(|fault| (None, fault)));
    anyhow::anyhow!("the policy pack is refused ({count})\n\n{}", shown.trim_end())
}

/// Faults below each other, each under its kind if it has one.
pub(super) fn shown<'f>(dir: &Path, faults: impl IntoIterator<Item = (Option<&'static str>, &'f Fault)>) -> String {
    let mut sources = Sources::of(dir);
    let mut text = String::new();
    for (kind, fault) in faults {
        let report = Report::new(fault, sources.text(&fault.file));
        let handler = GraphicalReportHandler::new_themed(theme(kind.unwrap_or("error")));
        // A terminal wraps what is too long, and a program has each message in one line.
        let handler = handler.with_wrap_lines(false).without_cause_chain();
        if handler.render_report(&mut text, &report).is_err() {
            text.push_str(&format!("{fault}\n"));
        }
        text.push('\n');
    }
    text
}

/// Box-drawing characters and no colours: only `out` makes escape sequences.
fn theme(kind: &str) -> GraphicalTheme {
    let mut theme = GraphicalTheme::unicode_nocolor();
    theme.characters.error = format!("{kind}:");
    theme
}

/// The texts of a folder's files, each read once.
struct Sources<'d> {
    dir: &'d Path,
    texts: BTreeMap<String, Option<String>>,
}

impl<'d> Sources<'d> {
    fn of(dir: &'d Path) -> Self {
        Self { dir, texts: BTreeMap::new() }
    }

    fn text(&mut self, file: &str) -> Option<&str> {
        // The name of a file only: a fault of the whole folder has its path.
        let is_name = Path::new(file).file_name().is_some_and(|name| name == file);
        let path = self.dir.join(file);
        let text = self.texts.entry(file.to_owned());
        text.or_insert_with(|| is_name.then(|| fs::read_to_string(path).ok()).flatten()).as_deref()
    }
}

#[derive(Debug)]
struct Report {
    message: String,
    help: Option<String>,
    source: Option<Excerpt>,
    span: Range<usize>,
}

/// The text of a file with long lines cut, and the place of the fault in the whole file.
#[derive(Debug)]
struct Excerpt {
    shown: NamedSource<String>,
    span: Range<usize>,
    /// The character of the line, from 1, in the file.
    column: Option<usize>,
}

impl SourceCode for Excerpt {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        before: usize,
        after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let read = self.shown.read_span(span, before, after)?;
        // The heading is made from the faulty words alone, and the excerpt from the lines around them.
        let column = self.column.filter(|_| before == 0 && span.offset() == self.span.start);
        let Some(column) = column.and_then(|column| column.checked_sub(1)) else { return Ok(read) };
        let (name, data, span) = (self.shown.name().to_owned(), read.data(), *read.span());
        Ok(Box::new(MietteSpanContents::new_named(name, data, span, read.line(), column, read.line_count())))
    }
}

impl Report {
    fn new(fault: &Fault, text: Option<&str>) -> Self {
        let named = fault.rule.as_ref().map_or_else(String::new, |rule| format!("{}: ", plain(rule)));
        let excerpt = text.zip(fault.span.as_deref().cloned()).map(|(text, span)| excerpt(text, span));
        let place = match (&excerpt, fault.line) {
            // The excerpt names file and line.
            (Some(_), _) => String::new(),
            (None, Some(line)) => format!("{}:{line}: ", plain(&fault.file)),
            (None, None) => format!("{}: ", plain(&fault.file)),
        };
        let message = format!("{place}{named}{}", plain(&fault.message));
        // Lines to copy stay lines.
        let help = fault.help.as_deref().map(|help| help.lines().map(plain).collect::<Vec<_>>().join("\n"));
        let (source, span) = match excerpt {
            Some((text, span)) => {
                let shown = NamedSource::new(plain(&fault.file), text);
                (
                    Some(Excerpt {
                        shown,
                        span: span.clone(),
                        column: fault.column.and_then(|column| usize::try_from(column).ok()),
                    }),
                    span,
                )
            }
            None => (None, 0..0),
        };
        Self { message, help, source, span }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Report {}

impl Diagnostic for Report {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.source.as_ref().map(|source| source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        self.source.as_ref()?;
        Some(Box::new(std::iter::once(LabeledSpan::new_with_span(None, self.span.clone()))))
    }
}

/// The text with visible characters only and with long lines cut, and where the span is in it. A span of several lines
/// ends with its first.
fn excerpt(text: &str, span: Range<usize>) -> (String, Range<usize>) {
    let (mut shown, mut place, mut start) = (String::with_capacity(text.len()), 0..0, 0);
    for line in text.split('\n') {
        let end = start + line.len();
        if (start..=end).contains(&span.start) {
            let cut = |at: usize| line.get(..at.min(end).saturating_sub(start)).unwrap_or(line);
            let (before, until) = (cut(span.start), cut(span.end));
            let marked = until.get(before.len()..).unwrap_or_default();
            let after = line.get(until.len()..).unwrap_or_default();
            let before = tail(before, line);
            shown.push_str(&before);
            let from = shown.len();
            shown.push_str(&head(marked, MAX_LINE - BEFORE));
            place = from..shown.len();
            shown.push_str(&head(after, MAX_LINE.saturating_sub(before.chars().count() + marked.chars().count())));
        } else {
            shown.push_str(&head(line, MAX_LINE));
        }
        shown.push('\n');
        start = end + 1;
    }
    // What follows the last line break is no line.
    shown.truncate(shown.trim_end_matches('\n').len().max(place.end));
    (shown, place)
}

/// The beginning of a text, as far as there is room.
fn head(text: &str, room: usize) -> String {
    let text = visible(text);
    match text.char_indices().nth(room) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// What stands before the fault; in a long line, the end of it.
fn tail(before: &str, line: &str) -> String {
    let before = visible(before);
    let surplus = before.chars().count().saturating_sub(BEFORE);
    if surplus == 0 || line.chars().count() <= MAX_LINE {
        return before;
    }
    format!("…{}", before.chars().skip(surplus).collect::<String>())
}

fn visible(text: &str) -> String {
    plain(&text.replace('\t', "    "))
}

/// As JSON has it: every fault with its column.
pub(crate) fn for_json(dir: &Path, mut refused: PackError) -> Vec<Fault> {
    locate(dir, &mut refused.faults);
    refused.faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_cut_around_the_fault() {
        let line = format!("{{\"a\": \"{}\", \"id\": 7, \"b\": \"{}\"}}", "x".repeat(300), "y".repeat(300));
        let at = line.find("\"id\"").unwrap();
        let (shown, place) = excerpt(&format!("[\n{line}\n]"), at + 2..at + 6);
        assert_eq!(&shown[place], "\"id\"");
        let cut = shown.lines().nth(1).unwrap();
        assert!(cut.starts_with("…xxx") && cut.ends_with("yyy…") && cut.chars().count() < 130, "{cut}");
    }

    #[test]
    fn the_heading_names_the_column_in_the_file_and_not_in_the_excerpt() {
        let dir = tempfile::tempdir().unwrap();
        let line = format!("{{\"a\": \"{}\", \"id\": 7}}", "x".repeat(300));
        fs::write(dir.path().join("cases.json"), format!("[\n{line}\n]")).unwrap();
        let at = 2 + line.find("\"id\"").unwrap();
        let column = at - 1;
        let fault = Fault {
            file: "cases.json".to_owned(),
            line: Some(2),
            column: u32::try_from(column).ok(),
            rule: None,
            message: "odd".to_owned(),
            help: Some("add\nthese lines".into()),
            span: Some(Box::new(at..at + 4)),
        };
        let shown = shown(dir.path(), [(None, &fault)]);
        assert!(column > 300 && shown.contains(&format!("[cases.json:2:{column}]")), "{shown}");
        assert!(shown.contains("\"id\": 7") && shown.contains("these lines"), "{shown}");
    }

    #[test]
    fn an_excerpt_moves_no_cursor_and_marks_the_same_words() {
        let text = "a\u{1b}[2J\u{202e} bad\tend\nnext";
        let at = text.find("bad").unwrap();
        let (shown, place) = excerpt(text, at..at + 3);
        assert_eq!((&shown[place], shown.contains(['\u{1b}', '\u{202e}', '\t'])), ("bad", false));
        let (shown, place) = excerpt("one\ntwo\nthree", 5..13);
        assert_eq!((&shown[place], shown.lines().count()), ("wo", 3), "of several lines the first is marked");
        let (_, place) = excerpt("one", 3..3);
        assert!(place.is_empty());
    }
}
