// Certificates for the self-test, made when it runs: nothing that others could trust by mistake is in the package, and
// nothing in it expires. X.509 version 3 in DER, with ECDSA on P-256 and only what TLS needs.

import { generateKeyPairSync, randomBytes, sign, type KeyObject } from "node:crypto";

export interface Issued {
  /** PEM. */
  readonly cert: string;
  readonly key: string;
}

export interface Authority {
  /** PEM, for those who trust it. */
  readonly cert: string;
  /** A certificate of a server with these names. */
  issue(names: readonly string[]): Issued;
}

const ECDSA_WITH_SHA256 = sequence(oid([0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02]));
const COMMON_NAME = oid([0x55, 0x04, 0x03]);
const BASIC_CONSTRAINTS = oid([0x55, 0x1d, 0x13]);
const KEY_USAGE = oid([0x55, 0x1d, 0x0f]);
const EXTENDED_KEY_USAGE = oid([0x55, 0x1d, 0x25]);
const SUBJECT_ALT_NAME = oid([0x55, 0x1d, 0x11]);
const SERVER_AUTH = oid([0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01]);
const TRUE = tag(0x01, Buffer.from([0xff]));
/** Of the authority: it signs certificates. Of a server: it signs. */
const SIGNS_CERTIFICATES = bits(Buffer.from([0x04]), 2);
const SIGNS = bits(Buffer.from([0x80]), 7);

export function makeAuthority(name: string): Authority {
  const pair = newKey();
  const extensions = [
    extension(BASIC_CONSTRAINTS, sequence(TRUE), true),
    extension(KEY_USAGE, SIGNS_CERTIFICATES, true),
  ];
  const subject = { name, publicKey: pair.publicKey };
  const cert = certificate(subject, name, pair.privateKey, extensions);
  return { cert, issue: (names) => issue(names, name, pair.privateKey) };
}

function issue(names: readonly string[], issuer: string, issuerKey: KeyObject): Issued {
  const pair = newKey();
  const extensions = [
    extension(BASIC_CONSTRAINTS, sequence(), true),
    extension(KEY_USAGE, SIGNS, true),
    extension(EXTENDED_KEY_USAGE, sequence(SERVER_AUTH)),
    extension(SUBJECT_ALT_NAME, sequence(...names.map(generalName))),
  ];
  const cert = certificate({ name: names[0] ?? "", publicKey: pair.publicKey }, issuer, issuerKey, extensions);
  return { cert, key: pair.privateKey.export({ type: "pkcs8", format: "pem" }).toString() };
}

const newKey = () => generateKeyPairSync("ec", { namedCurve: "P-256" });

function certificate(
  subject: { readonly name: string; readonly publicKey: KeyObject },
  issuer: string,
  issuerKey: KeyObject,
  extensions: readonly Buffer[],
): string {
  const now = Date.now();
  const hour = 3_600_000;
  const body = sequence(
    tag(0xa0, tag(0x02, Buffer.from([2]))),
    serialNumber(),
    ECDSA_WITH_SHA256,
    distinguishedName(issuer),
    sequence(utcTime(now - hour), utcTime(now + 24 * hour)),
    distinguishedName(subject.name),
    subject.publicKey.export({ type: "spki", format: "der" }),
    tag(0xa3, sequence(...extensions)),
  );
  const der = sequence(body, ECDSA_WITH_SHA256, bits(sign("sha256", body, issuerKey)));
  const lines = der.toString("base64").match(/.{1,64}/g) ?? [];
  return ["-----BEGIN CERTIFICATE-----", ...lines, "-----END CERTIFICATE-----", ""].join("\n");
}

function serialNumber(): Buffer {
  const bytes = randomBytes(16);
  // Positive, and without leading zeros.
  bytes[0] = ((bytes[0] ?? 0) & 0x7f) | 0x40;
  return tag(0x02, bytes);
}

const distinguishedName = (name: string) => sequence(tag(0x31, sequence(COMMON_NAME, tag(0x0c, Buffer.from(name)))));

function generalName(name: string): Buffer {
  const isAddress = /^\d+\.\d+\.\d+\.\d+$/.test(name);
  return isAddress ? tag(0x87, Buffer.from(name.split(".").map(Number))) : tag(0x82, Buffer.from(name));
}

const extension = (id: Buffer, value: Buffer, isCritical = false) =>
  isCritical ? sequence(id, TRUE, tag(0x04, value)) : sequence(id, tag(0x04, value));

/** `YYMMDDhhmmssZ`. */
const utcTime = (ms: number) =>
  tag(0x17, Buffer.from(`${new Date(ms).toISOString().replace(/[-:T]/g, "").slice(2, 14)}Z`));

function sequence(...parts: readonly Buffer[]): Buffer {
  return tag(0x30, Buffer.concat(parts));
}

function oid(bytes: readonly number[]): Buffer {
  return tag(0x06, Buffer.from(bytes));
}

function bits(value: Buffer, unused = 0): Buffer {
  return tag(0x03, Buffer.concat([Buffer.from([unused]), value]));
}

function tag(kind: number, value: Buffer): Buffer {
  return Buffer.concat([Buffer.from([kind]), length(value.length), value]);
}

function length(value: number): Buffer {
  if (value < 0x80) return Buffer.from([value]);
  const bytes = value < 0x100 ? [value] : [value >> 8, value & 0xff];
  return Buffer.from([0x80 | bytes.length, ...bytes]);
}
