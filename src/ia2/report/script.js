// What a page can do: figures, methods shown and hidden in all of it, rows searched. It loads nothing.
const all = selector => [...document.querySelectorAll(selector)];
const plots = all(".plot");
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const unplain = text => text.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&"); // plotly has HTML
const element = (tag, attributes, ...children) => {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
};

// --- Figures. Text and lines follow the page's colours, also when the theme changes or the page is printed.
async function unpack() {
  const bytes = Uint8Array.from(atob(document.getElementById("plotly").textContent), c => c.charCodeAt(0));
  const unzipped = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  document.head.append(element("script", {textContent: await new Response(unzipped).text()}));
}
const theme = () => ({
  "font.color": css("--text"), "font.family": getComputedStyle(document.body).fontFamily,
  "xaxis.gridcolor": css("--line"), "yaxis.gridcolor": css("--line"),
  "xaxis.linecolor": css("--line"), "yaxis.linecolor": css("--line"),
});
const paint = () => plots.forEach(plot => Plotly.relayout(plot, theme()));
async function draw() {
  await unpack();
  const dragmode = matchMedia("(pointer: fine)").matches ? "zoom" : false; // a finger scrolls the page
  for (const plot of plots) {
    const {data, layout} = JSON.parse(plot.nextElementSibling.textContent);
    await Plotly.newPlot(plot, data, {...layout, dragmode}, {responsive: true, displayModeBar: false});
  }
  paint();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  matchMedia("print").addEventListener("change", query => plots.forEach(plot => {
    Plotly.relayout(plot, {...theme(), ...(query.matches ? {width: plot.clientWidth} : {width: null, autosize: true})});
  }));
}
const ready = draw();

// --- The numbers of a figure as a table, and the figure as a file.
const shown = (value, axis) => {
  if (typeof value !== "number") return unplain(String(value ?? "—"));
  const near = axis.ticktext ? axis.tickvals.findIndex(tick => Math.abs(tick - value) < 0.4) : -1;
  return near < 0 ? String(Number(value.toPrecision(4))) : unplain(axis.ticktext[near]);
};
const points = ({data, layout}) => data.filter(trace => trace.hoverinfo !== "skip").flatMap(trace => {
  const cell = (name, x, y, text) => [unplain(name ?? ""), shown(x, layout.xaxis), shown(y, layout.yaxis), text];
  const down = i => trace.y?.[i] ?? trace.y0;
  if (trace.z) return trace.z.flatMap((row, i) => row.map((z, j) =>
    cell(trace.name, trace.x[j], down(i), trace.text?.[i][j] ?? shown(z, {}))));
  return Array.from(trace.x, (x, i) => cell(trace.name, x, trace.y[i], unplain(trace.text?.[i] ?? "")));
});
const tableOf = plot => {
  const {data, layout} = JSON.parse(plot.nextElementSibling.textContent);
  const titles = ["line", "across", "up", "value"].map(textContent => element("th", {scope: "col", textContent}));
  const rows = points({data, layout: {...layout, xaxis: layout.xaxis ?? {}, yaxis: layout.yaxis ?? {}}});
  const lines = rows.map(row => element("tr", {}, ...row.map(textContent => element("td", {textContent}))));
  const caption = element("caption", {textContent: plot.getAttribute("aria-label")});
  const head = element("thead", {}, element("tr", {}, ...titles));
  const table = element("table", {}, caption, head, element("tbody", {}, ...lines));
  return element("div", {className: "scroll numbers", tabIndex: 0}, table);
};
const plotOf = button => button.closest("figure").querySelector(".plot");
for (const button of all("button.data")) button.addEventListener("click", () => {
  const found = button.closest("figure").querySelector(".numbers");
  found ? found.remove() : button.closest("figcaption").append(tableOf(plotOf(button)));
  button.setAttribute("aria-expanded", String(!found));
});
const plain = text => element("p", {textContent: text}).innerHTML;
const PAPER = {"font.color": "#1d1f21", paper_bgcolor: "#fff", "legend.orientation": "h", "legend.y": -0.12};
const TITLE = {"title.font.size": 13, "title.yref": "container", "title.y": 1, "title.yanchor": "top"};
for (const button of all("button.svg")) button.addEventListener("click", async () => {
  await ready;
  const plot = plotOf(button), label = plot.getAttribute("aria-label");
  const filename = label.replace(/\W+/g, "-").slice(0, 60), width = Math.max(plot.clientWidth, 480);
  const title = label.match(/.{1,60}(\s|$)|\S+/g).map(plain), top = 20 + 24 * title.length;
  const lines = plot.data.filter(trace => trace.visible !== false && trace.hoverinfo !== "skip");
  const showlegend = !plot.layout.yaxis.ticktext && new Set(lines.map(trace => trace.name)).size > 1;
  const copy = document.body.appendChild(element("div", {hidden: true}));
  await Plotly.newPlot(copy, plot.data, plot.layout, {staticPlot: true});
  await Plotly.relayout(copy, {...PAPER, ...TITLE, "title.text": title.join("<br>"), "title.pad.t": top / 4, "margin.t": top, showlegend});
  const size = {width, height: plot.clientHeight + top + (showlegend ? 60 : 0)};
  await Plotly.downloadImage(copy, {format: "svg", filename, ...size});
  copy.remove();
});

// --- Methods, and numbers of examples. A dot says which method a row, a column or a figure is of, and lines have its
// name; `data-n` says which N. What is hidden at first is one N of several that are too much to be shown together.
const off = new Set(), owned = new Map(), atFirst = new Set(all("[data-n][hidden]"));
let chosen = "";
for (const mark of all("[data-method], [data-n]")) {
  const head = mark.closest("thead th"), column = head && [...head.parentNode.children].indexOf(head);
  const owners = head
    ? [...head.closest("table").rows].map(row => row.cells[column])
    : [mark.closest("tbody tr, figure, .key li, li[data-n], div[data-n]")];
  for (const owner of owners) if (owner) owned.set(owner, [...(owned.get(owner) ?? []), mark.dataset]);
}
async function show() {
  for (const [owner, marks] of owned) owner.hidden = marks.some(({method, n}) =>
    off.has(method) || (n && (chosen ? n !== chosen : atFirst.has(owner))));
  await ready;
  for (const plot of plots) {
    await Plotly.restyle(plot, {visible: plot.data.map(trace => !off.has(unplain(trace.name ?? "")))});
    const range = [Math.log10(chosen) - 0.06, Math.log10(chosen) + 0.06];
    if (plot.layout.meta === "n") await Plotly.relayout(plot, chosen ? {"xaxis.range": range} : {"xaxis.autorange": true});
    if (plot.offsetParent && plot.closest("div[data-n]")) await Plotly.Plots.resize(plot); // drawn where it had no width
  }
}
const dots = new Map();
for (const dot of all("[data-method]")) if (!dots.has(dot.dataset.method)) dots.set(dot.dataset.method, dot);
if (dots.size > 1) document.querySelector("nav").append(...[...dots].map(([name, dot]) => {
  const button = element("button", {type: "button", ariaPressed: "true"}, dot.cloneNode(), name);
  button.firstChild.removeAttribute("data-method");
  button.addEventListener("click", () => {
    button.ariaPressed = String(off.delete(name) || !off.add(name));
    show();
  });
  return button;
}));
const sizes = [...new Set(all("[data-n]").map(mark => mark.dataset.n))].sort((a, b) => a - b);
if (sizes.length > 1) {
  const options = ["", ...sizes].map(value => element("option", {value, textContent: value || "all"}));
  const select = element("select", {}, ...options);
  select.addEventListener("change", () => {
    chosen = select.value;
    show();
  });
  document.querySelector("nav").prepend(element("label", {}, "N ", select));
}

// --- Rows that hold every word that is searched for.
for (const field of all("input[type=search]")) field.addEventListener("input", () => {
  const part = field.closest(".searched"), rows = [...part.querySelectorAll("tbody tr")];
  const words = field.value.toLowerCase().split(/\s+/);
  for (const row of rows) row.classList.toggle("missed", !words.every(word => row.textContent.toLowerCase().includes(word)));
  const n = rows.filter(row => !row.classList.contains("missed")).length;
  part.querySelector("output").textContent = field.value.trim() ? `${n} of ${rows.length} rows` : "";
});
addEventListener("beforeprint", () => all("details").forEach(part => part.open = true));
