"""The less used encoders, with a few strategies: one clip has one answer, in training, cache, adapter and exports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from helpers.adapt import adapt
from helpers.family_cells import LABELS
from helpers.tiny_encoders import SIBLINGS, save_encoder
from helpers.trained_encoders import Trained, batch_of, clips, make
from torch.nn.functional import cross_entropy
from transformers import SeamlessM4TFeatureExtractor

from peft_audio.adapters import verify
from peft_audio.adapters.adapter_set import load_adapters
from peft_audio.adapters.load import load_adapter, model_inputs
from peft_audio.adapters.probes import probe_waveforms
from peft_audio.config import ModelConfig
from peft_audio.encoders.base import Cut
from peft_audio.encoders.loading import load_classifier, load_extractor
from peft_audio.errors import UserError
from peft_audio.publish.export import FORMS, write_export, write_graph
from peft_audio.strategies import FullRecipe
from peft_audio.strategies.base import set_modes

STRATEGIES = ("head_only", "lora", "last_n_layers")
# Where the frozen part ends. The inputs of SEW's layers are not frames, so none is kept there.
SQUEEZED = {"head_only": Cut("pooled", 2), "lora": Cut("projection"), "last_n_layers": Cut("projection")}
ENDS = {"head_only": Cut("pooled", 2), "lora": Cut("layers", 0), "last_n_layers": Cut("layers", 1)}
# What somebody without this package does, in one process for all adapters of a base.
PLAIN = """
import json, sys
import numpy as np, torch
from peft import PeftModel
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, logging
logging.set_verbosity_error()
answers = {}
for name, (base, adapter, code, clips) in json.load(open(sys.argv[1])).items():
    kind, whole = AutoModelForAudioClassification, adapter is None
    model = kind.from_pretrained(base, dtype=torch.float32, **({} if whole else {"num_labels": 3})).eval()
    model = model if whole else PeftModel.from_pretrained(model, adapter).eval()
    answers[name] = []
    for clip in clips:
        here = {"np": np, "torch": torch, "waveform": np.array(clip, np.float32)}
        here["extractor"] = AutoFeatureExtractor.from_pretrained(base if whole else adapter)
        exec(code, here)
        with torch.no_grad():
            answers[name].append(model(here["values"]).logits[0].tolist())
print(json.dumps(answers))
"""


def random_encoder(base: Path) -> Any:
    """A classifier in which norms, statistics and head are far from where they start."""
    model = load_classifier(ModelConfig(name=str(base)), LABELS)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name.lower():
                weight.add_(torch.randn_like(weight) * 0.3)
        for name, statistic in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                statistic.add_(torch.rand_like(statistic))
        model.projector.weight.mul_(20)
        model.classifier.weight.mul_(50)
    return model


class Products(dict[str, dict[str, Trained]]):
    """Sibling -> strategy -> what was trained, made when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def base(self, sibling: str) -> Path:
        folder = self.root / sibling / "base"
        return folder if folder.exists() else save_encoder(folder, SIBLINGS[sibling])

    def __missing__(self, sibling: str) -> dict[str, Trained]:
        self[sibling] = {}
        for strategy in STRATEGIES:
            folder = self.root / sibling / strategy
            folder.mkdir(parents=True)
            self[sibling][strategy] = make(self.base(sibling), strategy, folder)
        return self[sibling]


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> Products:
    return Products(tmp_path_factory.mktemp("siblings"))


every_sibling = pytest.mark.parametrize("sibling", SIBLINGS)


@every_sibling
def test_padding_changes_no_answer_however_the_norms_are_set(products: Products, sibling: str) -> None:
    base = products.base(sibling)
    model, extractor = random_encoder(base), load_extractor(ModelConfig(name=str(base)))
    with torch.no_grad():
        together = model(**model_inputs(clips(), extractor, model.config)[0]).logits
        alone = torch.cat([model(**model_inputs([clip], extractor, model.config)[0]).logits for clip in clips()])
    assert alone.std(0).max() > 0.05, "the clips must have different answers"
    assert float((together - alone).abs().max()) < 1e-5 * max(1.0, float(alone.abs().max()))


@every_sibling
def test_only_what_trains_moves_and_a_clip_keeps_its_answer(products: Products, sibling: str) -> None:
    for made in products[sibling].values():
        # Biases that get a zero gradient need not move.
        assert made.moved <= set(made.trained.parameters)
        assert {name for name in set(made.trained.parameters) - made.moved if "weight" in name} == set()
        assert np.abs(made.logits).max() > 0.05 and made.logits.std(0).max() > 0.01
        assert made.padding_error < 1e-5 * max(1.0, np.abs(made.logits).max())


@every_sibling
def test_what_follows_the_cached_part_is_the_whole_model(products: Products, sibling: str) -> None:
    ends = SQUEEZED if sibling.startswith("sew") else ENDS
    for strategy, made in products[sibling].items():
        assert made.cut == ends[strategy]
        expected, found = made.steps
        for name, value in expected.items():
            unit = max(1.0 if name == "logits" else 0.05, float(value.abs().max()))
            torch.testing.assert_close(
                found[name],
                value,
                atol=(2e-5 if name == "logits" else 5e-5) * unit,
                rtol=0,
                msg=lambda text, name=name: name + text,
            )


@pytest.mark.slow
def test_the_adapters_answer_here_and_elsewhere_as_recorded(products: Products, tmp_path: Path) -> None:
    jobs: dict[str, Any] = {}
    waveforms = [clip.tolist() for clip in clips()]
    for sibling in SIBLINGS:
        for strategy, made in products[sibling].items():
            assert verify.check_probes(made.folder) == []
            adapter, name = load_adapter(made.folder), f"{sibling}/{strategy}"
            np.testing.assert_allclose(adapter.logits(clips()), made.logits, rtol=0, atol=2e-5)
            write_export(adapter, tmp_path / name.replace("/", " "), FORMS["merged"])
            code = adapter.record.family.input_code(adapter.record.input)
            jobs[name] = [str(made.base), str(made.folder), code, waveforms]
            jobs[f"{name}/merged"] = [str(tmp_path / name.replace("/", " ")), None, code, waveforms]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-P", "-c", PLAIN, str(tmp_path / "jobs.json")]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert "missing" not in child.stderr
    for name, answers in json.loads(child.stdout).items():
        sibling, strategy = name.split("/")[:2]
        expected = products[sibling][strategy].logits
        np.testing.assert_allclose(answers, expected, rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("sibling", ["data2vec-audio", "conformer, relative", "sew", "w2v-bert"])
def test_adapters_on_one_base_are_asked_in_one_pass(products: Products, sibling: str) -> None:
    made = products[sibling]
    adapters = load_adapters({strategy: one.folder for strategy, one in made.items()})
    for strategy, logits in adapters.logits_of_all(clips()).items():
        unit = max(1.0, np.abs(made[strategy].logits).max())
        np.testing.assert_allclose(logits, made[strategy].logits, rtol=0, atol=1e-5 * unit, err_msg=strategy)


@every_sibling
def test_the_onnx_graph_answers_for_clips_of_any_length(products: Products, sibling: str, tmp_path: Path) -> None:
    adapter = load_adapter(products[sibling]["lora"].folder)
    write_graph(adapter, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    record = adapter.record
    probes = probe_waveforms(record.sampling_rate, record.family.probe_seconds)
    for waveforms in (*(probe[None] for probe in probes), np.stack([probes[2], probes[3][: len(probes[2])]])):
        here: dict[str, Any] = {"np": np, "waveforms": waveforms}
        exec(record.family.graph_code(record.input), here)
        (found,) = session.run(["logits"], {record.input["names"][0]: here["values"]})
        np.testing.assert_allclose(found, adapter.logits(list(waveforms)), rtol=0, atol=1e-4)


@every_sibling
def test_full_fine_tuning_leaves_the_statistics_of_batch_norms(products: Products, sibling: str) -> None:
    base = products.base(sibling)
    model, trained = adapt(random_encoder(base), FullRecipe())
    extractor = load_extractor(ModelConfig(name=str(base)))
    for frozen_dropout in (False, True):
        set_modes(model, trained, frozen_dropout)
        before = {name: value.clone() for name, value in model.named_buffers()}
        cross_entropy(
            model(**batch_of(clips(), extractor, model.config)["inputs"]).logits, torch.arange(6) % 3
        ).backward()
        assert all(torch.equal(value, before[name]) for name, value in model.named_buffers() if name in before)
    weights = dict(model.named_parameters())
    assert [name for name in trained.parameters if weights[name].grad is None] == []
    assert all(not weight.requires_grad for name, weight in weights.items() if name not in trained.parameters)


@pytest.mark.parametrize("positions", ["rotary", "relative"])
@pytest.mark.parametrize("encoder", ["conformer, rotary", "w2v-bert"])
def test_positions_of_an_earlier_pass_are_not_used(encoder: str, positions: str, tmp_path: Path) -> None:
    config = type(SIBLINGS[encoder])(
        **SIBLINGS[encoder].to_dict() | {"position_embeddings_type": positions, "max_source_positions": 8}
    )
    base = save_encoder(tmp_path / "base", config)
    fresh, model = random_encoder(base), random_encoder(base)
    model.load_state_dict(fresh.state_dict())  # the heads are drawn at random
    inputs = batch_of(clips(), load_extractor(ModelConfig(name=str(base))), config)["inputs"]
    expected = fresh(**inputs).logits
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        model(**inputs)
    found = model(**inputs).logits
    found.sum().backward()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("encoder", [name for name in SIBLINGS if name.startswith("sew")])
def test_a_weighted_sum_of_squeezed_layers_is_refused(encoder: str, tmp_path: Path) -> None:
    base = save_encoder(tmp_path / "base", SIBLINGS[encoder])
    with pytest.raises(UserError, match=r"--model.layer_weighted_sum: got true, must be false for SEW"):
        load_classifier(ModelConfig(name=str(base), layer_weighted_sum=True), LABELS)


@pytest.mark.parametrize(("wrong", "words"), [({"stride": 4}, "is 4, must be 2"), ({"sampling_rate": 8000}, "is 8000")])
def test_features_that_the_encoder_does_not_take_are_refused(wrong: dict[str, int], words: str, tmp_path: Path) -> None:
    base = save_encoder(tmp_path / "base", SIBLINGS["w2v-bert"])
    SeamlessM4TFeatureExtractor(**wrong).save_pretrained(base)
    with pytest.raises(UserError, match=rf"preprocessor_config.json: {next(iter(wrong))} {words}"):
        load_extractor(ModelConfig(name=str(base)))
