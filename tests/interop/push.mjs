// Runs web-push, http_ece and jws for the tests: a question on each line of stdin, an answer on each line of stdout.
// {call, options} → {value}, or {error}. A value {"$bytes": base64url} is a Buffer.

import { createECDH, createPublicKey } from "node:crypto";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import webPush from "web-push";

const required = createRequire(import.meta.resolve("web-push"));
const ece = required("http_ece");
const jws = required("jws");

const fromText = (_, value) =>
  typeof value?.$bytes === "string" ? Buffer.from(value.$bytes, "base64url") : value;
const asBytes = (buffer) => ({ $bytes: buffer.toString("base64url") });

function ecdh(privateKey) {
  const key = createECDH("prime256v1");
  key.setPrivateKey(privateKey);
  return key;
}

const calls = {
  encrypt: ({ plaintext, dh, auth, privateKey, salt, pad }) =>
    asBytes(
      ece.encrypt(plaintext, {
        version: "aes128gcm", dh, authSecret: auth, privateKey: ecdh(privateKey), salt, pad,
      }),
    ),
  decrypt: ({ body, auth, privateKey }) =>
    asBytes(ece.decrypt(body, { version: "aes128gcm", authSecret: auth, privateKey: ecdh(privateKey) })),
  request: ({ subscription, payload, options }) => {
    const { method, headers, body, endpoint } = webPush.generateRequestDetails(subscription, payload, options);
    return { method, headers, endpoint, body: asBytes(body) };
  },
  generateKeys: () => webPush.generateVAPIDKeys(),
  verify: ({ token, key }) => {
    const jwk = { kty: "EC", crv: "P-256", x: key.subarray(1, 33).toString("base64url"), y: key.subarray(33).toString("base64url") };
    const pem = createPublicKey({ key: jwk, format: "jwk" }).export({ type: "spki", format: "pem" });
    return jws.verify(token, "ES256", pem) ? jws.decode(token).payload : null; // parsed, as typ is JWT
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    const { call, options } = JSON.parse(line, fromText);
    answer = { value: await calls[call](options) };
  } catch (error) {
    answer = { error: String(error?.message ?? error) };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
