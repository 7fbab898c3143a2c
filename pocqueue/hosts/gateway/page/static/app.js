// What the page has beyond its snapshot: signing in, tokens and decisions without a reload, copying.
import { showTimes, watch } from "./live.js";
import { connect, onWallet } from "./wallet.js";

const wallet = document.getElementById("wallet-section").dataset.wallet;
const say = (text) => { document.getElementById("say").textContent = text; };

async function post(path, body) {
  const reply = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  const answer = await reply.json();
  if (!reply.ok) throw new Error(answer.error ?? `The gateway answers ${reply.status}.`);
  return answer;
}

function showCopies(root) {
  for (const button of root.querySelectorAll(".copy")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        say("The command is copied.");
        button.textContent = "Copied";
        setTimeout(() => { button.textContent = "Copy"; }, 2000);
      } catch {
        // Not over plain http: select it, for the keyboard.
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
    });
  }
}

async function signIn(found) {
  try {
    say(`Asking ${found.name} …`);
    const session = await connect(found);
    const text = await post("/api/session/challenge", { wallet: session.address });
    const signature = await session.sign(text.message);
    await post("/api/session", { wallet: session.address, nonce: text.nonce, signature });
    location.assign("/app");
  } catch (error) {
    say(error.code === 4001 ? "The wallet has refused. Nothing was changed." : `Not signed in: ${error.message}`);
  }
}

async function getToken() {
  const reply = await fetch("/app/token", {
    method: "POST",
    headers: { "Content-Type": "application/x-www-form-urlencoded", Accept: "text/x-fragment" },
    body: new URLSearchParams({ wallet }),
  });
  if (!reply.ok) throw new Error((await reply.json()).error);
  const place = document.getElementById("token");
  place.innerHTML = await reply.text();
  showCopies(place);
  showTimes(place);
  say("A new token is shown below, with the command for the machine.");
}

// What the forms do by themselves is done without a reload; what it changes comes with the next event.
document.addEventListener("submit", async (event) => {
  const form = event.target;
  const decides = form.matches(".act");
  if (!decides && form.id !== "token-form") return;
  event.preventDefault();
  const button = event.submitter;
  button?.setAttribute("aria-disabled", "true");
  try {
    if (decides) {
      await post(new URL(form.action).pathname.replace("/app/", "/api/"), {});
      say(form.dataset.done);
    } else {
      await getToken();
    }
  } catch (error) {
    say(`Not done: ${error.message}`);
  } finally {
    button?.removeAttribute("aria-disabled");
  }
});

document.addEventListener("keydown", (event) => {
  const menu = event.key === "Escape" && event.target.closest("details.menu[open]");
  if (!menu) return;
  menu.open = false;
  menu.querySelector("summary").focus();
});
document.addEventListener("click", (event) => {
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    if (!menu.contains(event.target)) menu.open = false;
  }
});

showTimes();
showCopies(document);
const live = document.getElementById("live");
if (wallet && live) {
  watch(wallet, (isLive) => {
    live.classList.toggle("on", isLive);
    live.textContent = isLive ? "Live" : "Not connected; trying again …";
  });
}

const button = document.getElementById("connect-button");
if (button) {
  onWallet((found) => {
    document.getElementById("connect").hidden = false;
    button.textContent = `Connect ${found.name}`;
    button.onclick = () => signIn(found);
  });
}
