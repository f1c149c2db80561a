/** What new sessions start from: a scene of the world by number, or a picture of the player's. */

import { at, notice } from "./hud.js";
import { firstFrame, takePictures } from "./picture.js";

export class Opening {
  /** @param {import("./player.js").Player} player @param {() => void} start opens a session with what was chosen */
  constructor(player, start) {
    this.player = player;
    this.start = start;
    this.scenes = /** @type {HTMLSelectElement} */ (at("scene"));
    /** How many pictures were given; only the newest one counts. */
    this.pictures = 0;
    const input = /** @type {HTMLInputElement} */ (at("file"));
    at("choose").addEventListener("click", () => input.click());
    at("forget").addEventListener("click", () => this._choose(null, null));
    this.scenes.addEventListener("change", () => {
      this.scenes.blur();
      this._choose(null, this.scenes.value === "" ? null : Number(this.scenes.value));
    });
    takePictures({
      isWanted: () => player.session?.capabilities.image === true && !player.session.isWatched,
      onHover: (isOver) => at("drop").classList.toggle("shown", isOver),
      onPicture: (file) => this._read(file),
      input,
    });
  }

  /** @param {number} count of the world's own scenes */
  showScenes(count) {
    at("scene-row").hidden = !count;
    if (this.scenes.options.length === count + 1) return;
    const numbers = Array.from({ length: count }, (_, scene) => new Option(String(scene + 1), String(scene)));
    this.scenes.replaceChildren(new Option("any", ""), ...numbers);
  }

  /** New sessions have no picture: the server does not take this one. */
  forget() {
    this._show(null);
  }

  /** @param {string|null} image @param {number|null} scene */
  _choose(image, scene) {
    this._show(image);
    this.player.scene = scene;
    this.scenes.value = scene === null ? "" : String(scene);
    this.start();
  }

  /** @param {string|null} image */
  _show(image) {
    this.player.image = image;
    at("own").hidden = !image;
    if (image) /** @type {HTMLImageElement} */ (at("thumb")).src = image;
  }

  /** @param {File} file */
  async _read(file) {
    const { width, height } = this.player.session;
    const number = ++this.pictures;
    try {
      const image = await firstFrame(file, width, height);
      if (number === this.pictures) this._choose(image, null);
    } catch {
      notice(`${file.name || "This"} is no picture that the browser can read.`);
    }
  }
}
