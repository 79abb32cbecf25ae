/* Scores: the first model's answer, scored token by token by the other models, and the statistics of the session. */

import { $, announce, h, number, saveFile } from "./dom.js";
import { json, jsonLines } from "./api.js";

/** Most scores that the intervals are computed from, which is the server's limit; the oldest answers are left out. */
const MOST_TOKENS = 50000;
/** The KL divergences, in nats, that have the darkest and the faintest colour. */
const DARKEST = 1;
const FAINTEST = 0.0005;

let answers = [];

export function init() {
  $("#session-reset").addEventListener("click", () => {
    answers = [];
    $("#session").hidden = true;
    $("#session-rows").replaceChildren();
  });
  $("#session-export").addEventListener("click", () =>
    saveFile("zeropoint-comparison.json", JSON.stringify({ answers }, null, 1), "application/json"));
  for (const sample of document.querySelectorAll(".legend [data-kl]")) {
    sample.style.setProperty("--heat", heat(Number(sample.dataset.kl)));
  }
}

/** Return the strength of a KL divergence's colour, 0 to 100, on a logarithmic scale. */
const heat = (kl) => Math.round(100 * Math.min(1, Math.max(0, Math.log(kl / FAINTEST) / Math.log(DARKEST / FAINTEST))));

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const quote = (text) => `“${text.replaceAll("\n", "⏎").replaceAll("\t", "⇥")}”`;
const percent = (share) => `${number(100 * share, 1).replace("-", "−")} %`;

/** Return a KL divergence, or a difference of two, as text with digits that suit its size. */
function kl(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 0.0001) return value < 0 ? "> −0.0001" : "< 0.0001";
  return number(value, size < 0.01 ? 4 : size < 1 ? 3 : 2).replace("-", "−");
}

export function hideScores() {
  $("#scores").hidden = true;
  $("#score-cards").replaceChildren();
}

/** Score an answer by other models, show each token's divergence as it arrives, and add it to the session. */
export async function scoreAnswer({ reference, others, prompt, promptTokens, answerTokens, signal }) {
  const cards = others.map((other) => card(reference, other));
  $("#scores").hidden = false;
  $("#score-cards").replaceChildren(...cards.map(({ element }) => element));
  const models = [reference, ...others.map(({ model }) => model)];
  const body = { models, prompt_tokens: promptTokens, answer_tokens: answerTokens };
  try {
    for await (const part of jsonLines("compare/score", { body, signal })) {
      part.others.forEach((scores, index) => cards[index].add(part, scores));
    }
  } catch (error) {
    const message = signal.aborted ? "Stopped." : error.message;
    for (const one of cards) one.fail(message);
    return;
  }
  const scores = {};
  for (const { model, rows } of cards) {
    scores[model] = { kl: rows.map((row) => row.kl), agrees: rows.map((row) => row.agrees) };
  }
  answers.push({ reference, prompt, scores });
  announce(cards.map(({ model, summary }) => `${model}: ${summary()}`).join(". "));
  await showSession(reference);
}

/** Make the card of one model. Its `add(part, scores)` appends the tokens of a part of the answer. */
function card(reference, { model, colour }) {
  const rows = [];
  const head = h("span", { class: "card-figures" });
  const detail = h("p", { class: "detail", "aria-live": "polite" }, " ");
  const label = `The answer's tokens, scored by ${model}`;
  const text = h("div", { class: "tokens", role: "listbox", tabindex: "0", "aria-label": label });
  const element = h("article", { class: `score-card ${colour}`, "aria-label": model },
    h("div", { class: "card-head" }, h("h3", {}, h("span", { class: "chip", "aria-hidden": "true" }), model), head),
    text, detail);

  const summary = () => {
    const flips = rows.filter((row) => !row.agrees).length;
    const share = `${flips} ${flips === 1 ? "flip" : "flips"} in ${rows.length} tokens (${percent(flips / rows.length)})`;
    return `mean KL ${kl(mean(rows.map((row) => row.kl)))} · ${share}`;
  };
  let chosen = -1;
  const choose = (index) => {
    text.children[chosen]?.removeAttribute("aria-selected");
    chosen = index;
    const token = text.children[index];
    if (!token) return;
    token.setAttribute("aria-selected", "true");
    text.setAttribute("aria-activedescendant", token.id);
    detail.textContent = describe(reference, model, rows[index]);
  };
  text.addEventListener("pointerover", (event) => {
    const index = [...text.children].indexOf(event.target);
    if (index >= 0) choose(index);
  });
  text.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const end = { Home: 0, End: rows.length - 1 }[event.key];
    if (step === undefined && end === undefined) return;
    event.preventDefault();
    choose(end ?? Math.min(Math.max(chosen + step, 0), rows.length - 1));
  });

  const add = (part, scores) => {
    part.ids.forEach((id, index) => {
      const row = {
        id,
        text: part.texts[index],
        kl: scores.kl[index],
        agrees: scores.agrees[index],
        nll: scores.nll[index],
        choice: scores.choices[index],
        referenceNll: part.reference.nll[index],
        referenceChoice: part.reference.choices[index],
      };
      const label = row.text.trim() ? null : quote(row.text); // screen readers do not say white space
      const token = h("span", { role: "option", id: `token-${model}-${rows.length}`, "aria-label": label }, row.text || "·");
      token.classList.toggle("flip", !row.agrees);
      token.style.setProperty("--heat", heat(row.kl));
      rows.push(row);
      text.append(token);
    });
    head.textContent = summary();
  };
  const fail = (message) => {
    detail.textContent = message;
    detail.classList.add("problem");
  };
  return { model, rows, element, add, fail, summary };
}

function describe(reference, model, row) {
  const parts = [
    `${quote(row.text)}: KL ${kl(row.kl)}`,
    `${reference} gives it ${percent(Math.exp(-row.referenceNll))}, ${model} ${percent(Math.exp(-row.nll))}`,
  ];
  if (!row.agrees) {
    parts.push(`most likely: ${quote(row.referenceChoice)} in ${reference}, ${quote(row.choice)} in ${model}`);
  }
  return parts.join(" · ");
}

/** Show the session's means and intervals, which the server computes. */
async function showSession(reference) {
  const used = [];
  let tokens = 0;
  for (const answer of answers.toReversed()) {
    if (answer.reference !== reference) continue;
    tokens += Object.values(answer.scores).reduce((sum, { kl }) => sum + kl.length, 0);
    if (tokens > MOST_TOKENS) break;
    used.unshift(answer);
  }
  const names = [...new Set(used.flatMap((answer) => Object.keys(answer.scores)))];
  const scoresOf = (name) => used.map((answer) => answer.scores[name]).filter(Boolean);
  const scores = Object.fromEntries(names.map((name) => [name, scoresOf(name)]));
  try {
    const { models, differences } = await json("compare/summary", { body: { scores } });
    $("#session-rows").replaceChildren(
      ...names.map((name) => sessionRow(name, models[name], models[name].tokens.toLocaleString("en"))),
      ...differences.map((each) => sessionRow(`${each.models[1]} − ${each.models[0]}`, each, "")));
  } catch (error) {
    $("#session-note").textContent = error.message;
    $("#session").hidden = false;
    return;
  }
  const count = `${used.length} ${used.length === 1 ? "answer" : "answers"}`;
  $("#session-note").textContent =
    `Over ${count} of ${reference}. The models are scored on the same tokens after the same text, so their differences ` +
    "are paired. With fewer than eight answers, an interval covers these answers only.";
  $("#session").hidden = false;
}

function sessionRow(name, { kl: divergence, flips }, tokens) {
  const range = ({ low, high }, format) => (low === null ? "too few tokens" : `${format(low)} to ${format(high)}`);
  return h("tr", {}, h("th", { scope: "row" }, name),
    h("td", {}, kl(divergence.value)), h("td", {}, range(divergence, kl)),
    h("td", {}, percent(flips.value)), h("td", {}, range(flips, percent)), h("td", {}, tokens));
}
