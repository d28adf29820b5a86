import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

test("the types are those of the OpenAPI document: no member is missing, and none is there beyond", async () => {
  const at = (path: string) => new URL(path, import.meta.url);
  const tool = (await import(at("../tools/wire.mjs").href)) as { wireTypes(document: unknown): string };
  const document: unknown = JSON.parse(readFileSync(at("../../../docs/openapi.json"), "utf8"));
  const message = "docs/openapi.json has changed: run `npm run wire`, and look whether the client must change too";
  assert.equal(readFileSync(at("../src/wire.ts"), "utf8"), tool.wireTypes(document), message);
});

test("the types that are written have the members of a schema, as they are", async () => {
  const tool = (await import(new URL("../tools/wire.mjs", import.meta.url).href)) as {
    wireTypes(document: unknown): string;
  };
  const schema = { $ref: "#/components/schemas/A" };
  const operation = { responses: { 200: { content: { "application/json": { schema } } } } };
  const paths = [
    ["/check", "post"],
    ["/v1/approvals/{id}", "get"],
    ["/v1/decisions/{request_id}", "get"],
    ["/v1/decisions/{request_id}/outcome", "post"],
    ["/v1/runs/{run_id}/settle", "post"],
  ].map(([path, method]) => [path, { [method as string]: operation }]);
  const a = {
    type: "object",
    description: "An A.",
    required: ["b"],
    properties: { b: { $ref: "#/components/schemas/B" }, c: { type: ["array", "null"], items: { type: "string" } } },
  };
  const schemas = { A: a, B: { type: "string", enum: ["x", "y"] }, ErrorBody: { type: "object", properties: {} } };
  const text = tool.wireTypes({ paths: Object.fromEntries(paths) as object, components: { schemas } });
  assert.ok(
    text.includes("/** An A. */\nexport interface A {\n  readonly b: B;\n  readonly c?: readonly string[] | null;\n}"),
    text,
  );
  assert.ok(text.includes('export type B = "x" | "y";'), text);
});
