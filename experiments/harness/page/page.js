"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const make = (name, attributes = {}, parent = null, text = null) => {
  const element = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  if (parent) parent.appendChild(element);
  return element;
};
const written = value => (value === null || value === undefined ? "" : Number(value).toFixed(3));
const shade = share => {
  const t = Math.max(0, Math.min(1, share));  // from pale to deep blue: monotone in lightness, readable without colour
  return `hsl(212 ${30 + 45 * t}% ${94 - 62 * t}%)`;
};

function heatmap(map, host, number) {
  const figure = make("figure", {}, host);
  make("figcaption", {}, figure, map.title);
  const left = 12 + 7 * Math.max(...map.rows.map(name => name.length)), size = Math.max(9, Math.min(26, 880 / map.columns.length));
  const width = left + size * map.columns.length + 4, height = 18 * map.rows.length + 26;
  const box = make("div", { class: "scroll" }, figure);
  const svg = make("svg:svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": map.title }, box);
  const tip = make("div", { class: "tip", role: "status" }, figure);
  map.rows.forEach((name, r) => {
    make("svg:text", { x: left - 6, y: 18 * r + 13, "text-anchor": "end" }, svg, name);
    map.columns.forEach((column, c) => {
      const value = map.values[r][c], label = `${name}, ${map.across || ""}${column}: ${map.kind === "kept" ? value : written(value)}`;
      const cell = make("svg:rect", { x: left + size * c, y: 18 * r, width: size - 1, height: 17, fill: value === null ? "none" : shade(value / map.top),
        class: "cell", tabindex: r + c ? -1 : 0, role: "button", "aria-label": label, "data-map": number, "data-row": r, "data-column": c }, svg);
      const show = () => { tip.textContent = label + interval(value, map.n); };
      cell.addEventListener("mouseenter", show);
      cell.addEventListener("focus", show);
      cell.addEventListener("click", () => open(map, r, c));
      cell.addEventListener("keydown", event => {
        const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(map, r, c); }
        if (!step) return;
        event.preventDefault();
        const next = svg.querySelector(`[data-row="${r + step[0]}"][data-column="${c + step[1]}"]`);
        if (next) next.focus();
      });
    });
  });
  const every = Math.ceil(28 / size);
  map.columns.forEach((column, c) => { if (c % every === 0) make("svg:text", { x: left + size * (c + .5), y: 18 * map.rows.length + 14, "text-anchor": "middle" }, svg, column); });
}

function interval(value, n) {  // Wilson's, of n pairs
  if (!n || value === null) return "";
  const z = 1.96, middle = (value + z * z / (2 * n)) / (1 + z * z / n);
  const half = z / (1 + z * z / n) * Math.sqrt(value * (1 - value) / n + z * z / (4 * n * n));
  return `, 95% ${written(Math.max(0, middle - half))} to ${written(Math.min(1, middle + half))}, ${n} pairs`;
}

function open(map, r, c) {
  if (map.kind === "kept") return;
  const host = document.getElementById("pairs"), pairs = data.pairs;
  host.replaceChildren();
  make("h3", {}, host, `${map.title}: ${map.rows[r]}, ${map.columns[c]}`);
  if (!pairs) { make("p", { class: "note" }, host, "This run kept no outcomes of single pairs."); return; }
  const got = map.kind === "sweep" ? ((pairs.sweep || [])[r] || [])[c] : (pairs.got[map.method] || [])[map.variable];
  if (!got) { make("p", { class: "note" }, host, "No outcomes of single pairs were kept for this cell."); return; }
  const expected = pairs.expected[map.variable], name = label => (label < 0 ? "not finite" : pairs.answers?.[label] ?? (pairs.answers ? "another" : String(label)));
  const order = got.map((_, i) => i).sort((a, b) => (got[a] === expected[a]) - (got[b] === expected[b]) || a - b);
  const missed = got.filter((value, i) => value !== expected[i]).length;
  make("p", {}, host, `${missed} of ${got.length} kept pairs fail; of ${pairs.split} pairs of ${pairs.unit}, the first ones.`);
  for (const i of order.slice(0, 24)) {
    const article = make("article", {}, host), right = got[i] === expected[i];
    const line = make("p", {}, article);
    make("span", { class: right ? "hit" : "miss" }, line, right ? "as expected" : "fails");
    make("span", {}, line, `  expected ${name(expected[i])}, got ${name(got[i])}`);
    for (const side of ["base", "source"]) {
      const pre = make("pre", {}, article), text = pairs[side][i];
      const span = (pairs.spans?.[side]?.[map.kind === "sweep" ? map.rows[r] : pairs.token] || [])[i];
      make("b", {}, pre, `${side}: `);
      if (!span) { pre.append(text); continue; }
      pre.append(text.slice(0, span[0]));
      make("mark", {}, pre, text.slice(span[0], span[1]));
      pre.append(text.slice(span[1]));
    }
  }
  host.scrollIntoView({ block: "nearest" });
}

function bars() {
  const table = document.getElementById("bars");
  if (!table) return;
  const names = ["method", "IIA", "low", "high", "interval", "random", "shuffled", "seconds"];
  const head = make("tr", {}, make("thead", {}, table));
  names.forEach(name => make("button", { type: "button" }, make("th", { scope: "col" }, head), name));
  const body = make("tbody", {}, table);
  for (const row of data.intervals) {
    const line = make("tr", {}, body);
    make("td", {}, line, row.method);
    for (const key of ["iia", "low", "high"]) make("td", {}, line, written(row[key]));
    const svg = make("svg:svg", { width: 220, height: 18, viewBox: "0 0 220 18", role: "img", "aria-label": `${written(row.low)} to ${written(row.high)}` }, make("td", { "data-value": row.iia }, line));
    make("svg:line", { x1: 5, x2: 215, y1: 9, y2: 9, class: "axis" }, svg);
    make("svg:line", { x1: 5 + 210 * row.low, x2: 5 + 210 * row.high, y1: 9, y2: 9, class: "range" }, svg);
    make("svg:circle", { cx: 5 + 210 * row.iia, cy: 9, r: 4, class: "point" }, svg);
    for (const key of ["random", "shuffled"]) if (row[key] !== null) make("svg:line", { x1: 5 + 210 * row[key], x2: 5 + 210 * row[key], y1: 3, y2: 15, class: "control" }, svg);
    for (const key of ["random", "shuffled"]) make("td", {}, line, written(row[key]));
    make("td", {}, line, row.seconds === null ? "" : row.seconds.toFixed(1));
  }
  sortable(table);
}

function sortable(table) {
  const heads = [...table.querySelectorAll("thead th")], body = table.querySelector("tbody");
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") === "descending";
    heads.forEach(each => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = row => { const cell = row.cells[column], text = cell.dataset.value ?? cell.textContent.replaceAll(",", ""); return text.trim() === "" || isNaN(text) ? text : Number(text); };
    const rank = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? 1 : -1);
    [...body.rows].sort((a, b) => (up ? 1 : -1) * rank(value(a), value(b))).forEach(row => body.appendChild(row));
  }));
}

function lines(title, series, label, host) {
  const figure = make("figure", {}, host);
  make("figcaption", {}, figure, title);
  const points = series.flat(), xs = points.map(p => p[0]), ys = points.map(p => p[1]).filter(y => y !== null);
  const low = Math.min(0, ...ys), high = Math.max(label === "epoch" ? 0 : 1, ...ys), first = Math.min(...xs), last = Math.max(...xs);
  const at = ([x, y]) => [34 + 200 * (last > first ? (x - first) / (last - first) : .5), 110 - 95 * (y - low) / (high - low || 1)];
  const svg = make("svg:svg", { viewBox: "0 0 244 136", width: "100%", role: "img", "aria-label": title }, figure);
  make("svg:line", { x1: 34, x2: 234, y1: 110, y2: 110, class: "axis" }, svg);
  for (const y of [low, high]) make("svg:text", { x: 30, y: at([first, y])[1] + 4, "text-anchor": "end" }, svg, y.toFixed(1));
  for (const x of [first, last]) make("svg:text", { x: at([x, low])[0], y: 124, "text-anchor": x === first ? "start" : "end" }, svg, `${label} ${x}`);
  series.forEach((line, i) => {
    const drawn = line.filter(p => p[1] !== null).map(p => at(p).map(v => v.toFixed(1)).join(",")).join(" ");
    make("svg:polyline", { points: drawn, fill: "none", stroke: `hsl(${212 + 140 * i} 60% 50%)`, "stroke-width": 1.6, opacity: series.length > 4 ? .5 : 1, "stroke-dasharray": i % 2 && series.length < 5 ? "5 3" : "none" }, svg);
  });
}

(data.maps || []).forEach((map, i) => heatmap(map, document.getElementById("charts"), i));
bars();
document.querySelectorAll("table.sortable").forEach(sortable);
for (const each of data.searches || []) {
  const host = document.getElementById("searches-charts");
  const named = data.variables.join(" (solid), ") + (data.variables.length > 1 ? " (dashed)" : "");
  if (each.rank) lines(`${each.method}: best calibration IIA by rank; ${named}`, each.rank, "rank", host);
  if (each.depth) lines(`${each.method}: best calibration IIA by depth; ${named}`, each.depth, "depth", host);
  if (each.curve) lines(`${each.method}: training loss of ${each.curve.length} candidates`, each.curve.map(line => line.map((y, x) => [x, y])), "epoch", host);
}
document.querySelectorAll("[data-copy]").forEach(button => button.addEventListener("click", async () => {
  const kind = button.dataset.copy, text = kind === "python" ? document.getElementById("python").textContent : data.exports[kind];
  const told = document.getElementById("copied");
  try { await navigator.clipboard.writeText(text); } catch (error) {
    const area = make("textarea", {}, document.body, text);  // file: pages may not use the clipboard directly
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  told.textContent = `copied ${text.length} characters`;
}));
