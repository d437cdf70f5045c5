// The wall: pictures that grow row by row, then hang in CLIP's order: those of a large job as they are finished.

import { byId, el, isCalm } from "./dom.js";

export const BEST = 4; // pictures that are shown of those that were drawn

export class Wall {
  /** `open(at)` is called when somebody clicks the picture of that rank, from 0. */
  constructor(open) {
    this.open = open;
    this.tiles = new Map(); // by candidate
    this.images = [];
    this.turn = null; // to sort the tiles, at the next frame
    this.rejected = byId("rejected");
    this.toggle = byId("show-rejected");
    this.toggle.addEventListener("click", () => this.showRejected(this.rejected.hidden));
  }

  /** Empty places for candidates that are about to be drawn. */
  begin(asked, grid) {
    this.clear();
    byId("tiles").style.setProperty("--grid", grid);
    for (let candidate = asked.first; candidate < asked.first + asked.candidates; candidate++) {
      const tile = new Tile();
      this.tiles.set(candidate, tile);
      byId("tiles").append(tile.item);
    }
    byId("wall").setAttribute("aria-busy", "true");
  }

  partial({ candidate, rows, total, image }) {
    this.tiles.get(candidate)?.grow(`data:image/png;base64,${image}`, rows / total);
  }

  /** A finished picture of a job that goes on: the finished ones hang first, in CLIP's order so far. */
  hang({ candidate, score, image }) {
    const tile = this.tiles.get(candidate);
    if (!tile) return;
    if (image) tile.grow(`data:image/png;base64,${image}`, 1);
    tile.score = score;
    this.turn ??= requestAnimationFrame(() => this.sort());
  }

  sort() {
    this.turn = null;
    const before = this.boxes();
    const place = (tile) => tile.score ?? -Infinity;
    const tiles = [...this.tiles.values()].sort((a, b) => place(b) - place(a) || 0);
    byId("tiles").append(...tiles.map((tile) => tile.item));
    this.moveFrom(before);
  }

  boxes() {
    return new Map([...this.tiles].map(([candidate, tile]) => [candidate, tile.item.getBoundingClientRect()]));
  }

  moveFrom(boxes) {
    for (const [candidate, box] of boxes) this.tiles.get(candidate)?.moveFrom(box);
  }

  /** Finished images, the best first, `{number, candidate, url, ...}`: the best are shown, the others folded away. */
  finish(images, prompt) {
    this.waitNoMore();
    const before = this.boxes();
    this.images = images;
    for (const [at, image] of images.entries()) {
      const tile = this.tiles.get(image.candidate) ?? new Tile();
      this.tiles.set(image.candidate, tile);
      tile.finish(image.url, `Picture ${image.number} of ${images.length}: ${prompt}`, () => this.open(at));
      (at < BEST ? byId("tiles") : this.rejected).append(tile.item);
    }
    const count = images.length - BEST;
    this.toggle.hidden = count < 1;
    this.toggle.dataset.count = count;
    this.showRejected(false);
    byId("wall").removeAttribute("aria-busy");
    this.moveFrom(before);
  }

  waitNoMore() {
    cancelAnimationFrame(this.turn);
    this.turn = null;
  }

  showRejected(shown) {
    this.rejected.hidden = !shown;
    this.toggle.setAttribute("aria-expanded", shown);
    const count = this.toggle.dataset.count;
    this.toggle.textContent = shown ? "Hide what was rejected" : `Show what was rejected (${count})`;
  }

  clear() {
    this.waitNoMore();
    byId("tiles").replaceChildren();
    this.rejected.replaceChildren();
    this.toggle.hidden = this.rejected.hidden = true;
    this.tiles.clear();
    this.images = [];
    byId("wall").removeAttribute("aria-busy");
  }
}

class Tile {
  constructor() {
    this.picture = el("img", { alt: "", hidden: true });
    this.item = el("li", { class: "growing" }, this.picture);
  }

  /** The upper part of an unfinished picture; dots stand for the tokens that are still to be drawn. */
  grow(source, part) {
    this.picture.src = source;
    this.picture.hidden = false;
    this.picture.style.setProperty("--left", `${100 * (1 - part)}%`);
  }

  finish(source, name, open) {
    const picture = el("img", { src: source, alt: name });
    const button = el("button", { type: "button", class: "picture", onclick: open }, picture);
    this.picture.classList.add("under");
    if (!this.picture.hidden) button.prepend(this.picture);
    picture.addEventListener("load", () => {
      this.item.classList.remove("growing");
      setTimeout(() => this.picture.remove(), 600); // when the new one covers it
    });
    this.item.replaceChildren(button);
  }

  moveFrom(box) {
    const now = this.item.getBoundingClientRect();
    if (isCalm() || !now.width || (box.left === now.left && box.top === now.top)) return;
    const shift = `translate(${box.left - now.left}px, ${box.top - now.top}px)`;
    this.item.animate([{ transform: shift }, { transform: "none" }], { duration: 700, easing: "cubic-bezier(.2,.8,.2,1)" });
  }
}
