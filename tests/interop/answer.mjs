// Runs @simplewebauthn/server for the tests: a question on each line of stdin, an answer on each line of stdout.
// {call, options} → {value}, or {error} when the library threw. A value {"$bytes": base64url} is a Uint8Array.

import { createInterface } from "node:readline";
import * as library from "@simplewebauthn/server";

const fromText = (_, value) =>
  typeof value?.$bytes === "string" ? new Uint8Array(Buffer.from(value.$bytes, "base64url")) : value;
const toText = (_, value) =>
  value instanceof Uint8Array ? { $bytes: Buffer.from(value).toString("base64url") } : value;

for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    const { call, options } = JSON.parse(line, fromText);
    answer = { value: await library[call](options) };
  } catch (error) {
    answer = { error: String(error?.message ?? error) };
  }
  process.stdout.write(JSON.stringify(answer, toText) + "\n");
}
