//! The site at `/docs`: the documents under `docs/` as HTML pages, and the files that these load.
//!
//! Owns which documents are pages, in which order and under which name; `markdown` makes a document's HTML and search
//! entries. Everything that a page loads is a file of this site. Links are relative: a proxy may add a path before
//! every route. A page works without its script.
//! INVARIANT: each Markdown file under `docs/`, except those in `adr/`, is a page or stands in `REPOSITORY_ONLY`.

use std::collections::HashMap;
use std::fmt::Write as _;

use pulldown_cmark::HeadingLevel;

use super::super::asset::Asset;
use super::markdown::{self, Heading, Rendered, Target, escape};

const FRAME: &str = include_str!("../../../assets/docs/page.html");
const STYLE: &str = include_str!("../../../assets/docs/style.css");
const SCRIPT: &str = include_str!("../../../assets/docs/site.js");
const ICON: &str = include_str!("../../../assets/docs/icon.svg");

/// For people who change the product, not for those who use it.
#[cfg(test)]
const REPOSITORY_ONLY: [&str; 2] = ["ARCHITECTURE.md", "PERFORMANCE.md"];

struct Document {
    /// Path under `docs/`.
    file: &'static str,
    label: &'static str,
    text: &'static str,
}

impl Document {
    /// Last part of the page's path; empty for the front page, which is at `/docs` itself.
    fn slug(&self) -> String {
        if self.file == FRONT_PAGE { String::new() } else { slug_of(self.file) }
    }
}

struct Group {
    label: &'static str,
    /// Examples call the API, so the script shows the reader's own host in them.
    calls_the_api: bool,
    documents: &'static [Document],
}

const FRONT_PAGE: &str = "guide.md";

macro_rules! document {
    ($file:literal, $label:literal) => {
        Document { file: $file, label: $label, text: include_str!(concat!("../../../../docs/", $file)) }
    };
}

const GROUPS: &[Group] = &[
    Group {
        label: "Calling the API",
        calls_the_api: true,
        documents: &[
            document!("guide.md", "Guide"),
            document!("constraints.md", "Constraints and effects"),
            document!("vocabulary.md", "Codes and words"),
            document!("runs.md", "Runs and usage"),
            document!("approvals.md", "Approvals and stops"),
            document!("keys.md", "Accounts and keys"),
            document!("decisions.md", "Decisions"),
            document!("webhooks.md", "Webhooks"),
            document!("clients.md", "Clients"),
            document!("moving-from-hosted.md", "Moving from hosted"),
        ],
    },
    Group {
        label: "Guarding agents",
        calls_the_api: false,
        documents: &[
            document!("guards/README.md", "Guards for coding agents"),
            document!("guards/mcp.md", "Guard for MCP"),
        ],
    },
    Group {
        label: "Running it",
        calls_the_api: false,
        documents: &[
            document!("install.md", "Install"),
            document!("local-stack.md", "Local stack"),
            document!("cluster.md", "NATS in a cluster"),
            document!("CONFIGURATION.md", "Configuration"),
            document!("OPERATIONS.md", "Operations"),
            document!("limits.md", "Runs, limits, abuse"),
            document!("metrics.md", "Metrics and logs"),
            document!("sizing.md", "Sizing"),
            document!("nats-security.md", "NATS security"),
        ],
    },
    Group {
        label: "Writing policy",
        calls_the_api: false,
        documents: &[
            document!("policy/README.md", "Policy packs"),
            document!("policy/guide.md", "Your first rule"),
            document!("policy/recipes.md", "Policy recipes"),
            document!("policy/publishing.md", "Publish and activate a policy"),
            document!("policy/facts.md", "Policy facts"),
            document!("policy/reference.md", "Policy reference"),
            document!("policy/secrets.md", "Secrets in requests"),
            document!("policy/templates/production-ready.md", "Template: production-ready"),
            document!("policy/templates/coding-agent.md", "Template: coding-agent"),
            document!("policy/templates/money-movement.md", "Template: money-movement"),
            document!("policy/templates/customer-messaging.md", "Template: customer-messaging"),
            document!("policy/templates/data-protection.md", "Template: data-protection"),
            document!("policy/templates/read-only-analyst.md", "Template: read-only-analyst"),
        ],
    },
    Group {
        label: "Audit and security",
        calls_the_api: false,
        documents: &[
            document!("audit.md", "Decision log"),
            document!("security-overview.md", "Security overview"),
            document!("threat-model.md", "Threat model"),
            document!("GLOSSARY.md", "Glossary"),
        ],
    },
];

/// Every file below `/docs`, by the last part of its path.
pub(super) struct Site {
    files: HashMap<String, Asset>,
}

impl Site {
    pub(super) fn build() -> Self {
        let mut files = HashMap::from([
            ("style.css".to_owned(), Asset::new("text/css; charset=utf-8", STYLE)),
            ("site.js".to_owned(), Asset::new("text/javascript; charset=utf-8", SCRIPT)),
            ("icon.svg".to_owned(), Asset::new("image/svg+xml", ICON)),
        ]);
        let mut index = Vec::new();
        for group in GROUPS {
            for document in group.documents {
                let slug = document.slug();
                let Rendered { html, title, headings, entries } =
                    markdown::render(document.text, |link| resolve(document.file, link));
                let page = page(group, &slug, &title, &html, &headings);
                let entries = entries.into_iter();
                index.extend(
                    entries.map(|entry| (slug.clone(), document.label, entry.anchor, entry.heading, entry.text)),
                );
                files.insert(slug, Asset::new("text/html; charset=utf-8", page));
            }
        }
        // A tuple of strings can always be written.
        let index = serde_json::to_string(&index).unwrap_or_default();
        files.insert("search.json".to_owned(), Asset::new("application/json", index));
        Self { files }
    }

    /// The front page has the empty name.
    pub(super) fn file(&self, name: &str) -> Option<&Asset> {
        self.files.get(name)
    }
}

/// All pages lie side by side, so that a link leads to the same place wherever it stands: `policy/guide.md` is
/// `policy-guide`, and a folder's `README.md` has the name of the folder.
fn slug_of(file: &str) -> String {
    file.trim_end_matches(".md").trim_end_matches("/README").replace('/', "-").to_lowercase()
}

/// The relative address of a page or another file of the site, seen from the page `from`.
fn href(from: &str, to: &str) -> String {
    match (from.is_empty(), to.is_empty()) {
        (true, true) => "docs".to_owned(),
        (true, false) => format!("docs/{to}"),
        (false, true) => "../docs".to_owned(),
        (false, false) => to.to_owned(),
    }
}

/// Where a link of the document `from` leads when the document is a page.
fn resolve(from: &str, link: &str) -> Target {
    if link.contains("://") || link.starts_with("mailto:") {
        return Target::Address(link.to_owned());
    }
    let (file, anchor) = link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
    let anchor = anchor.map(|anchor| format!("#{anchor}")).unwrap_or_default();
    if file.is_empty() {
        return Target::Address(anchor);
    }
    if file.ends_with("openapi.json") {
        // Served beside the pages.
        let path = if from == FRONT_PAGE { "openapi.json" } else { "../openapi.json" };
        return Target::Address(path.to_owned());
    }
    let path = in_repository(from, file);
    let mut documents = GROUPS.iter().flat_map(|group| group.documents);
    let slug = |file| if file == FRONT_PAGE { String::new() } else { slug_of(file) };
    match documents.find(|document| path.strip_prefix("docs/") == Some(document.file)) {
        Some(document) => Target::Address(href(&slug(from), &document.slug()) + &anchor),
        None => Target::Repository(path),
    }
}

/// The path, from the root of the repository, of a file to which the document `from` links.
fn in_repository(from: &str, link: &str) -> String {
    let folder = from.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut path = vec!["docs"];
    for part in folder.split('/').chain(link.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                path.pop();
            }
            name => path.push(name),
        }
    }
    path.join("/")
}

fn page(group: &Group, slug: &str, title: &str, content: &str, headings: &[Heading]) -> String {
    let class = if group.calls_the_api { "reader-host" } else { "" };
    // The content is inserted last, because a document may contain the text of a placeholder.
    [
        ("{title}", escape(title)),
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

fn navigation(slug: &str) -> String {
    let mut html = String::new();
    for group in GROUPS {
        let _ = write!(html, "<h2>{}</h2>\n<ul>\n", escape(group.label));
        for document in group.documents {
            let to = document.slug();
            let current = if to == slug { " aria-current=\"page\"" } else { "" };
            let _ = writeln!(html, "<li><a href=\"{}\"{current}>{}</a></li>", href(slug, &to), escape(document.label));
        }
        html.push_str("</ul>\n");
    }
    html
}

fn contents(headings: &[Heading]) -> String {
    let mut html = String::new();
    for Heading { level, anchor, text } in headings {
        let class = if *level == HeadingLevel::H3 { " class=\"sub\"" } else { "" };
        let _ = writeln!(html, "<li{class}><a href=\"#{anchor}\">{}</a></li>", escape(text));
    }
    html
}

fn neighbours(slug: &str) -> String {
    let documents: Vec<&Document> = GROUPS.iter().flat_map(|group| group.documents).collect();
    let Some(at) = documents.iter().position(|document| document.slug() == slug) else { return String::new() };
    let before = at.checked_sub(1).and_then(|before| documents.get(before));
    let link = |document: &Document, relation: &str, word: &str| {
        let (address, label) = (href(slug, &document.slug()), escape(document.label));
        format!("<a rel=\"{relation}\" href=\"{address}\"><span>{word}</span> {label}</a>\n")
    };
    let before = before.map(|document| link(document, "prev", "Previous")).unwrap_or_default();
    let after = documents.get(at + 1).map(|document| link(document, "next", "Next")).unwrap_or_default();
    before + &after
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn markdown_below(folder: &Path, root: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("adr") {
                markdown_below(&path, root, found);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }

    #[test]
    fn every_document_is_a_page_or_stays_in_the_repository() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        let mut found = BTreeSet::new();
        markdown_below(&folder, &folder, &mut found);
        let pages = GROUPS.iter().flat_map(|group| group.documents).map(|document| document.file);
        let listed: BTreeSet<_> = pages.chain(REPOSITORY_ONLY).map(str::to_owned).collect();
        assert_eq!(found, listed);
    }

    #[test]
    fn no_two_documents_have_the_same_address() {
        let documents = || GROUPS.iter().flat_map(|group| group.documents);
        let addresses: BTreeSet<_> = documents().map(Document::slug).collect();
        assert_eq!(addresses.len(), documents().count());
    }

    #[test]
    fn links_between_documents_become_relative_addresses_of_pages() {
        let address = |from: &str, link: &str| match resolve(from, link) {
            Target::Address(address) => address,
            Target::Repository(path) => format!("repository:{path}"),
        };
        assert_eq!(address("guide.md", "webhooks.md#what-arrives"), "docs/webhooks#what-arrives");
        assert_eq!(address("webhooks.md", "guide.md"), "../docs");
        assert_eq!(address("webhooks.md", "CONFIGURATION.md"), "configuration");
        assert_eq!(address("webhooks.md", "#what-arrives"), "#what-arrives");
        assert_eq!(address("guide.md", "../gateway/assets/openapi.json"), "openapi.json");
        assert_eq!(address("webhooks.md", "../gateway/assets/openapi.json"), "../openapi.json");
        assert_eq!(address("webhooks.md", "https://example.com/a.md"), "https://example.com/a.md");
        assert_eq!(address("audit.md", "../SECURITY.md"), "repository:SECURITY.md");
        assert_eq!(address("audit.md", "adr/0006-chains-and-marks.md"), "repository:docs/adr/0006-chains-and-marks.md");
    }

    #[test]
    fn pages_of_a_folder_lie_beside_the_others() {
        let address = |from: &str, link: &str| match resolve(from, link) {
            Target::Address(address) => address,
            Target::Repository(path) => format!("repository:{path}"),
        };
        assert_eq!(address("guide.md", "policy/README.md"), "docs/policy");
        assert_eq!(address("approvals.md", "policy/reference.md#cases"), "policy-reference#cases");
        assert_eq!(address("policy/guide.md", "recipes.md"), "policy-recipes");
        assert_eq!(address("policy/guide.md", "../guide.md#issues"), "../docs#issues");
        assert_eq!(address("policy/guide.md", "../runs.md"), "runs");
        assert_eq!(address("policy/guide.md", "../../policies/baseline"), "repository:policies/baseline");
        assert_eq!(address("policy/guide.md", "../adr/README.md"), "repository:docs/adr/README.md");
    }
}
