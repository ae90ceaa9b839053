// The page's words, its elements, and the form: what is asked of gradio's hidden buttons and what they answer.
// lora_trainer_views.js switches between training and data set; lora_trainer_run.js draws the jobs, lora_trainer_graph.js
// the loss, and lora_trainer_data*.js the data set. No library, nothing loaded from elsewhere; whatever a user typed is
// written as text, never as HTML.
(function () {
    "use strict";

    const lt = window.loraTrainer = window.loraTrainer || {};
    lt.recipeKey = "lora_trainer.config"; // of the notes in a LoRA
    const REMEMBERED = "lora_trainer.form"; // in the browser: the form as it was, for a reload
    const UNANSWERED = 60000; // ms after which an order to the server counts as lost; a checkpoint may be loaded for it
    const QUIET = 600; // ms without a change before the form is judged
    const LARGEST_HEADER = 64 << 20; // bytes; the header of a LoRA has some hundred thousand

    // --- words and elements ------------------------------------------------------------------------------------------

    // A sentence in the host's language, with {names} filled in.
    lt.t = function (text, values) {
        const known = (window.localization || {})[text] || text;
        return known.replace(/\{(\w+)\}/g, (all, name) => (values && name in values ? String(values[name]) : all));
    };
    const t = lt.t;

    // An element; text children become text nodes. on: listeners, data: data attributes, the rest: attributes.
    lt.el = function (tag, attributes, ...children) {
        const made = document.createElement(tag);
        for (const [name, value] of Object.entries(attributes || {})) {
            if (value === null || value === undefined || value === false) continue;
            if (name === "on") for (const [event, fn] of Object.entries(value)) made.addEventListener(event, fn);
            else if (name === "data") Object.assign(made.dataset, value);
            else made.setAttribute(name, value === true ? "" : String(value));
        }
        made.append(...children.flat().filter((child) => child !== null && child !== undefined));
        return made;
    };
    const el = lt.el;

    lt.find = (id) => document.getElementById(id) || (window.gradioApp ? gradioApp().querySelector("#" + id) : null);

    // Changes the text only where it differs, so that nothing is selected away or read out twice.
    lt.say = function (element, text) {
        if (element.textContent !== text) element.textContent = text;
    };

    // A user's text in two pieces: a WebUI translates any text in the page that its dictionary has as a whole, even a tag.
    lt.verbatim = function (text) {
        const letters = [...text];
        return [letters.slice(0, 1).join(""), letters.slice(1).join("")];
    };

    lt.duration = function (seconds) {
        const minutes = Math.round(seconds / 60);
        if (seconds < 90) return t("{n} s", { n: Math.max(1, Math.round(seconds)) });
        if (minutes < 90) return t("{n} min", { n: minutes });
        return t("{h} h {m} min", { h: Math.floor(minutes / 60), m: minutes % 60 });
    };

    lt.button = (text, fn, more) =>
        el("button", { type: "button", class: "lt-button", ...more, on: { click: fn } }, text);

    // A sentence at the foot of the window that leaves by itself.
    lt.notice = function (text, kind) {
        const place = lt.find("lt_notices") || document.body.appendChild(
            el("div", { id: "lt_notices", role: "status", "aria-live": "polite" }));
        const line = el("div", { class: "lt-notice" + (kind ? " lt-" + kind : "") }, text);
        place.append(line);
        setTimeout(() => line.remove(), 9000);
    };

    // --- the routes --------------------------------------------------------------------------------------------------

    lt.url = (path) => new URL("lora_trainer/v1/" + path, location.href.split(/[?#]/)[0]).href;

    // JSON of a route. Throws an Error whose `faults` are the server's sentences, or that has none where it is lost;
    // `answer` is all that the server said. It is waited for `patience` ms.
    lt.ask = async function (path, method, body, patience = 20000) {
        const cut = new AbortController();
        const timer = setTimeout(() => cut.abort(), patience);
        try {
            const reply = await fetch(lt.url(path), {
                method: method || "GET", signal: cut.signal, cache: "no-store", credentials: "same-origin",
                headers: method ? { "Content-Type": "application/json" } : {},
                body: body === undefined ? undefined : JSON.stringify(body),
            });
            const answer = await reply.json().catch(() => ({}));
            if (!reply.ok) {
                const refused = new Error("HTTP " + reply.status);
                refused.status = reply.status;
                refused.faults = answer.faults;
                refused.answer = answer;
                throw refused;
            }
            return answer;
        } finally {
            clearTimeout(timer);
        }
    };

    // --- the form ----------------------------------------------------------------------------------------------------

    let order = {};
    let timer = 0;
    let waiting = false; // for the answer to Start

    const press = (name) => lt.find("lt_do_" + name)?.click();

    // Called by gradio at each change of a field.
    lt.changed = function () {
        clearTimeout(timer);
        timer = setTimeout(() => press("plan"), QUIET);
        setTimeout(lt.offerFields, 30); // gradio writes the new value into the page after this
    };

    // --- which fields are offered ------------------------------------------------------------------------------------

    let planned = ""; // the settings of the plan that is shown
    const settingsOf = ({ form, strength }) => JSON.stringify([form, strength]);
    let unoffered = []; // ids of fields that mean nothing on the base of the last plan
    let folded = {}; // what fields held at the last answer; newer gradio takes those in closed folds out of the page

    function held(id) {
        const field = lt.find(id)?.querySelector("input, textarea, select");
        if (!field) return folded[id] ?? "";
        return field.type === "checkbox" ? String(field.checked) : field.value.trim();
    }

    const given = (value) => value !== "" && value !== "false" && Number(value) !== 0;
    const met = (rule) => rule.of.some((id) => {
        const value = held(id);
        return rule.values ? rule.values.includes(value) !== rule.but : given(value);
    });

    // Hides the fields that would change nothing, and folds that hold no others; what is faulty stays in sight.
    lt.offerFields = function () {
        const { rules, folds } = JSON.parse(lt.find("lt_plan")?.dataset.rules || '{"rules": {}, "folds": {}}');
        const off = (id) => unoffered.includes(id) || !(rules[id] || []).every(met);
        const hide = (id, hidden) => {
            const place = lt.find(id);
            place?.classList.toggle("lt-unoffered", hidden && !place.classList.contains("lt-faulty"));
        };
        for (const id of new Set([...Object.keys(rules), ...hideable, ...unoffered])) hide(id, off(id));
        for (const [id, fields] of Object.entries(folds)) hide(id, fields.every(off));
        unoffered.forEach((id) => hideable.add(id));
    };
    const hideable = new Set(); // ids that were unoffered at some time

    // The order that a hidden button carries to the server.
    lt.order = () => JSON.stringify(order);
    lt.bring = function (asked) {
        order = asked;
        press("bring");
    };
    lt.openFolder = function (id) {
        order = { id };
        press("open");
    };
    lt.openDataset = function (asked) {
        order = asked;
        press("dataset");
    };

    // Orders class images; resolves with the answer, and fails as `ask` does.
    let drawn = null;
    lt.drawClassImages = (settings) => new Promise((resolve, reject) => {
        const silent = setTimeout(() => drawn({}), UNANSWERED);
        drawn = (answer) => {
            clearTimeout(silent);
            if (answer.id) resolve(answer);
            else reject(Object.assign(new Error("refused"), answer.faults && { faults: answer.faults }));
        };
        lt.openDataset({ class_images: settings });
    });

    // The value of one of the form's text fields, and a new one for it as if it had been typed.
    const typed = (id) => lt.find(id)?.querySelector("input, textarea");
    lt.valueOf = (id) => typed(id)?.value ?? "";
    lt.type = function (id, value) {
        const field = typed(id);
        if (!field || field.value === value) return;
        field.value = value;
        field.dispatchEvent(new Event("input", { bubbles: true }));
        field.dispatchEvent(new Event("blur"));
    };

    lt.submitting = function () {
        waiting = true;
        lt.find("lt_start")?.setAttribute("aria-busy", "true");
    };

    // Called by gradio with each answer of the server.
    lt.answered = function (text) {
        if (!text) return;
        const answer = JSON.parse(text);
        if (answer.kind === "dataset") return lt.data.answered(answer);
        if (answer.view === "language") return lt.languageAnswered(answer);
        if (answer.kind === "class_images") return drawn(answer);
        if (answer.form) remember(answer);
        if (answer.held) folded = answer.held;
        if (waiting && (answer.kind === "started" || answer.kind === "faults")) {
            waiting = false;
            lt.find("lt_start")?.removeAttribute("aria-busy");
        }
        const act = {
            empty: () => drawPlan(nothingYet()),
            plan: () => drawPlan(plan(answer)),
            memory: () => {
                if (settingsOf(answer.of) === planned) drawMemory(answer.memory);
                else if (planned) press("memory"); // counted for settings that the shown plan is not of any more
            },
            faults: () => drawPlan(faults(answer.faults)),
            refused: () => lt.notice(answer.faults.map((one) => one.text).join(" "), "bad"),
            started: () => lt.watch && lt.watch(answer.id),
            brought: () => brought(answer.what, answer.left),
            taken: () => lt.taken && lt.taken(answer),
            yaml: () => download(answer.text),
            opened: () => lt.notice(t("Opened: {folder}", { folder: answer.folder })),
        }[answer.kind];
        if (["plan", "empty", "faults"].includes(answer.kind)) planned = answer.kind === "plan" ? settingsOf(answer) : "";
        if (act) act();
        if (answer.kind === "memory") return;
        if (answer.kind === "plan") {
            unoffered = answer.unoffered;
            if (!answer.memory) press("memory"); // counted in a second or two, behind what is told already
        }
        mark(answer.kind === "faults" ? answer.faults : []);
        lt.offerFields();
    };

    function brought(what, left) {
        const told = {
            "settings": t("The settings are in the form."),
            "lora": t("The settings of the LoRA are in the form; folder, name and base model are as they were."),
            "train on": t("The form goes on from this LoRA; press Start when it suits you."),
        }[what];
        const more = left.length ? " " + t("Left out, because they change nothing with the others: {names}.", {
            names: left.map((one) => t(one)).join(", ") }) : "";
        if (told) lt.notice(told + more);
        if (what === "train on") lt.find("lt_form")?.scrollIntoView({ block: "start" });
        lt.changed();
    }

    // Marks the fields that faults speak of, and unfolds what hides them.
    function mark(found) {
        document.querySelectorAll("#lt_form .lt-faulty").forEach((one) => one.classList.remove("lt-faulty"));
        for (const one of found) if (one.field) lt.find(one.field)?.classList.add("lt-faulty");
    }

    // --- what will happen --------------------------------------------------------------------------------------------

    function drawPlan(lines) {
        const place = lt.find("lt_plan");
        if (!place) return;
        place.setAttribute("role", "status");
        place.setAttribute("aria-live", "polite");
        const open = place.querySelector("details")?.open;
        place.replaceChildren(...lines);
        const details = place.querySelector("details");
        if (details && open) details.open = true;
    }

    const line = (kind, text) => el("p", { class: "lt-line lt-" + kind }, text);

    function nothingYet() {
        return [
            ...base(null),
            line("hint", t("Name the folder with your images, or drop them above, and it is told here what will happen.")),
        ];
    }

    function faults(found) {
        return [...base(null), ...found.map((one) => line("fault", one.text))];
    }

    function plan(answer) {
        const rows = answer.choices.map((one) => el("tr", null,
            el("th", { scope: "row" }, t(one.name)),
            el("td", null, one.value, one.reason ? el("span", null, one.reason) : null)));
        return [
            ...base(answer),
            line("told", sentence(answer)),
            memory(answer.memory),
            ...answer.notes.map((note) => line("note", note)),
            el("details", null, el("summary", null, t("What was chosen, and why")),
                el("div", { class: "lt-scroll" }, el("table", null, el("tbody", null, ...rows)))),
        ];
    }

    lt.size = (bytes) => (bytes < 2 ** 30 / 10 ? t("{n} MB", { n: Math.round(bytes / 2 ** 20) })
        : t("{n} GB", { n: (bytes / 2 ** 30).toFixed(1) }));

    // What memory the run will take and whether it is there; an empty line while that is counted.
    function memory(found) {
        if (!found) return el("p", { class: "lt-line lt-memory", hidden: true });
        const values = { whole: lt.size(found.whole), free: found.free === null ? "" : lt.size(found.free) };
        const needed = found.measured ? t("Memory: {whole}, as measured in the last run of this kind", values)
            : t("Memory: about {whole} expected", values);
        const ways = found.ways.map((way) => ({
            checkpointing: t("gradient checkpointing (slower)"), pieces: t("batches in pieces"),
        })[way]);
        const verdict = found.fits === null ? "" : !found.fits
            ? t("it will hardly fit: lower the resolution, or close what else uses the memory")
            : ways.length ? t("it fits with {ways}, which is done by itself", { ways: ways.join(" + ") }) : t("it fits");
        const parts = [found.base ? t("base model {size}", { size: lt.size(found.base) }) : null,
            t("LoRA and optimizer {size}", { size: lt.size(found.network) }),
            t("largest step {size}", { size: lt.size(found.step) })];
        return el("p", { class: "lt-line lt-memory", data: { fits: String(found.fits) } },
            verdict ? t("{needed}, {free} free: {verdict}.", { needed, free: values.free, verdict }) : needed + ".",
            el("span", { class: "lt-dim" }, " " + parts.filter(Boolean).join(" · ")));
    }

    function drawMemory(found) {
        if (found) lt.find("lt_plan")?.querySelector(".lt-memory")?.replaceWith(memory(found));
    }

    function sentence(answer) {
        const { images, captioned } = answer;
        const epochs = Number(answer.epochs.toPrecision(3));
        const parts = [
            answer.drawn ? t("Pictures that the base model draws: {n}", { n: images })
                : images === 1 ? t("1 image") : t("{n} images", { n: images }),
            captioned === null ? t("captions do not count") : captioned === images ? t("all with captions")
                : captioned ? t("{n} with captions", { n: captioned }) : t("none with captions"),
            t("{n} px", { n: answer.resolution }),
            t("{steps} steps ({epochs} epochs)", { steps: answer.steps, epochs }),
            answer.seconds ? t("about {time}", { time: lt.duration(answer.seconds) })
                : t("time not known before the first run"),
        ];
        const told = parts.join(t(", "));
        if (!(answer.runs > 1)) return told;
        const runs = t("{n} runs, one after the other", { n: answer.runs });
        const together = answer.together ? t("about {time} together", { time: lt.duration(answer.together) }) : "";
        return [runs, together].filter(Boolean).join(t(", ")) + "; " + t("the first: {told}", { told });
    }

    // Which model is trained upon: the plan's, or, before there is one, what the host says it has loaded.
    function base(answer) {
        const lends = lt.find("lt_plan")?.dataset.lends === "yes";
        const loaded = lt.find("setting_sd_model_checkpoint")?.querySelector("input, select")?.value;
        const name = answer ? answer.base : lends ? loaded : null;
        if (!name) return [];
        const facts = answer ? [answer.family, answer.prediction] : [];
        const told = lends ? t("Trains on the loaded checkpoint") : t("Trains on");
        return [el("p", { class: "lt-line lt-base" }, told + " ", el("strong", null, name),
            facts.length ? el("span", { class: "lt-dim" }, " · " + facts.join(" · ")) : null)];
    }

    // --- settings in and out -----------------------------------------------------------------------------------------

    function tools() {
        const picker = el("input", {
            type: "file", accept: ".yaml,.yml,.json,.safetensors", hidden: true, "aria-hidden": "true", tabindex: "-1",
            on: { change: () => picked(picker) },
        });
        const place = lt.find("lt_tools");
        place.replaceChildren(
            lt.button(t("Open settings…"), () => picker.click(),
                { title: t("A YAML file, or a LoRA that was trained here: its recipe is inside.") }),
            lt.button(t("Save settings"), () => press("save"), { title: t("Everything in the form as a YAML file.") }),
            lt.button(t("Paste settings…"), paste), picker);
    }

    async function picked(picker) {
        const file = picker.files[0];
        picker.value = "";
        if (!file) return;
        if (!file.name.endsWith(".safetensors")) {
            lt.bring({ from: "text", name: file.name, text: await file.text() });
            return;
        }
        const recipe = await recipeIn(file);
        if (recipe) lt.bring({ from: "recipe", name: file.name, text: recipe });
        else lt.notice(t("{name} carries no recipe of this trainer.", { name: file.name }), "bad");
    }

    // The recipe in the header of a LoRA, so that the file itself need not be sent; empty where there is none.
    async function recipeIn(file) {
        try {
            const length = Number(new DataView(await file.slice(0, 8).arrayBuffer()).getBigUint64(0, true));
            if (length > LARGEST_HEADER) return "";
            const notes = JSON.parse(await file.slice(8, 8 + length).text()).__metadata__ || {};
            return notes[lt.recipeKey] || "";
        } catch (error) {
            if (error instanceof SyntaxError || error instanceof RangeError) return "";
            throw error;
        }
    }

    function paste() {
        const text = el("textarea", { rows: 12, spellcheck: "false", "aria-label": t("Settings as YAML") });
        const dialog = el("dialog", { class: "lt-dialog", "aria-label": t("Paste settings") },
            el("p", null, t("YAML as in a file, or the name of a LoRA in your LoRA folder, ending in .safetensors.")),
            text,
            el("div", { class: "lt-buttons" },
                lt.button(t("Use"), () => {
                    lt.bring({ from: "text", text: text.value });
                    dialog.close();
                }, { class: "lt-button lt-primary" }),
                lt.button(t("Cancel"), () => dialog.close())));
        lt.show(dialog);
    }

    // A dialog in front of everything, that is gone when it is closed.
    lt.show = function (dialog) {
        dialog.addEventListener("close", () => dialog.remove());
        dialog.addEventListener("keydown", (event) => { // Escape interrupts a generation in the WebUI
            if (event.key === "Escape") event.stopPropagation();
        });
        dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
        (lt.find("lt_page") || document.body).append(dialog);
        dialog.showModal();
    };

    function download(text) {
        const name = (lt.find("lt_output_name")?.querySelector("input, textarea")?.value || "lora") + ".yaml";
        const link = el("a", { href: URL.createObjectURL(new Blob([text], { type: "text/yaml" })), download: name });
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    }

    // --- the browser's memory ----------------------------------------------------------------------------------------

    function remember(answer) {
        const kept = JSON.stringify({ raw: answer.form, strength: answer.strength });
        try {
            localStorage.setItem(REMEMBERED, kept);
        } catch (error) {
            if (error.name !== "QuotaExceededError" && error.name !== "SecurityError") throw error;
        }
    }

    function restore() {
        let kept = null;
        try {
            kept = JSON.parse(localStorage.getItem(REMEMBERED));
        } catch (error) {
            if (error.name !== "SecurityError" && !(error instanceof SyntaxError)) throw error;
        }
        if (kept && kept.raw && !touched) lt.bring({ from: "form", raw: kept.raw, strength: kept.strength });
        else lt.changed();
    }

    // --- begin -------------------------------------------------------------------------------------------------------

    let touched = false; // by a hand that was quicker than the memory, and then wins over it
    document.addEventListener("input", (event) => {
        if (event.isTrusted && event.target.closest("#lt_form")) touched = true;
    }, true);

    // gradio draws late and may draw again: look until the place is there, and look after it now and then.
    let begun = false;
    setInterval(function () {
        const ready = lt.find("lt_do_plan") && lt.find("lt_plan") && lt.find("lt_run") && lt.startRun && lt.startViews;
        if (!ready) return;
        if (!lt.find("lt_tools").childElementCount) tools();
        if (!lt.find("lt_plan").childElementCount) drawPlan(nothingYet());
        lt.startRun();
        lt.startViews();
        lt.offerFields();
        if (begun) return;
        begun = true;
        setTimeout(restore, 300);
    }, 250);
})();
