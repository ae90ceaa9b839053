// The switch between the views of the tab: training, the data set, and language models. What a view shows is its own file's concern.
(function () {
    "use strict";

    const lt = window.loraTrainer = window.loraTrainer || {};
    const KEPT = "lora_trainer.view"; // in the browser, for a reload of this page
    const VIEWS = ["train", "data", "language"];

    let shown = null;

    const title = (name) => ({ train: lt.t("Train"), data: lt.t("Data set"), language: lt.t("Language model") })[name];

    // The view that is looked at.
    lt.view = () => shown;

    lt.go = function (name) {
        shown = name;
        keep(name);
        mark();
        if (name === "data") lt.data.entered();
        else if (name === "language") lt.languageEntered();
        else lt.changed(); // captions may have come or gone meanwhile
    };

    function mark() {
        const page = lt.find("lt_page");
        page.dataset.view = shown;
        for (const tab of lt.find("lt_views").querySelectorAll("[role=tab]")) {
            tab.setAttribute("aria-selected", String(tab.dataset.name === shown));
            tab.tabIndex = tab.dataset.name === shown ? 0 : -1;
        }
    }

    function step(event) {
        const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!by) return;
        lt.go(VIEWS[(VIEWS.indexOf(shown) + by + VIEWS.length) % VIEWS.length]);
        lt.find("lt_views").querySelector("[aria-selected=true]").focus();
    }

    // gradio may draw again, and then the switch is drawn again too.
    lt.startViews = function () {
        const place = lt.find("lt_views");
        if (!place || !lt.find("lt_workshop")) return;
        lt.startLanguage();
        if (place.childElementCount && lt.find("lt_page").dataset.view === shown) return lt.data.tick();
        place.replaceChildren(lt.el("div", {
            class: "lt-switch", role: "tablist", "aria-label": lt.t("View"), on: { keydown: step },
        }, ...VIEWS.map((name) => lt.el("button", {
            type: "button", role: "tab", data: { name }, on: { click: () => lt.go(name) },
        }, title(name)))));
        lt.go(shown || kept());
    };

    function kept() {
        try {
            const name = sessionStorage.getItem(KEPT);
            return VIEWS.includes(name) ? name : VIEWS[0];
        } catch (error) {
            if (error.name !== "SecurityError") throw error;
            return VIEWS[0];
        }
    }

    function keep(name) {
        try {
            sessionStorage.setItem(KEPT, name);
        } catch (error) {
            if (error.name !== "QuotaExceededError" && error.name !== "SecurityError") throw error;
        }
    }
})();
