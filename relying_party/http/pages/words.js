// What the page says to people: a sentence, and what to do. Nothing here repeats the words of a server, a browser or a
// passkey provider, which are for programs.

import { Unreadable } from "./webauthn.js";

// The server refused, and says which of its reasons it was (RFC 9457).
export class Refused extends Error {
  constructor(problem, status) {
    super(`HTTP ${status}`);
    this.slug = typeof problem?.type === "string" ? problem.type.split(":").pop() : "";
    this.status = status;
    this.seconds = Number.isInteger(problem?.retry_after) ? problem.retry_after : null;
  }
}

// The server did not answer, or something else answered in its place.
export class Unreachable extends Error {}

const NAME = "A name has 1 to 64 characters in one line, no space at its ends, and nothing invisible in it.";

const NAMING = new Set(["register", "rename-user", "rename-passkey"]);
const MAKING = new Set(["register", "add-passkey"]);
const TROUBLE =
  "Something went wrong on the server. Try again in a while; if that does not help, tell those who run this site.";
const MISUNDERSTOOD = "The page and the server did not understand each other. Reload the page, and try again.";

const refusals = {
  "ceremony-gone": "That took too long. Please try again.",
  "last-credential": "This is your only passkey. Add another one first, then remove this one.",
  "not-found": "That is not there any more. What you see now is what there is.",
  "not-signed-in": "You were signed out here. Sign in again to go on.",
  "browsers-only": "This is not possible where you are signed in. Open this page in a browser, and sign in there.",
  "step-up-required": "Your passkey was not used for this, or too long ago. Please try again.",
  "younger-passkey": "To keep it, sign in with a passkey that is older than the one with which this was asked for.",
  "too-many-passkeys": "You have as many passkeys as an account can have. Remove one that you do not use, then add this one.",
  "user-exists":
    "That user name is taken. If it is yours, sign in with your passkey; if it is not, choose another name.",
  "verification-failed":
    "This passkey was not accepted. Try again, or use another one; if none works, ask those who run this site.",
};

const clients = {
  AbortError: "That was cancelled. Try again when you are ready.",
  ConstraintError:
    "A passkey needs something to recognise you by. Set up a screen lock, PIN, fingerprint or face, and try again.",
  NotAllowedError: "That was cancelled, or took too long. Try again when you are ready.",
  NotSupportedError: "Nothing here can make a passkey as this site needs it. Try another device or a security key.",
  OperationError: "Another request for a passkey is still open, perhaps in another tab. Close it, and try again.",
  SecurityError: "Passkeys of this site do not work at this address. Look at the address, and open the site again.",
  TimeoutError: "That took too long. Try again when you are ready.",
};

const EXISTS =
  "This device or its password manager has a passkey for this account already. To add another one, use another device or a security key.";
const NONE =
  "No passkey was used: that was cancelled, took too long, or there is none for this site yet. Try again, or create an account.";
const PROVIDER =
  "Your browser or password manager could not do this. Try again; if that does not help, use another browser or another password manager.";

// deed: what failed, which may say what was wrong.
export function explained(error, deed = "") {
  if (error instanceof Refused) return refusal(error, deed);
  if (error instanceof Unreachable) return "The server cannot be reached. Look at your connection, and try again.";
  if (error instanceof Unreadable) {
    return "Your password manager gave an answer that cannot be read. Update it, or use another one, and try again.";
  }
  const name = String(error?.name);
  if (deed === "sign-in" && name === "NotAllowedError") return NONE;
  if (MAKING.has(deed) && name === "InvalidStateError") return EXISTS;
  return Object.hasOwn(clients, name) ? clients[name] : PROVIDER;
}

function refusal({ slug, status, seconds }, deed) {
  if (slug === "invalid-request" && NAMING.has(deed)) return `This name cannot be used. ${NAME}`;
  if (slug === "rate-limited") return `Too many attempts. Wait ${wait(seconds)}, and try again.`;
  if (slug === "store-unavailable") return `The site cannot look anything up right now. Try again in ${wait(seconds)}.`;
  if (Object.hasOwn(refusals, slug)) return refusals[slug];
  return status >= 500 ? TROUBLE : MISUNDERSTOOD;
}

function wait(seconds) {
  if (seconds === null) return "a minute";
  return seconds === 1 ? "1 second" : `${seconds} seconds`;
}

// Why this page can do nothing with passkeys, and where one can, if that is so. site: its origins, of which the
// first is home.
export function whyNot(site) {
  if (!site.includes(location.origin)) {
    return { text: "Passkeys of this site do not work at this address. Use this one instead:", href: site[0] };
  }
  if (window.PublicKeyCredential && navigator.credentials) return null;
  if (!window.isSecureContext) {
    return { text: "Passkeys need a secure connection. Open this page at an address that begins with https." };
  }
  return { text: "This browser does not have passkeys. Update it, or open this page in another one." };
}

export const noName = `Please give a name. ${NAME}`;
