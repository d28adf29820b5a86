// The forms of the coding agents' hooks: which events ask, which answers let a tool run, and how each is refused.
// INVARIANT: an answer lets a tool run only if it is exactly what the server writes for an ALLOW in that agent's form.

import { isObject, parseJson, type JsonObject } from "../json.js";

export const AGENTS = ["claude-code", "codex", "cursor", "gemini", "opencode"] as const;
export type Agent = (typeof AGENTS)[number];

export const isAgent = (name: string): name is Agent => (AGENTS as readonly string[]).includes(name);

export type Reading = "allow" | "deny" | "nothing" | "malformed";

/** Events that run no tool, of all the agents. */
const HARMLESS: ReadonlySet<string> = new Set(
  `AfterAgent AfterModel AfterTool BeforeAgent BeforeModel BeforeToolSelection ConfigChange CwdChanged Elicitation
  ElicitationResult FileChanged InstructionsLoaded Notification PermissionDenied PostCompact PostToolBatch PostToolUse
  PostToolUseFailure PreCompact PreCompress SessionEnd SessionStart Setup Stop StopFailure SubagentStart SubagentStop
  TaskCompleted TaskCreated TeammateIdle UserPromptSubmit WorktreeCreate WorktreeRemove
  afterAgentResponse afterAgentThought afterFileEdit afterMCPExecution afterShellExecution afterTabFileEdit
  beforeSubmitPrompt postToolUse postToolUseFailure preCompact sessionEnd sessionStart stop subagentStart subagentStop
  tool.execute.after`.split(/\s+/),
);

/** Events that say how a call has ended. */
const ENDS: ReadonlySet<string> = new Set(
  `AfterTool PostToolUse PostToolUseFailure
  afterMCPExecution afterShellExecution postToolUse postToolUseFailure`.split(/\s+/),
);

/** The event's members; none where it cannot be read. */
export function membersOf(event: Uint8Array): JsonObject {
  try {
    const members = parseJson(event);
    return isObject(members) ? members : {};
  } catch {
    return {};
  }
}

export function eventName(members: JsonObject): string | undefined {
  const name = members["hook_event_name"];
  return typeof name === "string" && name.trim() !== "" ? name : undefined;
}

export const endsCall = (name: string | undefined) => name !== undefined && ENDS.has(name);

/** Whether a tool may run after the event, as far as this version knows. One that cannot be read counts as a call. */
export const mayBeCall = (name: string | undefined) => name === undefined || !HARMLESS.has(name);

/** A server that answers a call with nothing has not understood it. It may know more other events than this version. */
const looksLikeCall = (name: string | undefined) =>
  mayBeCall(name) && !/^(post|after|session|sub|user)/i.test(name ?? "");

export function readAnswer(agent: Agent, event: string | undefined, body: JsonObject): Reading {
  if (Object.keys(body).length === 0) return looksLikeCall(event) ? "malformed" : "nothing";
  switch (agent) {
    case "claude-code":
    case "codex":
      return readPermissionDecision(agent, event, body);
    case "cursor":
      if (body["permission"] === "deny") return "deny";
      if (isOnly(body, { permission: "allow" }) || isOnly(body, { continue: true })) return "allow";
      return "malformed";
    case "gemini":
    case "opencode":
      if (body["decision"] === "deny") return "deny";
      return body["decision"] === "allow" && hasOnly(body, ["decision", "request_id"]) ? "allow" : "malformed";
  }
}

function readPermissionDecision(agent: Agent, event: string | undefined, body: JsonObject): Reading {
  const output = body["hookSpecificOutput"];
  if (!isObject(output)) return "malformed";
  if (output["permissionDecision"] === "deny") return "deny";
  if (!hasOnly(body, ["hookSpecificOutput"]) || output["hookEventName"] !== event) return "malformed";
  // Without an opinion the agent's own permissions hold, as they do without a hook.
  if (hasOnly(output, ["hookEventName"])) return "allow";
  // Codex does not support this answer, and then runs the tool. Other members could change the tool's input.
  const isAllow = output["permissionDecision"] === "allow" && agent === "claude-code";
  return isAllow && hasOnly(output, PERMISSION_MEMBERS) ? "allow" : "malformed";
}

const PERMISSION_MEMBERS = ["hookEventName", "permissionDecision", "permissionDecisionReason"];

const hasOnly = (body: JsonObject, names: readonly string[]) => Object.keys(body).every((name) => names.includes(name));

function isOnly(body: JsonObject, expected: JsonObject): boolean {
  const names = Object.keys(expected);
  return Object.keys(body).length === names.length && names.every((name) => body[name] === expected[name]);
}

/** The reason of a denial that the server wrote. */
export function reasonOf(agent: Agent, body: JsonObject): string {
  const output = body["hookSpecificOutput"];
  const texts: Readonly<Record<Agent, unknown>> = {
    "claude-code": isObject(output) ? output["permissionDecisionReason"] : undefined,
    codex: isObject(output) ? output["permissionDecisionReason"] : undefined,
    cursor: body["agent_message"],
    gemini: body["reason"],
    opencode: body["reason"],
  };
  const text = texts[agent];
  return typeof text === "string" && text.trim() !== "" ? text : "Stage0 does not allow this call.";
}

export function denial(agent: Agent, event: string | undefined, text: string): JsonObject {
  switch (agent) {
    case "claude-code":
    case "codex": {
      const decision = { permissionDecision: "deny", permissionDecisionReason: text };
      return { hookSpecificOutput: { hookEventName: event ?? "PreToolUse", ...decision } };
    }
    case "cursor":
      return { permission: "deny", user_message: text, agent_message: text };
    case "gemini":
    case "opencode":
      return { decision: "deny", reason: text };
  }
}
