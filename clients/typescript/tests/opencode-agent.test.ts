// The plugin inside of a real OpenCode, with a scripted model in the place of a hosted one. Runs where STAGE0_OPENCODE
// names the program (scripts/clients-typescript.sh opencode).

import assert from "node:assert/strict";
import { copyFileSync, existsSync, mkdirSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { after, before, test } from "node:test";

import { Client } from "@stage0/client";
import { run, scratch, startDev, type DevServer } from "./harness.js";

const OPENCODE = process.env["STAGE0_OPENCODE"] ?? "";
const options = { skip: OPENCODE === "" ? "scripts/clients-typescript.sh opencode runs it" : false };
const PLUGIN = fileURLToPath(new URL("../dist/opencode.js", import.meta.url));

let dev: DevServer;
before(async () => {
  if (OPENCODE !== "") dev = await startDev();
});
after(() => (OPENCODE === "" ? undefined : dev.stop()));

interface Message {
  readonly role: string;
  readonly content: unknown;
}

/** Calls the agent's shell with each command in turn, then stops. `results` is what it read. */
async function model(commands: readonly string[]): Promise<{ server: Server; url: string; results: string[] }> {
  const results: string[] = [];
  const chunk = (delta: object, finish: string | null = null) => {
    const choices = [{ index: 0, delta, finish_reason: finish }];
    const whole = { id: "c", object: "chat.completion.chunk", created: 1, model: "script", choices };
    return `data: ${JSON.stringify(whole)}\n\n`;
  };
  const server = createServer((request, response) => {
    const parts: Buffer[] = [];
    request.on("data", (part: Buffer) => parts.push(part));
    request.on("end", () => {
      const asked = JSON.parse(Buffer.concat(parts).toString()) as { messages: Message[]; tools?: unknown[] };
      const read = asked.messages.filter(({ role }) => role === "tool").map(({ content }) => JSON.stringify(content));
      results.splice(0, results.length, ...(read.length > results.length ? read : results));
      response.writeHead(200, { "content-type": "text/event-stream" });
      const command = asked.tools === undefined ? undefined : commands[read.length];
      const input = JSON.stringify({ command, description: "runs it" });
      const call = {
        index: 0,
        id: `call_${read.length}`,
        type: "function",
        function: { name: "bash", arguments: input },
      };
      const text =
        command === undefined ? { role: "assistant", content: "done" } : { role: "assistant", tool_calls: [call] };
      response.end(chunk(text) + chunk({}, command === undefined ? "stop" : "tool_calls") + "data: [DONE]\n\n");
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { server, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`, results };
}

/**
 * Runs the agent with this plugin file, of the project or of the user, and returns the project and what the model read.
 * The project names a server of its own, which must never be asked.
 */
async function agent(
  commands: readonly string[],
  plugin: string,
  environment: Readonly<Record<string, string>>,
  whose: "project" | "user" = "project",
) {
  const home = scratch();
  const project = join(home, "project");
  const folder = whose === "project" ? join(project, ".opencode") : join(home, "CONFIG", "opencode");
  mkdirSync(join(folder, "plugin"), { recursive: true });
  writeFileSync(join(folder, "plugin", "stage0.js"), plugin);
  mkdirSync(join(project, ".stage0"), { recursive: true });
  copyFileSync(join(dev.dataDir, "dev.json"), join(project, ".stage0", "dev.json"));
  writeFileSync(join(project, ".env"), `STAGE0_DATA_DIR=${dev.dataDir}\n`);
  const script = await model(commands);
  const models = { script: { name: "script", limit: { context: 100_000, output: 4_000 } } };
  const provider = { npm: "@ai-sdk/openai-compatible", options: { baseURL: script.url, apiKey: "none" }, models };
  const config = {
    autoupdate: false,
    share: "disabled",
    provider: { script: provider },
    permission: { bash: "allow" },
  };
  writeFileSync(
    join(project, "opencode.json"),
    JSON.stringify({ ...config, model: "script/script", small_model: "script/script" }),
  );
  const folders = ["CONFIG", "DATA", "CACHE", "STATE"].map((name) => [`XDG_${name}_HOME`, join(home, name)] as const);
  // It takes its directory from PWD.
  const own: Record<string, string> = { HOME: home, PWD: project, OPENCODE_DISABLE_MODELS_FETCH: "1" };
  for (const [name, path] of folders) own[name] = path;
  const ended = await run(OPENCODE, ["run", "go", "--model", "script/script"], "", { ...own, ...environment }, project);
  script.server.close();
  assert.equal(ended.status, 0, ended.stderr);
  assert.equal(script.results.length, commands.length, ended.stderr);
  return { ran: (file: string) => existsSync(join(project, file)), results: script.results };
}

const GUARDED = `export { Stage0 } from ${JSON.stringify(PLUGIN)};`;

test("a harmless command runs and its outcome is reported, a harmful one does not run", options, async () => {
  const commands = ["touch harmless", "touch harmful; rm -rf ./nothing /nothing-either"];
  const { ran, results } = await agent(commands, GUARDED, { STAGE0_DATA_DIR: dev.dataDir });
  assert.deepEqual([ran("harmless"), ran("harmful")], [true, false], results.join("\n"));
  assert.match(results[1] ?? "", /Stage0 (DENIED|DEFERRED) this call/);
  const ids = [...dev.cli("decisions", "list", "--json").matchAll(/"request_id": ?"([0-9a-f-]{36})"/g)];
  const client = new Client({ dataDir: dev.dataDir });
  const records = await Promise.all([...new Set(ids.map(([, id]) => id ?? ""))].map((id) => client.decision(id)));
  const outcomes = records.flatMap(({ outcome }) => (outcome == null ? [] : [[outcome.status, outcome.tool_call_id]]));
  assert.deepEqual(outcomes, [["succeeded", "call_0"]]);
});

test("without a server, and without any setting, nothing runs", options, async () => {
  const down = { STAGE0_URL: "https://127.0.0.1:1", STAGE0_API_KEY: "s0_none" };
  for (const environment of [down, {}]) {
    const { ran, results } = await agent(["touch harmless"], GUARDED, environment);
    assert.equal(ran("harmless"), false);
    assert.match(results[0] ?? "", /Stage0 did not decide this call/);
  }
});

test("the plugin of the README, which names its server, guards from the user's own folder", options, async () => {
  const keyFile = join(scratch(), "agent.key");
  writeFileSync(keyFile, dev.newKey("check", "outcomes:report"), { mode: 0o600 });
  const named = JSON.stringify({ url: dev.url, ca: dev.caFile, keyFile });
  const plugin = `
    import { Stage0 } from ${JSON.stringify(PLUGIN)};
    export const Guard = (input) => Stage0(input, ${named});`;
  const commands = ["touch harmless", "touch harmful; rm -rf ./nothing /nothing-either"];
  const { ran, results } = await agent(commands, plugin, { STAGE0_URL: "https://127.0.0.1:1" }, "user");
  assert.deepEqual([ran("harmless"), ran("harmful")], [true, false], results.join("\n"));
});

test("a plugin that cannot be loaded guards nothing, as the README says", options, async () => {
  const { ran } = await agent(["touch harmless"], 'export { Stage0 } from "/nonexistent.js";', {});
  assert.equal(ran("harmless"), true);
});
