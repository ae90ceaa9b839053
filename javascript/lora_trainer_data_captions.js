// The texts of captions and their way to the server: typed, saved by themselves a moment later, never over what another
// program has written meanwhile. A draft lives here, not in a card, so that scrolling and the large view lose nothing.
(function () {
    "use strict";

    const lt = window.loraTrainer = window.loraTrainer || {};
    const data = lt.data;
    const t = (text, values) => lt.t(text, values);
    const QUIET = 700; // ms without a key before a caption is saved
    const AGAIN = 4000; // ms before a save that the server did not answer is tried again

    data.items = new Map(); // name -> as GET images tells it
    // name -> { text, state: "typed" | "saving" | "failed" | "conflict", version, theirs, timer, done, why }
    const drafts = new Map();
    const saved = new Map(); // name -> when, for the word "saved" to stand a while

    // What a picture's caption says in the page.
    data.textOf = (name) => drafts.get(name)?.text ?? data.items.get(name)?.caption ?? "";
    data.stateOf = (name) => drafts.get(name)?.state || (saved.has(name) ? "saved" : "");
    data.theirs = (name) => drafts.get(name)?.theirs;
    data.whyOf = (name) => drafts.get(name)?.why || "";

    data.typed = function (name, text) {
        const item = data.items.get(name);
        const draft = drafts.get(name) || { version: item.version };
        if (draft.text === undefined && text === item.caption) return;
        drafts.set(name, draft);
        draft.text = text;
        saved.delete(name);
        if (draft.state === "conflict") return data.tell("caption", name);
        if (draft.state !== "saving") draft.state = "typed";
        clearTimeout(draft.timer);
        draft.timer = setTimeout(() => save(name), QUIET);
        data.tell("caption", name);
    };

    // Saves one caption, or all that wait, now. Resolves when the server has answered.
    data.flush = function (name) {
        const waiting = name === undefined ? [...drafts.keys()] : [name];
        return Promise.all(waiting.map((one) => drafts.get(one)?.state === "conflict" ? null : save(one)));
    };

    function save(name) {
        const draft = drafts.get(name);
        if (!draft) return null;
        clearTimeout(draft.timer);
        if (draft.state === "saving") return draft.done.then(() => save(name));
        draft.state = "saving";
        draft.done = send(name, draft);
        data.tell("caption", name);
        return draft.done;
    }

    async function send(name, draft) {
        const { text, version } = draft;
        const set = data.set;
        try {
            const answer = await data.ask("captions", "POST", { name, caption: text, version });
            if (data.set !== set) return;
            settle(name, draft, text, answer);
        } catch (error) {
            if (data.set !== set) return data.refused(error);
            if (drafts.get(name) !== draft) return;
            if (error.status === 409) {
                Object.assign(draft, { state: "conflict", theirs: error.answer.caption, version: error.answer.version });
            } else {
                Object.assign(draft, { state: "failed", why: (error.faults || []).join(" ") });
                if (!error.faults) draft.timer = setTimeout(() => save(name), AGAIN);
            }
        }
        data.tell("caption", name);
    }

    // `answer` is what stands on the disk now; what was typed while it was under way is saved next.
    function settle(name, draft, text, answer) {
        const item = data.items.get(name);
        if (item) Object.assign(item, { caption: answer.caption, version: answer.version, tokens: answer.tokens },
            answer.flags && { flags: answer.flags },
            "starts_with_trigger" in answer && { starts_with_trigger: answer.starts_with_trigger });
        if (drafts.get(name) !== draft) return;
        if (draft.text === text) {
            drafts.delete(name);
            saved.set(name, Date.now());
            setTimeout(() => fade(name), 2600);
        } else {
            Object.assign(draft, { version: answer.version, state: "typed" });
            draft.timer = setTimeout(() => save(name), QUIET);
        }
        data.written(answer.revision);
    }

    function fade(name) {
        if (Date.now() - (saved.get(name) || 0) < 2500) return;
        if (saved.delete(name)) data.tell("caption", name);
    }

    data.keepMine = function (name) {
        const draft = drafts.get(name);
        Object.assign(draft, { state: "typed", theirs: undefined });
        save(name);
    };

    data.takeTheirs = function (name) {
        const draft = drafts.get(name);
        const item = data.items.get(name);
        drafts.delete(name);
        if (item) Object.assign(item, { caption: draft.theirs, version: draft.version });
        data.tell("caption", name);
        data.tell("changed");
    };

    // Drafts are of one folder: before another one is shown they are sent, and forgotten.
    data.on("set", (same) => {
        if (same) return;
        drafts.forEach((draft) => clearTimeout(draft.timer));
        drafts.clear();
        saved.clear();
        data.items.clear();
    });

    // --- one field, as card and large view show it -------------------------------------------------------------------

    // A text field for captions and its line of state. `next` is called by Enter, with -1 by Shift+Enter.
    data.captionField = function (next) {
        const made = { name: null };
        made.field = lt.el("textarea", {
            class: "lt-caption", rows: 3, spellcheck: "true", placeholder: t("No caption yet"),
            "aria-label": t("Caption"),
            on: {
                input: () => data.typed(made.name, made.field.value),
                blur: () => made.name && data.stateOf(made.name) === "typed" && data.flush(made.name),
                keydown: (event) => {
                    if (event.key !== "Enter" || event.isComposing || event.ctrlKey || event.altKey) return;
                    event.preventDefault();
                    data.flush(made.name);
                    next(made.name, event.shiftKey ? -1 : 1);
                },
            },
        });
        made.state = lt.el("span", { class: "lt-saved", role: "status" });
        made.length = data.lengthMark();
        made.show = function (name) {
            const item = data.items.get(name);
            const other = made.name !== name;
            made.name = name;
            const text = data.textOf(name);
            if (made.field.value !== text && (other || !made.field.matches(":focus") || !data.stateOf(name))) put(made, text);
            made.field.readOnly = data.set?.writable === false;
            made.length.show(item);
            stateLine(made, data.stateOf(name));
        };
        return made;
    };

    function put(made, text) {
        const { selectionStart, selectionEnd } = made.field;
        made.field.value = text;
        if (made.field.matches(":focus")) made.field.setSelectionRange(selectionStart, selectionEnd);
    }

    function stateLine(made, state) {
        const word = { typed: t("not saved yet"), saving: t("saving…"), saved: t("saved"), failed: t("not saved"),
            conflict: t("changed elsewhere") }[state] || "";
        made.state.dataset.state = state;
        made.state.title = data.whyOf(made.name);
        lt.say(made.state, word);
    }

    // The question that a caption raises which another program has changed too.
    data.question = (name) => lt.el("div", { class: "lt-conflict", role: "alert" },
        lt.el("strong", null, t("Another program changed this caption:")),
        lt.el("p", null, lt.verbatim(data.theirs(name) || t("(empty)"))),
        lt.el("div", { class: "lt-buttons" },
            lt.button(t("Keep mine"), () => data.keepMine(name)),
            lt.button(t("Take theirs"), () => data.takeTheirs(name))));

    // --- length ------------------------------------------------------------------------------------------------------

    // A bar against the limit: beyond it, it is drawn in another colour from the mark of the limit on.
    data.lengthMark = function () {
        const inner = lt.el("span", { class: "lt-length-in" });
        const over = lt.el("span", { class: "lt-length-over" });
        const word = lt.el("span", { class: "lt-length-word" });
        const root = lt.el("span", { class: "lt-length" }, lt.el("span", { class: "lt-length-bar", "aria-hidden": "true" },
            inner, over), word);
        return { root, show: (item) => {
            const limit = data.set?.token_limit || 75;
            const tokens = item?.tokens ?? 0;
            const whole = Math.max(tokens, limit);
            inner.style.width = 100 * Math.min(tokens, limit) / whole + "%";
            over.style.width = 100 * Math.max(0, tokens - limit) / whole + "%";
            root.classList.toggle("lt-too-long", tokens > limit);
            lt.say(word, tokens + " / " + limit);
            root.title = tokens > limit
                ? t("{n} tokens more than the text encoder reads at once: what matters belongs into the first {limit}.",
                    { n: tokens - limit, limit })
                : t("Length in tokens; the text encoder reads {limit} at once.", { limit });
        } };
    };

    addEventListener("beforeunload", (event) => {
        if (![...drafts.values()].some((draft) => draft.state !== "conflict")) return;
        data.flush();
        event.preventDefault();
    });
    document.addEventListener("visibilitychange", () => document.hidden && data.set && data.flush());
})();
