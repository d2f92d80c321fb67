// "Try it on yourself": pick movies, get ten others. The model is in try_it_model.js.
(function () {
  "use strict";

  const SUGGESTED = 8;
  const TEN = 10;

  // The score of a movie is the sum of its weights in the rows of the movies picked (EASE).
  function recommend(model, picked) {
    const scores = new Map();
    for (const movie of picked) {
      model.neighbours[movie].forEach(function (other, place) {
        scores.set(other, (scores.get(other) || 0) + model.weights[movie][place]);
      });
    }
    for (const movie of picked) scores.delete(movie);
    const ranked = [...scores].sort((one, two) => two[1] - one[1] || one[0] - two[0]);
    return ranked.slice(0, TEN).map(([movie]) => movie);
  }

  // Titles that have all the words typed; more popular movies come first.
  function search(model, typed, picked) {
    const plain = (text) => text.toLowerCase().normalize("NFD").replace(/\p{M}/gu, "");
    const words = plain(typed).split(/\s+/).filter(Boolean);
    if (!words.length) return [];
    const found = [];
    for (let movie = 0; movie < model.titles.length && found.length < SUGGESTED; movie++) {
      const title = plain(model.titles[movie]);
      if (!picked.includes(movie) && words.every((word) => title.includes(word))) found.push(movie);
    }
    return found;
  }

  function start(root, model) {
    const input = root.querySelector("input");
    const options = root.querySelector("[role=listbox]");
    const chosen = root.querySelector(".try-picked");
    const answer = root.querySelector(".try-answer");
    const status = root.querySelector("[role=status]");
    const picked = [];
    let found = [];
    let active = -1;

    function element(tag, text, attributes) {
      const made = document.createElement(tag);
      made.textContent = text;
      for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
      return made;
    }

    function suggest() {
      found = search(model, input.value, picked);
      active = found.length ? 0 : -1;
      draw();
    }

    function draw() {
      options.replaceChildren(
        ...found.map(function (movie, place) {
          const id = `try-option-${place}`;
          const selected = String(place === active);
          const option = element("li", model.titles[movie], { id, role: "option" });
          option.setAttribute("aria-selected", selected);
          option.addEventListener("mousedown", function (event) {
            event.preventDefault(); // the field keeps the focus
            pick(movie);
          });
          return option;
        })
      );
      options.hidden = !found.length;
      input.setAttribute("aria-expanded", String(found.length > 0));
      if (active < 0) input.removeAttribute("aria-activedescendant");
      else input.setAttribute("aria-activedescendant", `try-option-${active}`);
    }

    function pick(movie) {
      picked.push(movie);
      input.value = "";
      suggest();
      show();
    }

    function show() {
      chosen.replaceChildren(
        ...picked.map(function (movie) {
          const item = element("li", model.titles[movie] + " ");
          const button = element("button", "×", { type: "button" });
          button.setAttribute("aria-label", `Remove ${model.titles[movie]}`);
          button.addEventListener("click", function () {
            picked.splice(picked.indexOf(movie), 1);
            show();
            input.focus();
          });
          item.append(button);
          return item;
        })
      );
      const ten = picked.length ? recommend(model, picked) : [];
      answer.replaceChildren(...ten.map((movie) => element("li", model.titles[movie])));
      status.textContent = ten.length
        ? `${ten.length} movies for the ${picked.length} you picked:`
        : "Pick a movie.";
    }

    input.addEventListener("input", suggest);
    input.addEventListener("blur", function () {
      found = [];
      active = -1;
      draw();
    });
    input.addEventListener("keydown", function (event) {
      if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        if (!found.length) return;
        active = (active + (event.key === "ArrowDown" ? 1 : found.length - 1)) % found.length;
        draw();
      } else if (event.key === "Enter" && active >= 0) {
        pick(found[active]);
      } else if (event.key === "Escape" && found.length) {
        found = [];
        active = -1;
        draw();
      } else {
        return;
      }
      event.preventDefault();
    });
    show();
    root.hidden = false;
  }

  document.addEventListener("DOMContentLoaded", function () {
    const root = document.getElementById("try-it");
    if (root && window.tryItModel) start(root, window.tryItModel);
  });
})();
