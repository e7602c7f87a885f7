/* Draws the two charts with TradingView's lightweight-charts, from JSON of this site. */
"use strict";

const REFRESH_MS = 5000;

function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  return { ink: of("--ink"), line: of("--line"), good: of("--good"), bad: of("--bad"), blue: of("--training"), soft: of("--soft") };
}

function makeChart(place) {
  const colour = colours();
  return LightweightCharts.createChart(place, {
    autoSize: true,
    layout: { background: { color: "transparent" }, textColor: colour.ink, attributionLogo: true },
    grid: { vertLines: { color: colour.line }, horzLines: { color: colour.line } },
    timeScale: { timeVisible: true, secondsVisible: false },
  });
}

/* A drawdown of 0.01 % must not look like one of 10 %: the scale starts at zero and shows at least one percent. */
function fromZero(original) {
  const found = original();
  const low = Math.min(-1, found === null ? -1 : found.priceRange.minValue);
  return { priceRange: { minValue: low, maxValue: 0 } };
}

/* Null when the site does not answer or the session is over: the rest of the page says so and comes back by itself. */
async function read(place) {
  try {
    const answer = await fetch(place.dataset.url, { headers: { Accept: "application/json" }, redirect: "error" });
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

function equityChart(place) {
  const colour = colours();
  const chart = makeChart(place);
  const equity = chart.addSeries(LightweightCharts.AreaSeries, {
    lineColor: colour.blue, topColor: colour.blue + "55", bottomColor: colour.blue + "08", lineWidth: 2, title: "equity",
  });
  const drawdown = chart.addSeries(LightweightCharts.AreaSeries, {
    lineColor: colour.bad, topColor: colour.bad + "08", bottomColor: colour.bad + "55", lineWidth: 1, title: "drawdown",
    invertFilledArea: true, priceFormat: { type: "custom", minMove: 0.01, formatter: (value) => `${value.toFixed(2)} %` },
    autoscaleInfoProvider: fromZero,
  }, 1);
  chart.panes()[0].setStretchFactor(0.7);
  chart.panes()[1].setStretchFactor(0.3);
  let drawn = 0;
  const refresh = async () => {
    const data = await read(place);
    if (data === null) return;
    if (data.equity.length === drawn) return;
    equity.setData(data.equity);
    drawdown.setData(data.drawdown);
    if (drawn === 0) chart.timeScale().fitContent();
    drawn = data.equity.length;
    const hint = document.getElementById("equity-hint");
    if (hint) hint.hidden = drawn > 0;
    place.dataset.points = String(drawn);
  };
  refresh();
  setInterval(refresh, REFRESH_MS);
}

function candleChart(place) {
  const colour = colours();
  const chart = makeChart(place);
  const candles = chart.addSeries(LightweightCharts.CandlestickSeries, {
    upColor: colour.good, downColor: colour.bad, borderVisible: false, wickUpColor: colour.good, wickDownColor: colour.bad,
  });
  const markers = LightweightCharts.createSeriesMarkers(candles, []);
  let probability = null;
  let newest = null;
  const refresh = async () => {
    const data = await read(place);
    if (data === null) return;
    const first = newest === null;
    const last = data.candles.length > 0 ? data.candles[data.candles.length - 1].time : 0;
    if (last === newest && data.fills.length === Number(place.dataset.fills)) return;
    newest = last;
    candles.applyOptions({ priceFormat: { type: "price", precision: data.decimals, minMove: 10 ** -data.decimals } });
    candles.setData(data.candles);
    markers.setMarkers(marks(data, colour));
    if (probability === null && data.probability.length > 0) {
      probability = chart.addSeries(LightweightCharts.LineSeries, {
        color: colour.blue, lineVisible: false, pointMarkersVisible: true, title: "probability",
        priceFormat: { type: "custom", minMove: 0.001, formatter: (value) => `${(100 * value).toFixed(1)} %` },
      }, 1);
      chart.panes()[0].setStretchFactor(0.75);
      chart.panes()[1].setStretchFactor(0.25);
    }
    if (probability !== null) probability.setData(data.probability);
    if (first) chart.timeScale().fitContent();
    const hint = document.getElementById("candle-hint");
    if (data.candles.length === 0 && hint) hint.textContent = "No candle of this symbol is stored yet: the workers fetch them.";
    place.dataset.points = String(data.candles.length);
    place.dataset.fills = String(data.fills.length);
  };
  refresh();
  setInterval(refresh, REFRESH_MS);
}

/* Markers must be in the order of time and belong to a candle that is drawn. */
function marks(data, colour) {
  const signals = data.signals.map((each) => ({
    time: each.time, position: each.side > 0 ? "belowBar" : "aboveBar", shape: "circle", size: 0.5,
    color: each.outcome === "ENTER" ? colour.good : colour.soft,
  }));
  const fills = data.fills.map((each) => ({
    time: each.time, position: each.side === "buy" ? "belowBar" : "aboveBar",
    shape: each.side === "buy" ? "arrowUp" : "arrowDown", color: each.side === "buy" ? colour.good : colour.bad,
  }));
  const known = new Set(data.candles.map((each) => each.time));
  return [...signals, ...fills].filter((each) => known.has(each.time)).sort((a, b) => a.time - b.time);
}

const equityPlace = document.getElementById("equity-chart");
if (equityPlace) equityChart(equityPlace);
const candlePlace = document.getElementById("candle-chart");
if (candlePlace) candleChart(candlePlace);
