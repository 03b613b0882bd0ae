// Texts: each unmasks step by step, coloured by the step of its tokens or by how sure the network was of them.

const LEVELS = 7;
const BREAK = "↵";

function textBoard(colouring) {
  return (trace, run, index, heading) => {
    const moments = momentsOf(trace), whole = moments.at(-1).tokens, tail = tailOf(whole);
    const cells = Array.from({ length: trace.length }, () => make("span", { class: "piece" }));
    const wrong = new Set(trace.wrong || []);
    const text = make("div", { class: `text${trace.line ? " grid" : ""}`, role: "group", "aria-label": "The text as it stands" }, ...cells);
    if (trace.line) text.style.setProperty("--cells", trace.line);
    const strong = make("strong"), rest = make("span");
    const status = make("p", { class: "status", role: "status" }, strong, " ", rest);
    const element = make("div", { class: "board" }, heading, text, status, tokenTable(moments.at(-1), `Tokens of text ${trace.task} of ${run.name}`));
    const show = (at) => {
      const moment = moments[Math.min(at, moments.length - 1)];
      const struck = new Map(moment.struck), fresh = new Set(moment.fresh);
      cells.forEach((cell, position) => pieceInto(cell, position, moment, { struck, fresh, whole: whole[position], isTail: position > tail && !trace.line, isWrong: wrong.has(position), by: colouring.by }));
      [strong.textContent, rest.textContent] = toldOf(moment);
    };
    return { element, show, moments, status };
  };
}

// The first of the end tokens that fill the canvas behind a text: those after it are drawn as dots.
function tailOf(whole) {
  const last = whole.at(-1)?.word;
  let first = whole.length - 1;
  while (last?.trim() && first > 0 && whole[first - 1]?.word === last) first -= 1;
  return whole.length - first > 2 ? first : whole.length;
}

function pieceInto(cell, position, moment, { struck, fresh, whole, isTail, isWrong, by }) {
  const token = moment.tokens[position], isGiven = token !== null && token.when === 0;
  const breaks = whole ? whole.word.split("\n").length - 1 : 0;
  const names = ["piece", token ? "" : struck.has(position) ? "struck" : "masked", isGiven ? "given" : "", token && moment.step && fresh.has(position) ? "new" : "", token && moment.again[position] ? "again" : "", token && isWrong ? "wrong" : ""];
  const level = token && !isGiven ? levelOf(token, moment, by) : null;
  if (level !== null) names.push(`${by === "step" ? "w" : "p"}${level}`);
  cell.className = names.filter(Boolean).join(" ");
  cell.title = `Token ${position + 1}: ${describe(token, moment.again[position], struck.get(position))}${token && isWrong ? ", wrong" : ""}`;
  const word = token ? token.word : struck.has(position) ? struck.get(position) : "▒";
  if (token && isTail && token.word === whole.word) cell.textContent = "·";
  else if (token && whole && token.word === whole.word) cell.textContent = word.replaceAll("\n", `${BREAK}\n`);
  else cell.textContent = word.replaceAll("\n", BREAK) + "\n".repeat(breaks); // lines stay where they end up
}

function levelOf(token, moment, by) {
  if (by === "step") return moment.steps > 1 ? Math.round(((LEVELS - 1) * (token.when - 1)) / (moment.steps - 1)) : 0;
  return token.share === null || token.share === undefined ? null : Math.min(LEVELS - 1, Math.floor(LEVELS * token.share));
}

function describe(token, again, struck) {
  const often = again ? `, masked again ${again === 1 ? "once" : `${again} times`}` : "";
  if (!token) return struck === undefined ? `masked${often}` : `“${spelt(struck)}” is masked again`;
  if (token.when === 0) return `“${spelt(token.word)}”, given`;
  const sure = token.share === null || token.share === undefined ? "not chosen by the network" : `probability ${figure(token.share)}`;
  return `“${spelt(token.word)}”, revealed at step ${token.when}, ${sure}${often}`;
}

function spelt(word) {
  return word.replaceAll("\n", BREAK).replaceAll("\t", "⇥");
}

function toldOf(moment) {
  const free = moment.tokens.filter((token) => !token || token.when > 0).length, shown = moment.tokens.filter((token) => token && token.when > 0).length;
  const fresh = moment.step ? moment.fresh.filter((position) => moment.tokens[position]).length : 0;
  const lost = moment.struck.length;
  const often = moment.again.reduce((a, b) => a + b, 0);
  const news = [fresh ? `${fresh} new` : "", lost ? `${lost} masked again` : ""].filter(Boolean).join(", ");
  return [`Step ${moment.step} of ${moment.steps}:`, `${shown} of ${free} tokens revealed${news ? `; ${news}` : ""}.${often ? ` Masked again so far: ${often}.` : ""}`];
}

// All that colours and marks say of the finished text, in words.
function tokenTable(moment, label) {
  const details = make("details", {}, make("summary", {}, "As a table"));
  details.addEventListener("toggle", () => {
    if (!details.open || details.children.length > 1) return;
    const head = make("tr", {}, ...["Position", "Token", "Step", "Probability", "Masked again"].map((name, at) => make("th", { scope: "col", class: at === 1 ? null : "n" }, name)));
    const rows = moment.tokens.map((token, position) => make("tr", {},
      make("th", { scope: "row", class: "n" }, String(position + 1)), make("td", {}, make("code", {}, token ? spelt(token.word) : "▒")), make("td", { class: "n" }, !token ? "–" : token.when === 0 ? "given" : String(token.when)),
      make("td", { class: "n" }, token ? figure(token.share) : "–"), make("td", { class: "n" }, moment.again[position] ? `${moment.again[position]}×` : "")));
    const body = make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
    details.append(make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, body));
  });
  return details;
}

function textKeys(colouring, holder, marks) {
  const ramp = Array.from({ length: LEVELS }, (_, level) => make("span", { class: `piece ${colouring.by === "step" ? "w" : "p"}${level}` }, "\u00a0"));
  const [from, to] = colouring.by === "step" ? ["first step", "last step"] : ["probability 0", "1"];
  holder.replaceChildren(
    make("li", {}, `${from} `, make("span", { class: "ramp", "aria-hidden": "true" }, ...ramp), ` ${to}`),
    ...[["masked", "▒", "masked"], ["given", "given", ""], ["new", "new", "revealed now"], ...marks].map(([name, sample, words]) => make("li", {}, make("span", { class: `piece ${name}`, "aria-hidden": "true" }, sample), words ? ` ${words}` : "")),
  );
}

const AGAIN = [["struck", "old", "masked again now"], ["again", "new", "revealed after it was masked again"]];

// spec: {kind, label, noun, outcome(trace), marks}: of the traces that are read as texts.
function readable(report, holder, spec) {
  const colouring = { by: "step" }, keys = make("ul", { class: "legend" });
  textKeys(colouring, keys, spec.marks);
  player(report, holder, {
    ...spec, boardOf: textBoard(colouring), keeps: true,
    delay: (boards) => Math.max(60, Math.min(420, 9000 / Math.max(...boards.map((one) => one.moments.length)))),
    extra: (refresh) => make("fieldset", { class: "group" }, make("legend", {}, "Colour"), ...[["step", "Step"], ["probability", "Probability"]].map(([value, words]) => make("label", { class: "chip" },
      make("input", { type: "radio", name: `${spec.kind}-colour`, value, checked: value === "step", onchange: () => { colouring.by = value; textKeys(colouring, keys, spec.marks); refresh(); } }), make("span", {}, words)))),
    hint: "Point at a token to read its step and its probability; As a table has all of them.",
  });
  if (holder.querySelector(".player")) holder.querySelector(".hint").before(keys);
}

function texts(report, holder) {
  readable(report, holder, { kind: "text", label: "Text", noun: "text", outcome: () => "", marks: AGAIN });
}

function rollouts(report, holder) {
  const all = report.runs.flatMap((run) => run.traces).filter((trace) => trace.kind === "rollout");
  if (!all.length) return;
  const marks = all.some((trace) => trace.wrong.length) ? [["wrong", "4", "not as in the solution"]] : [];
  readable(report, holder, { kind: "rollout", label: "Prompt no.", noun: "completion", outcome: () => "", marks });
}
