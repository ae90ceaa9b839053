// The runs of a sweep beside each other: what varies, how far each is, and what came out.
(function () {
    "use strict";

    const lt = window.loraTrainer = window.loraTrainer || {};
    const t = (text, values) => lt.t(text, values);
    const el = (...all) => lt.el(...all);

    const number = (value) => (value === null || value === undefined ? "–" : Number(value.toPrecision(3)).toString());
    const nameOf = (path) => path.split(".").pop().replace(/_/g, " ").replace(/^./, (first) => first.toUpperCase());
    const lowest = (runs, of) => Math.min(...runs.map((job) => job[of] ?? Infinity));

    // The table of all runs that `job` is to be compared with; hidden where there are none.
    lt.drawSweep = function (place, job, jobs, stateWord) {
        const runs = job.sweep ? jobs.filter((one) => one.sweep && one.sweep.id === job.sweep.id).reverse() : [];
        place.hidden = runs.length < 2;
        const now = JSON.stringify(runs.map((one) => [one.id, one.state, one.step, one.mean_loss, one.best_validation,
            one.id === job.id]));
        if (place.hidden || place.dataset.drawn === now) return;
        place.dataset.drawn = now;
        const focused = place.contains(document.activeElement) ? document.activeElement.dataset.of : null;
        const varied = Object.keys(job.sweep.values);
        const held = runs.some((one) => Number.isFinite(one.best_validation)); // what they are to be judged by
        const best = runs.every((one) => one.state === "done") ? lowest(runs, held ? "best_validation" : "mean_loss") : null;
        const titles = [...varied.map(nameOf), t("Step"), t("Loss, last tenth"),
            ...(held ? [t("Best validation")] : []), t("Speed"), ""];
        place.replaceChildren(
            el("h4", null, t("Runs of this sweep")),
            el("div", { class: "lt-scroll" }, el("table", null,
                el("thead", null, el("tr", null, ...titles.map((title) => el("th", { scope: "col" }, title)))),
                el("tbody", null, ...runs.map((one) => rowOf(one, one.id === job.id, varied, best, held, stateWord))))));
        if (focused) place.querySelector(`[data-of="${CSS.escape(focused)}"]`)?.focus();
    };

    function rowOf(run, isShown, varied, best, held, stateWord) {
        const cells = varied.map((path) => el("td", null, String(run.sweep.values[path])));
        const pace = run.seconds_per_step;
        return el("tr", { class: isShown ? "lt-shown" : null },
            ...cells,
            el("td", null, run.step + " / " + run.total_steps),
            el("td", { class: !held && best !== null && run.mean_loss === best ? "lt-best" : null }, number(run.mean_loss)),
            held ? el("td", {
                class: best !== null && run.best_validation === best ? "lt-best" : null,
                title: run.best_step === null ? null : t("step {n}", { n: run.best_step }),
            }, number(run.best_validation)) : null,
            el("td", null, pace ? t("{n} s/it", { n: pace.toFixed(2) }) : "–"),
            el("td", null, el("button", {
                type: "button", class: "lt-pick", "aria-current": isShown ? "true" : null, title: run.name,
                data: { of: "sweep" + run.id }, on: { click: () => lt.watch(run.id) },
            }, el("span", { class: "lt-state", data: { state: run.state } }, stateWord(run.state)))));
    }
})();
