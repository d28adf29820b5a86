// Waiting for people. INVARIANT: what an approval says about itself allows nothing; only the check that is asked
// afterwards does.

import type { CallOptions } from "./client.js";
import type { Decision } from "./decision.js";
import { Deferred, Undecided, type NotAllowed } from "./errors.js";
import type { Approval, ApprovalRef } from "./wire.js";

export interface ApprovalCalls {
  read(id: string, options: CallOptions & { readonly waitSeconds?: number }): Promise<Approval>;
  checkAgain(error: NotAllowed, options: CallOptions): Promise<Decision>;
}

const DEFAULT_WAIT_MS = 600_000;
const LONG_POLL_SECONDS = 30;
/** A server that is replaced while people think is asked again after this time. */
const RETRY_DELAY_MS = 1000;
/** Between two answers that came without waiting. */
const MIN_POLL_INTERVAL_MS = 200;

export async function waitForApproval(
  deferred: Deferred,
  options: CallOptions,
  calls: ApprovalCalls,
): Promise<Decision> {
  const endsAt = performance.now() + (options.timeoutMs ?? DEFAULT_WAIT_MS);
  const { signal } = options;
  for (;;) {
    const awaited = approvalOf(deferred);
    const found = await decided(awaited, deferred, endsAt, signal, calls);
    refuseEnded(found, awaited, deferred);
    try {
      return await calls.checkAgain(deferred, { signal });
    } catch (error) {
      // Votes can stop counting before the approval is used: then it is pending again.
      const waitsAgain = error instanceof Deferred && error.approval?.id != null && error.approval.status === "pending";
      if (found.status !== "approved" || !waitsAgain || performance.now() >= endsAt) throw error;
      deferred = error;
    }
  }
}

type Awaited = ApprovalRef & { readonly id: string };

function approvalOf(deferred: Deferred): Awaited {
  const { approval } = deferred;
  if (approval?.id == null) throw deferred;
  return approval as Awaited;
}

/** After `denied` the check is asked again too: the server's DENY is recorded, and says why. */
function refuseEnded(found: Approval, awaited: Awaited, deferred: Deferred): void {
  const { id, status } = found;
  const ref = { ...awaited, status };
  const request = `(request ${deferred.decision.requestId})`;
  switch (status) {
    case "approved":
    case "denied":
      return;
    case "expired":
    case "cancelled":
      throw new Deferred(
        deferred.decision,
        ref,
        `approval ${id} is ${status}: asking again opens a new one ${request}`,
      );
    case "reserved":
    case "consumed":
      throw new Deferred(
        deferred.decision,
        ref,
        `approval ${id} was used by another check, ${found.used_by} ${request}`,
      );
    default:
      throw new Undecided(`approval ${id} has a state that this client does not know`, { decision: deferred.decision });
  }
}

/** The approval as soon as it is not pending. */
async function decided(
  awaited: Awaited,
  deferred: Deferred,
  endsAt: number,
  signal: AbortSignal | undefined,
  calls: ApprovalCalls,
): Promise<Approval> {
  for (;;) {
    const leftMs = endsAt - performance.now();
    if (leftMs <= 0) {
      throw new Deferred(deferred.decision, awaited, `approval ${awaited.id} is still pending: wait longer, or later`);
    }
    const startedAt = performance.now();
    const waitSeconds = Math.min(LONG_POLL_SECONDS, Math.floor(leftMs / 1000));
    try {
      const found = await calls.read(awaited.id, { waitSeconds, signal: until(leftMs, signal) });
      if (found.status !== "pending") return found;
    } catch (error) {
      if (!isPassing(error) || signal?.aborted === true) throw error;
      await pause(Math.min(RETRY_DELAY_MS, endsAt - performance.now()));
    }
    if (performance.now() - startedAt < MIN_POLL_INTERVAL_MS) await pause(MIN_POLL_INTERVAL_MS);
  }
}

/** A server that is silent does not prolong the wait. */
function until(leftMs: number, signal: AbortSignal | undefined): AbortSignal {
  const end = AbortSignal.timeout(Math.ceil(leftMs));
  return signal === undefined ? end : AbortSignal.any([signal, end]);
}

function isPassing(error: unknown): boolean {
  return error instanceof Undecided && (error.status === undefined || error.status === 429 || error.status === 503);
}

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
