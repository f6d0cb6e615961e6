// The ranking of each task, computed anew for the detectors that the filters leave.
for (const section of document.querySelectorAll("section.task")) {
  const block = section.querySelector("script[data-scores]");
  if (!block) continue;
  const scores = JSON.parse(block.textContent);
  const selects = Array.from(section.querySelectorAll("select[data-filter]"));
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
  const interval = (positives, negatives) => {
    let state = 1;
    // Numerical Recipes' generator: the same interval whenever the page is opened.
    const below = (limit) => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return Math.floor((state / 4294967296) * limit);
    };
    const again = (values) => values.map(() => values[below(values.length)]);
    const drawn = Array.from({ length: 300 }, () => area(again(positives), again(negatives)));
    drawn.sort((a, b) => a - b);
    return [drawn[7], drawn[292]];
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
  for (const select of selects) {
    const key = select.dataset.filter;
    const values = new Set(scores.filter((each) => each.truth === "backdoored").map((e) => e[key]));
    for (const value of [...values].filter(Boolean).sort()) select.append(new Option(value, value));
    select.addEventListener("change", () => show());
  }
  const emphasise = (method) => {
    for (const line of drawing.querySelectorAll("polyline")) {
      line.classList.toggle("faint", Boolean(method) && line.dataset.method !== method);
    }
  };
  const show = () => {
    const wanted = selects.map((select) => [select.dataset.filter, select.value]);
    const counts = (each) =>
      wanted.every(
        // Clean detectors have neither effect nor trigger nor, all of them, the schedule.
        ([key, value]) =>
          !value || each[key] === value || (negative.has(each.truth) && key !== "kind")
      );
    const chosen = scores.filter(counts);
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
      const own = chosen.filter((each) => each.method === method);
      const values = (test) => own.filter((each) => test(each.truth)).map((each) => each.score);
      const positives = values((truth) => truth === "backdoored");
      const negatives = values((truth) => negative.has(truth));
      words ||= `${positives.length} backdoored, ${negatives.length} clean or spurious`;
      if (!positives.length || !negatives.length) continue;
      const [low, high] = interval(positives, negatives);
      // Of those that it did not fail on.
      const times = own.map((each) => each.seconds).filter((each) => each !== null);
      const seconds = times.length ? times.reduce((sum, each) => sum + each, 0) / times.length : 0;
      lines.push({
        method,
        number,
        cells: [
          area(positives, negatives),
          [low, high],
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
