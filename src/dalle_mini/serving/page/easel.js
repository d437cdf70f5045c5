// One job at a time: ordered, watched, cancelled, and found again after a reload.

import { ask, askJson, events } from "./api.js";
import { ofTab } from "./storage.js";

const JOB = "dalle-mini job";
const KEPT = "dalle-mini kept"; // the last job whose pictures are in the browser's history
const PARTIALS = 8; // pictures that grow live

export class Easel {
  /**
   * `hear` has a method for each moment: `begun(told)`, `state(data)`, `progress(data)`, `partial(data)`,
   * `finished(data)`, `lost()`, `ended(told, isNew)`, `failed(message)`.
   */
  constructor(hear) {
    this.hear = hear;
    this.watching = null;
    this.id = null;
  }

  /** Order a drawing in place of the one that runs, if one does. It is watched when this returns. */
  async draw(order) {
    await this.leave();
    const told = await askJson("jobs", { method: "POST", body: order });
    ofTab.setItem(JOB, told.id);
    this.watch(told);
  }

  /** Watch this tab's last job again; false if there is none any more. */
  async resume() {
    const id = ofTab.getItem(JOB);
    if (!id) return false;
    try {
      const told = await askJson(`jobs/${encodeURIComponent(id)}`);
      if (told.state === "cancelled" || told.state === "failed") return false;
      this.watch(told);
      return true;
    } catch {
      ofTab.removeItem(JOB);
      return false;
    }
  }

  async watch(told) {
    const { signal } = (this.watching = new AbortController());
    this.id = told.id;
    this.hear.begun(told);
    try {
      for await (const { kind, data } of events(told.id, PARTIALS, signal)) {
        if (signal.aborted) return;
        if (kind === "done") this.end(data);
        else if (kind !== "image") this.hear[kind]?.(data);
      }
    } catch (problem) {
      if (signal.aborted) return;
      this.id = null;
      this.hear.failed(problem.message);
    }
  }

  end(told) {
    this.id = null;
    const isNew = ofTab.getItem(KEPT) !== told.id;
    if (told.state === "done") ofTab.setItem(KEPT, told.id);
    else ofTab.removeItem(JOB);
    if (told.state === "failed") this.hear.failed(told.error?.message ?? "it could not be drawn");
    else this.hear.ended(told, isNew);
  }

  /** Cancel the job that runs, if one does. Its watcher hears of it. */
  async cancel() {
    const { id } = this;
    if (id) await ask(`jobs/${id}?ended=keep`, { method: "DELETE" }).catch(() => {});
  }

  /** Look at something else: the job that runs is cancelled unseen, and a reload finds none. */
  async leave() {
    this.watching?.abort();
    ofTab.removeItem(JOB);
    await this.cancel();
    this.id = null;
  }
}
