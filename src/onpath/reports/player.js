// The player of traces: what is generated comes about moment by moment, several runs side by side.

const ICONS = { first: "M3 2h2v12H3zM13 2v12L6 8z", back: "M12 2v12L4 8z", play: "M4 2l10 6-10 6z", pause: "M3 2h4v12H3zM9 2h4v12H9z", next: "M4 2l8 6-8 6z", last: "M11 2h2v12h-2zM3 2l7 6-7 6z" };

// Every moment of a trace: first the denoising steps of each canvas, then the actions that are executed of it.
// struck: [position, word] of the tokens that are masked again; again: how often each position was so far.
function momentsOf(trace) {
  const moments = [], poses = trace.poses || [], actions = trace.actions || [];
  trace.generations.forEach((generation, index) => {
    const after = generation.after || 0;
    const until = index + 1 < trace.generations.length ? trace.generations[index + 1].after : actions.length;
    const tokens = Array.from({ length: trace.length }, () => null), again = Array.from({ length: trace.length }, () => 0);
    const events = [...generation.events].sort((a, b) => a[0] - b[0]);
    const steps = Math.max(generation.steps || 0, ...events.map((event) => event[0]));
    let place = 0;
    for (let step = 0; step <= steps; step++) {
      const fresh = [], struck = [];
      for (; place < events.length && events[place][0] <= step; place++) {
        const [when, position, word, share] = events[place];
        if (position < 0 || position >= tokens.length) continue;
        if (word === null) {
          if (tokens[position]) struck.push([position, tokens[position].word]);
          again[position] += 1;
        }
        tokens[position] = word === null ? null : { word: String(word), when, share };
        fresh.push(position);
      }
      moments.push({ kind: "plan", plan: index, plans: trace.generations.length, step, steps, tokens: [...tokens], again: [...again], fresh, struck, after, action: after });
    }
    const whole = moments.at(-1).tokens;
    for (let moment of moments.filter((one) => one.plan === index)) moment.whole = whole;
    for (let action = after + 1; action <= until; action++) {
      moments.push({ kind: "walk", plan: index, plans: trace.generations.length, step: steps, steps, tokens: whole, again, whole, fresh: [], struck: [], after, action });
    }
  });
  return moments;
}

// spec: {kind, label, noun, hint, boardOf(trace, run, index, heading), delay(boards, at), outcome(trace), extra(refresh),
// keeps}: keeps is whether a run without a trace in the chosen mode shows one of another mode.
function player(report, holder, spec) {
  const all = report.runs.flatMap((run, index) => run.traces.filter((trace) => trace.kind === spec.kind).map((trace) => ({ trace, run, index, key: `${trace.set}|${trace.task}` })));
  if (!all.length) {
    const run = report.runs.find((one) => one.subject === spec.kind) || report.runs[0];
    holder.append(make("p", { class: "note" }, "No traces yet: ", make("code", {}, `onpath evaluate ${run.path}`), " writes them."));
    return;
  }
  const modes = [...new Set(all.map((one) => one.trace.mode))];
  const tasks = [...new Map(all.map((one) => [one.key, one.trace])).entries()];
  let mode = modes[0], task = tasks[0][0], boards = [], at = 0, last = 0, speed = 1, timer = null;

  const button = (icon, words, act) => make("button", { type: "button", "aria-label": words, title: words, onclick: act }, draw("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, draw("path", { d: ICONS[icon] })));
  const play = make("button", { type: "button", class: "play", onclick: () => (timer === null ? start() : stop()) });
  const slider = make("input", { type: "range", min: 0, value: 0, step: 1, "aria-label": "Moment of the trace", oninput: () => { stop(); go(Number(slider.value)); } });
  const speeds = make("select", { onchange: () => { speed = Number(speeds.value); } }, ...[0.5, 1, 2, 4].map((value) => make("option", { value, selected: value === 1 }, `${value}×`)));
  const grid = make("div", { class: "boards" });
  const taskChips = make("fieldset", { class: "group" }), modeChips = make("fieldset", { class: "group" });

  const go = (moment) => {
    at = Math.max(0, Math.min(last, moment));
    boards.forEach((one) => one.show(at));
    slider.value = at;
    slider.setAttribute("aria-valuetext", `${at} of ${last}`);
  };
  const face = () => {
    const name = timer === null ? "play" : "pause";
    play.replaceChildren(draw("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, draw("path", { d: ICONS[name] })), timer === null ? "Play" : "Pause");
    element.classList.toggle("moving", timer !== null);
    boards.forEach((one) => one.status.setAttribute("aria-live", timer === null ? "polite" : "off"));
  };
  const stop = () => { clearTimeout(timer); timer = null; face(); };
  const tick = () => {
    if (at >= last) return stop();
    go(at + 1);
    timer = setTimeout(tick, spec.delay(boards, at) / speed);
  };
  const start = () => { if (at >= last) go(0); timer = setTimeout(tick, 250 / speed); face(); };
  const chosenOf = (key) => all.filter((one) => one.key === key && one.trace.mode === mode);
  const build = () => {
    stop();
    const chosen = chosenOf(task), missing = all.filter((one) => one.key === task && !chosen.some((other) => other.index === one.index));
    if (spec.keeps) chosen.push(...missing.filter((one, place) => missing.findIndex((other) => other.index === one.index) === place));
    chosen.sort((a, b) => a.index - b.index);
    boards = chosen.map((one) => spec.boardOf(one.trace, one.run, one.index, report.runs.length > 1 ? headingOf(one, mode) : null));
    grid.className = `boards${chosen.length === 1 ? " single" : ""}`;
    grid.replaceChildren(...(boards.length ? boards.map((one) => one.element) : [make("p", { class: "note" }, `No run has a trace of this ${spec.noun} in this mode.`)]));
    last = Math.max(0, ...boards.map((one) => one.moments.length - 1));
    slider.max = last;
    go(last);
    face();
  };
  const taskWords = (key, trace) => `${trace.task} ${chosenOf(key).map((one) => spec.outcome(one.trace)).join("")}`;
  const nameOf = (key, trace) => [`${spec.label} ${trace.task}`, ...chosenOf(key).map((one) => ({ "✓": "reached", "✗": "not reached" })[spec.outcome(one.trace)]).filter(Boolean)].join(", ");
  const chips = () => {
    taskChips.replaceChildren(make("legend", {}, spec.label), ...tasks.map(([key, trace]) => make("label", { class: "chip" },
      make("input", { type: "radio", name: `${spec.kind}-task`, value: key, checked: key === task, "aria-label": nameOf(key, trace), onchange: () => { task = key; build(); } }),
      make("span", {}, taskWords(key, trace)))));
    const renamed = () => { for (const input of taskChips.querySelectorAll("input")) input.nextSibling.textContent = taskWords(...tasks.find(([key]) => key === input.value)); };
    modeChips.replaceChildren(make("legend", {}, "Mode"), ...modes.map((name) => make("label", { class: "chip" },
      make("input", { type: "radio", name: `${spec.kind}-mode`, value: name, checked: name === mode, onchange: () => { mode = name; renamed(); build(); } }), make("span", {}, name))));
  };
  const controls = make("div", { class: "controls", role: "group", "aria-label": "Player" },
    play, button("first", "To the beginning", () => { stop(); go(0); }), button("back", "One step back", () => { stop(); go(at - 1); }),
    button("next", "One step forward", () => { stop(); go(at + 1); }), button("last", "To the end", () => { stop(); go(last); }),
    slider, make("label", {}, "Speed ", speeds));
  const hint = make("p", { class: "hint" }, "Keys, once the player has the focus: ", make("kbd", {}, "space"), " plays and pauses, ", make("kbd", {}, "←"), " ", make("kbd", {}, "→"), " step, ", make("kbd", {}, "Home"), " ", make("kbd", {}, "End"), `. ${spec.hint}`);
  const element = make("div", { class: "player", tabindex: "0", role: "region", "aria-label": `Player of ${spec.noun}s` }, make("div", { class: "bar" }, modeChips, taskChips, spec.extra ? spec.extra(() => go(at)) : null), grid, controls, hint);
  element.addEventListener("keydown", (event) => {
    const isOwn = event.target === element;
    const plain = !(event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement);
    const act = { " ": isOwn ? () => play.click() : null, ArrowRight: plain ? () => { stop(); go(at + 1); } : null, ArrowLeft: plain ? () => { stop(); go(at - 1); } : null, Home: plain ? () => { stop(); go(0); } : null, End: plain ? () => { stop(); go(last); } : null }[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  holder.append(element);
  chips();
  build();
}

function headingOf(one, mode) {
  return make("h3", {}, keyOf({ run: one.index }), one.run.name, one.trace.mode === mode ? null : make("span", { class: "muted" }, one.trace.mode));
}
