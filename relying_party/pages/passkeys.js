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
  if (!answer.ok) throw new Refused(value, answer.status);
  return value;
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
  const credential = await navigator.credentials.create({ publicKey, signal });
  await finish("registration", begun, credential);
}

async function signIn() {
  const signal = next();
  const begun = await call("POST", "/webauthn/authentication/options", {});
  const publicKey = PublicKeyCredential.parseRequestOptionsFromJSON(begun.publicKey);
  const credential = await navigator.credentials.get({ publicKey, signal });
  await finish("authentication", begun, credential);
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
  const begun = await call("POST", "/webauthn/authentication/options", {});
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

// Everything one can do is a button or a form with data-do.

const deeds = {
  "sign-in": ["Waiting for your passkey…", signIn],
  register: ["Waiting for your new passkey…", () => register(userName.value.trim())],
  "add-passkey": ["Waiting for your new passkey…", (element) => register(element.dataset.userName)],
  "sign-out": ["Signing out…", () => call("DELETE", "/session")],
};

async function act(element) {
  const [waiting, deed] = deeds[element.dataset.do];
  const buttons = document.querySelectorAll("button");
  buttons.forEach((button) => (button.disabled = true));
  say(waiting);
  try {
    await deed(element);
    location.reload();
  } catch (error) {
    say(explained(error), true);
    buttons.forEach((button) => (button.disabled = false));
    offer().catch(ignore);
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-do]");
  if (button !== null) act(button);
});

document.addEventListener("submit", (event) => {
  event.preventDefault();
  if (event.target.dataset.do) act(event.target);
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
