// Subscribes this browser to pushes of a relay, and shows what the relay has to know of it.

// vapidKey: of the relay, from `GET /v1/channels`. Returns the address: endpoint, p256dh and auth, the two as base64url.
export async function subscribe(vapidKey) {
  const registration = await navigator.serviceWorker.ready;
  const old = await registration.pushManager.getSubscription();
  await old?.unsubscribe(); // it may be of another key
  const subscription = await registration.pushManager.subscribe({
    userVisibleOnly: true,
    applicationServerKey: vapidKey,
  });
  const { endpoint, keys } = subscription.toJSON();
  return { kind: "web-push", endpoint, p256dh: keys.p256dh, auth: keys.auth };
}

const form = document.querySelector("form");
const output = document.querySelector("output");

navigator.serviceWorker.register("service-worker.js");
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    if ((await Notification.requestPermission()) !== "granted") {
      throw new Error("Notifications are not allowed here.");
    }
    output.textContent = JSON.stringify(await subscribe(form.elements.key.value.trim()), null, 2);
  } catch (error) {
    output.textContent = error.message;
  }
});
