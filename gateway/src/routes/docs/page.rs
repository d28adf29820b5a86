//! The frame around a document's HTML: head, navigation, table of contents, and the links to the pages before and
//! after it.
//!
//! Owns the page's structure. The page works without its script; search, copy buttons and the reader's host in
//! examples come from it.

use std::fmt::Write as _;

use pulldown_cmark::HeadingLevel;

use super::markdown::{Heading, escape};
use super::site::{Document, GROUPS, Group, href};

const FRAME: &str = include_str!("../../../assets/docs/page.html");

pub(super) fn page(group: &Group, slug: &str, title: &str, content: &str, headings: &[Heading]) -> String {
    let class = if group.calls_the_api { "reader-host" } else { "" };
    // The content is inserted last, because a document may contain the text of a placeholder.
    [
        ("{title}", escaped(title)),
        ("{home}", href(slug, "")),
        ("{files}", href(slug, "style.css").replace("style.css", "")),
        ("{openapi}", if slug.is_empty() { "openapi.json" } else { "../openapi.json" }.to_owned()),
        ("{navigation}", navigation(slug)),
        ("{contents}", contents(headings)),
        ("{neighbours}", neighbours(slug)),
        ("{class}", class.to_owned()),
        ("{content}", content.to_owned()),
    ]
    .into_iter()
    .fold(FRAME.to_owned(), |page, (placeholder, value)| page.replace(placeholder, &value))
}

fn escaped(text: &str) -> String {
    let mut html = String::new();
    escape(&mut html, text);
    html
}

fn navigation(slug: &str) -> String {
    let mut html = String::new();
    for group in GROUPS {
        let _ = write!(html, "<h2>{}</h2>\n<ul>\n", escaped(group.label));
        for document in group.documents {
            let to = document.slug();
            let current = if to == slug { " aria-current=\"page\"" } else { "" };
            let _ = writeln!(html, "<li><a href=\"{}\"{current}>{}</a></li>", href(slug, &to), escaped(document.label));
        }
        html.push_str("</ul>\n");
    }
    html
}

fn contents(headings: &[Heading]) -> String {
    let mut html = String::new();
    for Heading { level, anchor, text } in headings {
        let class = if *level == HeadingLevel::H3 { " class=\"sub\"" } else { "" };
        let _ = writeln!(html, "<li{class}><a href=\"#{anchor}\">{}</a></li>", escaped(text));
    }
    html
}

fn neighbours(slug: &str) -> String {
    let documents: Vec<&Document> = GROUPS.iter().flat_map(|group| group.documents).collect();
    let Some(at) = documents.iter().position(|document| document.slug() == slug) else { return String::new() };
    let before = at.checked_sub(1).and_then(|before| documents.get(before));
    let link = |document: &Document, relation: &str, word: &str| {
        let (address, label) = (href(slug, &document.slug()), escaped(document.label));
        format!("<a rel=\"{relation}\" href=\"{address}\"><span>{word}</span> {label}</a>\n")
    };
    let before = before.map(|document| link(document, "prev", "Previous")).unwrap_or_default();
    let after = documents.get(at + 1).map(|document| link(document, "next", "Next")).unwrap_or_default();
    before + &after
}
