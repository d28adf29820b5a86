// What can go wrong at the enforcement point, one entry each.

import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import type { TLSSocket } from "node:tls";

import type { CheckResponse } from "../wire.js";
import { http, type Behaviour } from "./server.js";

export type Trouble = "wrong authority" | "wrong host name" | "nothing listens";

export interface Fault extends Behaviour {
  readonly name: string;
  /** Of the connection instead of the answer. Such a fault sees no request. */
  readonly trouble?: Trouble;
}

const POLICY = "selftest@1.0.0+000000000000";

/** A complete ALLOW, as the server writes one. */
export function allowed(): CheckResponse {
  const now = Math.floor(Date.now() / 1000);
  return {
    decision: "GO",
    verdict: "ALLOW",
    reason: "the self-test allows it",
    issues: [],
    risk_score: 0,
    value_risk: 0,
    waste_risk: 0,
    high_risk: false,
    clarifying_questions: [],
    defer_questions: [],
    guardrails: [],
    constraints_applied: [],
    constraints_ignored: [],
    value_findings: [],
    guardrail_checks: {},
    cost_estimate: null,
    policy_version: POLICY,
    environment: "",
    decision_trace_summary: "",
    approval: null,
    request_id: randomUUID(),
    task_hash: "0".repeat(64),
    policy_pack_version: POLICY,
    timestamp: now,
    evaluated_at: now,
    cached: false,
    meta: { source: "stage0", test_mode: false, client_request_id: null, audit: "required" },
  };
}

const issue = (next: "stop" | "provide_context") =>
  ({
    code: "SELFTEST",
    severity: "HIGH",
    message: "the self-test refuses",
    rule: "selftest",
    next_action: next,
    details: {},
  }) as const;

const denied = (): CheckResponse => ({ ...allowed(), decision: "NO_GO", verdict: "DENY", issues: [issue("stop")] });

const deferred = (): CheckResponse => ({
  ...allowed(),
  decision: "DEFER",
  verdict: "DEFER",
  issues: [issue("provide_context")],
  clarifying_questions: ["Why?"],
  defer_questions: ["Why?"],
});

const error = (status: number, code: string, headers?: Readonly<Record<string, string>>): Behaviour => {
  const id = randomUUID();
  const message = `the self-test answers ${status}`;
  const body = { message, error: code, detail: { detail: message, request_id: id }, request_id: id };
  return always(() => http(status, JSON.stringify(body), headers));
};

const always = (text: () => string): Behaviour => ({ answer: (socket) => void socket.write(text()) });
const json = (body: () => object, status = 200): Behaviour => always(() => http(status, JSON.stringify(body())));
const without = (name: keyof CheckResponse) => () => {
  const { [name]: _, ...rest } = allowed();
  return rest;
};
const withMeta = (meta: object) => () => ({ ...allowed(), meta: { ...allowed().meta, ...meta } });

/** One byte at a time, so that every read of the client makes progress and none is the last. */
async function drip(socket: TLSSocket, text: string): Promise<void> {
  for (const byte of text) {
    if (socket.destroyed) return;
    socket.write(byte);
    await sleep(100);
  }
}

/** The first answer redirects, whatever is asked next is allowed. */
const redirect = (status: number): Behaviour => ({
  answer: (socket, request) =>
    void socket.write(
      request.path === "/allow" ? http(200, JSON.stringify(allowed())) : http(status, "", { location: "/allow" }),
    ),
});

export const FAULTS: readonly Fault[] = [
  { name: "DENY", ...json(denied) },
  { name: "DEFER", ...json(deferred) },
  { name: "status 401", ...error(401, "unauthorized") },
  { name: "status 402", ...error(402, "quota_exceeded") },
  { name: "status 403", ...error(403, "scope_missing") },
  { name: "status 422", ...error(422, "validation_failed") },
  { name: "status 429", ...error(429, "rate_limited", { "retry-after": "3600" }) },
  { name: "status 500", ...error(500, "unavailable") },
  { name: "status 503", ...error(503, "unavailable") },
  { name: "status 302 to an ALLOW", ...redirect(302) },
  { name: "status 307 to an ALLOW", ...redirect(307) },
  { name: "status 201 with an ALLOW", ...json(allowed, 201) },
  { name: "status 500 with an ALLOW", ...json(allowed, 500) },
  { name: "garbage", ...always(() => "\u0000\u0001 this is not HTTP\r\n\r\n") },
  { name: "an HTML page", ...always(() => http(200, "<html>ALLOW</html>", { "content-type": "text/html" })) },
  { name: "an empty body", ...always(() => http(200, "")) },
  { name: "JSON that is cut off", ...always(() => http(200, JSON.stringify(allowed()).slice(0, -20))) },
  { name: "a list with an ALLOW", ...json(() => [allowed()]) },
  { name: "a body shorter than declared", answer: cutOff },
  { name: "a body of more than 4 MiB", ...json(() => ({ ...allowed(), reason: "x".repeat(4 * 1024 * 1024) })) },
  {
    name: "a member named twice",
    ...always(() => http(200, `{"verdict":"DENY",${JSON.stringify(allowed()).slice(1)}`)),
  },
  { name: "ALLOW with the signal NO_GO", ...json(() => ({ ...allowed(), decision: "NO_GO" })) },
  { name: "ALLOW without a signal", ...json(without("decision")) },
  { name: "GO without a verdict", ...json(without("verdict")) },
  { name: "ALLOW without request_id", ...json(without("request_id")) },
  { name: "ALLOW with an odd request_id", ...json(() => ({ ...allowed(), request_id: "1" })) },
  { name: "ALLOW without policy_version", ...json(without("policy_version")) },
  { name: "ALLOW without meta", ...json(without("meta")) },
  { name: "ALLOW of another source", ...json(withMeta({ source: "mock" })) },
  { name: "ALLOW that was not recorded", ...json(withMeta({ audit: "none" })) },
  { name: "ALLOW in test mode", ...json(withMeta({ test_mode: true })) },
  { name: "no answer", answer: () => undefined },
  { name: "headers that trickle in", answer: (socket) => drip(socket, http(200, JSON.stringify(allowed()))) },
  { name: "a body that trickles in", answer: dripBody },
  { name: "a connection closed before the request", connected: (socket) => void socket.destroy() },
  { name: "a connection closed after the request", answer: (socket) => void socket.destroy() },
  { name: "a certificate of another authority", trouble: "wrong authority", ...json(allowed) },
  { name: "a certificate of another host", trouble: "wrong host name", ...json(allowed) },
  { name: "no server", trouble: "nothing listens" },
];

function cutOff(socket: TLSSocket): void {
  const text = http(200, JSON.stringify(allowed()));
  socket.end(text.slice(0, -20));
}

async function dripBody(socket: TLSSocket): Promise<void> {
  const text = http(200, JSON.stringify(allowed()));
  const bodyAt = text.indexOf("\r\n\r\n") + 4;
  socket.write(text.slice(0, bodyAt));
  await drip(socket, text.slice(bodyAt));
}
