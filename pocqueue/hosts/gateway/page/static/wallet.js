// Wallets of Solana in a browser: those of the Wallet Standard, and those that are put into the window.

const SIGN = "solana:signMessage";
const CONNECT = "standard:connect";

// Calls back with the wallet to offer, and again when a better one comes.
export function onWallet(callback) {
  const injected = window.phantom?.solana ?? window.solana;
  if (injected?.signMessage) callback({ name: injected.isPhantom ? "Phantom" : "wallet", injected });
  const register = (...wallets) => {
    const found = wallets.find((one) => SIGN in one.features && CONNECT in one.features);
    if (found) callback({ name: found.name, standard: found });
    return () => {};
  };
  window.addEventListener("wallet-standard:register-wallet", (event) => event.detail({ register }));
  window.dispatchEvent(new CustomEvent("wallet-standard:app-ready", { detail: { register } }));
}

// Returns the wallet's address, and a function that signs a text: 64 bytes, in base64.
export async function connect({ standard, injected }) {
  if (standard) {
    const { accounts } = await standard.features[CONNECT].connect();
    const account = accounts[0];
    return {
      address: account.address,
      sign: async (text) => {
        const message = new TextEncoder().encode(text);
        const [done] = await standard.features[SIGN].signMessage({ account, message });
        return base64(done.signature);
      },
    };
  }
  const { publicKey } = await injected.connect();
  return {
    address: publicKey.toString(),
    sign: async (text) => {
      const done = await injected.signMessage(new TextEncoder().encode(text), "utf8");
      return base64(done.signature ?? done);
    },
  };
}

function base64(bytes) {
  return btoa(String.fromCharCode(...new Uint8Array(bytes)));
}
