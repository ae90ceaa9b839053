// The frame of the data set's view: its head with folder, numbers and actions, and the places that other files fill.
(function () {
    "use strict";

    const lt = window.loraTrainer = window.loraTrainer || {};
    const data = lt.data;
    const t = (text, values) => lt.t(text, values);
    const el = (...all) => lt.el(...all);

    let root = null;
    let parts = {};

    data.place = () => lt.find("lt_workshop");
    data.parts = () => parts;

    // Draws the frame where it is not drawn yet; gradio may have drawn its place again.
    data.draw = function () {
        const place = data.place();
        if (root === place && place.childElementCount) return;
        root = place;
        const field = (id, label, more) => el("input", {
            type: "text", id, class: "lt-field", spellcheck: "false", autocomplete: "off", "aria-label": label, ...more,
        });
        parts = {
            folder: field("lt_set_folder", t("Folder with the images"), { placeholder: "/pictures/my_cat",
                on: { change: openTyped } }),
            trigger: field("lt_set_trigger", t("Trigger word"), { placeholder: t("e.g. ohwx_cat"),
                on: { change: openTyped } }),
            told: el("p", { class: "lt-told", role: "status" }),
            notes: el("div", { class: "lt-set-notes" }),
            actions: el("div", { class: "lt-buttons lt-actions" }),
            work: el("div", { class: "lt-work" }),
            bulk: el("section", { class: "lt-bulk", "aria-label": t("Change many captions") }),
            aside: el("aside", { class: "lt-aside" }),
            gallery: el("section", { class: "lt-gallery", "aria-label": t("Pictures and captions") }),
            empty: el("div", { class: "lt-nothing" }),
        };
        parts.body = el("div", { class: "lt-set-body" }, parts.aside,
            el("div", { class: "lt-main" }, parts.bulk, parts.gallery));
        root.replaceChildren(
            el("div", { class: "lt-set-head" },
                el("label", { class: "lt-named lt-named-folder" }, el("span", null, t("Folder with the images")), parts.folder),
                el("label", { class: "lt-named" }, el("span", null, t("Trigger word")), parts.trigger)),
            el("div", { class: "lt-set-bar" }, parts.told, parts.actions), parts.notes, parts.work, parts.empty, parts.body);
        actions();
        data.fill();
        data.tell("frame");
        news();
        if (data.set) data.tell("set", false);
    };

    // Lets the gallery end where the window ends, however much the host shows above it.
    data.stretch = function () {
        const above = Math.round(parts.body.getBoundingClientRect().top + scrollY);
        if (above > 0) root.style.setProperty("--lt-above", above + "px");
    };

    function openTyped() {
        lt.type("lt_data_folder", parts.folder.value);
        lt.type("lt_data_trigger", parts.trigger.value);
        data.open(parts.folder.value);
    }

    // The head's fields as the Train view has them.
    data.fill = function () {
        parts.folder.value = lt.valueOf("lt_data_folder");
        parts.trigger.value = lt.valueOf("lt_data_trigger");
    };
    data.typing = () => [parts.folder, parts.trigger].includes(document.activeElement);

    // --- numbers -----------------------------------------------------------------------------------------------------

    function news() {
        if (!root) return;
        const set = data.set;
        lt.say(parts.told, told(set));
        parts.body.hidden = !set || set.state !== "ready" || !set.images;
        parts.empty.hidden = !parts.body.hidden || data.busy || set?.state === "scanning";
        root.classList.toggle("lt-away", data.lost);
        notes(set);
        empty(set);
        parts.actions.hidden = parts.body.hidden;
        steps();
    }

    function steps() {
        parts.undo.disabled = !data.set?.can_undo;
        parts.redo.disabled = !data.set?.can_redo;
    }

    function told(set) {
        if (data.busy) return t("The folder is being opened…");
        if (!set) return "";
        if (set.state === "scanning") {
            return set.done ? t("The folder is being read: {n} pictures so far…", { n: set.done.toLocaleString() })
                : t("The folder is being read…");
        }
        const { images, captioned } = set;
        return [
            images === 1 ? t("1 image") : t("{n} images", { n: images.toLocaleString() }),
            captioned === images ? t("all with captions")
                : captioned ? t("{n} with captions", { n: captioned.toLocaleString() }) : t("none with captions"),
            t("captions in {format}", { format: (set.formats?.length ? set.formats : [set.format]).join(" + ") }),
        ].join(t(", "));
    }

    function notes(set) {
        const lines = [
            ...(data.lost ? [["lost", t("The server does not answer; what you type is kept here and saved when it does.")]] : []),
            ...data.faults.map((text) => ["fault", text]),
            ...(set && set.writable === false
                ? [["note", t("This folder cannot be written, so captions can only be looked at.")]] : []),
        ];
        const warnings = set?.warnings || [];
        const now = JSON.stringify([lines, warnings]);
        if (parts.notes.dataset.now === now) return;
        parts.notes.dataset.now = now;
        const line = ([kind, text]) => el("p", { class: "lt-line lt-" + kind }, text);
        parts.notes.replaceChildren(...lines.map(line), ...(warnings.length ? [el("details", null,
            el("summary", null, warnings.length === 1 ? t("1 note on this folder")
                : t("{n} notes on this folder", { n: warnings.length })),
            ...warnings.map((text) => line(["note", text])))] : []));
    }

    function empty(set) {
        const now = data.faults.length ? "fault" : !set ? "none" : set.state === "failed" ? set.message : "empty";
        if (parts.empty.dataset.now === now) return;
        parts.empty.dataset.now = now;
        const [title, text] = {
            fault: [t("This folder is not open"), t("Correct its name above and press Enter.")],
            none: [t("Name the folder with your images"),
                t("Its pictures and captions appear here: read them, change them, one by one or all at once, and see "
                + "what would spoil the training.")],
            empty: [t("No picture is in this folder"), t("Put pictures into it, or name another one.")],
        }[now] || [t("This folder cannot be read"), now];
        parts.empty.replaceChildren(el("p", { class: "lt-title" }, title), el("p", { class: "lt-dim" }, text));
    }
    data.on("news", news);
    data.on("written", steps);

    // --- actions -----------------------------------------------------------------------------------------------------

    function actions() {
        parts.undo = lt.button("↶", () => turn("undo"), { "aria-label": t("Undo"), title: t("Undo (Ctrl+Z)") });
        parts.redo = lt.button("↷", () => turn("redo"), { "aria-label": t("Redo"), title: t("Redo (Ctrl+Shift+Z)") });
        parts.undo.classList.add("lt-sign");
        parts.redo.classList.add("lt-sign");
        parts.actions.replaceChildren(parts.undo, parts.redo,
            lt.button(t("Caption with…"), () => data.captionDialog(),
                { title: t("Let a model write the first version of the captions.") }),
            lt.button(t("Make class images…"), () => data.classDialog(),
                { title: t("Pictures of the ordinary thing, drawn by the base model, keep it from being forgotten.") }),
            lt.button(t("Read again"), () => again(), { title: t("Look into the folder for new and removed pictures.") }));
    }

    async function again() {
        try {
            await data.ask("refresh", "POST", {});
            data.soon();
        } catch (error) {
            data.refused(error);
        }
    }

    async function turn(which) {
        try {
            await data.flush();
            const done = await data.order(which, {}, t("Writing captions"));
            lt.notice(done.what);
            data.set.revision = Math.max(data.set.revision, done.revision);
            data.tell("changed");
            data.soon();
        } catch (error) {
            data.refused(error);
        }
    }

    document.addEventListener("keydown", (event) => {
        if (lt.view() !== "data" || !data.set || !root?.offsetParent || !(event.ctrlKey || event.metaKey)) return;
        if (event.target.closest("input, textarea, select, [contenteditable]") || document.querySelector("dialog[open]")) return;
        const which = event.key.toLowerCase() === "y" ? "redo" : event.key.toLowerCase() !== "z" ? null
            : event.shiftKey ? "redo" : "undo";
        if (!which) return;
        event.preventDefault();
        turn(which);
    });
})();
