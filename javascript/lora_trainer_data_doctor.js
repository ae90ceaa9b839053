// What the doctor finds in the data set: each finding with its pictures, why it matters, and what one click can do.
(function () {
    "use strict";

    const lt = window.loraTrainer = window.loraTrainer || {};
    const data = lt.data;
    const t = (text, values) => lt.t(text, values);
    const el = (...all) => lt.el(...all);
    const LOOKING = 1500; // ms between two questions while pictures are looked at
    const THUMBS = 6; // of a finding, before "show"
    const WITHOUT_PICTURES = ["unreadable", "doubled_rows", "rows_without_image", "not_unicode"]; // name rows or files

    // Each kind: as heading, and as a word on a picture.
    const KINDS = {
        unreadable: () => [t("Cannot be read"), t("damaged")],
        tiny: () => [t("Too small"), t("small")],
        blurry: () => [t("Blurred"), t("blurred")],
        duplicate: () => [t("Exact copies"), t("copy")],
        near_duplicate: () => [t("Nearly the same picture"), t("near copy")],
        transparent: () => [t("Transparent"), t("transparent")],
        turned: () => [t("Turned by the camera"), t("turned")],
        extreme_aspect: () => [t("Very long or very wide"), t("long shape")],
        grey: () => [t("Grey among coloured ones"), t("grey")],
        no_caption: () => [t("Without a caption"), t("no caption")],
        caption_too_long: () => [t("Caption too long"), t("caption too long")],
        trigger_missing: () => [t("Trigger word is not in front"), t("no trigger word")],
        same_caption: () => [t("The same caption on many"), t("same caption")],
        file_name_caption: () => [t("File name as caption"), t("file name as caption")],
        one_word_caption: () => [t("Caption of one word"), t("one word")],
        doubled_rows: () => [t("Several rows for a file"), t("doubled row")],
        rows_without_image: () => [t("Rows without a picture"), t("row without picture")],
        not_unicode: () => [t("Captions in an old encoding"), t("old encoding")],
        mask: () => [t("With a mask"), t("mask")],
        too_long: () => KINDS.caption_too_long(), // the names of what is told of a caption at once
        no_trigger: () => KINDS.trigger_missing(),
    };
    const REMEDIES = {
        unreadable: () => t("Leave them out"), tiny: () => t("Leave them out"), blurry: () => t("Leave them out"),
        duplicate: () => t("Leave the copies out"), near_duplicate: () => t("Leave the copies out"),
        transparent: () => t("Make masks of it"), trigger_missing: () => t("Put it in front"),
        doubled_rows: () => t("Keep the last rows"), not_unicode: () => t("Save as UTF-8"),
    };

    data.flagWord = (kind) => (KINDS[kind] ? KINDS[kind]()[1] : kind);
    const titleOf = (found) => (KINDS[found.kind] ? KINDS[found.kind]()[0] : found.title || found.kind);

    let place = null;
    let timer = 0;
    let report = null;
    let of = ""; // which state of the data set the report is of
    let flagged = ""; // the findings that the cards show

    // The panel, in the place it is given; looked at from now on.
    data.checkShown = function (where) {
        if (place !== where) {
            place = where;
            draw();
        }
        renew(0);
    };

    function renew(pause) {
        clearTimeout(timer);
        timer = setTimeout(read, pause);
    }

    async function read() {
        const set = data.set;
        if (!set || !set.images || set.state !== "ready" || lt.view() !== "data") return;
        const now = [set.id, set.revision, set.images, set.trigger].join(" ");
        if (now === of && report && report.looked_at >= report.images) return;
        try {
            const found = await data.ask("check");
            if (set !== data.set) return;
            report = found;
            if (found.looked_at >= found.images) {
                of = now;
                badges(found);
            }
            draw();
            if (found.looked_at < found.images) renew(LOOKING);
        } catch (error) {
            if (set !== data.set) return;
            if (place && error.faults) place.replaceChildren(el("p", { class: "lt-line lt-fault" }, data.sentences(error)));
            renew(4 * LOOKING);
        }
    }

    // The cards show what was found, so the list is read again where that is something new.
    function badges(found) {
        const flags = JSON.stringify(found.findings.map(({ kind, images }) => [kind, images]));
        if (flags !== flagged) data.tell("changed");
        flagged = flags;
    }

    // --- drawing -----------------------------------------------------------------------------------------------------

    let drawn = "";

    function draw() {
        const findings = report?.findings || [];
        data.checkCount(findings.filter((found) => found.severity !== "advice").length);
        if (!place) return;
        const now = JSON.stringify(report);
        if (drawn === now && place.childElementCount) return;
        drawn = now;
        const top = place.scrollTop;
        const looking = !report || report.looked_at < report.images;
        place.replaceChildren(
            looking ? progress() : el("p", { class: findings.length ? "lt-dim lt-small" : "lt-line lt-well" },
                findings.length ? t("All {n} pictures were looked at.", { n: report.images.toLocaleString() })
                    : t("All {n} pictures were looked at, and nothing was found that would spoil a training.",
                        { n: report.images.toLocaleString() })),
            ...findings.map(section));
        place.scrollTop = top;
    }

    function progress() {
        const share = report ? report.looked_at / Math.max(1, report.images) : 0;
        const inner = el("div", null);
        inner.style.width = 100 * share + "%";
        return el("div", { class: "lt-looking" }, el("p", { class: "lt-dim lt-small" }, report
            ? t("Looked at {done} of {all} pictures…", { done: report.looked_at.toLocaleString(),
                all: report.images.toLocaleString() }) : t("The pictures are looked at…")),
        el("div", { class: "lt-bar" }, inner));
    }

    function section(found) {
        const filed = WITHOUT_PICTURES.includes(found.kind);
        return el("section", { class: "lt-finding lt-" + found.severity },
            el("h4", null, el("span", null, titleOf(found)), el("span", { class: "lt-count" }, found.count.toLocaleString())),
            filed ? null : thumbs(found.images),
            el("p", { class: "lt-small" }, found.sentence),
            el("div", { class: "lt-buttons" },
                filed ? null : lt.button(t("Show them"), () => data.look({ ...data.freshLens(), flag: found.kind })),
                found.kind === "no_caption" ? lt.button(t("Caption with…"), () => data.captionDialog()) : null,
                found.remedy && found.kind in REMEDIES ? lt.button(REMEDIES[found.kind](), () => confirm(found)) : null));
    }

    function thumbs(names) {
        const pictures = names.filter((name) => report.thumbs[name]).slice(0, THUMBS);
        return pictures.length ? el("div", { class: "lt-thumbs" }, ...pictures.map((name) => el("button", {
            type: "button", title: name, "aria-label": name, on: { click: () => data.large(name) },
        }, el("img", { src: data.at(report.thumbs[name]), alt: "", loading: "lazy", decoding: "async" })))) : null;
    }

    // --- the remedy --------------------------------------------------------------------------------------------------

    function confirm(found) {
        const dialog = el("dialog", { class: "lt-dialog", "aria-label": titleOf(found) },
            el("p", { class: "lt-title" }, titleOf(found) + ": " + found.count.toLocaleString()),
            el("p", null, found.sentence),
            el("p", { class: "lt-dim" }, t("What will be done: {what}.", { what: t(found.remedy) })),
            el("div", { class: "lt-buttons" },
                lt.button(REMEDIES[found.kind](), () => {
                    dialog.close();
                    fix(found.kind);
                }, { class: "lt-button lt-primary" }),
                lt.button(t("Cancel"), () => dialog.close())));
        lt.show(dialog);
    }

    async function fix(kind) {
        try {
            await data.flush();
            const answer = await data.order("fix", { kinds: [kind] }, titleOf({ kind }) + ": " + REMEDIES[kind]());
            lt.notice(answer.done.join(" "));
            if (data.lens.flag === kind) data.look({ flag: "" });
            of = "";
            data.tell("changed");
            data.soon();
            renew(0);
        } catch (error) {
            data.refused(error);
        }
    }

    data.on("set", (same) => {
        if (!same) {
            report = null;
            of = "";
            draw();
        }
        renew(0);
    });
    data.on("news", () => data.set && data.set.state === "ready" && renew(700));
})();
