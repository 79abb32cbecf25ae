/* Markdown to elements: marked parses, and DOMPurify removes all but a short list of elements. Images become links. */

import { Marked } from "../vendor/marked/marked.esm.js";
import "../vendor/dompurify/purify.min.js";
import { copy, h } from "./dom.js";

const escapes = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
const escape = (text) => text.replace(/[&<>"]/g, (character) => escapes[character]);

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    // HTML in an answer is shown as text.
    html: ({ text }) => escape(text),
    // Loading an image would tell another server about the chat.
    image: ({ href, text }) => `<a href="${escape(href)}">${escape(text || href)}</a>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

const TAGS =
  "a b blockquote br code del em h1 h2 h3 h4 h5 h6 hr i li ol p pre s strong sub sup table tbody td th thead tr ul";

const ALLOWED = {
  ALLOWED_TAGS: TAGS.split(" "),
  ALLOWED_ATTR: ["href", "class", "start", "align", "title"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

/** Show a Markdown text in `element`. Only blocks that changed are rendered again, so streaming stays cheap. */
export function renderMarkdown(element, text) {
  const blocks = marked.lexer(text).filter((token) => token.type !== "space" && token.type !== "def");
  blocks.forEach((token, index) => {
    const old = element.children[index];
    if (old?.source === token.raw) return;
    const block = h("div", { class: "block" }, sanitized(marked.parser([token])));
    block.source = token.raw;
    if (old) old.replaceWith(block);
    else element.append(block);
  });
  while (element.children.length > blocks.length) element.lastElementChild.remove();
}

function sanitized(html) {
  const fragment = globalThis.DOMPurify.sanitize(html, ALLOWED);
  for (const link of fragment.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const table of fragment.querySelectorAll("table")) {
    const frame = h("div", { class: "scroll-x", tabindex: "0", role: "region", "aria-label": "Table" });
    table.replaceWith(frame);
    frame.append(table);
  }
  for (const pre of fragment.querySelectorAll("pre")) frameCode(pre);
  return fragment;
}

/** Add a header with the language and a copy button to a code block. */
function frameCode(pre) {
  const code = pre.querySelector("code") ?? pre;
  const language = /language-([\w+#.-]+)/.exec(code.className)?.[1] ?? "";
  const name = language || "text";
  const button = h("button", { type: "button", class: "link", "aria-label": `Copy the ${name} code` }, "Copy");
  button.addEventListener("click", () => copy(code.textContent, "Code copied"));
  const frame = h("div", { class: "code" }, h("div", { class: "code-head" }, h("span", {}, name), button));
  pre.replaceWith(frame);
  pre.tabIndex = 0;
  pre.setAttribute("role", "region");
  pre.setAttribute("aria-label", `${name} code`);
  frame.append(pre);
}
