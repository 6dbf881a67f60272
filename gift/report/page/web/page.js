// The page of `gift report`: draws what the element `data` holds. All texts go in as text, none as HTML.
"use strict";
{ // a scope of its own: the script of the charts has short global names

const data = JSON.parse(document.getElementById("data").textContent);
const MOST_LINES = 8; // lines that are drawn unasked
const PALETTE = ["#2f6fde", "#e4572e", "#2a9d5c", "#a259c4", "#c98a00", "#17a2b8", "#d6458f", "#7f8c8d", "#8c564b", "#6b8e23"];
const colour = (index) => PALETTE[index % PALETTE.length];

/* Elements */

function el(tag, properties, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

const add = (name, ...children) => section(name).append(...children.filter((child) => child !== null));
const section = (name) => document.getElementById(name);
const number = (value) => {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  return size !== 0 && size < 0.001 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
};
const signed = (value) => (value > 0 ? "+" : "") + number(value);
const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;
const duration = (seconds) => {
  for (const [unit, length] of [["days", 86400], ["h", 3600], ["min", 60]])
    if (seconds >= 2 * length) return `${(seconds / length).toFixed(seconds < 20 * length ? 1 : 0)} ${unit}`;
  return `${Math.round(seconds)} s`;
};

/* One of the buttons that stand together is pressed. */
function press(button) {
  for (const each of button.parentElement.querySelectorAll("button")) each.setAttribute("aria-pressed", String(each === button));
}

/* Texts of a model: what would turn or hide text is shown as what it is. */

// Line breaks and tabs stay, and the two marks that choose the look of a sign.
const HIDDEN = /(?![\t\n\r\ufe0e\ufe0f])[\p{Cc}\p{Cf}\p{Default_Ignorable_Code_Point}\u2028\u2029]/u;
const shownAs = (character) => `\\u${character.codePointAt(0).toString(16).padStart(4, "0")}`;

function plain(text) {
  const parts = [];
  let sound = "";
  for (const character of text) {
    if (!HIDDEN.test(character)) sound += character;
    else {
      parts.push(sound, el("span", { class: "hidden-character" }, shownAs(character)));
      sound = "";
    }
  }
  return [...parts, sound].filter((part) => part !== "");
}

function brief(text, most) {
  const line = text.replace(/\s+/g, " ").slice(0, most);
  return Array.from(line, (each) => (HIDDEN.test(each) ? shownAs(each) : each)).join("") + (text.length > most ? "…" : "");
}

function tokens(completion) {
  const characters = Array.from(completion.text);
  let at = 0;
  const parts = completion.tokens.map((length, index) => {
    const ratio = completion.ratios[index] / 100;
    const tint = `rgba(var(${ratio < 0 ? "--down" : "--up"}), ${Math.min(Math.abs(ratio), 1) * 0.75})`;
    const title = `log-ratio ${ratio.toFixed(2)}`;
    const text = characters.slice(at, at + length).join("");
    at += length;
    const made = text ? el("span", { title }, plain(text)) : el("span", { title: `${title}, a token without text`, class: "end" });
    if (Math.abs(ratio) >= 0.01) made.style.background = tint;
    return made;
  });
  return [...parts, ...plain(characters.slice(at).join(""))];
}

/* Outcome */

const HEADS = { "eval/accuracy_greedy": "accuracy", "eval/reward": "reward" };
const last = (values) => values.filter((value) => value !== null && value !== undefined).at(-1);

function withError(rounds, column, at) {
  const value = (rounds[column] || [])[at];
  const error = (rounds[`${column}_se`] || [])[at];
  if (value === null || value === undefined) return "–";
  return number(value) + (error ? ` ± ${error.toPrecision(2).replace(/^(0\.\d*?)0+$/, "$1")}` : "");
}

function outcome() {
  const columns = data.charts.map((chart) => chart.column).filter((name) => name in HEADS || /^eval\/avg@\d+$/.test(name))
    .map((name) => [name, HEADS[name] || name.replace("eval/", "")]);
  const head = ["", "last", "rollouts", ...columns.flatMap(([, word]) => [word, "start"]), "KL"];
  const body = data.lines.map((line, index) => {
    const end = line.rounds.name.length - 1;
    const kl = last(line.steps.kl || []) ?? (line.rounds.kl || [])[end];
    return el("tr", {},
      el("td", {}, el("span", { class: "swatch", style: `background:${colour(index)}` }), ` ${line.name}`),
      el("td", {}, line.rounds.name[end]),
      el("td", {}, number(line.rounds.rollouts[end])),
      columns.flatMap(([name]) => [
        el("td", {}, el("b", {}, withError(line.rounds, name, end))), el("td", { class: "soft" }, withError(line.rounds, name, 0)),
      ]),
      el("td", {}, number(kl)));
  });
  const seconds = data.times.reduce((sum, each) => sum + each.seconds, 0);
  add("outcome",
    el("h2", {}, "Outcome"),
    table(head, body, body.length <= 12 ? "low" : ""),
    el("p", { class: "soft" },
      `Held-out ${columns.length ? "" : "answers: no number yet. "}means with standard errors; “start” is the policy that a line begins with.`
      + (seconds ? ` All stages in this folder took ${duration(seconds)}.` : "")));
  for (const note of data.notes) section("outcome").append(el("p", { class: "wrong" }, note));
  if (data.differences.some((each) => each.greedy)) section("outcome").append(differences());
}

function differences() {
  const interval = (found) => found ? `${signed(found[0])} (${signed(found[1])} to ${signed(found[2])})` : "–";
  const known = data.differences.filter((each) => each.greedy);
  const judged = known.every((each) => each.judged);
  const rows = known.map((each) => el("tr", {},
    el("td", {}, `${each.name} − ${each.since}${each.judged || judged ? "" : " (rewards)"}`), el("td", {}, number(each.num_prompts)),
    el("td", {}, interval(each.greedy)), el("td", {}, interval(each.sampled)),
    el("td", { class: "right" }, number(each.gained)), el("td", { class: "wrong" }, number(each.lost))));
  const words = judged ? ["became right", "became wrong"] : ["better", "worse"];
  return el("details", { open: rows.length <= 10 },
    el("summary", {}, "Differences on the same held-out prompts, with 95 % intervals"),
    table(["", "prompts", "greedy answers", "sampled answers", ...words], rows));
}

const table = (head, rows, how) => el("div", { class: `scroll ${how || ""}` }, el("table", {},
  el("thead", {}, el("tr", {}, head.map((word) => el("th", {}, word)))), el("tbody", {}, rows)));

/* Curves */

const state = { x: "round", on: new Set(data.lines.slice(0, MOST_LINES).map((line) => line.name)), drawn: [] };

function style() {
  const value = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = { labelColor: value("--soft"), titleColor: value("--soft"), gridColor: value("--line"), domainColor: value("--line"), tickColor: value("--line"), titleFontWeight: "normal" };
  return { background: null, view: { stroke: null }, axis, legend: { labelColor: value("--soft"), titleColor: value("--soft") }, font: "system-ui, sans-serif" };
}

function points(chart) {
  const kind = chart.by_step ? "steps" : "rounds";
  const x = chart.by_step ? "step" : state.x;
  return data.lines.filter((line) => state.on.has(line.name)).flatMap((line) => {
    const columns = line[kind];
    const errors = columns[`${chart.column}_se`];
    return (columns[chart.column] || []).map((y, index) => {
      const error = errors ? errors[index] : null;
      const policy = (columns.name || [])[index];
      return { x: columns[x][index], y, line: line.name, policy: policy ?? "", low: y - 1.96 * error, high: y + 1.96 * error, error };
    }).filter((row) => row.y !== null);
  });
}

function curve(chart) {
  const values = points(chart);
  const words = chart.by_step ? "optimizer step" : state.x === "round" ? "round" : "rollouts sampled";
  const names = data.lines.map((line) => line.name);
  const scale = { domain: names, range: names.map((_, index) => colour(index)) };
  const whole = !chart.by_step && state.x === "round";
  const most = Math.max(...values.map((row) => row.x), 1);
  const x = { field: "x", type: "quantitative", title: words, scale: { zero: whole }, axis: whole ? { values: marks(most), format: "d" } : { tickCount: 5, format: "~s" } };
  const color = { field: "line", type: "nominal", scale, legend: null };
  const tooltip = [
    { field: "line", title: "line" }, ...(chart.by_step ? [] : [{ field: "policy", title: "policy" }]),
    { field: "x", title: words, format: "," }, { field: "y", title: chart.column, format: ".4~g" },
    ...(values.some((row) => row.error) ? [{ field: "error", title: "standard error", format: ".2~g" }] : []),
  ];
  const layer = [{ mark: { type: "line", strokeWidth: 1.8, ...(values.length < 400 ? { point: { size: chart.by_step ? 12 : 36 } } : {}) }, encoding: { x, y: { field: "y", type: "quantitative", title: null, scale: { zero: false } }, color, tooltip } }];
  if (values.some((row) => row.error))
    layer.unshift({ mark: { type: "area", opacity: 0.15 }, encoding: { x, y: { field: "low", type: "quantitative", title: null, scale: { zero: false } }, y2: { field: "high" }, color } });
  return { data: { values }, width: "container", height: "container", autosize: { type: "fit", contains: "padding", resize: true }, layer };
}

function marks(most) {
  const step = Math.max(1, Math.ceil(most / 8));
  return Array.from({ length: Math.floor(most / step) + 1 }, (_, index) => index * step);
}

function bars() {
  const rounds = [...new Set(data.times.map((each) => each.round))];
  return {
    data: { values: data.times }, width: "container", height: "container", autosize: { type: "fit", contains: "padding", resize: true },
    mark: "bar",
    encoding: {
      x: { field: "round", type: "nominal", sort: rounds, title: null, axis: { labelAngle: 0, labelOverlap: true } },
      y: { field: "seconds", type: "quantitative", aggregate: "sum", title: "seconds" },
      color: { field: "stage", type: "nominal", title: null, scale: { scheme: "tableau10" } },
      tooltip: [{ field: "round" }, { field: "stage" }, { field: "seconds", format: ",.1f" }],
    },
  };
}

// A chart is drawn when it comes into view, and anew when what it shows changes.
const seen = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
  seen.unobserve(entry.target);
  state.drawn.find((each) => each.place === entry.target).draw();
}), { rootMargin: "300px" });

function plot(title, unit, spec, wide) {
  const place = el("div", { class: "plot", role: "img", "aria-label": `${title}, ${unit}` });
  const draw = () => vegaEmbed(place, { ...spec(), config: style() }, { actions: false, renderer: "svg" });
  state.drawn.push({ place, draw });
  seen.observe(place);
  return el("div", { class: wide ? "chart wide" : "chart" }, el("h3", {}, title, " ", el("span", { class: "unit" }, unit)), place);
}

function redraw() {
  for (const { place } of state.drawn) { seen.unobserve(place); seen.observe(place); }
}

function curves() {
  const choose = (word, key) => el("button", { "aria-pressed": String(state.x === key), onclick: (event) => {
    state.x = key;
    press(event.target);
    redraw();
  } }, word);
  const lines = data.lines.map((line, index) => el("label", {},
    el("input", { type: "checkbox", checked: state.on.has(line.name), onchange: (event) => {
      state.on[event.target.checked ? "add" : "delete"](line.name);
      redraw();
    } }), el("span", { class: "swatch", style: `background:${colour(index)}` }), line.name));
  const chart = (each) => plot(each.title, each.unit, () => curve(each));
  const more = data.charts.filter((each) => each.more);
  add("curves",
    el("h2", {}, "Curves"),
    el("div", { class: "bar" }, el("span", { class: "soft" }, "against"), choose("rounds", "round"), choose("rollouts sampled", "rollouts")),
    lines.length > 1 ? el("div", { class: "bar", id: "lines" }, lines) : null,
    el("div", { class: "charts" },
      data.charts.filter((each) => !each.more).map(chart),
      data.times.length ? plot("Time by stage", "seconds", bars, true) : null));
  if (more.length) section("curves").append(el("details", { id: "more" },
    el("summary", {}, `${more.length} more numbers`), el("div", { class: "charts" }, more.map(chart))));
}

function select(list, id) {
  for (const row of list.querySelectorAll("tbody tr")) row.setAttribute("aria-selected", String(row.dataset.id === id));
}

/* Rollouts */

const view = { round: data.rollouts.length - 1, by: "reward", down: true, word: "", only: new Set(), open: null };
const COLUMNS = [["id", "prompt"], ["reward", "reward"], ["spread", "spread"], ["length", "tokens"], ["size", "completions"], ["failed", "failed"], ["truncated", "truncated"]];
const FILTERS = { failed: (row) => row.failed > 0, truncated: (row) => row.truncated > 0, "equal rewards": (row) => row.spread === 0, "with texts": (row) => row.texts };

function groups(round) {
  const { listed, texts } = round;
  return listed.id.map((id, index) => ({
    ...Object.fromEntries(COLUMNS.map(([name]) => [name, listed[name][index]])), texts: texts[id],
  }));
}

function holds(row, word) {
  if (!word) return true;
  const texts = row.texts ? [...row.texts.prompt.map((turn) => turn[1]), ...row.texts.rows.map((each) => each.text), ...Object.values(row.texts.columns)] : [];
  return [row.id, ...texts].some((text) => text.toLowerCase().includes(word));
}

function chosenGroups(round) {
  const rows = groups(round).filter((row) => [...view.only].every((name) => FILTERS[name](row)) && holds(row, view.word));
  const value = (row) => row[view.by] ?? -Infinity;
  rows.sort((a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0) * (view.down ? -1 : 1));
  return rows;
}

function rollouts() {
  const place = section("rollouts");
  if (!data.rollouts.length) return place.remove();
  const list = el("div", {});
  const panel = el("div", { id: "group" });
  const count = el("p", { class: "soft", id: "count" });
  const rounds = el("select", { id: "round", onchange: (event) => { view.round = Number(event.target.value); show(); } },
    data.rollouts.map((each, index) => el("option", { value: index, selected: index === view.round }, each.name)));

  function show() {
    const round = data.rollouts[view.round];
    rounds.value = String(view.round);
    list.replaceChildren();
    if (round.missing) { count.textContent = `${round.name}: its tables are not shown here: ${round.missing}`; panel.replaceChildren(); return; }
    const rows = chosenGroups(round);
    const texts = Object.keys(round.texts).length;
    count.textContent = `${number(rows.length)} of ${plural(round.num_groups, "group")}, ${plural(round.num_rows, "completion")}`
      + (round.listed.id.length < round.num_groups ? `; a sample of ${number(round.listed.id.length)} is in this file` : "")
      + (texts < round.listed.id.length ? `; ${number(texts)} have their texts here (the grey ones do not); gift inspect ${round.name} shows all` : "");
    const head = COLUMNS.map(([name, word]) => el("th", { "aria-sort": view.by === name ? (view.down ? "descending" : "ascending") : "none", class: name === "size" ? "narrow-off" : null },
      el("button", { onclick: () => { view.down = view.by === name ? !view.down : true; view.by = name; show(); } }, word, view.by === name ? (view.down ? " ▾" : " ▴") : "")));
    const body = rows.map((row) => {
      const open = () => { view.open = row.id; showPanel(); panel.scrollIntoView({ block: "nearest" }); };
      const first = row.texts ? brief(row.texts.prompt.at(-1)[1], 80) : row.id;
      return el("tr", { tabindex: 0, class: row.texts ? null : "bare", "data-id": row.id, onclick: open, onkeydown: (event) => { if (event.key === "Enter") open(); } },
        el("td", { class: "text" }, first),
        COLUMNS.slice(1).map(([name]) => el("td", { class: name === "size" ? "narrow-off" : (name === "failed" && row.failed ? "wrong" : null) }, number(row[name]))));
    });
    list.append(el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, body))));
    showPanel();
  }

  function showPanel() {
    select(list, view.open);
    panel.replaceChildren(...(view.open ? [group(view.open, show, showPanel)] : []));
  }

  let waiting;
  place.append(el("h2", {}, "Rollouts"),
    el("div", { class: "bar" }, el("label", {}, "round ", rounds),
      el("input", { type: "search", id: "word", placeholder: "search prompts and completions", "aria-label": "search", oninput: (event) => {
        clearTimeout(waiting);
        waiting = setTimeout(() => { view.word = event.target.value.toLowerCase(); show(); }, 120);
      } }),
      Object.keys(FILTERS).map((name) => el("label", {}, el("input", { type: "checkbox", "data-only": name, onchange: (event) => {
        view.only[event.target.checked ? "add" : "delete"](name);
        show();
      } }), name))),
    count, list, panel);
  show();
}

function group(id, show, showPanel) {
  const round = data.rollouts[view.round];
  const found = round.texts && round.texts[id];
  const elsewhere = data.rollouts.map((each, index) => [each, index]).filter(([each]) => each.listed && each.listed.id.includes(id));
  const follow = elsewhere.map(([each, index]) => el("button", { "aria-pressed": String(index === view.round), "data-round": each.name, onclick: () => { view.round = index; show(); } }, each.name));
  const head = el("div", { class: "bar" }, el("code", {}, id), el("span", { class: "soft" }, "in rounds"), follow,
    el("button", { onclick: () => { view.open = null; showPanel(); } }, "close"));
  if (!elsewhere.some(([, index]) => index === view.round)) return el("div", { class: "panel" }, head, el("p", {}, `This prompt was not sampled in ${round.name}.`));
  if (!found) return el("div", { class: "panel" }, head, el("p", {}, "Its texts are not in this file: ", el("code", {}, `gift inspect ${round.name} --prompt-id ${id}`)));
  return el("div", { class: "panel" }, head, promptOf(found),
    found.rows.some((each) => each.ratios) ? el("p", { class: "unit" }, "tokens less likely ", el("span", { class: "scale" }), " more likely than under the reference (log-ratio −1 to +1 nat)") : null,
    round.targets ? el("p", { class: "unit" }, `targets: ${round.targets}`) : null,
    el("div", { class: "texts" }, found.rows.map((each) => completion(each, `sample ${each.sample}`))));
}

function promptOf(found) {
  return el("div", {}, found.prompt.map(([role, text]) => el("div", { class: "said" }, role ? el("span", { class: "role" }, role) : null, plain(text))),
    Object.entries(found.columns).map(([name, value]) => el("span", { class: "chip" }, `${name}: `, plain(value))));
}

function completion(each, title, right) {
  const cut = each.end === "length";
  return el("div", { class: "completion" },
    el("h3", {}, title, " ", right === undefined ? null : el("span", { class: right ? "right" : "wrong" }, right ? "right " : "wrong "),
      el("span", { class: "unit" }, `${plural(each.num_tokens, "token")}, `, el("span", { class: cut ? "wrong" : "" }, cut ? "truncated" : each.end))),
    el("span", { class: each.reward === null ? "chip bad" : "chip" }, el("b", {}, each.reward === null ? "no reward" : `reward ${number(each.reward)}`)),
    "target" in each ? el("span", { class: "chip", title: "the advantage, or what else the method makes of the group's rewards" }, each.target === null ? "did not train" : `target ${signed(each.target)}`) : null,
    Object.entries(each.rewards).map(([name, value]) => el("span", { class: typeof value === "string" ? "chip bad" : "chip" }, `${name} `, typeof value === "string" ? value : number(value))),
    Object.entries(each.messages || {}).map(([name, text]) => el("div", { class: "message" }, `${name}: `, plain(text))),
    el("div", { class: "said" }, each.tokens ? tokens(each) : plain(each.text), each.more ? el("span", { class: "soft" }, ` … ${plural(each.more, "character")} more`) : null));
}

/* Held-out answers */

const held = { only: "all", open: null, from: 0, to: 0 };

function answers() {
  const place = section("answers");
  const policies = data.answers.filter((each) => !each.missing);
  if (!policies.length) return place.remove();
  const judged = policies.every((each) => each.judged);
  const at = new Map(policies.map((each) => [each.name, new Map(each.ids.map((id, index) => [id, index]))]));
  const value = (policy, id, what) => { const index = at.get(policy.name).get(id); return index === undefined ? null : policy[what][index]; };
  const ids = [...new Set(policies.flatMap((each) => each.ids))];
  held.to = policies.length - 1;
  const tests = {
    all: () => true, right: (a, b) => b === 1, wrong: (a, b) => b === 0, "became right": (a, b) => a === 0 && b === 1, "became wrong": (a, b) => a === 1 && b === 0,
  };
  const firstRight = (id) => { const found = policies.find((each) => value(each, id, "greedy") === 1); return found ? found.name : "never"; };
  const most = Math.max(...policies.flatMap((each) => each.greedy.filter((one) => one !== null).map(Math.abs)), 1);
  const list = el("div", {});
  const panel = el("div", { id: "answer" });
  const count = el("p", { class: "soft", id: "answer-count" });
  const pick = (key) => el("select", { id: `answers-${key}`, onchange: (event) => { held[key] = Number(event.target.value); show(); } },
    policies.map((each, index) => el("option", { value: index, selected: index === held[key] }, each.name)));

  function show() {
    const [before, after] = [policies[held.from], policies[held.to]];
    const rows = ids.filter((id) => tests[held.only](value(before, id, "greedy"), value(after, id, "greedy")));
    count.textContent = `${number(rows.length)} of ${plural(after.num_prompts, "prompt")}`
      + (ids.length < after.num_prompts ? `; a sample of ${number(ids.length)} is in this file` : "");
    const cell = (policy, id) => {
      const found = value(policy, id, "greedy");
      const share = value(policy, id, "sampled");
      const title = `${policy.name}: ${found === null ? "no value" : judged ? (found ? "right" : "wrong") : number(found)}${share === null ? "" : `, sampled ${number(share)}`}`;
      const made = el("td", { class: `cell ${judged && found !== null ? (found ? "right" : "wrong") : ""}`, title }, found === null ? "–" : judged ? (found ? "●" : "○") : number(found));
      if (!judged && found !== null) made.style.background = `rgba(var(${found < 0 ? "--down" : "--up"}), ${0.5 * Math.abs(found) / most})`;
      return made;
    };
    const body = rows.map((id) => {
      const open = () => { held.open = id; showPanel(); panel.scrollIntoView({ block: "nearest" }); };
      const prompt = data.prompts[id];
      return el("tr", { tabindex: 0, "data-id": id, class: prompt ? null : "bare", onclick: open, onkeydown: (event) => { if (event.key === "Enter") open(); } },
        el("td", { class: "text" }, prompt ? brief(prompt.prompt.at(-1)[1], 80) : id), policies.map((each) => cell(each, id)),
        judged ? el("td", {}, firstRight(id)) : null);
    });
    list.replaceChildren(el("div", { class: "scroll" }, el("table", {},
      el("thead", {}, el("tr", {}, el("th", {}, "prompt"), policies.map((each) => el("th", { class: "cell" }, each.name)), judged ? el("th", {}, "first right") : null)),
      el("tbody", {}, body))));
    showPanel();
  }

  function showPanel() {
    select(list, held.open);
    panel.replaceChildren(...(held.open ? [opened(held.open)] : []));
  }

  function opened(id) {
    const texts = policies.filter((each) => each.texts[id]);
    return el("div", { class: "panel" },
      el("div", { class: "bar" }, el("code", {}, id), el("button", { onclick: () => { held.open = null; showPanel(); } }, "close")),
      data.prompts[id] ? promptOf(data.prompts[id]) : null,
      texts.length ? el("div", { class: "texts" }, texts.map((each) => completion(each.texts[id], each.name, judged && value(each, id, "greedy") !== null ? value(each, id, "greedy") === 1 : undefined)))
        : el("p", {}, "Its answers are not in this file: ", el("code", {}, `gift inspect ${policies.at(-1).name} --answers --prompt-id ${id}`)));
  }

  place.append(el("h2", {}, "Held-out answers"),
    el("p", { class: "soft" }, judged ? "Greedy answers: ● right, ○ wrong. A cell's title has the share of the sampled answers that are right." : "Rewards of the greedy answers."),
    el("div", { class: "bar" }, el("label", {}, "from ", pick("from")), el("label", {}, "to ", pick("to")),
      judged ? Object.keys(tests).map((name) => el("button", { "data-only": name, "aria-pressed": String(held.only === name), onclick: (event) => {
        held.only = name;
        press(event.target);
        show();
      } }, name)) : null),
    count, list, panel);
  show();
}

/* What made it */

function made() {
  if (!data.facts.length) return section("made").remove();
  add("made", el("h2", {}, "What made it"),
    el("div", { class: "scroll low" }, el("table", { class: "facts" }, el("tbody", {}, data.facts.map(([word, value]) => el("tr", {}, el("td", {}, word), el("td", {}, value)))))),
    data.settings ? el("details", {}, el("summary", {}, "params.yaml"), el("pre", {}, data.settings)) : null);
}

outcome();
curves();
rollouts();
answers();
made();
for (const link of document.querySelectorAll("nav a")) if (!document.querySelector(link.getAttribute("href"))) link.remove();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}
