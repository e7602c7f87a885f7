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

async function read(place) {
  const answer = await fetch(place.dataset.url, { headers: { Accept: "application/json" } });
  if (!answer.ok) throw new Error(`${place.dataset.url} answered ${answer.status}`);
  return answer.json();
}

function equityChart(place) {
  const colour = colours();
  const chart = makeChart(place);
  const equity = chart.addSeries(LightweightCharts.AreaSeries, {
    lineColor: colour.blue, topColor: colour.blue + "55", bottomColor: colour.blue + "08", lineWidth: 2, title: "equity",
  });
  const drawdown = chart.addSeries(LightweightCharts.HistogramSeries, {
    color: colour.bad + "88", priceScaleId: "left", title: "drawdown %",
  });
  chart.priceScale("left").applyOptions({ visible: true, scaleMargins: { top: 0.75, bottom: 0 } });
  let drawn = 0;
  const refresh = async () => {
    const data = await read(place);
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

async function candleChart(place) {
  const colour = colours();
  const chart = makeChart(place);
  const data = await read(place);
  const minMove = 10 ** -data.decimals;
  const candles = chart.addSeries(LightweightCharts.CandlestickSeries, {
    upColor: colour.good, downColor: colour.bad, borderVisible: false, wickUpColor: colour.good, wickDownColor: colour.bad,
    priceFormat: { type: "price", precision: data.decimals, minMove },
  });
  candles.setData(data.candles);
  const probability = chart.addSeries(LightweightCharts.LineSeries, {
    color: colour.blue, lineWidth: 1, priceScaleId: "left", title: "probability", pointMarkersVisible: true, lineVisible: false,
  });
  probability.setData(data.probability);
  chart.priceScale("left").applyOptions({ visible: data.probability.length > 0, scaleMargins: { top: 0.8, bottom: 0 } });
  const signals = data.signals.map((each) => ({
    time: each.time, position: each.side > 0 ? "belowBar" : "aboveBar", shape: "circle", size: 0.5,
    color: each.outcome === "ENTER" ? colour.good : colour.soft,
  }));
  const fills = data.fills.map((each) => ({
    time: each.time, position: each.side === "buy" ? "belowBar" : "aboveBar",
    shape: each.side === "buy" ? "arrowUp" : "arrowDown", color: each.side === "buy" ? colour.good : colour.bad,
  }));
  const known = new Set(data.candles.map((each) => each.time));
  const markers = [...signals, ...fills].filter((each) => known.has(each.time)).sort((a, b) => a.time - b.time);
  LightweightCharts.createSeriesMarkers(candles, markers);
  chart.timeScale().fitContent();
  place.dataset.points = String(data.candles.length);
}

const equityPlace = document.getElementById("equity-chart");
if (equityPlace) equityChart(equityPlace);
const candlePlace = document.getElementById("candle-chart");
if (candlePlace) candleChart(candlePlace);
