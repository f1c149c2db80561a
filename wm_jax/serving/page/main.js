/** The page: joins player, keys, mouse, pads, what sessions start from, what is saved, and hud. */

import { Bindings } from "./bindings.js";
import { Controls } from "./controls.js";
import { Gamepads } from "./gamepad.js";
import { Graph } from "./graph.js";
import { at, drawNumbers, fit, notice, overlay, seats, state } from "./hud.js";
import { hotbar } from "./keycaps.js";
import { Keys } from "./keys.js";
import { Look } from "./look.js";
import { Opening } from "./opening.js";
import { Player, Refused } from "./player.js";
import { CLOSE, ERROR } from "./protocol.js";
import { Saving } from "./saving.js";
import { makeScreen } from "./screen.js";
import { keep, recall } from "./store.js";
import { Timeline } from "./timeline.js";
import { Wheel } from "./wheel.js";

/** A world with more keys than these has them in a broad row below the picture. */
const FEW_KEYS = 8;
const SHORTCUTS = [
  { id: "pause", code: "KeyP", text: "pause" },
  { id: "reset", code: "KeyR", text: "start anew with this seed" },
  { id: "graph-button", code: "KeyG", text: "the time of every frame" },
];

const screen = await makeScreen(/** @type {HTMLCanvasElement} */ (at("view")));
const [seedBox, speedBox, invertBox] = ["seed", "speed", "invert"].map((id) => /** @type {HTMLInputElement} */ (at(id)));
const codecBox = /** @type {HTMLSelectElement} */ (at("codec"));
const player = new Player(screen);
const bindings = new Bindings();
const keys = new Keys(at("keys"), bindings, (held) => {
  wheel.hear(held);
  player.press(held, look.take());
});
const look = new Look(screen.canvas, keys, (mouse) => player.look(keys.held, mouse));
const wheel = new Wheel(at("screen"), keys);
const timeline = new Timeline(at("timeline"), () => player.frameId, (frame) => player.seek(frame));
const controls = new Controls(/** @type {HTMLDialogElement} */ (at("controls")), bindings);
const graph = new Graph(at("graph"), at("graph-button"));
const saving = new Saving(player);
const opening = new Opening(player, () => {
  player.source = "dream";
  showPaused(false);
  open();
});
new Gamepads(keys, look, (input) => controls.hear(input), (count) => {
  at("pads").hidden = !count;
});
/** @type {Record<string, string>} */
const CODECS = { "": "as the server likes", jpeg: "JPEG", png: "PNG, without loss", raw: "raw", h264: "H.264 video" };
/** @type {string[]} */ const problems = [];
let isPaused = false;
let wasHidden = false;
/** What became of the world, to be told once it can be seen. */
let news = "";
/** How fast the media clock runs now, and how fast it does where the device keeps up; 0: not known yet. */
const clock = { fps: 0, wanted: 0 };
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

/** To the session that there was, where there was one. */
function comeBack() {
  if (!player.ticket) return open();
  overlay({ title: "Connecting", text: "Looking for the session.", isWaiting: true });
  state("", "connecting");
  player.comeBack();
}

function reset() {
  seedBox.value = String(wantedSeed());
  player.reset(wantedSeed());
  if (isPaused) setPaused(false);
}

/** @param {boolean} wanted */
function setPaused(wanted) {
  showPaused(wanted);
  player.control(wanted ? "pause" : "resume");
}

/** @param {boolean} wanted */
function showPaused(wanted) {
  isPaused = wanted;
  at("pause").textContent = wanted ? "Resume" : "Pause";
  if (wanted) look.free();
}

/** What the world listens to. @param {any} session */
function showControls(session) {
  bindings.show(session.model, session.keys);
  keys.show(session.fps);
  wheel.show(hotbar(session.keys));
  look.show(session.capabilities.mouse, session.capabilities.messages_per_s);
  document.querySelector("main")?.classList.toggle("broad", session.keys.length > FEW_KEYS);
  at("look").hidden = at("hint").hidden = !session.capabilities.mouse;
  showShortcuts();
}

/** A key of the world is no shortcut of the page. */
function showShortcuts() {
  for (const { id, code, text } of SHORTCUTS) at(id).title = text + (keys.isBound(code) ? "" : ` (${code.slice(3)})`);
}

/** How frames may travel: what server and browser both know. @param {string[]} codecs */
function showCodecs(codecs) {
  const known = codecs.filter((codec) => codec !== "h264" || "VideoDecoder" in window);
  codecBox.replaceChildren(...["", ...known].map((codec) => new Option(CODECS[codec] ?? codec, codec)));
  codecBox.value = player.codec ?? "";
}

/** @param {string|null} codec of new sessions; null: as the server likes */
function chooseCodec(codec) {
  player.codec = codec;
  keep("codec", codec);
}

function showLook() {
  const { speed, isInverted } = look.settings;
  speedBox.value = String(speed);
  at("speed-value").textContent = `${speed.toFixed(2)}×`;
  invertBox.checked = isInverted;
}

/** @param {"dream"|"real"} source */
function showSource(source) {
  at("badge").textContent = source === "real" ? "real game" : "dream";
  at("badge").classList.toggle("real", source === "real");
  timeline.slider.disabled = source === "real"; // a game cannot go back
  for (const button of at("switch").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.source === source));
  }
}

async function refreshSeats() {
  try {
    const { models } = await (await fetch("/v1/models")).json();
    seats(models[0].limits);
    clock.wanted = models[0].fps;
    opening.showScenes(models[0].prompts);
  } catch {
    at("seats").replaceChildren();
  }
}

when("created", (session) => {
  document.title = `${session.model} · wm_jax`;
  at("world").textContent = session.model;
  showControls(session);
  at("image").hidden = !session.capabilities.image;
  at("switch").hidden = session.capabilities.sources.length < 2;
  timeline.show(session.capabilities, session.fps);
  document.body.classList.toggle("watching", session.isWatched);
  at("fork").hidden = !session.capabilities.fork;
  showSource(session.source);
  showCodecs(session.capabilities.codecs);
  [screen.width, screen.height] = [session.width, session.height];
  fit(screen);
  // What was said while the connection was gone was not heard.
  if (isPaused !== (session.status === "paused")) player.control(isPaused ? "pause" : "resume");
  if (session.isInstead) news = "Your world is gone: this is a new one.";
  if (session.wentBack) news = `The server was lost: back to frame ${session.resumed_at}.`;
  refreshSeats();
});

when("status", ({ status, stage, progress, fps }) => {
  clock.fps = player.session?.mode === "realtime" ? fps : 0;
  if (status !== "running") look.free();
  if (status === "running") {
    overlay(null);
    if (news) notice(news);
    news = "";
    state("good", player.session?.isWatched ? "watching" : "playing");
  } else if (status === "paused") {
    overlay({ title: "Paused", text: "The world waits.", button: player.isWatching ? "" : "Resume" });
    state("", "paused");
  } else if (status === "starting") {
    overlay({ title: "Warming up", text: stage, progress, isWaiting: true });
    state("", "starting");
  } else if (status === "failed") {
    overlay({ title: "Something broke", text: "The server's log says what.", button: "Try again" });
    state("bad", "failed");
  } else state("", status);
});

when("queue", ({ position, size, eta_s }) => {
  const guess = eta_s ? ` About ${eta_s < 90 ? `${Math.ceil(eta_s)} s` : `${Math.ceil(eta_s / 60)} min`}.` : "";
  overlay({ title: "In line for a slot", text: `You are number ${position} of ${size} who wait.${guess}`, isWaiting: true });
  state("", "waiting");
  refreshSeats();
});

when("lost", ({ attempt }) => {
  look.free();
  overlay({ title: attempt > 1 ? "Reconnecting" : "Connection lost", text: player.isWatching ? "Looking for where it goes on." : "Your place is kept for a moment.", isWaiting: true });
  state("bad", "reconnecting");
});

when("session.go_away", ({ reason }) => state("", reason));
when("ended", ({ code, words }) => {
  look.free();
  if (player.isWatching) document.body.classList.add("watching");
  const titles = { [CLOSE.BUSY]: "No room to watch", [CLOSE.UNAUTHORIZED]: "You cannot watch this" };
  const texts = { [CLOSE.IDLE]: "You were away for a while.", [CLOSE.TAKEN_OVER]: "It went on elsewhere." };
  overlay({
    title: titles[code] ?? "Session ended",
    text: texts[code] ?? words ?? "Its player has left, or the server let it go.",
    button: player.isWatching ? "Try again" : "Play",
  });
  state("", "ended");
});
when("problem", ({ code, message, fatal }) => {
  problems.push(`${code}: ${message}`);
  if (!fatal) notice(message); // the overlay says what follows from the others
});
when("size", () => fit(screen));

when("refused", (/** @type {Refused} */ refused) => {
  if (refused.status === 401) {
    overlay({ title: "This server is private", text: player.secret ? refused.message : "It wants the secret it was started with.", asksSecret: true });
    state("bad", "locked");
  } else if (refused.status === 503) {
    const seconds = Math.max(2, Math.round(refused.retryMs / 1000));
    const text = `The server says: ${refused.message}. Trying again in ${seconds} s.`;
    overlay({ title: refused.code === ERROR.FULL ? "No room now" : "Not now", text, isWaiting: true, button: "Try now" });
    state("", "waiting");
    retry = setTimeout(open, 1000 * seconds);
    refreshSeats();
  } else {
    if (refused.code === ERROR.WRONG_IMAGE || refused.code === ERROR.TOO_LARGE) opening.forget();
    chooseCodec(null); // another server of this address may have known more
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
at("overlay-button").addEventListener("click", () => (player.isWatching ? comeBack() : isPaused && player.session ? setPaused(false) : open()));
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
  if (event.target instanceof HTMLInputElement || event.repeat || event.ctrlKey || event.metaKey || keys.isBound(event.code)) return;
  if (document.querySelector("dialog[open]")) return;
  if (event.code === "KeyG") graph.toggle();
  if (player.session?.isWatched) return;
  if (event.code === "KeyP") setPaused(!isPaused);
  if (event.code === "KeyR") reset();
});
// A button that was clicked does not keep the space bar from the world; one that was reached by Tab does.
addEventListener("click", ({ detail, target }) => {
  const button = target instanceof Element ? target.closest("button") : null;
  if (detail && button && !button.closest("dialog")) button.blur();
});
at("controls-button").addEventListener("click", () => {
  look.free();
  keys.releaseAll();
  controls.open();
});
bindings.addEventListener("change", () => {
  keys.show();
  showShortcuts();
});
codecBox.addEventListener("change", () => {
  chooseCodec(codecBox.value || null);
  open();
});
speedBox.addEventListener("input", () => {
  look.set({ speed: Number(speedBox.value) });
  showLook();
});
invertBox.addEventListener("change", () => look.set({ isInverted: invertBox.checked }));
at("fork").addEventListener("click", async () => {
  const tab = window.open("", "_blank"); // at once: later it would be taken for an advertisement
  try {
    const place = await player.fork();
    if (tab) tab.location.href = `${location.origin}/${place}`;
  } catch (error) {
    tab?.close();
    notice(error instanceof Error ? error.message : "This session could not be copied.");
  }
});
addEventListener("resize", () => fit(screen));
addEventListener("hashchange", () => /^#(join|token)=/.test(location.hash) && open());
addEventListener("pagehide", (event) => (event.persisted ? player.rest() : player.leave()));
addEventListener("pageshow", (event) => event.persisted && comeBack());
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
  drawNumbers(player, clock);
  graph.draw(player.trace, player.session?.fps ?? 30);
  saving.show();
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
    get isCaptured() { return look.isCaptured; },
    get moved() { return player.moved; },
    get state() { return at("state").textContent; },
    get problems() { return problems; },
    get player() { return player; },
    get decodes() { return screen.worker ? "worker" : "page"; },
    loseConnection: () => player.socket?.close(4000),
  },
});

showLook();
fit(screen);
player.codec = recall("codec");
open();
