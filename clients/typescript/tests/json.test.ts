import assert from "node:assert/strict";
import { test } from "node:test";

import { canonicalJson, sha256OfJson } from "@stage0/client";
import { parseJson } from "../dist/json.js";

const parse = (text: string) => parseJson(Buffer.from(text));

test("a member that is named twice is refused, at any depth and however it is escaped", () => {
  for (const text of ['{"a":1,"a":1}', '{"b":[{"a":1,"a":2}]}', '{"a":1,"\\u0061":2}', '{"a":{},"b":[],"a":[]}']) {
    assert.throws(() => parse(text), /names a member twice/, text);
  }
});

test("equal names in different objects, and equal texts in a list, are not refused", () => {
  for (const text of [
    '{"a":{"a":1},"b":{"a":2}}',
    '[{"a":1},{"a":1}]',
    '["a","a"]',
    '{"a":"b","b":"a"}',
    '{"a":["a","b"],"b":1}',
  ]) {
    assert.deepEqual(parse(text), JSON.parse(text));
  }
  assert.deepEqual(parse('{"a":"{\\"a\\":1,","b":"\\\\"}'), { a: '{"a":1,', b: "\\" });
});

test("bytes that are not UTF-8 or not JSON are refused", () => {
  for (const bytes of [Buffer.from([0x22, 0xff, 0x22]), Buffer.from(""), Buffer.from("{"), Buffer.from("ALLOW")]) {
    assert.throws(() => parseJson(bytes), { name: "JsonError" });
  }
});

// Vectors of RFC 8785, appendix B and section 3.2.
test("numbers, texts and the order of members are canonical", () => {
  const value = {
    numbers: [333333333.33333329, 1e30, 4.5, 2e-3, 0.000000000000000000000000001],
    string: '€$\u000f\nA\'B"\\\\"/',
    literals: [null, true, false],
  };
  const expected =
    '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],' +
    '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}';
  assert.equal(canonicalJson(value), expected);
  const names = { "\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\u{1f600}": 5, "\u0080": 6, "\u00f6": 7 };
  assert.equal(canonicalJson(names), '{"\\r":2,"1":4,"\u0080":6,"\u00f6":7,"\u20ac":1,"\u{1f600}":5,"\ufb33":3}');
  assert.equal(canonicalJson(-0), "0");
});

test("the digest is of the canonical form", () => {
  // printf '{"amount":1,"to":"a"}' | sha256sum
  const expected = "b0b0186a9a83cec13c1f368799f08af41e73708389c9871b35db2b51ef0115d8";
  assert.equal(sha256OfJson({ to: "a", amount: 1 }), expected);
  assert.equal(sha256OfJson({ amount: 1, to: "a", none: undefined }), expected);
  assert.notEqual(sha256OfJson({ to: "a", amount: 2 }), expected);
});

test("a value that two calls could share though they differ has no digest", () => {
  const cyclic: Record<string, unknown> = {};
  cyclic["self"] = cyclic;
  const odd = [
    new Map([[1, 2]]),
    new Date(0),
    () => 1,
    Symbol("a"),
    1n,
    NaN,
    Infinity,
    "\ud800",
    cyclic,
    undefined,
    [undefined],
  ];
  for (const value of odd) assert.throws(() => canonicalJson(value), { name: "JsonError" });
  assert.equal(canonicalJson(Object.assign(Object.create(null), { a: [] })), '{"a":[]}');
});
