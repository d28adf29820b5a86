//! Links between the documents lead to files and headings that exist.
//!
//! Looks at what is written in the tree (README, SECURITY, CHANGELOG, docs/), not at the web: addresses of others are
//! not followed. Anchors are compared with headings as the usual Markdown renderers name them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn documents(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            documents(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

/// Without fenced blocks, in which brackets and `#` mean something else.
fn prose(text: &str) -> Vec<&str> {
    let mut fenced = false;
    text.lines()
        .filter(|line| {
            let fence = line.starts_with("```");
            fenced ^= fence;
            !fence && !fenced
        })
        .collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).into_iter().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let named = title.chars().map(|letter| if letter == ' ' { '-' } else { letter });
            named.filter(|letter| letter.is_alphanumeric() || matches!(letter, '-' | '_')).collect()
        })
        .collect()
}

/// What stands behind `](`.
fn links(text: &str) -> Vec<String> {
    let prose = prose(text).join("\n");
    prose.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link.to_owned()).collect()
}

/// Why a link of this document leads nowhere.
fn fault(document: &Path, link: &str) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
    let target = if file.is_empty() { document.to_owned() } else { document.parent().unwrap().join(file) };
    if !target.exists() {
        return Some(format!("{}: `{link}`: no such file", document.display()));
    }
    let anchor = anchor?;
    let known = anchors(&fs::read_to_string(&target).unwrap());
    (!known.contains(anchor)).then(|| format!("{}: `{link}`: no such heading", document.display()))
}

#[test]
fn links_between_documents_lead_somewhere() {
    let root = root();
    let mut all = vec![];
    documents(&root.join("docs"), &mut all);
    all.extend(["README.md", "SECURITY.md", "CHANGELOG.md"].map(|name| root.join(name)));
    let mut seen = 0;
    let mut faults = vec![];
    for document in &all {
        for link in links(&fs::read_to_string(document).unwrap()) {
            seen += 1;
            faults.extend(fault(document, &link));
        }
    }
    assert!(seen > 100, "{seen} links");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_link_that_leads_nowhere_is_noticed() {
    let document = root().join("docs/audit.md");
    assert!(fault(&document, "webhooks.md#what-arrives").is_none());
    assert!(fault(&document, "#verifying").is_none());
    assert!(fault(&document, "webhooks.md#what-arrived").unwrap().contains("no such heading"));
    assert!(fault(&document, "webhook.md").unwrap().contains("no such file"));
    assert_eq!(links("see [a](b.md#c) and [d](e)\n```\n[x](y)\n```"), ["b.md#c", "e"]);
}
