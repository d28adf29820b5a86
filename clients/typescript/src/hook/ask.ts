// Sends an agent's event to the server as it is, and reads what may be done. Shared by the hook process and by the
// OpenCode plugin.

import { randomUUID } from "node:crypto";

import { failure } from "../decision.js";
import { NotAllowed } from "../errors.js";
import { DeadlineError, exchange } from "../exchange.js";
import { isObject, JsonError, parseJson, type JsonObject } from "../json.js";
import type { Server } from "../settings.js";
import { TransportError, type Transport } from "../transport.js";
import { denial, eventName, mayBeCall, readAnswer, membersOf, reasonOf, type Agent } from "./agents.js";

/** What the agent gets. */
export interface HookAnswer {
  /** Whether the tool may run, or the event is not about one. */
  readonly mayRun: boolean;
  readonly body: JsonObject;
  /** For standard error; empty if there is nothing to say. */
  readonly text: string;
  /** The header `X-Request-Id`; only of an answer that allows a call. */
  readonly requestId?: string | undefined;
}

export const MAX_EVENT_BYTES = 1_000_000;

export async function askHook(
  agent: Agent,
  event: Uint8Array,
  connect: () => { readonly server: Server; readonly transport: Transport },
  timeoutMs: number,
  /** That allowed the call which has ended. */
  decision?: string,
): Promise<HookAnswer> {
  const name = eventName(membersOf(event));
  try {
    if (event.length > MAX_EVENT_BYTES)
      return refusal(agent, name, `the event is larger than ${MAX_EVENT_BYTES} bytes`);
    const { server, transport } = connect();
    const headers = {
      accept: "application/json",
      "accept-encoding": "identity",
      "content-type": "application/json",
      "content-length": String(event.length),
      "idempotency-key": randomUUID(),
      "user-agent": `stage0-hook-typescript/0.1.0`,
      "x-api-key": server.key,
      ...(decision === undefined ? {} : { "stage0-decision": decision }),
    };
    const answer = await exchange(transport, {
      method: "POST",
      url: `${server.base}/v1/hooks/${agent}`,
      headers,
      body: event,
      timeoutMs,
      connectTimeoutMs: 2000,
      mayRepeat: true,
    });
    if (answer.status !== 200) return refusal(agent, name, failure(answer)[0]);
    const { requestId } = answer;
    const relayed = relay(agent, name, parseJson(answer.body));
    return relayed.mayRun && mayBeCall(name) ? { ...relayed, requestId } : relayed;
  } catch (error) {
    return refusal(agent, name, why(error));
  }
}

function relay(agent: Agent, name: string | undefined, body: unknown): HookAnswer {
  if (!isObject(body)) return refusal(agent, name, "the answer is not a JSON object");
  switch (readAnswer(agent, name, body)) {
    case "allow":
    case "nothing":
      return { mayRun: true, body, text: "" };
    case "deny":
      return { mayRun: false, body, text: reasonOf(agent, body) };
    case "malformed":
      return refusal(agent, name, `the answer does not have the form of ${agent}`);
  }
}

/** Not decided. After a call has run, and for events that are about none, there is nothing to refuse. */
export function refusal(agent: Agent, name: string | undefined, reason: string): HookAnswer {
  if (!mayBeCall(name)) return { mayRun: true, body: {}, text: `Stage0 was not asked about ${name}: ${reason}` };
  const advice = "Do not retry it in a loop and do not look for a way around: tell the person.";
  const text = `Stage0 did not decide this call, so it does not run: ${reason}. ${advice}`;
  return { mayRun: false, body: denial(agent, name, text), text };
}

function why(error: unknown): string {
  if (error instanceof NotAllowed) return "why" in error ? String(error.why) : error.message;
  if (error instanceof TransportError || error instanceof DeadlineError) return error.message;
  if (error instanceof JsonError) return `the answer cannot be read: ${error.message}`;
  return `a fault of the hook itself: ${String(error)}`;
}
