// The hook and the OpenCode plugin against the routes of a real `stage0 dev`.

import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { after, before, test } from "node:test";

import { Client } from "@stage0/client";
import { Stage0 } from "@stage0/client/opencode";
import { run, scratch, startDev, type DevServer } from "./harness.js";

const HOOK = fileURLToPath(new URL("../bin/stage0-hook.cjs", import.meta.url));
let dev: DevServer;
before(async () => {
  dev = await startDev();
});
after(() => dev.stop());

/** With the key of the data directory, or with this one. */
function hook(agent: string, event: object, key?: string) {
  const args = [HOOK, agent, "--data-dir", dev.dataDir];
  if (key !== undefined) {
    const file = join(scratch(), "agent.key");
    writeFileSync(file, key, { mode: 0o600 });
    args.push("--key-file", file);
  }
  return run(process.execPath, args, JSON.stringify(event));
}

const common = { session_id: "s-1", cwd: "/project" };
const read = { tool_name: "Read", tool_input: { file_path: "/project/README.md" }, tool_use_id: "toolu_1" };
const remove = { tool_name: "Bash", tool_input: { command: "rm -rf /" }, tool_use_id: "toolu_2" };
const CALLS: Record<string, { harmless: object; harmful: object }> = {
  "claude-code": {
    harmless: { ...common, hook_event_name: "PreToolUse", ...read },
    harmful: { ...common, hook_event_name: "PreToolUse", ...remove },
  },
  codex: {
    harmless: { ...common, hook_event_name: "PreToolUse", ...remove, tool_input: { command: "ls" } },
    harmful: { ...common, hook_event_name: "PreToolUse", ...remove },
  },
  cursor: {
    harmless: { conversation_id: "s-1", hook_event_name: "beforeShellExecution", command: "ls", cwd: "/project" },
    harmful: { conversation_id: "s-1", hook_event_name: "beforeShellExecution", command: "rm -rf /", cwd: "/project" },
  },
  gemini: {
    harmless: { ...common, hook_event_name: "BeforeTool", tool_name: "read_file", tool_input: { absolute_path: "/a" } },
    harmful: {
      ...common,
      hook_event_name: "BeforeTool",
      tool_name: "run_shell_command",
      tool_input: remove.tool_input,
    },
  },
};

for (const [agent, { harmless, harmful }] of Object.entries(CALLS)) {
  test(`${agent}: a harmless call passes, a harmful one is refused with the server's reasons`, async () => {
    const passed = await hook(agent, harmless);
    assert.deepEqual([passed.status, passed.stderr], [0, ""], passed.stdout);
    const refused = await hook(agent, harmful);
    assert.equal(refused.status, 2);
    assert.match(refused.stderr, /Stage0 (DENIED|DEFERRED) this call.*\[request /);
    assert.match(refused.stdout, /"deny"/);
  });

  test(`${agent}: an event that this server does not know, and a key that is not valid, are refused`, async () => {
    assert.equal((await hook(agent, { ...harmless, hook_event_name: "ToolUseBegins" })).status, 2);
    const invalid = await hook(agent, harmless, "s0_unknown");
    assert.equal(invalid.status, 2);
    assert.match(invalid.stderr, /did not decide/);
  });
}

test("a key that is revoked between two calls refuses the second", async () => {
  const key = dev.newKey("check");
  const { harmless } = CALLS["claude-code"] ?? assert.fail();
  assert.equal((await hook("claude-code", harmless, key)).status, 0);
  dev.cli("keys", "revoke", key.split("_")[1] ?? "");
  assert.equal((await hook("claude-code", harmless, key)).status, 2);
});

test("after a call the hook has nothing to say", async () => {
  const ended = await hook("claude-code", { ...common, hook_event_name: "PostToolUse", ...read, tool_response: {} });
  assert.deepEqual([ended.status, ended.stdout, ended.stderr], [0, "", ""]);
});

for (const [agent, end, status] of [
  ["claude-code", { hook_event_name: "PostToolUse", tool_response: {} }, "succeeded"],
  ["claude-code", { hook_event_name: "PostToolUseFailure", error: "no" }, "failed"],
  ["codex", { hook_event_name: "PostToolUse", tool_response: {} }, "unknown"],
] as const) {
  test(`${agent}: the outcome of an allowed call is recorded as ${status}`, async () => {
    const session = { session_id: `outcome-${agent}-${status}`, tool_use_id: "toolu_3" };
    const event = { ...CALLS[agent]?.harmless, ...session };
    assert.equal((await hook(agent, event)).status, 0);
    const listed = dev.cli("decisions", "list", "--run-id", session.session_id, "--json");
    const ids = [...listed.matchAll(/"request_id": ?"([0-9a-f-]{36})"/g)].map(([, id]) => id);
    assert.equal(ids.length, 1);
    const ended = await hook(agent, { ...event, ...end });
    assert.deepEqual([ended.status, ended.stdout, ended.stderr], [0, "", ""]);
    const { outcome } = await new Client({ dataDir: dev.dataDir }).decision(ids[0] ?? "");
    assert.deepEqual([outcome?.status, outcome?.tool_call_id], [status, "toolu_3"]);
  });
}

test("the OpenCode plugin lets a harmless call run, reports its outcome, and stops a harmful one", async () => {
  process.env["STAGE0_DATA_DIR"] = dev.dataDir;
  const hooks = await Stage0({ directory: "/project" });
  const call = { tool: "bash", sessionID: "ses-1", callID: "call-1" };
  await hooks["tool.execute.before"](call, { args: { command: "ls" } });
  await hooks["tool.execute.after"](call, { metadata: { exit: 0 } });
  const client = new Client({ dataDir: dev.dataDir });
  const listed = dev.cli("decisions", "list", "--run-id", "ses-1", "--json");
  const ids = [...listed.matchAll(/"request_id": ?"([0-9a-f-]{36})"/g)];
  const records = await Promise.all([...new Set(ids.map(([, id]) => id ?? ""))].map((id) => client.decision(id)));
  const outcomes = records.flatMap(({ outcome }) => (outcome == null ? [] : [[outcome.status, outcome.tool_call_id]]));
  assert.deepEqual(outcomes, [["succeeded", "call-1"]]);
  await assert.rejects(
    hooks["tool.execute.before"](call, { args: { command: "rm -rf /" } }),
    /Stage0 (DENIED|DEFERRED)/,
  );
});
