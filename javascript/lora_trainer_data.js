// The data set that is worked on: opened through gradio, then known by its id, asked for news now and then.
// The other files lora_trainer_data_*.js draw it. They share `lt.data` and hear of each other by on() and tell():
//   "set"   another folder, or none          "news"    its numbers are new (images, state, can_undo, ...)
//   "lens"  what is shown or how it is sorted "changed" captions changed in a way the list has to be read again for
//   "caption" (name) one caption's text or state is new    "selection"    "jobs" (jobs)
(function () {
    "use strict";

    const lt = window.loraTrainer = window.loraTrainer || {};
    const t = (text, values) => lt.t(text, values);
    const AT_ONCE = 60; // ms until the first look at a folder that is being read: one that is known takes no longer
    const SOON = 700; // ms between two looks while the folder is being read or a captioner writes
    const CALM = 2500;
    const UNANSWERED = 8000; // ms after which the opening of a folder is asked for again
    const MINUTES = 600000; // ms that thousands of files may take to be written
    const LONGEST = 15000; // between two tries when the server is lost

    const data = lt.data = {
        set: null, // as GET datasets/{id} tells it
        lens: null,
        faults: [], // why the folder that was asked for is not open
        lost: false, // whether the server does not answer
        busy: false, // while a folder is being opened
    };
    const ears = {};
    data.on = (what, fn) => (ears[what] = ears[what] || []).push(fn);
    data.tell = (what, value) => (ears[what] || []).forEach((fn) => fn(value));

    data.freshLens = () => ({ sort: "name", descending: false, text: "", tags: [], without: [], flag: "" });
    data.lens = data.freshLens();

    // Whether an edit can change which pictures are shown, or their order.
    data.lensReadsCaptions = () => data.lens.sort !== "name" || data.narrowed();
    data.narrowed = () => Boolean(data.lens.text || data.lens.tags.length || data.lens.without.length || data.lens.flag);

    data.look = function (change) {
        data.lens = { ...data.lens, ...change };
        data.tell("lens");
    };

    // --- asking ------------------------------------------------------------------------------------------------------

    data.path = (rest) => "datasets/" + encodeURIComponent(data.set.id) + (rest ? "/" + rest : "");
    data.ask = (rest, method, body) => lt.ask(data.path(rest), method, body);

    // An order that writes many files: as `ask`, with all the time it takes, and `title` shown meanwhile.
    data.order = async function (rest, body, title) {
        const done = data.during(title);
        try {
            return await lt.ask(data.path(rest), "POST", body, MINUTES);
        } finally {
            done();
        }
    };

    // The lens as the query of a route, or, with `asObject`, as the filter of an edit.
    data.filter = () => {
        const { text, tags, without, flag } = data.lens;
        return { ...(text && { text }), ...(tags.length && { tag: tags }), ...(without.length && { not_tag: without }),
            ...(flag && { flag }) };
    };
    data.query = function (more) {
        const asked = new URLSearchParams();
        for (const [name, value] of Object.entries({ ...data.filter(), ...more })) {
            for (const one of [value].flat()) asked.append(name, one);
        }
        asked.set("sort", data.lens.sort);
        asked.set("descending", data.lens.descending ? "1" : "0");
        return asked.toString();
    };

    data.sentences = (error) => (error.faults || [t("The server did not take it; try again.")]).join(" ");
    data.refused = (error) => lt.notice(data.sentences(error), "bad");

    // The address of a picture that a route named.
    data.at = (path) => new URL(path, location.href).href;

    // --- opening -----------------------------------------------------------------------------------------------------

    let asked = null; // what was last asked for
    let underway = 0; // when it was sent, until it is answered

    // What the Train view says of the data set, sent along with each opening.
    const wishes = (folder) => ({
        folder: folder.trim().replace(/^"|"$/g, "").trim(), trigger: lt.valueOf("lt_data_trigger").trim(),
        metadata: lt.valueOf("lt_data_metadata").trim(), resolution: lt.valueOf("lt_data_resolution").trim(),
        crop: lt.valueOf("lt_data_crop").trim(),
    });

    data.open = function (folder) {
        const wish = wishes(folder);
        asked = JSON.stringify(wish);
        data.faults = [];
        data.busy = Boolean(wish.folder);
        if (!wish.folder || (data.set && data.set.asked !== wish.folder)) take(null);
        data.tell("news");
        if (data.busy) send();
    };

    // gradio drops an order that comes while the one before is under way: so one is sent after the other.
    function send() {
        if (!data.busy || Date.now() - underway < UNANSWERED) return;
        underway = Date.now();
        lt.openDataset(JSON.parse(asked));
    }

    data.answered = function (answer) {
        underway = 0;
        if (JSON.stringify(answer.asked) !== asked) { // of a folder that was asked for before
            setTimeout(send, 250);
            return;
        }
        data.busy = false;
        data.faults = answer.faults || [];
        if (!answer.dataset) return take(null);
        take({ ...answer.dataset, asked: answer.asked.folder });
    };

    function take(set) {
        const same = Boolean(set && data.set && set.asked === data.set.asked);
        if (data.set && !same) data.flush();
        data.set = set;
        if (set) {
            set.seen = set.revision;
            set.had = set.images + set.state;
        }
        if (!same) data.lens = data.freshLens();
        data.tell("set", same);
        data.tell("news");
        clearTimeout(timer);
        looks = 0;
        if (set) timer = setTimeout(poll, set.state === "scanning" ? AT_ONCE : SOON);
    }

    // --- news --------------------------------------------------------------------------------------------------------

    let timer = 0;
    let tries = 0;
    let looks = 0; // at a folder that is being read: each next one twice as long after

    // What our own writing has come to; the next look then finds nothing new in it.
    data.written = function (revision) {
        if (!data.set || revision <= data.set.revision) return;
        const foreign = revision > data.set.revision + 1;
        Object.assign(data.set, { revision, can_undo: true, can_redo: false });
        data.tell("written");
        if (foreign) data.tell("changed");
        data.soon();
    };

    // Look again at once.
    data.soon = function () {
        clearTimeout(timer);
        timer = setTimeout(poll, 150);
    };

    async function poll() {
        clearTimeout(timer);
        const set = data.set;
        if (!set) return;
        let pause = CALM;
        try {
            const now = await data.ask("");
            if (data.set !== set) return;
            if (data.lost) lt.notice(t("The server answers again."));
            data.lost = false;
            tries = 0;
            news(now);
            if (now.state === "scanning") pause = Math.min(AT_ONCE * 2 ** looks++, SOON);
            else if (data.working) pause = SOON;
        } catch (error) {
            if (data.set !== set) return;
            if (error.status === 404) return data.open(set.asked); // the server was started anew
            tries += 1;
            data.lost = tries > 1;
            pause = Math.min(SOON * 2 ** tries, LONGEST);
            data.tell("news");
            if (!error.status && !(error instanceof TypeError) && error.name !== "AbortError") console.error(error);
        }
        if (document.hidden || lt.view() !== "data") pause = Math.max(pause, CALM);
        clearTimeout(timer);
        timer = setTimeout(poll, pause);
    }

    function news(now) {
        const was = data.set;
        Object.assign(data.set, now);
        if (was.seen !== now.revision || was.had !== now.images + now.state) data.tell("changed");
        was.seen = now.revision;
        was.had = now.images + now.state;
        data.tell("news");
    }
    data.on("written", () => (data.set.seen = data.set.revision));

    // --- in step with the Train view ---------------------------------------------------------------------------------

    let seen = null; // what the form said of the data set at the last look

    data.entered = function () {
        data.draw();
        seen = null;
        data.tick();
        if (data.set) data.soon();
    };

    // Called four times a second: takes over what the form names, wherever it was typed, dropped or loaded.
    data.tick = function () {
        if (!data.place()) return;
        data.draw();
        if (lt.view() !== "data") return;
        data.stretch();
        send();
        if (data.typing()) return;
        const now = JSON.stringify(wishes(lt.valueOf("lt_data_folder")));
        if (now === seen) return;
        seen = now;
        data.fill();
        if (now !== asked) data.open(lt.valueOf("lt_data_folder"));
    };

    document.addEventListener("visibilitychange", () => !document.hidden && data.set && data.soon());
})();
