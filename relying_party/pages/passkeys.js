// The four ceremonies' browser half. Options and responses are WebAuthn Level 3 JSON, so nothing is
// converted here: the browser reads the one and writes the other.

const userName = document.getElementById("user-name");
const status = document.getElementById("status");
const buttons = document.querySelectorAll("button");

async function call(method, path, body) {
  const answer = await fetch(path, {
    method,
    headers: body === undefined ? {} : { "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const text = await answer.text();
  const value = text === "" ? null : JSON.parse(text);
  if (!answer.ok) throw new Error(value?.title ?? `the server answered ${answer.status}`);
  return value;
}

async function register() {
  const name = userName.value.trim();
  if (name === "") {
    userName.focus();
    throw new Error("Choose a user name first.");
  }
  const begun = await call("POST", "/webauthn/registration/options", { user_name: name });
  const publicKey = PublicKeyCredential.parseCreationOptionsFromJSON(begun.publicKey);
  const credential = await navigator.credentials.create({ publicKey });
  await call("POST", "/webauthn/registration/result", {
    ceremony: begun.ceremony,
    response: credential.toJSON(),
  });
}

async function signIn() {
  const name = userName.value.trim();
  const begun = await call("POST", "/webauthn/authentication/options", name === "" ? {} : { user_name: name });
  const publicKey = PublicKeyCredential.parseRequestOptionsFromJSON(begun.publicKey);
  const credential = await navigator.credentials.get({ publicKey });
  await call("POST", "/webauthn/authentication/result", {
    ceremony: begun.ceremony,
    response: credential.toJSON(),
  });
}

async function signOut() {
  await call("DELETE", "/session");
}

function say(text, bad = false) {
  status.textContent = text;
  status.classList.toggle("bad", bad);
}

function on(id, waiting, action) {
  document.getElementById(id)?.addEventListener("click", async () => {
    buttons.forEach((button) => (button.disabled = true));
    say(waiting);
    try {
      await action();
      location.reload();
    } catch (error) {
      const cancelled = error.name === "NotAllowedError" || error.name === "AbortError";
      const known = error.name === "InvalidStateError" ? "There is a passkey of yours already." : error.message;
      say(cancelled ? "That was cancelled, or took too long." : known, true);
      buttons.forEach((button) => (button.disabled = false));
    }
  });
}

on("register", "Waiting for your new passkey…", register);
on("sign-in", "Waiting for your passkey…", signIn);
on("sign-out", "Signing out…", signOut);
document.getElementById("passkey").addEventListener("submit", (event) => {
  event.preventDefault();
  document.getElementById("sign-in").click();
});
if (window.PublicKeyCredential?.parseCreationOptionsFromJSON === undefined) {
  say("This browser is too old for passkeys on this page.", true);
}
