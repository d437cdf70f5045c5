// What was drawn before: in IndexedDB, in this browser alone.

const MOST = 100; // drawings that are kept; the oldest are deleted first

let opened = null;

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("dalle-mini", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("drawings", { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

/** The result of `work(store)`, a request, when its transaction is over. */
async function within(mode, work) {
  const transaction = (await database()).transaction("drawings", mode);
  const request = work(transaction.objectStore("drawings"));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request.result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}

/** The drawings, the newest first: `{id, when, asked, images: [{..., blob}]}`. */
export async function all() {
  const found = await within("readonly", (store) => store.getAll());
  return found.sort((a, b) => b.when - a.when);
}

export async function add(drawing) {
  await within("readwrite", (store) => store.put(drawing));
  for (const old of (await all()).slice(MOST)) await remove(old.id);
}

export const remove = (id) => within("readwrite", (store) => store.delete(id));

export const clear = () => within("readwrite", (store) => store.clear());
