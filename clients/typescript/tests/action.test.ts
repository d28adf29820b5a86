// Guarded functions and actions: what is asked, when the function runs, what is reported.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Client, sha256OfJson, Undecided, type ClientOptions } from "@stage0/client";
import { allowed } from "../dist/selftest/faults.js";
import type { Behaviour } from "../dist/selftest/server.js";
import { errorBody, json, KEY, serve, type Served } from "./harness.js";

/** Allows everything, and answers reports with this status. */
const allowing = (reportStatus = 200): Behaviour => ({
  answer: (socket, { path }) => {
    const report = reportStatus === 200 ? {} : errorBody(reportStatus === 403 ? "scope_missing" : "unavailable");
    socket.write(path === "/check" ? json(200, allowed()) : json(reportStatus, report));
  },
});

const clientOf = (server: Served, options: ClientOptions = {}) =>
  new Client({ url: server.url, key: KEY, ca: server.ca, onWarning: () => undefined, ...options });

type Body = Record<string, unknown> & { context?: Record<string, unknown> };
const asked = (server: Served) =>
  server.requests.filter(({ path }) => path === "/check").map(({ body }) => JSON.parse(body) as Body);
const reported = (server: Served) =>
  server.requests.filter(({ path }) => path.endsWith("/outcome")).map(({ body }) => JSON.parse(body) as Body);

const thrown = (work: Promise<unknown>) =>
  work.then(
    () => assert.fail("it was allowed"),
    (error: unknown) => error,
  );
const TOOL = { tool: "send", effects: ["external_notification"] };

test("the digest of the arguments is sent, and of the values only those that are named", async () => {
  await using server = await serve(allowing());
  const client = clientOf(server, {
    agent: "a-1",
    runId: "r-1",
    environment: "staging",
    context: { ticket_id: "T-1" },
  });
  const input = { to: "dana@example.com", text: "hunter2", subject: "Hello" };
  const act = (message: typeof input) => message.subject;
  await client.guarded({ ...TOOL, arguments: ["subject"], targets: ["to"] }, act)(input);
  assert.doesNotMatch(server.requests[0]?.body ?? "", /hunter2/);
  assert.deepEqual(asked(server)[0], {
    goal: "Call the tool send",
    tools: ["send"],
    side_effects: ["external_notification"],
    environment: "staging",
    context: {
      ticket_id: "T-1",
      agent_id: "a-1",
      run_id: "r-1",
      target_resources: ["dana@example.com"],
      arguments: { subject: "Hello" },
      arguments_sha256: sha256OfJson(input),
    },
  });
});

test("goal, context, targets and input may depend on the call", async () => {
  await using server = await serve(allowing());
  const act = (amount: number, _: { signal: AbortSignal }) => amount;
  const pay = clientOf(server).guarded(
    {
      ...TOOL,
      goal: (amount) => `Pay ${amount}`,
      context: (amount) => ({ amount, arguments_sha256: "forged", arguments: "forged" }),
      targets: () => ["account-1"],
      input: (amount) => ({ amount }),
      arguments: ["amount", "absent"],
    },
    act,
  );
  assert.equal(await pay(7, { signal: AbortSignal.timeout(1000) }), 7);
  const [body] = asked(server);
  const context = { amount: 7, target_resources: ["account-1"], arguments: { amount: 7 } };
  assert.deepEqual(
    [body?.["goal"], body?.context],
    ["Pay 7", { ...context, arguments_sha256: sha256OfJson({ amount: 7 }) }],
  );
});

test("several arguments have the digest of their list", async () => {
  await using server = await serve(allowing());
  await clientOf(server).guarded(TOOL, (a: string, b: number) => a + b)("x", 1);
  assert.equal(asked(server)[0]?.context?.["arguments_sha256"], sha256OfJson(["x", 1]));
});

test("a call has a digest also without arguments, and with none that say anything", async () => {
  await using server = await serve(allowing());
  await clientOf(server).guarded(TOOL, () => 1)();
  await clientOf(server).guarded(TOOL, (_?: string) => 1)(undefined);
  const digests = asked(server).map(({ context }) => context?.["arguments_sha256"]);
  assert.deepEqual(digests, [sha256OfJson([]), sha256OfJson(null)]);
});

test("what has no digest is not asked about and does not run", async () => {
  await using server = await serve(allowing());
  const act = () => assert.fail("it ran");
  const client = clientOf(server);
  const error = await thrown(client.guarded(TOOL, act as (input: unknown) => never)(new Map()));
  assert.ok(error instanceof Undecided && /say with `input`/.test(error.message), String(error));
  const throws = () => {
    throw new Error("no goal");
  };
  assert.ok((await thrown(client.guarded({ ...TOOL, goal: throws }, act)())) instanceof Undecided);
  assert.ok(
    (await thrown(client.guarded({ ...TOOL, targets: ["n"] }, act as (i: unknown) => never)({ n: 1 }))) instanceof
      Undecided,
  );
  assert.ok(
    (await thrown(client.guarded({ ...TOOL, arguments: ["n"] }, act as (i: unknown) => never)("n"))) instanceof
      Undecided,
  );
  assert.equal(server.requests.length, 0);
});

test("a generator is refused, because it would run after the call whose outcome is reported", () => {
  const client = new Client();
  assert.throws(() => client.guarded(TOOL, function* () {}), TypeError);
  assert.throws(() => client.guarded(TOOL, async function* () {}), TypeError);
  client.guarded(TOOL, async function () {});
});

test("an input that changes while the question is on its way does not run", async () => {
  await using server = await serve(allowing());
  const input = { amount: 1 };
  const work = clientOf(server).guarded(TOOL, (_: typeof input) => assert.fail("it ran"))(input);
  input.amount = 1000;
  const error = await thrown(work);
  assert.ok(error instanceof Undecided && /was changed/.test(error.message), String(error));
  assert.deepEqual(
    reported(server).map(({ status }) => status),
    ["skipped"],
  );
});

test("success, failure and cancellation are reported as what they are", async () => {
  await using server = await serve(allowing());
  const client = clientOf(server);
  const ending = (work: () => unknown) => client.action({ ...TOOL, toolCallId: "c-1", costUsd: 0.5 }, work);
  assert.equal(await ending(() => Promise.resolve(1)), 1);
  await assert.rejects(
    ending(() => Promise.reject(new Error("broken"))),
    /broken/,
  );
  await assert.rejects(
    ending(() => {
      throw new TypeError("sync");
    }),
    /sync/,
  );
  await assert.rejects(
    ending(() => AbortSignal.abort().throwIfAborted()),
    { name: "AbortError" },
  );
  await assert.rejects(
    ending(() => Promise.reject(new DOMException("late", "TimeoutError"))),
    { name: "TimeoutError" },
  );
  assert.deepEqual(
    reported(server).map(({ status }) => status),
    ["succeeded", "failed", "failed", "unknown", "unknown"],
  );
  const [first] = reported(server);
  assert.deepEqual([first?.["tool_call_id"], first?.["cost_usd"]], ["c-1", 0.5]);
  assert.ok(Number.isInteger(first?.["duration_ms"]));
});

test("await using ends an action as unknown, unless it was said how it ended", async () => {
  await using server = await serve(allowing());
  const client = clientOf(server);
  {
    await using action = await client.action(TOOL);
    assert.equal(action.decision.verdict, "ALLOW");
  }
  {
    await using action = await client.action(TOOL);
    await action.end("succeeded", { durationMs: 12.4 });
    await action.end("failed");
  }
  assert.deepEqual(
    reported(server).map(({ status }) => status),
    ["unknown", "succeeded"],
  );
  assert.equal(reported(server)[1]?.["duration_ms"], 12);
});

test("a report that fails changes nothing for the caller, and warns", async () => {
  for (const [status, expected] of [
    [403, 1],
    [500, 2],
  ] as const) {
    await using server = await serve(allowing(status));
    const warnings: string[] = [];
    const act = clientOf(server, { onWarning: (text) => warnings.push(text) }).guarded(TOOL, () => 1);
    assert.deepEqual([await act(), await act()], [1, 1]);
    assert.equal(reported(server).length, expected, "a key that may not report is not tried again");
    assert.equal(warnings.length, 1);
  }
  await using server = await serve(allowing());
  await clientOf(server).guarded({ ...TOOL, report: false }, () => 1)();
  assert.equal(reported(server).length, 0);
});
