// The choice of server, key and trusted authority, as the command line makes it too.
// INVARIANT: a key that was found in a data directory is sent to that directory's own server and to no other.
// `.stage0` in the working directory counts only for a client that names no server, and never for a guard: a guard runs
// in the project that an agent works on, and that project must not choose who decides.

import { readFileSync, statSync } from "node:fs";
import { isAbsolute, join, resolve } from "node:path";

import { NotConfigured } from "./errors.js";
import { isObject, parseJson } from "./json.js";

export interface ServerOptions {
  /** `https://…`. Else STAGE0_URL, STAGE0_BASE_URL, STAGE0_API_BASE, or the `stage0 dev` of the data directory. */
  readonly url?: string | URL | undefined;
  /** The API key. Else `keyFile`, STAGE0_KEY_FILE, STAGE0_API_KEY, or the key of the data directory. */
  readonly key?: string | undefined;
  /** A file with the API key, which only its owner may read. */
  readonly keyFile?: string | undefined;
  /**
   * The authorities to trust instead of the system's: PEM text, or the path of a PEM file. Else STAGE0_CA, or the
   * authority of the data directory.
   */
  readonly ca?: string | undefined;
  /** Where `stage0 dev` keeps its data. Else STAGE0_DATA_DIR, or without a URL `.stage0` in the working directory. */
  readonly dataDir?: string | undefined;
}

/** What the options and the environment came to. */
export interface Server {
  /** Without a slash at the end. */
  readonly base: string;
  readonly key: string;
  /** PEM; undefined: the system's authorities. */
  readonly ca: string | undefined;
}

type Environment = Readonly<Record<string, string | undefined>>;

interface DevFile {
  readonly path: string;
  readonly base: string;
  readonly key: string;
  readonly caFile: string;
}

const DEV_FILE = "dev.json";

/** `isGuard`: nothing in the working directory counts. */
export function findServer(options: ServerOptions, environment: Environment = process.env, isGuard = false): Server {
  const variable = (name: string) => nonEmpty(environment[name]);
  const named = options.url ?? variable("STAGE0_URL") ?? variable("STAGE0_BASE_URL") ?? variable("STAGE0_API_BASE");
  const dataDir = options.dataDir ?? variable("STAGE0_DATA_DIR");
  if (isGuard) refuseRelative("the data directory", dataDir);
  const found = findDev(dataDir, named !== undefined, isGuard);
  const base = named === undefined ? (found as DevFile).base : httpsBase(String(named), "the URL");
  const dev = found?.base === base ? found : undefined;
  const ca = options.ca ?? variable("STAGE0_CA") ?? dev?.caFile;
  if (isGuard) {
    if (ca?.includes("-----BEGIN") !== true) refuseRelative("the CA file", ca);
    refuseRelative("the key's file", options.keyFile ?? variable("STAGE0_KEY_FILE"));
  }
  return { base, key: findKey(options, variable, dev, base), ca: ca === undefined ? undefined : readCa(ca) };
}

/** The `dev.json` that may count; there is one unless a server is named. */
function findDev(dataDir: string | undefined, isNamed: boolean, isGuard: boolean): DevFile | undefined {
  if (dataDir === undefined && isGuard && !isNamed) {
    throw new NotConfigured(
      "no server is named: give `--url`, `--ca` and `--key-file`, or set STAGE0_URL, STAGE0_CA and STAGE0_KEY_FILE " +
        "(`.stage0` in the working directory does not count here)",
    );
  }
  if (dataDir === undefined && isNamed) return undefined;
  const directory = dataDir ?? ".stage0";
  const found = findDevFile(directory, isNamed);
  if (found === undefined && !isNamed) {
    throw new NotConfigured(
      `no server: give \`url\`, set STAGE0_URL, or start \`stage0 dev\` (there is no ${join(directory, DEV_FILE)})`,
    );
  }
  return found;
}

function refuseRelative(what: string, path: string | undefined): void {
  if (path !== undefined && !isAbsolute(path))
    throw new NotConfigured(`${what} must be an absolute path, because a guard runs in many directories: ${path}`);
}

function findKey(
  options: ServerOptions,
  variable: (name: string) => string | undefined,
  dev: DevFile | undefined,
  base: string,
): string {
  if (options.key !== undefined) return checkedKey(options.key, "`key`");
  const file = options.keyFile ?? variable("STAGE0_KEY_FILE");
  if (file !== undefined) {
    refuseExposed(file);
    return checkedKey(read(file), file);
  }
  const key = variable("STAGE0_API_KEY");
  if (key !== undefined) return checkedKey(key, "STAGE0_API_KEY");
  if (dev === undefined) {
    throw new NotConfigured(
      `no API key for ${base}: give \`key\` or \`keyFile\`, or set STAGE0_KEY_FILE or STAGE0_API_KEY`,
    );
  }
  refuseExposed(dev.path);
  return checkedKey(dev.key, dev.path);
}

/** The file is needed only if no server is named; one that cannot be read is then an error. */
function findDevFile(dataDir: string, isOptional: boolean): DevFile | undefined {
  let path: string;
  try {
    path = resolve(dataDir, DEV_FILE);
  } catch {
    if (isOptional) return undefined;
    throw new NotConfigured("the working directory is gone: name the server with STAGE0_URL, or the data directory");
  }
  try {
    const text = readFileSync(path);
    const dev = parseJson(text);
    if (!isObject(dev)) throw new Error("no object");
    const { url, ca_file: caFile, api_key: key } = dev;
    if (typeof url !== "string" || typeof caFile !== "string" || typeof key !== "string") throw new Error("incomplete");
    return { path, base: httpsBase(url, `the \`url\` of ${path}`), key, caFile };
  } catch (error) {
    if (isOptional || isMissing(error)) return undefined;
    if (error instanceof NotConfigured) throw error;
    // The cause is left out: an error of the parser may quote the file, which holds keys.
    throw new NotConfigured(`${path} was not written by \`stage0 dev\`, or cannot be read`);
  }
}

function httpsBase(text: string, what: string): string {
  let url: URL;
  try {
    url = new URL(text);
  } catch {
    throw new NotConfigured(`${what} is not a URL such as https://stage0.example.com`);
  }
  if (url.protocol !== "https:")
    throw new NotConfigured(`${what} must begin with https://, because a key is sent to it`);
  if (url.username !== "" || url.password !== "" || url.search !== "" || url.hash !== "") {
    throw new NotConfigured(`${what} must have no user, password, query or fragment`);
  }
  return url.origin + url.pathname.replace(/\/+$/, "");
}

function checkedKey(text: string, origin: string): string {
  const key = text.trim();
  // The text is not shown: it may be a key with a typing mistake.
  if (!/^[\x21-\x7e]{1,256}$/.test(key)) throw new NotConfigured(`${origin} holds no API key`);
  return key;
}

function readCa(ca: string): string {
  const pem = ca.includes("-----BEGIN") ? ca : read(ca);
  if (!pem.includes("-----BEGIN CERTIFICATE-----")) throw new NotConfigured(`${ca} holds no certificate in PEM`);
  return pem;
}

function read(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    throw new NotConfigured(`cannot read ${path}: ${codeOf(error)}`);
  }
}

function refuseExposed(path: string): void {
  if (process.platform === "win32") return;
  let mode: number;
  try {
    mode = statSync(path).mode;
  } catch (error) {
    throw new NotConfigured(`cannot read ${path}: ${codeOf(error)}`);
  }
  if ((mode & 0o077) !== 0) {
    const shown = (mode & 0o7777).toString(8).padStart(4, "0");
    throw new NotConfigured(`${path} holds a key and others can use it (mode ${shown}): type \`chmod 600 ${path}\``);
  }
}

const nonEmpty = (text: string | undefined) => (text === undefined || text.trim() === "" ? undefined : text);
const isMissing = (error: unknown) => codeOf(error) === "ENOENT";

function codeOf(error: unknown): string {
  const code = (error as { code?: unknown } | null)?.code;
  return typeof code === "string" ? code : "unknown error";
}
