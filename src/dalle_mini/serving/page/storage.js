// What the browser keeps. Where it forbids that, as in a frame of another site, things are kept as long as the page is open.

export const lasting = storage("localStorage");
export const ofTab = storage("sessionStorage");

function storage(name) {
  try {
    window[name].getItem("");
    return window[name];
  } catch {
    const kept = new Map();
    return {
      getItem: (key) => kept.get(key) ?? null,
      setItem: (key, value) => kept.set(key, value),
      removeItem: (key) => kept.delete(key),
    };
  }
}
