//! Markdown to HTML, with an anchor for each heading and search entries.
//!
//! Every text is escaped, and raw HTML in a document is shown as text. A heading's anchor is the one that code hosts
//! give it, so the same link works in the repository. A table row that begins with a code span (a reason code, a
//! field), and a list item that begins with a bold one (a setting), get an anchor too, and a search entry of their own.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::mem;

use pulldown_cmark::{Alignment, CodeBlockKind, Event, HeadingLevel, Options, Parser, Tag, TagEnd};

/// In bytes.
const LONG_NAME: usize = 16;

pub(super) struct Rendered {
    pub(super) html: String,
    /// The first heading.
    pub(super) title: String,
    pub(super) headings: Vec<Heading>,
    pub(super) entries: Vec<Entry>,
}

pub(super) struct Heading {
    pub(super) level: HeadingLevel,
    pub(super) anchor: String,
    pub(super) text: String,
}

/// What the search finds: a section or a table row.
pub(super) struct Entry {
    pub(super) anchor: String,
    pub(super) heading: String,
    pub(super) text: String,
}

pub(super) enum Target {
    Address(String),
    /// A file of the source repository that is not served.
    Repository(String),
}

pub(super) fn render(text: &str, resolve: impl Fn(&str) -> Target) -> Rendered {
    let mut writer = Writer { html: String::with_capacity(2 * text.len()), ..Writer::default() };
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        writer.event(event, &resolve);
    }
    writer.end_section();
    Rendered {
        html: writer.html,
        title: writer.title.unwrap_or_default(),
        headings: writer.headings,
        entries: writer.entries,
    }
}

/// A table row or a list item that is being written.
struct Row {
    element: &'static str,
    /// Where it starts in `html` and `plain`.
    start: (usize, usize),
    /// The code span with which it begins.
    name: Option<String>,
}

#[derive(Default)]
struct Writer {
    html: String,
    /// The text of the current section, for the search.
    plain: String,
    title: Option<String>,
    headings: Vec<Heading>,
    entries: Vec<Entry>,
    /// Anchor and text of the current section's heading.
    section: Option<(String, String)>,
    /// How often each anchor was given.
    anchors: HashMap<String, usize>,
    /// Where the current heading starts in `html` and `plain`.
    mark: (usize, usize),
    alignments: Vec<Alignment>,
    cell: usize,
    in_table_head: bool,
    /// The rows and items that are open, the innermost last.
    rows: Vec<Row>,
    is_strong: bool,
}

impl Writer {
    fn event(&mut self, event: Event<'_>, resolve: &impl Fn(&str) -> Target) {
        match event {
            Event::Start(tag) => self.start(tag, resolve),
            Event::End(tag) => self.end(tag),
            // For people who edit the file.
            Event::Html(comment) if comment.starts_with("<!--") && comment.trim_end().ends_with("-->") => {}
            Event::Text(text) | Event::Html(text) | Event::InlineHtml(text) => {
                self.plain.push_str(&text);
                self.html.push_str(&escape(&text));
            }
            Event::Code(code) => self.code(&code),
            Event::SoftBreak => self.both("\n", " "),
            Event::HardBreak => self.both("<br>\n", " "),
            Event::Rule => self.html.push_str("<hr>\n"),
            // Extensions that are switched off.
            Event::InlineMath(_) | Event::DisplayMath(_) | Event::FootnoteReference(_) | Event::TaskListMarker(_) => {}
        }
    }

    fn start(&mut self, tag: Tag<'_>, resolve: &impl Fn(&str) -> Target) {
        match tag {
            Tag::Paragraph => self.html.push_str("<p>"),
            Tag::Heading { .. } => {
                self.end_section();
                self.mark = (self.html.len(), self.plain.len());
            }
            Tag::BlockQuote(_) => self.html.push_str("<blockquote>\n"),
            Tag::CodeBlock(kind) => {
                self.html.push_str("<div class=\"code\"><pre><code");
                if let CodeBlockKind::Fenced(language) = kind
                    && !language.is_empty()
                {
                    let _ = write!(self.html, " class=\"language-{}\"", escape(&language));
                }
                self.html.push('>');
            }
            Tag::List(None) => self.html.push_str("<ul>\n"),
            Tag::List(Some(first)) => {
                let _ = writeln!(self.html, "<ol start=\"{first}\">");
            }
            Tag::Item => self.start_row("li"),
            Tag::Table(alignments) => {
                self.alignments = alignments;
                self.html.push_str("<div class=\"table\"><table>\n");
            }
            Tag::TableHead => {
                self.in_table_head = true;
                self.cell = 0;
                self.html.push_str("<thead><tr>");
            }
            Tag::TableRow => {
                self.cell = 0;
                self.start_row("tr");
            }
            Tag::TableCell => {
                let right = matches!(self.alignments.get(self.cell), Some(Alignment::Right));
                self.html.push_str(match (self.in_table_head, right) {
                    (true, false) => "<th scope=\"col\">",
                    (true, true) => "<th scope=\"col\" class=\"right\">",
                    (false, false) => "<td>",
                    (false, true) => "<td class=\"right\">",
                });
            }
            Tag::Emphasis => self.html.push_str("<em>"),
            Tag::Strong => {
                self.is_strong = true;
                self.html.push_str("<strong>");
            }
            Tag::Link { dest_url, .. } => {
                let _ = match resolve(&dest_url) {
                    Target::Address(address) => write!(self.html, "<a href=\"{}\">", escape(&address)),
                    Target::Repository(path) => {
                        let path = escape(&path);
                        write!(self.html, "<a class=\"repository\" title=\"{path} in the source repository\">")
                    }
                };
            }
            // Images, and extensions that are switched off.
            _ => {}
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Paragraph => self.both("</p>\n", " "),
            TagEnd::Heading(level) => self.end_heading(level),
            TagEnd::BlockQuote(_) => self.html.push_str("</blockquote>\n"),
            TagEnd::CodeBlock => self.html.push_str("</code></pre></div>\n"),
            TagEnd::List(false) => self.html.push_str("</ul>\n"),
            TagEnd::List(true) => self.html.push_str("</ol>\n"),
            TagEnd::Item => {
                self.plain.push(' ');
                self.end_row();
            }
            TagEnd::Table => self.html.push_str("</tbody></table></div>\n"),
            TagEnd::TableHead => {
                self.in_table_head = false;
                self.html.push_str("</tr></thead>\n<tbody>\n");
            }
            TagEnd::TableRow => self.end_row(),
            TagEnd::TableCell => {
                self.cell += 1;
                self.both(if self.in_table_head { "</th>" } else { "</td>" }, " ");
            }
            TagEnd::Emphasis => self.html.push_str("</em>"),
            TagEnd::Strong => {
                self.is_strong = false;
                self.html.push_str("</strong>");
            }
            TagEnd::Link => self.html.push_str("</a>"),
            _ => {}
        }
    }

    fn both(&mut self, html: &str, plain: &str) {
        self.html.push_str(html);
        self.plain.push_str(plain);
    }

    fn code(&mut self, code: &str) {
        if let Some(row) = self.rows.last_mut()
            && if row.element == "tr" { self.cell == 0 } else { self.is_strong }
            && row.name.is_none()
            && self.plain.len() == row.start.1
        {
            row.name = Some(code.to_owned());
        }
        self.html.push_str(match code {
            "GO" | "ALLOW" => "<code class=\"allow\">",
            "NO_GO" | "DENY" => "<code class=\"deny\">",
            "DEFER" => "<code class=\"defer\">",
            _ => "<code>",
        });
        let mut escaped = escape(code);
        // A long name in a table may break after its parts, so that the other columns have room.
        if self.rows.last().is_some_and(|row| row.element == "tr") && code.len() > LONG_NAME {
            escaped = escaped.replace('_', "_<wbr>").replace('.', ".<wbr>").replace('/', "/<wbr>");
        }
        self.html.push_str(&escaped);
        self.html.push_str("</code>");
        self.plain.push_str(code);
    }

    fn end_heading(&mut self, level: HeadingLevel) {
        let (html, plain) = self.mark;
        let text = self.plain.split_off(plain).trim().to_owned();
        let inner = self.html.split_off(html);
        let anchor = self.anchor(slug(&text));
        let _ = write!(self.html, "<{level} id=\"{anchor}\">{inner}");
        if level == HeadingLevel::H1 {
            self.title.get_or_insert_with(|| text.clone());
        } else {
            let _ =
                write!(self.html, " <a class=\"anchor\" href=\"#{anchor}\" aria-label=\"Link to this section\">#</a>");
        }
        let _ = writeln!(self.html, "</{level}>");
        self.section = Some((anchor.clone(), text.clone()));
        if matches!(level, HeadingLevel::H2 | HeadingLevel::H3) {
            self.headings.push(Heading { level, anchor, text });
        }
    }

    fn start_row(&mut self, element: &'static str) {
        self.rows.push(Row { element, start: (self.html.len(), self.plain.len()), name: None });
    }

    fn end_row(&mut self) {
        let Some(Row { element, start: (html, plain), name }) = self.rows.pop() else { return };
        let inner = self.html.split_off(html);
        match name {
            Some(name) => {
                let anchor = self.anchor(slug(&name));
                let _ = writeln!(self.html, "<{element} id=\"{anchor}\">{inner}</{element}>");
                let text = self.plain.split_off(plain);
                let text = text.strip_prefix(&name).unwrap_or(&text).trim().to_owned();
                self.entries.push(Entry { anchor, heading: name, text });
            }
            None => {
                let _ = writeln!(self.html, "<{element}>{inner}</{element}>");
            }
        }
    }

    fn end_section(&mut self) {
        let text = mem::take(&mut self.plain).split_whitespace().collect::<Vec<_>>().join(" ");
        if let Some((anchor, heading)) = self.section.take() {
            self.entries.push(Entry { anchor, heading, text });
        }
    }

    /// The same anchor a second time gets a number.
    fn anchor(&mut self, slug: String) -> String {
        let count = self.anchors.entry(slug.clone()).or_default();
        *count += 1;
        if *count == 1 { slug } else { format!("{slug}-{}", *count - 1) }
    }
}

fn slug(text: &str) -> String {
    let letters = text.to_lowercase();
    let dashed = letters.chars().map(|letter| if letter == ' ' { '-' } else { letter });
    dashed.filter(|letter| letter.is_alphanumeric() || matches!(letter, '-' | '_')).collect()
}

/// For text and for attributes in double quotes.
pub(super) fn escape(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            letter => html.push(letter),
        }
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(text: &str) -> Rendered {
        render(text, |link| match link.strip_prefix("adr/") {
            Some(path) => Target::Repository(path.to_owned()),
            None => Target::Address(link.to_owned()),
        })
    }

    #[test]
    fn headings_get_the_anchors_that_code_hosts_give_them() {
        let page = rendered("# A title\n\n## `GET /usage` & more\n\n### Twice\n\n### Twice\n");
        assert_eq!(page.title, "A title");
        let anchors: Vec<_> = page.headings.iter().map(|heading| heading.anchor.as_str()).collect();
        assert_eq!(anchors, ["get-usage--more", "twice", "twice-1"]);
        assert!(
            page.html.contains("<h2 id=\"get-usage--more\"><code>GET /usage</code> &amp; more <a class=\"anchor\"")
        );
    }

    #[test]
    fn markup_in_a_document_is_shown_as_text() {
        let page = rendered("a <script>alert(1)</script>\n\n<img src=x>\n\n[x](https://example.com/\"><b>)\n\n`<i>`\n");
        assert!(!page.html.contains("<script") && !page.html.contains("<img") && !page.html.contains("<b>"));
        assert!(!page.html.contains("<i>"), "{}", page.html);
    }

    #[test]
    fn a_comment_for_editors_is_left_out_and_unfinished_ones_are_text() {
        assert_eq!(rendered("# T\n\n<!-- do not edit -->\n\ntext\n").html, rendered("# T\n\ntext\n").html);
        let page = rendered("<!-- a --> <b>\n\ntext <!-- b -->\n");
        assert!(!page.html.contains("<b>") && page.html.contains("&lt;!-- b"), "{}", page.html);
    }

    #[test]
    fn a_row_that_begins_with_a_name_is_found_by_it() {
        let page = rendered("# T\n\ntext\n\n| a | n |\n| --- | ---: |\n| `NAME`, `b` | of `x` |\n| plain | 2 |\n");
        assert!(page.html.contains("<tr id=\"name\"><td><code>NAME</code>, <code>b</code></td><td class=\"right\">of"));
        assert!(page.html.contains("<tr><td>plain</td>"), "{}", page.html);
        let found: Vec<_> = page.entries.iter().map(|entry| (entry.heading.as_str(), entry.text.as_str())).collect();
        assert_eq!(found, [("NAME", ", b of x"), ("T", "text a n plain 2")]);
    }

    #[test]
    fn a_list_item_that_begins_with_a_bold_code_span_has_an_anchor_and_an_entry() {
        let page = rendered("# A\n\n- **`listen`** `ADDR`: where\n- `other`: no entry\n");
        assert!(
            page.html.contains("<li id=\"listen\"><strong><code>listen</code></strong> <code>ADDR</code>: where</li>")
        );
        assert!(page.html.contains("<li><code>other</code>: no entry</li>"), "{}", page.html);
        let named: Vec<_> = page.entries.iter().map(|entry| (entry.heading.as_str(), entry.text.as_str())).collect();
        assert!(named.contains(&("listen", "ADDR: where")), "{named:?}");
    }

    #[test]
    fn a_file_of_the_repository_is_named_and_not_linked() {
        let page = rendered("see [why](adr/0001-x.md)");
        assert!(page.html.contains("<a class=\"repository\" title=\"0001-x.md in the source repository\">why</a>"));
    }

    #[test]
    fn code_blocks_keep_their_text_and_language() {
        let page = rendered("```sh\ncurl \"$a\" <b\n```\n");
        let expected =
            "<div class=\"code\"><pre><code class=\"language-sh\">curl &quot;$a&quot; &lt;b\n</code></pre></div>\n";
        assert_eq!(page.html, expected);
    }
}
