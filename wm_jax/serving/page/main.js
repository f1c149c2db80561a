/** The page: joins player, keys and hud. */

import { at, drawGaps, drawNumbers, fit, overlay, seats, state } from "./hud.js";
import { Keys } from "./keys.js";
import { Player, Refused } from "./player.js";

const canvas = /** @type {HTMLCanvasElement} */ (at("view"));
const seedBox = /** @type {HTMLInputElement} */ (at("seed"));
const player = new Player(canvas);
const keys = new Keys(at("keys"), (held) => player.press(held));
/** @type {string[]} */ const problems = [];
let isPaused = false;
let wasHidden = false;
/** @type {number|undefined} */ let retry;

/** @template T @param {string} name @param {(detail: any) => void} act */
const when = (name, act) => player.addEventListener(name, (event) => act(/** @type {CustomEvent} */ (event).detail));

/** @returns {number} */
const wantedSeed = () => Math.min(2 ** 32 - 1, Math.max(0, Math.floor(Number(seedBox.value)) || 0));

function open() {
  clearTimeout(retry);
  overlay({ title: "Connecting", text: "Opening a session.", isWaiting: true });
  state("", "connecting");
  player.seed = wantedSeed();
  player.open();
}

function reset() {
  seedBox.value = String(wantedSeed());
  player.reset(wantedSeed());
  if (isPaused) setPaused(false);
}

/** @param {boolean} wanted */
function setPaused(wanted) {
  isPaused = wanted;
  at("pause").textContent = wanted ? "Resume" : "Pause";
  player.control(wanted ? "pause" : "resume");
}

/** @param {"dream"|"real"} source */
function showSource(source) {
  at("badge").textContent = source === "real" ? "real game" : "dream";
  at("badge").classList.toggle("real", source === "real");
  for (const button of at("switch").querySelectorAll("button")) {
    button.setAttribute("aria-checked", String(button.dataset.source === source));
  }
}

async function refreshSeats() {
  try {
    const { models } = await (await fetch("/v1/models")).json();
    seats(models[0].limits);
  } catch {
    at("seats").replaceChildren();
  }
}

when("created", (session) => {
  document.title = `${session.model} · wm_jax`;
  at("world").textContent = session.model;
  keys.show(session.keys, session.fps);
  at("switch").hidden = session.capabilities.sources.length < 2;
  showSource(session.source);
  canvas.width = session.width;
  canvas.height = session.height;
  fit(canvas);
  if (isPaused) player.control("pause");
  refreshSeats();
});

when("status", ({ status, stage, progress }) => {
  if (status === "running") {
    overlay(null);
    state("good", "playing");
  } else if (status === "paused") {
    overlay({ title: "Paused", text: "The world waits.", button: "Resume" });
    state("", "paused");
  } else if (status === "starting") {
    overlay({ title: "Warming up", text: stage, progress, isWaiting: true });
    state("", "starting");
  } else if (status === "failed") {
    overlay({ title: "Something broke", text: "The server's log says what.", button: "Try again" });
    state("bad", "failed");
  } else state("", status);
});

when("lost", ({ attempt }) => {
  overlay({ title: attempt > 1 ? "Reconnecting" : "Connection lost", text: "Your place is kept for a moment.", isWaiting: true });
  state("bad", "reconnecting");
});

when("session.go_away", ({ reason }) => state("", reason));
when("ended", (code) => {
  overlay({ title: "Session ended", text: code === 4408 ? "You were away for a while." : "It went on elsewhere.", button: "Play" });
  state("", "ended");
});
when("problem", ({ code, message }) => problems.push(`${code}: ${message}`));
when("size", () => fit(canvas));

when("refused", (/** @type {Refused} */ refused) => {
  if (refused.status === 401) {
    overlay({ title: "This server is private", text: "It wants the secret it was started with.", asksSecret: true });
    state("bad", "locked");
  } else if (refused.status === 503) {
    const seconds = Math.max(2, Math.round(refused.retryMs / 1000));
    overlay({ title: refused.code === "full" ? "All slots are taken" : "Not now", text: `Trying again in ${seconds} s.`, isWaiting: true, button: "Try now" });
    state("", "waiting");
    retry = setTimeout(open, 1000 * seconds);
    refreshSeats();
  } else {
    overlay({ title: "The server said no", text: refused.message, button: "Try again" });
    state("bad", "refused");
  }
});

at("pause").addEventListener("click", () => setPaused(!isPaused));
at("reset").addEventListener("click", reset);
at("dice").addEventListener("click", () => {
  seedBox.value = String(Math.floor(Math.random() * 100000));
  reset();
});
seedBox.addEventListener("change", reset);
seedBox.addEventListener("keydown", (event) => event.key === "Enter" && seedBox.blur());
at("overlay-button").addEventListener("click", () => (isPaused && player.session ? setPaused(false) : open()));
at("overlay-form").addEventListener("submit", (event) => {
  event.preventDefault();
  player.secret = /** @type {HTMLInputElement} */ (at("secret")).value;
  open();
});
for (const button of at("switch").querySelectorAll("button")) {
  button.addEventListener("click", () => {
    const source = button.dataset.source === "real" ? "real" : "dream";
    if (source === player.source) return;
    player.play(source);
    showSource(source);
  });
}
addEventListener("keydown", (event) => {
  if (event.target instanceof HTMLInputElement || event.repeat || event.ctrlKey || event.metaKey || keys.caps.has(event.code)) return;
  if (event.code === "KeyP") setPaused(!isPaused);
  if (event.code === "KeyR") reset();
});
addEventListener("resize", () => fit(canvas));
addEventListener("pagehide", () => player.leave());
addEventListener("pageshow", (event) => event.persisted && open());
document.addEventListener("visibilitychange", () => {
  if (document.hidden && !isPaused) {
    wasHidden = true;
    setPaused(true);
  } else if (!document.hidden && wasHidden) {
    wasHidden = false;
    setPaused(false);
  }
});
setInterval(() => {
  drawNumbers(player);
  drawGaps(player.shownAt, player.session?.fps ?? 30);
}, 250);
setInterval(() => !document.hidden && refreshSeats(), 10000);

Object.defineProperty(window, "__wm", {
  value: {
    get frames() { return player.frames; },
    get frameId() { return player.frameId; },
    get fps() { return player.fps; },
    get latency() { return player.latency; },
    get dropped() { return player.dropped; },
    get held() { return keys.held; },
    get source() { return player.source; },
    get seed() { return player.seed; },
    get session() { return player.session?.id ?? null; },
    get isPaused() { return isPaused; },
    get state() { return at("state").textContent; },
    get problems() { return problems; },
    get player() { return player; },
    loseConnection: () => player.socket?.close(4000),
  },
});

fit(canvas);
open();
