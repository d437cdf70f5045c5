// One picture, large: what it is, and what can be made of it.

import * as address from "./address.js";
import { Brush } from "./brush.js";
import { byId, closable, el } from "./dom.js";

const KNOBS = ["temperature", "guidance", "top_k", "top_p", "negative_prompt"];

export class Viewer {
  /** `draw(order, more)` draws another; `about()` is the model. */
  constructor(draw, about) {
    this.draw = draw;
    this.about = about;
    this.dialog = byId("image");
    this.brush = new Brush((count) => this.count(count));
    closable(this.dialog);
    this.dialog.addEventListener("close", () => this.left());
    this.dialog.addEventListener("keydown", (event) => this.key(event));
    const clicks = {
      vary: () => this.anew({ vary: byId("vary-much").value / 100 }),
      "keep-top": () => this.anew({ keep_top: byId("keep-much").value / this.about().grid }),
      brush: () => this.paint(),
      reseed: () => this.anew(null),
      copy: () => this.copy(),
      previous: () => this.turn(-1),
      next: () => this.turn(1),
      "brush-draw": () => this.anew({ mask: this.brush.marked }, byId("brush-prompt").value.trim()),
      "brush-clear": () => this.brush.clear(),
      "brush-leave": () => this.look(),
    };
    for (const [id, click] of Object.entries(clicks)) byId(id).addEventListener("click", click);
    for (const id of ["vary-much", "keep-much"]) byId(id).addEventListener("input", () => this.tellAmounts());
  }

  /** Show the image of rank `at`; `asked` is what all of them were drawn by. */
  show(images, asked, at) {
    Object.assign(this, { images, asked, at });
    const image = images[at];
    byId("image-prompt").textContent = asked.prompt;
    byId("image-large").src = image.url;
    byId("image-large").alt = `Picture ${image.number} of ${images.length}: ${asked.prompt}`;
    const facts = { Place: `${image.number} of ${images.length}, by CLIP (${image.score.toFixed(3)})`, Seed: asked.seed };
    facts.Number = image.candidate;
    for (const name of KNOBS) {
      const own = this.about().defaults[name];
      if (asked[name] != null && asked[name] !== "" && asked[name] !== own) facts[named(name)] = asked[name];
    }
    byId("image-facts").replaceChildren(
      ...Object.entries(facts).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(value)))),
    );
    byId("download").href = image.url;
    byId("download").download = `${fileName(asked.prompt)}-${asked.seed}-${image.candidate}.png`;
    byId("previous").disabled = at === 0;
    byId("next").disabled = at === images.length - 1;
    byId("image-said").textContent = "";
    history.replaceState(null, "", `#${image.address}`);
    this.setAmounts(address.read(image.address).order);
    this.look();
    if (!this.dialog.open) this.dialog.showModal();
  }

  /** The sliders stand as they did when this picture was drawn; where it was drawn without them, as they were left. */
  setAmounts({ vary, tokens }) {
    const { grid } = this.about();
    const [varied, kept] = [byId("vary-much"), byId("keep-much")];
    if (vary) varied.value = 100 * vary;
    if (Number(kept.max) !== grid - 1) Object.assign(kept, { max: grid - 1, value: grid >> 1 });
    const drawn = tokens?.indexOf(-1) ?? -1;
    if (drawn > 0 && drawn % grid === 0 && tokens.slice(drawn).every((token) => token === -1)) kept.value = drawn / grid;
    this.tellAmounts();
  }

  tellAmounts() {
    const { grid } = this.about();
    const [varied, kept] = [byId("vary-much"), byId("keep-much")];
    byId("vary-told").textContent = varied.ariaValueText = `${varied.value} %`;
    byId("keep-told").textContent = kept.ariaValueText = `${kept.value} of ${grid} rows`;
    byId("below").style.setProperty("--grid", grid);
    byId("below").style.setProperty("--kept", `${(100 * kept.value) / grid}%`);
  }

  look() {
    this.brush.close();
    byId("image-view").hidden = false;
    byId("brush-tools").hidden = true;
  }

  paint() {
    byId("image-view").hidden = true;
    byId("brush-tools").hidden = false;
    byId("brush-prompt").value = this.asked.prompt;
    this.brush.open(this.about().grid);
    byId("brush-prompt").focus();
  }

  count(count) {
    byId("brush-count").textContent = count ? `${count} of ${this.about().image_length} cells are drawn anew` : "Nothing is marked yet";
    byId("brush-draw").disabled = !count;
  }

  /** Draw from this image what `kept` says, or without it where that is null. */
  anew(kept, prompt) {
    const order = { prompt: prompt || this.asked.prompt };
    for (const name of KNOBS) if (this.asked[name] != null && this.asked[name] !== "") order[name] = this.asked[name];
    if (kept) Object.assign(order, kept, { tokens: this.images[this.at].tokens });
    this.draw(order);
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(location.href);
      byId("image-said").textContent = "Its address is copied: it draws this picture again.";
    } catch {
      byId("image-said").textContent = "The browser does not let the page copy: take the address from the address bar.";
    }
  }

  turn(by) {
    const at = this.at + by;
    if (at >= 0 && at < this.images.length) this.show(this.images, this.asked, at);
  }

  key(event) {
    if (!byId("cells").hidden || event.target.matches("input")) return;
    if (event.key === "ArrowLeft") this.turn(-1);
    if (event.key === "ArrowRight") this.turn(1);
  }

  left() {
    history.replaceState(null, "", location.pathname + location.search);
  }
}

const named = (name) => name.replaceAll("_", " ").replace(/^./, (letter) => letter.toUpperCase());

const fileName = (prompt) => prompt.normalize("NFKD").replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "picture";
