/* The server's API: requests with the API key, errors in plain words, and streams of server-sent events. */

/** The address of the page. Paths are relative to it, so that a proxy may serve the page and the API in a subfolder. */
const BASE = new URL("../../", import.meta.url);
const KEY = "zeropoint.key";

/**
 * A request that failed. `kind`: "gone" (no connection), "cut" (the stream ended early), "key" (the user gave no key),
 * "busy" (429 or 503), "context" (the conversation is too long), "server" (another 5xx) or "request" (another 4xx).
 * `retryAfter`: seconds to wait, for "busy"; 0 if the server did not say.
 */
export class ApiError extends Error {
  constructor(kind, message, retryAfter = 0) {
    super(message);
    this.kind = kind;
    this.retryAfter = retryAfter;
  }
}

let askForKey = async () => null;

/** Set the function that asks the user for the key; it returns the key or null. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

let enteredKey = null;

function savedKey() {
  try {
    return enteredKey ?? sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY);
  } catch {
    return enteredKey; // storage is switched off
  }
}

/** Use a key from now on. Keep it until the tab is closed, or, if `remember`, in this browser. */
export function saveKey(key, remember) {
  enteredKey = key;
  try {
    sessionStorage.setItem(KEY, key);
    if (remember) localStorage.setItem(KEY, key);
    else localStorage.removeItem(KEY);
  } catch {
    // storage is switched off
  }
}

/** Send a request (POST if there is a body) and return the response. Asks for the key on 401. Throws `ApiError`. */
export async function call(path, { body, signal } = {}) {
  for (let wrong = false; ; wrong = true) {
    const key = savedKey();
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(new URL(path, BASE), {
        method: body === undefined ? "GET" : "POST",
        headers,
        body: body === undefined ? undefined : JSON.stringify(body),
        signal,
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("gone", "The server does not answer. Is zeropoint serve still running?");
    }
    if (response.ok) return response;
    if (response.status !== 401) throw await failure(response);
    const entered = await askForKey(wrong || key !== null);
    if (entered === null) throw new ApiError("key", "The server asks for an API key.");
  }
}

export const json = async (path, options) => (await call(path, options)).json();

async function failure(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // not JSON, for example a proxy's error page
  }
  return toError(error, response.status, Number(response.headers.get("Retry-After")) || 0);
}

function toError(error, status, retryAfter = 0) {
  const message = error.message || `The server answered with the status ${status}.`;
  if (status === 429 || status === 503) return new ApiError("busy", message, retryAfter);
  if (error.code === "context_length_exceeded") return new ApiError("context", message);
  return new ApiError(status >= 500 ? "server" : "request", message);
}

/** Yield the lines of a response's body. Throws `ApiError` "cut" if the connection breaks. */
async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const parts = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = parts.pop();
      yield* parts;
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("cut", "The connection broke before the answer was complete.");
  } finally {
    reader.cancel().catch(() => {});
  }
  if (rest) yield rest;
}

/** Send a request and yield the JSON objects of the response, one a line. Throws `ApiError` for an error object. */
export async function* jsonLines(path, options) {
  for await (const line of lines(await call(path, options))) {
    if (!line.trim()) continue;
    const value = JSON.parse(line);
    if (value.error) throw toError(value.error, value.error.status ?? 500);
    yield value;
  }
}

/** Yield the data of server-sent events up to `[DONE]`. */
async function* events(response) {
  let data = [];
  for await (const line of lines(response)) {
    if (line === "" && data.length) {
      const text = data.join("\n");
      data = [];
      if (text === "[DONE]") return;
      yield JSON.parse(text);
    } else if (line.startsWith("data:")) {
      data.push(line.slice(line[5] === " " ? 6 : 5));
    }
  }
  throw new ApiError("cut", "The connection ended before the answer was complete.");
}

/**
 * Stream a chat completion. Yields `{ text, tokens, prompt, finish, usage }` for each event: the new text, its token
 * ids, the prompt's token ids, why the answer ended, and OpenAI's `usage`. All but the text are null if the event has
 * none.
 */
export async function* chat({ model, messages, settings }, signal) {
  const body = { model, messages, stream: true, stream_options: { include_usage: true }, return_token_ids: true };
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    const value = settings[name];
    if (value !== null && value !== undefined) body[name === "max_tokens" ? "max_completion_tokens" : name] = value;
  }
  const response = await call("v1/chat/completions", { body, signal });
  for await (const event of events(response)) {
    if (event.error) throw toError(event.error, Number(event.error.code) || 500);
    const choice = event.choices?.[0];
    yield {
      text: choice?.delta?.content ?? "",
      tokens: choice?.token_ids ?? null,
      prompt: event.prompt_token_ids ?? choice?.prompt_token_ids ?? null,
      finish: choice?.finish_reason ?? null,
      usage: event.usage ?? null,
    };
  }
}

/** Return the models of the server, with their formats and bytes. */
export async function models() {
  const { data } = await json("compare/models");
  return data;
}

/** Measures a streamed answer: the seconds to its first token, and its tokens per second after that. */
export class Stopwatch {
  start = performance.now();
  first = 0;
  last = 0;
  tokens = 0;

  /** Count the tokens of an event and note its time. An event without tokens or text does not count. */
  add({ text, tokens }) {
    const count = tokens ? tokens.length : text ? 1 : 0;
    if (!count) return;
    this.last = performance.now();
    if (!this.first) this.first = this.last;
    this.tokens += count;
  }

  /** Seconds to the first token; 0 before it. */
  get wait() {
    return this.first ? (this.first - this.start) / 1000 : 0;
  }

  /** Tokens per second after the first token; 0 until there are two. */
  get rate() {
    const seconds = (this.last - this.first) / 1000;
    return this.tokens > 1 && seconds > 0 ? (this.tokens - 1) / seconds : 0;
  }
}
