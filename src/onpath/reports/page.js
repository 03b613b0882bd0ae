// The page itself: theme, live reload, and which charts there are.

const report = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function remembered(key, value) {
  try {
    if (value === undefined) return sessionStorage.getItem(key) || localStorage.getItem(key);
    (key === "onpath-theme" ? localStorage : sessionStorage).setItem(key, value);
  } catch { /* a page from disk may have no storage: then nothing is remembered */ }
  return null;
}

function theme() {
  const button = byId("theme"), root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const show = () => { button.textContent = isDark() ? "Light" : "Dark"; button.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`); };
  const kept = remembered("onpath-theme");
  if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  button.hidden = false;
  button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; remembered("onpath-theme", root.dataset.theme); show(); });
  system.addEventListener("change", show);
  show();
}

function live() {
  const button = byId("reload");
  if (!button || !report.reload) return;
  const isOn = () => button.getAttribute("aria-pressed") === "true";
  const set = (on) => { button.setAttribute("aria-pressed", String(on)); button.textContent = on ? "Updating" : "Paused"; button.setAttribute("aria-label", on ? "Updating by itself; press to pause" : "Paused; press to update again"); };
  button.hidden = false;
  set(remembered("onpath-live") !== "off");
  button.addEventListener("click", () => { set(!isOn()); remembered("onpath-live", isOn() ? "on" : "off"); });
  const place = Number(remembered("onpath-scroll"));
  if (place) requestAnimationFrame(() => scrollTo(0, place));
  let touched = 0;
  for (const kind of ["pointerdown", "keydown"]) addEventListener(kind, () => { touched = Date.now(); });
  setInterval(() => {
    const busy = document.querySelector(".player.moving") || Date.now() - touched < 5000;
    if (isOn() && !busy && !document.hidden) { remembered("onpath-scroll", String(scrollY)); location.reload(); }
  }, 1000 * report.reload);
}

const FIRST = ["loss", "nelbo_per_token", "accuracy", "masked_share", "learning_rate", "examples_per_second", "gradient_norm"];
const SPELLED = {
  loss: ["Loss", "that which is minimised"], nelbo_per_token: ["NELBO", "nats per token, a bound"],
  accuracy: ["Accuracy", "share of masked tokens predicted"],
  masked_share: ["Masked share", "mean over examples"], learning_rate: ["Learning rate", ""],
  examples_per_second: ["Rate", "examples per second"], gradient_norm: ["Gradient norm", "before clipping"],
  masked_cross_entropy: ["Masked cross-entropy", "nats per masked token"],
  doubted_replaced: ["Doubted, replaced", "share of wrong tokens that are answered by [MASK]"],
  doubted_untouched: ["Doubted, untouched", "share of right tokens that are answered by [MASK]"],
};
Object.assign(SPELLED, {
  reward: ["Reward", "weighted sum, ± its spread within groups"], frac_reward_zero_std: ["Groups without spread", "share in which all rewards are alike"],
  kl: ["KL", "to the network that training began with, nats"], entropy: ["Entropy", "nats per scored token"],
  "clip_ratio/low_mean": ["Clipped below", "share of ratios"], "clip_ratio/high_mean": ["Clipped above", "share of ratios"],
  "sampling/importance_sampling_ratio/mean": ["Probability ratio", "mean, new over old"], ess: ["Effective rollouts", "share of a micro-batch"],
  "completions/mean_length": ["Length of completions", "tokens, mean"], "completions/min_length": ["Shortest completion", "tokens"], "completions/max_length": ["Longest completion", "tokens"],
  "completions/clipped_ratio": ["Completions without end", "share"], rollout_forwards: ["Forwards of a completion", "rows through the network"], rollout_seconds: ["Time of rollouts", "seconds of a round"],
  "logp/traj": ["Log-probability", "of a completion along its trajectory, nats"], "logp/nelbo": ["Bound on it", "by fresh masks, nats"], "logp/gap": ["Gap of the two", "nats"],
});
const HIDDEN = ["step", "seconds", "num_masked", "nelbo"];
const isSpread = (name) => name === "reward_std" || /^rewards\/.*\/std$/.test(name); // the first is drawn around its mean

function spelled(name) {
  const one = /^rewards\/(.*)\/mean$/.exec(name);
  return SPELLED[name] || (one ? [`Reward: ${one[1].replaceAll("_", " ")}`, "mean of completions"] : [name.replaceAll("_", " "), ""]);
}

// The spread of rewards as a band around their mean, where both are known.
function banded(name, { [name]: ys, reward_std: spread }) {
  if (name !== "reward" || !spread) return {};
  const edge = (sign) => ys.map((value, index) => (value === null || (spread[index] ?? null) === null ? null : value + sign * spread[index]));
  return { low: edge(-1), high: edge(1) };
}

function same(a, b) {
  return a.length === b.length && a.every((value, index) => value === b[index]);
}

const SHARES = ["accuracy", "masked_share", "doubted_replaced", "doubted_untouched"];
// Costs in nats, which may be read in bits.
const IN_NATS = ["nelbo_per_token", "masked_cross_entropy"];

function curves() {
  const runs = report.runs, holder = byId("curve-charts"), tools = byId("curve-tools");
  const names = [...new Set(runs.flatMap((run) => Object.values(run.metrics).flatMap((columns) => Object.keys(columns))))].filter((name) => !HIDDEN.includes(name) && !isSpread(name));
  const rank = (name) => (/^rewards?(\/|$)/.test(name) ? 0 : FIRST.indexOf(name) + 1 || (SPELLED[name] ? 50 : 99));
  names.sort((a, b) => rank(a) - rank(b));
  const isCopy = (name) => name === "masked_cross_entropy" && runs.every((run) => Object.values(run.metrics).every((c) => !c[name] || !c.loss || same(c[name], c.loss)));
  const last = Math.max(1, ...runs.map((run) => run.step));
  const curveOf = (name, isLog, inBits) => {
    const shown = inBits && IN_NATS.includes(name) ? (value) => (value === null ? null : value / Math.LN2) : (value) => value;
    const series = runs.flatMap((run, index) => Object.entries(run.metrics).filter(([, columns]) => columns[name]).map(([set, columns]) => ({
      label: runs.length > 1 ? `${run.name} ${set}` : set, run: index, xs: columns.step, ys: columns[name].map(shown), dots: set !== "train", thin: set === "train", ...banded(name, columns),
    })));
    const [title, unit] = spelled(name);
    const values = series.flatMap((one) => one.ys).filter((value) => value !== null);
    const mayLog = values.length > 0 && values.every((value) => value > 0) && !SHARES.includes(name);
    const y = name === "accuracy" ? { high: 1 } : SHARES.includes(name) ? { low: 0, high: 1 } : undefined;
    const span = series.flatMap((one) => [...(one.low || []), ...(one.high || [])]).filter((value) => value !== null);
    return chart({ title, span, unit: inBits ? unit.replace("nats", "bits") : unit, series, mayLog, log: isLog && mayLog && /loss|nelbo|cross_entropy|norm/.test(name), y, x: { label: "step", low: 0, high: last } });
  };
  const wanted = { scale: "log", unit: "nats" };
  const shown = names.filter((name) => !isCopy(name));
  if (!shown.length) {
    holder.append(make("p", { class: "note" }, "Nothing has been logged yet; the curves appear with the first row of metrics.jsonl."));
    return;
  }
  const refresh = () => holder.replaceChildren(...shown.map((name) => curveOf(name, wanted.scale === "log", wanted.unit === "bits")));
  const choice = (title, key, options) => make("fieldset", { class: "group" }, make("legend", {}, title), ...options.map(([value, words]) => make("label", { class: "chip" },
    make("input", { type: "radio", name: `curve-${key}`, value, checked: value === wanted[key], onchange: () => { wanted[key] = value; refresh(); } }), make("span", {}, words))));
  tools.append(choice("Values", "scale", [["linear", "Linear"], ["log", "Logarithmic"]]));
  if (runs.some((run) => run.subject === "text")) tools.append(choice("Costs", "unit", [["nats", "Nats"], ["bits", "Bits"]]));
  tools.append(make("span", { class: "muted" }, "Lines with circles are of validation, the others of training."));
  if (runs.some((run) => run.every > 1)) tools.append(make("span", { class: "muted" }, `Thinned: each ${Math.max(...runs.map((run) => run.every))}th row is shown.`));
  refresh();
}

function groups(runs, keyOfRun) {
  const found = new Map();
  runs.forEach((run, index) => {
    const key = JSON.stringify(keyOfRun(run));
    if (!found.has(key)) found.set(key, []);
    found.get(key).push([run, index]);
  });
  return [...found.values()];
}

function mark(kind, words) {
  const sample = draw("svg", { class: "key", viewBox: "0 0 28 10", "aria-hidden": "true" });
  if (kind === "ask") sample.append(draw("circle", { class: "ask", cx: 14, cy: 5, r: 3.8 }));
  if (kind === "tick") sample.append(draw("line", { class: "tick", x1: 14, x2: 14, y1: 0, y2: 10 }));
  return make("li", {}, sample, words);
}

// Where training stands, and which weights were measured: one mark for each step at which any run does.
function stagesOf(runs) {
  const found = new Map();
  const note = (step, words, name) => {
    if (!step) return;
    const key = `${step}|${words}`;
    if (!found.has(key)) found.set(key, { x: step, words, names: [] });
    found.get(key).names.push(name);
  };
  for (const run of runs) {
    note(run.step, run.step < run.num_steps ? "training is here" : "training ended", run.name);
    note(run.evaluation.map((row) => row.step).find(Number.isFinite), "weights that sampled", run.name);
  }
  return [...found.values()].sort((a, b) => a.x - b.x).map(({ x, words, names }) => ({ x, label: runs.length > 1 ? `${names.join(", ")}: ${words}` : words }));
}

function schedules() {
  const holder = byId("schedule-charts");
  for (const members of groups(report.runs.filter((run) => run.schedule), (run) => [run.kinds.schedule, run.schedule])) {
    const { t, alpha, mask_share, grid } = members[0][0].schedule;
    const lost = members.every(([run]) => run.subject === "image") ? "noise share" : "mask share";
    const whose = report.runs.length > 1 ? `of ${members.map(([run]) => run.name).join(", ")}` : "";
    holder.append(chart({
      title: `Schedule: ${members[0][0].kinds.schedule}`, unit: whose, x: { label: "t", low: 0, high: 1 }, y: { low: 0, high: 1 }, height: 250,
      series: [{ label: lost, run: 0, xs: t, ys: mask_share }, { label: "alpha", run: 1, xs: t, ys: alpha, thin: true }],
      rest: null, marks: grid.map((at) => ({ x: at.t, y: at.mask_share })), keys: [mark("ask", `the sampler's grid, ${grid.length - 1} steps`)],
      fine: grid.some((at) => at.pure) ? "The schedule has bounds, so the sampler also steps from and to the pure states, drawn at the ends." : "",
    }));
  }
  for (const members of groups(report.runs.filter((run) => run.ramps.length), (run) => run.ramps)) {
    const whose = report.runs.length > 1 ? `of ${members.map(([run]) => run.name).join(", ")}` : "";
    const stages = stagesOf(members.map(([run]) => run));
    const parents = Map.groupBy ? Map.groupBy(members[0][0].ramps, (ramp) => ramp.path.split(".").slice(0, -1).join(".")) : new Map(members[0][0].ramps.map((ramp) => [ramp.path, [ramp]]));
    for (const [parent, parts] of parents) {
      const end = parts[0].steps.at(-1);
      const share = parts.every((part) => part.values.every((value) => value >= 0 && value <= 1)) && !parent.includes("optimizer");
      holder.append(chart({
        title: parts.length > 1 || share ? `Ramps: ${parent}` : `Ramp: ${parts[0].path}`, unit: whose, x: { label: "step", low: 0, high: end }, height: 250, rest: members.length === 1 ? members[0][0].step : null,
        y: share ? { low: 0, high: 1 } : { low: 0 }, marks: stages,
        series: parts.map((part, index) => ({ label: part.path.split(".").at(-1).replaceAll("_", " "), run: index, xs: part.steps, ys: part.values })),
        fine: share && parts.every((part) => part.values.every((value) => value === part.values[0])) ? "Constant: no ramp is set here." : "",
      }));
    }
  }
  if (!holder.children.length) holder.append(make("p", { class: "note" }, "No config could be read, so no schedule is drawn."));
}

function shares() {
  const holder = byId("share-charts");
  report.runs.forEach((run, index) => {
    const found = run.mask_shares;
    if (!found) return;
    const sum = (counts) => counts.reduce((a, b) => a + b, 0);
    const total = found.counts[0].map((_, bin) => sum(found.counts.map((counts) => counts[bin])));
    const all = sum(total), bins = total.length;
    const parts = (counts) => counts.map((count) => count / sum(counts));
    const [first, now] = [parts(found.counts[0]), parts(found.counts.at(-1))];
    const moved = sum(first.map((share, bin) => Math.abs(share - now[bin]))) / 2 > 0.15;
    const stage = (step, ys) => ({ label: `step ${figure(step + 1)}`, run: index, xs, ys, neutral: true, dots: step > 0 });
    const xs = total.map((_, bin) => +((bin + 0.5) / bins).toFixed(6));
    const logged = (run.metrics.train?.masked_share || []).filter((value) => value !== null);
    const isImage = run.subject === "image";
    const asked = (run.schedule?.grid || []).slice(0, -1).map((at) => ({ tick: isImage ? at.t : at.mask_share }));
    const mean = logged.length ? ` The mean logged in training is ${figure(logged.reduce((a, b) => a + b, 0) / logged.length)}, here ${figure(found.mean)}.` : "";
    holder.append(chart({
      title: run.name, unit: "share of the states trained on", x: { label: isImage ? "time t" : "masked share", low: 0, high: 1 }, y: { low: 0 }, height: 230, marks: asked,
      series: [
        { label: "all steps so far", run: index, xs, ys: total.map((count) => count / all), bars: { width: 1 / bins, index: 0, of: 1 } },
        ...(moved ? [stage(found.steps[0], first), stage(found.steps.at(-1), now)] : []),
      ],
      rest: null,
      keys: [mark("tick", "the sampler asks the network here")],
      fine: `Drawn again from seed, step and example by the run's own objective: ${figure(found.num_states)} states of ${found.steps.length} evenly spaced steps.${mean}`,
    }));
  });
  if (!holder.children.length) holder.append(make("p", { class: "note" }, report.runs.every((run) => run.kinds.objective === "policy_gradient")
    ? "A policy is trained on its own rollouts, which only the weights of that moment could make again."
    : "No step has been trained yet, or the training states cannot be drawn again here."));
}

theme();
live();
if (byId("player")) plans(report, byId("player"));
if (byId("search-charts")) budgets(report, byId("search-charts"));
if (byId("search-player")) searches(report, byId("search-player"));
if (byId("text-player")) texts(report, byId("text-player"));
if (byId("rollout-player")) rollouts(report, byId("rollout-player"));
if (byId("drift-charts")) drift(report, byId("drift-charts"));
curves();
schedules();
shares();
