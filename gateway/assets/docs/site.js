"use strict";
// Search, copy buttons, and the reader's own host in examples. Nothing is requested but this site's search index.

const files = new URL(".", document.currentScript.src);
// The site's own ids have a prefix, so that no heading of a document has the same.
const byId = (id) => document.getElementById(`site-${id}`);

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// Examples show the scheme, host and base path under which this page was opened.
function showReaderHost() {
  const base = location.origin + location.pathname.replace(/\/+docs(\/[^/]*)?\/*$/, "");
  for (const code of document.querySelectorAll(".reader-host code")) {
    for (const node of code.childNodes) {
      // Names in tables have <wbr> elements between their parts.
      if (node.nodeType === Node.TEXT_NODE) node.data = node.data.replaceAll("https://localhost:8443", base);
    }
  }
}

function addCopyButtons() {
  if (!navigator.clipboard) return;
  for (const block of document.querySelectorAll(".code")) {
    const button = element("button", { type: "button", className: "copy", textContent: "Copy" });
    button.setAttribute("aria-live", "polite");
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(block.querySelector("code").textContent);
        button.textContent = "Copied";
      } catch {
        button.textContent = "Not allowed";
      }
      button.classList.add("done");
      setTimeout(() => {
        button.textContent = "Copy";
        button.classList.remove("done");
      }, 2000);
    });
    block.append(button);
  }
}

// What scrolls inside itself can be scrolled with the keyboard.
function focusScrollers() {
  for (const scroller of document.querySelectorAll(".table, pre")) {
    if (scroller.scrollWidth > scroller.clientWidth) scroller.tabIndex = 0;
  }
}

const MAX_RESULTS = 12;
const EXCERPT = 140;
let entries;

async function loadIndex() {
  entries ??= fetch(new URL("search.json", files)).then((answer) => {
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    return answer.json();
  }).then((rows) => rows.map(([slug, page, anchor, heading, text]) => (
    { slug, page, anchor, heading, text, low: { heading: heading.toLowerCase(), text: text.toLowerCase(), page: page.toLowerCase() } }
  )));
  try {
    return await entries;
  } catch (error) {
    entries = undefined;
    throw error;
  }
}

// Every word must be found; one in a heading counts more than one in the text, and a whole heading most.
function score({ low }, words, phrase) {
  let total = low.heading === phrase ? 100 : low.heading.startsWith(phrase) ? 40 : 0;
  for (const word of words) {
    const at = low.heading.indexOf(word);
    if (at === 0) total += 20;
    else if (at > 0) total += 12;
    else if (low.page.includes(word)) total += 6;
    else if (low.text.includes(word)) total += 2;
    else return 0;
  }
  return total;
}

function find(all, query) {
  const phrase = query.trim().toLowerCase();
  const words = phrase.split(/\s+/).filter(Boolean);
  if (words.length === 0) return [];
  const scored = all.map((entry) => [score(entry, words, phrase), entry]).filter(([points]) => points > 0);
  return scored.sort(([a], [b]) => b - a).slice(0, MAX_RESULTS).map(([, entry]) => ({ ...entry, words }));
}

function marked(text, words) {
  const low = text.toLowerCase();
  const parts = [];
  for (let at = 0; at < text.length;) {
    const hits = words.map((word) => [low.indexOf(word, at), word]).filter(([start]) => start >= 0);
    if (hits.length === 0) { parts.push(text.slice(at)); break; }
    const [start, word] = hits.reduce((a, b) => (b[0] < a[0] ? b : a));
    parts.push(text.slice(at, start), element("mark", { textContent: text.slice(start, start + word.length) }));
    at = start + word.length;
  }
  return parts;
}

function excerpt({ text, low, words }) {
  const first = Math.min(...words.map((word) => low.text.indexOf(word)).filter((at) => at >= 0), text.length);
  const start = first < EXCERPT / 2 || first === text.length ? 0 : text.lastIndexOf(" ", first - 30) + 1;
  return marked((start > 0 ? "… " : "") + text.slice(start, start + EXCERPT), words);
}

function startSearch() {
  const [box, list, found] = [byId("search"), byId("results"), byId("found")];
  let selected = -1;

  const select = (index) => {
    const options = [...list.querySelectorAll("[role=option]")];
    selected = options.length ? (index + options.length) % options.length : -1;
    options.forEach((option, number) => option.setAttribute("aria-selected", String(number === selected)));
    if (selected < 0) return box.removeAttribute("aria-activedescendant");
    box.setAttribute("aria-activedescendant", options[selected].id);
    options[selected].scrollIntoView({ block: "nearest" });
  };
  const open = (is) => {
    list.hidden = !is;
    box.setAttribute("aria-expanded", String(is));
    if (!is) select(-1);
  };
  const address = ({ slug, anchor }) => {
    const page = new URL(slug || "../docs", files);
    page.hash = anchor;
    return page.href;
  };
  const option = (entry, number) => {
    const link = element("a", { href: address(entry), tabIndex: -1 },
      element("b", {}, ...marked(entry.heading, entry.words)),
      element("small", { textContent: entry.page }),
      element("span", {}, ...excerpt(entry)));
    const item = element("li", { id: `result-${number}` }, link);
    item.setAttribute("role", "option");
    item.setAttribute("aria-selected", "false");
    return item;
  };
  const show = async () => {
    const query = box.value;
    if (!query.trim()) return open(false);
    let results;
    try {
      results = find(await loadIndex(), query);
    } catch {
      list.replaceChildren(element("li", { className: "none", textContent: "The search index cannot be loaded." }));
      return open(true);
    }
    if (query !== box.value) return;
    const none = element("li", { className: "none", textContent: `Nothing found for “${query.trim()}”.` });
    list.replaceChildren(...(results.length ? results.map(option) : [none]));
    found.textContent = results.length === 1 ? "1 result" : `${results.length} results`;
    open(true);
    select(results.length ? 0 : -1);
  };

  box.addEventListener("focus", () => loadIndex().catch(() => {}));
  box.addEventListener("input", show);
  box.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown") select(selected + 1);
    else if (event.key === "ArrowUp") select(selected - 1);
    else if (event.key === "Enter") list.querySelector("[aria-selected=true] a")?.click();
    else if (event.key === "Escape") { open(false); box.value = ""; }
    else return;
    event.preventDefault();
  });
  list.addEventListener("click", () => { open(false); box.value = ""; box.blur(); });
  document.addEventListener("click", (event) => { if (!event.target.closest(".search")) open(false); });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, textarea, select");
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || typing) return;
    event.preventDefault();
    box.focus();
  });
  document.querySelector(".search").hidden = false;
}

// The menu on small screens closes when a link in it was followed to this same page.
byId("pages").addEventListener("click", (event) => { if (event.target.closest("a")) byId("pages").hidePopover?.(); });
showReaderHost();
addCopyButtons();
focusScrollers();
addEventListener("resize", focusScrollers);
startSearch();
