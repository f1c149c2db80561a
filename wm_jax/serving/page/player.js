/** One session: opens it, keeps its socket alive, hands its frames on, measures key to pixel on this machine's own clock. */

import { AUTH_PREFIX, CLOSE, ERROR, SUBPROTOCOL } from "./protocol.js";
import { Trace, quantile } from "./trace.js";

const PING_MS = 4000;
const RETRY_MS = [300, 700, 1500, 3000, 5000];
/** How long a session that is watched may be nowhere to be found: its player, or another server, has to take it up first. */
const MISSING_MS = 15000;
/** The page's own: what comes cannot be decoded. */
const CLOSE_BROKEN = 4001;
/** Whoever only watches has no other word in the matter. */
const FOR_SPECTATORS = ["ping", "pong", "frame.ack"];
/** @type {number[]} After these there is no session left to come back to. */
const GONE = [CLOSE.NORMAL, CLOSE.UNKNOWN_SESSION];
/** @type {number[]} After these the page waits for a word of whoever sits before it. */
const LAST = [CLOSE.IDLE, CLOSE.TAKEN_OVER, CLOSE.RATE_LIMITED];
/** @type {number[]} The same where it only watches: it gets no session of its own unasked. */
const LAST_WATCHED = [...LAST, CLOSE.BUSY, CLOSE.UNAUTHORIZED, CLOSE.FORBIDDEN_ORIGIN];
/** @type {number[]} After these the same ticket lets the page in again, later. */
const LATER = [CLOSE.BUSY, CLOSE.RATE_LIMITED];

/** Whether a token only watches: those are signed, and no token of a player has dots. @param {string} token */
const isToWatch = (token) => token.includes(".");

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

/** Events: `created`, `status`, `frame`, `problem` (an error message), `lost`, `refused` (a Refused), `ended` (code and words). */
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
    /** @type {{words?: string, isOver?: boolean}} what the server said last: why it closes, and whether the session ended or only sleeps */
    this.farewell = {};
    /** Whether the next session takes the place of one that is gone. */
    this.isInstead = false;
    /** @type {number|null} since when the watched session is nowhere to be found */ this.missingSince = null;
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
    this.session = this.ticket = null;
    await left;
    if (epoch !== this.epoch) return;
    const fragment = takeFragment();
    if (fragment?.kind === "join") {
      const [id, ...rest] = fragment.value.split(".");
      this.ticket = { session_id: id, token: rest.join(".") };
      await this._resume(epoch);
      return;
    }
    if (fragment) this.secret = fragment.value;
    try {
      const first = this.image ? { image: this.image } : this.scene === null ? {} : { prompt: this.scene };
      const init = { seed: this.seed, ...first };
      const media = this.codec ? { codec: this.codec } : {};
      const ticket = await this._post("/v1/sessions", { source: this.source, init, media });
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

  /** Gives the slot back; whoever only watches has none. */
  async leave() {
    if (this.ticket && !this.isWatching) {
      this.leaving = this._end(this.ticket);
      this.ticket = null;
    }
    await this.leaving;
  }

  /** The page is put aside and may be shown again: the session waits. */
  rest() {
    this.epoch++;
    this.socket?.close(CLOSE.NORMAL);
  }

  /** Back to the session that the page has a ticket of. */
  async comeBack() {
    const epoch = ++this.epoch;
    this.socket?.close(CLOSE.NORMAL);
    await this._resume(epoch);
  }

  /** Whether what the page shows, or wants to show, is somebody else's to play. */
  get isWatching() {
    return this.ticket !== null && isToWatch(this.ticket.token);
  }

  /** @param {{type: string, [field: string]: unknown}} message */
  send(message) {
    if (this.isWatching && !FOR_SPECTATORS.includes(message.type)) return;
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
    const ticket = await this._post(`/v1/sessions/${this.session.id}/fork`, {});
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

  /** Comes back to the ticket's session, wherever it is now: of many servers another one may have taken it up. @param {number} epoch */
  async _resume(epoch) {
    const id = this.ticket.session_id;
    const token = this.session?.resumeToken ?? this.ticket.token;
    try {
      // A spectator's token is good for every connection, and needs no other.
      const ticket = isToWatch(token)
        ? { ...(await this._ask("GET", `/v1/sessions/${id}/spectators`, token)), session_id: id }
        : await this._post(`/v1/sessions/${id}/resume`, {}, token);
      if (epoch !== this.epoch) return;
      this.ticket = ticket;
      this._connect(ticket, epoch);
    } catch (error) {
      if (epoch !== this.epoch) return;
      if (!(error instanceof Refused) || error.status >= 500 || this._mayAppear(error)) this._retry(epoch, () => this._resume(epoch));
      else if (isToWatch(token)) this._finish(error.status === 404 ? CLOSE.UNKNOWN_SESSION : CLOSE.UNAUTHORIZED, error.message);
      else {
        this.ticket = null;
        this.isInstead = true;
        this._retry(epoch, () => this.open());
      }
    }
  }

  /** Whether a session that was watched may still be found, though it is not now. @param {Refused} refused */
  _mayAppear({ status }) {
    if (!this.isWatching || !this.session || status !== 404) return false;
    this.missingSince ??= performance.now();
    return performance.now() - this.missingSince < MISSING_MS;
  }

  /** @param {{session_id: string, token: string, ws_url: string}} ticket @param {number} epoch */
  _connect({ session_id: id, token, ws_url: told }, epoch) {
    const own = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/sessions/${id}/ws`;
    const url = new URL(told).host === location.host ? own : told;
    const socket = new WebSocket(url, [SUBPROTOCOL, AUTH_PREFIX + token]);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    this.farewell = {};
    const stream = ++this.stream;
    this.trace.interrupt();
    socket.onmessage = ({ data }) => {
      if (epoch !== this.epoch) return;
      if (typeof data === "string") this._hear(JSON.parse(data));
      else this.screen.take(data, stream);
    };
    socket.onclose = ({ code }) => epoch === this.epoch && this._lose(code, epoch);
  }

  /** The connection is gone: the session may wait, sleep or be elsewhere, or be over. @param {number} code @param {number} epoch */
  _lose(code, epoch) {
    const { isOver } = this.farewell;
    const isGone = isOver ?? GONE.includes(code);
    if (this.isWatching ? (isOver ?? LAST_WATCHED.includes(code)) : LAST.includes(code)) this._finish(code, this.farewell.words);
    else if (this.isWatching || (this.ticket && this.session && !isGone)) this._retry(epoch, () => this._resume(epoch));
    else {
      if (isGone) this.ticket = null;
      this.isInstead ||= this.session !== null;
      this._retry(epoch, () => this.open());
    }
  }

  /** No more connections until they are wanted. @param {number} code @param {string} [words] */
  _finish(code, words) {
    if (!LATER.includes(code)) this.ticket = null;
    this._tell("ended", { code, words });
  }

  /** @param {any} message */
  _hear(message) {
    if (message.type === "session.created") {
      this.attempt = 0;
      this.missingSince = null;
      this.pressed.clear();
      const resumeToken = message.resume_token ?? this.ticket.token;
      this.ticket.token = resumeToken;
      const isWatched = message.role === "spectator";
      const told = { isInstead: this.isInstead, wentBack: this._wentBack(message.session) };
      this.isInstead = false;
      this.session = { ...message.session, capabilities: message.capabilities, resumeToken, isWatched };
      this._tell("created", { ...this.session, ...told });
    } else if (message.type === "ping") {
      this.send({ type: "pong", event_id: message.event_id, client_ts: message.client_ts });
    } else if (message.type === "error") {
      if (message.fatal) this.farewell.words = message.message;
      this._tell("problem", message);
    } else if (message.type === "session.ended") this.farewell.isOver = !message.resumable;
    else {
      if (message.type === "status") this.trace.interrupt();
      this._tell(message.type, message);
    }
  }

  /** Whether frames that were shown are forgotten. `resumed_at` is told at every connection: what was known of it is no news.
   * @param {{id: string, frames?: number, resumed_at?: number|null}} session */
  _wentBack({ id, frames = 0, resumed_at: resumedAt }) {
    if (this.session?.id !== id || resumedAt == null || resumedAt > this.frameId) return false;
    return resumedAt !== this.session.resumed_at || frames <= this.frameId;
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
