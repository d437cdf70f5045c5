// The address is the picture: its fragment and the PNG's text chunk hold everything that draws it again.

const NUMBERS = { s: "seed", i: "first", g: "guidance", t: "temperature", k: "top_k", q: "top_p", v: "vary" };
const PNG = [137, 80, 78, 71, 13, 10, 26, 10];
const CHUNK = "dalle-mini"; // the keyword of the text

/** The order of a fragment such as "p=a%20snail&s=7&i=3&m=0123abcd", `{order, weights}`; null if it has no prompt. */
export function read(fragment) {
  const fields = new Map();
  for (const part of fragment.replace(/^#/, "").split("&")) {
    const equals = part.indexOf("=");
    if (equals > 0) fields.set(part.slice(0, equals), decoded(part.slice(equals + 1)));
  }
  if (!fields.get("p")) return null;
  const order = { prompt: fields.get("p") };
  if (fields.has("x")) order.negative_prompt = fields.get("x");
  for (const [letter, name] of Object.entries(NUMBERS)) {
    const value = fields.has(letter) ? Number(fields.get(letter)) : NaN;
    if (Number.isFinite(value)) order[name] = value;
  }
  if (fields.has("c")) order.tokens = unpacked(fields.get("c"));
  return { order, weights: fields.get("m") ?? null };
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** Tokens of 16 bits in base64; -1 is one that is drawn. */
function unpacked(text) {
  try {
    const bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (one) => one.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    return Array.from({ length: bytes.length >> 1 }, (_, at) => view.getInt16(2 * at, true));
  } catch {
    return [];
  }
}

/** The fragment in a PNG's text chunk, or null. */
export async function ofFile(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (PNG.some((byte, at) => bytes[at] !== byte)) return null;
  const view = new DataView(bytes.buffer);
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    const kind = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (kind === "tEXt" && at + 8 + length <= bytes.length) {
      const text = new TextDecoder("latin1").decode(bytes.subarray(at + 8, at + 8 + length));
      const [keyword, value] = text.split("\0", 2);
      if (keyword === CHUNK) return value;
    }
    at += 12 + length;
  }
  return null;
}
