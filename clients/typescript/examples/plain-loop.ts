// An agent without a library: a loop in which a model names a tool, and the tool runs only if Stage0 allows the call.
// The model is a script here, so that the example runs without one.
//   node plain-loop.js        with `stage0 dev` running in the same directory

import { Client, NotAllowed } from "@stage0/client";

interface Call {
  readonly tool: string;
  readonly input: Readonly<Record<string, unknown>>;
}

/** In the place of a model: it reads what came of its last call and names the next one. */
function* model(): Generator<Call, void, string> {
  const log = yield { tool: "read_log", input: { name: "build" } };
  if (log.includes("failed")) yield { tool: "refund", input: { order: "8841", amount: 120 } };
}

const client = new Client({ runId: `plain-loop-${process.pid}`, agent: "plain-loop" });

const tools: Readonly<Record<string, (input: Call["input"]) => Promise<string>>> = {
  read_log: client.guarded({ tool: "read_log", effects: [], arguments: ["name"] }, (input: Call["input"]) => {
    console.log("reads", input["name"]);
    return "the payment for order 8841 failed";
  }),
  refund: client.guarded(
    {
      tool: "refund",
      effects: ["payment"],
      constraints: ["approval required"],
      successCriteria: ["the customer has the money"],
      arguments: ["order", "amount"],
      // What a rule of your policy reads.
      context: (input: Call["input"]) => ({ amount: input["amount"] }),
    },
    (input: Call["input"]) => {
      console.log("refunds", input["amount"]);
      return "refunded";
    },
  ),
};

const agent = model();
let step = agent.next();
while (!step.done) {
  const { tool, input } = step.value;
  let result: string;
  try {
    result = (await tools[tool]?.(input)) ?? `there is no tool ${tool}`;
  } catch (error) {
    // The model reads why, and what it can do. Other errors are the tool's own.
    if (!(error instanceof NotAllowed)) throw error;
    console.log(error.message);
    result = error.message;
  }
  step = agent.next(result);
}
