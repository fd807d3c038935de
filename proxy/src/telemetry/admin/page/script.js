"use strict";
// The state of the sidecar, drawn from /events: "history" once, then "sample" and "status" each second.
(() => {
  const SPAN = 600_000; // ten minutes, as the sidecar keeps them
  const SILENCE = 4_000; // it speaks once a second
  const WORDS = { serving: "Serving", suspect: "Suspect", refusing: "Refusing", recovering: "Recovering" };
  const BREAKER = {
    closed: "", suspect: "", open: "breaker open", half_open: "breaker open, probing", ramp: "ramping up",
    forced_open: "held open by order", forced_closed: "held closed by order",
  };
  const PLOTS = [
    { key: "throughput", name: "Throughput", lines: [["throughput", ""]], format: (v) => perSecond(v), area: true },
    { key: "latency", name: "Service time", lines: [["p99_ms", "p99"], ["p95_ms", "p95"], ["p50_ms", "p50"]],
      format: (v) => duration(v), log: true, tall: true },
    { key: "in_flight", name: "In flight", lines: [["in_flight", ""]], format: (v) => count(v), area: true },
    { key: "queued", name: "Queue", lines: [["queued", ""]], format: (v) => count(v), area: true },
    { key: "refusals", name: "Refusals", lines: [["refusals", ""]], format: (v) => perSecond(v), area: true },
  ];

  const root = document.documentElement;
  const by = (id) => document.getElementById(id);
  let samples = [];
  let status = null;
  let heardAt = 0;
  let skew = 0; // the sidecar's clock minus ours
  let cursor = null;

  // Numbers for people.
  const nf = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
  const count = (v) => (v == null ? "–" : nf.format(v));
  const perSecond = (v) => (v == null ? "–" : (v > 0 && v < 10 ? v.toFixed(1) : nf.format(v)) + "/s");
  function duration(ms) {
    if (ms == null) return "–";
    if (ms < 1) return ms.toFixed(2) + " ms";
    if (ms < 10) return ms.toFixed(1) + " ms";
    if (ms < 1000) return nf.format(ms) + " ms";
    if (ms < 10_000) return (ms / 1000).toFixed(1) + " s";
    return span(ms);
  }
  function span(ms) {
    const s = Math.max(0, Math.floor(ms / 1000));
    if (s < 60) return s + " s";
    if (s < 3600) return Math.floor(s / 60) + " min " + (s % 60) + " s";
    if (s < 86_400) return Math.floor(s / 3600) + " h " + Math.floor((s % 3600) / 60) + " min";
    return Math.floor(s / 86_400) + " d " + Math.floor((s % 86_400) / 3600) + " h";
  }
  const clock = (ms) => new Date(ms).toLocaleTimeString("en-GB");
  const bytes = (v) => (v < 1024 ? v + " B" : v < 1_048_576 ? nf.format(v / 1024) + " KiB" : nf.format(v / 1_048_576) + " MiB");
  const now = () => Date.now() + skew;

  // Elements. Text only ever goes in as text.
  function put(element, text) { if (element.textContent !== text) element.textContent = text; }
  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) if (value != null) element.setAttribute(name, value);
    element.append(...children.map((child) => (child == null ? "" : child)));
    return element;
  }
  function svg(tag, attributes, parent) {
    const element = document.createElementNS("http:" + "//www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    parent.append(element);
    return element;
  }
  function pairs(list, rows) {
    list.replaceChildren(...rows.flatMap(([term, value, mark]) => [make("dt", {}, term), make("dd", { class: mark }, value)]));
  }
  function figures(list, all) {
    list.replaceChildren(...all.map(([term, value, mark]) => make("div", {}, make("dt", {}, term), make("dd", { class: mark }, value))));
  }
  function rows(table, all, empty) {
    const body = table.tBodies[0];
    if (all.length) body.replaceChildren(...all.map((cells) => make("tr", {}, ...cells)));
    else body.replaceChildren(make("tr", {}, make("td", { colspan: table.tHead.rows[0].cells.length }, empty)));
  }
  const cell = (value, mark) => make("td", { class: mark }, value);
  // On a phone a row is a list, and each cell needs its heading.
  function label(table) {
    const names = [...table.tHead.rows[0].cells].map((head) => head.textContent);
    for (const row of table.tBodies[0].rows) for (const [i, one] of [...row.cells].entries()) one.dataset.label = names[i];
  }
  const number = (value) => cell(value, "number");

  // Lanes and their plots.
  const lanes = {};
  for (const [name, title] of [["read", "Reads"], ["write", "Writes"]]) {
    const section = by("lane-template").content.firstElementChild.cloneNode(true);
    const heading = section.querySelector(".lane-name");
    heading.textContent = title;
    heading.id = "lane-" + name;
    section.id = name;
    section.setAttribute("aria-labelledby", heading.id);
    const plots = section.querySelector(".plots");
    const lane = { section, plots: PLOTS.map((plot) => plotElement(plot, title, plots)) };
    plots.append(make("div", { class: "axis", "aria-hidden": "true" }, make("span", {}, "10 minutes ago"),
      make("span", {}, "5 minutes ago"), make("span", {}, "now")));
    by("lanes").append(section);
    lanes[name] = lane;
  }

  function plotElement(plot, title, parent) {
    const readout = make("output", {});
    const caption = make("figcaption", {}, make("span", {}, make("b", {}, plot.name), " ",
      ...plot.lines.filter(([, label]) => label).flatMap(([, label], i) => [make("span", { class: "key key-" + i }, label), " "])), readout);
    const top = make("span", { class: "top", "aria-hidden": "true" });
    const frame = make("div", { class: "frame" }, top);
    parent.append(make("figure", { class: plot.tall ? "plot tall" : "plot" }, caption, frame));
    const picture = svg("svg", { viewBox: "0 0 600 100", preserveAspectRatio: "none", role: "img" }, frame);
    const bands = svg("g", {}, picture);
    const grid = svg("path", { class: "grid", d: "M0 50H600" }, picture);
    const red = plot.key === "refusals" ? " refusals" : "";
    const area = plot.area ? svg("path", { class: "area" + red }, picture) : null;
    const lines = plot.lines.map((_, i) => svg("path", { class: "line-" + i + red }, picture));
    const pointer = svg("path", { class: "cursor" }, picture);
    picture.addEventListener("pointermove", (event) => {
      const box = picture.getBoundingClientRect();
      cursor = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      drawAll();
    });
    picture.addEventListener("pointerleave", () => { cursor = null; drawAll(); });
    return { plot, title, picture, bands, grid, area, lines, pointer, readout, top };
  }

  function scale(plot, points) {
    const values = points.flatMap((point) => plot.lines.map(([key]) => point[key])).filter((v) => v != null && v > 0);
    const most = values.length ? Math.max(...values) : 0;
    if (!plot.log) {
      // Round numbers, so that the axis does not jitter; and room for its label above the curve.
      const power = 10 ** Math.floor(Math.log10(Math.max(most, 1)));
      const top = [1, 1.5, 2, 3, 4, 6, 8, 10].map((step) => step * power).find((step) => step >= most * 1.35) || 15 * power;
      return { top, y: (v) => 100 - (v / top) * 100 };
    }
    const low = Math.floor(Math.log10(values.length ? Math.min(...values) : 0.1));
    const high = Math.max(low + 1, Math.ceil(Math.log10(most || 1) + 0.25));
    return { top: 10 ** high, y: (v) => 100 - ((Math.log10(Math.max(v, 10 ** low)) - low) / (high - low)) * 100 };
  }

  function drawAll() {
    const end = samples.length ? samples[samples.length - 1].at_ms : now();
    const start = end - SPAN;
    const times = samples.map((sample) => sample.at_ms);
    let at = samples.length - 1;
    if (cursor != null && samples.length) {
      const wanted = start + cursor * SPAN;
      at = times.reduce((best, time, i) => (Math.abs(time - wanted) < Math.abs(times[best] - wanted) ? i : best), 0);
    }
    for (const name of ["read", "write"]) {
      const points = samples.map((sample) => sample[name]);
      for (const view of lanes[name].plots) draw(view, points, times, start, at);
    }
  }

  function draw(view, points, times, start, at) {
    const { plot } = view;
    const { top, y } = scale(plot, points);
    const x = (time) => ((time - start) / SPAN) * 600;
    put(view.top, plot.format(top));
    plot.lines.forEach(([key], i) => {
      let path = "", area = "", from = null, before = null;
      const close = () => { if (from != null) area += `V100H${from}Z`; from = null; };
      points.forEach((point, j) => {
        const value = point[key];
        const broken = before != null && times[j] - before > 3_000;
        if (value == null || broken) close();
        if (value == null) { before = null; return; }
        const px = x(times[j]).toFixed(1), py = y(value).toFixed(1);
        if (before == null || broken) { path += `M${px} ${py}`; area += `M${px} ${py}`; from = px; }
        else { path += `L${px} ${py}`; area += `L${px} ${py}`; }
        before = times[j];
      });
      close();
      view.lines[i].setAttribute("d", path);
      if (view.area && i === 0) view.area.setAttribute("d", area);
    });
    bands(view, points, times, x);
    const point = points[at];
    const chosen = cursor != null && point;
    view.pointer.setAttribute("d", chosen ? `M${x(times[at]).toFixed(1)} 0V100` : "");
    const value = (p) => plot.lines.map(([key, label]) => (label ? label + " " : "") + plot.format(p[key])).join(" · ");
    put(view.readout, point ? (chosen ? clock(times[at]) + "  " : "") + value(point) : "–");
    const last = points[points.length - 1];
    view.picture.setAttribute("aria-label", `${view.title}, ${plot.name.toLowerCase()} over ten minutes; now ${last ? value(last) : "unknown"}`);
  }

  // Where the lane was not serving, behind the curves.
  function bands(view, points, times, x) {
    view.bands.replaceChildren();
    for (let i = 0; i < points.length; ) {
      const state = points[i].state;
      let j = i;
      while (j + 1 < points.length && points[j + 1].state === state) j++;
      if (state && state !== "serving") {
        const left = x(times[i]) - 1;
        svg("rect", { class: "band-" + state, x: left, y: 0, width: Math.max(1, x(times[j]) - left), height: 100 }, view.bands);
      }
      i = j + 1;
    }
  }

  function showLane(name, lane) {
    const { section } = lanes[name];
    section.dataset.state = lane.state;
    put(section.querySelector(".lane-word"), WORDS[lane.state] || lane.state);
    const why = section.querySelector(".lane-why");
    const order = lane.order !== "auto" && BREAKER[lane.phase] === "" ? `ordered ${lane.order}` : "";
    const parts = [lane.evidence || "", BREAKER[lane.phase] || "", order].filter(Boolean).join(" · ");
    const cause = lane.cause ? make("b", {}, `Cause: ${lane.cause}`) : null;
    why.replaceChildren(...[cause, cause && parts ? " · " : null, parts].filter(Boolean));
    const rates = lane.rates;
    figures(section.querySelector(".figures"), [
      ["answered", perSecond(rates.throughput)],
      ["p50", duration(rates.p50_ms)],
      ["p99", duration(rates.p99_ms)],
      ["in flight", count(lane.in_flight)],
      ["oldest", duration(lane.oldest_in_flight_ms), lane.oldest_in_flight_ms > 1000 ? "bad" : null],
      ["queue", count(lane.queued)],
      ["refused", perSecond(rates.refusals), rates.refusals > 0 ? "bad" : null],
    ]);
  }

  function showUpstreams(all) {
    rows(by("upstreams"), all.map((one) => [
      make("th", { scope: "row" }, one.name),
      cell(one.fenced ? "fenced" : one.problem ? `${one.role}: ${one.problem}` : one.role, one.fenced || one.problem ? "bad" : null),
      cell(count(one.timeline)),
      cell(one.lsn || "–"),
      cell(one.lag_ms == null && one.lag_bytes == null ? "–"
        : [one.lag_ms == null ? "" : duration(one.lag_ms), one.lag_bytes == null ? "" : bytes(one.lag_bytes)].filter(Boolean).join(", ")),
      make("td", {}, ...(one.breakers.length ? one.breakers.flatMap((breaker, i) => [i ? ", " : "",
        make("span", { class: ["closed", "forced_closed"].includes(breaker.phase) ? "good" : ["suspect", "ramp"].includes(breaker.phase) ? "warn" : "bad" },
          `${breaker.lane} ${breaker.phase.replace("_", "-")}`)]) : ["–"])),
      cell([["r", one.probe_read_ms], ["w", one.probe_write_ms]].filter(([, ms]) => ms != null).map(([lane, ms]) => `${lane} ${duration(ms)}`).join(", ") || "–"),
      cell(one.last_write_at_ms == null ? "–" : span(now() - one.last_write_at_ms) + " ago"),
      cell(`${count(one.backends)} of ${count(one.backends_max)}` + (one.zombies ? `, ${one.zombies} given up` : ""), one.zombies ? "warn" : null),
      cell(one.version || "–"),
    ]), "none");
    label(by("upstreams"));
  }

  function showEvents(events) {
    by("events-none").hidden = events.length > 0;
    const days = new Date(now()).toDateString();
    by("events-list").replaceChildren(...events.map((event) => {
      const date = new Date(event.at_ms);
      const today = date.toDateString() === days;
      const time = make("time", { datetime: date.toISOString() }, today ? clock(event.at_ms) : date.toISOString().slice(5, 16).replace("T", " "));
      const details = [event.upstream, event.cause && "cause " + event.cause, event.evidence].filter(Boolean).join(" · ");
      return make("li", {}, time, make("span", { class: "level " + event.level, role: "img", "aria-label": event.level }),
        make("div", {}, event.what, details ? make("small", {}, details) : null));
    }));
  }

  function showWatch(all) {
    const lines = [];
    if (all.alerts) {
      const open = all.alerts.open;
      lines.push(["open incidents", open.length ? open.map((one) => `${one.summary} (since ${clock(one.since_at_ms)})`).join("; ") : "none", open.length ? "bad" : null]);
      lines.push(["alerts", `${count(all.alerts.sent_total)} sent, ${count(all.alerts.pending)} pending, ${count(all.alerts.failed_total)} failed attempts`, all.alerts.pending ? "warn" : null]);
    } else lines.push(["alerts", "not known"]);
    if (all.watchdog) {
      const stuck = all.watchdog.threads.filter((thread) => thread.stalled_ms >= 1000);
      lines.push(["threads", stuck.length ? stuck.map((thread) => `${thread.name} hangs for ${span(thread.stalled_ms)}`).join("; ") : `all ${all.watchdog.threads.length} make progress`, stuck.length ? "bad" : null]);
    } else lines.push(["threads", "not known"]);
    lines.push(["sessions", `${count(all.sessions.now)} of ${count(all.sessions.max)}`]);
    pairs(by("watch"), lines);
  }

  function show(all) {
    status = all;
    root.dataset.level = all.verdict.level;
    put(by("host"), all.host);
    put(by("sentence"), all.verdict.sentence);
    by("next").hidden = !all.verdict.next;
    put(by("next-text"), all.verdict.next);
    document.title = `${{ ok: "✓", warning: "▲", critical: "■" }[all.verdict.level] || "?"} ${all.host} – tidegate`;
    showLane("read", all.lanes.read);
    showLane("write", all.lanes.write);
    showUpstreams(all.upstreams);
    showEvents(all.events);
    rows(by("refused"), all.refusals.map((one) => [cell(one.lane), cell(one.word), number(count(one.total))]), "none");
    showWatch(all);
    rows(by("pools"), all.pools.map((pool) => [make("th", { scope: "row" }, pool.upstream), cell(pool.database), cell(pool.user),
      number(count(pool.idle)), number(count(pool.leased)), number(count(pool.opening)), number(count(pool.waiting)),
      number(pool.waiting ? duration(pool.longest_wait_ms) : "–"), number(count(pool.exchanges))]), "none yet");
    const config = all.config;
    pairs(by("settings"), [["listen", config.listen.join(", ")], ["workers", count(config.workers)],
      ["pool", `${config.pool_mode} mode, ${config.pool_size} backends, ${config.write_slots} of them for writes`],
      ["deadlines", `queue ${duration(config.queue_ms)}, read ${duration(config.read_ms)}, write ${duration(config.write_ms)}, commit ${duration(config.commit_ms)}`]]);
    age();
  }

  // What passes with time, out of the live region: a screen reader must not read seconds.
  function age() {
    if (!status) return;
    put(by("about"), `version ${status.version} · up ${span(status.uptime_ms + (now() - status.at_ms))} · ${count(status.sessions.now)} sessions`);
    for (const name of ["read", "write"]) {
      const since = status.lanes[name].since_at_ms;
      put(lanes[name].section.querySelector(".lane-since"), since == null ? "" : `for ${span(now() - since)}, since ${clock(since)}`);
    }
  }

  function connection(state, text) {
    if (root.dataset.connection !== state) root.dataset.connection = state;
    put(by("connection-text"), text);
  }
  function lost() {
    connection("lost", status ? `connection lost; this was the state at ${clock(status.at_ms)}` : "no connection; trying again");
    put(by("sentence"), "No answer from this sidecar. What follows is old.");
    by("next").hidden = false;
    put(by("next-text"), "Check whether the process runs, and whether this machine can reach it. This page tries again by itself.");
    document.title = "? tidegate – connection lost";
  }
  function heard() {
    heardAt = performance.now();
    if (root.dataset.connection !== "live") {
      connection("live", "live");
      if (status) show(status);
    }
  }

  let source = null;
  function listen() {
    source = new EventSource("events");
    source.addEventListener("history", (event) => { samples = JSON.parse(event.data).samples; heard(); drawAll(); });
    source.addEventListener("sample", (event) => {
      const sample = JSON.parse(event.data);
      samples.push(sample);
      while (samples.length && samples[0].at_ms < sample.at_ms - SPAN) samples.shift();
      heard();
      drawAll();
    });
    source.addEventListener("status", (event) => {
      const all = JSON.parse(event.data);
      skew = all.at_ms - Date.now();
      heard();
      show(all);
    });
    source.addEventListener("error", () => {
      // Refused for good, e.g. too many listeners: the state alone is better than nothing.
      if (source.readyState === EventSource.CLOSED) setTimeout(fallback, 2_000);
      else lost();
    });
  }
  function fallback() {
    fetch("status", { cache: "no-store" })
      .then((response) => (response.ok ? response.json() : Promise.reject(response.status)))
      .then((all) => { skew = all.at_ms - Date.now(); heard(); show(all); connection("live", "live, without plots: too many listen"); })
      .catch(lost)
      .finally(listen);
  }

  setInterval(() => {
    if (root.dataset.connection === "live" && performance.now() - heardAt > SILENCE) lost();
    else if (root.dataset.connection === "live") age();
  }, 1_000);
  drawAll();
  listen();
})();
