// The settings that a picture of Hwaga's carries in itself, as JSON: in a text chunk "hwaga" of a PNG, before the pixels, or in
// the EXIF MakerNote of a JPEG or WebP, after "hwaga" and a null byte.

const KEY = "hwaga\0";
const MOST = 2 ** 20; // bytes of settings, as the server writes at most
const EXIF_TAG = 0x8769;
const MAKER_NOTE_TAG = 0x927c;

/** What made a picture, or null where it does not say. */
export async function settingsOf(blob) {
  const data = new DataView(await blob.arrayBuffer());
  try {
    const found = JSON.parse(carried(data));
    return typeof found?.request?.prompt === "string" ? found : null;
  } catch (error) {
    // A damaged picture points beyond its end; and what is not there is no JSON.
    if (error instanceof RangeError || error instanceof SyntaxError) return null;
    throw error;
  }
}

function carried(data) {
  if (data.getUint32(0) === 0x89504e47 && data.getUint32(4) === 0x0d0a1a0a) return inPng(data);
  if (data.getUint16(0) === 0xffd8) return inJpeg(data);
  if (text(data, 0, 4) === "RIFF" && text(data, 8, 4) === "WEBP") return inWebp(data);
  return "";
}

function inPng(data) {
  for (let at = 8; text(data, at + 4, 4) !== "IDAT"; ) {
    const length = data.getUint32(at);
    if (text(data, at + 4, 4) === "tEXt" && length <= MOST && length >= KEY.length && text(data, at + 8, KEY.length) === KEY) {
      return text(data, at + 8 + KEY.length, length - KEY.length);
    }
    at += 12 + length;
  }
  return "";
}

function inJpeg(data) {
  // Segments up to the one (SOS) where the pixels begin.
  for (let at = 2; data.getUint8(at) === 0xff && data.getUint8(at + 1) !== 0xda; at += 2 + data.getUint16(at + 2)) {
    if (data.getUint8(at + 1) === 0xe1 && text(data, at + 4, 6) === "Exif\0\0") return inExif(data, at + 10);
  }
  return "";
}

function inWebp(data) {
  for (let at = 12; at < data.byteLength; ) {
    const length = data.getUint32(at + 4, true);
    if (text(data, at, 4) === "EXIF") return inExif(data, at + (text(data, at + 8, 6) === "Exif\0\0" ? 14 : 8));
    at += 8 + length + (length % 2);
  }
  return "";
}

/** The maker's note of EXIF, whose addresses count from `start`. */
function inExif(data, start) {
  const little = text(data, start, 2) === "II";
  const entry = (folder, tag) => {
    for (let place = 0; place < data.getUint16(start + folder, little); place++) {
      const at = start + folder + 2 + 12 * place;
      if (data.getUint16(at, little) === tag) return { count: data.getUint32(at + 4, little), value: data.getUint32(at + 8, little) };
    }
    return null;
  };
  const exif = entry(data.getUint32(start + 4, little), EXIF_TAG);
  const note = exif && entry(exif.value, MAKER_NOTE_TAG);
  if (!note || note.count <= KEY.length || note.count > MOST + KEY.length || text(data, start + note.value, KEY.length) !== KEY) return "";
  return text(data, start + note.value + KEY.length, note.count - KEY.length);
}

function text(data, start, length) {
  return new TextDecoder("latin1").decode(new Uint8Array(data.buffer, start, length));
}

/** A request as the composer and the API take it, from one as pictures and jobs carry it. */
export function requestOf(carried) {
  const wanted = { prompt: carried.prompt };
  for (const name of ["style", "industry", "use", "seed", "steps", "negative", "guidance", "sampler", "strength", "fit", "aspect"]) {
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
