// The panel about the model: its card, its checksums and the server's limits.

import { byId, closable, el } from "./dom.js";

export function listen(about) {
  closable(byId("about"));
  byId("open-about").addEventListener("click", () => {
    if (!byId("about-text").childElementCount) byId("about-text").append(...told(about()));
    byId("about").showModal();
  });
}

function told(about) {
  const { limits } = about;
  const facts = {
    Model: about.model,
    Weights: about.weights,
    Picture: `${about.resolution} × ${about.resolution} pixels, ${about.grid} × ${about.grid} tokens of ${about.codebook_size}`,
    Computes: `${about.dtype} on ${about.device}`,
    Server: `dalle-mini ${about.version}`,
  };
  const sums = Object.fromEntries(Object.entries(about.checksums).map(([name, sum]) => [name, el("code", {}, String(sum))]));
  const allowed = {
    "Pictures at once": limits.pictures,
    "Waiting jobs": limits.queue,
    "Requests a minute": limits.per_minute || "no limit",
    "Pictures are kept on the server for": `${limits.keep_hours} hours`,
    "An upload": `${Math.round(limits.body_bytes / 2 ** 20)} MiB, ${Math.round(limits.pixels / 1e6)} million pixels`,
  };
  return [
    list(facts),
    el("h3", {}, "Limits"),
    list(allowed),
    el("h3", {}, "Checksums of the weights (SHA-256)"),
    list(sums),
    ...markdown(about.card),
  ];
}

function list(facts) {
  return el("dl", {}, ...Object.entries(facts).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value instanceof Node ? value : String(value)))));
}

/** The headings, paragraphs, lists and tables of a card, as elements; other Markdown stays text. */
export function markdown(text) {
  const made = [];
  for (const block of text.split(/\n\s*\n/)) {
    const lines = block.split("\n").filter((line) => line.trim());
    if (!lines.length) continue;
    const heading = lines[0].match(/^(#+)\s+(.*)/);
    if (heading) {
      made.push(el("h3", {}, ...inline(heading[2])));
      lines.shift();
    }
    if (!lines.length) continue;
    if (lines[0].startsWith("```")) made.push(el("pre", { tabindex: 0 }, lines.filter((line) => !line.startsWith("```")).join("\n")));
    else if (lines[0].startsWith("|")) made.push(table(lines));
    else if (/^[-*] /.test(lines[0])) made.push(el("ul", {}, ...items(lines).map((item) => el("li", {}, ...inline(item)))));
    else made.push(el("p", {}, ...inline(lines.join(" "))));
  }
  return made;
}

function items(lines) {
  const found = [];
  for (const line of lines) {
    if (/^[-*] /.test(line)) found.push(line.slice(2));
    else found[found.length - 1] += ` ${line.trim()}`;
  }
  return found;
}

function table(lines) {
  const rows = lines.filter((line) => !/^[|\s:-]+$/.test(line)).map((line) => line.replace(/^\||\|\s*$/g, "").split("|"));
  const [names, ...rest] = rows;
  const row = (tag, cells) => el("tr", {}, ...cells.map((cell) => el(cell.trim() ? tag : "td", {}, ...inline(cell.trim()))));
  return el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Table" }, el("table", {}, row("th", names), ...rest.map((cells) => row("td", cells))));
}

/** Code, bold and links to other sites; the rest is text. */
function inline(text) {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*|\[[^\]]+\]\([^)\s]+\))/).map((part) => {
    if (/^`.+`$/.test(part)) return el("code", {}, part.slice(1, -1));
    if (/^\*\*.+\*\*$/.test(part)) return el("strong", {}, part.slice(2, -2));
    const link = part.match(/^\[([^\]]+)\]\(([^)\s]+)\)$/);
    if (!link) return part;
    return /^https:\/\//.test(link[2]) ? el("a", { href: link[2], rel: "noreferrer", target: "_blank" }, link[1]) : link[1];
  });
}
