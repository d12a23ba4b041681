/* The live page: what a server says about runs and clips, and what it is asked to do. */
(function () {
  "use strict";
  const hv15 = (window.hv15 = window.hv15 || {});
  const token = document.querySelector('meta[name="hv15-token"]');
  const REFRESH_MS = 4000; // the text around the gallery is fetched again at most this often
  const KEPT = "#clips, #plots"; // the scripts keep these up to date
  let version = hv15.data.version || 0;
  let source = null;
  let timer = 0;
  let refreshed = 0;

  /* Ask the server for a change; resolves to its answer, or throws with its reason. One that outlives
     the page arrives even if the page is left meanwhile. */
  async function post(name, values, outlives) {
    let answer;
    try {
      answer = await fetch(name, {
        method: "POST",
        headers: { "Content-Type": "application/json", "X-HV15-Token": token.content },
        body: JSON.stringify(values),
        keepalive: Boolean(outlives),
      });
    } catch (error) {
      throw new Error("the server does not answer: is hv15-batch view still running?");
    }
    const text = await answer.text();
    let said = {};
    try {
      said = JSON.parse(text);
    } catch (error) {
      said = { fault: text.trim() };
    }
    if (!answer.ok) throw new Error(said.fault || "the server refused it");
    return said;
  }

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  /* One box for each run: a bar, what `hv15-batch status` says, and a button that pauses. */
  function boxOf(number) {
    const box = make("div", "run-box");
    const head = make("div", "run-head");
    const pause = make("button", "pause");
    pause.type = "button";
    pause.addEventListener("click", async function () {
      pause.disabled = true;
      try {
        await post("pause", { run: number, pause: pause.dataset.paused !== "true" });
      } catch (error) {
        hv15.say(error.message);
      }
      pause.disabled = false;
    });
    const bar = make("progress");
    bar.setAttribute("aria-label", "Clips done");
    head.append(make("strong", "run-name"), bar, make("span", "run-counts"), pause);
    box.append(head, make("ul", "run-lines"), make("div", "run-previews"));
    return box;
  }

  /* The clips that denoise: one picture a worker, the same element as long as it is the same clip. */
  function showPreviews(place, previews) {
    place.hidden = !previews.length;
    const kept = new Map(Array.from(place.children, (figure) => [figure.dataset.address, figure]));
    place.replaceChildren(...previews.map(function (preview) {
      const figure = kept.get(preview.address) || make("figure", "preview");
      if (!figure.firstChild) {
        figure.dataset.address = preview.address;
        const picture = make("img");
        picture.addEventListener("error", () => { figure.hidden = true; }); // its clip has ended
        picture.addEventListener("load", () => { figure.hidden = false; });
        figure.append(picture, make("figcaption"));
      }
      const source = preview.address + "?v=" + preview.version;
      const picture = figure.querySelector("img");
      if (picture.getAttribute("src") !== source) picture.setAttribute("src", source);
      picture.alt = "Preview of " + preview.clip;
      const step = preview.steps ? ", step " + preview.step + " of " + preview.steps : "";
      figure.querySelector("figcaption").textContent = preview.clip + step;
      return figure;
    }));
  }

  function showStatuses(statuses) {
    const place = document.getElementById("live");
    statuses.forEach(function (status, number) {
      if (!place.children[number]) place.append(boxOf(number));
      const box = place.children[number];
      const [counts, ...lines] = status.lines;
      box.classList.toggle("active", status.isActive);
      box.querySelector(".run-name").textContent = status.name;
      box.querySelector(".run-counts").textContent = counts;
      const bar = box.querySelector("progress");
      bar.hidden = !status.total;
      if (status.total) {
        bar.max = status.total;
        bar.value = status.done + status.failed;
      }
      const pause = box.querySelector(".pause");
      pause.dataset.paused = String(status.isPaused);
      pause.hidden = !status.isActive && !status.isPaused;
      pause.textContent = status.isPaused ? "unpause" : "pause";
      pause.setAttribute("aria-label", (status.isPaused ? "Unpause " : "Pause ") + status.name);
      showPreviews(box.querySelector(".run-previews"), status.previews || []);
      const list = box.querySelector(".run-lines");
      const texts = Array.from(list.children, (item) => item.textContent);
      if (texts.join("\n") !== lines.join("\n")) {
        list.replaceChildren(...lines.map((line) => make("li", "", line)));
      }
    });
  }

  /* -- the text around the gallery --------------------------------------------------------- */

  function keyOf(part) {
    return part.id || part.getAttribute("aria-labelledby") || part.tagName;
  }

  /* Whether somebody is at work in a part: its next state waits. */
  function isInUse(part) {
    const selection = window.getSelection();
    const isSelected = selection && !selection.isCollapsed && selection.containsNode(part, true);
    const plays = Array.from(part.querySelectorAll("video")).some((video) => !video.paused && !video.ended);
    return part.contains(document.activeElement) || isSelected || plays;
  }

  /* Let a new state look as the one before was left: folds that were opened, tables that were moved. */
  function leaveAs(before, after) {
    const folds = before.querySelectorAll("details");
    after.querySelectorAll("details").forEach(function (fold, n) { if (folds[n]) fold.open = folds[n].open; });
  }

  function renew(now, then) {
    if (isInUse(now)) return;
    leaveAs(now, then);
    if (now.innerHTML === then.innerHTML) return;
    const moved = Array.from(now.querySelectorAll(".scroll"), (table) => table.scrollLeft);
    now.replaceChildren(...then.childNodes);
    now.querySelectorAll(".scroll").forEach(function (table, n) { table.scrollLeft = moved[n] || 0; });
  }

  function partsOf(page) {
    return Array.from(page.querySelectorAll("main > *")).filter((part) => !part.matches(KEPT));
  }

  /* The head of the page, tables, failures and warnings as the server writes them now. */
  function renewParts(fresh) {
    renew(document.querySelector("body > header"), fresh.querySelector("body > header"));
    const known = new Map(partsOf(document).map((part) => [keyOf(part), part]));
    const wanted = partsOf(fresh);
    wanted.forEach(function (then) {
      const now = known.get(keyOf(then));
      if (now) {
        renew(now, then);
      } else {
        let next = then.nextElementSibling;
        while (next && !(known.get(keyOf(next)) || (next.id && document.getElementById(next.id)))) next = next.nextElementSibling;
        const goal = next && (known.get(keyOf(next)) || document.getElementById(next.id));
        const part = document.importNode(then, true);
        document.querySelector("main").insertBefore(part, goal || null);
        known.set(keyOf(then), part);
      }
    });
    const keys = new Set(wanted.map(keyOf));
    known.forEach(function (part, key) { if (!keys.has(key) && !isInUse(part)) part.remove(); });
  }

  async function refresh() {
    timer = 0;
    refreshed = Date.now();
    try {
      const [page, plots] = await Promise.all([fetch("./"), fetch("plots")]);
      if (!page.ok || !plots.ok) return;
      const fresh = new DOMParser().parseFromString(await page.text(), "text/html");
      renewParts(fresh);
      document.title = fresh.title;
      hv15.plots.update(await plots.json());
    } catch (error) {
      /* the next change tries again */
    }
  }

  function take(news) {
    version = news.version;
    if (news.statuses) showStatuses(news.statuses);
    if (news.clips.length || news.order) hv15.clips.update(news.clips, news.order);
    // Not of the page alone: a rating that another page gave changes clips, and no text around them.
    if (!news.clips.length && !news.order && !news.isPageOld) return;
    if (!timer) timer = setTimeout(refresh, Math.max(300, refreshed + REFRESH_MS - Date.now()));
  }

  function open() {
    if (source || document.hidden) return;
    source = new EventSource("events?have=" + version);
    source.onmessage = function (event) {
      document.documentElement.classList.remove("lost");
      take(JSON.parse(event.data));
    };
    source.onerror = function () {
      document.documentElement.classList.add("lost");
      close();
      setTimeout(open, 2000); // with the version of now
    };
  }

  function close() {
    if (source) source.close();
    source = null;
  }

  /* A browser has six connections for all tabs of a server: hidden ones give theirs back. */
  document.addEventListener("visibilitychange", function () {
    if (document.hidden) close();
    else open();
  });

  hv15.live = { post: post, open: open };
})();
