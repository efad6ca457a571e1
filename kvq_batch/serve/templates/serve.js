"use strict";
// Parts that load later, seeking in the player, a note for formats that the browser cannot play, and Ctrl+Enter in the SQL box.
(() => {
  // Parts of a page that take longer: each is a page of its own, for browsers without scripts.
  for (const place of document.querySelectorAll("[data-part]")) {
    const link = place.innerHTML;
    place.textContent = "Loading…";
    fetch(place.dataset.part).then((answer) => answer.ok ? answer.text() : Promise.reject(answer.status)).then((text) => {
      place.replaceWith(new DOMParser().parseFromString(text, "text/html").getElementById("part"));
    }).catch(() => { place.innerHTML = link; });
  }
  const player = document.getElementById("player");
  if (player) {
    player.addEventListener("error", () => { document.getElementById("player-error").hidden = false; });
    for (const link of document.querySelectorAll("a.seek")) {
      link.addEventListener("click", () => { player.currentTime = Number(link.dataset.seconds); });
    }
  }
  const box = document.getElementById("q");
  if (box) {
    box.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) box.form.requestSubmit();
    });
  }
})();
