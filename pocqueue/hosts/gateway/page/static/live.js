// What changes by itself: rows and texts as the gateway tells them, and how long ago things were.

const row = (list, key) => list.querySelector(`:scope > [data-key="${CSS.escape(key)}"]`);

// The server escapes what is in these texts; the page's policy runs no script in them.
function made(text) {
  const template = document.createElement("template");
  template.innerHTML = text;
  return template.content.querySelector("[data-key]");
}

// Puts a row in another's place. Whoever is in it with the keyboard, or has opened its menu, stays there.
function replace(old, fresh) {
  const focus = old.contains(document.activeElement) ? document.activeElement.dataset.focus : undefined;
  if (old.querySelector("details[open]")) fresh.querySelector("details")?.setAttribute("open", "");
  old.replaceWith(fresh);
  if (focus === undefined) return;
  (fresh.querySelector(`[data-focus="${focus}"]`) ?? fresh.querySelector("summary"))?.focus({ preventScroll: true });
}

function merge(list, { keys, rows }) {
  let isLost = false;
  for (const old of list.querySelectorAll(":scope > [data-key]")) {
    if (keys.includes(old.dataset.key)) continue;
    isLost ||= old.contains(document.activeElement);
    old.remove();
  }
  let last = null;
  for (const key of keys) {
    const old = row(list, key);
    const fresh = key in rows ? made(rows[key]) : old;
    if (old && fresh !== old) replace(old, fresh);
    const before = last ? last.nextElementSibling : list.querySelector(":scope > [data-key]");
    if (before !== fresh) {
      // Moving a row takes the keyboard out of it.
      const focused = fresh.contains(document.activeElement) ? document.activeElement : null;
      list.insertBefore(fresh, before);
      focused?.focus({ preventScroll: true });
    }
    last = fresh;
  }
  if (isLost) list.querySelector("[data-focus]")?.focus();
}

export function showTimes(root = document) {
  for (const time of root.querySelectorAll("time.age")) {
    const seconds = Math.max(0, Math.round((Date.now() - Date.parse(time.dateTime)) / 1000));
    const [number, unit] = seconds < 120 ? [seconds, "s"]
      : seconds < 7200 ? [Math.round(seconds / 60), "min"]
      : seconds < 172800 ? [Math.round(seconds / 3600), "h"] : [Math.round(seconds / 86400), "days"];
    const text = `${number} ${unit} ago`;
    if (time.textContent !== text) time.textContent = text;
    time.title ||= new Date(time.dateTime).toLocaleString();
  }
  for (const time of root.querySelectorAll("time.clock")) {
    const text = new Date(time.dateTime).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    if (time.textContent !== text) time.textContent = text;
  }
}

function take({ lists = {}, texts = {}, beats = {} }) {
  for (const [name, news] of Object.entries(lists)) {
    const list = document.getElementById(name);
    if (list) merge(list, news);
  }
  for (const [name, text] of Object.entries(texts)) {
    const place = document.getElementById(name);
    if (!place) continue;
    const href = place.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    place.innerHTML = text;
    if (href) [...place.querySelectorAll("a")].find((link) => link.getAttribute("href") === href)?.focus();
  }
  const nodes = document.getElementById("nodes");
  for (const [key, at] of Object.entries(beats)) {
    const time = row(nodes, key)?.querySelector("time.age");
    if (time) { time.dateTime = at; time.title = ""; }
  }
  showTimes();
}

// Follows what is shown here. `live` is told whether it does.
export function watch(wallet, live) {
  const query = new URLSearchParams(location.search);
  query.set("wallet", wallet);
  const events = new EventSource(`/app/events?${query}`);
  events.onopen = () => live(true);
  events.onmessage = (event) => take(JSON.parse(event.data));
  events.onerror = () => live(false);
  setInterval(() => showTimes(), 1000);
}
