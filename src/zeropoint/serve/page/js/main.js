/* Starts the page: its two views, the list of chats, models, settings, dialogs, colours and keyboard shortcuts. */

import { $, announce, h, iconButton, saveFile, toast } from "./dom.js";
import { models as fetchModels, onKeyNeeded, saveKey } from "./api.js";
import * as chatView from "./chat.js";
import * as compareView from "./compare.js";
import * as scores from "./scores.js";
import * as store from "./store.js";

const MODEL = "zeropoint.model";
const THEME = "zeropoint.theme";
const wide = matchMedia("(min-width: 821px)");
let models = [];

// ---- models ----

async function loadModels() {
  try {
    models = await fetchModels();
    showBanner("");
  } catch (error) {
    showBanner(error.message, "Try again", loadModels);
    return;
  }
  const select = $("#model");
  const previous = select.value;
  select.replaceChildren(...models.map(({ id }) => h("option", { value: id }, id)));
  select.disabled = models.length === 0;
  const ids = models.map(({ id }) => id);
  const candidates = [chatView.current()?.model, previous, store.read(MODEL), ids[0]];
  select.value = candidates.find((id) => ids.includes(id)) ?? "";
  $("#welcome-hint").textContent = models.length
    ? "Answers are computed on the machine that serves this page."
    : "The server has no model.";
  compareView.setModels(models);
  $("#input").dispatchEvent(new Event("input"));
}

function showBanner(text, action = null, run = null) {
  const banner = $("#banner");
  banner.hidden = !text;
  banner.replaceChildren(text, " ");
  if (action) banner.append(h("button", { type: "button", class: "link", onclick: run }, action));
}

// ---- views ----

function route() {
  const [view, id] = location.hash.slice(1).split("/");
  const comparing = view === "compare";
  $("#chat").hidden = comparing;
  $("#compare").hidden = !comparing;
  $("#model-label").hidden = comparing;
  $("#tab-chat").setAttribute("aria-current", comparing ? "false" : "page");
  $("#tab-compare").setAttribute("aria-current", comparing ? "page" : "false");
  closeSidebar();
  if (comparing) {
    document.title = "Compare · Zeropoint";
    if (wide.matches) $("#compare-input").focus();
  } else if (!chatView.current() || (id ?? null) !== shownId()) {
    if (!chatView.open(id ?? null)) {
      chatView.open(null);
      history.replaceState(null, "", "#chat");
    }
    selectModelOf(chatView.current());
    if (wide.matches) $("#input").focus();
  }
  renderList();
}

/** Return the id of the chat on the page; null for a new chat, which has no messages yet. */
function shownId() {
  const chat = chatView.current();
  return chat && Object.keys(chat.nodes).length ? chat.id : null;
}

function selectModelOf(chat) {
  if (models.some(({ id }) => id === chat.model)) $("#model").value = chat.model;
}

const openNew = () => {
  if (location.hash === "#chat") {
    chatView.open(null);
    renderList();
  } else location.hash = "#chat";
  closeSidebar();
  $("#input").focus();
};

// ---- the list of chats ----

function renderList() {
  const list = store.chats();
  const shown = $("#compare").hidden ? shownId() : null;
  $("#no-chats").hidden = list.length > 0;
  $("#chats").replaceChildren(...list.map((chat) => {
    const title = chat.title || "Untitled";
    return h("li", { class: chat.id === shown ? "shown" : null },
      h("a", { href: `#chat/${chat.id}`, "aria-current": chat.id === shown ? "page" : null, title }, title),
      h("span", { class: "item-buttons" },
        iconButton("edit", `Rename ${title}`, (event) => rename(chat, event.currentTarget.closest("li"))),
        iconButton("trash", `Delete ${title}`, () => discard(chat))));
  }));
}

function rename(chat, item) {
  const field = h("input", { type: "text", "aria-label": "Title of the chat", maxlength: "200" });
  field.value = chat.title;
  let open = true;
  const close = (keep) => {
    if (!open) return;
    open = false;
    const title = field.value.trim();
    if (keep && title) {
      const shown = chatView.current();
      const target = shown.id === chat.id ? shown : store.load(chat.id);
      target.title = title;
      chatView.keep(target);
    }
    renderList();
  };
  field.addEventListener("blur", () => close(true));
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === "Escape") {
      event.stopPropagation();
      close(event.key === "Enter");
    }
  });
  item.replaceChildren(field);
  field.focus();
  field.select();
}

function discard(chat) {
  chatView.abandon(chat.id);
  const kept = store.load(chat.id) ?? chat;
  store.remove(chat.id);
  if (shownId() === chat.id) openNew();
  renderList();
  toast(`Deleted “${chat.title.slice(0, 40)}”`, "Undo", () => {
    chatView.keep(kept);
    location.hash = `#chat/${kept.id}`;
  });
}

// ---- the sidebar, which narrow screens hide ----

function toggleSidebar(open) {
  if (document.body.classList.contains("sidebar-open") === open) return;
  document.body.classList.toggle("sidebar-open", open);
  $("#app").inert = open;
  $("#scrim").hidden = !open;
  $("#open-sidebar").setAttribute("aria-expanded", open);
  $(open ? "#close-sidebar" : "#open-sidebar").focus();
}

const openSidebar = () => toggleSidebar(true);
const closeSidebar = () => toggleSidebar(false);

// ---- dialogs ----

function openSettings() {
  const comparing = $("#chat").hidden;
  const chat = chatView.current();
  const values = comparing ? compareView.settings() : chat.settings;
  const form = $("#settings form");
  const fill = (settings) => {
    for (const name of Object.keys(store.DEFAULTS)) form.elements[name].value = settings[name] ?? "";
  };
  fill(values);
  $("#settings-scope").textContent = comparing ? "For comparisons." : "For this chat, and for new ones.";
  $("#settings-defaults").onclick = () => fill(comparing ? store.COMPARE_DEFAULTS : store.DEFAULTS);
  $("#settings").onclose = () => {
    if ($("#settings").returnValue !== "save") return;
    const settings = readSettings(form);
    if (comparing) return compareView.saveSettings(settings);
    chat.settings = settings;
    store.saveLastSettings(settings);
    chatView.keep();
  };
  $("#settings").returnValue = "";
  $("#settings").showModal();
}

function readSettings(form) {
  const field = (name) => (form.elements[name].value.trim() === "" ? null : form.elements[name].valueAsNumber);
  return {
    system: form.elements.system.value,
    temperature: field("temperature") ?? store.DEFAULTS.temperature,
    top_p: field("top_p") ?? store.DEFAULTS.top_p,
    max_tokens: field("max_tokens"),
    seed: field("seed"),
  };
}

let pendingKey = null;

/** Ask the user for the API key. Requests that need it at the same time share one dialog. */
function askForKey(wrong) {
  pendingKey ??= new Promise((resolve) => {
    const dialog = $("#key");
    const form = dialog.querySelector("form");
    $("#key-why").classList.toggle("problem", wrong);
    if (wrong) $("#key-why").textContent = "The server does not accept this key.";
    dialog.returnValue = "";
    dialog.onclose = () => {
      const key = form.elements.key.value;
      pendingKey = null;
      if (dialog.returnValue !== "save" || !key) return resolve(null);
      saveKey(key, form.elements.remember.checked);
      return resolve(key);
    };
    dialog.showModal();
  });
  return pendingKey;
}

async function importChats(file) {
  let values = [];
  try {
    const value = JSON.parse(await file.text());
    values = Array.isArray(value.chats) ? value.chats : [value];
  } catch {
    // not JSON
  }
  const sound = values.filter(store.isChat);
  for (const chat of sound) chatView.keep({ ...store.newChat(""), ...chat });
  toast(sound.length ? `Imported ${sound.length} of ${values.length}` : "This file has no Zeropoint chats");
  renderList();
}

function initData() {
  const stamp = () => new Date().toISOString().slice(0, 10);
  const dialog = $("#data");
  $("#open-data").addEventListener("click", () => {
    for (const name of ["export-markdown", "export-chat"]) $(`#${name}`).disabled = shownId() === null;
    dialog.showModal();
  });
  $("#export-markdown").addEventListener("click", () =>
    saveFile(`chat-${stamp()}.md`, store.toMarkdown(chatView.current()), "text/markdown"));
  $("#export-chat").addEventListener("click", () =>
    saveFile(`chat-${stamp()}.json`, JSON.stringify(chatView.current(), null, 1), "application/json"));
  $("#export-all").addEventListener("click", () =>
    saveFile(`chats-${stamp()}.json`, JSON.stringify({ chats: store.chats() }, null, 1), "application/json"));
  $("#import").addEventListener("change", async (event) => {
    if (event.target.files[0]) await importChats(event.target.files[0]);
    event.target.value = "";
    dialog.close();
  });
  $("#delete-all").addEventListener("click", () => {
    const list = store.chats();
    for (const chat of list) {
      chatView.abandon(chat.id);
      store.remove(chat.id);
    }
    dialog.close();
    openNew();
    renderList();
    toast(`Deleted ${list.length} ${list.length === 1 ? "chat" : "chats"}`, "Undo", () => {
      list.forEach((chat) => store.save(chat));
      renderList();
    });
  });
}

// ---- colours, keys, start ----

function initTheme() {
  const show = (theme) => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  };
  const theme = store.read(THEME, "auto");
  for (const option of document.querySelectorAll("[name=theme]")) {
    option.checked = option.value === theme;
    option.addEventListener("change", () => {
      store.write(THEME, option.value);
      show(option.value);
    });
  }
  show(theme);
}

function escape() {
  if (document.querySelector("dialog[open]")) return;
  if (document.body.classList.contains("sidebar-open")) closeSidebar();
  else if ($("#chat").hidden) compareView.escape();
  else chatView.stop();
}

/** Fit the page into the visual viewport while a touch keyboard is open: Safari does not shrink the page itself. */
function followKeyboard() {
  visualViewport?.addEventListener("resize", () => {
    if (visualViewport.scale > 1.01) return; // the user has zoomed in; no keyboard has opened
    document.documentElement.style.setProperty("--height", `${visualViewport.height}px`);
  });
}

initTheme();
followKeyboard();
initData();
scores.init();
compareView.init();
onKeyNeeded(askForKey);
chatView.init({
  model: () => $("#model").value,
  openNew,
  changed: () => {
    if ($("#compare").hidden && shownId()) history.replaceState(null, "", `#chat/${shownId()}`);
    renderList();
  },
  storageFull: () =>
    showBanner("The browser stores no new messages: its storage is off, or full (then export and delete old chats)."),
});
$("#model").addEventListener("change", (event) => {
  store.write(MODEL, event.target.value);
  chatView.current().model = event.target.value;
  announce(`Model: ${event.target.value}`);
});
$("#new-chat").addEventListener("click", openNew);
$("#open-settings").addEventListener("click", openSettings);
$("#open-sidebar").addEventListener("click", openSidebar);
$("#close-sidebar").addEventListener("click", closeSidebar);
$("#scrim").addEventListener("click", closeSidebar);
addEventListener("hashchange", route);
addEventListener("keydown", (event) => event.key === "Escape" && escape());
addEventListener("storage", (event) => {
  if (store.isChatKey(event.key)) {
    chatView.reload(event.key);
    renderList();
  }
});
wide.addEventListener("change", closeSidebar);
route();
loadModels();
