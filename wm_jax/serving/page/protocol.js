/** Generated from protocol.py by `python -m wm_jax.serving.javascript`; do not edit. */

export const MAJOR = 1;
export const MINOR = 0;
export const SUBPROTOCOL = "wm.v1";
export const AUTH_PREFIX = "wm.auth.";
export const MAX_MOUSE = 8;
export const CLOSE = Object.freeze({
  NORMAL: 1000,
  POLICY: 1008,
  TOO_BIG: 1009,
  SERVER_FAILED: 1011,
  GO_AWAY: 1012,
  BUSY: 1013,
  UNAUTHORIZED: 4401,
  FORBIDDEN_ORIGIN: 4403,
  UNKNOWN_SESSION: 4404,
  IDLE: 4408,
  TAKEN_OVER: 4409,
  RATE_LIMITED: 4429,
});
export const ERROR = Object.freeze({
  BAD_MESSAGE: "bad_message",
  UNKNOWN_TYPE: "unknown_type",
  UNKNOWN_KEY: "unknown_key",
  WRONG_DIMENSION: "wrong_dimension",
  WRONG_MODE: "wrong_mode",
  UNSUPPORTED: "unsupported",
  STEP_TOO_LONG: "step_too_long",
  STEP_CONFLICT: "step_conflict",
  BUSY: "busy",
  RATE_LIMITED: "rate_limited",
  BAD_ACK: "bad_ack",
  UNAUTHORIZED: "unauthorized",
  FORBIDDEN_ORIGIN: "forbidden_origin",
  READ_ONLY: "read_only",
  TOO_MANY_SESSIONS: "too_many_sessions",
  UNKNOWN_SESSION: "unknown_session",
  UNKNOWN_MODEL: "unknown_model",
  UNKNOWN_SNAPSHOT: "unknown_snapshot",
  UNKNOWN_ROLLOUT: "unknown_rollout",
  WRONG_VERSION: "wrong_version",
  WRONG_IMAGE: "wrong_image",
  FULL: "full",
  DRAINING: "draining",
  TAKEN_OVER: "taken_over",
  IDLE: "idle",
  CLIENT_STALLED: "client_stalled",
  TOO_LARGE: "too_large",
  GAME_FAILED: "game_failed",
  ENGINE_FAILED: "engine_failed",
  SERVER_FAILED: "server_failed",
});

/**
 * @typedef {Object} Ack
 * @property {"ack"} [type]
 * @property {string|number} event_id
 * @property {number} applied_at_frame
 * @property {number|null} [restored_frame]
 */
/**
 * @typedef {Object} Action
 * @property {string[]|null} [held]
 * @property {number[]|null} [raw]
 * @property {number[]|null} [mouse]
 * @property {number[]|null} [axes]
 * @property {"action"} type
 * @property {string|number|null} [event_id]
 * @property {number|null} [seq]
 * @property {"next"|number} [at]
 * @property {number|null} [client_ts]
 */
/**
 * @typedef {Object} Capabilities
 * @property {boolean} [stepped]
 * @property {boolean} [fork]
 * @property {boolean} [snapshot]
 * @property {number} [kept_frames]
 * @property {number} [kept_every]
 * @property {boolean} [prompt]
 * @property {boolean} [image]
 * @property {boolean} [mouse]
 * @property {("dream"|"real")[]} sources
 * @property {("jpeg"|"png"|"raw"|"h264")[]} codecs
 * @property {number} credit_window
 * @property {number} max_step_frames
 * @property {number} messages_per_s
 * @property {number} max_message_bytes
 */
/**
 * @typedef {Object} Control
 * @property {"control"} type
 * @property {string|number|null} [event_id]
 * @property {"pause"|"resume"|"reset"|"seek"} op
 * @property {number|null} [seed]
 * @property {number|null} [frame]
 */
/**
 * @typedef {Object} CreateSession
 * @property {string|null} [model]
 * @property {"realtime"|"stepped"} [mode]
 * @property {"dream"|"real"} [source]
 * @property {SessionInit} [init]
 * @property {Media} [media]
 * @property {number|null} [linger_s]
 */
/**
 * @typedef {Object} Error
 * @property {"error"} [type]
 * @property {string} code
 * @property {string} message
 * @property {string|number|null} [event_id]
 * @property {string|null} [param]
 * @property {boolean} [fatal]
 * @property {number|null} [retry_after_ms]
 */
/**
 * @typedef {Object} FrameAck
 * @property {"frame.ack"} type
 * @property {number} seq
 * @property {number|null} [render_ts]
 */
/**
 * @typedef {Object} FrameTimes
 * @property {number} [queue]
 * @property {number} [step]
 * @property {number} [decode]
 * @property {number} [encode]
 * @property {number} [host]
 */
/**
 * @typedef {Object} FramesHeader
 * @property {"frames"} [type]
 * @property {number} seq
 * @property {number} frame_id
 * @property {number} n
 * @property {"jpeg"|"png"|"raw"|"h264"} codec
 * @property {number} w
 * @property {number} h
 * @property {number[]} lengths
 * @property {boolean} [key]
 * @property {string|null} [config]
 * @property {number} pts_ms
 * @property {string|number|null} [last_event_id]
 * @property {number|null} [last_client_ts]
 * @property {number} [dropped]
 * @property {FrameTimes} [t]
 * @property {string|number|null} [step_id]
 */
/**
 * @typedef {Object} GoAway
 * @property {"session.go_away"} [type]
 * @property {number} deadline_ms
 * @property {string} reason
 * @property {boolean} [resumable]
 * @property {string|null} [resume_url]
 */
/**
 * @typedef {Object} Held
 * @property {string[]|null} [held]
 * @property {number[]|null} [raw]
 * @property {number[]|null} [mouse]
 * @property {number[]|null} [axes]
 */
/**
 * @typedef {Object} KeyInfo
 * @property {string} code
 * @property {string} label
 */
/**
 * @typedef {Object} Limits
 * @property {number} slots
 * @property {number} slots_free
 * @property {number} credit_window
 * @property {number} max_step_frames
 * @property {number} messages_per_s
 * @property {number} max_message_bytes
 */
/**
 * @typedef {Object} Media
 * @property {"jpeg"|"png"|"raw"|"h264"} [codec]
 * @property {number|null} [quality]
 * @property {number|null} [max_fps]
 */
/**
 * @typedef {Object} ModelInfo
 * @property {string} id
 * @property {number} fps
 * @property {number} width
 * @property {number} height
 * @property {number} [frames_per_step]
 * @property {Object<string, any>} action_space
 * @property {KeyInfo[]} keymap
 * @property {number} prompts
 * @property {boolean} [prompt]
 * @property {boolean} [image]
 * @property {boolean} [mouse]
 * @property {boolean} [fork]
 * @property {boolean} [stepped]
 * @property {("dream"|"real")[]} sources
 * @property {("jpeg"|"png"|"raw"|"h264")[]} codecs
 * @property {Limits} limits
 */
/**
 * @typedef {Object} Ping
 * @property {"ping"} type
 * @property {string|number|null} [event_id]
 * @property {number|null} [client_ts]
 */
/**
 * @typedef {Object} Pong
 * @property {"pong"} type
 * @property {string|number|null} [event_id]
 * @property {number|null} [client_ts]
 * @property {number|null} [server_ts]
 */
/**
 * @typedef {Object} Protocol
 * @property {number} [major]
 * @property {number} [minor]
 */
/**
 * @typedef {Object} Queue
 * @property {"queue"} [type]
 * @property {number} position
 * @property {number} size
 * @property {number|null} [eta_s]
 */
/**
 * @typedef {Object} SessionCreated
 * @property {"session.created"} [type]
 * @property {Protocol} [protocol]
 * @property {SessionInfo} session
 * @property {Capabilities} capabilities
 * @property {"player"|"spectator"} [role]
 * @property {string|null} [resume_token]
 */
/**
 * @typedef {Object} SessionEnded
 * @property {"session.ended"} [type]
 * @property {string} reason
 * @property {number} frames
 * @property {number} seconds
 * @property {boolean} [resumable]
 */
/**
 * @typedef {Object} SessionInfo
 * @property {string} id
 * @property {string} model
 * @property {"realtime"|"stepped"} mode
 * @property {"dream"|"real"} source
 * @property {string} status
 * @property {number} fps
 * @property {number} width
 * @property {number} height
 * @property {number} [frames]
 * @property {number|null} [resumed_at]
 * @property {number} seed
 * @property {"jpeg"|"png"|"raw"|"h264"} codec
 * @property {KeyInfo[]} keys
 * @property {boolean} [mouse]
 */
/**
 * @typedef {Object} SessionInit
 * @property {number} [seed]
 * @property {number|null} [prompt]
 * @property {string|null} [image]
 * @property {string|null} [snapshot]
 */
/**
 * @typedef {Object} SessionTicket
 * @property {string} session_id
 * @property {string} status
 * @property {Queue|null} [queue]
 * @property {string} ws_url
 * @property {string|null} [webrtc_url]
 * @property {string} token
 * @property {number} expires_at
 */
/**
 * @typedef {Object} SessionUpdate
 * @property {"session.update"} type
 * @property {string|number|null} [event_id]
 * @property {"dream"|"real"|null} [source]
 */
/**
 * @typedef {Object} Snapshot
 * @property {"session.snapshot"} type
 * @property {string|number|null} [event_id]
 */
/**
 * @typedef {Object} Snapshotted
 * @property {"session.snapshotted"} [type]
 * @property {string|number|null} [event_id]
 * @property {string} snapshot
 * @property {number} frame_id
 * @property {number} bytes
 * @property {number} expires_at
 */
/**
 * @typedef {Object} Status
 * @property {"status"} [type]
 * @property {string} status
 * @property {string} stage
 * @property {number} progress
 * @property {number|null} [fps]
 * @property {string|null} [code]
 */
/**
 * @typedef {Object} Step
 * @property {"step"} type
 * @property {string|number} step_id
 * @property {Held[]} [actions]
 * @property {number|null} [n]
 * @property {string|number|null} [event_id]
 * @property {number|null} [client_ts]
 */
/**
 * Header and payloads of a binary message: u32 header length (little-endian), JSON header, payloads.
 * @param {ArrayBuffer} data
 * @returns {{header: FramesHeader, payloads: Uint8Array[]}}
 */
export function unpackFrames(data) {
  const size = new DataView(data).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, size)));
  let start = 4 + size;
  const payloads = header.lengths.map((/** @type {number} */ length) => {
    const bytes = new Uint8Array(data, start, length);
    start += length;
    return bytes;
  });
  return { header, payloads };
}
