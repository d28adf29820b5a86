import assert from "node:assert/strict";
import { chmodSync, cpSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { inspect } from "node:util";
import { test } from "node:test";

import { Client, NotConfigured, Undecided } from "@stage0/client";
import { findServer, type ServerOptions } from "../dist/settings.js";
import { AUTHORITY, scratch } from "./harness.js";

const DEV_URL = "https://localhost:8443";

function devDir(members: object = {}): string {
  const dir = scratch();
  const ca = join(dir, "ca.pem");
  writeFileSync(ca, AUTHORITY.cert);
  const dev = { url: DEV_URL, ca_file: ca, api_key: "s0_dev", operator_key: "s0_op", account: "a1", ...members };
  writeFileSync(join(dir, "dev.json"), JSON.stringify(dev), { mode: 0o600 });
  return dir;
}

const refused = (options: ServerOptions, environment: Record<string, string>, text: RegExp) =>
  assert.throws(
    () => findServer(options, environment),
    (error: Error) => error instanceof NotConfigured && text.test(error.message) && !/hunter2/.test(inspect(error)),
  );

test("a dev server is found without options", () => {
  const dataDir = devDir();
  assert.deepEqual(findServer({}, { STAGE0_DATA_DIR: dataDir }), { base: DEV_URL, key: "s0_dev", ca: AUTHORITY.cert });
  assert.deepEqual(findServer({ dataDir }, { STAGE0_DATA_DIR: "/elsewhere" }).key, "s0_dev");
  assert.deepEqual(findServer({ dataDir, url: `${DEV_URL}/` }, {}).key, "s0_dev", "the same server by name");
});

test("a key of the data directory is not sent to another server, and its authority is not trusted there", () => {
  const dataDir = devDir();
  for (const url of [
    "https://elsewhere.example",
    "https://localhost:8444",
    `${DEV_URL}/path`,
    "https://127.0.0.1:8443",
  ]) {
    refused({ dataDir, url }, {}, /no API key for https/);
    refused({ dataDir }, { STAGE0_URL: url }, /no API key for https/);
    assert.equal(findServer({ dataDir, url, key: "s0_own" }, {}).ca, undefined);
  }
});

test("a client that names its server takes nothing from the working directory", () => {
  const project = scratch();
  cpSync(devDir(), join(project, ".stage0"), { recursive: true });
  const before = process.cwd();
  process.chdir(project);
  try {
    assert.equal(findServer({}, {}).key, "s0_dev", "the server of the quick start, which names none");
    for (const [options, environment] of [
      [{ url: DEV_URL }, {}],
      [{}, { STAGE0_URL: DEV_URL }],
    ] as const) {
      refused(options, environment, /no API key for https/);
      assert.equal(findServer({ ...options, key: "s0_own" }, environment).ca, undefined);
    }
    assert.equal(findServer({ url: DEV_URL, dataDir: ".stage0" }, {}).key, "s0_dev", "a directory that is named");
  } finally {
    process.chdir(before);
  }
});

test("the URL comes from the option, then STAGE0_URL, STAGE0_BASE_URL and STAGE0_API_BASE", () => {
  const names = ["STAGE0_URL", "STAGE0_BASE_URL", "STAGE0_API_BASE"];
  const environment: Record<string, string> = Object.fromEntries(names.map((name, at) => [name, `https://h${at}/p//`]));
  const base = (options: ServerOptions) => findServer({ key: "s0_k", ...options }, environment).base;
  assert.equal(base({ url: "https://own.example:1/" }), "https://own.example:1");
  assert.equal(base({}), "https://h0/p");
  environment["STAGE0_URL"] = " ";
  assert.equal(base({}), "https://h1/p");
  delete environment["STAGE0_BASE_URL"];
  assert.equal(base({}), "https://h2/p");
});

test("the key comes from the option, then a file, then STAGE0_API_KEY, then the data directory", () => {
  const dataDir = devDir();
  const file = join(dataDir, "own.key");
  writeFileSync(file, "s0_file\n", { mode: 0o600 });
  const environment: Record<string, string> = {
    STAGE0_KEY_FILE: file,
    STAGE0_API_KEY: "s0_env",
    STAGE0_DATA_DIR: dataDir,
  };
  const key = (options: ServerOptions) => findServer(options, environment).key;
  assert.equal(key({ key: "s0_own" }), "s0_own");
  assert.equal(key({}), "s0_file");
  delete environment["STAGE0_KEY_FILE"];
  assert.equal(key({ keyFile: file }), "s0_file");
  assert.equal(key({}), "s0_env");
  delete environment["STAGE0_API_KEY"];
  assert.equal(key({}), "s0_dev");
});

test("only https is asked, also on this machine", () => {
  for (const url of ["http://localhost:8443", "http://stage0.example", "ftp://a", "localhost:8443"]) {
    refused({ url, key: "s0_k" }, {}, /must begin with https/);
  }
  for (const url of ["https://u:p@h", "https://h/?a=1", "https://h/#a"])
    refused({ url, key: "s0_k" }, {}, /must have no user/);
  refused({ url: "nonsense", key: "s0_k" }, {}, /not a URL/);
});

test(
  "a file with a key that others can read is refused with the chmod that mends it",
  { skip: process.platform === "win32" },
  () => {
    const dataDir = devDir();
    const file = join(dataDir, "own.key");
    writeFileSync(file, "s0_file", { mode: 0o600 });
    for (const [path, options] of [
      [file, { dataDir, keyFile: file }],
      [join(dataDir, "dev.json"), { dataDir }],
    ] as const) {
      for (const mode of [0o640, 0o604, 0o660]) {
        chmodSync(path, mode);
        refused(options, {}, new RegExp(`chmod 600 ${path}`));
      }
      chmodSync(path, 0o600);
      findServer(options, {});
    }
    chmodSync(join(dataDir, "dev.json"), 0o644);
    assert.equal(findServer({ dataDir, keyFile: file }, {}).key, "s0_file", "the key in it is not used");
  },
);

test("what is missing is named, and what is malformed is not quoted", () => {
  const dataDir = scratch();
  refused({ dataDir }, {}, /no server: .*stage0 dev/);
  writeFileSync(join(dataDir, "dev.json"), '{"api_key": "hunter2"', { mode: 0o600 });
  refused({ dataDir }, {}, /not written by `stage0 dev`/);
  assert.equal(findServer({ dataDir, url: "https://h", key: "s0_k" }, {}).key, "s0_k", "the file is not needed");
  const file = join(dataDir, "own.key");
  for (const text of ["hunter2 with blanks", "", "hunter2\u0000"]) {
    writeFileSync(file, text, { mode: 0o600 });
    refused({ url: "https://h", keyFile: file }, {}, /holds no API key/);
  }
  refused({ url: "https://h", key: "s0_k", ca: join(dataDir, "none.pem") }, {}, /cannot read .*ENOENT/);
  refused({ url: "https://h", key: "s0_k", ca: file }, {}, /no certificate in PEM/);
  refused({ dataDir: devDir({ url: "http://localhost" }) }, {}, /must begin with https/);
});

test("a client that finds no server throws Undecided from its calls, and shows no key", async () => {
  const client = new Client({ dataDir: scratch(), key: "s0_hunter2" });
  await assert.rejects(
    client.check({ goal: "x" }),
    (error) => error instanceof Undecided && error instanceof NotConfigured,
  );
  assert.doesNotMatch(inspect(client, { depth: 9, showHidden: true }) + JSON.stringify(client), /hunter2/);
  for (const timeoutMs of [0, -1, NaN, 1e9]) assert.throws(() => new Client({ timeoutMs }), { name: "NotConfigured" });
});
