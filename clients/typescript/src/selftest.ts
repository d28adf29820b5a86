// Proves that the caller's code does not act without an ALLOW: it runs that code against a server that misbehaves in
// every way of `FAULTS`, over real TLS. INVARIANT: a self-test that proves nothing fails. It needs code that does act
// on a correct ALLOW, and that asks the server it was given.

import { Client, type ClientOptions } from "./client.js";
import { makeAuthority, type Authority } from "./selftest/certificate.js";
import { allowed, FAULTS, type Fault } from "./selftest/faults.js";
import { http, MisbehavingServer, type Behaviour } from "./selftest/server.js";

/** Stands for the tool. */
export interface Probe {
  /** Called where the tool would act. */
  acted(): void;
}

export interface SelftestRow {
  readonly fault: string;
  readonly acted: boolean;
  /** What the code threw, by name and text; undefined: nothing. */
  readonly raised: string | undefined;
  readonly elapsedMs: number;
  /** Why the row fails; undefined: it passes. */
  readonly problem: string | undefined;
}

export class SelftestFailed extends Error {
  override readonly name = "SelftestFailed";
  readonly rows: readonly SelftestRow[];

  constructor(rows: readonly SelftestRow[]) {
    const failed = rows.filter((row) => row.problem !== undefined);
    super(`the self-test failed:\n${failed.map((row) => `- ${row.fault}: ${row.problem}`).join("\n")}`);
    this.rows = rows;
  }
}

export interface SelftestOptions extends Omit<ClientOptions, "url" | "key" | "keyFile" | "ca" | "dataDir" | "fetch"> {
  /** Only the faults with these names. */
  readonly only?: readonly string[] | undefined;
}

const NAMES = ["127.0.0.1", "localhost"];
const KEY = "s0_selftest";
const DEFAULT_TIMEOUT_MS = 5000;

/**
 * Calls `act` once for each fault, with a client that asks the misbehaving server. `act` does what the caller's code
 * does and calls `probe.acted()` in the place of the tool. It may throw; it must not act.
 */
export async function selftest(
  act: (client: Client, probe: Probe) => unknown,
  options: SelftestOptions = {},
): Promise<readonly SelftestRow[]> {
  const { only, ...rest } = options;
  const clientOptions = { onWarning: () => undefined, ...rest };
  const trusted = makeAuthority("Stage0 self-test");
  const run = (fault: Fault) => runFault(act, clientOptions, trusted, fault);
  const rows = [await run({ name: ALLOW, ...correct() })];
  for (const fault of FAULTS) if (only?.includes(fault.name) ?? true) rows.push(await run(fault));
  if (rows.some((row) => row.problem !== undefined)) throw new SelftestFailed(rows);
  return rows;
}

const ALLOW = "a correct ALLOW";

/** Answers reports of outcomes as well, with a 404: the code's own report must not decide about the row. */
function correct(): Behaviour {
  const notFound = JSON.stringify({ message: "not here", error: "not_found", detail: {}, request_id: "" });
  return {
    answer: (socket, { path }) =>
      void socket.write(path === "/check" ? http(200, JSON.stringify(allowed())) : http(404, notFound)),
  };
}

async function runFault(
  act: (client: Client, probe: Probe) => unknown,
  options: ClientOptions,
  trusted: Authority,
  fault: Fault,
): Promise<SelftestRow> {
  const authority = fault.trouble === "wrong authority" ? makeAuthority("Stage0 self-test, not trusted") : trusted;
  const names = fault.trouble === "wrong host name" ? ["other.invalid"] : NAMES;
  const server = await MisbehavingServer.start(authority.issue(names), fault);
  const { url } = server;
  if (fault.trouble === "nothing listens") await server.stop();
  const client = new Client({ ...options, url, key: KEY, ca: trusted.cert });
  let count = 0;
  const startedAt = performance.now();
  try {
    const raised = await outcomeOf(() => act(client, { acted: () => void count++ }), hangLimitMs(options));
    const elapsedMs = Math.round(performance.now() - startedAt);
    const asked = server.requests.length > 0 || fault.trouble !== undefined || fault.connected !== undefined;
    const row = { fault: fault.name, acted: count > 0, raised, elapsedMs };
    return { ...row, problem: problemOf(row, asked) };
  } finally {
    if (fault.trouble !== "nothing listens") await server.stop();
  }
}

/** Code that asks several times may take several deadlines. */
const hangLimitMs = (options: ClientOptions) => (options.timeoutMs ?? DEFAULT_TIMEOUT_MS) * 5 + 5000;
const HANGS = "it does not end";

async function outcomeOf(work: () => unknown, limitMs: number): Promise<string | undefined> {
  let timer: NodeJS.Timeout | undefined;
  const limit = new Promise<string>((resolve) => {
    timer = setTimeout(() => resolve(HANGS), limitMs);
  });
  try {
    return await Promise.race([
      limit,
      Promise.resolve()
        .then(work)
        .then(() => undefined),
    ]);
  } catch (error) {
    return error instanceof Error ? `${error.name}: ${error.message}` : String(error);
  } finally {
    clearTimeout(timer);
  }
}

function problemOf(row: Omit<SelftestRow, "problem">, asked: boolean): string | undefined {
  if (row.raised === HANGS) return "the code did not end";
  if (row.fault === ALLOW) {
    if (!row.acted)
      return `the code did not act on it, so the other rows prove nothing${row.raised ? `: ${row.raised}` : ""}`;
    return asked ? undefined : "the code acted without asking the client that it was given";
  }
  if (row.acted) return "the code acted";
  return asked ? undefined : "the code did not ask the client that it was given";
}
