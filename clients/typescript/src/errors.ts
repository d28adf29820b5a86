// What the client throws. Everything that `check` throws is a NotAllowed: catching that one class, and not acting, is
// always right. The messages are written for the agent as well as for people: they say what was found and what helps.
// None of them holds the key.

import type { Decision } from "./decision.js";
import type { ApprovalRef, ErrorCode, FieldError, Issue, SuggestedChange } from "./wire.js";

/** The action must not run. Base of the three reasons why. */
export abstract class NotAllowed extends Error {
  /** The decision that was made; absent where there is none. */
  readonly decision: Decision | undefined;
  /** Of the decision, or of the failed request, where the server gave one. */
  readonly requestId: string | undefined;
  readonly policyVersion: string | undefined;

  constructor(message: string, decision: Decision | undefined, requestId: string | undefined, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.decision = decision;
    this.requestId = requestId;
    this.policyVersion = decision?.policyVersion;
  }

  /** What the policy found, the gravest first. */
  get issues(): readonly Issue[] {
    return this.decision?.issues ?? [];
  }
}

/** The policy, or a person, says no. The same request will not pass. */
export class Denied extends NotAllowed {
  override readonly name = "Denied";
  declare readonly decision: Decision;

  constructor(decision: Decision, message = deniedText(decision)) {
    super(message, decision, decision.requestId);
  }
}

/** Something is missing: answers to `questions`, or the `approval` of a person. */
export class Deferred extends NotAllowed {
  override readonly name = "Deferred";
  declare readonly decision: Decision;
  /** What would help; never empty unless an approval is all that is missing. */
  readonly questions: readonly string[];
  /** The approval that people can decide about, if one is all that is missing. */
  readonly approval: ApprovalRef | undefined;

  constructor(decision: Decision, approval = decision.approval, message = deferredText(decision, approval)) {
    super(message, decision, decision.requestId);
    this.questions = decision.questions;
    this.approval = approval;
  }
}

export interface UndecidedDetails {
  readonly status?: number | undefined;
  readonly requestId?: string | undefined;
  readonly code?: ErrorCode | undefined;
  readonly errors?: readonly FieldError[] | undefined;
  readonly decision?: Decision | undefined;
  readonly cause?: unknown;
  /** Whether it is about something else than permission: an approval that is read, an outcome that is reported. */
  readonly isOther?: boolean | undefined;
}

/** No answer that can be acted on: none came, it is an error, or it is not whole. Also of calls beside `check`. */
export class Undecided extends NotAllowed {
  override readonly name: string = "Undecided";
  readonly why: string;
  /** The status of the answer; absent where none came. */
  readonly status: number | undefined;
  /** The `error` of the answer, such as `unauthorized`. */
  readonly code: ErrorCode | undefined;
  /** Of a 422: every member that is wrong. */
  readonly errors: readonly FieldError[];

  constructor(why: string, details: UndecidedDetails = {}) {
    const id = details.requestId === undefined ? "" : ` (request ${details.requestId})`;
    const text = details.isOther === true ? `${why}${id}` : `undecided, do not act: ${why}${id}`;
    super(text, details.decision, details.requestId, details.cause);
    this.why = why;
    this.status = details.status;
    this.code = details.code;
    this.errors = details.errors ?? [];
  }
}

/** There is no server, key or certificate to ask with, or one that must not be used. */
export class NotConfigured extends Undecided {
  override readonly name: string = "NotConfigured";
}

const WHAT_TO_DO: Readonly<Record<string, string>> = {
  fix_request: "change the request",
  provide_context: "provide what is missing in the context",
  request_approval: "get the approval of a person",
  wait: "wait, then ask again",
  stop: "do not try this again",
};

function issueText(issue: Issue): string {
  const action = WHAT_TO_DO[issue.next_action];
  const changes = (issue.details?.write ?? []).map(changeText);
  const help = [...(action === undefined ? [] : [action]), ...changes].join("; ");
  return `${issue.code}: ${issue.message}${help === "" ? "" : ` (${help})`}`;
}

function changeText(change: SuggestedChange): string {
  if (change.by !== undefined) return `a ${change.by} must give \`${change.path}\``;
  return `${change.op} \`${change.path}\`: ${change.value}`;
}

function deniedText(decision: Decision): string {
  const issues = decision.issues.filter((issue) => issue.severity !== "LOW");
  const why = issues.map(issueText).join("; ");
  return `denied, do not try the same again: ${why === "" ? decision.reason : why} (request ${decision.requestId})`;
}

function deferredText(decision: Decision, approval: ApprovalRef | undefined): string {
  const id = `(request ${decision.requestId})`;
  if (approval?.id != null) {
    const how = `a person decides with \`stage0 approvals approve ${approval.id} --key-file YOUR.key\``;
    const questions = decision.questions.filter(isNotAnsweredByApproval).map((question) => `. ${question}`);
    const waits = `waits for approval ${approval.id} until ${approval.expires_at}; ${how}`;
    return `deferred, do not act: ${waits}${questions.join("")} ${id}`;
  }
  // Why an approval that would help was not opened.
  const noApproval = decision.issues.map((issue) => issue.details?.["approval"]).find((why) => typeof why === "string");
  const why = noApproval === undefined ? "" : ` No approval was opened: ${String(noApproval)}.`;
  return `deferred, do not act: ${decision.reason}. ${decision.questions.join(" ")}${why} ${id}`;
}

/** An agent could take the question that an open approval answers for an invitation to state the approval itself. */
const isNotAnsweredByApproval = (question: string) => !question.includes("context.approval_status");
