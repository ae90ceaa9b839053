// The gallery: of thousands of pictures only those in sight are in the page, and only their part of the list is asked for.
(function () {
    "use strict";

    const lt = window.loraTrainer = window.loraTrainer || {};
    const data = lt.data;
    const t = (text, values) => lt.t(text, values);
    const el = (...all) => lt.el(...all);
    const PAGE = 100; // pictures that are asked for at once
    const GAP = 12; // px between cards
    const TEXT = 142; // px of a card below its picture
    const AGAIN = 4000; // ms before a part of the list that was refused is asked for again
    const AHEAD = 2; // rows that are drawn beyond what is seen

    let parts = null;
    let pages = new Map(); // number -> names
    let stale = new Set(); // numbers of pages that have to be read again
    let loading = new Map(); // number -> reading
    let round = 0; // which list the answers belong to
    let total = 0;
    let cards = new Map(); // key -> card
    let grid = { columns: 1, width: 240, height: 330, picture: 188 };
    let edited = false; // whether our own edits may have moved pictures in the list
    data.size = 210; // px, the least width of a card

    // --- the list ----------------------------------------------------------------------------------------------------

    data.total = () => total;
    data.nameAt = (index) => pages.get(Math.floor(index / PAGE))?.[index % PAGE];

    // Where a picture stands in the list as far as it was read, else -1.
    data.indexOf = function (name) {
        for (const [number, names] of pages) {
            const at = names.indexOf(name);
            if (at >= 0) return number * PAGE + at;
        }
        return -1;
    };

    // The name at a place of the list, read if need be; undefined beyond its ends.
    data.reach = async function (index) {
        if (index < 0 || index >= total) return undefined;
        if (data.nameAt(index) === undefined) await load(Math.floor(index / PAGE));
        return data.nameAt(index);
    };

    function load(number) {
        if (!loading.has(number)) loading.set(number, read(number, round));
        return loading.get(number);
    }

    async function read(number, mine) {
        const set = data.set;
        try {
            const found = await data.ask("images?" + data.query({ offset: number * PAGE, limit: PAGE }));
            if (mine !== round || set !== data.set) return;
            if (found.revision < data.set.revision) return read(number, mine); // overtaken by a change of ours
            for (const item of found.images) data.items.set(item.name, item);
            pages.set(number, found.images.map((item) => item.name));
            stale.delete(number);
            if (found.total !== total) forgetBeyond(found.total);
            total = found.total;
        } catch (error) {
            if (mine !== round) return;
            if (error.faults) data.refused(error);
            setTimeout(() => {
                if (mine !== round) return;
                loading.delete(number);
                draw();
            }, AGAIN);
            return;
        }
        loading.delete(number);
        draw();
        data.tell("list");
    }

    function forgetBeyond(count) {
        for (const number of pages.keys()) if (number * PAGE >= count) pages.delete(number);
    }

    // Reads the list again; what is shown stays until the new is there.
    function renew() {
        round += 1;
        loading = new Map();
        stale = new Set(pages.keys());
        edited = false;
        if (data.set && parts) draw();
    }

    function clear() {
        pages = new Map();
        total = 0;
        if (!parts) return;
        for (const card of cards.values()) card.root.remove();
        cards = new Map();
        parts.scroller.scrollTop = 0;
        renew();
    }

    // --- drawing -----------------------------------------------------------------------------------------------------

    function frame() {
        parts = {
            told: el("p", { class: "lt-shown-count", role: "status" }),
            sizer: el("div", { class: "lt-sizer" }),
        };
        parts.scroller = el("div", { class: "lt-scroller", tabindex: "-1", on: { scroll: queue } }, parts.sizer);
        parts.all = el("input", { type: "checkbox", on: { change: () => data.selectAll(parts.all.checked) } });
        parts.size = el("input", { type: "range", min: 150, max: 420, step: 10, value: data.size,
            "aria-label": t("Size of the pictures"), title: t("Size of the pictures"),
            on: { input: () => resize(Number(parts.size.value)) } });
        parts.crops = el("input", { type: "checkbox", on: { change: () => {
            data.showCrops = parts.crops.checked;
            redraw();
        } } });
        cards = new Map();
        data.parts().gallery.replaceChildren(
            el("div", { class: "lt-gallery-bar" },
                el("label", { class: "lt-check" }, parts.all, t("Select all")), parts.told,
                el("label", { class: "lt-check", title: t("Dims what the training cuts away to make shapes fit.") },
                    parts.crops, t("Show crops")), parts.size),
            parts.scroller);
        new ResizeObserver(queue).observe(parts.scroller);
    }

    function resize(width) {
        const middle = firstShown();
        data.size = width;
        measure();
        parts.scroller.scrollTop = Math.floor(middle / grid.columns) * (grid.height + GAP);
        redraw();
    }

    const firstShown = () => Math.floor(parts.scroller.scrollTop / (grid.height + GAP)) * grid.columns;

    let waiting = false;

    function queue() {
        if (waiting) return;
        waiting = true;
        requestAnimationFrame(() => {
            waiting = false;
            draw();
        });
    }

    function measure() {
        const space = parts.scroller.clientWidth - 2; // the outline of the focused field wants to be seen
        const columns = Math.max(1, Math.floor((space + GAP) / (data.size + GAP)));
        const width = Math.floor((space - GAP * (columns - 1)) / columns);
        const picture = Math.round(Math.min(width * 0.82, 420));
        grid = { columns, width, picture, height: picture + TEXT };
    }

    function redraw() {
        for (const card of cards.values()) card.name = null;
        draw();
    }

    function draw() {
        if (!parts || data.set?.state !== "ready" || !parts.scroller.clientWidth) return;
        const was = grid.width;
        measure();
        if (was !== grid.width) for (const card of cards.values()) card.name = null;
        const row = grid.height + GAP;
        const rows = Math.ceil(total / grid.columns);
        parts.sizer.style.height = Math.max(0, rows * row - GAP) + "px";
        const top = parts.scroller.scrollTop;
        const first = Math.max(0, Math.floor(top / row) - AHEAD) * grid.columns;
        const last = Math.min(total, (Math.ceil((top + parts.scroller.clientHeight) / row) + AHEAD) * grid.columns);
        ask(first, last || 1);
        place(first, last);
        told();
    }

    function ask(first, last) {
        for (let number = Math.floor(first / PAGE); number * PAGE < last; number++) {
            if (pages.has(number) && !stale.has(number)) continue;
            if (edited && !pages.has(number)) return renew(); // its pictures may have moved
            load(number);
        }
    }

    function place(first, last) {
        const wanted = new Map();
        for (let index = first; index < last; index++) wanted.set(data.nameAt(index) ?? "\n" + index, index);
        for (const [key, card] of cards) {
            if (wanted.has(key) || card.root.contains(document.activeElement)) continue;
            card.root.remove();
            cards.delete(key);
        }
        let before = parts.sizer.firstChild;
        for (const [key, index] of wanted) {
            let card = cards.get(key);
            if (!card) cards.set(key, card = data.card(nextField));
            if (card.root === before) before = before.nextSibling;
            else parts.sizer.insertBefore(card.root, before);
            const x = (index % grid.columns) * (grid.width + GAP);
            const y = Math.floor(index / grid.columns) * (grid.height + GAP);
            card.root.style.transform = `translate(${x}px, ${y}px)`;
            const name = key[0] === "\n" ? null : key;
            if (card.name !== name || card.item !== data.items.get(name) || !name) card.show(name, grid);
        }
    }

    function told() {
        const all = data.set.images.toLocaleString();
        const shown = total.toLocaleString();
        const count = data.selection.size;
        lt.say(parts.told, count ? t("{n} of {all} selected", { n: count.toLocaleString(), all: shown })
            : data.narrowed() ? t("{n} of {all} shown", { n: shown, all }) : t("{n} shown", { n: shown }));
        parts.all.checked = count > 0 && count >= total;
        parts.all.indeterminate = count > 0 && count < total;
        parts.scroller.dataset.nothing = total || loading.size ? "" : t("Nothing matches.");
    }

    // --- going from field to field -----------------------------------------------------------------------------------

    // Brings a picture into sight and gives its card.
    data.reveal = async function (index) {
        if (await data.reach(index) === undefined) return null;
        const y = Math.floor(index / grid.columns) * (grid.height + GAP);
        const { scroller } = parts;
        if (y < scroller.scrollTop) scroller.scrollTop = y;
        const below = y + grid.height - scroller.clientHeight;
        if (below > scroller.scrollTop) scroller.scrollTop = below;
        draw();
        return cards.get(data.nameAt(index));
    };

    async function nextField(name, by) {
        const card = await data.reveal(data.indexOf(name) + by);
        if (card) card.caption.field.focus({ preventScroll: true });
    }

    // --- what others tell --------------------------------------------------------------------------------------------

    data.on("frame", frame);
    data.on("set", (same) => (same ? renew() : clear()));
    data.on("lens", clear);
    data.on("changed", renew);
    data.on("written", () => (edited = data.lensReadsCaptions()));
    data.on("caption", (name) => cards.get(name)?.update());
    data.on("selection", () => {
        if (!parts) return;
        for (const card of cards.values()) card.update();
        if (data.set) told();
    });
    data.on("news", () => {
        if (parts && data.set && data.set.images && !total && !loading.size && !data.narrowed()) renew();
    });
})();
