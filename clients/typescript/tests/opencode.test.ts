// The OpenCode plugin, called as OpenCode calls it, against a real HTTPS server.

import assert from "node:assert/strict";
import { cpSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import * as plugin from "@stage0/client/opencode";
import { FAULTS } from "../dist/selftest/faults.js";
import { errorBody, inTurn, json, scratch, serve, type Served } from "./harness.js";

const ID = "01940a6e-8c00-7d7a-b1f5-2f4d3c1a9e55";
const CALL = { tool: "bash", sessionID: "ses-1", callID: "call-1" };
const ALLOW = json(200, { decision: "allow", request_id: ID });

async function load(dataDir: string) {
  // The plugin reads its settings at its first call; the tests of this file run one after the other.
  process.env["STAGE0_DATA_DIR"] = dataDir;
  return plugin.Stage0({ directory: "/project" });
}
const before = async (server: Served) =>
  (await load(server.dataDir))["tool.execute.before"](CALL, { args: { command: "ls" } });

test("the module exports one function, because OpenCode takes every export for a plugin", () => {
  assert.deepEqual(Object.keys(plugin), ["Stage0"]);
});

test("an ALLOW lets the tool run, and the outcome is reported under the decision's id", async () => {
  for (const [metadata, status] of [
    [{ exit: 0 }, "succeeded"],
    [{ exit: 1 }, "failed"],
    [{}, "unknown"],
    [undefined, "unknown"],
  ] as const) {
    await using server = await serve(inTurn(ALLOW, json(200, {})));
    const hooks = await load(server.dataDir);
    await hooks["tool.execute.before"](CALL, { args: { command: "ls" } });
    await hooks["tool.execute.after"](CALL, { metadata });
    const [asked, reported] = server.requests;
    assert.equal(asked?.path, "/v1/hooks/opencode");
    const event = { hook_event_name: "tool.execute.before", ...CALL, args: { command: "ls" }, directory: "/project" };
    assert.deepEqual(JSON.parse(asked.body), event);
    assert.equal(reported?.path, `/v1/decisions/${ID}/outcome`);
    const body = JSON.parse(reported.body) as Record<string, unknown>;
    assert.deepEqual([body["status"], body["tool_call_id"], typeof body["duration_ms"]], [status, "call-1", "number"]);
  }
});

test("a denial is thrown with the server's words", async () => {
  await using server = await serve(inTurn(json(200, { decision: "deny", reason: "DENIED: not on a Friday" })));
  await assert.rejects(before(server), /not on a Friday/);
});

test("any other answer is thrown, and no ALLOW without the id of its record passes", async () => {
  const odd = [
    {},
    { decision: "allow" },
    { decision: "allow", request_id: 7 },
    { decision: "ask" },
    { continue: true },
    { verdict: "ALLOW" },
  ];
  for (const body of odd) {
    await using server = await serve(inTurn(json(200, body)));
    await assert.rejects(before(server), /Stage0 did not decide/, JSON.stringify(body));
  }
});

test("no fault of the server or of the connection lets the tool run", async () => {
  // The slow ones take the plugin's whole deadline each; they are tested with the client and the hook.
  const slow = ["no answer", "headers that trickle in", "a body that trickles in"];
  for (const fault of FAULTS.filter(({ name, trouble }) => trouble === undefined && !slow.includes(name))) {
    await using server = await serve(fault);
    await assert.rejects(before(server), /Stage0/, fault.name);
  }
});

test("a dev.json of the working directory chooses nothing, and what the plugin's file names counts alone", async () => {
  await using server = await serve(inTurn(ALLOW, json(200, {})));
  await using other = await serve(inTurn(ALLOW, json(200, {})));
  const project = scratch();
  cpSync(other.dataDir, join(project, ".stage0"), { recursive: true });
  const before = process.cwd();
  process.chdir(project);
  try {
    delete process.env["STAGE0_DATA_DIR"];
    const unnamed = await plugin.Stage0({ directory: project });
    await assert.rejects(unnamed["tool.execute.before"](CALL, { args: {} }), /no server is named/);
    process.env["STAGE0_DATA_DIR"] = ".stage0";
    const relative = await plugin.Stage0({ directory: project });
    await assert.rejects(relative["tool.execute.before"](CALL, { args: {} }), /must be an absolute path/);
    process.env["STAGE0_DATA_DIR"] = other.dataDir;
    const named = await plugin.Stage0({ directory: project }, { dataDir: server.dataDir });
    await named["tool.execute.before"](CALL, { args: {} });
    await named["tool.execute.after"](CALL, {});
    assert.deepEqual([server.requests.length, other.requests.length], [2, 0]);
  } finally {
    process.chdir(before);
  }
});

test("without a server or a key the plugin loads, and every tool is refused", async () => {
  const hooks = await load(scratch());
  await assert.rejects(hooks["tool.execute.before"](CALL, { args: {} }), /no server/);
  await hooks["tool.execute.after"](CALL, {});
});

test("a report that fails does not stop the agent, and a key that may not report is not tried again", async () => {
  await using server = await serve({
    answer: (socket, { path }) => {
      socket.write(path.startsWith("/v1/hooks/") ? ALLOW : json(403, errorBody("scope_missing")));
    },
  });
  const hooks = await load(server.dataDir);
  for (const callID of ["a", "b"]) {
    await hooks["tool.execute.before"]({ ...CALL, callID }, { args: {} });
    await hooks["tool.execute.after"]({ ...CALL, callID }, {});
  }
  assert.deepEqual(
    server.requests.map(({ path }) => path.split("/")[2]),
    ["hooks", "decisions", "hooks"],
  );
  await hooks["tool.execute.after"]({ ...CALL, callID: "never asked" }, {});
  assert.equal(server.requests.length, 3);
});
