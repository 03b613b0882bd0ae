// Searches: what they solve at each budget, and how the tree of one grows.

const VALUES = 5; // tints of a node, by the greatest value below it

function budgets(report, holder) {
  const bySet = new Map();
  report.runs.forEach((run, index) => run.evaluation.forEach((row) => {
    if (row.metric !== "success" || typeof row.search !== "string" || !Number.isFinite(row.budget)) return;
    if (!bySet.has(row.set)) bySet.set(row.set, new Map());
    const label = row.mode.replace(`@${row.budget}`, ""), name = report.runs.length > 1 ? `${label}, ${run.name}` : label;
    if (!bySet.get(row.set).has(name)) bySet.get(row.set).set(name, { run, index, rows: [] });
    bySet.get(row.set).get(name).rows.push(row);
  }));
  for (const [set, lines] of bySet) {
    const places = [...new Set([...lines.values()].flatMap((one) => one.rows.map((row) => row.budget)))].sort((a, b) => a - b);
    const end = (row, place) => (Array.isArray(row.ci95) ? row.ci95[place] : row.value);
    const series = [...lines].map(([label, { rows }], index) => {
      rows.sort((a, b) => a.budget - b.budget);
      const few = lines.size <= 6; // bands over bands are not read
      return {
        label, run: index, dots: true, xs: rows.map((row) => row.budget), ys: rows.map((row) => row.value),
        ...(few ? { low: rows.map((row) => end(row, 0)), high: rows.map((row) => end(row, 1)) } : {}),
      };
    });
    const [low, high] = [places[0], places.at(-1)];
    const n = Math.max(...[...lines.values()].flatMap((one) => one.rows.map((row) => row.n || 0)));
    holder.append(chart({
      title: "Solved by search", unit: `set ${set}, share of tasks`, series, height: 300, y: { low: 0, high: 1 },
      x: { label: "budget of a task, forwards", low: low === high ? low / 2 : low, high: low === high ? 2 * high : high, places },
      fine: `${figure(n)} tasks.${lines.size <= 6 ? " Bands: 95 % intervals." : ""}`,
    }));
  }
}

function momentsOfSearch(trace) {
  const { nodes, found, spent } = trace.search;
  const times = [...new Set([0, ...nodes.map((node) => node.born), ...found.map((one) => one.forwards), spent])].sort((a, b) => a - b);
  return times.map((forwards) => ({ kind: "search", forwards }));
}

// Leaves side by side, each node above the middle of its children: [x from 0 to 1, depth].
function treePlaces(nodes) {
  const children = nodes.map(() => []), across = nodes.map(() => 0);
  nodes.forEach((node, index) => { if (node.parent !== null) children[node.parent].push(index); });
  let leaves = 0;
  const left = [[0, false]];
  while (left.length) {
    const [index, back] = left.pop();
    if (!children[index].length) across[index] = leaves++;
    else if (back) across[index] = children[index].reduce((sum, child) => sum + across[child], 0) / children[index].length;
    else left.push([index, true], ...children[index].map((child) => [child, false]).reverse());
  }
  return nodes.map((node, index) => [(across[index] + 0.5) / Math.max(1, leaves), node.depth]);
}

function tint(value) {
  return `v${Math.max(0, Math.min(VALUES - 1, Math.floor(value * VALUES)))}`;
}

function treeOf(trace) {
  const nodes = trace.search.nodes, places = treePlaces(nodes), deepest = Math.max(1, ...nodes.map((node) => node.depth));
  const wide = 400, high = Math.min(400, 40 + 34 * deepest);
  const svg = draw("svg", { class: "tree", viewBox: `0 0 ${wide} ${high}`, role: "img" });
  const at = (index) => [8 + places[index][0] * (wide - 16), 14 + (places[index][1] / deepest) * (high - 28)];
  const most = Math.max(1, ...nodes.map((node) => node.visits));
  const edges = draw("g"), dots = draw("g");
  svg.append(edges, dots);
  const drawn = nodes.map((node, index) => {
    const [x, y] = at(index), parent = node.parent === null ? null : at(node.parent);
    const edge = parent ? draw("line", { class: "edge", x1: parent[0], y1: parent[1], x2: x, y2: y }) : null;
    const dot = draw("circle", { class: `node ${tint(node.value)}`, cx: x, cy: y, r: 2.5 + 5 * Math.sqrt(node.visits / most) });
    dot.append(draw("title", {}, `${node.visits} visits, value ${figure(node.value)}, after ${node.born} forwards`));
    if (edge) edges.append(edge);
    dots.append(dot);
    return { edge, dot, born: node.born };
  });
  const show = (forwards) => {
    let shown = 0;
    for (const { edge, dot, born } of drawn) {
      const state = born <= forwards ? null : "hidden";
      shown += state ? 0 : 1;
      for (const one of [edge, dot]) if (one) one.setAttribute("visibility", state || "visible");
    }
    svg.setAttribute("aria-label", `Tree of ${shown} nodes after ${forwards} forwards, of ${drawn.length} in the end.`);
    return shown;
  };
  return { element: svg, show };
}

function groundOfSearch(trace) {
  const { svg, width, height } = groundOf(trace, trace.poses[0]);
  const dots = draw("g"), plan = draw("polyline", { class: "trail" });
  svg.append(dots, plan);
  const places = trace.search.nodes.filter((node) => node.cell).map((node) => {
    const dot = draw("circle", { class: `node ${tint(node.value)}`, cx: node.cell[0] + 0.5, cy: node.cell[1] + 0.5, r: 0.26 });
    dots.append(dot);
    return { dot, born: node.born };
  });
  const show = (forwards, best) => {
    for (const { dot, born } of places) dot.setAttribute("visibility", born <= forwards ? "visible" : "hidden");
    plan.setAttribute("points", (best ? best.cells : []).map(([x, y]) => `${x + 0.5},${y + 0.5}`).join(" "));
    svg.setAttribute("aria-label", `Maze of ${width} by ${height} cells with the places of the tree and the best plan.`);
  };
  return { element: svg, show };
}

function searchBoard(trace, run, index, heading) {
  const moments = momentsOfSearch(trace), tree = treeOf(trace), ground = trace.maze.length ? groundOfSearch(trace) : null;
  const strong = make("strong"), rest = make("span"), plan = make("p", { class: "plan" });
  const status = make("p", { class: "status", role: "status" }, strong, " ", rest);
  const right = make("div", {}, tree.element, status, ground ? null : plan);
  const element = make("div", { class: "board" }, heading, make("div", { class: "two" }, ground ? ground.element : null, right));
  const show = (at) => {
    const { forwards } = moments[Math.min(at, moments.length - 1)];
    const best = trace.search.found.filter((one) => one.forwards <= forwards).at(-1);
    const shown = tree.show(forwards);
    if (ground) ground.show(forwards, best);
    strong.textContent = `${forwards} of ${trace.search.spent} forwards, ${shown} nodes:`;
    const cost = best && trace.shortest !== null ? ` in ${best.cost} actions; the shortest way takes ${trace.shortest}` : "";
    rest.textContent = !best ? "no plan yet." : best.solved ? `solved${cost}.` : `the best plan is worth ${figure(best.value)} and solves nothing.`;
    plan.textContent = best ? best.plan : "";
  };
  return { element, show, moments, status };
}

function searches(report, holder) {
  player(report, holder, {
    kind: "search", label: "Task", noun: "search", boardOf: searchBoard, keeps: false,
    outcome: (trace) => (trace.reached ? "✓" : "✗"),
    delay: (boards) => (boards[0].moments.length > 60 ? 110 : 260),
    hint: "A node is the larger the more visits went through it, and the darker the greater the value that came of them; in the maze the nodes are where they stand, and the line is the best plan so far.",
  });
}
