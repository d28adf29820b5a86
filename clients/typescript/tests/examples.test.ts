// The examples, run as their comments say, in a directory with a real `stage0 dev`. The one with an agent library needs
// that library, and runs where STAGE0_EXAMPLES is set (scripts/clients-typescript.sh examples).

import assert from "node:assert/strict";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { after, before, test } from "node:test";

import { run, startDev, type DevServer } from "./harness.js";

let dev: DevServer;
before(async () => {
  dev = await startDev();
});
after(() => dev.stop());

async function runs(path: string): Promise<void> {
  const script = fileURLToPath(new URL(path, import.meta.url));
  const ended = await run(process.execPath, [script], "", {}, dirname(dev.dataDir));
  assert.equal(ended.status, 0, ended.stderr);
  assert.match(ended.stdout, /^reads build$/m);
  assert.match(ended.stdout, /deferred, do not act: waits for approval apr_/);
  assert.doesNotMatch(ended.stdout, /refunds/);
}

test("the plain loop acts on an ALLOW, and its model reads what a DEFER says", () => runs("./examples/plain-loop.js"));

test(
  "the Vercel AI SDK acts on an ALLOW, and its model reads what a DEFER says",
  { skip: process.env["STAGE0_EXAMPLES"] === "1" ? false : "scripts/clients-typescript.sh examples runs it" },
  () => runs("../examples/ai-sdk/build/agent.js"),
);
