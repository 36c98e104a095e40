// One pair after the other. Choices are kept in this browser, so that a closed page continues where it was left.
const by = (id) => document.getElementById(id);
const { page, pairs, images, sealed } = JSON.parse(by("data").textContent);
const store = `sid-core vote ${page}`;
const state = JSON.parse(localStorage.getItem(store)) ?? { rater: "", choices: [] };
const keys = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie" };

function show() {
  localStorage.setItem(store, JSON.stringify(state));
  const voted = state.choices.length;
  const pair = pairs[voted];
  by("progress").value = voted;
  by("pair").hidden = !pair;
  if (!pair) {
    by("status").textContent = `All ${pairs.length} pairs are voted on. Enter your name and save the votes.`;
    by("rater").focus();
    return;
  }
  by("status").textContent = `Pair ${voted + 1} of ${pairs.length}`;
  by("prompt").textContent = pair.prompt;
  by("sides").querySelectorAll("img").forEach((image, side) => { image.src = images[pair.images[side]]; });
}

function press(key) {
  if (key === "Backspace") state.choices.pop();
  else if (keys[key] && state.choices.length < pairs.length) state.choices.push(keys[key]);
  else return false;
  show();
  return true;
}

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input") || event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  if (press(event.key)) event.preventDefault();
});
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-key]");
  if (button) press(button.dataset.key);
});

// names of runs are read here and nowhere else
by("save").addEventListener("submit", (event) => {
  event.preventDefault();
  const sides = JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(sealed), (letter) => letter.charCodeAt(0))));
  const votes = state.choices.map((choice, i) => ({
    sample: pairs[i].sample, prompt: pairs[i].prompt, left: sides[i][0], right: sides[i][1], choice,
  }));
  const text = JSON.stringify({ page, rater: state.rater, votes }, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = `votes-${state.rater.replace(/[^\p{L}\p{N}_-]+/gu, "-")}.json`;
  link.click();
  by("status").textContent = `Saved ${votes.length} votes as ${link.download}.`;
});

by("rater").value = state.rater;
by("rater").addEventListener("input", () => {
  state.rater = by("rater").value.trim();
  localStorage.setItem(store, JSON.stringify(state));
});
show();
