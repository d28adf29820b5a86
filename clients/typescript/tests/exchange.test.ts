// Attempts, deadlines and TLS, against real HTTPS servers.

import assert from "node:assert/strict";
import { createServer } from "node:net";
import type { AddressInfo } from "node:net";
import { inspect } from "node:util";
import { test } from "node:test";

import { Client, Undecided, type ClientOptions } from "@stage0/client";
import { allowed } from "../dist/selftest/faults.js";
import { http } from "../dist/selftest/server.js";
import { AUTHORITY, errorBody, inTurn, json, KEY, run, serve, type Served } from "./harness.js";

const ALLOW = json(200, allowed());
const BUSY = json(503, errorBody("unavailable"));
const clientOf = (server: Served, options: ClientOptions = {}) =>
  new Client({ url: server.url, key: KEY, ca: server.ca, ...options });
const ask = (client: Client) => client.check({ goal: "Read the log", tools: ["reader"] });
const keysOf = (server: Served) => server.requests.map((request) => request.headers["idempotency-key"]);

async function undecided(work: Promise<unknown>, text: RegExp): Promise<Undecided> {
  const error = await work.then(
    () => assert.fail("it was allowed"),
    (thrown: unknown) => thrown,
  );
  assert.ok(error instanceof Undecided, inspect(error));
  assert.match(error.message, text);
  assert.doesNotMatch(inspect(error, { depth: 9 }), new RegExp(KEY));
  return error;
}

test("503, 429, a closed connection: the same body again with the same Idempotency-Key", async () => {
  for (const first of [BUSY, json(429, errorBody("rate_limited")), "close"]) {
    await using server = await serve(inTurn(first, first, ALLOW));
    await ask(clientOf(server));
    const [key, ...others] = keysOf(server);
    assert.ok(key !== undefined && key.length > 20);
    assert.deepEqual(others, [key, key]);
    assert.equal(new Set(server.requests.map((request) => request.body)).size, 1);
  }
});

test("each call has a key of its own, or the caller's", async () => {
  await using server = await serve(inTurn(ALLOW));
  const client = clientOf(server);
  await ask(client);
  await ask(client);
  await client.check({ goal: "x", idempotencyKey: "mine-1" });
  assert.equal(new Set(keysOf(server)).size, 3);
  assert.equal(keysOf(server)[2], "mine-1");
  await undecided(client.check({ goal: "x", idempotencyKey: "with a blank" }), /visible ASCII/);
});

test("there are three attempts at most", async () => {
  await using server = await serve(inTurn(BUSY, BUSY, BUSY, ALLOW));
  const error = await undecided(ask(clientOf(server)), /503/);
  assert.deepEqual([server.requests.length, error.status, error.code], [3, 503, "unavailable"]);
});

test("nothing else is asked again", async () => {
  for (const status of [400, 401, 402, 403, 404, 408, 409, 413, 422, 500, 502, 504]) {
    await using server = await serve(inTurn(json(status, errorBody("bad_request")), ALLOW));
    await undecided(ask(clientOf(server)), new RegExp(String(status)));
    assert.equal(server.requests.length, 1, String(status));
  }
});

test("Retry-After is waited for if it fits into the deadline, and is otherwise final", async () => {
  await using server = await serve(inTurn(json(503, errorBody("unavailable"), { "retry-after": "1" }), ALLOW));
  const startedAt = performance.now();
  await ask(clientOf(server));
  assert.ok(performance.now() - startedAt >= 990);
  await using busy = await serve(inTurn(json(429, errorBody("rate_limited"), { "retry-after": "60" }), ALLOW));
  await undecided(ask(clientOf(busy)), /429/);
  assert.equal(busy.requests.length, 1);
});

test("an attempt without an answer is given up, and the next one has the rest of the deadline", async () => {
  await using server = await serve(inTurn("silence", ALLOW));
  await ask(clientOf(server));
  assert.equal(new Set(keysOf(server)).size, 1);
  assert.equal(server.requests.length, 2);
});

test("the deadline holds for all attempts together, and for a call's own timeout", async () => {
  await using server = await serve(inTurn("silence"));
  for (const work of [
    ask(clientOf(server, { timeoutMs: 700 })),
    clientOf(server).check({ goal: "x", timeoutMs: 700 }),
  ]) {
    const startedAt = performance.now();
    await undecided(work, /within 700 ms/);
    assert.ok(performance.now() - startedAt < 1100);
  }
});

test("a server that does not finish the handshake has two seconds to connect, or less", async () => {
  const mute = createServer(() => undefined);
  await new Promise<void>((resolve) => mute.listen(0, "127.0.0.1", resolve));
  const url = `https://127.0.0.1:${(mute.address() as AddressInfo).port}`;
  const startedAt = performance.now();
  await undecided(ask(new Client({ url, key: KEY, connectTimeoutMs: 100 })), /no connection within 100 ms/);
  assert.ok(performance.now() - startedAt < 2000);
  mute.close();
});

test("an ALLOW that arrives after the deadline does not count, though the process was too busy to notice", async () => {
  // Blocks the event loop, as heavy work or a suspended machine does: the timer of the deadline has no turn before.
  const late =
    (busyMs: number): typeof fetch =>
    () => {
      const until = performance.now() + busyMs;
      while (performance.now() < until);
      return Promise.resolve(Response.json(allowed()));
    };
  const asking = (busyMs: number) =>
    ask(new Client({ url: "https://h", key: KEY, fetch: late(busyMs), timeoutMs: 300 }));
  await undecided(asking(350), /within 300 ms/);
  await asking(100);
});

test("a caller's signal ends the call at once", async () => {
  await using server = await serve(inTurn("silence"));
  const client = clientOf(server);
  const startedAt = performance.now();
  await undecided(client.check({ goal: "x", signal: AbortSignal.timeout(100) }), /aborted/);
  await undecided(client.check({ goal: "x", signal: AbortSignal.abort() }), /aborted/);
  assert.ok(performance.now() - startedAt < 1500);
});

test("a connection is used again, and one that was closed meanwhile does no harm", async () => {
  let connections = 0;
  await using server = await serve({
    answer: (socket, request) => {
      if (!("stage0Seen" in socket)) connections++;
      Object.assign(socket, { stage0Seen: true });
      socket.write(ALLOW);
      if (request.body.includes("last")) setTimeout(() => socket.destroy(), 20);
    },
  });
  const client = clientOf(server);
  await ask(client);
  await ask(client);
  assert.equal(connections, 1);
  await client.check({ goal: "last" });
  await new Promise((resolve) => setTimeout(resolve, 100));
  await ask(client);
  assert.equal(connections, 2);
});

test("the text of a page, and a key that a server repeats, are not shown", async () => {
  await using page = await serve(inTurn(http(500, "<html>hunter2</html>")));
  assert.doesNotMatch((await undecided(ask(clientOf(page)), /500/)).message, /hunter2/);
  await using echo = await serve(inTurn(json(401, errorBody("unauthorized", `bad key ${KEY}`))));
  await undecided(ask(clientOf(echo)), /bad key s0_…/);
});

test("no variable switches verification off, and none sends the key through a proxy", async () => {
  await using server = await serve(inTurn(ALLOW));
  await undecided(ask(new Client({ url: server.url, key: KEY })), /certificate is not trusted/);
  const script = `
    import { Client } from "@stage0/client";
    const [url, ca] = process.argv.slice(1);
    const client = new Client({ url, key: "s0_k", ...(ca ? { ca } : {}) });
    await client.check({ goal: "x" }).then(() => console.log("ALLOWED"), (error) => console.log(error.message));`;
  const proxy = { HTTPS_PROXY: "http://127.0.0.1:1", https_proxy: "http://127.0.0.1:1", NODE_USE_ENV_PROXY: "1" };
  const environment = { NODE_TLS_REJECT_UNAUTHORIZED: "0", ...proxy };
  const asking = (...args: readonly string[]) =>
    run(process.execPath, ["--input-type=module", "-e", script, "--", server.url, ...args], "", environment);
  assert.match((await asking()).stdout, /certificate is not trusted/);
  assert.equal(server.requests.length, 0);
  assert.equal((await asking(server.ca)).stdout, "ALLOWED\n");
});

test("a response without TLS, and plain http, are refused", async () => {
  const plain = createServer((socket) => socket.end(ALLOW));
  await new Promise<void>((resolve) => plain.listen(0, "127.0.0.1", resolve));
  const { port } = plain.address() as AddressInfo;
  const options = { key: KEY, ca: AUTHORITY.cert, timeoutMs: 1000 };
  await undecided(ask(new Client({ ...options, url: `https://127.0.0.1:${port}` })), /connection|TLS|SSL/);
  await undecided(ask(new Client({ ...options, url: `http://127.0.0.1:${port}` })), /https/);
  plain.close();
});

test("another fetch may be given, and is held to the same rules", async () => {
  const calls: RequestInit[] = [];
  const answering =
    (response: () => Response): typeof fetch =>
    (_, init) => {
      calls.push(init ?? {});
      return Promise.resolve(response());
    };
  const client = (response: () => Response) => new Client({ url: "https://h", key: KEY, fetch: answering(response) });
  await ask(client(() => Response.json(allowed())));
  assert.deepEqual([calls[0]?.redirect, calls[0]?.method], ["manual", "POST"]);
  await undecided(ask(client(() => Response.redirect("https://h/allow", 302))), /redirect/);
  await undecided(ask(client(() => Response.json(allowed(), { status: 201 }))), /201/);
  await undecided(ask(client(() => new Response("x".repeat(5_000_000)))), /4 MiB/);
  const mute: typeof fetch = () => new Promise(() => undefined);
  await undecided(
    new Client({ url: "https://h", key: KEY, fetch: mute, timeoutMs: 200 }).check({ goal: "x" }),
    /within 200/,
  );
  await undecided(ask(new Client({ url: "https://h", key: KEY, fetch: mute, ca: AUTHORITY.cert })), /no effect/);
});
