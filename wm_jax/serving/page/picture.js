/** A picture as the first frame of a session: dropped on the page, pasted, or chosen. */

/** Up to this many pixels a PNG is small; beyond it a JPEG is. */
const PNG_PIXELS = 256 * 256;
const JPEG_QUALITY = 0.92;

/** The middle of the picture in the world's own size, as a data URL. @param {Blob} file @param {number} width @param {number} height */
export async function firstFrame(file, width, height) {
  const picture = await createImageBitmap(file);
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { alpha: false }));
  context.imageSmoothingQuality = "high";
  const scale = Math.max(width / picture.width, height / picture.height);
  const [w, h] = [scale * picture.width, scale * picture.height];
  context.drawImage(picture, (width - w) / 2, (height - h) / 2, w, h);
  picture.close();
  return width * height <= PNG_PIXELS ? canvas.toDataURL("image/png") : canvas.toDataURL("image/jpeg", JPEG_QUALITY);
}

/** @param {DataTransfer|null} carried */
const hasFiles = (carried) => carried?.types.includes("Files") ?? false;

/**
 * Listens for pictures on the whole page.
 * @param {{isWanted: () => boolean, onHover: (isOver: boolean) => void, onPicture: (file: File) => void, input: HTMLInputElement}} page
 */
export function takePictures({ isWanted, onHover, onPicture, input }) {
  const take = (/** @type {FileList|null|undefined} */ files) => {
    if (files?.length && isWanted()) onPicture(files[0]);
  };
  for (const name of ["dragenter", "dragover"]) {
    addEventListener(name, (event) => {
      const { dataTransfer } = /** @type {DragEvent} */ (event);
      if (!dataTransfer || !hasFiles(dataTransfer)) return;
      event.preventDefault(); // else the browser would leave the page for the picture
      dataTransfer.dropEffect = isWanted() ? "copy" : "none";
      onHover(isWanted());
    });
  }
  addEventListener("dragleave", (event) => event.relatedTarget === null && onHover(false));
  addEventListener("drop", (event) => {
    if (!hasFiles(event.dataTransfer)) return;
    event.preventDefault();
    onHover(false);
    take(event.dataTransfer?.files);
  });
  addEventListener("paste", (event) => take(event.clipboardData?.files));
  input.addEventListener("change", () => {
    take(input.files);
    input.value = ""; // the same picture may be chosen again
  });
}
