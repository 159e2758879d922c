/* The playground of `hdlm serve`. No dependency, no innerHTML: prompts, names, messages and tokens are hostile.
 *
 * A run has one job, or two with different settings and one seed. A job is a request to the server, its frames that are
 * not shown yet, and its trace. The player of replay.js shows the traces. The address of the page holds the settings of
 * the form behind its #, which browsers do not send. The key is in memory only.
 */
(function () {
  "use strict";

  const GAP = /\[MASK(:[0-9]+)?\]/;
  const AWAY = "The server does not answer. It may have been stopped, or the connection is broken.";
  const BROKE = "The connection broke before the text was finished.";
  const COMMON = ["prompt", "max_tokens", "noise", "seed"];
  const OPENAI = ["model", "prompt", "max_tokens", "seed", "temperature", "top_p", "echo"]; // arguments of its client
  const FRAME = 16, SLOW = 1000; // milliseconds between pictures; the second for readers who prefer reduced motion
  const CORRECTION = { eta: "1", temperature: "0.3", steps: "16" }; // settings that correct, for a form without them
  const CORRECTS = "eta=0.3&temperature=0.7&top_p=0.9";
  const PRESETS = {
    "It corrects itself": `prompt=And the LORD said unto&max_tokens=40&seed=7&algorithm=acs&${CORRECTS}`,
    "With and without correction":
      `prompt=And the LORD said unto&max_tokens=40&seed=7&compare=1&algorithm=original&temperature=0.7&top_p=0.9` +
      "&b.algorithm=acs&b.eta=0.3&b.temperature=0.7&b.top_p=0.9",
    "From left to right": `prompt=In the beginning&max_tokens=40&seed=1&hyperschedule=autoregressive&temperature=0.7`,
    "All at once": `prompt=In the beginning&max_tokens=40&seed=1&hyperschedule=flat&steps=32&algorithm=acs&${CORRECTS}`,
    "In a wave": `prompt=And it came to pass&max_tokens=60&seed=1&hyperschedule=wave&algorithm=acs&${CORRECTS}`,
    "Gaps": "prompt=And the word of the LORD came unto [MASK], saying, Go, and speak unto the children of [MASK], and say " +
      `unto them, Thus [MASK:3], Go ye up to [MASK:2].&seed=1&algorithm=acs&${CORRECTS}`,
    "Correct a text": "task=correct&prompt=The LORD is my shnpherd; I sdaql not want. He maketg me to lie down in green pasturas: he " +
      "leqdeth me bevide the still waters.&seed=1&model=kjv-spelling-2m&algorithm=acs&hyperschedule=flat&" +
      new URLSearchParams(CORRECTION),
  };

  const byId = (id) => document.getElementById(id);
  const form = byId("form"), dialog = byId("token"), stage = byId("stage");
  const field = (name) => form.elements.namedItem(name);
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const stacked = matchMedia("(max-width: 62rem)"); // the result is below the form
  let key = null, models = [];
  let current = null; // the run that was started last
  let shown = null; // the run on the stage
  let looked = null; // the token of the dialog

  class Failure extends Error {
    constructor(status, message, param = null) {
      super(message);
      this.status = status;
      this.param = param;
    }
  }

  function make(name, properties = {}, ...children) {
    const node = Object.assign(document.createElement(name), properties);
    node.append(...children);
    return node;
  }
  const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
  const visible = (piece) => (piece === null ? "mask" : `“${piece.replaceAll("\n", "↵").trim() || piece}”`);
  const say = (text) => { byId("status").textContent = text; };

  // --- the form -----------------------------------------------------------------------------------------------------
  const fieldsets = ["Settings", "Second settings"].map((name) => {
    const node = byId("fieldset").content.cloneNode(true).firstElementChild;
    node.querySelector("legend").textContent = name;
    byId("settings").append(node);
    return node;
  });
  const settingFields = (place) => [...fieldsets[place].querySelectorAll("[name]")];

  function fill(select, first, values) {
    const before = select.value;
    select.replaceChildren(...(first ? [new Option(first, "")] : []), ...values.map((value) => new Option(value, value)));
    choose(select, before);
  }
  function choose(select, value) {
    select.value = value;
    if (select.selectedIndex < 0) select.selectedIndex = 0;
  }
  function fitModel() { // the choices of the chosen model
    const model = models.find((one) => one.id === field("model").value);
    for (const node of fieldsets) {
      fill(node.querySelector("[name=algorithm]"), "default", corrects() ? model.hdlm_correcting : model.hdlm_algorithms);
      fill(node.querySelector("[name=hyperschedule]"), "of the model", model.hdlm_hyperschedules);
    }
  }
  const corrects = () => field("task").value === "correct";
  function fitTask() { // the settings of the other task
    fitModel();
    for (const node of fieldsets.flatMap((_, place) => settingFields(place))) {
      const usual = CORRECTION[node.name];
      if (usual && node.value === (corrects() ? "" : usual)) node.value = corrects() ? usual : "";
    }
    fitForm();
  }
  function fitForm() { // fields that have no effect are off
    const two = field("compare").checked, correct = corrects(), gaps = !correct && GAP.test(field("prompt").value);
    byId("prompt-name").textContent = correct ? "Text to correct" : "Prompt";
    byId("prompt-note").textContent = correct
      ? "The text is a draft: words that the model finds wrong are replaced."
      : "[MASK] is a gap of one token, [MASK:5] of five.";
    byId("start").textContent = correct ? "Correct" : "Generate";
    byId("gap").hidden = field("max_tokens").parentNode.hidden = correct;
    field("noise").parentNode.hidden = !correct;
    field("noise").disabled = !correct;
    fieldsets[1].hidden = fieldsets[1].disabled = !two;
    fieldsets[0].querySelector("legend").textContent = two ? "First settings" : "Settings";
    field("max_tokens").disabled = gaps || correct;
    field("max_tokens").placeholder = gaps ? "the gaps" : "all";
  }
  function settingsOf(place) {
    const values = {};
    for (const node of settingFields(place)) {
      if (node.value !== "") values[node.name] = node.type === "number" ? node.valueAsNumber : node.value;
    }
    return values;
  }
  function asLink() {
    const values = new URLSearchParams();
    if (corrects()) values.set("task", "correct");
    for (const name of COMMON) if (!field(name).parentNode.hidden && field(name).value !== "") values.set(name, field(name).value);
    if (field("model").selectedIndex > 0) values.set("model", field("model").value);
    if (field("compare").checked) values.set("compare", "1");
    fieldsets.forEach((_, place) => {
      for (const [name, value] of Object.entries(settingsOf(place))) values.set((place ? "b." : "") + name, value);
    });
    return new URL("#" + values, location.href).href;
  }
  function restore(link) {
    const values = new URLSearchParams(link);
    field("task").value = values.get("task") === "correct" ? "correct" : "write";
    for (const name of COMMON) field(name).value = values.get(name) ?? "";
    if (values.has("model")) choose(field("model"), values.get("model"));
    fitModel();
    field("compare").checked = values.has("compare");
    fieldsets.forEach((_, place) => {
      for (const node of settingFields(place)) {
        const value = values.get((place ? "b." : "") + node.name) ?? "";
        if (node.localName === "select") choose(node, value);
        else node.value = value;
      }
    });
    fitForm();
  }
  function drawSeed() {
    field("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
  }

  // --- the server ---------------------------------------------------------------------------------------------------
  async function call(path, body, signal) {
    const headers = body ? { "Content-Type": "application/json" } : {};
    if (key !== null) headers.Authorization = `Bearer ${key}`;
    let response;
    try {
      response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
    } catch (error) {
      throw signal?.aborted ? error : new Failure(0, AWAY);
    }
    if (response.ok) return response;
    const { error } = await response.json().catch(() => ({}));
    let message = error?.message ?? `The server answers with status ${response.status}.`;
    const wait = response.headers.get("retry-after");
    if (wait) message = `${message} It asks to wait ${plural(Number(wait), "second")}.`;
    throw new Failure(response.status, message, error?.param);
  }
  async function* events(response, signal) { // the values of a stream of server-sent events
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = ""; ;) {
      let part;
      try {
        part = await reader.read();
      } catch (error) {
        throw signal.aborted ? error : new Failure(0, BROKE);
      }
      if (part.done) throw new Failure(0, BROKE);
      const lines = (text + part.value).split("\n\n");
      text = lines.pop();
      for (const line of lines) {
        const data = line.replace(/^data: /, "");
        if (data === "[DONE]") return;
        yield JSON.parse(data);
      }
    }
  }
  async function follow(job, signal) { // read the answer to a job
    const asked = { ...job.body, stream: true, diffusion_frames: true };
    const response = await call(job.path, asked, signal);
    for await (const chunk of events(response, signal)) {
      if (chunk.error) throw new Failure(500, chunk.error.message, chunk.error.param);
      if (chunk.hdlm_frame) job.queue.push(chunk.hdlm_frame);
      for (const choice of chunk.choices) job.text += choice.text;
    }
  }
  async function loadModels() {
    try {
      models = (await (await call("/v1/models")).json()).data;
    } catch (error) {
      report([error]);
      return;
    }
    byId("key-form").hidden = true;
    report([]);
    const first = form.hidden;
    fill(field("model"), null, models.map((model) => model.id));
    form.hidden = false;
    if (first) {
      restore(location.hash.slice(1) || Object.values(PRESETS)[0]);
      say(corrects() ? "Press Correct to watch a text being corrected." : "Press Generate to watch a text being written.");
    } else {
      fitModel();
    }
  }

  // --- errors -------------------------------------------------------------------------------------------------------
  function report(failures, jobs = []) {
    for (const node of document.querySelectorAll("[aria-invalid]")) {
      node.removeAttribute("aria-invalid");
      node.removeAttribute("aria-errormessage");
    }
    const several = jobs.length > 1 && new Set(failures.map((failure) => failure?.message)).size > 1;
    const messages = failures.map((failure, place) => failure &&
      (several ? `${fieldsets[place].querySelector("legend").textContent}: ${failure.message}` : failure.message));
    byId("error").textContent = [...new Set(messages.filter(Boolean))].join("\n");
    failures.forEach((failure, place) => {
      if (failure?.param) mark(failure.param, jobs[place]?.place ?? 0);
    });
    if (!failures.some((failure) => failure?.status === 401)) return;
    byId("error").textContent = key === null ? "This server needs a key." : "The server does not accept this key.";
    byId("key-form").hidden = false;
    byId("key").focus();
  }
  function mark(param, place) { // mark the field that an error names
    const name = param === "text" ? "prompt" : param;
    const node = fieldsets[place].querySelector(`[name="${CSS.escape(name)}"]`) ?? field(name);
    node?.setAttribute?.("aria-invalid", "true");
    node?.setAttribute?.("aria-errormessage", "error");
  }

  // --- a run --------------------------------------------------------------------------------------------------------
  function jobOf(place, tokens, model) {
    const text = field("prompt").value, body = { model, seed: field("seed").valueAsNumber, ...settingsOf(place) };
    const job = { place, path: "/v1/infill", body, queue: [], text: "", state: "open", failure: null, trace: null };
    if (tokens !== null) body.text = tokens;
    else if (corrects()) {
      Object.assign(body, { text }, field("noise").value === "" ? {} : { noise: field("noise").valueAsNumber });
      job.path = "/v1/correct";
    } else if (GAP.test(text)) body.text = text;
    else {
      const count = field("max_tokens").value === "" ? null : field("max_tokens").valueAsNumber;
      Object.assign(body, { prompt: text, max_tokens: count, echo: true, ignore_eos: true });
      job.path = "/v1/completions";
    }
    return job;
  }
  function titleOf(job, jobs) { // the model, or what distinguishes two jobs
    const [mine, other] = jobs.map((one) => settingsOf(one.place));
    if (jobs.length < 2) return job.body.model;
    const [own, others] = job === jobs[0] ? [mine, other] : [other, mine];
    const names = Object.keys(own).filter((name) => own[name] !== others[name]);
    return names.map((name) => (name === "algorithm" ? own[name] : `${name} ${own[name]}`)).join(", ") || "default";
  }
  async function generate(tokens = null, model = field("model").value, fixed = null) {
    if (!form.reportValidity()) return;
    stop();
    if (field("seed").value === "") drawSeed();
    history.replaceState(null, "", asLink());
    const places = field("compare").checked ? [0, 1] : [0];
    const run = { jobs: places.map((place) => jobOf(place, tokens, model)), abort: new AbortController(), fixed, began: performance.now(), replay: null };
    for (const job of run.jobs) job.title = titleOf(job, run.jobs);
    current = run;
    report([]);
    say(run.jobs[0].path === "/v1/correct" ? "Correcting…" : "Writing…");
    if (stacked.matches) byId("result").scrollIntoView({ behavior: still.matches ? "auto" : "smooth" });
    byId("stop").setAttribute("aria-disabled", "false");
    for (const job of run.jobs) {
      follow(job, run.abort.signal).then(
        () => { job.state = "done"; },
        (error) => {
          job.state = run.abort.signal.aborted ? "stopped" : "failed";
          if (job.state !== "failed") return;
          job.failure = error;
          if (run === current) report(run.jobs.map((one) => one.failure), run.jobs);
        },
      );
    }
    await watch(run);
    if (run !== current) return;
    byId("stop").setAttribute("aria-disabled", "true");
    say(summary(run));
  }
  function stop() {
    if (!current) return;
    current.abort.abort();
    for (const job of current.jobs) {
      if (job.state === "open") job.state = "stopped";
      if (job.state === "stopped") job.queue.length = 0;
    }
  }
  async function watch(run) { // show frames until all jobs have ended
    while (run === current) {
      const ended = run.jobs.map((job) => job.state !== "open");
      if (!run.replay && run.jobs.every((job, j) => job.queue.length || ended[j])) mount(run);
      if (run.replay) run.jobs.forEach((job, j) => advance(run, job, ended[j]));
      if (ended.every(Boolean) && (!run.replay || run.jobs.every((job) => !job.queue.length))) return;
      await new Promise((resolve) => { setTimeout(resolve, still.matches ? SLOW : FRAME); });
    }
  }
  function mount(run) { // put the traces of a run on the stage
    const jobs = run.jobs.filter((job) => job.queue.length);
    if (!jobs.length) return;
    shown?.replay.destroy();
    jobs.forEach((job, slot) => {
      job.slot = slot;
      job.trace = job.queue[0].document;
      job.trace.title = job.title;
    });
    run.replay = hdlmReplay.mountReplay(stage, jobs.map((job) => job.trace), { live: true });
    run.shown = jobs;
    run.fixed ??= new Set(jobs[0].trace.sequences[0].given);
    run.edits = { slot: 0, fixed: new Set(run.fixed), masked: new Set(), words: new Map() };
    shown = run;
    showEdits();
    byId("keep").hidden = byId("hint").hidden = false;
    const button = (act, one, several) => (job, slot) => {
      const node = make("button", { type: "button" }, jobs.length > 1 ? `${several} ${slot + 1}` : one);
      node.addEventListener("click", () => act(slot, job));
      return node;
    };
    byId("of-each").replaceChildren(
      ...jobs.map(button(correct, "Correct this text", "Correct text")),
      ...jobs.map(button(download, "Download the trace", "Download trace")),
    );
  }
  function advance(run, job, ended) { // append frames; more of them at a time if many wait
    const count = still.matches || document.hidden ? job.queue.length : Math.ceil(job.queue.length / 20);
    job.queue.splice(0, count).forEach((frame, i, frames) => {
      run.replay.appendFrame(frame, job.slot, i === frames.length - 1);
      Object.assign(job.trace.sequences[0], { evaluations: frame.evaluations, computed: frame.computed });
    });
    if (job.queue.length || !ended || job.closed || !job.trace) return;
    job.closed = true;
    if (job.state !== "done") return;
    job.trace.sequences[0].text = job.text;
    run.replay.finish(job.slot);
  }
  function summary(run) {
    if (!run.replay) return run.jobs.some((job) => job.state === "failed") ? "Nothing was written." : "Stopped.";
    const word = { done: "Finished", stopped: "Stopped", failed: "Broken off" };
    const seconds = ((performance.now() - run.began) / 1000).toFixed(1);
    const parts = run.shown.map((job) => {
      const { sequences: [sequence], changes } = job.trace, { last } = run.replay.runs[job.slot];
      const corrected = job.path === "/v1/correct"
        ? `${plural(sequence.start.filter((token, i) => token !== last[i]).length, "token")} replaced`
        : plural(changes.reason.filter((reason) => reason === "corrected").length, "correction");
      const name = run.shown.length > 1 ? `${job.title}: ` : "";
      return `${name}${plural(sequence.start.length - sequence.given.length, "token")}, ` +
        `${plural(sequence.evaluations, "evaluation")}, ${corrected}`;
    });
    const state = run.shown.map((job) => job.state).find((one) => one !== "done") ?? "done";
    return `${word[state]} after ${seconds} seconds. ${parts.join("; ")}. Seed ${run.jobs[0].body.seed}.`;
  }

  // --- changes of the reader ----------------------------------------------------------------------------------------
  function lookAt(detail) { // open the dialog of a token
    const run = shown.replay.runs[detail.run], moment = shown.replay.views[detail.run].moment;
    const past = run.history[detail.position].filter((change) => change.moment <= moment);
    const reading = past.filter((change) => change.alternatives?.length).pop();
    looked = detail;
    const { fixed, masked } = editsOf(detail.run);
    byId("token-title").textContent = `Position ${detail.position}: ${visible(detail.piece)}`;
    byId("token-note").textContent = reading
      ? "Choose a word to put it here and to fix it."
      : "The network was not asked for this token, so there are no alternatives.";
    const words = [];
    for (let k = 0; reading && k < reading.alternatives.length; k += 2) {
      const [token, p] = [reading.alternatives[k], reading.alternatives[k + 1]];
      const node = make("button", { type: "button" }, make("span", {}, visible(run.piece(token))), make("span", {}, `${(100 * p).toFixed(1)} %`));
      node.setAttribute("aria-pressed", String(token === detail.token));
      node.addEventListener("click", () => change((edits) => place(edits, token, run.piece(token))));
      words.push(node);
    }
    byId("words").replaceChildren(...words);
    byId("fix").hidden = detail.piece === null;
    byId("fix").textContent = fixed.has(detail.position) ? "Release: it may be written again" : "Fix: it stays";
    byId("mask").hidden = detail.piece === null;
    byId("mask").textContent = masked.has(detail.position) ? "Keep: do not mask it" : "Mask: it is written again";
    dialog.showModal();
  }
  function editsOf(slot) {
    return shown.edits.slot === slot ? shown.edits : { slot, fixed: new Set(shown.fixed), masked: new Set(), words: new Map() };
  }
  function place(edits, token, piece) {
    edits.words.set(looked.position, { token, piece });
    edits.fixed.add(looked.position);
    edits.masked.delete(looked.position);
  }
  function change(act) { // carry out a choice of the dialog
    stop();
    shown.edits = editsOf(looked.run);
    act(shown.edits);
    dialog.close();
    showEdits();
  }
  function toggle(set, others, edits) {
    const was = edits[set].has(looked.position);
    for (const name of others) edits[name].delete(looked.position);
    if (was) edits[set].delete(looked.position);
    else edits[set].add(looked.position);
  }
  function showEdits() {
    const { slot, fixed, masked, words } = shown.edits, run = shown.replay.runs[slot], rows = [];
    shown.replay.views.forEach((view, number) => view.spans.forEach((span, i) => {
      const own = number === slot, added = own && fixed.has(i) && !shown.fixed.has(i);
      delete span.dataset.edit;
      delete span.dataset.word;
      if (own && masked.has(i)) span.dataset.edit = "masked";
      else if (added) span.dataset.edit = "fixed";
      if (own && words.has(i)) span.dataset.word = words.get(i).piece.trim() || "↵";
      const piece = visible(run.piece(run.tokens[i])), where = `Position ${i}`;
      if (own && masked.has(i)) rows.push(`${where}: ${piece} is masked`);
      else if (own && words.has(i)) rows.push(`${where}: ${piece} becomes ${visible(words.get(i).piece)}`);
      else if (added) rows.push(`${where}: ${piece} is fixed`);
      else if (own && !fixed.has(i) && shown.fixed.has(i)) rows.push(`${where}: ${piece} is released`);
    }));
    byId("edits").hidden = !rows.length;
    byId("edits").querySelector("ul").replaceChildren(...rows.map((row) => make("li", {}, row)));
    byId("rewrite").setAttribute("aria-disabled", String(!canvas().includes(null)));
    if (rows.length) say(`${plural(rows.length, "change")}. ${rows[rows.length - 1]}.`);
  }
  function canvas({ slot, masked, words } = shown.edits) { // the tokens on the stage with changes; null is a gap
    const run = shown.replay.runs[slot], mask = run.trace.mask_id;
    return Array.from(run.tokens, (token, i) => (masked.has(i) ? null : words.has(i) ? words.get(i).token : token === mask ? null : token));
  }
  function rewrite() { // fill the gaps with a new seed
    const tokens = canvas();
    if (!tokens.includes(null)) return;
    drawSeed();
    byId("result-title").focus();
    generate(tokens, shown.jobs[0].body.model, new Set(shown.edits.fixed));
  }
  function onwards(edits) {
    edits.fixed.delete(looked.position);
    const { length } = shown.replay.runs[edits.slot];
    for (let i = looked.position; i < length; i++) if (!edits.fixed.has(i)) edits.masked.add(i);
  }

  function correct(slot) { // correct a text on the stage, with the changes of the reader
    const edits = editsOf(slot), run = shown.replay.runs[slot];
    const pieces = canvas(edits).map((token, i) => (token === null ? " [MASK]" : edits.words.get(i)?.piece ?? run.piece(token)));
    choose(field("model"), shown.jobs[0].body.model);
    field("prompt").value = pieces.join("").trim();
    field("task").value = "correct";
    fitTask();
    drawSeed();
    byId("result-title").focus();
    generate();
  }

  // --- what a reader keeps ------------------------------------------------------------------------------------------
  function download(slot, job) {
    const url = URL.createObjectURL(new Blob([JSON.stringify(job.trace)], { type: "application/json" }));
    make("a", { href: url, download: slot ? `trace-${slot + 1}.json` : "trace.json" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  }
  function asCurl({ path, body }) {
    const quoted = JSON.stringify(body).replaceAll("'", String.raw`'\''`);
    const auth = key === null ? "" : ` -H "Authorization: Bearer $HDLM_API_KEY"`;
    return `curl ${location.origin}${path} -H 'Content-Type: application/json'${auth} -d '${quoted}'`;
  }
  function python(value) { // a literal of Python
    if (value === null) return "None";
    if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
    if (typeof value === "boolean") return value ? "True" : "False";
    if (typeof value === "object") return `{${Object.entries(value).map(([name, one]) => `"${name}": ${python(one)}`).join(", ")}}`;
    return JSON.stringify(value);
  }
  function asPython({ path, body }) {
    if (path !== "/v1/completions") return `answer = client.post("${path.slice(3)}", body=${python(body)}, cast_to=object)\nprint(answer["choices"][0]["text"])`;
    const own = OPENAI.filter((name) => name in body).map((name) => `${name}=${python(body[name])}`);
    const extra = Object.fromEntries(Object.entries(body).filter(([name]) => !OPENAI.includes(name)));
    return `answer = client.completions.create(\n    ${[...own, `extra_body=${python(extra)}`].join(",\n    ")},\n)\nprint(answer.choices[0].text)`;
  }
  const FORMATS = {
    curl: (jobs) => jobs.map(asCurl).join("\n"),
    python: (jobs) => [
      key === null ? "import openai\n" : "import os\n\nimport openai\n",
      `client = openai.OpenAI(base_url="${location.origin}/v1", api_key=${key === null ? '"none"' : 'os.environ["HDLM_API_KEY"]'})`,
      ...jobs.map(asPython),
    ].join("\n"),
    link: asLink,
  };
  async function copy(format) {
    const text = FORMATS[format](shown.jobs);
    try {
      await navigator.clipboard.writeText(text);
      say(`Copied as ${format}.`);
    } catch { // no permission, or a page without TLS: show it
      byId("copy").querySelector("textarea").value = text;
      byId("copy").showModal();
      byId("copy").querySelector("textarea").select();
    }
  }

  // --- events -------------------------------------------------------------------------------------------------------
  for (const [name, link] of Object.entries(PRESETS)) {
    const node = make("button", { type: "button" }, name);
    node.addEventListener("click", () => { restore(link); say(`The settings are those of the preset “${name}”.`); });
    byId("presets").append(node);
  }
  const on = (id, act, event = "click") => byId(id).addEventListener(event, act);
  on("form", (event) => { event.preventDefault(); generate(); }, "submit");
  on("form", fitForm, "input");
  on("key-form", (event) => { event.preventDefault(); key = byId("key").value; byId("key").value = ""; loadModels(); }, "submit");
  field("model").addEventListener("change", fitModel);
  on("tasks", fitTask, "change");
  field("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  on("gap", () => {
    const text = field("prompt");
    text.setRangeText("[MASK:3]", text.selectionStart, text.selectionEnd, "end");
    text.focus();
    fitForm();
  });
  on("stop", stop);
  on("reseed", () => { drawSeed(); say(`The seed is ${field("seed").value}.`); });
  on("stage", (event) => lookAt(event.detail), "hdlm-token");
  on("fix", () => change((edits) => toggle("fixed", ["masked", "words"], edits)));
  on("mask", () => change((edits) => toggle("masked", ["fixed", "words"], edits)));
  on("onwards", () => { change(onwards); rewrite(); });
  on("close", () => dialog.close());
  on("copy-close", () => byId("copy").close());
  on("rewrite", rewrite);
  on("discard", () => {
    shown.edits = { slot: 0, fixed: new Set(shown.fixed), masked: new Set(), words: new Map() };
    showEdits();
    byId("result-title").focus();
    say("The changes are undone.");
  });
  for (const node of document.querySelectorAll("[data-copy]")) node.addEventListener("click", () => copy(node.dataset.copy));
  addEventListener("hashchange", () => {
    if (form.hidden) return;
    field("model").selectedIndex = 0;
    restore(location.hash.slice(1));
  });
  loadModels();
})();
