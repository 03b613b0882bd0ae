// A player of traces: a plan unmasks step by step, then it is walked.

const HEADINGS = ["right", "down", "left", "up"];
const GLYPHS = {
  forward: "M12 20V5M6 11l6-6 6 6", left: "M19 20v-6a5 5 0 0 0-5-5H5M10 4L5 9l5 5", right: "M5 20v-6a5 5 0 0 1 5-5h9M14 4l5 5-5 5",
  end: "M7 7h10v10H7z", done: "M5 13l5 5 9-11", "pick up": "M12 19V7M7 12l5-5 5 5M5 4h14", drop: "M12 5v12M7 12l5 5 5-5M5 20h14", toggle: "M5 8h14M5 16h14",
};
const ICONS = { first: "M3 2h2v12H3zM13 2v12L6 8z", back: "M12 2v12L4 8z", play: "M4 2l10 6-10 6z", pause: "M3 2h4v12H3zM9 2h4v12H9z", next: "M4 2l8 6-8 6z", last: "M11 2h2v12h-2zM3 2l7 6-7 6z" };

// Every moment of a trace: first the plan's denoising steps, then the actions that are executed of it.
function momentsOf(trace) {
  const moments = [], poses = trace.poses || [], actions = trace.actions || [];
  trace.generations.forEach((generation, index) => {
    const after = generation.after || 0;
    const until = index + 1 < trace.generations.length ? trace.generations[index + 1].after : actions.length;
    const tokens = Array.from({ length: trace.length }, () => null);
    const events = [...generation.events].sort((a, b) => a[0] - b[0]);
    const steps = Math.max(generation.steps || 0, ...events.map((event) => event[0]));
    let place = 0;
    for (let step = 0; step <= steps; step++) {
      const fresh = [];
      for (; place < events.length && events[place][0] <= step; place++) {
        const [when, position, word, share] = events[place];
        if (position < 0 || position >= tokens.length) continue;
        tokens[position] = word === null ? null : { word: String(word), when, share };
        fresh.push(position);
      }
      moments.push({ kind: "plan", plan: index, plans: trace.generations.length, step, steps, tokens: [...tokens], fresh, after, action: after });
    }
    const whole = moments.at(-1).tokens;
    for (let moment of moments.filter((one) => one.plan === index)) moment.whole = whole;
    for (let action = after + 1; action <= until; action++) {
      moments.push({ kind: "walk", plan: index, plans: trace.generations.length, step: steps, steps, tokens: whole, whole, fresh: [], after, action });
    }
  });
  return moments;
}

// Where the finished plan leads from where it begins, token by token; the agent stops at walls and at the goal.
function pathOf(trace, moment) {
  const ahead = [[1, 0], [0, 1], [-1, 0], [0, -1]];
  let [x, y, direction] = trace.poses[Math.min(moment.after, trace.poses.length - 1)];
  const legs = [];
  for (const [position, token] of moment.whole.entries()) {
    const word = token ? token.word : "end";
    if (word === "end" || (x === trace.goal[0] && y === trace.goal[1])) break;
    if (word === "left") direction = (direction + 3) % 4;
    else if (word === "right") direction = (direction + 1) % 4;
    else if (word === "forward") {
      const [a, b] = [x + ahead[direction][0], y + ahead[direction][1]];
      const free = trace.maze[b] !== undefined && trace.maze[b][a] === ".";
      legs.push({ position, from: [x, y], to: free ? [a, b] : [x + 0.32 * ahead[direction][0], y + 0.32 * ahead[direction][1]], bump: !free });
      if (free) [x, y] = [a, b];
    }
  }
  return legs;
}

function sentence(trace, moment) {
  const many = moment.plans > 1 ? `Plan ${moment.plan + 1} of ${moment.plans}. ` : "";
  const shown = moment.tokens.filter(Boolean).length;
  if (moment.kind === "plan") {
    const words = moment.fresh.slice(0, 4).map((position) => `${moment.tokens[position] ? moment.tokens[position].word : "masked again"} at ${position + 1}`);
    const more = moment.fresh.length > 4 ? ` and ${moment.fresh.length - 4} more` : "";
    const news = moment.step && moment.fresh.length ? ` Now ${words.join(", ")}${more}.` : "";
    return [`${many}Forward ${moment.step} of ${moment.steps}:`, `${shown} of ${trace.length} tokens revealed.${news}`];
  }
  const [x, y, direction] = trace.poses[Math.min(moment.action, trace.poses.length - 1)];
  const isLast = moment.action === trace.actions.length;
  const outcome = !isLast ? "" : trace.reached ? ` Goal reached in ${trace.actions.length} actions; the shortest way takes ${trace.shortest}.` : " The goal was not reached.";
  return [`${many}Action ${moment.action} of ${trace.actions.length}: ${trace.actions[moment.action - 1]}.`, `Now at column ${x}, row ${y}, looking ${HEADINGS[direction]}.${outcome}`];
}

function board(trace, run, index, several) {
  const isPlan = trace.kind === "plan", moments = momentsOf(trace);
  const cells = Array.from({ length: trace.length }, () => make("li", { class: "token masked" }));
  const list = make("ol", { class: isPlan ? "tokens" : "tokens words", "aria-label": "Tokens of the plan" }, ...cells);
  const strong = make("strong"), rest = make("span");
  const status = make("p", { class: "status", role: "status" }, strong, " ", rest);
  const maze = isPlan ? mazeOf(trace) : null;
  const heading = several ? make("h3", {}, keyOf({ run: index }), run.name) : null;
  const element = make("div", { class: "board" }, heading, make("div", { class: "two" }, maze ? maze.element : null, make("div", {}, list, status)));
  const show = (at) => {
    const moment = moments[Math.min(at, moments.length - 1)];
    moment.tokens.forEach((token, position) => tokenInto(cells[position], token, position, moment, isPlan));
    if (maze) maze.show(moment);
    const [first, second] = sentence(trace, moment);
    strong.textContent = first;
    rest.textContent = second;
  };
  return { element, show, moments, status };
}

function tokenInto(cell, token, position, moment, isPlan) {
  const walked = moment.kind === "walk" ? moment.action - moment.after - 1 : -1;
  const names = ["token", token ? "" : "masked", token && token.word === "end" ? "end" : "", moment.fresh.includes(position) && moment.kind === "plan" ? "new" : "", position < walked ? "done" : "", position === walked ? "here" : ""];
  cell.className = names.filter(Boolean).join(" ");
  if (!token) {
    cell.title = `Token ${position + 1}: masked`;
    cell.replaceChildren(make("span", { class: "vh" }, "masked"));
    return;
  }
  const sure = token.share === null || token.share === undefined ? "given" : `probability ${figure(token.share)}`;
  cell.title = `Token ${position + 1}: ${token.word}, revealed by forward ${token.when}, ${sure}`;
  const known = isPlan && Object.hasOwn(GLYPHS, token.word);
  const glyph = known ? draw("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, draw("path", { d: GLYPHS[token.word] })) : make("span", {}, token.word);
  const bar = make("span", { class: "sure", "aria-hidden": "true" });
  bar.style.width = `${100 * (token.share ?? 1)}%`;
  cell.replaceChildren(glyph, make("span", { class: "when", "aria-hidden": "true" }, String(token.when)), bar, make("span", { class: "vh" }, `${known ? token.word : ""}, forward ${token.when}, ${sure}`));
}

function mazeOf(trace) {
  const height = trace.maze.length, width = trace.maze[0].length;
  const svg = draw("svg", { class: "maze", viewBox: `0 0 ${width} ${height}`, role: "img" });
  let walls = "";
  trace.maze.forEach((row, y) => [...row].forEach((cell, x) => { if (cell === "#") walls += `M${x} ${y}h1v1h-1z`; }));
  const lines = Array.from({ length: width - 1 }, (_, x) => `M${x + 1} 0V${height}`).join("") + Array.from({ length: height - 1 }, (_, y) => `M0 ${y + 1}H${width}`).join("");
  const [gx, gy] = trace.goal, [sx, sy] = trace.poses[0];
  const paths = draw("g"), trail = draw("g");
  const body = draw("path", { class: "agent", d: "M0.42 0L-0.34 0.36L-0.18 0L-0.34 -0.36z" });
  const box = draw("g", { class: "agentbox" }, body);
  svg.append(draw("rect", { class: "floor", width, height }), draw("path", { class: "cells", d: lines }), draw("path", { class: "wall", d: walls }),
    draw("rect", { class: "goal", x: gx + 0.06, y: gy + 0.06, width: 0.88, height: 0.88, rx: 0.14 }), draw("path", { class: "goalmark", d: `M${gx + 0.3} ${gy + 0.52}l0.16 0.17 0.28 -0.36` }),
    draw("circle", { class: "start", cx: sx + 0.5, cy: sy + 0.5, r: 0.4 }), paths, trail, box);
  let turned = null;
  const at = (value) => (value + 0.5).toFixed(2);
  const show = (moment) => {
    const poses = trace.poses.slice(0, moment.action + 1), [x, y, direction] = poses.at(-1);
    const gap = moment.tokens.findIndex((token) => !token);
    const legs = pathOf(trace, moment).filter((leg) => moment.tokens[leg.position]);
    paths.replaceChildren(...legs.map((leg) => draw("line", {
      class: leg.bump ? "bump" : `plan${gap >= 0 && leg.position > gap ? " far" : ""}`, x1: at(leg.from[0]), y1: at(leg.from[1]), x2: at(leg.to[0]), y2: at(leg.to[1]),
    })));
    trail.replaceChildren(draw("polyline", { class: "trail", points: poses.map(([a, b]) => `${at(a)},${at(b)}`).join(" ") }));
    if (turned === null) turned = 90 * direction;
    turned += ((90 * direction - turned) % 360 + 540) % 360 - 180;
    box.style.transform = `translate(${x + 0.5}px, ${y + 0.5}px) rotate(${turned}deg)`;
    svg.setAttribute("aria-label", `Maze of ${width} by ${height} cells. Agent at column ${x}, row ${y}, looking ${HEADINGS[direction]}; goal at column ${gx}, row ${gy}.`);
  };
  return { element: svg, show };
}

function plans(report, holder) {
  const all = report.runs.flatMap((run, index) => run.traces.map((trace) => ({ trace, run, index, key: `${trace.kind}|${trace.set}|${trace.task}` })));
  if (!all.length) {
    holder.append(make("p", { class: "note" }, "No traces yet: ", make("code", {}, `onpath evaluate ${report.runs[0].path}`), " writes them."));
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
    player.classList.toggle("moving", timer !== null);
    boards.forEach((one) => one.status.setAttribute("aria-live", timer === null ? "polite" : "off"));
  };
  const stop = () => { clearTimeout(timer); timer = null; face(); };
  const tick = () => {
    if (at >= last) return stop();
    go(at + 1);
    const isWalk = boards.every((one) => one.moments[Math.min(at, one.moments.length - 1)].kind === "walk");
    timer = setTimeout(tick, (isWalk ? 210 : modes.length && boards[0].moments.length > 60 ? 130 : 420) / speed);
  };
  const start = () => { if (at >= last) go(0); timer = setTimeout(tick, 250 / speed); face(); };
  const build = (keep) => {
    stop();
    const chosen = all.filter((one) => one.trace.mode === mode && one.key === task);
    boards = chosen.map((one) => board(one.trace, one.run, one.index, report.runs.length > 1));
    grid.className = `boards${chosen.length === 1 ? " single" : ""}`;
    grid.replaceChildren(...(boards.length ? boards.map((one) => one.element) : [make("p", { class: "note" }, "No run has a trace of this task in this mode.")]));
    last = Math.max(0, ...boards.map((one) => one.moments.length - 1));
    slider.max = last;
    go(keep ? at : last);
    face();
  };
  const outcomes = (key) => {
    const found = all.filter((one) => one.key === key && one.trace.mode === mode && one.trace.reached !== null);
    return found.map((one) => (one.trace.reached ? "✓" : "✗")).join("");
  };
  const chips = () => {
    taskChips.replaceChildren(make("legend", {}, "Task"), ...tasks.map(([key, trace]) => make("label", { class: "chip" },
      make("input", { type: "radio", name: "trace-task", value: key, checked: key === task, "aria-label": `Task ${trace.task}, ${all.filter((one) => one.key === key && one.trace.mode === mode).map((one) => (one.trace.reached ? "reached" : "not reached")).join(", ")}`, onchange: () => { task = key; build(); } }),
      make("span", {}, `${trace.task} ${outcomes(key)}`))));
    modeChips.replaceChildren(make("legend", {}, "Mode"), ...modes.map((name) => make("label", { class: "chip" },
      make("input", { type: "radio", name: "trace-mode", value: name, checked: name === mode, onchange: () => { mode = name; for (const input of taskChips.querySelectorAll("input")) input.nextSibling.textContent = `${tasks.find(([key]) => key === input.value)[1].task} ${outcomes(input.value)}`; build(); } }), make("span", {}, name))));
  };
  const controls = make("div", { class: "controls", role: "group", "aria-label": "Player" },
    play, button("first", "To the beginning", () => { stop(); go(0); }), button("back", "One step back", () => { stop(); go(at - 1); }),
    button("next", "One step forward", () => { stop(); go(at + 1); }), button("last", "To the end", () => { stop(); go(last); }),
    slider, make("label", {}, "Speed ", speeds));
  const hint = make("p", { class: "hint" }, "Keys, once the player has the focus: ", make("kbd", {}, "space"), " plays and pauses, ", make("kbd", {}, "←"), " ", make("kbd", {}, "→"), " step, ", make("kbd", {}, "Home"), " ", make("kbd", {}, "End"),
    ". In a cell: the forward that revealed it, top right; the network's probability of it, as the bar below. Dotted legs depend on tokens that are still masked. ✓ reached the goal, ✗ did not.");
  const player = make("div", { class: "player", tabindex: "0", role: "region", "aria-label": "Player of plans" }, make("div", { class: "bar" }, modeChips, taskChips), grid, controls, hint);
  player.addEventListener("keydown", (event) => {
    const isOwn = event.target === player;
    const plain = !(event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement);
    const act = { " ": isOwn ? () => play.click() : null, ArrowRight: plain ? () => { stop(); go(at + 1); } : null, ArrowLeft: plain ? () => { stop(); go(at - 1); } : null, Home: plain ? () => { stop(); go(0); } : null, End: plain ? () => { stop(); go(last); } : null }[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  holder.append(player);
  chips();
  build();
}
