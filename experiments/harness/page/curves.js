
const curves = data.curves || [], hidden = new Set();
const pick = id => document.getElementById(id);
const short = value => (value === null ? "" : Math.abs(value) >= 1e-3 || value === 0 ? Number(value.toPrecision(4)).toString() : value.toExponential(2));
const between = point => (point[2] === null || point[3] === null ? "" : ` (${short(point[2])} to ${short(point[3])})`);

function swatch(line, parent) {
  const svg = make("svg:svg", { width: 26, height: 10, "aria-hidden": "true" }, parent);
  make("svg:line", { x1: 0, x2: 26, y1: 5, y2: 5, stroke: line.color, "stroke-width": 2, "stroke-dasharray": line.dash || "none" }, svg);
}

function scales(curve, shown, width, height) {
  const points = shown.flatMap(line => line.points), log = pick("curve-log").checked;
  const xs = [...new Set(points.map(p => p[0]))].sort((a, b) => a - b);
  const ys = [...points.flatMap(p => [p[1], p[2], p[3]]), curve.dense].filter(y => y !== null && (!log || y > 0));
  let low = Math.min(...ys), high = Math.max(...ys);
  if (!log && low >= 0 && curve.lower) low = 0;
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - .5, high + .5];
  const of = log ? Math.log10 : y => y, [first, last] = [xs[0], xs[xs.length - 1]];
  const x = share => 52 + (width - 72) * (last > first ? (share - first) / (last - first) : .5);
  const y = value => height - 34 - (height - 48) * (of(value) - of(low)) / (of(high) - of(low));
  const inside = value => value !== null && (!log || value > 0);
  return { xs, x, y, inside, ticks: log ? decades(low, high) : even(low, high) };
}

function even(low, high) {
  const step = 10 ** Math.floor(Math.log10((high - low) / 3)), wide = [1, 2, 5, 10].map(k => k * step).find(s => (high - low) / s <= 6);
  return Array.from({ length: 8 }, (_, i) => wide * (Math.ceil(low / wide - 1e-9) + i)).filter(t => t <= high + 1e-9 * wide);
}

function decades(low, high) {
  const all = [];
  for (let k = Math.floor(Math.log10(low)); k <= Math.log10(high); k++) for (const m of [1, 2, 5]) all.push(m * 10 ** k);
  const inside = all.filter(t => t >= low && t <= high), tens = inside.filter(t => Number.isInteger(Math.round(Math.log10(t) * 1e6) / 1e6));
  return tens.length > 2 ? tens : inside;
}

function drawCurve() {
  const curve = curves.find(each => each.group === pick("curve-group").value && each.what === pick("curve-what").value);
  const host = pick("curve-figure");
  host.replaceChildren();
  const shown = curve.lines.filter(line => !hidden.has(line.method)), width = Math.max(280, host.clientWidth), height = width < 500 ? 260 : 360;
  make("figcaption", {}, host, `${curve.what}, by the share kept: ${curve.group}`);
  const svg = make("svg:svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `${curve.what} by the share kept` }, host);
  const told = make("div", { class: "told", role: "status" }, host);
  if (!shown.length) return;
  const at = scales(curve, shown, width, height);
  for (const tick of at.ticks) {
    make("svg:line", { x1: 52, x2: width - 20, y1: at.y(tick), y2: at.y(tick), class: "axis", "stroke-width": 1, style: "stroke-width:1" }, svg);
    make("svg:text", { x: 46, y: at.y(tick) + 4, "text-anchor": "end" }, svg, short(Number(tick.toPrecision(6))));
  }
  let free = Infinity;  // from the right: numbers that would touch their neighbour are left out
  for (const share of [...at.xs].reverse()) {
    if (free - at.x(share) < 44) continue;
    free = at.x(share);
    make("svg:text", { x: free, y: height - 18, "text-anchor": "middle" }, svg, `${Number((100 * share).toPrecision(3))}%`);
  }
  make("svg:text", { x: (width + 32) / 2, y: height - 3, "text-anchor": "middle" }, svg, "share kept");
  if (at.inside(curve.dense)) {
    make("svg:line", { x1: 52, x2: width - 20, y1: at.y(curve.dense), y2: at.y(curve.dense), class: "control", "stroke-dasharray": "6 3" }, svg);
    make("svg:text", { x: 56, y: at.y(curve.dense) + (curve.lower ? -4 : 12) }, svg, "dense network");
  }
  const guide = make("svg:line", { y1: 14, y2: height - 34, class: "guide", visibility: "hidden" }, svg);
  const tell = share => { guide.setAttribute("x1", at.x(share)); guide.setAttribute("x2", at.x(share)); guide.setAttribute("visibility", "visible"); tellBudget(curve, shown, share, told); };
  shown.forEach((line, row) => drawLine(line, row, at, svg, tell));
  svg.addEventListener("pointermove", event => {
    const x = event.clientX - svg.getBoundingClientRect().left;
    tell(at.xs.reduce((best, share) => (Math.abs(at.x(share) - x) < Math.abs(at.x(best) - x) ? share : best)));
  });
  tell(at.xs[0]);
}

function drawLine(line, row, at, svg, tell) {
  const inside = line.points.filter(p => at.inside(p[1])), group = make("svg:g", { style: `color:var(--ink)` }, svg);
  const path = inside.map(p => `${at.x(p[0]).toFixed(1)},${at.y(p[1]).toFixed(1)}`).join(" ");
  make("svg:polyline", { points: path, fill: "none", stroke: line.color, "stroke-width": 1.8, "stroke-dasharray": line.dash || "none" }, group);
  inside.forEach((p, column) => {
    if (at.inside(p[2]) && at.inside(p[3])) make("svg:line", { x1: at.x(p[0]), x2: at.x(p[0]), y1: at.y(p[2]), y2: at.y(p[3]), stroke: line.color, opacity: .6 }, group);
    const label = `${line.method}, ${p[4] || `${100 * p[0]}%`}: ${short(p[1])}${between(p)}`;
    const dot = make("svg:circle", { cx: at.x(p[0]), cy: at.y(p[1]), r: 3.5, fill: line.color, tabindex: row + column ? -1 : 0, role: "img", "aria-label": label, "data-line": row, "data-point": column }, group);
    make("svg:title", {}, dot, label);
    dot.addEventListener("focus", () => tell(p[0]));
    dot.addEventListener("keydown", event => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!step) return;
      event.preventDefault();
      const next = svg.querySelector(`[data-line="${row + step[0]}"][data-point="${column + step[1]}"]`);
      if (next) next.focus();
    });
  });
}

function tellBudget(curve, shown, share, host) {
  host.replaceChildren();
  const there = shown.map(line => [line, line.points.find(p => p[0] === share)]).filter(([, p]) => p && p[1] !== null);
  const better = (a, b) => (curve.lower ? 1 : -1) * (a[1][1] - b[1][1]);
  const words = there.length ? there[0][1][4] : "";
  make("p", {}, host, `${Number((100 * share).toPrecision(3))}% kept${words ? `, ${words}` : ""}`);
  for (const [line, p] of there.sort(better)) {
    const text = make("p", {}, host);
    swatch(line, text);
    text.append(` ${line.method} ${short(p[1])}${between(p)}${p[5] ? `; ${p[5]}` : ""}`);
  }
}

function legend() {
  const host = pick("curve-legend"), there = curves.filter(each => each.group === pick("curve-group").value);
  const named = new Map(there.flatMap(each => each.lines).map(line => [line.method, line]));
  host.replaceChildren();
  for (const line of named.values()) {
    const button = make("button", { type: "button", "aria-pressed": String(!hidden.has(line.method)), "data-method": line.method }, host);
    swatch(line, button);
    button.append(line.method);
    button.addEventListener("click", () => {
      if (!hidden.delete(line.method)) hidden.add(line.method);
      button.setAttribute("aria-pressed", String(!hidden.has(line.method)));
      drawCurve();
    });
  }
}

function certificates() {
  const table = pick("certificates");
  if (!table) return;
  const head = make("tr", {}, make("thead", {}, table)), body = make("tbody", {}, table);
  ["method", "kept", "interchanges", "fidelity", "low", "high", "interval", "decided"].forEach(name => make("button", { type: "button" }, make("th", { scope: "col" }, head), name));
  const at = value => 5 + 190 * Math.max(0, value - .5) / .5;
  for (const curve of curves.filter(each => each.certified)) for (const line of curve.lines) for (const [share, value, low, high, words, note] of line.points) {
    const row = make("tr", {}, body);
    make("td", {}, row, line.method);
    make("td", { "data-value": share }, row, words);
    make("td", {}, row, curve.group.replace(/.*(?=p = )/, ""));
    for (const each of [value, low, high]) make("td", {}, row, each === null ? "" : each.toFixed(4));
    const svg = make("svg:svg", { width: 200, height: 18, viewBox: "0 0 200 18", role: "img", "aria-label": `${written(low)} to ${written(high)}` }, make("td", { "data-value": low }, row));
    make("svg:line", { x1: 5, x2: 195, y1: 9, y2: 9, class: "axis" }, svg);
    make("svg:line", { x1: at(low), x2: Math.max(at(high), at(low) + 1), y1: 9, y2: 9, class: "range" }, svg);
    make("svg:circle", { cx: at(value), cy: 9, r: 3, class: "point" }, svg);
    make("td", { style: "text-align:left" }, row, note);
  }
  sortable(table);
}

if (curves.length) {
  const group = pick("curve-group"), what = pick("curve-what");
  const fill = (select, names) => { const old = select.value; select.replaceChildren(...names.map(name => make("option", { value: name }, null, name))); if (names.includes(old)) select.value = old; };
  fill(group, [...new Set(curves.map(each => each.group))]);
  const measures = () => { fill(what, curves.filter(each => each.group === group.value).map(each => each.what)); legend(); drawCurve(); };
  measures();
  group.addEventListener("change", measures);
  for (const each of [what, pick("curve-log")]) each.addEventListener("change", drawCurve);
  let width = pick("curve-figure").clientWidth;
  window.addEventListener("resize", () => { if (pick("curve-figure").clientWidth !== width) { width = pick("curve-figure").clientWidth; drawCurve(); } });
}
certificates();
