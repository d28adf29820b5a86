// What the hook keeps between its processes: which decision allowed a call that has not ended yet. One file for each
// such call holds the decision's id; its name is a hash of the session and the call's id, so no text of a call is kept,
// and whatever stands in an event names a file of this folder and no other.
// INVARIANT: nothing of it decides a call. What goes wrong throws; then an outcome is not reported, and that is all.
// No call here waits, except for a file system that hangs.

import { createHash, randomBytes } from "node:crypto";
import {
  closeSync,
  constants,
  fstatSync,
  lstatSync,
  mkdirSync,
  opendirSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  unlinkSync,
  writeSync,
  type Stats,
} from "node:fs";
import { isAbsolute, join } from "node:path";

import { isObject } from "../json.js";
import type { Agent } from "./agents.js";

/** A call whose end was not seen by then is forgotten. */
export const CALL_TTL_MS = 24 * 3_600_000;
/** The most files that one process looks at to forget old ones. */
export const MAX_LOOKED_AT = 100;
const MAX_FILE_BYTES = 64;

/** A UUID of version 7, as the server writes it. */
const REQUEST_ID = /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;
const OWN_NAME = /^[0-9a-f]{64}(\.[0-9a-f]{16}\.new)?$/;

export const isRequestId = (text: string | undefined): text is string => text !== undefined && REQUEST_ID.test(text);

/** Stands for the event's call. Undefined: the event has no id of a call. */
export function callName(agent: Agent, event: unknown): string | undefined {
  if (!isObject(event)) return undefined;
  const text = (name: string) => {
    const value = event[name];
    return typeof value === "string" && value.trim() !== "" ? value : undefined;
  };
  const call = text(agent === "gemini" ? "tool_call_id" : "tool_use_id");
  if (call === undefined) return undefined;
  const session = (agent === "cursor" ? text("conversation_id") : undefined) ?? text("session_id") ?? null;
  // As JSON, so that no two pairs are the same bytes; escaped, because halves of surrogate pairs have no UTF-8.
  const named = JSON.stringify([session, call]).replace(/[\u007f-\uffff]/g, escaped);
  return createHash("sha256").update(named, "latin1").digest("hex");
}

const escaped = (unit: string) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`;

/** A relative path would be one of the project that the agent works on. */
export function defaultStateDir(environment: Readonly<Record<string, string | undefined>>): string | undefined {
  const { XDG_STATE_HOME: state = "", HOME: home = "" } = environment;
  if (isAbsolute(state)) return join(state, "stage0", "hook");
  return isAbsolute(home) ? join(home, ".local", "state", "stage0", "hook") : undefined;
}

/** The folder of one agent. Reading creates nothing. */
export class HookState {
  readonly #base: string;
  readonly #folder: string;

  constructor(directory: string | undefined, agent: Agent) {
    if (directory === undefined) throw new Error("name a directory with --state-dir, or set HOME");
    this.#base = directory;
    this.#folder = join(directory, agent);
  }

  /** A later call with the same id replaces an earlier one. */
  keep(call: string, requestId: string): void {
    mkdirSync(this.#base, { recursive: true, mode: 0o700 });
    directory(this.#base);
    mkdirSync(this.#folder, { recursive: true, mode: 0o700 });
    this.#check();
    const beside = join(this.#folder, `${call}.${randomBytes(8).toString("hex")}.new`);
    try {
      // A new file of our own: it follows no link, and waits for no reader.
      const opened = openSync(beside, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL, 0o600);
      try {
        writeSync(opened, requestId);
      } finally {
        closeSync(opened);
      }
      renameSync(beside, join(this.#folder, call));
    } catch (error) {
      rmSync(beside, { force: true });
      throw error;
    }
    this.#forgetOld();
  }

  /** The decision that allowed the call. Of several processes that ask, one gets it. */
  take(call: string): string | undefined {
    const path = join(this.#folder, call);
    try {
      directory(this.#base);
      this.#check();
      const { text, stats } = read(path);
      unlinkSync(path);
      return isRequestId(text) && !isOld(stats) ? text : undefined;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
      throw error;
    }
  }

  #check(): void {
    const { uid, mode } = directory(this.#folder);
    const user = process.getuid?.();
    if (user !== undefined && (uid !== user || (mode & 0o022) !== 0))
      throw new Error(`another user may write to ${this.#folder}`);
  }

  /** What is not looked at now is looked at when the files before it have become old and were removed. */
  #forgetOld(): void {
    try {
      const entries = opendirSync(this.#folder);
      try {
        for (let count = 0; count < MAX_LOOKED_AT; count++) {
          const entry = entries.readSync();
          if (entry === null) return;
          const path = join(this.#folder, entry.name);
          if (entry.isFile() && OWN_NAME.test(entry.name) && isOld(lstatSync(path))) rmSync(path, { force: true });
        }
      } finally {
        entries.closeSync();
      }
    } catch {
      // The next call tries it again.
    }
  }
}

function directory(path: string): Stats {
  const stats = lstatSync(path);
  if (!stats.isDirectory()) throw new Error(`${path} is not a directory`);
  return stats;
}

const isOld = ({ mtimeMs }: Stats) => Date.now() - mtimeMs > CALL_TTL_MS;

/** A pipe that stands there is not waited for. */
function read(path: string): { readonly text: string; readonly stats: Stats } {
  const noFollow = (constants.O_NOFOLLOW as number | undefined) ?? 0;
  const noWait = (constants.O_NONBLOCK as number | undefined) ?? 0;
  const opened = openSync(path, constants.O_RDONLY | noFollow | noWait);
  try {
    const stats = fstatSync(opened);
    if (!stats.isFile()) throw new Error(`${path} is not a file`);
    const bytes = Buffer.alloc(MAX_FILE_BYTES);
    return { text: bytes.toString("latin1", 0, readSync(opened, bytes, 0, MAX_FILE_BYTES, 0)), stats };
  } finally {
    closeSync(opened);
  }
}
