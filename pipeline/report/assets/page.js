// Draws every chart of the page from the JSON beside it, and says on <html> when it has.
(() => {
  "use strict";
  const config = JSON.parse(document.getElementById("vega-theme").textContent);
  const options = {
    mode: "vega-lite",
    config,
    renderer: "svg",
    actions: false,
    // The interpreter needs no eval, which the page's policy forbids.
    ast: true,
    defaultStyle: false,
    tooltip: { theme: "page", disableDefaultStyle: true },
    // Links of marks lead to other places of this page.
    loader: { target: "_self" },
  };
  window.drawCharts = async () => {
    let failed = 0;
    const figures = document.querySelectorAll("figure[data-chart]");
    for (const figure of figures) {
      const plot = figure.querySelector(".plot");
      try {
        const spec = JSON.parse(figure.querySelector("script").textContent);
        await vegaEmbed(plot, spec, options);
      } catch (error) {
        failed += 1;
        plot.textContent = `This chart could not be drawn: ${error.message}`;
        console.error(error);
      }
    }
    document.documentElement.dataset.charts = `${figures.length - failed} drawn, ${failed} failed`;
  };
  window.drawCharts();
})();
