// Sorting and the threshold slider. The page is complete without them.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    if (!heading.dataset.sort) return;
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const order = heading.ariaSort === "descending" ? "ascending" : "descending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", order);
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const compare = heading.dataset.sort === "number"
        ? (a, b) => Number(key(a)) - Number(key(b))
        : (a, b) => key(a).localeCompare(key(b), undefined, { numeric: true });
      const sign = order === "ascending" ? 1 : -1;
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort((a, b) => sign * compare(a, b)));
    });
  });
}

const held = document.getElementById("points");
if (held) {
  const points = JSON.parse(held.textContent);
  const at = (id) => document.getElementById(id);
  const slider = at("threshold");
  const costs = { miss: at("cost-miss"), alarm: at("cost-alarm") };
  const whole = (n) => n.toLocaleString("en-US");
  const percent = (share) => Number.isFinite(share) ? `${(100 * share).toFixed(1)}\u00a0%` : "–";

  // A mark on each chart that follows the slider; a chart says in data-frame where its axes lie.
  const frames = {};
  const marks = {};
  for (const [name, tag] of [["roc", "circle"], ["precision_recall", "circle"], ["scores", "line"]]) {
    const svg = document.querySelector(`#chart-${name} svg`);
    if (!svg) continue;
    const [x0, x1, left, right, y0, y1, bottom, top] = JSON.parse(svg.dataset.frame);
    frames[name] = {
      x: (value) => left + (value - x0) / (x1 - x0) * (right - left),
      y: (value) => bottom + (value - y0) / (y1 - y0) * (top - bottom),
      holds: (value) => value >= x0 && value <= x1,
      top, bottom,
    };
    marks[name] = document.createElementNS(svg.namespaceURI, tag);
    marks[name].setAttribute("class", "moved");
    svg.append(marks[name]);
  }
  const place = (name, x, y) => {
    const mark = marks[name], frame = frames[name];
    if (!mark) return;
    mark.toggleAttribute("hidden", !Number.isFinite(x) || !Number.isFinite(y ?? 0) || !frame.holds(x));
    if (mark.hasAttribute("hidden")) return;
    const values = y === undefined
      ? { x1: frame.x(x), x2: frame.x(x), y1: frame.bottom, y2: frame.top }
      : { cx: frame.x(x), cy: frame.y(y), r: 5 };
    for (const [key, value] of Object.entries(values)) mark.setAttribute(key, value);
  };

  const counts = (i) => {
    const fp = points.fp[i], tp = points.tp[i];
    return { tp, fp, fn: points.anomalies - tp, tn: points.normal - fp };
  };
  const cost = (i) => {
    const { fn, fp } = counts(i);
    const rows = points.normal + points.anomalies;
    return 1000 * (fn * Number(costs.miss.value) + fp * Number(costs.alarm.value)) / rows;
  };
  const show = () => {
    const i = Number(slider.value);
    const now = counts(i);
    const recall = now.tp / points.anomalies, fpr = now.fp / points.normal;
    const precision = now.tp / (now.tp + now.fp);
    at("shown-threshold").textContent = points.shown[i];
    at("shown-threshold").dataset.value = points.threshold[i];
    for (const [key, n] of Object.entries(now)) {
      at(`count-${key}`).textContent = whole(n);
      at(`share-${key}`).textContent = percent(n / (key === "tp" || key === "fn" ? points.anomalies : points.normal));
    }
    at("live-precision").textContent = percent(precision);
    at("live-recall").textContent = percent(recall);
    at("live-fpr").textContent = percent(fpr);
    at("live-cost").textContent = cost(i).toLocaleString("en-US", { maximumSignificantDigits: 4 });
    slider.setAttribute("aria-valuetext",
      `${points.shown[i]}: recall ${percent(recall)}, false alarms ${percent(fpr)}, precision ${percent(precision)}`);
    place("roc", fpr, recall);
    place("precision_recall", recall, precision);
    place("scores", Number(points.threshold[i]));
    for (const mark of Object.values(marks)) mark.classList.toggle("away", i !== points.start);
  };
  const go = (i) => { slider.value = i; show(); };

  slider.max = points.threshold.length - 1;
  slider.addEventListener("input", show);
  at("back").addEventListener("click", () => go(points.start));
  at("cheapest").addEventListener("click", () => {
    const all = points.fp.map((_, i) => cost(i));
    go(all.lastIndexOf(Math.min(...all)));
  });
  for (const input of Object.values(costs)) input.addEventListener("input", show);
  for (const part of document.querySelectorAll(".slider")) part.hidden = false;
  go(points.start);
}
