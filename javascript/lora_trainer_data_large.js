// One picture, large: with its caption, what the training cuts away, and the point that the crop keeps in sight.
(function () {
    "use strict";

    const lt = window.loraTrainer = window.loraTrainer || {};
    const data = lt.data;
    const t = (text, values) => lt.t(text, values);
    const el = (...all) => lt.el(...all);

    let view = null; // while it is open

    // Shows a picture of the list, or one that the list does not hold.
    data.large = async function (name) {
        const index = data.indexOf(name);
        if (index < 0 && !data.items.has(name)) {
            data.look({ ...data.freshLens(), text: "" });
            const names = await data.names().catch((error) => data.refused(error));
            if (!names || !names.includes(name)) return;
            await data.reach(names.indexOf(name));
            return open(name, names.indexOf(name));
        }
        open(name, index);
    };

    function open(name, index) {
        view = { name, index };
        view.caption = data.captionField((_, by) => go(by, true));
        view.image = el("img", { alt: "", draggable: "false", on: { error: () => view && lt.say(view.facts,
            t("This picture cannot be shown.")) } });
        view.point = el("span", { class: "lt-point", title: t("Kept in sight by the crop; drag it, or click elsewhere.") });
        view.fit = el("div", { class: "lt-fit", on: { pointerdown: aim } }, view.image, view.point);
        view.stage = el("div", { class: "lt-stage", tabindex: "0", "aria-label": t("Picture") }, view.fit);
        view.count = el("span", { class: "lt-dim" });
        view.title = el("strong", { class: "lt-file" });
        view.facts = el("p", { class: "lt-dim lt-small" });
        view.flags = el("div", { class: "lt-chips" });
        view.ask = el("div", { class: "lt-ask-here" });
        view.before = lt.button("‹", () => go(-1), { class: "lt-button lt-arrow", "aria-label": t("Previous picture") });
        view.after = lt.button("›", () => go(1), { class: "lt-button lt-arrow", "aria-label": t("Next picture") });
        view.forget = lt.button(t("Forget the point"), () => focus(null, null));
        const dialog = view.dialog = el("dialog", { class: "lt-dialog lt-one", on: { keydown: pressed } },
            el("header", null, view.title, view.count,
                lt.button("×", () => dialog.close(), { class: "lt-button lt-sign", "aria-label": t("Close") })),
            el("div", { class: "lt-show" }, view.before, view.stage, view.after),
            el("div", { class: "lt-under" }, view.caption.field, view.ask,
                el("div", { class: "lt-card-line" }, view.caption.length.root, view.caption.state),
                view.flags,
                el("div", { class: "lt-card-line" }, view.facts, view.forget),
                el("p", { class: "lt-dim lt-small lt-keys" }, [
                    data.items.get(name).crop ? t("click what the crop has to keep") : "",
                    t("← → other picture"), t("Enter: next caption"), t("Esc: back"),
                ].filter(Boolean).join(" · "))));
        dialog.addEventListener("close", left);
        lt.show(dialog);
        view.sizes = new ResizeObserver(fit);
        view.sizes.observe(view.stage);
        draw();
        view.stage.focus();
    }

    function left() {
        const { name, sizes } = view;
        sizes.disconnect();
        view = null;
        data.flush(name);
        data.reveal(data.indexOf(name));
    }

    // --- drawing -----------------------------------------------------------------------------------------------------

    function draw() {
        const item = data.items.get(view.name);
        const source = data.at(item.picture);
        if (view.image.src !== source) view.image.src = source;
        view.dialog.setAttribute("aria-label", item.name);
        lt.say(view.title, item.name);
        lt.say(view.count, view.index < 0 ? "" : t("{n} of {all}", { n: (view.index + 1).toLocaleString(),
            all: data.total().toLocaleString() }));
        view.before.disabled = view.index <= 0;
        view.after.disabled = view.index < 0 || view.index + 1 >= data.total();
        facts(item);
        view.flags.replaceChildren(...(item.flags || []).map((kind) =>
            el("span", { class: "lt-badge lt-badge-plain" }, data.flagWord(kind))));
        fit();
        caption();
    }

    function facts(item) {
        const told = [`${item.width} × ${item.height}`];
        if (item.crop) {
            const [width, height] = item.crop.bucket;
            const cut = Math.round(100 * data.cutAway(item.crop));
            told.push(t("trained at {width} × {height}", { width, height }),
                cut ? t("{n} % is cut away", { n: cut }) : t("nothing is cut away"));
        }
        if (item.caption) told.push(t("caption from {source}", { source: item.source }));
        lt.say(view.facts, told.join(" · "));
        view.point.hidden = !item.crop;
        view.forget.hidden = !item.focus;
    }

    function caption() {
        view.caption.show(view.name);
        const asked = data.stateOf(view.name) === "conflict";
        if (asked !== Boolean(view.ask.childElementCount)) {
            view.ask.replaceChildren(...(asked ? [data.question(view.name)] : []));
        }
    }

    function fit() {
        const item = data.items.get(view.name);
        const { clientWidth, clientHeight } = view.stage;
        const share = Math.min(clientWidth / item.width, clientHeight / item.height);
        view.fit.style.width = Math.round(item.width * share) + "px";
        view.fit.style.height = Math.round(item.height * share) + "px";
        view.fit.querySelector(".lt-crop")?.remove();
        view.point.before(...data.cropOf(item));
        const [x, y] = item.focus || middle(item.crop);
        place(x, y);
        view.point.classList.toggle("lt-set", Boolean(item.focus));
    }

    const middle = (crop) => (crop ? [(crop.left + crop.right) / 2, (crop.top + crop.bottom) / 2] : [0.5, 0.5]);

    function place(x, y) {
        view.point.style.left = 100 * x + "%";
        view.point.style.top = 100 * y + "%";
    }

    // --- moving ------------------------------------------------------------------------------------------------------

    async function go(by, toCaption) {
        const asked = view;
        const index = view.index + by;
        const name = await data.reach(index);
        if (!name || view !== asked) return;
        if (data.stateOf(view.name) === "typed") data.flush(view.name);
        Object.assign(view, { name, index });
        draw();
        if (toCaption) view.caption.field.select();
        const ahead = data.nameAt(index + by);
        if (ahead) new Image().src = data.at(data.items.get(ahead).picture);
    }

    function pressed(event) {
        const typing = event.target === view.caption.field;
        const by = { ArrowRight: 1, ArrowDown: 1, PageDown: 1, ArrowLeft: -1, ArrowUp: -1, PageUp: -1 }[event.key];
        if (by && (!typing || event.key.startsWith("Page"))) {
            event.preventDefault();
            go(by, typing);
        } else if (event.key === "Enter" && event.target === view.stage) {
            event.preventDefault();
            view.caption.field.focus();
        }
    }

    // --- the point that the crop keeps in sight ----------------------------------------------------------------------

    function aim(event) {
        const item = data.items.get(view.name);
        if (event.button || !item.crop || data.set.writable === false) return;
        event.preventDefault();
        const box = view.fit.getBoundingClientRect();
        const share = (at, from, size) => Math.min(1, Math.max(0, (at - from) / size));
        let [x, y] = [0, 0];
        const moved = (one) => {
            x = share(one.clientX, box.left, box.width);
            y = share(one.clientY, box.top, box.height);
            place(x, y);
        };
        moved(event);
        view.fit.setPointerCapture(event.pointerId);
        view.fit.addEventListener("pointermove", moved);
        const end = (done) => {
            view.fit.removeEventListener("pointermove", moved);
            if (done.type === "pointerup") focus(x, y);
            else fit();
        };
        view.fit.addEventListener("pointerup", end, { once: true });
        view.fit.addEventListener("pointercancel", end, { once: true });
    }

    async function focus(x, y) {
        const { name } = view;
        try {
            const item = await data.ask("focus", "POST", { name, x, y });
            Object.assign(data.items.get(name), item);
            data.tell("changed");
        } catch (error) {
            data.refused(error);
        }
        if (view?.name === name) draw();
    }

    data.on("caption", (name) => view?.name === name && caption());
    data.on("list", () => view && data.items.has(view.name) && draw());
    data.on("set", (same) => !same && view && view.dialog.close());
})();
