// The ranking of each task, computed anew for the detectors that the filters leave.
for (const section of document.querySelectorAll("section.task")) {
  const block = section.querySelector("script[data-scores]");
  if (!block) continue;
  const { scores, filters } = JSON.parse(block.textContent);
  for (const filter of filters) {
    filter.select = section.querySelector(`select[data-filter="${filter.key}"]`);
    filter.select.addEventListener("change", () => show());
  }
  const body = section.querySelector("table.ranking tbody");
  const drawing = section.querySelector("svg");
  const negative = new Set(["clean", "spurious"]);
  const methods = [...new Set(scores.map((each) => each.method))].sort();
  const svg = (name, attributes, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text) node.textContent = text;
    return node;
  };
  const area = (positives, negatives) => {
    const order = [...negatives].sort((a, b) => a - b);
    // How many are below a value, or not above it.
    const count = (value, orEqual) => {
      let low = 0;
      let high = order.length;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (order[middle] < value || (orEqual && order[middle] === value)) low = middle + 1;
        else high = middle;
      }
      return low;
    };
    let sum = 0;
    for (const value of positives) sum += count(value, false) + count(value, true);
    return sum / (2 * positives.length * negatives.length);
  };
  const found = (positives, negatives, rate) => {
    const allowed = Math.floor(rate * negatives.length + 1e-9);
    const order = [...negatives].sort((a, b) => b - a);
    const threshold = allowed < order.length ? order[allowed] : -Infinity;
    return positives.filter((value) => value > threshold).length / positives.length;
  };
  // Newcombe's interval, method 5, as d2defense/statistics/ranking.py has it.
  const interval = (area, m, n) => {
    const z = 1.959963984540054;
    const extra = (m + n) / 2 - 1;
    const beyond = (theta) => {
      const spread = 1 + extra * ((1 - theta) / (2 - theta) + theta / (1 + theta));
      return (theta - area) ** 2 - (z ** 2 * theta * (1 - theta) * spread) / (m * n);
    };
    // Where it changes its sign between a bound outside of the interval and one inside of it.
    const root = (outside, inside) => {
      for (let step = 0; step < 60; step++) {
        const middle = (outside + inside) / 2;
        if (beyond(middle) > 0) outside = middle;
        else inside = middle;
      }
      return outside;
    };
    return [area > 1e-9 ? root(0, area - 1e-9) : 0, area < 1 - 1e-9 ? root(1, area + 1e-9) : 1];
  };
  const curve = (positives, negatives) => {
    const levels = [...new Set([...positives, ...negatives])].sort((a, b) => b - a);
    const points = [[0, 0]];
    for (const level of levels) {
      const share = (values) => values.filter((value) => value >= level).length / values.length;
      points.push([share(negatives), share(positives)]);
    }
    return points;
  };
  const emphasise = (method) => {
    for (const line of drawing.querySelectorAll("polyline")) {
      line.classList.toggle("faint", Boolean(method) && line.dataset.method !== method);
    }
  };
  const show = () => {
    for (const filter of filters) filter.wanted = filter.select.value;
    const weakCount = filters.some((each) => each.wanted && each.of_weak);
    const isPositive = (truth) =>
      truth === "backdoored" || (weakCount && truth.startsWith("backdoored"));
    const matches = (each) =>
      filters.every(
        ({ key, wanted, of_negatives }) =>
          !wanted ||
          each[key] === wanted ||
          (key === "part" && each.failed) ||
          (!of_negatives && !each.truth.startsWith("backdoored"))
      );
    // Of several rows of a detector the last group counts, as in tables.py.
    const place = (each, { key, groups }) =>
      each[key] === "" ? Infinity : groups.indexOf(each[key]);
    const rowsOf = (method) => {
      let own = scores.filter((each) => each.method === method);
      for (const filter of filters) {
        if (!filter.tells_apart || filter.wanted) continue;
        const last = Math.max(...own.map((each) => place(each, filter)));
        own = own.filter((each) => place(each, filter) === last);
      }
      return own.filter(matches);
    };
    const perDetector = (rows) => {
      const sums = new Map();
      for (const { detector, score } of rows) {
        const [sum, count] = sums.get(detector) ?? [0, 0];
        sums.set(detector, [sum + score, count + 1]);
      }
      return Array.from(sums.values(), ([sum, count]) => sum / count);
    };
    body.replaceChildren();
    drawing.replaceChildren(
      svg("rect", { x: 40, y: 10, width: 360, height: 360, class: "frame" }),
      svg("line", { x1: 40, y1: 370, x2: 400, y2: 10, class: "chance" }),
      svg("text", { x: 220, y: 405, "text-anchor": "middle" }, "false alarms"),
      svg("text", { x: 14, y: 190, transform: "rotate(-90 14 190)", "text-anchor": "middle" }, "found")
    );
    let words = "";
    const lines = [];
    for (const [number, method] of methods.entries()) {
      const own = rowsOf(method);
      const values = (test) => perDetector(own.filter((each) => test(each.truth)));
      const positives = values(isPositive);
      const negatives = values((truth) => negative.has(truth));
      words ||= `${positives.length} backdoored, ${negatives.length} clean or spurious`;
      if (!positives.length || !negatives.length) continue;
      const auc = area(positives, negatives);
      // Of those that it did not fail on.
      const times = own.map((each) => each.seconds).filter((each) => each !== null);
      const seconds = times.length ? times.reduce((sum, each) => sum + each, 0) / times.length : 0;
      lines.push({
        method,
        number,
        cells: [
          auc,
          interval(auc, positives.length, negatives.length),
          found(positives, negatives, 0.01),
          found(positives, negatives, 0.05),
          seconds,
        ],
        points: curve(positives, negatives),
      });
    }
    section.querySelector("[data-counts]").textContent = words;
    lines.sort((a, b) => b.cells[0] - a.cells[0]);
    for (const { method, number, cells, points } of lines) {
      const row = body.insertRow();
      const head = document.createElement("th");
      head.scope = "row";
      head.dataset.value = method;
      const mark = document.createElement("span");
      mark.className = `mark hue-${number % 10}`;
      head.append(mark, method);
      row.append(head);
      for (const [column, value] of cells.entries()) {
        const cell = row.insertCell();
        if (Array.isArray(value)) {
          cell.dataset.value = value[0];
          cell.textContent = `${value[0].toFixed(2)} to ${value[1].toFixed(2)}`;
        } else {
          cell.dataset.value = value;
          cell.textContent = value.toFixed(column === 4 ? 1 : 3);
        }
      }
      row.addEventListener("mouseenter", () => emphasise(method));
      row.addEventListener("mouseleave", () => emphasise(""));
      const line = svg("polyline", {
        points: points.map(([x, y]) => `${40 + 360 * x},${370 - 360 * y}`).join(" "),
        class: `hue-${number % 10}`,
      });
      line.dataset.method = method;
      line.append(svg("title", {}, method));
      drawing.append(line);
    }
  };
  show();
}
