(() => {
  "use strict";
  const slider = document.getElementById("time");
  if (!slider) return;
  const frames = [...document.querySelectorAll("#states img")];
  const shown = document.getElementById("time-shown");
  const show = () => {
    const place = Number(slider.value);
    frames.forEach((frame, i) => { frame.hidden = i !== place; });
    shown.textContent = frames[place].dataset.time;
    slider.setAttribute("aria-valuetext", frames[place].dataset.time);
  };
  slider.addEventListener("input", show);
  document.getElementById("slider").hidden = false;
  // A browser may have kept the place of the slider.
  show();
})();
