// How a job ended, in the language of the page: the server's sentences, which are English and hold names and numbers.
(function () {
    "use strict";

    const lt = window.loraTrainer = window.loraTrainer || {};

    // As the server forms them; an end, where there is one, follows its beginning without a word between.
    const named = (t) => [[
        t("Done: {file}"),
        t("Ended after step {step} of {steps}, since {looks} looks at the held-out data were no better: {file}"),
        t("Stopped before the first step; nothing was trained."),
        t("Stopped before the first step was done; nothing was trained yet; resume (train --resume) begins anew."),
        t("Stopped after step {step} of {steps}; resume (train --resume) goes on from there."),
        t("Wrote {file}: {layers} modules for {family}, in the names of {names}, {precision}."),
        t("Stopped; nothing was written."),
        t("Everything is answered."),
        t("Stopped before all was answered."),
        t("{folder} holds {n} images already; nothing was drawn."),
        t("{n} images are in {folder}: name it when you train, as data.regularization."),
        t("Stopped: {done} of {total} images are in {folder}; start it again, and it goes on."),
        t("Every image has a caption already; nothing was changed."),
        t("Stopped while the captioner was fetched; what has come is kept."),
        t("Wrote 1 caption to {place}"),
        t("Wrote {n} captions to {place}"),
    ], [
        t(", which is also the best on the held-out data."),
        t("; on the held-out data no step was better than before the training, so lower the learning rate or look at the "
            + "captions."),
        t("; the held-out data say that step {best} is better (loss {lower}, at the end {last}): use {better}"),
        t(" It does what the file did: nothing of its change is lost."),
        t(" Of the change {lost} is lost (of {layer} most, {worst}); a higher rank loses less."),
        t("; {left} images were left as they are"),
        t("; stopped with {togo} to go: the same command goes on from here"),
        t(". Name it when you train: data.metadata {table}"),
    ]];
    const [BEGINNINGS, ENDS] = named((text) => text);

    const plain = (text) => text.replace(/[.*+?^$()|[\]\\]/g, "\\$&");
    const pattern = (text) => plain(text).replace(/\{(\w+)\}/g, "(?<$1>.+?)");
    const found = new Map(); // by the end's text, or "" for none: patterns of whole sentences, made once
    const whole = (beginning, ends) => new RegExp("^" + pattern(beginning) + ends.map(pattern).join("") + "\\.?$");

    function patterns() {
        if (!found.size) {
            const several = [[], ...ENDS.map((end) => [end]), [ENDS[5], ENDS[6]], [ENDS[5], ENDS[7]]];
            for (const ends of several.reverse()) {
                for (const beginning of BEGINNINGS) found.set(whole(beginning, ends), [beginning, ...ends]);
            }
        }
        return found;
    }

    // A sentence of the server's in the language of the page; as it is where it is none of those known.
    lt.told = function (text) {
        const known = lt.t(text || "");
        if (known !== text || !window.localization || !Object.keys(window.localization).length) return known;
        for (const [one, parts] of patterns()) {
            const match = one.exec(text);
            if (match) return parts.map((part) => lt.t(part, match.groups)).join("");
        }
        return text;
    };
})();
