// Prompts to begin with. Their pictures are those of the shipped weights; for others only the prompts are shown.

import { byId, el } from "./dom.js";

const WEIGHTS = "a242fcfdb65a";
const SEED = 7;
const EXAMPLES = {
  snail: "a snail to the left of a red car",
  cake: "a cake on top of a piano",
  cats: "two cats under a rainbow",
  rocket: "a rocket on a black background",
  octopus: "an octopus below a crown on a sea gradient",
  sunflower: "a sunflower in the top left corner on a light blue background",
};

/** Show the examples; `pick(prompt, seed)` draws one. */
export function show(weights, pick) {
  const isShipped = weights === WEIGHTS;
  const items = Object.entries(EXAMPLES).map(([name, prompt]) => {
    const picture = isShipped ? [el("img", { src: `examples/${name}.png`, alt: "", width: 128, height: 128 })] : [];
    const click = () => pick(prompt, isShipped ? SEED : "");
    return el("li", {}, el("button", { type: "button", class: "example", onclick: click }, ...picture, el("span", {}, prompt)));
  });
  const list = byId("examples").querySelector("ul");
  list.classList.toggle("pictured", isShipped);
  list.replaceChildren(...items);
}
