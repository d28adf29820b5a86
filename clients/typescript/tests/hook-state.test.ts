// What the hook keeps of allowed calls, and the outcomes that come of it. No fault of it lets a tool run or denies.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import * as fs from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { test } from "node:test";

import { CALL_TTL_MS, callName, defaultStateDir, HookState, isRequestId, MAX_LOOKED_AT } from "../dist/hook/state.js";
import { http, type Behaviour } from "../dist/selftest/server.js";
import { inTurn, json, KEY, run, scratch, serve, type Served } from "./harness.js";

const HOOK = fileURLToPath(new URL("../bin/stage0-hook.cjs", import.meta.url));
const AGENTS = ["claude-code", "codex", "cursor", "gemini"] as const;
type Agent = (typeof AGENTS)[number];
type Event = Readonly<Record<string, unknown>>;

const DECISION = "01940a6e-8c00-7d7a-b1f5-2f4d3c1a9e55";
const OTHER = "01940a6e-8c00-7d7a-b1f5-2f4d3c1a9e56";
const SPECIFIC = { hookSpecificOutput: { hookEventName: "PreToolUse" } };
const STARTS = { "claude-code": "PreToolUse", codex: "PreToolUse", cursor: "preToolUse", gemini: "BeforeTool" };
const ENDS = { "claude-code": "PostToolUse", codex: "PostToolUse", cursor: "postToolUse", gemini: "AfterTool" };
const ALLOWS = {
  "claude-code": SPECIFIC,
  codex: SPECIFIC,
  cursor: { continue: true },
  gemini: { decision: "allow" },
};
const DENIED = { ...SPECIFIC.hookSpecificOutput, permissionDecision: "deny", permissionDecisionReason: "no" };
const DENIES = {
  "claude-code": { hookSpecificOutput: DENIED },
  codex: { hookSpecificOutput: DENIED },
  cursor: { permission: "deny", user_message: "no", agent_message: "no" },
  gemini: { decision: "deny", reason: "no" },
};

const idOf = (agent: Agent) => (agent === "gemini" ? "tool_call_id" : "tool_use_id");
const call = (agent: Agent, callId: unknown = "call-1", session: unknown = "s-1"): Event => ({
  hook_event_name: STARTS[agent],
  session_id: session,
  tool_name: "Bash",
  tool_input: { command: "ls" },
  [idOf(agent)]: callId,
});
const ended = (agent: Agent, callId?: unknown, session?: unknown): Event => ({
  ...call(agent, callId, session),
  hook_event_name: ENDS[agent],
  tool_response: {},
});
const nameOf = (agent: Agent) => callName(agent, call(agent)) ?? assert.fail();

/** Allows calls, and answers the end of one with nothing. */
function allowing(agent: Agent, decision: string | undefined = DECISION): Behaviour {
  const headers = decision === undefined ? {} : { "x-request-id": decision };
  return {
    answer: (socket, { body }) => {
      const isEnd = (JSON.parse(body) as Event)["hook_event_name"] === ENDS[agent];
      socket.write(json(200, isEnd ? {} : ALLOWS[agent], headers));
    },
  };
}

interface Options {
  readonly environment?: Readonly<Record<string, string>>;
  readonly cwd?: string;
}

function hook(agent: Agent, server: Served, event: Event, state: string | undefined, options: Options = {}) {
  const named = state === undefined ? [] : ["--state-dir", state];
  const args = [HOOK, agent, "--data-dir", server.dataDir, ...named];
  return run(process.execPath, args, JSON.stringify(event), options.environment, options.cwd);
}

async function allows(...args: Parameters<typeof hook>): Promise<void> {
  const { status, stdout, stderr } = await hook(...args);
  assert.deepEqual([status, stderr, JSON.parse(stdout || "0")], [0, "", ALLOWS[args[0]]]);
}

async function endsSilently(...args: Parameters<typeof hook>): Promise<void> {
  const { status, stdout, stderr } = await hook(...args);
  assert.deepEqual([status, stdout, stderr], [0, "", ""]);
}

/** The decisions that the requests name. */
const namedBy = (server: Served) => server.requests.map(({ headers }) => headers["stage0-decision"]);

/** All that is below a directory, except directories. */
function kept(directory: string): string[] {
  const paths = fs.existsSync(directory) ? fs.readdirSync(directory).map((name) => join(directory, name)) : [];
  return paths.flatMap((path) => (fs.lstatSync(path).isDirectory() ? kept(path) : [path]));
}

const modeOf = (path: string) => fs.statSync(path).mode & 0o777;

for (const agent of AGENTS) {
  test(`${agent}: the end of an allowed call names its decision, once`, async () => {
    const base = join(scratch(), "a");
    const state = join(base, "state");
    await using server = await serve(allowing(agent));
    await allows(agent, server, call(agent), state);
    const [file = "", ...others] = kept(base);
    assert.deepEqual([dirname(file), others, fs.readFileSync(file, "utf8")], [join(state, agent), [], DECISION]);
    assert.deepEqual([modeOf(file), ...[base, state, dirname(file)].map(modeOf)], [0o600, 0o700, 0o700, 0o700]);
    await endsSilently(agent, server, ended(agent), state);
    assert.deepEqual(kept(base), []);
    await endsSilently(agent, server, ended(agent), state);
    assert.deepEqual(namedBy(server), [undefined, DECISION, undefined]);
  });

  test(`${agent}: a call without an id leaves no file`, async () => {
    const state = join(scratch(), "state");
    for (const id of [undefined, null, " ", 7]) {
      await using server = await serve(allowing(agent));
      await allows(agent, server, { ...call(agent), [idOf(agent)]: id }, state);
      await endsSilently(agent, server, { ...ended(agent), [idOf(agent)]: id }, state);
      assert.deepEqual(namedBy(server), [undefined, undefined]);
    }
    assert.equal(fs.existsSync(state), false);
  });

  test(`${agent}: a call that is not allowed leaves no file`, async () => {
    const state = join(scratch(), "state");
    for (const [status, body] of [
      [200, DENIES[agent]],
      [200, {}],
      [500, ALLOWS[agent]],
    ] as const) {
      await using server = await serve(inTurn(json(status, body, { "x-request-id": DECISION })));
      const refused = await hook(agent, server, call(agent), state);
      assert.deepEqual([refused.status, server.requests.length], [2, 1]);
      assert.match(refused.stdout, /"deny"/);
    }
    assert.equal(fs.existsSync(state), false);
  });
}

test("each event that ends a call names its decision, and no event of a session does", async () => {
  const events = ["PostToolUseFailure", "AfterTool", "postToolUseFailure", "afterShellExecution", "afterMCPExecution"];
  for (const event of [...events, "SessionStart", "SessionEnd", "Stop"]) {
    const state = scratch();
    await using server = await serve(inTurn(json(200, {})));
    new HookState(state, "claude-code").keep(nameOf("claude-code"), DECISION);
    await endsSilently("claude-code", server, { ...call("claude-code"), hook_event_name: event }, state);
    const isEnd = events.includes(event);
    assert.deepEqual([namedBy(server), kept(state).length], [[isEnd ? DECISION : undefined], isEnd ? 0 : 1], event);
  }
});

test("an id of any form names a file in its folder, and leads to its own decision", async () => {
  for (const id of ["../x", "/etc/passwd", "x".repeat(100_000), "a\0b", "\ud800", ".", "né", "a\nb"]) {
    const base = scratch();
    const state = join(base, "state");
    await using server = await serve(allowing("claude-code"));
    await allows("claude-code", server, call("claude-code", id), state);
    const [file = "", ...others] = kept(base);
    assert.deepEqual([dirname(file), others], [join(state, "claude-code"), []]);
    assert.match(file, /\/[0-9a-f]{64}$/);
    await endsSilently("claude-code", server, ended("claude-code", "another"), state);
    await endsSilently("claude-code", server, ended("claude-code", id), state);
    assert.deepEqual(namedBy(server), [undefined, undefined, DECISION], id.slice(0, 9));
  }
});

test("two sessions with one call id are two calls", async () => {
  const state = scratch();
  for (const [session, decision] of [
    ["s-1", DECISION],
    ["s-2", OTHER],
    [null, DECISION],
  ] as const) {
    await using server = await serve(allowing("codex", decision));
    await allows("codex", server, call("codex", "c", session), state);
  }
  assert.equal(kept(state).length, 3);
  await using server = await serve(allowing("codex"));
  for (const session of ["s-2", "s-3", "s-1", "s-1"])
    await endsSilently("codex", server, ended("codex", "c", session), state);
  assert.deepEqual(namedBy(server), [OTHER, undefined, DECISION, undefined]);
});

test("names are unambiguous, and the same in every client", () => {
  const name = (session: unknown, id: unknown) => callName("claude-code", { session_id: session, tool_use_id: id });
  const pairs = [
    ["a", "bc"],
    ["ab", "c"],
    [null, "abc"],
    ["a,b", "c"],
    ["a", "b,c"],
    ['a","b', "c"],
    ["a", 'b","c'],
  ];
  assert.equal(new Set(pairs.map(([session, id]) => name(session, id))).size, pairs.length);
  assert.equal(name("", "c"), name(null, "c"));
  assert.equal(name(7, "c"), name(null, "c"));
  assert.notEqual(name("7", "c"), name(null, "c"));
  // Known answers; the Python client's tests have the same.
  assert.equal(name("s-1", "call-1"), "ded9f10da6de22f4c05dba90817cc9cd8f80ab09c0c8ab2492c61975a04b0214");
  const odd = name('é"\\', "\x7f\n\u{1f600}\ud800");
  assert.equal(odd, "d1a84789a4a2e20296376cf5514ea4a1403ff89f08f8ab5e236217c5bccf36d5");
  const cursor = { conversation_id: "c-1", session_id: "s-1", tool_use_id: "call-1" };
  assert.equal(callName("cursor", cursor), name("c-1", "call-1"));
  assert.equal(callName("cursor", { ...cursor, conversation_id: "" }), name("s-1", "call-1"));
  assert.equal(callName("claude-code", cursor), name("s-1", "call-1"));
  for (const none of [undefined, null, [], "x", {}]) assert.equal(callName("codex", none), undefined);
  assert.equal(callName("gemini", cursor), undefined);
});

const VERSION_4 = DECISION.replace("-7", "-4");
const GARBAGE = ["x", "../../x", DECISION.toUpperCase(), DECISION.slice(1), `${DECISION}0`, VERSION_4];

test("an ALLOW without the id of a decision is an ALLOW, and leaves no file", async () => {
  const state = join(scratch(), "state");
  for (const header of [undefined, "", ...GARBAGE, `${DECISION}\r\nx-request-id: ${OTHER}`]) {
    const headers: Record<string, string> = header === undefined ? {} : { "x-request-id": header };
    await using server = await serve(inTurn(json(200, ALLOWS.gemini, headers)));
    await allows("gemini", server, call("gemini"), state);
  }
  assert.equal(fs.existsSync(state), false);
});

test("what is no id of a decision is not sent", async () => {
  assert.ok(isRequestId(DECISION));
  const longer = [`${DECISION}\n`, `${DECISION}\r\nx-evil: 1`, "é".repeat(40), "x".repeat(5_000_000)];
  for (const text of ["", ...GARBAGE, ...longer]) {
    assert.equal(isRequestId(text), false);
    const state = scratch();
    new HookState(state, "gemini").keep(nameOf("gemini"), DECISION);
    fs.writeFileSync(join(state, "gemini", nameOf("gemini")), text);
    await using server = await serve(allowing("gemini"));
    await endsSilently("gemini", server, ended("gemini"), state);
    assert.deepEqual([namedBy(server), kept(state)], [[undefined], []], text.slice(0, 50));
  }
});

test("an ALLOW that cannot be printed leaves no file", { skip: !fs.existsSync("/dev/full") }, async () => {
  const state = join(scratch(), "state");
  await using server = await serve(allowing("gemini"));
  const hookOf = [process.execPath, HOOK, "gemini", "--data-dir", server.dataDir, "--state-dir", state];
  const print = (to: string) => run("sh", ["-c", `"$@" > ${to}`, "sh", ...hookOf], JSON.stringify(call("gemini")));
  assert.equal((await print("/dev/full")).status, 2);
  assert.deepEqual([server.requests.length, fs.existsSync(state)], [1, false]);
  assert.deepEqual([(await print("/dev/null")).status, kept(state).length], [0, 1]);
});

/** How a state can be unusable: each makes one below a directory, and returns its path. */
const UNUSABLE: Record<string, (base: string) => string> = {
  "a file": (base) => {
    fs.writeFileSync(join(base, "state"), "mine");
    return join(base, "state");
  },
  "below a file": (base) => {
    fs.writeFileSync(join(base, "file"), "mine");
    return join(base, "file", "state");
  },
  "a link": (base) => {
    fs.mkdirSync(join(base, "elsewhere"));
    fs.symlinkSync(join(base, "elsewhere"), join(base, "state"));
    return join(base, "state");
  },
  "a link to nothing": (base) => {
    fs.symlinkSync(join(base, "elsewhere"), join(base, "state"));
    return join(base, "state");
  },
  "a link as its folder": (base) => {
    fs.mkdirSync(join(base, "elsewhere"));
    fs.mkdirSync(join(base, "state"));
    fs.symlinkSync(join(base, "elsewhere"), join(base, "state", "claude-code"));
    return join(base, "state");
  },
  "open to all": (base) => {
    fs.mkdirSync(join(base, "state", "claude-code"), { recursive: true });
    fs.chmodSync(join(base, "state", "claude-code"), 0o777);
    return join(base, "state");
  },
  "a directory in the file's place": (base) => {
    fs.mkdirSync(join(base, "state", "claude-code", nameOf("claude-code"), "deeper"), { recursive: true });
    return join(base, "state");
  },
};
// Modes keep nothing from root.
if (process.geteuid?.() !== 0)
  UNUSABLE["read-only"] = (base) => {
    fs.mkdirSync(join(base, "state", "claude-code"), { recursive: true });
    fs.chmodSync(join(base, "state", "claude-code"), 0o500);
    return join(base, "state");
  };

const listed = (base: string) => (fs.readdirSync(base, { recursive: true }) as string[]).sort();

for (const [name, make] of Object.entries(UNUSABLE)) {
  test(`a state that cannot be kept changes no decision: ${name}`, { skip: process.platform === "win32" }, async () => {
    const base = scratch();
    const state = make(base);
    const before = listed(base);
    await using server = await serve(allowing("claude-code"));
    const allowed = await hook("claude-code", server, call("claude-code"), state);
    assert.deepEqual([allowed.status, JSON.parse(allowed.stdout)], [0, SPECIFIC]);
    assert.match(allowed.stderr, /^Stage0: the outcome of this call is not reported: .+\n$/);
    const end = await hook("claude-code", server, ended("claude-code"), state);
    assert.deepEqual([end.status, end.stdout, namedBy(server)], [0, "", [undefined, undefined]]);
    await using denying = await serve(inTurn(json(200, DENIES["claude-code"])));
    const denied = await hook("claude-code", denying, call("claude-code"), state);
    assert.deepEqual([denied.status, denied.stderr], [2, "no\n"]);
    assert.deepEqual(listed(base), before);
  });
}

test("the same state without the fault is used", async () => {
  const base = scratch();
  fs.mkdirSync(join(base, "claude-code"), { mode: 0o755 });
  fs.mkdirSync(join(base, "elsewhere"));
  fs.symlinkSync(join(base, "elsewhere"), join(base, "parent"));
  for (const state of [base, join(base, "parent", "state")]) {
    await using server = await serve(allowing("claude-code"));
    await allows("claude-code", server, call("claude-code"), state);
    await endsSilently("claude-code", server, ended("claude-code"), state);
    assert.deepEqual(namedBy(server), [undefined, DECISION]);
  }
});

test("a pipe in a file's place is not waited for", { skip: process.platform === "win32" }, async () => {
  const state = scratch();
  const path = join(state, "codex", nameOf("codex"));
  fs.mkdirSync(dirname(path));
  execFileSync("mkfifo", [path]);
  await using server = await serve(allowing("codex"));
  const end = await hook("codex", server, ended("codex"), state);
  assert.deepEqual([end.status, end.stdout, namedBy(server)], [0, "", [undefined]]);
  assert.match(end.stderr, /is not a file/);
  await allows("codex", server, call("codex"), state);
  assert.equal(fs.readFileSync(path, "utf8"), DECISION);
});

test("a fault of the state itself changes no decision", async () => {
  const preload = join(scratch(), "fault.cjs");
  fs.writeFileSync(preload, `require("node:crypto").createHash = () => { throw new Error("no hash"); };`);
  const environment = { NODE_OPTIONS: `--require ${preload}` };
  const state = join(scratch(), "state");
  await using server = await serve(allowing("claude-code"));
  const allowed = await hook("claude-code", server, call("claude-code"), state, { environment });
  assert.deepEqual([allowed.status, JSON.parse(allowed.stdout)], [0, SPECIFIC]);
  assert.match(allowed.stderr, /no hash/);
  const end = await hook("claude-code", server, ended("claude-code"), state, { environment });
  assert.deepEqual([end.status, end.stdout, namedBy(server)], [0, "", [undefined, undefined]]);
});

test("the directory is of the user, and never of the project", async () => {
  assert.equal(defaultStateDir({ XDG_STATE_HOME: "/x", HOME: "/h" }), "/x/stage0/hook");
  assert.equal(defaultStateDir({ XDG_STATE_HOME: "x", HOME: "/h" }), "/h/.local/state/stage0/hook");
  assert.equal(defaultStateDir({ HOME: "." }), undefined);
  const base = scratch();
  const cwd = join(base, "project");
  fs.mkdirSync(cwd);
  await using server = await serve(allowing("codex"));
  const home = { XDG_STATE_HOME: "relative", HOME: join(base, "home") };
  await allows("codex", server, call("codex"), undefined, { environment: home, cwd });
  assert.deepEqual(kept(base).map(dirname), [join(base, "home/.local/state/stage0/hook/codex")]);
  const without = await hook("codex", server, call("codex"), undefined, {
    environment: { XDG_STATE_HOME: "", HOME: "." },
    cwd,
  });
  assert.deepEqual([without.status, JSON.parse(without.stdout)], [0, ALLOWS.codex]);
  assert.match(without.stderr, /--state-dir/);
  const asked = server.requests.length;
  const relative = await hook("codex", server, call("codex"), "state", { cwd });
  assert.deepEqual([relative.status, relative.stdout, server.requests.length], [2, "", asked]);
  assert.match(relative.stderr, /must be an absolute path/);
  assert.deepEqual(fs.readdirSync(cwd), []);
});

function age(path: string, ms: number): void {
  const then = new Date(Date.now() - ms);
  fs.utimesSync(path, then, then);
}

test("old calls are forgotten, and other files are not", () => {
  const base = scratch();
  const state = new HookState(base, "codex");
  const [old, young, taken, link, fresh] = ["a", "b", "c", "f", "9"].map((digit) => digit.repeat(64)) as [
    string,
    string,
    string,
    string,
    string,
  ];
  for (const name of [old, young, taken]) state.keep(name, DECISION);
  const folder = join(base, "codex");
  const others = ["notes.txt", `${"d".repeat(64)}.txt`, "e".repeat(63)];
  const torn = `${old}.${"0".repeat(16)}.new`;
  for (const name of [...others, torn]) fs.writeFileSync(join(folder, name), "mine");
  fs.symlinkSync(join(folder, others[0] ?? ""), join(folder, link));
  for (const name of [old, taken, torn, ...others]) age(join(folder, name), CALL_TTL_MS + 60_000);
  age(join(folder, young), CALL_TTL_MS - 60_000);
  assert.deepEqual([state.take(taken), fs.existsSync(join(folder, taken))], [undefined, false]);
  state.keep(fresh, DECISION);
  assert.deepEqual(fs.readdirSync(folder).sort(), [young, fresh, link, ...others].sort());
  assert.equal(state.take(young), DECISION);
});

test("forgetting looks at a bounded number of files, and gets to all of them", () => {
  const base = scratch();
  const state = new HookState(base, "codex");
  const mine = "a".repeat(64);
  state.keep(mine, DECISION);
  for (let number = 0; number < 3 * MAX_LOOKED_AT; number++) {
    const path = join(base, "codex", number.toString(16).padStart(64, "0"));
    fs.writeFileSync(path, DECISION);
    age(path, CALL_TTL_MS + 60_000);
  }
  state.keep(mine, DECISION);
  assert.ok(kept(base).length >= 2 * MAX_LOOKED_AT);
  for (let round = 0; round < 4; round++) state.keep(mine, DECISION);
  assert.deepEqual(kept(base), [join(base, "codex", mine)]);
});

test("a later call with the same id replaces the earlier one", () => {
  const state = new HookState(scratch(), "codex");
  state.keep("a".repeat(64), DECISION);
  state.keep("a".repeat(64), OTHER);
  assert.deepEqual([state.take("a".repeat(64)), state.take("a".repeat(64))], [OTHER, undefined]);
});

test("an end whose report fails is lost, and disturbs no agent", async () => {
  const state = scratch();
  new HookState(state, "codex").keep(nameOf("codex"), DECISION);
  await using server = await serve(inTurn(http(500, "")));
  const end = await hook("codex", server, ended("codex"), state);
  assert.deepEqual([end.status, end.stdout, namedBy(server), kept(state)], [0, "", [DECISION], []]);
  assert.doesNotMatch(end.stderr, new RegExp(KEY));
});
