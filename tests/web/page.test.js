// The page of `dalle-mini serve` in a real browser. PAGE_ADDRESS is a server's; its model knows the words "chair" and "apple", and that an armchair is like a chair.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { after, afterEach, before, beforeEach, test } from "node:test";

import { chromium } from "playwright-core";

const BASE = process.env.PAGE_ADDRESS;
const AXE = readFileSync(new URL("node_modules/axe-core/axe.min.js", import.meta.url), "utf8");
const LONG = 90_000; // milliseconds; a drawing on a busy machine

let browser, context, page, problems;

before(async () => {
  browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });
});
after(() => browser.close());

beforeEach(async () => {
  problems = [];
  context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
  context.setDefaultTimeout(LONG);
  page = await opened("");
});

afterEach(async () => {
  await context.close();
  assert.deepEqual(problems, []);
});

/** A new tab, whose errors and requests to elsewhere are problems. */
async function opened(fragment) {
  const tab = await context.newPage();
  tab.on("console", (message) => ["error", "warning"].includes(message.type()) && problems.push(message.text()));
  tab.on("pageerror", (error) => problems.push(error.message));
  tab.on("request", (request) => {
    if (!/^(data|blob):/.test(request.url()) && !request.url().startsWith(BASE)) problems.push(`asked ${request.url()}`);
  });
  await tab.goto(BASE + fragment);
  await tab.waitForSelector("#draw:enabled");
  return tab;
}

async function begin(prompt, { candidates = 2, seed = "7" } = {}) {
  await page.fill("#prompt", prompt);
  await page.selectOption("#candidates", String(candidates));
  await page.fill("#seed", seed);
  await page.click("#draw");
}

const ended = (tab = page) => tab.waitForSelector("#again:not([hidden])");

async function draw(prompt, options) {
  await begin(prompt, options);
  await ended();
}

/** What the server tells of the tab's job. */
const job = (tab = page) => tab.evaluate(async () => (await fetch(`jobs/${sessionStorage.getItem("dalle-mini job")}`)).json());

/** The bytes that "download" gives for the open picture. */
const downloaded = (tab) =>
  tab.evaluate(async () => Array.from(new Uint8Array(await (await fetch(document.querySelector("#download").href)).arrayBuffer())));

/** Click a button of the open picture that draws another, and wait for what it draws. */
async function redrawn(button) {
  const before = await page.evaluate(() => sessionStorage.getItem("dalle-mini job"));
  await page.click(button);
  await page.waitForFunction((old) => (sessionStorage.getItem("dalle-mini job") ?? old) !== old, before);
  await ended();
  return job();
}

test("pictures grow, hang in CLIP's order, and the rejected ones are shown on demand", async () => {
  await page.evaluate(() => {
    window.seen = [];
    new MutationObserver(() => {
      const picture = document.querySelector("#tiles .growing img:not([hidden])");
      if (picture) seen.push(parseFloat(picture.style.getPropertyValue("--left")));
    }).observe(document.querySelector("#tiles"), { subtree: true, attributes: true });
  });
  await draw("a small snail", { candidates: 8 });
  const seen = [...new Set(await page.evaluate(() => window.seen))];
  assert.ok(seen.length > 1, `it grew: ${seen}`);
  assert.deepEqual(seen, seen.toSorted((a, b) => b - a));
  const { images } = await job();
  assert.equal(images.length, 8);
  assert.equal(await page.locator("#tiles img:not(.under)").count(), 4);
  assert.equal(await page.locator("#rejected").isVisible(), false);
  await page.click("#show-rejected");
  assert.equal(await page.locator("#rejected img:not(.under)").count(), 4);
  const shown = await page.locator(".tiles img:not(.under)").evaluateAll((all) => all.map((one) => new URL(one.src).pathname));
  assert.deepEqual(shown, images.map((image) => new URL(image.url, BASE).pathname));
});

test("finished pictures hang in CLIP's order while others are drawn", async () => {
  await page.evaluate(() => {
    window.orders = [];
    window.says = new Set();
    new MutationObserver(() => says.add(document.querySelector("#status").textContent.split(",")[0])).observe(document.querySelector("#status"), { childList: true });
    new MutationObserver(() => {
      const pictures = [...document.querySelectorAll("#tiles li.growing > img")];
      const isWhole = pictures.map((one) => one.style.getPropertyValue("--left") === "0%");
      if (isWhole.includes(false)) orders.push({ isWhole, sources: pictures.filter((one, at) => isWhole[at]).map((one) => one.src) });
    }).observe(document.querySelector("#tiles"), { childList: true });
  });
  await draw("a small snail", { candidates: 64 });
  const { images } = await job();
  const scores = {};
  for (const { url, score } of images) {
    const bytes = await (await context.request.get(BASE + url)).body();
    scores[`data:image/png;base64,${bytes.toString("base64")}`] = score;
  }
  const orders = (await page.evaluate(() => window.orders)).filter(({ sources }) => sources.length);
  assert.ok(orders.length, "some were finished before the others");
  for (const { isWhole, sources } of orders) {
    assert.deepEqual(isWhole, isWhole.toSorted((a, b) => b - a));
    const order = sources.map((source) => scores[source]);
    assert.ok(!order.includes(undefined));
    assert.deepEqual(order, order.toSorted((a, b) => b - a));
  }
  const says = await page.evaluate(() => [...window.says]);
  assert.ok(says.includes("Drawing: 32 are finished"), `${says}`);
  assert.equal(await page.locator("#tiles li").count(), 4);
});

test("the address is the picture, and so is that of a varied one", async () => {
  await draw("a red apple");
  for (const change of [null, "#vary"]) {
    if (change) {
      await redrawn(change);
    }
    await page.locator("#tiles button").nth(1).click();
    const tab = await opened(new URL(page.url()).hash);
    await tab.waitForSelector("#image[open]");
    assert.deepEqual(await downloaded(tab), await downloaded(page));
    await tab.close();
  }
});

test("cancel ends this job", async () => {
  await begin("a red car", { candidates: 64 });
  await page.waitForSelector("#cancel:not([hidden])");
  const id = await page.evaluate(() => sessionStorage.getItem("dalle-mini job"));
  await page.click("#cancel");
  await page.waitForFunction(() => document.querySelector("#status").textContent === "Cancelled");
  const told = await page.evaluate(async (id) => (await fetch(`jobs/${id}`)).json(), id);
  assert.equal(told.state, "cancelled");
});

test("a job that waits tells its place, and can be cancelled", async () => {
  const send = (path, method, body) =>
    page.evaluate(
      async ([path, method, body]) => {
        const headers = { "Content-Type": "application/json" };
        return (await fetch(path, { method, headers, body: body && JSON.stringify(body) })).json();
      },
      [path, method, body],
    );
  const others = []; // enough of them for a minute, of which this test needs some seconds
  for (let number = 0; number < 12; number++) {
    others.push((await send("jobs", "POST", { prompt: "a rocket", seed: number, candidates: 64, n: 1, stay: true })).id);
  }
  await begin("a red car", { candidates: 64 });
  const waiting = /^Waiting: (\d+)(st|nd|rd|th) in the queue/;
  const place = async () => Number((await page.textContent("#status")).match(waiting)?.[1]);
  await page.waitForFunction((source) => new RegExp(source).test(document.querySelector("#status").textContent), waiting.source);
  const before = await place();
  assert.ok(before > 4, `${before}`);
  for (const id of others.slice(-2)) await send(`jobs/${id}`, "DELETE");
  while (!((await place()) <= before - 2)) await new Promise((resolve) => setTimeout(resolve, 50));
  const { id, state } = await job();
  assert.equal(state, "queued");
  await page.click("#cancel");
  await page.waitForFunction(() => document.querySelector("#status").textContent === "Cancelled");
  assert.equal((await send(`jobs/${id}`, "GET")).state, "cancelled");
  assert.equal((await send(`jobs/${others[9]}`, "GET")).state, "queued");
  for (const other of others) await send(`jobs/${other}`, "DELETE");
  assert.equal(await page.locator("#tiles li").count(), 0);
});

test("a reload in the middle finds the job", async () => {
  await begin("two cats under a rainbow", { candidates: 16 });
  await page.waitForSelector("#tiles .growing img:not([hidden])", { state: "attached" });
  const { id } = await job();
  await page.reload();
  await ended();
  assert.equal((await job()).id, id);
  assert.equal(await page.locator("#tiles li").count(), 4);
  await page.waitForSelector("#drawn-before li");
});

test("keep the top and brush draw anew only what they say", async () => {
  await draw("a red apple");
  const { images } = await job();
  await page.locator("#tiles button").first().click();
  const below = await redrawn("#keep-top");
  assert.deepEqual(below.images[0].tokens.slice(0, 128), images[0].tokens.slice(0, 128));
  assert.equal(below.asked.keep_top, 0.5);

  await page.locator("#tiles button").first().click();
  await page.click("#brush");
  await page.check("input[name=size][value='1']");
  await page.locator("#cells [tabindex='0']").focus();
  for (const key of [" ", "ArrowRight", " ", "ArrowDown", " "]) await page.keyboard.press(key);
  const cells = await page.locator("#cells").boundingBox();
  const at = (row, column) => [cells.x + ((column + 0.5) * cells.width) / 16, cells.y + ((row + 0.5) * cells.height) / 16];
  await page.mouse.move(...at(8, 8));
  await page.mouse.down();
  await page.mouse.move(...at(8, 11), { steps: 20 });
  await page.mouse.up();
  assert.match(await page.textContent("#brush-count"), /^7 of 256/);
  const marked = [0, 1, 17, 136, 137, 138, 139];
  const brushed = await redrawn("#brush-draw");
  assert.deepEqual(brushed.asked.mask, marked);
  for (const image of brushed.images) {
    const changed = image.tokens.flatMap((token, cell) => (token === below.images[0].tokens[cell] ? [] : [cell]));
    assert.ok(changed.every((cell) => marked.includes(cell)));
  }
});

test("sliders say how much, by keyboard, and an address brings them back", async () => {
  const amounts = async (tab = page) => [await tab.textContent("#vary-told"), await tab.textContent("#keep-told")];
  await draw("a red apple");
  await page.locator("#tiles button").first().click();
  assert.deepEqual(await amounts(), ["50 %", "8 of 16 rows"]);
  await page.getByLabel("Drawn anew").focus();
  for (let times = 0; times < 6; times++) await page.keyboard.press("ArrowLeft");
  assert.equal(await page.locator("#image[open]").count(), 1);
  const varied = await redrawn("#vary");
  assert.equal(varied.asked.vary, 0.2);

  await page.locator("#tiles button").first().click();
  await page.getByLabel("Kept").focus();
  await page.keyboard.press("End");
  assert.deepEqual(await amounts(), ["20 %", "15 of 16 rows"]);
  const { images } = await redrawn("#keep-top");
  assert.deepEqual(images[0].tokens.slice(0, 240), varied.images[0].tokens.slice(0, 240));

  await page.locator("#tiles button").first().click();
  const tab = await opened(new URL(page.url()).hash);
  await tab.waitForSelector("#image[open]");
  assert.deepEqual(await amounts(tab), ["50 %", "15 of 16 rows"]);
  await tab.close();
  const other = await opened(`#${varied.images[0].address}`);
  await other.waitForSelector("#image[open]");
  assert.deepEqual(await amounts(other), ["20 %", "8 of 16 rows"]);
  await other.close();
});

test("it draws in a frame of another site, where the browser may keep nothing", async () => {
  const around = `<!doctype html><title>Around</title><iframe src="${BASE}" width="900" height="800"></iframe>`;
  const site = createServer((request, response) => response.setHeader("Content-Type", "text/html").end(around));
  await new Promise((resolve) => site.listen(0, "127.0.0.1", resolve));
  const tab = await context.newPage();
  tab.on("pageerror", (error) => problems.push(error.message));
  await tab.goto(`http://localhost:${site.address().port}/`);
  const frame = tab.frameLocator("iframe");
  await frame.locator("#draw:enabled").waitFor();
  await frame.locator("#prompt").fill("a red apple");
  await frame.locator("#candidates").selectOption("1");
  await frame.locator("#draw").click();
  await frame.locator("#again:not([hidden])").waitFor();
  assert.equal(await frame.locator("#tiles button").count(), 1);
  await tab.close();
  site.close();
});

test("a dropped picture restores its settings", async () => {
  await page.click("summary");
  await page.fill("#temperature", "0.6");
  await draw("a small snail", { seed: "12" });
  const address = await page.locator("#tiles img:not(.under)").first().getAttribute("src");
  await page.fill("#prompt", "something else");
  await page.fill("#seed", "");
  await page.fill("#temperature", "");
  const carried = await page.evaluateHandle(async (address) => {
    const bytes = await (await fetch(address)).blob();
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], "snail.png", { type: "image/png" }));
    return transfer;
  }, address);
  await page.dispatchEvent("body", "drop", { dataTransfer: carried });
  await page.waitForFunction(() => document.querySelector("#status").textContent.startsWith("Its settings"));
  assert.equal(await page.inputValue("#prompt"), "a small snail");
  assert.equal(await page.inputValue("#seed"), "12");
  assert.equal(await page.inputValue("#temperature"), "0.6");
});

test("unknown words are told, and replaced by a known one", async () => {
  await page.fill("#prompt", "a chair and an armchair");
  await page.locator("#words button", { hasText: "chair" }).first().click();
  assert.equal(await page.inputValue("#prompt"), "a chair and an chair");
  await page.waitForFunction(() => !document.querySelector("#words p"));
});

test("history stays in the browser until it is deleted, and a prompt is text", async () => {
  const prompt = "<img src=x onerror=alert(1)> <b>apple</b>";
  await draw(prompt);
  await page.reload();
  assert.equal(await page.textContent("#drawn-before li span"), prompt);
  await page.locator("#drawn-before button.picture").click();
  await page.locator("#tiles button").first().click();
  assert.equal(await page.textContent("#image-prompt"), prompt);
  await page.keyboard.press("Escape");
  await page.locator("#drawn-before .delete").click();
  await page.waitForSelector("#shelf", { state: "hidden" });
  await page.reload();
  await page.waitForSelector("#draw:enabled");
  assert.equal(await page.locator("#shelf").isVisible(), false);
});

test("axe finds nothing, in the light and in the dark, at 320 and at 1280 pixels", async () => {
  const look = async (where) => {
    for (const colorScheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
      for (const width of [320, 1280]) {
        await page.setViewportSize({ width, height: 900 });
        assert.equal(await page.evaluate(() => document.scrollingElement.scrollWidth > innerWidth), false, `${where} ${width}`);
        await page.evaluate(AXE);
        const { violations } = await page.evaluate(() => axe.run());
        const told = violations.map(({ id, nodes }) => `${where} ${colorScheme} ${width} ${id}: ${nodes.map((node) => node.html)}`);
        assert.deepEqual(told, []);
      }
    }
  };
  await look("start");
  await page.click("summary");
  await page.fill("#prompt", "an armchair");
  await page.waitForSelector("#words p");
  await look("words");
  await draw("a red apple", { candidates: 8 });
  await page.click("#show-rejected");
  await page.waitForSelector("#drawn-before li");
  await look("drawn");
  await page.locator("#tiles button").first().click();
  await look("picture");
  await page.click("#brush");
  await look("brush");
  await page.keyboard.press("Escape");
  await page.click("#open-about");
  await look("about");
});
