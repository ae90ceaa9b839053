// What is shown and in which order: search, sort, and the tags by how often they occur, to show or leave out by a click.
(function () {
    "use strict";

    const lt = window.loraTrainer = window.loraTrainer || {};
    const data = lt.data;
    const t = (text, values) => lt.t(text, values);
    const el = (...all) => lt.el(...all);
    const QUIET = 300; // ms without a key before a search begins
    const MOST = 400; // tags that are drawn; more are found by searching them

    let parts = null;
    let tags = [];
    let shownTab = "tags";

    // [sort, descending, title]
    const ORDERS = () => [
        ["name", false, t("name")],
        ["caption", false, t("caption, A to Z")],
        ["tokens", true, t("longest caption first")],
        ["tokens", false, t("shortest caption first")],
        ["changed", true, t("last changed first")],
    ];

    function frame() {
        let timer = 0;
        const after = (fn) => () => {
            clearTimeout(timer);
            timer = setTimeout(fn, QUIET);
        };
        parts = {
            search: el("input", { type: "search", class: "lt-field", spellcheck: "false", placeholder: t("Search the captions"),
                "aria-label": t("Search the captions"),
                on: { input: after(() => data.look({ text: parts.search.value.trim() })) } }),
            sort: el("select", { class: "lt-field", "aria-label": t("Order"), on: { change: () => {
                const [sort, descending] = ORDERS()[parts.sort.selectedIndex];
                data.look({ sort, descending });
            } } }, ...ORDERS().map(([, , title]) => el("option", null, title))),
            chips: el("div", { class: "lt-chips" }),
            find: el("input", { type: "search", class: "lt-field", spellcheck: "false", placeholder: t("Find a tag"),
                "aria-label": t("Find a tag"), on: { input: () => drawTags() } }),
            list: el("ul", { class: "lt-tags" }),
            none: el("p", { class: "lt-dim lt-small" }),
        };
        parts.tags = el("div", { class: "lt-tab", role: "tabpanel" }, parts.find, parts.none, parts.list);
        parts.check = el("div", { class: "lt-tab", role: "tabpanel" });
        parts.tabs = el("div", { class: "lt-switch lt-small-switch", role: "tablist" },
            ...[["tags", t("Tags")], ["check", t("Check")]].map(([name, title]) => el("button", {
                type: "button", role: "tab", data: { name }, on: { click: () => turn(name) },
            }, title)));
        data.parts().aside.replaceChildren(
            el("div", { class: "lt-lens" }, parts.search, el("label", { class: "lt-order" }, el("span", null, t("Order")), parts.sort)),
            parts.chips, parts.tabs, parts.tags, parts.check);
        turn(shownTab);
        chips();
    }

    function turn(name) {
        shownTab = name;
        parts.tags.hidden = name !== "tags";
        parts.check.hidden = name !== "check";
        for (const tab of parts.tabs.children) tab.setAttribute("aria-selected", String(tab.dataset.name === name));
        if (name === "check") data.checkShown(parts.check);
    }

    // The number of things to look at, on the tab of the check.
    data.checkCount = function (count) {
        const tab = parts?.tabs.lastChild;
        if (tab) lt.say(tab, count ? t("Check ({n})", { n: count }) : t("Check"));
    };

    // --- what narrows the list ---------------------------------------------------------------------------------------

    function chips() {
        if (!parts) return;
        const { tags: with_, without, flag } = data.lens;
        const chip = (text, kind, fn) => el("button", { type: "button", class: "lt-chip lt-" + kind,
            title: t("Take this away"), on: { click: fn } }, text + " ×");
        const made = [
            ...with_.map((tag) => chip(tag, "with", () => data.look({ tags: with_.filter((one) => one !== tag) }))),
            ...without.map((tag) => chip(t("not {tag}", { tag }), "without",
                () => data.look({ without: without.filter((one) => one !== tag) }))),
            ...(flag ? [chip(data.flagWord(flag), "with", () => data.look({ flag: "" }))] : []),
        ];
        parts.chips.replaceChildren(...made, ...(data.narrowed() ? [el("button", { type: "button", class: "lt-link",
            on: { click: all } }, t("Show all"))] : []));
        if (document.activeElement !== parts.search) parts.search.value = data.lens.text;
        const order = ORDERS().findIndex(([sort, down]) => sort === data.lens.sort && down === data.lens.descending);
        parts.sort.selectedIndex = Math.max(0, order);
    }

    function all() {
        parts.search.value = "";
        data.look({ text: "", tags: [], without: [], flag: "" });
    }

    // --- tags --------------------------------------------------------------------------------------------------------

    let timer = 0;
    let read = ""; // set and revision that the tags are of

    // Reads the tags anew, once for many changes.
    function renew(pause) {
        clearTimeout(timer);
        timer = setTimeout(async () => {
            const set = data.set;
            if (!set || !parts || !set.images || set.state !== "ready") return;
            const now = set.id + " " + set.revision + " " + set.images + set.state;
            if (now === read) return;
            try {
                const found = await data.ask("tags");
                if (set !== data.set) return;
                read = now;
                tags = found.tags;
                lt.say(parts.none, !tags.length ? t("No caption has a tag yet.")
                    : found.sentences ? t("The captions are sentences; these are their words.") : "");
                drawTags();
            } catch (error) {
                if (error.faults) lt.say(parts.none, data.sentences(error));
                else if (set === data.set) renew(4000);
            }
        }, pause);
    }

    function drawTags() {
        const wanted = parts.find.value.trim().toLowerCase();
        const most = tags[0]?.count || 1;
        const found = tags.filter((one) => one.tag.toLowerCase().includes(wanted));
        parts.list.replaceChildren(...found.slice(0, MOST).map((one) => row(one, most)),
            ...(found.length > MOST ? [el("li", { class: "lt-dim lt-small" },
                t("and {n} more; find them by name", { n: (found.length - MOST).toLocaleString() }))] : []));
    }

    function row({ tag, count }, most) {
        const { tags: with_, without } = data.lens;
        const isIn = with_.includes(tag);
        const isOut = without.includes(tag);
        const toggled = (list, there) => (there ? list.filter((one) => one !== tag) : [...list, tag]);
        const bar = el("span", { class: "lt-share", "aria-hidden": "true" });
        bar.style.width = 100 * count / most + "%";
        return el("li", { class: isIn ? "lt-in" : isOut ? "lt-out" : null },
            el("button", { type: "button", class: "lt-tag", "aria-pressed": String(isIn), title: t("Show only pictures with it"),
                on: { click: () => data.look({ tags: toggled(with_, isIn), without: toggled(without, true) }) } },
            bar, el("span", { class: "lt-name" }, lt.verbatim(tag)), el("span", { class: "lt-count" }, count.toLocaleString())),
            el("button", { type: "button", class: "lt-not", "aria-pressed": String(isOut),
                title: t("Show only pictures without it"), "aria-label": t("without {tag}", { tag }),
                on: { click: () => data.look({ without: toggled(without, isOut), tags: toggled(with_, true) }) } }, "−"));
    }

    data.on("frame", frame);
    data.on("lens", () => {
        chips();
        if (parts) drawTags();
    });
    data.on("set", (same) => {
        if (!parts) return;
        if (!same) {
            tags = [];
            parts.find.value = parts.search.value = "";
            drawTags();
        }
        chips();
        renew(0);
    });
    data.on("news", () => renew(600));
})();
