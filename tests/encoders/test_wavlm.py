"""WavLM's attention: ours answers as transformers' does, and adapters reach it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.family_cells import alone, logits
from helpers.tiny_encoders import ENCODERS, save_encoder
from helpers.trained_models import LABELS, PRODUCTS, describe
from peft import PeftModel
from transformers import AutoModelForAudioClassification
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from peft_audio.adapters import examine, snippet, verify
from peft_audio.adapters.record import read_record, readme_snippet
from peft_audio.adapters.save import save_adapter
from peft_audio.config import ModelConfig
from peft_audio.encoders.loading import load_classifier, quiet_loading
from peft_audio.encoders.wavlm import WAVLM
from peft_audio.encoders.wavlm_attention import CallingWavLMAttention


def classifier(base: Path) -> Any:
    """A model in which the position bias, its gate and padding matter."""
    torch.manual_seed(0)
    model = load_classifier(ModelConfig(name=str(base)), LABELS)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "rel_attn_embed" in name or "gru_rel_pos" in name:
                weight.normal_(std=1.0)
            elif ".attention." in name or name.startswith(("projector.weight", "classifier.weight")):
                weight.mul_(8)
    return model


def step(model: Any) -> dict[str, torch.Tensor]:
    """The logits of a padded batch and of each clip without padding, and the gradients of both."""
    found = {"padded": logits(model), "alone": alone(model)}
    model.zero_grad()
    (found["padded"].square().sum() + found["alone"].square().sum()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in found.items()} | gradients


@pytest.mark.parametrize("encoder", ["wavlm-base", "wavlm-large"])
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
def test_logits_and_gradients_are_those_of_transformers(encoder: str, tmp_path: Path) -> None:
    model = classifier(save_encoder(tmp_path / "base", ENCODERS[encoder]))
    blocks = [layer.attention for layer in model.wavlm.encoder.layers]
    ours = step(model)
    assert {type(block) for block in blocks} == {CallingWavLMAttention}
    WAVLM.restore_attention(model)
    assert {type(block) for block in blocks} == {WavLMAttention}
    published = step(model)
    assert ours.keys() == published.keys() and any("rel_attn_embed" in name for name in ours)
    for name, value in published.items():
        unit = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(ours[name], value, atol=1e-5 * unit, rtol=0, msg=lambda text, name=name: name + text)

    with torch.no_grad():
        model.wavlm.encoder.layers[0].attention.rel_attn_embed.weight.zero_()
        assert (logits(model) - published["padded"]).abs().max() > 1e-2, "the bias must matter"


@pytest.mark.parametrize("strategy", ["lora", "ia3"])
def test_adapters_reach_the_attention(strategy: str, tmp_path: Path) -> None:
    made = describe(save_encoder(tmp_path / "base", ENCODERS["wavlm-base"]), PRODUCTS[strategy])
    logits(made.model).square().sum().backward()
    in_attention = {name: p.grad for name, p in made.model.named_parameters() if "_proj." in name and p.requires_grad}
    assert len(in_attention) == {"lora": 2 * 4 * 2, "ia3": 2 * 2}[strategy]
    assert all(gradient is not None and gradient.any() for gradient in in_attention.values())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """LoRA and IA3 with their default targets, on `base`, which stands beside their runs."""
    root = tmp_path_factory.mktemp("wavlm")
    base = save_encoder(root / "base", ENCODERS["wavlm-base"])
    folders = {}
    for strategy in ("lora", "ia3"):
        made = describe(base, PRODUCTS[strategy], std=0.5)
        parts = (made.model, made.trained, made.extractor, made.record)
        folders[strategy] = save_adapter(root / strategy, *parts, verify=False)
    return folders


@pytest.mark.parametrize("strategy", ["lora", "ia3"])
def test_plain_peft_ignores_it_until_it_is_merged(strategy: str, saved: dict[str, Path]) -> None:
    folder = saved[strategy]
    settings = {"num_labels": len(LABELS), "dtype": torch.float32}
    with quiet_loading():
        base = AutoModelForAudioClassification.from_pretrained(folder.parents[1] / "base", **settings)
        model = PeftModel.from_pretrained(base, folder).eval()
    clip = torch.sin(torch.arange(16_000) / 9.0)[None]
    changes = [p for name, p in model.named_parameters() if "_proj." in name and ("lora_B" in name or "ia3_l" in name)]
    with torch.no_grad():
        before = model(clip).logits
        for change in changes:
            change.add_(1.0)
        assert changes and torch.equal(model(clip).logits, before), "changes by 0.0"
        assert (model.merge_and_unload()(clip).logits - before).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["lora", "ia3"])
def test_the_code_of_the_readme_merges_it(
    strategy: str, saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved[strategy]
    text, record = (folder / "README.md").read_text(encoding="utf-8"), read_record(folder)
    assert "reads the weights of q_proj, k_proj, v_proj, out_proj without calling these layers" in text
    code = readme_snippet(record, ".")
    assert code in text and code.count(".merge_and_unload()") == 1
    base = str(folder.parents[1] / "base")
    assert snippet.check_snippet(folder, record, base) == []
    unmerged = readme_snippet(record, str(folder), base).replace(".merge_and_unload()", "")
    monkeypatch.setattr(snippet, "readme_snippet", lambda *place: unmerged)
    assert snippet.check_snippet(folder, record, base)[0].startswith("probe of 0.01 s: logits differ by")


def test_verify_warns_of_it_and_checks_what_others_load(
    saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [finding for finding in examine.examine(saved["lora"]) if finding.severity != "ok"]
    assert [(finding.check, finding.severity) for finding in found] == [("merging", "warning")]
    assert "reads the weights of q_proj, k_proj, v_proj, out_proj without calling" in found[0].what
    assert found[0].mend == "call merge_and_unload() before use, or load it with peft-audio"

    # An adapter that answers as recorded here alone is broken.
    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self: self.unload(), raising=False)
    problems = verify.check_probes(saved["lora"])
    assert problems and all(problem.startswith("loaded as in its README: probe of") for problem in problems)
