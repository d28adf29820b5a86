#!/usr/bin/env bash
# Makes src/stage0/_certificates: what the misbehaving server of the selftest shows. Python's standard library cannot
# make certificates, so they are made once, for 100 years. The authorities' private keys are thrown away here, so no
# further certificate can be made in their name; the servers' keys are public by nature, and only the selftest trusts
# their authority.
set -euo pipefail
cd "$(dirname "$0")/../src/stage0/_certificates"
keys=$(mktemp -d)
trap 'rm -rf "$keys"' EXIT

authority() { # NAME
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500 -sha256 \
    -subj "/CN=Stage0 selftest, $1: do not trust" -keyout "$keys/$1.key" -out "$keys/$1.pem" \
    -addext basicConstraints=critical,CA:TRUE,pathlen:0 -addext keyUsage=critical,keyCertSign,cRLSign \
    -addext subjectKeyIdentifier=hash 2>/dev/null
}
server() { # FILE AUTHORITY SUBJECT_ALTERNATIVE_NAME
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 -subj "/CN=Stage0 selftest server" \
    -keyout "$keys/$1.key" -out "$keys/$1.csr" 2>/dev/null
  printf '%s\n' "subjectAltName=$3" basicConstraints=critical,CA:FALSE keyUsage=critical,digitalSignature \
    extendedKeyUsage=serverAuth subjectKeyIdentifier=hash authorityKeyIdentifier=keyid > "$keys/extensions"
  openssl x509 -req -in "$keys/$1.csr" -CA "$keys/$2.pem" -CAkey "$keys/$2.key" -CAcreateserial -days 36499 -sha256 \
    -extfile "$keys/extensions" -out "$keys/$1.pem" 2>/dev/null
  cat "$keys/$1.pem" "$keys/$1.key" > "$1.pem"
}
authority trusted
authority other
cp "$keys/trusted.pem" authority.pem
server server trusted IP:127.0.0.1
server server_of_other_authority other IP:127.0.0.1
server server_of_other_name trusted DNS:elsewhere.invalid
