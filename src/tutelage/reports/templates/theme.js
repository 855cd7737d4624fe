(function () {
  "use strict";
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const keep = (value) => { try { localStorage.setItem("tutelage-theme", value); } catch { /* a file page may have no storage */ } };
  const kept = () => { try { return localStorage.getItem("tutelage-theme"); } catch { return null; } };
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  if (["dark", "light"].includes(kept())) root.dataset.theme = kept();
  addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", () => {
      root.dataset.theme = dark() ? "light" : "dark";
      keep(root.dataset.theme);
    });
    for (const box of document.querySelectorAll(".scroll")) {  // a table wider than the screen says so
      const hint = document.createElement("p");
      hint.className = "more-columns";
      hint.textContent = "More columns: scroll sideways →";
      box.before(hint);
      new ResizeObserver(() => { hint.hidden = box.scrollWidth <= box.clientWidth + 1; }).observe(box);
    }
  });
})();
