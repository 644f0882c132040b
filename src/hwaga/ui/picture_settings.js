// The settings that a picture of Hwaga's carries in itself: a text chunk "hwaga" of its PNG, as JSON.

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const MOST = 2 ** 20; // bytes of settings, as the server writes at most

/** What made a PNG, or null where it does not say. */
export async function settingsOf(blob) {
  const data = new DataView(await blob.arrayBuffer());
  if (data.byteLength < 8 || SIGNATURE.some((byte, place) => data.getUint8(place) !== byte)) return null;
  for (let at = 8; at + 12 <= data.byteLength; ) {
    const length = data.getUint32(at);
    const kind = text(data, at + 4, 4);
    if (kind === "IDAT" || at + 12 + length > data.byteLength) return null; // settings lie before the pixels
    if (kind === "tEXt" && length <= MOST && text(data, at + 8, Math.min(length, 6)) === "hwaga\0") {
      try {
        const found = JSON.parse(text(data, at + 14, length - 6));
        return typeof found?.request?.prompt === "string" ? found : null;
      } catch {
        return null;
      }
    }
    at += 12 + length;
  }
  return null;
}

function text(data, start, length) {
  return new TextDecoder("latin1").decode(new Uint8Array(data.buffer, start, length));
}

/** A request as the composer and the API take it, from one as pictures and jobs carry it. */
export function requestOf(carried) {
  const wanted = { prompt: carried.prompt };
  for (const name of ["style", "industry", "use", "seed", "steps", "strength", "fit", "aspect"]) {
    if (carried[name] !== undefined && carried[name] !== null) wanted[name] = carried[name];
  }
  if (carried.avoid?.length) wanted.avoid = carried.avoid;
  if (carried.loras?.length) wanted.lora = carried.loras.map(named);
  if (carried.width && carried.height) wanted.size = `${carried.width}x${carried.height}`;
  if (wanted.size) delete wanted.aspect;
  return wanted;
}

function named(lora) {
  if (typeof lora === "string") return lora;
  const [name, weight] = Array.isArray(lora) ? lora : [lora.name, lora.weight];
  return weight === undefined || weight === 1 ? name : `${name}:${weight}`;
}
