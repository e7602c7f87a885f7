/* What every page does: says when it is stale, and asks once more before a button that moves money. */
"use strict";

const STALE = document.getElementById("stale");

function stale() {
  if (!STALE.hidden) return;
  STALE.querySelector("time").textContent = new Date().toLocaleTimeString();
  STALE.hidden = false;
}

function fresh() {
  STALE.hidden = true;
}

document.addEventListener("htmx:sendError", stale);
document.addEventListener("htmx:responseError", stale);
document.addEventListener("htmx:afterOnLoad", fresh);
document.addEventListener("submit", (event) => {
  const question = event.submitter?.dataset.ask;
  if (question && !window.confirm(question)) event.preventDefault();
});
