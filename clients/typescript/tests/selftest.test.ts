import assert from "node:assert/strict";
import { test } from "node:test";

import { Client, selftest, SelftestFailed, type NotAllowed, type Probe } from "@stage0/client";
import { FAULTS } from "../dist/selftest/faults.js";

const TIMEOUT_MS = 1200;

const guarded = (client: Client, probe: Probe) =>
  client.guarded({ tool: "pay", effects: ["payment"] }, (_: { amount: number }) => {
    probe.acted();
  })({ amount: 1 });

test("a guarded function acts on a correct ALLOW and under no fault, within its deadline", async () => {
  const rows = await selftest(guarded, { timeoutMs: TIMEOUT_MS });
  assert.equal(rows.length, FAULTS.length + 1);
  assert.deepEqual(
    rows.filter((row) => row.acted).map((row) => row.fault),
    ["a correct ALLOW"],
  );
  for (const { fault, raised = "", elapsedMs } of rows.slice(1)) {
    const expected = fault === "DENY" ? /^Denied: / : fault === "DEFER" ? /^Deferred: / : /^Undecided: /;
    assert.match(raised, expected, fault);
    assert.ok(elapsedMs < TIMEOUT_MS + 500, `${fault} took ${elapsedMs} ms`);
    assert.doesNotMatch(raised, /s0_selftest/);
  }
});

test("code that acts whatever check says fails the self-test, fault by fault", async () => {
  const careless = async (client: Client, probe: Probe) => {
    await client.check({ goal: "x" }).catch(() => undefined);
    probe.acted();
  };
  const only = ["DENY", "status 503", "ALLOW in test mode", "no server"];
  await assert.rejects(selftest(careless, { timeoutMs: TIMEOUT_MS, only }), (error) => {
    assert.ok(error instanceof SelftestFailed);
    assert.deepEqual(
      error.rows.map((row) => row.problem),
      [undefined, ...only.map(() => "the code acted")],
    );
    return true;
  });
});

test("code that takes an Undecided for permission fails the self-test", async () => {
  const open = async (client: Client, probe: Probe) => {
    try {
      await client.check({ goal: "x" });
    } catch (error) {
      if ((error as NotAllowed).name !== "Undecided") throw error;
    }
    probe.acted();
  };
  const only = ["DENY", "an HTML page"];
  await assert.rejects(selftest(open, { timeoutMs: TIMEOUT_MS, only }), (error) => {
    assert.ok(error instanceof SelftestFailed);
    assert.deepEqual(
      error.rows.map((row) => row.problem),
      [undefined, undefined, "the code acted"],
    );
    return true;
  });
});

test("code that never acts, or asks no server, proves nothing and fails", async () => {
  await assert.rejects(
    selftest(async (client) => client.check({ goal: "x" }), { only: [] }),
    /did not act on it/,
  );
  await assert.rejects(
    selftest((_, probe) => probe.acted(), { only: [] }),
    /without asking/,
  );
  await assert.rejects(
    selftest(() => new Promise(() => undefined), { only: [], timeoutMs: 10 }),
    /did not end/,
  );
});
