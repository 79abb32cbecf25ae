/* Small helpers for elements, announcements to screen readers, and files to save. */

export const $ = (selector, root = document) => root.querySelector(selector);

/** Return a new element. Properties that start with "on" are listeners. Children are nodes or texts; null adds none. */
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

/** Return an icon: the symbol `i-NAME` of index.html. */
function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

export const iconButton = (name, label, onclick, extra = {}) =>
  h("button", { type: "button", class: "icon", "aria-label": label, title: label, onclick, ...extra }, icon(name));

/** Let screen readers say a text. */
export function announce(text) {
  const live = $("#live");
  live.append(h("p", {}, text));
  while (live.childElementCount > 3) live.firstElementChild.remove();
}

/**
 * Announces a streamed text to screen readers, in whole sentences and at most every four seconds.
 * Call `add(text)` with the text so far, and `finish(text)` with the whole text.
 */
export class Narrator {
  /** Number of characters announced so far. */
  position = 0;
  last = performance.now();

  add(text) {
    if (performance.now() - this.last < 4000) return;
    const end = Math.max(...[". ", "! ", "? ", ".\n", "\n\n"].map((mark) => text.lastIndexOf(mark)));
    if (end > this.position) this.#say(text, end + 1);
  }

  finish(text) {
    if (text.length > this.position) this.#say(text, text.length);
  }

  #say(text, end) {
    const part = text.slice(this.position, end).trim();
    if (part) announce(part);
    this.position = end;
    this.last = performance.now();
  }
}

let hideToast = 0;

/** Show a short note at the bottom of the page for some seconds. `action`: label of a button that calls `run`. */
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

/** Copy a text to the clipboard, and show `note`. */
export async function copy(text, note = "Copied") {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Browsers offer navigator.clipboard on https and localhost only; execCommand works elsewhere.
    const area = h("textarea", { class: "hidden" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  toast(note);
}

/** Download a text as a file. */
export function saveFile(name, text, type) {
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/** Keep a text area as tall as its text. Browsers that know `field-sizing` need no help. */
export function growing(area) {
  if (CSS.supports("field-sizing", "content")) return;
  const fit = () => {
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight}px`;
  };
  area.addEventListener("input", fit);
}

/** Return whether a key press sends the text: Enter does, except while composing a character or on a touch keyboard. */
export const sends = (event) =>
  event.key === "Enter" &&
  !event.shiftKey &&
  !event.isComposing &&
  !matchMedia("(hover: none) and (pointer: coarse)").matches;

/** Show the button of a composer: it stops a run, or starts one with the name `label` if there is text and a model. */
export function showSend(button, running, label, ready) {
  button.querySelector("use").setAttribute("href", running ? "#i-stop" : "#i-send");
  button.setAttribute("aria-label", running ? "Stop" : label);
  button.disabled = !running && !ready;
}

/** Return a number as text with so many digits after the point. */
export const number = (value, digits = 1) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

/** Return a number of bytes as text, like "1.5 GB". */
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
