// The service worker of a companion in a browser: it shows what a push is about, and knows nothing else.
//
// A push holds {v, purpose, handle, request?}: what happened, the channel, and the request's id. There is no account,
// no name and no URL in it, and none is shown on a lock screen: the texts below are all that there is. Whoever opens the
// notification gets to the app, which reads its inbox at the relay: that is the truth, and a push only a hint.

const TEXTS = {
  en: {
    request: ["Sign-in request", "A device asks for your passkey. Open the app to see which."],
    dismiss: ["Sign-in request", "This request is over."],
    ring: ["Your account", "Who belongs to it has changed. Open the app to see how."],
    removed: ["Your account", "This companion was taken out of it."],
    reset: ["Your account", "It was closed."],
    word: ["Your account", "A device waits for this companion. Open the app."],
    test: ["Test", "Pushes arrive here."],
    other: ["Companion", "Something waits for you. Open the app."],
  },
  de: {
    request: ["Anmeldung", "Ein Gerät fragt nach deinem Passkey. Öffne die App, um zu sehen, welches."],
    dismiss: ["Anmeldung", "Diese Anfrage ist vorbei."],
    ring: ["Dein Konto", "Wer dazugehört, hat sich geändert. Öffne die App, um zu sehen, wie."],
    removed: ["Dein Konto", "Dieser Begleiter wurde daraus entfernt."],
    reset: ["Dein Konto", "Es wurde geschlossen."],
    word: ["Dein Konto", "Ein Gerät wartet auf diesen Begleiter. Öffne die App."],
    test: ["Test", "Nachrichten kommen hier an."],
    other: ["Begleiter", "Etwas wartet auf dich. Öffne die App."],
  },
};

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("push", (event) => event.waitUntil(show(parse(event.data?.text()))));
self.addEventListener("notificationclick", (event) => {
  event.notification.close();
  event.waitUntil(open());
});

// A browser expects that each push shows something, and withdraws the permission where it does not. So what dismisses a
// request takes the place of what asked for it, without a sound: the two have one tag.
function show({ purpose, handle, request }) {
  const texts = TEXTS[self.navigator.language.slice(0, 2)] ?? TEXTS.en;
  const [title, body] = texts[purpose];
  return self.registration.showNotification(title, {
    body,
    tag: request ?? purpose,
    silent: purpose === "dismiss",
    requireInteraction: purpose === "request",
    data: { key: purpose, handle, request },
  });
}

// Whatever comes, something is shown; a purpose of a newer relay is "other".
function parse(text) {
  try {
    const { purpose, handle, request } = JSON.parse(text);
    const known = typeof purpose === "string" && Object.hasOwn(TEXTS.en, purpose);
    return { purpose: known ? purpose : "other", handle, request };
  } catch {
    return { purpose: "other" };
  }
}

async function open() {
  const [window] = await self.clients.matchAll({ type: "window", includeUncontrolled: true });
  return window ? window.focus() : self.clients.openWindow("./");
}
