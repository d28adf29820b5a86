#!/usr/bin/env node
// Starts the hook. CommonJS and old syntax on purpose: whatever keeps the rest from loading must end with 2 as well,
// because agents run the tool after any other failure.
"use strict";

process.exitCode = 2;

function refuse(error) {
  var text = error && error.message ? error.message : String(error);
  try {
    process.stderr.write("Stage0 did not decide this call, so it does not run: the hook failed: " + text + "\n");
  } finally {
    process.exit(2);
  }
}

process.on("uncaughtException", refuse);
process.on("unhandledRejection", refuse);
import("../dist/hook.js").then(function (hook) {
  return hook.main(process.argv.slice(2));
}, refuse).catch(refuse);
