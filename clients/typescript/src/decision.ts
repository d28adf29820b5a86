// A decision that is complete enough to be acted on or refused by, and the rules for that. INVARIANT: `judge` gives a
// Decision only for a status 200 whose body is whole and consistent; whatever else arrives becomes an Undecided.

import { Undecided } from "./errors.js";
import { isObject, JsonError, parseJson, type JsonObject } from "./json.js";
import type { ApprovalRef, CheckResponse, ErrorCode, FieldError, Issue, Verdict } from "./wire.js";

/** A recorded decision. `check` returns one only if its verdict is ALLOW; errors carry the others. */
export class Decision {
  /** The answer as the server sent it, member by member as docs/openapi.json has them. */
  readonly response: CheckResponse;
  readonly #base: string;

  /** @internal */
  constructor(response: CheckResponse, base: string) {
    this.response = response;
    this.#base = base;
  }

  get requestId(): string {
    return this.response.request_id;
  }

  get policyVersion(): string {
    return this.response.policy_version;
  }

  get verdict(): Verdict {
    return this.response.verdict;
  }

  get reason(): string {
    return this.response.reason;
  }

  /** On an ALLOW these are advice. */
  get issues(): readonly Issue[] {
    return this.response.issues;
  }

  get questions(): readonly string[] {
    return this.response.defer_questions;
  }

  /** The approval that was opened, is waited for, or was used. */
  get approval(): ApprovalRef | undefined {
    return this.response.approval ?? undefined;
  }

  /** A path of an answer, such as an approval's `url`, as an address. */
  linkTo(path: string): string {
    return path.startsWith("/") ? this.#base + path : path;
  }
}

/** An answer as it came over the wire. */
export interface Answer {
  readonly status: number;
  readonly body: Uint8Array;
  /** The header `X-Request-Id`. */
  readonly requestId: string | undefined;
  /** Seconds. */
  readonly retryAfter: number | undefined;
}

const UUID = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;
const SIGNALS: Readonly<Record<Verdict, string>> = { ALLOW: "GO", DENY: "NO_GO", DEFER: "DEFER" };

export function judge(answer: Answer, base: string): Decision {
  if (answer.status !== 200) throw new Undecided(...failure(answer));
  const details = { status: answer.status, requestId: answer.requestId };
  let body: unknown;
  try {
    body = parseJson(answer.body);
  } catch (error) {
    throw new Undecided(
      `the answer cannot be read: ${error instanceof JsonError ? error.message : "unknown error"}`,
      details,
    );
  }
  const fault = isObject(body) ? faultOf(body) : "it is not a JSON object";
  if (fault !== undefined) throw new Undecided(`the answer is not a complete decision: ${fault}`, details);
  return new Decision(body as unknown as CheckResponse, base);
}

/** What keeps an answer from being a decision. Members that nothing depends on may be missing. */
function faultOf(body: JsonObject): string | undefined {
  const { verdict, decision, request_id, policy_version, meta } = body;
  if (verdict !== "ALLOW" && verdict !== "DENY" && verdict !== "DEFER")
    return "`verdict` is none of ALLOW, DENY, DEFER";
  if (decision !== SIGNALS[verdict]) return `\`decision\` does not belong to the verdict ${verdict}`;
  if (typeof request_id !== "string" || !UUID.test(request_id)) return "`request_id` is missing or not a UUID";
  if (typeof policy_version !== "string" || policy_version.trim() === "") return "`policy_version` is missing";
  if (!isObject(meta)) return "`meta` is missing";
  if (meta["source"] !== "stage0") return "`meta.source` is not `stage0`";
  if (meta["test_mode"] !== false) return "`meta.test_mode` is not false: it is not a real decision";
  const audit = meta["audit"];
  if (audit !== "required" && audit !== "best-effort") return "`meta.audit` says that it was not recorded";
  if (typeof body["reason"] !== "string") return "`reason` is missing";
  if (!isListOf(body["issues"], isObject)) return "`issues` is not a list";
  if (!isListOf(body["defer_questions"], (item) => typeof item === "string")) return "`defer_questions` is not a list";
  return faultOfApproval(body["approval"]);
}

function faultOfApproval(approval: unknown): string | undefined {
  if (approval === null || approval === undefined) return undefined;
  const isWhole = isObject(approval) && typeof approval["status"] === "string" && typeof approval["url"] === "string";
  return isWhole && (approval["id"] === null || typeof approval["id"] === "string")
    ? undefined
    : "`approval` is not whole";
}

function isListOf(value: unknown, isItem: (item: unknown) => boolean): boolean {
  return Array.isArray(value) && value.every(isItem);
}

/** Why a status other than 200 came, in words for people. Texts of the body are shown only if it is one of ours. */
export function failure(answer: Answer): [why: string, details: FailureDetails] {
  const { status } = answer;
  const body = errorBody(answer.body);
  const requestId = body?.requestId ?? answer.requestId;
  const details = { status, requestId, code: body?.code, errors: body?.errors };
  if (status >= 300 && status < 400)
    return [`the server answered with a redirect (${status}), which is not followed`, details];
  const what = body === undefined ? "" : `: ${body.message}`;
  const advice = ADVICE[status] ?? (status < 300 ? "a decision has the status 200" : undefined);
  return [`the server answered ${status}${what}${advice === undefined ? "" : ` (${advice})`}`, details];
}

interface FailureDetails {
  readonly status: number;
  readonly requestId: string | undefined;
  readonly code: ErrorCode | undefined;
  readonly errors: readonly FieldError[] | undefined;
}

const MAX_MESSAGE = 2000;

const ADVICE: Readonly<Record<number, string>> = {
  401: "alert a person: the API key is not valid",
  402: "alert a person: the plan or the quota does not allow it",
  403: "alert a person: the API key lacks a scope",
  404: "check the URL",
  429: "wait, then ask again",
  503: "no decision was made in time: ask again later",
};

function errorBody(bytes: Uint8Array) {
  let body: unknown;
  try {
    body = parseJson(bytes);
  } catch {
    return undefined;
  }
  if (!isObject(body) || typeof body["message"] !== "string" || typeof body["error"] !== "string") return undefined;
  const { request_id: id, errors } = body;
  const isError = (item: unknown) =>
    isObject(item) && typeof item["path"] === "string" && typeof item["message"] === "string";
  return {
    // A server has no reason to repeat a key; one that does must not bring it into a log.
    message: body["message"].replaceAll(/s0_\w+/g, "s0_…").slice(0, MAX_MESSAGE),
    code: body["error"] as ErrorCode,
    requestId: typeof id === "string" && id !== "" ? id : undefined,
    errors: isListOf(errors, isError) ? (errors as readonly FieldError[]) : undefined,
  };
}
