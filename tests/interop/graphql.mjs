// Follows an inbox with graphql-ws, the usual client of graphql-transport-ws, as docs/how-to/graphql.md shows it: node graphql.mjs URL
// Each line of stdout is an event: {proof: nonce}, which a line of stdin answers; {next}, {error}, {complete}, {closed}, {ping}.
// Another line of stdin is {subscribe: document, variables}. Its end is that of the client.

import { createInterface } from "node:readline";
import { createClient } from "graphql-ws";
import { WebSocket } from "ws";

const tell = (event) => process.stdout.write(JSON.stringify(event) + "\n");
const proofs = [];
let nonce;

const client = createClient({
  url: process.argv[2],
  webSocketImpl: WebSocket,
  retryWait: async () => {},
  connectionParams: async () => {
    tell({ proof: nonce ?? null });
    return { DPoP: await new Promise((resolve) => proofs.push(resolve)) };
  },
  on: {
    connected: (_, payload) => {
      nonce = payload["DPoP-Nonce"];
    },
    ping: () => tell({ ping: true }),
    closed: ({ code, reason }) => {
      tell({ closed: [code, reason.split(" ")[0]] });
      const [slug, given] = reason.split(" ");
      if (slug === "use-dpop-nonce") nonce = given;
    },
  },
});

for await (const line of createInterface({ input: process.stdin })) {
  const { proof, subscribe, variables } = JSON.parse(line);
  if (proof) proofs.shift()(proof);
  if (subscribe)
    client.subscribe(
      { query: subscribe, variables },
      {
        next: (value) => tell({ next: value }),
        error: (error) => tell({ error: Array.isArray(error) ? error : `${error?.code} ${error?.reason}` }),
        complete: () => tell({ complete: true }),
      },
    );
}
await client.dispose();
