"""Each captioner through its real loading and inference code, on tiny models of the real architectures and layouts."""

from __future__ import annotations

import enum
import importlib.machinery
import importlib.util
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from lora_trainer.captioners import places
from lora_trainer.captioners.blip import Blip
from lora_trainer.captioners.clip_tags import ClipTags, tags_of
from lora_trainer.captioners.models import KNOWN, kind_of, needed
from lora_trainer.captioners.pixels import Look, pixels
from lora_trainer.captioners.registry import captioner_of, listed
from lora_trainer.captioners.wd14 import Wd14
from lora_trainer.captioners.wording import joined, worded
from lora_trainer.config.captioning import CaptionConfig
from lora_trainer.contracts import Lack, PlainError
from lora_trainer.weights.fetching import fetch
from tests.builders.captioners import COLOURS, picture, write_blip, write_clip, write_coca, write_wd14

CPU = torch.device("cpu")
# Other sizes and other noise than the models learnt with.
PICTURES = [picture(colour, size, seed=7) for colour, size in zip(COLOURS, [(50, 70), (33, 32), (64, 40)], strict=True)]


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blip(tmp_path_factory.mktemp("models") / "my_blip")


@pytest.fixture
def open_clip() -> Iterator[types.ModuleType]:
    """open_clip, with a stand-in for torchvision where there is none: it is needed for nothing that is used here."""
    before = set(sys.modules)
    if importlib.util.find_spec("torchvision") is None:
        _stand_in()
    from lora_trainer.captioners.open_clip_models import import_open_clip

    try:
        yield import_open_clip()
    finally:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in ("torchvision", "open_clip"):
                del sys.modules[name]


def _stand_in() -> None:
    class Hollow(types.ModuleType):
        def __getattr__(self, name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return torch.nn.Module

    class InterpolationMode(enum.Enum):
        BICUBIC = "bicubic"
        BILINEAR = "bilinear"
        NEAREST = "nearest"

    for name in ("", ".transforms", ".transforms.functional", ".ops", ".ops.misc"):
        module = Hollow(f"torchvision{name}")
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        sys.modules[module.__name__] = module
        parent, _, last = module.__name__.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)
    sys.modules["torchvision.transforms"].InterpolationMode = InterpolationMode  # type: ignore[attr-defined]


# --- sentences -------------------------------------------------------------------------------------------------------


def test_blip_describes_each_image_alone_and_in_a_batch(blip: Path) -> None:
    captioner = Blip("mine", blip, CPU)
    expected = [f"a {colour} picture" for colour in COLOURS]
    assert captioner.caption(PICTURES) == expected
    assert [captioner.caption([one])[0] for one in PICTURES] == expected
    captioner.close()
    assert captioner.caption(PICTURES[1:2]) == expected[1:2], "loads again"


@pytest.mark.parity
def test_blip_sees_and_says_what_transformers_own_processor_and_model_do(blip: Path) -> None:
    import transformers

    processor_class = getattr(transformers, "BlipImageProcessorPil", None) or transformers.BlipImageProcessor
    theirs = processor_class.from_pretrained(str(blip))(PICTURES, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels(PICTURES, Look(32, 32, "squash")), theirs, rtol=0, atol=1e-5)
    model = transformers.BlipForConditionalGeneration.from_pretrained(str(blip)).eval()
    tokens = model.generate(pixel_values=theirs, num_beams=3, max_new_tokens=50)
    words = transformers.BertTokenizerFast.from_pretrained(str(blip)).batch_decode(tokens, skip_special_tokens=True)
    assert Blip("mine", blip, CPU).caption(PICTURES) == words


def test_blip_is_read_from_a_pickle_of_tensors_and_runs_no_code_in_one(blip: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = tmp_path / "old"
    folder.mkdir()
    for file in blip.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    torch.save(load_file(str(blip / "model.safetensors")), folder / "pytorch_model.bin")
    assert Blip("old", folder, CPU).caption(PICTURES[:1]) == ["a red picture"]

    class Code:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.mkdir, (tmp_path / "made",)  # type: ignore[return-value]

    torch.save({"weight": Code()}, folder / "pytorch_model.bin")
    with pytest.raises(PlainError):
        Blip("old", folder, CPU).caption(PICTURES[:1])
    assert not (tmp_path / "made").exists()


def test_a_blip_that_lacks_weights_is_refused_instead_of_talking_at_random(blip: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "cut"
    folder.mkdir()
    for file in blip.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    state = load_file(str(blip / "model.safetensors"))
    lost = next(key for key in state if key.startswith("vision_model.") and key.endswith("layer_norm1.weight"))
    del state[lost]
    save_file(state, str(folder / "model.safetensors"), metadata={"format": "pt"})
    with pytest.raises(PlainError, match="lacks 1 tensors"):
        Blip("cut", folder, CPU).caption(PICTURES[:1])


def test_coca_describes_each_image(open_clip: types.ModuleType, tmp_path: Path) -> None:
    from lora_trainer.captioners.coca import Coca

    captioner = Coca("coca", write_coca(tmp_path / "coca"), CPU)
    expected = [f"a fine {colour} picture" for colour in COLOURS]
    assert captioner.caption(PICTURES) == expected
    assert captioner.caption(PICTURES[2:]) == expected[2:]


def test_coca_does_not_end_before_its_shortest_text_and_ends_each_text_for_itself(open_clip: types.ModuleType) -> None:
    from lora_trainer.captioners.coca import likeliest

    class Model:
        """Wants to end the first text at once, and the second after seven tokens."""

        def _encode_image(self, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return seen, seen

        def forward(self, image: torch.Tensor, text: torch.Tensor, **_: object) -> dict[str, torch.Tensor]:
            logits = torch.zeros(2, text.shape[1], 49408)
            logits[:, -1, 320] = 1.0
            logits[0, -1, 49407] = 2.0
            logits[1, -1, 49407] = 2.0 if text.shape[1] >= 7 else 0.0
            return {"logits": logits}

        __call__ = forward

    start, word, end = 49406, 320, 49407
    texts = likeliest(Model(), torch.zeros(2, 1), 30)
    assert texts[0].tolist() == [start, word, word, word, word, end, end, end]
    assert texts[1].tolist() == [start, word, word, word, word, word, word, end]


@pytest.mark.parity
def test_coca_says_what_open_clips_own_decoding_does(open_clip: types.ModuleType, tmp_path: Path) -> None:
    from lora_trainer.captioners.coca import likeliest
    from lora_trainer.captioners.open_clip_models import load_open_clip

    loaded = load_open_clip(write_coca(tmp_path / "coca", steps=5), "", CPU)  # hardly trained: no end soon
    seen = pixels(PICTURES, loaded.look)
    torch.manual_seed(0)
    ours = likeliest(loaded.model, seen, 12)
    try:
        theirs = loaded.model.generate(seen, seq_len=12, generation_type="top_k", top_k=1)
    except (AssertionError, AttributeError, ImportError) as error:  # open_clip and transformers of different times
        pytest.skip(f"open_clip's own decoding does not work here: {error}")
    length = min(ours.shape[1], theirs.shape[1])
    assert length >= 6
    assert torch.equal(ours[:, : length - 1], theirs[:, : length - 1])  # their last token is the end, by force


# --- tags ------------------------------------------------------------------------------------------------------------


def test_clip_ranks_the_given_tags(open_clip: types.ModuleType, tmp_path: Path) -> None:
    folder = write_clip(tmp_path / "clip")
    sure = ClipTags("clip-tags", folder, CPU, ["red", "green", "blue"], threshold=0.5, most=3)
    assert sure.caption(PICTURES) == ["red", "green", "blue"]
    all_of_them = ClipTags("clip-tags", folder, CPU, ["red", "green", "blue"], threshold=0.0, most=None)
    ranked = all_of_them.caption(PICTURES)
    assert [text.split(", ")[0] for text in ranked] == ["red", "green", "blue"]
    assert all(sorted(text.split(", ")) == ["blue", "green", "red"] for text in ranked)
    two = ClipTags("clip-tags", folder, CPU, list(COLOURS), threshold=0.0, most=2)
    assert two.caption(PICTURES[:1])[0].count(",") == 1


def test_tags_come_as_words_or_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tags.txt"
    path.write_bytes("\ufeffred hair\n\n 青い空 \nred hair\n".encode())
    assert tags_of([str(path)]) == ["red hair", "青い空"]
    assert tags_of(["red, green", "blue"]) == ["red", "green", "blue"]
    with pytest.raises(PlainError, match="cannot be read"):
        tags_of([str(tmp_path / "none.txt")])
    with pytest.raises(PlainError, match="list of tags"):
        ClipTags("clip-tags", tmp_path, CPU, [], threshold=None, most=None)


@pytest.mark.parametrize("batch", ["batch", 1, 2])
def test_a_tagger_fires_on_its_colour_whatever_batch_its_file_wants(tmp_path: Path, batch: int | str) -> None:
    captioner = Wd14("wd14", write_wd14(tmp_path, batch=batch), CPU, threshold=None, character_threshold=0.85)
    # Red and blue would change places if the channels were not turned round; "general", at 0.9999, is a rating.
    assert captioner.caption(PICTURES) == ["red_theme, ^_^", "miku_(cosplay), ^_^", "blue_theme, ^_^"]


def test_thresholds_of_a_tagger_are_for_general_tags_and_for_characters(tmp_path: Path) -> None:
    folder = write_wd14(tmp_path)
    strict = Wd14("wd14", folder, CPU, threshold=0.6, character_threshold=1.0)
    assert strict.caption(PICTURES) == ["red_theme", "", "blue_theme"]


def test_a_tagger_sees_the_whole_image_on_white(tmp_path: Path) -> None:
    # A thin red strip in a white square: the mean is 1/8 red and 7/8 white.
    captioner = Wd14("wd14", write_wd14(tmp_path), CPU, threshold=0.35, character_threshold=0.85)
    assert captioner.caption([picture("red", (80, 10))]) == ["white_background, ^_^"]
    assert captioner.caption([picture("red", (80, 76))]) == ["red_theme, ^_^"]


def test_tags_of_another_model_are_told(tmp_path: Path) -> None:
    write_wd14(tmp_path)
    table = tmp_path / "selected_tags.csv"
    table.write_text("\n".join(table.read_text(encoding="utf-8").splitlines()[:-1]), encoding="utf-8")
    with pytest.raises(PlainError, match="gives 6 scores"):
        Wd14("wd14", tmp_path, CPU, threshold=None, character_threshold=0.85).caption(PICTURES)
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(PlainError, match="cannot be loaded"):
        Wd14("wd14", tmp_path, CPU, threshold=None, character_threshold=0.85).caption(PICTURES)


def test_pixels_of_the_middle_are_those_of_torchvisions_resize_and_crop() -> None:
    transforms = pytest.importorskip("torchvision.transforms", reason="compares with torchvision, which is not here")
    theirs = transforms.Compose([
        transforms.Resize(32, interpolation=transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(32),
        transforms.ToTensor(), transforms.Normalize(Look(0, 0, "squash").mean, Look(0, 0, "squash").deviation),
    ])  # fmt: skip
    expected = torch.stack([theirs(one) for one in PICTURES])
    torch.testing.assert_close(pixels(PICTURES, Look(32, 32, "shortest")), expected, rtol=0, atol=1e-5)


def test_pixels_of_the_middle_are_cut_evenly() -> None:
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = 255
    from PIL import Image

    seen = pixels([Image.fromarray(wide)], Look(32, 32, "shortest", mean=(0, 0, 0), deviation=(1, 1, 1)))
    assert torch.equal(seen, torch.ones(1, 3, 32, 32))


# --- where models lie ------------------------------------------------------------------------------------------------


def test_a_model_is_recognised_by_what_lies_in_its_folder(blip: Path, tmp_path: Path) -> None:
    write_wd14(tmp_path / "tagger")
    towers = {"vision_cfg": {}, "text_cfg": {}}
    for name, model in (("clip", towers), ("coca", {**towers, "multimodal_cfg": {}})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}), encoding="utf-8")
        assert kind_of(tmp_path / name) is None, "without weights"
        (tmp_path / name / "open_clip_pytorch_model.bin").touch()
    assert [kind_of(tmp_path / name) for name in ("tagger", "clip", "coca")] == ["wd14", "clip", "coca"]
    assert kind_of(blip) == "blip"
    assert kind_of(tmp_path) is None
    place = places.place_of(str(tmp_path / "tagger" / "model.onnx"), tmp_path)
    assert (place.kind, place.folder) == ("wd14", tmp_path / "tagger")
    with pytest.raises(PlainError, match=r"found: clip, coca, tagger"):
        places.place_of(str(tmp_path), tmp_path)


def test_named_models_are_found_in_the_folder_for_models_and_in_the_hubs_cache(
    blip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "captioners"
    for name in ("blip-base", "blip-image-captioning-large"):
        (models / name).mkdir(parents=True)
        for file in blip.iterdir():
            (models / name / file.name).write_bytes(file.read_bytes())
    assert places.place_of("blip-base", models).folder == models / "blip-base"
    assert places.place_of("blip-large", models).folder == models / "blip-image-captioning-large"

    repository = tmp_path / "hub" / "models--SmilingWolf--wd-swinv2-tagger-v3"
    write_wd14(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc", encoding="utf-8")
    import huggingface_hub

    there = huggingface_hub.try_to_load_from_cache  # the default of its argument is bound when the library is imported
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda *args: there(*args, cache_dir=tmp_path / "hub")
    )
    for name in ("wd14", "SmilingWolf/wd-swinv2-tagger-v3"):
        assert places.place_of(name, models).folder == repository / "snapshots" / "abc"


def test_a_model_that_is_not_there_is_named_with_its_size_and_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    for name, known in KNOWN.items():
        with pytest.raises(PlainError) as caught:
            places.place_of(name, tmp_path / "none")
        for told in (name, known.size, known.wants[0], str(tmp_path / "none" / name), "--download true"):
            assert told in str(caught.value)
    with pytest.raises(PlainError, match="There is no captioner 'blib'"):
        places.place_of("blib", tmp_path)


def test_a_download_that_cannot_be_is_one_sentence() -> None:
    with pytest.raises(PlainError, match="could not be fetched"):  # tests are offline: see conftest
        next(fetch("Salesforce/blip-image-captioning-base", needed))


def test_a_network_that_is_not_there_is_one_sentence_whatever_client_the_hub_is_asked_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub
    from huggingface_hub.utils import HfHubHTTPError

    client = sys.modules[HfHubHTTPError.__bases__[0].__module__.partition(".")[0]]  # requests, httpx, ...
    refused = getattr(client, "ConnectError", None) or client.exceptions.ConnectionError

    def unreachable(*_: object, **__: object) -> None:
        raise refused("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    with pytest.raises(PlainError, match="no route to host"):
        next(fetch("Salesforce/blip-image-captioning-base", needed))


def test_only_what_is_read_is_fetched() -> None:
    # The listing of Salesforce/blip-image-captioning-base, with the pickle and the TensorFlow weights.
    listing = ["README.md", "config.json", "preprocessor_config.json", "pytorch_model.bin", "tf_model.h5", "vocab.txt",
               "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]  # fmt: skip
    fetched = needed(listing)
    assert fetched[-1] == "pytorch_model.bin"
    assert {"vocab.txt", "config.json", "tokenizer.json"} < set(fetched)
    assert "tf_model.h5" not in fetched
    both = ["open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors"]
    assert needed(both) == ["open_clip_config.json", "open_clip_model.safetensors"]
    assert needed(["model.onnx", "selected_tags.csv", "model.safetensors"]) == ["model.onnx", "selected_tags.csv"]
    assert needed(["README.md"]) == []


def test_open_clip_that_cannot_be_imported_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from lora_trainer.captioners.open_clip_models import import_open_clip

    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(PlainError, match="needs the packages open_clip_torch and torchvision"):
        import_open_clip()


def test_onnxruntime_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(PlainError, match="pip install onnxruntime"):
        Wd14("wd14", write_wd14(tmp_path), CPU, threshold=None, character_threshold=0.85).caption(PICTURES)


def test_a_hosts_own_captioners_come_first_and_are_told_where_there_is_no_host(tmp_path: Path) -> None:
    class Hosted:
        name, makes, batch_size = "host", "sentences", 4
        lack: Lack | None = None

        def lacks(self) -> Lack | None:
            return self.lack

    hosted = Hosted()
    write_wd14(tmp_path / "wd14")
    found = listed(tmp_path, [hosted])  # type: ignore[list-item]
    assert [one.name for one in found] == ["host", *KNOWN]
    assert found[0]._asdict() == {
        "name": "host", "title": "BLIP of the WebUI", "makes": "sentences", "here": True, "size": "", "where": "",
        "hosted": True,
    }  # fmt: skip
    assert {one.name: one.here for one in found} == {"host": True} | dict.fromkeys(KNOWN, False) | {"wd14": True}
    assert {one.name: one.where for one in found if not one.hosted} == {name: str(tmp_path / name) for name in KNOWN}
    assert {one.name for one in found if one.makes == "tags"} == {"clip-tags", "wd14"}
    assert captioner_of(CaptionConfig(model="host"), CPU, [hosted]) is hosted  # type: ignore[list-item]
    hosted.lack = Lack("0.9 GB", "models/BLIP/model.pth", "It has no model.pth; put it there.")
    assert listed(tmp_path, [hosted])[0][3:6] == (False, "0.9 GB", "models/BLIP/model.pth")  # type: ignore[list-item]
    with pytest.raises(PlainError, match=r"no model\.pth; put it there"):
        captioner_of(CaptionConfig(model="host"), CPU, [hosted])  # type: ignore[list-item]
    assert captioner_of(CaptionConfig(model="host", download=True), CPU, [hosted]) is hosted  # type: ignore[list-item]
    with pytest.raises(PlainError, match="a WebUI's own"):
        captioner_of(CaptionConfig(model="deepbooru"), CPU)


# --- wording ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "makes", "said", "written"),
    [
        ({}, "tags", "long_hair, ^_^, x_x, (o)_(o), 2girls", "long hair, ^_^, x_x, (o)_(o), 2girls"),
        ({"underscores_to_spaces": False}, "tags", "long_hair", "long_hair"),
        ({"escape_parentheses": True}, "tags", r"miku_(cosplay), aa_\(b\)", r"miku \(cosplay\), aa \(b\)"),
        ({"blacklist": ("Long Hair, solo",)}, "tags", "long_hair, solo, smile", "smile"),
        ({"max_tags": 2, "blacklist": ("a",)}, "tags", "a, bb, cc, dd", "bb, cc"),
        ({"blacklist": ("arafed",)}, "sentences", "arafed cat, arafed , on a mat", "cat, on a mat"),
        ({"blacklist": ("cat",)}, "sentences", "a cat and a category", "a and a category"),
        ({"max_tags": 1}, "sentences", "a cat, a dog", "a cat, a dog"),
        ({"prefix": "oil painting, ", "suffix": "by night"}, "sentences", "a cat", "oil painting, a cat, by night"),
        ({"prefix": "p"}, "tags", "", "p"),
    ],
)
def test_what_is_said_is_worded_as_the_options_want(
    options: dict[str, object], makes: str, said: str, written: str
) -> None:
    assert worded(said, makes, CaptionConfig(**options)) == written  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("how", "makes", "old", "new", "becomes"),
    [
        ("overwrite", "tags", "a, b", "c", "c"),
        ("append", "tags", "a, long hair", "c, long_hair, B", "a, long hair, c, B"),
        ("prepend", "tags", "a, b", "b, c", "c, a, b"),
        ("append", "sentences", "mine", "a cat", "mine, a cat"),
        ("prepend", "sentences", "mine", "a cat", "a cat, mine"),
        ("append", "sentences", "mine, a cat", "a cat", "mine, a cat"),
        ("append", "tags", "", "a", "a"),
        ("append", "tags", "a", "", "a"),
    ],
)
def test_old_and_new_captions_are_joined(how: str, makes: str, old: str, new: str, becomes: str) -> None:
    assert joined(old, new, how, makes) == becomes
