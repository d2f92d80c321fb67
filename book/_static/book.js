// What the theme leaves undone for readers who use a keyboard or a screen reader.
(function () {
  "use strict";

  // A region that scrolls can be scrolled with the keyboard only when it can have the focus.
  function makeScrollable() {
    const candidates = document.querySelectorAll(
      ".bd-content pre, .bd-content .cell_output, .bd-content .output, .bd-content .math," +
        " .bd-content .pst-scrollable-table-container, .bd-content .table-scroll, .bd-content .picture-large," +
        " .bd-sidebar-primary, .bd-toc"
    );
    for (const element of candidates) {
      const scrolls =
        element.scrollWidth > element.clientWidth + 1 || element.scrollHeight > element.clientHeight + 1;
      const style = getComputedStyle(element);
      const clips = /auto|scroll/.test(style.overflowX + style.overflowY);
      if (scrolls && clips && element.tabIndex < 0) {
        element.tabIndex = 0;
      }
    }
  }

  // A column that holds words has them on the left, with its header; numbers stay on the right.
  function alignText(table) {
    const rows = [...table.rows];
    const wide = Math.max(...rows.map((row) => row.cells.length));
    for (let column = 0; column < wide; column++) {
      const cells = rows.map((row) => row.cells[column]).filter(Boolean);
      const told = cells.filter((cell) => cell.tagName === "TD" && cell.textContent.trim());
      const words = told.filter((cell) => !cell.matches(".interval, .number"));
      if (2 * words.length > told.length) cells.forEach((cell) => cell.classList.add("text"));
    }
  }

  // A wide table scrolls inside a box of its own.
  function wrapTables() {
    for (const cell of document.querySelectorAll(".bd-content td")) {
      // "0.111 [0.103, 0.120]" and "-0.5" stay on one line
      const text = cell.textContent.trim();
      if (/^([-+]?[\d.]+ )?\[[^\]]*\]$/.test(text)) cell.classList.add("interval");
      else if (/^[-+]?[\d.,]+ ?%?$/.test(text)) cell.classList.add("number");
    }
    for (const cell of document.querySelectorAll(".bd-content td, .bd-content th")) {
      // "sasrec" and "HR@10" break last of all
      if (/^\S{1,9}$/.test(cell.textContent.trim())) cell.classList.add("short");
    }
    for (const table of document.querySelectorAll(".bd-content table:not(.indextable)")) {
      alignText(table);
      if (table.closest(".pst-scrollable-table-container, .table-scroll")) continue;
      const box = document.createElement("div");
      box.className = "table-scroll";
      table.parentNode.insertBefore(box, table);
      box.appendChild(table);
    }
  }

  const SHOWN = 12;
  const RESULTS = ".bd-content .cell_output table, .bd-content table.sortable";

  // A long table begins with its first rows; a button below shows the others.
  function foldTables() {
    for (const table of document.querySelectorAll(RESULTS)) {
      const rows = [...table.tBodies[0].rows];
      if (rows.length <= SHOWN + 3) continue;
      const show = (all) => rows.forEach((row) => (row.hidden = !all && row.rowIndex > SHOWN));
      const button = document.createElement("button");
      button.className = "table-more";
      button.textContent = `Show all ${rows.length} rows`;
      button.addEventListener("click", function () {
        show(true);
        button.remove();
      });
      table.closest(".table-scroll, .pst-scrollable-table-container").after(button);
      show(false);
      table.addEventListener("sorted", () => button.isConnected && show(false));
    }
  }

  // A click on a header sorts by that column: numbers as numbers, an interval by its value.
  function sortTables() {
    const number = (text) => parseFloat(text.replace(/,/g, ""));
    for (const table of document.querySelectorAll(RESULTS)) {
      if (table.tBodies[0].rows.length < 4 || table.tHead.rows.length !== 1) continue;
      if (table.querySelector("[rowspan], tbody [colspan]")) continue;
      [...table.tHead.rows[0].cells].forEach(function (header, column) {
        if (!header.textContent.trim()) return;
        const button = document.createElement("button");
        button.className = "table-sort";
        button.append(...header.childNodes);
        header.append(button);
        button.addEventListener("click", function () {
          const falls = header.getAttribute("aria-sort") !== "descending";
          for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
          header.setAttribute("aria-sort", falls ? "descending" : "ascending");
          const key = (row) => row.cells[column].textContent.trim();
          const rows = [...table.tBodies[0].rows].sort(function (one, two) {
            const [a, b] = falls ? [key(two), key(one)] : [key(one), key(two)];
            if (!key(one) !== !key(two)) return key(one) ? -1 : 1; // what is empty comes last
            return number(a) - number(b) || a.localeCompare(b);
          });
          table.tBodies[0].append(...rows);
          table.dispatchEvent(new Event("sorted"));
        });
      });
    }
  }

  // A table too wide for the page is drawn tighter, step by step, until it fits. One that fits
  // needs no box that scrolls, so its headers can stay while the page goes on.
  function fitTables() {
    const steps = ["tight", "tighter", "tightest", "broken"];
    for (const box of document.querySelectorAll(".bd-content .table-scroll")) {
      box.classList.remove("fits", ...steps);
      const fits = () => box.scrollWidth <= box.clientWidth + 1;
      for (const step of steps) if (!fits()) box.classList.add(step);
      box.classList.toggle("fits", fits());
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

  // A picture that a narrow screen draws much smaller than it was made has a button below it, which
  // shows it in its own size, to be moved sideways, and whole again.
  function enlargePictures() {
    for (const picture of document.querySelectorAll(".bd-article img")) {
      const box = picture.closest(".picture-large");
      const shown = (box || picture).clientWidth;
      const small = shown > 0 && picture.naturalWidth > 1.5 * shown;
      const button = picture.pictureButton;
      if (small && !button) addEnlarge(picture);
      else if (!small && button && shown > 0) {
        if (box) button.click();
        button.remove();
        delete picture.pictureButton;
      }
    }
  }

  function addEnlarge(picture) {
    const button = document.createElement("button");
    button.className = "table-more picture-more";
    button.textContent = "Show the picture larger";
    const block = picture.closest("p, figure, .cell_output") || picture;
    block.after(button);
    picture.pictureButton = button;
    button.addEventListener("click", function () {
      const box = picture.closest(".picture-large");
      if (box) {
        box.replaceWith(picture);
      } else {
        const wide = document.createElement("span");
        wide.className = "picture-large";
        picture.replaceWith(wide);
        wide.append(picture);
        makeScrollable();
      }
      button.textContent = box ? "Show the picture larger" : "Show the whole picture";
    });
  }

  function fit() {
    foldFormulas();
    enlargePictures();
    fitTables();
    makeScrollable();
  }

  document.addEventListener("DOMContentLoaded", function () {
    wrapTables();
    sortTables();
    foldTables();
    fitTables();
    makeScrollable();
    window.addEventListener("load", function () {
      const drawn = window.MathJax && window.MathJax.startup && window.MathJax.startup.promise;
      Promise.resolve(drawn).then(fit);
    });
    window.addEventListener("resize", fit);
  });
})();
