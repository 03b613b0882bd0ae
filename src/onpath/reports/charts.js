"use strict";
// Small line and bar charts as inline SVG. Text from files only ever goes into text nodes.

const SVG = "http://www.w3.org/2000/svg";

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  return filled(element, attributes, children);
}

function draw(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function figure(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2).replace("e+", "e");
  if (Number.isInteger(value) || size >= 1000) return Math.round(value).toLocaleString("en-GB");
  return String(Number(value.toPrecision(4)));
}

function short(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  if (size !== 0 && size < 1e-3) return value.toExponential(0).replace("e+", "e");
  return String(+value.toPrecision(3));
}

function ticks(low, high, about) {
  if (low > high) return ticks(high, low, about);
  const raw = (high - low) / Math.max(1, about);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= raw * 0.7);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(+(n * step).toPrecision(12));
  return found;
}

function logTicks(low, high) {
  const found = [];
  const wide = Math.log10(high / low) > 1.7;
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const n of Math.log10(high / low) > 4.2 ? [1] : wide ? [1, 3] : [1, 2, 5]) {
      const value = n * 10 ** power;
      if (value >= low * 0.999 && value <= high * 1.001) found.push(+value.toPrecision(3));
    }
  }
  return found;
}

// A scale from values to pixels; logarithmic where asked for and possible.
function scale(low, high, from, to, log) {
  const f = log ? Math.log10 : (value) => value;
  const a = f(low), b = f(high);
  const at = (value) => from + ((f(value) - a) / (b - a || 1)) * (to - from);
  return { at, low, high, log };
}

function extent(values, log) {
  const usable = values.filter((value) => value !== null && Number.isFinite(value) && (!log || value > 0));
  if (!usable.length) return null;
  let low = Math.min(...usable), high = Math.max(...usable);
  if (low === high) { low -= Math.abs(low) * 0.05 || 0.5; high += Math.abs(high) * 0.05 || 0.5; if (log) low = Math.max(low, high / 2); }
  return [low, high];
}

// spec: {title, unit, series, x: {label, low, high}, y: {low, high}, log, mayLog, height, marks, keys, fine, rest}
// series: [{label, run, xs, ys, thin, dots, bars, neutral, look, low, high, silent}], xs rising; look: a class of line in
// place of that of its run; low, high: a band around it; silent: not in the legend. An axis whose low is above its high
// falls, and one with places, where its ticks stand, is logarithmic. rest: the x whose values stand in the legend while nothing is pointed at, the last one of each series by
// default, null for none. levels: {y, label} lines across. span: [low, high] that a logarithmic axis holds at least.
// Draws itself again when its width changes.
function chart(spec) {
  const plot = draw("svg", { class: "plot", role: "img", tabindex: "0" });
  const readout = make("ul", { class: "legend" });
  const head = make("figcaption", {}, make("strong", {}, spec.title), make("span", {}, spec.unit || ""));
  const holder = make("figure", { class: "chart" }, head, plot, readout);
  const xs = [...new Set(spec.series.flatMap((one) => one.xs))].sort((a, b) => (spec.x.low > spec.x.high ? b - a : a - b));
  let chosen = null, geometry = null;

  const render = () => {
    const width = Math.max(260, Math.round(plot.getBoundingClientRect().width) || 420);
    geometry = layout(spec, width, spec.height || 210);
    if (!geometry) return;
    plot.setAttribute("viewBox", `0 0 ${width} ${geometry.height}`);
    plot.setAttribute("aria-label", summary(spec));
    plot.replaceChildren(...geometry.frame, ...spec.series.flatMap((one) => line(one, geometry)), ...marks(spec, geometry));
    if (chosen !== null) plot.append(draw("line", { class: "cross", x1: geometry.x.at(chosen), x2: geometry.x.at(chosen), y1: geometry.top, y2: geometry.bottom }));
    const told = chosen === null ? spec.rest : chosen;
    readout.replaceChildren(...spec.series.filter((one) => !one.silent).map((one) => entry(one, told)), ...(spec.keys || []));
    if (spec.levels) plot.prepend(...levels(spec, geometry));
    if (told !== null && told !== undefined) readout.prepend(make("li", {}, `${spec.x.label} `, make("b", {}, figure(told))));
  };
  const choose = (x) => { chosen = x; render(); };
  const nearest = (event) => {
    const box = plot.getBoundingClientRect();
    const at = event.clientX - box.left;
    return xs.reduce((best, x) => (Math.abs(geometry.x.at(x) - at) < Math.abs(geometry.x.at(best) - at) ? x : best), xs[0]);
  };
  plot.addEventListener("pointermove", (event) => geometry && xs.length && choose(nearest(event)));
  plot.addEventListener("pointerleave", () => choose(null));
  plot.addEventListener("blur", () => choose(null));
  plot.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move || !xs.length) return;
    event.preventDefault();
    const at = chosen === null ? (move > 0 ? -1 : xs.length) : xs.indexOf(chosen);
    choose(xs[Math.min(xs.length - 1, Math.max(0, at + move))]);
  });
  if (spec.table !== false) holder.append(table(spec, xs));
  if (spec.fine) holder.append(make("p", { class: "fine" }, spec.fine));
  new ResizeObserver(render).observe(holder);
  return holder;
}

function layout(spec, width, height) {
  const log = spec.log;
  const bounds = extent([...spec.series.flatMap((one) => one.ys), ...(spec.span || [])], log);
  if (!bounds) return null;
  let [low, high] = bounds;
  if (spec.y && !log) { low = spec.y.low ?? low; high = spec.y.high ?? high; }
  const pad = log ? 0 : (high - low) * 0.06;
  const powers = log ? logTicks(low, high) : [];
  const rows = powers.length > 2 ? powers : ticks(low, high, 4);
  const left = 14 + 7 * Math.max(2, ...rows.map((tick) => short(tick).length));
  const lines = (spec.marks || []).filter((mark) => mark.label).length, ticked = (spec.marks || []).some((mark) => mark.tick !== undefined);
  const top = 12 + 15 * lines + (ticked ? 14 : 0), bottom = height - 40, right = width - 14;
  const y = log ? scale(low / 1.06, high * 1.06, bottom, top, true)
    : scale(spec.y && spec.y.low !== undefined ? low : low - pad, spec.y && spec.y.high !== undefined ? high : high + pad, bottom, top, false);
  const x = scale(spec.x.low, spec.x.high, left, right, Boolean(spec.x.places));
  const frame = [];
  for (const tick of rows) {
    frame.push(draw("line", { class: "grid", x1: left, x2: right, y1: y.at(tick), y2: y.at(tick) }));
    frame.push(draw("text", { x: left - 7, y: y.at(tick) + 4, "text-anchor": "end" }, short(tick)));
  }
  const places = spec.x.places || ticks(spec.x.low, spec.x.high, Math.max(2, Math.floor((right - left) / 80)));
  for (const tick of places) {
    frame.push(draw("line", { class: "base", x1: x.at(tick), x2: x.at(tick), y1: bottom, y2: bottom + 4 }));
    frame.push(draw("text", { x: x.at(tick), y: bottom + 17, "text-anchor": "middle" }, short(tick)));
  }
  frame.push(draw("text", { x: (left + right) / 2, y: bottom + 34, "text-anchor": "middle" }, spec.x.label));
  frame.push(draw("line", { class: "base", x1: left, x2: right, y1: bottom, y2: bottom }));
  return { x, y, left, right, top, bottom, height, frame };
}

function line(one, { x, y, bottom }) {
  const pairs = one.xs.map((value, index) => [value, one.ys[index]]).filter(([, v]) => v !== null && Number.isFinite(v) && (!y.log || v > 0));
  if (!pairs.length) return [];
  const spots = pairs.map(([a, b]) => [x.at(a), y.at(b)]);
  const found = [];
  if (one.bars) {
    const half = one.bars.width / 2;
    for (const [a, b] of pairs) {
      const from = x.at(a - half) + 1 + one.bars.index * ((x.at(a + half) - x.at(a - half) - 2) / one.bars.of);
      const wide = (x.at(a + half) - x.at(a - half) - 2) / one.bars.of;
      found.push(draw("rect", { class: `barfill f${one.run % 6}`, x: from, width: Math.max(1, wide), y: y.at(b), height: Math.max(0, bottom - y.at(b)) }));
      found.push(draw("line", { class: `s s${one.run % 6}`, x1: from, x2: from + wide, y1: y.at(b), y2: y.at(b) }));
    }
    return found;
  }
  if (one.low && one.high) {
    const held = one.xs.map((a, index) => [a, one.low[index], one.high[index]]).filter(([, low, high]) => low !== null && high !== null);
    const edge = [...held.map(([a, , high]) => [a, high]), ...held.map(([a, low]) => [a, low]).reverse()];
    found.push(draw("polygon", { class: `band ${one.look || `f${one.run % 6}`}`, points: edge.map(([a, b]) => `${x.at(a).toFixed(1)},${y.at(b).toFixed(1)}`).join(" ") }));
  }
  const path = spots.map(([a, b], index) => `${index ? "L" : "M"}${a.toFixed(1)} ${b.toFixed(1)}`).join("");
  found.push(draw("path", { class: `s ${look(one)}`, d: path, "stroke-width": one.thin ? 1.4 : 2 }));
  if (one.dots || spots.length === 1) {
    const every = Math.max(1, Math.ceil(spots.length / 24));
    spots.forEach(([a, b], index) => {
      if ((spots.length - 1 - index) % every === 0) found.push(draw("circle", { class: `dot ${look(one)}`, cx: a, cy: b, r: 3.2 }));
    });
  }
  return found;
}

// Marks are {x, label} for a vertical line, {x, y} for an asked-at circle, {tick: x} for a tick on the axis.
function marks(spec, { x, y, left, right, top, bottom }) {
  const found = [];
  let line = 0;
  for (const mark of spec.marks || []) {
    if (mark.y !== undefined) found.push(draw("circle", { class: "ask", cx: x.at(mark.x), cy: y.at(mark.y), r: 4 }));
    else if (mark.tick !== undefined) found.push(draw("line", { class: "tick", x1: x.at(mark.tick), x2: x.at(mark.tick), y1: top - 12, y2: top - 3 }));
    else {
      const at = Math.min(right, Math.max(left, x.at(mark.x)));
      const end = at > (left + right) / 2, height = 13 + 15 * line;
      found.push(draw("line", { class: "mark", x1: at, x2: at, y1: height - 9, y2: bottom }));
      found.push(draw("text", { class: "marktext", x: at + (end ? -5 : 5), y: height, "text-anchor": end ? "end" : "start" }, mark.label));
      line += 1;
    }
  }
  return found;
}

function levels(spec, { y, left, right }) {
  return spec.levels.flatMap((level) => [
    draw("line", { class: "level", x1: left, x2: right, y1: y.at(level.y), y2: y.at(level.y) }),
    draw("text", { x: right, y: y.at(level.y) - 5, "text-anchor": "end" }, level.label),
  ]);
}

function look(one) {
  if (one.look) return one.look;
  return one.neutral ? "sn" : `s${one.run % 6}`;
}

function keyOf(one) {
  const sample = draw("svg", { class: "key", viewBox: "0 0 28 10", "aria-hidden": "true" });
  if (one.bars) sample.append(draw("rect", { class: `barfill f${one.run % 6}`, x: 4, y: 1, width: 20, height: 9 }));
  else sample.append(draw("line", { class: `s ${look(one)}`, x1: 1, x2: 27, y1: 5, y2: 5, "stroke-width": one.thin ? 1.4 : 2 }));
  if (one.dots) sample.append(draw("circle", { class: `dot ${look(one)}`, cx: 14, cy: 5, r: 3.2 }));
  return sample;
}

function entry(one, chosen) {
  const known = one.ys.map((value, index) => [one.xs[index], value]).filter(([, value]) => value !== null);
  const wanted = chosen === undefined ? known.at(-1) : chosen === null ? null : known.findLast(([x]) => x <= chosen);
  const text = wanted ? figure(wanted[1]) : "";
  return make("li", {}, keyOf(one), `${one.label} `, make("b", {}, text));
}

function summary(spec) {
  const parts = spec.series.map((one) => {
    const bounds = extent(one.ys, false);
    if (!bounds) return `${one.label}: no values`;
    const last = one.ys.filter((value) => value !== null).at(-1);
    const from = Math.min(...one.ys.filter((v) => v !== null)), to = Math.max(...one.ys.filter((v) => v !== null));
    return `${one.label}: from ${figure(from)} to ${figure(to)}, last ${figure(last)}`;
  });
  return `${spec.title}. ${parts.join("; ")}. Arrow keys read values.`;
}

function table(spec, xs) {
  const details = make("details", {}, make("summary", {}, "As a table"));
  details.addEventListener("toggle", () => {
    if (!details.open || details.children.length > 1) return;
    const head = make("tr", {}, make("th", { scope: "col" }, spec.x.label), ...spec.series.map((one) => make("th", { scope: "col", class: "n" }, one.label)));
    const places = spec.series.map((one) => new Map(one.xs.map((x, index) => [x, one.ys[index]])));
    const rows = xs.map((x) => make("tr", {}, make("th", { scope: "row" }, figure(x)), ...places.map((values) => make("td", { class: "n" }, values.has(x) ? figure(values.get(x)) : ""))));
    const body = make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
    details.append(make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${[spec.title, spec.unit].filter(Boolean).join(" ")} as a table` }, body));
  });
  return details;
}
