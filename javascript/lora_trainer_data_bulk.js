// Many captions at once: which pictures are selected, what is to be done with their captions, and a look at what would
// come of it before anything is written.
(function () {
    "use strict";

    const lt = window.loraTrainer = window.loraTrainer || {};
    const data = lt.data;
    const t = (text, values) => lt.t(text, values);
    const el = (...all) => lt.el(...all);

    // --- selection ---------------------------------------------------------------------------------------------------

    data.selection = new Set(); // names
    let anchor = null; // where a row of pictures begins that Shift selects

    function chosen() {
        data.tell("selection");
        draw();
    }

    // A click on a picture: Shift takes all from the last one on, Ctrl (and a click while some are selected) one more.
    data.pick = async function (name, { shiftKey }) {
        if (shiftKey && anchor && anchor !== name) {
            for (const one of await between(anchor, name)) data.selection.add(one);
        } else if (!data.selection.delete(name)) data.selection.add(name);
        anchor = name;
        chosen();
    };

    async function between(one, other) {
        const ends = [data.indexOf(one), data.indexOf(other)].sort((a, b) => a - b);
        const found = Array.from({ length: ends[1] - ends[0] + 1 }, (_, index) => data.nameAt(ends[0] + index));
        if (ends[0] >= 0 && !found.includes(undefined)) return found;
        const names = await data.names();
        const places = [names.indexOf(one), names.indexOf(other)].sort((a, b) => a - b);
        return places[0] < 0 ? [other] : names.slice(places[0], places[1] + 1);
    }

    // Every name that matches, in the order shown.
    data.names = async () => (await data.ask("names?" + data.query())).names;

    data.selectAll = async function (on) {
        data.selection.clear();
        try {
            if (on) for (const name of await data.names()) data.selection.add(name);
        } catch (error) {
            data.refused(error);
        }
        chosen();
    };

    document.addEventListener("keydown", (event) => {
        if (lt.view() !== "data" || !data.set || !data.place()?.offsetParent || document.querySelector("dialog[open]")) return;
        if (event.target.closest("input:not([type=checkbox]), textarea, select")) return;
        if (event.key === "Escape" && data.selection.size) {
            event.stopPropagation(); // Escape interrupts a generation in the WebUI
            data.selectAll(false);
        } else if (event.key.toLowerCase() === "a" && (event.ctrlKey || event.metaKey)) {
            event.preventDefault();
            data.selectAll(true);
        }
    }, true);

    // --- the bar -----------------------------------------------------------------------------------------------------

    const ACTIONS = {
        replace: { title: () => t("Find and replace"), fields: ["find", "replacement"], checks: ["whole_tag", "regex"] },
        prepend: { title: () => t("Put in front"), fields: ["text"] },
        append: { title: () => t("Put at the end"), fields: ["text"] },
        remove: { title: () => t("Remove a tag"), fields: ["find"] },
        trigger: { title: () => t("Put the trigger word in front"), fields: [] },
        set: { title: () => t("Write the same caption"), fields: ["text"] },
        trim_doubles: { title: () => t("Remove doubled tags"), fields: [] },
    };

    let parts = null;

    function frame() {
        const text = (name, label) => el("input", { type: "text", class: "lt-field", spellcheck: "false", placeholder: label,
            "aria-label": label, data: { name }, on: { keydown: (event) => event.key === "Enter" && preview() } });
        const check = (name, label, title) => el("label", { class: "lt-check", title, data: { name } },
            el("input", { type: "checkbox" }), label);
        parts = {
            whom: el("span", { class: "lt-whom" }),
            action: el("select", { class: "lt-field", "aria-label": t("What to do with the captions"), on: { change: draw } },
                ...Object.entries(ACTIONS).map(([name, one]) => el("option", { value: name }, one.title()))),
            fields: { find: text("find", t("find")), replacement: text("replacement", t("replace with")),
                text: text("text", t("tags or words")) },
            checks: { whole_tag: check("whole_tag", t("whole tags"), t("Only where all of a tag is found.")),
                regex: check("regex", t("regex"), t("A regular expression, in the words of Python.")) },
        };
        data.parts().bulk.replaceChildren(parts.whom, parts.action, ...Object.values(parts.fields),
            ...Object.values(parts.checks), lt.button(t("Preview…"), preview),
            parts.none = lt.button(t("Select none"), () => data.selectAll(false)));
        draw();
    }

    function draw() {
        if (!parts) return;
        const { fields, checks } = ACTIONS[parts.action.value];
        for (const [name, field] of Object.entries(parts.fields)) field.hidden = !fields.includes(name);
        for (const [name, field] of Object.entries(parts.checks)) field.hidden = !(checks || []).includes(name);
        const count = data.selection.size;
        const total = data.total();
        lt.say(parts.whom, count ? t("{n} selected:", { n: count.toLocaleString() })
            : data.narrowed() ? t("All {n} shown:", { n: total.toLocaleString() })
                : t("All {n} captions:", { n: total.toLocaleString() }));
        parts.none.hidden = !count;
        data.parts().bulk.classList.toggle("lt-has-selection", count > 0);
    }

    // What the bar asks for, as the route takes it; null where something is missing.
    function edit() {
        const action = parts.action.value;
        const value = (name) => parts.fields[name].value;
        const ticked = (name) => parts.checks[name].querySelector("input").checked;
        const whom = data.selection.size ? { names: [...data.selection] } : { filter: data.filter() };
        if (action === "replace") {
            if (!value("find")) return missing("find");
            return { action, find: value("find"), replacement: value("replacement"), regex: ticked("regex"),
                whole_tag: ticked("whole_tag"), ...whom };
        }
        if (action === "trim_doubles") return { action, ...whom };
        if (action === "trigger") {
            if (data.set.trigger) return { action: "prepend", text: data.set.trigger, ...whom };
            lt.notice(t("No trigger word is named; write it above."), "bad");
            return null;
        }
        if (action === "remove") {
            return value("find").trim() ? { action, find: value("find").trim(), whole_tag: true, ...whom } : missing("find");
        }
        if (!value("text").trim() && action !== "set") return missing("text");
        return { action, text: value("text"), ...whom };
    }

    function missing(name) {
        parts.fields[name].focus();
        lt.notice(t("Write first what it shall be."), "bad");
        return null;
    }

    // --- preview -----------------------------------------------------------------------------------------------------

    async function preview() {
        const asked = edit();
        if (!asked) return;
        try {
            await data.flush();
            const found = await data.ask("edit", "POST", { ...asked, preview: true });
            if (found.count) show(asked, found);
            else lt.notice(t("No caption would change."));
        } catch (error) {
            data.refused(error);
        }
    }

    function show(asked, found) {
        const rows = found.examples.map(({ name, before, after }) => el("li", null,
            el("span", { class: "lt-file" }, name), el("p", { class: "lt-change" }, ...difference(before, after))));
        const said = found.count === 1 ? t("1 caption would change") : t("{n} captions would change",
            { n: found.count.toLocaleString() });
        const go = lt.button(found.count === 1 ? t("Change 1 caption")
            : t("Change {n} captions", { n: found.count.toLocaleString() }), async () => {
            dialog.close();
            await apply(asked);
        }, { class: "lt-button lt-primary" });
        const dialog = el("dialog", { class: "lt-dialog lt-preview", "aria-label": said },
            el("p", { class: "lt-title" }, said),
            el("ul", null, ...rows),
            found.count > rows.length ? el("p", { class: "lt-dim" }, t("and {n} more", {
                n: (found.count - rows.length).toLocaleString() })) : null,
            el("div", { class: "lt-buttons" }, go, lt.button(t("Cancel"), () => dialog.close())));
        lt.show(dialog);
        go.focus();
    }

    async function apply(asked) {
        try {
            const done = await data.order("edit", { ...asked, preview: false }, t("Writing captions"));
            lt.notice(done.count === 1 ? t("1 caption changed; Undo takes it back.")
                : t("{n} captions changed; Undo takes it back.", { n: done.count.toLocaleString() }));
            data.set.revision = Math.max(data.set.revision, done.revision);
            data.tell("changed");
            data.soon();
        } catch (error) {
            data.refused(error);
        }
    }

    // Two captions as one: what stays, what goes (<del>), what comes (<ins>), word by word.
    function difference(before, after) {
        const [old, young] = [before, after].map((text) => text.match(/\s+|[^\s,]+|,/g) || []);
        const same = longest(old, young);
        const made = [];
        const put = (tag, words) => words.length && made.push(tag ? el(tag, null, lt.verbatim(words.join(""))) : words.join(""));
        let [i, j] = [0, 0];
        for (const [at, to] of [...same, [old.length, young.length]]) {
            put("del", old.slice(i, at));
            put("ins", young.slice(j, to));
            if (at < old.length) put(null, [old[at]]);
            [i, j] = [at + 1, to + 1];
        }
        return made;
    }

    // The places of the words that both have, in order (longest common subsequence).
    function longest(old, young) {
        const table = Array.from({ length: old.length + 1 }, () => new Uint16Array(young.length + 1));
        for (let i = old.length - 1; i >= 0; i--) {
            for (let j = young.length - 1; j >= 0; j--) {
                table[i][j] = old[i] === young[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
            }
        }
        const found = [];
        for (let [i, j] = [0, 0]; i < old.length && j < young.length;) {
            if (old[i] === young[j]) found.push([i++, j++]);
            else if (table[i + 1][j] >= table[i][j + 1]) i += 1;
            else j += 1;
        }
        return found;
    }

    data.on("frame", frame);
    data.on("list", draw);
    data.on("set", (same) => {
        if (!same) {
            data.selection.clear();
            anchor = null;
        }
        draw();
    });
})();
