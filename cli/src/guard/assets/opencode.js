// Written by `stage0 guard install opencode`: asks Stage0 before each tool call. Remove it with `stage0 guard uninstall
// opencode`. An exception of `tool.execute.before` stops the tool, so everything but an ALLOW throws.
import { spawn } from "node:child_process";

const COMMAND = /* stage0 guard hook opencode */ @COMMAND@;
const TIMEOUT_MS = 15000;
const MAX_OUTPUT = 100000;

const ask = (event) =>
  new Promise((resolve, reject) => {
    const refuse = (why) => reject(new Error(`Stage0 did not decide this call, so it does not run: ${why}`));
    let output = "";
    let child;
    try {
      child = spawn("/bin/sh", ["-c", COMMAND], { stdio: ["pipe", "pipe", "ignore"] });
    } catch (error) {
      return refuse(error.message);
    }
    const timer = setTimeout(() => {
      child.kill("SIGKILL");
      refuse("the guard did not answer in time");
    }, TIMEOUT_MS);
    child.on("error", (error) => refuse(error.message));
    child.stdin.on("error", () => {});
    child.stdout.on("data", (data) => {
      if (output.length < MAX_OUTPUT) output += data;
    });
    child.on("close", (code) => {
      clearTimeout(timer);
      let answer;
      try {
        answer = output === "" ? {} : JSON.parse(output);
      } catch {
        return refuse("its answer cannot be read");
      }
      resolve({ code, answer });
    });
    child.stdin.end(JSON.stringify(event));
  });

export const Stage0 = async ({ directory } = {}) => ({
  "tool.execute.before": async ({ tool, sessionID, callID }, { args } = {}) => {
    const { code, answer } = await ask({
      hook_event_name: "tool.execute.before", tool, sessionID, callID, args, directory,
    });
    if (code === 0 && answer.decision === "allow") return;
    throw new Error(answer.reason || "Stage0 did not allow this call.");
  },
  "tool.execute.after": async ({ tool, sessionID, callID }, { metadata } = {}) => {
    // The tool has run: nothing here may stop the agent.
    await ask({ hook_event_name: "tool.execute.after", tool, sessionID, callID, metadata }).catch(() => {});
  },
});
