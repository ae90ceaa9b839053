// The jobs, drawn from the HTTP routes about once a second: the one that is looked at, and a list of all.
// Nothing is kept here that the server does not know, so a reload, a second browser and "Reload UI" lose nothing.
(function () {
    "use strict";

    const lt = window.loraTrainer = window.loraTrainer || {};
    const t = (text, values) => lt.t(text, values);
    const el = (...all) => lt.el(...all);
    const BUSY = 1000; // ms between two looks while something runs, unless the WebUI's settings name other seconds
    const IDLE = 4000;
    const LONGEST = 15000; // between two tries when the server is lost
    const LINES = 400; // of the log that are kept in the page
    const ACTIVE = ["running", "paused", "queued"];

    let root = null; // the place in the page
    let view = null; // of the job that is looked at
    let chosen = null; // id that was chosen by hand or just begun
    let jobs = [];
    let lost = 0; // tries in a row without an answer
    let asked = false; // whether it was for want of a password
    let timer = 0;
    let written = null; // the LoRA files at the last look

    const stateWord = (state) => ({
        queued: t("waiting"), running: t("running"), paused: t("paused"), done: t("done"), failed: t("failed"),
        stopped: t("stopped"),
    })[state];

    // --- looking -----------------------------------------------------------------------------------------------------

    lt.startRun = function () {
        const place = lt.find("lt_run");
        if (root === place) return;
        root = place;
        view = null;
        frame();
        look();
        new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && look()).observe(root);
    };

    // Look at once at how far the jobs are.
    lt.lookAtJobs = () => root && look();

    // Look at this job from now on.
    lt.watch = function (id) {
        chosen = id;
        if (lt.view() === "data") lt.go("train");
        look();
        if (root.getBoundingClientRect().top > window.innerHeight) root.scrollIntoView({ block: "start" });
    };

    function busy() {
        const seconds = window.opts && window.opts.lora_trainer_poll_seconds;
        return seconds > 0 ? seconds * 1000 : BUSY;
    }

    let looking = false;
    let again = false; // whether something happened while we looked

    async function look() {
        clearTimeout(timer);
        again = looking;
        if (looking) return;
        looking = true;
        let pause = IDLE;
        try {
            jobs = (await lt.ask("jobs")).jobs;
            if (lost) lt.notice(t("The server answers again."));
            lost = 0;
            renewCards();
            lt.onJobs(jobs);
            await draw();
            if (jobs.some((job) => ACTIVE.includes(job.state))) pause = busy();
            if (document.hidden || !lt.find("lt_page").offsetParent) pause = IDLE;
        } catch (error) {
            lost += 1;
            pause = Math.min(BUSY * 2 ** (lost - 1), LONGEST);
            asked = error.status === 401;
            if (!error.status && !(error instanceof TypeError) && error.name !== "AbortError") console.error(error);
        }
        drawLost(pause);
        looking = false;
        clearTimeout(timer);
        timer = setTimeout(look, again ? 0 : pause);
    }

    // The WebUI lists LoRA anew for pages opened later; in one that is open its hidden button does it.
    function renewCards() {
        const files = jobs.flatMap((job) => job.files || []).join("\n");
        if (written !== null && files !== written) {
            for (const tab of ["txt2img", "img2img"]) {
                const button = lt.find(tab + "_lora_extra_refresh_internal");
                if (button) button.dispatchEvent(new Event("click"));
            }
        }
        written = files;
    }

    // What is no training is watched where it was asked for.
    const VIEW_OF = { captions: "data", class_images: "data", answers: "language", model: "language" };
    const isTraining = (job) => (job.kind || "training") === "training";

    // The job to show: the chosen one, else the one that runs, else the newest.
    function current() {
        const trainings = jobs.filter(isTraining);
        return trainings.find((job) => job.id === chosen)
            || trainings.find((job) => job.state === "running" || job.state === "paused")
            || trainings.find((job) => job.state === "queued") || trainings[0] || null;
    }

    async function order(job, verb, said) {
        try {
            await lt.ask("jobs/" + encodeURIComponent(job.id) + "/" + verb, "POST");
            if (said) lt.notice(said);
        } catch (error) {
            lt.notice((error.faults || [t("The server did not take it; try again.")]).join(" "), "bad");
        }
        look();
    }

    // --- the frame ---------------------------------------------------------------------------------------------------

    let parts = {};

    function frame() {
        parts = {
            lost: el("p", { class: "lt-lost", role: "alert" }),
            job: el("section", { class: "lt-job", "aria-label": t("Training") }),
            list: el("ul", { class: "lt-jobs" }),
            jobs: el("section", { class: "lt-list", hidden: true }),
        };
        parts.jobs.append(el("h3", null, t("Trainings")), parts.list);
        root.replaceChildren(parts.lost, parts.job, parts.jobs);
        parts.lost.hidden = true;
        drawNothing();
    }

    function drawLost(pause) {
        parts.lost.hidden = lost < 2;
        root.classList.toggle("lt-away", lost > 1);
        if (lost > 1) {
            lt.say(parts.lost, asked ? t("The server asks for a name and a password; reload the page to give them.")
                : t("The server does not answer. A training that it runs goes on without this page; "
                + "trying again every {n} s.", { n: Math.round(pause / 1000) }));
        }
    }

    function drawNothing() {
        view = null;
        parts.job.replaceChildren(el("div", { class: "lt-nothing" },
            curve(), el("p", { class: "lt-title" }, t("Nothing is being trained")),
            el("p", { class: "lt-dim" }, t("Progress, loss and sample pictures appear here once you press Start."))));
    }

    // A falling loss, as an ornament of the empty place.
    function curve() {
        const space = "http://www.w3.org/2000/svg";
        const drawn = document.createElementNS(space, "svg");
        for (const [name, value] of Object.entries({ viewBox: "0 0 220 90", "aria-hidden": "true", class: "lt-curve" })) {
            drawn.setAttribute(name, value);
        }
        for (const path of ["M8 82H212", "M8 14C40 20 44 52 78 58S140 70 212 72"]) {
            const stroke = document.createElementNS(space, "path");
            stroke.setAttribute("d", path);
            drawn.append(stroke);
        }
        return drawn;
    }

    async function draw() {
        const job = current();
        if (!job) drawNothing();
        else {
            if (!view || view.id !== job.id) view = viewOf(job);
            await readEvents(view);
            drawJob(view, jobs.find((one) => one.id === job.id) || job);
        }
        drawList(job);
    }

    // --- one job -----------------------------------------------------------------------------------------------------

    function viewOf(job) {
        const made = {
            id: job.id, last: 0, points: [], looks: [], samples: new Map(), log: [], preparing: null, begun: false,
            name: el("h3", null), state: el("span", { class: "lt-state" }),
            bar: el("div", { class: "lt-bar", role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100",
                "aria-label": t("Progress") }, el("div", null)),
            facts: {}, verdict: el("p", { class: "lt-verdict lt-dim", hidden: true }), message: el("p", { class: "lt-message", role: "status" }),
            result: el("div", { class: "lt-result", hidden: true }),
            samplesPlace: el("div", { class: "lt-samples" }), lines: el("ol", { class: "lt-log", role: "log",
                tabindex: "0", "aria-label": t("Log") }),
            buttons: {},
        };
        const figure = el("figure", { class: "lt-graph" });
        made.held = el("span", { class: "lt-key lt-key-held", hidden: true }, t("held-out images"));
        const samples = el("section", { class: "lt-part" }, el("h4", null, t("Samples")), made.samplesPlace);
        parts.job.replaceChildren(
            el("header", null, made.name, made.state), made.bar, factsOf(made), made.verdict, made.message, buttonsOf(made),
            made.result,
            made.sweep = el("section", { class: "lt-part lt-sweep", hidden: true }),
            el("section", { class: "lt-part" }, el("h4", null, t("Loss"), legend(made.held)), figure),
            samples,
            el("section", { class: "lt-part" }, el("h4", null, t("Log")), made.lines));
        made.graph = lt.graph(figure);
        made.graph.show([], job.total_steps);
        drawSamples(made);
        return made;
    }

    function legend(held) {
        const key = (kind, text) => el("span", { class: "lt-key lt-key-" + kind }, text);
        return el("span", { class: "lt-legend" }, key("raw", t("each step")), key("mean", t("smoothed")),
            key("rate", t("learning rate")), held);
    }

    function factsOf(made) {
        const list = el("dl", { class: "lt-facts" });
        for (const [name, title] of [["step", t("Step")], ["left", t("Time left")], ["speed", t("Speed")],
            ["loss", t("Loss")], ["memory", t("Memory")]]) {
            made.facts[name] = el("dd", null, "–");
            list.append(el("div", null, el("dt", null, title), made.facts[name]));
        }
        return list;
    }

    function buttonsOf(made) {
        const now = () => jobs.find((job) => job.id === made.id);
        const add = (name, text, fn, more) => (made.buttons[name] = lt.button(text, () => fn(now()), more));
        made.row = el("div", { class: "lt-buttons" },
            add("pause", t("Pause"), (job) => order(job, "pause")),
            add("resume", t("Resume"), (job) => order(job, "resume")),
            add("save", t("Save now"), (job) => order(job, "save", t("Saving after this step."))),
            add("sample", t("Sample now"), (job) => order(job, "sample", t("Drawing samples after this step."))),
            add("stop", t("Stop"), (job) => order(job, "stop", t("Stopping after this step; the work is saved.")),
                { class: "lt-button lt-stop" }),
            add("goOn", t("Resume"), (job) => order(job, "resume"), { class: "lt-button lt-primary" }));
        return made.row;
    }

    function drawJob(made, job) {
        const active = job.state === "running" || job.state === "paused";
        lt.say(made.name, job.name);
        lt.say(made.state, stateWord(job.state));
        made.state.dataset.state = job.state;
        const share = job.total_steps ? job.step / job.total_steps : 0;
        const readying = active && made.preparing && !made.begun;
        const shown = readying ? made.preparing.done / Math.max(1, made.preparing.total) : share;
        made.bar.classList.toggle("lt-readying", Boolean(readying));
        made.bar.classList.toggle("lt-idle", job.state !== "running");
        made.bar.firstChild.style.width = (100 * shown).toFixed(2) + "%";
        made.bar.setAttribute("aria-valuenow", Math.round(100 * shown));
        drawFacts(made, job, active);
        lt.say(made.message, messageOf(made, job, readying));
        made.message.classList.toggle("lt-fault", job.state === "failed");
        const buttons = made.buttons;
        buttons.pause.hidden = job.state !== "running";
        buttons.resume.hidden = job.state !== "paused";
        buttons.save.hidden = buttons.sample.hidden = !active;
        buttons.stop.hidden = !ACTIVE.includes(job.state);
        buttons.goOn.hidden = active || !job.resumable;
        made.row.hidden = Object.values(buttons).every((button) => button.hidden);
        if (made.was && made.was !== job.state && !ACTIVE.includes(job.state)) lt.changed(); // its pace is known now
        made.was = job.state;
        drawResult(made, job);
        lt.drawSweep(made.sweep, job, jobs, stateWord);
        if (!made.seen && root.offsetParent) { // what was drawn in a tab that is not shown could not scroll
            made.seen = true;
            for (const one of [made.lines, ...made.samplesPlace.querySelectorAll(".lt-strip")]) {
                one.scrollTo(one.scrollWidth, one.scrollHeight);
            }
        }
    }

    function drawFacts(made, job, active) {
        const total = job.total_steps ? " / " + job.total_steps : "";
        lt.say(made.facts.step, job.total_steps || job.step ? job.step + total : "–");
        lt.say(made.facts.left, active && job.seconds_left ? lt.duration(job.seconds_left) : "–");
        const pace = job.seconds_per_step;
        lt.say(made.facts.speed, !pace ? "–" : pace < 1 ? t("{n} it/s", { n: (1 / pace).toFixed(2) })
            : t("{n} s/it", { n: pace.toFixed(2) }));
        lt.say(made.facts.memory, made.memory ? t("{n} GB", { n: (made.memory / 2 ** 30).toFixed(1) }) : "–");
        lt.say(made.facts.loss, job.loss === null || job.loss === undefined ? "–" : job.loss.toPrecision(3));
    }

    // What the heaviest step took, which was tried before the first one.
    function drawVerdict(made, event) {
        const values = { step: lt.size(event.step + event.kept), free: event.free === null ? "" : lt.size(event.free) };
        lt.say(made.verdict, event.free === null ? t("Measured before the first step: the largest takes {step}.", values)
            : t("Measured before the first step: the largest takes {step}, {free} was free.", values));
        made.verdict.classList.toggle("lt-warned", event.level === "warning");
        made.verdict.hidden = false;
    }

    function messageOf(made, job, readying) {
        if (readying && job.state === "running") {
            const { what, done, total, unit } = made.preparing;
            const known = { latents: t("images"), captions: t("captions"), pictures: t("images") };
            return t("Preparing {what}: {done} of {total}", {
                what: known[what] || what, done, total: unit ? total + " " + unit : total });
        }
        return lt.told(job.message);
    }

    // --- afterwards --------------------------------------------------------------------------------------------------

    function promptOf(job) {
        const said = job.sample ? job.sample.prompt : "";
        const trigger = job.trigger || "";
        const words = trigger && !said.includes(trigger) ? [trigger, said] : [said];
        return [words.filter(Boolean).join(", "), "<lora:" + job.lora + ":0.8>"].filter(Boolean).join(" ");
    }

    // The folder of the adapter that a training of a language model wrote; empty for any other job.
    lt.adapterOf = (job) => {
        const files = isTraining(job) ? job.files : [];
        return files.some((file) => file.endsWith(".safetensors")) ? "" : files[files.length - 1] || "";
    };

    function drawResult(made, job) {
        const ready = job.lora && (job.state === "done" || job.state === "stopped");
        made.result.hidden = !ready;
        if (!ready) {
            made.shownResult = null;
            return;
        }
        const adapter = lt.adapterOf(job);
        const text = adapter || promptOf(job);
        const plain = jobs.find((one) => one.kind === "plain" && one.name === job.lora) || null;
        const shown = JSON.stringify([text, job.state, plain && [plain.state, plain.step, plain.message]]);
        if (made.shownResult === shown) return;
        made.shownResult = shown;
        const inWebui = Boolean(lt.find("txt2img_prompt"));
        const near = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
        const line = el("input", { type: "text", readonly: true, value: text, "aria-label": adapter ? t("Adapter's folder") : t("Prompt with the LoRA") });
        line.addEventListener("focus", () => line.select());
        made.result.replaceChildren(
            el("p", { class: "lt-title" }, job.state === "done" ? t("{name} is ready", { name: job.lora })
                : t("{name} as it was when it was stopped", { name: job.lora })),
            el("div", { class: "lt-copy" }, line, lt.button(t("Copy"), () => copy(line))),
            el("div", { class: "lt-buttons" },
                adapter ? lt.button(t("Try it"), () => lt.tryAdapter(adapter), { class: "lt-button lt-primary" })
                    : inWebui ? lt.button(t("Try it"), () => tryIt(job), { class: "lt-button lt-primary" }) : null,
                adapter ? null : lt.button(t("Train on"), () => lt.bring({ from: "job", id: job.id })),
                !adapter && NARROW.includes(job.network) && !(plain && ACTIVE.includes(plain.state))
                    ? lt.button(t("Make it a plain LoRA…"), () => askPlain(job)) : null,
                near ? lt.button(t("Open folder"), () => lt.openFolder(job.id)) : null),
            ...(plain ? [el("p", { class: "lt-dim", role: "status" }, plainWords(plain))] : []));
    }

    // --- a plain LoRA of another kind --------------------------------------------------------------------------------

    const NARROW = ["dora", "loha", "lokr", "oft"]; // kinds that not every program reads

    function plainWords(plain) {
        return plain.state === "running" && plain.step
            ? t("Plain LoRA: {done} of {total} layers", { done: plain.step, total: plain.total_steps })
            : t("Plain LoRA: {what}", { what: lt.told(plain.message) });
    }

    function askPlain(job) {
        const rank = el("input", { type: "number", min: "1", max: "1024", value: "32", "aria-label": t("Rank") });
        const dialog = el("dialog", { class: "lt-dialog", "aria-label": t("Make it a plain LoRA…") },
            el("p", null, t("Programs that cannot read the kind {kind} read a plain LoRA. It is the nearest one of the "
                + "rank you give; what is lost is told, and a higher rank loses less.", { kind: job.network })),
            el("label", null, t("Rank") + " ", rank),
            el("div", { class: "lt-buttons" },
                lt.button(t("Make it"), () => {
                    dialog.close();
                    makePlain(job, Number(rank.value));
                }, { class: "lt-button lt-primary" }),
                lt.button(t("Cancel"), () => dialog.close())));
        lt.show(dialog);
    }

    async function makePlain(job, rank) {
        try {
            await lt.ask("jobs/" + encodeURIComponent(job.id) + "/plain", "POST", { rank });
        } catch (error) {
            lt.notice((error.faults || [t("The server did not take it; try again.")]).join(" "), "bad");
        }
        look();
    }

    async function copy(line) {
        line.select();
        if (navigator.clipboard) await navigator.clipboard.writeText(line.value);
        else document.execCommand("copy"); // over plain http there is no clipboard
        lt.notice(t("Copied."));
    }

    // Puts prompt, size and seed into the WebUI's txt2img and goes there.
    function tryIt(job) {
        const put = (selector, value) => {
            const field = lt.find("lt_page").getRootNode().querySelector(selector);
            if (!field || value === null || value === undefined) return;
            field.value = value;
            updateInput(field);
        };
        put("#txt2img_prompt textarea", promptOf(job));
        if (job.sample) {
            put("#txt2img_width input[type=number]", job.sample.size);
            put("#txt2img_height input[type=number]", job.sample.size);
            put("#txt2img_seed input[type=number]", job.sample.seed);
        }
        switch_to_txt2img();
    }

    // --- events ------------------------------------------------------------------------------------------------------

    async function readEvents(made) {
        for (;;) {
            const path = "jobs/" + encodeURIComponent(made.id) + "/events?after=" + made.last;
            const { events, last } = await lt.ask(path);
            for (const event of events) take(made, event);
            if (events.length) drawEvents(made);
            const before = made.last;
            made.last = Math.max(before, last || 0, ...events.map((event) => event.n));
            if (!events.length || made.last === before || view !== made) return;
        }
    }

    function take(made, event) {
        const steps = () => Object.values(event.rates || {});
        const acts = {
            told: () => log(made, event, event.text, event.level === "warning" ? "warning" : ""),
            judged: () => {
                drawVerdict(made, event);
                log(made, event, event.text, event.level === "warning" ? "warning" : "");
            },
            prepared: () => (made.preparing = event),
            started: () => {
                made.begun = true;
                made.total = event.steps;
                made.points = made.points.filter((point) => point.step <= event.step);
                made.looks = made.looks.filter((look) => look.step <= event.step);
                log(made, event, event.step ? t("Goes on after step {step} of {steps}.", event)
                    : t("Training begins: {steps} steps.", event));
            },
            stepped: () => {
                made.points.push({ step: event.step, loss: event.loss, rate: Math.max(0, ...steps()) });
                made.memory = event.memory;
            },
            validated: () => {
                made.looks.push({ step: event.step, loss: event.loss, best: event.best });
                made.held.hidden = false;
                log(made, event, event.best === event.step
                    ? t("Held-out images after step {step}: loss {loss}, the best so far.", looked(event))
                    : t("Held-out images after step {step}: loss {loss}; the best is step {best}.", looked(event)));
            },
            skipped: () => log(made, event, t("Step {step} was skipped: its loss was not a finite number.", event),
                "warning"),
            saved: () => log(made, event, event.final ? t("Written: {file}", { file: fileOf(event.path) })
                : t("Checkpoint after step {step}: {file}", { step: event.step, file: fileOf(event.path) })),
            sampled: () => {
                made.samples.set(event.step, {
                    images: event.images || [], prompts: event.prompts || [], texts: event.texts || [],
                });
                log(made, event, event.step ? t("Samples drawn after step {step}.", event)
                    : t("Samples drawn before the first step."));
            },
            finished: () => log(made, event, event.text, event.outcome === "failed" ? "warning" : ""),
        };
        (acts[event.kind] || (() => null))();
    }

    const looked = (event) => ({ ...event, loss: Number(event.loss.toPrecision(4)) });
    const fileOf = (path) => String(path).split(/[\\/]/).pop();

    function log(made, event, text, kind) {
        const when = new Date(typeof event.at === "number" ? event.at * 1000 : event.at);
        made.log.push({ when, text, kind });
    }

    function drawEvents(made) {
        const total = made.total || jobs.find((job) => job.id === made.id)?.total_steps;
        made.graph.show(made.points, total, made.looks);
        drawSamples(made);
        const place = made.lines;
        const atEnd = place.scrollTop + place.clientHeight >= place.scrollHeight - 24;
        for (const line of made.log.splice(0)) {
            place.append(el("li", { class: line.kind ? "lt-" + line.kind : null },
                el("time", null, line.when.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })),
                el("span", null, line.text)));
        }
        while (place.childElementCount > LINES) place.firstChild.remove();
        if (atEnd) place.scrollTop = place.scrollHeight;
    }

    // --- samples -----------------------------------------------------------------------------------------------------

    // A row of pictures for each prompt, one column a step, the newest in sight.
    function drawSamples(made) {
        const place = made.samplesPlace;
        if (!made.samples.size) {
            if (!place.childElementCount) {
                place.append(el("p", { class: "lt-dim" }, t("None yet: they are drawn for the form's sample prompts.")));
            }
            return;
        }
        if (!made.rows) {
            place.replaceChildren();
            made.rows = [];
        }
        for (const [step, { images, prompts, texts }] of made.samples) {
            (texts.length ? texts : images).forEach((image, index) => {
                const row = made.rows[index] || (made.rows[index] = rowOf(place, prompts[index] || ""));
                if (row.steps.has(step)) return;
                row.steps.add(step);
                const atEnd = row.strip.scrollLeft + row.strip.clientWidth >= row.strip.scrollWidth - 24;
                row.strip.append(texts.length ? saidOf(texts[index], step) : pictureOf(image, step, prompts[index] || ""));
                if (atEnd) row.strip.scrollLeft = row.strip.scrollWidth;
            });
        }
    }

    function rowOf(place, prompt) {
        const strip = el("div", { class: "lt-strip" });
        place.append(el("p", { class: "lt-prompt", title: prompt }, prompt || t("(empty prompt)")), strip);
        return { strip, steps: new Set() };
    }

    // What a language model answered.
    function saidOf(text, step) {
        return el("figure", { class: "lt-said" }, el("figcaption", null, step ? t("step {n}", { n: step }) : t("before")),
            el("blockquote", null, ...lt.verbatim(text || t("(nothing)"))));
    }

    function pictureOf(image, step, prompt) {
        const source = new URL(image, location.href).href;
        const label = step ? t("step {n}", { n: step }) : t("before");
        return el("button", {
            type: "button", class: "lt-picture", "aria-label": label + ": " + prompt,
            on: { click: () => enlarge(source, label, prompt) },
        }, el("img", { src: source, alt: "", loading: "lazy", decoding: "async" }), el("span", null, label));
    }

    function enlarge(source, label, prompt) {
        const dialog = el("dialog", { class: "lt-dialog lt-large", "aria-label": label },
            el("img", { src: source, alt: prompt }), el("p", null, label + (prompt ? " · " + prompt : "")),
            lt.button(t("Close"), () => dialog.close()));
        lt.show(dialog);
    }

    // --- all jobs ----------------------------------------------------------------------------------------------------

    let drawnList = "";

    function drawList(shown) {
        parts.jobs.hidden = jobs.length === 0;
        const facts = jobs.map((job) => [job.id, job.name, job.state, job.step, job.total_steps, job.resumable]);
        const now = JSON.stringify([facts, shown?.id]);
        if (now === drawnList && parts.list.childElementCount) return;
        drawnList = now;
        const focused = parts.list.contains(document.activeElement) ? document.activeElement.dataset.of : null;
        parts.list.replaceChildren(...jobs.map((job) => itemOf(job, job.id === shown?.id)));
        if (focused) parts.list.querySelector(`[data-of="${CSS.escape(focused)}"]`)?.focus();
    }

    function nameOf(job) {
        const made = { captions: t("Captions"), class_images: t("Class images"), answers: t("Answers"),
            plain: t("Plain LoRA"), model: t("Language model") }[job.kind];
        return made ? made + ": " + job.name : job.name;
    }

    function itemOf(job, isShown) {
        const state = el("span", { class: "lt-state", data: { state: job.state } }, stateWord(job.state));
        const steps = job.total_steps ? job.step + " / " + job.total_steps + (job.kind === "model" ? " MB" : "") : "";
        return el("li", { class: isShown ? "lt-shown" : null },
            el("button", {
                type: "button", class: "lt-pick", "aria-current": isShown ? "true" : null, data: { of: "pick" + job.id },
                on: { click: () => (isTraining(job) ? lt.watch(job.id) : VIEW_OF[job.kind] && lt.go(VIEW_OF[job.kind])) },
            }, el("span", { class: "lt-name" }, nameOf(job)), el("span", { class: "lt-dim" }, steps), state),
            job.state === "queued"
                ? lt.button(t("Remove"), () => order(job, "stop"), { data: { of: "stop" + job.id } }) : null,
            job.resumable && !ACTIVE.includes(job.state) && !isShown
                ? lt.button(t("Resume"), () => order(job, "resume"), { data: { of: "on" + job.id } }) : null);
    }

    document.addEventListener("visibilitychange", () => !document.hidden && root && look());
})();
