// What a model makes for the data set: captions for its pictures, and class images beside them; and how far it is.
(function () {
    "use strict";

    const lt = window.loraTrainer = window.loraTrainer || {};
    const data = lt.data;
    const t = (text, values) => lt.t(text, values);
    const el = (...all) => lt.el(...all);
    const ACTIVE = ["running", "paused", "queued"];
    const KINDS = ["captions", "class_images"];

    // --- fields of a dialog ------------------------------------------------------------------------------------------

    const named = (label, field, hint) => el("label", { class: "lt-named" }, el("span", null, label), field,
        hint ? el("span", { class: "lt-dim lt-small" }, hint) : null);
    const text = (value, more) => el("input", { type: "text", class: "lt-field", spellcheck: "false", value, ...more });
    const number = (value, more) => el("input", { type: "number", class: "lt-field", value, ...more });
    const words = (field) => field.value.split(",").map((word) => word.trim()).filter(Boolean);
    const given = (values) => Object.fromEntries(Object.entries(values).filter(
        ([, value]) => value !== "" && value !== null && !(Array.isArray(value) && !value.length)));

    // A dialog whose first button sends `ask()`; what the server refuses is told in it, and it stays open.
    function dialogOf(title, body, go, send) {
        const refusal = el("p", { class: "lt-line lt-fault", role: "alert", hidden: true });
        const button = lt.button(go, async () => {
            button.disabled = true;
            refusal.hidden = true;
            try {
                await send();
                dialog.close();
                lt.lookAtJobs();
            } catch (error) {
                refusal.textContent = data.sentences(error);
                refusal.hidden = false;
            }
            button.disabled = false;
        }, { class: "lt-button lt-primary" });
        const dialog = el("dialog", { class: "lt-dialog lt-make", "aria-label": title },
            el("p", { class: "lt-title" }, title), ...body, refusal,
            el("div", { class: "lt-buttons" }, button, lt.button(t("Cancel"), () => dialog.close())));
        lt.show(dialog);
        return { dialog, button };
    }

    // --- captions ----------------------------------------------------------------------------------------------------

    data.captionDialog = async function () {
        let known;
        try {
            known = (await lt.ask("captioners")).captioners;
        } catch (error) {
            return data.refused(error);
        }
        const makers = el("div", { class: "lt-makers", role: "radiogroup", "aria-label": t("Who describes") });
        const fetch = el("input", { type: "checkbox" });
        const f = {
            existing: el("select", { class: "lt-field" }, ...[
                ["skip", t("leave these pictures alone")], ["overwrite", t("write over them")],
                ["append", t("put the new one behind them")], ["prepend", t("put the new one before them")],
            ].map(([value, title]) => el("option", { value }, title))),
            trigger: text(data.set.trigger || "", { placeholder: t("none") }),
            prefix: text(""), suffix: text(""), blacklist: text("", { placeholder: "simple background, watermark" }),
            threshold: number("", { min: 0, max: 1, step: 0.05, placeholder: t("the model's own") }),
            max_tags: number("", { min: 1, max: 1000, placeholder: t("no limit") }),
            tags: text("", { placeholder: "photo, drawing, portrait, landscape" }),
        };
        const tagging = el("div", { class: "lt-fields" },
            named(t("Threshold"), f.threshold, t("Lower finds more tags, and more wrong ones.")),
            named(t("Most tags"), f.max_tags));
        const choices = named(t("Tags to choose from"), f.tags, t("This captioner picks the best of these."));
        const fetching = el("label", { class: "lt-check" }, fetch, el("span", null));
        const { button } = dialogOf(t("Caption with…"), [
            makers, fetching, choices, named(t("Pictures that have a caption"), f.existing),
            el("div", { class: "lt-fields" },
                named(t("Trigger word in front"), f.trigger), named(t("Leave these words out"), f.blacklist, t("separated by commas"))),
            tagging,
            el("details", null, el("summary", null, t("Text before and after")), el("div", { class: "lt-fields" },
                named(t("Before"), f.prefix), named(t("After"), f.suffix))),
        ], t("Write captions"), () => lt.ask("captions", "POST", given({
            dataset: data.set.id, model: chosen.name, existing: f.existing.value, trigger: f.trigger.value.trim(),
            prefix: f.prefix.value, suffix: f.suffix.value, blacklist: words(f.blacklist),
            threshold: tagging.hidden || f.threshold.value === "" ? "" : Number(f.threshold.value),
            max_tags: tagging.hidden || f.max_tags.value === "" ? "" : Number(f.max_tags.value),
            tags: choices.hidden ? [] : words(f.tags), download: fetch.checked || null,
        })));
        let chosen = null;
        const choose = (one) => {
            chosen = one;
            fetching.hidden = one.here;
            fetch.checked = false;
            lt.say(fetching.lastChild, one.hosted ? t("Let the WebUI fetch it now ({size})", { size: one.size })
                : t("Fetch it from the Hugging Face hub now ({size})", { size: one.size }));
            tagging.hidden = !/tag/.test(one.makes);
            choices.hidden = one.name !== "clip-tags";
            ready();
        };
        const ready = () => (button.disabled = !chosen || !(chosen.here || fetch.checked));
        fetch.addEventListener("change", ready);
        makers.append(...known.map((one) => maker(one, choose)));
        (makers.querySelector("[data-here=yes] input") || makers.querySelector("input"))?.click();
    };

    // A captioner to choose, with what it says and whether it is there.
    function maker(one, choose) {
        const state = one.here ? el("span", { class: "lt-here" }, t("ready"))
            : el("span", { class: "lt-dim" }, t("not here: {size}", { size: one.size || "?" }));
        return el("label", { class: "lt-maker", data: { here: one.here ? "yes" : "no" } },
            el("input", { type: "radio", name: "lt_captioner", value: one.name, on: { change: () => choose(one) } }),
            el("span", { class: "lt-maker-name" }, el("strong", null, one.title || one.name),
                el("span", { class: "lt-dim" }, one.makes)), state,
            one.here || !one.where ? null : el("span", { class: "lt-dim lt-small lt-where" },
                t("Put it into {where}", { where: one.where })));
    }

    // --- class images ------------------------------------------------------------------------------------------------

    data.classDialog = function () {
        const folder = data.set.folder.replace(/[\\/]+$/, "");
        const f = {
            prompt: text("", { placeholder: t("a photo of a cat") }),
            negative: text(""), count: number(100, { min: 1, max: 10000 }), folder: text(folder + "_class"),
            seed: number("", { min: 0, placeholder: "1" }),
            size: number("", { min: 64, max: 4096, step: 8, placeholder: t("the model's own") }),
        };
        const whole = (field) => (field.value === "" ? "" : Number(field.value));
        dialogOf(t("Make class images…"), [
            el("p", { class: "lt-dim" }, t("The base model draws the ordinary thing, without your trigger word: a cat, where your "
                + "pictures show your cat. Trained along, they keep the model from turning every cat into yours.")),
            named(t("Prompt"), f.prompt, t("The kind of thing, without the trigger word.")),
            el("div", { class: "lt-fields" }, named(t("How many"), f.count), named(t("Size (px)"), f.size),
                named(t("Seed"), f.seed)),
            named(t("Folder"), f.folder, t("Name it as folder of regularisation images when you train.")),
            el("details", null, el("summary", null, t("Negative prompt")), f.negative),
        ], t("Make them"), () => lt.drawClassImages(given({
            prompt: f.prompt.value.trim(), negative: f.negative.value, count: whole(f.count), folder: f.folder.value.trim(),
            seed: whole(f.seed), size: whole(f.size), base: lt.valueOf("lt_model_base").trim(),
        })));
        f.prompt.focus();
    };

    // --- how far it is -----------------------------------------------------------------------------------------------

    const lines = new Map(); // id -> the parts of a job's line
    const told = new Set(); // ids whose end was told, or had come before we looked
    let first = true;

    lt.onJobs = function (jobs) {
        const ours = jobs.filter((job) => KINDS.includes(job.kind));
        for (const job of ours) {
            if (first && !ACTIVE.includes(job.state)) told.add(job.id);
            if (!ACTIVE.includes(job.state) && !told.has(job.id)) {
                told.add(job.id);
                lt.notice(lt.told(job.message || job.state), job.state === "failed" ? "bad" : "");
                if (data.set) data.soon();
            }
        }
        first = false;
        const going = ours.filter((job) => ACTIVE.includes(job.state));
        data.working = going.some((job) => job.state === "running");
        draw(going);
    };

    function draw(going) {
        const place = data.parts().work;
        if (!place) return;
        for (const [id, line] of lines) {
            if (going.some((job) => job.id === id) && place.contains(line.root)) continue;
            line.root.remove();
            lines.delete(id);
        }
        for (const job of going) {
            if (!lines.has(job.id)) lines.set(job.id, line(job, place));
            fill(lines.get(job.id), job);
        }
    }

    function line(job, place) {
        const made = { title: el("strong", null), facts: el("span", { class: "lt-dim" }), inner: el("div", null) };
        made.bar = el("div", { class: "lt-bar", role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100",
            "aria-label": t("Progress") }, made.inner);
        made.root = el("div", { class: "lt-going" }, made.title, made.facts, made.bar, lt.button(t("Stop"), () => stop(job.id)));
        place.append(made.root);
        return made;
    }

    function fill(made, job) {
        const share = job.total_steps ? job.step / job.total_steps : 0;
        const pace = job.seconds_per_step;
        lt.say(made.title, job.kind === "captions" ? t("Writing captions") : t("Making class images"));
        lt.say(made.facts, [
            job.state === "queued" ? t("waiting") : "",
            job.total_steps ? job.step.toLocaleString() + " / " + job.total_steps.toLocaleString() : job.message,
            !pace ? "" : pace < 1 ? t("{n} it/s", { n: (1 / pace).toFixed(1) }) : t("{n} s/it", { n: pace.toFixed(1) }),
            job.seconds_left ? t("{time} left", { time: lt.duration(job.seconds_left) }) : "",
        ].filter(Boolean).join(" · "));
        made.inner.style.width = 100 * share + "%";
        made.bar.setAttribute("aria-valuenow", Math.round(100 * share));
    }

    // Shows that something of unknown length is under way, unless it is done at once; returns what ends it.
    data.during = function (title) {
        const bar = el("div", { class: "lt-bar lt-endless", role: "progressbar", "aria-label": title }, el("div", null));
        const shown = el("div", { class: "lt-going", role: "status" }, el("strong", null, title), bar);
        const timer = setTimeout(() => data.parts().work.append(shown), 400);
        return () => {
            clearTimeout(timer);
            shown.remove();
        };
    };

    async function stop(id) {
        try {
            await lt.ask("jobs/" + encodeURIComponent(id) + "/stop", "POST");
            lt.notice(t("Stopping; what is done is kept."));
        } catch (error) {
            data.refused(error);
        }
        lt.lookAtJobs();
    }
})();
