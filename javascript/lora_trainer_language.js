// The view of language models: what is told of its form, the question before a WebUI's own model is moved aside, and the
// box in which a model is asked without and with an adapter. The runs beside it are lora_trainer_run.js's.
(function () {
    "use strict";

    const lt = window.loraTrainer = window.loraTrainer || {};
    const t = (text, values) => lt.t(text, values);
    const el = (...all) => lt.el(...all);
    const QUIET = 600; // ms without a change before the form is judged
    const LOOK = 700; // ms between two looks at an answer
    const ROOM = 1.5; // times the weights' own bytes: activations and the adapter's optimizer come on top

    let order = {};
    let plan = null; // the server's last word on the form
    let timer = 0;
    let box = null; // the fields of the try-it box

    const press = (name) => lt.find("lt_do_language_" + name)?.click();
    const typed = (path) => lt.valueOf("lt_language_" + path);
    const line = (kind, text) => el("p", { class: "lt-line lt-" + kind }, text);
    const size = (bytes) => (bytes < 1e8 ? t("{n} MB", { n: (bytes / 1e6).toFixed(1) })
        : t("{n} GB", { n: (bytes / 1e9).toFixed(1) }));

    // Called by gradio at each change of a field.
    lt.languageChanged = function () {
        clearTimeout(timer);
        timer = setTimeout(() => give({ do: "plan" }), QUIET);
    };
    lt.languageOrder = () => JSON.stringify(order);
    lt.languageStart = function () {
        const short = plan && plan.free !== null && plan.held > 0 && plan.bytes * ROOM > plan.free;
        if (short) ask();
        else give({ do: "start" });
    };

    function give(asked) {
        order = asked;
        press(asked.do);
    }

    // The WebUI's own model is never moved without a word.
    function ask() {
        const told = t("The language model needs about {needed} and {free} is free: {host} holds {held} for its own model.", {
            needed: size(plan.bytes * ROOM), free: size(plan.free), host: plan.host, held: size(plan.held),
        });
        const choice = (words, asked, primary) => lt.button(words, () => {
            give(asked);
            dialog.close();
        }, primary ? { class: "lt-button lt-primary" } : {});
        const dialog = el("dialog", { class: "lt-dialog", "aria-label": t("Move the image model aside?") },
            el("h3", null, t("Move the image model aside?")), el("p", null, told),
            el("p", { class: "lt-dim" }, t("Moved aside, it waits in the CPU's memory and comes back by itself; images wait until the training has ended.")),
            el("div", { class: "lt-buttons" },
                choice(t("Move it aside and start"), { do: "start", aside: true }, true),
                choice(t("Start without moving it"), { do: "start" }),
                lt.button(t("Cancel"), () => dialog.close())));
        lt.show(dialog);
    }

    // Called with each of the server's answers for this view.
    lt.languageAnswered = function (answer) {
        document.querySelectorAll("#lt_language .lt-faulty").forEach((one) => one.classList.remove("lt-faulty"));
        if (answer.kind === "asked") return watchAnswers(answer.id);
        if (answer.kind === "started") return lt.watch(answer.id);
        if (answer.kind === "faults" && answer.did === "ask") return tell(answer.faults.map((one) => line("fault", one.text)));
        if (answer.kind === "plan") plan = answer;
        if (answer.kind === "empty") plan = null;
        if (answer.kind === "absent") plan = null;
        if (answer.kind === "fetching") return watchFetching(answer.id);
        draw({ plan: () => planned(answer), empty: nothingYet, absent: () => absent(answer.base),
            faults: () => faults(answer.faults) }[answer.kind]());
    };

    function faults(found) {
        for (const one of found) {
            if (one.field) lt.find(one.field.replace(/^lt_/, "lt_language_"))?.classList.add("lt-faulty");
        }
        return found.map((one) => line("fault", one.text));
    }

    const nothingYet = () => [line("hint", t("Name the model's folder and the folder with your texts, and it is told here what will happen."))];

    // --- a model that is not here yet --------------------------------------------------------------------------------

    const absent = (base) => [
        line("note", t("There is no folder {base} on this machine. If it is a model of the Hugging Face hub, it can be fetched.", { base })),
        el("div", { class: "lt-buttons" }, lt.button(t("Fetch it from the hub"), () => give({ do: "fetch" }))),
    ];

    async function watchFetching(id) {
        const at = "jobs/" + encodeURIComponent(id);
        const said = line("told", t("Waiting for its turn…"));
        const bar = el("progress", { class: "lt-fetching", max: 1, "aria-label": t("Fetching the model") });
        const stop = lt.button(t("Stop"), () => lt.ask(at + "/stop", "POST", {}).catch(() => null));
        draw([said, bar, el("div", { class: "lt-buttons" }, stop)]);
        try {
            for (;;) {
                const job = await lt.ask(at);
                if (!said.isConnected) return; // something else was asked of the form meanwhile
                lt.say(said, t(job.message));
                if (job.total_steps) bar.value = job.step / job.total_steps;
                if (job.state === "done") return lt.languageChanged();
                if (!["queued", "running"].includes(job.state)) return draw([line("fault", job.message), ...absent(typed("model_base"))]);
                await new Promise((done) => setTimeout(done, LOOK));
            }
        } catch (error) {
            draw([line("fault", (error.faults || [t("The server does not answer.")]).join(" "))]);
        }
    }

    function planned(answer) {
        const told = [
            answer.samples === 1 ? t("1 sample") : t("{n} samples", { n: answer.samples }),
            t("{n} tokens, {learnt} of them learnt", {
                n: answer.tokens.toLocaleString(), learnt: answer.learnt.toLocaleString() }),
            t("{steps} steps", { steps: answer.steps }),
            answer.seconds ? t("about {time}", { time: lt.duration(answer.seconds) })
                : t("time not known before the first run"),
        ];
        const memory = answer.free === null ? t("The model takes {size}.", { size: size(answer.bytes) })
            : t("The model takes {size}; {free} is free.", { size: size(answer.bytes), free: size(answer.free) });
        const rows = answer.choices.map((one) => el("tr", null, el("th", { scope: "row" }, t(one.name)),
            el("td", null, one.value, one.reason ? el("span", null, one.reason) : null)));
        return [
            el("p", { class: "lt-line lt-base" }, t("Trains on") + " ", el("strong", null, answer.base),
                el("span", { class: "lt-dim" }, " · " + memory)),
            line("told", told.join(t(", "))),
            ...answer.notes.map((note) => line("note", note)),
            el("details", null, el("summary", null, t("What was chosen, and why")),
                el("div", { class: "lt-scroll" }, el("table", null, el("tbody", null, ...rows)))),
        ];
    }

    function draw(lines) {
        const place = lt.find("lt_language_plan");
        if (!place) return;
        const open = place.querySelector("details")?.open;
        place.replaceChildren(...lines);
        if (open && place.querySelector("details")) place.querySelector("details").open = true;
    }

    // --- the try-it box ----------------------------------------------------------------------------------------------

    function tryBox() {
        const named = (label, field, hint) => el("label", { class: "lt-named" }, el("span", null, label), field,
            hint ? el("span", { class: "lt-dim lt-small" }, hint) : null);
        box = {
            prompt: el("textarea", { class: "lt-field", rows: 2, placeholder: t("What is a gusset?") }),
            adapter: el("input", { type: "text", class: "lt-field", spellcheck: "false", placeholder: t("the last one trained here") }),
            tokens: el("input", { type: "number", class: "lt-field", min: 1, max: 8192, value: 128 }),
            temperature: el("input", { type: "number", class: "lt-field", min: 0, max: 5, step: 0.1, value: 0 }),
            answers: el("div", { class: "lt-answers", "aria-live": "polite" }),
        };
        return el("section", { class: "lt-try", "aria-label": t("Try it") },
            el("h3", null, t("Try it")), named(t("Question"), box.prompt),
            named(t("Adapter's folder"), box.adapter),
            el("div", { class: "lt-fields" },
                named(t("Longest answer (tokens)"), box.tokens),
                named(t("Freedom"), box.temperature, t("0 always takes the likeliest word."))),
            el("div", { class: "lt-buttons" }, lt.button(t("Ask without and with the adapter"), question)),
            box.answers);
    }

    async function question() {
        const adapter = box.adapter.value.trim() || await newest();
        if (adapter === null) return;
        give({
            do: "ask", prompt: [box.prompt.value], adapter, tokens: Number(box.tokens.value) || "",
            temperature: Number(box.temperature.value),
        });
    }

    // The folder of the adapter that was last trained here; empty where there is none, null where nobody answers.
    async function newest() {
        try {
            const { jobs } = await lt.ask("jobs");
            return jobs.map(lt.adapterOf).find(Boolean) || "";
        } catch (error) {
            lt.notice((error.faults || [t("The server does not answer.")]).join(" "), "bad");
            return null;
        }
    }

    // A finished training leads here.
    lt.tryAdapter = function (folder) {
        lt.go("language");
        box.adapter.value = folder;
        box.prompt.focus();
    };

    async function watchAnswers(id) {
        tell([line("hint", t("Waiting for its turn…"))]);
        let after = 0;
        const found = [];
        try {
            for (;;) {
                const { events, state, last } = await lt.ask("jobs/" + encodeURIComponent(id) + "/events?after=" + after);
                after = last;
                for (const event of events) if (event.kind === "sampled") found.push(event);
                const end = events.find((event) => event.kind === "finished");
                if (found.length) tell(found.map(answerOf));
                else if (state === "running") tell([line("hint", t("Loading the model and thinking…"))]);
                if (end && end.outcome !== "done") return tell([line("fault", end.text)]);
                if (!["queued", "running", "paused"].includes(state)) return;
                await new Promise((done) => setTimeout(done, LOOK));
            }
        } catch (error) {
            tell([line("fault", (error.faults || [t("The server does not answer.")]).join(" "))]);
        }
    }

    const answerOf = (event) => el("figure", { class: "lt-answer", data: { with: event.step ? "yes" : "no" } },
        el("figcaption", null, event.step ? t("With the adapter") : t("Without the adapter")),
        el("blockquote", null, ...lt.verbatim(event.texts.join("\n\n") || t("(nothing)"))));

    const tell = (lines) => box.answers.replaceChildren(...lines);

    // gradio may draw again, and then the box is drawn again too.
    lt.startLanguage = function () {
        const place = lt.find("lt_try");
        if (!place) return;
        if (!place.childElementCount) place.append(tryBox());
        if (!lt.find("lt_language_plan").childElementCount) draw(nothingYet());
    };

    lt.languageEntered = () => (typed("model_base") ? lt.languageChanged() : null);
})();
