// Pictures on their way from this browser into a data set: dropped onto the page, or sent by lora_trainer_send.js.
// The server gathers them (docs/api.md, "Sending pictures") and puts them into the data set together.
(function () {
    "use strict";

    const lt = window.loraTrainer = window.loraTrainer || {};
    const t = (text, values) => lt.t(text, values);
    const AT_ONCE = 3; // files under way
    const TRIES = 3;
    const PLACES = "#lt_form, #lt_workshop_block"; // where files may be dropped
    const TAKEN = /\.(png|jpe?g|webp|bmp|gif|tiff?|avif|txt|caption|csv|jsonl|zip)$/i;
    const UNASKED = /(^|\/)(\.|thumbs\.db$|desktop\.ini$|__MACOSX(\/|$))/i; // what systems put into folders by themselves
    const STAYS = 30000; // ms that a sentence with something to press stays

    const say = (element, text) => { if (element.textContent !== text) element.textContent = text; };
    const size = (bytes) => bytes < 1e6 ? t("{n} kB", { n: Math.ceil(bytes / 1e3) })
        : t("{n} MB", { n: Math.round(bytes / 1e6) });

    // --- asking ------------------------------------------------------------------------------------------------------

    // JSON of a route. Throws an Error whose `faults` are the server's sentences, or that has none where it is lost.
    async function post(path, body, kind, signal) {
        const reply = await fetch(lt.url(path), {
            method: "POST", credentials: "same-origin", signal, headers: { "Content-Type": kind || "application/json" },
            body: kind ? body : JSON.stringify(body),
        });
        const answer = await reply.json().catch(() => ({}));
        if (reply.ok) return answer;
        throw Object.assign(new Error("HTTP " + reply.status), { status: reply.status, faults: answer.faults });
    }

    const sentences = (error) => (error.faults || [t("The server did not take it; try again.")]).join(" ");

    // The data sets that the server knows: {place, sets: [{folder, name}]}.
    lt.knownSets = () => lt.ask("uploads");

    // --- sentences that can be pressed -------------------------------------------------------------------------------

    lt.notices = function () {
        return lt.find("lt_notices") || document.body.appendChild(
            lt.el("div", { id: "lt_notices", role: "status", "aria-live": "polite" }));
    };

    // A sentence at the foot of the window with buttons beside it; `actions` is a list of [text, fn].
    lt.offer = function (text, actions, kind) {
        const line = lt.el("div", { class: "lt-notice lt-offer" + (kind ? " lt-" + kind : "") }, lt.el("p", null, text));
        const away = () => line.remove();
        const press = (fn) => () => {
            away();
            fn();
        };
        line.append(lt.el("div", { class: "lt-buttons" }, ...actions.map(([word, fn]) => lt.button(word, press(fn))),
            lt.button("×", away, { "aria-label": t("Close"), class: "lt-button lt-away" })));
        lt.notices().append(line);
        setTimeout(away, STAYS);
    };

    function progress(total, bytes, stop) {
        const text = lt.el("p");
        const bar = lt.el("progress", { max: bytes || 1, value: 0, "aria-label": t("Sent") });
        const line = lt.el("div", { class: "lt-notice lt-offer lt-sending" }, text, bar,
            lt.el("div", { class: "lt-buttons" }, lt.button(t("Stop"), stop)));
        lt.notices().append(line);
        return {
            show(files, sent) {
                const values = { done: files, total, sent: size(sent), all: size(bytes) };
                say(text, files < total ? t("Sending {done} of {total} files, {sent} of {all}", values)
                    : t("Putting {total} files into the data set…", { total }));
                bar.value = sent;
            },
            away: () => line.remove(),
        };
    }

    // --- sending -----------------------------------------------------------------------------------------------------

    // Sends files ({name, blob}) to a data set ({folder}, {dataset} or {name} of a new one), and returns what became of
    // them as POST uploads/{id}/finish tells it; null where it failed or was stopped, which has been told then.
    lt.sendFiles = async function (files, target, more) {
        const cut = new AbortController();
        const all = files.reduce((sum, one) => sum + one.blob.size, 0);
        const bar = progress(files.length, all, () => cut.abort());
        let upload = null;
        try {
            upload = (await post("uploads", target, null, cut.signal)).id;
            const refused = await sendAll(upload, files, bar, cut.signal);
            const found = await post(`uploads/${upload}/finish`, more || {}, null, cut.signal);
            found.left.unshift(...refused);
            found.left_count += refused.length;
            return found;
        } catch (error) {
            if (upload) post(`uploads/${upload}/cancel`, {}).catch(() => null);
            lt.notice(error.name === "AbortError" ? t("Stopped; nothing was put into the data set.") : sentences(error),
                error.name === "AbortError" ? "" : "bad");
            return null;
        } finally {
            bar.away();
        }
    };

    async function sendAll(upload, files, bar, signal) {
        const waiting = [...files];
        const refused = [];
        let done = 0;
        let sent = 0;
        const one = async () => {
            for (let file = waiting.shift(); file; file = waiting.shift()) {
                try {
                    await sendOne(upload, file, signal);
                } catch (error) {
                    if (!error.faults || error.status === 404 || error.status === 507) throw error;
                    refused.push({ name: file.name, reason: sentences(error) }); // the others go on
                }
                bar.show(++done, sent += file.blob.size);
            }
        };
        bar.show(0, 0);
        await Promise.all(Array.from({ length: AT_ONCE }, one));
        return refused;
    }

    async function sendOne(upload, file, signal) {
        for (let tried = 1; ; tried++) {
            try {
                const path = `uploads/${upload}/files?name=${encodeURIComponent(file.name)}`;
                return await post(path, file.blob, "application/octet-stream", signal);
            } catch (error) {
                if (error.status || error.name === "AbortError" || tried === TRIES) throw error;
                await new Promise((go) => setTimeout(go, 500 * tried)); // the line broke
            }
        }
    }

    // Tells what became of the files, and offers what `actions` are.
    lt.taken = function (found, actions) {
        const parts = [];
        const name = found.name;
        if (found.pictures) {
            parts.push(found.pictures === 1 ? t("1 picture was put into {name}.", { name })
                : t("{n} pictures were put into {name}.", { n: found.pictures, name }));
        }
        if (found.captions) {
            parts.push(found.captions === 1 ? t("1 caption came along.")
                : t("{n} captions came along.", { n: found.captions }));
        }
        const [renamed] = Object.values(found.renamed);
        if (renamed) parts.push(t("Taken names got a number, such as {name}.", { name: renamed }));
        if (found.already) {
            parts.push(found.already === 1 ? t("1 file was there already.")
                : t("{n} files were there already.", { n: found.already }));
        }
        if (found.left_count) {
            const few = found.left.slice(0, 3).map((one) => `${one.name} (${one.reason})`).join(" ");
            parts.push(found.left_count === 1 ? t("1 file was not taken: {few}", { few })
                : t("{n} files were not taken: {few}", { n: found.left_count, few }));
        }
        if (!parts.length) parts.push(t("There was nothing to take."));
        const bad = found.left_count && !found.pictures && !found.captions;
        lt.offer(parts.join(" "), actions || [], bad ? "bad" : "");
    };

    // --- what is dropped ---------------------------------------------------------------------------------------------

    // Every file below what was dropped, as {name, blob}; folders are read to their end.
    async function filesOf(entries) {
        const found = [];
        const read = async (entry, prefix) => {
            if (entry instanceof File) return void found.push({ name: prefix + entry.name, blob: entry });
            if (entry.isFile) {
                const file = await new Promise((resolve, reject) => entry.file(resolve, reject)).catch(() => null);
                if (file) found.push({ name: prefix + entry.name, blob: file });
                return;
            }
            const reader = entry.createReader();
            for (;;) { // a hundred at a time
                const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)).catch(() => []);
                if (!some.length) return;
                for (const inner of some) await read(inner, `${prefix}${entry.name}/`);
            }
        };
        for (const entry of entries) await read(entry, "");
        return found.filter((one) => !UNASKED.test(one.name));
    }

    // Where dropped files go: the open data set; in the training view the one that was dropped before; else a new one.
    async function targetOf(inData, files) {
        if (inData && lt.data.set) return { dataset: lt.data.set.id };
        const root = new Set(files.map((one) => one.name.split("/")[0]));
        const [only] = root;
        const name = root.size === 1 && files.every((one) => one.name.includes("/")) ? only : "";
        if (inData) return { name };
        const folder = lt.valueOf("lt_data_folder").trim();
        const { place, sets } = await lt.knownSets();
        const ours = sets.some((one) => one.folder === folder && folder.startsWith(place));
        return ours ? { folder } : { name };
    }

    async function dropped(entries, inData) {
        const files = await filesOf(entries);
        const fit = files.filter((one) => TAKEN.test(one.name));
        const unfit = files.filter((one) => !TAKEN.test(one.name)).map((one) => ({
            name: one.name, reason: t("Pictures, captions (.txt, .caption), tables (.csv, .jsonl) and .zip are taken.") }));
        if (!fit.length) {
            const few = unfit.slice(0, 3).map((one) => one.name).join(", ");
            lt.notice(few ? t("There is no picture, caption or table in it: {few}", { few })
                : t("There is no file in it."), "bad");
            return;
        }
        let target = null;
        try {
            target = await targetOf(inData, fit);
        } catch (error) {
            return lt.notice(sentences(error), "bad");
        }
        const found = await lt.sendFiles(fit, target);
        if (!found) return;
        found.left.push(...unfit);
        found.left_count += unfit.length;
        lt.taken(found, inData ? [] : [[t("Open the data set"), () => lt.openSet(found.folder)]]);
        if (!found.pictures && !found.captions && !found.already) return;
        if (inData && target.dataset) lt.data.soon();
        else if (inData) lt.openSet(found.folder);
        else lt.type("lt_data_folder", found.folder);
    }

    // Shows the tab with a data set in it, in the view of data sets where there is one.
    lt.openSet = function (folder) {
        const tabs = lt.find("tabs");
        const items = tabs ? [...tabs.children].filter((one) => one.classList.contains("tabitem")) : [];
        const at = items.findIndex((one) => one.id === "tab_lora_trainer");
        if (at >= 0) tabs.querySelector(".tab-nav, [role=tablist]")?.querySelectorAll("button")[at]?.click();
        lt.type("lt_data_folder", folder);
        lt.go("data");
        lt.data.open(folder);
    };

    // --- listening ---------------------------------------------------------------------------------------------------

    const place = (event) => [...(event.dataTransfer?.types || [])].includes("Files") && event.target?.closest
        ? event.target.closest(PLACES) : null;
    let lit = null;

    function light(where) {
        if (lit === where) return;
        lit?.classList.remove("lt-drop-here");
        where?.classList.add("lt-drop-here");
        lit = where;
    }

    // Before the host's own listeners, and gradio's, which would take some of the files.
    document.addEventListener("dragover", function (event) {
        const where = place(event);
        light(where);
        if (!where) return;
        event.preventDefault();
        event.stopPropagation();
        event.dataTransfer.dropEffect = "copy";
    }, true);
    document.addEventListener("dragleave", (event) => event.relatedTarget || light(null), true);
    document.addEventListener("drop", function (event) {
        const where = place(event);
        light(null);
        if (!where) return;
        event.preventDefault();
        event.stopPropagation();
        // Now: after this event the browser takes them back.
        const entries = [...event.dataTransfer.items].filter((one) => one.kind === "file")
            .map((one) => one.webkitGetAsEntry?.() || one.getAsFile()).filter(Boolean);
        dropped(entries, where.id !== "lt_form");
    }, true);
})();
