// All attempts at one request, under one deadline. Which attempts are repeated is decided here and nowhere else: lost
// connections, timeouts of one attempt, 429 and 503.

import { setTimeout as sleep } from "node:timers/promises";

import type { Answer } from "./decision.js";
import { TransportError, type Transport } from "./transport.js";

export interface Exchange {
  readonly method: "GET" | "POST";
  readonly url: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body?: string | Uint8Array | undefined;
  /** For all attempts, from the first name look-up to the last byte. */
  readonly timeoutMs: number;
  readonly connectTimeoutMs: number;
  /** For one attempt; else half of the time, and at least what the server itself may take. */
  readonly attemptTimeoutMs?: number | undefined;
  /** Whether a second attempt can do no harm: it reads, or it carries an Idempotency-Key. */
  readonly mayRepeat: boolean;
  readonly signal?: AbortSignal | undefined;
}

export const MAX_ATTEMPTS = 3;
const RETRY_DELAYS_MS = [200, 400];
/** The server answers within 2 s, or with a 503. */
const MIN_ATTEMPT_TIMEOUT_MS = 2500;
/** A retry needs at least this much of the deadline. */
const MIN_ATTEMPT_MS = 50;

export class DeadlineError extends Error {
  override readonly name = "DeadlineError";
}

export async function exchange(transport: Transport, what: Exchange): Promise<Answer> {
  const deadline = new Deadline(what.timeoutMs, what.signal);
  try {
    return await deadline.limit(attempts(transport, what, deadline));
  } finally {
    deadline.end();
  }
}

async function attempts(transport: Transport, what: Exchange, deadline: Deadline): Promise<Answer> {
  for (let number = 1; ; number++) {
    const step = await attempt(transport, what, deadline);
    const isLast = number >= MAX_ATTEMPTS || !what.mayRepeat;
    const delayMs = isLast ? undefined : retryDelay(step, number, Math.random());
    if (delayMs === undefined || delayMs + MIN_ATTEMPT_MS > deadline.leftMs()) {
      if (step instanceof TransportError) throw step;
      return step;
    }
    await sleep(delayMs, undefined, { signal: deadline.signal, ref: true });
  }
}

async function attempt(transport: Transport, what: Exchange, deadline: Deadline): Promise<Answer | TransportError> {
  const timeoutMs = what.attemptTimeoutMs ?? Math.max(MIN_ATTEMPT_TIMEOUT_MS, what.timeoutMs / 2);
  const controller = new AbortController();
  const timer = setTimeout(() => {
    controller.abort(new TransportError(`no whole answer within ${Math.round(timeoutMs)} ms`, true));
  }, timeoutMs);
  const { method, url, headers, body, connectTimeoutMs } = what;
  const signal = AbortSignal.any([deadline.signal, controller.signal]);
  try {
    return await transport({ method, url, headers, body, connectTimeoutMs, signal });
  } catch (error) {
    if (deadline.signal.aborted) throw deadline.signal.reason;
    if (error instanceof TransportError) return error;
    throw error;
  } finally {
    clearTimeout(timer);
  }
}

/** How long to wait before another attempt; undefined: there is none. */
export function retryDelay(step: Answer | TransportError, attemptNumber: number, random: number): number | undefined {
  if (step instanceof TransportError ? !step.mayRetry : step.status !== 429 && step.status !== 503) return undefined;
  if (!(step instanceof TransportError) && step.retryAfter !== undefined) return step.retryAfter * 1000;
  const delay = RETRY_DELAYS_MS[attemptNumber - 1] ?? 400;
  return delay * (1 + random / 2);
}

/** Ends once, when the time is over or the caller's signal is aborted. */
class Deadline {
  readonly #endsAt: number;
  readonly #timeoutMs: number;
  readonly #controller = new AbortController();
  readonly #timer: NodeJS.Timeout;
  readonly #caller: AbortSignal | undefined;

  constructor(timeoutMs: number, caller: AbortSignal | undefined) {
    this.#timeoutMs = timeoutMs;
    this.#endsAt = performance.now() + timeoutMs;
    this.#timer = setTimeout(this.#expire, timeoutMs);
    this.#caller = caller;
    if (caller?.aborted === true) this.#cancel();
    else caller?.addEventListener("abort", this.#cancel, { once: true });
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  leftMs(): number {
    return Math.max(0, this.#endsAt - performance.now());
  }

  /** Settles at the deadline even if the work ignores the signal, and refuses a result that came after it. */
  async limit<T>(work: Promise<T>): Promise<T> {
    const over = new Promise<never>((_, reject) => {
      const stop = () => reject(this.signal.reason as Error);
      if (this.signal.aborted) stop();
      else this.signal.addEventListener("abort", stop, { once: true });
    });
    const result = await Promise.race([work, over]);
    // The timer is late where the process was suspended or its event loop was blocked.
    if (this.leftMs() === 0) throw this.#error();
    return result;
  }

  end(): void {
    clearTimeout(this.#timer);
    this.#caller?.removeEventListener("abort", this.#cancel);
  }

  readonly #expire = () => {
    this.#controller.abort(this.#error());
  };

  readonly #cancel = () => {
    this.#controller.abort(new DeadlineError("the caller aborted the request"));
  };

  #error(): DeadlineError {
    return new DeadlineError(`no whole answer within ${Math.round(this.#timeoutMs)} ms`);
  }
}
