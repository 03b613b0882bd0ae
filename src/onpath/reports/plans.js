// Plans: each unmasks step by step, then it is walked.

const HEADINGS = ["right", "down", "left", "up"];
const GLYPHS = {
  forward: "M12 20V5M6 11l6-6 6 6", left: "M19 20v-6a5 5 0 0 0-5-5H5M10 4L5 9l5 5", right: "M5 20v-6a5 5 0 0 1 5-5h9M14 4l5 5-5 5",
  end: "M7 7h10v10H7z", done: "M5 13l5 5 9-11", "pick up": "M12 19V7M7 12l5-5 5 5M5 4h14", drop: "M12 5v12M7 12l5 5 5-5M5 20h14", toggle: "M5 8h14M5 16h14",
};

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

function planBoard(trace, run, index, heading) {
  const moments = momentsOf(trace);
  const cells = Array.from({ length: trace.length }, () => make("li", { class: "token masked" }));
  const list = make("ol", { class: "tokens", "aria-label": "Tokens of the plan" }, ...cells);
  const strong = make("strong"), rest = make("span");
  const status = make("p", { class: "status", role: "status" }, strong, " ", rest);
  const maze = mazeOf(trace);
  const element = make("div", { class: "board" }, heading, make("div", { class: "two" }, maze.element, make("div", {}, list, status)));
  const show = (at) => {
    const moment = moments[Math.min(at, moments.length - 1)];
    moment.tokens.forEach((token, position) => tokenInto(cells[position], token, position, moment));
    maze.show(moment);
    const [first, second] = sentence(trace, moment);
    strong.textContent = first;
    rest.textContent = second;
  };
  return { element, show, moments, status };
}

function tokenInto(cell, token, position, moment) {
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
  const known = Object.hasOwn(GLYPHS, token.word);
  const glyph = known ? draw("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, draw("path", { d: GLYPHS[token.word] })) : make("span", {}, token.word);
  const bar = make("span", { class: "sure", "aria-hidden": "true" });
  bar.style.width = `${100 * (token.share ?? 1)}%`;
  cell.replaceChildren(glyph, make("span", { class: "when", "aria-hidden": "true" }, String(token.when)), bar, make("span", { class: "vh" }, `${known ? token.word : ""}, forward ${token.when}, ${sure}`));
}

// The maze from above, with the goal and where the agent begins: what both players draw on.
function groundOf(trace, [sx, sy]) {
  const height = trace.maze.length, width = trace.maze[0].length;
  const svg = draw("svg", { class: "maze", viewBox: `0 0 ${width} ${height}`, role: "img" });
  let walls = "";
  trace.maze.forEach((row, y) => [...row].forEach((cell, x) => { if (cell === "#") walls += `M${x} ${y}h1v1h-1z`; }));
  const lines = Array.from({ length: width - 1 }, (_, x) => `M${x + 1} 0V${height}`).join("") + Array.from({ length: height - 1 }, (_, y) => `M0 ${y + 1}H${width}`).join("");
  const [gx, gy] = trace.goal;
  svg.append(draw("rect", { class: "floor", width, height }), draw("path", { class: "cells", d: lines }), draw("path", { class: "wall", d: walls }),
    draw("rect", { class: "goal", x: gx + 0.06, y: gy + 0.06, width: 0.88, height: 0.88, rx: 0.14 }), draw("path", { class: "goalmark", d: `M${gx + 0.3} ${gy + 0.52}l0.16 0.17 0.28 -0.36` }),
    draw("circle", { class: "start", cx: sx + 0.5, cy: sy + 0.5, r: 0.4 }));
  return { svg, width, height };
}

function mazeOf(trace) {
  const { svg, width, height } = groundOf(trace, trace.poses[0]);
  const [gx, gy] = trace.goal;
  const paths = draw("g"), trail = draw("g");
  const body = draw("path", { class: "agent", d: "M0.42 0L-0.34 0.36L-0.18 0L-0.34 -0.36z" });
  const box = draw("g", { class: "agentbox" }, body);
  svg.append(paths, trail, box);
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
  player(report, holder, {
    kind: "plan", label: "Task", noun: "plan", boardOf: planBoard, keeps: false,
    outcome: (trace) => (trace.reached === null ? "" : trace.reached ? "✓" : "✗"),
    delay: (boards, at) => (boards.every((one) => one.moments[Math.min(at, one.moments.length - 1)].kind === "walk") ? 210 : boards[0].moments.length > 60 ? 130 : 420),
    hint: "In a cell: the forward that revealed it, top right; the network's probability of it, as the bar below. Dotted legs depend on tokens that are still masked. ✓ reached the goal, ✗ did not.",
  });
}
