// The shelf of what was drawn before.

import { byId, el } from "./dom.js";
import * as history from "./history.js";

/** Keep a finished drawing: its best images with their bytes. */
export async function keep(told, images) {
  const kept = await Promise.all(
    images.map(async (image) => ({ ...image, url: null, blob: await (await fetch(image.url)).blob() })),
  );
  await history.add({ id: told.id, when: Date.now(), asked: told.asked, images: kept });
}

/** Show the shelf; `open(drawing)` hangs one on the wall again, with addresses of its images. */
export async function show(open) {
  let drawings = [];
  try {
    drawings = await history.all();
  } catch {
    // a browser may forbid it, in a private window
  }
  for (const old of byId("drawn-before").querySelectorAll("img")) URL.revokeObjectURL(old.src);
  byId("shelf").hidden = !drawings.length;
  byId("drawn-before").replaceChildren(...drawings.map((drawing) => item(drawing, open)));
}

export function listen(open) {
  byId("delete-all").addEventListener("click", async () => {
    await history.clear();
    await show(open);
    byId("prompt").focus();
  });
}

function item(drawing, open) {
  const { prompt } = drawing.asked;
  const picture = el("img", { src: URL.createObjectURL(drawing.images[0].blob), alt: "", loading: "lazy" });
  const click = () => open({ ...drawing, images: drawing.images.map((one) => ({ ...one, url: URL.createObjectURL(one.blob) })) });
  const remove = async () => {
    await history.remove(drawing.id);
    await show(open);
    (byId("drawn-before").querySelector("button") ?? byId("prompt")).focus();
  };
  return el(
    "li",
    {},
    el("button", { type: "button", class: "picture", onclick: click }, picture, el("span", {}, prompt)),
    el("button", { type: "button", class: "quiet delete", onclick: remove, "aria-label": `Delete ${prompt}` }, "×"),
  );
}
