// One picture of the gallery with its caption; and the frame of what a training keeps of a picture.
(function () {
    "use strict";

    const lt = window.loraTrainer = window.loraTrainer || {};
    const data = lt.data;
    const t = (text, values) => lt.t(text, values);
    const el = (...all) => lt.el(...all);
    const IN_THE_CARD = ["no_caption", "too_long", "no_trigger"]; // are seen without a badge

    // A card: `show` puts a picture into it (null: one that is still to come), `update` draws its caption's state anew.
    // `next` is called by Enter in its caption.
    data.card = function (next) {
        const card = { name: null, item: null };
        card.caption = data.captionField(next);
        card.box = el("input", { type: "checkbox", class: "lt-tick", tabindex: "-1", "aria-label": t("Select"),
            on: { click: (event) => {
                event.stopPropagation();
                data.pick(card.name, { shiftKey: event.shiftKey, ctrlKey: true });
            } } });
        card.image = el("img", { alt: "", decoding: "async", draggable: "false", on: { error: () => broken(card) } });
        card.fit = el("span", { class: "lt-fit" }, card.image);
        card.badges = el("span", { class: "lt-badges" });
        card.open = el("button", { type: "button", class: "lt-open", title: t("Show it large"),
            on: { click: (event) => clicked(card, event) } }, card.fit, card.badges);
        card.file = el("span", { class: "lt-file" });
        card.word = el("span", { class: "lt-word" });
        card.ask = el("div", { class: "lt-ask" });
        card.root = el("article", { class: "lt-card" }, card.open, card.box,
            el("div", { class: "lt-card-line" }, card.file, card.caption.state), card.caption.field,
            el("div", { class: "lt-card-line" }, card.caption.length.root, card.word), card.ask);
        card.show = (name, grid) => show(card, name, grid);
        card.update = () => card.name && update(card);
        return card;
    };

    function clicked(card, event) {
        if (!card.name) return;
        if (event.shiftKey || event.ctrlKey || event.metaKey || data.selection.size) data.pick(card.name, event);
        else data.large(card.name);
    }

    function show(card, name, grid) {
        card.root.style.width = grid.width + "px";
        card.root.style.height = grid.height + "px";
        card.open.style.height = grid.picture + "px";
        card.root.classList.toggle("lt-coming", !name);
        card.name = name;
        card.item = data.items.get(name) || null;
        if (!card.item) return;
        const { width, height, thumb } = card.item;
        const share = Math.min((grid.width - 2) / width, (grid.picture - 2) / height);
        card.fit.style.width = Math.round(width * share) + "px";
        card.fit.style.height = Math.round(height * share) + "px";
        const source = data.at(thumb);
        if (card.image.src !== source) card.image.src = source;
        card.root.classList.remove("lt-broken");
        card.image.alt = name;
        lt.say(card.file, name);
        card.file.title = `${name} · ${width} × ${height}`;
        card.fit.querySelector(".lt-crop")?.remove();
        if (data.showCrops) card.fit.append(...data.cropOf(card.item));
        update(card);
    }

    function broken(card) {
        if (card.name) card.root.classList.add("lt-broken");
    }

    function update(card) {
        const item = data.items.get(card.name) || card.item;
        card.caption.show(card.name);
        const chosen = data.selection.has(card.name);
        card.root.classList.toggle("lt-chosen", chosen);
        card.box.checked = chosen;
        badges(card, item);
        trigger(card, item);
        const asked = data.stateOf(card.name) === "conflict";
        if (asked !== Boolean(card.ask.childElementCount)) {
            card.ask.replaceChildren(...(asked ? [data.question(card.name)] : []));
        }
    }

    function trigger(card, item) {
        const word = data.set?.trigger;
        card.word.hidden = !word;
        if (!word) return;
        const there = item.starts_with_trigger;
        card.word.classList.toggle("lt-without", !there);
        lt.say(card.word, (there ? "✓ " : "✗ ") + word);
        card.word.title = there ? t("Begins with the trigger word.") : t("Does not begin with the trigger word.");
    }

    function badges(card, item) {
        const kinds = (item.flags || []).filter((kind) => !IN_THE_CARD.includes(kind));
        if (item.mask) kinds.push("mask");
        const now = kinds.join();
        if (card.badges.dataset.now === now) return;
        card.badges.dataset.now = now;
        card.badges.replaceChildren(...kinds.slice(0, 2).map((kind) => el("span", { class: "lt-badge" }, data.flagWord(kind))),
            ...(kinds.length > 2 ? [el("span", { class: "lt-badge" }, "+" + (kinds.length - 2))] : []));
        card.badges.title = kinds.map(data.flagWord).join(", ");
    }

    // --- crop --------------------------------------------------------------------------------------------------------

    // What a training keeps of a picture: a frame, around which all is dimmed. Nothing where it is not known.
    data.cropOf = function (item) {
        const crop = item.crop;
        if (!crop) return [];
        const frame = el("span", { class: "lt-crop" });
        const percent = (share) => 100 * share + "%";
        Object.assign(frame.style, { left: percent(crop.left), top: percent(crop.top),
            width: percent(crop.right - crop.left), height: percent(crop.bottom - crop.top) });
        return [frame];
    };

    // The share of a picture that is cut away.
    data.cutAway = (crop) => 1 - (crop.right - crop.left) * (crop.bottom - crop.top);
})();
