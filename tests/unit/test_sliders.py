"""Sliders: the network at both ends in one pass, the losses in closed form, pairs, whole runs, and that they steer."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from lora_trainer.config.load import load, load_yaml
from lora_trainer.config.options import NetworkConfig, ObjectiveConfig, SliderConfig
from lora_trainer.config.seeds import sample_seed
from lora_trainer.config.tasks import check_task
from lora_trainer.contracts import Batch, Finished, PlainError, Prepared, Sampled, Stepped, Told
from lora_trainer.demo.show import ASSETS
from lora_trainer.families.registry import family_named, lend_file
from lora_trainer.hosts.a1111.drawing import with_lora
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs.plan import plan_run
from lora_trainer.jobs.run import Controls, run
from lora_trainer.jobs.sliding import check, kind_of
from lora_trainer.jobs.start import put_on as put_file_on
from lora_trainer.networks.network import inject
from lora_trainer.train.objective import add_noise, target
from lora_trainer.train.slider_loss import PictureSlider, PromptSlider
from tests.builders.lender import Lender
from tests.builders.networks import FORMS, base_model, put_on, randomise, rarely
from tests.builders.runs import run_all, small_run, write_pictures

PLAIN = ObjectiveConfig(weighting="none")
PROMPTS = {"slider__positive": "an old barn", "slider__negative": "a new barn", "slider__target": "a barn"}


@pytest.fixture(scope="module")
def base():
    return base_model("sd1")


@pytest.fixture
def network(base):
    """On the UNet alone, as in a slider's run."""
    network = inject(base.parts, NetworkConfig(rank=4, alpha=3.0), train_parts=["unet"], seed=5)
    randomise(network)
    yield network
    network.eject()


def batch_of(count: int = 2, opposite: bool = False) -> Batch:
    drawn = torch.randn(2, count, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    return Batch(
        positions=tuple(range(3, 3 + count)), latents=drawn[0], captions=("a barn",) * count, text=None,
        sizes=torch.tensor([[64.0, 64, 0, 0, 64, 64]] * count), weights=torch.ones(count),
        opposite=drawn[1] if opposite else None,
    )  # fmt: skip


def encoder(base):
    return torch.no_grad()(base.encode_text)


def drawn_by_hand(base, batch: Batch, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, timesteps and abar as `noise.draw` makes them without an option."""
    noises, times = [], []
    for position in batch.positions:
        generator = torch.Generator().manual_seed(sample_seed(seed, position, "noise"))
        times.append(torch.randint(1000, (1,), generator=generator))
        noises.append(torch.randn(4, 8, 8, generator=generator))
    t = torch.cat(times)
    return torch.stack(noises), t, base.alphas_cumprod[t]


# --- rows of one forward at weights of their own ---------------------------------------------------------------------


@pytest.mark.parametrize("form", [pytest.param(form, marks=rarely(form)) for form in FORMS])
def test_rows_act_at_their_own_weights(base, form):
    network = put_on(base, "few", form=form)
    randomise(network)
    noisy, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([400])
    with torch.no_grad():
        prompts = ["a barn", "a long caption of a barn " * 20]  # two chunks each, so that a sample has two rows
        text = base.encode_text(["a barn"])
        single = []
        for weight in (1.0, -1.0, 0.5):
            with network.scaled(weight):
                single.append(base.predict(noisy, t, text, torch.zeros(1, 6)))
        network.weigh_by([1.0, -1.0, 0.5])
        three = replace(text, context=text.context.repeat(3, 1, 1))
        together = base.predict(noisy.repeat(3, 1, 1, 1), t.repeat(3), three, torch.zeros(3, 6))
        network.weigh_by([-1.0, 0.0])
        chunks = base.encode_text(prompts).context
        network.weigh_by([])
        with network.scaled(0):
            plain = base.encode_text(prompts).context
        alone = base.predict(noisy, t, text, torch.zeros(1, 6))
    network.eject()
    assert torch.allclose(together, torch.cat(single), atol=1e-4)
    assert not torch.allclose(single[0], single[1], atol=1e-2)
    assert torch.allclose(alone, single[0], atol=1e-5)
    assert torch.allclose(chunks[1], plain[1], atol=1e-5)
    assert not torch.allclose(chunks[0], plain[0], atol=1e-3)


def test_a_backward_pass_that_computes_again_keeps_to_the_rows(base, network):
    slider = SliderConfig(positive="an old barn", negative="a new barn")
    loss = PromptSlider(base, network, 11, 5.0, 0.0, ObjectiveConfig(), slider, encoder(base))

    def gradients():
        parameters = [p for group in network.groups() for p in group.parameters]
        for parameter in parameters:
            parameter.grad = None
        loss(batch_of()).backward()
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]

    plain = gradients()
    unet = base.parts["unet"]
    unet.enable_gradient_checkpointing()
    unet.train()
    again = gradients()
    unet.disable_gradient_checkpointing()
    unet.eval()
    assert any(gradient.abs().max() > 0 for gradient in plain)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(plain, again, strict=True))


# --- the losses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [(), ("red", "blue")])
def test_two_prompts_are_the_closed_form(base, network, keep):
    slider = SliderConfig(positive="old", negative="new", target="barn", strength=2.5, keep=keep)
    batch = batch_of()
    noise, t, abar = drawn_by_hand(base, batch, 11)
    noisy = add_noise(batch.latents, noise, abar)
    words = [f"{keep[position % 2]} " if keep else "" for position in batch.positions]

    def answer(prompt, weight):
        with network.scaled(weight):
            return base.predict(noisy, t, base.encode_text([word + prompt for word in words]), batch.sizes)

    with torch.no_grad():
        measured = PromptSlider(base, network, 11, 5.0, 0.0, PLAIN, slider, encoder(base))(batch).item()
        step = 2.5 * (answer("old", 0) - answer("new", 0))
        ends = [(answer("barn", sign) - answer("barn", 0) - sign * step).square().mean() for sign in (1, -1)]
    assert measured == pytest.approx(sum(ends).item() / 2, rel=1e-4)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_two_pictures_are_the_closed_form(kind):
    base = base_model(kind)
    network = inject(base.parts, NetworkConfig(rank=4, alpha=3.0), train_parts=["unet"], seed=5)
    randomise(network)
    batch = batch_of(opposite=True)
    noise, t, abar = drawn_by_hand(base, batch, 11)
    with torch.no_grad():
        measured = PictureSlider(base, network, 11, 5.0, 0.0, PLAIN, encoder(base))(batch).item()
        text, ends = base.encode_text(batch.captions), []
        for latents, weight in ((batch.latents, 1), (batch.opposite, -1)):
            with network.scaled(weight):
                answer = base.predict(add_noise(latents, noise, abar), t, text, batch.sizes)
            ends.append((answer - target(base.facts.prediction, latents, noise, abar)).square().mean())
    assert measured == pytest.approx(sum(ends).item() / 2, rel=1e-4)


@pytest.mark.parametrize("option", [{"loss": "huber"}, {"weighting": "debiased"}, {"min_timestep": 900}])
def test_the_objective_counts_in_a_slider_too(base, network, option):
    slider, batch = SliderConfig(positive="old", negative="new"), batch_of()
    losses = [
        PromptSlider(base, network, 11, 5.0, 0.0, objective, slider, encoder(base))(batch).item()
        for objective in (PLAIN, replace(PLAIN, **option))
    ]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


# --- pairs -----------------------------------------------------------------------------------------------------------


def paired(folder: Path, **options):
    """A run with the small run's six pictures, and their negatives as BMP opposite to them."""
    config = small_run(folder, slider__opposite=str(folder / "before"), **options)
    before = folder / "before"
    if not before.exists():
        before.mkdir()
        for path in (folder / "pictures").glob("*.png"):
            with Image.open(path) as image:
                image.convert("RGB").point(lambda value: 255 - value).save(before / f"{path.stem}.bmp")
    return config


def prepared(plan):
    def encode(pixels: Tensor) -> Tensor:
        return pixels.mean(dim=1, keepdim=True).repeat(1, 4, 1, 1)[:, :, ::8, ::8]

    return list(plan.pairs.prepare(encode, None))


def test_each_batch_holds_both_of_its_pairs(tmp_path):
    plan = plan_run(paired(tmp_path, data__flip=True), Standalone())
    prepared(plan)
    for index in range(5):
        batch = plan.pairs(index)
        assert torch.allclose(batch.opposite, -batch.latents, atol=1e-2)  # a negative of the same part, mirrored alike
        assert batch.latents.abs().mean() > 0.1


def test_pairs_are_cut_alike_around_a_point_set_for_one(tmp_path):
    write_pictures(tmp_path / "pictures", sides=((160, 64),))
    (tmp_path / "pictures" / "lora_trainer_focus.csv").write_text("filename,x,y\n" + "\n".join(
        f"{n}.png,0.1,0.5" for n in range(6)
    ), encoding="utf-8")
    plan = plan_run(paired(tmp_path, data__buckets=False), Standalone())
    prepared(plan)
    batch = plan.pairs(0)
    assert torch.allclose(batch.opposite, -batch.latents, atol=1e-2)


@pytest.mark.parametrize("side", ["pictures", "before"])
def test_a_damaged_picture_leaves_with_its_partner(tmp_path, side):
    config = paired(tmp_path)
    damaged = next((tmp_path / side).glob("3.*"))
    damaged.write_bytes(damaged.read_bytes()[:200])
    plan = plan_run(config, Standalone())
    told = [event.text for event in prepared(plan) if isinstance(event, Told)]
    assert any("partner" in text for text in told), told
    for index in range(10):
        batch = plan.pairs(index)
        assert torch.allclose(batch.opposite, -batch.latents, atol=1e-2)


def test_what_is_no_pair_is_refused_by_name(tmp_path):
    config = paired(tmp_path)
    (tmp_path / "before" / "2.bmp").rename(tmp_path / "before" / "two.bmp")
    with pytest.raises(PlainError, match=r"none of the same name in .*before: 2\.png; put"):
        plan_run(config, Standalone())
    (tmp_path / "pictures" / "2.png").unlink()
    with pytest.raises(PlainError, match=r"none of the same name in .*pictures: two"):
        plan_run(config, Standalone())
    (tmp_path / "before" / "two.bmp").unlink()
    with Image.open(tmp_path / "before" / "1.bmp") as image:
        image.resize((64, 72)).save(tmp_path / "before" / "1.bmp")
    with pytest.raises(PlainError, match="give them one size"):
        plan_run(config, Standalone())


def test_examples_on_the_page_load_as_they_stand(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "sliders.md").read_text(encoding="utf-8")
    kinds = []
    for number, text in enumerate(re.findall(r"```yaml\n(.*?)```", page, flags=re.S)):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text, encoding="utf-8")
        config = load(load_yaml(file))
        check(config)
        kinds.append(kind_of(config))
    assert kinds == ["prompts", "pictures"]


# --- what does not go together ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [({"slider__target": "a barn"}, "only where slider.positive or"),
     ({"slider__strength": 2.0}, "only where slider.positive or"),
     ({"slider__positive": "a barn", "slider__negative": "a barn "}, "no difference"),
     ({**PROMPTS, "slider__opposite": "elsewhere"}, "learned from pictures"),
     ({**PROMPTS, "slider__pictures": 5}, "only where data.folder is empty"),
     ({**PROMPTS, "data__trigger": "ohwx"}, "only its weight"),
     ({**PROMPTS, "validation__share": 0.2}, "none can be held out"),
     ({**PROMPTS, "objective__preserve": 1.0, "objective__preserve_class": "x"}, "preserve"),
     ({**PROMPTS, "data__folder": "", "data__masked_loss": True}, "no masks"),
     ({**PROMPTS, "train__text_encoder_learning_rate": 1e-4}, "UNet alone"),
     ({**PROMPTS, "data__regularization": "elsewhere"}, "two sides")],
)  # fmt: skip
def test_what_a_slider_cannot_use_is_refused(tmp_path, options, told):
    with pytest.raises(PlainError, match=told):
        plan_run(small_run(tmp_path, **options), Standalone())


def test_the_same_folder_twice_is_refused(tmp_path):
    config = small_run(tmp_path, slider__opposite=str(tmp_path / "pictures"))
    with pytest.raises(PlainError, match="nothing tells the two sides apart"):
        plan_run(config, Standalone())


def test_a_language_model_has_no_slider():
    with pytest.raises(PlainError, match="does nothing for a language model"):
        check_task(load({"task": "text-generation", "slider.positive": "old", "slider.negative": "new"}))


def test_the_plan_tells_the_slider(tmp_path):
    plan = plan_run(small_run(tmp_path, **PROMPTS, data__folder="", slider__keep=["red", "blue"]), Standalone())
    assert "3 x ('an old barn' - 'a new barn') on 'a barn', for red and blue alike" in plan.text()
    assert "12 pictures that the base draws" in plan.text()
    assert list(plan.rates) == ["unet"]
    assert not any("caption" in note for note in plan.notes)


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def quickly_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the base draws to learn on takes most of a short run's time, and rough pictures serve as well."""
    monkeypatch.setattr("lora_trainer.jobs.sliding._DRAWING_STEPS", 4)


@pytest.mark.parametrize("family", ["sd1", pytest.param("sdxl", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "kind", [pytest.param("drawn", marks=pytest.mark.slow), pytest.param("noised", marks=pytest.mark.slow), "pairs"]
)
def test_a_slider_stopped_and_resumed_is_the_same_file(tmp_path, family, kind):
    def config(folder):
        where = {"output__directory": str(tmp_path / folder / "lora"), "train__steps": 4}
        if kind == "pairs":
            return paired(tmp_path, family=family, **where)
        data = {"data__folder": "", "slider__pictures": 2} if kind == "drawn" else {}
        return small_run(tmp_path, family, **PROMPTS, **data, **where)

    events = run_all(config("straight"))
    assert events[-1].outcome == "done", events[-1]
    assert any(isinstance(event, Prepared) and event.what == "pictures" for event in events) == (kind == "drawn")
    control = Controls()
    for event in run(config("broken"), host=Standalone(), control=control):
        if isinstance(event, Stepped) and event.step == 2:
            control.stop()
    run_all(config("broken"), resume=True)
    one, other = (tmp_path / folder / "lora" / "lora.safetensors" for folder in ("straight", "broken"))
    assert one.read_bytes() == other.read_bytes()
    assert str(tmp_path).encode() not in one.read_bytes()  # nobody's folders are published


def test_samples_show_both_ends_and_the_middle(tmp_path):
    config = small_run(
        tmp_path, **PROMPTS, data__folder="", slider__pictures=1, train__steps=2, samples__prompts=["a barn"],
        samples__sampling_steps=2, samples__every=100,
    )  # fmt: skip
    drawn = [event for event in run_all(config) if isinstance(event, Sampled)]
    assert [event.prompts for event in drawn] == [("a barn at -1", "a barn at 0", "a barn at +1")] * 2
    before, after = ([path.read_bytes() for path in event.paths] for event in drawn)
    assert len(set(before)) == 1
    assert len(set(after)) == 3
    assert after[1] == before[1]


class Drawing(Lender):
    """A host that draws, and notes what it was asked for."""

    draws = True

    def __init__(self, folder):
        super().__init__(folder / "sd1.safetensors", folder / "Lora", folder / "runs")
        self.asked: list[tuple[float, bool]] = []

    def draw(self, order, lora):
        self.asked.append((order.weight, lora is not None and lora.is_file()))
        return [Image.new("RGB", (64, 64)) for _ in order.prompts]


def test_a_host_draws_both_ends_with_the_file_and_the_middle_without(tmp_path):
    options = {
        "train__steps": 1, "samples__prompts": ["a barn"], "samples__every": 100, "output__save_steps": 0,
        "samples__sampling_steps": 1,
    }  # fmt: skip
    config = small_run(tmp_path, **PROMPTS, **options)
    host = Drawing(tmp_path)
    assert list(run(config, host=host, control=Controls()))[-1].outcome == "done"
    assert host.asked == [], "the base is a file, which this host has not loaded: the engine draws"
    lent = replace(config, model=replace(config.model, base=""))
    assert list(run(lent, host=host, control=Controls()))[-1].outcome == "done"
    assert host.asked == [(-1, False), (0, False), (1, False), (-1, True), (0, False), (1, True)]
    assert with_lora("a barn", Path("loras/age.safetensors"), -1.0) == "a barn <lora:age:-1>"


@pytest.mark.slow
def test_it_steers(tmp_path):
    """Twenty steps on the embedded base: what it answers moves towards the positive at 1, the negative at -1."""
    scene = "a house in a field"
    config = load({
        "model.base": "demo", "slider.positive": f"{scene} at night", "slider.negative": f"{scene} by day",
        "slider.target": scene, "slider.pictures": 3, "data.resolution": 64, "data.batch_size": 2, "network.rank": 4,
        "network.alpha": 4, "train.steps": 20, "train.learning_rate": 4e-3, "train.schedule": "constant",
        "train.warmup": 0, "train.seed": 1, "output.directory": str(tmp_path / "night"), "output.tensorboard": False,
        "output.save_steps": 0,
    })  # fmt: skip
    end = run_all(config)[-1]
    assert isinstance(end, Finished)
    assert end.path
    lent = lend_file(ASSETS / "scenes.safetensors")
    family = family_named(lent.facts.family)
    base = family.adopt(lent, torch.device("cpu"), torch.float32, ("unet", *family.text_parts))
    network = put_file_on(base, family, end.path)  # the file is read as any other LoRA
    noisy = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(99))  # none that was trained on
    t, sizes = torch.tensor([950, 900, 850, 800]), torch.zeros(4, 6)

    def answer(prompt, weight):
        with torch.no_grad(), network.scaled(weight):
            return base.predict(noisy, t, base.encode_text([prompt] * 4), sizes)

    way = answer("a boat at the sea at night", 0) - answer("a boat at the sea by day", 0)
    middle = answer("a boat at the sea", 0)  # another scene than the one it was trained on

    def gone(weight):
        """How far it goes the way from day to night, 1 being all of it."""
        return (((answer("a boat at the sea", weight) - middle) * way).sum() / way.square().sum()).item()

    assert gone(1) > 0.25
    assert gone(-1) < -0.25
    assert gone(0.5) == pytest.approx(gone(1) / 2, abs=0.3)
