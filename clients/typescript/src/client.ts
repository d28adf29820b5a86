// The client: one check, and the calls that belong to it. INVARIANT: `check` returns a Decision only on a complete,
// recorded ALLOW and otherwise throws a NotAllowed, whatever went wrong, mistakes of this client included.

import { randomUUID } from "node:crypto";

import { begin, guard, run, type Action, type ActionOptions, type GuardOptions } from "./action.js";
import { waitForApproval } from "./approval.js";
import { Decision, failure, judge, type Answer } from "./decision.js";
import { Deferred, Denied, NotAllowed, NotConfigured, Undecided } from "./errors.js";
import { DeadlineError, exchange, type Exchange } from "./exchange.js";
import { isObject, JsonError, parseJson } from "./json.js";
import { OutcomeReporter, type OutcomeDetails } from "./outcome.js";
import { findServer, type Server, type ServerOptions } from "./settings.js";
import { fetchTransport, httpsTransport, TransportError, type Transport } from "./transport.js";
import type {
  Approval,
  CheckRequest,
  Context,
  OutcomeStatus,
  ReportDecisionOutcomeRequest,
  ReportedOutcome,
  RunSettled,
  ShownDecision,
} from "./wire.js";

export interface ClientOptions extends ServerOptions {
  /** For a whole call with all its attempts; 5,000 by default. */
  readonly timeoutMs?: number | undefined;
  /** For the name look-up, TCP and TLS of one attempt; 2,000 by default. */
  readonly connectTimeoutMs?: number | undefined;
  /** The run that each check belongs to, unless it names another: from the orchestrator, never from the model. */
  readonly runId?: string | undefined;
  readonly environment?: string | undefined;
  /** Becomes `context.agent_id`. */
  readonly agent?: string | undefined;
  /** Facts for each check; a check's own take precedence. */
  readonly context?: Context & Facts;
  /** Sends the requests instead of node:https: for other runtimes and for proxies. It must verify certificates. */
  readonly fetch?: typeof globalThis.fetch | undefined;
  /** Hears of outcomes that could not be reported; by default `process.emitWarning`. */
  readonly onWarning?: ((text: string) => void) | undefined;
}

/** Further members of `context`: a policy's own. */
export type Facts = Readonly<Record<string, unknown>>;

export interface CallOptions {
  readonly timeoutMs?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface CheckOptions extends CallOptions {
  /** What the agent wants to do. Left out only beside `approvalId`. */
  readonly goal?: string | undefined;
  readonly tools?: readonly string[] | undefined;
  readonly sideEffects?: readonly string[] | undefined;
  readonly constraints?: readonly string[] | undefined;
  readonly successCriteria?: readonly string[] | undefined;
  readonly context?: (Context & Facts) | undefined;
  readonly environment?: string | undefined;
  readonly runId?: string | undefined;
  readonly pro?: boolean | undefined;
  readonly policyPackVersion?: string | undefined;
  readonly debugStoreInput?: boolean | undefined;
  /** Uses this approval: the server decides the action again as it was asked. Nothing else may stand beside it. */
  readonly approvalId?: string | undefined;
  /** The same for each attempt at one action; by default a random one for each call. */
  readonly idempotencyKey?: string | undefined;
}

const DEFAULT_TIMEOUT_MS = 5000;
const DEFAULT_CONNECT_TIMEOUT_MS = 2000;
const MAX_TIMEOUT_MS = 600_000;
const USER_AGENT = "stage0-typescript/0.1.0";

/** A body as it was sent, kept beside the error so that the same action can be asked about again. */
const asked = new WeakMap<NotAllowed, object>();

export class Client {
  readonly #options: ClientOptions;
  readonly #timeoutMs: number;
  readonly #connectTimeoutMs: number;
  readonly #outcomes: OutcomeReporter;
  #connection: { readonly server: Server; readonly transport: Transport } | undefined;

  /** The server is looked for at the first call. */
  constructor(options: ClientOptions = {}) {
    this.#options = options;
    this.#timeoutMs = milliseconds(options.timeoutMs, DEFAULT_TIMEOUT_MS, "timeoutMs");
    this.#connectTimeoutMs = milliseconds(options.connectTimeoutMs, DEFAULT_CONNECT_TIMEOUT_MS, "connectTimeoutMs");
    const warn = options.onWarning ?? ((text: string) => process.emitWarning(text, "Stage0Warning"));
    this.#outcomes = new OutcomeReporter((id, body) => this.#sendOutcome(id, body, {}), warn);
  }

  /** Returns only on ALLOW; throws Denied, Deferred or Undecided. */
  async check(options: CheckOptions): Promise<Decision> {
    try {
      return await this.#ask(this.#bodyOf(options), options);
    } catch (error) {
      throw asNotAllowed(error);
    }
  }

  /** A function that asks before each call, and is not called unless the answer is ALLOW. */
  guarded<F extends (...args: never[]) => unknown>(
    options: GuardOptions<Parameters<F>>,
    fn: F,
  ): (...args: Parameters<F>) => Promise<Awaited<ReturnType<F>>> {
    const typed = fn as (...args: Parameters<F>) => ReturnType<F>;
    return guard<Parameters<F>, ReturnType<F>>(this, this.#outcomes, options, typed);
  }

  /** Asks, then runs `fn` on ALLOW only and reports how it ended. Without `fn`: for `await using`. */
  action<T>(options: ActionOptions, fn: (decision: Decision) => T): Promise<Awaited<T>>;
  action(options: ActionOptions): Promise<Action>;
  action<T>(options: ActionOptions, fn?: (decision: Decision) => T): Promise<Awaited<T> | Action> {
    return fn === undefined ? begin(this, this.#outcomes, options) : run(this, this.#outcomes, options, fn);
  }

  /**
   * Waits until people have decided, then asks about the same action again, and returns that decision. The approval's
   * state alone never allows anything.
   */
  async waitForApproval(deferred: Deferred, options: CallOptions = {}): Promise<Decision> {
    try {
      return await waitForApproval(deferred, options, {
        read: (id, call) => this.#readApproval(id, call),
        checkAgain: (error, call) => this.#askAgain(error, call),
      });
    } catch (error) {
      throw asNotAllowed(error);
    }
  }

  /** Says how an allowed action ended. */
  async reportOutcome(
    requestId: string,
    status: OutcomeStatus,
    details: OutcomeDetails & CallOptions = {},
  ): Promise<ReportedOutcome> {
    const { toolCallId, durationMs, costUsd } = details;
    const body: Undefinable<ReportDecisionOutcomeRequest> = {
      status,
      tool_call_id: toolCallId,
      duration_ms: durationMs,
      cost_usd: costUsd,
    };
    return this.#sendOutcome(requestId, body, details);
  }

  /** Says what an allowed check of a run has cost. Less than its estimate needs a key with `runs:manage`. */
  async settle(
    runId: string,
    requestId: string,
    actualCostUsd: number,
    options: CallOptions = {},
  ): Promise<RunSettled> {
    const path = `/v1/runs/${encodeURIComponent(runId)}/settle`;
    // Not repeated: a second settlement of the same check is a 409, which would hide the success of the first.
    const call = { path, body: { request_id: requestId, actual_cost_usd: actualCostUsd }, mayRepeat: false };
    return (await this.#object("POST", call, options)) as unknown as RunSettled;
  }

  async approval(id: string, options: CallOptions = {}): Promise<Approval> {
    return this.#readApproval(id, options);
  }

  /** Reads a recorded decision; needs a key with `decisions:read`. */
  async decision(requestId: string, options: CallOptions = {}): Promise<ShownDecision> {
    const path = `/v1/decisions/${encodeURIComponent(requestId)}`;
    return (await this.#object("GET", { path, mayRepeat: true }, options)) as unknown as ShownDecision;
  }

  async #ask(body: object, options: CallOptions & { readonly idempotencyKey?: string | undefined }): Promise<Decision> {
    const { server } = this.#connected();
    const headers = { "idempotency-key": idempotencyKey(options.idempotencyKey) };
    const answer = await this.#send("POST", { path: "/check", body, headers, mayRepeat: true }, options);
    const decision = judge(answer, server.base);
    if (decision.verdict === "ALLOW") return decision;
    const error = decision.verdict === "DENY" ? new Denied(decision) : new Deferred(decision);
    asked.set(error, body);
    throw error;
  }

  async #askAgain(error: NotAllowed, options: CallOptions): Promise<Decision> {
    const body = asked.get(error);
    if (body === undefined) throw new Undecided("the request is not known: pass the error that `check` threw");
    return this.#ask(body, options);
  }

  async #readApproval(id: string, options: CallOptions & { readonly waitSeconds?: number }): Promise<Approval> {
    const { waitSeconds: wait = 0 } = options;
    const path = `/v1/approvals/${encodeURIComponent(id)}${wait >= 1 ? `?wait=${Math.floor(wait)}s` : ""}`;
    const approval = await this.#object("GET", { path, mayRepeat: true, slackMs: wait * 1000 }, options);
    if (approval["id"] !== id || typeof approval["status"] !== "string")
      throw new Undecided("the answer is not the approval");
    return approval as unknown as Approval;
  }

  async #sendOutcome(requestId: string, body: object, options: CallOptions): Promise<ReportedOutcome> {
    // May be repeated: the same outcome again gets the same answer.
    const call = { path: `/v1/decisions/${encodeURIComponent(requestId)}/outcome`, body, mayRepeat: true };
    return (await this.#object("POST", call, options)) as unknown as ReportedOutcome;
  }

  async #object(method: "GET" | "POST", call: Call, options: CallOptions): Promise<Facts> {
    try {
      const answer = await this.#send(method, call, options);
      if (answer.status !== 200) {
        const [why, details] = failure(answer);
        throw new Undecided(why, { ...details, isOther: true });
      }
      const body = parseJson(answer.body);
      if (!isObject(body)) throw new JsonError("the body is not a JSON object");
      return body;
    } catch (error) {
      throw asNotAllowed(error, true);
    }
  }

  async #send(method: "GET" | "POST", call: Call, options: CallOptions): Promise<Answer> {
    const { server, transport } = this.#connected();
    const headers = {
      accept: "application/json",
      "accept-encoding": "identity",
      "user-agent": USER_AGENT,
      "x-api-key": server.key,
      ...(call.body === undefined ? {} : { "content-type": "application/json" }),
      ...call.headers,
    };
    const body = call.body === undefined ? undefined : JSON.stringify(call.body);
    const slackMs = call.slackMs ?? 0;
    const timeoutMs = milliseconds(options.timeoutMs, this.#timeoutMs, "timeoutMs") + slackMs;
    const what: Exchange = {
      method,
      url: server.base + call.path,
      headers: body === undefined ? headers : { ...headers, "content-length": String(Buffer.byteLength(body)) },
      body,
      timeoutMs,
      attemptTimeoutMs: slackMs > 0 ? timeoutMs : undefined,
      connectTimeoutMs: this.#connectTimeoutMs,
      mayRepeat: call.mayRepeat,
      signal: options.signal,
    };
    return exchange(transport, what);
  }

  #connected() {
    if (this.#connection === undefined) {
      const { fetch } = this.#options;
      const server = findServer(this.#options);
      if (fetch !== undefined && this.#options.ca !== undefined) {
        throw new NotConfigured("`ca` has no effect beside `fetch`: let the function itself trust the authority");
      }
      const transport = fetch === undefined ? httpsTransport({ ca: server.ca }) : fetchTransport(fetch);
      this.#connection = { server, transport };
    }
    return this.#connection;
  }

  #bodyOf(options: CheckOptions): object {
    if (options.approvalId !== undefined) return { approval_id: options.approvalId };
    const own = this.#options;
    const facts = { agent_id: own.agent, run_id: options.runId ?? own.runId };
    const context = { ...own.context, ...present(facts), ...options.context };
    return {
      ...present<Undefinable<CheckRequest>>({
        goal: options.goal,
        tools: options.tools,
        side_effects: options.sideEffects,
        constraints: options.constraints,
        success_criteria: options.successCriteria,
        environment: options.environment ?? own.environment,
        pro: options.pro,
        policy_pack_version: options.policyPackVersion,
        debug_store_input: options.debugStoreInput,
      }),
      // Absent differs from empty.
      ...(Object.keys(context).length > 0 || options.context !== undefined ? { context } : {}),
    };
  }
}

type Undefinable<T> = { readonly [K in keyof T]?: T[K] | undefined };

interface Call {
  readonly path: string;
  readonly body?: object;
  readonly headers?: Readonly<Record<string, string>>;
  readonly mayRepeat: boolean;
  /** The server may take this much longer: of a long poll. */
  readonly slackMs?: number;
}

/** Whatever went wrong, the action must not run. */
function asNotAllowed(error: unknown, isOther = false): NotAllowed {
  if (error instanceof NotAllowed) return error;
  const details = { cause: error, isOther };
  if (error instanceof TransportError || error instanceof DeadlineError) return new Undecided(error.message, details);
  if (error instanceof JsonError) return new Undecided(`the answer cannot be read: ${error.message}`, details);
  return new Undecided(`a fault of the client itself: ${String(error)}`, details);
}

function idempotencyKey(given: string | undefined): string {
  if (given === undefined) return randomUUID();
  if (!/^[\x21-\x7e]{1,128}$/.test(given)) throw new Undecided("`idempotencyKey` is 1 to 128 visible ASCII characters");
  return given;
}

function milliseconds(given: number | undefined, otherwise: number, name: string): number {
  const value = given ?? otherwise;
  if (!(value > 0 && value <= MAX_TIMEOUT_MS)) {
    throw new NotConfigured(`\`${name}\` is above 0 and at most ${MAX_TIMEOUT_MS} milliseconds`);
  }
  return value;
}

function present<T extends object>(members: T): T {
  return Object.fromEntries(Object.entries(members).filter(([, value]) => value !== undefined)) as T;
}
