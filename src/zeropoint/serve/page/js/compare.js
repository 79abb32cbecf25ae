/* Compare: two to four models answer one prompt side by side, and the others score the first model's answer. */

import { $, announce, bytes, growing, h, iconButton, number, sends, showSend, toast } from "./dom.js";
import { Stopwatch, chat as streamChat, models as fetchModels } from "./api.js";
import { hideScores, scoreAnswer } from "./scores.js";
import * as store from "./store.js";

const CHOICE = "zeropoint.compare.models";
const SETTINGS = "zeropoint.compare.settings";
const TURNS = "zeropoint.compare.turns";
const MOST = 4;

const input = $("#compare-input");
let models = [];
let columns = [];
let run = null;

export function init() {
  growing(input);
  $("#turns").value = store.read(TURNS, "turns");
  $("#turns").addEventListener("change", (event) => store.write(TURNS, event.target.value));
  input.addEventListener("input", updateSend);
  input.addEventListener("keydown", (event) => {
    if (!sends(event)) return;
    event.preventDefault();
    if (!run) start();
  });
  $("#compare-composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (run) stop();
    else start();
  });
}

export const settings = () => ({ ...store.COMPARE_DEFAULTS, ...store.read(SETTINGS, {}) });
export const saveSettings = (values) => store.write(SETTINGS, values);

/** Take the server's list of models. Columns keep their models during a run, or while the server has all of them. */
export function setModels(list) {
  models = list;
  const ids = list.map(({ id }) => id);
  if (run || (columns.length && columns.every(({ model }) => ids.includes(model)))) return columns.forEach(showFacts);
  const saved = store.read(CHOICE, []);
  const chosen = Array.isArray(saved) ? saved.filter((id) => ids.includes(id)) : [];
  const initial = chosen.length >= 2 ? chosen : ids;
  columns = initial.slice(0, MOST).map((id) => ({ model: id }));
  renderColumns();
}

function stop() {
  run?.controller.abort();
}

function updateSend() {
  showSend($("#compare-send"), run, "Compare", input.value.trim() && columns.length >= 2);
}

// ---- columns ----

function renderColumns() {
  if (models.length < 2) {
    $("#columns").replaceChildren(h("p", { class: "empty" }, "To compare, serve two or more models: ",
      h("code", {}, "zeropoint serve fp16=FOLDER int8=FOLDER int4=FOLDER")));
    return updateSend();
  }
  const parts = columns.map(columnElement);
  if (columns.length < Math.min(MOST, models.length)) {
    const properties = { type: "button", class: "add-column", onclick: addColumn, disabled: run !== null };
    parts.push(h("button", properties, "Add a model"));
  }
  $("#columns").replaceChildren(...parts);
  $("#columns").style.setProperty("--columns", columns.length);
  updateSend();
}

function columnElement(column, index) {
  const select = h("select", { "aria-label": index ? `Model of column ${index + 1}` : "Reference model" },
    ...models.map(({ id }) => h("option", { value: id }, id)));
  select.value = column.model;
  select.disabled = run !== null;
  select.addEventListener("change", () => choose(index, select.value));
  const remove = iconButton("close", `Remove ${column.model}`, () => removeColumn(index), { disabled: run !== null });
  column.parts = {
    facts: h("p", { class: "facts" }),
    rate: h("dd", {}, "–"),
    wait: h("dd", {}, "–"),
    memory: h("dd", {}, "–"),
    note: h("p", { class: "column-note" }),
    text: h("div", { class: "column-text", role: "region", tabindex: "0", "aria-label": `Answer of ${column.model}` }),
  };
  const { facts, rate, wait, memory, note, text } = column.parts;
  const figure = (label, value) => h("div", {}, h("dt", {}, label), value);
  column.element = h("section", { class: `column ${colour(column.model, index)}`, "aria-label": column.model },
    h("div", { class: "column-head" }, h("span", { class: "chip", "aria-hidden": "true" }), select,
      index === 0 ? h("span", { class: "tag" }, "reference") : null, columns.length > 2 ? remove : null),
    facts,
    h("dl", { class: "figures" }, figure("tokens/s", rate), figure("first token", wait), figure("memory", memory)),
    note, text);
  showFacts(column);
  return column.element;
}

/** Return a column's colour class, as in the report page: grey for the reference, blue for INT8, orange for INT4. */
function colour(id, index) {
  if (index === 0) return "c-ref";
  const words = `${id} ${models.find((model) => model.id === id)?.format ?? ""}`.toLowerCase();
  if (words.includes("int8")) return "c-blue";
  if (words.includes("int4")) return "c-orange";
  return ["c-purple", "c-green", "c-gold"][index - 1] ?? "c-green";
}

function showFacts(column) {
  const model = models.find(({ id }) => id === column.model);
  if (!model || !column.parts) return;
  const parts = [model.format, model.weights_bytes ? `${bytes(model.weights_bytes)} of weights` : ""];
  column.parts.facts.textContent = parts.filter(Boolean).join(" · ");
  column.parts.memory.textContent = model.memory_bytes ? bytes(model.memory_bytes) : "not loaded";
}

function choose(index, id) {
  const other = columns.findIndex((column) => column.model === id);
  if (other >= 0) columns[other] = { model: columns[index].model };
  columns[index] = { model: id };
  changed();
}

function addColumn() {
  const free = models.find(({ id }) => !columns.some((column) => column.model === id));
  columns.push({ model: free.id });
  changed();
}

function removeColumn(index) {
  columns.splice(index, 1);
  changed();
}

function changed() {
  store.write(CHOICE, columns.map(({ model }) => model));
  hideScores();
  renderColumns();
}

// ---- a run ----

async function start() {
  const prompt = input.value.trim();
  if (!prompt || columns.length < 2) return;
  input.value = "";
  input.dispatchEvent(new Event("input"));
  run = { prompt, controller: new AbortController(), settings: settings() };
  columns = columns.map(({ model }) => ({
    model, prompt: null, ids: [], spans: [], equalTokens: 0, equalSpans: 0, text: "", done: false,
  }));
  $("#compare-intro").hidden = true;
  $("#compare-prompt").textContent = prompt;
  $("#compare-prompt").hidden = false;
  hideScores();
  renderColumns();
  $("#compare-scroll").scrollTop = 0;
  announce("Comparing");
  const together = $("#turns").value === "together";
  if (together) await Promise.all(columns.map(answer));
  else for (const column of columns) await answer(column);
  const [reference, ...others] = columns;
  if (!run.controller.signal.aborted && !reference.problem && reference.prompt && reference.ids.length) {
    await scoreAnswer({
      reference: reference.model,
      others: others.map(({ model }, index) => ({ model, colour: colour(model, index + 1) })),
      prompt,
      promptTokens: reference.prompt,
      answerTokens: reference.ids,
      signal: run.controller.signal,
    });
  }
  run = null;
  renderControls();
}

function renderControls() {
  for (const control of $("#columns").querySelectorAll("select, button")) control.disabled = false;
  updateSend();
}

async function answer(column) {
  const { signal } = run.controller;
  if (signal.aborted) return;
  column.element.classList.add("writing");
  column.element.setAttribute("aria-busy", "true");
  const watch = new Stopwatch();
  try {
    const seed = run.settings.seed ?? 0;
    const messages = store.withSystem(run.settings, [{ role: "user", content: run.prompt }]);
    const request = { model: column.model, messages, settings: { ...run.settings, seed } };
    for await (const event of streamChat(request, signal)) {
      watch.add(event);
      append(column, event);
      showFigures(column, watch);
    }
  } catch (error) {
    column.problem = signal.aborted ? "Stopped." : error.message;
  }
  column.done = true;
  column.element.classList.remove("writing");
  column.element.removeAttribute("aria-busy");
  columns.forEach(markDifference);
  refresh();
  if (!column.problem) announce(`${column.model}: ${column.text}`);
}

/** Show the models' memory again: an answer may have loaded or unloaded weights. */
async function refresh() {
  try {
    setModels(await fetchModels());
  } catch {
    // the page goes on showing the last memory figures
  }
}

function append(column, { text, tokens, prompt }) {
  column.prompt ??= prompt;
  if (!tokens?.length && !text) return;
  column.ids.push(...(tokens ?? []));
  const element = h("span", {}, text);
  column.spans.push({ element, end: column.ids.length });
  column.text += text;
  column.parts.text.append(element);
  columns.forEach(markDifference);
}

function showFigures(column, watch) {
  if (watch.rate) column.parts.rate.textContent = number(watch.rate, watch.rate < 10 ? 1 : 0);
  if (watch.wait) column.parts.wait.textContent = `${number(watch.wait, 2)} s`;
}

/** Mark where a column first differs from the reference, and show the equal text before it in grey. */
function markDifference(column) {
  const [reference] = columns;
  if (column === reference || !column.ids || reference.problem) return showNote(column, "");
  const shared = Math.min(reference.ids.length, column.ids.length);
  while (column.equalTokens < shared && reference.ids[column.equalTokens] === column.ids[column.equalTokens]) {
    column.equalTokens += 1;
  }
  const ended = reference.done && column.done;
  const differs = column.equalTokens < shared || (ended && reference.ids.length !== column.ids.length);
  for (; column.spans[column.equalSpans]?.end <= column.equalTokens; column.equalSpans += 1) {
    column.spans[column.equalSpans].element.classList.add("same");
  }
  if (differs) column.spans[column.equalSpans]?.element.classList.add("first-difference");
  if (differs) return showNote(column, `Differs from token ${column.equalTokens + 1} on`);
  if (ended) return showNote(column, `The same ${column.ids.length} tokens as ${reference.model}`);
  return showNote(column, column.equalTokens ? `Same so far: ${column.equalTokens} tokens` : "");
}

function showNote(column, text) {
  if (column.parts) column.parts.note.textContent = column.problem ?? text;
  column.element?.classList.toggle("failed", Boolean(column.problem));
}

/** Handle the Esc key: stop the run, if there is one. */
export function escape() {
  if (!run) return;
  stop();
  toast("Stopped");
}
