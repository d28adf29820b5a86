// What the tests stand on: a real `stage0 dev`, and a real HTTPS server that answers as a test says.

import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { makeAuthority } from "../dist/selftest/certificate.js";
import { http, MisbehavingServer, type Behaviour, type ReceivedRequest } from "../dist/selftest/server.js";

/** A test without a server would prove nothing, so it fails instead of being left out. */
export function binary(): string {
  const path = process.env["STAGE0_BIN"];
  if (path === undefined || path === "") throw new Error("set STAGE0_BIN to the path of the `stage0` binary");
  return path;
}

const directories: string[] = [];
process.on("exit", () => {
  for (const path of directories) rmSync(path, { recursive: true, force: true });
});

/** A new directory, until the process ends. */
export function scratch(): string {
  const path = mkdtempSync(join(tmpdir(), "stage0-ts-"));
  directories.push(path);
  return path;
}

const STATE_HOME = scratch();

export interface DevServer {
  readonly dataDir: string;
  readonly url: string;
  readonly key: string;
  readonly caFile: string;
  /** Runs the command line against this server and returns its standard output. */
  cli(...args: readonly string[]): string;
  /** A new key with these scopes. */
  newKey(...scopes: readonly string[]): string;
  stop(): Promise<void>;
}

export async function startDev(...args: readonly string[]): Promise<DevServer> {
  const home = scratch();
  const dataDir = join(home, ".stage0");
  const started = spawn(binary(), ["dev", "--data-dir", dataDir, "--listen", "127.0.0.1:0", ...args], {
    stdio: ["ignore", "pipe", "pipe"],
    env: cleanEnvironment(),
  });
  await ready(started);
  const dev = JSON.parse(readFileSync(join(dataDir, "dev.json"), "utf8")) as Record<string, string>;
  const cli = (...command: readonly string[]) => {
    const done = spawnSync(binary(), [...command, "--data-dir", dataDir], {
      encoding: "utf8",
      env: cleanEnvironment(),
    });
    if (done.status !== 0) throw new Error(`stage0 ${command.join(" ")}: ${done.stderr}`);
    return done.stdout;
  };
  let keys = 0;
  return {
    dataDir,
    url: dev["url"] ?? "",
    key: dev["api_key"] ?? "",
    caFile: dev["ca_file"] ?? "",
    cli,
    newKey: (...scopes) => {
      const file = join(home, `key-${keys++}`);
      cli("keys", "create", "--name", "test", "--out", file, ...scopes.flatMap((scope) => ["--scope", scope]));
      return readFileSync(file, "utf8").trim();
    },
    stop: async () => {
      const ended = new Promise((resolve) => started.once("exit", resolve));
      started.kill("SIGTERM");
      await ended;
      rmSync(home, { recursive: true, force: true });
    },
  };
}

export interface Ended {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
  readonly elapsedMs: number;
}

/** Runs a program beside the servers of this process. `input` undefined: its standard input stays open. */
export function run(
  command: string,
  args: readonly string[],
  input: string | Buffer | undefined,
  environment: Readonly<Record<string, string>> = {},
  cwd?: string,
): Promise<Ended> {
  const startedAt = performance.now();
  const child = spawn(command, args, { env: { ...cleanEnvironment(), ...environment }, cwd });
  const texts = { stdout: "", stderr: "" };
  child.stdout.on("data", (part: Buffer) => (texts.stdout += part.toString()));
  child.stderr.on("data", (part: Buffer) => (texts.stderr += part.toString()));
  // A program that does not read all of its input closes the pipe.
  child.stdin.on("error", () => undefined);
  if (input !== undefined) child.stdin.end(input);
  // One that does not end is a failure, and not a test that never ends either.
  const timer = setTimeout(() => child.kill("SIGKILL"), 60_000);
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("close", () => clearTimeout(timer));
    child.on("close", (status) => resolve({ status, ...texts, elapsedMs: performance.now() - startedAt }));
  });
}

/** Without the settings and the state of the person who runs the tests. */
export function cleanEnvironment(): NodeJS.ProcessEnv {
  const others = Object.entries(process.env).filter(([name]) => !name.startsWith("STAGE0_"));
  return { ...Object.fromEntries(others), XDG_STATE_HOME: STATE_HOME };
}

function ready(started: ChildProcess): Promise<void> {
  return new Promise((resolve, reject) => {
    let text = "";
    const read = (part: Buffer) => {
      text += part.toString();
      if (text.includes("is ready at")) resolve();
    };
    started.stdout?.on("data", read);
    started.stderr?.on("data", read);
    started.on("error", reject);
    started.on("exit", (code) => reject(new Error(`stage0 dev ended with ${code}:\n${text}`)));
    setTimeout(() => reject(new Error(`stage0 dev is not ready:\n${text}`)), 60_000).unref();
  });
}

export const AUTHORITY = makeAuthority("test");
export const KEY = "s0_testkey";

export interface Served extends AsyncDisposable {
  readonly url: string;
  readonly ca: string;
  readonly requests: readonly ReceivedRequest[];
  /** A data directory as `stage0 dev` writes it, which names this server. */
  readonly dataDir: string;
}

export async function serve(behaviour: Behaviour, names = ["127.0.0.1", "localhost"]): Promise<Served> {
  const server = await MisbehavingServer.start(AUTHORITY.issue(names), behaviour);
  const dataDir = scratch();
  const caFile = join(dataDir, "ca.pem");
  writeFileSync(caFile, AUTHORITY.cert);
  const dev = { url: server.url, ca_file: caFile, api_key: KEY, operator_key: "s0_op", account: "acc_1" };
  writeFileSync(join(dataDir, "dev.json"), JSON.stringify(dev), { mode: 0o600 });
  return {
    url: server.url,
    ca: AUTHORITY.cert,
    requests: server.requests,
    dataDir,
    [Symbol.asyncDispose]: async () => {
      await server.stop();
      rmSync(dataDir, { recursive: true, force: true });
    },
  };
}

/** Answers the first request with the first text, and so on; all further ones with the last. */
export function inTurn(...texts: readonly (string | "close" | "silence")[]): Behaviour {
  let count = 0;
  return {
    answer: (socket) => {
      const text = texts[Math.min(count++, texts.length - 1)] ?? "";
      if (text === "close") socket.destroy();
      else if (text !== "silence") socket.write(text);
    },
  };
}

export const json = (status: number, body: object, headers: Readonly<Record<string, string>> = {}): string =>
  http(status, JSON.stringify(body), headers);

export const errorBody = (error: string, message = "refused") => ({
  message,
  error,
  detail: { detail: message, request_id: "01940a6e-8c00-7d7a-b1f5-2f4d3c1a9e55" },
  request_id: "01940a6e-8c00-7d7a-b1f5-2f4d3c1a9e55",
});
