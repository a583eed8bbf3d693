// The browser's half of the ceremonies and of the account page.

import {
  Unreadable,
  authenticationResponse,
  creationOptions,
  registrationResponse,
  requestOptions,
} from "./webauthn.js";
import { Refused, Unreachable, explained, noName, whyNot } from "./words.js";

const status = document.querySelector(".status");
const userName = document.getElementById("user-name");
const root = new URL("..", import.meta.url).pathname.slice(0, -1); // where the relying party is mounted
const why = whyNot(document.body.dataset.origins.split(" "));
const PATIENCE = 30_000; // milliseconds for one answer of the server

async function call(method, path, body) {
  const answer = await fetched(method, path, body);
  const value = await parsed(answer);
  await tell(value?.signals);
  if (!answer.ok) throw new Refused(value, answer.status);
  return value;
}

async function fetched(method, path, body) {
  try {
    return await fetch(root + path, {
      method,
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
      redirect: "error",
      signal: AbortSignal.timeout?.(PATIENCE),
    });
  } catch {
    throw new Unreachable();
  }
}

// What a proxy answers in the server's place need not be JSON.
async function parsed(answer) {
  try {
    const text = await answer.text();
    return text === "" ? null : JSON.parse(text);
  } catch {
    throw answer.ok ? new Unreachable() : new Refused(null, answer.status);
  }
}

// What passkey providers may be told, so that they forget what is gone and show what a user is called now.
// A provider need not listen, and a browser need not know how: nobody waits for long.

const signals = {
  allAcceptedCredentials: "signalAllAcceptedCredentials",
  currentUserDetails: "signalCurrentUserDetails",
  unknownCredential: "signalUnknownCredential",
};

const HEARING = 1_000; // milliseconds

async function tell(given) {
  const told = Object.entries(given ?? {}).map(async ([name, details]) =>
    window.PublicKeyCredential?.[signals[name]]?.(details),
  );
  await Promise.race([Promise.allSettled(told), new Promise((go) => setTimeout(go, HEARING))]);
}

// One request at a time: whoever asks the browser for a passkey ends the request before.

let asking = new AbortController();

function next() {
  asking.abort();
  asking = new AbortController();
  return asking.signal;
}

async function register(name) {
  const signal = next();
  const begun = await call("POST", "/webauthn/registration/options", { user_name: name });
  const publicKey = creationOptions(begun.publicKey);
  const credential = await navigator.credentials.create({ publicKey, signal });
  await finish("registration", begun, registrationResponse(credential));
}

async function assert(ceremony, asked = {}) {
  const signal = next();
  const begun = await call("POST", `/webauthn/${ceremony}/options`, asked);
  const publicKey = requestOptions(begun.publicKey);
  const credential = await navigator.credentials.get({ publicKey, signal });
  await finish(ceremony, begun, authenticationResponse(credential));
}

async function finish(ceremony, begun, response) {
  try {
    await call("POST", `/webauthn/${ceremony}/result`, { ceremony: begun.ceremony, response });
  } catch (error) {
    throw error.slug === "invalid-request" ? new Unreadable() : error;
  }
}

// What changes the account needs a passkey used for just that (docs/protocol/relying-party.md, "Stepping up"). The page
// says what for, while the browser asks for the passkey, which does not say it.

async function stepUp(what, operation) {
  say(`To ${what}, use your passkey…`);
  await assert("step-up", operation);
}

// Passkeys offered in the user name's field, for as long as nobody has asked for anything else. A challenge
// lasts for some minutes, so the offer is made again before it ends; and soon after it has failed: the server may not have
// answered, the passkey that somebody chose may be refused, and a browser may end an offer by itself.

const FIRST_PAUSE = 1_000; // milliseconds until an offer that failed is made again; doubled each time
const LAST_PAUSE = 300_000;

async function offer(pause = FIRST_PAUSE) {
  if (why !== null || userName === null) return;
  if (!(await isOffered()) || busy) return; // whoever is busy makes an offer afterwards
  const signal = next();
  let chosen = false;
  try {
    const begun = await call("POST", "/webauthn/authentication/options", { mediation: "conditional" });
    const publicKey = requestOptions(begun.publicKey);
    const again = setTimeout(() => signal.aborted || offer(), begun.publicKey.timeout * 0.9);
    signal.addEventListener("abort", () => clearTimeout(again));
    if (signal.aborted) return;
    const credential = await navigator.credentials.get({ publicKey, signal, mediation: "conditional" });
    chosen = true;
    await finish("authentication", begun, authenticationResponse(credential));
    anew("You are signed in.");
  } catch (error) {
    if (signal.aborted) return; // it has given way
    if (chosen || (error instanceof Refused && pause === FIRST_PAUSE)) say(explained(error), { bad: true });
    // the rest nobody asked for, so nobody is told
    const left = chosen ? FIRST_PAUSE : pause;
    setTimeout(() => signal.aborted || offer(Math.min(2 * left, LAST_PAUSE)), left);
  }
}

async function isOffered() {
  try {
    return await PublicKeyCredential.isConditionalMediationAvailable?.();
  } catch {
    return false;
  }
}

// What was done, or what to do. After a change the page is loaded anew: it says so then, and the focus goes back
// to where it was, or to what is said when that is gone.

function say(text, { bad = false, href } = {}) {
  if (status === null) return; // a page that has nothing to do
  status.classList.toggle("bad", bad);
  status.textContent = text;
  if (href) status.append(" ", Object.assign(document.createElement("a"), { href, textContent: href }));
}

function anew(said, { element = null, bad = false } = {}) {
  const { do: deed = "", id = "" } = element?.dataset ?? {};
  history.replaceState({ said, bad, deed, id }, "");
  location.reload();
}

function goOn() {
  const { said, bad, deed, id } = history.state ?? {};
  if (said === undefined) return;
  history.replaceState(null, "");
  say(said, { bad });
  const same = [...document.querySelectorAll("[data-do]")].find(
    (each) => each.dataset.do === deed && (each.dataset.id ?? "") === id,
  );
  (same ?? status)?.focus({ preventScroll: true });
}

// Questions before some deeds: the answer is the text, or null when it was not confirmed.

const dialog = document.getElementById("question");

function ask({ title, text = "", field = null, value = "", yes, risky = false }) {
  const form = dialog.querySelector("form");
  const input = form.elements.answer;
  dialog.querySelector("h2").textContent = title;
  dialog.querySelector("p").textContent = text;
  form.querySelector("label").textContent = field ?? "";
  form.querySelector(".field").hidden = field === null;
  input.required = field !== null;
  input.value = value;
  named(input);
  form.elements.yes.textContent = yes;
  form.elements.yes.classList.toggle("risky", risky);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((answer) => {
    const closed = () => answer(dialog.returnValue === "yes" ? input.value.trim() : null);
    dialog.addEventListener("close", closed, { once: true });
  });
}

// A name of spaces is none either, and the browser says so at the field.

function named(input) {
  input.setCustomValidity(input.required && input.value.trim() === "" ? noName : "");
}

for (const input of document.querySelectorAll("input")) {
  named(input);
  input.addEventListener("input", () => named(input));
}

// Everything one can do is a button or a form with data-do. A deed gives what to say when it is done; one that gives
// null was not done after all.

const passkey = (element) => `/me/credentials/${element.dataset.id}`;
const session = (element) => `/me/sessions/${element.dataset.id}`;
const later = (account, target) => account.removals.some((one) => one.credential_id === target);
const CALL_OFF = "Until then, it can be called off here.";

// Browsers want a passkey asked for soon after a click: after the first one is used, it may be too long ago.

async function clicked() {
  if (navigator.userActivation?.isActive ?? true) return true;
  const text = "Your browser asks where to keep it.";
  return (await ask({ title: "Make the new passkey", text, yes: "Go on" })) !== null;
}

const deeds = {
  async "sign-in"() {
    await assert("authentication");
    return "You are signed in.";
  },

  async register() {
    await register(userName.value.trim());
    return "Your account is ready, and you are signed in.";
  },

  async "sign-out"() {
    await call("DELETE", "/session");
    return "You are signed out.";
  },

  async "add-passkey"(element) {
    await stepUp("add a passkey to your account", { operation: "add-passkey" });
    say(waiting["add-passkey"]);
    if (!(await clicked())) return null;
    await register(element.dataset.userName);
    return "The new passkey is added. You can sign in with it from now on.";
  },

  async "rename-user"(element) {
    const name = await ask({ title: "Change your name", field: "Name", value: element.dataset.name, yes: "Save" });
    if (name === null) return null;
    await stepUp(`change your name to “${name}”`, { operation: "rename-user", name });
    await call("PATCH", "/me", { display_name: name });
    return `Your name is “${name}” now.`;
  },

  async "rename-passkey"(element) {
    const label = await ask({ title: "Rename this passkey", field: "Name", value: element.dataset.name, yes: "Save" });
    if (label === null) return null;
    const { id: target, name } = element.dataset;
    await stepUp(`rename “${name}” to “${label}”`, { operation: "rename-passkey", target, name: label });
    await call("PATCH", passkey(element), { label });
    return `The passkey is called “${label}” now.`;
  },

  async "remove-passkey"(element) {
    const { id: target, name } = element.dataset;
    const text = "It will not sign in here any more, and what it signed in is signed out.";
    if ((await ask({ title: `Remove “${name}”?`, text, yes: "Remove", risky: true })) === null) return null;
    await stepUp(`remove the passkey “${name}”`, { operation: "remove-passkey", target });
    const left = await call("DELETE", passkey(element));
    return later(left, target) ? `The passkey “${name}” is going to be removed. ${CALL_OFF}` : `The passkey “${name}” is removed.`;
  },

  async "call-off"(element) {
    const { id, name } = element.dataset;
    await call("DELETE", `/me/removals/${id}`);
    return name === "your account" ? "Your account stays." : `The passkey “${name}” stays.`;
  },

  async "delete-account"() {
    const text = "Your passkeys will not sign in here any more, and everything that is signed in is signed out.";
    if ((await ask({ title: "Delete your account?", text, yes: "Delete", risky: true })) === null) return null;
    await stepUp("delete your account", { operation: "delete-account" });
    return (await call("DELETE", "/me")) === null ? "Your account is deleted." : `Your account is going to be deleted. ${CALL_OFF}`;
  },

  async "end-session"(element) {
    const { id: target, name } = element.dataset;
    await stepUp(`sign out “${name}”`, { operation: "end-session", target });
    await call("DELETE", session(element));
    return `“${name}” is signed out.`;
  },

  async "end-other-sessions"() {
    await stepUp("sign out everywhere else", { operation: "end-other-sessions" });
    await call("DELETE", "/me/sessions");
    return "You are signed out everywhere else.";
  },
};

const waiting = {
  "sign-in": "Waiting for your passkey…",
  register: "Waiting for your new passkey…",
  "add-passkey": "Waiting for your new passkey…",
};
const needing = new Set(Object.keys(deeds).filter((deed) => !["sign-out", "call-off"].includes(deed))); // a passkey
const outdated = new Set(["not-found", "not-signed-in"]); // the page shows what is no longer so

function sayWhyNot() {
  say(why.text, { bad: true, href: why.href && why.href + (root && `${root}/`) });
}

const buttons = document.querySelectorAll("button[data-do], form[data-do] button");
let busy = false;

async function act(element) {
  const deed = element.dataset.do;
  if (busy) return;
  if (needing.has(deed) && why !== null) {
    sayWhyNot();
    return;
  }
  work(true);
  say(waiting[deed] ?? "");
  try {
    const done = await deeds[deed](element);
    if (done !== null) {
      anew(done, { element });
      return;
    }
    say("");
  } catch (error) {
    const text = explained(error, deed);
    if (outdated.has(error?.slug)) {
      anew(text, { element, bad: true });
      return;
    }
    say(text, { bad: true });
  }
  work(false);
  offer();
}

// A button that is disabled would lose the focus, so it only says that it is.

function work(on) {
  busy = on;
  for (const button of buttons) button.setAttribute("aria-disabled", String(on));
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-do]");
  if (button !== null) act(button);
  if (event.target.closest("[data-close]")) dialog.close();
});

document.addEventListener("submit", (event) => {
  event.preventDefault();
  if (event.target.dataset.do) act(event.target);
  else dialog.close(event.submitter.value);
});

const local = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
for (const time of document.querySelectorAll("time")) {
  time.title = time.textContent;
  time.textContent = local.format(new Date(time.dateTime));
}

for (const button of buttons) button.disabled = false; // without this script they do nothing
if (why !== null) sayWhyNot();
goOn();
offer();
