// The page's half of the companion: it shows what the server says, and brings answers. All text of others is set as text.

const status = document.querySelector(".status");
const requests = document.getElementById("requests");
const open = document.getElementById("open");
const template = document.getElementById("request");
const nothing = document.getElementById("nothing");
const end = document.getElementById("end");

const KEY = "companion-key"; // of the session, beside its cookie, in this origin's storage
const PATIENCE = 40_000; // milliseconds for one answer of the server, which may wait for news
const SETTLE = 700; // milliseconds in which a list that has moved takes no answer: a click may have been meant for another request
const AGAIN = 2_000; // milliseconds until a server that does not answer is called again
const SPARE = 5_000; // milliseconds until a server that does not wait for news is called again

const cards = new Map(); // by the request's name
let moved = -SETTLE; // when the list has changed
let busy = false; // whether an answer is being carried out, and others wait
let openUntil = 0;
let refusal = ""; // of the link that this page was opened with

class Refused extends Error {
  constructor(code, detail) {
    super(detail);
    this.code = code;
  }
}

async function call(method, path, body) {
  const headers = { "Companion-Key": stored() };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, {
    method,
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
    redirect: "error",
    signal: AbortSignal.timeout?.(PATIENCE), // older browsers have none
  });
  const text = await answer.text();
  const value = text === "" ? null : JSON.parse(text);
  if (!answer.ok) throw new Refused(answer.status, value?.detail ?? "");
  return value;
}

function stored() {
  try {
    return localStorage.getItem(KEY) ?? "";
  } catch {
    return ""; // a browser that keeps nothing
  }
}

// The link's secret leaves the address before anything else is done: neither history nor a shared address has it.

async function enter() {
  const link = location.hash.slice(1);
  if (link === "") return;
  history.replaceState(null, "", "/");
  try {
    localStorage.setItem(KEY, (await call("POST", "/session", { link })).key);
  } catch (error) {
    const refused = error instanceof Refused && error.code === 403;
    refusal = refused ? "That link is wrong, used or too old." : "The link could not be used.";
    say(refusal, { bad: true }); // a page that is open already stays so
  }
}

async function follow() {
  let seen = "";
  let lost = false;
  for (;;) {
    const began = performance.now();
    try {
      const state = await call("GET", `/state?seen=${seen}`);
      const same = state.version === seen;
      if (lost) say("");
      lost = false;
      seen = state.version;
      show(state);
      if (same && performance.now() - began < AGAIN) await pause(SPARE);
    } catch (error) {
      forget();
      seen = "";
      lost = true;
      if (error instanceof Refused && error.code === 401) return over();
      say("The companion does not answer: it has ended, or cannot be reached. Nothing can be approved here until it does.", { bad: true });
      await pause(AGAIN);
    }
  }
}

function over() {
  end.hidden = true;
  say(`${refusal || "This page is not open any more."} Get a link with: companion-push companion page --link`, { bad: true });
}

function pause(milliseconds) {
  return new Promise((go) => setTimeout(go, milliseconds));
}

function say(text, { bad = false } = {}) {
  status.classList.toggle("bad", bad);
  if (status.textContent !== text) status.textContent = text;
}

// What is shown

function show(state) {
  end.hidden = false;
  busy = !state.asking && state.requests.length > 0;
  showOpen(state.open);
  showRequests(state.requests);
  showNotices(state.notices);
  const waiting = state.requests.length;
  document.title = waiting > 0 ? `(${waiting}) Companion` : "Companion";
  nothing.hidden = waiting > 0 || state.open !== null;
  nothing.textContent = state.reached
    ? "Nobody asks for anything. A request appears here by itself."
    : "The relay does not answer now: no request can come until it does.";
  tick();
}

// Everything goes that could be approved, or be seen of it.
function forget() {
  end.hidden = true;
  showOpen(null);
  showRequests([]);
  showNotices([]);
  document.title = "Companion";
  nothing.hidden = true;
}

function showRequests(listed) {
  const names = new Set(listed.map((each) => each.name));
  for (const [name, card] of cards) {
    if (names.has(name)) continue;
    if (card.element.contains(document.activeElement)) status.focus();
    card.element.remove();
    cards.delete(name);
    moved = performance.now();
  }
  for (const each of listed) {
    if (!cards.has(each.name)) {
      cards.set(each.name, added(each));
      moved = performance.now();
    }
    cards.get(each.name).ends = performance.now() + each.seconds * 1000;
  }
  enable();
}

function added(request) {
  const element = template.content.firstElementChild.cloneNode(true);
  const card = { element, name: request.name, until: clockTime(request.expires), ends: 0, sending: false };
  element.querySelector("h2").textContent = request.asks;
  element.querySelector(".at").textContent = request.at;
  for (const name of ["words", "note"]) {
    element.querySelector(`.${name}`).hidden = request[name] === null;
    element.querySelector(`.${name} dd`).textContent = request[name] ?? "";
  }
  const label = element.querySelector(".digits");
  const input = label.querySelector("input");
  if (request.digits === null) label.remove();
  for (const button of element.querySelectorAll("button")) {
    button.setAttribute("aria-label", `${button.textContent}: ${request.asks}`);
    const word = button.dataset.answer;
    if (word !== undefined) button.addEventListener("click", () => answer(card, word, button.textContent));
  }
  element.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    answer(card, request.digits === null ? "yes" : input.value, "Approve");
  });
  requests.append(element);
  return card;
}

// A button that cannot be used now keeps the focus.
function enable() {
  const settled = performance.now() - moved >= SETTLE;
  for (const { element, sending } of cards.values()) {
    for (const button of element.querySelectorAll("button")) {
      button.setAttribute("aria-disabled", String(!settled || busy || sending));
    }
  }
  if (!settled) setTimeout(enable, SETTLE - (performance.now() - moved) + 1);
}

async function answer(card, text, what) {
  if (busy) return say("Another request is being dealt with: this one waits until that has ended.", { bad: true });
  if (card.sending) return;
  if (performance.now() - moved < SETTLE) return say("The list has just changed. Please look again.", { bad: true });
  card.sending = true;
  enable();
  try {
    await call("POST", "/answer", { request: card.name, answer: text });
    say({ Approve: "Answered.", Decline: "Declined.", "Not me": "Declined, and the device is muted." }[what]);
  } catch (error) {
    say(explained(error), { bad: true });
  } finally {
    card.sending = false;
    enable();
  }
}

function explained(error) {
  if (!(error instanceof Refused)) return "The companion did not take the answer: it has ended, or cannot be reached.";
  if (error.code === 422) return error.message;
  if (error.code === 409) return "That request has ended, or was answered already.";
  return "The companion did not take the answer.";
}

function showOpen(shown) {
  open.hidden = shown === null;
  const path = open.querySelector("path");
  const launch = open.querySelector(".launch");
  if (shown === null) {
    path.removeAttribute("d");
    launch.removeAttribute("href");
  }
  document.getElementById("open-asks").textContent = shown?.asks ?? "";
  open.querySelector(".at").textContent = shown === null ? "" : `at ${shown.at}`;
  open.querySelector(".compare").textContent = shown?.compare ?? "";
  const ours = shown?.url?.startsWith("FIDO:/") ?? false;
  open.querySelector(".code").hidden = !ours;
  openUntil = shown === null ? 0 : performance.now() + shown.seconds * 1000;
  if (!ours) return;
  const size = shown.modules.length;
  open.querySelector("svg").setAttribute("viewBox", `0 0 ${size} ${size}`);
  path.setAttribute("d", drawn(shown.modules));
  launch.href = shown.url;
}

// A QR code as a path: a square for each dark module.
function drawn(rows) {
  return rows.map((row, y) => [...row].map((module, x) => (module === "1" ? `M${x} ${y}h1v1h-1z` : "")).join("")).join("");
}

function showNotices(listed) {
  document.getElementById("happened").hidden = listed.length === 0;
  const lines = [...listed].reverse().map(({ at, text }) => {
    const time = document.createElement("time");
    time.dateTime = new Date(at * 1000).toISOString();
    time.textContent = clockTime(at);
    const line = document.createElement("li");
    line.append(time, ` ${text}`);
    return line;
  });
  document.getElementById("notices").replaceChildren(...lines);
}

function clockTime(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString();
}

function tick() {
  const now = performance.now();
  for (const { element, until, ends } of cards.values()) {
    element.querySelector(".until").textContent = `${until} (${left(ends - now)})`;
  }
  open.querySelector(".left").textContent = open.hidden ? "" : left(openUntil - now);
  if (!open.hidden && openUntil <= now) showOpen(null);
}

function left(milliseconds) {
  const seconds = Math.max(0, Math.floor(milliseconds / 1000));
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")} left`;
}

end.addEventListener("click", async () => {
  try {
    await call("DELETE", "/session"); // which the page hears of as its other tabs do
    localStorage.removeItem(KEY);
  } catch {
    return say("The companion does not answer: the page is still open.", { bad: true });
  }
});

window.addEventListener("hashchange", () => location.reload()); // another link in the same tab
setInterval(tick, 1_000);
await enter();
await follow();
