// The browser's half of the ceremonies and of the account page. Options and responses are WebAuthn Level 3
// JSON, so nothing is converted here: the browser reads the one and writes the other.

const status = document.querySelector(".status");
const userName = document.getElementById("user-name");

class Refused extends Error {
  constructor(problem, code) {
    super(problem?.title ?? `the server answered ${code}`);
    this.slug = problem?.type?.split(":").pop();
  }
}

async function call(method, path, body) {
  const answer = await fetch(path, {
    method,
    headers: body === undefined ? {} : { "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const text = await answer.text();
  const value = text === "" ? null : JSON.parse(text);
  await tell(value?.signals);
  if (!answer.ok) throw new Refused(value, answer.status);
  return value;
}

// What passkey providers may be told, so that they forget what is gone and show what a user is called now.
// A provider need not listen, and a browser need not know how.

const signals = {
  allAcceptedCredentials: "signalAllAcceptedCredentials",
  currentUserDetails: "signalCurrentUserDetails",
  unknownCredential: "signalUnknownCredential",
};

async function tell(given) {
  for (const [name, details] of Object.entries(given ?? {})) {
    await window.PublicKeyCredential?.[signals[name]]?.(details).catch(() => {});
  }
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
  const publicKey = PublicKeyCredential.parseCreationOptionsFromJSON(begun.publicKey);
  await finish("registration", begun, await navigator.credentials.create({ publicKey, signal }));
}

async function assert(ceremony) {
  const signal = next();
  const begun = await call("POST", `/webauthn/${ceremony}/options`, {});
  const publicKey = PublicKeyCredential.parseRequestOptionsFromJSON(begun.publicKey);
  await finish(ceremony, begun, await navigator.credentials.get({ publicKey, signal }));
}

// What matters needs a passkey that was used lately: when it was not, it is asked for, and then it goes on.

async function freshly(deed) {
  try {
    return await deed();
  } catch (error) {
    if (error.slug !== "step-up-required") throw error;
  }
  say("Please use your passkey once more…");
  await assert("step-up");
  return deed();
}

async function finish(ceremony, begun, credential) {
  await call("POST", `/webauthn/${ceremony}/result`, {
    ceremony: begun.ceremony,
    response: credential.toJSON(),
  });
}

// Passkeys offered in the user name's field, for as long as nobody has asked for anything else. A challenge
// lasts for some minutes, so the offer is made again before it ends.

async function offer() {
  if (userName === null || !(await PublicKeyCredential.isConditionalMediationAvailable?.())) return;
  const signal = next();
  const begun = await call("POST", "/webauthn/authentication/options", { mediation: "conditional" });
  const publicKey = PublicKeyCredential.parseRequestOptionsFromJSON(begun.publicKey);
  const again = setTimeout(() => signal.aborted || offer().catch(ignore), begun.publicKey.timeout * 0.9);
  signal.addEventListener("abort", () => clearTimeout(again));
  if (signal.aborted) return;
  const credential = await navigator.credentials.get({ publicKey, signal, mediation: "conditional" });
  await finish("authentication", begun, credential);
  location.reload();
}

function ignore(error) {
  if (error instanceof Refused) say(explained(error), true); // the rest nobody asked for, so nobody is told
}

function explained(error) {
  if (error.name === "NotAllowedError" || error.name === "AbortError") {
    return "That was cancelled, or took too long.";
  }
  if (error.name === "InvalidStateError") return "There is a passkey of yours already.";
  return error.message;
}

function say(text, bad = false) {
  status.classList.toggle("bad", bad);
  status.textContent = text;
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
  form.elements.yes.textContent = yes;
  form.elements.yes.classList.toggle("risky", risky);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((answer) => {
    const closed = () => answer(dialog.returnValue === "yes" ? input.value.trim() : null);
    dialog.addEventListener("close", closed, { once: true });
  });
}

// Everything one can do is a button or a form with data-do. A deed that gives false was not done after all.

const passkey = (element) => `/me/credentials/${element.dataset.id}`;
const session = (element) => `/me/sessions/${element.dataset.id}`;

const deeds = {
  "sign-in": () => assert("authentication"),
  register: () => register(userName.value.trim()),
  "sign-out": () => call("DELETE", "/session"),
  "add-passkey": (element) => freshly(() => register(element.dataset.userName)),
  "end-session": (element) => call("DELETE", session(element)),
  "end-other-sessions": () => call("DELETE", "/me/sessions"),

  async "rename-user"(element) {
    const name = await ask({
      title: "Change your name",
      field: "Name",
      value: element.dataset.name,
      yes: "Save",
    });
    return name !== null && call("PATCH", "/me", { display_name: name });
  },

  async "rename-passkey"(element) {
    const label = await ask({
      title: "Rename this passkey",
      field: "Name",
      value: element.dataset.name,
      yes: "Save",
    });
    return label !== null && call("PATCH", passkey(element), { label });
  },

  async "remove-passkey"(element) {
    const text = "It will not sign in here any more, and what it signed in is signed out.";
    const sure = await ask({ title: `Remove ${element.dataset.name}?`, text, yes: "Remove", risky: true });
    return sure !== null && freshly(() => call("DELETE", passkey(element)));
  },
};

const waiting = {
  "sign-in": "Waiting for your passkey…",
  register: "Waiting for your new passkey…",
  "add-passkey": "Waiting for your new passkey…",
};

async function act(element) {
  const deed = element.dataset.do;
  const buttons = document.querySelectorAll("button[data-do], form[data-do] button");
  buttons.forEach((button) => (button.disabled = true));
  say(waiting[deed] ?? "");
  try {
    if ((await deeds[deed](element)) !== false) {
      location.reload();
      return;
    }
  } catch (error) {
    say(explained(error), true);
  }
  buttons.forEach((button) => (button.disabled = false));
  element.focus();
  offer().catch(ignore);
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

if (window.PublicKeyCredential?.parseCreationOptionsFromJSON === undefined) {
  say("This browser is too old for passkeys on this page.", true);
} else {
  offer().catch(ignore);
}
