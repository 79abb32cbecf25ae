/* Small helpers for elements, announcements to screen readers, and files to save. */

export const $ = (selector, root = document) => root.querySelector(selector);

/** Return a new element. Properties that start with "on" are listeners; children are nodes, texts, or null for none. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Return an icon of the page's sprite. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

export const iconButton = (name, label, onclick, extra = {}) =>
  h("button", { type: "button", class: "icon", "aria-label": label, title: label, onclick, ...extra }, icon(name));

/** Say a sentence to screen readers. */
export function announce(text) {
  const live = $("#live");
  live.append(h("p", {}, text));
  while (live.childElementCount > 3) live.firstElementChild.remove();
}

/**
 * Announces a streamed text without flooding: whole sentences only, and at most every four seconds.
 * Call `add(text)` with the text so far, and `finish(text)` at its end.
 */
export class Narrator {
  said = 0;
  last = performance.now();

  add(text) {
    if (performance.now() - this.last < 4000) return;
    const end = Math.max(...[". ", "! ", "? ", ".\n", "\n\n"].map((mark) => text.lastIndexOf(mark)));
    if (end > this.said) this.#say(text, end + 1);
  }

  finish(text) {
    if (text.length > this.said) this.#say(text, text.length);
  }

  #say(text, end) {
    const part = text.slice(this.said, end).trim();
    if (part) announce(part);
    this.said = end;
    this.last = performance.now();
  }
}

let hideToast = 0;

/** Show a short note at the bottom of the page, with an optional action. */
export function toast(text, action = null, run = null) {
  const box = $("#toast");
  const close = () => {
    box.hidden = true;
  };
  box.replaceChildren(h("span", {}, text));
  if (action) {
    const button = h("button", { type: "button", class: "link" }, action);
    button.addEventListener("click", () => {
      close();
      run();
    });
    box.append(button);
  }
  box.hidden = false;
  clearTimeout(hideToast);
  hideToast = setTimeout(close, action ? 8000 : 3000);
}

export async function copy(text, what = "Copied") {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Browsers offer the clipboard only on https and localhost; the old way works elsewhere.
    const area = h("textarea", { class: "hidden" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  toast(what);
}

/** Offer a text to the user as a file. */
export function saveFile(name, text, type) {
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/** Make a text area as tall as its text; browsers with `field-sizing` do so themselves. */
export function growing(area) {
  if (CSS.supports("field-sizing", "content")) return;
  const fit = () => {
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight}px`;
  };
  area.addEventListener("input", fit);
}

/** Return whether this key press sends: Enter, but not while composing a character, and not on a touch keyboard. */
export const sends = (event) =>
  event.key === "Enter" &&
  !event.shiftKey &&
  !event.isComposing &&
  !matchMedia("(hover: none) and (pointer: coarse)").matches;

export const number = (value, digits = 1) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

export function bytes(count) {
  if (!Number.isFinite(count)) return "";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) {
    count /= 1000;
    unit += 1;
  }
  return `${number(count, count < 10 && unit ? 1 : 0)} ${units[unit]}`;
}
