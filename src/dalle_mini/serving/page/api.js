// The server's routes: requests with the key, and the events of a job.

import { lasting } from "./storage.js";

const KEY = "dalle-mini key";
const TRIES = 8; // to reach the server again

/** An answer that is an error; `wait` is in seconds, if the server named it. */
export class Refused extends Error {
  constructor(message, status, wait) {
    super(message);
    Object.assign(this, { status, wait });
  }
}

/** Asks the user for a key; set by the page. */
export const door = { askForKey: async () => null };

export async function ask(path, { method = "GET", body, headers = {}, signal } = {}) {
  const key = lasting.getItem(KEY);
  const sent = { ...headers };
  if (key) sent.Authorization = `Bearer ${key}`;
  if (body !== undefined) sent["Content-Type"] = "application/json";
  const text = body === undefined ? undefined : JSON.stringify(body);
  const response = await fetch(path, { method, body: text, headers: sent, signal, cache: "no-store" });
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  if (response.status === 401) {
    const given = await door.askForKey();
    if (given) {
      lasting.setItem(KEY, given);
      return ask(path, { method, body, headers, signal });
    }
  }
  const message = told.error?.message ?? `the server answered ${response.status}`;
  throw new Refused(message, response.status, Number(response.headers.get("Retry-After")) || null);
}

export const askJson = async (path, options) => (await ask(path, options)).json();

/** The events of a job until its end, `{kind, data}`. A broken connection is taken up again, and told as "lost". */
export async function* events(id, partials, signal) {
  let last = null;
  for (let tries = 1; tries <= TRIES; tries++) {
    try {
      const headers = last ? { "Last-Event-ID": last } : {};
      const response = await ask(`jobs/${id}/events?partials=${partials}`, { headers, signal });
      for await (const event of parsed(response.body)) {
        tries = 0;
        last = event.id ?? last;
        yield event;
        if (event.kind === "done") return;
      }
    } catch (problem) {
      const goesOn = !(problem instanceof Refused) || problem.status === 429 || problem.status >= 500;
      if (signal.aborted || !goesOn) throw problem;
    }
    yield { kind: "lost" };
    await new Promise((resolve) => setTimeout(resolve, Math.min(8000, 250 * 2 ** tries)));
  }
  throw new Refused("the server cannot be reached", 0, null);
}

/** Server-sent events of a stream of bytes. */
async function* parsed(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  while (true) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const fields = {};
      for (const line of block.split("\n")) {
        const colon = line.indexOf(": ");
        if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 2);
      }
      if (fields.data) yield { kind: fields.event, id: fields.id, data: JSON.parse(fields.data) };
    }
  }
}
