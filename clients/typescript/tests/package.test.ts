// The npm package as others get it: its files, its types, and the README's quick start word for word.

import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { after, before, test } from "node:test";

import { run, scratch, startDev, type DevServer } from "./harness.js";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
let dev: DevServer;
let tarball: string;
before(async () => {
  const out = scratch();
  const packed = execFileSync("npm", ["pack", "--json", "--ignore-scripts", "--pack-destination", out], { cwd: ROOT });
  tarball = join(out, (JSON.parse(packed.toString()) as { filename: string }[])[0]?.filename ?? "");
  dev = await startDev();
});
after(() => dev.stop());

function installed(): string {
  const home = dirname(dev.dataDir);
  if (!existsSync(join(home, "node_modules"))) {
    execFileSync("npm", ["init", "-y"], { cwd: home });
    execFileSync("npm", ["install", "--offline", "--no-audit", "--no-fund", tarball], { cwd: home });
  }
  return home;
}

test("the package holds what is built, and neither tests nor sources", () => {
  const files = execFileSync("tar", ["tzf", tarball]).toString().trim().split("\n");
  for (const file of [
    "dist/index.js",
    "dist/index.d.ts",
    "dist/opencode.d.ts",
    "dist/wire.d.ts",
    "bin/stage0-hook.cjs",
    "LICENSE",
    "README.md",
  ]) {
    assert.ok(files.includes(`package/${file}`), file);
  }
  assert.deepEqual(
    files.filter((file) => /src\/|tests\/|node_modules|\.env|lock/.test(file)),
    [],
  );
  const manifest = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8")) as Record<string, unknown>;
  assert.equal(manifest["dependencies"], undefined);
  for (const file of ["client.js", "hook/ask.js"]) {
    const agent = /stage0-[a-z-]+\/(\d[\w.-]*)/.exec(readFileSync(join(ROOT, "dist", file), "utf8"));
    assert.equal(agent?.[1], manifest["version"], `the version that ${file} sends`);
  }
});

test("the quick start of the README works in an empty directory, and prints what the README shows", async () => {
  const readme = readFileSync(join(ROOT, "README.md"), "utf8");
  const block = (language: string, marker: string) => {
    const found = [...readme.matchAll(/```(\w+)\n(.*?)```/gs)].find(
      ([, kind, text]) => kind === language && text?.includes(marker),
    );
    return found?.[2] ?? assert.fail(`the README has no ${language} block with ${marker}`);
  };
  const home = installed();
  writeFileSync(join(home, "agent.mjs"), block("js", "// agent.mjs"));
  const ended = await run(process.execPath, ["agent.mjs"], "", {}, home);
  assert.equal(ended.status, 0, ended.stderr);
  const shown = block("text", "the log of build").trim().split("\n");
  // What differs from run to run stands as `…` in the README.
  const pattern = shown.map((line) =>
    line
      .split("…")
      .map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"))
      .join(".*"),
  );
  assert.match(ended.stdout.trim(), new RegExp(`^${pattern.join("\n")}$`));
});

test("the command of the package is the hook", async () => {
  const home = installed();
  const ended = await run(join(home, "node_modules", ".bin", "stage0-hook"), ["claude-code"], "", {}, home);
  assert.equal(ended.status, 2);
  assert.match(ended.stdout, /"permissionDecision":"deny"/);
});

test("the types compile for a strict caller, and refuse a wrong one", () => {
  const home = installed();
  mkdirSync(join(home, "node_modules", "@types"), { recursive: true });
  for (const name of ["@types/node", "undici-types"]) {
    if (!existsSync(join(home, "node_modules", name)))
      symlinkSync(join(ROOT, "node_modules", name), join(home, "node_modules", name));
  }
  // The lines with errors.
  const compile = (lines: readonly string[]) => {
    writeFileSync(join(home, "caller.mts"), lines.join("\n"));
    const flags = ["--strict", "--noEmit", "--target", "es2022", "--module", "nodenext", "--types", "node"];
    const tsc = [join(ROOT, "node_modules/typescript/bin/tsc"), ...flags, "caller.mts"];
    const { stdout } = spawnSync(process.execPath, tsc, { cwd: home, encoding: "utf8" });
    return { stdout, lines: [...stdout.matchAll(/^caller\.mts\((\d+),/gm)].map(([, line]) => Number(line)) };
  };
  const head = [
    'import { Client } from "@stage0/client";',
    'import { Stage0 } from "@stage0/client/opencode";',
    "const client = new Client(); void Stage0;",
  ];
  const readme = readFileSync(join(ROOT, "README.md"), "utf8");
  const shown = [...readme.matchAll(/```ts\n(.*?)```/gs)].map(([, text]) => text ?? "");
  assert.equal(shown.length, 2);
  const right = compile([
    ...head,
    "declare const smtp: { send(mail: object): Promise<void> };",
    "declare function rollOut(build: number): Promise<void>;",
    ...shown,
    'const options = { tool: "pay", effects: ["payment"], goal: (amount: number) => `Pay ${amount}` };',
    "const pay = client.guarded(options, (amount: number) => amount);",
    "const paid: number = await pay(1); void paid; void send;",
    'const { requestId } = await client.check({ goal: "x", context: { run_id: "r", own: 1 } });',
    'await client.reportOutcome(requestId, "succeeded");',
  ]);
  assert.equal(right.stdout, "");
  const wrong = [
    'await client.check({ gaol: "x" });',
    'client.guarded({ tool: "pay" }, () => 1);',
    'await client.guarded({ tool: "pay", effects: [] }, (amount: number) => amount)("1");',
    'await client.reportOutcome("id", "done");',
    'await client.check({ goal: "x", context: { run_id: true } });',
  ];
  const { lines, stdout } = compile([...head, ...wrong]);
  assert.deepEqual(
    [...new Set(lines)],
    wrong.map((_, at) => head.length + at + 1),
    stdout,
  );
});
