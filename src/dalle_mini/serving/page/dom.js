// Elements without HTML: everything that a stranger wrote is text.

export const byId = (id) => document.getElementById(id);

export const isCalm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** An element. An attribute whose name begins with "on" listens; true is an attribute without a value. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** Write a text into a live region only where it has changed, so that it is not read again. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Let the buttons marked `data-close`, and a click beside it, close a dialog. */
export function closable(dialog) {
  for (const button of dialog.querySelectorAll("[data-close]")) button.addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
}
