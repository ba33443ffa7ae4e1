"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const report = data.report;
  const byId = (id) => document.getElementById(id);
  // Okabe and Ito's colours, which people with colour-blindness tell apart too; a dash follows when they are used up.
  const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"];
  const DASHES = ["solid", "dash", "dot", "dashdot"];
  const SYMBOLS = { fp32: "circle", bf16: "square", fp16: "diamond", int8: "triangle-up" };
  const STAGE_COLOURS = { read: "#b8c2cc", preprocess: "#56B4E9", infer: "#0072B2", postprocess: "#E69F00" };
  const LAYOUT = {
    margin: { l: 60, r: 16, t: 28, b: 48 },
    font: { family: "system-ui, Segoe UI, Roboto, Arial, sans-serif", size: 13 },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "normal", font: { size: 12 } },
    hoverlabel: { align: "left" },
    paper_bgcolor: "#ffffff",
    plot_bgcolor: "#ffffff",
  };
  // Dragging zooms and a double click goes back; the buttons for that would cover points.
  const CONFIG = { displayModeBar: false, responsive: true };
  const frontNames = new Set(report.pareto.map((point) => point.name));
  const indexOf = new Map(report.results.map((row, index) => [row.name, index]));
  const colourOf = (name) => COLOURS[indexOf.get(name) % COLOURS.length];
  const dashOf = (name) => DASHES[Math.floor(indexOf.get(name) / COLOURS.length) % DASHES.length];

  function element(tag, text, className) {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (className) node.className = className;
    return node;
  }
  const fixed = (digits) => (value) => (value === null || value === undefined ? "–" : value.toFixed(digits));

  const NAME_SIZE = 11;
  const LABEL_FONT = "system-ui, Arial, sans-serif";
  const ruler = document.createElement("canvas").getContext("2d");
  ruler.font = `100px ${LABEL_FONT}`;
  // In font sizes.
  const textWidth = (text) => ruler.measureText(text).width / 100;

  // Tables -----------------------------------------------------------------------------------------------------------

  const isKnown = (value) => value !== null && value !== undefined && value !== false;
  const CANDIDATE = { title: "candidate", value: (row) => row.name, text: true };
  const COLUMNS = [
    CANDIDATE,
    { title: "backend", value: (row) => row.backend, text: true },
    { title: "precision", value: (row) => row.precision, text: true },
    { title: "AP", value: (row) => row.map, show: fixed(4) },
    { title: "FPS", value: (row) => row.fps, show: fixed(1) },
    { title: "p50 ms", value: (row) => row.latency_ms && row.latency_ms.p50, show: fixed(2) },
    { title: "p90", value: (row) => row.latency_ms && row.latency_ms.p90, show: fixed(2) },
    { title: "p95", value: (row) => row.latency_ms && row.latency_ms.p95, show: fixed(2) },
    { title: "p99", value: (row) => row.latency_ms && row.latency_ms.p99, show: fixed(2) },
    { title: "engine ms", value: (row) => row.raw_engine_ms, show: fixed(2) },
    { title: "over engine", value: (row) => row.end_to_end_ratio, show: fixed(2) },
    { title: "most FPS", value: (row) => row.throughput && row.throughput.fps, show: fixed(1),
      detail: (row) => row.throughput && `batch ${row.throughput.batch}, ${row.throughput.streams} streams` },
    { title: "load s", value: (row) => row.load_s, show: fixed(2) },
    { title: "first ms", value: (row) => row.first_inference_ms, show: fixed(1) },
    { title: "RSS MB", value: (row) => row.peak_rss_mb, show: fixed(0) },
    { title: "GPU MB", value: (row) => row.gpu_memory_mb, show: fixed(0) },
    { title: "size MB", value: (row) => row.size_mb, show: fixed(2) },
  ];
  for (const column of COLUMNS.filter((entry) => /^p\d+/.test(entry.title))) {
    const name = column.title.slice(0, 3);
    column.detail = (row) => row.latency_ms &&
      `95 %: ${row.latency_ms[name + "_low"].toFixed(2)} to ${row.latency_ms[name + "_high"].toFixed(2)} ms`;
  }
  const ACCURACY_KEYS = { AP: "map", AP50: "map50", AP75: "map75", "AP small": "map_small", "AP medium": "map_medium",
    "AP large": "map_large", "AR 1": "ar_1", "AR 10": "ar_10", "AR 100": "ar", "VOC area": "voc_ap50_area",
    "VOC 11 points": "voc_ap50_11point" };
  const ACCURACY_COLUMNS = [
    CANDIDATE,
    ...Object.entries(ACCURACY_KEYS).map(([title, key]) => (
      { title, value: (row) => row.accuracy && row.accuracy[key], show: fixed(4) })),
    { title: "conf", value: (row) => row.accuracy_thresholds && row.accuracy_thresholds.conf, show: String },
    { title: "IoU", value: (row) => row.accuracy_thresholds && row.accuracy_thresholds.iou, show: String },
    { title: "boxes at most", value: (row) => row.accuracy_thresholds && row.accuracy_thresholds.max_det, show: String },
  ];

  // A table that sorts by the heading that is clicked; what was not measured comes last, either way.
  class SortableTable {
    constructor(id, columns, fillRow, sortedBy) {
      this.table = byId(id);
      this.columns = columns;
      this.fillRow = fillRow;
      this.sorted = columns.findIndex((column) => column.title === sortedBy);
      this.descending = true;
      this.rows = [];
    }

    draw(rows) {
      this.rows = rows;
      const head = element("tr");
      this.columns.forEach((column, index) => {
        const cell = element("th", column.title, column.text ? "text" : "");
        if (index === this.sorted) cell.setAttribute("aria-sort", this.descending ? "descending" : "ascending");
        cell.addEventListener("click", () => {
          this.descending = index === this.sorted ? !this.descending : !column.text;
          this.sorted = index;
          this.draw(this.rows);
        });
        head.append(cell);
      });
      this.table.tHead.replaceChildren(head);
      const sorted = [...rows].sort((one, other) => this.compare(one, other));
      this.table.tBodies[0].replaceChildren(...sorted.map((row) => this.fillRow(row, this.columns)));
    }

    compare(one, other) {
      const column = this.columns[this.sorted];
      if (!column) return 0; // in the order given
      const [a, b] = [column.value(one), column.value(other)];
      if (!isKnown(a) || !isKnown(b)) return isKnown(b) - isKnown(a);
      const order = column.text ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
      return this.descending ? -order : order;
    }
  }

  function cells(row, columns) {
    return columns.map((column) => {
      const value = column.value(row);
      const shown = column.show && isKnown(value) ? column.show(value) : isKnown(value) ? String(value) : "–";
      const cell = element("td", shown, column.text ? "text" : "");
      const detail = column.detail && column.detail(row);
      if (detail) cell.title = detail;
      return cell;
    });
  }

  function plainRow(row, columns) {
    const line = element("tr");
    line.dataset.name = row.name;
    line.append(...cells(row, columns));
    return line;
  }

  function candidateRow(row, columns) {
    const line = element("tr", undefined, frontNames.has(row.name) ? "front" : "");
    line.dataset.name = row.name;
    if (row.status !== "measured" && !row.latency_ms && row.map === null) {
      const labels = columns.filter((column) => column.text);
      const reason = element("td", undefined, "text reason");
      reason.append(element("div", `${row.status}: ${row.reason}`));
      reason.colSpan = columns.length - labels.length;
      line.classList.add("missing");
      line.append(...cells(row, labels), reason);
      return line;
    }
    line.append(...cells(row, columns));
    if (row.status !== "measured") line.title = `${row.status}: ${row.reason}`;
    return line;
  }

  const hasAny = (column) => report.results.some((row) => isKnown(column.value(row)));
  const table = new SortableTable("table", COLUMNS.filter(hasAny), candidateRow, "FPS");
  const accuracyTable = new SortableTable("accuracy", ACCURACY_COLUMNS.filter(hasAny), plainRow, "AP");
  let words = [];

  function matches(row) {
    const text = [row.name, row.backend, row.precision, row.status].join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  }

  // One line for each class that has boxes, one column for each candidate that is shown.
  function drawClasses(rows) {
    const shown = rows.filter((row) => row.accuracy);
    const classes = shown.length ? shown[0].accuracy.per_class.filter((entry) => entry.num_boxes > 0) : [];
    const apOf = new Map(shown.map((row) => [row.name, new Map(row.accuracy.per_class.map((e) => [e.name, e.map]))]));
    const columns = [
      { title: "class", value: (entry) => entry.name, text: true },
      { title: "boxes", value: (entry) => entry.num_boxes, show: String },
      ...shown.map((row) => ({ title: row.name, value: (entry) => apOf.get(row.name).get(entry.name), show: fixed(3) })),
    ];
    new SortableTable("classes", columns, plainRow, "boxes").draw(classes);
    byId("classes-section").hidden = classes.length === 0;
  }

  // Charts -----------------------------------------------------------------------------------------------------------

  function drawScatter(rows) {
    const points = rows.filter((row) => row.fps !== null && row.map !== null);
    const rates = points.map((row) => row.fps);
    const isWide = rates.length > 0 && Math.max(...rates) > 8 * Math.min(...rates);
    const [slowest, fastest] = rateRange(points, isWide);
    const mapRange = paddedRange(points.map((row) => row.map));
    const places = placeNames(points, isWide ? [slowest, fastest].map(Math.log10) : [slowest, fastest], mapRange,
      isWide ? Math.log10 : (rate) => rate);
    const traces = points.map((row) => ({
      type: "scatter",
      mode: places.get(row.name) ? "markers+text" : "markers",
      name: row.name,
      x: [row.fps],
      y: [row.map],
      text: [escapeHtml(row.name)],
      textposition: places.get(row.name) || "top right",
      cliponaxis: false,
      textfont: { size: NAME_SIZE, color: colourOf(row.name) },
      marker: { size: 11, color: colourOf(row.name), symbol: SYMBOLS[row.precision] || "circle" },
      error_x: {
        type: "data",
        symmetric: false,
        array: [1000 / row.latency_ms.p50_low - row.fps],
        arrayminus: [row.fps - 1000 / row.latency_ms.p50_high],
        thickness: 1.5,
        width: 4,
      },
      hovertemplate:
        `<b>${escapeHtml(row.name)}</b><br>${escapeHtml(row.backend)}, ${row.precision}<br>AP %{y:.4f}<br>` +
        `%{x:.1f} FPS, p50 ${row.latency_ms.p50.toFixed(2)} ms, p99 ${row.latency_ms.p99.toFixed(2)} ms<extra></extra>`,
    }));
    const shown = new Set(points.map((row) => row.name));
    const front = report.pareto.filter((point) => shown.has(point.name)).sort((a, b) => a.fps - b.fps);
    if (front.length) {
      // To the edges: to the left of and below the line nothing is worth a choice.
      traces.unshift({
        type: "scatter",
        mode: "lines",
        name: "Pareto front",
        x: [slowest, ...front.map((point) => point.fps), front[front.length - 1].fps],
        y: [front[0].map, ...front.map((point) => point.map), mapRange[0]],
        line: { shape: "vh", dash: "dash", color: "#888888", width: 1.5 },
        hoverinfo: "skip",
      });
    }
    plot("scatter", traces, {
      showlegend: false,
      hovermode: "closest",
      xaxis: { title: { text: isNarrow() ? "images a second" : "images a second, end to end, one at a time" },
        type: isWide ? "log" : "linear", range: isWide ? [slowest, fastest].map(Math.log10) : [slowest, fastest],
        ...(isWide ? { tickvals: roundNumbers(slowest, fastest), tickformat: "~r" } : {}) },
      yaxis: { title: { text: "COCO AP" }, tickformat: ".3f", range: mapRange },
    });
  }

  // 1, 2, 5, 10 ... within a range.
  function roundNumbers(low, high) {
    const decades = Array.from({ length: 16 }, (_, index) => 10 ** (index - 6));
    return decades.flatMap((decade) => [1, 2, 5].map((digit) => digit * decade)).filter((n) => n >= low && n <= high);
  }

  // Where the name of each point goes without covering another name or point: on the front first; one that has no room
  // is left to the mouse.
  function placeNames(points, rateRange, mapRange, scale) {
    const [width, height] = [byId("scatter").clientWidth - LAYOUT.margin.l - LAYOUT.margin.r,
      byId("scatter").clientHeight - LAYOUT.margin.t - LAYOUT.margin.b];
    const pixels = points.map((row) => [
      (width * (scale(row.fps) - rateRange[0])) / (rateRange[1] - rateRange[0]),
      height * (1 - (row.map - mapRange[0]) / (mapRange[1] - mapRange[0])),
    ]);
    const taken = pixels.map(([x, y]) => [x - 7, y - 7, x + 7, y + 7]);
    const places = new Map();
    const order = [...points.keys()].sort((a, b) => frontNames.has(points[b].name) - frontNames.has(points[a].name));
    for (const index of order) {
      const [x, y] = pixels[index];
      const [wide, high] = [textWidth(points[index].name) * NAME_SIZE + 4, NAME_SIZE + 6];
      for (const place of ["top right", "bottom right", "top left", "bottom left", "top center", "bottom center"]) {
        const left = place.endsWith("right") ? x + 4 : place.endsWith("left") ? x - 4 - wide : x - wide / 2;
        const top = place.startsWith("top") ? y - 4 - high : y + 4;
        const isInside = left >= 0 && left + wide <= width && top >= -LAYOUT.margin.t && top + high <= height;
        const box = [left, top, left + wide, top + high];
        const covers = (other, at) => at !== index && box[0] < other[2] && other[0] < box[2] && box[1] < other[3] &&
          other[1] < box[3];
        if (isInside && !taken.some(covers)) {
          places.set(points[index].name, place);
          taken.push(box);
          break;
        }
      }
    }
    return places;
  }

  // Room for the intervals, and for names beside the points.
  function rateRange(points, isWide) {
    if (!points.length) return [0, 1];
    const rates = points.map((row) => row.fps);
    if (isWide) return [Math.min(...rates) / 1.5, Math.max(...rates) * 2];
    const most = Math.max(...points.map((row) => 1000 / row.latency_ms.p50_low));
    return [0, Math.max(1.15 * Math.max(...rates), 1.03 * Math.min(most, 2 * Math.max(...rates)))];
  }

  const isNarrow = () => document.documentElement.clientWidth < 600;

  function paddedRange(values) {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const margin = Math.max(0.2 * (high - low), 0.01);
    return values.length ? [Math.max(0, low - margin), high + margin] : [0, 1];
  }

  function drawDistribution(rows) {
    const traces = rows
      .filter((row) => row.quantiles_ms.length > 1)
      .map((row) => ({
        type: "scatter",
        mode: "lines",
        name: escapeHtml(row.name),
        x: row.quantiles_ms,
        y: row.quantiles_ms.map((_, index) => index / (row.quantiles_ms.length - 1)),
        line: { color: colourOf(row.name), dash: dashOf(row.name) },
        hovertemplate: `${escapeHtml(row.name)}<br>%{y:.0%} within %{x:.2f} ms<extra></extra>`,
      }));
    plot("distribution", traces, {
      ...roomForLegend("distribution", 270, traces.map((trace) => trace.name)),
      xaxis: { title: { text: "ms an image" }, rangemode: "tozero" },
      yaxis: { title: { text: "share of images" }, tickformat: ".0%", range: [0, 1.02] },
    });
  }

  // A chart that is as high as its plot and the lines of its legend.
  function roomForLegend(id, plotHeight, names) {
    const width = byId(id).clientWidth - LAYOUT.margin.l - LAYOUT.margin.r;
    const widest = Math.max(0, ...names.map((name) => textWidth(name))) * LAYOUT.legend.font.size + 50;
    const lines = Math.ceil(names.length / Math.max(1, Math.floor(width / widest)));
    const legendHeight = 20 * Math.max(1, lines);
    byId(id).style.height = `${plotHeight + 60 + legendHeight}px`;
    return { height: plotHeight + 60 + legendHeight, legend: { ...LAYOUT.legend, maxheight: legendHeight + 20 } };
  }

  const MOST_SIGNS = 20;
  // Both ends of a name tell it apart: the file, and its engine and precision.
  function shortened(name) {
    if (!isNarrow() || name.length <= MOST_SIGNS) return name;
    return `${name.slice(0, MOST_SIGNS / 2)}…${name.slice(1 - MOST_SIGNS / 2)}`;
  }

  function drawStages(rows) {
    const timed = rows.filter((row) => row.stages_ms).reverse(); // the first row on top
    const traces = Object.keys(STAGE_COLOURS).map((stage) => ({
      type: "bar",
      orientation: "h",
      name: stage,
      y: timed.map((row) => row.name),
      x: timed.map((row) => row.stages_ms[stage]),
      marker: { color: STAGE_COLOURS[stage] },
      customdata: timed.map((row) => escapeHtml(row.name)),
      hovertemplate: `%{customdata}<br>${stage} %{x:.2f} ms<extra></extra>`,
    }));
    const height = Math.max(300, 26 * timed.length + 80);
    byId("stages").style.height = `${height}px`;
    plot("stages", traces, {
      height,
      showlegend: false, // beside long names there is no room for it
      barmode: "stack",
      xaxis: { title: { text: "ms an image" } },
      yaxis: { automargin: true, tickvals: timed.map((row) => row.name),
        ticktext: timed.map((row) => escapeHtml(shortened(row.name))) },
    });
  }

  function drawCurves(rows) {
    const key = byId("curve-class").value;
    const traces = rows
      .filter((row) => data.curves[row.name] && data.curves[row.name][key])
      .map((row) => ({
        type: "scatter",
        mode: "lines",
        name: escapeHtml(row.name),
        x: data.recalls,
        y: data.curves[row.name][key],
        line: { color: colourOf(row.name), dash: dashOf(row.name) },
        hovertemplate: `${escapeHtml(row.name)}<br>recall %{x:.2f}, precision %{y:.3f}<extra></extra>`,
      }));
    plot("curves", traces, {
      ...roomForLegend("curves", 270, traces.map((trace) => trace.name)),
      xaxis: { title: { text: "recall" }, range: [0, 1.01] },
      yaxis: { title: { text: "precision" }, range: [0, 1.02] },
    });
  }

  function drawConfusion() {
    const matrix = data.confusion[byId("confusion-candidate").value];
    if (!matrix) {
      byId("confusion").replaceChildren(element("p", "No accuracy was measured.", "hint"));
      return;
    }
    const totals = matrix.counts.map((row) => row.reduce((sum, count) => sum + count, 0));
    const labels = matrix.labels.map(escapeHtml);
    const columns = [...labels, "missed"];
    const lines = [...labels, "nothing there"];
    const trace = {
      type: "heatmap",
      x: columns,
      y: lines,
      z: matrix.counts.map((row, index) => row.map((count) => (totals[index] ? count / totals[index] : 0))),
      customdata: matrix.counts,
      colorscale: [[0, "#ffffff"], [0.15, "#cfe3f1"], [1, "#0072B2"]],
      zmin: 0,
      zmax: 1,
      showscale: false,
      hovertemplate: "annotated: %{y}<br>detected: %{x}<br>%{customdata} (%{z:.0%})<extra></extra>",
    };
    // High and wide enough for the name of every class; where it is wider than the page it scrolls.
    byId("confusion").style.height = `${Math.max(340, 15 * lines.length + 150)}px`;
    byId("confusion").style.minWidth = `${13 * columns.length + 150}px`;
    const dtick = 1;
    plot("confusion", [trace], {
      xaxis: { title: { text: "detected" }, type: "category", automargin: true, dtick, tickfont: { size: 11 } },
      yaxis: { title: { text: "annotated" }, type: "category", automargin: true, autorange: "reversed", dtick,
        tickfont: { size: 11 } },
    });
  }

  function plot(id, traces, layout) {
    Plotly.react(id, traces, { ...LAYOUT, ...layout }, CONFIG);
  }

  function escapeHtml(text) {
    return text.replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
  }

  // Gallery ----------------------------------------------------------------------------------------------------------

  const SVG = "http://www.w3.org/2000/svg";
  const TRUTH_COLOUR = "#ffffff";

  function svgElement(tag, attributes) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  }

  function drawGallery(rows) {
    const pictures = data.gallery.map((picture) => {
      const block = element("div", undefined, "picture");
      block.append(element("h3", picture.file));
      const views = element("div", undefined, "views");
      views.append(view(picture, picture.truth, "annotated", TRUTH_COLOUR));
      for (const row of rows) {
        if (picture.boxes[row.name]) views.append(view(picture, picture.boxes[row.name], row.name, colourOf(row.name)));
      }
      block.append(views);
      return block;
    });
    const none = element("p", "The candidates agree on every image, or fewer than two were measured.", "hint");
    byId("gallery").replaceChildren(...(pictures.length ? pictures : [none]));
  }

  function view(picture, boxes, caption, colour) {
    const figure = element("figure", undefined, "view");
    const [width, height] = [picture.width, picture.height];
    const drawing = svgElement("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
    drawing.append(svgElement("image", { href: picture.image, width, height }));
    const stroke = Math.max(width, height) / 220;
    const size = stroke * 8;
    for (const [left, top, right, bottom, name, score] of boxes) {
      drawing.append(svgElement("rect", { x: left, y: top, width: right - left, height: bottom - top, fill: "none",
        stroke: "#000000", "stroke-width": stroke * 2, opacity: 0.5 }));
      const box = svgElement("rect", { x: left, y: top, width: right - left, height: bottom - top, fill: "none",
        stroke: colour, "stroke-width": stroke });
      const label = score === null ? name : `${name} ${score.toFixed(2)}`;
      const baseline = Math.max(top - size * 0.25, size);
      const plateWidth = textWidth(label) * size + size * 0.4;
      const plateLeft = Math.max(0, Math.min(left - stroke / 2, width - plateWidth)); // inside the picture
      const plate = svgElement("rect", { x: plateLeft, y: baseline - size * 0.95, fill: colour, width: plateWidth,
        height: size * 1.2 });
      const words = svgElement("text", { x: plateLeft + size * 0.2, y: baseline, "font-size": size,
        fill: colour === TRUTH_COLOUR ? "#000000" : "#ffffff", "font-family": LABEL_FONT });
      words.textContent = label;
      drawing.append(box, plate, words);
    }
    figure.append(drawing, element("figcaption", `${caption}: ${boxes.length}`));
    return figure;
  }

  // Page -------------------------------------------------------------------------------------------------------------

  function draw() {
    const rows = report.results.filter(matches);
    table.draw(rows);
    byId("shown").textContent = `${rows.length} of ${report.results.length}`;
    accuracyTable.draw(rows.filter((row) => row.accuracy));
    drawClasses(rows);
    drawScatter(rows);
    drawDistribution(rows);
    drawStages(rows);
    drawCurves(rows);
    drawGallery(rows);
  }

  function fillList(id, lines) {
    byId(id).replaceChildren(...lines.map((line) => element("li", line)));
  }

  function options(id, entries) {
    byId(id).replaceChildren(
      ...entries.map(([value, label]) => {
        const option = element("option", label);
        option.value = value;
        return option;
      })
    );
  }

  function begin() {
    byId("accuracy-section").hidden = !report.results.some((row) => row.accuracy);
    document.title = `Benchmark of ${report.created.slice(0, 10)}`;
    byId("summary").textContent = data.summary;
    if (data.warnings.length) {
      byId("warnings").hidden = false;
      const list = element("ul");
      list.append(...data.warnings.map((line) => element("li", line)));
      byId("warnings").append(element("strong", report.is_noisy ? "This run was disturbed." : "Note."), list);
    }
    fillList("method", data.method);
    fillList("pairs", data.pairs.length ? data.pairs : ["Fewer than two candidates have a latency."]);
    byId("command").textContent = report.command;
    byId("stage-key").replaceChildren(...Object.entries(STAGE_COLOURS).map(([stage, colour]) => {
      const entry = element("span", stage, "key");
      entry.style.setProperty("--key", colour);
      return entry;
    }));
    options("curve-class", data.curve_keys.map((key, index) => [key, index === 0 ? "mean of all classes" : key]));
    options("confusion-candidate", Object.keys(data.confusion).map((name) => [name, name]));
    byId("curve-class").addEventListener("change", draw);
    byId("confusion-candidate").addEventListener("change", drawConfusion);
    byId("filter").addEventListener("input", (event) => {
      words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
      draw();
    });
    draw();
    drawConfusion();
  }

  begin();
})();
