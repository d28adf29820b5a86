// One attempt at one HTTPS request. The connection is made with node:https and not with the global `fetch`: that one
// takes no certificate authority without a further package, follows redirects unless it is asked not to, and in newer
// Node versions may send requests through a proxy that only the environment names.
// INVARIANT: the certificate is verified, also under NODE_TLS_REJECT_UNAUTHORIZED=0; the body is bounded; and an
// attempt ends when its signal does, whatever trickles in.

import { Agent, request } from "node:https";
import type { ClientRequest, IncomingMessage } from "node:http";
import type { LookupFunction } from "node:net";

import type { Answer } from "./decision.js";

export interface Attempt {
  readonly method: string;
  readonly url: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string | Uint8Array | undefined;
  readonly connectTimeoutMs: number;
  readonly signal: AbortSignal;
}

/** Sends a request once. Throws a TransportError if no whole answer came. */
export type Transport = (attempt: Attempt) => Promise<Answer>;

export class TransportError extends Error {
  override readonly name = "TransportError";
  /** Whether another attempt may succeed: not if the certificate is wrong. */
  readonly mayRetry: boolean;

  constructor(message: string, mayRetry: boolean, cause?: unknown) {
    super(message, { cause });
    this.mayRetry = mayRetry;
  }
}

export const MAX_BODY_BYTES = 4 * 1024 * 1024;
const MAX_RETRY_AFTER_SECONDS = 86_400;

export interface HttpsTransportOptions {
  /** PEM; undefined: the system's authorities. */
  readonly ca: string | undefined;
  /** Resolves host names; undefined: as Node does. */
  readonly lookup?: LookupFunction | undefined;
}

export function httpsTransport(options: HttpsTransportOptions): Transport {
  const agent = new Agent({ keepAlive: true, maxCachedSessions: 10 });
  // Given with each request: options of an agent lose against the environment in some versions.
  const tls = { ca: options.ca, rejectUnauthorized: true, minVersion: "TLSv1.2" as const };
  return (attempt) =>
    new Promise((resolve, reject) => {
      const { method, headers, signal } = attempt;
      const lookup = options.lookup === undefined ? {} : { lookup: options.lookup };
      const sent = request(attempt.url, { method, headers, agent, ...tls, ...lookup });
      const fail = (error: unknown) => {
        sent.destroy();
        reject(asTransportError(error));
      };
      const abort = () => fail(signal.reason);
      const done = () => {
        signal.removeEventListener("abort", abort);
      };
      sent.on("error", fail).on("close", done);
      sent.on("response", (response) => {
        readAnswer(response).then(resolve, fail);
      });
      if (signal.aborted) return abort();
      signal.addEventListener("abort", abort, { once: true });
      limitConnecting(sent, attempt.connectTimeoutMs, fail);
      sent.end(attempt.body);
    });
}

/** Connecting includes the look-up of the name and the TLS handshake. A connection that is used again needs no time. */
function limitConnecting(sent: ClientRequest, timeoutMs: number, fail: (error: unknown) => void): void {
  const timer = setTimeout(() => {
    fail(new TransportError(`no connection within ${timeoutMs} ms`, true));
  }, timeoutMs);
  const stop = () => {
    clearTimeout(timer);
  };
  sent.on("close", stop);
  sent.on("socket", (socket) => {
    if (sent.reusedSocket) stop();
    else socket.once("secureConnect", stop);
  });
}

async function readAnswer(response: IncomingMessage): Promise<Answer> {
  const chunks: Buffer[] = [];
  let size = 0;
  // A body that ends before its declared length makes this loop throw.
  for await (const chunk of response) {
    size += (chunk as Buffer).length;
    if (size > MAX_BODY_BYTES) throw new TransportError("the answer is larger than 4 MiB", false);
    chunks.push(chunk as Buffer);
  }
  const header = (name: string) => {
    const value = response.headers[name];
    return typeof value === "string" ? value : undefined;
  };
  return answerOf(response.statusCode ?? 0, header, Buffer.concat(chunks));
}

function answerOf(status: number, header: (name: string) => string | undefined, body: Uint8Array): Answer {
  const id = header("x-request-id");
  const after = header("retry-after");
  const seconds =
    after !== undefined && /^\d{1,9}$/.test(after) ? Math.min(Number(after), MAX_RETRY_AFTER_SECONDS) : undefined;
  return {
    status,
    body,
    requestId: id !== undefined && /^[\x21-\x7e]{1,128}$/.test(id) ? id : undefined,
    retryAfter: seconds,
  };
}

/** For runtimes other than Node, and for proxies: whom the given function trusts is not this client's choice. */
export function fetchTransport(fetch: typeof globalThis.fetch): Transport {
  return async (attempt) => {
    const { method, headers, signal, url } = attempt;
    try {
      const body = attempt.body as string | undefined;
      const response = await fetch(url, {
        method,
        headers,
        signal,
        redirect: "manual",
        ...(body === undefined ? {} : { body }),
      });
      // Browsers hide a redirect's status; 302 stands for all of them.
      const status = response.type === "opaqueredirect" ? 302 : response.status;
      return answerOf(status, (name) => response.headers.get(name) ?? undefined, await boundedBody(response));
    } catch (error) {
      throw asTransportError(signal.aborted ? signal.reason : error);
    }
  };
}

async function boundedBody(response: Response): Promise<Uint8Array> {
  const chunks: Uint8Array[] = [];
  let size = 0;
  const reader = response.body?.getReader();
  for (;;) {
    const part = await reader?.read();
    if (part === undefined || part.done) break;
    size += part.value.length;
    if (size > MAX_BODY_BYTES) {
      await reader?.cancel();
      throw new TransportError("the answer is larger than 4 MiB", false);
    }
    chunks.push(part.value);
  }
  const body = new Uint8Array(size);
  let at = 0;
  for (const chunk of chunks) {
    body.set(chunk, at);
    at += chunk.length;
  }
  return body;
}

function asTransportError(error: unknown): TransportError {
  if (error instanceof TransportError) return error;
  const inner = (error as { cause?: unknown } | null)?.cause ?? error;
  const code = (inner as { code?: unknown } | null)?.code;
  const name = typeof code === "string" ? code : "unknown error";
  if (name.startsWith("HPE_")) return new TransportError(`the answer is not HTTP (${name})`, false, error);
  const text = TEXTS[name];
  if (text !== undefined) return new TransportError(`${text} (${name})`, !FINAL.has(name), error);
  // What is wrong with a certificate stays wrong. The texts of these errors name hosts and no secrets.
  if (/CERT|SELF_SIGNED|UNABLE_TO|ISSUER|CRL|HOSTNAME|^ERR_TLS/.test(name)) {
    const trust = "give the authority that signed it with `ca` or STAGE0_CA";
    return new TransportError(`the server's certificate is not trusted (${name}): ${trust}`, false, error);
  }
  return new TransportError(`the connection failed (${name})`, true, error);
}

/** Faults that another attempt would meet again. */
const FINAL = new Set(["ENOTFOUND", "ERR_TLS_CERT_ALTNAME_INVALID", "CERT_HAS_EXPIRED"]);

const TEXTS: Readonly<Record<string, string>> = {
  ECONNREFUSED: "nothing is listening there",
  ECONNRESET: "the connection was closed before the answer was whole",
  ENOTFOUND: "the host name is not known",
  ETIMEDOUT: "the connection timed out",
  ERR_TLS_CERT_ALTNAME_INVALID: "the server's certificate is of another host",
  CERT_HAS_EXPIRED: "the server's certificate has expired",
  EPIPE: "the connection was closed before the answer was whole",
};
