// Options and responses of ceremonies: WebAuthn Level 3 JSON (§5.1.8) to what the browser takes, and back.
//
// It is done by hand, from the members that clients have had since WebAuthn Level 1, and not with the browser's
// parse…FromJSON() and toJSON(): Safari 16 to 18.3 does not have the former; and 1Password, Proton Pass, KeePassXC and
// older versions of Bitwarden (seen in November 2026) give back objects whose prototype is a credential's and which are
// none, so that its methods throw "Illegal invocation".

// The provider's answer lacks what a passkey's answer has.
export class Unreadable extends Error {}

export function creationOptions(json) {
  return {
    ...json,
    challenge: bytes(json.challenge),
    user: { ...json.user, id: bytes(json.user.id) },
    excludeCredentials: json.excludeCredentials.map(descriptor),
  };
}

export function requestOptions(json) {
  const first = json.extensions?.prf?.eval?.first;
  return {
    ...json,
    challenge: bytes(json.challenge),
    allowCredentials: json.allowCredentials.map(descriptor),
    ...(first && { extensions: { ...json.extensions, prf: { eval: { first: bytes(first) } } } }),
  };
}

export function registrationResponse(credential) {
  const response = attempt(() => credential.response);
  const transports = attempt(() => response.getTransports());
  return {
    ...named(credential),
    response: {
      clientDataJSON: text(() => response.clientDataJSON),
      attestationObject: text(() => response.attestationObject),
      transports: Array.isArray(transports) ? transports : [],
    },
    clientExtensionResults: results(credential),
  };
}

export function authenticationResponse(credential) {
  const response = attempt(() => credential.response);
  return {
    ...named(credential),
    response: {
      clientDataJSON: text(() => response.clientDataJSON),
      authenticatorData: text(() => response.authenticatorData),
      signature: text(() => response.signature),
      userHandle: attempt(() => response.userHandle) ? text(() => response.userHandle) : null,
    },
    clientExtensionResults: {},
  };
}

function named(credential) {
  const id = text(() => credential.rawId);
  return { id, rawId: id, type: "public-key" };
}

// What the server keeps, and nothing else: what prf evaluates to stays here.
function results(credential) {
  const given = attempt(() => credential.getClientExtensionResults());
  const kept = {};
  if (typeof given?.credProps?.rk === "boolean") kept.credProps = { rk: given.credProps.rk };
  if (typeof given?.prf?.enabled === "boolean") kept.prf = { enabled: given.prf.enabled };
  return kept;
}

function descriptor(json) {
  return { ...json, id: bytes(json.id) };
}

function bytes(base64url) {
  return Uint8Array.from(atob(base64url.replace(/-/g, "+").replace(/_/g, "/")), (one) => one.charCodeAt(0));
}

// A buffer or a view of one as base64url without padding.
function text(read) {
  const value = attempt(read);
  const size = value?.byteLength;
  if (typeof size !== "number") throw new Unreadable();
  const view = ArrayBuffer.isView(value) ? new Uint8Array(value.buffer, value.byteOffset, size) : new Uint8Array(value);
  const binary = Array.from(view, (one) => String.fromCharCode(one)).join("");
  return btoa(binary).replace(/\+/g, "-").replace(/\//g, "_").replace(/=/g, "");
}

// What a foreign object says, or undefined where it says nothing and throws instead.
function attempt(read) {
  try {
    return read();
  } catch {
    return undefined;
  }
}
