// The plugin for OpenCode, whose plugin hooks run inside of the agent: an exception of `tool.execute.before` stops the
// tool. It exports one function and nothing else, because OpenCode takes every export of a plugin for a plugin.

import { Client } from "./client.js";
import { askHook } from "./hook/ask.js";
import { isObject } from "./json.js";
import { findServer, type Server, type ServerOptions } from "./settings.js";
import { httpsTransport, type Transport } from "./transport.js";
import type { OutcomeStatus } from "./wire.js";

interface PluginInput {
  readonly directory?: string | undefined;
}

interface ToolCall {
  readonly tool: string;
  readonly sessionID: string;
  readonly callID: string;
}

interface Hooks {
  readonly "tool.execute.before": (input: ToolCall, output: { readonly args: unknown }) => Promise<void>;
  readonly "tool.execute.after": (input: ToolCall, output: { readonly metadata?: unknown }) => Promise<void>;
}

const TIMEOUT_MS = 5000;
/** Calls that are allowed and have not ended. One whose end never comes is forgotten. */
const MAX_PENDING = 1000;

export const Stage0 = async ({ directory }: PluginInput = {}, options: ServerOptions = {}): Promise<Hooks> => {
  const pending = new Map<string, { readonly requestId: string; readonly startedAt: number }>();
  let mayReport = true;
  let connection: { readonly server: Server; readonly transport: Transport; readonly client: Client } | undefined;
  // Settings are read at the first call: a plugin that fails to load would leave every tool unguarded.
  const connect = () => {
    if (connection === undefined) {
      // What the plugin's file names is the whole choice. Otherwise variables count, and never the project's files.
      const isNamed = options.url !== undefined || options.dataDir !== undefined;
      const server = findServer(options, isNamed ? {} : process.env, true);
      const transport = httpsTransport({ ca: server.ca });
      const client = new Client({ url: server.base, key: server.key, ca: server.ca, timeoutMs: TIMEOUT_MS });
      connection = { server, transport, client };
    }
    return connection;
  };

  const before = async (input: ToolCall, output: { readonly args: unknown }): Promise<void> => {
    const { tool, sessionID, callID } = input;
    const event = { hook_event_name: "tool.execute.before", tool, sessionID, callID, args: output.args, directory };
    const answer = await askHook("opencode", Buffer.from(JSON.stringify(event)), connect, TIMEOUT_MS);
    const requestId = answer.body["request_id"];
    if (!answer.mayRun) throw new Error(answer.text);
    if (answer.body["decision"] !== "allow" || typeof requestId !== "string")
      throw new Error("Stage0 did not decide this call");
    pending.set(callID, { requestId, startedAt: performance.now() });
    const [oldest] = pending.keys();
    if (pending.size > MAX_PENDING && oldest !== undefined) pending.delete(oldest);
  };

  const after = async (input: ToolCall, output: { readonly metadata?: unknown }): Promise<void> => {
    const call = pending.get(input.callID);
    pending.delete(input.callID);
    if (call === undefined || connection === undefined || !mayReport) return;
    const durationMs = Math.round(performance.now() - call.startedAt);
    try {
      await connection.client.reportOutcome(call.requestId, statusOf(output), { toolCallId: input.callID, durationMs });
    } catch (error) {
      // The tool has run: nothing here may stop the agent. A key that may not report is not tried again.
      if ((error as { status?: unknown }).status === 403) mayReport = false;
    }
  };

  return { "tool.execute.before": before, "tool.execute.after": after };
};

/** Only a shell says how it ended. */
function statusOf(output: { readonly metadata?: unknown }): OutcomeStatus {
  const exit = isObject(output.metadata) ? output.metadata["exit"] : undefined;
  if (typeof exit !== "number") return "unknown";
  return exit === 0 ? "succeeded" : "failed";
}
