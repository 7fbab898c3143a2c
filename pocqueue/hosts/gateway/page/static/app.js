// What the page has beyond its snapshot: live tables, tokens without a reload, copying, signing in.
import { connect, onWallet } from "./wallet.js";

const section = document.getElementById("wallet-section");
const wallet = section.dataset.wallet;
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

function showAges() {
  for (const time of document.querySelectorAll("#nodes time")) {
    const seconds = Math.max(0, Math.round((Date.now() - Date.parse(time.dateTime)) / 1000));
    const [number, unit] = seconds < 120 ? [seconds, "s"]
      : seconds < 7200 ? [Math.round(seconds / 60), "min"]
      : seconds < 172800 ? [Math.round(seconds / 3600), "h"] : [Math.round(seconds / 86400), "days"];
    time.textContent = `${number} ${unit} ago`;
  }
}

// The server escapes what is in these rows; the page's policy runs no script in them.
function watch() {
  const events = new EventSource(`/app/events?wallet=${encodeURIComponent(wallet)}`);
  events.onmessage = (event) => {
    for (const [id, rows] of Object.entries(JSON.parse(event.data))) {
      document.getElementById(id).innerHTML = rows;
    }
    showAges();
  };
}

function showCopies(root) {
  for (const button of root.querySelectorAll(".copy")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
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

if (wallet) {
  watch();
  showAges();
  setInterval(showAges, 1000);
  showCopies(document);
  document.getElementById("token-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      const reply = await fetch("/app/token", {
        method: "POST",
        headers: { "Content-Type": "application/x-www-form-urlencoded", Accept: "text/x-fragment" },
        body: new URLSearchParams({ wallet }),
      });
      const place = document.getElementById("token");
      if (reply.ok) {
        place.innerHTML = await reply.text();
        showCopies(place);
        say("A new token is shown below.");
      } else {
        say((await reply.json()).error);
      }
    } catch (error) {
      say(`No token: ${error.message}`);
    }
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
