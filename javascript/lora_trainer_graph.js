// The loss of a run on a canvas: raw values faint, their running mean strong, that of held-out images with a dot for
// each look and a ring at the best, the learning rate on its own scale.
(function () {
    "use strict";

    const lt = window.loraTrainer = window.loraTrainer || {};
    const t = (text, values) => lt.t(text, values);
    const HEIGHT = 220; // CSS pixels
    const EDGE = { left: 52, right: 12, top: 12, bottom: 24 };
    const WINDOW = 0.05; // share of the points that the running mean forgets over,
    const LEAST = 12; // but never fewer than these

    const short = (value) => value === 0 ? "0" : Math.abs(value) < 0.001 || Math.abs(value) >= 1e5
        ? value.toExponential(1) : String(Number(value.toPrecision(3)));

    // Round numbers of a scale from low to high, about `count` of them.
    function ticks(low, high, count) {
        const rough = (high - low) / count || 1;
        const power = 10 ** Math.floor(Math.log10(rough));
        const step = power * [1, 2, 5, 10].find((factor) => power * factor >= rough * 0.999);
        const found = [];
        for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step) found.push(at);
        return found;
    }

    // Exponential mean, corrected for its start (as Adam does), so that the first points are not pulled to zero.
    function smoothed(losses) {
        const keep = 1 - 1 / Math.max(LEAST, losses.length * WINDOW);
        let sum = 0;
        let weight = 0;
        return losses.map((loss) => {
            sum = keep * sum + (1 - keep) * loss;
            weight = keep * weight + (1 - keep);
            return weight ? sum / weight : loss;
        });
    }

    // The share of finite losses below which nearly all lie: a single spike shall not flatten the rest.
    function ceiling(losses) {
        const sorted = [...losses].sort((a, b) => a - b);
        const most = sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * 0.99))];
        return Math.max(most, sorted[sorted.length - 1] < most * 1.5 ? sorted[sorted.length - 1] : most) || 1;
    }

    // A graph in `place`; `points` are {step, loss, rate}, `looks` {step, loss}, both in order.
    lt.graph = function (place) {
        let points = [];
        let means = [];
        let looks = [];
        let steps = 1;
        let at = null; // index of the point under the cursor
        const canvas = lt.el("canvas", { tabindex: "0", role: "img", height: HEIGHT });
        const told = lt.el("div", { class: "lt-tip", hidden: true });
        place.append(canvas, told);

        const color = (name) => getComputedStyle(place).getPropertyValue(name).trim() || "gray";
        const width = () => place.clientWidth || 300;
        const x = (step) => EDGE.left + (step / steps) * (width() - EDGE.left - EDGE.right);
        const y = (share) => EDGE.top + (1 - share) * (HEIGHT - EDGE.top - EDGE.bottom);

        function path(pen, pick) {
            pen.beginPath();
            points.forEach((point, index) => pen.lineTo(x(point.step), y(pick(point, index))));
            pen.stroke();
        }

        function axes(pen, low, high) {
            pen.font = "11px " + (getComputedStyle(place).fontFamily || "sans-serif");
            pen.fillStyle = color("--lt-dim");
            pen.strokeStyle = color("--lt-grid");
            pen.textAlign = "right";
            pen.textBaseline = "middle";
            for (const value of ticks(low, high, 4)) {
                const level = y((value - low) / (high - low));
                pen.beginPath();
                pen.moveTo(EDGE.left, level);
                pen.lineTo(width() - EDGE.right, level);
                pen.stroke();
                pen.fillText(short(value), EDGE.left - 6, level);
            }
            pen.textAlign = "center";
            pen.textBaseline = "top";
            for (const value of ticks(0, steps, Math.max(2, Math.floor(width() / 110)))) {
                if (!Number.isInteger(value)) continue;
                const half = pen.measureText(String(value)).width / 2;
                pen.fillText(String(value), Math.min(x(value), width() - half), HEIGHT - EDGE.bottom + 7);
            }
        }

        function draw() {
            const ratio = window.devicePixelRatio || 1;
            canvas.width = width() * ratio;
            canvas.height = HEIGHT * ratio;
            canvas.style.width = width() + "px";
            canvas.style.height = HEIGHT + "px";
            const pen = canvas.getContext("2d");
            pen.scale(ratio, ratio);
            const losses = [...points, ...looks].map((point) => point.loss);
            const high = losses.length ? ceiling(losses) * 1.08 : 1;
            const low = losses.length ? Math.min(...means.slice(-5000), high * 0.5, ...losses.slice(-5000)) * 0.92 : 0;
            const scale = (value) => Math.min(1, Math.max(0, (value - low) / (high - low || 1)));
            axes(pen, low, high);
            if (points.length) {
                const top = Math.max(...points.map((point) => point.rate)) || 1;
                pen.lineJoin = "round";
                pen.setLineDash([3, 4]);
                pen.lineWidth = 1.2;
                pen.strokeStyle = color("--lt-rate");
                path(pen, (point) => (point.rate / top) * 0.96);
                pen.setLineDash([]);
                pen.lineWidth = 1;
                pen.globalAlpha = 0.32;
                pen.strokeStyle = color("--lt-line");
                path(pen, (point) => scale(point.loss));
                pen.globalAlpha = 1;
                pen.lineWidth = 2.2;
                path(pen, (_, index) => scale(means[index]));
                if (points.length === 1) dot(pen, 0, scale);
            }
            heldOut(pen, scale);
            if (at !== null && points[at]) cursor(pen, scale);
            canvas.setAttribute("aria-label", summary());
        }

        function heldOut(pen, scale) {
            pen.strokeStyle = pen.fillStyle = color("--lt-held");
            pen.lineWidth = 1.8;
            pen.beginPath();
            for (const look of looks) pen.lineTo(x(look.step), y(scale(look.loss)));
            pen.stroke();
            const best = bestLook();
            for (const look of looks) {
                pen.beginPath();
                pen.arc(x(look.step), y(scale(look.loss)), look === best ? 5 : 2.5, 0, 7);
                if (look === best) pen.stroke();
                else pen.fill();
            }
        }

        const bestLook = () => looks.reduce((best, look) => (best && best.loss <= look.loss ? best : look), null);

        function cursor(pen, scale) {
            const point = points[at];
            pen.lineWidth = 1;
            pen.strokeStyle = color("--lt-dim");
            pen.beginPath();
            pen.moveTo(x(point.step), EDGE.top);
            pen.lineTo(x(point.step), HEIGHT - EDGE.bottom);
            pen.stroke();
            dot(pen, at, scale);
        }

        function dot(pen, index, scale) {
            pen.fillStyle = color("--lt-line");
            pen.beginPath();
            pen.arc(x(points[index].step), y(scale(means[index])), 3.5, 0, 7);
            pen.fill();
        }

        function summary() {
            const last = points[points.length - 1];
            const best = bestLook();
            const held = best ? " " + t("Held-out images: loss {loss} at step {step}, the best.",
                { loss: short(best.loss), step: best.step }) : "";
            return (last ? t("Loss {loss}, smoothed {mean}, at step {step}",
                { loss: short(last.loss), mean: short(means[means.length - 1]), step: last.step })
                : t("Loss: nothing yet")) + held;
        }

        function tip() {
            told.hidden = at === null || !points[at];
            if (told.hidden) return;
            const point = points[at];
            told.replaceChildren(
                lt.el("strong", null, t("step {n}", { n: point.step })),
                lt.el("span", null, t("loss {n}", { n: short(point.loss) })),
                lt.el("span", null, t("smoothed {n}", { n: short(means[at]) })),
                lt.el("span", null, t("rate {n}", { n: short(point.rate) })));
            const look = looks.filter((one) => one.step <= point.step).pop();
            if (look) {
                told.append(lt.el("span", null, t("held-out {n} at step {step}", { n: short(look.loss), step: look.step })));
            }
            const left = x(point.step);
            told.style.left = Math.min(Math.max(0, left > width() / 2 ? left - told.offsetWidth - 10 : left + 10),
                width() - told.offsetWidth) + "px";
        }

        function look(index) {
            at = index;
            draw();
            tip();
        }

        canvas.addEventListener("pointermove", (event) => {
            const step = ((event.offsetX - EDGE.left) / (width() - EDGE.left - EDGE.right)) * steps;
            let near = points.length ? 0 : null;
            points.forEach((point, index) => {
                if (Math.abs(point.step - step) < Math.abs(points[near].step - step)) near = index;
            });
            look(near);
        });
        canvas.addEventListener("pointerleave", () => look(null));
        canvas.addEventListener("blur", () => look(null));
        canvas.addEventListener("keydown", (event) => {
            const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
            if (!by || !points.length) return;
            event.preventDefault();
            look(Math.min(points.length - 1, Math.max(0, (at === null ? points.length - 1 : at) + by)));
            lt.say(told, told.textContent);
        });
        new ResizeObserver(() => requestAnimationFrame(draw)).observe(place);

        return {
            show(found, total, held = []) {
                looks = held.filter((look) => Number.isFinite(look.loss));
                points = found.filter((point) => Number.isFinite(point.loss));
                means = smoothed(points.map((point) => point.loss));
                steps = Math.max(1, total || 0, points.length ? points[points.length - 1].step : 0);
                draw();
            },
        };
    };
})();
