// The line below the prompt: the place in the queue, the time left, and how it ended.

import { byId, el, say } from "./dom.js";

const ENDINGS = ["th", "st", "nd", "rd"];

export class Progress {
  constructor() {
    this.bar = byId("passes");
  }

  begin(told) {
    this.since = null;
    this.count = 0; // pictures that are finished while others are drawn
    this.bar.value = 0;
    this.bar.hidden = false;
    byId("cancel").hidden = false;
    byId("again").hidden = true;
    this.state(told);
  }

  state({ state, place, seconds_left: seconds }) {
    if (state === "queued") say(byId("status"), `Waiting: ${ordinal(place ?? 1)} in the queue${after(seconds)}`);
    if (state === "running") this.drawing(seconds);
  }

  passes({ done, total }) {
    const now = performance.now();
    this.since ??= { when: now, done };
    this.bar.value = done / total;
    const pace = (now - this.since.when) / Math.max(1, done - this.since.done);
    const seconds = done > this.since.done ? (pace * (total - done)) / 1000 : null;
    this.drawing(seconds);
  }

  finished({ finished }) {
    this.count = finished;
  }

  drawing(seconds) {
    const finished = this.count ? `: ${this.count} are finished` : "";
    say(byId("status"), `Drawing${finished}${after(seconds)}`);
  }

  lost() {
    say(byId("status"), "The connection is lost: trying again");
  }

  /** Nothing is drawn any more. `link` is what else one may draw, `{text, fragment}`. */
  end(text, { canDrawAgain = false, link = null } = {}) {
    const hadFocus = document.activeElement === byId("cancel");
    this.bar.hidden = byId("cancel").hidden = true;
    byId("again").hidden = !canDrawAgain;
    if (hadFocus) byId(canDrawAgain ? "again" : "prompt").focus();
    say(byId("status"), text);
    if (link) byId("status").append(" ", el("a", { href: `#${link.fragment}` }, link.text));
  }
}

/** Rounded, so that the line changes seldom. */
function after(seconds) {
  if (seconds == null) return "";
  if (seconds < 3) return ", a moment left";
  if (seconds < 60) return `, about ${seconds < 10 ? Math.ceil(seconds) : 5 * Math.ceil(seconds / 5)} seconds left`;
  return `, about ${Math.ceil(seconds / 60)} minutes left`;
}

function ordinal(number) {
  const isTeen = number % 100 > 10 && number % 100 < 14;
  return `${number}${isTeen ? "th" : (ENDINGS[number % 10] ?? "th")}`;
}
