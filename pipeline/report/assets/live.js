// Asks the server for the state of the backfill, and puts the new page in place when it changes.
(() => {
  "use strict";
  const PAUSE = 2000;
  const live = document.getElementById("live");
  let shown = null;

  const replace = async () => {
    const page = await (await fetch("/", { cache: "no-store" })).text();
    const next = new DOMParser().parseFromString(page, "text/html");
    const open = new Set(
      [...document.querySelectorAll("details[open] > summary")].map((each) => each.textContent),
    );
    // Charts keep their height while they are drawn again, so that the page does not jump.
    const heights = [...document.querySelectorAll(".plot")].map((plot) => plot.offsetHeight);
    for (const part of ["header", "main", "footer"]) {
      document.querySelector(part).innerHTML = next.querySelector(part).innerHTML;
    }
    document.querySelectorAll(".plot").forEach((plot, at) => {
      plot.style.minHeight = `${heights[at] || 0}px`;
    });
    for (const each of document.querySelectorAll("details")) {
      each.open = each.open || open.has(each.querySelector("summary").textContent);
    }
    await window.drawCharts();
    document.querySelectorAll(".plot").forEach((plot) => { plot.style.minHeight = ""; });
  };

  const look = async () => {
    try {
      const state = await (await fetch("/state", { cache: "no-store" })).text();
      if (shown !== null && state !== shown) {
        await replace();
      }
      shown = state;
      live.textContent = "Live: this page follows the backfill.";
      live.classList.remove("stopped");
      document.documentElement.dataset.live = state;
    } catch {
      live.textContent = "Not live: the server of this page has stopped.";
      live.classList.add("stopped");
    }
    setTimeout(look, PAUSE);
  };
  look();
})();
