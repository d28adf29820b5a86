// Reports of how allowed actions ended. A report never changes what the caller of a guarded function gets: one that
// fails is a warning. A key that may not report is not tried again.

import { Undecided } from "./errors.js";
import type { OutcomeStatus } from "./wire.js";

export interface OutcomeDetails {
  /** The agent's own id of the call. */
  readonly toolCallId?: string | undefined;
  readonly durationMs?: number | undefined;
  /** Settles the check. Less than its estimate needs a key with `runs:manage`. */
  readonly costUsd?: number | undefined;
}

type Send = (requestId: string, body: object) => Promise<unknown>;

export class OutcomeReporter {
  readonly #send: Send;
  readonly #warn: (text: string) => void;
  readonly #warned = new Set<number | undefined>();
  #mayReport = true;

  constructor(send: Send, warn: (text: string) => void) {
    this.#send = send;
    this.#warn = warn;
  }

  async report(requestId: string, status: OutcomeStatus, details: OutcomeDetails): Promise<void> {
    if (!this.#mayReport) return;
    const { toolCallId, durationMs, costUsd } = details;
    const rounded = durationMs === undefined ? undefined : Math.max(0, Math.round(durationMs));
    try {
      await this.#send(requestId, { status, tool_call_id: toolCallId, duration_ms: rounded, cost_usd: costUsd });
    } catch (error) {
      this.#failed(requestId, error);
    }
  }

  #failed(requestId: string, error: unknown): void {
    const status = error instanceof Undecided ? error.status : undefined;
    const isForbidden = error instanceof Undecided && status === 403 && error.code === "scope_missing";
    if (isForbidden) this.#mayReport = false;
    // The first of its kind only: a tool may be called a thousand times.
    if (this.#warned.has(status)) return;
    this.#warned.add(status);
    const why = error instanceof Error ? error.message : String(error);
    this.#warn(
      isForbidden
        ? "outcomes are not reported: the API key lacks the scope `outcomes:report`"
        : `the outcome of request ${requestId} was not reported: ${why}`,
    );
  }
}
