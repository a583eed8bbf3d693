// A server with the HTTP/2 of Node.js (nghttp2): node apns.mjs CERT KEY. It prints its port, and what comes, a line each.
import { createSecureServer, constants } from "node:http2";
import { readFileSync } from "node:fs";

const [cert, key] = process.argv.slice(2);
const server = createSecureServer({
  cert: readFileSync(cert),
  key: readFileSync(key),
  settings: { maxConcurrentStreams: 4, initialWindowSize: 100 },
});
server.on("stream", (stream, headers) => {
  let body = "";
  stream.setEncoding("utf8");
  stream.on("error", () => {});
  stream.on("data", (data) => (body += data));
  stream.on("end", () => {
    if (stream.aborted || body.length < Number(headers["content-length"])) return; // it was reset
    const told = Object.fromEntries(Object.entries(headers).filter(([, value]) => typeof value === "string"));
    const connection = stream.session.socket.remotePort;
    console.log(JSON.stringify({ headers: told, body: JSON.parse(body), connection }));
    if (headers["apns-collapse-id"].startsWith("ring-")) {
      // begins nothing after this stream, and answers it all the same
      stream.session.goaway(constants.NGHTTP2_NO_ERROR, stream.id);
      setImmediate(() => {
        stream.respond({ ":status": 410, "apns-id": headers["apns-id"] });
        stream.end(JSON.stringify({ reason: "Unregistered", timestamp: 1700000000000 }));
      });
      return;
    }
    if (headers["apns-collapse-id"].startsWith("word-")) {
      stream.close(constants.NGHTTP2_REFUSED_STREAM);
      return;
    }
    stream.respond({ ":status": 200, "apns-id": headers["apns-id"] }, { endStream: true });
  });
});
server.on("sessionError", () => {});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
process.stdin.on("end", () => process.exit(0)).resume();
