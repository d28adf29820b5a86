// `stage0-hook AGENT`: a coding agent's hook. Reads the event on standard input, asks the server, and answers in the
// agent's own form. INVARIANT: it ends with 0 only if the tool may run, and otherwise with 2; never with 1, after which
// agents run the tool. And it ends within its deadline, which counts from the start of the process.
// The working directory is the project that the agent works on, so no file in it chooses server, authority or key.
// When an allowed call has ended, the agent's event about that is sent with the id of its decision, which was kept
// after the answer to the call, so that the server can record the outcome. No fault of that changes an answer.

import { writeSync } from "node:fs";
import { isAbsolute } from "node:path";
import { parseArgs } from "node:util";

import { isAgent, AGENTS, endsCall, eventName, membersOf, type Agent } from "./hook/agents.js";
import { askHook, MAX_EVENT_BYTES, refusal, type HookAnswer } from "./hook/ask.js";
import { lookupInChild } from "./hook/lookup.js";
import { callName, defaultStateDir, HookState, isRequestId } from "./hook/state.js";
import type { JsonObject } from "./json.js";
import { findServer } from "./settings.js";
import { httpsTransport } from "./transport.js";

const USAGE = `usage: stage0-hook ${AGENTS.slice(0, -1).join("|")} [--timeout SECONDS]
         [--state-dir DIR] --url URL [--ca FILE] [--key-file FILE] | --data-dir DIR
The event is read from standard input. Ends with 0 if the tool may run and with 2 if it must not. Paths are absolute.
Other settings: STAGE0_URL, STAGE0_CA, STAGE0_KEY_FILE, STAGE0_API_KEY, STAGE0_DATA_DIR, STAGE0_TIMEOUT. With
--data-dir, no variable counts for server, authority and key. --state-dir keeps which calls were allowed, until they
end (default: stage0/hook in XDG_STATE_HOME or ~/.local/state).`;

const DEFAULT_TIMEOUT_MS = 5000;
const MAX_TIMEOUT_MS = 60_000;
/** For writing the answer. */
const RESERVE_MS = 150;

export async function main(args: readonly string[]): Promise<void> {
  const { values, positionals } = parseArgs({
    args: [...args],
    allowPositionals: true,
    options: {
      url: { type: "string" },
      ca: { type: "string" },
      "key-file": { type: "string" },
      "data-dir": { type: "string" },
      "state-dir": { type: "string" },
      timeout: { type: "string" },
      help: { type: "boolean", short: "h" },
    },
  });
  if (values.help === true) {
    write(2, `${USAGE}\n`);
    // Not 0: an agent would run the tool.
    process.exit(2);
  }
  const [agent = "", ...others] = positionals;
  if (!isAgent(agent) || agent === "opencode" || others.length > 0) throw new Error(`no such agent\n${USAGE}`);
  const stateDir = values["state-dir"];
  // It would be one of the project that the agent works on.
  if (stateDir !== undefined && !isAbsolute(stateDir))
    throw new Error(`--state-dir must be an absolute path\n${USAGE}`);
  const timeoutMs = milliseconds(values.timeout ?? process.env["STAGE0_TIMEOUT"]);
  watch(agent, timeoutMs);
  const connect = () => {
    const options = { url: values.url, ca: values.ca, keyFile: values["key-file"], dataDir: values["data-dir"] };
    // A data directory that the command line names is the whole choice: no variable adds to it or replaces it.
    const server = findServer(options, options.dataDir === undefined ? process.env : {}, true);
    return { server, transport: httpsTransport({ ca: server.ca, lookup: lookupInChild }) };
  };
  const event = await readEvent();
  if (event.length === 0) return end(refusal(agent, undefined, "the event is empty"));
  const calls = new Calls(agent, event, stateDir);
  const decision = calls.take();
  const leftMs = Math.max(1, timeoutMs - RESERVE_MS - performance.now());
  const answer = await askHook(agent, event, connect, leftMs, decision);
  end(answer, () => {
    calls.keep(answer);
    if (calls.trouble !== "") write(2, `${calls.trouble}\n`);
  });
}

/** Which decision allowed the event's call. Nothing here throws. */
class Calls {
  /** What went wrong, for standard error. */
  trouble = "";
  readonly #agent: Agent;
  readonly #event: JsonObject;
  readonly #stateDir: string | undefined;

  constructor(agent: Agent, event: Uint8Array, stateDir: string | undefined) {
    this.#agent = agent;
    this.#event = membersOf(event);
    this.#stateDir = stateDir;
  }

  /** For an event that says that the call has ended. */
  take(): string | undefined {
    if (!endsCall(eventName(this.#event))) return undefined;
    return this.#with((state, call) => state.take(call));
  }

  /** If the answer allows a call. */
  keep({ requestId }: HookAnswer): void {
    if (isRequestId(requestId)) this.#with((state, call) => state.keep(call, requestId));
  }

  #with<T>(work: (state: HookState, call: string) => T): T | undefined {
    try {
      const call = callName(this.#agent, this.#event);
      if (call === undefined) return undefined;
      return work(new HookState(this.#stateDir ?? defaultStateDir(process.env), this.#agent), call);
    } catch (error) {
      this.trouble = `Stage0: the outcome of this call is not reported: ${(error as Error).message}`;
      return undefined;
    }
  }
}

/** Holds even where a file, a pipe or a name server never answers. */
function watch(agent: Agent, timeoutMs: number): void {
  const deny = () => {
    end(refusal(agent, undefined, `no answer within ${timeoutMs} ms`));
  };
  setTimeout(deny, Math.max(1, timeoutMs - RESERVE_MS / 2 - performance.now()));
}

/** One byte more than an event may have, if there are as many. */
async function readEvent(): Promise<Buffer> {
  const parts: Buffer[] = [];
  let size = 0;
  for await (const part of process.stdin) {
    parts.push(part as Buffer);
    size += (part as Buffer).length;
    if (size > MAX_EVENT_BYTES) break;
  }
  return Buffer.concat(parts);
}

function milliseconds(seconds: string | undefined): number {
  if (seconds === undefined || seconds.trim() === "") return DEFAULT_TIMEOUT_MS;
  const ms = Number(seconds) * 1000;
  if (!(ms > RESERVE_MS)) throw new Error(`the timeout is a number of seconds above 0.15\n${USAGE}`);
  // STAGE0_TIMEOUT may be meant for longer commands of the command line.
  return Math.min(ms, MAX_TIMEOUT_MS);
}

/** `then` comes after the answer and does not throw. */
function end(answer: HookAnswer, then?: () => void): never {
  const code = answer.mayRun ? 0 : 2;
  if (Object.keys(answer.body).length > 0) write(1, `${JSON.stringify(answer.body)}\n`);
  if (answer.text !== "") write(2, `${answer.text}\n`);
  then?.();
  process.exit(code);
}

/** Whole, before the process ends. An answer that cannot be written is no ALLOW. */
function write(fd: 1 | 2, text: string): void {
  let rest = Buffer.from(text);
  while (rest.length > 0) {
    try {
      rest = rest.subarray(writeSync(fd, rest));
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === "EAGAIN" && performance.now() < MAX_TIMEOUT_MS) continue;
      if (fd === 1) process.exit(2);
      return;
    }
  }
}
