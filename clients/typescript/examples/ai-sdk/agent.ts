// The Vercel AI SDK with guarded tools: `tool({ execute })` takes a guarded function as it is. The model is a script,
// so that the example runs without one; put a model of a provider in its place.
//   node build/agent.js       with `stage0 dev` running in the same directory

import { Client } from "@stage0/client";
import { generateText, stepCountIs, tool, type LanguageModel, type ToolCallOptions } from "ai";
import { z } from "zod";

const client = new Client({ runId: `ai-sdk-${process.pid}`, agent: "ai-sdk" });

/** What the SDK adds to the arguments is not part of the call's input: only the input is digested and approved. */
const ofSdk = {
  input: (input: unknown) => input,
  toolCallId: (_: unknown, options: ToolCallOptions) => options.toolCallId,
};

const readLog = (input: { name: string }, _: ToolCallOptions) => {
  console.log("reads", input.name);
  return "the payment for order 8841 failed";
};
const refund = (input: { order: string; amount: number }, _: ToolCallOptions) => {
  console.log("refunds", input.amount);
  return "refunded";
};

const tools = {
  read_log: tool({
    description: "Reads a log",
    inputSchema: z.object({ name: z.string() }),
    execute: client.guarded({ tool: "read_log", effects: [], arguments: ["name"], ...ofSdk }, readLog),
  }),
  refund: tool({
    description: "Pays an order back",
    inputSchema: z.object({ order: z.string(), amount: z.number() }),
    execute: client.guarded(
      {
        tool: "refund",
        effects: ["payment"],
        constraints: ["approval required"],
        successCriteria: ["the customer has the money"],
        arguments: ["order", "amount"],
        ...ofSdk,
      },
      refund,
    ),
  }),
};

type Model = Extract<LanguageModel, { specificationVersion: "v3" }>;
type Reply = Awaited<ReturnType<Model["doGenerate"]>>;

function reply(content: Reply["content"]): Reply {
  const unified = content.some((part) => part.type === "tool-call") ? "tool-calls" : "stop";
  const inputTokens = { total: 1, noCache: 1, cacheRead: 0, cacheWrite: 0 };
  const usage = { inputTokens, outputTokens: { total: 1, text: 1, reasoning: 0 } };
  return { content, finishReason: { unified, raw: undefined }, usage, warnings: [] };
}

const call = (toolName: string, input: object): Reply["content"][number] => ({
  type: "tool-call",
  toolCallId: `call-${toolName}`,
  toolName,
  input: JSON.stringify(input),
});

/** In the place of a model: two calls, then what it read about the second. */
const model: Model = {
  specificationVersion: "v3",
  provider: "script",
  modelId: "script",
  supportedUrls: {},
  doGenerate: ({ prompt }) => {
    const results = prompt.flatMap((message) => (message.role === "tool" ? message.content : []));
    if (results.length === 0) return Promise.resolve(reply([call("read_log", { name: "build" })]));
    if (results.length === 1) return Promise.resolve(reply([call("refund", { order: "8841", amount: 120 })]));
    return Promise.resolve(reply([{ type: "text", text: `The model read: ${JSON.stringify(results.at(-1))}` }]));
  },
  doStream: () => Promise.reject(new Error("the script does not stream")),
};

const { text } = await generateText({ model, tools, prompt: "Put order 8841 right.", stopWhen: stepCountIs(5) });
console.log(text);
