/** What a player takes along: a video of what is shown, made here, and what the server kept of the session. */

import { at, notice } from "./hud.js";
import { Refused } from "./player.js";
import { ERROR } from "./protocol.js";
import { Recorder, fileName, save } from "./recorder.js";

export class Saving {
  /** @param {import("./player.js").Player} player */
  constructor(player) {
    this.player = player;
    this.recorder = new Recorder(player.screen);
    at("record").hidden = !this.recorder.kind;
    at("record").addEventListener("click", () => this._toggle());
    at("download").addEventListener("click", () => this._download());
    player.addEventListener("frame", () => this.recorder.follow());
    this.show();
  }

  /** How long it has been recording, a few times a second. */
  show() {
    const { isRecording, seconds } = this.recorder;
    const clock = `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
    const text = isRecording ? `Stop ${clock}` : "Record";
    if (at("record").textContent === text) return;
    at("record").textContent = text;
    at("record").setAttribute("aria-pressed", String(isRecording));
  }

  async _toggle() {
    if (!this.recorder.isRecording) this.recorder.start();
    else this._save(await this.recorder.stop());
    this.show();
  }

  async _download() {
    const button = /** @type {HTMLButtonElement} */ (at("download"));
    [button.disabled, button.textContent] = [true, "Making…"];
    try {
      const { data, hasVideo } = await this.player.recording();
      this._save(data);
      if (!hasVideo) notice("Saved without a video: this server has no free slot to make it in. serve.py --replay makes it from the file.");
    } catch (error) {
      const isNone = error instanceof Refused && (error.status === 404 || error.code === ERROR.UNSUPPORTED);
      button.hidden = isNone;
      notice(isNone ? "This server keeps no recordings." : error instanceof Error ? error.message : "There is no recording.");
    }
    [button.disabled, button.textContent] = [false, "Download"];
  }

  /** @param {Blob} data */
  _save(data) {
    save(data, fileName(this.player.session?.model ?? "world", this.player.seed, data.type));
  }
}
