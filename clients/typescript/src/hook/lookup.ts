// Looks names up in a process of its own. The system's look-up cannot be cancelled, and a Node process that wants to
// exit waits for it: with a name server that does not answer, the hook would outlive its deadline.

import { spawn } from "node:child_process";
import type { LookupAddress } from "node:dns";
import type { LookupFunction } from "node:net";

const SCRIPT = `
require("node:dns").lookup(process.argv[1], { all: true }, (error, found) => {
  process.stdout.write(JSON.stringify(error ? { code: error.code } : { found }));
});`;

export const lookupInChild: LookupFunction = (host, options, callback) => {
  // Needs no name server (RFC 6761).
  if (host === "localhost")
    return give([
      { address: "127.0.0.1", family: 4 },
      { address: "::1", family: 6 },
    ]);
  const child = spawn(process.execPath, ["-e", SCRIPT, host], { stdio: ["ignore", "pipe", "ignore"] });
  const kill = () => {
    child.kill("SIGKILL");
  };
  process.once("exit", kill);
  const parts: Buffer[] = [];
  child.stdout.on("data", (part: Buffer) => parts.push(part));
  child.on("error", fail);
  child.on("close", () => {
    process.off("exit", kill);
    try {
      const answer = JSON.parse(Buffer.concat(parts).toString()) as { found?: LookupAddress[]; code?: string };
      if (answer.found === undefined || answer.found.length === 0) fail({ code: answer.code ?? "ENOTFOUND" });
      else give(answer.found);
    } catch {
      fail({ code: "EAI_FAIL" });
    }
  });

  function fail(error: { readonly code?: string }): void {
    callback(Object.assign(new Error("the name cannot be looked up"), { code: error.code }), "", 0);
  }

  function give(found: readonly LookupAddress[]): void {
    const { family } = options;
    const wanted = family === 4 || family === 6 ? found.filter((one) => one.family === family) : [...found];
    const first = wanted[0];
    if (first === undefined) fail({ code: "ENOTFOUND" });
    else if (options.all === true) callback(null, wanted);
    else callback(null, first.address, first.family);
  }
};
