// Shows numbers that dpo_min computed (N), and the losses of its tables (LOSSES). It does no other mathematics than
// a = log π − log π_ref, h = a − b, and the places of things on the screen.
"use strict";

const N = JSON.parse(document.getElementById("numbers").textContent);
const $ = (id) => document.getElementById(id);
const range = (n) => Array.from({ length: n }, (_, k) => k);

// ---- Text and numbers

const fixed = (x, digits) => {
  if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
  if (Math.abs(x) >= 1e6) {
    const [front, power] = x.toExponential(2).replace("-", "−").split("e+");
    return `${front} · 10${[...power].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]).join("")}`;
  }
  const text = x.toFixed(digits);
  return (Number(text) === 0 ? text.replace("-", "") : text).replace("-", "−");
};

// A number in its place, rounded for the eye; the test in the browser reads the whole of it in data-value.
function put(id, x) {
  const place = $(id);
  place.textContent = fixed(x, Number(place.dataset.digits));
  place.dataset.value = x;
}

const SUBSCRIPT = { "π_ref": ["π", "ref"], "π_r": ["π", "r"], "y_w": ["y", "w"], "y_l": ["y", "l"] };
const MATH = /π_ref|π_r(?![a-z])|y_w|y_l/g;
const html = (text) => text.replace(MATH, (name) => SUBSCRIPT[name].join("<sub>") + "</sub>");
const svgText = (text) =>
  text.replace(MATH, (name) => `${SUBSCRIPT[name][0]}<tspan dy="3" font-size="9">${SUBSCRIPT[name][1]}</tspan><tspan dy="-3">&#8203;</tspan>`);

// ---- A table with a bar for each answer

// columns: [head, row → text]; bars: {class: probability of every answer}
function drawBars(id, columns, bars, roles = {}) {
  const head = columns.map(([name]) => `<th scope="col">${html(name)}</th>`).join("");
  const rows = N.language.answers.map((answer, k) => {
    const cells = columns.map(([, text]) => `<td>${text(k)}</td>`).join("");
    const drawn = Object.entries(bars).map(([kind, p]) => `<i class="${kind}" style="width:${100 * p[k]}%"></i>`);
    const role = roles[k] ? ` <span class="role">${html(roles[k])}</span>` : "";
    return `<tr><th scope="row">${answer}${role}</th>${cells}<td><div class="bar">${drawn.join("")}</div></td></tr>`;
  });
  $(id).innerHTML =
    `<thead><tr><th scope="col">y</th>${head}<th scope="col"><span class="soft">probability, 0 to 1</span></th></tr></thead>` +
    `<tbody>${rows.join("")}</tbody>`;
  $(id).dataset.values = JSON.stringify(bars);
}

const probability = (p) => (k) => fixed(p[k], 3);
const reward = ["r", (k) => fixed(N.language.reward[k], 2)];

// ---- Charts

const WIDTH = 420, HEIGHT = 300, LEFT = 52, RIGHT = 14, TOP = 14, BOTTOM = 46;
const identity = (x) => x;

// x and y are [low, high]; root draws x on the scale of its root, on which the optimum starts as a straight line.
function chart(id, label, { x, y, xLabel, yLabel, root = false }) {
  const bend = root ? Math.sqrt : identity;
  const X = (v) => LEFT + ((bend(v) - bend(x[0])) / (bend(x[1]) - bend(x[0]))) * (WIDTH - LEFT - RIGHT);
  const Y = (v) => HEIGHT - BOTTOM - ((v - y[0]) / (y[1] - y[0])) * (HEIGHT - TOP - BOTTOM);
  const parts = [];
  for (const v of ticks(...y)) {
    parts.push(`<path class="grid" d="M${LEFT} ${Y(v)}H${WIDTH - RIGHT}"/><text class="soft" text-anchor="end" x="${LEFT - 6}" y="${Y(v) + 4}">${short(v)}</text>`);
  }
  for (const v of ticks(...x)) {
    parts.push(`<path class="axis" d="M${X(v)} ${HEIGHT - BOTTOM}v5"/><text class="soft" text-anchor="middle" x="${X(v)}" y="${HEIGHT - BOTTOM + 19}">${short(v)}</text>`);
  }
  parts.push(`<path class="axis" d="M${LEFT} ${TOP}V${HEIGHT - BOTTOM}H${WIDTH - RIGHT}"/>`);
  parts.push(`<text text-anchor="end" x="${WIDTH - RIGHT}" y="${HEIGHT - 8}">${svgText(xLabel)}</text>`);
  parts.push(`<text x="${LEFT + 8}" y="${TOP + 8}">${svgText(yLabel)}</text>`);
  parts.push(`<clipPath id="${id}-clip"><path d="M${LEFT} ${TOP - 8}H${WIDTH}V${HEIGHT - BOTTOM + 8}H${LEFT}z"/></clipPath><g clip-path="url(#${id}-clip)">`);
  const tools = {
    line: (kind, points) => {
      const clip = (v) => Math.max(-1e4, Math.min(1e4, v)); // an SVG has no room for what is far outside
      parts.push(`<path class="${kind}" d="M${points.map(([a, b]) => `${X(a).toFixed(1)} ${clip(Y(b)).toFixed(1)}`).join("L")}"/>`);
    },
    circle: (kind, a, b, r) => parts.push(`<circle class="${kind}" cx="${X(a)}" cy="${Y(b)}" r="${r}"/>`),
    star: (a, b) => {
      const tip = (k) => [X(a) + (k % 2 ? 4 : 10) * Math.sin((k * Math.PI) / 5), Y(b) - (k % 2 ? 4 : 10) * Math.cos((k * Math.PI) / 5)];
      parts.push(`<path class="star" d="M${range(10).map((k) => tip(k).join(" ")).join("L")}z"/>`);
    },
    vertical: (kind, a) => parts.push(`<path class="${kind}" d="M${X(a)} ${TOP + 14}V${HEIGHT - BOTTOM}"/>`),
    name: (anchor, a, b, below, text) => parts.push(`<text class="soft" text-anchor="${anchor}" x="${X(a)}" y="${Y(b) + (below ? 20 : -10)}">${svgText(text)}</text>`),
    draw: () => {
      const about = label.replace(/"/g, "");
      $(id).innerHTML = `<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="${about}">${parts.join("")}</g></svg>`;
    },
  };
  return tools;
}

function ticks(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= rough);
  return range(Math.floor(high / step) - Math.ceil(low / step) + 1).map((k) => (Math.ceil(low / step) + k) * step);
}
const short = (v) => String(Number(v.toPrecision(4))).replace("-", "−");

// ---- 1. β

const OPTIMA = N.optima;
const START = OPTIMA.findIndex(({ beta }) => beta === 1);

function optimumCurve(id, label) {
  const rewards = OPTIMA.map((point) => point.reward);
  const span = { x: [0, Math.ceil(OPTIMA[0].kl)], y: [Math.min(...rewards) - 0.4, Math.max(...rewards) + 0.3] };
  const tools = chart(id, label, { ...span, root: true, xLabel: "KL(π‖π_ref), nats", yLabel: "E[r]" });
  tools.line("curve", OPTIMA.map((point) => [point.kl, point.reward]));
  return tools;
}

function showBeta() {
  const point = OPTIMA[$("beta").value];
  put("beta-value", point.beta);
  put("z", point.z);
  put("beta-reward", point.reward);
  put("beta-kl", point.kl);
  put("beta-j", point.j);
  $("beta").setAttribute("aria-valuetext", fixed(point.beta, 3));
  drawBars("beta-table", [reward, ["π_ref", probability(N.language.reference)], ["π_r", probability(point.policy)]],
    { before: N.language.reference, now: point.policy });
  const tools = optimumCurve("beta-chart", `The most reward at each KL. Yours: KL ${fixed(point.kl, 2)}, reward ${fixed(point.reward, 2)}`);
  for (const { beta, kl, reward } of OPTIMA.filter(({ beta }) => [0.25, 0.5, 1, 2].includes(beta))) {
    tools.circle("mark", kl, reward, 3.5);
    tools.name("end", kl, reward, false, `β = ${beta} `);
  }
  tools.circle("dot", point.kl, point.reward, 7);
  tools.draw();
}

// ---- 2. One pair

// What a row's formulas are called with, at log-probabilities w and l of the two answers.
function callOf(name, w, l) {
  const row = N.losses[name], [refW, refL] = N.pair.reference, [lengthW, lengthL] = N.pair.lengths;
  const scale = row.mean ? [lengthW, lengthL] : [1, 1];
  const [a, b] = row.reference ? [w - refW, l - refL] : [w / scale[0], l / scale[1]];
  const beta = N.pair.betas[$("pair-beta").value];
  const facts = { policy_chosen_logps: w, chosen_lengths: lengthW, rejected_lengths: lengthL };
  const more = Object.keys(row.arguments).map((key) => facts[key] ?? Number($(`argument-${key}`).value));
  return { a, b, h: a - b, beta, more, scale };
}

function lossAt(name, w, l) {
  const { a, b, h, beta, more } = callOf(name, w, l);
  return N.losses[name].kind === "margin" ? LOSSES[name].value(h, beta, ...more) : LOSSES[name].value(a, b, beta, ...more);
}

function slopesAt(name, w, l) {
  const { a, b, h, beta, more } = callOf(name, w, l);
  if (N.losses[name].kind !== "margin") return LOSSES[name].slopes(a, b, beta, ...more);
  const slope = LOSSES[name].slope(h, beta, ...more);
  return [slope, -slope];
}

function chooseLoss() {
  const row = N.losses[$("loss").value];
  $("about").innerHTML = `${html(row.about)}. <i>${html(row.source)}</i>`;
  $("arguments").innerHTML = Object.entries(row.arguments).filter(([, start]) => start !== null).map(([key, start]) => {
    const [least, most] = key === "label_smoothing" ? [0.01, 0.49] : [0, N.pair.most]; // at ½ a label says nothing
    return `<label for="argument-${key}">${key.replace("_", " ")} <input type="number" id="argument-${key}" value="${start}" step="any" min="${least}" max="${most}" required></label>`;
  }).join("");
  const notes = [
    row.reference ? "" : "This loss has no reference: a and b are log π itself" + (row.mean ? ", per token." : "."),
    row.partial ? "Here every token counts in full." : "",
    Object.values(row.arguments).includes(null) ? `y_w has ${N.pair.lengths[0]} tokens and y_l has ${N.pair.lengths[1]}.` : "",
  ];
  $("pair-note").innerHTML = html(notes.join(" "));
  showPair();
}

function showPair() {
  if (document.querySelector("#arguments :invalid")) return; // a number that no loss takes changes nothing
  const name = $("loss").value, w = Number($("chosen").value), l = Number($("rejected").value);
  const { a, b, h, beta, scale } = callOf(name, w, l), slopes = slopesAt(name, w, l), loss = lossAt(name, w, l);
  put("chosen-value", w);
  put("rejected-value", l);
  put("pair-beta-value", beta);
  $("pair-beta").setAttribute("aria-valuetext", fixed(beta, 2));
  put("a", a);
  put("b", b);
  put("h", h);
  put("pair-loss", loss);
  put("slope-a", slopes[0]);
  put("slope-b", slopes[1]);
  put("weight", -slopes[0] / beta);
  const places = range(241).map((k) => -24 + k / 10);
  const curves = { chosen: places.map((x) => [x, lossAt(name, x, l)]), rejected: places.map((x) => [x, lossAt(name, w, x)]) };
  // The steepest tenth of both curves is left out, so that the rest can be seen.
  const heights = [...curves.chosen, ...curves.rejected].map(([, y]) => y).sort((p, q) => p - q);
  const high = Math.max(heights[Math.floor(0.9 * heights.length)], loss), low = heights[0];
  const room = Math.max(0.12 * (high - low), 0.05);
  for (const [side, value, slope, y] of [["chosen", w, slopes[0] / scale[0], "y_w"], ["rejected", l, slopes[1] / scale[1], "y_l"]]) {
    const tools = chart(`${side}-chart`, `The loss against log π of the ${side} answer`,
      { x: [-24, 0], y: [low - room, high + 2 * room], xLabel: `log π(${y}), nats`, yLabel: "loss" });
    if (N.losses[name].reference) tools.vertical("soft-line", N.pair.reference[side === "chosen" ? 0 : 1]);
    tools.line("curve", curves[side]);
    tools.line("tangent", [-4, 4].map((d) => [value + d, loss + d * slope]));
    tools.circle("dot", value, loss, 7);
    tools.draw();
  }
}

function setPair(w, l, name = "sigmoid", beta = N.steps.beta) {
  $("chosen").value = w;
  $("rejected").value = l;
  $("pair-beta").value = N.pair.betas.indexOf(beta);
  if ($("loss").value !== name) {
    $("loss").value = name;
    chooseLoss();
  }
  showPair();
}

// ---- 3. Steps

const learner = () => document.querySelector("input[name=learner]:checked").value;
const pairOf = () => [Number($("step-chosen").value), Number($("step-rejected").value)];
let step = 0;

function stepsOf() {
  return learner() === "all" ? N.steps.all.logps : N.steps[learner()][pairOf().join()];
}

function showStep() {
  const all = learner() === "all", history = stepsOf(), [chosen, rejected] = pairOf(), end = history.length - 1;
  step = Math.max(0, Math.min(step, end));
  const now = history[step], start = history[0], change = now.map((p, k) => p - start[k]);
  for (const id of ["step", "step-end"]) $(id).disabled = step === end;
  for (const id of ["step-back", "step-reset"]) $(id).disabled = step === 0;
  for (const id of ["step-chosen", "step-rejected"]) $(id).disabled = all;
  document.querySelectorAll(".of-pair").forEach((part) => (part.hidden = all));
  document.querySelectorAll(".of-all, #key-optimum").forEach((part) => (part.hidden = !all));
  put("step-number", step);
  const columns = [["π_ref", probability(N.language.reference)], ["π", (k) => fixed(Math.exp(now[k]), 3)], ["log π − log π_ref", (k) => fixed(change[k], 2)]];
  const bars = { before: N.language.reference, now: now.map(Math.exp) };
  if (all) bars.goal = N.steps.all.optimum;
  drawBars("step-table", columns, bars, all ? {} : { [chosen]: "y_w", [rejected]: "y_l" });
  all ? drawDistance(end) : drawPair(history, chosen, rejected, end);
}

function drawPair(history, chosen, rejected, end) {
  const beta = N.steps.beta, start = history[0];
  const moved = (k) => history.map((logps, t) => [t, logps[k] - start[k]]);
  const w = moved(chosen), l = moved(rejected), h = w.map(([t, a]) => [t, a - l[t][1]]);
  put("step-h", h[step][1]);
  put("step-loss", LOSSES.sigmoid.value(h[step][1], beta));
  put("step-weight", sigmoid(-beta * h[step][1]));
  const seen = (line) => line.slice(0, step + 1), all = [...w, ...l, ...h].map(([, y]) => y);
  const tools = chart("step-chart", "Change of both log-probabilities and the margin, by step",
    { x: [0, end], y: [Math.min(...all, -1) * 1.25, Math.max(...all, 1) * 1.2], xLabel: "step", yLabel: "nats since the start" });
  for (const [kind, line, name] of [["curve", w, "a, chosen"], ["curve dashed", l, "b, rejected"], ["now", h, "margin h"]]) {
    tools.line(kind, seen(line));
    tools.circle("dot", ...line[step], 4);
    if (step > end / 3) tools.name("end", ...line[step], line[step][1] < 0, name);
  }
  tools.draw();
  $("step-caption").innerHTML = html(`How log π of the chosen answer (line) and of the rejected one (broken line) have changed, and the margin between them (blue). β = ${beta}.`);
}

function drawDistance(end) {
  const distance = N.steps.all.distance;
  put("step-distance", distance[step]);
  const tools = chart("step-chart", "Distance from the optimum by step",
    { x: [0, end], y: [0, distance[0] * 1.15], xLabel: "step", yLabel: "KL(π‖π_r), nats" });
  tools.line("now", distance.slice(0, step + 1).map((d, t) => [t, d]));
  tools.circle("dot", step, distance[step], 6);
  tools.draw();
  $("step-caption").innerHTML = html(`The distance from π_r, which the loss never sees. β = ${N.steps.all.beta}.`);
}

function setSteps(kind, [chosen, rejected], at) {
  document.querySelector(`input[name=learner][value=${kind}]`).checked = true;
  $("step-chosen").value = chosen;
  $("step-rejected").value = rejected;
  step = at;
  showStep();
}

// ---- 4. Data

const sizeName = (size) => (size === null ? "unlimited" : size.toLocaleString("en"));
const dataLoss = () => document.querySelector("input[name=data-loss]:checked").value;

function showData() {
  const noise = N.data.noise[$("noise").value], size = N.data.sizes[$("size").value];
  const found = N.data.ends[`${noise},${size ?? "all"}`][dataLoss()], goal = N.steps.all.optimum;
  const mean = (numbers) => numbers.reduce((sum, x) => sum + x, 0) / numbers.length;
  put("noise-value", noise);
  $("noise").setAttribute("aria-valuetext", fixed(noise, 1));
  $("size-value").textContent = sizeName(size);
  $("size").setAttribute("aria-valuetext", sizeName(size));
  put("data-sets", found.kl.length);
  put("data-reward", mean(found.reward));
  put("data-kl", mean(found.kl));
  put("data-distance", found.distance);
  drawBars("data-table", [reward, ["π_r", probability(goal)], ["π", probability(found.policy)]], { now: found.policy, goal });
  const tools = optimumCurve("data-chart", `Where ${found.kl.length} data sets end, against the most reward at each KL`);
  tools.star(N.data.optimum.kl, N.data.optimum.reward);
  found.kl.forEach((kl, k) => tools.circle("ring", kl, found.reward[k], 5));
  tools.circle("dot", mean(found.kl), mean(found.reward), 6);
  tools.draw();
}

function setData(noise, size, loss) {
  $("noise").value = N.data.noise.indexOf(noise);
  $("size").value = N.data.sizes.indexOf(size);
  document.querySelector(`input[name=data-loss][value=${loss}]`).checked = true;
  showData();
}

// ---- Questions: what is right is in N.truth; what is said afterwards is read from what the page then shows

const value = (id) => $(id).textContent;
const AFTERWARDS = {
  beta_kl: () => {
    const [one, half] = [1, 0.5].map((beta) => OPTIMA.find((point) => point.beta === beta).kl);
    return `From ${fixed(one, 3)} to ${fixed(half, 3)} nats: drift has become cheaper, so the best policy drifts further.`;
  },
  beta_low: () => {
    $("beta").value = 0;
    showBeta();
    return `At β = ${value("beta-value")} the reward alone decides. At the other end of the slider π_r is π_ref.`;
  },
  slope_0: () => {
    setPair(...N.pair.reference);
    return `At h = 0 the slope in a is ${value("slope-a")}, which is −β/2: the loss falls if a rises, so y_w is pushed up, and y_l down as hard.`;
  },
  both_fall: () => {
    setPair(...N.pair.reference.map((logp) => logp - 3));
    return `Both have moved, h is ${value("h")} and the loss is ${value("pair-loss")}, as before. The loss of a margin sees the difference alone. Try nca in its place: it sees a and b apart.`;
  },
  displaced: () => {
    setSteps("gpt", N.steps.opening, N.steps.gpt[N.steps.opening.join()].length - 1);
    const history = stepsOf(), k = N.steps.opening[0];
    return `From ${fixed(Math.exp(history[0][k]), 3)} to ${fixed(Math.exp(history[step][k]), 3)}, while h grew to ${value("step-h")}: both fell, the rejected one further. Start again and press Step to watch.`;
  },
  gains: () => {
    setSteps("gpt", N.steps.opening, N.steps.gpt[N.steps.opening.join()].length - 1);
    const history = stepsOf(), gain = history[step].map((p, k) => Math.exp(p) - Math.exp(history[0][k]));
    return `It is ${N.language.answers[gain.indexOf(Math.max(...gain))]}. Now choose a table in the GPT's place.`;
  },
  noise: () => {
    setData(0.2, null, "sigmoid");
    return `KL(π‖π_ref) is ${value("data-kl")} nats, that of π_r ${fixed(N.data.optimum.kl, 3)}. Wrong labels make every preference look less certain than it is.`;
  },
  few: () => {
    setData(0, 30, "sigmoid");
    return `${value("data-reward")} on average, and π_r has ${fixed(N.data.optimum.reward, 3)}. Each data set errs in another direction: look at the circles.`;
  },
  told: () => {
    setData(0.2, null, "robust");
    return `robust undoes the flips on average, cdpo expects them and holds the margin back. Then try robust with 30 pairs: it pays with scatter.`;
  },
};

function ask(question) {
  const name = question.dataset.question, next = question.nextElementSibling;
  const answer = document.createElement("p");
  answer.className = "answer";
  answer.setAttribute("role", "status"); // read out when it comes
  question.append(answer);
  question.setAttribute("role", "group");
  question.setAttribute("aria-label", "Your prediction");
  if (next?.classList.contains("reveal")) next.classList.add("locked");
  question.querySelectorAll("button").forEach((button) => {
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      question.querySelectorAll("button").forEach((other) => other.setAttribute("aria-pressed", other === button));
      next?.classList.remove("locked");
      const right = button.dataset.choice === N.truth[name];
      answer.innerHTML = `<b class="${right ? "right" : "wrong"}">${right ? "Yes." : "No."}</b> ${html(AFTERWARDS[name]())}`;
    });
  });
}

// ---- Start

function options(select, names, chosen) {
  select.innerHTML = names.map((name, k) => `<option value="${k}">${name}</option>`).join("");
  select.value = chosen;
}

function start() {
  const { answers, reward: rewards } = N.language, [chosen, rejected] = N.steps.opening;
  const texts = {
    best: answers[rewards.indexOf(Math.max(...rewards))], chosen: answers[chosen], rejected: answers[rejected],
    pair_steps: N.steps.table[N.steps.opening.join()].length - 1, world_beta: N.steps.all.beta, data_steps: N.data.steps,
  };
  document.querySelectorAll("[data-text]").forEach((place) => (place.textContent = texts[place.dataset.text]));

  Object.assign($("beta"), { min: 0, max: OPTIMA.length - 1, step: 1, value: START });
  $("beta").addEventListener("input", showBeta);

  const group = (kind) => Object.keys(N.losses).filter((name) => N.losses[name].kind === kind).map((name) => `<option>${name}</option>`).join("");
  $("loss").innerHTML = `<optgroup label="of the margin h">${group("margin")}</optgroup><optgroup label="of a and b">${group("ratio")}</optgroup>`;
  ["chosen", "rejected"].forEach((side, k) => ($(`${side}-reference`).innerHTML = `<option value="${N.pair.reference[k]}"></option>`));
  $("loss").addEventListener("change", chooseLoss);
  for (const id of ["chosen", "rejected", "pair-beta", "arguments"]) $(id).addEventListener("input", showPair);
  $("pair-reset").addEventListener("click", () => setPair(...N.pair.reference, $("loss").value, N.pair.betas[$("pair-beta").value]));

  options($("step-chosen"), answers, chosen);
  options($("step-rejected"), answers, rejected);
  const again = (changed, other) => () => {
    if ($(changed).value === $(other).value) $(other).value = (Number($(changed).value) + 1) % answers.length; // a pair has two answers
    step = 0;
    showStep();
  };
  $("step-chosen").addEventListener("change", again("step-chosen", "step-rejected"));
  $("step-rejected").addEventListener("change", again("step-rejected", "step-chosen"));
  document.querySelectorAll("input[name=learner]").forEach((choice) => choice.addEventListener("change", () => { step = 0; showStep(); }));
  for (const [id, move] of [["step", () => step + 1], ["step-back", () => step - 1], ["step-end", () => Infinity], ["step-reset", () => 0]]) {
    $(id).addEventListener("click", () => { step = move(); showStep(); });
  }

  $("pair-beta").max = N.pair.betas.length - 1;
  $("noise").max = N.data.noise.length - 1;
  $("size").max = N.data.sizes.length - 1;
  $("data-losses").innerHTML = N.data.losses.map((name, k) => `<label><input type="radio" name="data-loss" value="${name}" ${k ? "" : "checked"}> ${name}</label>`).join("");
  for (const id of ["noise", "size", "data-losses"]) $(id).addEventListener("input", showData);

  showBeta();
  setPair(...N.pair.reference);
  chooseLoss();
  showStep();
  setData(0, 1000, N.data.losses[0]);
  document.querySelectorAll(".question").forEach(ask);
}

start();
