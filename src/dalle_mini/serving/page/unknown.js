// Words that the model has never seen are told before one draws.

import { askJson } from "./api.js";
import { byId, el } from "./dom.js";

const PAUSE = 350; // milliseconds without typing

let timer = null;
let asked = "";

/** Look at the prompt as soon as typing stops. `changed` is called after a word was replaced. */
export function watch(changed) {
  byId("prompt").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => look(changed), PAUSE);
  });
}

export async function look(changed) {
  const prompt = byId("prompt").value.trim();
  if (prompt === asked) return;
  asked = prompt;
  let unknown = [];
  if (prompt) {
    try {
      ({ unknown } = await askJson(`words?prompt=${encodeURIComponent(prompt)}`));
    } catch {
      return; // drawing will tell
    }
  }
  if (prompt !== asked) return;
  byId("words").replaceChildren(...unknown.map((one) => told(one, changed)));
}

function told({ word, nearest }, changed) {
  const line = el("p", {}, "The model has never seen ", el("b", {}, word), ". ");
  if (nearest.length) line.append("It knows ");
  nearest.forEach((near, at) => {
    const replace = () => {
      const area = byId("prompt");
      area.value = area.value.replace(new RegExp(escaped(word), "iu"), () => near);
      area.focus();
      changed();
      look(changed);
    };
    line.append(at ? " " : "", el("button", { type: "button", class: "word", onclick: replace, "aria-label": `Write ${near} in place of ${word}` }, near));
  });
  return line;
}

const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&");
