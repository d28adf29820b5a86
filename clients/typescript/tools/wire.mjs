// Writes the wire types from the OpenAPI document: `node tools/wire.mjs ../../docs/openapi.json src/wire.ts`.
// A test runs it again and compares, so that no member is missing, and none is there that the document has not.
import { readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

// The calls of the client. Everything that their bodies refer to comes with them.
const OPERATIONS = [
  ["post", "/check"],
  ["get", "/v1/approvals/{id}"],
  ["get", "/v1/decisions/{request_id}"],
  ["post", "/v1/decisions/{request_id}/outcome"],
  ["post", "/v1/runs/{run_id}/settle"],
];

const WIDTH = 120;

function schemasOf(document) {
  const names = new Set(["ErrorBody"]);
  for (const [method, path] of OPERATIONS) {
    const operation = document.paths[path]?.[method];
    if (!operation) throw new Error(`the document has no ${method} ${path}`);
    for (const part of [operation.requestBody, operation.responses["200"]]) {
      const reference = part?.content?.["application/json"]?.schema?.$ref;
      if (reference) names.add(nameOf(reference));
    }
  }
  for (const name of names) {
    const schema = document.components.schemas[name];
    if (!schema) throw new Error(`the document has no schema ${name}`);
    for (const found of JSON.stringify(schema).matchAll(/"#\/components\/schemas\/([A-Za-z0-9_]+)"/g))
      names.add(found[1]);
  }
  return [...names].sort();
}

const nameOf = (reference) => reference.split("/").pop();

function typeOf(schema) {
  if (schema === true || Object.keys(schema).every((key) => key === "description")) return "unknown";
  if (schema.$ref) return nameOf(schema.$ref);
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  const parts = schema.anyOf ?? schema.oneOf;
  if (parts) return parts.map(typeOf).join(" | ");
  if (schema.allOf?.length === 1) return typeOf(schema.allOf[0]);
  if (Array.isArray(schema.type)) return schema.type.map((type) => typeOf({ ...schema, type })).join(" | ");
  switch (schema.type) {
    case "string":
      return "string";
    case "integer":
    case "number":
      return "number";
    case "boolean":
      return "boolean";
    case "null":
      return "null";
    case "array": {
      const item = typeOf(schema.items ?? {});
      return item.includes(" | ") ? `readonly (${item})[]` : `readonly ${item}[]`;
    }
    case "object":
      return objectOf(schema);
    default:
      throw new Error(`no type for ${JSON.stringify(schema)}`);
  }
}

function objectOf(schema) {
  const extra = schema.additionalProperties;
  if (!schema.properties) return extra && extra !== true ? `Readonly<Record<string, ${typeOf(extra)}>>` : FREE;
  const members = Object.entries(schema.properties).map(([name, member]) => memberOf(schema, name, member));
  return `{ ${members.join(" ")} }${extra ? ` & ${FREE}` : ""}`;
}

const FREE = "Readonly<Record<string, unknown>>";

function memberOf(schema, name, member) {
  const optional = schema.required?.includes(name) ? "" : "?";
  return `readonly ${/^[A-Za-z_]\w*$/.test(name) ? name : JSON.stringify(name)}${optional}: ${typeOf(member)};`;
}

function comment(text, indent) {
  if (!text) return [];
  const lines = [];
  let line = `${indent}/**`;
  for (const word of text.replaceAll("*/", "* /").split(/\s+/)) {
    if (line.length + word.length + 4 > WIDTH) {
      lines.push(line);
      line = `${indent} *`;
    }
    line += ` ${word}`;
  }
  return [...lines, `${line} */`];
}

function declare(name, schema) {
  const about = comment(schema.description, "");
  if (schema.type !== "object" || !schema.properties)
    return [...about, ...wrapped(`export type ${name} =`, typeOf(schema))];
  const open = schema.additionalProperties ? [`  readonly [member: string]: unknown;`] : [];
  const members = Object.entries(schema.properties).flatMap(([member, type]) => [
    ...comment(type.description, "  "),
    broken(`  ${memberOf(schema, member, type)}`),
  ]);
  return [...about, `export interface ${name} {`, ...members, ...open, "}"];
}

/** An object inside of a line that is too long gets a line for each member. */
function broken(line) {
  if (line.length <= WIDTH) return line;
  const [head, inner, tail] = line.split(/\{ (.*) \}/);
  return `${head}{\n    ${inner.replaceAll("; ", ";\n    ")}\n  }${tail}`;
}

function wrapped(head, type) {
  const line = `${head} ${type};`;
  return line.length <= WIDTH
    ? [line]
    : [
        head,
        ...type
          .split(" | ")
          .map((part) => `  | ${part}`)
          .join("\n")
          .concat(";")
          .split("\n"),
      ];
}

export function wireTypes(document) {
  const head = "// Written by tools/wire.mjs from docs/openapi.json: the bodies that the client sends and reads.";
  const types = schemasOf(document).map((name) => declare(name, document.components.schemas[name]).join("\n"));
  return `${[head, ...types].join("\n\n")}\n`;
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [, , document, target] = process.argv;
  writeFileSync(target, wireTypes(JSON.parse(readFileSync(document, "utf8"))));
}
