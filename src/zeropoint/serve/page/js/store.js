/*
 * Chats in the browser's localStorage, one entry for each chat.
 *
 * A chat is a tree of messages, `nodes`: editing a message or asking again adds a sibling, so nothing is lost. `leaf`
 * is the id of the last message of the branch that is shown. `start` is the id of the first message that is sent; null
 * if all are.
 */

const CHAT = "zeropoint.chat.";
const SETTINGS = "zeropoint.settings";

export const DEFAULTS = { system: "", temperature: 0.7, top_p: 1, max_tokens: null, seed: null };
export const COMPARE_DEFAULTS = { system: "", temperature: 0, top_p: 1, max_tokens: 256, seed: null };

/** Write an entry. Returns false if the browser's storage is full or switched off. */
export function write(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** Return an entry, or `fallback` if there is none or it is damaged. */
export function read(key, fallback = null) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? fallback;
  } catch {
    return fallback;
  }
}

const lastSettings = () => ({ ...DEFAULTS, ...read(SETTINGS, {}) });
export const saveLastSettings = (settings) => write(SETTINGS, settings);

export function newChat(model) {
  const now = Date.now();
  // browsers offer randomUUID on https and localhost only
  const id = crypto.randomUUID?.() ?? `${now}-${Math.random().toString(36).slice(2)}`;
  const settings = lastSettings();
  return { id, title: "", model, settings, created: now, updated: now, nodes: {}, leaf: null, start: null };
}

/** Return whether a value read from storage or a file is a valid chat, in which each message follows its parent. */
export function isChat(value) {
  if (typeof value?.id !== "string" || typeof value.title !== "string") return false;
  if (value.nodes === null || typeof value.nodes !== "object") return false;
  if (typeof (value.settings?.system ?? "") !== "string") return false;
  const ids = new Set([null]);
  for (const [id, node] of Object.entries(value.nodes)) {
    const sound = node?.id === id && typeof node.content === "string" && ["user", "assistant"].includes(node.role);
    if (!sound || !ids.has(node.parent)) return false;
    ids.add(id);
  }
  return ids.has(value.leaf);
}

/** Return all chats, the latest first; none if storage is switched off. */
export function chats() {
  let keys = [];
  try {
    keys = Object.keys(localStorage).filter((key) => key.startsWith(CHAT));
  } catch {
    // storage is switched off
  }
  return keys
    .map((key) => read(key))
    .filter(isChat)
    .sort((a, b) => b.updated - a.updated);
}

/** Return a stored chat, or null if there is none with this id or it is damaged. */
export function load(id) {
  const chat = read(CHAT + id);
  if (!isChat(chat)) return null;
  return { ...chat, settings: { ...DEFAULTS, ...chat.settings } };
}

export const save = (chat) => write(CHAT + chat.id, chat);
export const isChatKey = (key) => key === null || key.startsWith(CHAT);
export const isKeyOf = (key, chat) => key === CHAT + chat.id;

export function remove(id) {
  try {
    localStorage.removeItem(CHAT + id);
  } catch {
    // storage is switched off, so nothing was stored
  }
}

/** Return the messages of the branch that is shown, in order. */
export function path(chat) {
  const messages = [];
  for (let id = chat.leaf; id !== null; id = chat.nodes[id].parent) messages.push(chat.nodes[id]);
  return messages.reverse();
}

/** Add a message after `parent` and show it. */
export function add(chat, parent, role, content) {
  const id = `${Object.keys(chat.nodes).length}-${Date.now().toString(36)}`;
  const node = { id, parent, role, content };
  chat.nodes[id] = node;
  chat.leaf = id;
  chat.updated = Date.now();
  if (!chat.title && role === "user") chat.title = content.replace(/\s+/g, " ").trim().slice(0, 80);
  return node;
}

/** Return the versions of a message, which are the messages with its parent, the oldest first. */
export const versions = (chat, node) =>
  Object.values(chat.nodes).filter((other) => other.parent === node.parent && other.role === node.role);

/** Show the branch through a message, and below it the newest version of each message. */
export function show(chat, node) {
  let id = node.id;
  for (;;) {
    const next = Object.values(chat.nodes).filter((other) => other.parent === id);
    if (!next.length) break;
    id = next.at(-1).id;
  }
  chat.leaf = id;
}

/** Return the branch from the message `chat.start` to the message `until`. */
export function branchToSend(chat, until) {
  const branch = path({ ...chat, leaf: until });
  return branch.slice(Math.max(branch.findIndex((node) => node.id === chat.start), 0));
}

/** Return the messages to send for an answer to the message `until`. */
export function outgoing(chat, until) {
  const nodes = branchToSend(chat, until).filter((node) => node.content);
  return withSystem(chat.settings, nodes.map(({ role, content }) => ({ role, content })));
}

/** Return messages with the system prompt, if there is one, before them. */
export function withSystem(settings, messages) {
  const system = settings.system.trim();
  return system ? [{ role: "system", content: system }, ...messages] : messages;
}

export function toMarkdown(chat) {
  const author = ({ role, model }) => (role === "user" ? "You" : (model ?? "Assistant"));
  const parts = path(chat).map((node) => `## ${author(node)}\n\n${node.content}\n`);
  const system = chat.settings.system ? [`> ${chat.settings.system.replaceAll("\n", "\n> ")}\n`] : [];
  return [`# ${chat.title || "Chat"}\n`, ...system, ...parts].join("\n");
}
