//! Links between the documents lead to files and headings that exist.
//!
//! Reads the documents of the tree (README, SECURITY, CHANGELOG, CONTRIBUTING, docs/), and follows no address on the
//! web. Anchors are compared with headings as the usual Markdown renderers name them. In the documents that lead
//! through the code, every file and folder that is named must exist.

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
    all.extend(["README.md", "SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md"].map(|name| root.join(name)));
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
fn a_broken_link_in_a_document_is_detected() {
    let document = root().join("docs/audit.md");
    assert!(fault(&document, "webhooks.md#what-arrives").is_none());
    assert!(fault(&document, "#verifying").is_none());
    assert!(fault(&document, "webhooks.md#what-arrived").unwrap().contains("no such heading"));
    assert!(fault(&document, "webhook.md").unwrap().contains("no such file"));
    assert_eq!(links("see [a](b.md#c) and [d](e)\n```\n[x](y)\n```"), ["b.md#c", "e"]);
}

/// Every file of the tree, relative to its root, without what is built or brought in.
fn files(folder: &Path, root: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            if !name.starts_with('.') && !matches!(name, "target" | "vendor") {
                found.insert(format!("/{}/", path.strip_prefix(root).unwrap().display()));
                files(&path, root, found);
            }
        } else {
            found.insert(format!("/{}", path.strip_prefix(root).unwrap().display()));
        }
    }
}

/// `a/{b,c}.rs` names `a/b.rs` and `a/c.rs`.
fn expanded(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once('{') else { return vec![path.to_owned()] };
    let (names, after) = rest.split_once('}').expect("a closing brace");
    names.split(',').map(|name| format!("{before}{name}{after}")).collect()
}

/// The code spans of a document that name a file or folder of this tree.
fn named_paths(text: &str, folders: &[&str]) -> Vec<String> {
    let prose = prose(text).join("\n");
    let spans = prose.split('`').skip(1).step_by(2);
    let is_path = |span: &&str| {
        let plain = span.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-{,}".contains(&b));
        plain && (span.ends_with(".rs") || folders.iter().any(|folder| span.starts_with(folder)))
    };
    spans.filter(is_path).flat_map(expanded).collect()
}

#[test]
fn files_that_the_guides_to_the_code_name_exist() {
    let root = root();
    let mut known = BTreeSet::new();
    files(&root, &root, &mut known);
    let folders: Vec<_> = known
        .iter()
        .filter_map(|path| path.strip_prefix('/')?.strip_suffix('/'))
        .filter(|folder| !folder.contains('/'))
        .map(|folder| format!("{folder}/"))
        .collect();
    let folders: Vec<_> = folders.iter().map(String::as_str).collect();
    let exists = |path: &str| known.iter().any(|file| file.ends_with(&format!("/{path}")));
    for name in ["docs/ARCHITECTURE.md", "docs/GLOSSARY.md", "CONTRIBUTING.md"] {
        let named = named_paths(&fs::read_to_string(root.join(name)).unwrap(), &folders);
        assert!(named.len() > 10, "{name}: {named:?}");
        let missing: Vec<_> = named.into_iter().filter(|path| !exists(path)).collect();
        assert!(missing.is_empty(), "{name}: {missing:?}");
    }
    assert!(!exists("gateway/src/no_such_file.rs"));
    assert_eq!(named_paths("`a/{b,c}.rs` `d` `a/` `e/f` `g h.rs`", &["a/"]), ["a/b.rs", "a/c.rs", "a/"]);
}
