// Waiting for an approval at a server that fails meanwhile; with a real server: client.test.ts.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Client, Deferred, Undecided } from "@stage0/client";
import { allowed } from "../dist/selftest/faults.js";
import { errorBody, json, KEY, serve } from "./harness.js";

const ID = "apr_1";
const REF = {
  id: ID,
  status: "pending",
  action_digest: "0".repeat(64),
  quorum: 1,
  groups: [],
  expires_at: "",
  url: "/x",
};
const DEFER = json(200, {
  ...allowed(),
  decision: "DEFER",
  verdict: "DEFER",
  defer_questions: ["Who?"],
  approval: REF,
});
const approval = (status: string) => json(200, { id: ID, status });

/** Answers the checks and the reads of the approval, each in turn. */
async function waiting(checks: string[], reads: (string | "silence" | "close")[], timeoutMs: number) {
  const server = await serve({
    answer: (socket, { path }) => {
      const list = path === "/check" ? checks : reads;
      const text = (list.length > 1 ? list.shift() : list[0]) ?? "";
      if (text === "close") socket.destroy();
      else if (text !== "silence") socket.write(text);
    },
  });
  const client = new Client({ url: server.url, key: KEY, ca: server.ca });
  const error = await client.check({ goal: "x" }).catch((thrown: unknown) => thrown);
  assert.ok(error instanceof Deferred && error.approval?.id === ID, String(error));
  const startedAt = performance.now();
  const result = await client.waitForApproval(error, { timeoutMs }).catch((thrown: unknown) => thrown);
  const elapsedMs = performance.now() - startedAt;
  await server[Symbol.asyncDispose]();
  return { result, elapsedMs, requests: server.requests };
}

test("an approval alone allows nothing: the check that follows decides, under a key of its own", async () => {
  const { result, requests } = await waiting(
    [DEFER, json(503, errorBody("unavailable"))],
    [approval("approved")],
    5000,
  );
  assert.ok(result instanceof Undecided && result.status === 503, String(result));
  const checks = requests.filter(({ path }) => path === "/check");
  assert.equal(new Set(checks.map(({ body }) => body)).size, 1, "the same question");
  assert.equal(new Set(checks.map(({ headers }) => headers["idempotency-key"])).size, 2, "asked as a new action");
});

test("votes that stop counting make it wait again", async () => {
  const reads = [approval("approved"), approval("pending"), approval("approved")];
  const { result } = await waiting([DEFER, DEFER, json(200, allowed())], reads, 5000);
  assert.ok(result !== undefined && !(result instanceof Error), String(result));
});

test("a server that is replaced while people think is asked again", async () => {
  const { result } = await waiting(
    [DEFER, json(200, allowed())],
    ["close", "close", "close", approval("approved")],
    9000,
  );
  assert.ok(!(result instanceof Error), String(result));
});

test("a server that is silent does not prolong the wait, and no state that is unknown ends it well", async () => {
  const silent = await waiting([DEFER], ["silence"], 1200);
  assert.ok(silent.result instanceof Deferred && /still pending/.test(silent.result.message), String(silent.result));
  assert.ok(silent.elapsedMs < 2500, String(silent.elapsedMs));
  for (const read of [
    approval("granted"),
    json(200, { id: "apr_2", status: "approved" }),
    json(200, {}),
    json(404, errorBody("not_found")),
  ]) {
    const { result, requests } = await waiting([DEFER, json(200, allowed())], [read], 1200);
    assert.ok(result instanceof Error, String(result));
    assert.equal(requests.filter(({ path }) => path === "/check").length, 1, "not even asked again");
  }
});
