/** One session: opens it, keeps its socket alive, hands its frames on, measures key to pixel on this machine's own clock. */

import { AUTH_PREFIX, CLOSE, ERROR, SUBPROTOCOL } from "./protocol.js";
import { Trace, quantile } from "./trace.js";

const PING_MS = 4000;
const RETRY_MS = [300, 700, 1500, 3000, 5000];
/** A page that vanishes without a word keeps its slot this long. */
const LINGER_S = 15;
/** The page's own: what comes cannot be decoded. */
const CLOSE_BROKEN = 4001;
/** Whoever only watches has no other word in the matter. */
const FOR_SPECTATORS = ["ping", "pong", "frame.ack"];
/** @type {number[]} After these there is no session left to end. */
const GONE = [CLOSE.NORMAL, CLOSE.GO_AWAY, CLOSE.UNKNOWN_SESSION, CLOSE.IDLE, CLOSE.TAKEN_OVER];

/** What the page's address carries behind `#`, once: a session to join, or a token to open sessions with. */
function takeFragment() {
  const [, kind, value] = /^#(join|token)=([\w.~+/=-]+)$/.exec(location.hash) ?? [];
  if (kind) history.replaceState(null, "", location.pathname + location.search);
  return kind ? { kind, value } : null;
}

/** A REST refusal, in the server's words. */
export class Refused extends Error {
  /** @param {number} status @param {{code?: string, message?: string}} body @param {number} retryMs */
  constructor(status, body, retryMs) {
    super(body.message ?? `the server answered ${status}`);
    this.status = status;
    this.code = body.code ?? "";
    this.retryMs = retryMs;
  }
}

/** Events: `created`, `status`, `frame`, `problem` (an error message), `lost`, `refused` (a Refused), `ended`. */
export class Player extends EventTarget {
  /** @param {import("./screen.js").Screen} screen */
  constructor(screen) {
    super();
    this.screen = screen;
    screen.onShown = (shown) => this._shown(shown);
    /** What may open sessions: the server's secret, or a token for that. */
    this.secret = "";
    /** @type {string|null} how frames are to travel; null: as the server likes */
    this.codec = null;
    /** @type {any} */ this.session = null;
    /** @type {any} */ this.ticket = null;
    this.seed = 0;
    this.source = "dream";
    /** @type {string|null} the first frame of new sessions, as a data URL; null: one of the world's own */
    this.image = null;
    /** @type {number|null} the scene of new sessions that have no image; null: the seed chooses */
    this.scene = null;
    /** @type {number[]} how far the mouse was moved, all in all */
    this.moved = [0, 0];
    this.frames = 0;
    this.frameId = -1;
    this.dropped = 0;
    this.stepMs = 0;
    this.trace = new Trace();
    /** @type {Map<number, number>} */ this.pressed = new Map();
    this.eventId = 0;
    this.attempt = 0;
    this.epoch = 0;
    /** Counts connections: what comes late from an old one is not of this one. */
    this.stream = 0;
    /** @type {Promise<unknown>} */ this.leaving = Promise.resolve();
    /** @type {WebSocket|null} */ this.socket = null;
    setInterval(() => this.send({ type: "ping", client_ts: performance.now() }), PING_MS);
  }

  /** A new session; the old one is ended first, so that its slot is free. */
  async open() {
    const epoch = ++this.epoch;
    this.socket?.close(CLOSE.NORMAL);
    const left = this.leave();
    this.session = null;
    await left;
    if (epoch !== this.epoch) return;
    const fragment = takeFragment();
    if (fragment?.kind === "join") {
      const [id, ...rest] = fragment.value.split(".");
      const token = rest.join(".");
      this.ticket = { session_id: id, token };
      await this._resume(id, token, epoch);
      return;
    }
    if (fragment) this.secret = fragment.value;
    try {
      const first = this.image ? { image: this.image } : this.scene === null ? {} : { prompt: this.scene };
      const init = { seed: this.seed, ...first };
      const media = this.codec ? { codec: this.codec } : {};
      const ticket = await this._post("/v1/sessions", { source: this.source, init, media, linger_s: LINGER_S });
      if (epoch !== this.epoch) {
        this.leaving = this._end(ticket);
        return;
      }
      this.ticket = ticket;
      this._connect(ticket, epoch);
    } catch (error) {
      if (epoch !== this.epoch) return;
      if (error instanceof Refused) this._tell("refused", error);
      else this._retry(epoch, () => this.open());
    }
  }

  /** Gives the slot back. */
  async leave() {
    if (this.ticket && !this.session?.isWatched) this.leaving = this._end(this.ticket);
    this.ticket = null;
    await this.leaving;
  }

  /** @param {{type: string, [field: string]: unknown}} message */
  send(message) {
    if (this.session?.isWatched && !FOR_SPECTATORS.includes(message.type)) return;
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  /** Keys that changed, and what the mouse was moved before. @param {string[]} held @param {number[]|null} mouse */
  press(held, mouse) {
    const id = ++this.eventId;
    const now = performance.now();
    this.pressed.set(id, now);
    this._act({ event_id: id, held, client_ts: now }, mouse);
  }

  /** Only the mouse was moved. @param {string[]} held @param {number[]} mouse */
  look(held, mouse) {
    this._act({ held }, mouse);
  }

  /** @param {object} action @param {number[]|null} mouse */
  _act(action, mouse) {
    if (mouse) this.moved = this.moved.map((way, index) => way + mouse[index]);
    this.send({ type: "action", ...action, ...(mouse && { mouse }) });
  }

  /** @param {"pause"|"resume"} op */
  control(op) {
    this.send({ type: "control", op, event_id: ++this.eventId });
  }

  /** Back to the newest frame that is kept up to this one. @param {number} frame */
  seek(frame) {
    this.send({ type: "control", op: "seek", frame: Math.max(0, frame), event_id: ++this.eventId });
  }

  /** A new session that goes on as this one is: where to play it. */
  async fork() {
    const ticket = await this._post(`/v1/sessions/${this.session.id}/fork`, { linger_s: LINGER_S });
    return `#join=${ticket.session_id}.${ticket.token}`;
  }

  /** @param {number} seed */
  reset(seed) {
    this.seed = seed;
    this.send({ type: "control", op: "reset", seed, event_id: ++this.eventId });
  }

  /** @param {"dream"|"real"} source */
  play(source) {
    this.source = source;
    this.trace.latencies = [];
    this.send({ type: "session.update", source, event_id: ++this.eventId });
  }

  get fps() {
    return this.trace.fps;
  }

  get latency() {
    const { latencies } = this.trace;
    return { p50: quantile(latencies, 0.5), p95: quantile(latencies, 0.95), count: latencies.length };
  }

  /** What the server kept of this session: a file to replay, with the video where a slot is free to make it.
   * @returns {Promise<{data: Blob, hasVideo: boolean}>} */
  async recording(hasVideo = true) {
    const headers = { Authorization: `Bearer ${this.session.resumeToken}` };
    const answer = await fetch(`/v1/sessions/${this.session.id}/recording?video=${hasVideo}`, { headers });
    if (answer.ok) return { data: await answer.blob(), hasVideo };
    const refused = new Refused(answer.status, await answer.json(), 0);
    if (hasVideo && refused.code === ERROR.FULL) return this.recording(false);
    throw refused;
  }

  /** Comes back to a session, wherever it is now: of many servers another one may have taken it up.
   * @param {string} id @param {string} token @param {number} epoch */
  async _resume(id, token, epoch) {
    try {
      // A spectator's token is good for every connection, and needs no other.
      const ticket = token.includes(".")
        ? { ...(await this._ask("GET", `/v1/sessions/${id}/spectators`, token)), session_id: id }
        : await this._post(`/v1/sessions/${id}/resume`, {}, token);
      if (epoch !== this.epoch) return;
      this.ticket = ticket;
      this._connect(ticket, epoch);
    } catch (error) {
      if (epoch !== this.epoch) return;
      const isOver = error instanceof Refused && error.status < 500;
      if (isOver) this.ticket = null;
      if (isOver && this.session?.isWatched) this._tell("ended", CLOSE.UNKNOWN_SESSION);
      else this._retry(epoch, () => (isOver ? this.open() : this._resume(id, token, epoch)));
    }
  }

  /** @param {{session_id: string, token: string, ws_url: string}} ticket @param {number} epoch */
  _connect({ session_id: id, token, ws_url: told }, epoch) {
    const own = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/sessions/${id}/ws`;
    const url = new URL(told).host === location.host ? own : told;
    const socket = new WebSocket(url, [SUBPROTOCOL, AUTH_PREFIX + token]);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    const stream = ++this.stream;
    this.trace.interrupt();
    socket.onmessage = ({ data }) => {
      if (epoch !== this.epoch) return;
      if (typeof data === "string") this._hear(JSON.parse(data));
      else this.screen.take(data, stream);
    };
    socket.onclose = ({ code }) => {
      if (epoch !== this.epoch) return;
      const isAsleep = code === CLOSE.GO_AWAY && this.session?.isAsleep;
      if (GONE.includes(code) && !isAsleep) this.ticket = null;
      const isOver = this.session?.isWatched && GONE.includes(code);
      if (isOver || code === CLOSE.TAKEN_OVER || code === CLOSE.IDLE || code === CLOSE.RATE_LIMITED) this._tell("ended", code);
      else if (isAsleep || (this.session && code !== CLOSE.UNKNOWN_SESSION && code !== CLOSE.GO_AWAY && code !== CLOSE.NORMAL)) {
        this._retry(epoch, () => this._resume(this.session.id, this.session.resumeToken, epoch));
      } else this._retry(epoch, () => this.open());
    };
  }

  /** @param {any} message */
  _hear(message) {
    if (message.type === "session.created") {
      this.attempt = 0;
      this.pressed.clear();
      const resumeToken = message.resume_token ?? this.ticket.token;
      this.ticket.token = resumeToken;
      const isWatched = message.role === "spectator";
      this.session = { ...message.session, capabilities: message.capabilities, resumeToken, isWatched };
      this._tell("created", this.session);
    } else if (message.type === "ping") {
      this.send({ type: "pong", event_id: message.event_id, client_ts: message.client_ts });
    } else if (message.type === "error") this._tell("problem", message);
    else if (message.type === "session.ended") this.session.isAsleep = message.resumable;
    else {
      if (message.type === "status") this.trace.interrupt();
      this._tell(message.type, message);
    }
  }

  /** A message of frames was shown: its credit goes back. @param {import("./decode.js").Shown} shown */
  _shown({ stream, header, at, skipped, problem, isLost, pixels }) {
    if (stream !== this.stream) return;
    const shownAt = at - performance.timeOrigin;
    this.send({ type: "frame.ack", seq: header.seq, render_ts: shownAt });
    if (problem) {
      this._tell("problem", { code: "undecodable", message: problem });
      // A new connection begins with a whole frame.
      if (isLost) this.socket?.close(CLOSE_BROKEN);
      return;
    }
    this.frames += header.n;
    this.frameId = header.frame_id + header.n - 1;
    this.dropped = (header.dropped ?? 0) + skipped;
    this.stepMs = header.t?.step ?? 0;
    if (this.screen.width !== header.w || this.screen.height !== header.h) {
      [this.screen.width, this.screen.height] = [header.w, header.h];
      this._tell("size", header);
    }
    this.trace.add(shownAt, this._latency(header, shownAt));
    this._tell("frame", { ...header, pixels });
  }

  /** The first frame that obeys an event ends that event's way. @param {any} header @param {number} now */
  _latency(header, now) {
    const pressedAt = this.pressed.get(header.last_event_id);
    if (pressedAt === undefined) return null;
    for (const id of this.pressed.keys()) if (id <= header.last_event_id) this.pressed.delete(id);
    return now - pressedAt;
  }

  /** @param {{session_id: string, token: string}} ticket */
  _end({ session_id: id, token }) {
    const headers = { Authorization: `Bearer ${token}` };
    return fetch(`/v1/sessions/${id}`, { method: "DELETE", headers, keepalive: true }).catch(() => {});
  }

  /** @param {number} epoch @param {() => void} again */
  _retry(epoch, again) {
    const wait = RETRY_MS[Math.min(this.attempt++, RETRY_MS.length - 1)];
    this._tell("lost", { attempt: this.attempt, wait });
    setTimeout(() => epoch === this.epoch && again(), wait);
  }

  /** @param {string} url @param {object} body @param {string} token */
  _post(url, body, token = this.secret) {
    return this._ask("POST", url, token, body);
  }

  /** @param {"GET"|"POST"} method @param {string} url @param {string} token @param {object} [body] */
  async _ask(method, url, token, body) {
    const headers = { ...(body && { "Content-Type": "application/json" }), ...(token && { Authorization: `Bearer ${token}` }) };
    const answer = await fetch(url, { method, headers, ...(body && { body: JSON.stringify(body) }) });
    const found = await answer.json();
    if (!answer.ok) throw new Refused(answer.status, found, 1000 * Number(answer.headers.get("Retry-After") ?? 0));
    return found;
  }

  /** @param {string} name @param {unknown} detail */
  _tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
