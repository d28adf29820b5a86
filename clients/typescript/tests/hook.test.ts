// The hook process, started as agents start it, against a real HTTPS server and against faults of its surroundings.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { chmodSync, copyFileSync, cpSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type AddressInfo } from "node:net";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { test } from "node:test";

import { makeAuthority } from "../dist/selftest/certificate.js";
import { FAULTS } from "../dist/selftest/faults.js";
import { http } from "../dist/selftest/server.js";
import { errorBody, inTurn, json, KEY, run, scratch, serve, type Served } from "./harness.js";

const HOOK = fileURLToPath(new URL("../bin/stage0-hook.cjs", import.meta.url));
const AGENTS = ["claude-code", "codex", "cursor", "gemini"] as const;
type Agent = (typeof AGENTS)[number];

const call = (name: string) => ({
  hook_event_name: name,
  session_id: "s-1",
  tool_name: "Bash",
  tool_input: { command: "ls" },
});
const EVENTS: Record<Agent, object> = {
  "claude-code": call("PreToolUse"),
  codex: call("PreToolUse"),
  cursor: { hook_event_name: "beforeShellExecution", command: "ls" },
  gemini: call("BeforeTool"),
};
const permission = (more: object) => ({ hookSpecificOutput: { hookEventName: "PreToolUse", ...more } });
const ALLOWS: Record<Agent, object[]> = {
  "claude-code": [
    permission({}),
    permission({ permissionDecision: "allow", permissionDecisionReason: "allowed by Stage0" }),
  ],
  codex: [permission({})],
  cursor: [{ continue: true }, { permission: "allow" }],
  gemini: [{ decision: "allow" }],
};
const denial = (agent: Agent, text: string): object => {
  if (agent === "cursor") return { permission: "deny", user_message: text, agent_message: text };
  if (agent === "gemini") return { decision: "deny", reason: text };
  return permission({ permissionDecision: "deny", permissionDecisionReason: text });
};

interface Options {
  readonly input?: string | Buffer | undefined;
  readonly args?: readonly string[];
  readonly environment?: Readonly<Record<string, string>>;
  readonly cwd?: string;
}

const hook = (agent: Agent, dataDir: string | undefined, options: Options = {}) => {
  const input = "input" in options ? options.input : JSON.stringify(EVENTS[agent]);
  const named = dataDir === undefined ? [] : ["--data-dir", dataDir];
  const args = [HOOK, agent, ...named, ...(options.args ?? [])];
  return run(process.execPath, args, input, options.environment, options.cwd);
};

/** A denial in the agent's own form, by exit code, by body and by text. */
function assertDenied(agent: Agent, ended: Awaited<ReturnType<typeof run>>, text = /./, what = ""): void {
  assert.equal(ended.status, 2, `${agent} ${what}: ${JSON.stringify(ended)}`);
  const body = JSON.parse(ended.stdout) as Record<string, unknown>;
  const reason = String(body["reason"] ?? body["agent_message"] ?? "") || JSON.stringify(body);
  assert.match(reason, text, what);
  assert.deepEqual(Object.keys(body), Object.keys(denial(agent, "")));
  if (agent === "claude-code" || agent === "codex") assert.match(ended.stdout, /"permissionDecision":"deny"/);
  assert.match(ended.stderr, text, what);
  assert.doesNotMatch(ended.stdout + ended.stderr, new RegExp(KEY));
}

const OTHER = join(scratch(), "other.pem");
writeFileSync(OTHER, makeAuthority("other").cert);
const KEY_FILE = join(scratch(), "agent.key");
writeFileSync(KEY_FILE, KEY, { mode: 0o600 });

for (const agent of AGENTS) {
  test(`${agent}: the event reaches the server byte by byte, and an ALLOW comes back as it is`, async () => {
    for (const allow of ALLOWS[agent]) {
      await using server = await serve(inTurn(json(200, allow)));
      const input = ` ${JSON.stringify(EVENTS[agent])}\n`;
      const ended = await hook(agent, server.dataDir, { input });
      assert.deepEqual([ended.status, ended.stderr, JSON.parse(ended.stdout)], [0, "", allow]);
      const [request] = server.requests;
      assert.deepEqual([request?.method, request?.path, request?.body], ["POST", `/v1/hooks/${agent}`, input]);
      assert.equal(request?.headers["x-api-key"], KEY);
    }
  });

  test(`${agent}: a denial of the server is passed on, by exit code and on standard error too`, async () => {
    const body = denial(agent, "DENIED: not on a Friday");
    await using server = await serve(inTurn(json(200, body)));
    const ended = await hook(agent, server.dataDir);
    assertDenied(agent, ended, /not on a Friday/);
    assert.deepEqual(JSON.parse(ended.stdout), body);
  });

  test(`${agent}: an answer of any other form denies`, async () => {
    const others = AGENTS.filter(
      (other) => other !== agent && !(/claude|codex/.test(agent) && /claude|codex/.test(other)),
    );
    const odd: object[] = [
      {},
      [],
      { decision: "GO" },
      { permission: "ask" },
      { decision: "ask" },
      { continue: true, permission: "ask" },
      permission({ permissionDecision: "ask" }),
      permission({ permissionDecision: "defer" }),
      permission({ other: 1 }),
      permission({ permissionDecision: "allow", updatedInput: { command: "rm" } }),
      { decision: "allow", hookSpecificOutput: { tool_input: {} } },
      { ...permission({}), continue: false },
      { hookSpecificOutput: { hookEventName: "PostToolUse" } },
      { hookSpecificOutput: {} },
      ...others.flatMap((other) => ALLOWS[other]),
    ];
    if (agent === "codex") odd.push(...ALLOWS["claude-code"].slice(1));
    await Promise.all(
      odd.map(async (body) => {
        await using server = await serve(inTurn(json(200, body)));
        // All at once on a busy machine may take longer than the hook's own five seconds.
        const ended = await hook(agent, server.dataDir, { args: ["--timeout", "60"] });
        assertDenied(agent, ended, /does not have the form|not a JSON object/, JSON.stringify(body));
      }),
    );
  });

  test(`${agent}: no fault of the server or of the connection lets the tool run`, async () => {
    const faults = FAULTS.filter(({ name }) => name !== "DENY" && name !== "DEFER");
    // Two at a time: each is a process of its own.
    for (let at = 0; at < faults.length; at += 2) {
      await Promise.all(
        faults.slice(at, at + 2).map(async (fault) => {
          const names = fault.trouble === "wrong host name" ? ["other.invalid"] : ["127.0.0.1"];
          await using server = await serve(fault, names);
          const args = ["--timeout", "1.5"];
          if (fault.trouble === "nothing listens") args.push("--url", "https://127.0.0.1:1", "--key-file", KEY_FILE);
          if (fault.trouble === "wrong authority") args.push("--ca", OTHER);
          const ended = await hook(agent, server.dataDir, { args });
          assertDenied(agent, ended, /Stage0 did not decide this call/, fault.name);
          assert.ok(ended.elapsedMs < 4000, `${fault.name} took ${ended.elapsedMs} ms`);
        }),
      );
    }
  });

  test(`${agent}: an event that is empty, broken, too large, repeated or endless denies`, async () => {
    await using server = await serve(inTurn(json(200, ALLOWS[agent][0] ?? {})));
    const large = JSON.stringify({ ...EVENTS[agent], more: "x".repeat(1_000_000) });
    assertDenied(agent, await hook(agent, server.dataDir, { input: "" }), /empty/);
    assertDenied(agent, await hook(agent, server.dataDir, { input: large }), /larger than/);
    const before = server.requests.length;
    assertDenied(
      agent,
      await hook(agent, server.dataDir, { input: undefined, args: ["--timeout", "1"] }),
      /within 1000 ms/,
    );
    assert.deepEqual([before, server.requests.length], [0, 0]);
    const largest = JSON.stringify({ ...EVENTS[agent], more: "" });
    const fits = largest.replace('"more":""', `"more":"${"x".repeat(1_000_000 - largest.length)}"`);
    assert.equal((await hook(agent, server.dataDir, { input: fits })).status, 0);
  });
}

test("an event that cannot be read denies whatever the server answers, except by the agent's own ALLOW", async () => {
  await using server = await serve(inTurn(json(200, {})));
  for (const input of [
    "{",
    "[1]",
    '"x"',
    '{"hook_event_name":7}',
    '{"hook_event_name":"a","hook_event_name":"PostToolUse"}',
  ]) {
    assertDenied("gemini", await hook("gemini", server.dataDir, { input }), /form of gemini/, input);
  }
});

test("an event that runs no tool is not refused: neither by an empty answer nor without one", async () => {
  for (const name of ["PostToolUse", "SessionStart", "Stop", "PreCompact"]) {
    await using server = await serve(inTurn(json(200, {})));
    const input = JSON.stringify(call(name));
    const ended = await hook("claude-code", server.dataDir, { input });
    assert.deepEqual([ended.status, ended.stdout, ended.stderr], [0, "", ""], name);
    const unreachable = await hook("claude-code", server.dataDir, { input, args: ["--url", "https://127.0.0.1:1"] });
    assert.deepEqual([unreachable.status, unreachable.stdout], [0, ""], name);
    assert.match(unreachable.stderr, /was not asked/);
  }
});

test("an event that this version does not know is refused if the server refuses it or gives no answer", async () => {
  const input = JSON.stringify(call("ToolUseBegins"));
  const refusing = permission({ permissionDecision: "deny", permissionDecisionReason: "unknown event" });
  for (const [body, text] of [
    [refusing, /unknown event/],
    [{}, /does not have the form/],
  ] as const) {
    await using server = await serve(inTurn(json(200, body)));
    assertDenied("claude-code", await hook("claude-code", server.dataDir, { input }), text);
  }
  await using broken = await serve(inTurn(http(500, "")));
  for (const name of ["ToolUseBegins", "PostSomething"]) {
    const unknown = JSON.stringify(call(name));
    const ended = await hook("claude-code", broken.dataDir, { input: unknown });
    assert.equal(ended.status, 2, name);
  }
  await using server = await serve(inTurn(json(200, {})));
  const later = await hook("claude-code", server.dataDir, { input: JSON.stringify(call("PostSomething")) });
  assert.equal(later.status, 0, "the server knows it, and it is about no call");
});

test("no wrong setting lets a tool run", async () => {
  await using server = await serve(inTurn(json(200, permission({}))));
  const cases: [Options, RegExp][] = [
    [{ args: ["--key-file", "/nonexistent"] }, /ENOENT/],
    [{ args: ["--ca", "/nonexistent"] }, /ENOENT/],
    [{ args: ["--url", "http://127.0.0.1:1"] }, /https/],
    [{ args: ["--url", "https://127.0.0.1:1"] }, /no API key for/],
    [{ args: ["--data-dir", "/nonexistent"] }, /no server/],
  ];
  for (const [options, text] of cases)
    assertDenied("claude-code", await hook("claude-code", server.dataDir, options), text);
  chmodSync(join(server.dataDir, "dev.json"), 0o644);
  if (process.platform !== "win32") assertDenied("claude-code", await hook("claude-code", server.dataDir), /chmod 600/);
  assert.equal(server.requests.length, 0);
});

test("a wrong command line ends with 2 and says what is right", async () => {
  for (const args of [
    [],
    ["nonsense"],
    ["opencode"],
    ["codex", "gemini"],
    ["codex", "--nonsense"],
    ["codex", "--timeout", "x"],
    ["codex", "--timeout", "0"],
    ["--help"],
  ]) {
    const ended = await run(process.execPath, [HOOK, ...args], "{}");
    assert.equal(ended.status, 2, args.join(" "));
    assert.match(ended.stderr, /usage|nonsense|help/, args.join(" "));
  }
});

test("a package that is broken ends with 2, as Node itself would not", async () => {
  const dir = scratch();
  mkdirSync(join(dir, "bin"));
  copyFileSync(HOOK, join(dir, "bin", "stage0-hook.cjs"));
  const start = () => run(process.execPath, [join(dir, "bin", "stage0-hook.cjs"), "codex"], "{}");
  assert.deepEqual([(await start()).status], [2], "there is no dist");
  mkdirSync(join(dir, "dist"));
  for (const text of [
    "syntax error (",
    "throw 1",
    "export {}",
    "export const main = async () => { setTimeout(() => { throw 1 }) }",
    "export const main = () => {}",
  ]) {
    writeFileSync(join(dir, "dist", "hook.js"), text);
    assert.deepEqual([(await start()).status], [2], text);
  }
  rmSync(dir, { recursive: true });
});

/** A project that an agent works on, with a data directory that names this server. */
function projectOf(server: Served, mode: number): string {
  const dir = scratch();
  cpSync(server.dataDir, join(dir, ".stage0"), { recursive: true });
  chmodSync(join(dir, ".stage0", "dev.json"), mode);
  return dir;
}

for (const mode of [0o600, 0o644]) {
  test(`a dev.json of the working directory with mode ${mode.toString(8)} chooses nothing`, async () => {
    await using server = await serve(inTurn(json(200, { decision: "allow" })));
    const cwd = projectOf(server, mode);
    assertDenied("gemini", await hook("gemini", undefined, { cwd }), /no server is named/);
    // Its authority vouches for no server, not even for the one that both name.
    const args = ["--url", server.url, "--key-file", KEY_FILE];
    assertDenied("gemini", await hook("gemini", undefined, { cwd, args }), /not trusted|certificate/i);
    const environment = { STAGE0_URL: server.url, STAGE0_API_KEY: KEY };
    assertDenied("gemini", await hook("gemini", undefined, { cwd, environment }), /not trusted|certificate/i);
    // Nor does its key reach that server.
    const withCa = ["--url", server.url, "--ca", join(server.dataDir, "ca.pem")];
    assertDenied("gemini", await hook("gemini", undefined, { cwd, args: withCa }), /no API key/);
    assert.equal(server.requests.length, 0);
    const named = await hook("gemini", undefined, { cwd, args: [...withCa, "--key-file", KEY_FILE] });
    assert.equal(named.status, 0, named.stderr);
  });
}

test("a data directory that is named by a flag or a variable counts, in any working directory", async () => {
  await using server = await serve(inTurn(json(200, { decision: "allow" })));
  await using other = await serve(inTurn(json(200, { decision: "allow" })));
  const cwd = projectOf(other, 0o600);
  assert.equal((await hook("gemini", server.dataDir, { cwd })).status, 0);
  const environment = { STAGE0_DATA_DIR: server.dataDir };
  assert.equal((await hook("gemini", undefined, { cwd, environment })).status, 0);
  // No variable leads away from the one that the command line names.
  const away = { STAGE0_URL: other.url, STAGE0_API_KEY: "s0_other", STAGE0_CA: OTHER, STAGE0_DATA_DIR: "/nowhere" };
  assert.equal((await hook("gemini", server.dataDir, { cwd, environment: away })).status, 0);
  assert.deepEqual([server.requests.length, other.requests.length], [3, 0]);
});

test("a path that depends on the working directory is refused", async () => {
  await using server = await serve(inTurn(json(200, { decision: "allow" })));
  const cwd = projectOf(server, 0o600);
  writeFileSync(join(cwd, "agent.key"), KEY, { mode: 0o600 });
  const ca = join(server.dataDir, "ca.pem");
  const whole = ["--url", server.url, "--ca", ca, "--key-file", KEY_FILE];
  const cases: Options[] = [
    { args: ["--data-dir", ".stage0"] },
    { environment: { STAGE0_DATA_DIR: ".stage0" } },
    { args: ["--url", server.url, "--ca", ".stage0/ca.pem", "--key-file", KEY_FILE] },
    { args: ["--url", server.url, "--ca", ca, "--key-file", "agent.key"] },
    { args: ["--url", server.url], environment: { STAGE0_CA: ".stage0/ca.pem", STAGE0_KEY_FILE: KEY_FILE } },
    { args: ["--url", server.url], environment: { STAGE0_CA: ca, STAGE0_KEY_FILE: "agent.key" } },
  ];
  for (const options of cases)
    assertDenied("gemini", await hook("gemini", undefined, { ...options, cwd }), /must be an absolute path/);
  assert.equal(server.requests.length, 0);
  assert.equal((await hook("gemini", undefined, { args: whole, cwd })).status, 0);
});

test("a name server that does not answer cannot keep the process beyond its deadline", async () => {
  // A FIFO without a writer holds up a thread of the process as the system's look-up does, and with it `process.exit`.
  const dir = scratch();
  const preload = join(dir, "hang.cjs");
  execFileSync("mkfifo", [join(dir, "fifo")]);
  writeFileSync(
    preload,
    `
    const fs = require("node:fs");
    require("node:dns").lookup = () => fs.open(${JSON.stringify(join(dir, "fifo"))}, "r", () => {});`,
  );
  const environment = {
    STAGE0_URL: "https://unreachable.example",
    STAGE0_API_KEY: KEY,
    NODE_OPTIONS: `--require ${preload}`,
  };
  const ended = await hook("claude-code", undefined, { environment, args: ["--timeout", "1.2"] });
  assertDenied("claude-code", ended, /no connection|no whole answer|within/);
  assert.ok(ended.elapsedMs < 3000, String(ended.elapsedMs));
});

test("a name is looked up in a process of its own, and the server behind it is asked", async () => {
  await using server = await serve(inTurn(json(200, { decision: "allow" })), ["looked-up.example"]);
  const dir = scratch();
  const preload = join(dir, "hosts.cjs");
  writeFileSync(
    preload,
    `
    const dns = require("node:dns");
    dns.lookup = (host, options, callback) => callback(null, [{ address: "127.0.0.1", family: 4 }]);`,
  );
  const url = server.url.replace("127.0.0.1", "looked-up.example");
  const environment = {
    STAGE0_URL: url,
    STAGE0_API_KEY: KEY,
    STAGE0_CA: join(server.dataDir, "ca.pem"),
    NODE_OPTIONS: `--require ${preload}`,
  };
  const ended = await hook("gemini", undefined, { environment });
  assert.equal(ended.status, 0, ended.stderr);
  const unknown = await hook("gemini", undefined, { environment: { ...environment, NODE_OPTIONS: "" } });
  assertDenied("gemini", unknown, /name is not known|EAI|ENOTFOUND/);
});

test("a server that refuses with its own error body is quoted, and a page is not", async () => {
  await using refusing = await serve(inTurn(json(404, errorBody("not_found", "no such agent"))));
  assertDenied("gemini", await hook("gemini", refusing.dataDir), /404: no such agent/);
  await using page = await serve(inTurn(http(200, "<html>hunter2</html>")));
  const ended = await hook("gemini", page.dataDir);
  assertDenied("gemini", ended, /not JSON/);
  assert.doesNotMatch(ended.stderr, /hunter2/);
});

test(
  "a working directory that is gone changes nothing",
  { skip: process.platform === "win32" },
  async () => {
    await using server = await serve(inTurn(json(200, { decision: "allow" })));
    const start = (...args: readonly string[]) => {
      const dir = scratch();
      // A shell removes the directory before it starts the hook in it.
      const script = `cd "$1" && rmdir "$1" && shift && exec "$@"`;
      const command = ["-c", script, "sh", dir, process.execPath, HOOK, "gemini", ...args];
      return run("sh", command, JSON.stringify(EVENTS.gemini));
    };
    assertDenied("gemini", await start(), /no server is named/);
    assert.equal((await start("--data-dir", server.dataDir)).status, 0);
  },
);

test("a timeout that is meant for longer commands is cut to a minute", async () => {
  await using server = await serve(inTurn(json(200, { decision: "allow" })));
  assert.equal((await hook("gemini", server.dataDir, { environment: { STAGE0_TIMEOUT: "600" } })).status, 0);
});

test("a port that accepts and stays silent is left at the deadline", async () => {
  const mute = createServer(() => undefined);
  await new Promise<void>((resolve) => mute.listen(0, "127.0.0.1", resolve));
  const environment = { STAGE0_URL: `https://127.0.0.1:${(mute.address() as AddressInfo).port}`, STAGE0_API_KEY: KEY };
  const ended = await hook("codex", undefined, { environment, args: ["--timeout", "1"] });
  assertDenied("codex", ended, /within/);
  assert.ok(ended.elapsedMs < 2500);
  mute.close();
});
