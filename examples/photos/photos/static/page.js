// Uploads each photo by itself, and asks for what has changed: often while something changes, else ever more rarely.
"use strict";

const SHORTEST = 250, LONGEST = 8000; // milliseconds between two questions
const AT_ONCE = 4; // uploads
const ATTEMPTS = 60; // of an upload, while the queue takes nothing

const photos = document.getElementById("photos");
const problem = document.getElementById("problem");
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

let mark = "", interval = SHORTEST, timer;

// --- The state of each photo

function show({id, html}) {
  const old = document.getElementById(`photo-${id}`);
  const holder = document.createElement("template");
  holder.innerHTML = html;
  if (old) old.replaceWith(holder.content);
  else photos.prepend(holder.content);
}

function count() {
  for (const each of document.querySelectorAll("#summary [data-word]")) {
    const word = each.dataset.word;
    each.textContent = `${photos.querySelectorAll(`[data-word="${word}"]`).length} ${word}`;
  }
}

async function look() {
  clearTimeout(timer);
  try {
    const answer = await fetch(`/changes?since=${mark}`);
    if (!answer.ok) throw new Error((await answer.json()).detail);
    const found = await answer.json();
    mark = found.mark;
    found.cards.forEach(show);
    count();
    interval = found.cards.length ? SHORTEST : Math.min(interval * 1.5, LONGEST);
  } catch (error) {
    interval = Math.min(interval * 2, LONGEST);
  }
  if (document.visibilityState === "visible") timer = setTimeout(look, interval);
}

function lookSoon() {
  interval = SHORTEST;
  clearTimeout(timer);
  timer = setTimeout(look, 50);
}

document.addEventListener("visibilitychange", lookSoon);
window.addEventListener("focus", lookSoon);

// --- Uploads

function say(text) {
  problem.textContent = text;
  problem.hidden = !text;
}

async function upload(file) {
  for (let attempt = 1; ; attempt++) {
    const form = new FormData();
    form.append("photo", file);
    const answer = await fetch("/photos", {method: "POST", body: form}).catch(() => null);
    if (answer?.ok) return lookSoon();
    const detail = answer ? (await answer.json()).detail : "the page does not answer";
    if ((answer && answer.status !== 503) || attempt === ATTEMPTS) throw new Error(detail);
    say(`${file.name} waits: ${detail}. Trying again.`);
    await pause(1000 * (answer?.headers.get("Retry-After") || 2));
    say("");
  }
}

async function uploadAll(files) {
  const left = [...files], failed = [];
  const one = async () => {
    for (let file; (file = left.shift()); ) {
      await upload(file).catch((error) => failed.push(`${file.name}: ${error.message}`));
    }
  };
  say("");
  await Promise.all(Array.from({length: AT_ONCE}, one));
  say(failed.join("\n"));
}

const drop = document.getElementById("drop");
const input = document.getElementById("files");
input.addEventListener("change", () => uploadAll(input.files).then(() => (input.value = "")));
for (const event of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(event, (happened) => {
    happened.preventDefault();
    drop.classList.toggle("over", event === "dragover");
    if (event === "drop") uploadAll(happened.dataTransfer.files);
  });
}

look();
