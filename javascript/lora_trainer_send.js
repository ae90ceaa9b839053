// "Send to LoRA Trainer": a button beside the host's own send-to buttons. What a host has not got is passed over.
(function () {
    "use strict";

    const lt = window.loraTrainer = window.loraTrainer || {};
    const t = (text, values) => lt.t(text, values);
    const LAST = "lora_trainer.sendto"; // in the browser: the data set that was sent to last
    const NEW = "";
    const KINDS = { "image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp", "image/gif": ".gif",
        "image/bmp": ".bmp", "image/avif": ".avif", "image/tiff": ".tif" };

    // Of A1111 v1.10.1 (modules/ui_common.py, modules/ui.py); its forks keep the names.
    const GALLERIES = ["txt2img", "img2img", "extras"].map((name) => ({
        id: `${name}_send_to_lora_trainer`, word: "🎓",
        beside: () => lastOf(lt.find(`image_buttons_${name}`)?.querySelectorAll("button[id*=_send_to_]")),
        pictures: () => ofGallery(name),
    }));
    const PNG_INFO = {
        id: "pnginfo_send_to_lora_trainer", word: null,
        beside: () => lastOf(lt.find("tab_pnginfo")?.querySelectorAll("button[id$=_tab]")),
        pictures: () => [...(lt.find("pnginfo_image")?.querySelectorAll("img") || [])].slice(0, 1).map((image) => ({
            src: image.src, infotext: textIn("pnginfo_generation_info") })),
    };

    const lastOf = (all) => (all && all.length ? all[all.length - 1] : null);
    const textIn = (id) => lt.find(id)?.querySelector("textarea, input")?.value || "";

    // --- which pictures ----------------------------------------------------------------------------------------------

    // The selected picture; all of them where the grid is selected, or nothing.
    function ofGallery(name) {
        const gallery = lt.find(`${name}_gallery`);
        if (!gallery) return [];
        const small = [...gallery.querySelectorAll(".thumbnails .thumbnail-item")];
        const items = small.length ? small : [...gallery.querySelectorAll(".thumbnail-item, .grid-container button")];
        const images = items.map((item) => item.querySelector("img")).filter(Boolean);
        const shown = images.length ? images : [...gallery.querySelectorAll("img")].slice(0, 1);
        const told = generation(name);
        const first = firstPicture(shown, told);
        const selected = small.findIndex((item) => item.classList.contains("selected"));
        const all = shown.map((image, index) => ({ src: image.src, infotext: told.infotexts?.[index] || "" }));
        if (all.length === 1 || first >= all.length) return all;
        return selected >= first ? [all[selected]] : all.slice(first);
    }

    // What the host tells of the pictures in a gallery.
    function generation(name) {
        try {
            return JSON.parse(textIn(`generation_info_${name}`)) || {};
        } catch (error) {
            if (error instanceof SyntaxError) return {};
            throw error;
        }
    }

    // How many grids stand before the pictures.
    function firstPicture(images, told) {
        const { index_of_first_image: first, infotexts } = told;
        if (Number.isInteger(first) && infotexts?.length === images.length) return first; // else it tells of others
        const at = images.findIndex((image) => !/^(xyz_)?grid[-_]/.test(nameOf(image.src)));
        return at < 0 ? 0 : at;
    }

    function nameOf(src) {
        if (!/^(https?|file):/.test(src)) return "";
        const last = new URL(src).pathname.split(/\/|%2F|%5C/i).pop();
        try {
            return decodeURIComponent(last);
        } catch (error) {
            if (error instanceof URIError) return last;
            throw error;
        }
    }

    // The files themselves, as they lie on the host's disk: the page serves them as they are.
    async function filesOf(pictures) {
        const files = [];
        const infotexts = {};
        for (const picture of pictures) {
            const reply = await fetch(picture.src, { credentials: "same-origin" });
            if (!reply.ok) throw new Error("HTTP " + reply.status);
            const blob = await reply.blob();
            const name = free(await fileName(picture.src, blob), files);
            files.push({ name, blob });
            if (picture.infotext) infotexts[name] = picture.infotext;
        }
        return { files, infotexts };
    }

    // Its own name, or, of a picture without one, by what is in it, so that it is known when it is sent again. (Over
    // plain HTTP to another machine browsers have no digest: by the time.)
    async function fileName(src, blob) {
        const given = nameOf(src);
        if (/\.\w+$/.test(given)) return given;
        const digest = await window.crypto?.subtle?.digest("SHA-256", await blob.arrayBuffer());
        const name = digest ? [...new Uint8Array(digest, 0, 6)].map((one) => one.toString(16).padStart(2, "0")).join("")
            : new Date().toISOString().slice(0, 19).replace(/[:T]/g, "-");
        return `picture-${name}${KINDS[blob.type] || ".png"}`;
    }

    function free(name, files) {
        const [, stem, ending] = name.match(/^(.*?)(\.[^.]*)?$/);
        let found = name;
        for (let n = 2; files.some((one) => one.name === found); n++) found = `${stem}_${n}${ending || ""}`;
        return found;
    }

    // --- where to ----------------------------------------------------------------------------------------------------

    let chosen = null; // in this page: {folder}, after the first time

    function remembered() {
        try {
            return localStorage.getItem(LAST) || "";
        } catch (error) {
            if (error.name !== "SecurityError") throw error;
            return "";
        }
    }

    function remember(folder) {
        chosen = { folder };
        try {
            localStorage.setItem(LAST, folder);
        } catch (error) {
            if (error.name !== "QuotaExceededError" && error.name !== "SecurityError") throw error;
        }
    }

    // Asks for the data set, and calls `then` with {folder} or {name}.
    async function choose(then) {
        const { sets } = await lt.knownSets();
        const known = new Set(sets.map((one) => one.folder));
        const last = [remembered(), lt.data?.set?.folder, sets[0]?.folder].find((folder) => known.has(folder));
        const names = lt.el("select", { "aria-label": t("Data set") },
            ...sets.map((one) => lt.el("option", { value: one.folder, title: one.folder }, one.name)),
            lt.el("option", { value: NEW }, t("New data set")));
        names.value = last || NEW;
        const name = lt.el("input", { type: "text", class: "lt-field", maxlength: 120, placeholder: t("my_cat"),
            "aria-label": t("Name of the new data set") });
        const look = () => { name.hidden = names.value !== NEW; };
        names.addEventListener("change", look);
        look();
        const form = lt.el("form", { method: "dialog", on: { submit: () => {
            then(names.value === NEW ? { name: name.value.trim() } : { folder: names.value });
        } } }, lt.el("p", null, t("Put into which data set?")), names, name,
        lt.el("div", { class: "lt-buttons" },
            lt.el("button", { type: "submit", class: "lt-button lt-primary" }, t("Send")),
            lt.button(t("Cancel"), () => dialog.close())));
        const dialog = lt.el("dialog", { class: "lt-dialog lt-sendto", "aria-label": t("Send to LoRA Trainer") }, form);
        dialog.addEventListener("close", () => dialog.remove());
        lt.notices().append(dialog); // not in the tab, which is hidden now
        dialog.showModal();
    }

    // --- sending -----------------------------------------------------------------------------------------------------

    async function send(place, button) {
        const pictures = place.pictures();
        if (!pictures.length) return lt.notice(t("There is no picture to send yet."), "bad");
        button.disabled = true;
        try {
            const found = await filesOf(pictures);
            if (chosen) await put(found, chosen);
            else await choose((target) => put(found, target));
        } catch (error) {
            chosen = null;
            lt.notice((error.faults || [t("The pictures could not be fetched; try again.")]).join(" "), "bad");
        } finally {
            button.disabled = false;
        }
    }

    const lost = () => lt.notice(t("The server did not take it; try again."), "bad");

    async function put(found, target) {
        const taken = await lt.sendFiles(found.files, target, { prompts: true, infotexts: found.infotexts });
        if (!taken) {
            chosen = null; // its folder may be gone
            return;
        }
        remember(taken.folder);
        lt.taken(taken, [
            [t("Open the data set"), () => lt.openSet(taken.folder)],
            [t("Other data set…"), () => choose((other) => put(found, other)).catch(lost)],
        ]);
        if (lt.data?.set?.folder === taken.folder) lt.data.soon?.();
    }

    // --- begin -------------------------------------------------------------------------------------------------------

    // The host draws late and draws again: look now and then whether the buttons are there.
    setInterval(function () {
        if (!lt.find || !lt.sendFiles) return;
        for (const place of [...GALLERIES, PNG_INFO]) {
            const beside = place.beside();
            if (!beside || lt.find(place.id)) continue;
            const title = t("Send to LoRA Trainer") + ": " + (place.word
                ? t("the selected picture, or all of them where the grid is selected, with the prompt as caption")
                : t("this picture, with its prompt as caption"));
            const button = lt.el("button", { id: place.id, type: "button", class: beside.className, title },
                place.word || t("Send to LoRA Trainer"));
            button.addEventListener("click", () => send(place, button));
            beside.after(button);
        }
    }, 1000);
})();
