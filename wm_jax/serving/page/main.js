/** The page: joins player, keys, mouse, pictures and hud. */

import { at, drawGaps, drawNumbers, fit, notice, overlay, seats, state } from "./hud.js";
import { hotbar } from "./keycaps.js";
import { Keys } from "./keys.js";
import { Look } from "./look.js";
import { firstFrame, takePictures } from "./picture.js";
import { Player, Refused } from "./player.js";
import { ERROR } from "./protocol.js";
import { Timeline } from "./timeline.js";
import { Wheel } from "./wheel.js";

/** A world with more keys than these has them in a broad row below the picture. */
const FEW_KEYS = 8;

const canvas = /** @type {HTMLCanvasElement} */ (at("view"));
const [seedBox, fileBox, speedBox, invertBox] = ["seed", "file", "speed", "invert"].map((id) => /** @type {HTMLInputElement} */ (at(id)));
const player = new Player(canvas);
const keys = new Keys(at("keys"), (held) => {
  wheel.hear(held);
  player.press(held, look.take());
});
const look = new Look(canvas, keys, (mouse) => player.look(keys.held, mouse));
const wheel = new Wheel(at("screen"), keys);
const timeline = new Timeline(at("timeline"), (frame) => player.seek(frame));
/** @type {string[]} */ const problems = [];
let isPaused = false;
let wasHidden = false;
/** How many were given; only the newest one counts. */
let pictures = 0;
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
  keys.show(session.keys, session.fps);
  wheel.show(hotbar(session.keys));
  look.show(session.capabilities.mouse, session.capabilities.messages_per_s);
  document.querySelector("main")?.classList.toggle("broad", session.keys.length > FEW_KEYS);
  at("look").hidden = at("hint").hidden = !session.capabilities.mouse;
  at("pause").title = keys.caps.has("KeyP") ? "pause" : "pause (P)";
  at("reset").title = "start anew with this seed" + (keys.caps.has("KeyR") ? "" : " (R)");
}

/** New sessions start from this picture; null: from the world's own. @param {string|null} image */
function startFrom(image) {
  showImage(image);
  player.source = "dream";
  showPaused(false);
  open();
}

/** @param {string|null} image */
function showImage(image) {
  player.image = image;
  at("own").hidden = !image;
  if (image) /** @type {HTMLImageElement} */ (at("thumb")).src = image;
}

/** @param {File} file */
async function startFromFile(file) {
  const { width, height } = player.session;
  const number = ++pictures;
  try {
    const image = await firstFrame(file, width, height);
    if (number === pictures) startFrom(image);
  } catch {
    notice(`${file.name || "This"} is no picture that the browser can read.`);
  }
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
  showControls(session);
  at("image").hidden = !session.capabilities.image;
  at("switch").hidden = session.capabilities.sources.length < 2;
  timeline.show(session.capabilities, session.fps);
  at("fork").hidden = !session.capabilities.fork;
  showSource(session.source);
  canvas.width = session.width;
  canvas.height = session.height;
  fit(canvas);
  if (isPaused) player.control("pause");
  refreshSeats();
});

when("status", ({ status, stage, progress }) => {
  if (status !== "running") look.free();
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

when("queue", ({ position, size, eta_s }) => {
  const guess = eta_s ? ` About ${eta_s < 90 ? `${Math.ceil(eta_s)} s` : `${Math.ceil(eta_s / 60)} min`}.` : "";
  overlay({ title: "All slots are taken", text: `You are number ${position} of ${size} who wait.${guess}`, isWaiting: true });
  state("", "waiting");
  refreshSeats();
});

when("lost", ({ attempt }) => {
  look.free();
  overlay({ title: attempt > 1 ? "Reconnecting" : "Connection lost", text: "Your place is kept for a moment.", isWaiting: true });
  state("bad", "reconnecting");
});

when("session.go_away", ({ reason }) => state("", reason));
when("ended", (code) => {
  look.free();
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
    if (refused.code === ERROR.WRONG_IMAGE || refused.code === ERROR.TOO_LARGE) showImage(null);
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
speedBox.addEventListener("input", () => {
  look.set({ speed: Number(speedBox.value) });
  showLook();
});
invertBox.addEventListener("change", () => look.set({ isInverted: invertBox.checked }));
at("choose").addEventListener("click", () => fileBox.click());
at("forget").addEventListener("click", () => startFrom(null));
takePictures({
  isWanted: () => player.session?.capabilities.image === true,
  onHover: (isOver) => at("drop").classList.toggle("shown", isOver),
  onPicture: startFromFile,
  input: fileBox,
});
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
  timeline.follow(player.frameId);
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
    loseConnection: () => player.socket?.close(4000),
  },
});

showLook();
fit(canvas);
open();
