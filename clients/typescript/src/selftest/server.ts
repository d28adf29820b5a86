// An HTTPS server on loopback that behaves as one fault says. It writes its answers byte by byte on the TLS socket, so
// that it can also write what no HTTP library would.

import { createServer, type Server, type TLSSocket } from "node:tls";
import type { AddressInfo, Socket } from "node:net";

import type { Issued } from "./certificate.js";

export interface ReceivedRequest {
  readonly method: string;
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string;
}

/** What the server does with a request, or with a connection before it has read one. */
export interface Behaviour {
  readonly connected?: (socket: TLSSocket) => void;
  readonly answer?: (socket: TLSSocket, request: ReceivedRequest) => void | Promise<void>;
}

export class MisbehavingServer {
  readonly requests: ReceivedRequest[] = [];
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  private constructor(server: Server) {
    this.#server = server;
  }

  static async start(identity: Issued, behaviour: Behaviour): Promise<MisbehavingServer> {
    const server = createServer({ cert: identity.cert, key: identity.key });
    const started = new MisbehavingServer(server);
    server.on("secureConnection", (socket) => {
      socket.on("error", () => socket.destroy());
      if (behaviour.connected === undefined) started.#serve(socket, behaviour);
      else behaviour.connected(socket);
    });
    server.on("connection", (socket: Socket) => {
      started.#sockets.add(socket);
      socket.on("close", () => started.#sockets.delete(socket));
      socket.on("error", () => socket.destroy());
    });
    // A client that does not trust the certificate ends the handshake.
    server.on("tlsClientError", () => undefined);
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject).listen(0, "127.0.0.1", resolve);
    });
    return started;
  }

  get url(): string {
    return `https://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async stop(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #serve(socket: TLSSocket, behaviour: Behaviour): void {
    let received: Buffer = Buffer.alloc(0);
    socket.on("data", (part: Buffer) => {
      received = Buffer.concat([received, part]);
      for (let taken = take(received); taken !== undefined; taken = take(received)) {
        received = taken.rest;
        this.requests.push(taken.request);
        void Promise.resolve(behaviour.answer?.(socket, taken.request)).catch(() => socket.destroy());
      }
    });
  }
}

/** The first whole request of what has arrived. */
function take(received: Buffer): { readonly request: ReceivedRequest; readonly rest: Buffer } | undefined {
  const end = received.indexOf("\r\n\r\n");
  if (end < 0) return undefined;
  const [first = "", ...lines] = received.subarray(0, end).toString("latin1").split("\r\n");
  const [method = "", path = ""] = first.split(" ");
  const headers = Object.fromEntries(
    lines.map((line) => [line.slice(0, line.indexOf(":")).toLowerCase(), line.slice(line.indexOf(":") + 1).trim()]),
  );
  const bodyEnd = end + 4 + Number(headers["content-length"] ?? 0);
  if (received.length < bodyEnd) return undefined;
  const body = received.subarray(end + 4, bodyEnd).toString();
  return { request: { method, path, headers, body }, rest: received.subarray(bodyEnd) };
}

/** A whole HTTP answer. */
export function http(status: number, body: string, headers: Readonly<Record<string, string>> = {}): string {
  const all = { "content-type": "application/json", "content-length": String(Buffer.byteLength(body)), ...headers };
  const lines = Object.entries(all).map(([name, value]) => `${name}: ${value}\r\n`);
  return `HTTP/1.1 ${status} Status\r\n${lines.join("")}\r\n${body}`;
}
