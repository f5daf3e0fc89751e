// Text and lines of the plots follow the page's colours, also when the theme changes or the page is printed.
const plots = [...document.querySelectorAll(".plot")];
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const theme = () => ({
  "font.color": css("--text"), "font.family": getComputedStyle(document.body).fontFamily,
  "xaxis.gridcolor": css("--line"), "yaxis.gridcolor": css("--line"),
  "xaxis.linecolor": css("--line"), "yaxis.linecolor": css("--line"),
});
const paint = () => plots.forEach(plot => Plotly.relayout(plot, theme()));
const config = {responsive: true, displayModeBar: false};
for (const plot of plots) {
  const {data, layout} = JSON.parse(plot.nextElementSibling.textContent);
  Plotly.newPlot(plot, data, layout, config);
}
paint();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
matchMedia("print").addEventListener("change", query => plots.forEach(plot => {
  Plotly.relayout(plot, {...theme(), ...(query.matches ? {width: plot.clientWidth} : {width: null, autosize: true})});
}));
