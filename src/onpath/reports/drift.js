// Drift: what a network makes of states of its own, from noise on the left to data, one line for each length of the walk.

const WALKS = 5; // tints

function walks(rows) {
  const size = (offset) => (offset === "all" ? Infinity : offset);
  return [...new Set(rows.map((row) => row.offset))].filter((offset) => offset !== 0).sort((a, b) => size(a) - size(b));
}

function walkName(offset) {
  return offset === "all" ? "from noise" : `${offset} step${offset > 1 ? "s" : ""}`;
}

// The rows of one run, those of other samplers apart: [[label, rows]].
function drifts(run) {
  const found = new Map();
  for (const row of run.evaluation) {
    if (!Number.isFinite(row.t) || !(row.offset === "all" || Number.isFinite(row.offset))) continue;
    const label = row.mode.split(" ").slice(3).join(" ");
    if (!found.has(label)) found.set(label, []);
    found.get(label).push(row);
  }
  return [...found];
}

// A line of a metric over t: {xs, ys, low, high}, the last two its intervals.
function driftLine(rows, metric, offset, factor) {
  const chosen = rows.filter((row) => row.metric === metric && row.offset === offset).sort((a, b) => a.t - b.t);
  const end = (row, place) => factor * (Array.isArray(row.ci95) ? row.ci95[place] : row.value);
  return { xs: chosen.map((row) => row.t), ys: chosen.map((row) => factor * row.value), low: chosen.map((row) => end(row, 0)), high: chosen.map((row) => end(row, 1)) };
}

function driftCharts(rows, whose, bounds) {
  const offsets = walks(rows), longest = offsets.at(-1);
  const look = (offset) => `d${Math.round(((offsets.indexOf(offset) + 1) / offsets.length) * (WALKS - 1))}`;
  const x = { label: "t, from noise to data", low: 1, high: 0 };
  const rest = Math.min(...rows.map((row) => row.t));
  const bias = offsets.map((offset) => {
    const { low, high, ...line } = driftLine(rows, "bias", offset, 100);
    return { label: walkName(offset), look: look(offset), run: 0, dots: true, ...line, ...(offset === longest ? { low, high } : {}) };
  });
  const loss = offsets.map((offset) => ({ label: walkName(offset), look: look(offset), run: 0, dots: true, ...driftLine(rows, "loss_ratio", offset, 1), low: null, high: null }));
  const floor = offsets.map((offset) => ({ label: `${walkName(offset)}, floor`, look: `${look(offset)} floor`, run: 0, thin: true, silent: true, ...driftLine(rows, "floor", offset, 1), low: null, high: null }));
  const n = Math.max(...rows.map((row) => row.n || 0));
  return [
    chart({
      title: "Bias of own states", unit: `${whose}%, band: 95 % ${walkName(longest)}`, x, y: bounds.bias, height: 280, rest, series: bias,
      levels: [{ y: 0, label: "as in training" }], fine: n ? `Over ${figure(n)} held-out examples.` : "",
    }),
    chart({
      title: "Loss on own states", unit: `${whose}over that on forward states`, x, log: true, span: bounds.loss, height: 280, rest, series: [...loss, ...floor],
      levels: [{ y: 1, label: "as in training" }], keys: [make("li", {}, floorKey(), "floor: what a calibrated network would have")],
    }),
  ];
}

function floorKey() {
  return draw("svg", { class: "key", viewBox: "0 0 28 10", "aria-hidden": "true" }, draw("line", { class: "s d3 floor", x1: 1, x2: 27, y1: 5, y2: 5, "stroke-width": 1.4 }));
}

// The ends that hold all runs, so that panels can be compared.
function driftBounds(panels) {
  const rows = panels.flatMap((panel) => panel.rows);
  const ends = (metric, factor) => rows.filter((row) => row.metric === metric).map((row) => factor * row.value);
  const bands = panels.flatMap((panel) => driftLine(panel.rows, "bias", walks(panel.rows).at(-1), 100)).flatMap((line) => [...line.low, ...line.high]);
  const [low, high] = extent([...ends("bias", 100), ...bands, 0], false);
  const pad = 0.08 * (high - low), span = extent([...ends("loss_ratio", 1), ...ends("floor", 1), 1], true);
  return { bias: { low: low - pad, high: high + pad }, loss: span };
}

function drift(report, holder) {
  const panels = report.runs.flatMap((run) => drifts(run).map(([label, rows]) => ({ run, label, rows }))).filter((panel) => walks(panel.rows).length);
  if (!panels.length) return;
  const bounds = driftBounds(panels);
  for (const { run, label, rows } of panels) {
    const name = [report.runs.length > 1 ? run.name : "", label].filter(Boolean).join(", ");
    holder.append(...driftCharts(rows, name && `${name}: `, bounds));
  }
}
