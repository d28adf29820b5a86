// JSON as this client reads and digests it. Reading refuses what JSON.parse lets through: members that are named twice,
// because two readers of such a text may see two different answers. Writing is RFC 8785 (JCS), so that equal values
// have equal digests in every language.

import { createHash } from "node:crypto";

/** Why a text is no JSON, or a value has no canonical form. Never quotes the text: it may hold a secret. */
export class JsonError extends Error {
  override readonly name = "JsonError";
}

export type JsonObject = Readonly<Record<string, unknown>>;

export function isObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Parses UTF-8 strictly, and refuses objects that name a member twice. */
export function parseJson(bytes: Uint8Array): unknown {
  let text: string;
  let value: unknown;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    value = JSON.parse(text);
  } catch {
    throw new JsonError(bytes.length === 0 ? "the body is empty" : "the body is not JSON in UTF-8");
  }
  refuseRepeatedMembers(text);
  return value;
}

/** Strings, and the characters that open, close and separate. The text is valid JSON, so nothing else matters. */
const TOKEN = /"(?:[^"\\]|\\.)*"|[{}[\],:]/gsu;

function refuseRepeatedMembers(text: string): void {
  // One entry for each open object or array: the names so far, or undefined in an array.
  const open: (Set<string> | undefined)[] = [];
  let nameMayFollow = false;
  for (const [token] of text.matchAll(TOKEN)) {
    if (token === "{") open.push(new Set());
    else if (token === "[") open.push(undefined);
    else if (token === "}" || token === "]") open.pop();
    else if (token.startsWith('"') && nameMayFollow) {
      const names = open.at(-1);
      const name = JSON.parse(token) as string;
      if (names?.has(name)) throw new JsonError("the body names a member twice");
      names?.add(name);
    }
    nameMayFollow = (token === "{" || token === ",") && open.at(-1) !== undefined;
  }
}

const MAX_DEPTH = 100;

/** The canonical form (RFC 8785) of a value of plain objects, arrays, texts, numbers, booleans and null. */
export function canonicalJson(value: unknown, depth = 0): string {
  if (depth > MAX_DEPTH) throw new JsonError("the value is nested too deeply, or holds itself");
  switch (typeof value) {
    case "string":
      if (/\p{Surrogate}/u.test(value)) throw new JsonError("a text holds half a surrogate pair");
      return JSON.stringify(value);
    case "number":
      if (!Number.isFinite(value)) throw new JsonError("NaN and infinite numbers have no JSON");
      return JSON.stringify(value);
    case "boolean":
      return String(value);
    case "object":
      if (value === null) return "null";
      if (Array.isArray(value)) return `[${Array.from(value, (item) => canonicalJson(item, depth + 1)).join(",")}]`;
      return canonicalObject(value, depth);
    default:
      throw new JsonError(`a value of type ${typeof value} has no JSON`);
  }
}

function canonicalObject(value: object, depth: number): string {
  const prototype: unknown = Object.getPrototypeOf(value);
  // A Map, a Date or an instance of a class would all look like `{}`, and two different calls like one.
  if (prototype !== null && prototype !== Object.prototype)
    throw new JsonError("only plain objects have a canonical form");
  if (Object.getOwnPropertySymbols(value).length > 0)
    throw new JsonError("a member that is named by a symbol has no JSON");
  const members = Object.entries(value).filter(([, member]) => member !== undefined);
  // The default order of sort() is by UTF-16 code units, as RFC 8785 wants it.
  const names = members.map(([name]) => name).sort();
  const values = new Map(members);
  return `{${names.map((name) => `${canonicalJson(name)}:${canonicalJson(values.get(name), depth + 1)}`).join(",")}}`;
}

/** SHA-256 of the canonical form, in lower-case hexadecimal. */
export function sha256OfJson(value: unknown): string {
  return createHash("sha256").update(canonicalJson(value), "utf8").digest("hex");
}
