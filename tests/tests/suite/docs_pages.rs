//! The pages at `/docs`: every link leads somewhere, they are cacheable and compressed, and they name no host of
//! their own.
//!
//! What a reader sees and does with them is in `browser.rs`; that their examples are true, in `docs_examples.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use reqwest::Method;
use stage0_tests::{Raw, Stack};

/// The values of an attribute, in the order of the page.
pub(crate) fn attributes<'a>(page: &'a str, name: &str) -> Vec<&'a str> {
    let start = format!(" {name}=\"");
    page.split(&*start).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

/// The path that a relative link means on this page.
fn resolved(page: &str, link: &str) -> (String, String) {
    let (link, anchor) = link.split_once('#').unwrap_or((link, ""));
    if link.is_empty() {
        return (page.to_owned(), anchor.to_owned());
    }
    let mut folder = page.rsplit_once('/').unwrap().0;
    let mut link = link;
    while let Some(rest) = link.strip_prefix("../") {
        (folder, link) = (folder.rsplit_once('/').unwrap().0, rest);
    }
    (format!("{folder}/{link}"), anchor.to_owned())
}

/// Every page by its path, found by following links from the front page.
async fn crawl(stack: &Stack) -> BTreeMap<String, String> {
    let open = stack.api.without_key();
    let (mut pages, mut left) = (BTreeMap::new(), vec!["/docs".to_owned()]);
    while let Some(path) = left.pop() {
        if pages.contains_key(&path) {
            continue;
        }
        let answer = open.get(&path).await;
        assert_eq!(answer.status, 200, "{path}");
        if answer.header("content-type").starts_with("text/html") {
            let links = attributes(&answer.text, "href").into_iter().chain(attributes(&answer.text, "src"));
            left.extend(links.filter(|link| !link.contains("://")).map(|link| resolved(&path, link).0));
        }
        pages.insert(path, answer.text);
    }
    pages
}

#[tokio::test]
async fn every_link_and_anchor_of_the_pages_leads_somewhere() {
    let stack = Stack::build().dev().await;
    let pages = crawl(&stack).await;
    let documents = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")).unwrap();
    let documents = documents.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|e| e == "md"));
    let html: Vec<_> = pages.iter().filter(|(_, text)| text.starts_with("<!doctype html>")).collect();
    assert!(html.len() >= documents.count() - 2, "{:?}", pages.keys());
    let mut faults = vec![];
    for (path, text) in html {
        let ids = attributes(text, "id");
        let unique: BTreeSet<_> = ids.iter().collect();
        if unique.len() != ids.len() {
            faults.push(format!("{path}: an id stands twice"));
        }
        for link in attributes(text, "href").into_iter().filter(|link| !link.contains("://")) {
            let (target, anchor) = resolved(path, link);
            if !anchor.is_empty() && !attributes(&pages[&target], "id").contains(&&*anchor) {
                faults.push(format!("{path}: `{link}`: no such anchor"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[tokio::test]
async fn every_search_entry_leads_to_an_anchor() {
    let stack = Stack::build().dev().await;
    let pages = crawl(&stack).await;
    let index = stack.api.without_key().get("/docs/search.json").await.expect(200);
    let entries = index.as_array().unwrap();
    assert!(entries.len() > 500, "{} entries", entries.len());
    for entry in entries {
        let [slug, _, anchor, ..] = [0, 1, 2, 3, 4].map(|member| entry[member].as_str().unwrap());
        let path = if slug.is_empty() { "/docs".to_owned() } else { format!("/docs/{slug}") };
        assert!(attributes(&pages[&path], "id").contains(&anchor), "{path}#{anchor}");
    }
    for wanted in ["APPROVAL_REQUIRED", "max_iterations", "Verify the signature", "request-budget-ms"] {
        assert!(entries.iter().any(|entry| entry[3] == wanted), "{wanted}");
    }
}

#[tokio::test]
async fn the_pages_and_the_api_document_are_compressed_and_revalidated() {
    let stack = Stack::build().dev().await;
    // Compressed, an answer is not the JSON that the document declares.
    let open = stack.api.without_key().undeclared();
    let files = ["/docs", "/docs/webhooks", "/docs/site.js", "/docs/style.css", "/docs/search.json", "/openapi.json"];
    for path in files {
        let plain = open.get(path).await;
        assert_eq!(plain.status, 200, "{path}");
        assert_eq!(plain.header("cache-control"), "no-cache", "{path}");
        assert_eq!(plain.header("vary"), "Accept-Encoding", "{path}");
        assert!(plain.headers.get("content-encoding").is_none(), "{path}");
        let length = |answer: &stage0_tests::Answer| answer.header("content-length").parse::<usize>().unwrap();
        let packed = open.send(Method::GET, path, &[("accept-encoding", "gzip, br")], None).await;
        assert_eq!(packed.header("content-encoding"), "gzip", "{path}");
        assert!(length(&packed) < length(&plain) * 2 / 3, "{path}: {} of {}", length(&packed), length(&plain));
        let tag = plain.header("etag");
        assert_eq!(packed.header("etag"), tag, "{path}");
        for method in [Method::GET, Method::HEAD] {
            let known = open.send(method, path, &[("if-none-match", tag)], None).await;
            assert_eq!((known.status, known.text.as_str()), (304, ""), "{path}");
        }
        let head = open.head(path).await;
        assert_eq!((head.status, head.text.as_str(), length(&head)), (200, "", length(&plain)), "{path}");
    }
    open.get("/docs/no-such-page").await.assert_error(404, "not_found");
    assert_eq!(stack.api.get("/healthz").await.header("cache-control"), "no-store");
}

#[tokio::test]
async fn the_pages_work_below_a_base_path_and_with_a_slash_at_the_end() {
    let stack = Stack::build().gateway_with(&["--base-path", "/stage0"]).dev().await;
    let open = stack.api.without_key().undeclared().at(stack.api.url.trim_end_matches("/stage0"));
    for path in ["/stage0/docs", "/stage0/docs/", "/stage0/docs/webhooks", "//stage0//docs//webhooks"] {
        let page = open.get(path).await;
        assert_eq!(page.status, 200, "{path}");
        let absolute: Vec<_> =
            attributes(&page.text, "href").into_iter().filter(|link| link.starts_with('/')).collect();
        assert!(absolute.is_empty(), "{path}: {absolute:?}");
    }
    // Where a page was opened with a slash at the end, its links lead one level too deep.
    for deep in ["/stage0/docs/docs/webhooks", "/stage0/docs/webhooks/site.js"] {
        assert_eq!(open.get(deep).await.status, 200, "{deep}");
    }
    open.get("/stage0/docs/docs/no-such-page").await.assert_error(404, "not_found");
    open.get("/docs").await.assert_error(404, "not_found");
}

/// A page that repeated the header could carry a stranger's text into a cache or a browser.
#[tokio::test]
async fn a_hostile_host_header_does_not_appear_on_a_page() {
    let stack = Stack::build().dev().await;
    let bodies = ["evil.example", "localhost\"><script>alert(1)</script>"].map(async |host| {
        let mut raw = Raw::connect(&stack.address(), &stack.ca()).await;
        let request =
            format!("GET /docs HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-Host: {host}\r\nConnection: close\r\n\r\n");
        raw.send(request.as_bytes()).await;
        raw.rest().await
    });
    for body in bodies {
        let body = body.await;
        assert!(!body.contains("evil.example") && !body.contains("alert(1)"));
    }
}

#[tokio::test]
async fn the_pages_load_nothing_from_another_host_and_have_no_inline_script() {
    let stack = Stack::build().dev().await;
    let open = stack.api.without_key();
    for (path, text) in crawl(&stack).await.iter().filter(|(_, text)| text.starts_with("<!doctype html>")) {
        let policy = open.head(path).await;
        let policy = policy.header("content-security-policy");
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{path}: {policy}");
        assert!(attributes(text, "src").iter().all(|source| !source.contains("//")), "{path}");
        assert_eq!(text.matches("<script").count(), text.matches("<script src=\"").count(), "{path}");
        assert!(!text.contains(" style=\"") && !text.contains("<style"), "{path}");
    }
    let style = open.get("/docs/style.css").await;
    assert!(!style.text.contains("url(") && !style.text.contains("@import"));
}
