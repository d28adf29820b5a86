// Runs real coding agents with the hook of `stage0 guard install`, and a scripted model on loopback in the place of a
// hosted one. Started by scripts/agents.sh.
//   node agents.mjs STAGE0 TOOLS [AGENT...]

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import {
  appendFileSync, copyFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync,
} from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

const [stage0, tools, ...only] = process.argv.slice(2);
const scratch = mkdtempSync(join(tmpdir(), "stage0-agents-"));
const data = join(scratch, "data");
const HARMLESS = "touch harmless";
const FAILING = "ls not-there";
const HARMFUL = "touch harmful; rm -rf ./nothing /nothing-either";

// --- The model: makes each call in turn, then ends. `seen` is what it read of each.

const events = (list) => list.map((data) => `event: ${data.type}\ndata: ${JSON.stringify(data)}\n\n`).join("");
const text = (value) => (typeof value === "string" ? value : JSON.stringify(value));

const DIALECTS = {
  messages: {
    seen: ({ messages }) => messages.flatMap(({ content }) => (Array.isArray(content) ? content : []))
      .filter(({ type }) => type === "tool_result").map(({ content }) => text(content)),
    answer(call, id) {
      const tool = { type: "tool_use", id, name: call?.name, input: {} };
      const block = call === undefined ? { type: "text", text: "" } : tool;
      const delta = call === undefined
        ? { type: "text_delta", text: "done" }
        : { type: "input_json_delta", partial_json: JSON.stringify(call.input) };
      const stop_reason = call === undefined ? "end_turn" : "tool_use";
      const usage = { input_tokens: 1, output_tokens: 1 };
      const message = { id: `m_${id}`, type: "message", role: "assistant", model: "script", content: [], usage };
      return events([
        { type: "message_start", message: { ...message, stop_reason: null, stop_sequence: null } },
        { type: "content_block_start", index: 0, content_block: block },
        { type: "content_block_delta", index: 0, delta },
        { type: "content_block_stop", index: 0 },
        { type: "message_delta", delta: { stop_reason, stop_sequence: null }, usage },
        { type: "message_stop" },
      ]);
    },
  },
  responses: {
    seen: ({ input }) => input.filter(({ type }) => type === "function_call_output").map(({ output }) => text(output)),
    answer(call, id) {
      const item = call === undefined
        ? { type: "message", role: "assistant", id, content: [{ type: "output_text", text: "done" }] }
        : { type: "function_call", call_id: id, name: call.name, arguments: JSON.stringify(call.input) };
      const usage = { input_tokens: 1, output_tokens: 1, total_tokens: 2 };
      return events([
        { type: "response.created", response: { id: `r_${id}` } },
        { type: "response.output_item.done", item },
        { type: "response.completed", response: { id: `r_${id}`, usage } },
      ]);
    },
  },
  streamGenerateContent: {
    seen: ({ contents }) => contents.flatMap(({ parts }) => parts).flatMap(({ functionResponse }) =>
      functionResponse === undefined ? [] : [text(functionResponse.response)]),
    answer(call) {
      const part = call === undefined ? { text: "done" } : { functionCall: { name: call.name, args: call.input } };
      const candidates = [{ index: 0, finishReason: "STOP", content: { role: "model", parts: [part] } }];
      const usageMetadata = { promptTokenCount: 1, candidatesTokenCount: 1, totalTokenCount: 2 };
      return `data: ${JSON.stringify({ candidates, usageMetadata })}\n\n`;
    },
  },
};

async function model(calls, before) {
  const seen = [];
  const server = createServer(async (request, response) => {
    let body = "";
    for await (const part of request) body += part;
    const dialect = DIALECTS[/(messages|responses|streamGenerateContent)(\?|$)/.exec(request.url)?.[1]];
    if (dialect === undefined || body === "") return response.writeHead(404).end("{}");
    const asked = JSON.parse(body);
    const read = dialect.seen(asked);
    if (read.length > seen.length) seen.splice(0, seen.length, ...read);
    const next = asked.tools === undefined ? undefined : calls[read.length];
    if (next !== undefined) before();
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.end(dialect.answer(next, `call_${read.length}`));
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { url: `http://127.0.0.1:${server.address().port}`, seen, close: () => server.close() };
}

// --- The agents: how each is started against the model, and where its hooks are.

const AGENTS = {
  "claude-code": {
    program: `@anthropic-ai/claude-code-${process.platform}-${process.arch}/claude`,
    hooks: ".claude/settings.json",
    arguments: ["-p", "go", "--allowedTools", "Bash Write"],
    shell: (command) => ({ name: "Bash", input: { command, description: "runs it" } }),
    elsewhere: (home) => ({ name: "Write", input: { file_path: join(home, "harmless"), content: "" } }),
    outcomes: ["succeeded", "failed"],
    whenLost: "denied",
    whenDeleted: "denied",
    environment: (url) => ({
      ANTHROPIC_BASE_URL: url, ANTHROPIC_API_KEY: "none", CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: "1",
      DISABLE_AUTOUPDATER: "1", DISABLE_TELEMETRY: "1", DISABLE_ERROR_REPORTING: "1",
    }),
  },
  codex: {
    program: ".bin/codex",
    hooks: ".codex/hooks.json",
    arguments: ["exec", "--skip-git-repo-check", "--sandbox", "danger-full-access", "go"],
    shell: (cmd) => ({ name: "exec_command", input: { cmd } }),
    elsewhere: (home) => ({ name: "exec_command", input: { cmd: HARMLESS, workdir: home } }),
    trusted: ["--dangerously-bypass-hook-trust"],
    outcomes: ["unknown", "unknown"],
    whenLost: "runs",
    whenDeleted: "runs",
    environment: () => ({}),
    prepare(home, url) {
      writeFileSync(join(home, ".codex/config.toml"), `
        model = "script"
        model_provider = "script"
        check_for_update_on_startup = false
        [analytics]
        enabled = false
        [model_providers.script]
        name = "script"
        base_url = "${url}/v1"
        wire_api = "responses"
      `);
    },
  },
  gemini: {
    program: ".bin/gemini",
    hooks: ".gemini/settings.json",
    arguments: ["-p", "go", "--yolo", "--skip-trust", "-m", "gemini-2.5-flash"],
    shell: (command) => ({ name: "run_shell_command", input: { command, description: "runs it" } }),
    // It makes the directory again.
    elsewhere: () => ({ name: "write_file", input: { file_path: "harmless", content: "x" } }),
    outcomes: ["-", "-"],
    whenLost: "runs",
    whenDeleted: "runs",
    environment: (url) => ({ GOOGLE_GEMINI_BASE_URL: url, GEMINI_API_KEY: "none", GEMINI_TELEMETRY_ENABLED: "false" }),
    prepare(home) {
      const settings = {
        general: { enableAutoUpdate: false },
        privacy: { usageStatisticsEnabled: false },
        security: { auth: { selectedType: "gemini-api-key" } },
      };
      writeFileSync(join(home, ".gemini/settings.json"), JSON.stringify(settings));
    },
  },
};

/** Ends with the output of the process; kills it after two minutes. */
function run(command, args, environment, cwd = scratch) {
  // Whatever is not on loopback goes to a port at which nothing listens.
  const nowhere = "http://127.0.0.1:9";
  const proxies = { HTTPS_PROXY: nowhere, HTTP_PROXY: nowhere, NO_PROXY: "127.0.0.1" };
  const env = { PATH: process.env.PATH, LANG: "C.UTF-8", ...proxies, ...environment };
  const child = spawn(command, args, { cwd, env, stdio: ["ignore", "pipe", "pipe"] });
  const output = ["", ""];
  [child.stdout, child.stderr].forEach((stream, i) => stream.on("data", (part) => (output[i] += part)));
  const timer = setTimeout(() => child.kill("SIGKILL"), 120_000);
  return new Promise((resolve) => child.on("close", (status) => {
    clearTimeout(timer);
    resolve({ status, stdout: output[0], all: output.join("") });
  }));
}

async function cli(...args) {
  const { status, stdout, all } = await run(stage0, [...args, "--data-dir", data], { HOME: scratch });
  assert.equal(status, 0, all);
  return stdout;
}

/**
 * A session of the agent in which the model makes each call; a string is a shell command. `change` is called with the
 * installed hook; without it there is none. `before` is called before each tool call. Returns whether each command's
 * file is there, and what the model read.
 */
async function session(agent, calls, { change, before = () => {}, options = agent.trusted ?? [] } = {}) {
  const home = mkdtempSync(join(scratch, "home-"));
  const [project, settings, ours] = [join(home, "project"), join(home, agent.hooks), join(home, "stage0")];
  for (const folder of [project, join(settings, "..")]) mkdirSync(folder, { recursive: true });
  const wanted = calls.map((call) => (typeof call === "string" ? agent.shell(call) : call(home)));
  const script = await model(wanted, () => before(project));
  agent.prepare?.(home, script.url);
  if (change !== undefined) {
    copyFileSync(stage0, ours);
    const installed = await run(ours, ["guard", "install", agent.name, "--data-dir", data], { HOME: home }, project);
    assert.equal(installed.status, 0, installed.all);
    await change({ ours, settings, home, project });
  }
  const program = join(tools, "node_modules", agent.program);
  const environment = { HOME: home, ...agent.environment(script.url) };
  const { all } = await run(program, [...agent.arguments, ...options], environment, project);
  script.close();
  assert.equal(script.seen.length, calls.length, `the agent did not make these calls: ${all}`);
  const ran = (name) => existsSync(join(project, name)) || existsSync(join(home, name));
  return { ran: { harmless: ran("harmless"), harmful: ran("harmful") }, seen: script.seen };
}

const asInstalled = () => {};
/** Puts a shell script in the place of our program. */
const replaced = (script) => ({ ours }) => writeFileSync(ours, `#!/bin/sh\n${script}\n`, { mode: 0o755 });
/** Lets the agent wait one second for the hook, in place of 30. */
const impatient = ({ settings }) =>
  writeFileSync(settings, readFileSync(settings, "utf8").replace(/("timeout": ?)30(000)?\b/g, (_, key, ms) =>
    `${key}${ms === undefined ? 1 : 1000}`));

async function server() {
  const child = spawn(stage0, ["dev", "--data-dir", data, "--listen", "127.0.0.1:0"], { stdio: "ignore" });
  process.on("exit", () => child.kill("SIGKILL"));
  for (let tries = 0; !existsSync(join(data, "dev.json")); tries++) {
    assert.ok(tries < 300 && child.exitCode === null, "stage0 dev did not start");
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  return child;
}

// --- What must hold.

async function check(agent, what, expected, calls, how) {
  const { ran, seen } = await session(agent, calls, how);
  assert.equal(ran.harmless ? "runs" : "denied", expected, `${agent.name}, ${what}: ${seen}`);
  console.log(`ok  ${agent.name}: ${what}: ${expected}`);
  return seen;
}

async function decided(agent) {
  const { ran, seen } = await session(agent, [HARMLESS, FAILING, HARMFUL], { change: asInstalled });
  assert.deepEqual(ran, { harmless: true, harmful: false }, `${agent.name}: ${seen}`);
  assert.match(seen[2], /Stage0 DEFERRED this call, so it does not run/);
  const lines = (await cli("outcomes", "list")).trim().split("\n").slice(1, 3).reverse();
  assert.deepEqual(lines.map((line) => line.split(/ +/)[1]), agent.outcomes, lines.join("\n"));
  console.log(`ok  ${agent.name}: an allowed call runs, a deferred one does not; outcomes: ${agent.outcomes}`);
}

/** What `codex app-server` says of the hooks of a directory. */
async function codexHooks(home, project) {
  const child = spawn(join(tools, "node_modules/.bin/codex"), ["app-server"], {
    cwd: project, env: { PATH: process.env.PATH, HOME: home }, stdio: ["pipe", "pipe", "ignore"],
  });
  const send = (message) => child.stdin.write(`${JSON.stringify(message)}\n`);
  send({ id: 1, method: "initialize", params: { clientInfo: { name: "stage0", version: "1" } } });
  for await (const line of createInterface({ input: child.stdout })) {
    const { id, result } = JSON.parse(line);
    if (id === 1) send({ method: "initialized" });
    if (id === 1) send({ id: 2, method: "hooks/list", params: { cwds: [project] } });
    if (id === 2) return child.stdin.end(), result.data[0].hooks;
  }
  assert.fail("codex app-server did not answer");
}

/** The doctor finds out whether Codex trusts the hook, and a hook that it calls trusted runs. */
async function trusted(agent) {
  const what = "a hook that is trusted, and our program is gone";
  const change = async ({ ours, settings, home, project }) => {
    const config = join(home, ".codex/config.toml");
    const PATH = `${join(tools, "node_modules/.bin")}:${process.env.PATH}`;
    const doctor = async (status, finding) => {
      const found = await run(ours, ["guard", "doctor", "codex"], { HOME: home, PATH }, project);
      assert.match(found.all, finding);
      assert.equal(found.status, status, found.all);
      console.log(`ok  ${agent.name}: the doctor says: ${finding.exec(found.all)[0].replace(/ +/g, " ")}`);
    };
    await doctor(1, /BAD +trust +Codex does not trust the hook yet/);
    for (const { key, currentHash } of await codexHooks(home, project)) {
      appendFileSync(config, `\n[hooks.state."${key}"]\ntrusted_hash = "${currentHash}"\n`);
    }
    await doctor(0, /ok +trust +Codex says that it trusts the hook/);
    const [written, configured] = [settings, config].map((file) => readFileSync(file, "utf8"));
    writeFileSync(settings, written.replace('"timeout": 30', '"timeout": 29'));
    await doctor(1, /BAD +trust +the hook was changed after it was trusted/);
    writeFileSync(settings, written);
    writeFileSync(config, `${configured}\n[features]\nhooks = false\n`);
    await doctor(1, /BAD +trust +Codex runs no hook/);
    writeFileSync(config, configured);
    rmSync(ours);
  };
  await check(agent, what, "denied", [HARMLESS], { change, options: [] });
}

/** Puts a hook of type `http` in the place of ours. */
const overHttp = (url, onFailure) => ({ settings }) => {
  const key = "STAGE0_API_KEY";
  const hook = { type: "http", url, headers: { "X-API-Key": `$${key}` }, allowedEnvVars: [key], timeout: 5, onFailure };
  writeFileSync(settings, JSON.stringify({ hooks: { PreToolUse: [{ matcher: "*", hooks: [hook] }] } }));
};

async function withHttpHook(agent) {
  const { url, api_key: key } = JSON.parse(readFileSync(join(data, "dev.json"), "utf8"));
  const path = `${url}/v1/hooks/${agent.name}`;
  const bare = { ...agent, environment: (url) => ({ ...agent.environment(url), STAGE0_API_KEY: key }) };
  const known = { ...bare, environment: (url) => ({
    ...bare.environment(url), NODE_EXTRA_CA_CERTS: join(data, "tls/ca.pem"),
  }) };
  const { ran, seen } = await session(known, [HARMLESS, HARMFUL], { change: overHttp(path, "block") });
  assert.deepEqual(ran, { harmless: true, harmful: false }, `${agent.name}: ${seen}`);
  assert.match(seen[1], /Stage0 DEFERRED this call, so it does not run/);
  console.log(`ok  ${agent.name}: over HTTP, an allowed call runs, a deferred one does not`);
  for (const [what, asking, at] of [
    ["a misspelt path", known, `${url}/v1/hook/${agent.name}`],
    ["an authority that is not trusted", bare, path],
    ["no server", known, "https://127.0.0.1:9/v1/hooks/claude-code"],
  ]) {
    const how = (onFailure) => ({ change: overHttp(at, onFailure) });
    await check(asking, `over HTTP, ${what}, onFailure: block`, "denied", [HARMLESS], how("block"));
    await check(asking, `over HTTP, ${what}, no onFailure`, "runs", [HARMLESS], how(undefined));
  }
}

async function withServer(agent) {
  await check(agent, "no hook", "runs", [HARMLESS]);
  const untrusted = { change: asInstalled, options: [] };
  if (agent.trusted) await check(agent, "a hook that is not trusted", "runs", [HARMLESS], untrusted);
  if (agent.trusted) await trusted(agent);
  if (agent.name === "claude-code") await withHttpHook(agent);
  await decided(agent);
  const gone = ({ ours }) => rmSync(ours);
  const [seen] = await check(agent, "our program is gone", "denied", [HARMLESS], { change: gone });
  assert.match(seen, /the guard of Stage0 could not run/);
  await check(agent, "our program is killed", "denied", [HARMLESS], { change: replaced("kill -9 $$") });
  const shell = replaced("kill -9 $PPID $$");
  await check(agent, "our program and its shell are killed", agent.whenLost, [HARMLESS], { change: shell });
  const late = (installed) => (impatient(installed), replaced("exec sleep 6")(installed));
  await check(agent, "the hook is later than the agent waits", agent.whenLost, [HARMLESS], { change: late });
}

async function withoutServer(agent, what) {
  const [seen] = await check(agent, what, "denied", [HARMLESS], { change: asInstalled });
  assert.match(seen, /Stage0 did not decide this call/);
}

try {
  const agents = Object.entries(AGENTS).map(([name, agent]) => ({ name, ...agent }));
  const chosen = agents.filter(({ name }) => only.length === 0 || only.includes(name));
  const child = await server();
  for (const agent of chosen) await withServer(agent);
  child.kill("SIGSTOP");
  for (const agent of chosen) await withoutServer(agent, "the server is frozen");
  child.kill("SIGKILL");
  for (const agent of chosen) {
    await withoutServer(agent, "the server is down");
    const before = (project) => rmSync(project, { recursive: true });
    const what = "the server is down, and the working directory was deleted";
    await check(agent, what, agent.whenDeleted, [agent.elsewhere], { change: asInstalled, before });
  }
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
