// The prompt and the knobs: read as an order, and written from one.

import { byId, el } from "./dom.js";

const NUMBERS = ["temperature", "guidance", "top_k", "top_p"];
const CHOICES = [1, 2, 4, 8, 16, 32, 64];
const DRAWN = 8;

export const anySeed = () => crypto.getRandomValues(new Uint32Array(1))[0];

/** Numbers of the model that stand where the user gave none. */
export function offer(about) {
  for (const name of ["temperature", "guidance", "top_k"]) byId(name).placeholder = about.defaults[name];
  const choices = CHOICES.filter((count) => count <= about.limits.pictures);
  byId("candidates").replaceChildren(
    ...choices.map((count) => el("option", { value: count, selected: count === DRAWN }, count > 4 ? `best 4 of ${count}` : String(count))),
  );
}

/** The form as an order. A seed that was not given is drawn by chance. */
export function read() {
  const order = { prompt: byId("prompt").value.trim(), candidates: Number(byId("candidates").value) || 1 };
  order.n = order.candidates;
  order.seed = byId("seed").value === "" ? anySeed() : Number(byId("seed").value);
  for (const name of NUMBERS) if (byId(name).value !== "") order[name] = Number(byId(name).value);
  const avoided = byId("negative_prompt").value.trim();
  if (avoided) order.negative_prompt = avoided;
  return order;
}

/** Write an order into the form; what it does not have is the model's own. `withSeed`: its seed is fixed from now on. */
export function write(order, about, withSeed = true) {
  byId("prompt").value = order.prompt;
  fit();
  byId("seed").value = withSeed ? order.seed : "";
  for (const name of NUMBERS) {
    const value = order[name] ?? "";
    byId(name).value = value === about.defaults[name] ? "" : value;
  }
  byId("negative_prompt").value = order.negative_prompt ?? "";
  byId("more").open = [...NUMBERS, "negative_prompt"].some((name) => byId(name).value !== "");
}

/** As high as its text. */
export function fit() {
  const area = byId("prompt");
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}
