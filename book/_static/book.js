// What the theme leaves undone for readers who use a keyboard or a screen reader.
(function () {
  "use strict";

  // A region that scrolls can be scrolled with the keyboard only when it can have the focus.
  function makeScrollable() {
    const candidates = document.querySelectorAll(
      ".bd-content pre, .bd-content .cell_output, .bd-content .output, .bd-content .math," +
        " .bd-content .pst-scrollable-table-container, .bd-content .table-scroll, .bd-sidebar-primary, .bd-toc"
    );
    for (const element of candidates) {
      const scrolls =
        element.scrollWidth > element.clientWidth + 1 || element.scrollHeight > element.clientHeight + 1;
      const style = getComputedStyle(element);
      const clips = /auto|scroll/.test(style.overflowX + style.overflowY);
      if (scrolls && clips && !element.hasAttribute("tabindex")) {
        element.tabIndex = 0;
      }
    }
  }

  // A wide table scrolls inside a box of its own.
  function wrapTables() {
    for (const cell of document.querySelectorAll(".bd-content td")) {
      // "0.111 [0.103, 0.120]" stays on one line
      if (/^[-+]?[\d.]+ \[[^\]]*\]$/.test(cell.textContent.trim())) cell.classList.add("interval");
    }
    for (const table of document.querySelectorAll(".bd-content table")) {
      if (table.closest(".pst-scrollable-table-container, .table-scroll")) continue;
      const box = document.createElement("div");
      box.className = "table-scroll";
      table.parentNode.insertBefore(box, table);
      box.appendChild(table);
    }
  }

  // A formula in the text that is wider than its line scrolls, like one on a line of its own.
  function foldFormulas() {
    for (const formula of document.querySelectorAll(".bd-content span.math")) {
      formula.classList.remove("math-scroll");
      const line = formula.parentElement;
      const drawn = formula.querySelector("mjx-container");
      if (drawn && drawn.getBoundingClientRect().width > line.clientWidth) {
        formula.classList.add("math-scroll");
      }
    }
  }

  function fit() {
    foldFormulas();
    makeScrollable();
  }

  document.addEventListener("DOMContentLoaded", function () {
    wrapTables();
    makeScrollable();
    window.addEventListener("load", function () {
      const drawn = window.MathJax && window.MathJax.startup && window.MathJax.startup.promise;
      Promise.resolve(drawn).then(fit);
    });
    window.addEventListener("resize", fit);
  });
})();
