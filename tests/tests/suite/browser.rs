//! The pages at `/docs` and the page of `stage0 receiver` in a real browser.
//!
//! Screenshots are written to `target/screenshots/`, for people to look at; nothing compares them.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_tests::{Authority, Browser, Process, Raw, Stack};

use crate::docs_pages::attributes;

const TIMEOUT: Duration = Duration::from_secs(30);
const PHONE: (u32, u32) = (390, 844);
const DESKTOP: (u32, u32) = (1280, 900);

/// What is wider than the window and does not scroll inside itself.
const SIDEWAYS: &str = "(() => {
  const wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
  const scrolls = (node) => node && (getComputedStyle(node).overflowX !== 'visible' || scrolls(node.parentElement));
  const out = [...document.querySelectorAll('body *')].filter((node) =>
    node.getBoundingClientRect().right > innerWidth + 1 && !scrolls(node.parentElement));
  return wide ? out.slice(0, 5).map((node) => node.outerHTML.slice(0, 120)).concat('the page is too wide') : [];
})()";

async fn browser_for(stack: &Stack) -> Option<Browser> {
    // A base path is no part of the address.
    let address = stack.address();
    let certificate = Raw::connect(address.split('/').next().unwrap(), &stack.ca()).await.certificate();
    Browser::start(&[certificate]).await
}

async fn assert_fits(browser: &mut Browser, what: &str, width: u32) {
    assert_eq!(browser.evaluate("innerWidth").await, width, "{what}");
    assert_eq!(browser.evaluate(SIDEWAYS).await, json!([]), "{what} at {width} px");
}

/// Nothing was asked of another host, and the browser has nothing to complain of.
#[track_caller]
fn assert_quiet(browser: &Browser, origin: &str) {
    let outside: Vec<_> = browser
        .requested()
        .iter()
        .filter(|url| !url.starts_with(&format!("{origin}/")) && *url != "about:blank")
        .collect();
    assert!(outside.is_empty(), "{outside:?}");
    assert!(browser.complaints().is_empty(), "{:#?}", browser.complaints());
}

async fn wait_until(browser: &mut Browser, what: &str, expression: &str) {
    wait_for(what, TIMEOUT, async || browser.evaluate(expression).await == true).await;
}

#[tokio::test]
async fn no_page_of_the_docs_scrolls_sideways_or_asks_another_host() {
    let stack = Stack::build().dev().await;
    let Some(mut browser) = browser_for(&stack).await else { return };
    let origin = &stack.urls[0];
    let front = stack.api.without_key().get("/docs").await.text;
    let pages: BTreeSet<_> = attributes(&front, "href").into_iter().filter(|link| link.starts_with("docs")).collect();
    let pages: BTreeSet<_> = pages.iter().map(|link| link.split('#').next().unwrap()).collect();
    let pages: Vec<_> = pages.into_iter().filter(|page| !page.contains('.')).collect();
    assert!(pages.len() > 15, "{pages:?}");
    for (width, height) in [PHONE, DESKTOP] {
        browser.resize(width, height, false).await;
        for page in &pages {
            browser.open(&format!("{origin}/{page}")).await;
            assert_fits(&mut browser, page, width).await;
        }
    }
    for (name, page) in [("guide", "docs"), ("vocabulary", "docs/vocabulary"), ("keys", "docs/keys#calls")] {
        for (width, height) in [PHONE, DESKTOP] {
            for dark in [false, true] {
                browser.resize(width, height, dark).await;
                browser.open(&format!("{origin}/{page}")).await;
                let colours = if dark { "dark" } else { "light" };
                browser.screenshot(&format!("docs-{name}-{width}-{colours}")).await;
            }
        }
    }
    assert_quiet(&browser, origin);
}

#[tokio::test]
async fn the_search_is_reached_by_keyboard_and_finds_a_code() {
    let stack = Stack::build().dev().await;
    let Some(mut browser) = browser_for(&stack).await else { return };
    let origin = &stack.urls[0];
    browser.resize(DESKTOP.0, DESKTOP.1, false).await;
    browser.open(&format!("{origin}/docs/webhooks")).await;
    let in_search = "document.activeElement.id === 'site-search'";
    let mut stops = 0;
    while browser.evaluate(in_search).await != true {
        assert!(stops < 4, "the search is {stops} stops away");
        browser.press("Tab").await;
        stops += 1;
    }
    browser.open(&format!("{origin}/docs/runs")).await;
    browser.press("/").await;
    assert_eq!(browser.evaluate(in_search).await, true, "`/` leads to the search");
    assert_eq!(browser.evaluate("document.activeElement.value").await, "", "`/` is not typed into it");
    browser.type_text("no such words anywhere").await;
    wait_until(
        &mut browser,
        "an empty result",
        "document.getElementById('site-results').textContent.includes('Nothing found')",
    )
    .await;
    browser.press("Escape").await;
    browser.type_text("approval_required").await;
    wait_until(&mut browser, "results", "document.querySelectorAll('[role=option]').length > 2").await;
    browser.press("ArrowDown").await;
    let selected = "document.querySelector('[role=option][aria-selected=true] b').textContent";
    let second = browser.evaluate(selected).await;
    assert!(second.as_str().unwrap().to_lowercase().starts_with("approval_required"), "{second}");
    for (name, (width, height), dark) in
        [("1280-light", DESKTOP, false), ("1280-dark", DESKTOP, true), ("390-light", PHONE, false)]
    {
        browser.resize(width, height, dark).await;
        assert_fits(&mut browser, "search results", width).await;
        browser.screenshot(&format!("docs-search-{name}")).await;
    }
    browser.press("Escape").await;
    browser.type_text("LOOP_THRESHOLD_EXCEEDED").await;
    wait_until(
        &mut browser,
        "the code",
        "document.querySelector('[role=option] b')?.textContent === 'LOOP_THRESHOLD_EXCEEDED'",
    )
    .await;
    browser.expect_load();
    browser.press("Enter").await;
    browser.wait_for_load().await;
    assert_eq!(browser.evaluate("location.href").await, format!("{origin}/docs/vocabulary#loop_threshold_exceeded"));
    assert_eq!(browser.evaluate("document.querySelector(':target').localName").await, "tr");
    assert_quiet(&browser, origin);
}

#[tokio::test]
async fn an_example_names_the_readers_host_and_is_copied_as_shown() {
    let stack = Stack::build().gateway_with(&["--base-path", "/stage0"]).dev().await;
    let Some(mut browser) = browser_for(&stack).await else { return };
    let base = stack.api.url.clone();
    for (width, height) in [PHONE, DESKTOP] {
        browser.resize(width, height, false).await;
        for page in ["docs", "docs/", "docs/runs"] {
            browser.open(&format!("{base}/{page}")).await;
            let first = "document.querySelector('.code code').textContent";
            let example = browser.evaluate(first).await;
            assert!(example.as_str().unwrap().contains(&format!(" {base}/check ")), "{page}: {example}");
            browser.evaluate("document.querySelector('.code .copy').click()").await;
            wait_until(&mut browser, "copied", "document.querySelector('.copy').textContent === 'Copied'").await;
            assert_eq!(browser.evaluate("navigator.clipboard.readText()").await, example, "{page}");
        }
    }
    assert_quiet(&browser, base.trim_end_matches("/stage0"));
}

#[tokio::test]
async fn on_a_phone_the_menu_opens_and_leads_to_another_page() {
    let stack = Stack::build().dev().await;
    let Some(mut browser) = browser_for(&stack).await else { return };
    let origin = &stack.urls[0];
    browser.resize(PHONE.0, PHONE.1, false).await;
    browser.open(&format!("{origin}/docs")).await;
    let shown = "document.getElementById('site-pages').checkVisibility()";
    assert_eq!(browser.evaluate(shown).await, false);
    browser.evaluate("document.querySelector('.menu').click()").await;
    assert_eq!(browser.evaluate(shown).await, true);
    assert_fits(&mut browser, "the menu", PHONE.0).await;
    browser.screenshot("docs-menu-390-light").await;
    browser.expect_load();
    browser
        .evaluate("[...document.querySelectorAll('.pages a')].find((link) => link.textContent === 'Webhooks').click()")
        .await;
    browser.wait_for_load().await;
    assert_eq!(browser.evaluate("location.pathname").await, "/docs/webhooks");
    assert_quiet(&browser, origin);
}

#[tokio::test]
async fn the_receivers_page_shows_decisions_on_a_phone_and_a_desktop() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let authority = Authority::default();
    authority.issue(&at("server.pem"), &at("server.key"));
    let arguments = ["receiver", "--listen", "127.0.0.1:0", "--page-listen", "127.0.0.1:0"].map(str::to_owned);
    let files = [("--tls-cert", "server.pem"), ("--tls-key", "server.key"), ("--secret-file", "hook.secret")];
    let files = files.into_iter().flat_map(|(name, file)| [name.to_owned(), at(file).display().to_string()]);
    let receiver = Process::start(&arguments.into_iter().chain(files).collect::<Vec<_>>());
    let url = |start: &str| receiver.wait_for(start, |line| line.strip_prefix(start).map(str::to_owned));
    let (hook, page) = (url("receives at "), url("shows it at "));
    let stack = Stack::build().private_webhooks().trusting(&authority).dev().await;
    let (_, secret) = stack.api.webhook(&hook).await;
    write_secret(&at("hook.secret"), &secret);
    let Some(mut browser) = Browser::start(&[]).await else { return };
    browser.resize(DESKTOP.0, DESKTOP.1, false).await;
    browser.open(&page).await;
    wait_until(
        &mut browser,
        "the empty table",
        "byId('state').textContent.startsWith('up to date') && !byId('none').hidden",
    )
    .await;
    browser.screenshot("receiver-empty-1280-light").await;
    for body in checks() {
        stack.api.check(&body).await.expect(200);
    }
    wait_until(&mut browser, "three decisions", "byId('decisions').rows.length === 3").await;
    for (width, height) in [PHONE, DESKTOP] {
        for dark in [false, true] {
            browser.resize(width, height, dark).await;
            assert_fits(&mut browser, "the receiver's page", width).await;
            let colours = if dark { "dark" } else { "light" };
            browser.screenshot(&format!("receiver-{width}-{colours}")).await;
        }
    }
    assert_quiet(&browser, page.trim_end_matches('/'));
}

fn write_secret(path: &std::path::Path, secret: &str) {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).unwrap();
    file.write_all(secret.as_bytes()).unwrap();
}

/// One check for each verdict.
fn checks() -> [Value; 3] {
    let context = |status: &str| json!({"environment": "production", "approval_status": status, "approved_by": "dana"});
    ["approved", "pending", "rejected"].map(|status| {
        json!({"goal": "Deploy the hotfix", "success_criteria": ["error rate below 1 %"], "side_effects": ["deploy"],
               "constraints": ["approval required"], "context": context(status)})
    })
}
