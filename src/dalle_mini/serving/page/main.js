// The page: puts the parts together.

import * as address from "./address.js";
import { askJson, door } from "./api.js";
import { byId } from "./dom.js";
import { Easel } from "./easel.js";
import * as examples from "./examples.js";
import * as form from "./form.js";
import * as panel from "./panel.js";
import { Progress } from "./progress.js";
import * as shelf from "./shelf.js";
import { BEST, Wall } from "./tiles.js";
import * as unknown from "./unknown.js";
import { Viewer } from "./viewer.js";

let model = null; // what /about tells
let asked = null; // what hangs on the wall was drawn by it

const progress = new Progress();
const wall = new Wall((at) => viewer.show(wall.images, asked, at));
const viewer = new Viewer((order) => more(order), () => model);
const easel = new Easel({
  begun(told) {
    asked = told.asked;
    byId("examples").hidden = true;
    wall.begin(asked, model.grid);
    progress.begin(told);
  },
  state: (data) => progress.state(data),
  progress: (data) => progress.passes(data),
  partial: (data) => wall.partial(data),
  finished(data) {
    wall.hang(data);
    progress.finished(data);
  },
  lost: () => progress.lost(),
  failed: (message) => fail(message),
  async ended(told, isNew) {
    if (told.state === "cancelled") {
      wall.clear();
      progress.end("Cancelled", { canDrawAgain: true });
      return;
    }
    asked = told.asked;
    wall.finish(told.images, asked.prompt);
    progress.end(summary(told.images.length), { canDrawAgain: true });
    openAddressed();
    if (!isNew) return;
    await shelf.keep(told, told.images.slice(0, BEST)).catch(() => {});
    await shelf.show(hang);
  },
});

function summary(count) {
  const order = count > 1 ? `${count} pictures, in CLIP's order` : "One picture";
  return `${order} · seed ${asked.seed}`;
}

function fail(message) {
  wall.clear();
  progress.end(`That did not work: ${message}`);
  byId("examples").hidden = false;
}

async function draw(order) {
  byId("image").close();
  byId("draw").disabled = true;
  try {
    await easel.draw(order);
    byId("wall").scrollIntoView({ block: "nearest" });
    if (!document.activeElement || document.activeElement === document.body) byId("cancel").focus(); // what had it is gone
  } catch (problem) {
    fail(problem.message + (problem.wait ? ` (in ${Math.ceil(problem.wait)} seconds)` : ""));
  }
  byId("draw").disabled = false;
}

/** Another drawing of this kind, as many as the form says. */
function more(order) {
  const count = Number(byId("candidates").value) || 1;
  form.write(order, model, false);
  draw({ ...order, seed: form.anySeed(), candidates: count, n: count });
}

/** What was asked, without what the server adds, and without the image that it started from. */
function knobs({ prompt, temperature, guidance, top_k, top_p, negative_prompt }) {
  const given = Object.entries({ prompt, temperature, guidance, top_k, top_p, negative_prompt });
  return Object.fromEntries(given.filter(([, value]) => value != null && value !== ""));
}

/** Hang a drawing of the shelf. */
async function hang(drawing) {
  await easel.leave();
  asked = drawing.asked;
  byId("examples").hidden = true;
  wall.clear();
  wall.finish(drawing.images, asked.prompt);
  form.write(asked, model, false);
  progress.end(summary(drawing.images.length), { canDrawAgain: true });
  byId("wall").scrollIntoView({ block: "nearest" });
}

/** The dialog of the image that the page's address names, if it hangs on the wall. */
function openAddressed() {
  const at = wall.images.findIndex((image) => `#${image.address}` === location.hash);
  if (at >= 0) viewer.show(wall.images, asked, at);
  return at >= 0;
}

/** Draw the picture of the page's address, to the token. */
function drawAddress() {
  const found = address.read(location.hash);
  if (!found) return false;
  const { order, weights } = found;
  form.write(order, model, order.first === undefined);
  if (weights && weights !== model.weights) {
    const fragment = location.hash.slice(1).replace(/&m=[^&]*/, "");
    const text = `This address is of other weights (${weights.slice(0, 20)}): the picture would be another one.`;
    progress.end(text, { link: { text: "Draw it with these", fragment } });
  } else if (order.first !== undefined) {
    draw({ seed: 0, ...order, candidates: 1, n: 1 });
  }
  return true;
}

/** The settings of a PNG come back; its picture can be drawn again to the token. */
async function open(file) {
  const fragment = file && (await address.ofFile(file).catch(() => null));
  const found = fragment && address.read(fragment);
  if (!found) {
    progress.end("This file does not say how it was drawn");
    return;
  }
  form.write(found.order, model);
  unknown.look(form.fit);
  const isOther = found.weights && found.weights !== model.weights;
  const text = isOther ? "Its settings are back. Other weights drew it." : "Its settings are back.";
  progress.end(text, { link: isOther ? null : { text: "Draw this very picture again", fragment } });
  byId("prompt").focus();
}

function listen() {
  byId("order").addEventListener("submit", (event) => {
    event.preventDefault();
    const order = form.read();
    if (order.prompt) draw(order);
    else byId("prompt").focus();
  });
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.isComposing) return;
    event.preventDefault();
    byId("order").requestSubmit();
  });
  byId("prompt").addEventListener("input", form.fit);
  byId("cancel").addEventListener("click", () => easel.cancel());
  byId("again").addEventListener("click", () => more(knobs(asked ?? form.read())));
  addEventListener("hashchange", () => openAddressed() || drawAddress());
  addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  addEventListener("dragleave", () => document.body.classList.remove("dropping"));
  addEventListener("drop", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.remove("dropping");
    open(event.dataTransfer.files[0]);
  });
  byId("open-file").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", () => open(byId("file").files[0]));
  examples.show(model.weights, (prompt, seed) => {
    form.write({ prompt, seed }, model);
    byId("order").requestSubmit();
  });
  unknown.watch(form.fit);
  shelf.listen(hang);
  panel.listen(() => model);
}

door.askForKey = () =>
  new Promise((resolve) => {
    const dialog = byId("ask-key");
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      dialog.close();
      resolve(byId("key").value.trim());
    };
    dialog.oncancel = () => resolve(null);
    dialog.showModal();
  });

/** What the model is, as soon as the server has loaded it. */
async function waitForModel() {
  while (true) {
    try {
      return await askJson("about");
    } catch (problem) {
      progress.end(problem.status === 503 ? "The server loads its model" : problem.message);
      await new Promise((resolve) => setTimeout(resolve, 1000 * (problem.wait ?? 3)));
    }
  }
}

byId("draw").disabled = true;
model = await waitForModel();
progress.end("");
form.offer(model);
listen();
byId("draw").disabled = false;
shelf.show(hang);
const isReload = performance.getEntriesByType("navigation")[0]?.type !== "navigate";
if (!((isReload || !location.hash) && (await easel.resume())) && !drawAddress()) byId("prompt").focus();
