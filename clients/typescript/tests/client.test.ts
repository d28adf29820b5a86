// The client against a real `stage0 dev`.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { join } from "node:path";
import { readFileSync } from "node:fs";

import {
  Client,
  Deferred,
  Denied,
  sha256OfJson,
  Undecided,
  type CheckOptions,
  type ClientOptions,
} from "@stage0/client";
import { run, scratch, startDev, type DevServer } from "./harness.js";

let dev: DevServer;
const warnings: string[] = [];
const clientOf = (options: ClientOptions = {}) =>
  new Client({ dataDir: dev.dataDir, onWarning: (text) => warnings.push(text), ...options });

before(async () => {
  dev = await startDev("--approvals", "verified");
});
after(() => dev.stop());

const thrown = (work: Promise<unknown>) =>
  work.then(
    () => assert.fail("it was allowed"),
    (error: unknown) => error,
  );

/** Another action each time, so that no test finds another's approval. */
let count = 0;
const deploy = (): CheckOptions => ({
  goal: `Deploy build ${count++}`,
  successCriteria: ["error rate below 1 %"],
  tools: ["kubectl"],
  sideEffects: ["deploy"],
  constraints: ["approval required"],
  environment: "production",
});

let memberKey: Promise<string> | undefined;
/** The key file of a person who may approve. */
function member(): Promise<string> {
  memberKey ??= (async () => {
    const invited = JSON.parse(dev.cli("members", "invite", "Dana", "--json")) as Record<string, unknown>;
    const code = /inv_[A-Za-z0-9_-]+/.exec(JSON.stringify(invited))?.[0] ?? "";
    const file = join(scratch(), "dana.key");
    const args = ["members", "accept", code, "--key-file", file, "--data-dir", dev.dataDir];
    const done = await run(process.env["STAGE0_BIN"] ?? "", args, "");
    assert.equal(done.status, 0, done.stderr);
    return file;
  })();
  return memberKey;
}

async function deferred(client: Client, action: CheckOptions): Promise<Deferred> {
  const error = await thrown(client.check(action));
  assert.ok(error instanceof Deferred && error.approval?.id != null, String(error));
  return error;
}

async function decide(verb: "approve" | "deny", error: Deferred): Promise<void> {
  const { id, action_digest: digest } = error.approval ?? {};
  const options = ["--yes", "--digest", digest ?? "", "--reason", "test", "--key-file", await member()];
  const args = ["approvals", verb, id ?? "", ...options, "--data-dir", dev.dataDir];
  const done = await run(process.env["STAGE0_BIN"] ?? "", args, "");
  assert.equal(done.status, 0, done.stderr);
}

test("an ALLOW is returned with the ids of its record, and the record has what was asked", async () => {
  const decision = await clientOf({ runId: "run-1", agent: "agent-1" }).check({
    goal: "Read the log",
    tools: ["reader"],
  });
  assert.deepEqual([decision.verdict, decision.response.decision, decision.approval], ["ALLOW", "GO", undefined]);
  const record = await clientOf().decision(decision.requestId);
  assert.equal(record.policy_version, decision.policyVersion);
  assert.deepEqual([record.run_id, record.tools], ["run-1", ["reader"]]);
});

test("a DENY is thrown with what to change", async () => {
  const error = await thrown(clientOf().check({ goal: "Pay", tools: ["pay"], sideEffects: ["payment"] }));
  assert.ok(error instanceof Denied);
  assert.equal(error.requestId, error.decision.response.request_id);
  assert.equal(error.policyVersion, error.decision.response.policy_version);
  assert.equal(error.issues[0]?.code, "SIDE_EFFECTS_NEED_GUARDRAILS");
  assert.match(error.message, /^denied.*add `constraints`: approval_required/);
});

test("a DEFER without an approval has the questions", async () => {
  const constraints = ["required_role: admin"];
  const error = await thrown(clientOf().check({ goal: "Restart", tools: ["restart"], constraints }));
  assert.ok(error instanceof Deferred && error.approval === undefined, String(error));
  assert.ok(error.questions.length > 0 && error.message.includes(error.questions[0] ?? "?"));
  assert.equal(await thrown(clientOf().waitForApproval(error)), error, "there is nothing to wait for");
});

test("a wrong request is Undecided, and every wrong member is named", async () => {
  const error = await thrown(clientOf().check({ goal: " ", constraints: ["max_iterations: x"] }));
  assert.ok(error instanceof Undecided);
  assert.deepEqual([error.status, error.code], [422, "validation_failed"]);
  assert.deepEqual(error.errors.map(({ path }) => path).sort(), ["constraints[0]", "goal"]);
});

test("a key that is not valid, and a key without the scope, are Undecided and say so", async () => {
  const server = { url: dev.url, ca: dev.caFile };
  const unknown = await thrown(new Client({ ...server, key: "s0_unknown" }).check({ goal: "x" }));
  assert.ok(unknown instanceof Undecided && unknown.status === 401 && /API key is not valid/.test(unknown.message));
  const reader = new Client({ ...server, key: dev.newKey("decisions:read") });
  const lacking = await thrown(reader.check({ goal: "x" }));
  assert.ok(lacking instanceof Undecided && lacking.status === 403 && /scope/.test(lacking.message));
  const id = "01940a6e-8c00-7d7a-b1f5-2f4d3c1a9e55";
  const absent = await thrown(reader.decision(id));
  assert.ok(absent instanceof Undecided && absent.status === 404 && !/do not act/.test(absent.message));
});

test("the same Idempotency-Key brings the same decision", async () => {
  const action = { goal: "Read once", tools: ["reader"], idempotencyKey: "once-1" };
  const first = await clientOf().check(action);
  const again = await clientOf().check(action);
  assert.deepEqual([again.requestId, again.response.cached], [first.requestId, true]);
});

test("after an approval the same action is asked about again, and the approval is used once", async () => {
  const client = clientOf();
  const error = await deferred(client, deploy());
  const id = error.approval?.id;
  assert.match(error.message, new RegExp(`waits for approval ${id} until .*approvals approve ${id} --key-file`));
  assert.match(error.questions.join(" "), /Who approves this effect\?.*`context.approval_status`/);
  assert.doesNotMatch(error.message, /Who approves/, "the agent could state its own approval");
  assert.match(error.message, /only 0 who may approve/, "until a member is invited, no approval can come");
  const waiting = client.waitForApproval(error, { timeoutMs: 20_000 });
  await decide("approve", error);
  const decision = await waiting;
  assert.deepEqual([decision.verdict, decision.approval?.id], ["ALLOW", error.approval?.id]);
  assert.equal(decision.approval?.status, "consumed");
  const approval = await client.approval(error.approval?.id ?? "");
  assert.deepEqual([approval.status, approval.used_by], ["consumed", decision.requestId]);
  const again = await thrown(client.waitForApproval(error, { timeoutMs: 2000 }));
  assert.ok(again instanceof Deferred && /was used by another check/.test(again.message), String(again));
});

test("an approval can be used by its id alone", async () => {
  const client = clientOf();
  const error = await deferred(client, deploy());
  await decide("approve", error);
  assert.equal((await client.check({ approvalId: error.approval?.id ?? "" })).approval?.status, "consumed");
});

test("a person's denial is a Denied with a record of its own", async () => {
  const client = clientOf();
  const error = await deferred(client, deploy());
  const waiting = thrown(client.waitForApproval(error, { timeoutMs: 20_000 }));
  await decide("deny", error);
  const denied = await waiting;
  assert.ok(denied instanceof Denied, String(denied));
  assert.notEqual(denied.requestId, error.requestId);
});

test("an approval that stays pending, or was taken back, allows nothing", async () => {
  const client = clientOf();
  const pending = await deferred(client, deploy());
  const startedAt = performance.now();
  const error = await thrown(client.waitForApproval(pending, { timeoutMs: 1200 }));
  assert.ok(error instanceof Deferred && /still pending/.test(error.message), String(error));
  assert.ok(performance.now() - startedAt < 4000);
  const id = pending.approval?.id ?? "";
  dev.cli("approvals", "cancel", id);
  const cancelled = await thrown(client.waitForApproval(pending, { timeoutMs: 5000 }));
  assert.ok(cancelled instanceof Deferred && cancelled.approval?.status === "cancelled", String(cancelled));
});

test("a guarded function is called with its arguments on ALLOW, and not on DENY", async () => {
  const client = clientOf();
  const calls: unknown[] = [];
  const act = (input: { path: string }) => {
    calls.push(input);
    return input.path.length;
  };
  const read = client.guarded({ tool: "reader", effects: [], report: false }, act);
  assert.equal(await read({ path: "/etc/hosts" }), 10);
  const pay = client.guarded({ tool: "pay", effects: ["payment"], report: false }, act);
  assert.ok((await thrown(pay({ path: "x" }))) instanceof Denied);
  assert.deepEqual(calls, [{ path: "/etc/hosts" }]);
  assert.equal(read.name, "act");
});

test("a guarded function that may wait runs after the approval of exactly this call", async () => {
  const client = clientOf();
  const options = { tool: "kubectl", effects: ["deploy"], constraints: ["approval required"], report: false } as const;
  const act = (input: { build: string }) => input.build;
  const asking = client.guarded(
    { ...options, successCriteria: ["it runs"], arguments: ["build"], targets: ["build"] },
    act,
  );
  const error = await thrown(asking({ build: "one" }));
  assert.ok(error instanceof Deferred && error.approval?.id != null, String(error));
  const { action } = await client.approval(error.approval.id);
  const expected = {
    arguments: { build: "one" },
    arguments_sha256: sha256OfJson({ build: "one" }),
    target_resources: ["one"],
  };
  assert.deepEqual((action as { context: object }).context, expected);
  await decide("approve", error);
  const other = await thrown(asking({ build: "two" }));
  assert.ok(other instanceof Deferred && other.approval?.id !== error.approval.id, "other arguments, another approval");
  const waiting = client.guarded(
    { ...options, successCriteria: ["it runs"], arguments: ["build"], targets: ["build"], waitMs: 20_000 },
    act,
  );
  assert.equal(await waiting({ build: "one" }), "one");
});

test("the cost of an allowed check of a run is settled once", async () => {
  const client = clientOf({ runId: `run-${count++}` });
  const decision = await client.check({
    goal: "Summarise the build times of this week",
    tools: ["llm"],
    context: { estimated_cost_usd: 0.5 },
  });
  const runId = `run-${count - 1}`;
  const settled = await client.settle(runId, decision.requestId, 0.75);
  assert.deepEqual([settled.estimated_cost_usd, settled.actual_cost_usd, settled.cost.spent_usd], [0.5, 0.75, 0.75]);
  const error = await thrown(client.settle(runId, decision.requestId, 0.75));
  assert.ok(error instanceof Undecided && error.status === 409);
});

test("what became of an action is reported, and shown with its decision", async () => {
  const client = clientOf();
  const fail = (error: Error) => client.guarded({ tool: "reader", effects: [] }, () => Promise.reject(error))();
  const outcomes = async (requestId: string) => (await client.decision(requestId)).outcome;
  const seen: string[] = [];
  const done = await client.action({ tool: "reader", effects: [], toolCallId: "call-1" }, (decision) => {
    seen.push(decision.requestId);
    return 7;
  });
  assert.equal(done, 7);
  const outcome = await outcomes(seen[0] ?? "");
  assert.deepEqual([outcome?.status, outcome?.tool_call_id], ["succeeded", "call-1"]);
  await assert.rejects(fail(new Error("broken")), /broken/);
  const { requestId } = await client.check({ goal: "Read the log of the build", tools: ["reader"] });
  const reported = await client.reportOutcome(requestId, "unknown", { durationMs: 12 });
  assert.deepEqual([reported.request_id, reported.status, reported.duration_ms], [requestId, "unknown", 12]);
  assert.equal((await client.reportOutcome(requestId, "failed")).status, "failed", "unknown can be resolved");
  const error = await thrown(client.reportOutcome(requestId, "succeeded"));
  assert.ok(error instanceof Undecided && error.status === 409, String(error));
  assert.deepEqual(warnings, []);
});

test("a key that may not report runs the function all the same, and warns once", async () => {
  const texts: string[] = [];
  const client = new Client({
    url: dev.url,
    ca: readFileSync(dev.caFile, "utf8"),
    key: dev.newKey("check"),
    onWarning: (text) => texts.push(text),
  });
  const read = client.guarded({ tool: "reader", effects: [] }, () => 1);
  assert.deepEqual([await read(), await read(), await read()], [1, 1, 1]);
  assert.equal(texts.length, 1);
  assert.match(texts[0] ?? "", /lacks the scope `outcomes:report`/);
});
