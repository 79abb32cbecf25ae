/* The chat: messages of one conversation, and the answers that stream into it. */

import { $, Narrator, announce, copy, growing, h, iconButton, number, sends, showSend } from "./dom.js";
import { Stopwatch, chat as streamChat } from "./api.js";
import { renderMarkdown } from "./markdown.js";
import * as store from "./store.js";

/** Number of attempts before the page reports that the server is busy. */
const ATTEMPTS = 5;

const input = $("#input");
const scroller = $("#scroll");
let hooks = { changed() {}, storageFull() {}, openNew() {}, model: () => "" };
let chat = null;
/** The answers being streamed, by the id of their chat: a chat goes on while the page shows another one. */
const running = new Map();

/** Add the listeners. `options`: the functions of main.js that this view calls. */
export function init(options) {
  hooks = options;
  growing(input);
  $("#composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (running.has(chat.id)) stop();
    else submit();
  });
  input.addEventListener("input", updateSend);
  input.addEventListener("keydown", (event) => {
    if (sends(event)) {
      event.preventDefault();
      if (!running.has(chat.id)) submit();
    } else if (event.key === "ArrowUp" && !input.value) {
      const last = store.path(chat).findLast((node) => node.role === "user");
      if (last && !running.has(chat.id)) {
        event.preventDefault();
        edit(last);
      }
    }
  });
  scroller.addEventListener("scroll", () => {
    $("#to-end").hidden = atEnd();
  });
  $("#to-end").addEventListener("click", () => toEnd());
  addEventListener("pagehide", () => running.forEach((run) => store.save(run.chat)));
}

/** Show a chat: the stored one with this id, or a new one. Returns false if there is no such chat. */
export function open(id) {
  const opened = id === null ? store.newChat(hooks.model()) : (running.get(id)?.chat ?? store.load(id));
  if (!opened) return false;
  chat = opened;
  render();
  toEnd();
  return true;
}

export const current = () => chat;

/** Show the stored chat again if the storage entry `key`, which another tab changed, is the chat on the page. */
export function reload(key) {
  if (!store.isKeyOf(key, chat) || running.has(chat.id) || !store.load(chat.id)) return;
  chat = store.load(chat.id);
  render();
}

export function stop() {
  running.get(chat.id)?.controller.abort();
}

/** Stop the answer of a chat that is about to be deleted. */
export function abandon(id) {
  running.get(id)?.controller.abort();
  running.delete(id);
}

/** Store a chat that has messages. */
export function keep(changed = chat) {
  if (!Object.keys(changed.nodes).length) return;
  if (!store.save(changed)) hooks.storageFull();
  hooks.changed();
}

function submit() {
  const text = input.value.trim();
  if (!text || !hooks.model()) return;
  input.value = "";
  input.dispatchEvent(new Event("input"));
  ask(chat.leaf, text);
}

/** Add a question after `parent`, and its answer. */
function ask(parent, text) {
  const question = store.add(chat, parent, "user", text);
  answerTo(question.id);
}

/** Add a new answer to the question with the id `question`. */
function answerTo(question) {
  const node = store.add(chat, question, "assistant", "");
  render();
  toEnd();
  write(chat, node);
}

/** Stream an answer into `node`, a message of the chat `target`. Waits and tries again while the server is busy. */
async function write(target, node) {
  Object.assign(node, { model: hooks.model(), content: "", problem: null, stopped: false, finish: null, stats: null });
  target.model = node.model;
  const run = { chat: target, node, controller: new AbortController(), narrator: new Narrator(), frame: 0 };
  running.set(target.id, run);
  keep(target);
  update(run);
  announce(`${node.model} is answering`);
  for (let attempt = 1; ; attempt += 1) {
    try {
      await stream(run);
      break;
    } catch (error) {
      if (run.controller.signal.aborted) {
        node.stopped = true;
        break;
      }
      if (error.kind !== "busy" || attempt === ATTEMPTS || node.content) {
        node.problem = { kind: error.kind ?? "server", message: error.message };
        break;
      }
      await waitForServer(run, error.retryAfter || 2 ** attempt);
    }
  }
  if (running.get(target.id) === run) running.delete(target.id);
  else if (!store.load(target.id)) return; // the chat was deleted
  run.waiting = null;
  target.updated = Date.now();
  keep(target);
  cancelAnimationFrame(run.frame);
  update(run);
  run.narrator.finish(node.content);
  if (node.problem) announce(node.problem.message);
  else announce(node.stopped ? "Stopped" : "The answer is complete");
}

async function stream(run) {
  const { chat: target, node } = run;
  const watch = new Stopwatch();
  const request = { model: node.model, messages: store.outgoing(target, node.parent), settings: target.settings };
  let saved = performance.now();
  for await (const event of streamChat(request, run.controller.signal)) {
    watch.add(event);
    node.content += event.text;
    node.finish = event.finish ?? node.finish;
    node.stats = { tokens: event.usage?.completion_tokens ?? watch.tokens, rate: watch.rate, wait: watch.wait };
    run.narrator.add(node.content);
    run.frame ||= requestAnimationFrame(() => {
      run.frame = 0;
      update(run);
    });
    if (performance.now() - saved > 2000) {
      saved = performance.now();
      store.save(target);
    }
  }
}

/** Wait before the next attempt, and show the seconds left. Ends early if the user tries now or stops. */
function waitForServer(run, seconds) {
  return new Promise((resolve) => {
    const end = performance.now() + seconds * 1000;
    const finish = () => {
      clearInterval(timer);
      run.waiting = null;
      resolve();
    };
    const tick = () => {
      const left = Math.ceil((end - performance.now()) / 1000);
      run.waiting = { seconds: left, now: finish };
      if (left <= 0) finish();
      else update(run);
    };
    const timer = setInterval(tick, 1000);
    run.controller.signal.addEventListener("abort", finish, { once: true });
    tick();
    announce(`The server is busy. Trying again in ${seconds} seconds`);
  });
}

// ---- showing ----

function render() {
  const branch = store.path(chat);
  const first = branch.findIndex((node) => node.id === chat.start);
  const parts = branch.flatMap((node, index) => {
    const element = messageElement(node);
    return index === first && first > 0
      ? [h("p", { class: "cut" }, "Messages above this line are no longer sent"), element]
      : [element];
  });
  $("#messages").replaceChildren(...parts);
  $("#welcome").hidden = branch.length > 0;
  document.title = chat.title ? `${chat.title} · Zeropoint` : "Zeropoint";
  updateSend();
}

function updateSend() {
  showSend($("#send"), chat && running.has(chat.id), "Send", input.value.trim() && hooks.model());
}

/** Show the state of an answer, if its chat is the one on the page. */
function update(run) {
  if (run.chat !== chat) return;
  const element = document.getElementById(`message-${run.node.id}`);
  if (!element) return render();
  const follow = atEnd();
  fill(element, run.node);
  updateSend();
  if (follow) toEnd();
}

function messageElement(node) {
  const mine = node.role === "user";
  const element = h(
    "article",
    { id: `message-${node.id}`, class: `message ${node.role}`, "aria-label": mine ? "You" : `Answer of ${node.model}` },
    h("div", { class: "text" }),
    h("div", { class: "note" }),
    h("footer", {}),
  );
  fill(element, node);
  return element;
}

function fill(element, node) {
  const [text, note, footer] = element.children;
  const run = running.get(chat.id);
  const writing = run?.node === node;
  element.classList.toggle("writing", writing);
  element.setAttribute("aria-busy", writing);
  if (node.role === "user") text.textContent = node.content;
  else renderMarkdown(text, node.content);
  note.replaceChildren(...(writing ? waitingNote(run) : problemNote(node)));
  if (writing && footer.childElementCount) footer.replaceChildren();
  if (!writing) footer.replaceChildren(...actions(node));
}

function waitingNote(run) {
  if (run.waiting) {
    return [
      h("p", { class: "problem wait" }, `The server is busy. Trying again in ${run.waiting.seconds} s. `,
        h("button", { type: "button", class: "link", onclick: run.waiting.now }, "Try now")),
    ];
  }
  if (run.node.content) return [];
  const words = h("span", { class: "hidden" }, "Waiting for the first word");
  return [h("p", { class: "thinking" }, h("i"), h("i"), h("i"), words)];
}

function problemNote(node) {
  if (node.role === "user") return [];
  if (node.problem) {
    const ways =
      node.problem.kind === "context"
        ? [
            button("Send without the oldest messages", () => dropOldest(node)),
            button("New chat", () => hooks.openNew()),
          ]
        : [button(node.content ? "Answer again" : "Try again", () => retry(node))];
    return [h("p", { class: "problem" }, `${node.problem.message} `, ...ways)];
  }
  const words = endOf(node);
  return words ? [h("p", { class: "hint" }, words)] : [];
}

/** Return a sentence on how an answer ended; "" for a complete one. */
function endOf({ stopped, finish, content }) {
  if (stopped) return content ? "Stopped." : "Stopped before the first word.";
  if (finish === "length") {
    return "The answer ends here because it reached the most tokens allowed (Settings), or the end of the model's context.";
  }
  if (!finish) return "This answer was not finished.";
  return content ? "" : "The answer is empty.";
}

const button = (label, onclick) => h("button", { type: "button", class: "link", onclick }, label);

function actions(node) {
  const all = store.versions(chat, node);
  const place = all.indexOf(node);
  const busy = running.has(chat.id);
  const turn = (step) => () => {
    if (running.has(chat.id)) return;
    store.show(chat, all[place + step]);
    keep();
    render();
    const shown = document.getElementById(`message-${all[place + step].id}`);
    shown?.querySelector(".versions button:not(:disabled)")?.focus();
  };
  const versions = h("span", { class: "versions" },
    iconButton("left", "Previous version", turn(-1), { disabled: place === 0 || busy }),
    h("span", {}, `${place + 1} / ${all.length}`),
    iconButton("right", "Next version", turn(1), { disabled: place === all.length - 1 || busy }));
  const buttons = [iconButton("copy", "Copy", () => copy(node.content))];
  if (node.role === "user") buttons.push(iconButton("edit", "Edit", () => edit(node)));
  else buttons.push(iconButton("redo", "Answer again", () => retry(node)));
  const parts = [all.length > 1 ? versions : null, h("span", { class: "buttons" }, ...buttons)];
  if (node.role === "assistant") parts.push(statistics(node));
  return parts.filter(Boolean);
}

function statistics({ model, stats }) {
  const parts = [model];
  if (stats?.tokens) parts.push(`${stats.tokens} tokens`);
  if (stats?.rate) parts.push(`${number(stats.rate, stats.rate < 10 ? 1 : 0)} tokens/s`);
  if (stats?.wait) parts.push(`first after ${number(stats.wait, 2)} s`);
  return h("span", { class: "stats" }, parts.join(" · "));
}

function retry(node) {
  if (running.has(chat.id)) return;
  if (node.content) return answerTo(node.parent);
  chat.leaf = node.id;
  write(chat, node);
}

/** Send the conversation again without its older half. */
function dropOldest(node) {
  const questions = store.branchToSend(chat, node.parent).filter((one) => one.role === "user");
  if (questions.length < 2) {
    node.problem.message =
      "This message alone is too long for the model: shorten it (Edit), or allow fewer tokens for the answer (Settings).";
    return render();
  }
  chat.start = questions[Math.ceil(questions.length / 2)].id;
  render();
  return retry(node);
}

/** Replace a user's message by a text area. Saving sends the text as a new version of the message. */
function edit(node) {
  if (running.has(chat.id)) return;
  const element = document.getElementById(`message-${node.id}`);
  const area = h("textarea", { rows: "2", "aria-label": "Edit the message", enterkeyhint: "send" });
  area.value = node.content;
  growing(area);
  const close = () => {
    const fresh = messageElement(node);
    form.closest("article").replaceWith(fresh);
    fresh.querySelector("[aria-label=Edit]").focus();
  };
  const save = () => {
    const text = area.value.trim();
    if (!text || text === node.content) return close();
    ask(node.parent, text);
    input.focus();
  };
  const form = h("form", { class: "editor", onsubmit: (event) => { event.preventDefault(); save(); } },
    area,
    h("div", { class: "editor-foot" },
      h("button", { type: "button", class: "link", onclick: close }, "Cancel"),
      h("button", { class: "primary" }, "Send")));
  area.addEventListener("keydown", (event) => {
    if (sends(event)) {
      event.preventDefault();
      save();
    } else if (event.key === "Escape") {
      event.stopPropagation();
      close();
    }
  });
  element.replaceChildren(form);
  element.classList.add("editing");
  area.focus();
  area.dispatchEvent(new Event("input"));
}

const atEnd = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;

function toEnd() {
  scroller.scrollTop = scroller.scrollHeight;
  $("#to-end").hidden = true;
}
