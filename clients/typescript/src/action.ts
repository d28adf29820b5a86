// Functions that run only on ALLOW. INVARIANT: the function is called after `check` has returned and at no other time,
// with the very arguments whose digest was asked about, as far as they are plain data.

import type { CallOptions, CheckOptions, Facts } from "./client.js";
import type { Decision } from "./decision.js";
import { Deferred, Undecided } from "./errors.js";
import { isObject, JsonError, sha256OfJson, type JsonObject } from "./json.js";
import type { OutcomeDetails, OutcomeReporter } from "./outcome.js";
import type { Context, OutcomeStatus } from "./wire.js";

interface Checks {
  check(options: CheckOptions): Promise<Decision>;
  waitForApproval(deferred: Deferred, options: CallOptions): Promise<Decision>;
}

/** What is the same for every call of a tool. */
interface ToolOptions extends CallOptions {
  readonly tool: string;
  /** What changes outside, such as `payment`; `[]`: nothing does. */
  readonly effects: readonly string[];
  readonly constraints?: readonly string[] | undefined;
  readonly successCriteria?: readonly string[] | undefined;
  readonly environment?: string | undefined;
  readonly runId?: string | undefined;
  /** Whether outcomes are reported; true by default. */
  readonly report?: boolean | undefined;
  /** How long to wait for an approval, if one is all that is missing; by default not at all. */
  readonly waitMs?: number | undefined;
  /**
   * Names of members of the input that are sent in `context.arguments`, for people who approve. By default no value of
   * the input is sent, only the digest of all of it. What a rule of a policy is to read belongs in `context`.
   */
  readonly arguments?: readonly string[] | undefined;
}

/** Of a guarded function. The callables get the arguments of the call. */
export interface GuardOptions<A extends unknown[]> extends ToolOptions {
  readonly goal?: string | ((...args: A) => string) | undefined;
  readonly context?: (Context & Facts) | ((...args: A) => Context & Facts) | undefined;
  /** What the call acts on, `context.target_resources`: names of members of the input, or the targets themselves. */
  readonly targets?: readonly string[] | ((...args: A) => readonly string[]) | undefined;
  /**
   * The part of the arguments that says what the call does, as plain data: its digest is what people approve. By
   * default the one argument itself, or the list of all of them.
   */
  readonly input?: ((...args: A) => unknown) | undefined;
  readonly toolCallId?: ((...args: A) => string | undefined) | undefined;
}

/** Of one action. */
export interface ActionOptions extends ToolOptions, OutcomeDetails {
  readonly goal?: string | undefined;
  readonly context?: (Context & Facts) | undefined;
  readonly targets?: readonly string[] | undefined;
  /** What the action does, as plain data: its digest is what people approve. */
  readonly input?: unknown;
  readonly idempotencyKey?: string | undefined;
}

/** An action that is allowed and has not ended. `await using` ends it. */
export interface Action extends AsyncDisposable {
  readonly decision: Decision;
  /** Says how it ended, once. An action that is disposed of before is reported as `unknown`. */
  end(status: OutcomeStatus, details?: OutcomeDetails): Promise<void>;
}

export function guard<A extends unknown[], T>(
  client: Checks,
  outcomes: OutcomeReporter,
  options: GuardOptions<A>,
  fn: (...args: A) => T,
): (...args: A) => Promise<Awaited<T>> {
  if (/^(Async)?GeneratorFunction$/.test(fn.constructor.name)) {
    throw new TypeError("a generator runs after its call has returned: guard the function that does the work");
  }
  const guarded = (...args: A) => {
    const one = () => actionOf(options, args);
    return runOne(client, outcomes, one, () => fn(...args));
  };
  // A framework that names a tool after its function finds the same name.
  return Object.defineProperty(guarded, "name", { value: fn.name, configurable: true });
}

function actionOf<A extends unknown[]>(options: GuardOptions<A>, args: A): ActionOptions {
  const { goal, context, targets } = options;
  // Every call has a digest, one without arguments too.
  const input = (options.input === undefined ? (args.length === 1 ? args[0] : args) : options.input(...args)) ?? null;
  return {
    ...options,
    goal: typeof goal === "function" ? goal(...args) : goal,
    context: typeof context === "function" ? context(...args) : context,
    targets: typeof targets === "function" ? targets(...args) : targetsIn(input, targets),
    input,
    toolCallId: options.toolCallId?.(...args),
  };
}

export function run<T>(
  client: Checks,
  outcomes: OutcomeReporter,
  options: ActionOptions,
  fn: (decision: Decision) => T,
): Promise<Awaited<T>> {
  return runOne(client, outcomes, () => options, fn);
}

async function runOne<T>(
  client: Checks,
  outcomes: OutcomeReporter,
  optionsOf: () => ActionOptions,
  fn: (decision: Decision) => T,
): Promise<Awaited<T>> {
  const action = await begin(client, outcomes, optionsOf);
  await refuseChanged(action);
  let result: Awaited<T>;
  try {
    result = await fn(action.decision);
  } catch (error) {
    await action.end(isCancellation(error) ? "unknown" : "failed");
    throw error;
  }
  await action.end("succeeded");
  return result;
}

/** Something else may have changed the input while the question was on its way. */
async function refuseChanged(action: RunningAction): Promise<void> {
  if (action.isAsAsked()) return;
  await action.end("skipped");
  throw new Undecided("the input was changed after the question was asked", { decision: action.decision });
}

/** Cancelled or timed out: it may have happened all the same. */
function isCancellation(error: unknown): boolean {
  return error instanceof Error && (error.name === "AbortError" || error.name === "TimeoutError");
}

export async function begin(
  client: Checks,
  outcomes: OutcomeReporter,
  options: ActionOptions | (() => ActionOptions),
): Promise<RunningAction> {
  let action: ActionOptions;
  let check: CheckOptions;
  try {
    action = typeof options === "function" ? options() : options;
    check = checkOf(action);
  } catch (error) {
    if (error instanceof Undecided) throw error;
    const why = error instanceof JsonError ? `${error.message}: say with \`input\` what the call does` : String(error);
    throw new Undecided(`the question cannot be put together: ${why}`, { cause: error });
  }
  const decision = await allowed(client, check, action.waitMs);
  return new RunningAction(decision, outcomes, action, check.context?.["arguments_sha256"]);
}

async function allowed(client: Checks, check: CheckOptions, waitMs = 0): Promise<Decision> {
  try {
    return await client.check(check);
  } catch (error) {
    if (waitMs <= 0 || !(error instanceof Deferred) || error.approval?.id == null) throw error;
    return client.waitForApproval(error, { timeoutMs: waitMs, signal: check.signal });
  }
}

class RunningAction implements Action {
  readonly decision: Decision;
  readonly #outcomes: OutcomeReporter;
  readonly #options: ActionOptions;
  readonly #startedAt = performance.now();
  readonly #digest: unknown;
  #ended: Promise<void> | undefined;

  constructor(decision: Decision, outcomes: OutcomeReporter, options: ActionOptions, digest: unknown) {
    this.decision = decision;
    this.#outcomes = outcomes;
    this.#options = options;
    this.#digest = digest;
  }

  isAsAsked(): boolean {
    const { input } = this.#options;
    return input === undefined || sha256OfJson(input) === this.#digest;
  }

  end(status: OutcomeStatus, details: OutcomeDetails = {}): Promise<void> {
    this.#ended ??= this.#report(status, details);
    return this.#ended;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.end("unknown");
  }

  async #report(status: OutcomeStatus, details: OutcomeDetails): Promise<void> {
    if (this.#options.report === false) return;
    const { toolCallId, costUsd } = this.#options;
    const durationMs = performance.now() - this.#startedAt;
    await this.#outcomes.report(this.decision.requestId, status, { toolCallId, costUsd, durationMs, ...details });
  }
}

function checkOf(options: ActionOptions): CheckOptions {
  const { tool, effects, targets, input } = options;
  const digest = input === undefined ? {} : { arguments_sha256: sha256OfJson(input) };
  return {
    goal: options.goal ?? `Call the tool ${tool}`,
    tools: [tool],
    sideEffects: effects,
    constraints: options.constraints,
    successCriteria: options.successCriteria,
    environment: options.environment,
    runId: options.runId,
    timeoutMs: options.timeoutMs,
    signal: options.signal,
    idempotencyKey: options.idempotencyKey,
    context: {
      ...options.context,
      ...(targets === undefined ? {} : { target_resources: targets }),
      // What binds the decision to the call is not to be replaced by the caller's context.
      ...named(options.arguments, input),
      ...digest,
    },
  };
}

/** One that the call does not have is left out: a policy that needs it says so. */
function named(names: readonly string[] | undefined, input: unknown): JsonObject {
  if (names === undefined || names.length === 0) return {};
  if (!isObject(input)) throw new JsonError("`arguments` names members, and the input is not an object");
  return {
    arguments: Object.fromEntries(
      names.filter((name) => Object.hasOwn(input, name)).map((name) => [name, input[name]]),
    ),
  };
}

/** Each named member is one target or a list of them. */
function targetsIn(input: unknown, names: readonly string[] | undefined): readonly string[] | undefined {
  if (names === undefined) return undefined;
  if (!isObject(input)) throw new JsonError("`targets` names members, and the input is not an object");
  const targets = names.flatMap((name) => input[name] ?? []);
  if (!targets.every((target) => typeof target === "string")) throw new JsonError("a target is not a text");
  return targets;
}
