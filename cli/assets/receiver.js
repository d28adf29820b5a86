"use strict";
// Events hold text from elsewhere, so it enters the page through textContent only.
const byId = (id) => document.getElementById(id);
const verdicts = ["ALLOW", "DENY", "DEFER"];
let shown = "";

function delay(ms) {
  if (ms === null) return "-";
  return Math.abs(ms) < 1000 ? `${ms} ms` : `${(ms / 1000).toFixed(1)} s`;
}

function cell(row, name, text, style) {
  const cell = row.insertCell();
  cell.dataset.name = name;
  cell.append(Object.assign(document.createElement("span"), { textContent: text }));
  if (style) cell.className = style;
}

function row(decision) {
  const row = document.createElement("tr");
  const known = verdicts.includes(decision.verdict) ? decision.verdict : "";
  cell(row, "Arrived", new Date(decision.arrived_at).toLocaleTimeString(), "number");
  cell(row, "Verdict", decision.verdict, `verdict ${known}`);
  cell(row, "Environment", decision.environment);
  cell(row, "Codes", decision.codes.join(", ") || "-", "code");
  cell(row, "Request", decision.request_id, "code whole");
  cell(row, "No.", decision.sequence ?? "-", "number");
  cell(row, "Delay", delay(decision.delay_ms), "number");
  return row;
}

function show(text) {
  if (text === shown) return;
  const view = JSON.parse(text);
  for (const count of ["received", "repeated", "missing", "refused"]) byId(count).textContent = view[count];
  byId("decisions").replaceChildren(...view.decisions.map(row));
  byId("none").hidden = view.decisions.length > 0;
  shown = text;
}

function state(text, lost) {
  if (byId("state").textContent === text) return;
  byId("state").textContent = text;
  byId("state").classList.toggle("lost", lost);
}

async function ask() {
  try {
    const answer = await fetch("decisions.json", { signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    show(await answer.text());
    state("up to date, refreshed every second", false);
  } catch {
    state("the receiver does not answer; this is its last state", true);
  }
  setTimeout(ask, 1000);
}

ask();
