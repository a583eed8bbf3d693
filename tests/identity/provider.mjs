// An OpenID provider of npm's oidc-provider on loopback: node provider.mjs PORT. It prints "ready" when it listens, and has a
// new signing key each time it is started.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
const require = createRequire(new URL("../interop/package.json", import.meta.url));
const { default: Provider } = await import(pathToFileURL(require.resolve("oidc-provider")));
const { exportJWK, generateKeyPair } = await import(pathToFileURL(require.resolve("jose")));

const port = Number(process.argv[2]);
const { privateKey } = await generateKeyPair("ES256", { extractable: true });
const client = (id) => ({
  client_id: id,
  application_type: "native",
  grant_types: ["urn:ietf:params:oauth:grant-type:device_code", "authorization_code"],
  response_types: ["code"],
  redirect_uris: ["http://127.0.0.1/signed-in"],
  token_endpoint_auth_method: "none",
  id_token_signed_response_alg: "ES256",
  require_auth_time: true,
});

const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [client("companion"), client("other")],
  jwks: { keys: [{ ...(await exportJWK(privateKey)), alg: "ES256", use: "sig", kid: String(Date.now()) }] },
  claims: { openid: ["sub"], profile: ["preferred_username"] },
  conformIdTokenClaims: false,
  cookies: { keys: ["of a test"] },
  findAccount: async (_ctx, id) => ({ accountId: id, claims: async () => ({ sub: id, preferred_username: id }) }),
  features: {
    deviceFlow: { enabled: true },
    dPoP: { enabled: true },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: async (_ctx, resource) => ({
        scope: "",
        audience: resource,
        accessTokenFormat: "jwt",
        jwt: { sign: { alg: "ES256" } },
      }),
    },
  },
});
provider.listen(port, "127.0.0.1", () => console.log("ready"));
