// The brush: it snaps to the cells of the token grid, and shows them.

import { byId, el } from "./dom.js";

const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

export class Brush {
  /** `changed(count)` is called with the number of marked cells. */
  constructor(changed) {
    this.changed = changed;
    this.board = byId("cells");
    this.cells = [];
    this.at = 0; // of the keyboard
    this.paints = null; // true while the pointer marks, false while it erases
    this.board.addEventListener("pointerdown", (event) => this.press(event));
    this.board.addEventListener("pointermove", (event) => this.paints !== null && this.stroke(event));
    for (const name of ["pointerup", "pointercancel"]) this.board.addEventListener(name, () => (this.paints = null));
    this.board.addEventListener("keydown", (event) => this.key(event));
  }

  open(grid) {
    if (this.grid !== grid) this.build(grid);
    this.board.hidden = false;
    this.clear();
  }

  close() {
    this.board.hidden = true;
  }

  build(grid) {
    this.grid = grid;
    this.board.style.setProperty("--grid", grid);
    this.cells = [];
    const rows = Array.from({ length: grid }, (_, row) => {
      const cells = Array.from({ length: grid }, (_, column) => {
        const name = `row ${row + 1}, column ${column + 1}`;
        return el("div", { role: "gridcell", tabindex: -1, "aria-selected": "false", "aria-label": name });
      });
      this.cells.push(...cells);
      return el("div", { role: "row" }, ...cells);
    });
    this.board.replaceChildren(...rows);
    this.cells[0].tabIndex = 0;
  }

  get marked() {
    return this.cells.flatMap((cell, at) => (cell.ariaSelected === "true" ? [at] : []));
  }

  clear() {
    for (const cell of this.cells) cell.ariaSelected = "false";
    this.changed(0);
  }

  press(event) {
    const at = this.under(event);
    if (at < 0) return;
    event.preventDefault();
    this.board.setPointerCapture(event.pointerId);
    this.paints = this.cells[at].ariaSelected !== "true";
    this.stroke(event);
  }

  stroke(event) {
    const at = this.under(event);
    if (at >= 0) this.mark(at, this.paints);
  }

  under(event) {
    const box = this.board.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) / box.width) * this.grid);
    const row = Math.floor(((event.clientY - box.top) / box.height) * this.grid);
    const isInside = row >= 0 && row < this.grid && column >= 0 && column < this.grid;
    return isInside ? row * this.grid + column : -1;
  }

  /** Mark a cell, or erase it, with those around it that the brush covers. */
  mark(at, is) {
    const reach = (Number(document.querySelector("input[name=size]:checked").value) - 1) / 2;
    const [row, column] = [Math.floor(at / this.grid), at % this.grid];
    for (let y = Math.max(0, row - reach); y <= Math.min(this.grid - 1, row + reach); y++) {
      for (let x = Math.max(0, column - reach); x <= Math.min(this.grid - 1, column + reach); x++) {
        this.cells[y * this.grid + x].ariaSelected = String(is);
      }
    }
    this.changed(this.marked.length);
  }

  key(event) {
    if (event.key === " " || event.key === "Enter") {
      event.preventDefault();
      this.mark(this.at, this.cells[this.at].ariaSelected !== "true");
    }
    const move = MOVES[event.key];
    if (!move) return;
    event.preventDefault();
    event.stopPropagation();
    const row = Math.floor(this.at / this.grid) + move[0];
    const column = (this.at % this.grid) + move[1];
    if (row < 0 || row >= this.grid || column < 0 || column >= this.grid) return;
    this.cells[this.at].tabIndex = -1;
    this.at = row * this.grid + column;
    this.cells[this.at].tabIndex = 0;
    this.cells[this.at].focus();
  }
}
