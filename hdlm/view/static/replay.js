/* Plays generations of hdlm in a page. No dependency, no network, no innerHTML: the texts of tokens are hostile.
 *
 * Load this file with <script src="replay.js"> and replay.css with it. Both work under the Content-Security-Policy
 * `script-src 'self'; style-src 'self'`. The script defines one global, `hdlmReplay`:
 *
 *   hdlmReplay.mountReplay(element, trace, options) -> replay
 *       element   The element whose content becomes the replay.
 *       trace     A trace (docs/trace.md, hdlm/generation/trace.schema.json), or a list of one or two traces. Two are
 *                 shown side by side, aligned by their evaluations. For live use give the trace of a run that has not
 *                 begun: all of its fields, with `changes` empty (each column an empty list).
 *       options   live: true      The run is being written: `appendFrame` follows, and later `finish`.
 *                 position: n     The first position of the slider; "last" for the end. Default 0.
 *                 autoplay: true  Play at once, unless the reader prefers reduced motion.
 *                 speed: x        One of 0.25, 0.5, 1, 2, 4, 8. Default 1.
 *                 sequence: k     The sequence of each trace to show first, by its place in the list. Default 0.
 *
 *   replay.appendFrame(frame, run = 0, draw = true)
 *       frame     {step, evaluations, computed, changes, pieces}: the changes of one step, in the columns of
 *                 `trace.changes`, and the texts of tokens that the trace does not have yet. `evaluations` and
 *                 `computed` are the numbers so far of the sequence. `changes` may be empty columns.
 *                 `hdlm.generation.recording.frame_of` makes such frames.
 *       run       Which of the traces it belongs to.
 *       draw      Whether the player draws it; false if another frame follows at once.
 *   replay.finish(run = 0)                   The run has ended: show the text at rest.
 *   replay.play()  .pause()  .seek(position) Control the player; `replay.position` and `replay.length` are numbers.
 *   replay.destroy()                         Stop, and empty the element.
 *
 * Clicking a token (or Enter on it) dispatches the event "hdlm-token" on the element. Its `detail` is
 * {run, sequence, position, token, piece, given}; `piece` is null for a mask.
 */
(function () {
  "use strict";

  const MASK = "░", NOISE = "·", SPEEDS = [0.25, 0.5, 1, 2, 4, 8];
  const QUIET = 3000; // milliseconds between announcements while a run is being written
  const FRESH = { unmasked: "written", corrected: "corrected", remasked: "masked" };
  const STATES = [
    ["settled", "settled: final"],
    ["active", "active: may still change"],
    ["mask", MASK.repeat(3) + " mask"],
    ["noise", NOISE.repeat(3) + " still noise"],
    ["written", "written in this step"],
    ["corrected", "corrected in this step"],
    ["masked", MASK.repeat(3) + " masked again"],
    ["replaced", "new: replaced in the text"],
    ["was-corrected", "corrected before"],
    ["given", "given"],
  ];
  let mounted = 0;

  // --- small helpers ------------------------------------------------------------------------------------------------
  function make(name, properties = {}, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(properties)) {
      if (key === "class") node.className = value;
      else if (key in node && !key.startsWith("aria")) node[key] = value;
      else node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  }
  const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
  function percent(p) {
    if (p === null || p === undefined) return "not read";
    if (p > 0 && p < 0.001) return "< 0.1 %";
    return `${(100 * p).toFixed(p > 0.999 && p < 1 ? 2 : 1)} %`;
  }
  const isDraft = (trace) => typeof trace.settings.noise === "number"; // whether a finished text is corrected
  const sign = (piece) => piece.replaceAll("\n", "↵").trim() || "␣"; // the text of a token or a word, without the space around it
  function shown(piece) { // the text of a token inside a sentence
    if (piece === null) return "mask";
    return "“" + piece.replaceAll("\n", "↵").replaceAll("\t", "⇥") + "”";
  }

  // --- a run: one sequence of a trace, as moments -------------------------------------------------------------------
  class Run {
    constructor(trace, place) {
      this.trace = trace;
      this.sequence = trace.sequences[place];
      this.levels = trace.levels;
      this.given = new Set(this.sequence.given);
      this.isDraft = isDraft(trace);
      this.length = this.sequence.start.length;
      this.pieces = new Map(Object.entries(trace.pieces).map(([token, text]) => [Number(token), text]));
      this.history = Array.from({ length: this.length }, () => []); // changes of each position
      this.moments = [{ steps: 0, evaluations: 0, computed: 0, changes: [], finished: false }];
      this.tokens = Int32Array.from(this.sequence.start);
      this.at = 0; // the moment of `tokens`
      this.masks = [this.count(this.tokens)];
      this.last = Int32Array.from(this.sequence.start); // tokens after the last moment
    }
    count(tokens) {
      let masks = 0;
      for (const token of tokens) masks += token === this.trace.mask_id;
      return masks;
    }
    // The changes of this sequence in some columns, as moments
    append(columns) {
      for (let i = 0; i < columns.step.length; i++) {
        if (columns.sequence[i] !== this.sequence.index) continue;
        const change = {};
        for (const name in columns) change[name] = columns[name][i];
        let moment = this.moments[this.moments.length - 1];
        if (moment.steps !== change.step + 1) {
          moment = { steps: change.step + 1, changes: [], finished: false };
          this.moments.push(moment);
          this.masks.push(this.masks[this.masks.length - 1]);
        }
        moment.evaluations = change.evaluations;
        moment.computed = change.computed;
        change.moment = this.moments.length - 1;
        moment.changes.push(change);
        this.history[change.position].push(change);
        this.last[change.position] = change.new;
        const mask = this.trace.mask_id;
        this.masks[this.masks.length - 1] += (change.new === mask) - (change.old === mask);
      }
    }
    finish(evaluations, computed) {
      const last = this.moments[this.moments.length - 1];
      if (last.finished) return;
      this.moments.push({
        steps: this.trace.num_steps,
        evaluations: Math.max(evaluations, last.evaluations),
        computed: Math.max(computed, last.computed),
        changes: [],
        finished: true,
      });
      this.masks.push(this.masks[this.masks.length - 1]);
    }
    go(moment) { // the tokens after a moment
      while (this.at < moment) {
        this.at += 1;
        for (const change of this.moments[this.at].changes) this.tokens[change.position] = change.new;
      }
      while (this.at > moment) {
        for (const change of this.moments[this.at].changes) this.tokens[change.position] = change.old;
        this.at -= 1;
      }
    }
    level(position, steps) {
      const after = steps - this.levels.opens[position], curve = this.levels.curves[this.levels.curve[position]];
      return after < 0 ? this.levels.num_levels : curve[Math.min(after, curve.length - 1)];
    }
    piece(token) { // the text of a token, null for the mask
      if (token === this.trace.mask_id) return null;
      const text = this.pieces.get(token);
      return text === undefined ? `[${token}]` : text;
    }
    isReplaced(i) { // whether the current token stands in the place of another one of a text to correct
      const token = this.tokens[i];
      return this.isDraft && token !== this.sequence.start[i] && token !== this.trace.mask_id;
    }
    // The words of a corrected text that differ at a moment, each with the changes of its tokens
    replacements(moment) {
      const words = [];
      let word = null;
      for (let i = 0; i < this.length; i++) {
        const old = this.piece(this.sequence.start[i]) ?? "", now = this.piece(this.tokens[i]) ?? MASK;
        if (!word || /^\s/.test(old) || /^\s/.test(now)) words.push(word = { old: "", now: "", changes: [] });
        word.old += old;
        word.now += now;
        if (this.isReplaced(i)) word.changes.push(this.history[i].filter((change) => change.moment <= moment).pop());
      }
      return words.filter((one) => one.changes.length);
    }
    // Words of each kind that a range of moments has changed
    kinds(after, until) {
      const counts = { unmasked: 0, corrected: 0, remasked: 0 };
      for (let m = after + 1; m <= until; m++) for (const c of this.moments[m].changes) counts[c.reason] += 1;
      return counts;
    }
    entropy(moment) {
      const known = this.moments[moment].changes.map((c) => c.entropy).filter((h) => h !== null);
      return known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
    }
  }

  // --- the view of one run ------------------------------------------------------------------------------------------
  class RunView {
    constructor(player, number, id) {
      this.player = player;
      this.number = number;
      this.id = id;
      this.counter = make("p", { class: "counter" });
      this.text = make("div", { class: "text", role: "listbox", dir: "auto", id: `${id}-text` });
      this.plain = make("p", { class: "for-screen-readers" });
      this.map = make("canvas", { class: "map", role: "img", width: 256, height: 160 });
      this.mapNote = make("figcaption", {}, "Noise: positions from left to right, steps from top to bottom");
      this.replaced = make("div", { class: "replaced-words" });
      this.strips = this.makeStrips();
      this.title = make("h2", {});
      this.chooser = make("select", { "aria-label": "Passage" });
      this.chooser.addEventListener("change", () => player.choose(number, this.chooser.selectedIndex));
      this.root = make(
        "section", { class: "run", "aria-labelledby": `${id}-title` },
        make("header", {}, this.title, this.chooser, this.counter),
        make(
          "div", { class: "canvas" },
          make("div", { class: "page" }, this.text, this.plain, this.replaced),
          make("figure", { class: "hyperschedule" }, this.map, this.mapNote),
        ),
        make("div", { class: "strips", role: "group", "aria-label": "Each step" }, ...this.strips.map((s) => s.root)),
      );
      this.title.id = `${id}-title`;
      this.listen();
    }
    makeStrips() {
      const of = (name, unit, value, draw) => {
        const canvas = make("canvas", { width: 300, height: 36, "aria-hidden": "true" });
        const number = make("span", { class: "value" });
        return { value, unit, draw, canvas, number, root: make("div", { class: "strip" }, make("p", {}, make("span", {}, name + " "), number), canvas) };
      };
      const run = () => this.run;
      return [
        of("Masked", "", (m) => run().masks[m] / run().length, "area"),
        of("Corrections", "", (m) => run().moments[m].changes.filter((c) => c.reason === "corrected").length, "bars"),
        of("Entropy", " nats", (m) => run().entropy(m), "points"),
        of("Evaluations", "", (m) => run().moments[m].evaluations, "line"),
      ];
    }
    show(run) {
      this.run = run;
      const trace = run.trace;
      this.title.textContent = trace.title || "Run";
      this.chooser.replaceChildren(...trace.sequences.map((one) => make("option", {}, `passage ${one.index + 1}`)));
      this.chooser.selectedIndex = trace.sequences.indexOf(run.sequence);
      this.chooser.hidden = trace.sequences.length < 2;
      this.text.setAttribute("aria-label", `Tokens of ${trace.title || "the run"}`);
      this.keys = new Array(run.length).fill("");
      this.spans = Array.from({ length: run.length }, (_, i) =>
        make("span", { class: "token", role: "option", tabIndex: i ? -1 : 0, "aria-selected": "false" }));
      this.spans.forEach((span, i) => { span.dataset.position = i; });
      this.spaces = this.spans.map(() => document.createTextNode("")); // a mark does not cover the space before a word
      this.text.replaceChildren(...this.spans.flatMap((span, i) => [this.spaces[i], span]));
      this.focused = 0;
      this.background = null;
    }
    listen() {
      const place = (event) => {
        const span = event.target.closest?.(".token");
        return span && this.text.contains(span) ? Number(span.dataset.position) : null;
      };
      this.text.addEventListener("pointerover", (event) => {
        const i = place(event);
        if (i !== null) this.player.inspect(this.number, i, false);
      });
      this.text.addEventListener("focusin", (event) => {
        const i = place(event);
        if (i === null) return;
        this.spans[this.focused].tabIndex = -1;
        this.spans[i].tabIndex = 0;
        this.focused = i;
        // A press of the mouse changes nothing above the text: otherwise the token moves away before the click.
        this.player.inspect(this.number, i, this.spans[i].matches(":focus-visible"));
      });
      this.text.addEventListener("click", (event) => {
        const i = place(event);
        if (i === null) return;
        this.spans[i].focus();
        this.choose(i);
      });
      this.text.addEventListener("keydown", (event) => {
        const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -Infinity, End: Infinity };
        if (event.key in moves && !event.ctrlKey && !event.metaKey && !event.altKey) {
          let i = Math.min(Math.max(this.focused + moves[event.key], 0), this.run.length - 1);
          const way = moves[event.key] < 0 ? -1 : 1;
          while (this.spans[i]?.hidden) i += this.spans[i + way] ? way : -way;
          this.spans[i].focus();
        } else if (event.key === "Enter") {
          this.choose(this.focused);
        } else {
          return;
        }
        event.preventDefault();
        event.stopPropagation();
      });
    }
    choose(i) {
      const token = this.run.tokens[i];
      const detail = {
        run: this.number, sequence: this.run.sequence.index, position: i, token, piece: this.run.piece(token),
        given: this.run.given.has(i),
      };
      this.player.element.dispatchEvent(new CustomEvent("hdlm-token", { detail, bubbles: true }));
    }
    // The state of a position, as classes of CSS
    state(i, steps, fresh, moment) {
      const run = this.run, token = run.tokens[i], mask = token === run.trace.mask_id;
      if (run.given.has(i)) return "given";
      const level = run.moments[moment].finished ? 0 : run.level(i, steps);
      const noise = !run.moments[moment].finished && steps < run.levels.opens[i];
      const classes = [level === 0 ? "settled" : noise ? "noise" : "active"];
      if (mask) classes.push("mask");
      if (fresh) classes.push(FRESH[fresh]);
      const before = run.history[i].some((c) => c.reason === "corrected" && c.moment <= moment);
      if (run.isReplaced(i)) classes.push("replaced");
      else if (before && fresh !== "corrected" && !mask) classes.push("was-corrected");
      return classes.join(" ");
    }
    shape(i, state) { // the text of a position; a mask is as wide as the word that follows
      const run = this.run, piece = run.piece(run.tokens[i]);
      if (piece !== null) return piece.endsWith("\n") ? piece.replace(/\n$/, "↵\n") : piece;
      const end = run.piece(run.last[i]) ?? " ".repeat(4), word = end.replace(/^ /, "").trimEnd();
      const width = Math.max([...(word || (end === "\n" ? "↵" : "xxx"))].length, 1);
      return (end.startsWith(" ") ? " " : "") + (state.includes("noise") ? NOISE : MASK).repeat(width);
    }
    // Show a moment; changes after `before` are marked
    update(moment, before) {
      const run = this.run, now = run.moments[moment];
      run.go(moment);
      const fresh = new Map();
      for (let m = before + 1; m <= moment; m++) for (const c of run.moments[m].changes) fresh.set(c.position, c.reason);
      for (let i = 0; i < run.length; i++) {
        const state = this.state(i, now.steps, fresh.get(i), moment), text = this.shape(i, state), key = state + "\0" + text;
        if (this.keys[i] === key) continue;
        this.keys[i] = key;
        const span = this.spans[i], piece = run.piece(run.tokens[i]), space = /^ +(?=[^ ])/.exec(text)?.[0] ?? "";
        span.className = "token " + state;
        const old = run.isReplaced(i) ? sign(run.piece(run.sequence.start[i]) ?? MASK) : null;
        if (old === null) delete span.dataset.old;
        else span.dataset.old = old;
        span.textContent = text.slice(space.length);
        const first = i === 0 || (i === 1 && this.spans[0].hidden);
        this.spaces[i].data = first ? "" : space;
        span.hidden = run.given.has(i) && (text === "" || (i === 0 && text.trim() === "↵"));
        const name = `${i}: ${piece === null ? "mask" : piece.trim() || "space"}, ${describe(state)}`;
        span.setAttribute("aria-label", old === null ? name : `${name} “${old}”`);
      }
      const steps = `step ${now.steps} of ${run.trace.num_steps}`;
      this.counter.textContent = `${steps} · ${plural(now.evaluations, "evaluation")} · ${plural(now.computed, "position")} computed`;
      this.moment = moment;
      if (run.isDraft) this.showReplaced(run.replacements(moment));
      this.draw();
    }
    showReplaced(words) { // the list of the words that have replaced others
      const rows = words.map(({ old, now, changes }) => make(
        "li", {}, make("del", {}, sign(old)), " → ", make("ins", {}, sign(now)),
        make("span", { class: "share" }, changes.map((change) => percent(change.p_new)).join(", "))));
      this.replaced.replaceChildren(
        make("h3", {}, words.length ? `${plural(words.length, "word")} replaced` : "No word is replaced"),
        ...(rows.length ? [make("ul", {}, ...rows)] : []));
    }
    speak() { // the text, for screen readers, when the player rests
      const words = [...this.run.tokens].map((t) => this.run.piece(t) ?? " [mask]").join("").trim();
      this.plain.textContent = words;
    }
    draw() {
      this.drawMap();
      this.strips[0].root.hidden = this.run.isDraft && !this.run.masks.some(Boolean);
      for (const strip of this.strips) {
        const value = strip.value(this.moment);
        strip.number.textContent = value === null ? "–" : strip.draw === "area" ? `${Math.round(100 * value)} %` : strip.draw === "points" ? value.toFixed(2) + strip.unit : `${value}`;
        drawStrip(strip, this.run.moments.length, this.moment, this.player.colours);
      }
    }
    drawMap() {
      const run = this.run, colours = this.player.colours, { width, height } = this.map;
      const rows = Math.min(run.trace.num_steps + 1, height), columns = Math.min(run.length, width);
      if (this.background === null) this.background = heatMap(run, rows, columns, colours);
      const context = this.map.getContext("2d"), steps = run.moments[this.moment].steps;
      context.imageSmoothingEnabled = false;
      context.drawImage(this.background, 0, 0, width, height);
      const y = Math.min(((steps + 0.5) / (run.trace.num_steps + 1)) * height, height - 1.5);
      for (const [ink, thick] of [[colours.paper, 5], [colours.mark, 2]]) {
        context.fillStyle = ink;
        context.fillRect(0, y - thick / 2, width, thick);
      }
      const inspected = this.player.inspected;
      if (inspected && inspected.run === this.number) {
        context.fillStyle = colours.mark;
        context.fillRect(((inspected.position + 0.5) / run.length) * width - 0.5, 0, 1, height);
      }
      this.map.setAttribute("aria-label", `Noise levels of ${run.length} positions in ${run.trace.num_steps} steps; now after step ${steps}`);
    }
  }

  function describe(state) {
    const words = state.split(" ");
    const names = {
      written: "written in this step", corrected: "corrected in this step", masked: "masked again in this step",
      replaced: "instead of", "was-corrected": "corrected before", noise: "still noise", mask: "", active: "may still change", settled: "settled",
      given: "given",
    };
    return words.map((word) => names[word]).filter(Boolean).join(", ");
  }

  // --- pictures -----------------------------------------------------------------------------------------------------
  function heatMap(run, rows, columns, colours) {
    const canvas = make("canvas", { width: columns, height: rows }), context = canvas.getContext("2d");
    const image = context.createImageData(columns, rows), T = run.levels.num_levels;
    for (let row = 0; row < rows; row++) {
      const steps = Math.round((row / Math.max(rows - 1, 1)) * run.trace.num_steps);
      for (let column = 0; column < columns; column++) {
        const i = Math.floor((column / columns) * run.length), level = run.given.has(i) ? 0 : run.level(i, steps);
        image.data.set([...ramp(level, T, colours), 255], 4 * (row * columns + column));
      }
    }
    context.putImageData(image, 0, 0);
    return canvas;
  }
  function ramp(level, T, colours) {
    if (level === 0) return colours.settled;
    if (level >= T) return colours.noise;
    const place = (1 - level / T) * (colours.active.length - 1), low = Math.floor(place);
    const [a, b] = [colours.active[low], colours.active[Math.min(low + 1, colours.active.length - 1)]];
    return a.map((channel, k) => Math.round(channel + (b[k] - channel) * (place - low)));
  }
  function drawStrip(strip, count, now, colours) {
    const { canvas, value, draw } = strip, { width, height } = canvas, context = canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    const values = Array.from({ length: count }, (_, m) => value(m));
    const most = Math.max(draw === "area" ? 1 : 0, ...values.map((v) => v ?? 0)) || 1;
    const x = (m) => (count < 2 ? 0 : (m / (count - 1)) * (width - 4)) + 2, y = (v) => height - 2 - (v / most) * (height - 6);
    context.fillStyle = context.strokeStyle = colours.line;
    context.lineWidth = 2;
    context.beginPath();
    if (draw === "bars" || draw === "points") {
      values.forEach((v, m) => {
        if (draw === "bars" && v) context.fillRect(x(m) - 1, y(v), 2, height - 2 - y(v));
        if (draw === "points" && v !== null) context.fillRect(x(m) - 1, y(v) - 1, 3, 3);
      });
    } else {
      values.forEach((v, m) => {
        if (m) context.lineTo(x(m), y(values[m - 1]));
        context.lineTo(x(m), y(v));
      });
      if (draw === "area") {
        context.lineTo(x(count - 1), height);
        context.lineTo(x(0), height);
        context.globalAlpha = 0.35;
        context.fill();
        context.globalAlpha = 1;
      } else context.stroke();
    }
    context.fillStyle = colours.mark;
    context.fillRect(x(now) - 1, 0, 2, height);
  }

  // --- the player ---------------------------------------------------------------------------------------------------
  class Player {
    constructor(element, traces, options) {
      this.element = element;
      this.traces = traces;
      this.live = Boolean(options.live);
      this.said = performance.now(); // when the live region last changed
      this.id = `hdlm-replay-${++mounted}`;
      this.places = traces.map((trace) => Math.min(options.sequence ?? 0, trace.sequences.length - 1));
      this.speed = SPEEDS.includes(options.speed) ? options.speed : 1;
      this.views = traces.map((_, number) => new RunView(this, number, `${this.id}-${number}`));
      this.build();
      this.colours = this.readColours();
      this.media = matchMedia("(prefers-color-scheme: dark)");
      this.repaint = () => {
        this.colours = this.readColours();
        for (const view of this.views) { view.background = null; view.draw(); }
      };
      this.media.addEventListener("change", this.repaint);
      this.runs = traces.map((_, number) => this.open(number));
      this.align();
      this.position = options.position === "last" ? this.length - 1 : Math.min(options.position ?? 0, this.length - 1);
      this.show();
      if (options.autoplay && !matchMedia("(prefers-reduced-motion: reduce)").matches) this.play();
    }
    get length() { return this.timeline.length; }

    open(number) {
      const trace = this.traces[number], run = new Run(trace, this.places[number]);
      run.append(trace.changes);
      if (!this.live) run.finish(run.sequence.evaluations, run.sequence.computed);
      this.views[number].show(run);
      return run;
    }
    choose(number, place) { // another sequence of a trace
      this.places[number] = place;
      this.runs[number] = this.open(number);
      this.inspected = null;
      this.align();
      this.seek(Math.min(this.position, this.length - 1));
      this.details.replaceChildren(make("p", {}, HINT));
    }
    // The positions of the slider: for each run a moment. Two runs are aligned by evaluations.
    align() {
      if (this.runs.length === 1) {
        this.timeline = this.runs[0].moments.map((_, m) => [m]);
      } else {
        const counts = new Set(this.runs.flatMap((run) => run.moments.map((moment) => moment.evaluations)));
        const at = this.runs.map(() => 0);
        this.timeline = [[...at]];
        for (const evaluations of [...counts].sort((a, b) => a - b)) {
          this.runs.forEach((run, r) => {
            while (at[r] + 1 < run.moments.length && run.moments[at[r] + 1].evaluations <= evaluations && !run.moments[at[r] + 1].finished) at[r] += 1;
          });
          if (at.some((m, r) => m !== this.timeline[this.timeline.length - 1][r])) this.timeline.push([...at]);
        }
        const end = this.runs.map((run) => run.moments.length - 1);
        if (end.some((m, r) => m !== at[r])) this.timeline.push(end);
      }
      this.slider.max = this.length - 1;
    }
    build() {
      const button = (label, name, act) => {
        const node = make("button", { type: "button", "aria-label": name, title: name }, label);
        node.addEventListener("click", act);
        return node;
      };
      this.first = button("|◀", "First", () => this.seek(0));
      this.back = button("◀", "One step back", () => this.seek(this.position - 1));
      this.toggle = button("Play", "Play", () => (this.timer ? this.pause() : this.play()));
      this.toggle.classList.add("play");
      this.next = button("▶", "One step on", () => this.seek(this.position + 1));
      this.end = button("▶|", "Last", () => this.seek(this.length - 1));
      this.slider = make("input", { type: "range", min: 0, step: 1, "aria-label": "Position in the replay" });
      this.slider.addEventListener("input", () => this.seek(Number(this.slider.value)));
      this.speeds = make("select", { "aria-label": "Speed" }, ...SPEEDS.map((speed) => make("option", { value: speed }, `${speed} ×`)));
      this.speeds.value = this.speed;
      this.speeds.addEventListener("change", () => { this.speed = Number(this.speeds.value); });
      this.status = make("p", { class: "status", role: "status" });
      this.details = make("div", { class: "details" }, make("p", {}, HINT));
      const legend = make("ul", { class: "legend", "aria-label": "Marks" },
        ...STATES.filter(([state]) => state !== (this.traces.some(isDraft) ? "noise" : "replaced")).map(([state, name]) => make("li", {}, make("span", { class: `token ${state}`, "data-old": "old" }, name))));
      this.root = make(
        "div", { class: "hdlm-replay" },
        make("div", { class: "controls", role: "toolbar", "aria-label": "Player" },
          this.first, this.back, this.toggle, this.next, this.end, this.slider, this.speeds),
        this.status,
        make("div", { class: this.views.length > 1 ? "runs two" : "runs" }, ...this.views.map((view) => view.root)),
        make("section", { class: "position", "aria-label": "Token" }, this.details),
        legend,
        make("details", { class: "keys" }, make("summary", {}, "Keys"), make("p", {}, KEYS)),
      );
      this.onKey = (event) => this.key(event);
      this.root.addEventListener("keydown", this.onKey);
      this.element.replaceChildren(this.root);
    }
    key(event) {
      const within = event.target.closest("button, select, summary, input");
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const act = {
        " ": () => this.toggle.click(),
        ArrowLeft: () => this.seek(this.position - 1),
        ArrowRight: () => this.seek(this.position + 1),
        Home: () => this.seek(0),
        End: () => this.seek(this.length - 1),
        "+": () => this.faster(1),
        "-": () => this.faster(-1),
      }[event.key];
      const own = { " ": "button, select, summary", Home: "select, input", End: "select, input" }[event.key] ?? "select, input";
      if (!act || (within && within.matches(own) && event.key !== "+" && event.key !== "-")) return;
      event.preventDefault();
      act();
    }
    faster(by) {
      const place = Math.min(Math.max(SPEEDS.indexOf(this.speed) + by, 0), SPEEDS.length - 1);
      this.speed = SPEEDS[place];
      this.speeds.value = this.speed;
    }
    readColours() {
      const style = getComputedStyle(this.root), of = (name) => style.getPropertyValue(name).trim();
      const rgb = (name) => [1, 3, 5].map((at) => parseInt(of(name).slice(at, at + 2), 16));
      return {
        paper: of("--paper"), mark: of("--mark"), line: of("--line"), noise: rgb("--level-noise"),
        settled: rgb("--level-settled"), active: [1, 2, 3, 4, 5, 6].map((n) => rgb(`--level-${n}`)),
      };
    }
    play() {
      if (this.timer) return;
      if (this.position >= this.length - 1) this.seek(0);
      const tick = () => {
        if (this.position >= this.length - 1) { this.pause(); return; }
        this.position += 1;
        this.show();
        this.timer = setTimeout(tick, this.interval);
      };
      this.timer = setTimeout(tick, this.interval);
      this.label("Pause");
    }
    get interval() { return Math.min(Math.max(8000 / this.length, 40), 600) / this.speed; }
    pause() {
      clearTimeout(this.timer);
      this.timer = null;
      this.label("Play");
      this.rest();
    }
    label(name) {
      this.toggle.textContent = name;
      this.toggle.setAttribute("aria-label", name);
      this.toggle.title = name;
    }
    seek(position) {
      this.position = Math.min(Math.max(position, 0), this.length - 1);
      this.show();
      if (!this.timer) this.rest();
    }
    show() {
      const now = this.timeline[this.position], before = this.timeline[this.position - 1] ?? now;
      this.views.forEach((view, r) => view.update(now[r], before[r]));
      this.slider.value = this.position;
      this.slider.setAttribute("aria-valuetext", this.summary());
      for (const [node, off] of [[this.first, this.position === 0], [this.back, this.position === 0],
        [this.next, this.position === this.length - 1], [this.end, this.position === this.length - 1]]) {
        node.setAttribute("aria-disabled", String(off));
      }
      if (this.inspected) this.inspect(this.inspected.run, this.inspected.position, false);
    }
    summary() {
      const now = this.timeline[this.position], before = this.timeline[this.position - 1] ?? now;
      return this.runs.map((run, r) => {
        const counts = run.kinds(before[r], now[r]), moment = run.moments[now[r]];
        const parts = [`${counts.unmasked} written`, `${counts.corrected} corrected`, `${counts.remasked} masked again`];
        const done = parts.filter((part) => !part.startsWith("0 ")).join(", ") || "no change";
        const name = this.runs.length > 1 ? `${run.trace.title}: ` : "";
        return `${name}step ${moment.steps} of ${run.trace.num_steps}, ${plural(moment.evaluations, "evaluation")}: ${done}`;
      }).join(". ");
    }
    rest() { // what a screen reader hears when nothing plays
      this.said = performance.now();
      this.status.textContent = this.summary();
      for (const view of this.views) view.speak();
    }
    inspect(number, position, focused) {
      const last = this.inspected;
      if (last) this.views[last.run].spans[last.position]?.setAttribute("aria-selected", "false");
      this.inspected = { run: number, position };
      this.views[number].spans[position].setAttribute("aria-selected", "true");
      this.details.replaceChildren(...this.describe(number, position));
      if (!last || last.position !== position || last.run !== number) for (const view of this.views) view.drawMap();
      if (focused && !this.timer) this.status.textContent = this.details.firstChild.textContent;
    }
    describe(number, position) {
      const run = this.runs[number], moment = this.views[number].moment, changes = run.history[position];
      const past = changes.filter((change) => change.moment <= moment), last = past[past.length - 1];
      const now = run.piece(run.tokens[position]);
      const nodes = [make("h3", {}, `Position ${position}: ${shown(now)}`)];
      if (run.given.has(position)) return [...nodes, make("p", {}, "Given, never changed.")];
      if (!changes.length) return [...nodes, make("p", {}, "Never changed.")];
      if (last) {
        const parts = [`${last.reason} in step ${last.step + 1}`];
        if (last.entropy === null) parts.push("without a reading of the network");
        else {
          if (last.p_new !== null) parts.push(`probability ${percent(last.p_new)}`);
          if (last.p_old !== null) parts.push(`of the word before ${percent(last.p_old)}`);
          parts.push(`entropy ${last.entropy.toFixed(2)} nats`);
        }
        nodes.push(make("p", {}, parts.join(", ") + "."));
      } else nodes.push(make("p", {}, "Not written yet."));
      if (last?.alternatives?.length) nodes.push(alternatives(run, last));
      nodes.push(historyTable(run, changes, moment));
      return nodes;
    }
    appendFrame(frame, number = 0, draw = true) {
      const follow = this.position === this.length - 1 && !this.timer, run = this.runs[number], trace = this.traces[number];
      for (const [token, text] of Object.entries(frame.pieces ?? {})) {
        trace.pieces[token] = text;
        run.pieces.set(Number(token), text);
      }
      for (const name in trace.changes) trace.changes[name].push(...(frame.changes[name] ?? []));
      run.append(frame.changes);
      const last = run.moments[run.moments.length - 1];
      last.evaluations = Math.max(last.evaluations, frame.evaluations ?? 0);
      last.computed = Math.max(last.computed, frame.computed ?? 0);
      if (!draw) return;
      this.extended(follow);
      if (follow && performance.now() - this.said > QUIET) this.rest();
    }
    finish(number = 0) {
      const follow = this.position === this.length - 1 && !this.timer;
      this.runs[number].finish(0, 0);
      this.extended(follow);
      if (follow) this.rest();
    }
    extended(follow) {
      this.align();
      if (follow) this.position = this.length - 1;
      this.show();
    }
    destroy() {
      clearTimeout(this.timer);
      this.media.removeEventListener("change", this.repaint);
      this.element.replaceChildren();
    }
  }

  const HINT = "Point at a token, or move to it with Tab and the arrow keys, to see its probability, its alternatives and its history.";
  const KEYS = "Space plays and pauses. Left and Right go one step back and on, Home and End to the first and the last. Plus and minus change the speed. In a text the arrow keys move from token to token, and Up and Down by ten.";

  function alternatives(run, change) {
    const rows = [];
    for (let k = 0; k < change.alternatives.length; k += 2) {
      const [token, p] = [change.alternatives[k], change.alternatives[k + 1]];
      const bar = make("span", { class: "bar" });
      bar.style.setProperty("--share", String(Math.min(Math.max(p, 0), 1)));
      const chosen = token === change.new;
      rows.push(make("tr", { class: chosen ? "chosen" : "" }, make("th", { scope: "row", class: "word" }, (chosen ? "→ " : "") + shown(run.piece(token))),
        make("td", {}, percent(p)), make("td", { class: "bars", "aria-hidden": "true" }, bar)));
    }
    return make("table", { class: "alternatives" }, make("caption", {}, "Likeliest words"), make("tbody", {}, ...rows));
  }
  function historyTable(run, changes, moment) {
    const head = make("tr", {}, ...["Step", "Evaluations", "From", "To", "p before", "p after"].map((name) => make("th", { scope: "col" }, name)));
    const rows = changes.map((c) => make(
      "tr", { class: c.moment > moment ? "future" : "" },
      ...[c.step + 1, c.evaluations, shown(run.piece(c.old)), shown(run.piece(c.new)), c.p_old === null ? "–" : percent(c.p_old), c.p_new === null ? "–" : percent(c.p_new)]
        .map((value, column) => make("td", { class: column === 2 || column === 3 ? "word" : "" }, String(value)))));
    return make("table", { class: "history" }, make("caption", {}, "History of this position"), make("thead", {}, head), make("tbody", {}, ...rows));
  }

  function mountReplay(element, trace, options = {}) {
    const traces = Array.isArray(trace) ? trace : [trace];
    if (traces.length < 1 || traces.length > 2) throw new RangeError(`a replay shows one or two traces; got ${traces.length}`);
    for (const one of traces) {
      if (one.format !== "hdlm-trace" || one.version !== 1) throw new TypeError("a replay needs traces of format hdlm-trace, version 1");
      if (!one.sequences.length) throw new TypeError("the trace has no sequence");
    }
    return new Player(element, traces, options);
  }

  globalThis.hdlmReplay = { mountReplay };

  // A file of `hdlm view`: the traces lie in the page as data.
  const data = document.getElementById("hdlm-traces"), place = document.getElementById("hdlm-replay");
  if (data && place) globalThis.hdlmReplay.page = mountReplay(place, JSON.parse(data.textContent), JSON.parse(data.dataset.options || "{}"));
})();
